"""Many rows of a table at once: what blocks of transfers between shards read and write.

LMDB's own loops (`getmulti`, `putmulti`) find and store them. Keys are best sorted, so that
neighbours share the pages that are walked.
"""

import functools
import itertools
import zlib
from collections.abc import Sequence
from typing import Final

import lmdb
import numpy as np
from numpy.typing import NDArray

from ledger_node.store_bits import BitTables
from ledger_node.store_columns import ColumnTables

Rows = list[tuple[bytes, bytes]]
"""Keys with their rows; these end with their checksums, of `CHECKSUM_BYTES`."""

CHECKSUM_BYTES: Final = 4

# CRC-32 of anything that is followed by its CRC-32.
_RESIDUE: Final = 0x2144DF1C

KeptRows = NDArray[np.uint8] | Sequence[bytes]
"""Rows to be stored: as one array, with room for the checksums at the end, or one by one."""


class LegTables(ColumnTables, BitTables):
    """The part of `ShardTables` that reads and writes many rows of transactions between shards."""

    _in_flight_bits: lmdb._Database
    _undecided_bits: lmdb._Database

    def find_requests(self, keys: Sequence[bytes]) -> Rows:
        """Return the sealed `RequestRow`s of the requests that are known."""
        return self._found(self._requests, keys)

    def find_transactions(self, numbers: Sequence[bytes]) -> Rows:
        """Return the sealed, encoded `TransactionRecord`s of transactions."""
        return self._found(self._transactions, numbers)

    def put_transactions(self, numbers: Sequence[bytes], rows: KeptRows) -> None:
        """Store the encoded `TransactionRecord`s of transactions, new or changed."""
        self._store(self._transactions, numbers, rows)

    def put_undecided(self, numbers: NDArray[np.integer]) -> None:
        """Note that this shard waits for decisions; the records tell what it prepared."""
        self._set_bits(self._undecided_bits, numbers)

    def drop_undecided_all(self, numbers: NDArray[np.integer]) -> None:
        """Note that this shard has the decisions on what blocks have prepared."""
        self._clear_bits(self._undecided_bits, numbers)

    def put_in_flight(self, numbers: NDArray[np.integer]) -> None:
        """Note that participants have to be told first states: ``InFlightRecord(0)``."""
        self._set_bits(self._in_flight_bits, numbers)

    def drop_in_flight_all(self, numbers: NDArray[np.integer]) -> None:
        """Note that participants have been told what blocks have committed."""
        self._clear_bits(self._in_flight_bits, numbers)

    def _found(self, table: lmdb._Database, keys: Sequence[bytes]) -> Rows:
        """Return (key, row with its checksum) of those that exist, in order."""
        found = self._get_many(table, keys)
        if not found:
            return found
        if len({len(sealed) for _, sealed in found}) == 1:
            joined = b"".join(itertools.chain.from_iterable(found))
            if zlib.crc32(joined) == residue(len(joined) // len(found), len(found)):
                return found
        return self._find_rows(table, keys)

    def _store(self, table: lmdb._Database, keys: Sequence[bytes], rows: KeptRows) -> None:
        """Store rows, each with its checksum."""
        if isinstance(rows, np.ndarray):
            self._put_sealed(table, keys, rows.view(f"V{rows.shape[1]}")[:, 0])
        else:
            self._put_rows(table, keys, rows)


@functools.lru_cache(maxsize=256)
def _residues(_size: int) -> list[int]:
    return [0]


def residue(size: int, count: int) -> int:
    """Return the CRC-32 of so many sound rows of one size, each with its key before it, joined.

    As `ledger_node.store_columns` explains for balances: one pass over many rows finds a damaged
    one as surely as a pass over each.
    """
    known = _residues(size)
    zeros = bytes(size)
    while len(known) <= count:
        known.append(_RESIDUE ^ zlib.crc32(zeros, known[-1]) ^ zlib.crc32(zeros))
    return known[count]


def number_keys(numbers: NDArray[np.integer]) -> list[bytes]:
    """Return the keys of transactions."""
    keys: list[bytes] = numbers.astype(">u8").view("V8").tolist()
    return keys

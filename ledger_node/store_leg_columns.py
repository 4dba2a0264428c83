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

from ledger_core.transfers import split_rows
from ledger_node.store_columns import ColumnTables

Rows = list[tuple[bytes, bytes]]
"""Keys with their rows; these end with their checksums, of `CHECKSUM_BYTES`."""

CHECKSUM_BYTES: Final = 4

# CRC-32 of anything that is followed by its CRC-32.
_RESIDUE: Final = 0x2144DF1C

KeptRows = NDArray[np.uint8] | Sequence[bytes]
"""Rows to be stored: as one array, with room for the checksums at the end, or one by one."""


class LegTables(ColumnTables):
    """The part of `ShardTables` that reads and writes many rows of transactions between shards."""

    _in_flight: lmdb._Database
    _undecided: lmdb._Database

    def find_requests(self, keys: Sequence[bytes]) -> Rows:
        """Return the sealed `RequestRow`s of the requests that are known."""
        return self._found(self._requests, keys)

    def find_transactions(self, numbers: Sequence[bytes]) -> Rows:
        """Return the sealed, encoded `TransactionRecord`s of transactions."""
        return self._found(self._transactions, numbers)

    def put_transactions(self, numbers: Sequence[bytes], rows: KeptRows) -> None:
        """Store the encoded `TransactionRecord`s of transactions, new or changed."""
        self._store(self._transactions, numbers, rows)

    def put_undecided(self, numbers: Sequence[bytes]) -> None:
        """Note that this shard waits for decisions; the records tell what it prepared."""
        self._put_notes(self._undecided, numbers, b"")

    def put_in_flight(self, numbers: Sequence[bytes], row: bytes) -> None:
        """Note that participants have to be told: one `InFlightRecord` for all."""
        self._put_notes(self._in_flight, numbers, row)

    def drop_undecided_all(self, numbers: Sequence[bytes]) -> None:
        """Note that this shard has the decisions."""
        self._drop(self._undecided, numbers)

    def drop_in_flight_if(self, numbers: Sequence[bytes], row: bytes) -> None:
        """Note that participants have been told, of those whose `InFlightRecord` is ``row``."""
        found = self._get_many(self._in_flight, numbers)
        if found != _notes(numbers, row):
            # Some are missing, or are of other kinds.
            found = self._find_rows(self._in_flight, numbers)
            numbers = [number for number, sealed in found if sealed[:-CHECKSUM_BYTES] == row]
        self._drop(self._in_flight, numbers)

    def _put_notes(self, table: lmdb._Database, keys: Sequence[bytes], row: bytes) -> None:
        with self._source.txn.cursor(table) as cursor:
            cursor.putmulti(_notes(keys, row))

    def _drop(self, table: lmdb._Database, keys: Sequence[bytes]) -> None:
        """Remove rows; most are neighbours, and the cursor goes on to the next by itself."""
        with self._source.txn.cursor(table) as cursor:
            key_now, seek, delete = cursor.key, cursor.set_key, cursor.delete
            for key in keys:
                if key_now() == key or seek(key):
                    delete()

    def _found(self, table: lmdb._Database, keys: Sequence[bytes]) -> Rows:
        """Return (key, row with its checksum) of those that exist, in order."""
        found = self._get_many(table, keys)
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


def _notes(keys: Sequence[bytes], row: bytes) -> Rows:
    """Return a row under many keys, each with its checksum."""
    checksums = map(zlib.crc32, itertools.repeat(row), map(zlib.crc32, keys))
    sealed = np.empty((len(keys), len(row) + CHECKSUM_BYTES), np.uint8)
    sealed[:, : len(row)] = np.frombuffer(row, np.uint8)
    sealed[:, len(row) :] = np.array([*checksums], "<u4").view(np.uint8).reshape(-1, CHECKSUM_BYTES)
    return [*zip(keys, split_rows(sealed), strict=True)]


def number_keys(numbers: NDArray[np.integer]) -> list[bytes]:
    """Return the keys of transactions."""
    keys: list[bytes] = numbers.astype(">u8").view("V8").tolist()
    return keys

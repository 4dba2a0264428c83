"""Many rows of a table at once: what blocks of transfers read and write.

LMDB's own loops (`getmulti`, `putmulti`) find and store them. Keys come sorted, so that neighbours
share the pages that are walked.
"""

import zlib
from collections.abc import Iterable, Sequence
from typing import Final, cast

import lmdb
import numpy as np
from numpy.typing import NDArray

from ledger_node.records import BalanceRow
from ledger_node.store_rows import RowTables, seal, unseal

I64Array = NDArray[np.int64]
U64Array = NDArray[np.uint64]

# CRC-32 of anything followed by its own CRC-32.
_RESIDUE: Final = 0x2144DF1C
_CELLS: Final = 1 << 17
_SLOT_BITS: Final = 32


class ColumnTables(RowTables):
    """The part of `ShardTables` that reads and writes many rows at a time."""

    _accounts: lmdb._Database
    _balances: lmdb._Database
    _requests: lmdb._Database
    _transactions: lmdb._Database
    _known_places: "_KnownPlaces | None"

    def places(self, account_ids: U64Array) -> I64Array:
        """Return where accounts are: `place` of slot and book, which never change. 0: nowhere."""
        if self._known_places is None:
            self._known_places = _KnownPlaces()
        known = self._known_places
        places = known.find(account_ids)
        missing = (places == 0).nonzero()[0]
        if len(missing):
            ids = account_ids[missing]
            found = self._find_places(ids.tolist())
            places[missing] = [found.get(account_id, 0) for account_id in ids.tolist()]
            known.add(ids, places[missing])
        return places

    def _find_places(self, account_ids: Iterable[int]) -> dict[int, int]:
        keys = [account_id.to_bytes(8) for account_id in sorted(set(account_ids))]
        slots = dict(self._find_rows(self._accounts, keys))
        rows = dict(self._find_rows(self._balances, sorted(slot[:4] for slot in slots.values())))
        return {
            int.from_bytes(key): place(
                int.from_bytes(slot[:4]), BalanceRow.unpack(rows[slot[:4]][:-4]).book
            )
            for key, slot in slots.items()
        }

    def sealed_balance_rows(self, keys: Sequence[bytes]) -> bytearray:
        """Return the packed `BalanceRow`s of slots that exist, each with its checksum, joined.

        Keys are slots, 4 bytes each, big-endian.
        """
        found = self._find_rows(self._balances, keys)
        assert len(found) == len(keys), "a slot has a balance"
        return bytearray().join([row for _, row in found])

    def save_balance_rows(self, keys: Sequence[bytes], rows: Sequence[bytes]) -> None:
        """Store the packed `BalanceRow`s of slots."""
        self._put_rows(self._balances, keys, rows)

    def known_requests(self, keys: Sequence[bytes]) -> set[bytes]:
        """Return the keys of requests that are known."""
        return {key for key, _ in self._find_rows(self._requests, keys)}

    def add_request_rows(self, keys: Sequence[bytes], rows: Sequence[bytes]) -> None:
        """Store the packed `RequestRow`s of requests that were not known."""
        self._put_rows(self._requests, keys, rows)

    def add_transaction_rows(self, numbers: Sequence[bytes], rows: Sequence[bytes]) -> None:
        """Store the encoded `TransactionRecord`s of new transactions."""
        self._put_rows(self._transactions, numbers, rows)

    def _find_rows(self, table: lmdb._Database, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        """Return (key, row with its checksum) of those that exist, in order."""
        with self._source.txn.cursor(table) as cursor:
            # bytes: the environment is not opened for memoryviews (buffers=True).
            found = cast("list[tuple[bytes, bytes]]", cursor.getmulti(keys))
        crc32 = zlib.crc32
        for key, sealed in found:
            if crc32(sealed, crc32(key)) != _RESIDUE:
                unseal(key, sealed)  # Raises, and says what to do.
        return found

    def _put_rows(
        self, table: lmdb._Database, keys: Sequence[bytes], rows: Sequence[bytes]
    ) -> None:
        items = [(key, seal(key, row)) for key, row in zip(keys, rows, strict=True)]
        with self._source.txn.cursor(table) as cursor:
            cursor.putmulti(items)


def place(slot: int, book: int) -> int:
    """Return the place of an account: above 0."""
    return book << _SLOT_BITS | slot + 1


def place_slots(places: I64Array) -> I64Array:
    """Return the slots of places; -1 where there is none."""
    return (places & (1 << _SLOT_BITS) - 1) - 1


def place_books(places: I64Array) -> I64Array:
    """Return the books of places."""
    return places >> _SLOT_BITS


class _KnownPlaces:
    """Places that were looked up before: bounded, the newest of those that share a cell.

    Ids are random numbers: their lowest bits spread them over the cells.
    """

    def __init__(self) -> None:
        self._ids = np.zeros(_CELLS, np.uint64)
        self._places = np.zeros(_CELLS, np.int64)

    def find(self, account_ids: U64Array) -> I64Array:
        """Return places; 0 of accounts that are not among these."""
        cells = self._cells(account_ids)
        places = self._places[cells]
        places *= self._ids[cells] == account_ids
        return places

    def add(self, account_ids: U64Array, places: I64Array) -> None:
        """Remember places; 0, which is none, is never found."""
        # One by one where ids share a cell: an id must not get the place of another one.
        for cell, account_id, where in zip(
            self._cells(account_ids).tolist(), account_ids.tolist(), places.tolist(), strict=True
        ):
            if where:
                self._ids[cell], self._places[cell] = account_id, where

    @staticmethod
    def _cells(account_ids: U64Array) -> I64Array:
        return (account_ids & np.uint64(_CELLS - 1)).astype(np.int64)

"""Many rows of a table at once: what blocks of transfers read and write.

LMDB's own loops (`getmulti`, `putmulti`) find and store them. Keys come sorted, so that neighbours
share the pages that are walked.
"""

import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import cast

import lmdb

from ledger_node.store_rows import RowTables, unseal

_CRC = struct.Struct("<I")


class ColumnTables(RowTables):
    """The part of `ShardTables` that reads and writes many rows at a time."""

    _accounts: lmdb._Database
    _balances: lmdb._Database
    _requests: lmdb._Database
    _transactions: lmdb._Database

    def slot_rows(self, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        """Return (account id, slot), both big-endian, of the accounts that exist, in order."""
        return self._find_rows(self._accounts, keys)

    def balance_rows(self, keys: Sequence[bytes]) -> bytes:
        """Return the packed `BalanceRow`s of slots (4 bytes, big-endian) that exist, joined."""
        return b"".join([row for _, row in self._find_rows(self._balances, keys)])

    def save_balance_rows(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Store (slot, packed `BalanceRow`) of accounts that exist."""
        self._put_rows(self._balances, rows)

    def knows_request(self, keys: Sequence[bytes]) -> set[bytes]:
        """Return the keys of requests that are known."""
        return {key for key, _ in self._find_rows(self._requests, keys)}

    def add_request_rows(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Store (key, packed `RequestRow`) of requests that were not known."""
        self._put_rows(self._requests, rows)

    def add_transaction_rows(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Store (number, encoded `TransactionRecord`) of new transactions."""
        self._put_rows(self._transactions, rows)

    def _find_rows(self, table: lmdb._Database, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        crc32, pack = zlib.crc32, _CRC.pack
        found: list[tuple[bytes, bytes]] = []
        with self._source.txn.cursor(table) as cursor:
            # bytes: the environment is not opened for memoryviews (buffers=True).
            rows = cast("list[tuple[bytes, bytes]]", cursor.getmulti(keys))
            for key, value in rows:
                row = value[:-4]
                if value[-4:] != pack(crc32(row, crc32(key))):
                    unseal(key, value)  # Raises, and says what to do.
                found.append((key, row))
        return found

    def _put_rows(self, table: lmdb._Database, rows: Iterable[tuple[bytes, bytes]]) -> None:
        crc32, pack = zlib.crc32, _CRC.pack
        sealed = [(key, row + pack(crc32(row, crc32(key)))) for key, row in rows]
        with self._source.txn.cursor(table) as cursor:
            cursor.putmulti(sealed)

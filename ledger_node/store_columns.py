"""Many rows of a table at once: what blocks of transfers read and write.

LMDB's own loops (`getmulti`, `putmulti`) find and store them. Keys come sorted, so that neighbours
share the pages that are walked.
"""

import zlib
from collections.abc import Sequence
from typing import cast

import lmdb
import numpy as np
from numpy.typing import NDArray

from ledger_node.records import ENTRY_ROW_BYTES, EntryRow
from ledger_node.store_files import StoreCorruptError
from ledger_node.store_rows import RowTables, unseal

Bytes = NDArray[np.uint8]
"""Keys or rows of one length, one below the other."""


class ColumnTables(RowTables):
    """The part of `ShardTables` that reads and writes many rows at a time."""

    _accounts: lmdb._Database
    _balances: lmdb._Database
    _entries: lmdb._Database
    _requests: lmdb._Database
    _transactions: lmdb._Database

    def slot_rows(self, keys: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Return (account ids, slots), both big-endian, of the accounts that exist, in order."""
        return self._find_rows(self._accounts, keys)

    def balance_rows(self, keys: Sequence[bytes]) -> bytes:
        """Return the packed `BalanceRow`s of slots (4 bytes, big-endian) that exist, joined."""
        return b"".join(self._find_rows(self._balances, keys)[1])

    def entry_times_us(self, positions: Sequence[int]) -> list[int]:
        """Return when the entries at these positions, which rise, were recorded."""
        found: list[int] = []
        first, block = 0, b""
        crc32, from_bytes = zlib.crc32, int.from_bytes
        with self._source.txn.cursor(self._entries) as cursor:
            for position in positions:
                offset = (position - first) * ENTRY_ROW_BYTES
                if offset >= len(block):
                    # The entries of a log entry are one value, under the position of the first.
                    key = position.to_bytes(8)
                    behind = cursor.set_range(key)
                    if not (behind and cursor.key() == key):
                        _ = cursor.prev() if behind else cursor.last()
                    first, block = from_bytes(cursor.key()), bytes(cursor.value())
                    offset = (position - first) * ENTRY_ROW_BYTES
                row = block[offset : offset + ENTRY_ROW_BYTES]
                if len(row) != ENTRY_ROW_BYTES:
                    raise StoreCorruptError(f"there is no entry at position {position}")
                if crc32(row[:-4]) != from_bytes(row[-4:], "little"):
                    EntryRow.unpack(row)  # Raises, and says what to do.
                found.append(from_bytes(row[24:32], "little"))
        return found

    def save_balance_rows(self, keys: Bytes, rows: Bytes) -> None:
        """Store the packed `BalanceRow`s of slots."""
        self._put_rows(self._balances, keys, rows)

    def known_requests(self, keys: Sequence[bytes]) -> set[bytes]:
        """Return the keys of requests that are known."""
        return set(self._find_rows(self._requests, keys)[0])

    def add_request_rows(self, keys: Bytes, rows: Bytes) -> None:
        """Store the packed `RequestRow`s of requests that were not known."""
        self._put_rows(self._requests, keys, rows)

    def add_transaction_rows(self, numbers: Bytes, rows: Bytes) -> None:
        """Store the encoded `TransactionRecord`s of new transactions."""
        self._put_rows(self._transactions, numbers, rows)

    def _find_rows(
        self, table: lmdb._Database, keys: Sequence[bytes]
    ) -> tuple[list[bytes], list[bytes]]:
        with self._source.txn.cursor(table) as cursor:
            # bytes: the environment is not opened for memoryviews (buffers=True).
            found = cast("list[tuple[bytes, bytes]]", cursor.getmulti(keys))
        crc32, from_bytes = zlib.crc32, int.from_bytes
        for key, value in found:
            if crc32(value[:-4], crc32(key)) != from_bytes(value[-4:], "little"):
                unseal(key, value)  # Raises, and says what to do.
        return [key for key, _ in found], [value[:-4] for _, value in found]

    def _put_rows(self, table: lmdb._Database, keys: Bytes, rows: Bytes) -> None:
        """Store rows, each with its checksum: the same as `store_rows.seal` would make it."""
        count, key_bytes = keys.shape
        size = key_bytes + rows.shape[1] + 4
        sealed = np.empty((count, size), np.uint8)
        sealed[:, :key_bytes] = keys
        sealed[:, key_bytes:-4] = rows
        joined, crc32 = sealed.tobytes(), zlib.crc32
        checksums = [crc32(joined[at : at + size - 4]) for at in range(0, len(joined), size)]
        sealed[:, -4:] = np.array(checksums, "<u4").view(np.uint8).reshape(count, 4)
        joined = sealed.tobytes()
        starts = range(0, len(joined), size)
        items = [(joined[at : at + key_bytes], joined[at + key_bytes : at + size]) for at in starts]
        with self._source.txn.cursor(table) as cursor:
            cursor.putmulti(items)

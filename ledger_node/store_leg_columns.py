"""Many rows of a table at once: what blocks of transfers between shards read and write.

LMDB's own loops (`getmulti`, `putmulti`) find and store them. Keys are best sorted, so that
neighbours share the pages that are walked.
"""

import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Final, cast

import lmdb

from ledger_node.store_columns import ColumnTables
from ledger_node.store_rows import unseal

_CRC = struct.Struct("<I")
# The CRC-32 of anything that ends with its own CRC-32.
_RESIDUE: Final = 0x2144DF1C

Rows = list[tuple[bytes, bytes]]
"""Keys with their rows; these end with their checksums, of `CHECKSUM_BYTES`."""

CHECKSUM_BYTES: Final = _CRC.size


class LegTables(ColumnTables):
    """The part of `ShardTables` that reads and writes many rows of transactions between shards."""

    _in_flight: lmdb._Database
    _undecided: lmdb._Database
    _pending: lmdb._Database

    def find_slots(self, account_ids: Sequence[bytes]) -> Rows:
        """Return the sealed slots (4 bytes) of the accounts (8 bytes) that exist, big-endian."""
        return self._found(self._accounts, account_ids)

    def find_balances(self, slots: Sequence[bytes]) -> Rows:
        """Return the sealed `BalanceRow`s of slots."""
        return self._found(self._balances, slots)

    def put_balances(self, slots: Iterable[bytes], rows: Iterable[bytes]) -> None:
        """Store the packed `BalanceRow`s of slots."""
        self._store(self._balances, slots, rows)

    def find_requests(self, keys: Sequence[bytes]) -> Rows:
        """Return the sealed `RequestRow`s of the requests that are known."""
        return self._found(self._requests, keys)

    def add_requests(self, keys: Iterable[bytes], rows: Iterable[bytes]) -> None:
        """Store the packed `RequestRow`s of requests that were not known."""
        self._store(self._requests, keys, rows)

    def find_transactions(self, numbers: Sequence[bytes]) -> Rows:
        """Return the sealed, encoded `TransactionRecord`s of transactions."""
        return self._found(self._transactions, numbers)

    def put_transactions(self, numbers: Iterable[bytes], rows: Iterable[bytes]) -> None:
        """Store the encoded `TransactionRecord`s of transactions, new or changed."""
        self._store(self._transactions, numbers, rows)

    def put_undecided(self, numbers: Iterable[bytes], rows: Iterable[bytes]) -> None:
        """Note that this shard waits for decisions: the encoded `Prepare`s."""
        self._store(self._undecided, numbers, rows)

    def put_in_flight(self, numbers: Iterable[bytes], row: bytes) -> None:
        """Note that participants have to be told: one `InFlightRecord` for all."""
        keys = list(numbers)
        self._store(self._in_flight, keys, [row] * len(keys))

    def put_pending(self, numbers: Iterable[bytes]) -> None:
        """Note that transactions have reserved money here."""
        with self._source.txn.cursor(self._pending) as cursor:
            cursor.putmulti([(number, b"") for number in numbers])

    def drop_decided(self, numbers: Sequence[bytes]) -> None:
        """Note that this shard has the decisions: nothing is reserved for them any more."""
        self._drop(self._undecided, numbers)
        self._drop(self._pending, numbers)

    def drop_in_flight_if(self, numbers: Sequence[bytes], row: bytes) -> None:
        """Note that participants have been told, of those whose `InFlightRecord` is ``row``."""
        found = self._found(self._in_flight, numbers)
        self._drop(self._in_flight, [number for number, sealed in found if sealed[:-4] == row])

    def _drop(self, table: lmdb._Database, keys: Sequence[bytes]) -> None:
        """Remove rows. Most are neighbours: behind one that is removed the cursor is at the next."""
        with self._source.txn.cursor(table) as cursor:
            key_now, seek, delete = cursor.key, cursor.set_key, cursor.delete
            for key in keys:
                if key_now() == key or seek(key):
                    delete()

    def _found(self, table: lmdb._Database, keys: Sequence[bytes]) -> Rows:
        with self._source.txn.cursor(table) as cursor:
            # bytes: the environment is not opened for memoryviews (buffers=True).
            found = cast("Rows", cursor.getmulti(keys))
        crc32 = zlib.crc32
        for key, sealed in found:
            if crc32(sealed, crc32(key)) != _RESIDUE:
                unseal(key, sealed)  # Raises, and says what to do.
        return found

    def _store(self, table: lmdb._Database, keys: Iterable[bytes], rows: Iterable[bytes]) -> None:
        """Store rows, each as `store_rows.seal` makes it."""
        crc32, pack = zlib.crc32, _CRC.pack
        items = [
            (key, row + pack(crc32(row, crc32(key)))) for key, row in zip(keys, rows, strict=True)
        ]
        with self._source.txn.cursor(table) as cursor:
            cursor.putmulti(items)


def number_keys(numbers: Iterable[int]) -> list[bytes]:
    """Return the keys of transactions."""
    return [number.to_bytes(8) for number in numbers]

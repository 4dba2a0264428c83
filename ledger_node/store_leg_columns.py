"""Many rows of a table at once: what blocks of transfers between shards read and write.

LMDB's own loops (`getmulti`, `putmulti`) find and store them. Keys are best sorted, so that
neighbours share the pages that are walked.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import lmdb
import numpy as np
from numpy.typing import NDArray

from ledger_node.store_columns import ColumnTables

Rows = list[tuple[bytes, bytes]]
"""Keys with their rows; these end with their checksums, of `CHECKSUM_BYTES`."""

CHECKSUM_BYTES: Final = 4

KeptRows = NDArray[np.uint8] | Sequence[bytes]
"""Rows to be stored: as one array, with room for the checksums at the end, or one by one."""


class LegTables(ColumnTables):
    """The part of `ShardTables` that reads and writes many rows of transactions between shards."""

    _in_flight: lmdb._Database
    _undecided: lmdb._Database
    _pending: lmdb._Database

    def find_requests(self, keys: Sequence[bytes]) -> Rows:
        """Return the sealed `RequestRow`s of the requests that are known."""
        return self._found(self._requests, keys)

    def find_transactions(self, numbers: Sequence[bytes]) -> Rows:
        """Return the sealed, encoded `TransactionRecord`s of transactions."""
        return self._found(self._transactions, numbers)

    def put_transactions(self, numbers: Sequence[bytes], rows: KeptRows) -> None:
        """Store the encoded `TransactionRecord`s of transactions, new or changed."""
        self._store(self._transactions, numbers, rows)

    def put_undecided(self, numbers: Sequence[bytes], rows: KeptRows) -> None:
        """Note that this shard waits for decisions: the encoded `Prepare`s."""
        self._store(self._undecided, numbers, rows)

    def put_in_flight(self, numbers: Sequence[bytes], row: bytes) -> None:
        """Note that participants have to be told: one `InFlightRecord` for all."""
        self._store(self._in_flight, numbers, [row] * len(numbers))

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
        """Remove rows; most are neighbours, and the cursor goes on to the next by itself."""
        with self._source.txn.cursor(table) as cursor:
            key_now, seek, delete = cursor.key, cursor.set_key, cursor.delete
            for key in keys:
                if key_now() == key or seek(key):
                    delete()

    def _found(self, table: lmdb._Database, keys: Sequence[bytes]) -> Rows:
        return self._find_rows(table, keys)

    def _store(self, table: lmdb._Database, keys: Sequence[bytes], rows: KeptRows) -> None:
        """Store rows, each with its checksum."""
        if isinstance(rows, np.ndarray):
            self._put_sealed(table, keys, rows.view(f"V{rows.shape[1]}")[:, 0])
        else:
            self._put_rows(table, keys, rows)


def number_keys(numbers: NDArray[np.integer]) -> list[bytes]:
    """Return the keys of transactions."""
    keys: list[bytes] = numbers.astype(">u8").view("V8").tolist()
    return keys

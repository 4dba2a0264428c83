"""Rows with checksums, by their keys, inside one transaction."""

import struct
import zlib
from typing import Protocol, cast

import lmdb

from ledger_node.store_files import DAMAGE_ADVICE, StoreCorruptError

_CRC = struct.Struct("<I")


class TransactionSource(Protocol):
    """Has the transaction in which rows are read and written."""

    @property
    def txn(self) -> lmdb.Transaction:
        """The transaction now."""


class RowTables:
    """Tables inside the transaction of ``source``: what typed tables have in common."""

    _source: TransactionSource

    def _get(self, table: lmdb._Database, key: bytes) -> bytes | None:
        # bytes: the environment is not opened for memoryviews (buffers=True).
        return cast("bytes | None", self._source.txn.get(key, db=table))

    def _get_row(self, table: lmdb._Database, key: bytes) -> bytes | None:
        sealed = self._get(table, key)
        return None if sealed is None else unseal(key, sealed)

    def _must_row(self, table: lmdb._Database, key: bytes) -> bytes:
        return unseal(key, self._must(table, key))

    def _put_row(self, table: lmdb._Database, key: bytes, row: bytes) -> None:
        self._source.txn.put(key, seal(key, row), db=table)

    def _add_row(self, table: lmdb._Database, key: bytes, row: bytes) -> None:
        added = self._source.txn.put(key, seal(key, row), db=table, overwrite=False)
        assert added, "what has its key for good is stored once"

    def _append(self, table: lmdb._Database, key: bytes, data: bytes) -> None:
        """Store data behind all there is in a table."""
        # LMDB only says so, and stores nothing, where the key is not above all others.
        if not self._source.txn.put(key, data, db=table, append=True):
            raise AssertionError(f"the key {key.hex()} is not behind all others")

    def _must(self, table: lmdb._Database, key: bytes) -> bytes:
        data = self._get(table, key)
        if data is None:
            raise StoreCorruptError(f"the row {key.hex()} is missing")
        return data


def seal(key: bytes, row: bytes) -> bytes:
    """Return a row with its CRC-32 and that of its key: LMDB 0.9 has no checksums of its own."""
    return row + _CRC.pack(zlib.crc32(row, zlib.crc32(key)))


def unseal(key: bytes | memoryview, sealed: bytes | memoryview) -> bytes:
    """Return a row as it was stored; StoreCorruptError if the disk or memory changed it."""
    row, crc = bytes(sealed[: -_CRC.size]), bytes(sealed[-_CRC.size :])
    if crc != _CRC.pack(zlib.crc32(row, zlib.crc32(key))):
        raise StoreCorruptError(
            f"the row {bytes(key).hex()} fails its checksum: the disk or memory changed it. "
            f"{DAMAGE_ADVICE}"
        )
    return row


def table_bytes(txn: lmdb.Transaction, table: lmdb._Database) -> int:
    """Return how much space a table takes."""
    stat = txn.stat(table)
    pages = stat["leaf_pages"] + stat["overflow_pages"] + stat["branch_pages"]
    size: int = pages * stat["psize"]
    return size

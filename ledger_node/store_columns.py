"""Many rows of a table at once: what blocks of transfers read and write.

LMDB's own loops (`getmulti`, `putmulti`) find and store them. Keys come sorted, so that neighbours
share the pages that are walked.
"""

import struct
import zlib
from collections.abc import Iterable, Sequence

import lmdb
import msgspec

from ledger_node.records import TransferBlockRecord
from ledger_node.store_rows import RowTables, seal, unseal

_U64 = struct.Struct(">Q")

_encode = msgspec.msgpack.Encoder().encode
_decode_block = msgspec.msgpack.Decoder(TransferBlockRecord).decode


class ColumnTables(RowTables):
    """The part of `ShardTables` that reads and writes many rows at a time."""

    _accounts: lmdb._Database
    _balances: lmdb._Database
    _requests: lmdb._Database
    _transfer_blocks: lmdb._Database

    def slot_rows(self, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        """Return (account id, slot), both big-endian, of the accounts that exist, in order."""
        return self._find_rows(self._accounts, keys)

    def balance_rows(self, keys: Sequence[bytes]) -> bytes:
        """Return the packed `BalanceRow`s of slots (4 bytes, big-endian) that exist, joined."""
        return b"".join([row for _, row in self._find_rows(self._balances, keys)])

    def save_balance_rows(self, keys: Sequence[bytes], rows: bytes) -> None:
        """Store the packed `BalanceRow`s of slots."""
        size = len(rows) // len(keys)
        cut = [rows[start : start + size] for start in range(0, len(rows), size)]
        self._put_rows(self._balances, zip(keys, cut, strict=True))

    def request_rows(self, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        """Return (key, packed `RequestRow`) of the requests that are known, in order."""
        return self._find_rows(self._requests, keys)

    def add_request_rows(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Store the packed `RequestRow`s of requests that were not known."""
        self._put_rows(self._requests, rows)

    def add_transfer_block(self, first_number: int, record: TransferBlockRecord) -> None:
        """Store transfers with consecutive numbers."""
        key = _U64.pack(first_number)
        row = seal(key, _encode(record))
        self._source.txn.put(key, row, db=self._transfer_blocks, append=True)

    def transfer_block_of(self, number: int) -> tuple[int, TransferBlockRecord] | None:
        """Return (first number, block) of the last block that begins at or below a number."""
        with self._source.txn.cursor(self._transfer_blocks) as cursor:
            key = _U64.pack(number)
            found = cursor.set_range(key)
            if not (found and bytes(cursor.key()) == key) and not (
                cursor.prev() if found else cursor.last()
            ):
                return None
            key = bytes(cursor.key())
            return _U64.unpack(key)[0], _decode_block(unseal(key, cursor.value()))

    def _find_rows(
        self, table: lmdb._Database, keys: Sequence[bytes]
    ) -> list[tuple[bytes, bytes]]:
        crc32, pack = zlib.crc32, _CRC.pack
        found = []
        with self._source.txn.cursor(table) as cursor:
            for key, value in cursor.getmulti(keys):
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


_CRC = struct.Struct("<I")

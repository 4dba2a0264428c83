"""The Raft log of one shard, with its term and vote, inside a transaction of the log's file.

What is here is durable before anything of its turn leaves the node that others may rely on; what a
leader replicates may leave before.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Final

import lmdb
import msgspec

from ledger_node.store_files import DAMAGE_ADVICE, StoreCorruptError
from ledger_node.store_rows import RowTables, TransactionSource, table_bytes

LOG_TABLES: Final = 2  # raft and log

_INSTALLING: Final = b"installing"

_U64 = struct.Struct(">Q")
_LOG_HEADER = struct.Struct("<IQ")

_encode = msgspec.msgpack.Encoder().encode
_decode_hard_state = msgspec.msgpack.Decoder(tuple[int, str | None]).decode
_decode_place = msgspec.msgpack.Decoder(tuple[int, int]).decode


@dataclass(frozen=True, slots=True)
class LogDatabases:
    """The databases of a shard's log: handles that stay open for as long as the environment."""

    raft: lmdb._Database
    log: lmdb._Database


class LogTables(RowTables):
    """The log of one shard, inside one transaction of ``source``."""

    def __init__(self, source: TransactionSource, databases: LogDatabases) -> None:
        self._source = source
        self._raft = databases.raft
        self._log = databases.log

    def hard_state(self) -> tuple[int, str | None]:
        """Return the current term and the vote in it; (0, None) in a fresh store."""
        data = self._get_row(self._raft, b"raft")
        return (0, None) if data is None else _decode_hard_state(data)

    def save_hard_state(self, term: int, voted_for: str | None) -> None:
        """Store the current term and the vote in it."""
        self._put_row(self._raft, b"raft", _encode((term, voted_for)))

    def find_raft_row(self, key: bytes) -> bytes | None:
        """Return a row of the raft table."""
        return self._get_row(self._raft, key)

    def save_raft_row(self, key: bytes, row: bytes) -> None:
        """Store a row of the raft table."""
        self._put_row(self._raft, key, row)

    def installing(self) -> tuple[int, int] | None:
        """Return index and term of the snapshot that is taking the place of the state.

        None where no install is at its last step.
        """
        data = self._get_row(self._raft, _INSTALLING)
        return None if data is None else _decode_place(data)

    def save_installing(self, index: int, term: int) -> None:
        """Note that a snapshot is about to take the place of the state, and then of the log."""
        self._put_row(self._raft, _INSTALLING, _encode((index, term)))

    def drop_installing(self) -> None:
        """Note that the log fits the state."""
        self._source.txn.delete(_INSTALLING, db=self._raft)

    def bounds(self) -> tuple[int, int]:
        """Return the first and the last index of the log; (1, 0) when it is empty."""
        with self._source.txn.cursor(self._log) as cursor:
            if not cursor.first():
                return 1, 0
            first = _U64.unpack(cursor.key())[0]
            cursor.last()
            return first, _U64.unpack(cursor.key())[0]

    def count(self) -> int:
        """Return how many entries there are."""
        entries: int = self._source.txn.stat(self._log)["entries"]
        return entries

    def entry(self, index: int) -> tuple[int, bytes]:
        """Return (term, payload) of a log entry, after checking its checksum."""
        data = self._must(self._log, _U64.pack(index))
        checksum, term = _LOG_HEADER.unpack_from(data)
        payload = data[_LOG_HEADER.size :]
        if checksum != _log_checksum(index, term, payload):
            raise StoreCorruptError(
                f"log entry {index} fails its checksum: the disk or memory changed it. "
                f"{DAMAGE_ADVICE}"
            )
        return term, payload

    def append(self, index: int, term: int, payload: bytes) -> None:
        """Append a log entry."""
        data = _LOG_HEADER.pack(_log_checksum(index, term, payload), term) + payload
        self._append(self._log, _U64.pack(index), data)

    def truncate(self, index: int) -> None:
        """Drop the log entry ``index`` and all after it."""
        with self._source.txn.cursor(self._log) as cursor:
            if cursor.set_range(_U64.pack(index)):
                while cursor.delete():
                    pass

    def drop_before(self, index: int) -> None:
        """Drop the log entries before ``index``."""
        end = _U64.pack(index)
        with self._source.txn.cursor(self._log) as cursor:
            if cursor.first():
                while bytes(cursor.key()) < end and cursor.delete():
                    pass

    def clear(self) -> None:
        """Drop all log entries."""
        self._source.txn.drop(self._log, delete=False)

    def size_bytes(self) -> int:
        """Return how much space the log takes."""
        return table_bytes(self._source.txn, self._log)


def _log_checksum(index: int, term: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<QQ", index, term)))

"""The tables of a shard that tell of the past: journal, events, sums as of any moment, indexes.

Nothing here decides what happens next; it is there so that reads cost a few rows.
"""

import struct
from collections.abc import Iterator
from typing import cast

import lmdb
import msgspec

from ledger_core.accounts import Counters
from ledger_core.ids import U64_MAX
from ledger_node.records import (
    ENTRY_ROW_BYTES,
    AccountEventRecord,
    EntryRow,
    GroupRecord,
    JournalRecord,
    SettlementRecord,
    TotalsRow,
    TransactionRecord,
    pack_sums,
    unpack_sums,
)
from ledger_node.store_files import StoreCorruptError
from ledger_node.store_rows import RowTables, seal, unseal

_U64 = struct.Struct(">Q")
_U32 = struct.Struct(">I")
_MARK_KEY = struct.Struct(">IQ")
_MARK = struct.Struct("<Qq")
_EVENT_KEY = struct.Struct(">IQH")
_GROUP_KEY = struct.Struct(">HBB")
_TOTAL_MARK_KEY = struct.Struct(">IQ")
_EFFECTIVE_KEY = struct.Struct(">IBQ")
_EFFECTIVE_LOG_KEY = struct.Struct(">IQ")
_SETTLEMENT_KEY = struct.Struct(">HI")

_encode = msgspec.msgpack.Encoder().encode
_decode_journal = msgspec.msgpack.Decoder(JournalRecord).decode
_decode_event = msgspec.msgpack.Decoder(AccountEventRecord).decode
_decode_group = msgspec.msgpack.Decoder(GroupRecord).decode
_decode_settlement = msgspec.msgpack.Decoder(SettlementRecord).decode
_decode_transaction = msgspec.msgpack.Decoder(TransactionRecord).decode


class HistoryTables(RowTables):
    """The part of `ShardTables` that tells of the past; that class says which tables are in use."""

    _transactions: lmdb._Database
    _entries: lmdb._Database
    _entry_marks: lmdb._Database
    _journal: lmdb._Database
    _account_events: lmdb._Database
    _groups: lmdb._Database
    _group_numbers: lmdb._Database
    _totals: lmdb._Database
    _total_marks: lmdb._Database
    _effective_sums: lmdb._Database
    _effective_log: lmdb._Database
    _pending: lmdb._Database
    _settlements: lmdb._Database
    _references: lmdb._Database

    def find_entry_mark(self, slot: int, mark: int) -> tuple[int, int] | None:
        """Return (position, time) of an account's entry number ``mark * ENTRIES_PER_MARK``."""
        data = self._get_row(self._entry_marks, _MARK_KEY.pack(slot, mark))
        return None if data is None else _MARK.unpack(data)

    def entries_back(self, position: int) -> Iterator[tuple[int, EntryRow]]:
        """Yield (position, row) of an entry and of those before it of the same account."""
        with self._source.txn.cursor(self._entries) as cursor:
            while position:
                offset = (position - _seek(cursor, position)) * ENTRY_ROW_BYTES
                row = EntryRow.unpack(bytes(cursor.value()[offset : offset + ENTRY_ROW_BYTES]))
                yield position, row
                position = row.previous

    def entry_bytes(self, position: int) -> bytes:
        """Return the rows, as they are stored, of the log entry whose rows begin at a position."""
        return self._must(self._entries, _U64.pack(position))

    def blocks_from(
        self, position: int, end: int = U64_MAX
    ) -> Iterator[tuple[int, list[EntryRow]]]:
        """Yield (position of the first one, rows) of log entries that begin within a range."""
        with self._source.txn.cursor(self._entries) as cursor:
            if cursor.set_range(_U64.pack(position)):
                for key, value in cursor:
                    first = _U64.unpack(key)[0]
                    if first >= end:
                        return
                    yield first, _rows(bytes(value))

    def add_journal(self, number: int, record: JournalRecord) -> None:
        """Append to the journal."""
        key = _U64.pack(number)
        self._append(self._journal, key, seal(key, _encode(record)))

    def find_journal(self, number: int) -> JournalRecord | None:
        """Return an entry of the journal."""
        data = self._get_row(self._journal, _U64.pack(number))
        return None if data is None else _decode_journal(data)

    def journal_after(self, number: int) -> Iterator[tuple[int, JournalRecord]]:
        """Yield (number, record) of the journal behind a number."""
        with self._source.txn.cursor(self._journal) as cursor:
            if cursor.set_range(_U64.pack(number + 1)):
                for key, value in cursor:
                    yield _U64.unpack(key)[0], _decode_journal(unseal(key, value))

    def add_account_event(
        self, slot: int, journal_number: int, ordinal: int, record: AccountEventRecord
    ) -> None:
        """Append to the life of an account; ``ordinal`` tells events of one log entry apart."""
        key = _EVENT_KEY.pack(slot, journal_number, ordinal)
        self._put_row(self._account_events, key, _encode(record))

    def account_events_before(
        self, slot: int, journal_number: int, ordinal: int
    ) -> Iterator[tuple[int, int, AccountEventRecord]]:
        """Yield (journal number, ordinal, event) of an account before a place, newest first."""
        with self._source.txn.cursor(self._account_events) as cursor:
            key = _EVENT_KEY.pack(slot, journal_number, ordinal)
            if not (cursor.prev() if cursor.set_range(key) else cursor.last()):
                return
            for found, value in cursor.iterprev():
                of_slot, number, place = _EVENT_KEY.unpack(found)
                if of_slot != slot:
                    return
                yield number, place, _decode_event(unseal(found, value))

    def find_group(self, record: GroupRecord) -> int | None:
        """Return the number of a group."""
        data = self._get_row(self._group_numbers, _group_key(record))
        return None if data is None else _U32.unpack(data)[0]

    def group(self, number: int) -> GroupRecord:
        """Return a group by its number."""
        return _decode_group(self._must_row(self._groups, _U32.pack(number)))

    def add_group(self, number: int, record: GroupRecord) -> None:
        """Store a new group, without totals."""
        key = _U32.pack(number)
        self._put_row(self._groups, key, _encode(record))
        self._add_row(self._group_numbers, _group_key(record), key)
        self.save_totals(number, TotalsRow())

    def groups(self) -> Iterator[tuple[int, GroupRecord]]:
        """Yield (number, group) of all groups."""
        with self._source.txn.cursor(self._groups) as cursor:
            for key, value in cursor:
                yield _U32.unpack(key)[0], _decode_group(unseal(key, value))

    def groups_of(self, book: int) -> Iterator[tuple[int, GroupRecord]]:
        """Yield (number, group) of the groups of a book, by role, type and code."""
        with self._source.txn.cursor(self._group_numbers) as cursor:
            if cursor.set_range(_GROUP_KEY.pack(book, 0, 0)):
                for key, value in cursor:
                    if _GROUP_KEY.unpack_from(key)[0] != book:
                        return
                    number = _U32.unpack(unseal(key, value))[0]
                    yield number, self.group(number)

    def totals(self, group: int) -> TotalsRow:
        """Return the sums of a group."""
        return TotalsRow.unpack(self._must_row(self._totals, _U32.pack(group)))

    def save_totals(self, group: int, row: TotalsRow) -> None:
        """Store the sums of a group."""
        self._put_row(self._totals, _U32.pack(group), row.pack())

    def add_total_mark(self, group: int, block: int, before: Counters) -> None:
        """Note the sums of a group before the first log entry that began in a block."""
        self._put_row(self._total_marks, _TOTAL_MARK_KEY.pack(group, block), pack_sums(before))

    def total_mark_from(self, group: int, block: int) -> Counters | None:
        """Return what the first mark of a group at or after a block says; None: unchanged since."""
        with self._source.txn.cursor(self._total_marks) as cursor:
            if not cursor.set_range(_TOTAL_MARK_KEY.pack(group, block)):
                return None
            key = cursor.key()
            if _TOTAL_MARK_KEY.unpack(key)[0] != group:
                return None
            return unpack_sums(unseal(key, cursor.value()))

    def effective_sum(self, subject: int, level: int, bucket: int) -> Counters:
        """Return the effects in a bucket of effective time: level indexes `EFFECTIVE_SHIFTS`."""
        data = self._get_row(self._effective_sums, _EFFECTIVE_KEY.pack(subject, level, bucket))
        return Counters() if data is None else unpack_sums(data)

    def save_effective_sum(self, subject: int, level: int, bucket: int, row: Counters) -> None:
        """Store the effects in a bucket of effective time."""
        key = _EFFECTIVE_KEY.pack(subject, level, bucket)
        self._put_row(self._effective_sums, key, pack_sums(row))

    def effective_sums(
        self, subject: int, level: int, first: int, end: int
    ) -> Iterator[tuple[int, Counters]]:
        """Yield (bucket, effects) of the buckets from ``first`` up to, without, ``end``."""
        with self._source.txn.cursor(self._effective_sums) as cursor:
            if cursor.set_range(_EFFECTIVE_KEY.pack(subject, level, first)):
                for key, value in cursor:
                    of_subject, of_level, bucket = _EFFECTIVE_KEY.unpack(key)
                    if (of_subject, of_level) != (subject, level) or bucket >= end:
                        return
                    yield bucket, unpack_sums(unseal(key, value))

    def effective_log(self, subject: int, time_us: int) -> Counters:
        """Return the effects with an effective time of their own, recorded up to a moment."""
        with self._source.txn.cursor(self._effective_log) as cursor:
            key = _EFFECTIVE_LOG_KEY.pack(subject, time_us)
            found = cursor.set_range(key)
            if not (found and bytes(cursor.key()) == key) and not (
                cursor.prev() if found else cursor.last()
            ):
                return Counters()
            key = bytes(cursor.key())
            if _EFFECTIVE_LOG_KEY.unpack(key)[0] != subject:
                return Counters()
            return unpack_sums(unseal(key, cursor.value()))

    def save_effective_log(self, subject: int, time_us: int, row: Counters) -> None:
        """Store the effects with an effective time of their own, recorded up to a moment."""
        self._put_row(
            self._effective_log, _EFFECTIVE_LOG_KEY.pack(subject, time_us), pack_sums(row)
        )

    def add_pending(self, number: int) -> None:
        """Note that a transaction has reserved money here."""
        self._source.txn.put(_U64.pack(number), b"", db=self._pending)

    def drop_pending(self, number: int) -> None:
        """Note that a transaction has nothing reserved here any more."""
        self._source.txn.delete(_U64.pack(number), db=self._pending)

    def pending_after(self, number: int) -> Iterator[int]:
        """Yield the transactions behind a number that have money reserved here, oldest first."""
        with self._source.txn.cursor(self._pending) as cursor:
            if cursor.set_range(_U64.pack(number + 1)):
                for key in cursor.iternext(keys=True, values=False):
                    yield _U64.unpack(key)[0]

    def pending_before(self, number: int) -> Iterator[int]:
        """Yield the transactions with lower numbers that have money reserved here, newest first."""
        with self._source.txn.cursor(self._pending) as cursor:
            if cursor.prev() if cursor.set_range(_U64.pack(number)) else cursor.last():
                for key in cursor.iterprev(keys=True, values=False):
                    yield _U64.unpack(key)[0]

    def find_settlements(self, book: int, day: int) -> SettlementRecord | None:
        """Return how pending transactions of a book ended on a day since the Unix epoch."""
        data = self._get_row(self._settlements, _SETTLEMENT_KEY.pack(book, day))
        return None if data is None else _decode_settlement(data)

    def save_settlements(self, book: int, day: int, record: SettlementRecord) -> None:
        """Store how pending transactions of a book ended on a day."""
        self._put_row(self._settlements, _SETTLEMENT_KEY.pack(book, day), _encode(record))

    def settlements(
        self, book: int, first_day: int, end_day: int
    ) -> Iterator[tuple[int, SettlementRecord]]:
        """Yield (day, record) of a book from a day up to, without, another one."""
        with self._source.txn.cursor(self._settlements) as cursor:
            if cursor.set_range(_SETTLEMENT_KEY.pack(book, first_day)):
                for key, value in cursor:
                    of_book, day = _SETTLEMENT_KEY.unpack(key)
                    if of_book != book or day >= end_day:
                        return
                    yield day, _decode_settlement(unseal(key, value))

    def add_reference(self, digest: bytes, number: int) -> None:
        """Note a transaction under something it can be found by: a digest of 16 bytes."""
        self._source.txn.put(digest + _U64.pack(number), b"", db=self._references)

    def referenced_before(self, digest: bytes, number: int) -> Iterator[int]:
        """Yield the transactions under a digest with numbers below one, newest first."""
        with self._source.txn.cursor(self._references) as cursor:
            found = cursor.set_range(digest + _U64.pack(number))
            if not (cursor.prev() if found else cursor.last()):
                return
            for key in cursor.iterprev(keys=True, values=False):
                if key[:16] != digest:
                    return
                yield _U64.unpack(key[16:])[0]


def _rows(block: bytes) -> list[EntryRow]:
    return [
        EntryRow.unpack(block[offset : offset + ENTRY_ROW_BYTES])
        for offset in range(0, len(block), ENTRY_ROW_BYTES)
    ]


def _seek(cursor: lmdb.Cursor, position: int) -> int:
    """Go to the log entry that wrote the entry at a position; return where its entries begin."""
    key = _U64.pack(position)
    found = cursor.set_range(key)
    if not (found and cursor.key() == key) and not (cursor.prev() if found else cursor.last()):
        raise StoreCorruptError(f"there is no entry at position {position}")
    return cast("int", _U64.unpack(cursor.key())[0])


def _group_key(record: GroupRecord) -> bytes:
    return _GROUP_KEY.pack(record.book, record.role, record.type) + record.code.encode()

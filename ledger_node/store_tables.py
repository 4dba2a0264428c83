"""The tables of one shard, typed, inside one transaction.

Keys are big-endian, so that LMDB sorts them by number.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, cast

import lmdb
import msgspec

from ledger_core.accounts import Counters
from ledger_core.commands import Prepare
from ledger_node.records import (
    ENTRY_ROW_BYTES,
    AccountEventRecord,
    AccountRecord,
    BalanceRow,
    EntryRow,
    GroupRecord,
    InFlightRecord,
    JournalRecord,
    LedgerRecord,
    NameRecord,
    RequestRow,
    SettlementRecord,
    ShardMeta,
    TotalsRow,
    TransactionRecord,
    pack_counters,
    unpack_counters,
)
from ledger_node.store_files import DAMAGE_ADVICE, StoreCorruptError

ENTRIES_PER_MARK: Final = 64
ENTRIES_PER_BLOCK: Final = 256

# Which subject a row about effective times is of: an account's slot, or this plus a group's number.
GROUP_SUBJECT: Final = 1 << 31
# Effects by effective time are summed in buckets of these sizes: 2**shift microseconds.
EFFECTIVE_SHIFTS: Final = (40, 30, 20, 10, 0)

SHARED_TABLES = 2  # meta and log
# What the state machine writes, without the row of `ShardMeta`. Their order is that of snapshots.
STATE_TABLES = (
    "accounts",
    "account_info",
    "balances",
    "transactions",
    "requests",
    "entries",
    "entry_marks",
    "ledgers",
    "names",
    "in_flight",
    "undecided",
    "expirations",
    "journal",
    "account_events",
    "groups",
    "group_numbers",
    "totals",
    "total_marks",
    "effective_sums",
    "effective_log",
    "pending",
    "settlements",
    "references",
)
# Two sets of state tables: one in use, one spare, in which a snapshot is staged.
GENERATIONS = 2

_U64 = struct.Struct(">Q")
_U32 = struct.Struct(">I")
_EXPIRATION_KEY = struct.Struct(">QQ")
_CRC = struct.Struct("<I")
_MARK_KEY = struct.Struct(">IQ")
_MARK = struct.Struct("<Qq")
_EVENT_KEY = struct.Struct(">IQH")
_GROUP_KEY = struct.Struct(">HBB")
_TOTAL_MARK_KEY = struct.Struct(">IQ")
_EFFECTIVE_KEY = struct.Struct(">IBQ")
_EFFECTIVE_LOG_KEY = struct.Struct(">IQ")
_SETTLEMENT_KEY = struct.Struct(">HI")
_LOG_HEADER = struct.Struct("<IQ")

_encode = msgspec.msgpack.Encoder().encode
_decode_meta = msgspec.msgpack.Decoder(ShardMeta).decode
_decode_account = msgspec.msgpack.Decoder(AccountRecord).decode
_decode_transaction = msgspec.msgpack.Decoder(TransactionRecord).decode
_decode_ledger = msgspec.msgpack.Decoder(LedgerRecord).decode
_decode_name = msgspec.msgpack.Decoder(NameRecord).decode
_decode_in_flight = msgspec.msgpack.Decoder(InFlightRecord).decode
_decode_prepare = msgspec.msgpack.Decoder(Prepare).decode
_decode_journal = msgspec.msgpack.Decoder(JournalRecord).decode
_decode_event = msgspec.msgpack.Decoder(AccountEventRecord).decode
_decode_group = msgspec.msgpack.Decoder(GroupRecord).decode
_decode_settlement = msgspec.msgpack.Decoder(SettlementRecord).decode
_decode_hard_state = msgspec.msgpack.Decoder(tuple[int, str | None]).decode


@dataclass(frozen=True, slots=True)
class ShardDatabases:
    """The databases of a shard: handles that stay open for as long as the environment."""

    env: lmdb.Environment
    meta: lmdb._Database
    log: lmdb._Database
    state: tuple[dict[str, lmdb._Database], ...]


class _TransactionSource(Protocol):
    @property
    def txn(self) -> lmdb.Transaction: ...


class ShardTables:
    """The tables of one shard, typed, inside one transaction of ``source``."""

    def __init__(self, source: _TransactionSource, databases: ShardDatabases) -> None:
        self._source = source
        self.databases = databases
        self._meta = databases.meta
        self._log = databases.log
        self._use_generation()

    # Generations

    @property
    def txn(self) -> lmdb.Transaction:
        """The transaction that these tables are seen in."""
        return self._source.txn

    @property
    def generation(self) -> int:
        """Which set of state tables is in use."""
        return 0 if self._get(self._meta, b"generation") is None else 1

    def switch_generation(self) -> None:
        """Use the other set of state tables from now on, with this turn."""
        if self.generation == 0:
            self._source.txn.put(b"generation", b"1", db=self._meta)
        else:
            self._source.txn.delete(b"generation", db=self._meta)
        self._use_generation()

    def _use_generation(self) -> None:
        state = self.databases.state[self.generation]
        self._accounts = state["accounts"]
        self._account_info = state["account_info"]
        self._balances = state["balances"]
        self._transactions = state["transactions"]
        self._requests = state["requests"]
        self._entries = state["entries"]
        self._entry_marks = state["entry_marks"]
        self._ledgers = state["ledgers"]
        self._names = state["names"]
        self._in_flight = state["in_flight"]
        self._undecided = state["undecided"]
        self._expirations = state["expirations"]
        self._journal = state["journal"]
        self._account_events = state["account_events"]
        self._groups = state["groups"]
        self._group_numbers = state["group_numbers"]
        self._totals = state["totals"]
        self._total_marks = state["total_marks"]
        self._effective_sums = state["effective_sums"]
        self._effective_log = state["effective_log"]
        self._pending = state["pending"]
        self._settlements = state["settlements"]
        self._references = state["references"]

    def find_meta_row(self, key: bytes) -> bytes | None:
        """Return a row of the meta table."""
        return self._get_row(self._meta, key)

    def save_meta_row(self, key: bytes, row: bytes) -> None:
        """Store a row of the meta table."""
        self._put_row(self._meta, key, row)

    def delete_meta_row(self, key: bytes) -> None:
        """Remove a row of the meta table."""
        self._source.txn.delete(key, db=self._meta)

    # State

    def find_meta(self) -> ShardMeta | None:
        """Return the shard's running numbers, or None in a fresh store."""
        data = self._get_row(self._meta, b"state")
        return None if data is None else _decode_meta(data)

    def meta(self) -> ShardMeta:
        """Return the shard's running numbers."""
        meta = self.find_meta()
        assert meta is not None, "the shard was opened, so it has its meta row"
        return meta

    def save_meta(self, meta: ShardMeta) -> None:
        """Store the shard's running numbers."""
        self._put_row(self._meta, b"state", _encode(meta))

    def find_slot(self, account_id: int) -> int | None:
        """Return the slot of an account."""
        data = self._get_row(self._accounts, _U64.pack(account_id))
        return None if data is None else _U32.unpack(data)[0]

    def add_account(self, slot: int, record: AccountRecord, balance: BalanceRow) -> None:
        """Store a new account under a free slot."""
        key = _U32.pack(slot)
        self._add_row(self._accounts, _U64.pack(record.account_id), key)
        self._put_row(self._account_info, key, _encode(record))
        self._put_row(self._balances, key, balance.pack())

    def account_info(self, slot: int) -> AccountRecord:
        """Return what seldom changes of the account in a slot."""
        return _decode_account(self._must_row(self._account_info, _U32.pack(slot)))

    def balance(self, slot: int) -> BalanceRow:
        """Return the hot row of the account in a slot."""
        return BalanceRow.unpack(self._must_row(self._balances, _U32.pack(slot)))

    def save_balance(self, slot: int, row: BalanceRow) -> None:
        """Store the hot row of the account in a slot."""
        self._put_row(self._balances, _U32.pack(slot), row.pack())

    def balances(self) -> Iterator[tuple[int, BalanceRow]]:
        """Yield (slot, row) of every account."""
        with self._source.txn.cursor(self._balances) as cursor:
            for key, value in cursor:
                yield _U32.unpack(key)[0], BalanceRow.unpack(unseal(key, value))

    def balances_after(self, slot: int) -> Iterator[tuple[int, BalanceRow]]:
        """Yield (slot, row) of the accounts behind a slot, in the order of their opening."""
        with self._source.txn.cursor(self._balances) as cursor:
            if cursor.set_range(_U32.pack(slot + 1)):
                for key, value in cursor:
                    yield _U32.unpack(key)[0], BalanceRow.unpack(unseal(key, value))

    def find_transaction(self, number: int) -> TransactionRecord | None:
        """Return a transaction."""
        data = self._get_row(self._transactions, _U64.pack(number))
        return None if data is None else _decode_transaction(data)

    def transaction_from(self, number: int) -> tuple[int, TransactionRecord] | None:
        """Return the first transaction with this number or a higher one; None: there is none."""
        with self._source.txn.cursor(self._transactions) as cursor:
            if not cursor.set_range(_U64.pack(number)):
                return None
            key = cursor.key()
            return _U64.unpack(key)[0], _decode_transaction(unseal(key, cursor.value()))

    def transactions_before(self, number: int) -> Iterator[tuple[int, TransactionRecord]]:
        """Yield (number, record) of the transactions with lower numbers, newest first."""
        with self._source.txn.cursor(self._transactions) as cursor:
            if cursor.prev() if cursor.set_range(_U64.pack(number)) else cursor.last():
                for key, value in cursor.iterprev():
                    yield _U64.unpack(key)[0], _decode_transaction(unseal(key, value))

    def save_transaction(self, number: int, record: TransactionRecord) -> None:
        """Store a transaction, new or changed."""
        self._put_row(self._transactions, _U64.pack(number), _encode(record))

    def find_request(self, key: bytes) -> RequestRow | None:
        """Return the first result of a request."""
        data = self._get_row(self._requests, key)
        return None if data is None else RequestRow.unpack(data)

    def add_request(self, key: bytes, row: RequestRow) -> None:
        """Store the first result of a request."""
        self._add_row(self._requests, key, row.pack())

    def append_entries(self, position: int, rows: Sequence[bytes]) -> None:
        """Append the packed entry rows of one log entry; the first gets ``position``."""
        self._source.txn.put(_U64.pack(position), b"".join(rows), db=self._entries, append=True)

    def entry(self, position: int) -> EntryRow:
        """Return the entry row at a position."""
        row = self.find_entry(position)
        if row is None:
            raise StoreCorruptError(f"there is no entry at position {position}")
        return row

    def find_entry(self, position: int) -> EntryRow | None:
        """Return the entry row at a position, or None where there is none."""
        with self._source.txn.cursor(self._entries) as cursor:
            key = _U64.pack(position)
            found = cursor.set_range(key)
            if not (found and cursor.key() == key) and not (
                cursor.prev() if found else cursor.last()
            ):
                return None
            offset = (position - _U64.unpack(cursor.key())[0]) * ENTRY_ROW_BYTES
            data = bytes(cursor.value()[offset : offset + ENTRY_ROW_BYTES])
        return EntryRow.unpack(data) if len(data) == ENTRY_ROW_BYTES else None

    def add_entry_mark(self, slot: int, sequence: int, position: int, time_us: int) -> None:
        """Note where an account's entry number ``sequence`` (a multiple of 64) lies."""
        key = _MARK_KEY.pack(slot, sequence // ENTRIES_PER_MARK)
        self._put_row(self._entry_marks, key, _MARK.pack(position, time_us))

    def save_account_info(self, slot: int, record: AccountRecord) -> None:
        """Store what seldom changes of the account in a slot."""
        self._put_row(self._account_info, _U32.pack(slot), _encode(record))

    def accounts_after(self, slot: int) -> Iterator[tuple[int, AccountRecord]]:
        """Yield (slot, record) of the accounts behind a slot, in the order of their opening."""
        with self._source.txn.cursor(self._account_info) as cursor:
            if cursor.set_range(_U32.pack(slot + 1)):
                for key, value in cursor:
                    yield _U32.unpack(key)[0], _decode_account(unseal(key, value))

    def find_ledger(self, name: str) -> LedgerRecord | None:
        """Return a ledger that this shard keeps."""
        data = self._get_row(self._ledgers, name.encode())
        return None if data is None else _decode_ledger(data)

    def save_ledger(self, record: LedgerRecord) -> None:
        """Store a ledger, new or changed."""
        self._put_row(self._ledgers, record.name.encode(), _encode(record))

    def ledgers_after(self, name: str) -> Iterator[LedgerRecord]:
        """Yield the ledgers that this shard keeps and that come after a name, by name."""
        with self._source.txn.cursor(self._ledgers) as cursor:
            if cursor.set_range(name.encode() + b"\0"):
                for key, value in cursor:
                    yield _decode_ledger(unseal(key, value))

    def find_name(self, ledger: str, name: str) -> NameRecord | None:
        """Return who has a name."""
        data = self._get_row(self._names, _name_row_key(ledger, name))
        return None if data is None else _decode_name(data)

    def save_name(self, ledger: str, name: str, record: NameRecord) -> None:
        """Store who has a name."""
        self._put_row(self._names, _name_row_key(ledger, name), _encode(record))

    def drop_name(self, ledger: str, name: str) -> None:
        """Store that nobody has a name."""
        self._source.txn.delete(_name_row_key(ledger, name), db=self._names)

    # History

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

    def first_position(self, position: int) -> int:
        """Return where the entries begin of the log entry that wrote the one at a position."""
        with self._source.txn.cursor(self._entries) as cursor:
            return _seek(cursor, position)

    def entry_bytes(self, position: int) -> bytes:
        """Return the rows, as they are stored, of the log entry whose rows begin at a position."""
        return self._must(self._entries, _U64.pack(position))

    def block_at(self, position: int) -> tuple[int, list[EntryRow]] | None:
        """Return the entries of the first log entry that begins at or after a position.

        (position of the first one, rows); None where there is none.
        """
        with self._source.txn.cursor(self._entries) as cursor:
            if not cursor.set_range(_U64.pack(position)):
                return None
            return _U64.unpack(cursor.key())[0], _rows(bytes(cursor.value()))

    def blocks_from(self, position: int) -> Iterator[tuple[int, list[EntryRow]]]:
        """Yield (position of the first one, rows) of the log entries that begin from a position."""
        with self._source.txn.cursor(self._entries) as cursor:
            if cursor.set_range(_U64.pack(position)):
                for key, value in cursor:
                    yield _U64.unpack(key)[0], _rows(bytes(value))

    def add_journal(self, number: int, record: JournalRecord) -> None:
        """Append to the journal."""
        key = _U64.pack(number)
        self._source.txn.put(key, seal(key, _encode(record)), db=self._journal, append=True)

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
        self._put_row(self._total_marks, _TOTAL_MARK_KEY.pack(group, block), pack_counters(before))

    def total_mark_from(self, group: int, block: int) -> Counters | None:
        """Return what the first mark of a group at or after a block says; None: unchanged since."""
        with self._source.txn.cursor(self._total_marks) as cursor:
            if not cursor.set_range(_TOTAL_MARK_KEY.pack(group, block)):
                return None
            key = cursor.key()
            if _TOTAL_MARK_KEY.unpack(key)[0] != group:
                return None
            return unpack_counters(unseal(key, cursor.value()))

    def effective_sum(self, subject: int, level: int, bucket: int) -> Counters:
        """Return the effects in a bucket of effective time: level indexes `EFFECTIVE_SHIFTS`."""
        data = self._get_row(self._effective_sums, _EFFECTIVE_KEY.pack(subject, level, bucket))
        return Counters() if data is None else unpack_counters(data)

    def save_effective_sum(self, subject: int, level: int, bucket: int, row: Counters) -> None:
        """Store the effects in a bucket of effective time."""
        key = _EFFECTIVE_KEY.pack(subject, level, bucket)
        self._put_row(self._effective_sums, key, pack_counters(row))

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
                    yield bucket, unpack_counters(unseal(key, value))

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
            return unpack_counters(unseal(key, cursor.value()))

    def save_effective_log(self, subject: int, time_us: int, row: Counters) -> None:
        """Store the effects with an effective time of their own, recorded up to a moment."""
        self._put_row(
            self._effective_log, _EFFECTIVE_LOG_KEY.pack(subject, time_us), pack_counters(row)
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

    # Between shards, and time

    def find_in_flight(self, number: int) -> InFlightRecord | None:
        """Return what the participants of a transaction have yet to be told."""
        data = self._get_row(self._in_flight, _U64.pack(number))
        return None if data is None else _decode_in_flight(data)

    def save_in_flight(self, number: int, record: InFlightRecord) -> None:
        """Note that participants have to be told."""
        self._put_row(self._in_flight, _U64.pack(number), _encode(record))

    def drop_in_flight(self, number: int) -> None:
        """Note that all participants have been told."""
        self._source.txn.delete(_U64.pack(number), db=self._in_flight)

    def in_flight_numbers(self) -> list[int]:
        """Return the transactions whose participants have to be told something."""
        with self._source.txn.cursor(self._in_flight) as cursor:
            return [_U64.unpack(key)[0] for key in cursor.iternext(keys=True, values=False)]

    def find_undecided(self, number: int) -> Prepare | None:
        """Return what this shard prepared, while it waits for the decision."""
        data = self._get_row(self._undecided, _U64.pack(number))
        return None if data is None else _decode_prepare(data)

    def save_undecided(self, number: int, prepare: Prepare) -> None:
        """Note that this shard waits for a decision."""
        self._put_row(self._undecided, _U64.pack(number), _encode(prepare))

    def drop_undecided(self, number: int) -> None:
        """Note that this shard has the decision."""
        self._source.txn.delete(_U64.pack(number), db=self._undecided)

    def undecided_numbers(self) -> list[int]:
        """Return the transactions for whose decision this shard waits."""
        with self._source.txn.cursor(self._undecided) as cursor:
            return [_U64.unpack(key)[0] for key in cursor.iternext(keys=True, values=False)]

    def expirations_until(self, time_us: int) -> Iterator[tuple[int, int]]:
        """Yield (time, transaction number) of what expires at or before a time, earliest first."""
        with self._source.txn.cursor(self._expirations) as cursor:
            for key in cursor.iternext(keys=True, values=False):
                expire_us, number = _EXPIRATION_KEY.unpack(key)
                if expire_us > time_us:
                    return
                yield expire_us, number

    def add_expiration(self, time_us: int, number: int) -> None:
        """Note when a pending transaction expires."""
        self._source.txn.put(_EXPIRATION_KEY.pack(time_us, number), b"", db=self._expirations)

    def drop_expiration(self, time_us: int, number: int) -> None:
        """Note that a transaction does not expire any more."""
        self._source.txn.delete(_EXPIRATION_KEY.pack(time_us, number), db=self._expirations)

    # Raft log

    def hard_state(self) -> tuple[int, str | None]:
        """Return the current term and the vote in it; (0, None) in a fresh store."""
        data = self._get_row(self._meta, b"raft")
        return (0, None) if data is None else _decode_hard_state(data)

    def save_hard_state(self, term: int, voted_for: str | None) -> None:
        """Store the current term and the vote in it."""
        self._put_row(self._meta, b"raft", _encode((term, voted_for)))

    def log_bounds(self) -> tuple[int, int]:
        """Return the first and the last index of the log; (1, 0) when it is empty."""
        with self._source.txn.cursor(self._log) as cursor:
            if not cursor.first():
                return 1, 0
            first = _U64.unpack(cursor.key())[0]
            cursor.last()
            return first, _U64.unpack(cursor.key())[0]

    def log_entry(self, index: int) -> tuple[int, bytes]:
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

    def append_log(self, index: int, term: int, payload: bytes) -> None:
        """Append a log entry."""
        data = _LOG_HEADER.pack(_log_checksum(index, term, payload), term) + payload
        self._source.txn.put(_U64.pack(index), data, db=self._log, append=True)

    def truncate_log(self, index: int) -> None:
        """Drop the log entry ``index`` and all after it."""
        with self._source.txn.cursor(self._log) as cursor:
            if cursor.set_range(_U64.pack(index)):
                while cursor.delete():
                    pass

    def drop_log_before(self, index: int) -> None:
        """Drop the log entries before ``index``."""
        end = _U64.pack(index)
        with self._source.txn.cursor(self._log) as cursor:
            if cursor.first():
                while bytes(cursor.key()) < end and cursor.delete():
                    pass

    def clear_log(self) -> None:
        """Drop all log entries."""
        self._source.txn.drop(self._log, delete=False)

    def log_bytes(self) -> int:
        """Return how much space the log takes."""
        return table_bytes(self._source.txn, self._log)

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


def table_bytes(txn: lmdb.Transaction, table: lmdb._Database) -> int:
    """Return how much space a table takes."""
    stat = txn.stat(table)
    pages = stat["leaf_pages"] + stat["overflow_pages"] + stat["branch_pages"]
    size: int = pages * stat["psize"]
    return size


def _name_row_key(ledger: str, name: str) -> bytes:
    # At most 64 characters and 128 of up to 4 bytes would pass LMDB's 511 bytes: hash what is long.
    key = ledger.encode() + b"\0" + name.encode()
    return key if len(key) <= 256 else hashlib.blake2b(key, digest_size=32).digest()


def _log_checksum(index: int, term: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<QQ", index, term)))

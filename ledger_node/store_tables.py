"""The tables of one shard, typed, inside one transaction.

Keys are big-endian, so that LMDB sorts them by number.
"""

import contextlib
import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import lmdb
import msgspec
import numpy as np

from ledger_core.commands import Prepare
from ledger_core.ids import U64_MAX
from ledger_node.balance_cache import BalanceCache
from ledger_node.records import (
    ENTRY_ROW_BYTES,
    AccountRecord,
    BalanceRow,
    EntryRow,
    InFlightRecord,
    LedgerRecord,
    NameRecord,
    RequestRow,
    ShardMeta,
    TransactionRecord,
)
from ledger_node.store_balances import BalanceTables
from ledger_node.store_files import StoreCorruptError
from ledger_node.store_history import HistoryTables
from ledger_node.store_leg_columns import LegTables
from ledger_node.store_rows import TransactionSource, unseal

ENTRIES_PER_MARK: Final = 64
ENTRIES_PER_BLOCK: Final = 256

# Which subject a row about effective times is of: an account's slot, or this plus a group's number.
GROUP_SUBJECT: Final = 1 << 31
# Effects by effective time are summed in buckets of these sizes: 2**shift microseconds.
EFFECTIVE_SHIFTS: Final = (40, 30, 20, 10, 0)

SHARED_TABLES = 1  # meta
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
    "in_flight_bits",
    "undecided",
    "undecided_bits",
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
_MARK_KEY = struct.Struct(">IQ")
_MARK = struct.Struct("<Qq")

_encode = msgspec.msgpack.Encoder().encode
_decode_meta = msgspec.msgpack.Decoder(ShardMeta).decode
_decode_account = msgspec.msgpack.Decoder(AccountRecord).decode
_decode_transaction = msgspec.msgpack.Decoder(TransactionRecord).decode
_decode_ledger = msgspec.msgpack.Decoder(LedgerRecord).decode
_decode_name = msgspec.msgpack.Decoder(NameRecord).decode
_decode_in_flight = msgspec.msgpack.Decoder(InFlightRecord).decode


@dataclass(frozen=True, slots=True)
class ShardDatabases:
    """The databases of a shard: handles that stay open for as long as the environment."""

    env: lmdb.Environment
    meta: lmdb._Database
    state: tuple[dict[str, lmdb._Database], ...]


@dataclass(frozen=True, slots=True)
class _Attempt:
    txn: lmdb.Transaction


class ShardTables(BalanceTables, HistoryTables, LegTables):
    """The tables of one shard, typed, inside one transaction of ``source``.

    ``balance_cache`` has balances that are newer than those in the transaction, or the same.
    """

    def __init__(
        self,
        source: TransactionSource,
        databases: ShardDatabases,
        balance_cache: BalanceCache | None = None,
    ) -> None:
        self._source = source
        self._balance_cache = balance_cache
        self.databases = databases
        self._meta = databases.meta
        self._use_generation()

    # Generations

    @property
    def txn(self) -> lmdb.Transaction:
        """The transaction that these tables are seen in."""
        return self._source.txn

    @contextlib.contextmanager
    def attempt(self) -> "Iterator[ShardTables]":
        """Yield tables whose writes are kept at the end, or dropped if the block raises.

        Until then these tables here must not be used.
        """
        self.write_back()
        self.forget()
        txn = self.databases.env.begin(parent=self.txn, write=True)
        try:
            yield ShardTables(_Attempt(txn), self.databases)
        except BaseException:
            txn.abort()
            raise
        txn.commit()

    @property
    def generation(self) -> int:
        """Which set of state tables is in use."""
        return 0 if self._get(self._meta, b"generation") is None else 1

    def switch_generation(self) -> None:
        """Use the other set of state tables from now on, with this turn."""
        self.write_back()
        self.forget()
        if self.generation == 0:
            self._source.txn.put(b"generation", b"1", db=self._meta)
        else:
            self._source.txn.delete(b"generation", db=self._meta)
        self._use_generation()

    def forget(self) -> None:
        """Forget what is remembered of rows, and rows that were not written back."""
        self._known_places = None
        if self._balance_cache is not None:
            self._balance_cache.forget()

    @property
    def balance_cache(self) -> BalanceCache | None:
        """The balances in memory, if these tables have any."""
        return self._balance_cache

    def _use_generation(self) -> None:
        state = self.databases.state[self.generation]
        self._known_places = None
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
        self._in_flight_bits = state["in_flight_bits"]
        self._undecided = state["undecided"]
        self._undecided_bits = state["undecided_bits"]
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
        self.add_balance(slot, balance)

    def account_info(self, slot: int) -> AccountRecord:
        """Return what seldom changes of the account in a slot."""
        return _decode_account(self._must_row(self._account_info, _U32.pack(slot)))

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
        self._append(self._entries, _U64.pack(position), b"".join(rows))

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

    # Between shards, and time

    def find_in_flight(self, number: int) -> InFlightRecord | None:
        """Return what the participants of a transaction have yet to be told."""
        data = self._get_row(self._in_flight, _U64.pack(number))
        if data is not None:
            return _decode_in_flight(data)
        return InFlightRecord(0) if self._has_bit(self._in_flight_bits, number) else None

    def save_in_flight(self, number: int, record: InFlightRecord) -> None:
        """Note that participants have to be told."""
        self._put_row(self._in_flight, _U64.pack(number), _encode(record))

    def drop_in_flight(self, number: int) -> None:
        """Note that all participants have been told."""
        if not self._source.txn.delete(_U64.pack(number), db=self._in_flight):
            self._clear_bits(self._in_flight_bits, np.array([number], np.uint64))

    def in_flight_numbers(
        self, first: int = 1, last: int = U64_MAX, limit: int | None = None
    ) -> list[int]:
        """Return the transactions whose participants have to be told something.

        Of the numbers from ``first`` to ``last`` the lowest, ``limit`` at most.
        """
        tables = self._in_flight, self._in_flight_bits
        return self._numbers(*tables, first, last, limit)

    def _numbers(
        self,
        table: lmdb._Database,
        bits: lmdb._Database,
        first: int,
        last: int,
        limit: int | None,
    ) -> list[int]:
        """Return the numbers that are keys of a table, or in the bits of another one."""
        found: list[int] = []
        with self._source.txn.cursor(table) as cursor:
            if cursor.set_range(_U64.pack(first)):
                for key in islice(cursor.iternext(keys=True, values=False), limit):
                    (number,) = _U64.unpack(key)
                    if number > last:
                        break
                    found.append(number)
        of_bits = islice(self._numbers_of_bits(bits, first, last), limit)
        return sorted({*found, *of_bits})[:limit]

    def find_undecided(self, number: int) -> bytes | None:
        """Return the encoded `Prepare` whose decision this shard waits for.

        Empty where the transaction's record tells all of it: `prepared.find_prepared`.
        """
        data = self._get_row(self._undecided, _U64.pack(number))
        if data is not None:
            return data
        return b"" if self._has_bit(self._undecided_bits, number) else None

    def save_undecided(self, number: int, prepare: Prepare) -> None:
        """Note that this shard waits for a decision."""
        self._put_row(self._undecided, _U64.pack(number), _encode(prepare))

    def drop_undecided(self, number: int) -> None:
        """Note that this shard has the decision."""
        if not self._source.txn.delete(_U64.pack(number), db=self._undecided):
            self._clear_bits(self._undecided_bits, np.array([number], np.uint64))

    def undecided_numbers(
        self, first: int = 1, last: int = U64_MAX, limit: int | None = None
    ) -> list[int]:
        """Return the transactions for whose decision this shard waits: as `in_flight_numbers`."""
        tables = self._undecided, self._undecided_bits
        return self._numbers(*tables, first, last, limit)

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


def _name_row_key(ledger: str, name: str) -> bytes:
    # At most 64 characters and 128 of up to 4 bytes would pass LMDB's 511 bytes: hash what is long.
    key = ledger.encode() + b"\0" + name.encode()
    return key if len(key) <= 256 else hashlib.blake2b(key, digest_size=32).digest()

"""Rows of the store: fixed rows as structs, variable rows as msgpack arrays.

Fixed rows are little-endian; variable rows may only ever get further fields at their end, with a
default. `FORMAT_VERSION` in `ledger_node.store_files` changes with anything else.
"""

import struct
import zlib
from dataclasses import dataclass

import msgspec

from ledger_core.accounts import (
    AccountEventKind,
    AccountState,
    AccountType,
    Counters,
    Direction,
    EntryKind,
    GroupRole,
    TransactionStatus,
)
from ledger_core.commands import NO_OVERDRAFT, Limits, Prepare, Refused
from ledger_core.ids import U64_MAX, metadata_key_digest, reference_digest
from ledger_core.ledgers import ChartCode, Currency
from ledger_core.money import INT64_MAX
from ledger_node.store_files import DAMAGE_ADVICE, StoreCorruptError

_BALANCE = struct.Struct("<qqqqQQQIIHBB")
_ENTRY = struct.Struct("<QQqqQQqqqqBB2x")
CRC = struct.Struct("<I")
# Sums of many accounts: 128 bits each, the low half first.
_SUMS = struct.Struct("<QqQqQqQq")
_TOTALS = struct.Struct("<QQ")
_REQUEST = struct.Struct("<16sQI4x")

_encode_record = msgspec.msgpack.Encoder().encode

# The last byte of a balance row.
FLOORED_BIT, LIMITED_BIT, STATE_BITS = 0x80, 0x40, 0x0F

BALANCE_ROW_BYTES = _BALANCE.size
ENTRY_ROW_BYTES = _ENTRY.size + CRC.size
REQUEST_ROW_BYTES = _REQUEST.size

# What an entry of each kind adds to the posted and the pending counter of its side.
ENTRY_EFFECT = {
    EntryKind.POSTED: (1, 0),
    EntryKind.PENDING: (0, 1),
    EntryKind.SETTLED: (1, -1),
    EntryKind.CANCELLED: (0, -1),
    EntryKind.EXPIRED: (0, -1),
    EntryKind.REFUSED: (0, 0),
}


@dataclass(slots=True)
class BalanceRow(Counters):
    """An account's hot state, 68 bytes under its slot number.

    ``sequence`` counts the account's entries; ``last_position`` is the position of the newest one
    in the shard's entries (0: none). ``book`` indexes `ShardMeta.books`, ``group`` is the number of
    the account's group (`GroupRecord`). ``floored`` accounts may not be overdrawn; ``limited`` ones
    have other limits, in their AccountRecord.
    """

    account_id: int = 0
    sequence: int = 0
    last_position: int = 0
    pending_transactions: int = 0
    book: int = 0
    type: AccountType = AccountType.LIABILITY
    state: AccountState = AccountState.OPEN
    floored: bool = True
    limited: bool = False
    group: int = 0

    def pack(self) -> bytes:
        """Encode; struct.error if a counter left its 64 bits."""
        return _BALANCE.pack(
            self.debits_posted,
            self.credits_posted,
            self.debits_pending,
            self.credits_pending,
            self.account_id,
            self.sequence,
            self.last_position,
            self.pending_transactions,
            self.group,
            self.book,
            self.type,
            self.state
            | (FLOORED_BIT if self.floored else 0)
            | (LIMITED_BIT if self.limited else 0),
        )

    @classmethod
    def unpack(cls, data: bytes) -> "BalanceRow":
        """Decode."""
        (
            debits_posted,
            credits_posted,
            debits_pending,
            credits_pending,
            account_id,
            sequence,
            last_position,
            pending_transactions,
            group,
            book,
            type_,
            flags,
        ) = _BALANCE.unpack(data)
        return cls(
            debits_posted,
            credits_posted,
            debits_pending,
            credits_pending,
            account_id,
            sequence,
            last_position,
            pending_transactions,
            book,
            AccountType(type_),
            AccountState(flags & STATE_BITS),
            bool(flags & FLOORED_BIT),
            bool(flags & LIMITED_BIT),
            group,
        )

    def pending_inflow(self) -> int:
        """Return the pending money that comes in."""
        if self.type.normal_side is Direction.CREDIT:
            return self.credits_pending
        return self.debits_pending

    def room(self, direction: Direction) -> int:
        """Return how much more the counters of one side can take.

        Posted and pending money count together, so that settling can never overflow.
        """
        if direction is Direction.DEBIT:
            return INT64_MAX - self.debits_posted - self.debits_pending
        return INT64_MAX - self.credits_posted - self.credits_pending


@dataclass(slots=True, frozen=True)
class EntryRow:
    """One change to one account, 88 bytes, never changed once written.

    ``previous`` is the position of the same account's previous entry (0: none); ``after`` are the
    account's counters after this entry.
    """

    account_id: int
    transaction: int
    amount: int
    time_us: int
    sequence: int
    previous: int
    after: Counters
    direction: Direction
    kind: EntryKind

    def pack(self) -> bytes:
        """Encode, with a checksum: rows lie in blocks, and are read one by one."""
        row = _ENTRY.pack(
            self.account_id,
            self.transaction,
            self.amount,
            self.time_us,
            self.sequence,
            self.previous,
            self.after.debits_posted,
            self.after.credits_posted,
            self.after.debits_pending,
            self.after.credits_pending,
            self.direction,
            self.kind,
        )
        return row + CRC.pack(zlib.crc32(row))

    @classmethod
    def unpack(cls, data: bytes) -> "EntryRow":
        """Decode; StoreCorruptError if the disk or memory changed the row."""
        row = data[: _ENTRY.size]
        if data[_ENTRY.size :] != CRC.pack(zlib.crc32(row)):
            raise StoreCorruptError(f"an entry fails its checksum. {DAMAGE_ADVICE}")
        account_id, transaction, amount, time_us, sequence, previous, *rest = _ENTRY.unpack(row)
        return cls(
            account_id,
            transaction,
            amount,
            time_us,
            sequence,
            previous,
            Counters(*rest[:4]),
            Direction(rest[4]),
            EntryKind(rest[5]),
        )


@dataclass(slots=True, frozen=True)
class RequestRow:
    """The first result of a request: which transaction (or account slot), in which state."""

    body_hash: bytes
    number: int
    state: int

    def pack(self) -> bytes:
        """Encode."""
        return _REQUEST.pack(self.body_hash, self.number, self.state)

    @classmethod
    def unpack(cls, data: bytes) -> "RequestRow":
        """Decode."""
        return cls(*_REQUEST.unpack(data))


@dataclass(slots=True)
class TotalsRow(Counters):
    """The counters of all accounts of a group together, under its number.

    Unlike those of an account they may pass 64 bits.
    ``last_block``: the block of entries (`ENTRIES_PER_BLOCK`) in which the last log entry began
    that changed them.
    """

    accounts: int = 0
    last_block: int = 0

    def pack(self) -> bytes:
        """Encode."""
        return pack_sums(self) + _TOTALS.pack(self.accounts, self.last_block)

    @classmethod
    def unpack(cls, data: bytes) -> "TotalsRow":
        """Decode."""
        return cls(*_unpack_sums(data[: _SUMS.size]), *_TOTALS.unpack(data[_SUMS.size :]))


def pack_sums(sums: Counters) -> bytes:
    """Encode sums of counters, or of differences of them.

    A counter is below 2**63 and a shard has at most 2**32 accounts: 128 bits hold any sum.
    """
    low = U64_MAX
    debits, credits_ = sums.debits_posted, sums.credits_posted
    reserved, coming = sums.debits_pending, sums.credits_pending
    return _SUMS.pack(
        debits & low,
        debits >> 64,
        credits_ & low,
        credits_ >> 64,
        reserved & low,
        reserved >> 64,
        coming & low,
        coming >> 64,
    )


def unpack_sums(data: bytes) -> Counters:
    """Decode sums of counters."""
    return Counters(*_unpack_sums(data))


def _unpack_sums(data: bytes) -> tuple[int, int, int, int]:
    halves = _SUMS.unpack(data)
    low, high = halves[::2], halves[1::2]
    return (
        high[0] << 64 | low[0],
        high[1] << 64 | low[1],
        high[2] << 64 | low[2],
        high[3] << 64 | low[3],
    )


class GroupRecord(msgspec.Struct, array_like=True, frozen=True):
    """The accounts of a book that have a code and a type in common, or a role of the shard's own.

    Their counters are summed as they change (`TotalsRow`), so that a report reads a few rows.
    """

    book: int
    type: AccountType
    code: str = ""
    role: GroupRole = GroupRole.ACCOUNT


class AccountEventRecord(msgspec.Struct, array_like=True, frozen=True):
    """Something that happened to an account, other than entries.

    ``changes`` has what was changed, or was to be changed where that was refused: field → (before,
    after), as JSON. ``reason`` and ``message`` say why something was refused; ``transaction`` is
    the number of a refused transaction here.
    """

    kind: AccountEventKind
    time_us: int
    request_id: str
    actor: str = ""
    correlation_id: str = ""
    peer: str = ""
    changes: dict[str, tuple[str, str]] = {}
    reason: str = ""
    message: str = ""
    transaction: int = 0


class JournalItem(msgspec.Struct, array_like=True, frozen=True):
    """A command as it went through the log, and what it did.

    An empty ``command`` is the expiry of a transaction. ``outcome`` is msgpack: the reason of a
    failure; (number, state) of a transaction, or (revision, 0) of a ledger; "done" of all else.
    ``entries`` counts the entry rows it wrote; ``number`` is the first transaction number it took
    (0: none). `docs/AUDIT.md` has the layout of its digest.
    """

    command: bytes
    outcome: bytes
    entries: int
    number: int


class JournalRecord(msgspec.Struct, array_like=True, frozen=True):
    """A log entry, kept for good: its commands, where their entry rows begin, and the hash chain.

    ``link`` is the chain's hash after this entry.
    """

    index: int
    time_us: int
    first_position: int
    items: list[JournalItem]
    link: bytes


class SettlementRecord(msgspec.Struct, array_like=True):
    """How pending transactions of a book ended on one day (UTC), at their home.

    ``durations``: number of settled ones by the bucket (`ledger_core.durations`) of the time from
    creation to settlement.
    """

    settled: int = 0
    cancelled: int = 0
    expired: int = 0
    durations: dict[int, int] = {}


class AccountRecord(msgspec.Struct, array_like=True, frozen=True):
    """What seldom changes of an account. Times in microseconds since the Unix epoch."""

    account_id: int
    request_id: str
    create_time_us: int
    code: str = ""
    name: str = ""
    limits: Limits = NO_OVERDRAFT
    metadata: dict[str, str] = {}
    revision: int = 0
    update_time_us: int = 0
    """Of the last change to this record; 0 before the first."""
    previous_name: str = ""
    """The name before the last change of it: its claim may have to be released yet."""


class LedgerRecord(msgspec.Struct, array_like=True, frozen=True):
    """A ledger, on the shard that its name routes to."""

    name: str
    description: str
    currencies: list[Currency]
    chart: list[ChartCode]
    revision: int
    create_time_us: int
    update_time_us: int
    request_id: str


class NameRecord(msgspec.Struct, array_like=True, frozen=True):
    """Who has a name in a ledger, and the request that claimed it."""

    account_id: int
    request_id: str


class EntryRecord(msgspec.Struct, array_like=True, frozen=True):
    """One side of a transaction. ``shard_id`` is None where the account is on this shard.

    ``currency`` is empty in records of the one-account form: the record's book tells it.
    """

    account_id: int
    direction: Direction
    amount: int
    currency: str = ""
    currency_exponent: int = 2
    shard_id: int | None = None


class StateRecord(msgspec.Struct, array_like=True, frozen=True):
    """One step in the life of a transaction, with the request and the actor that made it."""

    status: TransactionStatus
    time_us: int
    request_id: str
    actor: str = ""
    correlation_id: str = ""
    peer: str = ""


class ParticipantRecord(msgspec.Struct, array_like=True, frozen=True):
    """Another shard that takes part in a transaction, and an account of it to route by."""

    shard_id: int
    routing_id: int


class TransactionRecord(msgspec.Struct, array_like=True):
    """A transaction: balanced entries and every state it has been in, newest last.

    ``amount`` is signed and ``settled`` is as requested, also of refused transactions.
    ``clearing`` holds this shard's due-to and due-from entries of a transaction across shards;
    they and the entries on this shard balance. The home's record has ``participants``; a
    participant's has ``home_shard_id``, and ``home_number`` once it has learned it.
    ``reversed_amounts``: how much of each entry has been reversed by others; ``reversal_amounts``:
    how much of each entry of ``reversal_of`` this transaction reverses.
    """

    account_id: int
    amount: int
    description: str
    settled: bool
    book: int
    entries: list[EntryRecord]
    states: list[StateRecord]
    effective_time_us: int
    refusal: Refused | None = None
    external_reference: str = ""
    metadata: dict[str, str] = {}
    expire_time_us: int = 0
    settled_amount: int = 0
    reversal_of: int = 0
    reversed_amounts: list[int] = []
    reversal_amounts: list[int] = []
    clearing: list[EntryRecord] = []
    origin: bytes = b""
    participants: list[ParticipantRecord] = []
    home_shard_id: int | None = None
    home_number: int = 0

    def encoded(self) -> bytes:
        """Encode, as it is stored."""
        return _encode_record(self)

    @classmethod
    def decoded(cls, data: bytes) -> "TransactionRecord":
        """Decode."""
        return msgspec.msgpack.decode(data, type=cls)

    @property
    def status(self) -> TransactionStatus:
        """The status now."""
        return self.states[-1].status

    @property
    def awaits_home(self) -> bool:
        """Whether this shard prepared it, and waits for the decision of its home."""
        return self.home_shard_id is not None and self.status is TransactionStatus.UNDECIDED

    @property
    def is_pending(self) -> bool:
        """Whether it has money reserved here, and is for this shard to list as such."""
        open_ = (TransactionStatus.PENDING, TransactionStatus.UNDECIDED)
        return self.status in open_ and not self.awaits_home

    def reference_digests(self, ledger: str) -> list[bytes]:
        """Return what it is found by: its external reference and metadata keys."""
        digests = [metadata_key_digest(ledger, key) for key in self.metadata]
        if self.external_reference:
            digests.append(reference_digest(ledger, self.external_reference))
        return digests

    @property
    def booked(self) -> list[EntryRecord]:
        """What is booked on this shard."""
        return [entry for entry in self.entries if entry.shard_id is None] + self.clearing


class InFlightRecord(msgspec.Struct, array_like=True, frozen=True):
    """At the home: a transaction whose participants have yet to apply its ``state``-th state.

    ``prepare`` is what they are asked until it is decided.
    """

    state: int
    prepare: Prepare | None = None


class Book(msgspec.Struct, array_like=True, frozen=True):
    """A ledger's currency on this shard, with the slot of its external account."""

    ledger: str
    currency: str
    currency_exponent: int
    external_slot: int


class ShardMeta(msgspec.Struct, array_like=True):
    """The shard's running numbers, all of them as of ``applied_index``.

    ``time_us`` never runs backwards. ``next_position`` and ``next_transaction`` start at 1: 0 means
    none. ``chain_hash`` covers everything applied so far: it is the link of the last journal entry.
    ``replayed`` is the number, where it came from, of the last journal entry that was imported;
    ``importing``: more of them may follow, so nothing happens here by itself. ``has_own``: entries
    were journaled that were not imported. ``skipped_transactions`` counts the numbers that an
    import left out, being of other ledgers.
    """

    lower_bound: int
    upper_bound: int
    applied_index: int = 0
    time_us: int = 0
    next_slot: int = 0
    next_position: int = 1
    next_transaction: int = 1
    chain_hash: bytes = bytes(32)
    books: list[Book] = []
    next_group: int = 0
    next_journal: int = 1
    replayed: int = 0
    importing: bool = False
    has_own: bool = False
    skipped_transactions: int = 0

"""What goes through the log: commands, and the batch of them that makes one log entry.

A command carries everything that applying it needs; time comes with the batch, from the leader.
Encoding: msgpack arrays (msgspec), so fields may only ever be appended, with a default.
"""

import hashlib
from typing import Annotated, NamedTuple

import msgspec

from ledger_core.accounts import AccountType, Direction, TransactionStatus
from ledger_core.errors import RefusalReason
from ledger_core.ledgers import (
    CHART_CODES_MAX,
    CURRENCIES_MAX,
    MAIN_NAME,
    USD,
    ChartCode,
    Currency,
    Label,
    ledger_key,
    name_key,
)
from ledger_core.money import INT64_MAX

DESCRIPTION_CHARACTERS_MAX = 1_000
REQUEST_ID_CHARACTERS_MAX = 128
LEDGER_NAME_CHARACTERS_MAX = 64
REFERENCE_CHARACTERS_MAX = 256
ACTOR_CHARACTERS_MAX = 128
SOURCE_CHARACTERS_MAX = 128
ENTRIES_MIN = 2
ENTRIES_MAX = 1_024
"""Of a transaction. With the longest texts and all preconditions it still fits into a call to a
node (256 KiB), and a shard books it in some 10 ms."""
METADATA_KEYS_MAX = 32
METADATA_KEY_CHARACTERS_MAX = 64
METADATA_VALUE_CHARACTERS_MAX = 256
REPLAYED_ITEMS_MAX = 10_000

# Decoding checks these bounds, so nothing that passed `decode_command` can overflow a stored row.
# msgpack has no integers above 2**64 - 1.
U64 = Annotated[int, msgspec.Meta(ge=0)]
SignedAmount = Annotated[int, msgspec.Meta(ge=-INT64_MAX, le=INT64_MAX)]
Description = Annotated[str, msgspec.Meta(max_length=DESCRIPTION_CHARACTERS_MAX)]
RequestId = Annotated[str, msgspec.Meta(min_length=1, max_length=REQUEST_ID_CHARACTERS_MAX)]
LedgerName = Annotated[str, msgspec.Meta(min_length=1, max_length=LEDGER_NAME_CHARACTERS_MAX)]


PositiveAmount = Annotated[int, msgspec.Meta(ge=1, le=INT64_MAX)]
PartAmount = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)]
TimeUs = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)]
ShardId = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
Reference = Annotated[str, msgspec.Meta(max_length=REFERENCE_CHARACTERS_MAX)]
Actor = Annotated[str, msgspec.Meta(max_length=ACTOR_CHARACTERS_MAX)]
SourceText = Annotated[str, msgspec.Meta(max_length=SOURCE_CHARACTERS_MAX)]
ChartCodeText = Annotated[str, msgspec.Meta(max_length=32)]
MetadataKey = Annotated[str, msgspec.Meta(min_length=1, max_length=METADATA_KEY_CHARACTERS_MAX)]
MetadataValue = Annotated[str, msgspec.Meta(max_length=METADATA_VALUE_CHARACTERS_MAX)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], msgspec.Meta(max_length=METADATA_KEYS_MAX)]


class Limits(msgspec.Struct, array_like=True, frozen=True):
    """Bounds of an account's balances, in minor units; None means no bound.

    ``minimum`` holds for the available balance and is checked on outflows, ``maximum`` for the
    settled balance plus pending inflows and is checked on inflows.
    """

    minimum: SignedAmount | None = 0
    maximum: SignedAmount | None = None


NO_OVERDRAFT = Limits()


class Source(msgspec.Struct, array_like=True, frozen=True):
    """Where a request came from, for the audit: no part of what a repeat must repeat.

    ``correlation_id`` is the caller's own, by which it follows a piece of work through its systems;
    ``peer`` is the caller's address as the gateway saw it.
    """

    correlation_id: SourceText = ""
    peer: SourceText = ""


NO_SOURCE = Source()


class CreateAccount(msgspec.Struct, tag=1, tag_field="kind", array_like=True, frozen=True):
    """Open the account ``account_id``, which is derived from (ledger, request_id).

    Type and currency were taken from the ledger's chart and currencies: those never change.
    """

    account_id: U64
    ledger: LedgerName
    request_id: RequestId
    type: AccountType = AccountType.LIABILITY
    currency: Currency = USD
    code: ChartCodeText = ""
    name: Label = ""
    limits: Limits = NO_OVERDRAFT
    metadata: Metadata = {}
    actor: Actor = ""
    source: Source = NO_SOURCE


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """One side of a transaction, and on which shard its account is.

    The preconditions are checked where they are not None: the account's version before the
    transaction, and bounds of its settled balance as it would be with the whole transaction
    settled.
    """

    account_id: U64
    direction: Direction
    amount: PositiveAmount
    currency: Currency
    shard_id: ShardId
    expected_version: U64 | None = None
    minimum_balance: SignedAmount | None = None
    maximum_balance: SignedAmount | None = None


Entries = Annotated[list[Entry], msgspec.Meta(max_length=ENTRIES_MAX)]


class CreateTransaction(msgspec.Struct, tag=2, tag_field="kind", array_like=True, frozen=True):
    """A transaction, in one of two forms. ``account_id`` is the home account.

    With ``entries``: 2 to 1,024 of them, the first one on the home account, that balance to zero
    for each currency; ``amount`` is 0. Where all accounts are on one shard, applying this command
    is all there is; else it begins the transaction (`Prepare`, `Decide`, `ApplyDecision` follow).

    Without: the one-account form. ``amount`` > 0 is money into the account, < 0 is money out of
    it, against its shard's external account.

    ``effective_time_us`` 0 means the time of recording, ``expire_time_us`` 0 never.
    """

    account_id: U64
    amount: SignedAmount
    description: Description
    settled: bool
    request_id: RequestId
    entries: Entries = []
    ledger: LedgerName = MAIN_NAME
    external_reference: Reference = ""
    effective_time_us: TimeUs = 0
    expire_time_us: TimeUs = 0
    metadata: Metadata = {}
    actor: Actor = ""
    source: Source = NO_SOURCE


class TransferText(msgspec.Struct, array_like=True, frozen=True):
    """What one transfer of a block has in words; most have nothing."""

    description: Description = ""
    external_reference: Reference = ""
    metadata: Metadata = {}


class TransferPart(msgspec.Struct, array_like=True, frozen=True):
    """So many transfers of a block, one after the other, and who asked for them."""

    count: U64
    actor: Actor = ""
    source: Source = NO_SOURCE


class CreateTransfers(msgspec.Struct, tag=21, tag_field="kind", array_like=True, frozen=True):
    """Settled transactions of two entries on one shard, as columns: see `ledger_core.transfers`.

    Little-endian: accounts as u64 each, amounts as i64, request ids as the 16 bytes of UUIDs, one
    byte of `TransferForm` each. Ledger and currency are those of the entries; in the one-account
    form the account's own count. Where several calls share a block, ``parts`` says who asked for
    which transfers, and ``actor`` and ``source`` are empty.
    """

    routing_id: U64
    ledger: LedgerName
    currency: Currency
    forms: bytes
    first_accounts: bytes
    second_accounts: bytes
    amounts: bytes
    request_ids: bytes
    texts: dict[U64, TransferText] = {}
    actor: Actor = ""
    source: Source = NO_SOURCE
    parts: list[TransferPart] = []


class SettleTransaction(msgspec.Struct, tag=3, tag_field="kind", array_like=True, frozen=True):
    """Post what a pending transaction reserved: all of it (0), or ``amount`` of a two-entry one."""

    account_id: U64
    number: U64
    request_id: RequestId
    amount: PartAmount = 0
    actor: Actor = ""
    source: Source = NO_SOURCE


class CancelTransaction(msgspec.Struct, tag=4, tag_field="kind", array_like=True, frozen=True):
    """Release what a pending transaction reserved."""

    account_id: U64
    number: U64
    request_id: RequestId
    actor: Actor = ""
    source: Source = NO_SOURCE


class ReverseTransaction(msgspec.Struct, tag=13, tag_field="kind", array_like=True, frozen=True):
    """Post the mirror entries of a settled transaction as a new, linked one.

    ``amounts`` says how much of each entry, in the order of the entries; empty means all that is
    left. The parts balance per currency, and together never exceed what was settled.
    """

    account_id: U64
    number: U64
    request_id: RequestId
    amounts: Annotated[list[PartAmount], msgspec.Meta(max_length=ENTRIES_MAX)] = []
    description: Description = ""
    actor: Actor = ""
    source: Source = NO_SOURCE


# Between shards. A transaction across shards is known to its participants by its *origin*: the key
# of the request at its home, which is known before anything is recorded.

Origin = Annotated[bytes, msgspec.Meta(min_length=17, max_length=64)]


class Refused(msgspec.Struct, array_like=True, frozen=True):
    """Why a transaction was refused: by which entry, and the amounts in question (minor units)."""

    entry_index: int
    required_amount: int = 0
    available_amount: int = 0
    reserved_amount: int = 0
    reason: RefusalReason = RefusalReason.INSUFFICIENT_FUNDS


class Prepare(msgspec.Struct, tag=14, tag_field="kind", array_like=True, frozen=True):
    """At a participant: check and reserve its entries, remember the home, and vote."""

    routing_id: U64
    """Any account of the participant's."""
    origin: Origin
    body_hash: bytes
    home_shard_id: ShardId
    transaction: CreateTransaction
    reversal_of: U64 = 0


class Vote(msgspec.Struct, array_like=True, frozen=True):
    """A participant's answer to Prepare: yes, unless refused."""

    shard_id: ShardId
    refused: Refused | None = None


class Decide(msgspec.Struct, tag=15, tag_field="kind", array_like=True, frozen=True):
    """At the home: commit if every participant voted yes, else refuse. The commit point.

    A vote that is missing counts as a no: the participant could not be asked in time.
    """

    account_id: U64
    number: U64
    votes: list[Vote]


class ApplyDecision(msgspec.Struct, tag=16, tag_field="kind", array_like=True, frozen=True):
    """At a participant: what the home's transaction has become."""

    routing_id: U64
    origin: Origin
    number: U64
    status: TransactionStatus
    request_id: Annotated[str, msgspec.Meta(max_length=REQUEST_ID_CHARACTERS_MAX)]
    settled_amount: PartAmount = 0
    refused: Refused | None = None


class Delivered(msgspec.Struct, tag=17, tag_field="kind", array_like=True, frozen=True):
    """At the home: every participant has applied the ``state``-th state of the transaction."""

    account_id: U64
    number: U64
    state: U64


class Resolve(msgspec.Struct, tag=18, tag_field="kind", array_like=True, frozen=True):
    """At the home: what became of the transaction that a participant was asked to prepare?

    A home that never heard of it records a refusal first (presumed abort).
    """

    prepared: Prepare


# Settled transfers between two shards, as columns: the same steps for many at once, but the home
# begins and decides in one, with the votes. See `ledger_core.transfer_legs`.


class PrepareTransfers(msgspec.Struct, tag=22, tag_field="kind", array_like=True, frozen=True):
    """At the participant of all of them: check and reserve their second entries, and vote.

    As `CreateTransfers`, with the homes' ids (u16 each, little-endian). Forms: DEBIT and CREDIT.
    """

    routing_id: U64
    ledger: LedgerName
    currency: Currency
    forms: bytes
    first_accounts: bytes
    second_accounts: bytes
    amounts: bytes
    request_ids: bytes
    home_shards: bytes
    texts: dict[U64, TransferText] = {}
    parts: list[TransferPart] = []


class CommitTransfers(msgspec.Struct, tag=23, tag_field="kind", array_like=True, frozen=True):
    """At the home of all of them, once their participants voted: begin and decide. Commit point.

    ``refused`` has the votes that were a no, by item; all others were a yes.
    """

    routing_id: U64
    ledger: LedgerName
    currency: Currency
    forms: bytes
    first_accounts: bytes
    second_accounts: bytes
    amounts: bytes
    request_ids: bytes
    participant_shards: bytes
    refused: dict[U64, Refused] = {}
    texts: dict[U64, TransferText] = {}
    parts: list[TransferPart] = []


class ApplyTransfers(msgspec.Struct, tag=24, tag_field="kind", array_like=True, frozen=True):
    """At the participant of all of them: what they have become at their homes.

    ``first_accounts`` and ``request_ids`` name them, ``numbers`` (u64 each) and ``statuses`` (a
    byte each) are those at home. ``prepared`` (u64 each) are their numbers at the participant as
    its votes told them, or 0, or it is empty: it only says where to look first.
    """

    routing_id: U64
    ledger: LedgerName
    first_accounts: bytes
    request_ids: bytes
    numbers: bytes
    statuses: bytes
    refused: dict[U64, Refused] = {}
    prepared: bytes = b""


class DeliveredTransfers(msgspec.Struct, tag=25, tag_field="kind", array_like=True, frozen=True):
    """At the home of all of them: their participants have applied them. ``numbers``: u64 each."""

    routing_id: U64
    ledger: LedgerName
    numbers: bytes


class UpdateAccount(msgspec.Struct, tag=5, tag_field="kind", array_like=True, frozen=True):
    """Change what is not None. ``revision`` is that of the account which the caller looked at."""

    account_id: U64
    request_id: RequestId
    revision: U64
    name: Label | None = None
    metadata: Metadata | None = None
    limits: Limits | None = None
    actor: Actor = ""
    source: Source = NO_SOURCE


class FreezeAccount(msgspec.Struct, tag=6, tag_field="kind", array_like=True, frozen=True):
    """Refuse new transactions on an account; pending ones can still be settled or cancelled."""

    account_id: U64
    request_id: RequestId
    actor: Actor = ""
    source: Source = NO_SOURCE


class UnfreezeAccount(msgspec.Struct, tag=7, tag_field="kind", array_like=True, frozen=True):
    """Take new transactions again."""

    account_id: U64
    request_id: RequestId
    actor: Actor = ""
    source: Source = NO_SOURCE


class CloseAccount(msgspec.Struct, tag=8, tag_field="kind", array_like=True, frozen=True):
    """Close an account for good: only at zero, with nothing pending."""

    account_id: U64
    request_id: RequestId
    actor: Actor = ""
    source: Source = NO_SOURCE


class CreateLedger(msgspec.Struct, tag=9, tag_field="kind", array_like=True, frozen=True):
    """Make a set of books. The first currency is the default of its accounts."""

    name: LedgerName
    request_id: RequestId
    description: Description
    currencies: Annotated[list[Currency], msgspec.Meta(min_length=1, max_length=CURRENCIES_MAX)]
    chart: Annotated[list[ChartCode], msgspec.Meta(max_length=CHART_CODES_MAX)] = []
    actor: Actor = ""
    source: Source = NO_SOURCE


class ExtendLedger(msgspec.Struct, tag=10, tag_field="kind", array_like=True, frozen=True):
    """Add currencies and lines of the chart, and change the description if it is not None.

    ``revision`` is that of the ledger which the caller looked at.
    """

    name: LedgerName
    request_id: RequestId
    revision: U64
    description: Description | None = None
    currencies: Annotated[list[Currency], msgspec.Meta(max_length=CURRENCIES_MAX)] = []
    chart: Annotated[list[ChartCode], msgspec.Meta(max_length=CHART_CODES_MAX)] = []
    actor: Actor = ""
    source: Source = NO_SOURCE


class ClaimName(msgspec.Struct, tag=11, tag_field="kind", array_like=True, frozen=True):
    """Take a name in a ledger for an account, before the account gets it."""

    ledger: LedgerName
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    account_id: U64
    request_id: RequestId


class ReleaseName(msgspec.Struct, tag=12, tag_field="kind", array_like=True, frozen=True):
    """Give a name back that ``account_id`` had and has no more, or never got."""

    ledger: LedgerName
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    account_id: U64
    request_id: RequestId


class ReplayedItem(msgspec.Struct, array_like=True, frozen=True):
    """A command of an exported journal, as bytes; what it led to; and the number it took first."""

    command: bytes
    outcome: bytes
    number: U64


class Replay(msgspec.Struct, tag=19, tag_field="kind", array_like=True, frozen=True):
    """Apply a journal entry of another cluster once more, at the time it had there.

    ``number`` is that of the journal entry, ``previous`` that of the one that was replayed before
    it (0: none): so none gets lost on the way. Between them are entries of which nothing is
    imported. An item with an empty command is the expiry of a transaction.
    """

    routing_id: U64
    number: U64
    time_us: TimeUs
    items: Annotated[list[ReplayedItem], msgspec.Meta(min_length=1, max_length=REPLAYED_ITEMS_MAX)]
    previous: U64 = 0


class EndReplay(msgspec.Struct, tag=20, tag_field="kind", array_like=True, frozen=True):
    """All that is to be replayed is there: the shard lives on by itself.

    Until then it lets nothing expire and does not go on with transactions across shards: other
    shards may not have got so far. Not journaled, and of no effect where nothing was replayed.
    """

    routing_id: U64


AccountChange = UpdateAccount | FreezeAccount | UnfreezeAccount | CloseAccount
Request = (
    CreateAccount
    | CreateTransaction
    | SettleTransaction
    | CancelTransaction
    | ReverseTransaction
    | AccountChange
    | CreateLedger
    | ExtendLedger
)
"""What has a request id under which its first result is kept."""

BetweenShards = Prepare | Decide | ApplyDecision | Delivered | Resolve
TransfersBetweenShards = PrepareTransfers | CommitTransfers | ApplyTransfers | DeliveredTransfers
Command = (
    Request
    | ClaimName
    | ReleaseName
    | BetweenShards
    | Replay
    | EndReplay
    | CreateTransfers
    | TransfersBetweenShards
)


def routing_id(command: Command) -> int:
    """Return the u64 by which a command routes to its shard."""
    match command:
        case CreateTransfers():
            return command.routing_id
        case CreateLedger() | ExtendLedger():
            return ledger_key(command.name)
        case ClaimName() | ReleaseName():
            return name_key(command.ledger, command.name)
        case Prepare() | ApplyDecision() | Replay() | EndReplay():
            return command.routing_id
        case PrepareTransfers() | CommitTransfers() | ApplyTransfers() | DeliveredTransfers():
            return command.routing_id
        case Resolve():
            return command.prepared.transaction.account_id
        case _:
            return command.account_id


class Batch(msgspec.Struct, array_like=True, frozen=True):
    """One log entry: commands to apply one after the other.

    ``time_us`` is the leader's clock in microseconds since the Unix epoch.
    """

    time_us: int
    commands: list[Command]


class RawBatch(NamedTuple):
    """A batch whose commands come with the bytes that they are in the log."""

    time_us: int
    commands: list[tuple[bytes, Command]]


class _EncodedBatch(msgspec.Struct, array_like=True, frozen=True):
    time_us: int
    commands: list[msgspec.Raw]


_encoder = msgspec.msgpack.Encoder()
_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_batch_decoder = msgspec.msgpack.Decoder(Batch)
_encoded_batch_decoder = msgspec.msgpack.Decoder(_EncodedBatch)


def unbalanced_currencies(entries: list[Entry]) -> dict[str, int]:
    """Return debits minus credits of the currencies in which entries do not balance to zero."""
    sums: dict[str, int] = {}
    for entry in entries:
        sign = 1 if entry.direction is Direction.DEBIT else -1
        sums[entry.currency.code] = sums.get(entry.currency.code, 0) + sign * entry.amount
    return {code: difference for code, difference in sums.items() if difference}


def is_across_shards(command: CreateTransaction) -> bool:
    """Whether accounts on several shards take part."""
    return len({entry.shard_id for entry in command.entries}) > 1


def transaction_fault(command: CreateTransaction, home_shard_id: int) -> str | None:
    """Return what makes a transaction no transaction at all, which no gateway sends."""
    entries = command.entries
    if not entries:
        return "amount is 0" if command.amount == 0 else None
    if command.amount:
        return "has both entries and an amount"
    if len(entries) < ENTRIES_MIN:
        return f"has {len(entries)} entries"
    if (entries[0].account_id, entries[0].shard_id) != (command.account_id, home_shard_id):
        return "the first entry is not on the home account"
    if unbalanced_currencies(entries):
        return "debits and credits differ"
    return None


def encode_command(command: Command) -> bytes:
    """Encode once, at the gateway: nodes pass these bytes on as they are."""
    return _encoder.encode(command)


def decode_command(data: bytes) -> Command:
    """Decode, or raise msgspec.DecodeError."""
    return _command_decoder.decode(data)


def encode_batch(time_us: int, commands: list[bytes]) -> bytes:
    """Join encoded commands into the payload of one log entry."""
    return _encoder.encode(_EncodedBatch(time_us, [msgspec.Raw(item) for item in commands]))


def decode_batch(data: bytes) -> Batch:
    """Decode the payload of one log entry, or raise msgspec.DecodeError."""
    return _batch_decoder.decode(data)


def decode_raw_batch(data: bytes) -> RawBatch:
    """Decode the payload of one log entry, and keep the bytes of each command."""
    batch = _encoded_batch_decoder.decode(data)
    commands = [(bytes(raw), _command_decoder.decode(raw)) for raw in batch.commands]
    return RawBatch(batch.time_us, commands)


def command_body(command: Command) -> bytes:
    """Return the command without its request id and source, encoded: what a repeat must repeat."""
    body = [
        getattr(command, field)
        for field in command.__struct_fields__
        if field not in ("request_id", "source")
    ]
    return _encoder.encode([type(command).__struct_config__.tag, *body])


NO_HASH = bytes(16)
"""In place of the hash of a transfer's body: its transaction says what was asked."""


def body_hash(command: Command) -> bytes:
    """Return the 16 bytes by which a repeat is told from another request."""
    return hashlib.blake2b(command_body(command), digest_size=16).digest()

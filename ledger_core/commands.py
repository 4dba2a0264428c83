"""What goes through the log: commands, and the batch of them that makes one log entry.

A command carries everything that applying it needs; time comes with the batch, from the leader.
Encoding: msgpack arrays (msgspec), so fields may only ever be appended, with a default.
"""

from typing import Annotated, Any

import msgspec

from ledger_core.accounts import AccountType
from ledger_core.ledgers import (
    CHART_CODES_MAX,
    CURRENCIES_MAX,
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
METADATA_KEYS_MAX = 32
METADATA_KEY_CHARACTERS_MAX = 64
METADATA_VALUE_CHARACTERS_MAX = 256

# Decoding checks these bounds, so nothing that passed `decode_command` can overflow a stored row.
# msgpack has no integers above 2**64 - 1.
U64 = Annotated[int, msgspec.Meta(ge=0)]
SignedAmount = Annotated[int, msgspec.Meta(ge=-INT64_MAX, le=INT64_MAX)]
Description = Annotated[str, msgspec.Meta(max_length=DESCRIPTION_CHARACTERS_MAX)]
RequestId = Annotated[str, msgspec.Meta(min_length=1, max_length=REQUEST_ID_CHARACTERS_MAX)]
LedgerName = Annotated[str, msgspec.Meta(min_length=1, max_length=LEDGER_NAME_CHARACTERS_MAX)]


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


class CreateTransaction(msgspec.Struct, tag=2, tag_field="kind", array_like=True, frozen=True):
    """One-account form: ``amount`` > 0 is money into the account, < 0 is money out of it.

    It expands to two entries, the account against its shard's external account. ``amount`` is in
    minor units with ``0 < abs(amount) <= 2**63 - 1``.
    """

    account_id: U64
    amount: SignedAmount
    description: Description
    settled: bool
    request_id: RequestId


class SettleTransaction(msgspec.Struct, tag=3, tag_field="kind", array_like=True, frozen=True):
    """Post what a pending transaction reserved."""

    account_id: U64
    number: U64
    request_id: RequestId


class CancelTransaction(msgspec.Struct, tag=4, tag_field="kind", array_like=True, frozen=True):
    """Release what a pending transaction reserved."""

    account_id: U64
    number: U64
    request_id: RequestId


class UpdateAccount(msgspec.Struct, tag=5, tag_field="kind", array_like=True, frozen=True):
    """Change what is not None. ``revision`` is that of the account which the caller looked at."""

    account_id: U64
    request_id: RequestId
    revision: U64
    name: Label | None = None
    metadata: Metadata | None = None
    limits: Limits | None = None


class FreezeAccount(msgspec.Struct, tag=6, tag_field="kind", array_like=True, frozen=True):
    """Refuse new transactions on an account; pending ones can still be settled or cancelled."""

    account_id: U64
    request_id: RequestId


class UnfreezeAccount(msgspec.Struct, tag=7, tag_field="kind", array_like=True, frozen=True):
    """Take new transactions again."""

    account_id: U64
    request_id: RequestId


class CloseAccount(msgspec.Struct, tag=8, tag_field="kind", array_like=True, frozen=True):
    """Close an account for good: only at zero, with nothing pending."""

    account_id: U64
    request_id: RequestId


class CreateLedger(msgspec.Struct, tag=9, tag_field="kind", array_like=True, frozen=True):
    """Make a set of books. The first currency is the default of its accounts."""

    name: LedgerName
    request_id: RequestId
    description: Description
    currencies: Annotated[list[Currency], msgspec.Meta(min_length=1, max_length=CURRENCIES_MAX)]
    chart: Annotated[list[ChartCode], msgspec.Meta(max_length=CHART_CODES_MAX)] = []


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


AccountChange = UpdateAccount | FreezeAccount | UnfreezeAccount | CloseAccount
Command = (
    CreateAccount
    | CreateTransaction
    | SettleTransaction
    | CancelTransaction
    | AccountChange
    | CreateLedger
    | ExtendLedger
    | ClaimName
    | ReleaseName
)


def routing_id(command: Command) -> int:
    """Return the u64 by which a command routes to its shard."""
    match command:
        case CreateLedger() | ExtendLedger():
            return ledger_key(command.name)
        case ClaimName() | ReleaseName():
            return name_key(command.ledger, command.name)
        case _:
            return command.account_id


class Batch(msgspec.Struct, array_like=True, frozen=True):
    """One log entry: commands to apply one after the other.

    ``time_us`` is the leader's clock in microseconds since the Unix epoch.
    """

    time_us: int
    commands: list[Command]


class _EncodedBatch(msgspec.Struct, array_like=True, frozen=True):
    time_us: int
    commands: list[msgspec.Raw]


_encoder = msgspec.msgpack.Encoder()
_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_batch_decoder = msgspec.msgpack.Decoder(Batch)


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


def command_body(command: Command) -> bytes:
    """Return the command without its request id, encoded: what a repeat must repeat."""
    body: list[Any] = list(msgspec.structs.astuple(command))
    del body[command.__struct_fields__.index("request_id")]
    return _encoder.encode([type(command).__struct_config__.tag, *body])

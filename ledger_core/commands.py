"""What goes through the log: commands, and the batch of them that makes one log entry.

A command carries everything that applying it needs; time comes with the batch, from the leader.
Encoding: msgpack arrays (msgspec), so fields may only ever be appended, with a default.
"""

from typing import Annotated, Any

import msgspec

from ledger_core.money import INT64_MAX

DESCRIPTION_CHARACTERS_MAX = 1_000
REQUEST_ID_CHARACTERS_MAX = 128
LEDGER_NAME_CHARACTERS_MAX = 64

# Decoding checks these bounds, so nothing that passed `decode_command` can overflow a stored row.
# msgpack has no integers above 2**64 - 1.
U64 = Annotated[int, msgspec.Meta(ge=0)]
SignedAmount = Annotated[int, msgspec.Meta(ge=-INT64_MAX, le=INT64_MAX)]
Description = Annotated[str, msgspec.Meta(max_length=DESCRIPTION_CHARACTERS_MAX)]
RequestId = Annotated[str, msgspec.Meta(min_length=1, max_length=REQUEST_ID_CHARACTERS_MAX)]
LedgerName = Annotated[str, msgspec.Meta(min_length=1, max_length=LEDGER_NAME_CHARACTERS_MAX)]


class CreateAccount(msgspec.Struct, tag=1, array_like=True, frozen=True):
    """Open the account ``account_id``, which is derived from (ledger, request_id)."""

    account_id: U64
    ledger: LedgerName
    request_id: RequestId


class CreateTransaction(msgspec.Struct, tag=2, array_like=True, frozen=True):
    """One-account form: ``amount`` > 0 is money into the account, < 0 is money out of it.

    It expands to two entries, the account against its shard's external account. ``amount`` is in
    minor units with ``0 < abs(amount) <= 2**63 - 1``.
    """

    account_id: U64
    amount: SignedAmount
    description: Description
    settled: bool
    request_id: RequestId


class SettleTransaction(msgspec.Struct, tag=3, array_like=True, frozen=True):
    """Post what a pending transaction reserved."""

    account_id: U64
    number: U64
    request_id: RequestId


class CancelTransaction(msgspec.Struct, tag=4, array_like=True, frozen=True):
    """Release what a pending transaction reserved."""

    account_id: U64
    number: U64
    request_id: RequestId


Command = CreateAccount | CreateTransaction | SettleTransaction | CancelTransaction


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

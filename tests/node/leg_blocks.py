"""Blocks of transfers between two shards, made of the single commands that they stand for."""

import struct
import uuid
from collections.abc import Sequence

from ledger_core.accounts import Direction, TransactionStatus
from ledger_core.commands import (
    ApplyTransfers,
    CommitTransfers,
    CreateTransaction,
    DeliveredTransfers,
    PrepareTransfers,
    Refused,
    TransferPart,
)
from ledger_core.ids import request_key
from ledger_core.transfers import TransferForm


def transfer_id(number: int) -> str:
    """Return a request id that a block can have."""
    return str(uuid.UUID(int=0x0190_0000_0000_7000_8000_0000_0000_0000 + number))


def is_leg(command: object) -> bool:
    """Whether a command can be an item of a block between two shards."""
    return (
        isinstance(command, CreateTransaction)
        and command.settled
        and len(command.entries) == 2
        and command.entries[0].shard_id != command.entries[1].shard_id
        and len(command.request_id) == 36
    )


def home_of(command: CreateTransaction) -> int:
    return command.entries[0].shard_id


def participant_of(command: CreateTransaction) -> int:
    return command.entries[1].shard_id


def prepare_block(items: Sequence[CreateTransaction]) -> PrepareTransfers:
    """All of one participant."""
    return PrepareTransfers(
        items[0].entries[1].account_id,
        items[0].ledger,
        items[0].entries[0].currency,
        *_columns(items),
        home_shards=struct.pack(f"<{len(items)}H", *map(home_of, items)),
        parts=_parts(items),
    )


def commit_block(
    items: Sequence[CreateTransaction], refused: dict[int, Refused] | None = None
) -> CommitTransfers:
    """All of one home; ``refused`` by item."""
    return CommitTransfers(
        items[0].account_id,
        items[0].ledger,
        items[0].entries[0].currency,
        *_columns(items),
        participant_shards=struct.pack(f"<{len(items)}H", *map(participant_of, items)),
        refused=refused or {},
        parts=_parts(items),
    )


def apply_block(
    items: Sequence[CreateTransaction],
    numbers: Sequence[int],
    statuses: Sequence[TransactionStatus],
    refused: dict[int, Refused] | None = None,
) -> ApplyTransfers:
    """All of one participant."""
    return ApplyTransfers(
        items[0].entries[1].account_id,
        items[0].ledger,
        _u64(item.account_id for item in items),
        b"".join(request_key(item.request_id) for item in items),
        _u64(numbers),
        bytes(statuses),
        refused or {},
    )


def delivered_block(
    items: Sequence[CreateTransaction], numbers: Sequence[int]
) -> DeliveredTransfers:
    """All of one home."""
    return DeliveredTransfers(items[0].account_id, items[0].ledger, _u64(numbers))


def _columns(items: Sequence[CreateTransaction]) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    """Return forms, first and second accounts, amounts, request ids."""
    forms = {Direction.DEBIT: TransferForm.DEBIT, Direction.CREDIT: TransferForm.CREDIT}
    assert all(map(is_leg, items)), items
    return (
        bytes(forms[item.entries[0].direction] for item in items),
        _u64(item.entries[0].account_id for item in items),
        _u64(item.entries[1].account_id for item in items),
        _u64(item.entries[0].amount for item in items),
        b"".join(request_key(item.request_id) for item in items),
    )


def _parts(items: Sequence[CreateTransaction]) -> list[TransferPart]:
    return [TransferPart(1, item.actor, item.source) for item in items]


def _u64(values: object) -> bytes:
    numbers = list(values)  # type: ignore[call-overload]
    return struct.pack(f"<{len(numbers)}Q", *numbers)

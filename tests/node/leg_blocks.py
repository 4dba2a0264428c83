"""Blocks of transfers between two shards, made of the single commands that they stand for."""

import struct
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import Protocol

from ledger_core.accounts import Direction, TransactionStatus
from ledger_core.commands import (
    ApplyTransfers,
    Command,
    CommitTransfers,
    CreateTransaction,
    DeliveredTransfers,
    PrepareTransfers,
    Refused,
    TransferPart,
)
from ledger_core.errors import RefusalReason
from ledger_core.ids import request_key
from ledger_core.results import (
    Done,
    RefusalView,
    TransactionView,
    TransfersView,
    TransferVotesView,
)
from ledger_core.transfers import TransferForm

_UNDECIDED = TransactionStatus.UNDECIDED


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
    prepared: Sequence[int] = (),
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
        _u64(prepared),
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


# All rounds, as a gateway does them


class Shards(Protocol):
    """Where the steps are done."""

    def apply(self, shard_id: int, command: Command) -> object:
        """Do a step on a shard, and return its result."""


def send_blocks(shards: Shards, items: Sequence[CreateTransaction], rounds: int) -> None:
    """Take transfers through so many rounds; what was sent before keeps its first result."""
    for _ in islice(send_rounds(shards, items), rounds):
        pass


def send_rounds(shards: Shards, items: Sequence[CreateTransaction]) -> Iterator[None]:
    """Take transfers through the four rounds, one with every step of the iterator."""
    votes: dict[str, Refused | None] = {}
    for shard_id, some in _by_shard(items, participant_of):
        view = shards.apply(shard_id, prepare_block(some))
        assert isinstance(view, TransferVotesView), view
        votes |= {item.request_id: view.refused.get(place) for place, item in enumerate(some)}
    yield
    decided: dict[str, tuple[int, TransactionStatus, RefusalView | None]] = {}
    for shard_id, some in _by_shard(items, home_of):
        answers = [votes[item.request_id] for item in some]
        refused = {place: why for place, why in enumerate(answers) if why is not None}
        committed = shards.apply(shard_id, commit_block(some, refused))
        assert isinstance(committed, TransfersView), committed
        numbers = count(committed.first_number)
        for place, item in enumerate(some):
            first = committed.others.get(place)
            if first is None:
                status = TransactionStatus(committed.statuses[place])
                why = committed.refusals.get(place)
                decided[item.request_id] = next(numbers), status, why
            elif isinstance(first, TransactionView) and first.status is not _UNDECIDED:
                decided[item.request_id] = first.number, first.status, first.refusal
    yield
    known = [item for item in items if item.request_id in decided]
    for shard_id, some in _by_shard(known, participant_of):
        ends = [decided[item.request_id] for item in some]
        reasons = {place: _refused(end[2]) for place, end in enumerate(ends) if end[2] is not None}
        block = apply_block(some, [end[0] for end in ends], [end[1] for end in ends], reasons)
        assert shards.apply(shard_id, block) == Done()
    yield
    settled = [i for i in known if decided[i.request_id][1] is TransactionStatus.SETTLED]
    for shard_id, some in _by_shard(settled, home_of):
        block_of = delivered_block(some, [decided[item.request_id][0] for item in some])
        assert shards.apply(shard_id, block_of) == Done()
    yield


def _by_shard(
    items: Sequence[CreateTransaction], shard_of: Callable[[CreateTransaction], int]
) -> list[tuple[int, list[CreateTransaction]]]:
    found: dict[int, list[CreateTransaction]] = {}
    for item in items:
        found.setdefault(shard_of(item), []).append(item)
    return sorted(found.items())


def _refused(view: RefusalView) -> Refused:
    return Refused(
        view.entry_index,
        view.required_amount,
        view.available_amount,
        view.reserved_amount,
        RefusalReason(view.reason),
    )

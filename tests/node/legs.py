"""Transfers between two shards as blocks, for tests: what a gateway makes of them, step by step."""

import uuid
from dataclasses import dataclass

from ledger_core.commands import (
    ApplyTransfers,
    CommitTransfers,
    DeliveredTransfers,
    PrepareTransfers,
    Refused,
    TransferPart,
    TransferText,
)
from ledger_core.ids import system_account_id
from ledger_core.ledgers import USD
from ledger_core.results import Done, TransfersView, TransferVotesView
from ledger_core.transfers import TransferForm
from tests.node.several_shards import World

Place = tuple[int, int]
"""A shard, and which of its accounts."""


@dataclass(frozen=True)
class Leg:
    """A transfer: so much out of the account at home, or into it where that is below 0."""

    home: Place
    other: Place
    amount: int
    request_id: str
    text: TransferText | None = None

    @property
    def form(self) -> TransferForm:
        return TransferForm.DEBIT if self.amount > 0 else TransferForm.CREDIT


def uuid_of(number: int) -> str:
    return str(uuid.UUID(int=number))


def account_of(world: World, place: Place) -> int:
    return world.accounts[place[0]][place[1]]


def routing_id(world: World, shard_id: int) -> int:
    return system_account_id(world.shards[shard_id].shard.lower_bound, 0)


def _columns(world: World, legs: list[Leg]) -> dict[str, bytes]:
    return {
        "forms": bytes(leg.form for leg in legs),
        "first_accounts": b"".join(
            account_of(world, leg.home).to_bytes(8, "little") for leg in legs
        ),
        "second_accounts": b"".join(
            account_of(world, leg.other).to_bytes(8, "little") for leg in legs
        ),
        "amounts": b"".join(abs(leg.amount).to_bytes(8, "little") for leg in legs),
        "request_ids": b"".join(uuid.UUID(leg.request_id).bytes for leg in legs),
    }


def _texts(legs: list[Leg]) -> dict[int, TransferText]:
    return {index: leg.text for index, leg in enumerate(legs) if leg.text is not None}


def prepare_block(
    world: World, shard_id: int, legs: list[Leg], parts: list[TransferPart] | None = None
) -> PrepareTransfers:
    return PrepareTransfers(
        routing_id(world, shard_id),
        "main",
        USD,
        **_columns(world, legs),
        home_shards=b"".join(leg.home[0].to_bytes(2, "little") for leg in legs),
        texts=_texts(legs),
        parts=parts or [],
    )


def commit_block(
    world: World,
    shard_id: int,
    legs: list[Leg],
    refused: dict[int, Refused] | None = None,
    parts: list[TransferPart] | None = None,
) -> CommitTransfers:
    return CommitTransfers(
        routing_id(world, shard_id),
        "main",
        USD,
        **_columns(world, legs),
        participant_shards=b"".join(leg.other[0].to_bytes(2, "little") for leg in legs),
        refused=refused or {},
        texts=_texts(legs),
        parts=parts or [],
    )


def apply_block(
    world: World, shard_id: int, legs: list[Leg], view: TransfersView
) -> ApplyTransfers:
    """Tell a participant what became of transfers that were committed together, and new then."""
    columns = _columns(world, legs)
    taken = [place for place, status in enumerate(view.statuses) if status]
    assert len(taken) == len(legs)
    refused = {
        index: Refused(
            why.entry_index,
            why.required_amount,
            why.available_amount,
            why.reserved_amount,
            why.reason,  # type: ignore[arg-type]
        )
        for index, why in view.refusals.items()
    }
    numbers = range(view.first_number, view.first_number + len(legs))
    return ApplyTransfers(
        routing_id(world, shard_id),
        "main",
        columns["first_accounts"],
        columns["request_ids"],
        b"".join(number.to_bytes(8, "little") for number in numbers),
        view.statuses,
        refused,
    )


def delivered_block(world: World, shard_id: int, numbers: list[int]) -> DeliveredTransfers:
    column = b"".join(number.to_bytes(8, "little") for number in numbers)
    return DeliveredTransfers(routing_id(world, shard_id), "main", column)


def prepare(world: World, shard_id: int, legs: list[Leg]) -> dict[int, Refused]:
    votes = world.apply(shard_id, prepare_block(world, shard_id, legs))
    assert isinstance(votes, TransferVotesView)
    return votes.refused


def commit(
    world: World, shard_id: int, legs: list[Leg], refused: dict[int, Refused] | None = None
) -> TransfersView:
    view = world.apply(shard_id, commit_block(world, shard_id, legs, refused))
    assert isinstance(view, TransfersView)
    return view


def apply_and_deliver(world: World, legs: list[Leg], view: TransfersView) -> None:
    """The last two steps, of transfers with one home and one participant."""
    home, participant = legs[0].home[0], legs[0].other[0]
    assert world.apply(participant, apply_block(world, participant, legs, view)) == Done()
    numbers = [*range(view.first_number, view.first_number + len(legs))]
    assert world.apply(home, delivered_block(world, home, numbers)) == Done()

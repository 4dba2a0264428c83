"""One transfer through a block and through a single call at once: every order of steps, one end."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from pathlib import Path

import pytest

from ledger_core.accounts import TransactionStatus
from ledger_core.commands import (
    CreateTransaction,
    Decide,
    FreezeAccount,
    Prepare,
    Refused,
    Resolve,
    Vote,
)
from ledger_core.errors import RefusalReason
from ledger_core.results import TransactionView, TransfersView, TransferVotesView, VoteView
from tests.node.leg_blocks import (
    apply_block,
    commit_block,
    delivered_block,
    prepare_block,
    transfer_id,
)
from tests.node.several_shards import World

S = TransactionStatus
HOME, PARTICIPANT = 0, 1
Step = Callable[[], None]


class Transfer:
    """A transfer from shard 0 to shard 1, and what three parties know of it.

    A leader that was called for it alone, a gateway that has it in a block, and a participant that
    asks the home. Each does its steps in order, as far as there is something to do.
    """

    def __init__(self, world: World, command: CreateTransaction) -> None:
        self.world = world
        self.command = command
        self.prepare = world.prepare_of(command)
        self.begun: TransactionView | None = None
        self.vote: Vote | None = None
        self.refused: dict[int, Refused] = {}
        self.told: TransactionView | TransfersView | None = None

    # A leader

    def begin(self) -> None:
        view = self.world.begin(self.command)
        assert isinstance(view, TransactionView)
        self.begun = view

    def ask(self) -> None:
        vote = self.world.apply(PARTICIPANT, self.prepare)
        assert isinstance(vote, VoteView)
        self.vote = Vote(PARTICIPANT, vote.refused)

    def decide(self) -> None:
        assert self.begun is not None
        assert self.vote is not None
        if self.begun.status is S.UNDECIDED:
            decide = Decide(self.command.account_id, self.begun.number, [self.vote])
            self.world.apply(HOME, decide)

    def tell(self) -> None:
        self.world.drive_home(HOME)

    # A gateway

    def prepare_together(self) -> None:
        votes = self.world.apply(PARTICIPANT, prepare_block([self.command]))
        assert isinstance(votes, TransferVotesView)
        self.refused = votes.refused

    def commit_together(self) -> None:
        view = self.world.apply(HOME, commit_block([self.command], self.refused))
        assert isinstance(view, TransfersView)
        first = view.others.get(0)
        assert first is None or isinstance(first, TransactionView)
        self.told = view if first is None else first

    def apply_together(self) -> None:
        view = self.told
        if isinstance(view, TransfersView):
            refusal, number, status = view.refusals.get(0), view.first_number, view.statuses[0]
        else:
            assert view is not None
            refusal, number, status = view.refusal, view.number, view.status
        if status == S.UNDECIDED:
            return  # its leader carries it on
        refused = {}
        if refusal is not None:
            reason = RefusalReason(refusal.reason)
            refused[0] = Refused(
                refusal.entry_index,
                refusal.required_amount,
                refusal.available_amount,
                refusal.reserved_amount,
                reason,
            )
        block = apply_block([self.command], [number], [S(status)], refused)
        self.world.apply(PARTICIPANT, block)
        if status == S.SETTLED:
            self.world.apply(HOME, delivered_block([self.command], [number]))

    # A participant

    def resolve(self) -> None:
        waiting = [p for p in self.world.undecided(PARTICIPANT).values() if self.is_of(p)]
        for prepare in waiting:
            self.world.apply(HOME, Resolve(prepare))
        self.world.drive_participant(PARTICIPANT)

    def is_of(self, prepare: Prepare) -> bool:
        return prepare.origin == self.prepare.origin


def orders(transfer: Transfer) -> Iterator[list[Step]]:
    """Yield the steps of all three in every order."""
    alone = [transfer.begin, transfer.ask, transfer.decide, transfer.tell]
    together = [transfer.prepare_together, transfer.commit_together, transfer.apply_together]
    count = len(alone) + len(together) + 1
    for asks in range(count):
        others = [place for place in range(count) if place != asks]
        for chosen in combinations(others, len(together)):
            left, right = iter(alone), iter(together)
            yield [
                transfer.resolve if place == asks else next(right if place in chosen else left)
                for place in range(count)
            ]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, funds=1_000_000)
    yield world
    world.check_every_shard_balances()
    world.close()


@pytest.mark.parametrize("case", ["settled", "refused at home", "refused by the participant"])
def test_every_order_of_steps_comes_to_one_end(world: World, case: str) -> None:
    amount = 2_000_000 if case == "refused at home" else 7
    if case == "refused by the participant":
        world.shards[PARTICIPANT].one(FreezeAccount(world.accounts[PARTICIPANT][0], "freeze"))
    entries = [world.entry(HOME, 0, -amount), world.entry(PARTICIPANT, 0, amount)]
    count = len(list(orders(Transfer(world, world.create(entries, transfer_id(0))))))
    ends = set()
    moved = 0
    for number in range(0, count, 1 if case == "settled" else 3):
        transfer = Transfer(world, world.create(entries, transfer_id(number + 1)))
        steps = list(orders(transfer))[number]
        for step in steps:
            step()
        world.drive()
        names = [step.__name__ for step in steps]
        end = world.begin(transfer.command)
        assert isinstance(end, TransactionView)
        assert end.in_flight is None, names
        ends.add(end.status)
        moved += amount * (end.status is S.SETTLED)
        paid, received = world.balances()[0], world.balances()[2]
        assert paid == (1_000_000 - moved, 1_000_000 - moved), names
        assert received == (1_000_000 + moved, 1_000_000 + moved), names
    world.check_nothing_is_in_flight()
    # Where the participant asked before the home began, that was the end of it.
    assert (
        ends
        >= {
            "settled": {S.SETTLED, S.REJECTED},
            "refused at home": {S.INSUFFICIENT_FUNDS},
            "refused by the participant": {S.REJECTED},
        }[case]
    )


@pytest.mark.parametrize("settled_first", [False, True])
def test_decisions_that_come_twice_or_too_early_change_nothing(
    world: World, settled_first: bool
) -> None:
    """ApplyTransfers again, and with a refusal before PrepareTransfers has arrived."""
    entries = [world.entry(HOME, 0, -7), world.entry(PARTICIPANT, 0, 7)]
    command = world.create(entries, transfer_id(1))
    transfer = Transfer(world, command)
    if settled_first:
        transfer.prepare_together()
        transfer.commit_together()
        for _ in range(3):
            transfer.apply_together()
        transfer.prepare_together()
        assert transfer.refused == {}
        transfer.commit_together()
        transfer.apply_together()
        assert world.balances()[2] == (1_000_007, 1_000_007)
    else:
        no = Refused(1, reason=RefusalReason.SHARD_UNREACHABLE)
        for _ in range(2):
            world.apply(PARTICIPANT, apply_block([command], [9], [S.REJECTED], {0: no}))
        transfer.prepare_together()
        assert transfer.refused[0].reason is RefusalReason.ABANDONED
        transfer.commit_together()
        transfer.apply_together()
        assert world.balances()[2] == (1_000_000, 1_000_000)
    world.drive()
    world.check_nothing_is_in_flight()


def test_several_homes_and_participants_share_blocks(world: World) -> None:
    """Items of a block go to different shards, each with its own clearing account."""
    pairs = [(0, 1), (0, 2), (1, 2), (2, 1), (1, 0), (2, 0)]
    commands = [
        world.create([world.entry(a, 0, -(7 + n)), world.entry(b, 1, 7 + n)], transfer_id(n))
        for n, (a, b) in enumerate(pairs)
    ]
    steps: list[Step] = []
    for shard_id in range(3):
        into = [command for command in commands if command.entries[1].shard_id == shard_id]
        steps.append(partial(world.apply, shard_id, prepare_block(into)))  # type: ignore[arg-type]
    for shard_id in range(3):
        out = [command for command in commands if command.entries[0].shard_id == shard_id]
        steps.append(partial(world.apply, shard_id, commit_block(out)))  # type: ignore[arg-type]
    for step in steps:
        step()
        world.check_every_shard_balances()
    world.drive()
    world.check_nothing_is_in_flight()
    world.check_histories()
    assert [settled - 1_000_000 for settled, _ in world.balances()] == [-15, 23, -20, 17, -22, 17]

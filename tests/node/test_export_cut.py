"""A cut through the journals of all shards belongs together, whatever was going on then.

Transfers run one step at a time in a random order, and in between three looks at how far the shards
are, one shard at a time. What the cut leaves is imported into empty shards, and carried on there.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from ledger.v1 import journal_pb2
from ledger_cli import export_cut
from ledger_core.accounts import TransactionStatus
from ledger_core.commands import (
    ApplyDecision,
    CancelTransaction,
    ClaimName,
    CreateAccount,
    CreateLedger,
    CreateTransaction,
    Decide,
    Delivered,
    EndReplay,
    Prepare,
    Replay,
    ReplayedItem,
    Resolve,
    SettleTransaction,
    Vote,
    body_hash,
    encode_command,
)
from ledger_core.ids import system_account_id
from ledger_core.ledgers import USD
from ledger_core.queries import ListJournal
from ledger_core.results import JournalPage, Replayed, TransactionView, VoteView
from ledger_gateway.journal import _entry as entry_message
from ledger_node.records import TransactionRecord
from tests.node.leg_blocks import send_rounds, transfer_id
from tests.node.several_shards import SHARDS, World
from tests.node.shard import Shard

S = TransactionStatus
Task = Callable[[], None]


@dataclass
class Traffic:
    """Transfers as tasks that each do one step on one shard, run in any order."""

    world: World
    rng: random.Random
    tasks: list[Task] = field(default_factory=list)

    def start(self, count: int) -> None:
        for number in range(count):
            shards = self.rng.sample(range(SHARDS), self.rng.choice([2, 2, 3]))
            amounts = [-20, 20] if len(shards) == 2 else [-20, 15, 5]
            entries = [
                self.world.entry(shard, self.rng.randrange(2), amount)
                for shard, amount in zip(shards, amounts, strict=True)
            ]
            command = self.world.create(
                entries, f"transfer {number}", settled=self.rng.random() < 0.5
            )
            self.tasks.append(lambda command=command: self._begin(command))

    def start_blocks(self, count: int) -> None:
        """Transfers of shard 0 to shard 1, and of others, a few at a time."""
        for number in range(count):
            home, other = self.rng.sample(range(SHARDS), 2)
            items = [
                self.world.create(
                    [
                        self.world.entry(home, n % 2, -amount),
                        self.world.entry(other, n % 2, amount),
                    ],
                    transfer_id(10 * number + n),
                )
                for n, amount in enumerate(self.rng.choices([1, 5, 60], k=self.rng.randint(1, 4)))
            ]
            # Their gateway may be gone after any round; then leaders go on.
            rounds = send_rounds(self.world, items)
            self._next_round(rounds, self.rng.choice([1, 2, 3, 4, 4, 4]))

    def _next_round(self, rounds: Iterator[None], left: int) -> None:
        def one() -> None:
            next(rounds, None)
            self._next_round(rounds, left - 1)

        if left:
            self.tasks.append(one)

    def step(self) -> bool:
        if not self.tasks:
            return False
        self.tasks.pop(self.rng.randrange(len(self.tasks)))()
        return True

    def _begin(self, command: CreateTransaction) -> None:
        home = command.entries[0].shard_id
        others = sorted({entry.shard_id for entry in command.entries} - {home})
        prepare = msgspec.structs.replace(
            self.world.prepare_of(command), body_hash=body_hash(command)
        )
        votes: dict[int, Vote] = {}
        numbers: list[int] = []

        def begin() -> None:
            view = self.world.begin(command)
            assert isinstance(view, TransactionView)
            numbers.append(view.number)
            decide_if_ready()

        def ask(shard_id: int) -> None:
            vote = self.world.apply(shard_id, prepare)
            assert isinstance(vote, VoteView)
            votes[shard_id] = Vote(shard_id, vote.refused)
            decide_if_ready()

        def decide_if_ready() -> None:
            if numbers and len(votes) == len(others):
                self.tasks.append(lambda: self._decide(home, numbers[0], others, votes))

        self.tasks.append(begin)
        self.tasks += [lambda shard_id=shard_id: ask(shard_id) for shard_id in others]
        if self.rng.random() < 0.2:
            self.tasks.append(lambda: self._ask_home(others[0], prepare))

    def _ask_home(self, shard_id: int, prepare: Prepare) -> None:
        if any(p.origin == prepare.origin for p in self.world.undecided(shard_id).values()):
            view = self.world.apply(prepare.home_shard_id, Resolve(prepare))
            assert isinstance(view, TransactionView)
            if view.status is not S.UNDECIDED:
                decision = self.world.decision(prepare.home_shard_id, view.number)
                self.tasks.append(lambda: self.world.apply(shard_id, decision))  # type: ignore[arg-type, return-value]

    def _decide(self, home: int, number: int, others: list[int], votes: dict[int, Vote]) -> None:
        record = self.world.record(home, number)
        self.world.apply(home, Decide(record.account_id, number, list(votes.values())))
        self._tell(home, number, others)
        if self.world.record(home, number).status is S.PENDING:
            self.tasks.append(lambda: self._end(home, number, others))

    def _end(self, home: int, number: int, others: list[int]) -> None:
        account_id = self.world.record(home, number).account_id
        if self.rng.random() < 0.5:
            self.world.apply(home, SettleTransaction(account_id, number, "end"))
        else:
            self.world.apply(home, CancelTransaction(account_id, number, "end"))
        self._tell(home, number, others)

    def _tell(self, home: int, number: int, others: list[int]) -> None:
        decision = self.world.decision(home, number)
        state = len(self.world.record(home, number).states) - 1
        told: set[int] = set()

        def tell(shard_id: int) -> None:
            self.world.apply(shard_id, decision)
            told.add(shard_id)
            if len(told) == len(others):
                account_id = self.world.record(home, number).account_id
                self.tasks.append(
                    lambda: self.world.apply(home, Delivered(account_id, number, state))  # type: ignore[arg-type, return-value]
                )

        self.tasks += [lambda shard_id=shard_id: tell(shard_id) for shard_id in others]


def journal(shard: Shard) -> list[journal_pb2.JournalEntry]:
    entries: list[journal_pb2.JournalEntry] = []
    while True:
        page = shard.ask(ListJournal(len(entries), 500))
        assert isinstance(page, JournalPage)
        entries += [entry_message(view) for view in page.entries]
        if len(entries) == page.last_number:
            return entries


def shards_of(world: World, numbers: dict[int, int]) -> list[journal_pb2.JournalShard]:
    return [
        journal_pb2.JournalShard(
            shard_id=shard.shard.id,
            lower_bound=shard.shard.lower_bound,
            upper_bound=shard.shard.upper_bound,
            last_number=numbers[shard.shard.id],
        )
        for shard in world.shards
    ]


class Looks:
    """A client whose looks at the shards were taken before; journals are as they are now."""

    def __init__(self, world: World, looks: list[dict[int, int]]) -> None:
        self._world = world
        self._looks = iter(looks)

    def list_shards(self) -> list[journal_pb2.JournalShard]:
        return shards_of(self._world, next(self._looks))

    def list_journal(
        self, shard_id: int, after_number: int, last_number: int, _ledger: str = ""
    ) -> Iterator[journal_pb2.JournalEntry]:
        yield from journal(self._world.shards[shard_id])[after_number:last_number]


def imported(world: World, cut: dict[int, int], folder: Path) -> World:
    """Return empty shards into which the journals of others were imported up to the cut."""
    copy = World.__new__(World)
    copy.accounts = world.accounts
    copy.shards = []
    for shard in world.shards:
        made = Shard(folder / f"copy-{shard.shard.id}", shard.shard)
        made.time_us = shard.time_us
        copy.shards.append(made)
        route = system_account_id(shard.shard.lower_bound, 0)
        for entry in journal(shard)[: cut[shard.shard.id]]:
            items = [ReplayedItem(item.command, item.outcome, item.number) for item in entry.items]
            replay = Replay(route, entry.number, entry.time_us, items, entry.number - 1)
            assert made.one(replay) == Replayed(entry.number, entry.link)
    for shard in copy.shards:
        shard.one(EndReplay(system_account_id(shard.shard.lower_bound, 0)))
    return copy


def run(seed: int, folder: Path) -> tuple[World, list[dict[int, int]]]:
    """Let transfers run, and take three looks at the shards while they do."""
    rng = random.Random(seed)
    world = World(folder, funds=100)
    traffic = Traffic(world, rng)
    traffic.start(8)
    traffic.start_blocks(8)
    for _ in range(rng.randrange(80)):
        traffic.step()
    looks: list[dict[int, int]] = []
    for _ in range(3):
        look: dict[int, int] = {}
        for shard_id in rng.sample(range(SHARDS), SHARDS):
            for _ in range(rng.randrange(8)):
                traffic.step()
            look[shard_id] = len(journal(world.shards[shard_id]))
        looks.append(look)
    return world, looks


@pytest.mark.parametrize("seed", range(40))
def test_what_is_cut_off_is_missed_by_nothing_that_is_left(seed: int, tmp_path: Path) -> None:
    world, looks = run(seed, tmp_path)
    shards = export_cut.consistent_cut(Looks(world, looks))  # type: ignore[arg-type]
    cut = {shard.shard_id: shard.last_number for shard in shards}
    assert all(cut[shard_id] <= looks[1][shard_id] for shard_id in cut)
    copy = imported(world, cut, tmp_path)
    copy.check_every_shard_balances()
    for _ in range(4):
        copy.drive()
    copy.check_nothing_is_in_flight()
    copy.check_every_shard_balances()
    homes = {}
    for shard in copy.shards:
        for record in records(shard):
            if record.origin and record.home_shard_id is None:
                homes[record.origin] = record
    for shard in copy.shards:
        for record in records(shard):
            if record.home_shard_id is not None:
                home = homes[record.origin]
                assert (record.status, record.settled_amount) == (home.status, home.settled_amount)
    world.close()
    copy.close()


def records(shard: Shard) -> list[TransactionRecord]:
    with shard.store.read() as view:
        tables = view.shard(shard.shard.id)
        numbers = range(1, tables.meta().next_transaction)
        found = [tables.find_transaction(number) for number in numbers]
    return [record for record in found if record is not None]


def test_looks_that_are_taken_as_they_are_would_not_belong_together(tmp_path: Path) -> None:
    """The test above would fail without the cut: in some histories something has to go."""
    shorter = 0
    for seed in range(40):
        world, looks = run(seed, tmp_path / str(seed))
        shards = export_cut.consistent_cut(Looks(world, looks))  # type: ignore[arg-type]
        shorter += any(shard.last_number < looks[1][shard.shard_id] for shard in shards)
        world.close()
    assert shorter >= 5


def test_where_nothing_happens_nothing_is_cut_off(tmp_path: Path) -> None:
    world, looks = run(1, tmp_path)
    still = looks[2]
    shards = export_cut.consistent_cut(Looks(world, [still, still, still]))  # type: ignore[arg-type]
    assert {shard.shard_id: shard.last_number for shard in shards} == still
    world.close()


# What accounts and names rest on


def events(*journals: list[tuple[object, object]]) -> dict[int, list[export_cut.Event]]:
    """Return the events of shards whose journal entries have one command each."""
    messages = {
        shard_id: [
            journal_pb2.JournalEntry(
                number=number,
                items=[
                    journal_pb2.JournalItem(
                        command=encode_command(command),  # type: ignore[arg-type]
                        outcome=msgspec.msgpack.encode(outcome),
                    )
                ],
            )
            for number, (command, outcome) in enumerate(entries, 1)
        ]
        for shard_id, entries in enumerate(journals)
    }
    return export_cut.events(messages, export_cut.Ranges([]))


ACCOUNT = CreateAccount(5, "shop", "r", code="12", name="till")
LEDGER = CreateLedger("shop", "r", "", [USD])
CLAIM = ClaimName("shop", "till", 5, "r")
PAY = CreateTransaction(5, 9, "", True, "r")


@pytest.mark.parametrize(
    ("cause", "outcome", "effect", "kept"),
    [
        (LEDGER, [0, 0], ACCOUNT, 0),
        (LEDGER, "LEDGER_EXISTS", ACCOUNT, 1),
        (CreateLedger("other", "r", "", [USD]), [0, 0], ACCOUNT, 1),
        (CLAIM, "done", ACCOUNT, 0),
        (CLAIM, "NAME_TAKEN", ACCOUNT, 1),
        (ClaimName("shop", "till", 6, "r"), "done", ACCOUNT, 1),
        (ApplyDecision(5, bytes(25), 1, S.SETTLED, "r"), "done", PAY, 1),
    ],
)
def test_accounts_rest_on_their_ledger_and_their_name(
    cause: object, outcome: object, effect: object, kept: int
) -> None:
    found = events([(cause, outcome)], [(effect, "done")])
    assert export_cut.close(found, {0: 0, 1: 1}) == {0: 0, 1: kept}
    assert export_cut.close(found, {0: 1, 1: 1}) == {0: 1, 1: 1}

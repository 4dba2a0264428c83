"""Transfers between two shards in bulk: the steps, what fails at each, and who waits for what."""

import asyncio
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bulk_shards import ACCOUNTS, CREDIT, DEBIT, BulkShards, Item, request_ids, transfers
from fake_shards import TRANSACTION_VIEW, Call, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from world_shards import WorldShards

from ledger_core.accounts import TransactionStatus
from ledger_core.commands import (
    NO_SOURCE,
    ApplyTransfers,
    Command,
    CommitTransfers,
    CreateTransaction,
    DeliveredTransfers,
    PrepareTransfers,
    Refused,
    TransferPart,
)
from ledger_core.errors import (
    LedgerError,
    OutcomeUnknownError,
    OverloadedError,
    Reason,
    RefusalReason,
    RefusedError,
    ShardUnavailableError,
)
from ledger_core.ledgers import USD
from ledger_core.queries import GetTransaction
from ledger_core.results import (
    Failure,
    RefusalView,
    Result,
    TransactionView,
    TransfersView,
    TransferVotesView,
)
from ledger_gateway import transfer_columns, transfers_across
from ledger_gateway.bulk_results import Result as ItemResult
from ledger_gateway.bulk_work import BulkWork
from ledger_gateway.shard_calls import Deadline, ShardCalls
from ledger_gateway.transfer_columns import Terms
from ledger_gateway.transfer_pieces import Transfers
from tests.node.several_shards import World

SETTLED, REJECTED = TransactionStatus.SETTLED, TransactionStatus.REJECTED
POOR = TransactionStatus.INSUFFICIENT_FUNDS
A, B = ACCOUNTS[0][:2]
"""On shard 0."""
C, D, E = ACCOUNTS[1][0], ACCOUNTS[2][0], ACCOUNTS[3][0]
"""On shards 1, 2 and 3."""
CLOSED = Refused(1, reason=RefusalReason.ACCOUNT_CLOSED)
CLOSED_VIEW = RefusalView("ACCOUNT_CLOSED", 1, C, 0, 0, "closed")
NO_FUNDS_VIEW = RefusalView("INSUFFICIENT_FUNDS", 0, A, 5, 3, "too little", 1)


@dataclass
class Work:
    """A gateway's work; its calls are made here without the gateway's door."""

    shards: BulkShards
    work: BulkWork = field(init=False)

    def __post_init__(self) -> None:
        self.work = BulkWork(ShardCalls(self.shards))

    async def do(
        self, items: list[Item], seconds: float = 10.0, seed: int = 0, actor: str = ""
    ) -> dict[int, ItemResult | tuple[int, TransactionStatus]]:
        """Return what became of each item: number and status, or what else there is to say."""

        class Timed:
            def time_remaining(self) -> float:
                return seconds

        ids = b"".join(item.bytes for item in request_ids(len(items), seed))
        asked = transfers(items, request_ids=ids)
        found = Transfers(transfer_columns.columns(asked), Terms("main", USD, actor))
        await self.work.carry_out(found, NO_SOURCE, Deadline(Timed()))
        results: dict[int, ItemResult | tuple[int, TransactionStatus]] = {}
        for places, outcome in found.outcomes.blocks:
            if isinstance(outcome, LedgerError):
                results |= dict.fromkeys(places.tolist(), outcome)
                continue
            number = outcome.first_number
            for place, item in enumerate(places.tolist()):
                assert item not in results
                if status := outcome.statuses[place]:
                    results[item] = number, TransactionStatus(status)
                    number += 1
                else:
                    results[item] = outcome.others[place]
        assert results.keys().isdisjoint(found.outcomes.singles)
        results |= found.outcomes.singles
        assert sorted(results) == list(range(len(items)))
        return results

    def sent(self, kind: type[Command]) -> list[tuple[int, Command]]:
        """The commands of a kind that were sent, and to which shards."""
        return [(c.shard_id, c.message) for c in self.shards.calls if isinstance(c.message, kind)]

    async def delivered(self) -> dict[int, list[int]]:
        """Which transactions the homes were told of in the end, by their shards."""
        await self.work.end()
        found: dict[int, list[int]] = {}
        for shard_id, command in self.sent(DeliveredTransfers):
            assert isinstance(command, DeliveredTransfers)
            found.setdefault(shard_id, []).extend(np.frombuffer(command.numbers, "<u8").tolist())
        return found


@pytest.fixture
def shards() -> BulkShards:
    return BulkShards()


@pytest.fixture
def work(shards: BulkShards) -> Work:
    return Work(shards)


def answers(
    kind: type[Command], answer: Result | Exception, *shard_ids: int
) -> Callable[[Call], Result | Exception | None]:
    """Commands of a kind get this answer, from these shards or all."""

    def found(call: Call) -> Result | Exception | None:
        mine = isinstance(call.message, kind) and call.shard_id in (shard_ids or range(4))
        return answer if mine else None

    return found


def number_column(column: bytes) -> list[int]:
    return np.frombuffer(column, "<u8").tolist()  # type: ignore[no-any-return]


# The steps


async def test_every_step_is_one_command_for_each_shard(work: Work, shards: BulkShards) -> None:
    results = await work.do([(DEBIT, A, C, 5), (CREDIT, D, B, 6), (DEBIT, B, D, 7)])
    assert results == {0: (1, SETTLED), 1: (1, SETTLED), 2: (2, SETTLED)}
    assert await work.delivered() == {0: [1, 2], 2: [1]}
    names = [name.removesuffix("Transfers") for name, _ in shards.steps()]
    assert names == ["Prepare"] * 3 + ["Commit"] * 2 + ["Apply"] * 3 + ["Delivered"] * 2
    assert {shard_id for _, shard_id in shards.steps()[:3]} == {0, 1, 2}
    ids = [item.bytes for item in request_ids(3)]

    of_0, of_1, of_2 = (found for _, found in sorted(work.sent(PrepareTransfers), key=_shard))
    assert isinstance(of_0, PrepareTransfers)
    assert (of_0.forms, of_0.home_shards) == (bytes([CREDIT]), b"\2\0")
    assert (number_column(of_0.first_accounts), number_column(of_0.second_accounts)) == ([D], [B])
    assert (of_0.routing_id, of_0.request_ids, number_column(of_0.amounts)) == (B, ids[1], [6])
    assert of_0.parts == [TransferPart(1)]
    assert isinstance(of_1, PrepareTransfers)
    assert isinstance(of_2, PrepareTransfers)
    assert (of_1.request_ids, of_2.request_ids) == (ids[0], ids[2])

    at_0, _ = (found for _, found in sorted(work.sent(CommitTransfers), key=_shard))
    assert isinstance(at_0, CommitTransfers)
    assert (at_0.routing_id, at_0.participant_shards) == (A, b"\1\0\2\0")
    assert (at_0.request_ids, at_0.refused) == (ids[0] + ids[2], {})

    to_0, _, to_2 = (found for _, found in sorted(work.sent(ApplyTransfers), key=_shard))
    assert isinstance(to_0, ApplyTransfers)
    assert isinstance(to_2, ApplyTransfers)
    assert (to_0.routing_id, number_column(to_0.first_accounts)) == (B, [D])
    assert (to_2.request_ids, number_column(to_2.numbers)) == (ids[2], [2])
    assert (to_2.statuses, to_2.refused) == (bytes([SETTLED]), {})


def _shard(sent: tuple[int, Command]) -> int:
    return sent[0]


async def test_calls_share_the_commands_of_every_step(work: Work, shards: BulkShards) -> None:
    calls = [
        work.do([(DEBIT, A, C, 5), (DEBIT, B, D, 6)], seed=1, actor="x"),
        work.do([(DEBIT, B, C, 7)], seed=2, actor="y"),
    ]
    first, second = await asyncio.gather(*calls)
    made = sorted(found for results in (first, second) for found in results.values())  # type: ignore[type-var]
    assert made == [(1, SETTLED), (2, SETTLED), (3, SETTLED)]
    assert await work.delivered() == {0: [1, 2, 3]}
    assert len(shards.steps()) == 2 + 1 + 2 + 1
    ((_, commit),) = work.sent(CommitTransfers)
    assert isinstance(commit, CommitTransfers)
    assert {part.actor: part.count for part in commit.parts} == {"x": 2, "y": 1}


async def test_homes_get_items_in_the_order_of_the_request(work: Work) -> None:
    rng = random.Random(2)
    items: list[Item] = [
        (DEBIT, rng.choice((A, B)), rng.choice((C, D, E)), number + 1) for number in range(3_000)
    ]
    results = await work.do(items)
    assert all(outcome == (place + 1, SETTLED) for place, outcome in results.items())
    sizes = [len(found.forms) for _, found in work.sent(CommitTransfers)]  # type: ignore[union-attr]
    assert sizes == [1_024, 1_024, 952]
    assert {shard_id: len(found) for shard_id, found in (await work.delivered()).items()} == {
        0: 3_000
    }


# Refusals


async def test_a_vote_against_is_carried_to_the_home_and_back(
    work: Work, shards: BulkShards
) -> None:
    known = np.array([11, 12], "<u8").tobytes()
    votes = answers(PrepareTransfers, TransferVotesView({1: CLOSED}, known), 1)
    view = TransfersView(
        1, 8, bytes([SETTLED, REJECTED, POOR]), {1: CLOSED_VIEW, 2: NO_FUNDS_VIEW}, {}
    )
    decided = answers(CommitTransfers, view)
    shards.answer = lambda call: votes(call) or decided(call)
    results = await work.do([(DEBIT, A, C, 5), (DEBIT, B, C, 6), (DEBIT, A, D, 7)])
    assert results == {0: (8, SETTLED), 1: (9, REJECTED), 2: (10, POOR)}
    ((_, commit),) = work.sent(CommitTransfers)
    assert isinstance(commit, CommitTransfers)
    assert commit.refused == {1: CLOSED}
    # Participants are told of refusals too, whoever refused.
    (_, to_1), (_, to_2) = sorted(work.sent(ApplyTransfers), key=_shard)
    assert isinstance(to_1, ApplyTransfers)
    assert isinstance(to_2, ApplyTransfers)
    assert (to_1.statuses, to_1.refused) == (bytes([SETTLED, REJECTED]), {1: CLOSED})
    no_funds = Refused(0, 5, 3, 1, RefusalReason.INSUFFICIENT_FUNDS)
    assert (to_2.statuses, to_2.refused) == (bytes([POOR]), {0: no_funds})
    # Where the votes told it, the participant need not search.
    assert (number_column(to_1.prepared), number_column(to_2.prepared)) == ([11, 12], [0])
    # A refusal is final: nobody waits for its delivery.
    assert await work.delivered() == {0: [8]}


async def test_repeats_are_applied_again_and_what_led_to_nothing_is_not(
    work: Work, shards: BulkShards
) -> None:
    repeat = msgspec.structs.replace(TRANSACTION_VIEW, number=3, status=SETTLED)
    refused = msgspec.structs.replace(
        TRANSACTION_VIEW, number=4, status=REJECTED, refusal=CLOSED_VIEW
    )
    failure = Failure(Reason.REQUEST_ID_REUSED, "used before")
    view = TransfersView(1, 8, bytes([0, 0, 0, SETTLED]), {}, {0: repeat, 1: refused, 2: failure})
    shards.answer = answers(CommitTransfers, view)
    results = await work.do([(DEBIT, A, C, amount) for amount in range(1, 5)])
    assert results == {0: repeat, 1: refused, 2: failure, 3: (8, SETTLED)}
    ((_, told),) = work.sent(ApplyTransfers)
    assert isinstance(told, ApplyTransfers)
    assert (number_column(told.numbers), told.refused) == ([3, 4, 8], {1: CLOSED})
    assert told.statuses == bytes([SETTLED, REJECTED, SETTLED])
    assert await work.delivered() == {0: [3, 8]}


async def test_a_repeat_that_is_undecided_is_awaited_as_a_single_call(
    work: Work, shards: BulkShards
) -> None:
    undecided = msgspec.structs.replace(TRANSACTION_VIEW, status=TransactionStatus.UNDECIDED)
    shards.answer = answers(
        CommitTransfers, TransfersView(1, 8, bytes([SETTLED, 0]), {}, {1: undecided})
    )
    results = await work.do([(DEBIT, A, C, 5), (DEBIT, A, C, 6)])
    ((_, single),) = work.sent(CreateTransaction)
    assert isinstance(single, CreateTransaction)
    assert [entry.shard_id for entry in single.entries] == [0, 1]
    made = results[1]
    assert isinstance(made, TransactionView)
    assert (made.status, made.request_id) == (SETTLED, str(request_ids(2)[1]))
    assert results[0] == (8, SETTLED)
    assert await work.delivered() == {0: [8]}


# Failures


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OutcomeUnknownError("?"), ShardUnavailableError),
        (ShardUnavailableError("!"), ShardUnavailableError),
        (OverloadedError("!"), OverloadedError),
        (RefusedError(Reason.LEDGER_NOT_FOUND, "!"), RefusedError),
    ],
)
async def test_without_a_vote_nothing_is_committed(
    work: Work, shards: BulkShards, error: LedgerError, told: type[LedgerError]
) -> None:
    shards.answer = answers(PrepareTransfers, error, 1)
    results = await work.do([(DEBIT, A, C, 5), (DEBIT, A, D, 6), (DEBIT, D, C, 7)])
    assert results[1] == (1, SETTLED)
    for item in (0, 2):
        failed = results[item]
        assert isinstance(failed, told)
        assert "nothing was done" in failed.message or failed is error
    ((shard_id, commit),) = work.sent(CommitTransfers)
    assert isinstance(commit, CommitTransfers)
    assert (shard_id, number_column(commit.amounts)) == (0, [6])
    assert [shard_id for shard_id, _ in work.sent(ApplyTransfers)] == [2]


@pytest.mark.parametrize(
    "error", [OutcomeUnknownError("?"), ShardUnavailableError("!"), OverloadedError("!")]
)
async def test_a_commit_that_failed_is_not_spread(
    work: Work, shards: BulkShards, error: LedgerError
) -> None:
    shards.answer = answers(CommitTransfers, error, 0)
    results = await work.do([(DEBIT, A, C, 5), (DEBIT, D, C, 6)])
    assert results == {0: error, 1: (1, SETTLED)}
    ((shard_id, told),) = work.sent(ApplyTransfers)
    assert isinstance(told, ApplyTransfers)
    assert (shard_id, number_column(told.first_accounts)) == (1, [D])
    assert await work.delivered() == {2: [1]}


async def test_what_has_not_reached_its_participant_is_not_said_to_be_done(
    work: Work, shards: BulkShards
) -> None:
    shards.answer = answers(ApplyTransfers, OutcomeUnknownError("?"), 1)
    items: list[Item] = [(DEBIT, A, (C, D)[number % 3 != 1], number + 1) for number in range(9)]
    results = await work.do(items)
    for item, found in results.items():
        if items[item][2] == D:
            assert found == (item + 1, SETTLED)
        else:
            assert isinstance(found, OutcomeUnknownError)
            assert "has not reached all its shards in time" in found.message
    assert (await work.delivered())[0] == [number for number in range(1, 10) if number % 3 != 2]


async def test_an_answer_that_makes_no_sense_fails_the_call(work: Work, shards: BulkShards) -> None:
    for kind in (PrepareTransfers, CommitTransfers, ApplyTransfers):
        shards.answer = answers(kind, TRANSACTION_VIEW)
        with pytest.raises(TypeError, match="the shard answered TransactionView"):
            await work.do([(DEBIT, A, C, 5)])


# Time


async def test_items_of_quick_shards_do_not_wait_for_those_of_slow_ones(
    work: Work, shards: BulkShards
) -> None:
    shards.gates = {1: asyncio.Event()}
    items: list[Item] = [(DEBIT, A, C, 5), (DEBIT, A, D, 6), (DEBIT, A, E, 7)]
    call = asyncio.ensure_future(work.do(items))
    await until(lambda: len(work.sent(ApplyTransfers)) == 2)
    assert not call.done()
    shards.gates[1].set()
    assert await call == {0: (3, SETTLED), 1: (1, SETTLED), 2: (2, SETTLED)}
    assert await work.delivered() == {0: [1, 2, 3]}


async def test_a_slow_home_does_not_keep_others_from_being_applied(
    work: Work, shards: BulkShards
) -> None:
    shards.gates = {3: asyncio.Event()}
    call = asyncio.ensure_future(work.do([(DEBIT, A, C, 5), (DEBIT, E, C, 6)]))
    await until(lambda: bool(work.sent(ApplyTransfers)))
    shards.gates[3].set()
    assert await call == {0: (1, SETTLED), 1: (1, SETTLED)}
    assert len(work.sent(ApplyTransfers)) == 2


async def test_a_call_that_is_cancelled_before_the_commit_commits_nothing(
    work: Work, shards: BulkShards
) -> None:
    shards.gates = {1: asyncio.Event()}
    call = asyncio.ensure_future(work.do([(DEBIT, A, C, 5)]))
    await until(lambda: bool(work.sent(PrepareTransfers)))
    call.cancel()
    await asyncio.wait([call])
    shards.gates[1].set()
    assert await work.delivered() == {}
    assert work.sent(CommitTransfers) == []


@pytest.mark.parametrize("cancelled", [True, False])
async def test_what_is_being_committed_goes_on_without_its_caller(
    work: Work, shards: BulkShards, cancelled: bool
) -> None:
    shards.gates = {0: asyncio.Event()}
    call = asyncio.ensure_future(work.do([(DEBIT, A, C, 5)], seconds=0.3))
    await until(lambda: bool(work.sent(CommitTransfers)))
    if cancelled:
        call.cancel()
        await asyncio.wait([call])
    else:
        (found,) = (await call).values()
        assert isinstance(found, OutcomeUnknownError)
        assert "may have happened" in found.message
    assert work.sent(ApplyTransfers) == []
    shards.gates[0].set()
    await until(lambda: bool(work.sent(ApplyTransfers)))
    assert await work.delivered() == {0: [1]}


async def test_what_was_committed_is_applied_after_the_deadline(
    work: Work, shards: BulkShards
) -> None:
    gate = asyncio.Event()

    async def slow(call: Call) -> None:
        if isinstance(call.message, ApplyTransfers):
            await gate.wait()

    shards.before = slow
    (found,) = (await work.do([(DEBIT, A, C, 5)], seconds=0.2)).values()
    assert isinstance(found, OutcomeUnknownError)
    assert "has not reached all its shards in time" in found.message
    gate.set()
    assert await work.delivered() == {0: [1]}


async def test_without_time_left_nothing_is_committed(work: Work, shards: BulkShards) -> None:
    """Who is told that nothing was done can rely on it."""

    async def slow(call: Call) -> None:
        if isinstance(call.message, PrepareTransfers):
            await asyncio.sleep(0.06)

    shards.before = slow
    (found,) = (await work.do([(DEBIT, A, C, 5)], seconds=0.05)).values()
    assert isinstance(found, ShardUnavailableError)
    assert "nothing was done" in found.message
    await work.work.end()
    assert work.sent(CommitTransfers) == []


async def test_what_is_in_work_is_bounded_over_all_calls_and_others_wait_unprepared(
    work: Work, shards: BulkShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers_across, "IN_WORK_ITEMS_MAX", 10)
    work = Work(shards)
    shards.gates = {1: asyncio.Event()}
    many: list[Item] = [(DEBIT, A, C, 5)] * 8
    first = asyncio.ensure_future(work.do(many, seed=1))
    await until(lambda: len(shards.calls) == 1)
    waiting = [asyncio.ensure_future(work.do(many[:3], seed=seed)) for seed in (2, 3)]
    more = asyncio.ensure_future(work.do(many * 2, seed=4))  # more than there are places
    (late,) = set((await work.do(many[:3], seconds=0.05, seed=5)).values())
    assert isinstance(late, ShardUnavailableError)
    assert "time was over; nothing was done" in late.message
    assert len(shards.calls) == 1
    waiting[0].cancel()
    await asyncio.sleep(0.001)
    shards.gates[1].set()
    assert len(await first) == 8
    assert len(await waiting[1]) == 3
    assert len(await more) == 16
    sizes = [len(command.forms) for _, command in work.sent(PrepareTransfers)]  # type: ignore[union-attr]
    assert sizes == [8, 3, 16]
    assert await work.do(many[:1], seed=6) == {0: (28, SETTLED)}


# Real books


def plan(world: World, rng: random.Random, count: int) -> list[Item]:
    ids = [item for of_shard in world.accounts for item in of_shard]
    return [
        (rng.choice((DEBIT, CREDIT)), *rng.sample(ids, 2), rng.choice((1, 7, 40, 10**6)))
        for _ in range(count)
    ]


class ThreeShards(WorldShards):
    """Loses the answers to some commands: they are done, and their caller hears nothing."""

    def __init__(self, world: World, rng: random.Random, lost: float) -> None:
        super().__init__(world)
        self.rng, self.lost = rng, lost

    async def execute(
        self, account_id: int, command: Command, timeout_s: float, attempts: object = None
    ) -> Result:
        if self.rng.random() < self.lost:
            raise ShardUnavailableError("not sent")
        result = await super().execute(account_id, command, timeout_s)
        if self.rng.random() < self.lost:
            raise OutcomeUnknownError("lost")
        return result


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1), lost=st.sampled_from([0.0, 0.1, 0.4]))
def test_whatever_gets_lost_every_transfer_happens_once_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, seed: int, lost: float
) -> None:
    """And whoever repeats his call until it has a result has the one that is stored."""
    rng = random.Random(seed)
    world = World(tmp_path_factory.mktemp("world"), 100)
    three = ThreeShards(world, rng, lost)
    before = sum(settled for settled, _ in world.balances())

    async def run() -> None:
        items = plan(world, rng, 25)
        work = Work(BulkShards())
        work.work = BulkWork(ShardCalls(three))
        first = await work.do(items)
        results = first
        while any(isinstance(found, LedgerError) for found in results.values()):
            three.lost *= 0.7
            results = await work.do(items)
        await work.work.end()
        world.drive()
        for item, (form, home, other, amount) in enumerate(items):
            place = three.shard_id_of(home)
            found = results[item]
            number = found[0] if isinstance(found, tuple) else found.number  # type: ignore[union-attr]
            status = found[1] if isinstance(found, tuple) else found.status  # type: ignore[union-attr]
            stored = world.shards[place].ask(GetTransaction(home, number))
            assert isinstance(stored, TransactionView)
            assert (stored.status, stored.request_id) == (
                status,
                str(request_ids(len(items))[item]),
            )
            once = first[item]
            if isinstance(once, tuple):
                assert once == (number, status)
            assert [entry.account_id for entry in stored.entries] == [home, other]
            assert stored.entries[0].direction == form
            assert stored.entries[0].amount == amount
        numbers = {(three.shard_id_of(items[i][1]), _number(found)) for i, found in results.items()}
        assert len(numbers) == len(items)

    asyncio.run(run())
    assert sum(settled for settled, _ in world.balances()) == before
    world.check_every_shard_balances()
    world.check_nothing_is_in_flight()
    world.close()


def _number(found: object) -> int:
    return found[0] if isinstance(found, tuple) else found.number  # type: ignore[attr-defined]


async def test_refusals_say_what_single_calls_say(tmp_path: Path) -> None:
    """Items none of which depends on the funds that another one leaves."""
    ours, theirs = World(tmp_path / "bulk", 100), World(tmp_path / "single", 100)
    (a, b), (c, d), (e, f) = ours.accounts
    items: list[Item] = [
        (DEBIT, a, c, 10**6),
        (CREDIT, e, b, 10**6),
        (DEBIT, f, 4711, 1),
        (CREDIT, d, c, 2),
        (CREDIT, c, e, 3),
    ]
    work = Work(BulkShards())
    work.work = BulkWork(ShardCalls(WorldShards(ours)))
    results = await work.do(items)
    shards = WorldShards(theirs)
    for item, found in results.items():
        assert isinstance(found, tuple)
        _, home, other, _ = items[item]
        ids = shards.shard_id_of(home), shards.shard_id_of(other)
        asked = transfers([items[item]], request_ids=request_ids(len(items))[item].bytes)
        command = transfer_columns.columns(asked).single(0, ids, Terms("main", USD, ""), NO_SOURCE)
        expected = await shards.execute(home, command, 1.0)
        assert isinstance(expected, TransactionView)
        stored = ours.shards[ids[0]].ask(GetTransaction(home, found[0]))
        assert isinstance(stored, TransactionView)
        assert stored.refusal == expected.refusal
        assert (stored.status, stored.entries) == (expected.status, expected.entries)
        assert uuid.UUID(stored.request_id).bytes == asked.request_ids
    await work.work.end()
    assert ours.balances() == theirs.balances()
    ours.check_nothing_is_in_flight()

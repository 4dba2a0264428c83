"""Reports of several shards balance at every step of every transfer, whenever a shard is asked."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from ledger_core.accounts import TimeBasis, TransactionStatus
from ledger_core.commands import CancelTransaction, Command, CreateTransaction, SettleTransaction
from ledger_core.queries import GetTotals
from ledger_core.reports import (
    Chart,
    LineRole,
    balance_sheet,
    chart_balances,
    income_statement,
    merge_totals,
    trial_balance,
)
from ledger_core.results import CountersView, Result, TotalsView, TransactionView
from tests.node.several_shards import SHARDS, World

CHART = Chart([])


def totals(world: World, shard_id: int, *as_of_us: int, basis: TimeBasis) -> TotalsView:
    view = world.shards[shard_id].ask(GetTotals("main", list(as_of_us), basis))
    assert isinstance(view, TotalsView)
    return view


def check(views: dict[int, TotalsView]) -> int:
    """Make every report, each of which checks itself; return what is in transit."""
    (merged,) = merge_totals(views, ["USD"])
    trial = trial_balance(merged, CHART)
    balance_sheet(merged, CHART)
    chart_balances(merged, CHART)
    income_statement(merged, CHART, [(None, 0)])
    return sum(
        line.debit_balance - line.credit_balance
        for line in trial.lines
        if line.role is LineRole.IN_TRANSIT
    )


class Sampler:
    """Takes the totals of a shard after everything that is applied to it."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.in_transit: list[int] = []
        self.reports = 0
        self.taken = [[self.take(shard_id)] for shard_id in range(SHARDS)]
        for shard_id, shard in enumerate(world.shards):
            shard.one = self._sampling(shard_id, shard.one)  # type: ignore[method-assign, assignment]

    def take(self, shard_id: int) -> TotalsView:
        return totals(self.world, shard_id, basis=TimeBasis.RECORDED)

    def _sampling(
        self, shard_id: int, one: Callable[[Command], Result]
    ) -> Callable[[Command], Result]:
        def sampling(command: Command) -> Result:
            result = one(command)
            self.taken[shard_id].append(self.take(shard_id))
            # All shards now; and each of them at some moment of its own.
            self.in_transit.append(check({s: self.taken[s][-1] for s in range(SHARDS)}))
            check({s: self.rng.choice(self.taken[s]) for s in range(SHARDS)})
            self.reports += 2
            return result

        return sampling


@pytest.mark.parametrize("seed", range(6))
def test_reports_balance_while_transfers_are_in_flight(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    world = World(tmp_path, funds=1_000)
    sampler = Sampler(world, rng)
    pending: list[TransactionView] = []
    for number in range(12):
        payer, payee = rng.sample(range(SHARDS), 2)
        amount = rng.randrange(1, 400)
        entries = [
            world.entry(payer, rng.randrange(2), -amount),
            world.entry(payee, rng.randrange(2), amount),
        ]
        command = world.create(entries, f"transfer {number}", settled=rng.random() < 0.5)
        assert isinstance(command, CreateTransaction)
        view = world.begin(command)
        assert isinstance(view, TransactionView)
        pending.append(view)
        if rng.random() < 0.6:
            world.drive()
        if rng.random() < 0.5:
            _end(world, rng, pending.pop(rng.randrange(len(pending))))
    world.drive()
    assert any(sampler.in_transit), "nothing was ever seen in flight"
    assert sampler.in_transit[-1] == 0
    assert sampler.reports > 100
    _check_the_past(world, rng)


def _end(world: World, rng: random.Random, view: TransactionView) -> None:
    """Settle or cancel a transaction, if it is pending at all by now."""
    home = next(s for s in range(SHARDS) if view.account_id in world.accounts[s])
    if world.record(home, view.number).status is TransactionStatus.PENDING:
        kind = rng.choice([SettleTransaction, CancelTransaction])
        world.apply(home, kind(view.account_id, view.number, f"end {view.number}"))


def _check_the_past(world: World, rng: random.Random) -> None:
    """As of any moment, too, however many moments are asked for at once."""
    newest = max(shard.time_us for shard in world.shards)
    moments = sorted(rng.randrange(1_000_000, newest + 2) for _ in range(20))
    for basis in TimeBasis:
        views = {s: totals(world, s, *moments, basis=basis) for s in range(SHARDS)}
        check(views)
        (whole,) = merge_totals(views, ["USD"])
        for index, moment in enumerate(moments):
            alone = {s: totals(world, s, moment, basis=basis) for s in range(SHARDS)}
            check(alone)
            (single,) = merge_totals(alone, ["USD"])
            found = {(g.type, g.code, g.role): g.sums[0] for g in single.groups}
            for group in whole.groups:
                key = (group.type, group.code, group.role)
                assert group.sums[index] == found.get(key, CountersView())

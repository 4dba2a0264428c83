"""A commit across shards with a crash after every single step of a leader, on whole nodes.

Runs of the same plan are the same up to the crash, so crashing at the first commit to disk, the
second one and so on goes through every state in which a leader can stop: with a turn lost, with a
turn's log on disk and nothing of the turn released, or with its messages sent and nothing applied.
What must hold then is what runs of the simulation check.
"""

import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from ledger_core.accounts import Direction, TransactionStatus
from ledger_core.commands import (
    CancelTransaction,
    CreateTransaction,
    Entry,
    ReverseTransaction,
    SettleTransaction,
)
from ledger_core.ledgers import USD
from ledger_core.results import TransactionView
from tests.simulation.disk import CrashPoint
from tests.simulation.engine import Engine
from tests.simulation.host import Host
from tests.simulation.model import Sent
from tests.simulation.plan import Bounds, Plan, Timing
from tests.simulation.runner import Cluster, bounds_of

S = TransactionStatus
PLAN = Plan(
    seed=1,
    shards=3,
    timing=Timing(0.04, 0.15, 0.25),
    bounds=Bounds(vote_s=0.6, ask_after_s=0.3, retry_s=0.1),
    shard_call_s=0.3,
    clients=0,
    accounts=1,
    call_s=2.0,
    attempt_s=0.1,
)
HOME, PARTICIPANT = 0, 1
STEPS_MAX = 60

Story = tuple[str, tuple[int, int, int]]
STORIES: dict[str, Story] = {
    "settled at once": ("", (-30, 10, 20)),
    "refused by a participant": ("", (500, -500, 0)),
    "held, then settled": ("settle", (-30, 10, 20)),
    "held, then settled in part": ("part", (-30, 30, 0)),
    "held, then cancelled": ("cancel", (20, -30, 10)),
    "reversed": ("reverse", (-30, 10, 20)),
}


class _Scene:
    """A cluster with money on every shard, and one transaction that goes through its life."""

    def __init__(self, path: Path, story: Story) -> None:
        self.cluster = cluster = Cluster(PLAN, path)
        self._end, self._amounts = story
        engine: Engine = cluster.engine
        for host in cluster.hosts.values():
            host.start()
        engine.run_until(5.0, cluster._all_serve)
        cluster.clients.start()
        assert engine.run_until(10.0, self._is_quiet)
        self._fund()

    def _is_quiet(self) -> bool:
        return not self.cluster.clients.calls_open

    def _fund(self) -> None:
        clients = self.cluster.clients
        for account in clients.accounts:
            command = CreateTransaction(account.command.account_id, 60, "", True, "more")
            clients.submit(command, account.shard_id, lambda: None)
        assert self.cluster.engine.run_until(self.cluster.engine.now + 5.0, self._is_quiet)

    def leader(self, shard_id: int) -> Host:
        return next(host for host in self.cluster.hosts.values() if host.leads(shard_id))

    def play(self) -> None:
        """Send the transaction, and what ends it once it is answered."""
        by_shard = {account.shard_id: account for account in self.cluster.clients.accounts}
        entries = [
            Entry(
                by_shard[shard_id].command.account_id,
                Direction.CREDIT if amount > 0 else Direction.DEBIT,
                abs(amount),
                USD,
                shard_id,
            )
            for shard_id, amount in enumerate(self._amounts)
            if amount
        ]
        settled = self._end in ("", "reverse")
        command = CreateTransaction(entries[0].account_id, 0, "", settled, "t", entries)
        self.cluster.clients.submit(command, HOME, self._continue)
        clients, engine = self.cluster.clients, self.cluster.engine
        assert engine.run_until(engine.now + 10.0, lambda: not clients.calls_open)

    def _continue(self) -> None:
        clients = self.cluster.clients
        begun = clients.history.requests[-1].result
        if not self._end or not isinstance(begun, TransactionView) or begun.status.is_refusal:
            return
        account_id, number = begun.account_id, begun.number
        ends: dict[str, Sent] = {
            "settle": SettleTransaction(account_id, number, "e"),
            "part": SettleTransaction(account_id, number, "e", 12),
            "cancel": CancelTransaction(account_id, number, "e"),
            "reverse": ReverseTransaction(account_id, number, "e"),
        }
        clients.submit(ends[self._end], HOME, lambda: None)


def _crash_at(
    path: Path, story: Story, victim: int, step: int, point: CrashPoint, *, all_: bool
) -> str:
    """Play a story with a crash at a commit of a leader; return how the transaction ended."""
    scene = _Scene(path, story)
    cluster = scene.cluster
    try:
        host = scene.leader(victim)
        assert host.store is not None
        host.store.crash_at = (step, point)
        life = host.life
        if all_:
            crashed = cluster.faults.crashed

            def take_others_along(one: Host) -> None:
                crashed(one)
                for other in cluster.hosts.values():
                    if one is host and one.life == life:
                        other.crash("crashed")

            cluster.faults.crashed = take_others_along  # type: ignore[method-assign, assignment]
        scene.play()
        happened = host.node is None or host.life != life
        cluster.finish()
        if not happened:
            return "no crash"
        (begun,) = (r for r in cluster.clients.history.requests if r.command.request_id == "t")
        assert isinstance(begun.result, TransactionView)
        return begun.result.status.name
    finally:
        cluster.close()


@pytest.mark.parametrize(
    ("victim", "all_"),
    [
        pytest.param(HOME, False, id="home"),
        pytest.param(PARTICIPANT, False, id="participant"),
        pytest.param(HOME, True, id="home, with all others"),
    ],
)
@pytest.mark.parametrize("story", STORIES)
def test_a_leader_crashes_at_every_step(story: str, victim: int, all_: bool) -> None:
    folder = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(dir=folder if folder.is_dir() else None))
    outcomes: Counter[str] = Counter()
    points = [CrashPoint.BEFORE, CrashPoint.AFTER]
    if victim == HOME and not all_:
        # Elsewhere it adds little: what is sent to those that crash as well is lost.
        points.append(CrashPoint.SENT)
    try:
        with bounds_of(PLAN.bounds):
            for point in points:
                for step in range(1, STEPS_MAX):
                    run = path / f"{step} {point}"
                    ended = _crash_at(run, STORIES[story], victim, step, point, all_=all_)
                    outcomes[ended] += 1
                    if ended == "no crash":
                        break
    finally:
        shutil.rmtree(path, ignore_errors=True)
    assert outcomes["no crash"] == len(points), "the last step was not reached"
    assert outcomes.total() > 12, outcomes

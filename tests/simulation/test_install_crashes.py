"""The install of a snapshot with a crash at every single commit of its receiver, on whole nodes.

Runs of the same plan are the same up to the crash. So crashing at the first commit of the log or of
the state after the receiver came back, at the second one and so on goes through every moment of the
install: while it is staged, before and after its last step's note in the log, before and after the
checkpoint that changes the state over, before and after the turn that begins the log anew, and
after its messages.
"""

import shutil
import tempfile
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from ledger_core.commands import CreateTransaction
from tests.simulation.disk import CrashPoint
from tests.simulation.host import Host
from tests.simulation.plan import Bounds, Plan, Timing
from tests.simulation.runner import Cluster, bounds_of

PLAN = Plan(
    seed=1,
    shards=1,
    timing=Timing(0.04, 0.15, 0.25),
    bounds=Bounds(keep_entries=2, pinned=1, compact_entries=50, chunk_bytes=4_000),
    clients=0,
    accounts=1,
    call_s=2.0,
    attempt_s=0.1,
)
WRITES = 30
STEPS_MAX = 80


def _crash_at(path: Path, checkpoint_s: float, step: int, point: CrashPoint) -> Counter[str]:
    """Let a host miss much, and crash at a commit after it came back; return what happened."""
    cluster = Cluster(PLAN, path)
    engine, clients = cluster.engine, cluster.clients
    try:
        for host in cluster.hosts.values():
            host.start()
        engine.run_until(5.0, cluster._all_serve)
        clients.start()
        assert engine.run_until(10.0, lambda: not clients.calls_open)
        away = next(host for host in cluster.hosts.values() if not host.leads(0))
        # Nobody starts it again before the writes are done.
        start, away.start = away.start, _stay_down  # type: ignore[method-assign]
        away.crash("crashed")
        (account,) = clients.accounts
        for number in range(WRITES):
            command = CreateTransaction(account.command.account_id, 1, "", True, f"w{number}")
            clients.submit(command, 0, lambda: None)
            assert engine.run_until(engine.now + 5.0, lambda: not clients.calls_open)
        engine.run_until(engine.now + checkpoint_s + 0.1)
        clients.submit(
            CreateTransaction(account.command.account_id, 1, "", True, "last"), 0, lambda: None
        )
        assert engine.run_until(engine.now + 5.0, lambda: not clients.calls_open)
        away.start = start  # type: ignore[method-assign]
        away.start()
        assert away.store is not None
        away.store.crash_at = (step, point)
        life = away.life
        engine.run_until(engine.now + 2.0, lambda: _is_back(cluster, away, life))
        engine.counts["no crash"] += away.life == life
        cluster.finish()
        return engine.counts
    finally:
        cluster.close()


def _stay_down() -> None:
    pass


def _is_back(cluster: Cluster, host: Host, life: int) -> bool:
    """Whether it has crashed and come back, or has all the others have."""
    return host.life != life or (host.alive and cluster._converged())


@pytest.mark.parametrize("checkpoint_s", [0.0, 0.15])
def test_a_receiver_crashes_at_every_commit_of_an_install(checkpoint_s: float) -> None:
    folder = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(dir=folder if folder.is_dir() else None))
    seen: Counter[str] = Counter()
    bounds = msgspec.structs.replace(PLAN.bounds, checkpoint_s=checkpoint_s)
    try:
        with bounds_of(bounds):
            for point in CrashPoint:
                for step in range(1, STEPS_MAX):
                    counts = _crash_at(path / f"{step} {point}", checkpoint_s, step, point)
                    # One that was down for the writes that end a run may need another.
                    assert counts["snapshots installed"] >= 1
                    seen += counts
                    seen["runs"] += 1
                    if counts["no crash"]:
                        break
    finally:
        shutil.rmtree(path, ignore_errors=True)
    assert seen["no crash"] == len(CrashPoint), "the last step was not reached"
    assert seen["runs"] >= 10
    # After the note before the checkpoint, and after the checkpoint before the end of the turn.
    assert seen["starts at the last step of an install"] >= 2

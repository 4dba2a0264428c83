"""What tests that break a real cluster share: waiting, traffic, and the proof afterwards."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from ledger_cli.local_cluster import LocalCluster
from ledger_cli.node_probe import NodeProbe
from ledger_cli.traffic import Traffic, open_accounts
from ledger_cli.verify import prove
from ledger_client import AsyncLedgerClient
from ledger_cluster.shard_map import ShardMap

# Bounds for machines that are slow or busy; what is measured is far below.
PATIENCE_S = 40.0
PAUSE_S_MAX = 15.0

measured: list[str] = []

T = TypeVar("T")


async def off_loop(call: Callable[[], T]) -> T:
    """Run what blocks without stopping the clients."""
    return await asyncio.to_thread(call)


async def until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not await off_loop(done):
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        await asyncio.sleep(0.05)


async def until_written(traffic: Traffic, since: float) -> None:
    """Wait until every shard has acknowledged a write that was answered after ``since``."""
    deadline = time.monotonic() + PATIENCE_S
    while not traffic.has_answers_since(since):
        assert time.monotonic() < deadline, "some shard is not written any more"
        await asyncio.sleep(0.02)


async def start_again(cluster: LocalCluster, *names: str) -> None:
    """Start processes and wait until every shard is served and every node has caught up."""
    for name in names:
        await off_loop(partial(cluster.restart, name))
    await until(lambda: not cluster.not_serving(), "all shards are served")
    committed = await off_loop(cluster.commit_indexes)
    for node in cluster.config.nodes:
        await until(partial(cluster.has_applied, node.id, committed), f"{node.id} catches up")


async def leader(cluster: LocalCluster, shard_id: int) -> str:
    name = await off_loop(partial(cluster.leader_of, shard_id))
    assert name is not None
    return name


@asynccontextmanager
async def running_traffic(cluster: LocalCluster) -> AsyncIterator[Traffic]:
    """Write to every shard, first and last with all well; then nothing may be lost or doubled."""
    shard_ids = [shard.id for shard in cluster.config.shards]
    async with AsyncLedgerClient(cluster.gateway_address) as client:
        accounts = await open_accounts(client, ShardMap(cluster.config), shard_ids, 12)
        traffic = Traffic(client, accounts, clients_per_shard=1, pause_s=0.02)
        async with traffic:
            await until_written(traffic, time.monotonic())
            yield traffic
            await until_written(traffic, time.monotonic())
        assert await traffic.faults() == []
        assert len(traffic.acknowledged) == len(traffic.writes)
    await off_loop(partial(check_replicas, cluster))


def record_pause(traffic: Traffic, since: float, what: str) -> None:
    """Note the longest time that a shard was without an acknowledged write, and bound it."""
    pause_s, shard_id = max((s, i) for i, s in traffic.pauses_s(since, time.monotonic()).items())
    measured.append(f"{what}: no acknowledged write for {pause_s:.2f} s at most (shard {shard_id})")
    assert pause_s < PAUSE_S_MAX


def check_replicas(cluster: LocalCluster) -> None:
    """Prove that every shard balances and that its replicas have the same hash chain."""
    with NodeProbe(cluster.config) as probe:
        proofs = prove(cluster.config, lambda shard_ids: probe.audits(shard_ids, PATIENCE_S))
    assert [problem for proof in proofs for problem in proof.problems()] == []
    for proof in proofs:
        assert proof.compared == set(proof.shard.node_ids)


def log_of(cluster: LocalCluster, name: str) -> str:
    return (cluster.data_dir / f"{name}.log").read_text(errors="replace")


def run_to_its_end(module: str, *args: object, cwd: Path) -> tuple[int, str]:
    """Run a process that must end by itself; return its exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, args)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert "Traceback" not in done.stdout
    return done.returncode, done.stdout

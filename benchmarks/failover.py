"""How long is a shard without a leader's service when its leader is killed?

Starts a cluster of three nodes with writes to all shards, kills the leader of one shard with
``kill -9``, waits until every shard is written again, starts the node again, waits until it has
caught up, and repeats. The failover time of a kill is the longest gap without an acknowledged write
on any shard that the killed node led.

    python benchmarks/failover.py [--kills 20] [--seed 1]
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from ledger_cli.local_cluster import LocalCluster, free_cluster_ports
from ledger_cli.node_probe import serving_leader
from ledger_cli.traffic import Traffic, open_accounts
from ledger_client import AsyncLedgerClient
from ledger_cluster.config import generate_cluster_config
from ledger_cluster.shard_map import ShardMap

NODES, SHARDS, REPLICAS = 3, 16, 3
ACCOUNTS = 64
PATIENCE_S = 60.0
MEDIAN_S_MAX, WORST_S_MAX = 2.0, 4.0

T = TypeVar("T")


class Failovers:
    """The kills of one run. The cluster has one thread, so that clients are not delayed."""

    def __init__(self, cluster: LocalCluster, seed: int) -> None:
        self.times_s: list[float] = []
        self._cluster = cluster
        self._rng = random.Random(seed)
        self._thread = ThreadPoolExecutor(1)

    async def run(self, kills: int) -> list[str]:
        """Kill so many leaders; return what the traffic found wrong afterwards."""
        cluster = self._cluster
        try:
            await self._in_thread(cluster.start)
            await self._until(lambda: not cluster.not_serving())
            async with AsyncLedgerClient(cluster.gateway_address) as client:
                shard_ids = [shard.id for shard in cluster.config.shards]
                accounts = await open_accounts(
                    client, ShardMap(cluster.config), shard_ids, ACCOUNTS
                )
                traffic = Traffic(client, accounts)
                async with traffic:
                    await asyncio.sleep(2)
                    for number in range(1, kills + 1):
                        await self._kill(traffic, number)
                return await traffic.faults()
        finally:
            await self._in_thread(cluster.stop)
            self._thread.shutdown()

    async def _kill(self, traffic: Traffic, number: int) -> None:
        cluster = self._cluster
        shard_id = self._rng.choice([shard.id for shard in cluster.config.shards])
        answers = await self._in_thread(cluster.statuses)
        leaders = {shard.id: serving_leader(shard, answers) for shard in cluster.config.shards}
        victim = leaders[shard_id]
        assert victim is not None, "every shard is served before a kill"
        led = [item for item, leader in leaders.items() if leader == victim]
        killed_at = time.monotonic()
        await self._in_thread(partial(cluster.kill, victim))
        down_at = time.monotonic()
        await self._until(lambda: traffic.has_answers_since(down_at))
        written_at = time.monotonic()
        longest_s = max(traffic.longest_pause_s(item, killed_at, written_at) for item in led)
        self.times_s.append(longest_s)
        print(
            f"{number:3}  kill -9 {victim}, leader of shard {shard_id} and {len(led) - 1} others: "
            f"{longest_s:.2f} s",
            flush=True,
        )
        await self._in_thread(partial(cluster.restart, victim))
        await self._until(lambda: not cluster.not_serving())
        committed = await self._in_thread(cluster.commit_indexes)
        await self._until(partial(cluster.has_applied, victim, committed))
        await asyncio.sleep(self._rng.uniform(1.0, 3.0))

    async def _until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not await self._in_thread(done):  # noqa: ASYNC110  (other processes' state)
                await asyncio.sleep(0.05)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def main() -> int:
    """Run; return 1 if a target is missed or anything was lost."""
    parser = argparse.ArgumentParser(description="Measure failover times.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    base_port, gateway_port = free_cluster_ports(NODES)
    config = generate_cluster_config(
        NODES, SHARDS, REPLICAS, cluster_id="failover", base_port=base_port
    )
    with tempfile.TemporaryDirectory(prefix="ledger-failover-") as scratch:
        cluster = LocalCluster(config, Path(scratch) / "data", gateway_port)
        failovers = Failovers(cluster, options.seed)
        faults = asyncio.run(failovers.run(options.kills))
    times_s = failovers.times_s
    median_s, worst_s = statistics.median(times_s), max(times_s)
    print(f"\n{len(times_s)} leader kills: median {median_s:.2f} s, worst {worst_s:.2f} s")
    print(f"targets: median below {MEDIAN_S_MAX:g} s, worst below {WORST_S_MAX:g} s")
    for fault in faults[:10]:
        print(f"wrong: {fault}")
    print(f"lost or doubled: {len(faults) or 'nothing'}")
    return int(bool(faults) or median_s >= MEDIAN_S_MAX or worst_s >= WORST_S_MAX)


if __name__ == "__main__":
    sys.exit(main())

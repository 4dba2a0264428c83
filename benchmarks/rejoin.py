"""How long does a node take that lost its disk, and what do callers notice of it?

Fills the shards of a three-node cluster, then lets clients write through the gateway without a
pause. After a while one node is killed, its data directory deleted, and the node started again: it
gets every shard as a snapshot, since the logs are kept short here. Prints how long that took and
how long writes took before, meanwhile and after; and proves at the end that all replicas are equal.

    python benchmarks/rejoin.py [--transactions 500000] [--clients 64] [--shards 16] [--seconds 10]
"""

import argparse
import asyncio
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from grpc import aio

from ledger.internal.v1 import shard_pb2, shard_pb2_grpc
from ledger_cli.local_cluster import LocalCluster, free_cluster_ports
from ledger_cli.node_probe import NodeProbe, serving_leader
from ledger_cli.verify import prove
from ledger_client import AsyncLedgerClient, LedgerError
from ledger_cluster.channels import channel_options
from ledger_cluster.config import generate_cluster_config
from ledger_cluster.shard_map import ShardMap
from ledger_core.commands import Command, CreateAccount, CreateTransaction, encode_command
from ledger_core.ids import derive_account_id, new_request_id

ACCOUNTS = 2_000
BATCH = 500
BATCHES_IN_FLIGHT = 3
PATIENCE_S = 300.0


async def fill(cluster: LocalCluster, transactions: int) -> None:
    """Write straight to the leaders, in large batches: the gateway is not what is measured."""
    shard_map = ShardMap(cluster.config)
    by_shard: dict[int, list[int]] = {shard.id: [] for shard in cluster.config.shards}
    opening: dict[int, list[Command]] = {shard.id: [] for shard in cluster.config.shards}
    for number in range(ACCOUNTS):
        account = derive_account_id("main", f"r{number}")
        shard_id = shard_map.shard_of(account).id
        by_shard[shard_id].append(account)
        opening[shard_id].append(CreateAccount(account, "main", f"r{number}"))
    answers = cluster.statuses()

    async def fill_shard(shard_id: int, count: int) -> None:
        leader = serving_leader(cluster.config.shard(shard_id), answers)
        assert leader is not None
        address = cluster.config.node(leader).address
        async with aio.insecure_channel(address, options=channel_options()) as channel:
            stub: shard_pb2_grpc.ShardServiceAsyncStub = shard_pb2_grpc.ShardServiceStub(channel)
            slots = asyncio.Semaphore(BATCHES_IN_FLIGHT)

            async def send(commands: list[Command]) -> None:
                async with slots:
                    reply = await stub.Execute(
                        shard_pb2.ExecuteRequest(
                            shard_id=shard_id, commands=map(encode_command, commands)
                        )
                    )
                    assert reply.outcome == shard_pb2.OUTCOME_OK, reply.message

            for start in range(0, len(opening[shard_id]), BATCH):
                await send(opening[shard_id][start : start + BATCH])
            sends = []
            for start in range(0, count, BATCH):
                batch: list[Command] = [
                    CreateTransaction(account, 100, "load", True, new_request_id())
                    for account in random.choices(by_shard[shard_id], k=min(BATCH, count - start))
                ]
                sends.append(asyncio.create_task(send(batch)))
                await asyncio.sleep(0)
            await asyncio.gather(*sends)

    shards = list(by_shard)
    each = transactions // len(shards)
    # Two shards at a time: their replicas are all the machine can feed.
    for start in range(0, len(shards), 2):
        await asyncio.gather(*(fill_shard(item, each) for item in shards[start : start + 2]))


class Writers:
    """Clients that write one transaction after the other, and how long each took."""

    def __init__(self, address: str, clients: int) -> None:
        self.done: list[tuple[float, float]] = []
        self.failed = 0
        self._address = address
        self._clients = clients
        self._stopping = False

    async def run(self) -> None:
        """Write until `stop`."""
        async with AsyncLedgerClient(self._address) as client:
            await asyncio.gather(*(self._write(client) for _ in range(self._clients)))

    def stop(self) -> None:
        """Let every client end its present write."""
        self._stopping = True

    async def _write(self, client: AsyncLedgerClient) -> None:
        while not self._stopping:
            account = f"{derive_account_id('main', f'r{random.randrange(ACCOUNTS)}'):016x}"
            began = time.monotonic()
            try:
                await client.create_transaction(account, 1, "write", settled=True)
                self.done.append((began, time.monotonic() - began))
            except LedgerError:
                self.failed += 1

    def summary(self, since: float, until: float) -> str:
        """Return rate and latencies of the writes that began in a time."""
        times = [took for began, took in self.done if since <= began < until]
        quantiles = statistics.quantiles(times, n=100)
        return (
            f"{len(times) / (until - since):7,.0f} writes/s   p50 {quantiles[49] * 1000:6.1f} ms   "
            f"p99 {quantiles[98] * 1000:6.1f} ms   longest {max(times) * 1000:6.0f} ms"
        )


async def until(done: Callable[[], bool], what: str) -> None:
    """Ask, in a thread, until it is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not await asyncio.to_thread(done):
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {PATIENCE_S:g} s: {what}")
        await asyncio.sleep(0.1)


def caught_up(cluster: LocalCluster, name: str) -> bool:
    """Whether every replica of a node has all that was committed, and may vote."""
    answer = cluster.statuses()[name]
    return (
        answer.status is not None
        and not any(item.unproven or item.installing_bytes for item in answer.status.replicas)
        and cluster.has_applied(name, {item.id: 2 for item in cluster.config.shards})
    )


async def run(cluster: LocalCluster, options: argparse.Namespace) -> None:
    """Do it all once."""
    await until(lambda: not cluster.not_serving(), "all shards serve")
    began = time.monotonic()
    await fill(cluster, options.transactions)
    print(f"filled: {options.transactions:,} transactions in {time.monotonic() - began:.1f} s")
    writers = Writers(cluster.gateway_address, options.clients)
    writing = asyncio.create_task(writers.run())
    await asyncio.sleep(2)
    marks = [time.monotonic()]
    await asyncio.sleep(options.seconds)
    marks.append(time.monotonic())
    victim = cluster.config.nodes[-1].id
    await asyncio.to_thread(cluster.kill, victim)
    size = sum(file.stat().st_blocks * 512 for file in (cluster.data_dir / victim).rglob("*"))
    await asyncio.to_thread(shutil.rmtree, cluster.data_dir / victim)
    # Without the pause of the elections that any lost node costs.
    await asyncio.sleep(3)
    marks.append(time.monotonic())
    await asyncio.to_thread(cluster.restart, victim)
    target = await asyncio.to_thread(cluster.commit_indexes)
    await until(
        lambda: caught_up(cluster, victim) and cluster.has_applied(victim, target), "caught up"
    )
    marks.append(time.monotonic())
    await asyncio.sleep(options.seconds)
    marks.append(time.monotonic())
    writers.stop()
    await writing
    print(
        f"rejoined: {marks[3] - marks[2]:.1f} s after its start, {size >> 20} MiB of data deleted"
    )
    for place, what in enumerate(("before", "one node down", "rejoining", "after")):
        print(f"{what:14} {writers.summary(marks[place], marks[place + 1])}")
    print(f"failed writes: {writers.failed}")


def main() -> None:
    """Run a cluster in a folder that is deleted at the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--transactions", type=int, default=500_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0, help="of writes before and after")
    parser.add_argument("--log-keep-entries", type=int, default=200, help="fewer: a snapshot")
    options = parser.parse_args()
    os.environ["LEDGER_NODE_LOG_KEEP_ENTRIES"] = str(options.log_keep_entries)
    base_port, gateway_port = free_cluster_ports(3)
    config = generate_cluster_config(3, options.shards, base_port=base_port)
    with (
        tempfile.TemporaryDirectory(prefix="ledger-rejoin-") as folder,
        LocalCluster(config, Path(folder), gateway_port) as cluster,
    ):
        asyncio.run(run(cluster, options))
        with NodeProbe(config) as probe:
            proofs = prove(config, lambda shard_ids: probe.audits(shard_ids, 120.0))
    problems = [problem for proof in proofs for problem in proof.problems()]
    entries = sum(proof.latest.entries for proof in proofs if proof.latest)
    print(problems or f"proven: {entries:,} entries, all replicas equal")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()

"""What does a transfer cost, compared with a transaction of one account?

Starts a cluster of three nodes and measures in turns, in the same run: a transaction of one
account, a transfer between two accounts of one shard, and one between two shards. First one call at
a time, then 64 at once. All accounts have money enough.

    python benchmarks/transfers.py [--calls 400] [--seconds 6] [--seed 1]
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from ledger.v1 import ledger_pb2
from ledger_cli.local_cluster import LocalCluster, free_cluster_ports
from ledger_cli.traffic import AccountsByShard, open_accounts
from ledger_client import AsyncLedgerClient, credit, debit
from ledger_cluster.config import generate_cluster_config
from ledger_cluster.shard_map import ShardMap

NODES, SHARDS, REPLICAS = 3, 16, 3
ACCOUNTS = 320
FUNDS = 10**9
CONCURRENT = 64
ROUNDS = 4
PAUSE_S = 0.02

Call = Callable[[], Awaitable[ledger_pb2.Transaction]]


class Kinds:
    """The three kinds of calls, on accounts drawn at random."""

    def __init__(self, client: AsyncLedgerClient, accounts: AccountsByShard, seed: int) -> None:
        self._client = client
        self._accounts = {shard: ids for shard, ids in accounts.items() if len(ids) > 1}
        self._rng = random.Random(seed)
        self.all: dict[str, Call] = {
            "one account": self.one_account,
            "two accounts of a shard": self.one_shard,
            "two shards": self.two_shards,
        }

    async def one_account(self) -> ledger_pb2.Transaction:
        (account_ids,) = self._draw(1)
        return await self._client.create_transaction(
            self._rng.choice(account_ids), -1, settled=True
        )

    async def one_shard(self) -> ledger_pb2.Transaction:
        (account_ids,) = self._draw(1)
        payer, payee = self._rng.sample(account_ids, 2)
        return await self._transfer(payer, payee)

    async def two_shards(self) -> ledger_pb2.Transaction:
        payers, payees = self._draw(2)
        return await self._transfer(self._rng.choice(payers), self._rng.choice(payees))

    def _draw(self, shards: int) -> list[list[str]]:
        drawn = self._rng.sample(list(self._accounts), shards)
        return [list(self._accounts[shard_id]) for shard_id in drawn]

    async def _transfer(self, payer: str, payee: str) -> ledger_pb2.Transaction:
        return await self._client.create_transaction(
            entries=[debit(payer, 1), credit(payee, 1)], settled=True
        )


async def timed(call: Call) -> float:
    """Make a call that must succeed; return how long it took."""
    began = time.perf_counter()
    answer = await call()
    seconds = time.perf_counter() - began
    if answer.status != ledger_pb2.TRANSACTION_STATUS_SETTLED:
        raise RuntimeError(f"not settled: {answer}")
    return seconds


async def lone(kinds: Kinds, calls: int, rng: random.Random) -> dict[str, list[float]]:
    """Make one call at a time, the kinds in turns, in another order each time.

    What goes on after an answer (the home notes that the decision was delivered, followers apply)
    has a moment to end before the next call.
    """
    times: dict[str, list[float]] = {name: [] for name in kinds.all}
    for _ in range(calls):
        for name, call in rng.sample(list(kinds.all.items()), len(kinds.all)):
            times[name].append(await timed(call))
            await asyncio.sleep(PAUSE_S)
    return times


async def crowded(kinds: Kinds, seconds: float) -> dict[str, list[tuple[float, float]]]:
    """Keep 64 calls of a kind under way, the kinds in turns; return rates and medians."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds.all}
    for _ in range(ROUNDS):
        for name, call in kinds.all.items():
            times: list[float] = []
            began = time.perf_counter()
            until = began + seconds / ROUNDS

            async def worker(
                call: Call = call, until: float = until, times: list[float] = times
            ) -> None:
                while time.perf_counter() < until:
                    times.append(await timed(call))

            await asyncio.gather(*(worker() for _ in range(CONCURRENT)))
            rate = len(times) / (time.perf_counter() - began)
            found[name].append((rate, statistics.median(times)))
    return found


async def run(address: str, shard_map: ShardMap, options: argparse.Namespace) -> None:
    async with AsyncLedgerClient(address, timeout_s=30) as client:
        accounts = await open_accounts(client, shard_map, range(SHARDS), ACCOUNTS)
        for account_ids in accounts.values():
            await asyncio.gather(
                *(client.create_transaction(item, FUNDS, settled=True) for item in account_ids)
            )
        kinds = Kinds(client, accounts, options.seed)
        rng = random.Random(options.seed)
        await lone(kinds, 20, rng)
        times = await lone(kinds, options.calls, rng)
        base = statistics.median(times["one account"])
        print(f"one call at a time, {options.calls} of each kind, in turns")
        for name, seconds in times.items():
            median = statistics.median(seconds)
            p99 = statistics.quantiles(seconds, n=100)[98]
            print(
                f"  {name:24} median {median * 1000:6.2f} ms   p99 {p99 * 1000:7.2f} ms   "
                f"{median / base:.2f} times the median of one account",
                flush=True,
            )
        rates = await crowded(kinds, options.seconds)
        base = statistics.mean(rate for rate, _ in rates["one account"])
        print(f"\n{CONCURRENT} at once, {options.seconds:g} s of each kind, in {ROUNDS} turns")
        for name, turns in rates.items():
            rate = statistics.mean(rate for rate, _ in turns)
            median = statistics.median(median for _, median in turns)
            print(
                f"  {name:24} {rate:7.0f} calls/s   median {median * 1000:6.1f} ms   "
                f"{rate / base:.2f} of the rate of one account"
            )


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure transfers.")
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    base_port, gateway_port = free_cluster_ports(NODES)
    config = generate_cluster_config(
        NODES, SHARDS, REPLICAS, cluster_id="transfers", base_port=base_port
    )
    with tempfile.TemporaryDirectory(prefix="ledger-transfers-") as scratch:
        cluster = LocalCluster(config, Path(scratch) / "data", gateway_port)
        with cluster:
            cluster.wait_until_serving(60)
            asyncio.run(run(cluster.gateway_address, ShardMap(config), options))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Bulk calls within and across shards, and a leader that dies: each transfer once or not at all."""

import asyncio
import random
import time
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
from breaking import PATIENCE_S, check_replicas, leader, measured, off_loop, start_again, until
from numpy.typing import NDArray

from ledger.v1 import ledger_pb2
from ledger_cli.local_cluster import LocalCluster
from ledger_cli.node_probe import NodeProbe
from ledger_cli.traffic import open_accounts
from ledger_client import AsyncLedgerClient, TransferResults
from ledger_cluster.shard_map import ShardMap
from ledger_core.ids import parse_account_id
from ledger_gateway.transfer_columns import new_request_ids

pytestmark = pytest.mark.cluster

VICTIM_SHARD = 2
FUNDS = 1_000_000
CONNECTIONS = 3
PER_CALL = 120
BEFORE_S, AFTER_S = 0.7, 2.0
SETTLED = ledger_pb2.TRANSACTION_STATUS_SETTLED


@dataclass
class BulkCall:
    """Transfers with random accounts; every third one is on one shard."""

    first: NDArray[np.uint64]
    second: NDArray[np.uint64]
    amounts: NDArray[np.int64]
    request_ids: bytes = field(default_factory=lambda: new_request_ids(PER_CALL).tobytes())
    results: TransferResults | None = None

    async def send(self, client: AsyncLedgerClient) -> TransferResults:
        return await client.create_transfers(
            self.first, self.second, self.amounts, request_ids=self.request_ids
        )


def drawn(accounts: list[list[int]], rng: random.Random) -> BulkCall:
    pairs = []
    for number in range(PER_CALL):
        home, other = rng.sample(accounts, 2)
        if number % 3 == 0 and len(home) > 1:
            pairs.append(rng.sample(home, 2))
        else:
            pairs.append([rng.choice(home), rng.choice(other)])
    first, second = np.array(pairs, np.uint64).T
    amounts = np.array([rng.randint(1, 50) for _ in pairs])
    return BulkCall(first, second, amounts)


def nothing_unfinished(cluster: LocalCluster) -> bool:
    shard_ids = [shard.id for shard in cluster.config.shards]
    with NodeProbe(cluster.config) as probe:
        audits = [a for found in probe.audits(shard_ids, 5.0).values() for a in found.values()]
    return not any(isinstance(a, str) or a.in_flight or a.undecided for a in audits)


async def funded(client: AsyncLedgerClient, cluster: LocalCluster) -> list[list[int]]:
    shard_ids = [shard.id for shard in cluster.config.shards]
    opened = await open_accounts(client, ShardMap(cluster.config), shard_ids, 18)
    accounts = [[parse_account_id(item) for item in opened[shard_id]] for shard_id in shard_ids]
    everyone = [item for items in accounts for item in items]
    money_in = ledger_pb2.TRANSFER_FORM_IN
    made = await client.create_transfers(everyone, None, [FUNDS] * len(everyone), forms=money_in)
    assert made.all_settled()
    return accounts


async def test_bulk_calls_go_through_the_death_of_a_leader(
    cluster: LocalCluster, gateway: str
) -> None:
    rng = random.Random(6)
    calls: list[BulkCall] = []
    going_on = True
    async with AsyncLedgerClient(gateway, timeout_s=PATIENCE_S) as client:
        accounts = await funded(client, cluster)

        async def load() -> None:
            while going_on:
                call = drawn(accounts, rng)
                calls.append(call)
                call.results = await call.send(client)

        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(load())
            victim = await leader(cluster, VICTIM_SHARD)
            await asyncio.sleep(BEFORE_S)
            killed_at = time.monotonic()
            before = len(calls)
            await off_loop(partial(cluster.kill, victim))
            await asyncio.sleep(AFTER_S)
            await start_again(cluster, victim)
            going_on = False
        assert before > 0
        assert len(calls) > before, "calls went on without the node"
        await until(partial(nothing_unfinished, cluster), "nothing is undecided or in flight")
        finished_s = time.monotonic() - killed_at

        expected = {item: FUNDS for items in accounts for item in items}
        refused = 0
        for call in calls:
            assert call.results is not None
            assert call.results.errors == {}
            for index, refusal in call.results.refusals.items():
                # For good, because a shard could not say yes while it had no leader.
                assert refusal.reason in ("SHARD_UNREACHABLE", "ABANDONED")
                assert call.results.statuses[index] != SETTLED
            refused += len(call.results.refusals)
            for index in np.flatnonzero(call.results.statuses == SETTLED).tolist():
                expected[int(call.first[index])] -= int(call.amounts[index])
                expected[int(call.second[index])] += int(call.amounts[index])
        assert await balances(client, list(expected)) == expected
        assert sum(expected.values()) == FUNDS * len(expected)
        # Sent again, they do nothing, and are answered the same.
        for call in calls[-2:] + calls[:2]:
            assert call.results is not None
            again = await call.send(client)
            assert np.array_equal(again.numbers, call.results.numbers)
            assert np.array_equal(again.statuses, call.results.statuses)
        assert await balances(client, list(expected)) == expected
        await until(partial(nothing_unfinished, cluster), "repeats leave nothing in flight")
    measured.append(
        f"{len(calls)} bulk calls of {PER_CALL}, {refused} transfers refused when a leader was "
        f"killed: nothing unfinished {finished_s:.2f} s after the kill"
    )
    await off_loop(partial(check_replicas, cluster))


async def balances(client: AsyncLedgerClient, account_ids: list[int]) -> dict[int, int]:
    shown = await asyncio.gather(*(client.get_account(f"{item:016x}") for item in account_ids))
    return {parse_account_id(account.id): account.settled_balance for account in shown}

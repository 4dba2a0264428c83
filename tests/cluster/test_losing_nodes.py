"""Nodes that are killed, stopped and frozen under load: nothing acknowledged is lost or doubled."""

import os
import signal
import time
from functools import partial

import pytest
from breaking import (
    check_replicas,
    leader,
    log_of,
    off_loop,
    record_pause,
    running_traffic,
    start_again,
    until,
    until_written,
)

from ledger.v1 import ledger_pb2
from ledger_cli.local_cluster import GATEWAY, LocalCluster
from ledger_client import AlreadyExistsError, AsyncLedgerClient
from ledger_core.ids import new_request_id

pytestmark = pytest.mark.cluster


async def test_create_and_read(cluster: LocalCluster, gateway: str) -> None:
    async with AsyncLedgerClient(gateway) as client:
        account = await client.create_account()
        top_up = await client.create_transaction(account.id, 10_00, "top-up", settled=True)
        pending = await client.create_transaction(account.id, -4_00, "purchase", settled=False)
        assert top_up.status == ledger_pb2.TRANSACTION_STATUS_SETTLED
        read = await client.get_account(account.id)
        assert (read.settled_balance, read.available_balance) == (10_00, 6_00)
        assert await client.get_transaction(pending.id) == pending
        listed = [item.id async for item in client.list_transactions(account.id)]
        assert listed == [pending.id, top_up.id]
    await off_loop(partial(check_replicas, cluster))


async def test_the_leader_of_a_shard_is_killed(cluster: LocalCluster) -> None:
    async with running_traffic(cluster) as traffic:
        victim = await leader(cluster, 2)
        killed_at = time.monotonic()
        await off_loop(partial(cluster.kill, victim))
        await until_written(traffic, time.monotonic())
        record_pause(traffic, killed_at, "kill -9 of a leader")
        assert await leader(cluster, 2) != victim
        await start_again(cluster, victim)


async def test_each_node_is_killed_in_turn(cluster: LocalCluster) -> None:
    async with running_traffic(cluster) as traffic:
        began = time.monotonic()
        for node in cluster.config.nodes:
            await off_loop(partial(cluster.kill, node.id))
            await until_written(traffic, time.monotonic())
            await start_again(cluster, node.id)
        record_pause(traffic, began, "kill -9 of each node in turn")


async def test_all_nodes_are_killed_at_once(cluster: LocalCluster) -> None:
    names = [node.id for node in cluster.config.nodes]
    async with running_traffic(cluster) as traffic:
        killed_at = time.monotonic()
        for name in names:
            os.kill(cluster.pid(name), signal.SIGKILL)
        await until(lambda: not any(map(cluster.running, names)), "all are gone")
        assert len(cluster.take_exits()) == len(names)
        await start_again(cluster, *names)
        await until_written(traffic, time.monotonic())
        record_pause(traffic, killed_at, "kill -9 of all nodes, until all are back")


async def test_a_stopped_node_hands_its_shards_over(cluster: LocalCluster) -> None:
    async with running_traffic(cluster) as traffic:
        name = await leader(cluster, 1)
        asked_at = time.monotonic()
        assert await off_loop(partial(cluster.terminate, name)) == 0
        assert "handed away" in log_of(cluster, name)
        await until(lambda: not cluster.not_serving(), "every shard has a leader elsewhere")
        await until_written(traffic, time.monotonic())
        record_pause(traffic, asked_at, "SIGTERM of a leader")
        await start_again(cluster, name)


async def test_a_frozen_leader_is_replaced_and_wakes_up(cluster: LocalCluster) -> None:
    async with running_traffic(cluster) as traffic:
        name = await leader(cluster, 0)
        frozen_at = time.monotonic()
        os.kill(cluster.pid(name), signal.SIGSTOP)
        try:
            await until_written(traffic, frozen_at + 0.5)
            record_pause(traffic, frozen_at, "SIGSTOP of a leader")
            assert await leader(cluster, 0) != name
        finally:
            os.kill(cluster.pid(name), signal.SIGCONT)
        await start_again(cluster)


async def test_the_gateway_is_killed(cluster: LocalCluster) -> None:
    async with running_traffic(cluster) as traffic:
        killed_at = time.monotonic()
        await off_loop(partial(cluster.kill, GATEWAY))
        await start_again(cluster, GATEWAY)
        await until_written(traffic, time.monotonic())
        record_pause(traffic, killed_at, "kill -9 of the gateway, until it is back")


async def test_a_request_id_is_kept_across_leaders(cluster: LocalCluster, gateway: str) -> None:
    async with AsyncLedgerClient(gateway, timeout_s=30) as client:
        opening, top_up, purchase, settling = (new_request_id() for _ in range(4))
        account = await client.create_account(request_id=opening)

        async def first_three() -> list[object]:
            return [
                await client.create_transaction(
                    account.id, 9_00, "top-up", settled=True, request_id=top_up
                ),
                await client.create_transaction(
                    account.id, -5_00, "purchase", settled=False, request_id=purchase
                ),
            ]

        first = await first_three()
        pending = (await client.list_transactions_page(account.id, page_size=1)).transactions[0]
        settled = await client.settle_transaction(pending.id, request_id=settling)
        balance = await client.get_account(account.id)

        shard_id = (await client.list_transactions_page(account.id)).read_point.shard_id
        for _ in range(2):
            victim = await leader(cluster, shard_id)
            await off_loop(partial(cluster.kill, victim))
            assert await client.create_account(request_id=opening) == account
            again = await first_three()
            assert again[0] == first[0]
            assert again[1] == first[1]
            assert await client.settle_transaction(pending.id, request_id=settling) == settled
            with pytest.raises(AlreadyExistsError):
                await client.create_transaction(
                    account.id, 9_01, "top-up", settled=True, request_id=top_up
                )
            assert await client.get_account(account.id) == balance
            await start_again(cluster, victim)

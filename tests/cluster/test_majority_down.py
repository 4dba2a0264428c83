"""Two of three nodes are down: nothing is acknowledged, and only stale reads are answered."""

import asyncio
from functools import partial

import pytest
from breaking import check_replicas, leader, off_loop, start_again, until

from ledger_cli.local_cluster import LocalCluster
from ledger_client import AsyncLedgerClient, LedgerClient, LedgerError
from ledger_core.ids import new_request_id

pytestmark = pytest.mark.cluster


async def _refusal(client: AsyncLedgerClient, account_id: str, request_id: str) -> str:
    with pytest.raises(LedgerError) as caught:
        await client.create_transaction(account_id, 7_00, "x", settled=True, request_id=request_id)
    return caught.value.status


@pytest.mark.parametrize("survivor_led", [True, False])
async def test_without_a_majority(cluster: LocalCluster, gateway: str, survivor_led: bool) -> None:
    async with AsyncLedgerClient(gateway) as client, AsyncLedgerClient(gateway, 1.5) as hasty:
        account = await client.create_account()
        await client.create_transaction(account.id, 10_00, "top-up", settled=True)
        page = await client.list_transactions_page(account.id)
        shard_id = page.read_point.shard_id
        assert page.read_point.age_ms == 0

        names = [node.id for node in cluster.config.nodes]
        led_by = await leader(cluster, shard_id)
        survivor = led_by if survivor_led else next(name for name in names if name != led_by)
        # What the survivor is to answer, it must have heard of.
        committed = await off_loop(cluster.commit_indexes)
        await until(partial(cluster.has_applied, survivor, committed), "the survivor is up to date")
        victims = [name for name in names if name != survivor]
        for name in victims:
            await off_loop(partial(cluster.kill, name))

        # At once, while the survivor may still believe to lead, and when it knows better.
        request_ids = [new_request_id() for _ in range(2)]
        for request_id in request_ids:
            status = await _refusal(hasty, account.id, request_id)
            assert status in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
        with pytest.raises(LedgerError) as caught:
            await hasty.get_account(account.id)
        assert caught.value.status in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
        with LedgerClient(gateway) as asking:
            await until(lambda: not any(asking.serving_shards().values()), "it says so itself")

        ages = []
        while len(ages) < 3 or ages[-1] < ages[0] + 300:
            stale = await client.list_transactions_page(account.id, stale=True)
            assert list(stale.transactions) == list(page.transactions)
            ages.append(stale.read_point.age_ms)
            await asyncio.sleep(0.02)
        assert ages == sorted(ages)
        assert (await client.get_account(account.id, stale=True)).settled_balance == 10_00

        await start_again(cluster, *victims)
        for repeats in (1, 2):
            for request_id in request_ids:
                await client.create_transaction(
                    account.id, 7_00, "x", settled=True, request_id=request_id
                )
            assert (await client.get_account(account.id)).settled_balance == 24_00, repeats
    await off_loop(partial(check_replicas, cluster))

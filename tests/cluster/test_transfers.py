"""Transfers between shards whose home's leader is killed: all or nothing, once, and never stuck."""

import asyncio
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import pytest
from breaking import (
    PATIENCE_S,
    check_replicas,
    leader,
    measured,
    off_loop,
    start_again,
    until,
)

from ledger.v1 import ledger_pb2
from ledger_cli.local_cluster import LocalCluster
from ledger_cli.node_probe import NodeProbe
from ledger_cli.traffic import AccountsByShard, open_accounts
from ledger_client import AsyncLedgerClient, LedgerError, credit, debit
from ledger_cluster.shard_map import ShardMap
from ledger_core.ids import new_request_id

pytestmark = pytest.mark.cluster

HOME = 2
FUNDS = 10_000
TRANSFERS = 120
FINISHED_S_MAX = 15.0


@dataclass
class Transfer:
    payer: str
    payee: str
    amount: int
    request_id: str
    answer: ledger_pb2.Transaction | None = None

    async def send(self, client: AsyncLedgerClient) -> ledger_pb2.Transaction:
        return await client.create_transaction(
            entries=[debit(self.payer, self.amount), credit(self.payee, self.amount)],
            settled=True,
            request_id=self.request_id,
        )


async def funded(client: AsyncLedgerClient, cluster: LocalCluster) -> AccountsByShard:
    shard_ids = [shard.id for shard in cluster.config.shards]
    accounts = await open_accounts(client, ShardMap(cluster.config), shard_ids, 18)
    for account_ids in accounts.values():
        for account_id in account_ids:
            await client.create_transaction(account_id, FUNDS, settled=True)
    return accounts


async def balances(client: AsyncLedgerClient, accounts: AccountsByShard) -> dict[str, int]:
    account_ids = [item for items in accounts.values() for item in items]
    found = await asyncio.gather(*map(client.get_account, account_ids))
    return {account.id: account.settled_balance for account in found}


def nothing_unfinished(cluster: LocalCluster) -> bool:
    shard_ids = [shard.id for shard in cluster.config.shards]
    with NodeProbe(cluster.config) as probe:
        audits = [a for found in probe.audits(shard_ids, 5.0).values() for a in found.values()]
    return not any(isinstance(a, str) or a.in_flight or a.undecided for a in audits)


async def test_both_sides_are_seen_right_after_the_answer(
    cluster: LocalCluster, gateway: str
) -> None:
    async with AsyncLedgerClient(gateway) as client:
        accounts = await funded(client, cluster)
        for home, other in ((0, 1), (1, 0), (3, 5), (4, 4)):
            payer, payee = accounts[home][0], accounts[other][-1]
            before = await balances(client, accounts)
            transfer = Transfer(payer, payee, 25, new_request_id())
            answer = await transfer.send(client)
            assert answer.status == ledger_pb2.TRANSACTION_STATUS_SETTLED
            after = await balances(client, accounts)
            moved = {item: after[item] - before[item] for item in after}
            if payer != payee:
                assert {item: change for item, change in moved.items() if change} == {
                    payer: -25,
                    payee: 25,
                }
            for party in (payer, payee):
                newest = await client.list_transactions_page(party, page_size=1)
                assert newest.transactions[0].id == answer.id
            assert await transfer.send(client) == answer
    await off_loop(partial(check_replicas, cluster))


async def test_the_leader_of_the_home_is_killed_under_transfers(
    cluster: LocalCluster, gateway: str
) -> None:
    rng = random.Random(5)
    async with AsyncLedgerClient(gateway, timeout_s=PATIENCE_S) as client:
        accounts = await funded(client, cluster)
        others = [
            item for shard_id, items in accounts.items() if shard_id != HOME for item in items
        ]
        transfers = [
            Transfer(
                rng.choice(accounts[HOME]), rng.choice(others), rng.randint(1, 50), new_request_id()
            )
            for _ in range(TRANSFERS)
        ]

        async def send(transfer: Transfer) -> None:
            transfer.answer = await transfer.send(client)

        victim = await leader(cluster, HOME)
        # Some of them are under way when the leader dies, at whatever step; none is lost by it.
        sending = [asyncio.create_task(send(item)) for item in transfers[: TRANSFERS // 2]]
        async with asyncio.timeout(PATIENCE_S):
            while not any(item.answer for item in transfers):  # noqa: ASYNC110  (no event for it)
                await asyncio.sleep(0.002)
        sending += [asyncio.create_task(send(item)) for item in transfers[TRANSFERS // 2 :]]
        await asyncio.sleep(0.05)
        killed_at = time.monotonic()
        await off_loop(partial(cluster.kill, victim))
        answered_before = sum(item.answer is not None for item in transfers)
        await asyncio.gather(*sending)
        measured.append(
            f"{TRANSFERS} transfers, {answered_before} answered when the home's leader was killed: "
            f"all answered after {time.monotonic() - killed_at:.2f} s"
        )
        await until(partial(all_that_run_have_finished, cluster, victim), "all are decided")
        measured.append(f"nothing undecided after {time.monotonic() - killed_at:.2f} s")
        assert time.monotonic() - killed_at < FINISHED_S_MAX

        expected = dict.fromkeys([item for items in accounts.values() for item in items], FUNDS)
        for transfer in transfers:
            assert transfer.answer is not None
            # Settled, or refused for good because the home's leader died before it was begun.
            shown = await client.get_transaction(
                account_id=transfer.payer, request_id=transfer.request_id
            )
            assert (shown.id, shown.status) == (transfer.answer.id, transfer.answer.status)
            if shown.status == ledger_pb2.TRANSACTION_STATUS_SETTLED:
                expected[transfer.payer] -= transfer.amount
                expected[transfer.payee] += transfer.amount
            else:
                assert shown.refusal.reason in ("SHARD_UNREACHABLE", "ABANDONED")
        assert await balances(client, accounts) == expected
        assert sum(expected.values()) == FUNDS * len(expected)
        again = await asyncio.gather(*(item.send(client) for item in transfers))
        assert again == [item.answer for item in transfers]
        await check_histories(client, transfers)
        await start_again(cluster, victim)
        await until(partial(nothing_unfinished, cluster), "nothing is undecided or in flight")
    await off_loop(partial(check_replicas, cluster))


def all_that_run_have_finished(cluster: LocalCluster, victim: str) -> bool:
    shard_ids = [shard.id for shard in cluster.config.shards]
    with NodeProbe(cluster.config) as probe:
        found = probe.audits(shard_ids, 5.0)
    return not any(
        isinstance(audit, str) or audit.in_flight or audit.undecided
        for audits in found.values()
        for node_id, audit in audits.items()
        if node_id != victim
    )


async def check_histories(client: AsyncLedgerClient, transfers: list[Transfer]) -> None:
    """Every settled transfer is in both histories, once; a refused one moved nothing in either."""
    histories: dict[str, list[str]] = {}
    for account_id in {item for t in transfers for item in (t.payer, t.payee)}:
        listing = client.list_transactions(account_id, page_size=1_000)
        histories[account_id] = [
            item.id
            async for item in listing
            if item.status == ledger_pb2.TRANSACTION_STATUS_SETTLED
        ]
    for transfer in transfers:
        assert transfer.answer is not None
        times = int(transfer.answer.status == ledger_pb2.TRANSACTION_STATUS_SETTLED)
        assert histories[transfer.payer].count(transfer.answer.id) == times
        assert histories[transfer.payee].count(transfer.answer.id) == times


async def test_an_impatient_caller_learns_the_outcome(cluster: LocalCluster, gateway: str) -> None:
    async with (
        AsyncLedgerClient(gateway, timeout_s=0.3) as hasty,
        AsyncLedgerClient(gateway, timeout_s=PATIENCE_S) as client,
    ):
        accounts = await funded(client, cluster)
        payer, payee = accounts[HOME][0], accounts[3][0]
        transfer = Transfer(payer, payee, 40, new_request_id())
        victim = await leader(cluster, HOME)
        call = asyncio.create_task(transfer.send(hasty))
        await asyncio.sleep(0.004)
        await off_loop(partial(cluster.kill, victim))
        first = None
        with suppress(LedgerError):
            first = await call
        answer = await transfer.send(client)
        assert first in (None, answer)
        moved = 40 if answer.status == ledger_pb2.TRANSACTION_STATUS_SETTLED else 0
        assert (await client.get_account(payer)).settled_balance == FUNDS - moved
        assert (await client.get_account(payee)).settled_balance == FUNDS + moved
        await start_again(cluster, victim)
    await off_loop(partial(check_replicas, cluster))

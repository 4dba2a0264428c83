"""Part 2 of `history`: trial balances of many accounts while money moves between them.

Every account of a ledger of its own gets the same amount from outside; after that, money moves only
between them, across shards most of the time. So in every trial balance, of now or of a past moment:

- debits equal credits, in balances, in what was posted and in what is pending;
- customers and the money on its way between them have what they had; the world outside, too;
- all accounts are in it.

What a report said of a past moment, it says again in the end; and when all transfers have ended,
nothing is on its way.
"""

import argparse
import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from benchmarks.feeding import Feeder, median_ms, p99_ms, progress_bar
from ledger.v1 import ledger_pb2, reports_pb2
from ledger_cli.local_cluster import LocalCluster
from ledger_client import AsyncLedgerClient, LedgerError, credit, debit
from ledger_client.reports import AsyncReportClient
from ledger_cluster.shard_map import ShardMap
from ledger_core.commands import Command, CreateAccount, CreateTransaction
from ledger_core.ids import derive_account_id, new_request_id

BOOKS, CODES, FUNDS = "trial", 20, 1_000_00
SHARDS_AT_ONCE = 4
PAST_EVERY, PAST_AGE_S, KEPT = 4, 2.0, 20
REST_S = 30.0
CALL_S_MAX = 30.0


@dataclass
class Traffic:
    """Clients that move money between the accounts, until told to stop."""

    client: AsyncLedgerClient
    accounts: Sequence[str]
    rng: random.Random
    ended: int = 0
    refused: int = 0
    failed: int = 0
    stopping: bool = False

    async def run(self) -> None:
        """Make one transfer after the other: at once, or pending and then settled or cancelled."""
        while not self.stopping:
            payer, payee = self.rng.sample(self.accounts, 2)
            amount = self.rng.randint(1, FUNDS // 10)
            settled = self.rng.random() < 0.7
            try:
                made = await self.client.create_transaction(
                    entries=[debit(payer, amount), credit(payee, amount)],
                    ledger=BOOKS,
                    settled=settled,
                )
                if made.status == ledger_pb2.TRANSACTION_STATUS_PENDING:
                    if self.rng.random() < 0.7:
                        made = await self.client.settle_transaction(made.id)
                    else:
                        made = await self.client.cancel_transaction(made.id)
            except LedgerError:
                self.failed += 1
                continue
            if made.status in (
                ledger_pb2.TRANSACTION_STATUS_SETTLED,
                ledger_pb2.TRANSACTION_STATUS_CANCELLED,
            ):
                self.ended += 1
            else:
                self.refused += 1


class Samples:
    """Trial balances, how long they took, and what was wrong with them."""

    def __init__(self, client: AsyncReportClient, accounts: int) -> None:
        self._client = client
        self._accounts = accounts
        self.times: dict[str, list[float]] = {"now": [], "past": []}
        self.kept: dict[int, reports_pb2.TrialBalance] = {}
        self.in_transit = 0
        """In how many samples money was on its way."""
        self.faults: list[str] = []

    async def take(self, as_of_us: int | None = None) -> reports_pb2.TrialBalance:
        """Take one, and check it."""
        as_of = None if as_of_us is None else _moment(as_of_us)
        began = time.perf_counter()
        answer = await self._client.trial_balance(BOOKS, as_of=as_of)
        self.times["now" if as_of_us is None else "past"].append(time.perf_counter() - began)
        if len(answer.currencies) != 1:
            self.faults.append(f"trial balance: {len(answer.currencies)} currencies, not 1")
            return reports_pb2.TrialBalance()
        found = answer.currencies[0]
        moment = f"as of {as_of}" if as_of else "now"
        self.faults += [f"trial balance {moment}: {fault}" for fault in self._faults(found)]
        self.in_transit += any(_in_transit(found))
        return found

    async def take_again(self) -> None:
        """Ask once more for what was said of past moments."""
        for moment_us, before in self.kept.items():
            if _amounts(await self.take(moment_us)) != _amounts(before):
                self.faults.append(
                    f"trial balance as of {_moment(moment_us)}: it has changed since"
                )

    def _faults(self, found: reports_pb2.TrialBalance) -> list[str]:
        lines = found.lines
        customers = [line for line in lines if line.role == reports_pb2.LINE_ROLE_ACCOUNTS]
        inside = [line for line in lines if line.role != reports_pb2.LINE_ROLE_EXTERNAL]
        outside = [line for line in lines if line.role == reports_pb2.LINE_ROLE_EXTERNAL]
        funds = FUNDS * self._accounts
        equal = {
            "debit and credit totals": (found.total_debits, found.total_credits),
            "debit lines and their total": (
                sum(line.debit_balance for line in lines),
                found.total_debits,
            ),
            "credit lines and their total": (
                sum(line.credit_balance for line in lines),
                found.total_credits,
            ),
            "posted debits and credits": (
                sum(line.debits_posted for line in lines),
                sum(line.credits_posted for line in lines),
            ),
            "pending debits and credits": (
                sum(line.debits_pending for line in lines),
                sum(line.credits_pending for line in lines),
            ),
            "money inside and what came in": (_credits(inside), funds),
            "money outside and what went in": (-_credits(outside), funds),
            "accounts and those opened": (sum(line.accounts for line in customers), self._accounts),
        }
        return [f"{what} differ: {a} and {b}" for what, (a, b) in equal.items() if a != b]


async def run(cluster: LocalCluster, options: argparse.Namespace) -> list[str]:
    """Open and fund accounts, move money, take samples; return what was wrong."""
    async with (
        AsyncLedgerClient(cluster.gateway_address, timeout_s=CALL_S_MAX) as client,
        AsyncReportClient(cluster.gateway_address, timeout_s=CALL_S_MAX) as reports,
    ):
        began = time.monotonic()
        accounts = await _open(cluster, client, options.accounts)
        print(
            f"\nopened and funded: {len(accounts):,} accounts with {CODES} codes "
            f"in {time.monotonic() - began:.1f} s",
            flush=True,
        )
        samples = Samples(reports, len(accounts))
        rng = random.Random(options.seed)
        traffic = Traffic(client, accounts, rng)
        began_us = time.time_ns() // 1_000
        clients = [asyncio.create_task(traffic.run()) for _ in range(options.clients)]
        began = time.monotonic()
        try:
            await _sample(samples, options.samples, began_us, rng)
        finally:
            traffic.stopping = True
            took_s = time.monotonic() - began
            await asyncio.gather(*clients)
        rest = await _until_at_rest(samples)
        await samples.take_again()
    print(
        f"{options.samples:,} trial balances in {took_s:.1f} s, {options.clients} clients: "
        f"{traffic.ended:,} transfers ended ({traffic.ended / took_s:,.0f}/s), "
        f"{traffic.refused:,} refused, {traffic.failed:,} calls failed"
    )
    for what, seconds in samples.times.items():
        print(
            f"  {what:5} {len(seconds):6,}   median {median_ms(seconds):7.2f} ms   "
            f"p99 {p99_ms(seconds):7.2f} ms"
        )
    print(f"  money was on its way in {samples.in_transit:,} of them; {rest}")
    if not traffic.ended:
        samples.faults.append("no transfer ended while trial balances were taken")
    print(f"  balanced: {'every one' if not samples.faults else 'NOT ALL'}", flush=True)
    return samples.faults


async def _open(cluster: LocalCluster, client: AsyncLedgerClient, count: int) -> list[str]:
    """Make a ledger and its accounts, each with its funds."""
    chart = [
        ledger_pb2.ChartLine(
            code=str(2_000 + number),
            name=f"Wallets {number}",
            type=ledger_pb2.ACCOUNT_TYPE_LIABILITY,
        )
        for number in range(CODES)
    ]
    await client.create_ledger(BOOKS, [ledger_pb2.Currency(code="USD", exponent=2)], chart)
    shard_map = ShardMap(cluster.config)
    ids = [derive_account_id(BOOKS, f"a{number}") for number in range(count)]
    by_shard: dict[int, list[int]] = {}
    for number, account_id in enumerate(ids):
        by_shard.setdefault(shard_map.shard_of(account_id).id, []).append(number)

    def commands(numbers: list[int]) -> Iterator[Command]:
        for number in numbers:
            code = str(2_000 + number % CODES)
            yield CreateAccount(ids[number], BOOKS, f"a{number}", code=code)
        for number in numbers:
            yield CreateTransaction(ids[number], FUNDS, "funds", True, new_request_id())

    slots = asyncio.Semaphore(SHARDS_AT_ONCE)
    async with Feeder(cluster) as feeder:
        with progress_bar("accounts", 2 * count) as sent:

            async def fill(shard_id: int, numbers: list[int]) -> None:
                async with slots:
                    await feeder.send(shard_id, commands(numbers), sent)

            await asyncio.gather(*itertools.starmap(fill, by_shard.items()))
    return [f"{account_id:016x}" for account_id in ids]


async def _sample(samples: Samples, count: int, began_us: int, rng: random.Random) -> None:
    """Take trial balances one after the other, one in four as of a moment since ``began_us``."""
    with progress_bar("trial balances", count) as done:
        for number in range(count):
            # What is that old is final: what was stamped so has been committed, or never will be.
            latest_us = time.time_ns() // 1_000 - int(PAST_AGE_S * 1e6)
            if number % PAST_EVERY == 0:
                moment_us = rng.randint(began_us, max(began_us, latest_us))
                found = await samples.take(moment_us)
                if len(samples.kept) < KEPT:
                    samples.kept[moment_us] = found
            else:
                await samples.take()
            done(1)


async def _until_at_rest(samples: Samples) -> str:
    """Wait until nothing is on its way any more; say so."""
    deadline = time.monotonic() + REST_S
    while any(_in_transit(await samples.take())):
        if time.monotonic() > deadline:
            samples.faults.append(f"money is still on its way {REST_S:g} s after the last transfer")
            break
        await asyncio.sleep(0.2)
    return "nothing is in the end"


def _in_transit(found: reports_pb2.TrialBalance) -> list[int]:
    """Return balance and pending sums of the money on its way."""
    lines = [line for line in found.lines if line.role == reports_pb2.LINE_ROLE_IN_TRANSIT]
    return [
        _credits(lines),
        sum(line.debits_pending for line in lines),
        sum(line.credits_pending for line in lines),
    ]


def _amounts(found: reports_pb2.TrialBalance) -> reports_pb2.TrialBalance:
    """Leave out how many accounts a line has: that is as of now, and money in transit gets more."""
    amounts = reports_pb2.TrialBalance()
    amounts.CopyFrom(found)
    for line in amounts.lines:
        line.ClearField("accounts")
    return amounts


def _credits(lines: Sequence[reports_pb2.TrialBalanceLine]) -> int:
    return sum(line.credit_balance - line.debit_balance for line in lines)


def _moment(microseconds: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=microseconds)

"""Continuous writes that remember what was acknowledged, and hold the ledger to it afterwards.

For whoever breaks a cluster on purpose: the demo and the tests of the cluster.
"""

import asyncio
import itertools
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from ledger.v1 import ledger_pb2
from ledger_cli.output import status_name
from ledger_client import AsyncLedgerClient, LedgerError
from ledger_cluster.shard_map import ShardMap
from ledger_core.ids import new_request_id, parse_account_id

SETTLED = ledger_pb2.TRANSACTION_STATUS_SETTLED
INSUFFICIENT_FUNDS = ledger_pb2.TRANSACTION_STATUS_INSUFFICIENT_FUNDS

CLIENTS_PER_SHARD = 2
PAUSE_S = 0.04
AGAIN_S = 0.05
RESOLVE_ATTEMPTS = 3
CALLS_AT_ONCE = 16
PAGE_SIZE = 1_000

# A write that ended so may or may not have happened, or has not; the same request id tells.
_NO_ANSWER = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN"}

AccountsByShard = Mapping[int, Sequence[str]]


async def open_accounts(
    client: AsyncLedgerClient, shard_map: ShardMap, shard_ids: Iterable[int], count: int
) -> AccountsByShard:
    """Open ``count`` accounts, and more until each of the shards has one; return them by shard."""
    found: dict[int, list[str]] = {shard_id: [] for shard_id in shard_ids}
    missing = count
    while missing:
        todo = iter(range(missing))

        async def worker(todo: Iterable[int] = todo) -> None:
            for _ in todo:
                account = await client.create_account()
                shard = shard_map.shard_of(parse_account_id(account.id))
                found.setdefault(shard.id, []).append(account.id)

        await asyncio.gather(*(worker() for _ in range(min(CALLS_AT_ONCE, missing))))
        missing = sum(not account_ids for account_ids in found.values())
    return found


@dataclass
class Write:
    """A write that was sent: what it asks for, and the answer once there is one."""

    request_id: str
    account_id: str
    amount: int
    answer: ledger_pb2.Transaction | None = None
    failures: list[str] = field(default_factory=list)
    """The status of every call that ended without an answer."""

    @property
    def effect(self) -> int:
        """What it did to the balance."""
        return self.amount if self.answer and self.answer.status == SETTLED else 0


class Traffic:
    """Writes to all shards at once, from some clients for each; an async context manager.

    Each write has a request id of its own and is sent again under it until it is answered. The
    accounts must be new, and nobody else may use them.
    """

    def __init__(
        self,
        client: AsyncLedgerClient,
        accounts: AccountsByShard,
        *,
        clients_per_shard: int = CLIENTS_PER_SHARD,
        pause_s: float = PAUSE_S,
    ) -> None:
        self.writes: list[Write] = []
        self.clients = len(accounts) * clients_per_shard
        self._client = client
        self._accounts = accounts
        self._clients_per_shard = clients_per_shard
        self._pause_s = pause_s
        self._answered_at: dict[int, list[float]] = {shard_id: [] for shard_id in accounts}
        self._began = self._ended = 0.0
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._began = time.monotonic()
        self._tasks = [
            asyncio.create_task(self._write_on(shard_id, account_ids, random.Random(number)))  # noqa: S311
            for shard_id, account_ids in self._accounts.items()
            for number in range(self._clients_per_shard)
        ]
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._stopping = True
        if error is not None:
            for task in self._tasks:
                task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._ended = time.monotonic()
        if error is None:
            for result in results:
                if isinstance(result, BaseException):
                    raise result

    @property
    def acknowledged(self) -> list[Write]:
        """The writes that were answered: the ledger must keep these, each once."""
        return [write for write in self.writes if write.answer]

    @property
    def rate(self) -> float:
        """Acknowledged writes per second so far."""
        end = self._ended or time.monotonic()
        return sum(map(len, self._answered_at.values())) / max(end - self._began, 1e-9)

    def has_answers_since(self, moment: float) -> bool:
        """Whether every shard has acknowledged a write since then (`time.monotonic`)."""
        return all(times and times[-1] > moment for times in self._answered_at.values())

    def pauses_s(self, since: float, until: float) -> dict[int, float]:
        """Return `longest_pause_s` of every shard."""
        return {
            shard_id: self.longest_pause_s(shard_id, since, until) for shard_id in self._accounts
        }

    def longest_pause_s(self, shard_id: int, since: float, until: float) -> float:
        """Return the longest time between ``since`` and ``until`` without an acknowledged write.

        A pause counts whole if any part of it falls between the two.
        """
        times = [self._began, *self._answered_at[shard_id], time.monotonic()]
        return max(
            after - before
            for before, after in itertools.pairwise(times)
            if after > since and before < until
        )

    async def faults(self) -> list[str]:
        """Read everything back; return all that is not as it was acknowledged, in words.

        To be called after the traffic has ended. Resolves writes without an answer first, by
        repeating them under their request ids.
        """
        slots = asyncio.Semaphore(CALLS_AT_ONCE)
        writes: dict[str, list[Write]] = defaultdict(list)
        for write in self.writes:
            writes[write.account_id].append(write)

        async def faults_of(account_id: str) -> list[str]:
            async with slots:
                return await self._faults_of(account_id, writes[account_id])

        account_ids = [item for items in self._accounts.values() for item in items]
        found = await asyncio.gather(*map(faults_of, account_ids))
        return [fault for faults in found for fault in faults]

    async def _write_on(
        self, shard_id: int, account_ids: Sequence[str], rng: random.Random
    ) -> None:
        for account_id in itertools.cycle(account_ids):
            if self._stopping:
                return
            amount = rng.choice((1, 1, -1)) * rng.randint(1, 100_00)
            write = Write(new_request_id(), account_id, amount)
            self.writes.append(write)
            while not await self._send(write):
                if self._stopping:
                    return
                await asyncio.sleep(AGAIN_S)
            self._answered_at[shard_id].append(time.monotonic())
            await asyncio.sleep(self._pause_s * rng.uniform(0.5, 1.5))

    async def _send(self, write: Write) -> bool:
        """Send a write once more; return whether it was answered."""
        try:
            write.answer = await self._client.create_transaction(
                write.account_id,
                write.amount,
                "traffic",
                settled=True,
                request_id=write.request_id,
            )
        except LedgerError as error:
            if error.status not in _NO_ANSWER:
                raise
            write.failures.append(error.status)
        return write.answer is not None

    async def _faults_of(self, account_id: str, writes: list[Write]) -> list[str]:
        for write in writes:
            for _ in range(RESOLVE_ATTEMPTS):
                if write.answer or await self._send(write):
                    break
            else:
                return [f"account {account_id}: no answer to {write.request_id} even now"]
        read = self._client.list_transactions(account_id, page_size=PAGE_SIZE)
        listed = [transaction async for transaction in read]
        account = await self._client.get_account(account_id)
        return [f"account {account_id}: {fault}" for fault in differences(writes, listed, account)]


def differences(
    writes: list[Write], listed: list[ledger_pb2.Transaction], account: ledger_pb2.Account
) -> list[str]:
    """Hold what an account has against all writes to it; return in words what differs."""
    found = []
    answered = {write.answer.id: write.answer for write in writes if write.answer}
    recorded = {transaction.id: transaction for transaction in listed}
    if len(answered) < len(writes):
        found.append(f"{len(writes)} writes have only {len(answered)} transactions")
    for transaction_id, answer in answered.items():
        if transaction_id not in recorded:
            found.append(f"transaction {transaction_id} was acknowledged and is missing")
        elif recorded[transaction_id] != answer:
            found.append(f"transaction {transaction_id} is not as it was answered")
        if answer.status not in (SETTLED, INSUFFICIENT_FUNDS):
            found.append(f"transaction {transaction_id} is {status_name(answer.status)}")
    found += [f"transaction {item} was never asked for" for item in recorded.keys() - answered]
    times = Counter(transaction.request_id for transaction in listed)
    found += [
        f"request {item} is there {count} times" for item, count in times.items() if count > 1
    ]
    effects = sum(write.effect for write in writes)
    balances = {account.settled_balance, account.available_balance}
    if balances != {effects}:
        found.append(
            f"settled {account.settled_balance} and available {account.available_balance}, "
            f"but what was acknowledged sums to {effects}"
        )
    return found

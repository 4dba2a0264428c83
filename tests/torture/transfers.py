"""Clients that move money between random accounts on any shards, and record all they do.

The accounts of a bank get money by top-ups, and some lose a little by purchases; transfers, pending
ones and their ends, and reversals only move it. Every write has a request id of its own; what ends
without an answer is repeated under it, sometimes at once, else by `resolve`.
"""

import asyncio
import random
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from ledger.v1 import ledger_pb2
from ledger_client import AsyncLedgerClient, LedgerError, credit, debit
from ledger_cluster.shard_map import ShardMap
from ledger_core.ids import new_request_id
from tests.torture.progress import Progress
from tests.torture.report import Violation
from tests.torture.workload import PENDING, REFUSED, RESOLVE_ATTEMPTS, SETTLED, UNKNOWN, place

ACCOUNTS: Final = 100
CLIENTS: Final = 64
FUNDS: Final = 1_000
_HASTY_SHARE: Final = 0.2
_PAUSE_S: Final = 0.4
# Some of the newest transactions of each kind are kept to be ended, reversed and asked for again.
_KEPT: Final = 200
_LOOK_BACK: Final = 100

UNDECIDED = ledger_pb2.TRANSACTION_STATUS_UNDECIDED
# The ledger's answer to who comes too late, or wants too much; nothing was done.
_TOO_LATE = {
    "TRANSACTION_NOT_PENDING",
    "TRANSACTION_NOT_SETTLED",
    "SETTLE_AMOUNT",
    "REVERSAL_EXCEEDS",
}


@dataclass(slots=True)
class Step:
    """A write: what was asked, and the answer once there is one.

    ``kind``: move (of one account, in or out), transfer, settle, cancel or reverse. ``answer`` is
    False where the ledger says that it came too late. ``refused``: the ledger said that nothing was
    done, every time that it was asked.
    """

    kind: str
    account_id: str
    """The home account."""
    request_id: str
    entries: tuple[ledger_pb2.Entry, ...] = ()
    settled: bool = True
    expire_time: datetime | None = None
    amount: int = 0
    """Of a move; of the part that is settled, 0 for all."""
    amounts: tuple[int, ...] = ()
    """The parts that are reversed; all if there are none."""
    transaction_id: str = ""
    answer: Any = None
    refused: bool = False
    asked: int = 0

    @property
    def creates(self) -> bool:
        """Whether a new transaction comes of it."""
        return self.kind in ("move", "transfer", "reverse")


@dataclass
class Wallet:
    """An account of the bank."""

    id: str
    shard_id: int
    available: int = 0
    """A guess, for amounts near the floor."""
    versions: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Balances seen, by the account's version: there is one truth for each."""
    version_read: int = 0


class Bank:
    """Accounts on all shards and the clients that move money between them, until `stop`."""

    def __init__(
        self,
        client: AsyncLedgerClient,
        hasty: AsyncLedgerClient,
        shard_map: ShardMap,
        shard_ids: list[int],
        seed: int,
        progress: Progress,
        *,
        accounts: int = ACCOUNTS,
        clients: int = CLIENTS,
    ) -> None:
        self.wallets: dict[str, Wallet] = {}
        self.steps: list[Step] = []
        self.counts: Counter[str] = Counter()
        self.violations: list[Violation] = []
        self.total = 0
        """What all accounts had together when they were last checked."""
        self._client, self._hasty = client, hasty
        self._map = shard_map
        self._shard_ids = shard_ids
        self._rng = random.Random(seed)
        self._progress = progress
        self._accounts, self._clients = accounts, clients
        self._pending: deque[Step] = deque(maxlen=_KEPT)
        self._posted: deque[Step] = deque(maxlen=_KEPT)
        self._running = False
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Open new accounts, on all shards alike, and give each of them money."""
        self.wallets.clear()
        self.steps.clear()
        self._pending.clear()
        self._posted.clear()
        shard_ids = (self._shard_ids * (self._accounts // len(self._shard_ids) + 1))[
            : self._accounts
        ]
        await asyncio.gather(*map(self._open, shard_ids))

    def start(self) -> None:
        """Let the clients begin."""
        self._running = True
        self._tasks = [
            asyncio.create_task(self._work(random.Random(self._rng.random())))
            for _ in range(self._clients)
        ]

    async def stop(self) -> None:
        """Let the clients end what they are at."""
        self._running = False
        await asyncio.gather(*self._tasks)
        self._tasks = []

    async def abort(self) -> None:
        """End the clients where they are."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def failed_task(self) -> BaseException | None:
        """Return what ended a client before its time."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()):
                return error
        return None

    async def resolve(self) -> None:
        """Repeat every write whose outcome is not known until it is."""
        unknown = [step for step in self.steps if step.answer is None and not step.refused]
        slots = asyncio.Semaphore(24)

        async def ask(step: Step) -> None:
            async with slots:
                for _ in range(RESOLVE_ATTEMPTS):
                    await self.send(step)
                    if step.answer is not None:
                        return
                    await asyncio.sleep(0.3)
                self.violate(f"no answer to {step.kind} {step.request_id} even when healed")

        await asyncio.gather(*map(ask, unknown))

    async def outlive(self) -> None:
        """Wait until everything that is to expire by itself has done so."""
        times = [step.expire_time for step in self.steps if step.expire_time is not None]
        if times:
            left = max(times) - datetime.now(UTC) + timedelta(seconds=3)
            await asyncio.sleep(max(0.0, left.total_seconds()))

    async def ask_again(self, step: Step) -> None:
        """Repeat an acknowledged write: the answer must be the first one."""
        try:
            again = await self._call(self._client, step)
        except LedgerError as error:
            self.violate(f"the repeat of {step.kind} {step.request_id} failed: {error}")
            return
        if again != step.answer:
            self.violate(f"{step.kind} {step.request_id} was {step.answer}, then {again}")

    def violate(self, what: str) -> None:
        """Note what must not be."""
        self.violations.append(Violation(f"transfers: {what}"))

    async def _open(self, shard_id: int) -> None:
        request_id, account_id = place(self._map, shard_id)
        while True:
            try:
                await self._client.create_account(request_id=request_id)
                break
            except LedgerError as error:
                if error.status not in UNKNOWN | REFUSED:
                    raise
        self.wallets[account_id] = Wallet(account_id, shard_id, FUNDS)
        top_up = Step("move", account_id, new_request_id(), amount=FUNDS)
        self.steps.append(top_up)
        while top_up.answer is None:
            await self.send(top_up)

    async def _work(self, rng: random.Random) -> None:
        while self._running:
            await asyncio.sleep(_PAUSE_S * rng.uniform(0.3, 1.7))
            roll = rng.random()
            if roll < 0.14:
                await self._read(rng.choice(list(self.wallets.values())), stale=roll < 0.04)
                continue
            if roll < 0.18 and self._posted:
                await self._look_up(rng.choice(self._posted))
                continue
            step = self._choose(rng)
            self.steps.append(step)
            await self.send(step, hasty=rng.random() < _HASTY_SHARE)
            if step.answer is None and rng.random() < 0.6:
                await asyncio.sleep(0.2)
                await self.send(step)
            if step.kind == "transfer" and step.answer and rng.random() < 0.12:
                await self._look_back(step, rng)

    def _choose(self, rng: random.Random) -> Step:
        roll = rng.random()
        if roll < 0.2 and self._pending:
            # Now and then two clients end the same one: only one of them may succeed.
            pending = rng.choice(self._pending)
            if rng.random() < 0.9:
                self._pending.remove(pending)
            return self._end(pending, rng)
        if roll < 0.27 and self._posted:
            return self._reverse(rng.choice(self._posted), rng)
        if roll < 0.31:
            wallet = rng.choice(list(self.wallets.values()))
            amount = rng.choice((1, 1, -1)) * rng.randint(1, 50)
            return Step("move", wallet.id, new_request_id(), amount=amount)
        settled = rng.random() < 0.7
        expire_time = None
        if not settled and rng.random() < 0.15:
            expire_time = datetime.now(UTC) + timedelta(seconds=rng.uniform(1.0, 15.0))
        entries = self._entries(rng)
        return Step(
            "transfer",
            entries[0].account_id,
            new_request_id(),
            entries=entries,
            settled=settled,
            expire_time=expire_time,
        )

    def _entries(self, rng: random.Random) -> tuple[ledger_pb2.Entry, ...]:
        """Return entries from one account or two to one or two others, in any order."""
        parties = rng.sample(list(self.wallets.values()), rng.choice((2, 2, 2, 3, 4)))
        payers = parties[: max(1, len(parties) // 2)]
        payees = parties[len(payers) :]
        paid = []
        for payer in payers:
            near = payer.available + rng.choice((-1, 0, 1, rng.randint(1, 500)))
            paid.append(max(2, near if rng.random() < 0.15 else rng.randint(2, 120)))
        total = sum(paid)
        first = rng.randint(1, total - 1) if len(payees) == 2 else total
        entries = [debit(w.id, amount) for w, amount in zip(payers, paid, strict=True)]
        entries += [
            credit(w.id, amount)
            for w, amount in zip(payees, (first, total - first)[: len(payees)], strict=True)
        ]
        rng.shuffle(entries)
        return tuple(entries)

    def _end(self, pending: Step, rng: random.Random) -> Step:
        kind, amount = rng.choice(("settle", "settle", "settle", "cancel")), 0
        if kind == "settle" and len(pending.entries) == 2 and rng.random() < 0.4:
            amount = rng.randint(1, pending.entries[0].amount)
        return Step(
            kind,
            pending.account_id,
            new_request_id(),
            amount=amount,
            transaction_id=pending.answer.id,
        )

    def _reverse(self, posted: Step, rng: random.Random) -> Step:
        amounts: tuple[int, ...] = ()
        if len(posted.entries) == 2 and rng.random() < 0.5:
            amounts = (rng.randint(1, posted.entries[0].amount),) * 2
        return Step(
            "reverse",
            posted.account_id,
            new_request_id(),
            amounts=amounts,
            transaction_id=posted.answer.id,
        )

    async def send(self, step: Step, *, hasty: bool = False) -> None:
        """Make the call once more, and record how it ended."""
        step.asked += 1
        try:
            answer = await self._call(self._hasty if hasty else self._client, step)
        except LedgerError as error:
            if error.status in REFUSED and error.reason:
                # Only if no other attempt can have had an effect.
                step.refused = step.asked == 1 or step.refused
                self.counts["calls refused"] += 1
            elif error.status in UNKNOWN:
                step.refused = False
                self.counts["calls without an answer"] += 1
            else:
                step.answer = False
                self.violate(f"{step.kind} {step.request_id}: {error}")
            return
        step.refused = False
        if step.answer is not None:
            if answer != step.answer:
                self.violate(f"{step.kind} {step.request_id} was {step.answer}, then {answer}")
            return
        step.answer = answer
        self._learn(step)

    async def _call(self, client: AsyncLedgerClient, step: Step) -> Any:
        try:
            match step.kind:
                case "move":
                    return await client.create_transaction(
                        step.account_id, step.amount, settled=True, request_id=step.request_id
                    )
                case "transfer":
                    return await client.create_transaction(
                        entries=step.entries,
                        settled=step.settled,
                        expire_time=step.expire_time,
                        request_id=step.request_id,
                    )
                case "settle":
                    return await client.settle_transaction(
                        step.transaction_id, amount=step.amount, request_id=step.request_id
                    )
                case "cancel":
                    return await client.cancel_transaction(
                        step.transaction_id, request_id=step.request_id
                    )
                case _:
                    return await client.reverse_transaction(
                        step.transaction_id, step.amounts, request_id=step.request_id
                    )
        except LedgerError as error:
            # A transfer that never arrived may not be made any more once its expiry has passed.
            if error.reason in _TOO_LATE or (step.expire_time and "expire_time" in error.message):
                return False
            raise

    def _learn(self, step: Step) -> None:
        """Check an answer at once as far as can be, and learn what the next steps may need."""
        now, answer = time.monotonic(), step.answer
        self._progress.add(self.wallets[step.account_id].shard_id, now)
        if answer is False:
            self.counts["ends and reversals that came too late"] += 1
            return
        if step.kind == "transfer" and tuple(answer.entries) != _filled(step.entries, answer):
            self.violate(f"{step.request_id} was answered with other entries: {answer}")
        if answer.status == UNDECIDED:
            self.violate(f"{step.kind} {step.request_id} was answered undecided")
        done = answer.status in (SETTLED, PENDING) or step.kind == "cancel"
        if step.kind != "move":
            status = ledger_pb2.TransactionStatus.Name(answer.status)
            name = status.removeprefix("TRANSACTION_STATUS_").lower()
            refusal = f": {answer.refusal.reason}" if name == "rejected" else ""
            self.counts[f"{step.kind} {name}{refusal}"] += 1
            self.counts["acknowledged" if done else "refused"] += 1
        if not done:
            return
        shards = {self.wallets[item.account_id].shard_id for item in step.entries}
        for shard_id in shards - {self.wallets[step.account_id].shard_id}:
            self._progress.add(shard_id, now)
        self.counts["acknowledged across shards"] += len(shards) > 1
        for entry in step.entries:
            sign = 1 if entry.direction == ledger_pb2.DIRECTION_CREDIT else -1
            if answer.status == SETTLED or sign < 0:
                self.wallets[entry.account_id].available += sign * entry.amount
        if step.kind == "transfer":
            (self._pending if answer.status == PENDING else self._posted).append(step)

    async def _read(self, wallet: Wallet, *, stale: bool) -> None:
        floor = wallet.version_read
        try:
            seen = await self._client.get_account(wallet.id, stale=stale)
        except LedgerError as error:
            if error.status not in UNKNOWN | REFUSED | ({"NOT_FOUND"} if stale else set()):
                self.violate(f"a read of {wallet.id}: {error}")
            return
        self.counts["reads with no balance below its floor"] += 1
        balances = (seen.settled_balance, seen.available_balance)
        if seen.available_balance < 0:
            self.violate(f"account {wallet.id} is overdrawn: {balances}")
        if wallet.versions.setdefault(seen.version, balances) != balances:
            before = wallet.versions[seen.version]
            self.violate(f"{wallet.id}: version {seen.version} was {before}, now {balances}")
        if not stale:
            wallet.available = seen.available_balance
            if seen.version < floor:
                self.violate(f"{wallet.id}: read version {seen.version} after {floor}")
            wallet.version_read = max(wallet.version_read, seen.version)

    async def _look_back(self, step: Step, rng: random.Random) -> None:
        """What was acknowledged is in the next read of any of its accounts, decided."""
        account_id = rng.choice(step.entries).account_id
        try:
            page = await self._client.list_transactions_page(account_id, page_size=_LOOK_BACK)
        except LedgerError as error:
            if error.status not in UNKNOWN | REFUSED:
                self.violate(f"a list of {account_id}: {error}")
            return
        there = [item for item in page.transactions if item.id == step.answer.id]
        if len(there) == 1 and there[0].status != UNDECIDED:
            self.counts["acknowledged transfers seen in the next list of an account"] += 1
        elif there or (len(page.transactions) < _LOOK_BACK and _happened(step)):
            self.violate(f"{account_id} shows {there} right after {step.answer}")

    async def _look_up(self, step: Step) -> None:
        """What became of a request: what was answered, or what came of it since."""
        try:
            found = await self._client.get_transaction(
                account_id=step.account_id, request_id=step.request_id
            )
        except LedgerError as error:
            if error.status not in UNKNOWN | REFUSED:
                self.violate(f"the outcome of {step.request_id}: {error}")
            return
        self.counts["outcomes by account and request id as answered"] += 1
        if (found.id, found.entries, found.status) != (
            step.answer.id,
            step.answer.entries,
            step.answer.status,
        ):
            self.violate(f"{step.request_id} was answered {step.answer}, and became {found}")


def _happened(step: Step) -> bool:
    return step.answer.status in (SETTLED, PENDING)


def _filled(
    entries: tuple[ledger_pb2.Entry, ...], answer: ledger_pb2.Transaction
) -> tuple[ledger_pb2.Entry, ...]:
    """Return the entries as an answer shows them."""
    return tuple(
        ledger_pb2.Entry(
            account_id=entry.account_id,
            direction=entry.direction,
            amount=entry.amount,
            currency=answer.currency,
            currency_exponent=answer.currency_exponent,
        )
        for entry in entries
    )

"""Clients that move money and record all they do and see.

Every account is used for a bounded number of operations by two clients at once, then retired: short
histories can be searched for a linearization. Every write has a request id of its own. What ends
without an answer is repeated under it, by some clients at once, for the rest by `resolve`.
"""

import asyncio
import random
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, Final

from ledger.v1 import ledger_pb2
from ledger_client import AsyncLedgerClient, LedgerError
from ledger_cluster.shard_map import ShardMap
from ledger_core.ids import derive_account_id, format_account_id, new_request_id
from ledger_core.ledgers import MAIN_NAME
from tests.torture.progress import Progress
from tests.torture.report import Violation

OPERATIONS_PER_ACCOUNT: Final = 36
CLIENTS_PER_SHARD: Final = 2
CALL_TIMEOUT_S: Final = 6.0
# Some callers have less patience than a failover takes: their outcomes are unknown.
HASTY_TIMEOUT_S: Final = 0.25
_HASTY_SHARE: Final = 0.25
RESOLVE_ATTEMPTS: Final = 12
_PAUSE_S: Final = 0.1

PENDING = ledger_pb2.TRANSACTION_STATUS_PENDING
SETTLED = ledger_pb2.TRANSACTION_STATUS_SETTLED
CANCELLED = ledger_pb2.TRANSACTION_STATUS_CANCELLED
INSUFFICIENT_FUNDS = ledger_pb2.TRANSACTION_STATUS_INSUFFICIENT_FUNDS

# The ledger itself says that nothing was done. Without a reason of the ledger's own the answer came
# from somewhere in between, and the outcome is unknown.
REFUSED = {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}
UNKNOWN = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN"}


@dataclass(slots=True)
class Operation:
    """A call: what was asked, when, and how it ended.

    ``kind``: open, create, settle, cancel, read, stale read or list. ``end_s`` is None while the
    outcome is not known. ``refused``: the ledger said that nothing was done, and why. ``answer`` is
    what came back, or for settle and cancel False where the transaction was not pending any more.
    """

    kind: str
    start_s: float
    request_id: str = ""
    amount: int = 0
    settled: bool = True
    transaction_id: str = ""
    end_s: float | None = None
    answer: Any = None
    refused: str = ""

    @property
    def is_write(self) -> bool:
        """Whether it changes anything."""
        return bool(self.request_id)

    @property
    def is_known(self) -> bool:
        """Whether it is known what became of it."""
        return self.end_s is not None or bool(self.refused)

    def __str__(self) -> str:
        end = "no answer" if self.end_s is None else f"answered at {self.end_s:.3f}"
        answer = "not pending" if self.answer is False else ""
        return (
            f"{self.kind} {self.request_id} at {self.start_s:.3f} s, {end} {answer}{self.refused}"
        )


@dataclass
class Account:
    """An account and everything that was ever asked about it."""

    id: str
    shard_id: int
    operations: list[Operation] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)
    """Transactions that are pending, as far as the clients know."""
    versions: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Balances seen, by the account's version: there is one truth for each."""
    version_read: int = 0
    acknowledged: set[str] = field(default_factory=set)
    available: int = 0
    """A guess, for amounts near the floor."""


class Workload:
    """Clients for every shard, until `stop`. ``violations`` gets whatever must not be."""

    def __init__(
        self,
        client: AsyncLedgerClient,
        hasty: AsyncLedgerClient,
        shard_map: ShardMap,
        shard_ids: list[int],
        seed: int,
        progress: Progress,
    ) -> None:
        self.accounts: list[Account] = []
        """All accounts since `take_accounts`."""
        self.counts: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.violations: list[Violation] = []
        self._client = client
        self._hasty = hasty
        self._map = shard_map
        self._shard_ids = shard_ids
        self._rng = random.Random(seed)
        self._progress = progress
        self._active: dict[int, Account] = {}
        self._opening: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._running = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Let the clients begin, on new accounts."""
        self._active.clear()
        self._running = True
        self._tasks = [
            asyncio.create_task(self._work(shard_id, random.Random(self._rng.random())))
            for shard_id in self._shard_ids
            for _ in range(CLIENTS_PER_SHARD)
        ]

    async def stop(self) -> None:
        """Let the clients end what they are at."""
        self._running = False
        await asyncio.gather(*self._tasks)
        self._tasks = []

    async def abort(self) -> None:
        """End the clients where they are; what they have under way stays unknown."""
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

    def take_accounts(self) -> list[Account]:
        """Return all accounts since the last call; the clients must have stopped."""
        accounts, self.accounts = self.accounts, []
        return accounts

    async def resolve(self, account: Account) -> None:
        """Repeat every write whose outcome is not known until it is."""
        for operation in account.operations:
            if not operation.is_write or operation.is_known:
                continue
            for _ in range(RESOLVE_ATTEMPTS):
                await self._send(account, operation)
                # Refused now, but an earlier attempt may have had its effect.
                operation.refused = ""
                if operation.end_s is not None:
                    break
                await asyncio.sleep(0.3)
            else:
                self._violate(account, f"no answer to {operation.request_id} even when healed")

    async def repeat(self, account: Account, operation: Operation) -> None:
        """Ask for an acknowledged write again: the answer must be the first one."""
        try:
            again = await self._call(account, operation)
        except LedgerError as error:
            self._violate(account, f"the repeat of {operation.request_id} failed: {error}")
            return
        self.counts["repeated"] += 1
        if again != operation.answer:
            self._violate(
                account,
                f"request {operation.request_id} was answered {operation.answer}, then {again}",
            )

    async def _work(self, shard_id: int, rng: random.Random) -> None:
        while self._running:
            account = await self._account(shard_id)
            if account is not None:
                await self._step(account, rng)
            await asyncio.sleep(_PAUSE_S * rng.uniform(0.3, 1.7))

    async def _account(self, shard_id: int) -> Account | None:
        """Return the account in use on a shard, or open the next one; None if that fails."""
        async with self._opening[shard_id]:
            account = self._active.get(shard_id)
            if account is not None and len(account.operations) < OPERATIONS_PER_ACCOUNT:
                return account
            self._active.pop(shard_id, None)
            request_id, account_id = place(self._map, shard_id)
            account = Account(account_id, shard_id)
            self.accounts.append(account)
            opening = Operation("open", time.monotonic(), request_id)
            account.operations.append(opening)
            while self._running and opening.end_s is None:
                await self._send(account, opening)
                opening.refused = ""
            if opening.end_s is None:
                return None
            self._active[shard_id] = account
            return account

    async def _step(self, account: Account, rng: random.Random) -> None:
        operation = self._choose(account, rng)
        account.operations.append(operation)
        await self._send(account, operation, hasty=rng.random() < _HASTY_SHARE)
        if operation.is_write and not operation.is_known and rng.random() < 0.5:
            for _ in range(3):
                await asyncio.sleep(0.2)
                await self._send(account, operation)
                operation.refused = ""
                if operation.end_s is not None or not self._running:
                    break

    def _choose(self, account: Account, rng: random.Random) -> Operation:
        now = time.monotonic()
        roll = rng.random()
        if roll < 0.16:
            return Operation("read", now)
        if roll < 0.21:
            return Operation("stale read", now)
        if roll < 0.25:
            return Operation("list", now)
        if roll < 0.45 and account.pending:
            kind = rng.choice(("settle", "settle", "cancel"))
            # Sometimes both clients end the same one: only one of them may succeed.
            place = rng.randrange(len(account.pending))
            chosen = account.pending[place]
            if rng.random() < 0.9:
                account.pending.pop(place)
            return Operation(kind, now, new_request_id(), transaction_id=chosen)
        if account.available < 50 or roll < 0.62:
            amount = rng.randint(1, 300)
        else:
            near = account.available
            amount = -max(1, rng.choice((near, near + 1, near - 1, near // 2, rng.randint(1, 60))))
        return Operation("create", now, new_request_id(), amount, settled=rng.random() < 0.7)

    async def _send(self, account: Account, operation: Operation, *, hasty: bool = False) -> None:
        """Make the call once more, and record how it ended."""
        floor, acknowledged = account.version_read, set(account.acknowledged)
        try:
            answer = await self._call(account, operation, hasty=hasty)
        except LedgerError as error:
            if error.status in REFUSED and error.reason:
                operation.refused = f"{error.status} {error.reason}: {error.message}"
                self.counts["refused"] += 1
                self.refusals[error.status] += 1
            elif error.status in UNKNOWN:
                self.counts["unknown"] += 1
            elif operation.kind == "stale read" and error.status == "NOT_FOUND":
                operation.refused = "that replica does not know the account yet"
            else:
                operation.end_s = time.monotonic()
                self._violate(account, f"{operation.kind} {operation.request_id}: {error}")
            return
        operation.end_s = time.monotonic()
        operation.answer = answer
        self.counts["acknowledged"] += 1
        if operation.is_write:
            self.counts["acknowledged writes"] += 1
            self._progress.add(account.shard_id, operation.end_s)
        self._look_at(account, operation, floor, acknowledged)

    async def _call(self, account: Account, operation: Operation, *, hasty: bool = False) -> Any:
        client = self._hasty if hasty else self._client
        request_id = operation.request_id or None
        match operation.kind:
            case "open":
                return await client.create_account(request_id=request_id)
            case "create":
                return await client.create_transaction(
                    account.id,
                    operation.amount,
                    operation.kind,
                    settled=operation.settled,
                    request_id=request_id,
                )
            case "settle" | "cancel":
                end = getattr(client, f"{operation.kind}_transaction")
                try:
                    return await end(operation.transaction_id, request_id=request_id)
                except LedgerError as error:
                    if error.reason == "TRANSACTION_NOT_PENDING":
                        return False
                    raise
            case "list":
                return [item async for item in client.list_transactions(account.id)]
        return await client.get_account(account.id, stale=operation.kind == "stale read")

    def _look_at(
        self, account: Account, operation: Operation, floor: int, acknowledged: set[str]
    ) -> None:
        """Check at once what can be, and learn what the next operations may need."""
        answer = operation.answer
        match operation.kind:
            case "open":
                if answer.id != account.id:
                    self._violate(account, f"opened under another id: {answer.id}")
            case "create":
                account.acknowledged.add(answer.id)
                if answer.status == PENDING:
                    account.pending.append(answer.id)
                if answer.status == SETTLED or (answer.status == PENDING and answer.amount < 0):
                    account.available += answer.amount
            case "list":
                if missing := acknowledged - {item.id for item in answer}:
                    self._violate(account, f"a list misses what was acknowledged: {missing}")
            case "read" | "stale read":
                self._look_at_balances(account, answer, operation.kind == "read", floor)

    def _look_at_balances(
        self, account: Account, seen: ledger_pb2.Account, fresh: bool, floor: int
    ) -> None:
        balances = (seen.settled_balance, seen.available_balance)
        if seen.available_balance < 0:
            self._violate(account, f"overdrawn: {balances}")
        if account.versions.setdefault(seen.version, balances) != balances:
            self._violate(
                account,
                f"version {seen.version} was {account.versions[seen.version]}, now {balances}",
            )
        if fresh:
            account.available = seen.available_balance
            if seen.version < floor:
                self._violate(account, f"a read went back from version {floor} to {seen.version}")
            account.version_read = max(account.version_read, seen.version)

    def _violate(self, account: Account, what: str) -> None:
        self.violations.append(
            Violation(f"account {account.id} (shard {account.shard_id}): {what}")
        )


def place(shard_map: ShardMap, shard_id: int) -> tuple[str, str]:
    """Return a request id for an account that falls on the shard, and the account's id."""
    while True:
        request_id = new_request_id()
        account_id = derive_account_id(MAIN_NAME, request_id)
        if shard_map.shard_of(account_id).id == shard_id:
            return request_id, format_account_id(account_id)

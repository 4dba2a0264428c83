"""Shards that answer what a test tells them to, and remember what they were asked."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from ledger_cluster.shards import Answer, Attempts
from ledger_core.accounts import AccountState, AccountType, Direction, TransactionStatus
from ledger_core.commands import NO_SOURCE, Command, Source
from ledger_core.queries import Query
from ledger_core.results import AccountView, EntryView, Result, TransactionView

ACCOUNT_ID = 0x0123456789ABCDEF
ACCOUNT = "0123456789abcdef"
TRANSACTION = "0123456789abcdef0000000000000007"

ACCOUNT_VIEW = AccountView(
    account_id=ACCOUNT_ID,
    ledger="main",
    type=AccountType.LIABILITY,
    state=AccountState.OPEN,
    currency="USD",
    currency_exponent=2,
    settled_balance=900,
    available_balance=850,
    debits_posted=100,
    credits_posted=1_000,
    debits_pending=50,
    credits_pending=25,
    pending_transactions=2,
    version=4,
    create_time_us=1_700_000_000_000_001,
    update_time_us=1_700_000_000_999_999,
)

TRANSACTION_VIEW = TransactionView(
    account_id=ACCOUNT_ID,
    number=7,
    amount=-50,
    description="coffee ☕",
    status=TransactionStatus.PENDING,
    ledger="main",
    currency="USD",
    currency_exponent=2,
    entries=[
        EntryView(ACCOUNT_ID, Direction.DEBIT, 50, "USD"),
        EntryView(1, Direction.CREDIT, 50, "USD"),
    ],
    refusal=None,
    request_id="request-1",
    create_time_us=1_700_000_000_000_001,
    update_time_us=1_700_000_000_999_999,
    effective_time_us=1_700_000_000_000_000,
)


@dataclass
class Call:
    """What the shards were asked."""

    account_id: int
    """What it routed by; -1 for a query to one shard."""
    message: Command | Query
    """A command without its source, which has the caller's port in it."""
    timeout_s: float
    stale: bool | None = None
    shard_id: int = -1
    source: Source = NO_SOURCE


@dataclass
class FakeShards:
    """Implements `ledger_cluster.shards.Shards`."""

    result: Result | Exception = ACCOUNT_VIEW
    results: list[Result] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    serving: dict[int, bool] | Exception = field(default_factory=lambda: {0: True, 1: True})
    hold: asyncio.Event | None = None
    cancelled: bool = False
    answer: Callable[[Call], Result | Exception | None] | None = None
    """Asked first; where it says None, ``results`` and ``result`` count."""
    shard_count: int = 4
    reached_node: bool = True
    """What it says of the attempts to send a command."""

    @property
    def messages(self) -> list[Command | Query]:
        return [call.message for call in self.calls]

    def shard_ids(self) -> list[int]:
        return list(range(self.shard_count))

    def shard_bounds(self, shard_id: int) -> tuple[int, int]:
        width = 2**32 // self.shard_count
        return shard_id * width, (shard_id + 1) * width - 1

    def shard_id_of(self, account_id: int) -> int:
        return account_id % self.shard_count

    async def execute(
        self,
        account_id: int,
        command: Command,
        timeout_s: float,
        attempts: Attempts | None = None,
    ) -> Result:
        if attempts is not None:
            attempts.reached_node = self.reached_node
        source = getattr(command, "source", NO_SOURCE)
        if source != NO_SOURCE:
            command = msgspec.structs.replace(command, source=NO_SOURCE)
        shard_id = self.shard_id_of(account_id)
        return await self._result(
            Call(account_id, command, timeout_s, shard_id=shard_id, source=source)
        )

    async def query(
        self, account_id: int, query: Query, timeout_s: float, *, stale: bool = False
    ) -> Answer:
        call = Call(account_id, query, timeout_s, stale, self.shard_id_of(account_id))
        return await self._answer(call)

    async def query_shard(
        self, shard_id: int, query: Query, timeout_s: float, *, stale: bool = False
    ) -> Answer:
        return await self._answer(Call(-1, query, timeout_s, stale, shard_id))

    async def serving_shards(self) -> dict[int, bool]:
        if isinstance(self.serving, Exception):
            raise self.serving
        return dict(self.serving)

    async def close(self) -> None:
        pass

    async def _answer(self, call: Call) -> Answer:
        result = await self._result(call)
        return Answer(result, call.shard_id, applied_index=41, age_ms=5 if call.stale else 0)

    async def _result(self, call: Call) -> Result:
        self.calls.append(call)
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        answered = self.answer(call) if self.answer else None
        result = answered or (self.results.pop(0) if self.results else self.result)
        if isinstance(result, Exception):
            raise result
        return result


async def until(condition: Callable[[], bool]) -> None:
    """Wait, within bounds, until the condition holds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for does not know of the test
            await asyncio.sleep(0.001)

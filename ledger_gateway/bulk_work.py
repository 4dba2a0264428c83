"""How the items of a bulk call reach the shards: in blocks where they can, else alone.

A block goes to one shard. Blocks of a shard go one after the other, so that its items happen in
their order; shards do not wait for each other. What failed is an outcome like any other: the items
of a call are independent.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ledger_core.commands import CreateTransaction, CreateTransfers, Source
from ledger_core.errors import LedgerError, OverloadedError, ShardUnavailableError
from ledger_core.results import TransactionView, TransfersView
from ledger_gateway.errors import unwrap
from ledger_gateway.shard_calls import Deadline, ShardCalls
from ledger_gateway.transfer_columns import BLOCK_AMOUNT_END, Columns, IndexArray, Terms

COMMANDS_IN_WORK_MAX = 256
"""Of one call: how many commands are on their way at once."""

ALONE_IN_WORK_MAX = 256
"""Of all bulk calls of a gateway together: how many transfers that go alone, mostly those across
shards. With thousands at once the shards would not vote on all of them in time, and refuse some."""

BYTES_IN_WORK_MAX = 64 << 20
"""Of all bulk calls of a gateway together."""

Job = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class Outcomes:
    """What became of transfers: of those in blocks, block by block, and of those that went alone.

    Blocks come with their items, as places in the columns.
    """

    blocks: list[tuple[IndexArray, TransfersView | LedgerError]] = field(default_factory=list)
    singles: dict[int, TransactionView | LedgerError] = field(default_factory=dict)


@dataclass(slots=True)
class Transfers:
    """Transfers with the same terms, and what became of them."""

    columns: Columns
    terms: Terms
    outcomes: Outcomes = field(default_factory=Outcomes)


class Room:
    """Bounds what is in work. In ``units``: a call is refused without room, a stream waits.

    ``alone`` has a place for each transfer that may be on its way alone.
    """

    def __init__(
        self, size_max: int = BYTES_IN_WORK_MAX, units: str = "bytes of bulk calls"
    ) -> None:
        self._size_max = size_max
        self._units = units
        self._size = 0
        self._waiting: list[asyncio.Future[None]] = []
        self.alone = asyncio.Semaphore(ALONE_IN_WORK_MAX)

    def require(self, size: int) -> None:
        """Raise OverloadedError where there is no room for ``size`` now."""
        if not self._has(size):
            raise OverloadedError(
                f"{self._size:,} {self._units} are in work already; try again later"
            )

    async def wait(self, size: int) -> None:
        """Wait until there is room: what is in work ends within its deadline."""
        while not self._has(size):
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            finally:
                self._waiting.remove(waiter)

    def take(self, size: int) -> None:
        """Hold ``size``, for which there is room."""
        self._size += size

    def release(self, size: int) -> None:
        """Give them back, and let those who wait look."""
        self._size -= size
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _has(self, size: int) -> bool:
        """One request that is alone has room always."""
        return not self._size or self._size + size <= self._size_max


async def run(jobs: Sequence[Job], at_once_max: int = COMMANDS_IN_WORK_MAX) -> None:
    """Run jobs, begun in their order, at most ``at_once_max`` of them at once."""
    waiting = iter(jobs)

    async def work() -> None:
        for job in waiting:
            await job()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(len(jobs), at_once_max)):
            group.create_task(work())


def jobs_of(
    shards: ShardCalls, transfers: Transfers, source: Source, deadline: Deadline, room: Room
) -> list[Job]:
    """Return what is to be done for transfers; their outcomes are filled in by it."""
    columns = transfers.columns
    home = shards.shard_ids_of(columns.first)
    other = np.where(columns.second == 0, home, shards.shard_ids_of(columns.second))
    alone = (home != other) | (columns.amounts >= BLOCK_AMOUNT_END)
    jobs: list[Job] = []
    items = np.flatnonzero(~alone)
    # Shard by shard, each in the order of the request.
    items = items[np.argsort(home[items], kind="stable")]
    ends = np.flatnonzero(np.diff(home[items])) + 1
    for of_shard in np.split(items, ends) if len(items) else []:
        blocks = list(columns.cut(of_shard))
        jobs.append(partial(_send_blocks, shards, transfers, blocks, source, deadline))
    for item in np.flatnonzero(alone).tolist():
        shard_ids = (int(home[item]), int(other[item]))
        command = partial(columns.single, item, shard_ids, transfers.terms, source)
        single = partial(_send_single, shards, transfers.outcomes, item, command, deadline)
        jobs.append(partial(in_place, room.alone, single))
    return jobs


async def in_place(places: asyncio.Semaphore, job: Job) -> None:
    """Do a job once there is a place for it."""
    async with places:
        await job()


async def _send_blocks(
    shards: ShardCalls,
    transfers: Transfers,
    blocks: Sequence[IndexArray],
    source: Source,
    deadline: Deadline,
) -> None:
    """Send the blocks of one shard. What comes after a failed one is not sent: it would overtake.

    So a repeat of the call does them in their order.
    """
    failed: LedgerError | None = None
    for items in blocks:
        if failed is not None:
            transfers.outcomes.blocks.append((items, failed))
            continue
        command = transfers.columns.block(items, transfers.terms, source)
        outcome = await _block_outcome(shards, command, deadline)
        transfers.outcomes.blocks.append((items, outcome))
        if isinstance(outcome, LedgerError):
            failed = ShardUnavailableError(
                "an earlier transfer of the call has no result, and this one was not to overtake "
                "it; nothing was done, try again"
            )


async def _block_outcome(
    shards: ShardCalls, command: CreateTransfers, deadline: Deadline
) -> TransfersView | LedgerError:
    try:
        _require_time(deadline)
        return unwrap(await shards.execute(command, deadline), TransfersView)
    except LedgerError as error:
        return error


async def _send_single(
    shards: ShardCalls,
    outcomes: Outcomes,
    item: int,
    make: Callable[[], CreateTransaction],
    deadline: Deadline,
) -> None:
    try:
        _require_time(deadline)
        result = await shards.execute(make(), deadline)
        outcomes.singles[item] = unwrap(result, TransactionView)
    except LedgerError as error:
        outcomes.singles[item] = error


def _require_time(deadline: Deadline) -> None:
    """Raise ShardUnavailableError where the call's time is over: what is sent now may get lost."""
    if deadline.time_remaining() <= 0:
        raise ShardUnavailableError("the call's time was over; nothing was done, try again")

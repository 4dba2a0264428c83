"""How the items of a bulk call reach the shards: in blocks where they can, else alone.

Items whose accounts are all on one shard go in blocks to it, which they share with items of other
calls. Blocks of a call for a shard go one after the other, so that its items happen in their order;
shards do not wait for each other. Items between two shards go through the steps in
`transfers_across`. What failed is an outcome like any other: the items of a call are independent.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

from ledger_core.commands import Source
from ledger_core.errors import LedgerError, OverloadedError, ShardUnavailableError
from ledger_core.results import TransfersView
from ledger_gateway.block_kinds import CREATE
from ledger_gateway.block_lanes import OVERTIME_S, Answer, Lane, Lanes, Round
from ledger_gateway.shard_calls import Deadline, ShardCalls
from ledger_gateway.transfer_columns import BLOCK_AMOUNT_END, IndexArray
from ledger_gateway.transfer_pieces import Part, PlacedTransfers, Transfers
from ledger_gateway.transfers_across import TransfersAcross

COMMANDS_IN_WORK_MAX = 256
"""Of one call: how many commands are on their way at once."""

ALONE_IN_WORK_MAX = 256
"""Of all bulk calls of a gateway together: how many transactions that go alone. With thousands at
once the shards would not vote in time on all that are across shards, and refuse some."""

BYTES_IN_WORK_MAX = 64 << 20
"""Of all bulk calls of a gateway together."""

Job = Callable[[], Awaitable[None]]

_HELD_BACK = ShardUnavailableError(
    "an earlier transfer of the call has no result, and this one was not to overtake it; nothing "
    "was done, try again"
)


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
    if len(jobs) <= 1:
        for job in jobs:
            await job()
        return
    waiting = iter(jobs)

    async def work() -> None:
        for job in waiting:
            await job()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(len(jobs), at_once_max)):
            group.create_task(work())


async def in_place(places: asyncio.Semaphore, job: Job) -> None:
    """Do a job once there is a place for it."""
    async with places:
        await job()


class BulkWork:
    """The way of bulk calls to the shards, for all calls of a gateway."""

    def __init__(self, shards: ShardCalls) -> None:
        self._shards = shards
        self.lanes = Lanes(shards)
        self._across = TransfersAcross(shards, self.lanes)
        self.room = Room()

    async def carry_out(self, transfers: Transfers, source: Source, deadline: Deadline) -> None:
        """Do transfers; their outcomes are filled in."""
        placed = PlacedTransfers(self._shards, transfers, source)
        alone = placed.columns.amounts >= BLOCK_AMOUNT_END
        within = placed.rows["home"] == placed.rows["other"]
        jobs: list[Job] = []
        if len(items := (within & ~alone).nonzero()[0]):
            jobs.append(partial(self._send_blocks, placed, items, deadline))
        if len(items := (~within & ~alone).nonzero()[0]):
            jobs.append(partial(self._across.run, placed, items, deadline))
        for item in alone.nonzero()[0].tolist():
            job = partial(placed.send_alone, self._shards, item, deadline)
            jobs.append(partial(in_place, self.room.alone, job))
        await run(jobs)

    async def end(self) -> None:
        """Wait, within bounds, until what calls have left behind has ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(OVERTIME_S):
                await self._across.end()

    async def _send_blocks(
        self, placed: PlacedTransfers, items: IndexArray, deadline: Deadline
    ) -> None:
        blocks = Round(deadline)
        for shard_id, parts in placed.parts("home", items):
            _Line(self.lanes.lane(CREATE, shard_id), blocks, placed, iter(parts)).go_on()
        await blocks.wait()


class _Line:
    """The blocks of a call for one shard: each is put in line once the one before has succeeded.

    What comes after a failed one is not sent: it would overtake. So a repeat of the call does them
    in their order.
    """

    def __init__(
        self, lane: Lane, blocks: Round, placed: PlacedTransfers, parts: Iterator[Part]
    ) -> None:
        self._lane = lane
        self._blocks = blocks
        self._placed = placed
        self._parts = parts

    def go_on(self) -> None:
        """Put the next block in line, if there is one."""
        for part in self._parts:
            piece = self._placed.piece(part)
            answered = partial(self._answered, part.items)
            self._blocks.put(self._lane, self._placed.block_terms, piece, answered)
            break

    def _answered(self, items: IndexArray, answer: Answer) -> None:
        assert isinstance(answer, TransfersView | LedgerError)
        self._placed.outcomes.add_block(items, answer)
        if isinstance(answer, TransfersView):
            self.go_on()
            return
        for held_back in self._parts:
            self._placed.outcomes.add_block(held_back.items, _HELD_BACK)

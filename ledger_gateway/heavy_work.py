"""Bounds the large transactions that are on their way at once.

A transaction with many entries on many shards is work: every replica of each of its shards records
all entries, and books its own. With many such at once nodes would be late with their heartbeats,
and shards would not vote in time; one after the other they are done sooner.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from ledger_core.commands import Entry
from ledger_core.errors import ShardUnavailableError
from ledger_gateway.shard_calls import Timed

WEIGHT_MAX = 16_384
"""Of a gateway: entries times shards of what is on its way; one of 1,024 entries on 16 shards."""

LIGHT_MAX = 1_024
"""What weighs no more than this is not counted."""


class HeavyWork:
    """Lets large transactions go on their way, first come, first served."""

    def __init__(self) -> None:
        self._weight = 0
        self._next = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def place(self, entries: Sequence[Entry], deadline: Timed) -> AsyncIterator[None]:
        """Hold a place while a transaction is on its way; a heavier one has room alone.

        Raises ShardUnavailableError where the caller's time was over before there was room.
        """
        weight = len(entries) * len({entry.shard_id for entry in entries})
        if weight <= LIGHT_MAX:
            yield
            return
        async with self._next:
            while self._weight and self._weight + weight > WEIGHT_MAX:
                self._freed.clear()
                await self._freed.wait()
            self._weight += weight
        try:
            remaining_s = deadline.time_remaining()
            if remaining_s is not None and remaining_s <= 0:
                raise ShardUnavailableError(
                    "other large transactions took all of the call's time; nothing was done, try "
                    "again"
                )
            yield
        finally:
            self._weight -= weight
            self._freed.set()

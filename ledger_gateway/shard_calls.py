"""Calls to the shards, within what the caller has left of its deadline."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import cached_property, partial
from typing import Any, Protocol

import grpc
import numpy as np
from numpy.typing import NDArray

from ledger.v1 import ledger_pb2
from ledger_cluster.shards import Answer, Attempts, Shards
from ledger_core.commands import Command, routing_id
from ledger_core.errors import OutcomeUnknownError, ShardUnavailableError
from ledger_core.queries import Query
from ledger_core.results import Failure, Result
from ledger_core.transfers import U64Array, shard_keys
from ledger_gateway.beats import CommandBeats

TIMEOUT_DEFAULT_S = 10.0
TIMEOUT_MAX_S = 60.0

# What the shards get is a little less than what the caller has left, so that an answer such as
# "outcome unknown" still reaches the caller; a twentieth of it, at most this.
_ANSWER_RESERVE_S = 0.1
# How much longer than its own deadline a call to the shards may take before it is given up.
_OVERRUN_S = 1.0

Context = grpc.aio.ServicerContext[Any, Any]


class Timed(Protocol):
    """What tells how long a call may still take: the context of an RPC, or a `Deadline`."""

    def time_remaining(self) -> float | None:
        """Return seconds, or None where the caller set no deadline."""
        ...


class Deadline:
    """The end of a call that consists of many. It is set once: they share the time."""

    def __init__(self, context: Timed) -> None:
        remaining_s = context.time_remaining()
        given_s = TIMEOUT_DEFAULT_S if remaining_s is None else min(remaining_s, TIMEOUT_MAX_S)
        self._at = time.monotonic() + given_s

    def time_remaining(self) -> float:
        """Return seconds; 0 or less once it has passed."""
        return self._at - time.monotonic()


class ShardCalls:
    """The shards, as the RPCs call them. ``consistency`` is a ReadConsistency of the API."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._beats = CommandBeats()

    def shard_ids(self) -> list[int]:
        """Return all shards, always in the same order."""
        return self._shards.shard_ids()

    def shard_bounds(self, shard_id: int) -> tuple[int, int]:
        """Return the first and the last of the shard keys that a shard holds."""
        return self._shards.shard_bounds(shard_id)

    def shard_id_of(self, account_id: int) -> int:
        """Return the shard that holds an account."""
        return self._shards.shard_id_of(account_id)

    def shard_ids_of(self, account_ids: U64Array) -> NDArray[np.int64]:
        """Return the shard of each account, all at once."""
        lower_bounds, shard_ids = self._places
        found: NDArray[np.int64] = shard_ids[
            np.searchsorted(lower_bounds, shard_keys(account_ids), side="right") - 1
        ]
        return found

    @cached_property
    def _places(self) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The lowest shard key of every shard, and the shards, in the order of their keys."""
        places = sorted((self.shard_bounds(item)[0], item) for item in self.shard_ids())
        lower_bounds, shard_ids = zip(*places, strict=True)
        return np.array(lower_bounds, np.uint32), np.array(shard_ids, np.int64)

    async def execute(self, command: Command, context: Timed) -> Result:
        """Run a command where it belongs."""
        given_s = timeout_s(context)
        try:
            async with asyncio.timeout(given_s + _OVERRUN_S):
                return await self._shards.execute(routing_id(command), command, given_s)
        except TimeoutError:
            raise OutcomeUnknownError(
                "no result in time: the write may have happened; repeat it with the same request_id"
            ) from None

    async def execute_in_step(self, command: Command, context: Timed) -> Result:
        """Run a command that is for one shard alone, in step with those of other calls.

        Many at a time set out together, so that those for the same shard share its round.
        """
        departure = await self._beats.departure()
        try:
            return await self.execute(command, context)
        finally:
            self._beats.arrived(departure)

    async def execute_within(self, command: Command, given_s: float, attempts: Attempts) -> Result:
        """Run a command where it belongs; whoever waits knows when to give it up, and does."""
        return await self._shards.execute(routing_id(command), command, given_s, attempts)

    async def query(
        self,
        account_id: int,
        query: Query,
        context: Timed,
        consistency: int = ledger_pb2.READ_CONSISTENCY_LINEARIZABLE,
    ) -> Answer:
        """Answer a query from the shard to which ``account_id`` routes."""
        ask = partial(self._shards.query, account_id, query)
        return await _answer(ask, context, consistency)

    async def query_page(
        self, account_id: int, query: Query, context: Timed, consistency: int
    ) -> Answer:
        """Answer a query that goes on where a page ended.

        A stale replica may be behind the one that answered before, and not know that place: then
        the leader is asked.
        """
        answer = await self.query(account_id, query, context, consistency)
        unknown = isinstance(answer.result, Failure) and answer.result.field == "page_token"
        if unknown and consistency == ledger_pb2.READ_CONSISTENCY_STALE:
            return await self.query(account_id, query, context)
        return answer

    async def query_shard(
        self,
        shard_id: int,
        query: Query,
        context: Timed,
        consistency: int = ledger_pb2.READ_CONSISTENCY_LINEARIZABLE,
    ) -> Answer:
        """Answer a query from one shard."""
        ask = partial(self._shards.query_shard, shard_id, query)
        return await _answer(ask, context, consistency)


async def _answer(
    ask: Callable[..., Awaitable[Answer]], context: Timed, consistency: int
) -> Answer:
    given_s = timeout_s(context)
    try:
        async with asyncio.timeout(given_s + _OVERRUN_S):
            return await ask(given_s, stale=consistency == ledger_pb2.READ_CONSISTENCY_STALE)
    except TimeoutError:
        raise ShardUnavailableError("the shard did not answer in time") from None


def timeout_s(context: Timed) -> float:
    """Return how long the shards may take: what the caller has left, but never without bound.

    With hardly any time left the call is still tried: it may be quick enough.
    """
    remaining_s: float | None = context.time_remaining()
    if remaining_s is None:
        return TIMEOUT_DEFAULT_S
    reserve_s = min(_ANSWER_RESERVE_S, remaining_s / 20)
    return min(max(remaining_s - reserve_s, 0.001), TIMEOUT_MAX_S)

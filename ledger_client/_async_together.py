"""Single calls that run at the same time travel together: a part of `AsyncLedgerClient`."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeGuard, TypeVar

import grpc
from google.protobuf.message import Message

from ledger_client._async_batches import AsyncBatches
from ledger_client._retries import Attempts
from ledger_client._waiting import Call, Waiting
from ledger_client.errors import LedgerError, from_rpc_error

AnswerT = TypeVar("AnswerT")
ResponseT = TypeVar("ResponseT")

Metadata = tuple[tuple[str, str], ...]
Method = Callable[..., Awaitable[Any]]

# Single calls at once, for items that a call for many could not tell apart.
_SINGLES_MAX = 64


class AsyncTogetherCalls:
    """Calls whose ``method`` has another one that does many of them at once."""

    _metadata: Metadata
    _timeout_s: float
    _batching: bool

    async def _call(
        self,
        method: Callable[..., Awaitable[ResponseT]],
        request: Message,
        correlation_id: str = "",
        attempts: Attempts | None = None,
    ) -> ResponseT:
        raise NotImplementedError

    def _one(
        self,
        method: Method,
        batches: AsyncBatches[AnswerT],
        item: Waiting[AnswerT],
        correlation_id: str = "",
    ) -> Awaitable[AnswerT]:
        """Do one call: by itself if nothing is under way, else with others. Await it at once."""
        if not self._batching or correlation_id or not item.may_travel:
            return self._alone(method, item, correlation_id)
        call = batches.begin_single()
        if call is not None:
            return self._first(method, batches, item, call)
        return self._with_others(method, batches, item)

    async def _many(
        self,
        method: Method,
        batches: AsyncBatches[AnswerT],
        items: Sequence[Waiting[AnswerT] | LedgerError],
        correlation_id: str = "",
    ) -> list[AnswerT | LedgerError]:
        """Do many calls, by ``batches`` that are for them alone; errors stay where they are."""
        results: dict[int, AnswerT | LedgerError] = {}
        alone: list[tuple[int, Waiting[AnswerT]]] = []
        try:
            sent = iter(await batches.send_all([item for item in items if _travels(item)]))
        finally:
            batches.close()
        for index, item in enumerate(items):
            if isinstance(item, LedgerError):
                results[index] = item
                continue
            result = next(sent) if item.may_travel else None
            if result is None:
                alone.append((index, item))
            else:
                results[index] = result
        for start in range(0, len(alone), _SINGLES_MAX):
            some = alone[start : start + _SINGLES_MAX]
            calls = [self._told_alone(method, item, correlation_id) for _, item in some]
            told = await asyncio.gather(*calls)
            results |= zip((index for index, _ in some), told, strict=True)
        return [results[index] for index in range(len(items))]

    async def _with_others(
        self, method: Method, batches: AsyncBatches[AnswerT], item: Waiting[AnswerT]
    ) -> AnswerT:
        """Let a call travel with others."""
        answer = await batches.send(item)
        return answer if answer is not None else await self._alone(method, item)

    async def _first(
        self, method: Method, batches: AsyncBatches[AnswerT], item: Waiting[AnswerT], call: Call
    ) -> AnswerT:
        """Send a single call that others wait for, until its first attempt has ended."""
        request, attempts = item.single(), Attempts(self._timeout_s)
        try:
            response = await method(request, timeout=attempts.timeout_s(), metadata=self._metadata)
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
        else:
            return item.of_single(response)
        finally:
            batches.end_single(call)
        await asyncio.sleep(attempts.pause_s(failure))
        return item.of_single(await self._call(method, request, attempts=attempts))

    async def _alone(
        self, method: Method, item: Waiting[AnswerT], correlation_id: str = ""
    ) -> AnswerT:
        """Send a single call, with what is left of the item's time if it was sent before."""
        attempts = item.attempts_left()
        return item.of_single(await self._call(method, item.single(), correlation_id, attempts))

    async def _told_alone(
        self, method: Method, item: Waiting[AnswerT], correlation_id: str
    ) -> AnswerT | LedgerError:
        try:
            return await self._alone(method, item, correlation_id)
        except LedgerError as error:
            return error


def _travels(item: Waiting[AnswerT] | LedgerError) -> TypeGuard[Waiting[AnswerT]]:
    return isinstance(item, Waiting) and item.may_travel

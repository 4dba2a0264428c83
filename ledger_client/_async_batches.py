"""Calls of the asyncio client that travel together: concurrent ones become few large ones."""

import asyncio
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import grpc

from ledger_client import _batches
from ledger_client._batches import Batches
from ledger_client._waiting import Call, Kind, Waiting
from ledger_client.errors import InternalError, LedgerError, from_rpc_error

AnswerT = TypeVar("AnswerT")

Metadata = tuple[tuple[str, str], ...]


class AsyncBatches(Generic[AnswerT]):
    """Sends what is of one kind by ``method``, in the event loop that runs when it is made.

    A task is made for each bulk call, none for an item; one timer watches over all deadlines.
    """

    def __init__(
        self,
        kind: Kind,
        method: Callable[..., Awaitable[Any]],
        metadata: Metadata,
        timeout_s: float,
        in_parts: Callable[..., AsyncIterable[Any]] | None = None,
    ) -> None:
        self._method = method
        self._in_parts = in_parts
        self._metadata = metadata
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._batches = Batches(kind, _wake)
        self._tasks: set[asyncio.Task[None]] = set()
        self._flush_scheduled = False
        self._flush_timer: asyncio.TimerHandle | None = None
        self._deadline_timer: asyncio.TimerHandle | None = None

    def begin_single(self) -> Call | None:
        """Return a call of one's own if nothing is under way, to be ended; None: `send` instead."""
        if self._batches.is_idle or not self._batches.has_bulk:
            return self._batches.begin_single()
        return None

    def end_single(self, call: Call) -> None:
        """A call of one's own has had its first answer, whatever that is."""
        self._batches.end(call)
        self._schedule_flush()

    def send(self, item: Waiting[AnswerT]) -> Awaitable[AnswerT | None]:
        """Return, once awaited, the answer to an item; None: ask by a single call.

        Raises LedgerError: ResourceExhaustedError at once if too many wait.
        """
        self._add(item)
        return self._result(item)

    async def send_all(
        self, items: Sequence[Waiting[AnswerT]]
    ) -> list[AnswerT | LedgerError | None]:
        """Send many items, and return what `send` would return or raise for each."""
        window = _batches.CALLS_MAX * _batches.ITEMS_MAX
        results: list[AnswerT | LedgerError | None] = []
        try:
            for index, item in enumerate(items):
                if index >= window:
                    results.append(await self._outcome(items[index - window]))
                self._add(item)
            for item in items[len(results) :]:
                results.append(await self._outcome(item))
        finally:
            for item in items:
                item.done = True
        return results

    def close(self) -> None:
        """Give up all that waits."""
        self._batches.close()
        for timer in (self._flush_timer, self._deadline_timer):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()

    def _add(self, item: Waiting[AnswerT]) -> None:
        item.deadline = time.monotonic() + self._timeout_s
        item.waiter = self._loop.create_future()
        self._batches.add(item)
        if not self._flush_scheduled:
            # After all that is ready to run now has added its own.
            self._schedule_flush()
        if self._deadline_timer is None:
            # All items have the same time: none of those to come is due before this one.
            self._deadline_timer = self._loop.call_later(self._timeout_s, self._expire)

    async def _outcome(self, item: Waiting[AnswerT]) -> AnswerT | LedgerError | None:
        try:
            return await self._result(item)
        except LedgerError as error:
            return error

    async def _result(self, item: Waiting[AnswerT]) -> AnswerT | None:
        try:
            await item.waiter
        finally:
            item.done = True
        return item.answer()

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        for call in self._batches.take():
            task = self._loop.create_task(self._run(call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        wake_at = self._batches.wake_at()
        if wake_at is not None:
            delay_s = max(wake_at - time.monotonic(), 0.0)
            self._flush_timer = self._loop.call_later(delay_s, self._schedule_flush)

    async def _run(self, call: Call) -> None:
        batches = self._batches
        try:
            if self._in_parts is not None and batches.ask_in_parts(call):
                await self._read_parts(call, self._in_parts)
            if not call.in_parts:
                response = await self._method(
                    call.request(), timeout=batches.timeout_s(call), metadata=self._metadata
                )
                batches.answer(call, response)
        except grpc.RpcError as error:
            batches.fail(call, from_rpc_error(error))
        except BaseException:
            # A bug, or the client is closed: nobody shall wait for what will not come.
            batches.fail(call, InternalError("INTERNAL", "a bulk call could not be made"))
            raise
        finally:
            # Behind the callers that wake now, so that what they send next goes out together.
            self._loop.call_soon(self._ended, call)

    async def _read_parts(self, call: Call, method: Callable[..., AsyncIterable[Any]]) -> None:
        """Wake callers part by part; the call is no longer `in_parts` if it is to be made again."""
        batches = self._batches
        try:
            async for part in method(
                call.request(), timeout=batches.timeout_s(call), metadata=self._metadata
            ):
                if batches.answer_part(call, part):
                    # Nobody waits for what is left, the status of the stream.
                    self._loop.call_soon(self._ended, call)
                # What is to be tried again does not wait for the rest of the answer.
                self._schedule_flush()
        except grpc.RpcError as error:
            if not batches.has_no_parts(call, from_rpc_error(error)):
                raise
        else:
            batches.end_of_parts(call)

    def _ended(self, call: Call) -> None:
        self._batches.end(call)
        if not self._flush_scheduled:
            self._flush()

    def _expire(self) -> None:
        deadline = self._batches.expire()
        self._deadline_timer = None
        if deadline is not None:
            delay_s = max(deadline - time.monotonic(), 0.0)
            self._deadline_timer = self._loop.call_later(delay_s, self._expire)


def _wake(item: Waiting[Any]) -> None:
    if not item.waiter.done():
        item.waiter.set_result(None)

"""Calls of the synchronous client that travel together: those of many threads become few."""

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import grpc

from ledger_client import _batches
from ledger_client._batches import Batches
from ledger_client._waiting import Call, Kind, Waiting
from ledger_client.errors import InternalError, LedgerError, ServerCancelledError, from_rpc_error

AnswerT = TypeVar("AnswerT")

Metadata = tuple[tuple[str, str], ...]

# A thread with nothing to do ends, and is started again when there is: a client that is dropped
# without being closed leaves none behind.
_IDLE_S = 5.0


class ThreadBatches(Generic[AnswerT]):
    """Sends what is of one kind by a thread of its own, started when it is needed.

    A thread that finds nothing under way sends its own. Like gRPC, it does not survive a fork.
    """

    def __init__(
        self,
        kind: Kind,
        method: Any,
        metadata: Metadata,
        timeout_s: float,
        in_parts: Any = None,
    ) -> None:
        self._method = method
        self._in_parts = in_parts
        self._metadata = metadata
        self._timeout_s = timeout_s
        # Guards all of the following.
        self._changed = threading.Condition(threading.Lock())
        self._batches = Batches(kind, _wake)
        self._ended: deque[tuple[Call, Any]] = deque()
        self._under_way = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def begin_single(self) -> Call | None:
        """Return a call of one's own if nothing is under way, to be ended; None: `send` instead."""
        with self._changed:
            if self._closed or self._batches.is_idle or not self._batches.has_bulk:
                return self._batches.begin_single()
            return None

    def end_single(self, call: Call) -> None:
        """A call of one's own has had its first answer, whatever that is."""
        with self._changed:
            self._batches.end(call)
            if len(self._batches):
                self._changed.notify()

    def send(self, item: Waiting[AnswerT]) -> AnswerT | None:
        """Return the answer to an item; None: ask by a single call.

        Raises LedgerError: ResourceExhaustedError at once if too many wait.
        """
        self._add(item)
        return self._result(item)

    def send_all(self, items: Sequence[Waiting[AnswerT]]) -> list[AnswerT | LedgerError | None]:
        """Send many items, and return what `send` would return or raise for each."""
        window = _batches.CALLS_MAX * _batches.ITEMS_MAX
        results: list[AnswerT | LedgerError | None] = []
        try:
            for start in range(0, len(items), window // 2):
                self._add(*items[start : start + window // 2])
                for item in items[len(results) : max(start - window // 2, 0)]:
                    results.append(self._outcome(item))
            for item in items[len(results) :]:
                results.append(self._outcome(item))
        finally:
            for item in items:
                item.done = True
        return results

    def close(self) -> None:
        """Give up all that waits, and end the thread. Calls under way end with the channel."""
        with self._changed:
            self._closed = True
            self._batches.close()
            thread = self._thread
            self._changed.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _add(self, *items: Waiting[AnswerT]) -> None:
        deadline = time.monotonic() + self._timeout_s
        for item in items:
            item.deadline = deadline
            item.waiter = threading.Lock()
            item.waiter.acquire()
        with self._changed:
            if self._closed:
                raise ServerCancelledError("CANCELLED", "the client is closed; nothing was done")
            for item in items:
                self._batches.add(item)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="ledger-client-batches", daemon=True
                )
                self._thread.start()
            self._changed.notify()

    def _outcome(self, item: Waiting[AnswerT]) -> AnswerT | LedgerError | None:
        try:
            return self._result(item)
        except LedgerError as error:
            return error

    def _result(self, item: Waiting[AnswerT]) -> AnswerT | None:
        try:
            left_s = min(max(item.deadline - time.monotonic(), 0.0), threading.TIMEOUT_MAX)
            if not item.waiter.acquire(timeout=left_s):
                with self._changed:
                    if not item.done:
                        raise self._batches.give_up(item)
        finally:
            item.done = True
        return item.answer()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        finally:
            with self._changed:
                if self._thread is threading.current_thread():
                    self._thread = None

    def _turn(self) -> bool:
        """Wait until there is something to do, and do it; False if the thread shall end."""
        with self._changed:
            while not (calls := self._batches.take()) and not self._ended:
                if self._closed:
                    return False
                wake_at = self._batches.wake_at()
                left_s = _IDLE_S if wake_at is None else max(wake_at - time.monotonic(), 0.0)
                if not self._changed.wait(left_s) and self._has_nothing_to_do():
                    # In the same breath: who adds an item now starts another thread.
                    self._thread = None
                    return False
        while self._ended:
            self._read(*self._ended.popleft())
        for call in calls:
            self._send(call)
        return True

    def _has_nothing_to_do(self) -> bool:
        return not (len(self._batches) or self._ended or self._under_way)

    def _send(self, call: Call) -> None:
        try:
            with self._changed:
                timeout_s = self._batches.timeout_s(call)
                in_parts = self._in_parts is not None and self._batches.ask_in_parts(call)
            method = self._in_parts if in_parts else self._method.future
            future = method(call.request(), timeout=timeout_s, metadata=self._metadata)
            if in_parts:
                self._begin_to_read(call, future)
        except Exception:
            # Closed, or a bug: nobody shall wait for what will not come.
            self._lose(call)
            if not self._closed:
                raise
            return
        if not in_parts:
            with self._changed:
                self._under_way += 1
            future.add_done_callback(lambda done: self._has_ended(call, done))

    def _begin_to_read(self, call: Call, parts: Any) -> None:
        """Read parts in a thread: gRPC has no other way to read a stream."""
        reader = threading.Thread(
            target=self._read_parts, args=(call, parts), name="ledger-client-parts", daemon=True
        )
        with self._changed:
            self._under_way += 1
        try:
            reader.start()
        except RuntimeError:
            # No more threads can be had; other calls go on.
            parts.cancel()
            with self._changed:
                self._under_way -= 1
            self._lose(call)

    def _read_parts(self, call: Call, parts: Any) -> None:
        try:
            for part in parts:
                with self._changed:
                    if self._batches.answer_part(call, part):
                        # Nobody waits for what is left, the status of the stream.
                        self._batches.end(call)
                    # What is to be tried again does not wait for the rest of the answer, either.
                    self._changed.notify()
        except grpc.RpcError:
            pass  # the status, which is read behind this
        except BaseException:
            parts.cancel()
            raise
        finally:
            self._has_ended(call, parts)

    def _has_ended(self, call: Call, future: Any) -> None:
        with self._changed:
            self._under_way -= 1
            self._ended.append((call, future))
            self._changed.notify()

    def _read(self, call: Call, future: Any) -> None:
        try:
            response = future.result()
        except grpc.RpcError as rpc_error:
            error = from_rpc_error(rpc_error)
            with self._changed:
                again = self._batches.has_no_parts(call, error)
                if not again:
                    self._batches.fail(call, error)
                    self._batches.end(call)
            if again:
                self._send(call)
        except BaseException:
            self._lose(call)
            raise
        else:
            with self._changed:
                if call.in_parts:
                    self._batches.end_of_parts(call)
                else:
                    self._batches.answer(call, response)
                self._batches.end(call)

    def _lose(self, call: Call) -> None:
        with self._changed:
            self._batches.fail(call, InternalError("INTERNAL", "a bulk call could not be made"))
            self._batches.end(call)


def _wake(item: Waiting[Any]) -> None:
    item.waiter.release()

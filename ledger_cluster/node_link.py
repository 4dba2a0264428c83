"""The way to one node: a single stream for the requests to all its shards.

A gRPC call of its own for each batch costs both sides some 0.3 ms of CPU, many times what is in
it. On the stream, all that is ready at the same time shares a message, in both directions.

The stream is opened by the first request, and anew by the first one after it broke. Each request
has its own time limit, and tells when it fails whether it may have arrived.
"""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import grpc
from grpc import aio

from ledger.internal.v1 import shard_pb2
from ledger_cluster.frames import encoded_frame
from ledger_cluster.outbox import Outbox

# After a message the writer rests for so long, so that under load what comes meanwhile shares the
# next one. A request that comes later than that is sent at once.
REST_S = 0.001

Call: TypeAlias = "aio.StreamStreamCall[bytes, shard_pb2.ReplyFrame]"
"""A stream to a node; what is written is encoded already."""

_SERVICE = shard_pb2.DESCRIPTOR.services_by_name["ShardService"]
_EXCHANGE = _SERVICE.methods_by_name["Exchange"]
_REQUESTS = shard_pb2.RequestFrame.REQUESTS_FIELD_NUMBER


class LinkError(Exception):
    """There is no reply; the text says why, to follow the name of the node.

    ``may_have_arrived`` is false where the request cannot have left this process.
    """

    def __init__(self, failure: str, *, may_have_arrived: bool) -> None:
        super().__init__(failure)
        self.may_have_arrived = may_have_arrived


class NodeFaultError(Exception):
    """The node does not understand this process: another version, or a bug. Do not try again."""


class NodeLink:
    """Sends requests to a node and brings their replies. Lives on one event loop."""

    def __init__(self, exchange: Callable[[], Call]) -> None:
        """``exchange`` begins a stream: see `exchanges`."""
        self._exchange = exchange
        self._stream: _Stream | None = None
        self._numbers = itertools.count(1)

    async def ask(self, request: shard_pb2.ShardRequest, timeout_s: float) -> shard_pb2.ShardReply:
        """Return the reply; raise LinkError or NodeFaultError. The request gets a number."""
        request.number = next(self._numbers)
        if self._stream is None:
            self._stream = _Stream(self._exchange(), self._forget)
        reply = await self._stream.ask(request, timeout_s)
        if reply.WhichOneof("reply") == "fault":
            raise NodeFaultError(reply.fault)
        return reply

    async def close(self) -> None:
        """End the stream; what still waits on it fails."""
        if self._stream is not None:
            await self._stream.close()

    def _forget(self, stream: "_Stream") -> None:
        if self._stream is stream:
            self._stream = None


def exchanges(channel: aio.Channel) -> Callable[[], Call]:
    """Return what begins a stream for requests to the node at the end of a channel."""
    stub: aio.StreamStreamMultiCallable[bytes, shard_pb2.ReplyFrame] = channel.stream_stream(
        f"/{_SERVICE.full_name}/{_EXCHANGE.name}",
        response_deserializer=shard_pb2.ReplyFrame.FromString,
    )
    return stub


@dataclass(slots=True)
class _Waiting:
    request: bytes
    reply: "asyncio.Future[shard_pb2.ShardReply]"
    sent: bool = False


class _Stream:
    """One stream, from its opening to its end."""

    def __init__(
        self,
        call: Call,
        ended: Callable[["_Stream"], None],
    ) -> None:
        self._call = call
        self._ended = ended
        self._outbox: Outbox[_Waiting] = Outbox()
        self._waiting: dict[int, _Waiting] = {}
        self._task = asyncio.create_task(self._run(), name="stream to a node")

    async def ask(self, request: shard_pb2.ShardRequest, timeout_s: float) -> shard_pb2.ShardReply:
        """Send a request and wait for its reply."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(request.SerializeToString(), loop.create_future())
        self._waiting[request.number] = waiting
        self._outbox.put(waiting, len(waiting.request))
        timer = loop.call_later(timeout_s, _expire, waiting)
        try:
            return await waiting.reply
        finally:
            timer.cancel()
            # If it is not sent yet, it never will be; a reply that comes later is dropped.
            del self._waiting[request.number]

    async def close(self) -> None:
        """End the stream."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        """Send and receive until the stream ends, then fail what waits."""
        tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._receive())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._end(tasks)

    async def _end(self, tasks: "list[asyncio.Task[None]]") -> None:
        # Whoever is told from here on may ask again: on another stream.
        self._ended(self)
        fault, connected = None, True
        if self._call.done():
            code, details = await self._call.code(), await self._call.details() or ""
            fault = details if code in _PROTOCOL_FAULTS else None
            connected = not details.startswith(_NEVER_CONNECTED)
        for waiting in self._waiting.values():
            if waiting.reply.done():
                continue
            waiting.reply.set_exception(
                LinkError("cannot be reached", may_have_arrived=connected and waiting.sent)
                if fault is None
                else NodeFaultError(fault)
            )
        self._call.cancel()
        for task in tasks:
            task.cancel()
        for ending in await asyncio.gather(*tasks, return_exceptions=True):
            # gRPC raises the last one when a stream is used that has just ended.
            if not (ending is None or isinstance(ending, (asyncio.CancelledError, *_BROKEN))):
                raise ending

    async def _send(self) -> None:
        while True:
            requests = []
            for waiting in await self._outbox.next_frame():
                # Not what was given up meanwhile.
                if not waiting.reply.done():
                    waiting.sent = True
                    requests.append(waiting.request)
            if requests:
                await self._call.write(encoded_frame(_REQUESTS, requests))
                await asyncio.sleep(REST_S)

    async def _receive(self) -> None:
        while isinstance(frame := await self._call.read(), shard_pb2.ReplyFrame):
            for reply in frame.replies:
                waiting = self._waiting.get(reply.number)
                if waiting is not None and not waiting.reply.done():
                    waiting.reply.set_result(reply)


_BROKEN = (aio.AioRpcError, asyncio.InvalidStateError)

# Nothing can have left this process: gRPC says so only in words.
_NEVER_CONNECTED = "failed to connect to all addresses"

# A node that has no such stream is of another version. What it does not understand on the stream,
# it says in a reply. INTERNAL and UNKNOWN say nothing of that: gRPC itself ends a stream so, now
# and then, when a node dies ("Internal error from Core").
_PROTOCOL_FAULTS = (grpc.StatusCode.UNIMPLEMENTED,)


def _expire(waiting: _Waiting) -> None:
    if not waiting.reply.done():
        waiting.reply.set_exception(
            LinkError("did not answer in time", may_have_arrived=waiting.sent)
        )

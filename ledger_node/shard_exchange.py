"""A node's end of a stream of requests: hand them over, and send the replies of a turn together."""

import asyncio
from collections.abc import Callable
from functools import partial

import structlog
from grpc import aio

from ledger.internal.v1 import shard_pb2
from ledger_cluster.outbox import Outbox

# While more replies wait for a caller that does not take them, its requests wait as well.
REPLIES_WAITING_MAX = 4_096

ReplyDone = Callable[[shard_pb2.ShardReply], None]
Take = Callable[[shard_pb2.ShardRequest, ReplyDone], None]

_log = structlog.get_logger()


class Exchange:
    """One stream, for as long as it lasts.

    ``take`` handles a request: it calls its second argument once, at once or later, and raises
    only where there is a bug. Once ``stopping`` is set nothing more is read, and the stream ends
    as soon as everything read is answered.
    """

    def __init__(
        self,
        stream: "aio.ServicerContext[shard_pb2.RequestFrame, shard_pb2.ReplyFrame]",
        take: Take,
        stopping: asyncio.Event,
    ) -> None:
        self._stream = stream
        self._take = take
        self._stopping = stopping
        self._outbox: Outbox[shard_pb2.ShardReply] = Outbox()
        self._unanswered = 0
        self._sent = asyncio.Event()

    async def run(self) -> None:
        """Receive and send until the caller has gone, or the node stops."""
        receiver = asyncio.create_task(self._receive(), name="requests of a stream")
        sender = asyncio.create_task(self._send(), name="replies of a stream")
        stopping = asyncio.create_task(self._stopping.wait())
        tasks = (receiver, sender, stopping)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            receiver.cancel()
            while self._unanswered and not sender.done():
                self._sent.clear()
                await self._sent.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(self) -> None:
        while isinstance(frame := await self._stream.read(), shard_pb2.RequestFrame):
            while len(self._outbox) > REPLIES_WAITING_MAX:
                self._sent.clear()
                await self._sent.wait()
            for request in frame.requests:
                self._unanswered += 1
                try:
                    self._take(request, partial(self._answer, request.number))
                except Exception:
                    # A bug in the handling of one request does not end those of all others.
                    _log.exception("request failed", number=request.number)
                    self._answer(request.number, shard_pb2.ShardReply(fault="internal error"))

    def _answer(self, number: int, reply: shard_pb2.ShardReply) -> None:
        reply.number = number
        self._outbox.put(reply, reply.ByteSize())

    async def _send(self) -> None:
        try:
            while True:
                replies = await self._outbox.next_frame()
                await self._stream.write(shard_pb2.ReplyFrame(replies=replies))
                self._unanswered -= len(replies)
                self._sent.set()
        finally:
            # Nobody waits for a sender that has gone.
            self._sent.set()

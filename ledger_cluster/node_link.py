"""The way to one node: a single link for the requests to all its shards.

A gRPC call of its own for each batch would cost both sides some 0.3 ms of CPU, many times what is
in it. All that is ready in the same pass of the event loop shares a frame, in both directions.

The link is made by the first request, and anew by the first one after it broke. Each request has
its own time limit, and tells when it fails whether it may have arrived.
"""

import asyncio
import itertools
import random
from dataclasses import dataclass

import structlog

from ledger.internal.v1 import link_pb2, shard_pb2
from ledger_cluster.config import ClusterConfig
from ledger_cluster.dialling import UnreachableError, dial
from ledger_cluster.framed_connection import FramedConnection
from ledger_cluster.frames import encoded_frame
from ledger_cluster.hello import HelloRefusedError, make_hello
from ledger_cluster.outbox import Outbox

# After a try that failed requests fail at once for so long, twice as long after each further one.
_RETRY_S_MIN = 0.05
_RETRY_S_MAX = 0.5

_REQUESTS = shard_pb2.RequestFrame.REQUESTS_FIELD_NUMBER

_log = structlog.get_logger()


class LinkError(Exception):
    """There is no reply; the text says why, to follow the name of the node.

    ``may_have_arrived`` is false where the request cannot have left this process.
    """

    def __init__(self, failure: str, *, may_have_arrived: bool) -> None:
        super().__init__(failure)
        self.may_have_arrived = may_have_arrived


class NodeFaultError(Exception):
    """The node does not understand a request: a bug. Do not try again."""


@dataclass(slots=True)
class _Waiting:
    request: bytes
    reply: "asyncio.Future[shard_pb2.ShardReply]"
    sent: bool = False


class NodeLink:
    """Sends requests to a node and brings their replies. Lives on one event loop."""

    def __init__(self, config: ClusterConfig, node_id: str) -> None:
        self._node_id = node_id
        self._address = config.node(node_id).link_address
        self._hello = make_hello(config, link_pb2.LINK_KIND_CLIENT, wanted_node_id=node_id)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, _Waiting] = {}
        # While there is a link: its connection, and what waits to be sent on it.
        self._connection: FramedConnection | None = None
        self._outbox: Outbox[_Waiting] | None = None
        self._dialling: asyncio.Task[None] | None = None
        # What the last try to make a link came to, and how long nobody tries again.
        self._failure: LinkError | None = None
        self._retry_s = 0.0
        self._retry_at = 0.0

    async def ask(self, request: shard_pb2.ShardRequest, timeout_s: float) -> shard_pb2.ShardReply:
        """Return the reply; raise LinkError or NodeFaultError. The request gets a number."""
        loop = asyncio.get_running_loop()
        if self._failure is not None and loop.time() < self._retry_at:
            raise _again(self._failure)
        request.number = number = next(self._numbers)
        waiting = _Waiting(request.SerializeToString(), loop.create_future())
        self._waiting[number] = waiting
        if self._outbox is not None:
            self._outbox.put(waiting, len(waiting.request))
        else:
            self._begin_to_dial()
        timer = loop.call_later(timeout_s, _expire, waiting)
        try:
            reply = await waiting.reply
        finally:
            timer.cancel()
            # If it is not sent yet, it never will be; a reply that comes later is dropped.
            del self._waiting[number]
        if reply.WhichOneof("reply") == "fault":
            raise NodeFaultError(reply.fault)
        return reply

    async def reach(self, timeout_s: float) -> bool:
        """Return whether there is a link to the node, or one can be made in time."""
        if self._outbox is None and asyncio.get_running_loop().time() >= self._retry_at:
            await asyncio.wait([self._begin_to_dial()], timeout=timeout_s)
        return self._outbox is not None

    async def close(self) -> None:
        """End the link; what still waits on it fails."""
        if self._dialling is not None:
            self._dialling.cancel()
            await asyncio.gather(self._dialling, return_exceptions=True)
        if self._connection is not None:
            self._connection.abort("this process ends it")
        self._fail(LinkError("the link was closed", may_have_arrived=False))

    def _begin_to_dial(self) -> "asyncio.Task[None]":
        if self._dialling is None:
            self._dialling = asyncio.create_task(self._dial(), name=f"dial {self._node_id}")
        return self._dialling

    async def _dial(self) -> None:
        """Make the link for what waits, or fail it."""
        loop = asyncio.get_running_loop()
        try:
            await dial(self._address, self._hello, self._begin)
        except (UnreachableError, HelloRefusedError) as error:
            reason = f"cannot be reached at {self._address}: {error}"
            failure = LinkError(reason, may_have_arrived=False)
            if str(failure) != str(self._failure):
                _log.warning("no link to node", node=self._node_id, reason=reason)
            self._failure = failure
            self._retry_s = min(max(_RETRY_S_MIN, self._retry_s * 2), _RETRY_S_MAX)
            self._retry_at = loop.time() + self._retry_s * random.uniform(0.7, 1.0)  # noqa: S311
            self._fail(failure)
        finally:
            self._dialling = None

    def _begin(self, connection: FramedConnection) -> "NodeLink":
        self._connection = connection
        self._failure, self._retry_s = None, 0.0
        self._outbox = Outbox(connection, self._send)
        for waiting in self._waiting.values():
            self._outbox.put(waiting, len(waiting.request))
        return self

    def _send(self, batch: list[_Waiting]) -> None:
        requests = []
        for waiting in batch:
            # Not what was given up meanwhile.
            if not waiting.reply.done():
                waiting.sent = True
                requests.append(waiting.request)
        if requests and self._connection is not None:
            self._connection.send(encoded_frame(_REQUESTS, requests))

    # What the connection calls.

    def received(self, frame: bytes) -> None:
        """Hand replies to those who wait for them."""
        for reply in shard_pb2.ReplyFrame.FromString(frame).replies:
            waiting = self._waiting.get(reply.number)
            if waiting is not None and not waiting.reply.done():
                waiting.reply.set_result(reply)

    def writable(self) -> None:
        """Send what waits."""
        if self._outbox is not None:
            self._outbox.flush()

    def said_all(self) -> bool:
        """End the link: no reply will come."""
        return False

    def ended(self, reason: str) -> None:
        """Fail what waits. Whoever is told may ask again: on another link."""
        self._connection = self._outbox = None
        _log.info("link to node ended", node=self._node_id, reason=reason)
        self._fail(LinkError("cannot be reached", may_have_arrived=True))

    def _fail(self, failure: LinkError) -> None:
        """Fail what waits; each says for itself whether it may have arrived."""
        for waiting in self._waiting.values():
            if not waiting.reply.done():
                waiting.reply.set_exception(_again(failure, sent=waiting.sent))


def _again(failure: LinkError, *, sent: bool = False) -> LinkError:
    """Return a failure as one request has it: no two raise the same object."""
    return LinkError(str(failure), may_have_arrived=sent)


def _expire(waiting: _Waiting) -> None:
    if not waiting.reply.done():
        waiting.reply.set_exception(
            LinkError("did not answer in time", may_have_arrived=waiting.sent)
        )

"""A node's end of a client's link: hand requests over, and send the replies of a turn together."""

from collections.abc import Callable
from functools import partial

import structlog

from ledger.internal.v1 import shard_pb2
from ledger_cluster.channels import MESSAGE_BYTES_MAX
from ledger_cluster.framed_connection import FramedConnection
from ledger_cluster.frames import encoded_frame
from ledger_cluster.outbox import Outbox

# While more replies wait for a caller that does not take them, its requests wait as well.
REPLIES_WAITING_MAX = 4_096

# A frame above the limit would end the link, for all requests that are on it.
REPLY_BYTES_MAX = MESSAGE_BYTES_MAX - 1024

ReplyDone = Callable[[shard_pb2.ShardReply], None]
Take = Callable[[shard_pb2.ShardRequest, ReplyDone], None]

_REPLIES = shard_pb2.ReplyFrame.REPLIES_FIELD_NUMBER

_log = structlog.get_logger()


class Exchange:
    """The link of one client, for as long as it lasts.

    ``take`` handles a request: it calls its second argument once, at once or later, and raises
    only where there is a bug.
    """

    def __init__(
        self,
        connection: FramedConnection,
        take: Take,
        ended: Callable[["Exchange"], None],
    ) -> None:
        self._connection = connection
        self._take = take
        self._ended = ended
        self._outbox: Outbox[bytes] = Outbox(connection, self._send)
        self._unanswered = 0
        self._draining = False
        self._said_all = False

    def drain(self) -> None:
        """Take nothing more; the link ends as soon as everything that was taken is answered."""
        self._draining = True
        # What still comes is read, and dropped: a connection that is closed before it has read all
        # may lose the last replies.
        self._connection.resume_reading()
        self._end_if_answered()

    def abort(self) -> None:
        """End the link at once."""
        self._connection.abort("the node stops")

    # What the connection calls.

    def received(self, frame: bytes) -> None:
        """Hand requests over."""
        if self._draining:
            return
        for request in shard_pb2.RequestFrame.FromString(frame).requests:
            self._unanswered += 1
            try:
                self._take(request, partial(self._answer, request.number))
            except Exception:
                # A bug in the handling of one request does not end those of all others.
                _log.exception("request failed", number=request.number)
                self._answer(request.number, shard_pb2.ShardReply(fault="internal error"))

    def writable(self) -> None:
        """Send the replies that wait."""
        self._outbox.flush()

    def said_all(self) -> bool:
        """Answer what is due, and end."""
        self._said_all = True
        self.drain()
        return True

    def ended(self, reason: str) -> None:
        """Note that the client has gone."""
        _log.info("client disconnected", client=self._connection.other, reason=reason)
        self._ended(self)

    def _answer(self, number: int, reply: shard_pb2.ShardReply) -> None:
        reply.number = number
        encoded = reply.SerializeToString()
        if len(encoded) > REPLY_BYTES_MAX:
            fault = f"the reply has {len(encoded)} bytes; at most {REPLY_BYTES_MAX} are sent"
            encoded = shard_pb2.ShardReply(number=number, fault=fault).SerializeToString()
        self._outbox.put(encoded, len(encoded))
        if len(self._outbox) > REPLIES_WAITING_MAX and not self._draining:
            self._connection.pause_reading()

    def _send(self, replies: list[bytes]) -> None:
        self._connection.send(encoded_frame(_REPLIES, replies))
        self._unanswered -= len(replies)
        if len(self._outbox) <= REPLIES_WAITING_MAX:
            self._connection.resume_reading()
        self._end_if_answered()

    def _end_if_answered(self) -> None:
        if not self._draining or self._unanswered:
            return
        if self._said_all:
            self._connection.close("all is answered")
        else:
            # The client ends the connection as soon as it has read this.
            self._connection.finish()

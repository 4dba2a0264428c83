"""A node's end of links, for tests of who asks: it takes every hello, and keeps what comes."""

import asyncio
from collections.abc import Callable

from ledger.internal.v1 import link_pb2, shard_pb2
from ledger_cluster.channels import MESSAGE_BYTES_MAX
from ledger_cluster.framed_connection import FramedConnection


class ServedLink:
    """One link to the node: its hello, and the numbers of the requests in each frame."""

    def __init__(self, node: "ScriptedNode") -> None:
        self._node = node
        self.connection = FramedConnection(self, MESSAGE_BYTES_MAX)
        self.hello: link_pb2.Hello | None = None
        self.frames: list[list[int]] = []
        self.has_ended = ""

    def answer(self, *replies: int | shard_pb2.ShardReply) -> None:
        """Send replies; a number stands for one to the request of that number."""
        frame = shard_pb2.ReplyFrame()
        for reply in replies:
            if isinstance(reply, int):
                answer = shard_pb2.QueryResponse(applied_index=reply)
                frame.replies.add(number=reply, query=answer)
            else:
                frame.replies.append(reply)
        self.connection.send(frame.SerializeToString())

    def received(self, frame: bytes) -> None:
        if self.hello is None:
            self.hello = link_pb2.Hello.FromString(frame)
            if (answer := self._node.welcome(self.hello)) is not None:
                self.connection.send(answer.SerializeToString())
                self.connection.keep_alive()
            return
        requests = shard_pb2.RequestFrame.FromString(frame).requests
        self.frames.append([request.number for request in requests])
        for request in requests:
            self._node.asked(self, request)

    def writable(self) -> None:
        pass

    def said_all(self) -> bool:
        return False

    def ended(self, reason: str) -> None:
        self.has_ended = reason


def agreeing(hello: link_pb2.Hello) -> link_pb2.Hello | None:
    """Answer as the node does that is wanted."""
    answer = link_pb2.Hello(node_id=hello.wanted_node_id)
    answer.cluster_id, answer.config_digest = hello.cluster_id, hello.config_digest
    answer.protocol_version, answer.kind = hello.protocol_version, hello.kind
    return answer


class ScriptedNode:
    """Listens for links. ``welcome`` answers hellos; ``asked`` is called with each request."""

    def __init__(self) -> None:
        self.links: list[ServedLink] = []
        self.welcome: Callable[[link_pb2.Hello], link_pb2.Hello | None] = agreeing
        self.asked: Callable[[ServedLink, shard_pb2.ShardRequest], None] = lambda *_: None
        self._server: asyncio.Server | None = None

    async def start(self, port: int = 0) -> str:
        """Listen; return the address."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, "127.0.0.1", port)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        """End everything at once."""
        if self._server is not None:
            self._server.close()
        for link in self.links:
            link.connection.abort("the node is gone")

    def _accept(self) -> FramedConnection:
        self.links.append(ServedLink(self))
        return self.links[-1].connection

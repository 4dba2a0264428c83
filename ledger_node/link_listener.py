"""Where a node listens for links: hears who calls, and hands the connection to what it is for."""

import asyncio
from collections.abc import Callable

import structlog

from ledger.internal.v1 import link_pb2
from ledger_cluster.channels import MESSAGE_BYTES_MAX
from ledger_cluster.config import ClusterConfig, split_address
from ledger_cluster.framed_connection import FramedConnection
from ledger_cluster.hello import (
    HELLO_BYTES_MAX,
    HELLO_TIMEOUT_S,
    HelloRefusedError,
    check_hello,
    make_hello,
    read_hello,
    refusal,
)
from ledger_node.peers import PeerLinks
from ledger_node.shard_exchange import Exchange, Take

# Connections that have not said yet whose they are. Further ones are ended at once.
STRANGERS_MAX = 256

# The same complaint is not repeated sooner: who is refused calls again and again.
_COMPLAIN_AGAIN_S = 10.0

_log = structlog.get_logger()


class LinkListener:
    """Takes the links of clients, with ``take`` for their requests, and those of peers."""

    def __init__(self, config: ClusterConfig, node_id: str, peers: PeerLinks, take: Take) -> None:
        self._address = config.node(node_id).link_address
        self._hellos = {
            kind: make_hello(config, kind, node_id)
            for kind in (link_pb2.LINK_KIND_PEER, link_pb2.LINK_KIND_CLIENT)
        }
        self._peers = peers
        self._take = take
        self._server: asyncio.Server | None = None
        # In the order in which they came.
        self._strangers: dict[_Stranger, None] = {}
        self._exchanges: set[Exchange] = set()
        self._exchanges_ended = asyncio.Event()
        self._complaint = ""
        self._complain_again_at = 0.0

    async def start(self) -> None:
        """Listen; OSError when the address cannot be bound."""
        host, port = split_address(self._address)
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(self._accept, host, port)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise OSError(
                f"cannot listen on {self._address} for links: is the port in use? ({reason})"
            ) from error

    async def stop(self, grace_s: float) -> None:
        """Take no more links and requests; return once clients have their replies, or time is up.

        The links of peers go on.
        """
        if self._server is not None:
            self._server.close()
        for stranger in list(self._strangers):
            stranger.refuse("the node stops")
        for exchange in list(self._exchanges):
            exchange.drain()
        try:
            async with asyncio.timeout(grace_s):
                while self._exchanges:
                    self._exchanges_ended.clear()
                    await self._exchanges_ended.wait()
        except TimeoutError:
            for exchange in list(self._exchanges):
                exchange.abort()

    def _accept(self) -> FramedConnection:
        if len(self._strangers) >= STRANGERS_MAX:
            next(iter(self._strangers)).refuse("too many others are yet to say who they are")
        stranger = _Stranger(self._introduced, self._complain, self._strangers)
        return stranger.connection

    def _introduced(self, stranger: "_Stranger", frame: bytes) -> None:
        """Begin a link, or refuse it."""
        connection = stranger.connection
        own = self._hellos[link_pb2.LINK_KIND_CLIENT]
        try:
            hello = read_hello(frame)
            own = self._hellos.get(hello.kind, own)
            is_peer = own.kind == link_pb2.LINK_KIND_PEER
            check_hello(hello, own, self._peers.serves if is_peer else None)
        except HelloRefusedError as error:
            connection.send(refusal(own, str(error)))
            stranger.refuse(str(error))
            return
        stranger.forget()
        connection.frame_bytes_max = MESSAGE_BYTES_MAX
        connection.keep_alive()
        connection.send(own.SerializeToString())
        if is_peer:
            connection.end = self._peers.begin(hello.node_id, connection)
        else:
            _log.info("client connected", client=connection.other)
            exchange = Exchange(connection, self._take, self._exchange_ended)
            self._exchanges.add(exchange)
            connection.end = exchange

    def _exchange_ended(self, exchange: Exchange) -> None:
        self._exchanges.discard(exchange)
        self._exchanges_ended.set()

    def _complain(self, other: str, reason: str) -> None:
        now = asyncio.get_running_loop().time()
        if reason != self._complaint or now >= self._complain_again_at:
            self._complaint, self._complain_again_at = reason, now + _COMPLAIN_AGAIN_S
            _log.warning("link refused", address=self._address, other=other, reason=reason)


class _Stranger:
    """A connection whose other side has not said yet who it is."""

    def __init__(
        self,
        introduced: Callable[["_Stranger", bytes], None],
        complain: Callable[[str, str], None],
        strangers: "dict[_Stranger, None]",
    ) -> None:
        self.connection = FramedConnection(self, HELLO_BYTES_MAX)
        self._introduced = introduced
        self._complain = complain
        self._strangers = strangers
        strangers[self] = None
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(HELLO_TIMEOUT_S, self.refuse, "it did not say who it is")

    def refuse(self, reason: str) -> None:
        """End the connection, and say so."""
        self.forget()
        self._complain(self.connection.other, reason)
        self.connection.close(reason)

    def forget(self) -> None:
        """Note that it is no stranger any more, or has gone."""
        self._timer.cancel()
        self._strangers.pop(self, None)

    def received(self, frame: bytes) -> None:
        self._introduced(self, frame)

    def writable(self) -> None:
        pass

    def said_all(self) -> bool:
        return False

    def ended(self, reason: str) -> None:
        if self in self._strangers and self.connection.heard:
            self._complain(self.connection.other, f"no hello came; is it the right port? {reason}")
        self.forget()

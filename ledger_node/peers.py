"""Links between nodes: one per pair of nodes, for the messages of all their shards.

Of two nodes the one whose id sorts first dials; the other one answers. Messages may be
lost whenever a link breaks or a peer is slow: Raft sends again what matters, so what waits for a
peer is bounded and the rest is dropped.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import structlog

from ledger.internal.v1 import link_pb2, peer_pb2
from ledger_cluster.config import ClusterConfig
from ledger_cluster.dialling import UnreachableError, dial
from ledger_cluster.framed_connection import FramedConnection
from ledger_cluster.frames import encoded_frame
from ledger_cluster.hello import HelloRefusedError, make_hello
from ledger_cluster.outbox import Outbox

_UNSENT_BYTES_MAX = 32 << 20
_RETRY_S_MIN = 0.05
_RETRY_S_MAX = 1.0

# A peer that cannot be reached for so long is not just starting anew: that is said, now and then.
_COMPLAIN_AFTER_S = 5.0
_COMPLAIN_AGAIN_S = 60.0

_MESSAGES = peer_pb2.PeerFrame.MESSAGES_FIELD_NUMBER

_log = structlog.get_logger()


class PeerEvents(Protocol):
    """What a link tells the node. Called on the event loop."""

    def peer_connected(self, peer_id: str) -> None:
        """Messages reach the peer from now on."""
        ...

    def peer_disconnected(self, peer_id: str) -> None:
        """The peer cannot be reached."""
        ...

    def peer_stopping(self, peer_id: str) -> None:
        """The peer stops, and takes over no leadership any more."""
        ...

    def receive(self, peer_id: str, messages: Sequence[peer_pb2.RaftMessage]) -> None:
        """Messages came from the peer."""
        ...


class _Encoder:
    """Encodes messages: once each, also where several peers are sent the same object in a turn."""

    def __init__(self) -> None:
        # By their object's id, and with the object, so that no other one gets its id.
        self._encoded: dict[int, tuple[peer_pb2.RaftMessage, bytes]] = {}

    def encode(self, messages: Sequence[peer_pb2.RaftMessage]) -> list[bytes]:
        """Return messages encoded. Called on the event loop, which nothing leaves in a turn."""
        if not self._encoded:
            asyncio.get_running_loop().call_soon(self._encoded.clear)
        encoded = []
        for message in messages:
            known = self._encoded.get(id(message))
            if known is None:
                known = self._encoded[id(message)] = message, message.SerializeToString()
            encoded.append(known[1])
        return encoded


class PeerLinks:
    """The links of one node to all others: dials some, is handed the rest, routes the messages."""

    def __init__(self, config: ClusterConfig, node_id: str, events: PeerEvents) -> None:
        self._config = config
        self._events = events
        self._node_id = node_id
        self._links: dict[str, _Link] = {}
        self._encoder = _Encoder()
        # By id: files of the same cluster may list its nodes in different orders.
        order = sorted(node.id for node in config.nodes)
        self._dials = order[order.index(node_id) + 1 :]
        self.serves = order[: order.index(node_id)]
        """The peers that dial this node."""
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to dial the peers whose ids sort after this node's."""
        self._tasks = [
            asyncio.create_task(self._keep_dialling(peer_id), name=f"link to {peer_id}")
            for peer_id in self._dials
        ]

    async def stop(self) -> None:
        """End all links."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for link in list(self._links.values()):
            link.connection.close("this node stops")

    def tell_stopping(self) -> None:
        """Say to the peers that are linked now that this node stops."""
        for link in self._links.values():
            link.tell_stopping()

    def send(self, peer_id: str, messages: Sequence[peer_pb2.RaftMessage]) -> None:
        """Queue messages for a peer; drop them where there is no link.

        They leave at the end of this pass of the event loop, or with `flush`.
        """
        if (link := self._links.get(peer_id)) is not None:
            link.put(self._encoder.encode(messages))

    def flush(self) -> None:
        """Send now what is queued, as far as the system takes it."""
        for link in self._links.values():
            link.writable()

    def begin(self, peer_id: str, connection: FramedConnection) -> "_Link":
        """Take a connection over whose other side is the peer."""
        # A peer that dials anew has lost its old link, whatever this side still believes.
        if (old := self._links.pop(peer_id, None)) is not None:
            old.connection.abort("the peer has made another link")
        link = self._links[peer_id] = _Link(peer_id, connection, self._events, self._ended)
        _log.info("peer connected", peer=peer_id)
        self._events.peer_connected(peer_id)
        return link

    def _ended(self, link: "_Link", reason: str) -> None:
        if self._links.get(link.peer_id) is link:
            del self._links[link.peer_id]
            _log.info("peer disconnected", peer=link.peer_id, reason=reason)
            self._events.peer_disconnected(link.peer_id)

    async def _keep_dialling(self, peer_id: str) -> None:
        """Keep a link to a peer for as long as this node lives."""
        address = self._config.node(peer_id).link_address
        hello = make_hello(self._config, link_pb2.LINK_KIND_PEER, self._node_id, peer_id)
        loop = asyncio.get_running_loop()
        retry_s = 0.0
        complain_at = loop.time() + _COMPLAIN_AFTER_S
        while True:
            began = loop.time()
            try:
                connection = await dial(address, hello, partial(self.begin, peer_id))
                await connection.wait_ended()
                retry_s, complain_at = 0.0, loop.time() + _COMPLAIN_AFTER_S
            except HelloRefusedError as error:
                _log.warning("link refused", peer=peer_id, address=address, reason=str(error))
                retry_s = _RETRY_S_MAX
            except UnreachableError as error:
                # Mostly the peer is down, or restarting.
                if loop.time() >= complain_at:
                    complain_at = loop.time() + _COMPLAIN_AGAIN_S
                    _log.warning(
                        "peer cannot be reached; does it run, and is its link address open to "
                        "this node?",
                        peer=peer_id,
                        address=address,
                        reason=str(error),
                    )
            # A try that has taken long is followed by the next one at once.
            retry_s = min(max(_RETRY_S_MIN, retry_s * 2), _RETRY_S_MAX)
            pause_s = retry_s * random.uniform(0.7, 1.0)  # noqa: S311
            await asyncio.sleep(began + pause_s - loop.time())


class _Link:
    """The link to one peer while it is up."""

    def __init__(
        self,
        peer_id: str,
        connection: FramedConnection,
        events: PeerEvents,
        ended: Callable[["_Link", str], None],
    ) -> None:
        self.peer_id = peer_id
        self.connection = connection
        self._events = events
        self._on_end = ended
        self._outbox: Outbox[bytes] = Outbox(connection, self._send)
        # Fields that each frame ends with: what is joined to a message of protobuf is part of it.
        self._ending = b""

    def put(self, messages: Sequence[bytes]) -> None:
        """Queue messages; drop them where the peer is too far behind."""
        size = sum(map(len, messages))
        if self._outbox.bytes + self.connection.unsent_bytes + size > _UNSENT_BYTES_MAX:
            return
        for message in messages:
            self._outbox.put(message, len(message))

    def tell_stopping(self) -> None:
        """Say in every frame from now on that this node stops."""
        self._ending = peer_pb2.PeerFrame(stopping=True).SerializeToString()
        if self._outbox:
            self._outbox.flush()
        else:
            self.connection.send(self._ending)

    def _send(self, messages: list[bytes]) -> None:
        self.connection.send(encoded_frame(_MESSAGES, messages) + self._ending)

    # What the connection calls.

    def received(self, frame: bytes) -> None:
        """Hand messages to the node."""
        said = peer_pb2.PeerFrame.FromString(frame)
        self._events.receive(self.peer_id, said.messages)
        if said.stopping:
            self._events.peer_stopping(self.peer_id)

    def writable(self) -> None:
        """Send what is queued."""
        self._outbox.flush()

    def said_all(self) -> bool:
        """End the link."""
        return False

    def ended(self, reason: str) -> None:
        """Tell that the peer cannot be reached."""
        self._on_end(self, reason)

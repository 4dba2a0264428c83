"""Links between nodes: one gRPC stream per pair of nodes, for the messages of all their shards.

Of two nodes the one whose id sorts first dials; the other one answers. Each side says first who it
is. Messages may be lost whenever a link breaks or a peer is slow: Raft sends again what matters, so
what waits for a peer is bounded and the rest is dropped.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import grpc
import structlog
from grpc import aio

from ledger.internal.v1 import peer_pb2
from ledger_cluster.channels import channel_options
from ledger_cluster.config import ClusterConfig
from ledger_cluster.frames import encoded_frame

PROTOCOL_VERSION = 2

_OUTBOX_BYTES_MAX = 32 << 20
_FRAME_BYTES = 2 << 20
_RETRY_S_MAX = 1.0
_HELLO_TIMEOUT_S = 5.0

_SERVICE = peer_pb2.DESCRIPTOR.services_by_name["PeerService"]
_LINK = _SERVICE.methods_by_name["Link"]
_MESSAGES = peer_pb2.PeerFrame.MESSAGES_FIELD_NUMBER

_log = structlog.get_logger()


class _HelloRefusedError(Exception):
    """The other side is not who it must be, or says that we are not."""


class _Stream(Protocol):
    """Either end of a link. `read` returns no PeerFrame once the other side has ended it.

    What is written is encoded already.
    """

    async def read(self) -> object: ...

    async def write(self, frame: bytes, /) -> None: ...


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


class _Outbox:
    """Encoded messages for one peer while a link to it is up."""

    def __init__(self) -> None:
        self._messages: list[bytes] = []
        self._bytes = 0
        # Fields that each frame ends with: what is joined to a message of protobuf is part of it.
        self._ending = b""
        self._filled = asyncio.Event()

    def put(self, messages: Sequence[bytes]) -> None:
        """Queue messages; drop them where the peer is too far behind."""
        size = sum(map(len, messages))
        if self._bytes + size > _OUTBOX_BYTES_MAX:
            return
        self._messages.extend(messages)
        self._bytes += size
        self._filled.set()

    def tell_stopping(self) -> None:
        """Say in every frame from now on that this node stops."""
        self._ending = peer_pb2.PeerFrame(stopping=True).SerializeToString()
        self._filled.set()

    async def frames(self) -> AsyncIterator[bytes]:
        """Yield what is queued, as few encoded frames as their size allows, for ever."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            messages, self._messages = self._messages, []
            frame: list[bytes] = []
            frame_bytes = 0
            for message in messages:
                size = len(message)
                if frame and frame_bytes + size > _FRAME_BYTES:
                    yield encoded_frame(_MESSAGES, frame)
                    frame, frame_bytes = [], 0
                frame.append(message)
                frame_bytes += size
                self._bytes -= size
            yield encoded_frame(_MESSAGES, frame) + self._ending


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
    """The links of one node to all others: dials some, serves the rest, routes the messages."""

    def __init__(self, config: ClusterConfig, node_id: str, events: PeerEvents) -> None:
        self._config = config
        self._node_id = node_id
        self._events = events
        self._outboxes: dict[str, _Outbox] = {}
        self._encoder = _Encoder()
        # By id: files of the same cluster may list its nodes in different orders.
        order = sorted(node.id for node in config.nodes)
        self._dials = order[order.index(node_id) + 1 :]
        self._serves = order[: order.index(node_id)]
        self._tasks: list[asyncio.Task[None]] = []

    def add_to(self, server: aio.Server) -> None:
        """Serve the links that peers dial. What they are sent is encoded already."""
        handler: grpc.RpcMethodHandler[peer_pb2.PeerFrame, bytes]
        handler = grpc.stream_stream_rpc_method_handler(
            self._link, request_deserializer=peer_pb2.PeerFrame.FromString
        )
        service = grpc.method_handlers_generic_handler(_SERVICE.full_name, {_LINK.name: handler})
        server.add_generic_rpc_handlers((service,))

    def start(self) -> None:
        """Begin to dial the peers whose ids sort after this node's."""
        self._tasks = [
            asyncio.create_task(self._keep_dialling(peer_id), name=f"link to {peer_id}")
            for peer_id in self._dials
        ]

    async def stop(self) -> None:
        """Close the links that this node dialled."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def tell_stopping(self) -> None:
        """Say to the peers that are linked now that this node stops."""
        for outbox in self._outboxes.values():
            outbox.tell_stopping()

    def send(self, peer_id: str, messages: Sequence[peer_pb2.RaftMessage]) -> None:
        """Queue messages for a peer; drop them where there is no link."""
        if (outbox := self._outboxes.get(peer_id)) is not None:
            outbox.put(self._encoder.encode(messages))

    # Handlers may iterate and yield; this one reads and writes, as the dialling side does, so that
    # one task can send while another receives.
    async def _link(
        self,
        request_iterator: object,  # noqa: ARG002
        context: aio.ServicerContext[peer_pb2.PeerFrame, bytes],
    ) -> None:
        """Serve a link that a peer dialled."""
        try:
            first = await asyncio.wait_for(context.read(), _HELLO_TIMEOUT_S)
            peer_id = self._check_hello(first, self._serves)
        except _HelloRefusedError as error:
            _log.warning("peer refused", error=str(error))
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except TimeoutError:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no hello came")
        await context.write(self._hello().SerializeToString())
        await self._exchange(peer_id, context)

    async def _keep_dialling(self, peer_id: str) -> None:
        """Keep a link to a peer for as long as this node lives."""
        address = self._config.node(peer_id).address
        retry_s = 0.0
        async with aio.insecure_channel(address, options=channel_options()) as channel:
            link: aio.StreamStreamMultiCallable[bytes, peer_pb2.PeerFrame] = channel.stream_stream(
                f"/{_SERVICE.full_name}/{_LINK.name}",
                response_deserializer=peer_pb2.PeerFrame.FromString,
            )
            while True:
                try:
                    call = link()
                    await call.write(self._hello().SerializeToString())
                    first = await asyncio.wait_for(call.read(), _HELLO_TIMEOUT_S)
                    self._check_hello(first, [peer_id])
                    retry_s = 0.0
                    await self._exchange(peer_id, call)
                except _HelloRefusedError as error:
                    _log.warning("link refused", peer=peer_id, address=address, error=str(error))
                    retry_s = _RETRY_S_MAX
                except aio.AioRpcError as error:
                    # Mostly UNAVAILABLE: the peer is down or restarting.
                    if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                        _log.warning("link refused by peer", peer=peer_id, error=error.details())
                except (asyncio.InvalidStateError, TimeoutError):
                    pass
                retry_s = min(max(0.05, retry_s * 2), _RETRY_S_MAX)
                await asyncio.sleep(retry_s * random.uniform(0.7, 1.0))  # noqa: S311

    async def _exchange(self, peer_id: str, stream: _Stream) -> None:
        """Send and receive until the link breaks."""
        outbox = _Outbox()
        # A peer that dials anew has lost its old link, whatever this side still believes.
        self._outboxes[peer_id] = outbox
        _log.info("peer connected", peer=peer_id)
        self._events.peer_connected(peer_id)
        sender = asyncio.create_task(_send(outbox, stream), name=f"sender to {peer_id}")
        receiver = asyncio.create_task(self._receive(peer_id, stream), name=f"from {peer_id}")
        try:
            await asyncio.wait([sender, receiver], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sender, receiver):
                task.cancel()
            await asyncio.gather(sender, receiver, return_exceptions=True)
            if self._outboxes.get(peer_id) is outbox:
                del self._outboxes[peer_id]
                _log.info("peer disconnected", peer=peer_id)
                self._events.peer_disconnected(peer_id)

    async def _receive(self, peer_id: str, stream: _Stream) -> None:
        while isinstance(frame := await stream.read(), peer_pb2.PeerFrame):
            self._events.receive(peer_id, frame.messages)
            if frame.stopping:
                self._events.peer_stopping(peer_id)

    def _hello(self) -> peer_pb2.PeerFrame:
        return peer_pb2.PeerFrame(
            hello=peer_pb2.Hello(
                cluster_id=self._config.cluster_id,
                node_id=self._node_id,
                config_digest=self._config.digest,
                protocol_version=PROTOCOL_VERSION,
            )
        )

    def _check_hello(self, frame: object, expected: Sequence[str]) -> str:
        """Return the peer's id, or say why this node does not talk to it."""
        if not isinstance(frame, peer_pb2.PeerFrame):
            raise _HelloRefusedError("the stream ended before a hello came")
        hello = frame.hello
        mine = self._hello().hello
        if hello.cluster_id != mine.cluster_id:
            raise _HelloRefusedError(
                f"{hello.node_id!r} is of cluster {hello.cluster_id!r}, {self._node_id!r} of "
                f"{mine.cluster_id!r}"
            )
        if hello.protocol_version != PROTOCOL_VERSION:
            raise _HelloRefusedError(
                f"{hello.node_id!r} speaks version {hello.protocol_version} of the peer protocol, "
                f"{self._node_id!r} version {PROTOCOL_VERSION}"
            )
        if hello.config_digest != mine.config_digest:
            raise _HelloRefusedError(
                f"{hello.node_id!r} and {self._node_id!r} have different cluster configurations; "
                f"give every node the same file"
            )
        if hello.node_id not in expected:
            raise _HelloRefusedError(
                f"{hello.node_id!r} is not the node that {self._node_id!r} expects on this link "
                f"({', '.join(expected) or 'none'}); check the addresses of the nodes"
            )
        return hello.node_id


async def _send(outbox: _Outbox, stream: _Stream) -> None:
    async for frame in outbox.frames():
        await stream.write(frame)

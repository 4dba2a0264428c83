"""Where a node listens for links: whom it takes, whom it refuses and what it says, how it stops."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from ledger.internal.v1 import link_pb2, shard_pb2
from ledger_cli.local_cluster import free_cluster_ports
from ledger_cluster.config import generate_cluster_config, split_address
from ledger_cluster.dialling import UnreachableError, dial
from ledger_cluster.framed_connection import FramedConnection
from ledger_cluster.hello import HELLO_BYTES_MAX, HelloRefusedError, make_hello
from ledger_cluster.node_link import LinkError, NodeLink
from ledger_node import link_listener
from ledger_node.link_listener import LinkListener
from ledger_node.peers import PeerLinks
from ledger_node.shard_exchange import ReplyDone

PEER, CLIENT = link_pb2.LINK_KIND_PEER, link_pb2.LINK_KIND_CLIENT


class Deaf:
    """A node that nothing is expected to reach."""

    def peer_connected(self, peer_id: str) -> None:
        raise AssertionError(peer_id)


class Node:
    """n2 of three nodes, as far as it listens. Requests wait in `taken`."""

    def __init__(self) -> None:
        self.config = generate_cluster_config(3, 1, base_port=free_cluster_ports(3)[0])
        self.address = self.config.node("n2").link_address
        self.taken: dict[int, ReplyDone] = {}
        peers = PeerLinks(self.config, "n2", Deaf())  # type: ignore[arg-type]
        self.listener = LinkListener(self.config, "n2", peers, self.take)

    def take(self, request: shard_pb2.ShardRequest, done: ReplyDone) -> None:
        self.taken[request.number] = done

    def answer(self, number: int) -> None:
        self.taken.pop(number)(shard_pb2.ShardReply(query=shard_pb2.QueryResponse()))

    def call(self) -> socket.socket:
        """Connect as anything may."""
        plug = socket.create_connection(split_address(self.address))
        plug.setblocking(False)
        return plug


async def until(happened: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not happened():  # noqa: ASYNC110  (many small steps, no event for all)
            await asyncio.sleep(0.001)


async def has_ended(plug: socket.socket) -> None:
    """Wait until the node has ended a connection."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(5):
        try:
            while await loop.sock_recv(plug, 1000):
                pass
        except ConnectionResetError:
            pass
    plug.close()


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    node = Node()
    await node.listener.start()
    yield node
    await node.listener.stop(0.0)


@pytest.mark.parametrize(
    ("odd", "kind", "reason"),
    [
        ({"cluster_id": "theirs"}, CLIENT, "a client is of cluster 'theirs', 'n2' of 'local'"),
        ({"config_digest": "x"}, CLIENT, "a client and 'n2' have different cluster configurations"),
        ({"protocol_version": 99}, CLIENT, "a client speaks version 99 of the protocol of links"),
        ({"wanted_node_id": "n3"}, CLIENT, "a client wants 'n3' and has reached 'n2'"),
        ({"node_id": "n1", "wanted_node_id": "n3"}, PEER, "'n1' wants 'n3' and has reached 'n2'"),
        ({"node_id": "n3"}, PEER, r"'n3' is not the node that 'n2' expects on this link \(n1\)"),
        ({"kind": 7}, CLIENT, "a client is here for a link of another kind"),
    ],
)
async def test_who_does_not_belong_here_is_told_why_and_the_log_says_it_too(
    node: Node, odd: dict[str, Any], kind: "link_pb2.LinkKind.ValueType", reason: str
) -> None:
    hello = make_hello(node.config, kind, wanted_node_id="n2")
    for key, value in odd.items():
        setattr(hello, key, value)
    with capture_logs() as logs, pytest.raises(HelloRefusedError, match=reason) as caught:
        await dial(node.address, hello, lambda _: pytest.fail("taken"))
    (line,) = logs
    assert line["log_level"] == "warning"
    assert line["address"] == node.address
    assert line["reason"] in str(caught.value)


@pytest.mark.parametrize(
    "said",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("!I", HELLO_BYTES_MAX + 1),
        struct.pack("!I", 4) + b"\xff\xff\xff\xff",
        struct.pack("!I", 2) + b"\x10\x01",
    ],
    ids=["gRPC", "web", "long", "garbage", "other message"],
)
async def test_what_is_no_hello_ends_the_connection_with_a_word_about_the_port(
    node: Node, said: bytes
) -> None:
    with capture_logs() as logs:
        plug = node.call()
        plug.send(said)
        await has_ended(plug)
        await until(lambda: logs)
    assert "is it the right port?" in logs[0]["reason"]
    assert logs[0]["other"].startswith("127.0.0.1:")


async def test_who_says_nothing_is_not_kept_for_long(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_listener, "HELLO_TIMEOUT_S", 0.02)
    with capture_logs() as logs:
        plug = node.call()
        plug.send(b"\0\0")
        await has_ended(plug)
    assert [line["reason"] for line in logs] == ["it did not say who it is"]


async def test_a_look_whether_the_port_is_open_is_no_event(node: Node) -> None:
    with capture_logs() as logs:
        node.call().close()
        await until(lambda: not node.listener._strangers)
        await asyncio.sleep(0.01)
    assert not logs


async def test_strangers_are_bounded_the_oldest_go_first(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_listener, "STRANGERS_MAX", 2)
    plugs = []
    for _ in range(3):
        plugs.append(node.call())
        await asyncio.sleep(0.01)
    await has_ended(plugs[0])
    assert len(node.listener._strangers) == 2
    for plug in plugs[1:]:
        plug.close()


async def test_the_same_complaint_is_not_repeated_at_once(node: Node) -> None:
    with capture_logs() as logs:
        for _ in range(3):
            plug = node.call()
            plug.send(b"GET / HTTP/1.1\r\n\r\n")
            await has_ended(plug)
    assert len(logs) == 1


async def test_a_node_that_stops_answers_what_it_took_and_then_ends_the_links(node: Node) -> None:
    link = NodeLink(node.config, "n2")
    asked = asyncio.create_task(link.ask(shard_pb2.ShardRequest(), 5.0))
    await until(lambda: node.taken)
    stopping = asyncio.create_task(node.listener.stop(5.0))
    await asyncio.sleep(0.01)
    assert not stopping.done()
    node.answer(1)
    assert (await asked).number == 1
    await asyncio.wait_for(stopping, 5)
    with pytest.raises(LinkError, match="connection refused"):
        await link.ask(shard_pb2.ShardRequest(), 5.0)
    await link.close()


async def test_a_node_that_stops_does_not_wait_for_ever(node: Node) -> None:
    link = NodeLink(node.config, "n2")
    asked = asyncio.create_task(link.ask(shard_pb2.ShardRequest(), 5.0))
    await until(lambda: node.taken)
    await node.listener.stop(0.02)
    with pytest.raises(LinkError) as caught:
        await asked
    assert caught.value.may_have_arrived
    # Too late for anybody.
    node.answer(1)
    await asyncio.sleep(0)
    await link.close()


async def test_a_port_in_use_is_named_with_its_address(node: Node) -> None:
    second = LinkListener(node.config, "n2", None, node.take)  # type: ignore[arg-type]
    with pytest.raises(OSError, match=f"cannot listen on {node.address} for links") as caught:
        await second.start()
    assert "address already in use" in str(caught.value)


async def test_the_dialling_side_says_why_there_is_no_link(node: Node) -> None:
    hello = make_hello(node.config, CLIENT, wanted_node_id="n2")

    def begin(_connection: FramedConnection) -> Any:
        pytest.fail("taken")

    with pytest.raises(UnreachableError, match="connection refused"):
        await dial(node.config.node("n3").link_address, hello, begin)
    # A gRPC server says first how large its frames may be.
    grpc_hello = bytes.fromhex("00000604000000000000020000 0000".replace(" ", ""))

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(grpc_hello)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    with pytest.raises(UnreachableError, match="is it the right port"):
        await dial(f"{host}:{port}", hello, begin)
    server.close()

"""Links between nodes: what one node sends, the other one receives, in both directions."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest
from grpc import aio

from ledger.internal.v1.peer_pb2 import LogEntry, RaftMessage
from ledger_cluster.channels import server_options
from ledger_cluster.config import ClusterConfig, NodeConfig
from ledger_node.peers import PeerLinks


@dataclass
class Events:
    """What links told a node."""

    connected: asyncio.Event = field(default_factory=asyncio.Event)
    received: list[RaftMessage] = field(default_factory=list)

    def peer_connected(self, peer_id: str) -> None:
        self.connected.set()

    def peer_disconnected(self, peer_id: str) -> None:
        pass

    def receive(self, peer_id: str, messages: Sequence[RaftMessage]) -> None:
        self.received.extend(messages)


class Pair:
    """Two nodes: the first one dials the second one."""

    def __init__(self) -> None:
        self.server = aio.server(options=server_options())
        port = self.server.add_insecure_port("127.0.0.1:0")
        nodes = (NodeConfig("n1", "127.0.0.1:1"), NodeConfig("n2", f"127.0.0.1:{port}"))
        config = ClusterConfig("test", nodes, ())
        self.events = {"n1": Events(), "n2": Events()}
        self.links = {
            node_id: PeerLinks(config, node_id, events) for node_id, events in self.events.items()
        }
        self.links["n2"].add_to(self.server)

    async def start(self) -> None:
        await self.server.start()
        self.links["n1"].start()
        async with asyncio.timeout(10):
            for events in self.events.values():
                await events.connected.wait()

    async def has_received(self, node_id: str, messages: list[RaftMessage]) -> None:
        received = self.events[node_id].received
        async with asyncio.timeout(10):
            while len(received) < len(messages):  # noqa: ASYNC110  (many messages, no event for all)
                await asyncio.sleep(0.001)
        assert received == messages
        received.clear()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = Pair()
    await pair.start()
    yield pair
    await pair.links["n1"].stop()
    await pair.server.stop(None)


def message(number: int, size: int = 10) -> RaftMessage:
    return RaftMessage(shard_id=number, term=1, entries=[LogEntry(payload=bytes(size))])


async def test_messages_arrive_as_they_were_sent_in_both_directions(pair: Pair) -> None:
    # Larger together than a frame.
    sent = [message(number, 1 << 19) for number in range(6)]
    pair.links["n1"].send("n2", sent)
    pair.links["n2"].send("n1", sent[::-1])
    await pair.has_received("n2", sent)
    await pair.has_received("n1", sent[::-1])


async def test_a_message_that_was_sent_before_is_sent_as_it_is_now(pair: Pair) -> None:
    again = message(1)
    for commit_index in (1, 2):
        again.commit_index = commit_index
        pair.links["n1"].send("n2", [again, again])
        await pair.has_received("n2", [again, again])

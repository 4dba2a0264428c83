"""Links between nodes, over real streams: what one side tells, the other one hears."""

import asyncio
from collections.abc import Sequence

from grpc import aio

from ledger.internal.v1 import peer_pb2
from ledger_cli.local_cluster import free_base_port
from ledger_cluster.channels import server_options
from ledger_cluster.config import generate_cluster_config
from ledger_node.peers import PeerLinks

PATIENCE_S = 30.0


class Heard:
    """What a node is told by its links, in order."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    def peer_connected(self, peer_id: str) -> None:
        self._events.put_nowait(("connected", peer_id))

    def peer_disconnected(self, peer_id: str) -> None:
        self._events.put_nowait(("disconnected", peer_id))

    def peer_stopping(self, peer_id: str) -> None:
        self._events.put_nowait(("stopping", peer_id))

    def receive(self, peer_id: str, messages: Sequence[peer_pb2.RaftMessage]) -> None:
        for message in messages:
            self._events.put_nowait((f"term {message.term}", peer_id))

    async def next(self) -> tuple[str, str]:
        return await asyncio.wait_for(self._events.get(), PATIENCE_S)


async def test_a_node_that_stops_says_so_behind_what_it_has_sent_before() -> None:
    config = generate_cluster_config(3, 1, base_port=free_base_port(3))
    by_one, by_two = Heard(), Heard()
    one, two = PeerLinks(config, "n1", by_one), PeerLinks(config, "n2", by_two)
    server = aio.server(options=server_options())
    two.add_to(server)
    server.add_insecure_port(config.node("n2").address)
    await server.start()
    one.start()
    try:
        assert await by_one.next() == ("connected", "n2")
        assert await by_two.next() == ("connected", "n1")
        one.send("n2", [peer_pb2.RaftMessage(term=5)])
        one.tell_stopping()
        assert await by_two.next() == ("term 5", "n1")
        assert await by_two.next() == ("stopping", "n1")
        two.tell_stopping()
        assert await by_one.next() == ("stopping", "n2")
    finally:
        await one.stop()
        await server.stop(0)
    assert await by_one.next() == ("disconnected", "n2")
    assert await by_two.next() == ("disconnected", "n1")

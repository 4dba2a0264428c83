"""Links between nodes, over real connections: what one side tells, the other one hears."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from structlog.testing import capture_logs

from ledger.internal.v1.peer_pb2 import LogEntry, PeerFrame, RaftMessage
from ledger_cli.local_cluster import free_cluster_ports
from ledger_cluster import framed_connection
from ledger_cluster.config import ClusterConfig, generate_cluster_config
from ledger_node import peers
from ledger_node.link_listener import LinkListener
from ledger_node.peers import PeerLinks

PATIENCE_S = 30.0


class Heard:
    """What a node is told by its links, in order."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.received: list[RaftMessage] = []

    def peer_connected(self, peer_id: str) -> None:
        self._events.put_nowait(("connected", peer_id))

    def peer_disconnected(self, peer_id: str) -> None:
        self._events.put_nowait(("disconnected", peer_id))

    def peer_stopping(self, peer_id: str) -> None:
        self._events.put_nowait(("stopping", peer_id))

    def receive(self, peer_id: str, messages: Sequence[RaftMessage]) -> None:
        self.received += messages
        for message in messages:
            self._events.put_nowait((f"term {message.term}", peer_id))

    async def next(self) -> tuple[str, str]:
        return await asyncio.wait_for(self._events.get(), PATIENCE_S)

    def nothing_more(self) -> bool:
        return self._events.empty()

    async def has_received(self, messages: list[RaftMessage]) -> None:
        await until(lambda: len(self.received) >= len(messages))
        assert self.received == messages
        self.received.clear()


async def until(happened: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not happened():  # noqa: ASYNC110  (many small steps, no event for all)
            await asyncio.sleep(0.001)


class Pair:
    """Two nodes: n1 dials n2."""

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self.heard = {"n1": Heard(), "n2": Heard()}
        self.links = {
            node_id: PeerLinks(config, node_id, heard) for node_id, heard in self.heard.items()
        }
        self.listener = LinkListener(config, "n2", self.links["n2"], lambda *_: None)

    async def connected(self) -> None:
        assert await self.heard["n1"].next() == ("connected", "n2")
        assert await self.heard["n2"].next() == ("connected", "n1")


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    config = generate_cluster_config(3, 1, base_port=free_cluster_ports(3)[0])
    pair = Pair(config)
    await pair.listener.start()
    pair.links["n1"].start()
    await pair.connected()
    yield pair
    await pair.links["n1"].stop()
    await pair.listener.stop(1.0)
    await pair.links["n2"].stop()


def message(number: int, size: int = 10) -> RaftMessage:
    return RaftMessage(shard_id=number, term=1, entries=[LogEntry(payload=bytes(size))])


async def test_messages_arrive_as_they_were_sent_in_both_directions(pair: Pair) -> None:
    # Larger together than a frame.
    sent = [message(number, 1 << 19) for number in range(6)]
    pair.links["n1"].send("n2", sent)
    pair.links["n2"].send("n1", sent[::-1])
    await pair.heard["n2"].has_received(sent)
    await pair.heard["n1"].has_received(sent[::-1])


async def test_a_message_that_was_sent_before_is_sent_as_it_is_now(pair: Pair) -> None:
    again = message(1)
    for commit_index in (1, 2):
        again.commit_index = commit_index
        pair.links["n1"].send("n2", [again, again])
        await pair.heard["n2"].has_received([again, again])


async def test_what_is_sent_in_one_pass_shares_a_frame_and_can_leave_at_once(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = pair.links["n1"]._links["n2"]
    frames: list[list[int]] = []
    monkeypatch.setattr(
        link.connection,
        "send",
        lambda frame: frames.append([m.shard_id for m in PeerFrame.FromString(frame).messages]),
    )
    pair.links["n1"].send("n2", [message(1), message(2)])
    pair.links["n1"].send("n2", [message(3)])
    assert not frames
    await asyncio.sleep(0)
    assert frames == [[1, 2, 3]]
    pair.links["n1"].send("n2", [message(4)])
    pair.links["n1"].flush()
    assert frames == [[1, 2, 3], [4]]
    await asyncio.sleep(0)
    assert len(frames) == 2


async def test_a_node_that_stops_says_so_behind_what_it_has_sent_before(pair: Pair) -> None:
    by_one, by_two = pair.heard["n1"], pair.heard["n2"]
    pair.links["n1"].send("n2", [RaftMessage(term=5)])
    pair.links["n1"].tell_stopping()
    assert await by_two.next() == ("term 5", "n1")
    assert await by_two.next() == ("stopping", "n1")
    pair.links["n2"].tell_stopping()
    assert await by_one.next() == ("stopping", "n2")
    await pair.links["n1"].stop()
    assert await by_one.next() == ("disconnected", "n2")
    assert await by_two.next() == ("disconnected", "n1")


async def test_what_a_peer_does_not_take_is_bounded_and_the_rest_dropped(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_UNSENT_BYTES_MAX", 1 << 20)
    link = pair.links["n1"]._links["n2"]
    link.connection.pause_writing()
    sent = [message(number, 400 << 10) for number in range(5)]
    for one in sent:
        pair.links["n1"].send("n2", [one])
        await asyncio.sleep(0)
    assert not pair.heard["n2"].received
    link.connection.resume_writing()
    await pair.heard["n2"].has_received(sent[:2])
    pair.links["n1"].send("n2", sent[4:])
    await pair.heard["n2"].has_received(sent[4:])


async def test_a_link_that_breaks_is_made_anew(pair: Pair) -> None:
    pair.links["n2"]._links["n1"].connection.abort("broken")
    for heard, other in ((pair.heard["n1"], "n2"), (pair.heard["n2"], "n1")):
        assert await heard.next() == ("disconnected", other)
        assert await heard.next() == ("connected", other)
    pair.links["n1"].send("n2", [message(1)])
    await pair.heard["n2"].has_received([message(1)])


async def test_a_peer_that_falls_silent_is_lost_and_dialled_anew(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that drops everything tells neither side."""
    monkeypatch.setattr(framed_connection, "BEAT_S", 0.02)
    # The next link has these beats.
    pair.links["n1"]._links["n2"].connection.abort("test")
    for heard, other in ((pair.heard["n1"], "n2"), (pair.heard["n2"], "n1")):
        assert await heard.next() == ("disconnected", other)
        assert await heard.next() == ("connected", other)
    for node_id, peer_id in (("n1", "n2"), ("n2", "n1")):
        connection = pair.links[node_id]._links[peer_id].connection
        monkeypatch.setattr(connection, "send", lambda _: None)
    assert await pair.heard["n1"].next() == ("disconnected", "n2")
    assert await pair.heard["n2"].next() == ("disconnected", "n1")
    await pair.connected()


async def test_a_peer_that_dials_anew_has_lost_its_old_link(pair: Pair) -> None:
    """Also where this side has not noticed: what still comes on the old one counts no more."""
    again = PeerLinks(pair.config, "n1", Heard())
    again.start()
    try:
        assert await pair.heard["n2"].next() == ("connected", "n1")
        assert await pair.heard["n1"].next() == ("disconnected", "n2")
        again.send("n2", [RaftMessage(term=7)])
        assert await pair.heard["n2"].next() in (("term 7", "n1"), ("connected", "n1"))
    finally:
        await pair.links["n1"].stop()
        await again.stop()


async def test_a_peer_that_stays_out_of_reach_is_named_with_what_to_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "_COMPLAIN_AFTER_S", 0.0)
    config = generate_cluster_config(2, 1, 1, base_port=free_cluster_ports(2)[0])
    links = PeerLinks(config, "n1", Heard())
    with capture_logs() as logs:
        links.start()
        await until(lambda: logs)
        await links.stop()
    assert "is its link address open to this node?" in logs[0]["event"]
    assert (logs[0]["peer"], logs[0]["address"]) == ("n2", config.node("n2").link_address)
    assert logs[0]["reason"] == "connection refused"

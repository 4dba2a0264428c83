"""The link to a node: what shares a frame, and what is known of a request when the link breaks."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from scripted_node import ScriptedNode, agreeing

from ledger.internal.v1 import link_pb2, shard_pb2
from ledger_cluster import framed_connection, node_link
from ledger_cluster.config import ClusterConfig, NodeConfig
from ledger_cluster.framed_connection import FramedConnection
from ledger_cluster.node_link import LinkError, NodeFaultError, NodeLink
from ledger_cluster.outbox import FRAME_BYTES, Outbox


class Node(ScriptedNode):
    """A node, and a link to it."""

    link: NodeLink

    async def open(self) -> None:
        self.address = await self.start()
        nodes = (NodeConfig("a", "127.0.0.1:1", self.address),)
        self.link = NodeLink(ClusterConfig("test", nodes, ()), "a")

    def ask(self, timeout_s: float = 5.0) -> "asyncio.Task[Any]":
        return asyncio.create_task(self.link.ask(shard_pb2.ShardRequest(), timeout_s))

    async def until(self, happened: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not happened():  # noqa: ASYNC110  (many small steps, no event for all)
                await asyncio.sleep(0.001)

    async def has_frames(self, count: int, link: int = 0) -> list[list[int]]:
        await self.until(lambda: len(self.links) > link and len(self.links[link].frames) == count)
        return self.links[link].frames

    async def has_first(self) -> "asyncio.Task[Any]":
        """Ask the first request, and see it come."""
        asked = self.ask()
        await self.has_frames(1)
        return asked

    def set_full(self, full: bool) -> None:
        """Let the system take nothing more from the link, or everything again."""
        connection = self.link._connection
        assert connection is not None
        if full:
            connection.pause_writing()
        else:
            connection.resume_writing()


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    node = Node()
    await node.open()
    yield node
    await node.link.close()
    node.stop()


async def test_requests_of_one_pass_of_the_event_loop_share_a_frame(node: Node) -> None:
    first = await node.has_first()
    asked = [node.ask() for _ in range(16)]
    assert await node.has_frames(2) == [[1], list(range(2, 18))]
    node.links[0].answer(*range(17, 0, -1))
    replies = await asyncio.gather(first, *asked)
    assert [reply.query.applied_index for reply in replies] == list(range(1, 18))


async def test_what_waits_for_the_link_leaves_together_once_it_is_there(node: Node) -> None:
    asked = [node.ask() for _ in range(3)]
    assert await node.has_frames(1) == [[1, 2, 3]]
    assert len(node.links) == 1
    node.links[0].answer(1, 2, 3)
    await asyncio.gather(*asked)


async def test_a_request_that_waits_does_not_hold_up_others(node: Node) -> None:
    slow, quick = node.ask(), node.ask()
    await node.has_frames(1)
    node.links[0].answer(2)
    assert (await quick).number == 2
    assert not slow.done()
    slow.cancel()


async def test_a_request_without_a_reply_in_time_may_have_arrived(node: Node) -> None:
    first = await node.has_first()
    with pytest.raises(LinkError, match="did not answer in time") as caught:
        await node.ask(0.02)
    assert caught.value.may_have_arrived
    # Its reply is late: nobody takes it, and the link goes on.
    node.links[0].answer(2)
    asked = node.ask()
    await node.has_frames(3)
    node.links[0].answer(3, 1)
    assert (await asked).number == 3
    await first


async def test_what_was_given_up_before_it_was_sent_never_is(node: Node) -> None:
    first = await node.has_first()
    node.set_full(True)
    with pytest.raises(LinkError) as caught:
        await node.ask(0.02)
    assert not caught.value.may_have_arrived
    last = node.ask()
    await asyncio.sleep(0)
    node.set_full(False)
    assert await node.has_frames(2) == [[1], [3]]
    node.links[0].answer(1, 3)
    await asyncio.gather(first, last)


async def test_what_was_given_up_before_there_was_a_link_never_is_sent(node: Node) -> None:
    node.welcome = lambda _: None
    with pytest.raises(LinkError, match="did not answer in time") as caught:
        await node.ask(0.02)
    assert not caught.value.may_have_arrived
    last = node.ask()
    await node.until(lambda: node.links and node.links[0].hello)
    hello = agreeing(node.links[0].hello or link_pb2.Hello())
    assert hello is not None
    node.links[0].connection.send(hello.SerializeToString())
    assert await node.has_frames(1) == [[2]]
    node.links[0].answer(2)
    await last


async def test_a_broken_link_fails_what_is_on_it_and_is_made_anew(node: Node) -> None:
    sent = await node.has_first()
    node.set_full(True)
    unsent = node.ask()
    await asyncio.sleep(0.01)
    node.links[0].connection.abort("broken")
    errors = await asyncio.gather(sent, unsent, return_exceptions=True)
    assert [str(error) for error in errors] == ["cannot be reached"] * 2
    assert [getattr(error, "may_have_arrived", None) for error in errors] == [True, False]

    asked = node.ask()
    await node.has_frames(1, link=1)
    node.links[1].answer(3)
    assert (await asked).number == 3


async def test_a_link_that_the_node_ends_in_good_order_says_nothing_of_what_is_on_it(
    node: Node,
) -> None:
    asked = await node.has_first()
    node.links[0].connection.finish()
    with pytest.raises(LinkError) as caught:
        await asked
    assert caught.value.may_have_arrived


async def test_what_cannot_be_read_ends_the_link(node: Node) -> None:
    asked = await node.has_first()
    node.links[0].connection.send(b"\xff\xff\xff")
    with pytest.raises(LinkError) as caught:
        await asked
    assert caught.value.may_have_arrived


async def test_without_a_connection_nothing_has_arrived_and_it_is_tried_again_soon(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_link, "_RETRY_S_MIN", 5.0)
    monkeypatch.setattr(node_link, "_RETRY_S_MAX", 5.0)
    node.stop()
    for _ in range(2):
        # The second one fails without another try.
        with pytest.raises(LinkError, match=f"{node.address}: connection refused") as caught:
            await node.ask()
        assert not caught.value.may_have_arrived
    await node.start(int(node.address.rpartition(":")[2]))
    with pytest.raises(LinkError):
        await node.ask()
    assert not node.links
    node.link._retry_at = 0.0
    asked = node.ask()
    await node.has_frames(1)
    node.links[0].answer(*node.links[0].frames[0])
    await asked


async def test_a_node_that_refuses_the_link_is_like_one_that_is_down_but_says_why(
    node: Node,
) -> None:
    def refuse(hello: link_pb2.Hello) -> link_pb2.Hello | None:
        answer = agreeing(hello)
        assert answer is not None
        answer.refusal = "different cluster configurations"
        return answer

    node.welcome = refuse
    with pytest.raises(LinkError, match="refuses the link: different cluster") as caught:
        await node.ask()
    assert not caught.value.may_have_arrived
    await node.until(lambda: node.links[0].has_ended)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("cluster_id", "theirs", "is of cluster 'theirs', a client of 'test'"),
        ("config_digest", "theirs", "have different cluster configurations"),
        ("node_id", "b", "'b' is not the node that a client expects"),
        ("kind", link_pb2.LINK_KIND_PEER, "another kind"),
        ("cluster_id", "", "does not speak the protocol of links; is it the right port"),
    ],
)
async def test_another_than_the_wanted_node_is_refused(
    node: Node, field: str, value: Any, error: str
) -> None:
    def odd(hello: link_pb2.Hello) -> link_pb2.Hello | None:
        answer = agreeing(hello)
        setattr(answer, field, value)
        return answer

    node.welcome = odd
    with pytest.raises(LinkError, match=error) as caught:
        await node.ask()
    assert not caught.value.may_have_arrived


@pytest.mark.parametrize("refusal", ["", "another version"])
async def test_a_node_of_another_version_gets_nothing_and_others_may_be_tried(
    node: Node, refusal: str
) -> None:
    def other_version(hello: link_pb2.Hello) -> link_pb2.Hello | None:
        answer = agreeing(hello)
        assert answer is not None
        answer.protocol_version, answer.refusal = 99, refusal
        return answer

    node.welcome = other_version
    for _ in range(2):
        with pytest.raises(LinkError, match="version") as caught:
            await node.ask()
        assert not caught.value.may_have_arrived


async def test_a_fault_in_a_reply_is_one_of_its_request_alone(node: Node) -> None:
    first = await node.has_first()
    asked = node.ask()
    await node.has_frames(2)
    node.links[0].answer(shard_pb2.ShardReply(number=2, fault="malformed"), 1)
    with pytest.raises(NodeFaultError, match="malformed"):
        await asked
    await first


async def test_a_link_that_is_closed_fails_what_waits(node: Node) -> None:
    asked = await node.has_first()
    await node.link.close()
    with pytest.raises(LinkError) as caught:
        await asked
    assert caught.value.may_have_arrived


async def test_a_link_that_is_closed_while_it_is_made_fails_what_waits(node: Node) -> None:
    node.welcome = lambda _: None
    asked = node.ask()
    await node.until(lambda: node.links and node.links[0].hello)
    await node.link.close()
    with pytest.raises(LinkError) as caught:
        await asked
    assert not caught.value.may_have_arrived


async def test_a_node_that_falls_silent_is_given_up_and_dialled_anew(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framed_connection, "BEAT_S", 0.02)
    asked = await node.has_first()
    # It goes on reading, but says nothing more, like a network that drops what it sends.
    monkeypatch.setattr(node.links[0].connection, "send", lambda _: None)
    with pytest.raises(LinkError) as caught:
        await asked
    assert caught.value.may_have_arrived
    again = node.ask()
    await node.has_frames(1, link=1)
    node.links[1].answer(2)
    await again


async def test_an_idle_link_stays(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framed_connection, "BEAT_S", 0.01)
    asked = await node.has_first()
    await asyncio.sleep(0.2)
    node.links[0].answer(1)
    await asked
    assert len(node.links) == 1


async def test_a_frame_is_bounded_in_bytes_and_keeps_the_order() -> None:
    sizes = [FRAME_BYTES // 2, FRAME_BYTES // 3, FRAME_BYTES // 3, 2 * FRAME_BYTES, 10]
    frames: list[list[int]] = []
    connection = FramedConnection(None)  # type: ignore[arg-type]
    outbox: Outbox[int] = Outbox(connection, frames.append)
    for number, size in enumerate(sizes):
        outbox.put(number, size)
    assert outbox.bytes == sum(sizes)
    await asyncio.sleep(0)
    assert frames == [[0, 1], [2], [3], [4]]
    assert outbox.bytes == 0

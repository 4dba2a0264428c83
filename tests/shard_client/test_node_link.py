"""The stream to a node: what shares a message, and what is known of a request when it breaks."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from grpc import aio

from ledger.internal.v1 import shard_pb2
from ledger_cluster.node_link import LinkError, NodeFaultError, NodeLink
from ledger_cluster.outbox import FRAME_BYTES, Outbox


@dataclass
class Call:
    """A stream of gRPC, as far as a link uses it. What is written is kept; tests write replies."""

    frames: list[list[int]] = field(default_factory=list)
    writable: asyncio.Event = field(default_factory=asyncio.Event)
    replies: "asyncio.Queue[Any]" = field(default_factory=asyncio.Queue)
    ended: tuple[grpc.StatusCode, str] | None = None

    def __post_init__(self) -> None:
        self.writable.set()

    async def write(self, encoded: bytes) -> None:
        frame = shard_pb2.RequestFrame.FromString(encoded)
        self.frames.append([request.number for request in frame.requests])
        await self.writable.wait()

    async def read(self) -> Any:
        return await self.replies.get()

    def answer(self, *numbers: int) -> None:
        replies = [
            shard_pb2.ShardReply(number=number, query=shard_pb2.QueryResponse(applied_index=number))
            for number in numbers
        ]
        self.replies.put_nowait(shard_pb2.ReplyFrame(replies=replies))

    def end(self, code: grpc.StatusCode, details: str = "") -> None:
        self.ended = (code, details)
        self.replies.put_nowait(aio.EOF)

    def done(self) -> bool:
        return self.ended is not None

    def cancel(self) -> None:
        self.ended = self.ended or (grpc.StatusCode.CANCELLED, "")

    async def code(self) -> grpc.StatusCode:
        assert self.ended is not None
        return self.ended[0]

    async def details(self) -> str:
        assert self.ended is not None
        return self.ended[1]


class Node:
    """A link to a node, and the streams it has opened."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.link = NodeLink(self.Exchange)  # type: ignore[arg-type]

    def Exchange(self) -> Call:
        self.calls.append(Call())
        return self.calls[-1]

    def ask(self, timeout_s: float = 5.0) -> "asyncio.Task[Any]":
        return asyncio.create_task(self.link.ask(shard_pb2.ShardRequest(), timeout_s))

    async def until(self, happened: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not happened():  # noqa: ASYNC110  (many small steps, no event for all)
                await asyncio.sleep(0)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    node = Node()
    yield node
    await node.link.close()


async def test_requests_of_one_pass_of_the_event_loop_share_a_message(node: Node) -> None:
    asked = [node.ask() for _ in range(16)]
    await node.until(lambda: node.calls and node.calls[0].frames)
    assert node.calls[0].frames == [list(range(1, 17))]
    node.calls[0].answer(*range(16, 0, -1))
    replies = await asyncio.gather(*asked)
    assert [reply.query.applied_index for reply in replies] == list(range(1, 17))


async def test_a_request_that_waits_does_not_hold_up_others(node: Node) -> None:
    slow, quick = node.ask(), node.ask()
    await node.until(lambda: node.calls and node.calls[0].frames)
    node.calls[0].answer(2)
    assert (await quick).number == 2
    assert not slow.done()
    slow.cancel()


async def test_a_request_without_a_reply_in_time_may_have_arrived(node: Node) -> None:
    with pytest.raises(LinkError, match="did not answer in time") as caught:
        await node.ask(0.02)
    assert caught.value.may_have_arrived
    # Its reply is late: nobody takes it, and the stream goes on.
    node.calls[0].answer(1)
    asked = node.ask()
    await node.until(lambda: len(node.calls[0].frames) == 2)
    node.calls[0].answer(2)
    assert (await asked).number == 2


async def test_what_was_given_up_before_it_was_written_never_is(node: Node) -> None:
    first = node.ask()
    await node.until(lambda: node.calls and node.calls[0].frames)
    node.calls[0].writable.clear()
    stuck = node.ask()
    await node.until(lambda: len(node.calls[0].frames) == 2)
    with pytest.raises(LinkError) as caught:
        await node.ask(0.02)
    assert not caught.value.may_have_arrived
    node.calls[0].writable.set()
    last = node.ask()
    await node.until(lambda: len(node.calls[0].frames) == 3)
    assert node.calls[0].frames == [[1], [2], [4]]
    node.calls[0].answer(1, 2, 4)
    await asyncio.gather(first, stuck, last)


async def test_a_broken_stream_fails_what_is_on_it_and_is_opened_anew(node: Node) -> None:
    sent = node.ask()
    await node.until(lambda: node.calls and node.calls[0].frames)
    node.calls[0].writable.clear()
    stuck = node.ask()
    await node.until(lambda: len(node.calls[0].frames) == 2)
    unsent = node.ask()
    await asyncio.sleep(0)
    node.calls[0].end(grpc.StatusCode.UNAVAILABLE, "Connection reset by peer")
    errors = await asyncio.gather(sent, stuck, unsent, return_exceptions=True)
    assert [str(error) for error in errors] == ["cannot be reached"] * 3
    assert [getattr(error, "may_have_arrived", None) for error in errors] == [True, True, False]

    asked = node.ask()
    await node.until(lambda: len(node.calls) == 2 and node.calls[1].frames)
    node.calls[1].answer(4)
    assert (await asked).number == 4


async def test_a_stream_that_the_node_ends_in_good_order_says_nothing_of_what_is_on_it(
    node: Node,
) -> None:
    asked = node.ask()
    await node.until(lambda: node.calls and node.calls[0].frames)
    node.calls[0].end(grpc.StatusCode.OK)
    with pytest.raises(LinkError) as caught:
        await asked
    assert caught.value.may_have_arrived


async def test_without_a_connection_nothing_has_arrived(node: Node) -> None:
    asked = node.ask()
    await node.until(lambda: node.calls and node.calls[0].frames)
    node.calls[0].end(
        grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses; last error: UNKNOWN"
    )
    with pytest.raises(LinkError) as caught:
        await asked
    assert not caught.value.may_have_arrived


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN])
async def test_a_stream_that_grpc_ends_by_itself_is_a_node_that_cannot_be_reached(
    node: Node, code: grpc.StatusCode
) -> None:
    asked = node.ask()
    await node.until(lambda: node.calls and node.calls[0].frames)
    node.calls[0].end(code, "Internal error from Core")
    with pytest.raises(LinkError) as caught:
        await asked
    assert caught.value.may_have_arrived


async def test_a_node_of_another_version_is_a_fault(node: Node) -> None:
    asked = node.ask()
    await node.until(lambda: node.calls and node.calls[0].frames)
    node.calls[0].end(grpc.StatusCode.UNIMPLEMENTED, "no such method")
    with pytest.raises(NodeFaultError, match="no such method"):
        await asked


async def test_a_link_that_is_closed_fails_what_waits(node: Node) -> None:
    asked = node.ask()
    await node.until(lambda: node.calls and node.calls[0].frames)
    await node.link.close()
    with pytest.raises(LinkError):
        await asked


async def test_a_frame_is_bounded_in_bytes_and_keeps_the_order() -> None:
    outbox: Outbox[int] = Outbox()
    sizes = [FRAME_BYTES // 2, FRAME_BYTES // 3, FRAME_BYTES // 3, 2 * FRAME_BYTES, 10]
    for number, size in enumerate(sizes):
        outbox.put(number, size)
    frames = []
    while len(outbox):
        frames.append(await outbox.next_frame())
    assert frames == [[0, 1], [2], [3], [4]]

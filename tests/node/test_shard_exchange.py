"""A node's end of a stream of requests: every request gets its reply, and the end is orderly."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from grpc import aio

from ledger.internal.v1 import shard_pb2
from ledger_node import shard_exchange
from ledger_node.shard_exchange import Exchange, ReplyDone


class Stream:
    """The node's side of a stream; `handed_over` has what the node has still to answer."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[Any] = asyncio.Queue()
        self.written: list[list[int]] = []
        self.faults: list[str] = []
        self.writable = asyncio.Event()
        self.writable.set()
        self.handed_over: dict[int, ReplyDone] = {}
        self.stopping = asyncio.Event()
        exchange = Exchange(self, self.take, self.stopping)  # type: ignore[arg-type]
        self.exchange = asyncio.create_task(exchange.run())

    async def read(self) -> Any:
        return await self.requests.get()

    async def write(self, frame: shard_pb2.ReplyFrame) -> None:
        await self.writable.wait()
        self.written.append([reply.number for reply in frame.replies])
        self.faults += [reply.fault for reply in frame.replies if reply.fault]

    def take(self, request: shard_pb2.ShardRequest, done: ReplyDone) -> None:
        if request.WhichOneof("request") is None:
            raise RuntimeError("a bug")
        self.handed_over[request.number] = done

    def send(self, *numbers: int) -> None:
        requests = [
            shard_pb2.ShardRequest(number=number, query=shard_pb2.QueryRequest())
            for number in numbers
        ]
        self.requests.put_nowait(shard_pb2.RequestFrame(requests=requests))

    def answer(self, *numbers: int) -> None:
        for number in numbers:
            self.handed_over.pop(number)(shard_pb2.ShardReply(query=shard_pb2.QueryResponse()))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
async def stream() -> AsyncIterator[Stream]:
    stream = Stream()
    yield stream
    stream.exchange.cancel()
    await asyncio.gather(stream.exchange, return_exceptions=True)


async def test_replies_of_a_turn_share_a_message_in_the_order_they_were_ready(
    stream: Stream,
) -> None:
    stream.send(1, 2, 3)
    await settle()
    stream.answer(3, 1)
    await settle()
    stream.answer(2)
    await settle()
    assert stream.written == [[3, 1], [2]]


async def test_a_bug_with_one_request_leaves_the_others_alone(stream: Stream) -> None:
    requests = [shard_pb2.ShardRequest(number=1)]
    stream.requests.put_nowait(shard_pb2.RequestFrame(requests=requests))
    stream.send(2)
    await settle()
    stream.answer(2)
    await settle()
    assert stream.written == [[1], [2]]
    assert stream.faults == ["internal error"]


async def test_a_node_that_stops_answers_what_it_took_and_takes_nothing_more(
    stream: Stream,
) -> None:
    stream.send(1, 2)
    await settle()
    stream.stopping.set()
    await settle()
    stream.send(3)
    stream.answer(1)
    await settle()
    assert not stream.exchange.done()
    stream.answer(2)
    await settle()
    assert stream.exchange.done()
    assert stream.written == [[1], [2]]


async def test_a_caller_that_has_said_all_gets_what_is_due(stream: Stream) -> None:
    stream.send(1)
    stream.requests.put_nowait(aio.EOF)
    await settle()
    stream.answer(1)
    await settle()
    assert stream.exchange.done()
    assert stream.written == [[1]]


async def test_a_caller_that_takes_no_replies_is_not_read_from(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_exchange, "REPLIES_WAITING_MAX", 2)
    stream.writable.clear()
    for number in range(1, 5):
        stream.send(number)
        await settle()
        stream.answer(number)
        await settle()
    # One is being written, three wait.
    stream.send(5)
    await settle()
    assert not stream.handed_over
    stream.writable.set()
    await settle()
    assert list(stream.handed_over) == [5]
    assert stream.written == [[1], [2, 3, 4]]

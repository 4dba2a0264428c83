"""A node's end of a client's link: every request gets its reply, and the end is orderly."""

import asyncio

import pytest

from ledger.internal.v1 import shard_pb2
from ledger_node import shard_exchange
from ledger_node.shard_exchange import Exchange, ReplyDone


class Connection:
    """What an exchange does to its connection."""

    other = "client"

    def __init__(self) -> None:
        self.full = False
        self.reading = True
        self.written: list[list[int]] = []
        self.faults: list[str] = []
        self.end = ""

    def send(self, frame: bytes) -> None:
        assert not self.end
        replies = shard_pb2.ReplyFrame.FromString(frame).replies
        self.written.append([reply.number for reply in replies])
        self.faults += [reply.fault for reply in replies if reply.fault]

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def finish(self) -> None:
        self.end = "finished"

    def close(self, _reason: str) -> None:
        self.end = "closed"


class Client:
    """A link; `handed_over` has what the node has still to answer."""

    def __init__(self) -> None:
        self.connection = Connection()
        self.handed_over: dict[int, ReplyDone] = {}
        self.gone: list[Exchange] = []
        self.exchange = Exchange(self.connection, self.take, self.gone.append)  # type: ignore[arg-type]

    def take(self, request: shard_pb2.ShardRequest, done: ReplyDone) -> None:
        if request.WhichOneof("request") is None:
            raise RuntimeError("a bug")
        self.handed_over[request.number] = done

    def send(self, *numbers: int) -> None:
        requests = [
            shard_pb2.ShardRequest(number=number, query=shard_pb2.QueryRequest())
            for number in numbers
        ]
        self.exchange.received(shard_pb2.RequestFrame(requests=requests).SerializeToString())

    async def answer(self, *numbers: int) -> None:
        """Answer in a turn, and let the pass of the event loop end."""
        for number in numbers:
            self.handed_over.pop(number)(shard_pb2.ShardReply(query=shard_pb2.QueryResponse()))
        await asyncio.sleep(0)


async def test_replies_of_a_turn_share_a_frame_in_the_order_they_were_ready() -> None:
    client = Client()
    client.send(1, 2, 3)
    await client.answer(3, 1)
    await client.answer(2)
    assert client.connection.written == [[3, 1], [2]]


async def test_a_bug_with_one_request_leaves_the_others_alone() -> None:
    client = Client()
    requests = [shard_pb2.ShardRequest(number=1)]
    client.exchange.received(shard_pb2.RequestFrame(requests=requests).SerializeToString())
    client.send(2)
    await asyncio.sleep(0)
    await client.answer(2)
    assert client.connection.written == [[1], [2]]
    assert client.connection.faults == ["internal error"]


async def test_a_node_that_stops_answers_what_it_took_and_takes_nothing_more() -> None:
    client = Client()
    client.send(1, 2)
    client.exchange.drain()
    client.send(3)
    await client.answer(1)
    assert not client.connection.end
    assert 3 not in client.handed_over
    await client.answer(2)
    assert client.connection.written == [[1], [2]]
    assert client.connection.end == "finished"
    # The client ends the connection when it has read that.
    assert client.exchange.said_all()
    assert client.connection.end == "closed"


async def test_a_node_that_stops_and_owes_nothing_ends_at_once() -> None:
    client = Client()
    client.exchange.drain()
    assert client.connection.end == "finished"


async def test_replies_that_wait_for_the_client_are_due_before_the_end() -> None:
    client = Client()
    client.send(1)
    client.connection.full = True
    await client.answer(1)
    client.exchange.drain()
    assert not client.connection.end
    client.connection.full = False
    client.exchange.writable()
    assert (client.connection.written, client.connection.end) == ([[1]], "finished")


async def test_a_caller_that_has_said_all_gets_what_is_due() -> None:
    client = Client()
    client.send(1)
    assert client.exchange.said_all()
    assert not client.connection.end
    await client.answer(1)
    assert client.connection.written == [[1]]
    assert client.connection.end == "closed"


async def test_a_caller_that_takes_no_replies_is_not_read_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shard_exchange, "REPLIES_WAITING_MAX", 2)
    client = Client()
    client.connection.full = True
    for number in range(1, 4):
        assert client.connection.reading
        client.send(number)
        await client.answer(number)
    assert not client.connection.reading
    assert client.connection.written == []
    client.connection.full = False
    client.exchange.writable()
    assert client.connection.reading
    assert client.connection.written == [[1, 2, 3]]


async def test_a_reply_that_is_too_large_for_a_frame_fails_its_request_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shard_exchange, "REPLY_BYTES_MAX", 100)
    client = Client()
    client.send(1, 2)
    done = client.handed_over.pop(1)
    done(shard_pb2.ShardReply(query=shard_pb2.QueryResponse(results=[bytes(100)])))
    await client.answer(2)
    assert client.connection.written == [[1, 2]]
    assert client.connection.faults == ["the reply has 106 bytes; at most 100 are sent"]


async def test_a_reply_to_a_caller_that_has_gone_is_dropped() -> None:
    client = Client()
    client.send(1)
    client.exchange.ended("reset")
    assert client.gone == [client.exchange]

"""Streams of bulk calls: order, flow control, and every way in which one ends."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from bulk_shards import ACCOUNTS, DEBIT, SETTLED, BulkShards, Item, bulk, on_shards
from error_details import decode
from fake_shards import ACCOUNT_VIEW, until
from structlog.testing import capture_logs

from ledger.v1 import ledger_pb2
from ledger_core.ledgers import USD
from ledger_core.queries import GetLedger
from ledger_core.results import LedgerView
from ledger_gateway import bulk as bulk_rpcs
from ledger_gateway.bulk_work import Room
from ledger_gateway.server import GatewayServer

A, B = ACCOUNTS[0][:2]
ONE: list[Item] = [(DEBIT, A, B, 5)]
METHOD = "/ledger.v1.LedgerService/StreamTransactions"
Request = ledger_pb2.CreateTransactionsRequest
Response = ledger_pb2.CreateTransactionsResponse


@pytest.fixture
def shards() -> BulkShards:
    return BulkShards()


class Stream:
    """A stream that a test drives step by step."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def send(self, *requests: Request) -> None:
        for request in requests:
            await self.call.write(request)

    async def next(self) -> Response:
        async with asyncio.timeout(5):
            response = await self.call.read()
        assert response is not grpc.aio.EOF
        return response  # type: ignore[no-any-return]

    async def end(self) -> None:
        """Read all answers; raises what the stream ends with."""
        async with asyncio.timeout(5):
            while await self.call.read() is not grpc.aio.EOF:
                pass

    async def error(self) -> Any:
        """What the stream ends with, after all answers."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.end()
        return decode(caught.value)


def opened(stub: Any, **options: Any) -> Stream:
    return Stream(stub.StreamTransactions(**options))


def item(shard_id: int, amount: int = 5) -> Request:
    first, second = ACCOUNTS[shard_id][:2]
    return bulk([(DEBIT, first, second, amount)])


async def test_answers_come_in_the_order_of_requests(stub: Any, shards: BulkShards) -> None:
    shards.gates = {0: asyncio.Event()}
    stream = opened(stub)
    await stream.send(item(0), item(1), bulk(on_shards(3, 2)))
    await until(lambda: shards.at_work[0] == 1 and len(shards.calls) == 3)
    await until(lambda: shards.at_work[1] == shards.at_work[2] == 0)
    shards.gates[0].set()
    assert [len((await stream.next()).transfers.numbers) for _ in range(3)] == [1, 1, 3]
    await stream.call.done_writing()
    assert await stream.call.read() is grpc.aio.EOF
    assert await stream.call.code() is grpc.StatusCode.OK


async def test_a_stream_of_many_requests(stub: Any, shards: BulkShards) -> None:
    async def requests() -> AsyncIterator[Request]:
        for number in range(50):
            yield bulk(on_shards(number + 1, 0, 1, 2, 3))

    counts = [
        len(response.transfers.statuses) async for response in stub.StreamTransactions(requests())
    ]
    assert counts == list(range(1, 51))


async def test_an_empty_stream_ends_well(stub: Any, shards: BulkShards) -> None:
    stream = opened(stub)
    await stream.call.done_writing()
    assert await stream.call.read() is grpc.aio.EOF
    assert shards.calls == []


async def test_at_most_8_requests_of_a_stream_are_in_work(stub: Any, shards: BulkShards) -> None:
    stream = opened(stub)
    for _ in range(2):
        shards.gates = {0: asyncio.Event()}
        await stream.send(*(item(0, 2**51) for _ in range(20)))
        await until(lambda: shards.at_work[0] == 8)
        # The gateway has had time for more: it has answered others.
        for _ in range(3):
            await stub.CreateTransactions(item(1))
        shards.gates[0].set()
        for _ in range(20):
            await stream.next()
    assert shards.at_work_most[0] == 8


async def test_streams_wait_for_room(stub: Any, gateway: GatewayServer, shards: BulkShards) -> None:
    """They do not fail: they read on when there is room again."""
    gateway._ledger_service._work.room = Room(item(0).ByteSize())
    shards.gates = {0: asyncio.Event()}
    stream = opened(stub)
    await stream.send(item(0), item(1))
    await until(lambda: shards.at_work[0] == 1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CreateTransactions(item(2))
    assert decode(caught.value).reason == "OVERLOADED"
    assert len(shards.calls) == 1
    shards.gates[0].set()
    for _ in range(2):
        assert (await stream.next()).transfers.statuses == bytes([SETTLED])


# Wrong requests


async def test_a_wrong_request_ends_the_stream_after_the_answers_before_it(
    stub: Any, shards: BulkShards
) -> None:
    shards.gates = {0: asyncio.Event()}
    stream = opened(stub)
    await stream.send(item(0), bulk([(DEBIT, A, B, 0)]), item(1))
    await until(lambda: shards.at_work[0] == 1)
    shards.gates[0].set()
    assert (await stream.next()).transfers.statuses == bytes([SETTLED])
    error = await stream.error()
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELDS")
    assert [name for name, _ in error.violations] == ["transfers.amounts[0]"]
    # What comes after it is not begun.
    assert [call.shard_id for call in shards.calls] == [0]


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (b"\xff\xff", "INVALID_ARGUMENT", "not a valid protobuf message"),
        (bytes((2 << 20) + 1), "RESOURCE_EXHAUSTED", "at most 2,097,152 are taken"),
    ],
)
async def test_an_unreadable_request_ends_it_in_our_words(
    channel: grpc.aio.Channel, shards: BulkShards, data: bytes, code: str, said: str
) -> None:
    stream = Stream(channel.stream_stream(METHOD, response_deserializer=Response.FromString)())
    await stream.call.write(item(0).SerializeToString())
    await stream.call.write(data)
    assert (await stream.next()).transfers.statuses == bytes([SETTLED])
    error = await stream.error()
    assert (error.code, said in error.message) == (code, True)


async def test_a_request_that_the_ledger_refuses_ends_it_as_well(
    stub: Any, shards: BulkShards
) -> None:
    main = LedgerView("main", "", [USD], [], 0, 1, 1)
    shards.answer = lambda call: main if isinstance(call.message, GetLedger) else None
    stream = opened(stub)
    await stream.send(item(0), bulk(ONE, currency="EUR"))
    assert (await stream.next()).transfers.statuses == bytes([SETTLED])
    error = await stream.error()
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "CURRENCY_NOT_IN_LEDGER")
    assert [name for name, _ in error.violations] == ["transfers.currency"]


async def test_items_that_fail_do_not_end_it(stub: Any, shards: BulkShards) -> None:
    stream = opened(stub)
    await stream.send(
        Request(transactions=[ledger_pb2.CreateTransactionRequest(account_id="x")]), item(0)
    )
    assert (await stream.next()).results[0].error.reason == "INVALID_FIELDS"
    assert (await stream.next()).transfers.statuses == bytes([SETTLED])


async def test_an_internal_error_is_an_incident(stub: Any, shards: BulkShards) -> None:
    shards.answer = lambda call: ACCOUNT_VIEW
    stream = opened(stub)
    with capture_logs() as logs:
        await stream.send(item(0))
        error = await stream.error()
    assert (error.code, error.reason) == ("INTERNAL", "INTERNAL")
    assert [log["incident"] for log in logs] == [error.metadata["incident"]]


async def test_the_source_of_a_stream_is_that_of_its_requests(
    stub: Any, shards: BulkShards
) -> None:
    stream = opened(stub, metadata=[("x-correlation-id", "batch 7")])
    await stream.send(item(0))
    await stream.next()
    assert shards.calls[0].source.correlation_id == "batch 7"
    wrong = opened(stub, metadata=[("x-correlation-id", "c" * 129)])
    error = await wrong.error()
    assert [name for name, _ in error.violations] == ["x-correlation-id"]


# Ends


def idle(gateway: GatewayServer, shards: BulkShards) -> bool:
    """Whether nothing is left of what streams began."""
    room = gateway._ledger_service._work.room
    return shards.at_work[-1] == 0 and room._bytes == 0 and not room._waiting


async def test_a_cancelled_stream_leaves_nothing(
    stub: Any, gateway: GatewayServer, shards: BulkShards
) -> None:
    shards.hold = asyncio.Event()
    stream = opened(stub)
    await stream.send(item(0), item(1), item(2))
    await until(lambda: shards.at_work[-1] == 3)
    stream.call.cancel()
    await until(lambda: idle(gateway, shards))
    assert shards.cancelled
    await room_for(stub, shards, calls_max=3)


async def test_the_deadline_ends_a_stream(
    stub: Any, gateway: GatewayServer, shards: BulkShards
) -> None:
    shards.hold = asyncio.Event()
    stream = opened(stub, timeout=0.5)
    await stream.send(item(0))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.end()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: idle(gateway, shards))


async def test_a_stopping_gateway_finishes_what_is_in_work(
    stub: Any, gateway: GatewayServer, shards: BulkShards
) -> None:
    shards.hold = asyncio.Event()
    busy, waiting = opened(stub), opened(stub)
    await busy.send(item(0), item(1))
    await waiting.send(item(2))
    await until(lambda: shards.at_work[-1] == 3)
    stopped = asyncio.create_task(gateway.stop(5))
    await until(gateway._ledger_service._stopping.is_set)
    assert shards.at_work[-1] == 3
    shards.hold.set()
    for stream, count in ((busy, 2), (waiting, 1)):
        for _ in range(count):
            assert (await stream.next()).transfers.statuses == bytes([SETTLED])
        error = await stream.error()
        assert (error.code, error.reason) == ("UNAVAILABLE", "SHARD_UNAVAILABLE")
        assert "the gateway is stopping" in error.message
        assert error.retry_delay_s == 1.0
    await stopped


async def test_a_stream_without_requests_ends(
    stub: Any, shards: BulkShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_rpcs, "STREAM_IDLE_S_MAX", 0.2)
    error = await opened(stub).error()
    assert error.code == "UNAVAILABLE"
    assert "had no request for 0.2 s" in error.message


async def room_for(stub: Any, shards: BulkShards, calls_max: int) -> None:
    """All calls that the gateway takes at once can be made: none is still counted."""
    shards.hold = None
    streams = [opened(stub) for _ in range(calls_max)]
    for stream in streams:
        await stream.send(item(0))
        await stream.next()
    for stream in streams:
        await stream.call.done_writing()
        assert await stream.call.read() is grpc.aio.EOF


async def test_open_streams_count_as_calls(stub: Any, shards: BulkShards) -> None:
    streams = [opened(stub) for _ in range(3)]
    for stream in streams:
        await stream.send(item(0))
        await stream.next()
    error = await opened(stub).error()
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert "concurrent calls" in error.message
    for stream in streams:
        await stream.call.done_writing()
        assert await stream.call.read() is grpc.aio.EOF
    await room_for(stub, shards, calls_max=3)

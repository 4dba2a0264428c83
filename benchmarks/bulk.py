"""Bulk calls with columns: ``bulk/…`` are calls, ``stream/…`` streams, ``sdk_bulk/…`` of the SDK.

It is all on one machine: what the load does not spend is left for the ledger. So requests are made
and encoded beforehand, and used again and again. Only their request ids are new each time. Encoded
messages that follow each other are one message to a protobuf reader: the ids are just appended.
"""

import asyncio
import itertools
import os
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import grpc
import grpc.aio
import numpy as np

from benchmarks.book import AccountBook, Pairs
from benchmarks.load import Call, Load, WrongAnswerError
from ledger.v1 import ledger_pb2
from ledger_client import AsyncLedgerClient, LedgerError

TIMEOUT_S = 30.0
PREPARED_MIN = 1 << 17
"""So many transfers are made beforehand, or as many as there are accounts."""
PREPARED_CALLS_MAX = 8_192

_SERVICE = "/ledger.v1.LedgerService"
_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 16 << 20),
]
_SETTLED = ledger_pb2.TRANSACTION_STATUS_SETTLED

Open = Callable[[str, AccountBook, random.Random, Load], AbstractAsyncContextManager[Call]]
Draw = Callable[[AccountBook, int, np.random.Generator], Pairs]


def new_request_ids(count: int) -> bytes:
    """Return the bytes of so many fresh UUIDs, version 7."""
    found = np.empty((count, 16), np.uint8)
    found[:, :6] = np.frombuffer((time.time_ns() // 1_000_000).to_bytes(6), np.uint8)
    found[:, 6:] = np.frombuffer(os.urandom(10 * count), np.uint8).reshape(count, 10)
    found[:, 6] = found[:, 6] & 0x0F | 0x70
    found[:, 8] = found[:, 8] & 0x3F | 0x80
    return found.tobytes()


def prepared(draw: Draw, book: AccountBook, rng: random.Random, per_call: int) -> list[Pairs]:
    """Return the accounts of many calls."""
    numbers = np.random.default_rng(rng.getrandbits(32))
    count = min(PREPARED_CALLS_MAX, max(PREPARED_MIN, len(book)) // per_call)
    return [draw(book, per_call, numbers) for _ in range(max(1, count))]


class Requests:
    """Encoded requests, prepared but for their request ids; they are taken in turns."""

    def __init__(self, draw: Draw, book: AccountBook, rng: random.Random, per_call: int) -> None:
        self._per_call = per_call
        pairs = prepared(draw, book, rng, per_call)
        self._prepared = itertools.cycle([_encoded(item) for item in pairs])

    def next(self) -> bytes:
        """Return a request that was never sent before."""
        ids = ledger_pb2.Transfers(request_ids=new_request_ids(self._per_call))
        more = ledger_pb2.CreateTransactionsRequest(transfers=ids)
        return next(self._prepared) + more.SerializeToString()


def _encoded(pairs: Pairs) -> bytes:
    first, second = pairs
    transfers = ledger_pb2.Transfers(
        forms=bytes([ledger_pb2.TRANSFER_FORM_DEBIT]),
        first_account_ids=first.tolist(),
        second_account_ids=second.tolist(),
        amounts=[1] * len(first),
    )
    return ledger_pb2.CreateTransactionsRequest(transfers=transfers).SerializeToString()


def check(answer: ledger_pb2.CreateTransactionsResponse, count: int) -> None:
    """Raise WrongAnswerError unless all transfers were settled."""
    found = answer.transfers
    if len(found.statuses) != count:
        raise WrongAnswerError("results are missing")
    settled = found.statuses.count(_SETTLED)
    for other in found.others.values():
        if other.HasField("error"):
            raise WrongAnswerError(f"{grpc_code(other.error.code)} {other.error.reason}")
        if other.transaction.status != _SETTLED:
            raise WrongAnswerError(wrong_status(other.transaction))
        settled += 1
    if settled != count:
        raise WrongAnswerError("not all are settled")


def wrong_status(transaction: ledger_pb2.Transaction) -> str:
    """Say what a transaction is that should be settled, and why."""
    name = ledger_pb2.TransactionStatus.Name(transaction.status)
    return f"{name.removeprefix('TRANSACTION_STATUS_')} {transaction.refusal.reason}".strip()


def grpc_code(number: int) -> str:
    """Return the name of a status code."""
    return next((code.name for code in grpc.StatusCode if code.value[0] == number), str(number))


@asynccontextmanager
async def _channels(target: str, count: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    async with AsyncExitStack() as exits:
        yield [
            await exits.enter_async_context(grpc.aio.insecure_channel(target, options=_OPTIONS))
            for _ in range(count)
        ]


@asynccontextmanager
async def _unary(
    draw: Draw, target: str, book: AccountBook, rng: random.Random, load: Load
) -> AsyncIterator[Call]:
    requests = Requests(draw, book, rng, load.per_call)
    async with _channels(target, load.connections) as channels:
        methods: itertools.cycle[Any] = itertools.cycle(
            [
                channel.unary_unary(
                    f"{_SERVICE}/CreateTransactions",
                    response_deserializer=ledger_pb2.CreateTransactionsResponse.FromString,
                )
                for channel in channels
            ]
        )

        async def call() -> None:
            try:
                answer = await next(methods)(requests.next(), timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                raise WrongAnswerError(error.code().name) from error
            check(answer, load.per_call)

        yield call


class _Stream:
    """One stream: answers come in the order of the requests."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        method: Any = channel.stream_stream(
            f"{_SERVICE}/StreamTransactions",
            response_deserializer=ledger_pb2.CreateTransactionsResponse.FromString,
        )
        self._stream = method()
        self._writing = asyncio.Lock()
        self._waiting: deque[asyncio.Future[ledger_pb2.CreateTransactionsResponse]] = deque()
        self._reader = asyncio.create_task(self._read())

    async def send(self, request: bytes) -> ledger_pb2.CreateTransactionsResponse:
        """Send a request and return its answer."""
        answer: asyncio.Future[ledger_pb2.CreateTransactionsResponse]
        answer = asyncio.get_running_loop().create_future()
        async with self._writing:
            if self._reader.done():
                raise WrongAnswerError("the stream has ended")
            self._waiting.append(answer)
            await self._stream.write(request)
        return await answer

    async def close(self) -> None:
        """End it."""
        self._stream.cancel()
        self._reader.cancel()
        with suppress(asyncio.CancelledError):
            await self._reader

    async def _read(self) -> None:
        problem = "the stream has ended"
        try:
            while (answer := await self._stream.read()) is not grpc.aio.EOF:
                self._waiting.popleft().set_result(answer)
        except grpc.RpcError as error:
            problem = error.code().name
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(WrongAnswerError(problem))


@asynccontextmanager
async def _stream(
    draw: Draw, target: str, book: AccountBook, rng: random.Random, load: Load
) -> AsyncIterator[Call]:
    requests = Requests(draw, book, rng, load.per_call)
    async with _channels(target, load.connections) as channels:
        streams = [_Stream(channel) for channel in channels]
        turns = itertools.cycle(streams)

        async def call() -> None:
            try:
                answer = await next(turns).send(requests.next())
            except grpc.RpcError as error:
                raise WrongAnswerError(error.code().name) from error
            check(answer, load.per_call)

        try:
            yield call
        finally:
            for stream in streams:
                await stream.close()


@asynccontextmanager
async def _sdk(
    draw: Draw, target: str, book: AccountBook, rng: random.Random, load: Load
) -> AsyncIterator[Call]:
    columns = itertools.cycle(prepared(draw, book, rng, load.per_call))
    amounts = np.ones(load.per_call, np.int64)
    async with AsyncExitStack() as exits:
        clients = itertools.cycle(
            [
                await exits.enter_async_context(AsyncLedgerClient(target, timeout_s=TIMEOUT_S))
                for _ in range(load.connections)
            ]
        )

        async def call() -> None:
            first, second = next(columns)
            ids = new_request_ids(load.per_call)
            results = await next(clients).create_transfers(first, second, amounts, request_ids=ids)
            for error in results.errors.values():
                raise WrongAnswerError(error.status if isinstance(error, LedgerError) else "?")
            if not results.all_settled():
                raise WrongAnswerError("not all are settled")

        yield call


_DRAWS: dict[str, Draw] = {
    "one_shard": AccountBook.pairs_of_a_shard,
    "same_shard": AccountBook.pairs_of_one_shard,
    "random_accounts": AccountBook.pairs,
}

BULK_OPERATIONS: dict[str, Open] = {
    f"{way}/{name}": partial(opening, draw)
    for way, opening in (("bulk", _unary), ("stream", _stream), ("sdk_bulk", _sdk))
    for name, draw in _DRAWS.items()
}

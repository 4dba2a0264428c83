"""What is called, by name: ``grpc/…`` with bare stubs, ``sdk/…`` with `ledger_client`.

``bulk/…`` and ``stream/…`` are in `benchmarks.bulk`.

A new kind of call is a new entry in `OPERATIONS`.
"""

import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
import numpy as np

from benchmarks.book import AccountBook, Pairs, account_texts
from benchmarks.bulk import BULK_OPERATIONS, Open, wrong_status
from benchmarks.load import Call, Load, WrongAnswerError
from ledger.v1 import ledger_pb2, ledger_pb2_grpc
from ledger_client import AsyncLedgerClient, LedgerError, credit, debit
from ledger_core.ids import new_request_id

TIMEOUT_S = 30.0

_SETTLED = ledger_pb2.TRANSACTION_STATUS_SETTLED

DRAWN_AT_ONCE = 1_024
"""Pairs of accounts: drawn one by one, they would take as long as the SDK takes for its calls."""

Draw = Callable[[AccountBook, random.Random], Iterator[dict[str, Any]]]
"""Goes through what differs from one transaction to the next, without end."""


def one_account(book: AccountBook, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Money out of an account, to the world outside."""
    while True:
        yield {"account_id": book.any(rng), "amount": -1}


def one_shard(book: AccountBook, rng: random.Random) -> Iterator[dict[str, Any]]:
    """A transfer between two accounts of a shard."""
    return _transfers(book.pairs_of_a_shard, rng)


def first_shard(book: AccountBook, rng: random.Random) -> Iterator[dict[str, Any]]:
    """A transfer between two accounts of the first shard."""
    return _transfers(book.pairs_of_first_shard, rng)


def two_shards(book: AccountBook, rng: random.Random) -> Iterator[dict[str, Any]]:
    """A transfer from one shard to another."""
    while True:
        yield _transfer(*book.two_of_two_shards(rng))


def random_accounts(book: AccountBook, rng: random.Random) -> Iterator[dict[str, Any]]:
    """A transfer between any two accounts, on one shard as often as chance has it."""
    return _transfers(book.pairs, rng)


def hot_account(book: AccountBook, rng: random.Random) -> Iterator[dict[str, Any]]:
    """A transfer to one account that is in all of them, from others of its shard."""
    hot, others = book.first_pair()
    while True:
        yield _transfer(book.at(rng, others), hot)


def _transfers(
    draw: Callable[[int, np.random.Generator], Pairs], rng: random.Random
) -> Iterator[dict[str, Any]]:
    numbers = np.random.default_rng(rng.getrandbits(32))
    while True:
        payers, payees = map(account_texts, draw(DRAWN_AT_ONCE, numbers))
        yield from map(_transfer, payers, payees)


def _transfer(payer: str, payee: str) -> dict[str, Any]:
    return {"entries": [debit(payer, 1), credit(payee, 1)]}


@asynccontextmanager
async def _grpc_transactions(
    draw: Draw, target: str, book: AccountBook, rng: random.Random, _load: Load
) -> AsyncIterator[Call]:
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        stub: ledger_pb2_grpc.LedgerServiceAsyncStub = ledger_pb2_grpc.LedgerServiceStub(channel)
        drawn = draw(book, rng)

        async def call() -> None:
            request = ledger_pb2.CreateTransactionRequest(
                settled=True, request_id=new_request_id(), **next(drawn)
            )
            try:
                answer = await stub.CreateTransaction(request, timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                raise WrongAnswerError(error.code().name) from error
            _check(answer.transaction)

        yield call


@asynccontextmanager
async def _sdk_transactions(
    draw: Draw, target: str, book: AccountBook, rng: random.Random, _load: Load
) -> AsyncIterator[Call]:
    async with AsyncLedgerClient(target, timeout_s=TIMEOUT_S) as client:
        drawn = draw(book, rng)

        async def call() -> None:
            try:
                answer = await client.create_transaction(settled=True, **next(drawn))
            except LedgerError as error:
                raise WrongAnswerError(error.status) from error
            _check(answer)

        yield call


@asynccontextmanager
async def _sdk_read(
    target: str, book: AccountBook, rng: random.Random, _load: Load, *, what: str, stale: bool
) -> AsyncIterator[Call]:
    async with AsyncLedgerClient(target, timeout_s=TIMEOUT_S) as client:
        read = client.get_account if what == "account" else client.get_balance

        async def call() -> None:
            try:
                await read(book.any(rng), stale=stale)
            except LedgerError as error:
                raise WrongAnswerError(error.status) from error

        yield call


@asynccontextmanager
async def _sdk_balances(
    target: str, book: AccountBook, rng: random.Random, load: Load
) -> AsyncIterator[Call]:
    async with AsyncLedgerClient(target, timeout_s=TIMEOUT_S) as client:

        async def call() -> None:
            ids = [book.any(rng) for _ in range(load.per_call)]
            for result in await client.get_balances(ids):
                if isinstance(result, LedgerError):
                    raise WrongAnswerError(result.status) from result

        yield call


def _check(answer: ledger_pb2.Transaction) -> None:
    if answer.status != _SETTLED:
        raise WrongAnswerError(wrong_status(answer))


_DRAWS = (one_account, one_shard, first_shard, two_shards, random_accounts, hot_account)

OPERATIONS: dict[str, Open] = {
    **{f"grpc/{draw.__name__}": partial(_grpc_transactions, draw) for draw in _DRAWS},
    **{f"sdk/{draw.__name__}": partial(_sdk_transactions, draw) for draw in _DRAWS},
    "sdk/get_account": partial(_sdk_read, what="account", stale=False),
    "sdk/get_account_stale": partial(_sdk_read, what="account", stale=True),
    "sdk/get_balance": partial(_sdk_read, what="balance", stale=False),
    "sdk_many/get_balances": _sdk_balances,
    **BULK_OPERATIONS,
}

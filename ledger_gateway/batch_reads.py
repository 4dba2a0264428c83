"""The RPCs that read many accounts at once.

The accounts are told apart by shard as arrays, every shard is asked once, and the answers are put
back in their places. What a shard cannot tell is an error of its accounts alone.
"""
# ruff: noqa: N802 - gRPC names the methods

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ledger.v1 import ledger_pb2
from ledger_cluster.shards import Answer
from ledger_core.accounts import AccountType, Direction
from ledger_core.errors import LedgerError
from ledger_core.queries import (
    ACCOUNTS_PER_QUERY_MAX,
    BALANCES_PER_QUERY_MAX,
    GetAccounts,
    GetBalances,
    Query,
)
from ledger_core.results import (
    AccountsView,
    AccountView,
    BalanceBookView,
    BalancesView,
    Failure,
    Result,
)
from ledger_gateway import conversion, fields, validation
from ledger_gateway.bulk_results import give_way
from ledger_gateway.bulk_work import Room
from ledger_gateway.errors import failure_error, to_call_error, unwrap
from ledger_gateway.fields import Violations, wrong
from ledger_gateway.shard_calls import Context, Deadline, ShardCalls

BALANCES_IN_WORK_MAX = 65_536
"""Of all calls of a gateway together: nodes read some 100 to 200 in a millisecond."""

_CREDIT_NORMAL = np.array(
    [False] + [kind.normal_side is Direction.CREDIT for kind in AccountType], dtype=bool
)

IndexArray = NDArray[np.intp]
ViewT = TypeVar("ViewT", bound=Result)


class _Request(Protocol):
    """What both requests have."""

    @property
    def account_ids(self) -> Sequence[int]: ...
    @property
    def consistency(self) -> int: ...


@dataclass(slots=True)
class _Parts:
    """Answers of the shards, each with the places of its accounts in the request.

    ``read_points`` are those of the shards that answered; ``point_indexes`` tell each account's.
    """

    point_indexes: IndexArray
    answered: list[tuple[IndexArray, Answer]] = field(default_factory=list)
    failed: list[tuple[IndexArray, LedgerError]] = field(default_factory=list)
    read_points: list[ledger_pb2.ReadPoint] = field(default_factory=list)


class BatchReadRpcs:
    """Balances and accounts, many in one call."""

    _shards: ShardCalls
    _reading: Room

    async def BatchGetBalances(
        self, request: ledger_pb2.BatchGetBalancesRequest, context: Context
    ) -> ledger_pb2.BatchGetBalancesResponse:
        """Return what accounts have now, as columns."""
        validation.require(_violations(request, BALANCES_PER_QUERY_MAX))
        with _room(self._reading, len(request.account_ids)):
            parts = await self._ask(request, GetBalances, context)
            return await _balances(parts)

    async def BatchGetAccounts(
        self, request: ledger_pb2.BatchGetAccountsRequest, context: Context
    ) -> ledger_pb2.BatchGetAccountsResponse:
        """Return accounts with their balances."""
        validation.require(_violations(request, ACCOUNTS_PER_QUERY_MAX))
        with _room(self._reading, len(request.account_ids)):
            parts = await self._ask(request, GetAccounts, context)
            return await _accounts(parts)

    async def _ask(
        self, request: _Request, query: Callable[[list[int]], Query], context: Context
    ) -> _Parts:
        """Ask each shard for its accounts, all shards at the same time."""
        ids = np.array(request.account_ids, np.uint64)
        places = _places_by_shard(self._shards.shard_ids_of(ids))
        deadline = Deadline(context)

        async def ask(shard_id: int, of_shard: IndexArray) -> Answer | LedgerError:
            asked = query(ids[of_shard].tolist())
            try:
                return await self._shards.query_shard(
                    shard_id, asked, deadline, request.consistency
                )
            except LedgerError as error:
                return error

        told = await asyncio.gather(*(ask(*part) for part in places))
        parts = _Parts(np.zeros(len(ids), np.intp))
        for (_, of_shard), answer in zip(places, told, strict=True):
            if isinstance(answer, LedgerError):
                parts.failed.append((of_shard, answer))
            else:
                parts.answered.append((of_shard, answer))
                parts.point_indexes[of_shard] = len(parts.read_points)
                parts.read_points.append(conversion.read_point(answer))
        return parts


def _violations(request: _Request, accounts_max: int) -> Violations:
    count = len(request.account_ids)
    return [
        *(
            []
            if 1 <= count <= accounts_max
            else wrong("account_ids", f"must be 1 to {accounts_max:,}, not {count:,}")
        ),
        *fields.consistency(request.consistency),
    ]


@contextmanager
def _room(reading: Room, count: int) -> Iterator[None]:
    """Hold room for so many accounts; OverloadedError where there is none."""
    reading.require(count)
    reading.take(count)
    try:
        yield
    finally:
        reading.release(count)


def _places_by_shard(shard_ids: NDArray[np.int64]) -> list[tuple[int, IndexArray]]:
    """Return the places of each shard's accounts, in the order of the request."""
    order = np.argsort(shard_ids, kind="stable")
    ends = np.flatnonzero(np.diff(shard_ids[order])) + 1
    return [(int(shard_ids[places[0]]), places) for places in np.split(order, ends)]


async def _balances(parts: _Parts) -> ledger_pb2.BatchGetBalancesResponse:
    size = len(parts.point_indexes)
    types = np.zeros(size, np.uint8)
    counters = np.zeros((4, size), np.int64)
    versions = np.zeros(size, np.uint64)
    times_us = np.zeros(size, np.int64)
    book_indexes = np.zeros(size, np.intp)
    books: dict[BalanceBookView, int] = {}
    errors: dict[int, ledger_pb2.CallError] = {}
    for places, answer in parts.answered:
        view = unwrap(answer.result, BalancesView)
        types[places] = np.frombuffer(view.types, np.uint8)
        for row, column in enumerate(
            (view.debits_posted, view.credits_posted, view.debits_pending, view.credits_pending)
        ):
            counters[row, places] = np.frombuffer(column, "<i8")
        versions[places] = np.frombuffer(view.versions, "<u8")
        times_us[places] = np.frombuffer(view.times_us, "<i8")
        if view.books:
            named = np.array([books.setdefault(book, len(books)) for book in view.books], np.intp)
            book_indexes[places] = named[np.frombuffer(view.book_places, "<u2")]
        for count, (place, failure) in enumerate(view.missing.items()):
            await give_way(count + 1)
            errors[int(places[place])] = to_call_error(failure_error(failure))
    # Of accounts that are missing, places in the books are those of others.
    book_indexes[types == 0] = 0
    for places, error in parts.failed:
        errors |= dict.fromkeys(places.tolist(), to_call_error(error))
    debits_posted, credits_posted, debits_pending, credits_pending = counters
    credit = _CREDIT_NORMAL[types]
    net = credits_posted - debits_posted
    settled = np.where(credit, net, -net)
    return ledger_pb2.BatchGetBalancesResponse(
        settled_balances=settled.tolist(),
        available_balances=(settled - np.where(credit, debits_pending, credits_pending)).tolist(),
        debits_posted=debits_posted.tolist(),
        credits_posted=credits_posted.tolist(),
        debits_pending=debits_pending.tolist(),
        credits_pending=credits_pending.tolist(),
        versions=versions.tolist(),
        update_times_us=times_us.tolist(),
        types=types.tobytes(),
        book_indexes=book_indexes.tolist(),
        books=[
            ledger_pb2.BalanceBook(
                ledger=book.ledger,
                currency=book.currency,
                currency_exponent=book.currency_exponent,
            )
            for book in books
        ],
        read_point_indexes=parts.point_indexes.tolist(),
        read_points=parts.read_points,
        errors=errors,
    )


async def _accounts(parts: _Parts) -> ledger_pb2.BatchGetAccountsResponse:
    results: dict[int, ledger_pb2.AccountResult] = {}
    for places, answer in parts.answered:
        found = unwrap(answer.result, AccountsView).accounts
        for place, account in zip(places.tolist(), found, strict=True):
            results[place] = _account(account)
            await give_way(len(results))
    for places, error in parts.failed:
        result = ledger_pb2.AccountResult(error=to_call_error(error))
        results |= dict.fromkeys(places.tolist(), result)
    return ledger_pb2.BatchGetAccountsResponse(
        results=[results[place] for place in range(len(results))],
        read_points=parts.read_points,
        read_point_indexes=parts.point_indexes.tolist(),
    )


def _account(found: AccountView | Failure) -> ledger_pb2.AccountResult:
    if isinstance(found, Failure):
        return ledger_pb2.AccountResult(error=to_call_error(failure_error(found)))
    return ledger_pb2.AccountResult(account=conversion.account(found))

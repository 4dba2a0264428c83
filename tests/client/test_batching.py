"""Batching against a gateway: callers notice nothing of it, with either client."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from bulk_gateway import BulkGateway, bulk_gateway, singles_of, transaction
from google.protobuf.message import Message
from scripted_gateway import Failing, info

from ledger.v1 import ledger_pb2
from ledger_client import (
    AsyncLedgerClient,
    DeadlineExceededError,
    FieldViolation,
    InvalidArgumentError,
    LedgerClient,
    LedgerError,
    NotFoundError,
    ResourceExhaustedError,
    ServerCancelledError,
    UnavailableError,
    _batches,
    credit,
    debit,
)

A, B = "0123456789abcdef", "fedcba9876543210"
UNAVAILABLE = Failing(grpc.StatusCode.UNAVAILABLE)

Call = Callable[[Any], Any]
Told = ledger_pb2.Transaction | LedgerError


@pytest.fixture(params=[1_000_000, 1], ids=["whole", "in_parts"])
def gateway(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Callers notice nothing of it either whether answers come in parts."""
    monkeypatch.setattr(_batches, "PARTS_ITEMS_MIN", request.param)
    with bulk_gateway() as running:
        yield running


@pytest.fixture(autouse=True)
def _no_call_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine: what gathers is what the test lets gather."""
    monkeypatch.setattr(_batches, "_PATIENCE_S", 1_000.0)
    monkeypatch.setattr(_batches, "_FIRST_ATTEMPT_S", 1_000.0)


def together_sync(
    gateway: BulkGateway, calls: Sequence[Call], timeout_s: float = 60.0, **options: Any
) -> list[Told]:
    """Make calls in a thread each; no call is answered before all are made."""
    before, all_made = gateway.before, threading.Event()

    def wait(request: Message) -> Failing | None:
        assert all_made.wait(60.0)
        return before(request)

    gateway.before = wait
    with LedgerClient(gateway.target, timeout_s, **options) as client:

        def made() -> int:
            seen = len(gateway.singles) + sum(gateway.bulk_sizes)
            return seen + len(client._batches._batches)

        def told(call: Call) -> Told:
            try:
                return call(client)
            except LedgerError as error:
                return error

        with ThreadPoolExecutor(len(calls)) as pool:
            running = [pool.submit(told, call) for call in calls]
            while made() < len(calls) and not any(one.done() for one in running):
                time.sleep(0.001)
            all_made.set()
            return [one.result() for one in running]


def together_async(
    gateway: BulkGateway, calls: Sequence[Call], timeout_s: float = 60.0, **options: Any
) -> list[Told]:
    """Make calls in a task each, all in the same turn of the event loop."""

    async def run() -> list[Told]:
        async with AsyncLedgerClient(gateway.target, timeout_s, **options) as client:

            async def told(call: Call) -> Told:
                try:
                    made: ledger_pb2.Transaction = await call(client)
                except LedgerError as error:
                    return error
                return made

            return await asyncio.gather(*(told(call) for call in calls))

    return asyncio.run(run())


@pytest.fixture(params=[together_sync, together_async])
def together(request: pytest.FixtureRequest) -> Callable[..., list[Told]]:
    """Makes calls at the same time with either client, which must behave the same."""
    return request.param  # type: ignore[no-any-return]


def between(amount: int = 5, **options: Any) -> Call:
    entries = [debit(A, amount), credit(B, amount)]
    return lambda client: client.create_transaction(entries=entries, settled=True, **options)


def transactions(told: Sequence[Told]) -> list[ledger_pb2.Transaction]:
    return [made for made in told if isinstance(made, ledger_pb2.Transaction)]


def test_a_lone_call_goes_by_itself_as_a_single_call(
    gateway: BulkGateway, together: Callable[..., list[Told]]
) -> None:
    (made,) = together(gateway, [between()])
    assert made == gateway.made[gateway.singles[0].request_id]
    assert (len(gateway.singles), gateway.bulks) == (1, [])


def test_concurrent_calls_travel_together_and_each_gets_its_own(
    gateway: BulkGateway, together: Callable[..., list[Told]]
) -> None:
    told = together(gateway, [between(amount) for amount in range(1, 31)])
    assert [made.entries[0].amount for made in transactions(told)] == list(range(1, 31))
    assert len(gateway.singles) == 1
    assert sum(gateway.bulk_sizes) == 29
    # With threads they may arrive one after the other: 1, 2, 4, and all others.
    assert len(gateway.bulks) <= _batches.CALLS_MAX


CALLS: list[Call] = [
    between(),
    between(description="d", external_reference="r", metadata={"b": "1", "a": "2"}),
    between(actor="me"),
    between(2_000_000),
    between(request_id="01980000-0000-7000-8000-000000000000"),
    between(request_id="order 1"),
    between(dry_run=False, ledger="books"),
    lambda client: client.create_transaction(A, 5, settled=True),
    lambda client: client.create_transaction(A, -5, "out", settled=True, actor="me"),
    lambda client: client.create_transaction(A, -5_000_000, settled=True),
    lambda client: client.create_transaction(A, 5, settled=False),
    lambda client: client.create_transaction(
        entries=[credit(A, 5, "EUR"), debit(B, 5, "EUR")], settled=True, ledger="books"
    ),
    lambda client: client.create_transaction(
        entries=[debit(A, 5), credit(B, 2), credit(B, 3)], settled=True
    ),
]


def test_the_answer_is_that_of_a_single_call(
    gateway: BulkGateway,
    together: Callable[..., list[Told]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ledger_client._bulk._GROUP_MIN", 1)
    told = transactions(together(gateway, CALLS * 2))
    asked = [
        one for bulk in gateway.bulks for one in (*bulk.transactions, *singles_of(bulk.transfers))
    ] + gateway.singles
    assert len(told) == len(asked) == 2 * len(CALLS)
    requests = {one.request_id: one for one in asked}
    for made in told:
        assert made == gateway.made[made.request_id]
        assert made == transaction(requests[made.request_id], int(made.id[16:], 16))
    assert any(bulk.transfers.amounts for bulk in gateway.bulks)


def test_errors_are_those_of_single_calls(
    gateway: BulkGateway, together: Callable[..., list[Told]]
) -> None:
    ids = [f"01980000-0000-7000-8000-{number:012}" for number in range(8)]
    gateway.item_error = lambda request_id: (
        ledger_pb2.CallError(
            code=5,
            reason="ACCOUNT_NOT_FOUND",
            message="no such account",
            violations=[ledger_pb2.FieldViolation(field="account_id", description="unknown")],
            metadata={"account_id": A},
        )
        if request_id == ids[-1]
        else None
    )
    told = together(gateway, [between(request_id=request_id) for request_id in ids])
    if isinstance(told[-1], ledger_pb2.Transaction):
        # It was the single call, of which the gateway takes no notice.
        assert gateway.singles[0].request_id == ids[-1]
    else:
        error = told[-1]
        assert isinstance(error, NotFoundError)
        assert (error.reason, error.message) == ("ACCOUNT_NOT_FOUND", "no such account")
        assert error.metadata == {"account_id": A}
        assert error.violations == [FieldViolation("account_id", "unknown")]
    assert len(transactions(told[:-1])) == 7


def test_only_what_failed_is_sent_again_with_its_request_id(
    gateway: BulkGateway, together: Callable[..., list[Told]]
) -> None:
    failed: list[str] = []

    def once(request_id: str) -> ledger_pb2.CallError | None:
        if len(failed) < 2 and request_id not in failed:
            failed.append(request_id)
            return ledger_pb2.CallError(code=14, reason="SHARD_UNAVAILABLE", retry_delay_ms=1)
        return None

    gateway.item_error = once
    told = together(gateway, [between() for _ in range(20)])
    assert len({made.id for made in transactions(told)}) == 20
    assert len(gateway.made) == 20
    sent = [one.request_id for bulk in gateway.bulks for one in singles_of(bulk.transfers)]
    assert sorted(one for one in set(sent) if sent.count(one) == 2) == sorted(failed)


def test_a_gateway_that_is_away_is_asked_again_for_all(
    gateway: BulkGateway, together: Callable[..., list[Told]]
) -> None:
    left = [2]

    def before(request: Message) -> Failing | None:
        if isinstance(request, ledger_pb2.CreateTransactionsRequest) and left[0]:
            left[0] -= 1
            return UNAVAILABLE
        return None

    gateway.before = before
    told = together(gateway, [between() for _ in range(20)])
    assert len({made.id for made in transactions(told)}) == 20
    assert len(gateway.made) == 20


def test_each_call_ends_at_its_deadline_when_the_gateway_stays_away(
    gateway: BulkGateway, together: Callable[..., list[Told]]
) -> None:
    gateway.before = lambda _: UNAVAILABLE
    told = together(gateway, [between() for _ in range(10)], 0.5)
    # The last attempt may have had too little time even to be told.
    assert {type(error) for error in told} <= {UnavailableError, DeadlineExceededError}
    assert len({id(error) for error in told}) == 10
    assert len(gateway.bulks) < 100


def test_an_open_outcome_is_not_hidden_by_a_later_refusal(
    gateway: BulkGateway, together: Callable[..., list[Told]]
) -> None:
    unknown = Failing(grpc.StatusCode.DEADLINE_EXCEEDED, "", [info("OUTCOME_UNKNOWN")])
    away = Failing(grpc.StatusCode.UNAVAILABLE, "", [info("SHARD_UNAVAILABLE")])

    def before(request: Message) -> Failing | None:
        sent = gateway.bulks if isinstance(request, ledger_pb2.CreateTransactionsRequest) else ()
        ids = {one.transfers.request_ids for one in sent}
        return unknown if len(sent) == len(ids) else away

    gateway.before = before
    told = together(gateway, [between() for _ in range(2)], 1.0)
    assert {type(error) for error in told} <= {DeadlineExceededError, UnavailableError}
    assert DeadlineExceededError in {type(error) for error in told}


def test_a_bulk_call_that_is_refused_is_asked_item_by_item(
    gateway: BulkGateway, together: Callable[..., list[Told]]
) -> None:
    refusal = Failing(grpc.StatusCode.INVALID_ARGUMENT, "wrong", [info("INVALID_FIELDS")])
    gateway.before = lambda request: (
        refusal if isinstance(request, ledger_pb2.CreateTransactionsRequest) else None
    )
    told = together(gateway, [between() for _ in range(20)])
    assert len(transactions(told)) == 20
    bulk_ids = {one.request_id for bulk in gateway.bulks for one in singles_of(bulk.transfers)}
    assert bulk_ids < {one.request_id for one in gateway.singles}


def test_without_batching_all_calls_are_single_ones(
    gateway: BulkGateway, together: Callable[..., list[Told]]
) -> None:
    told = together(gateway, [between() for _ in range(8)], batching=False)
    assert len(transactions(told)) == 8
    assert (len(gateway.singles), gateway.bulks) == (8, [])


def test_a_correlation_id_of_its_own_makes_a_call_a_single_one(
    gateway: BulkGateway, together: Callable[..., list[Told]]
) -> None:
    calls = [between(), between(), between(correlation_id="mine")]
    together(gateway, calls, correlation_id="ours")
    assert sorted(gateway.correlation_ids) == ["mine", "ours", "ours"]
    assert len(gateway.singles) >= 2


def test_too_many_calls_are_refused_at_once(
    gateway: BulkGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_batches, "WAITING_MAX", 5)
    told = together_async(gateway, [between() for _ in range(10)])
    # One went by itself.
    assert [type(error) for error in told[6:]] == 4 * [ResourceExhaustedError]
    assert len(transactions(told)) == 6


async def test_a_call_cancelled_before_it_was_sent_is_not_sent(gateway: BulkGateway) -> None:
    release = threading.Event()

    def before(_: Message) -> None:
        assert release.wait(60.0)

    gateway.before = before
    async with AsyncLedgerClient(gateway.target, 60.0) as client:
        under_way = [asyncio.ensure_future(between()(client)) for _ in range(5)]
        await asyncio.sleep(0)
        waiting = [asyncio.ensure_future(between()(client)) for _ in range(4)]
        await asyncio.sleep(0)
        waiting[3].cancel()
        await asyncio.wait([waiting[3]])
        release.set()
        await asyncio.gather(*under_way, *waiting[:3])
    assert len(gateway.made) == 8


async def test_a_call_cancelled_after_it_was_sent_leaves_the_others_alone(
    gateway: BulkGateway,
) -> None:
    release, arrived = threading.Event(), threading.Event()

    def before(request: Message) -> None:
        if isinstance(request, ledger_pb2.CreateTransactionsRequest):
            arrived.set()
            assert release.wait(60.0)

    gateway.before = before
    async with AsyncLedgerClient(gateway.target, 60.0) as client:
        tasks = [asyncio.ensure_future(between()(client)) for _ in range(5)]
        await asyncio.to_thread(arrived.wait, 60.0)
        tasks[3].cancel()
        await asyncio.wait([tasks[3]])
        release.set()
        told = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(told[3], asyncio.CancelledError)
    assert sum(isinstance(made, ledger_pb2.Transaction) for made in told) == 4
    assert len(gateway.made) == 5


def test_a_gateway_that_hangs_ends_each_call_at_its_deadline(
    gateway: BulkGateway, together: Callable[..., list[Told]]
) -> None:
    release = threading.Event()

    def before(_: Message) -> None:
        release.wait(60.0)

    gateway.before = before
    try:
        told = together(gateway, [between() for _ in range(10)], 0.5)
    finally:
        release.set()
    assert [type(error) for error in told] == 10 * [DeadlineExceededError]


async def test_closing_ends_what_waits_async(gateway: BulkGateway) -> None:
    release, arrived = threading.Event(), threading.Event()

    def before(request: Message) -> None:
        if isinstance(request, ledger_pb2.CreateTransactionsRequest):
            arrived.set()
            release.wait(60.0)

    gateway.before = before
    client = AsyncLedgerClient(gateway.target, 60.0)
    tasks = [asyncio.ensure_future(between()(client)) for _ in range(3)]
    await asyncio.to_thread(arrived.wait, 60.0)
    await client.close()
    told = await asyncio.gather(*tasks, return_exceptions=True)
    release.set()
    assert [type(error) for error in told[1:]] == 2 * [ServerCancelledError]


def test_closing_ends_what_waits_and_the_thread(gateway: BulkGateway) -> None:
    release = threading.Event()

    def before(_: Message) -> None:
        release.wait(60.0)

    gateway.before = before
    client = LedgerClient(gateway.target, 60.0)
    first = client._batches.begin_single()
    assert first is not None
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(between(), client) for _ in range(3)]
        while sum(gateway.bulk_sizes) + len(client._batches._batches) < 3:
            time.sleep(0.001)
        thread = client._batches._thread
        assert thread is not None
        assert thread.daemon
        client.close()
        errors = [one.exception(60.0) for one in running]
    release.set()
    assert [type(error) for error in errors] == 3 * [ServerCancelledError]
    assert not thread.is_alive()


def test_a_client_in_use_by_one_thread_has_no_other(gateway: BulkGateway) -> None:
    with LedgerClient(gateway.target) as client:
        for _ in range(3):
            between()(client)
        assert client._batches._thread is None
    assert len(gateway.singles) == 3


def test_the_thread_ends_when_idle_and_comes_back(
    gateway: BulkGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger_client._sync_batches._IDLE_S", 0.05)
    with LedgerClient(gateway.target) as client, ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            first = client._batches.begin_single()
            assert first is not None
            running = [pool.submit(between(), client) for _ in range(4)]
            assert len({one.result().id for one in running}) == 4
            client._batches.end_single(first)
            while client._batches._thread is not None:
                time.sleep(0.01)
    assert len(gateway.made) == 8


def run_sync(target: str, call: Call, **options: Any) -> Any:
    with LedgerClient(target, **options) as client:
        return call(client)


def run_async(target: str, call: Call, **options: Any) -> Any:
    async def run() -> Any:
        async with AsyncLedgerClient(target, **options) as client:
            return await call(client)

    return asyncio.run(run())


@pytest.fixture(params=[run_sync, run_async])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Runs a call with either client."""
    return request.param


def test_many_transactions_in_one_call(gateway: BulkGateway, run: Callable[..., Any]) -> None:
    request = ledger_pb2.CreateTransactionRequest(account_id=A, amount=5, request_id="r")
    asked = [
        {"entries": [debit(A, 5), credit(B, 5)], "settled": True},
        {"account_id": A, "amount": 2**70, "settled": True},
        request,
        {"account_id": A, "amount": 7, "settled": True, "request_id": "s"},
    ]
    told = run(
        gateway.target,
        lambda client: client.create_transactions(asked, correlation_id="load"),
        batching=False,
    )
    assert [type(one).__name__ for one in told] == [
        *("Transaction", "InvalidArgumentError", "Transaction", "Transaction")
    ]
    assert told[2] == gateway.made["r"]
    assert told[3].amount == 7
    assert gateway.bulk_sizes == [3]
    assert gateway.correlation_ids == ["load"]
    assert run(gateway.target, lambda client: client.create_transactions([])) == []


def test_many_more_transactions_than_a_call_takes(
    gateway: BulkGateway, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_batches, "ITEMS_MAX", 8)
    asked = [{"account_id": A, "amount": n, "settled": True} for n in range(1, 201)]
    told = run(gateway.target, lambda client: client.create_transactions(asked))
    assert [made.amount for made in told] == list(range(1, 201))
    assert max(gateway.bulk_sizes) == 8


def test_many_transactions_are_told_one_by_one_where_a_bulk_call_is_refused(
    gateway: BulkGateway, run: Callable[..., Any]
) -> None:
    def before(request: Message) -> Failing | None:
        if isinstance(request, ledger_pb2.CreateTransactionsRequest):
            return Failing(grpc.StatusCode.INTERNAL)
        assert isinstance(request, ledger_pb2.CreateTransactionRequest)
        return Failing(grpc.StatusCode.NOT_FOUND) if request.amount == 2 else None

    gateway.before = before
    asked = [{"account_id": A, "amount": n, "settled": True} for n in (1, 2, 3)]
    told = run(gateway.target, lambda client: client.create_transactions(asked))
    assert [type(one).__name__ for one in told] == ["Transaction", "NotFoundError", "Transaction"]


def test_columns_of_transfers(gateway: BulkGateway, run: Callable[..., Any]) -> None:
    ids = [f"01980000-0000-7000-8000-{number:012}" for number in range(4)]

    def failing(request_id: str) -> ledger_pb2.CallError | None:
        if request_id == ids[1]:
            return ledger_pb2.CallError(code=5, reason="GONE", message="gone")
        return None

    gateway.item_error = failing
    text = ledger_pb2.TransferText(description="d")
    results = run(
        gateway.target,
        lambda client: client.create_transfers(
            [A, A, A, B],
            [B, B, B, A],
            [1, 2, 3_000_000, 4],
            request_ids=ids,
            texts={3: text},
            actor="loader",
            correlation_id="load",
        ),
    )
    settled, refused = ledger_pb2.TRANSACTION_STATUS_SETTLED, 4
    assert results.statuses.tolist() == [settled, 0, refused, settled]
    assert results.transaction_id(0) == gateway.made[ids[0]].id
    assert gateway.made[ids[3]].description == "d"
    assert {made.actor for made in gateway.made.values()} == {"loader"}
    assert list(results.refusals) == [2]
    assert list(results.errors) == [1]
    with pytest.raises(NotFoundError, match="gone"):
        results.transaction_id(1)
    assert not results.all_settled()
    assert gateway.correlation_ids == ["load"]


def test_columns_as_arrays_in_many_calls_are_repeated_safely(
    gateway: BulkGateway, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_batches, "ITEMS_MAX", 8)
    first = np.full(100, int(A, 16), np.uint64)
    amounts = np.arange(1, 101, dtype=np.int32)

    def load(request_ids: bytes | None) -> Any:
        return run(
            gateway.target,
            lambda client: client.create_transfers(
                first, None, amounts, forms=ledger_pb2.TRANSFER_FORM_IN, request_ids=request_ids
            ),
        )

    results = load(None)
    assert results.all_settled()
    assert len(results) == 100
    assert sorted(made.amount for made in gateway.made.values()) == list(range(1, 101))
    assert gateway.bulk_sizes == [8] * 12 + [4] or sorted(gateway.bulk_sizes) == [4] + [8] * 12
    repeated = load(results.request_ids)
    assert len(gateway.made) == 100
    for column in ("numbers", "statuses", "create_times_us"):
        assert (getattr(repeated, column) == getattr(results, column)).all()


def test_columns_are_sent_again_where_that_may_help(
    gateway: BulkGateway, run: Callable[..., Any]
) -> None:
    failed: list[Any] = []

    def once(request_id: str) -> ledger_pb2.CallError | None:
        if request_id not in failed and len(failed) < 3:
            failed.append(request_id)
            return ledger_pb2.CallError(code=14, reason="SHARD_UNAVAILABLE", retry_delay_ms=1)
        return None

    def before(_: Message) -> Failing | None:
        return UNAVAILABLE if len(gateway.bulks) == 1 else None

    gateway.before, gateway.item_error = before, once
    results = run(
        gateway.target, lambda client: client.create_transfers([A] * 10, [B] * 10, [1] * 10)
    )
    assert results.all_settled()
    assert gateway.bulk_sizes == [10, 10, 3]


def test_columns_end_at_the_deadline(gateway: BulkGateway, run: Callable[..., Any]) -> None:
    gateway.item_error = lambda _: ledger_pb2.CallError(
        code=14, reason="SHARD_UNAVAILABLE", retry_delay_ms=60_000
    )
    results = run(gateway.target, lambda client: client.create_transfers([A, A], [B, B], [1, 2]))
    assert [type(results.errors[index]) for index in (0, 1)] == 2 * [UnavailableError]
    assert results.numbers.tolist() == results.statuses.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"amounts": [1]}, "amounts"),
        ({"amounts": [1, 0]}, "amounts"),
        ({"amounts": [1, 2**63]}, "amounts"),
        ({"amounts": [1, 2.0]}, "amounts"),
        ({"amounts": np.array([1.0, 2.0])}, "amounts"),
        ({"amounts": np.array([1, -1])}, "amounts"),
        ({"first_account_ids": [A, "x"]}, "first_account_ids"),
        ({"first_account_ids": [1, -1]}, "first_account_ids"),
        ({"first_account_ids": [1, 2**64]}, "first_account_ids"),
        ({"second_account_ids": [A]}, "second_account_ids"),
        ({"second_account_ids": [A, 5]}, "second_account_ids"),
        ({"forms": [1, 5]}, "forms"),
        ({"request_ids": ["a", "b"]}, "request_ids"),
        ({"request_ids": b"x" * 31}, "request_ids"),
        ({"texts": {2: ledger_pb2.TransferText()}}, "texts"),
        ({"actor": 5}, "actor"),
    ],
)
def test_columns_that_are_none_are_not_sent(
    gateway: BulkGateway, run: Callable[..., Any], arguments: dict[str, Any], field: str
) -> None:
    given = {
        "first_account_ids": [A, A],
        "second_account_ids": [B, B],
        "amounts": [1, 2],
    } | arguments
    with pytest.raises(InvalidArgumentError) as caught:
        run(gateway.target, lambda client: client.create_transfers(**given))
    assert [found.field for found in caught.value.violations] == [field]
    assert gateway.bulks == []


def test_no_columns_are_no_calls(gateway: BulkGateway, run: Callable[..., Any]) -> None:
    results = run(gateway.target, lambda client: client.create_transfers([], [], []))
    assert (len(results), results.all_settled()) == (0, True)
    assert gateway.bulks == []

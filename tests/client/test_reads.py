"""Reads that travel together: callers notice nothing of it, with either client."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from read_gateway import ReadGateway, read_gateway
from scripted_gateway import Failing

from ledger.v1 import ledger_pb2
from ledger_client import (
    AsyncLedgerClient,
    DeadlineExceededError,
    InvalidArgumentError,
    LedgerClient,
    LedgerError,
    NotFoundError,
    ResourceExhaustedError,
    ServerCancelledError,
    _batches,
)

IDS = [f"{number:016x}" for number in range(1, 41)]
NOBODY = "0123456789abcdef"
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE

Call = Callable[[Any], Any]


@pytest.fixture
def gateway() -> Iterator[ReadGateway]:
    with read_gateway() as running:
        running.balances = {account_id: 10 * place for place, account_id in enumerate(IDS)}
        yield running


@pytest.fixture(autouse=True)
def _no_call_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine: what gathers is what the test lets gather."""
    monkeypatch.setattr(_batches, "_PATIENCE_S", 1_000.0)
    monkeypatch.setattr(_batches, "_FIRST_ATTEMPT_S", 1_000.0)


def reads_of(client: Any) -> list[Any]:
    """All batches of reads of a client."""
    if isinstance(client, LedgerClient):
        return [*client._balances.values(), *client._accounts.values()]
    connection = client._connect()
    return [*connection.balances.values(), *connection.accounts.values()]


def together_sync(
    gateway: ReadGateway, calls: Sequence[Call], timeout_s: float = 60.0, **options: Any
) -> list[Any]:
    """Make calls in a thread each; no call is answered before all are made."""
    before, all_made = gateway.before, threading.Event()

    def wait(request: Message) -> Failing | None:
        assert all_made.wait(60.0)
        return before(request)

    gateway.before = wait
    with (
        LedgerClient(gateway.target, timeout_s, **options) as client,
        ThreadPoolExecutor(len(calls)) as pool,
    ):
        begun = [batches.begin_single() for batches in reads_of(client)]
        asked_before = len(gateway.asked)

        def told(call: Call) -> Any:
            try:
                return call(client)
            except LedgerError as error:
                return error

        running = [pool.submit(told, call) for call in calls]

        def made() -> int:
            waiting = sum(len(batches._batches) for batches in reads_of(client))
            return waiting + sum(len(ids) for _, _, ids in gateway.asked[asked_before:])

        while made() < len(calls) and not any(one.done() for one in running):
            time.sleep(0.001)
        all_made.set()
        gateway.before = before
        for batches, single in zip(reads_of(client), begun, strict=True):
            batches.end_single(single)
        return [one.result() for one in running]


def together_async(
    gateway: ReadGateway, calls: Sequence[Call], timeout_s: float = 60.0, **options: Any
) -> list[Any]:
    """Make calls in a task each, all gathered before the first is sent."""

    async def run() -> list[Any]:
        async with AsyncLedgerClient(gateway.target, timeout_s, **options) as client:
            begun = [batches.begin_single() for batches in reads_of(client)]

            async def told(call: Call) -> Any:
                try:
                    return await call(client)
                except LedgerError as error:
                    return error

            running = [asyncio.ensure_future(told(call)) for call in calls]
            await asyncio.sleep(0)
            for batches, single in zip(reads_of(client), begun, strict=True):
                batches.end_single(single)
            return await asyncio.gather(*running)

    return asyncio.run(run())


@pytest.fixture(params=[together_sync, together_async])
def together(request: pytest.FixtureRequest) -> Callable[..., list[Any]]:
    """Makes calls at the same time with either client, which must behave the same."""
    return request.param  # type: ignore[no-any-return]


def run_sync(target: str, call: Call, **options: Any) -> Any:
    with LedgerClient(target, 60.0, **options) as client:
        return call(client)


def run_async(target: str, call: Call, **options: Any) -> Any:
    async def run() -> Any:
        async with AsyncLedgerClient(target, 60.0, **options) as client:
            return await call(client)

    return asyncio.run(run())


@pytest.fixture(params=[run_sync, run_async])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes one call with either client."""
    return request.param  # type: ignore[no-any-return]


def balance(account_id: str, **options: Any) -> Call:
    return lambda client: client.get_balance(account_id, **options)


def account(account_id: str = "", **options: Any) -> Call:
    return lambda client: client.get_account(account_id, **options)


def test_a_lone_read_goes_by_itself(gateway: ReadGateway, run: Callable[..., Any]) -> None:
    assert run(gateway.target, balance(IDS[3])) == gateway.balance(IDS[3])
    assert run(gateway.target, account(IDS[3])) == gateway.account(IDS[3])
    assert gateway.asked == [("GetBalance", False, (IDS[3],)), ("GetAccount", False, (IDS[3],))]


def test_concurrent_reads_travel_together_and_each_gets_its_own(
    gateway: ReadGateway, together: Callable[..., list[Any]]
) -> None:
    told = together(gateway, [balance(one) for one in IDS] + [account(one) for one in IDS])
    assert told[:40] == [gateway.balance(one) for one in IDS]
    assert told[40:] == [gateway.account(one) for one in IDS]
    assert {name for name, *_ in gateway.asked} == {"BatchGetAccounts", "BatchGetBalances"}
    # With threads they may arrive one after the other: 1, 2, 4, and so on.
    assert len(gateway.asked) <= 2 * _batches.CALLS_MAX


def test_the_same_account_twice_gives_each_its_own_message(
    gateway: ReadGateway, together: Callable[..., list[Any]]
) -> None:
    one, other = together(gateway, [balance(IDS[1]), balance(IDS[1])])
    one.settled_balance += 1
    assert other == gateway.balance(IDS[1])


def test_stale_and_linearizable_reads_never_share_a_call(
    gateway: ReadGateway, together: Callable[..., list[Any]]
) -> None:
    calls = [
        kind(one, stale=stale)
        for kind in (balance, account)
        for stale in (True, False)
        for one in IDS[:3]
    ]
    together(gateway, calls)
    asked = {(name, stale, account_id) for name, stale, ids in gateway.asked for account_id in ids}
    assert asked == {
        (name, stale, account_id)
        for name in ("BatchGetAccounts", "BatchGetBalances")
        for stale in (False, True)
        for account_id in IDS[:3]
    }


def test_reads_as_of_a_moment_and_by_name_go_alone(
    gateway: ReadGateway, together: Callable[..., list[Any]]
) -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    basis = ledger_pb2.TIME_BASIS_RECORDED
    gateway.balances[""] = 7
    alone = [balance(IDS[1], as_of=moment), balance(IDS[2], basis=basis), account(name="rent")]
    together(gateway, [*alone, balance(IDS[3]), balance(IDS[4])])
    assert sorted(gateway.calls("GetBalance")) == [
        ("GetBalance", False, (IDS[1],)),
        ("GetBalance", False, (IDS[2],)),
    ]
    assert gateway.calls("GetAccount") == [("GetAccount", False, ("",))]
    many = [account_id for _, _, ids in gateway.calls("BatchGetBalances") for account_id in ids]
    assert sorted(many) == [IDS[3], IDS[4]]


def test_an_error_is_that_of_the_single_call_and_leaves_the_others_alone(
    gateway: ReadGateway, together: Callable[..., list[Any]], run: Callable[..., Any]
) -> None:
    for kind in (balance, account):
        with pytest.raises(NotFoundError) as caught:
            run(gateway.target, kind(NOBODY))
        told = together(gateway, [kind(IDS[1]), kind(NOBODY), kind(IDS[2]), kind(NOBODY)])
        assert not isinstance(told[0], LedgerError)
        assert not isinstance(told[2], LedgerError)
        for error in (told[1], told[3]):
            assert isinstance(error, NotFoundError)
            assert (str(error), error.metadata) == (str(caught.value), caught.value.metadata)


def test_what_is_no_account_id_is_left_to_the_single_call(
    gateway: ReadGateway, together: Callable[..., list[Any]]
) -> None:
    wrong: list[Any] = ["", "abc", IDS[10].upper(), IDS[1] + "0", None, 7]
    told = together(gateway, [balance(one) for one in [*wrong, IDS[1], IDS[2]]])
    assert [type(error) for error in told[:4]] == [NotFoundError] * 4
    assert [type(error) for error in told[4:6]] == [InvalidArgumentError] * 2
    assert told[6:] == [gateway.balance(IDS[1]), gateway.balance(IDS[2])]
    many = [account_id for _, _, ids in gateway.calls("BatchGetBalances") for account_id in ids]
    assert sorted(many) == [IDS[1], IDS[2]]


def test_only_what_failed_for_now_is_read_again(
    gateway: ReadGateway, together: Callable[..., list[Any]]
) -> None:
    failed: set[str] = set()

    def item_error(account_id: str) -> ledger_pb2.CallError | None:
        if account_id in failed or account_id not in (IDS[1], IDS[2]):
            return None
        failed.add(account_id)
        return ledger_pb2.CallError(
            code=UNAVAILABLE.value[0], reason="SHARD_UNAVAILABLE", retry_delay_ms=1
        )

    gateway.item_error = item_error
    for kind, name in ((balance, "BatchGetBalances"), (account, "BatchGetAccounts")):
        failed.clear()
        told = together(gateway, [kind(one) for one in IDS[:5]])
        assert not any(isinstance(one, LedgerError) for one in told)
        asked = [account_id for _, _, ids in gateway.calls(name) for account_id in ids]
        assert sorted(asked) == sorted([*IDS[:5], IDS[1], IDS[2]])


def test_a_gateway_that_is_away_is_asked_again_for_all(
    gateway: ReadGateway, together: Callable[..., list[Any]]
) -> None:
    fails = [Failing(UNAVAILABLE)]
    gateway.before = lambda _: fails.pop() if fails else None
    told = together(gateway, [balance(one) for one in IDS[:5]])
    assert told == [gateway.balance(one) for one in IDS[:5]]


def test_a_call_that_is_refused_is_asked_one_by_one(
    gateway: ReadGateway, together: Callable[..., list[Any]]
) -> None:
    def before(request: Message) -> Failing | None:
        is_many = isinstance(request, ledger_pb2.BatchGetBalancesRequest)
        return Failing(grpc.StatusCode.INVALID_ARGUMENT) if is_many else None

    gateway.before = before
    told = together(gateway, [balance(one) for one in IDS[:5]])
    assert told == [gateway.balance(one) for one in IDS[:5]]
    assert len(gateway.calls("GetBalance")) == 5


@pytest.mark.parametrize("column", ["versions", "book_indexes", "settled_balances"])
def test_an_answer_to_something_else_is_asked_one_by_one(
    gateway: ReadGateway, together: Callable[..., list[Any]], column: str
) -> None:
    def torn(response: Any) -> None:
        del getattr(response, column)[-1]

    gateway.answered = torn
    told = together(gateway, [balance(one) for one in IDS[:5]])
    assert told == [gateway.balance(one) for one in IDS[:5]]
    gateway.answered = lambda response: response.results.add()
    told = together(gateway, [account(one) for one in IDS[:5]])
    assert told == [gateway.account(one) for one in IDS[:5]]


def test_a_gateway_without_calls_for_many_is_asked_one_by_one(
    together: Callable[..., list[Any]], run: Callable[..., Any]
) -> None:
    with read_gateway(has_batches=False) as older:
        older.balances = dict.fromkeys(IDS[:9], 5)
        assert together(older, [balance(one) for one in IDS[:9]]) == [
            older.balance(one) for one in IDS[:9]
        ]
        found = run(older.target, lambda client: client.get_accounts(IDS[:9]))
        assert found == [older.account(one) for one in IDS[:9]]


def test_without_batching_all_reads_are_single_calls(
    gateway: ReadGateway, together: Callable[..., list[Any]]
) -> None:
    together(gateway, [balance(one) for one in IDS[:9]], batching=False)
    assert len(gateway.calls("GetBalance")) == len(gateway.asked) == 9


def test_a_read_never_joins_a_call_that_was_sent_before_it_was_made(gateway: ReadGateway) -> None:
    """The answer to that call may be older than what the caller knows."""
    release, arrived = threading.Event(), threading.Event()

    def before(request: Message) -> None:
        if isinstance(request, ledger_pb2.BatchGetBalancesRequest):
            arrived.set()
            assert release.wait(60.0)

    gateway.before = before

    async def main() -> None:
        async with AsyncLedgerClient(gateway.target, 60.0) as client:
            early = [asyncio.ensure_future(client.get_balance(IDS[1])) for _ in range(5)]
            # Answered with what the account has now, and held back.
            await asyncio.to_thread(arrived.wait, 60.0)
            gateway.balances[IDS[1]] = 99
            late = [asyncio.ensure_future(client.get_balance(IDS[1])) for _ in range(5)]
            await asyncio.sleep(0)
            release.set()
            # The first one went by itself, and may have come there later.
            together = await asyncio.gather(*early[1:])
            assert {one.settled_balance for one in together} == {10}
            await early[0]
            assert {one.settled_balance for one in await asyncio.gather(*late)} == {99}

    asyncio.run(main())
    assert [len(ids) for _, _, ids in gateway.calls("BatchGetBalances")] == [4, 5]


async def test_a_read_cancelled_before_it_was_sent_is_not_sent(gateway: ReadGateway) -> None:
    release = threading.Event()

    def before(_: Message) -> None:
        assert release.wait(60.0)

    gateway.before = before
    async with AsyncLedgerClient(gateway.target, 60.0) as client:
        under_way = [asyncio.ensure_future(client.get_balance(one)) for one in IDS[:5]]
        await asyncio.sleep(0)
        waiting = [asyncio.ensure_future(client.get_balance(one)) for one in IDS[5:9]]
        await asyncio.sleep(0)
        waiting[3].cancel()
        await asyncio.wait([waiting[3]])
        release.set()
        await asyncio.gather(*under_way, *waiting[:3])
    asked = [account_id for _, _, ids in gateway.asked for account_id in ids]
    assert sorted(asked) == IDS[:8]


async def test_a_read_cancelled_after_it_was_sent_leaves_the_others_alone(
    gateway: ReadGateway,
) -> None:
    release, arrived = threading.Event(), threading.Event()

    def before(request: Message) -> None:
        if isinstance(request, ledger_pb2.BatchGetBalancesRequest):
            arrived.set()
            assert release.wait(60.0)

    gateway.before = before
    async with AsyncLedgerClient(gateway.target, 60.0) as client:
        tasks = [asyncio.ensure_future(client.get_balance(one)) for one in IDS[:5]]
        await asyncio.to_thread(arrived.wait, 60.0)
        tasks[3].cancel()
        await asyncio.wait([tasks[3]])
        release.set()
        told = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(told[3], asyncio.CancelledError)
    del told[3]
    assert told == [gateway.balance(one) for one in (*IDS[:3], IDS[4])]


def test_a_gateway_that_hangs_ends_each_read_at_its_deadline(
    gateway: ReadGateway, together: Callable[..., list[Any]]
) -> None:
    release = threading.Event()

    def before(_: Message) -> None:
        release.wait(60.0)

    gateway.before = before
    try:
        told = together(gateway, [balance(one) for one in IDS[:5]], 0.5)
    finally:
        release.set()
    assert [type(error) for error in told] == 5 * [DeadlineExceededError]
    assert not any("may or may not" in str(error) for error in told)


def test_too_many_reads_are_refused_at_once(
    gateway: ReadGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_batches, "WAITING_MAX", 5)
    told = together_async(gateway, [balance(one) for one in IDS[:9]])
    assert [type(one) for one in told[5:]] == 4 * [ResourceExhaustedError]
    assert told[:5] == [gateway.balance(one) for one in IDS[:5]]


async def test_closing_ends_reads_that_wait(gateway: ReadGateway) -> None:
    client = AsyncLedgerClient(gateway.target, 60.0)
    batches = client._connect().accounts[True]
    batches.begin_single()
    tasks = [asyncio.ensure_future(client.get_account(one, stale=True)) for one in IDS[:3]]
    await asyncio.sleep(0)
    await client.close()
    told = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in told] == 3 * [ServerCancelledError]
    assert gateway.asked == []


def test_many_reads_in_few_calls_each_with_its_own_result(
    gateway: ReadGateway, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [*IDS[:5], NOBODY, "abc", *IDS[:5]]
    balances = run(gateway.target, lambda client: client.get_balances(asked, stale=True))
    assert balances[:5] == balances[7:] == [gateway.balance(one) for one in IDS[:5]]
    assert [type(error) for error in balances[5:7]] == [NotFoundError] * 2
    many, single = gateway.asked
    assert many == ("BatchGetBalances", True, (*IDS[:5], NOBODY, *IDS[:5]))
    assert single == ("GetBalance", True, ("abc",))
    gateway.asked.clear()
    monkeypatch.setattr(_batches, "ITEMS_MAX", 16)
    accounts = run(gateway.target, lambda client: client.get_accounts(iter(IDS)))
    assert accounts == [gateway.account(one) for one in IDS]
    sizes = [len(ids) for _, _, ids in gateway.calls("BatchGetAccounts")]
    assert max(sizes) <= 16
    assert sum(sizes) == 40
    assert run(gateway.target, lambda client: client.get_balances([])) == []

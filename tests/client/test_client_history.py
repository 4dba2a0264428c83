"""The SDK's part for history, against a scripted gateway; sync and asyncio alike."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from scripted_gateway import Failing, scripted_gateway

from ledger.v1 import ledger_pb2
from ledger_client import AsyncLedgerClient, InvalidArgumentError, LedgerClient

ACCOUNT = "0123456789abcdef"
TRANSACTION = ACCOUNT + "0" * 15 + "1"
START, END = datetime(2026, 1, 31, tzinfo=UTC), datetime(2026, 2, 1, 0, 0, 0, 1, tzinfo=UTC)
PERIOD: Any = {
    "start_time": Timestamp(seconds=1_769_817_600),
    "end_time": Timestamp(seconds=1_769_904_000, nanos=1_000),
}
CREATED = ledger_pb2.CreateTransactionResponse(transaction=ledger_pb2.Transaction(id=TRANSACTION))

Call = Callable[[Any], Any]


async def drain(result: Any) -> Any:
    """Make lists of iterators, and plain values of what is to be awaited."""
    if hasattr(result, "__aiter__"):
        return [item async for item in result]
    if hasattr(result, "__next__"):
        return list(result)
    found = await result if asyncio.iscoroutine(result) else result
    if hasattr(found, "opening"):
        return found.opening, found.closing, await drain(found.entries)
    return found


def run_sync(target: str, call: Call, **options: Any) -> Any:
    with LedgerClient(target, 5.0, **options) as client:
        return asyncio.run(drain(call(client)))


def run_async(target: str, call: Call, **options: Any) -> Any:
    async def run() -> Any:
        async with AsyncLedgerClient(target, 5.0, **options) as client:
            return await drain(call(client))

    return asyncio.run(run())


@pytest.fixture(params=[run_sync, run_async])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Runs a call with either client, which must behave the same."""
    function: Callable[..., Any] = request.param
    return function


def entry(sequence: int) -> ledger_pb2.AccountEntry:
    return ledger_pb2.AccountEntry(sequence=sequence)


def test_a_balance_as_of_a_moment(run: Callable[..., Any]) -> None:
    balance = ledger_pb2.Balance(account_id=ACCOUNT, settled_balance=5)
    with scripted_gateway(ledger_pb2.GetBalanceResponse(balance=balance)) as gateway:
        assert run(gateway.target, lambda client: client.get_balance(ACCOUNT)) == balance
        run(
            gateway.target,
            lambda client: client.get_balance(
                ACCOUNT, END, basis=ledger_pb2.TIME_BASIS_EFFECTIVE, stale=True
            ),
        )
        assert gateway.requests == [
            ledger_pb2.GetBalanceRequest(account_id=ACCOUNT, consistency=1),
            ledger_pb2.GetBalanceRequest(
                account_id=ACCOUNT,
                as_of_time=PERIOD["end_time"],
                basis=ledger_pb2.TIME_BASIS_EFFECTIVE,
                consistency=2,
            ),
        ]


def test_entries_page_by_page(run: Callable[..., Any]) -> None:
    steps = [
        ledger_pb2.ListEntriesResponse(entries=[entry(1), entry(2)], next_page_token="t"),
        ledger_pb2.ListEntriesResponse(next_page_token="u"),
        ledger_pb2.ListEntriesResponse(entries=[entry(3)]),
    ]
    request: Any = {"account_id": ACCOUNT, "page_size": 2, "oldest_first": True, "consistency": 2}
    with scripted_gateway(*steps) as gateway:
        found = run(
            gateway.target,
            lambda client: client.entries(
                ACCOUNT, START, END, oldest_first=True, page_size=2, stale=True
            ),
        )
        assert gateway.requests == [
            ledger_pb2.ListEntriesRequest(page_token=token, **request, **PERIOD)
            for token in ("", "t", "u")
        ]
    assert found == [entry(1), entry(2), entry(3)]


def test_a_statement_with_all_its_entries(run: Callable[..., Any]) -> None:
    opening, closing = ledger_pb2.Balance(version=1), ledger_pb2.Balance(version=4)
    first = ledger_pb2.GetStatementResponse(
        opening_balance=opening, closing_balance=closing, entries=[entry(2)], next_page_token="t"
    )
    second = ledger_pb2.GetStatementResponse(entries=[entry(3), entry(4)])
    with scripted_gateway(first, second) as gateway:
        found = run(
            gateway.target, lambda client: client.statement(ACCOUNT, START, END, page_size=7)
        )
        assert gateway.requests == [
            ledger_pb2.GetStatementRequest(
                account_id=ACCOUNT, page_size=7, page_token=token, consistency=1, **PERIOD
            )
            for token in ("", "t")
        ]
    assert found == (opening, closing, [entry(2), entry(3), entry(4)])


def test_the_balances_of_a_statement_do_not_wait_for_its_entries() -> None:
    first = ledger_pb2.GetStatementResponse(
        closing_balance=ledger_pb2.Balance(version=4), entries=[entry(2)], next_page_token="t"
    )
    with scripted_gateway(first) as gateway, LedgerClient(gateway.target) as client:
        assert client.statement(ACCOUNT).closing.version == 4
        assert gateway.requests == [
            ledger_pb2.GetStatementRequest(account_id=ACCOUNT, consistency=1)
        ]


def test_the_states_of_a_transaction(run: Callable[..., Any]) -> None:
    states = [ledger_pb2.TransactionState(status=1), ledger_pb2.TransactionState(status=2)]
    with scripted_gateway(ledger_pb2.ListTransactionStatesResponse(states=states)) as gateway:
        found = run(
            gateway.target, lambda client: client.transaction_states(TRANSACTION, stale=True)
        )
        assert gateway.requests == [
            ledger_pb2.ListTransactionStatesRequest(transaction_id=TRANSACTION, consistency=2)
        ]
    assert found == states


def test_the_events_of_an_account(run: Callable[..., Any]) -> None:
    steps = [
        ledger_pb2.ListAccountEventsResponse(
            events=[ledger_pb2.AccountEvent(kind=2)], next_page_token="t"
        ),
        ledger_pb2.ListAccountEventsResponse(events=[ledger_pb2.AccountEvent(kind=1)]),
    ]
    with scripted_gateway(*steps) as gateway:
        found = run(gateway.target, lambda client: client.account_events(ACCOUNT, page_size=1))
        assert gateway.requests == [
            ledger_pb2.ListAccountEventsRequest(
                account_id=ACCOUNT, page_size=1, page_token=token, consistency=1
            )
            for token in ("", "t")
        ]
    assert [item.kind for item in found] == [2, 1]


def test_transactions_of_a_ledger_by_filters(run: Callable[..., Any]) -> None:
    steps = [
        ledger_pb2.ListTransactionsResponse(
            transactions=[CREATED.transaction], next_page_token="t"
        ),
        ledger_pb2.ListTransactionsResponse(),
    ]
    with scripted_gateway(*steps) as gateway:
        found = run(
            gateway.target,
            lambda client: client.list_transactions(
                ledger="books",
                status=ledger_pb2.TRANSACTION_STATUS_PENDING,
                start=START,
                end=END,
                external_reference="order 5",
                metadata_key="k",
                page_size=3,
            ),
        )
        assert gateway.requests == [
            ledger_pb2.ListTransactionsRequest(
                ledger="books",
                status=ledger_pb2.TRANSACTION_STATUS_PENDING,
                external_reference="order 5",
                metadata_key="k",
                page_size=3,
                page_token=token,
                consistency=1,
                **PERIOD,
            )
            for token in ("", "t")
        ]
    assert found == [CREATED.transaction]


def test_a_moment_of_another_time_zone_is_the_same_moment(run: Callable[..., Any]) -> None:
    there = END.astimezone(timezone(timedelta(hours=5, minutes=30)))
    with scripted_gateway(ledger_pb2.GetBalanceResponse()) as gateway:
        run(gateway.target, lambda client: client.get_balance(ACCOUNT, there))
        assert gateway.requests[0].as_of_time == PERIOD["end_time"]


NAIVE = datetime(2026, 1, 31)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda client: client.get_balance(ACCOUNT, NAIVE), "as_of_time"),
        (lambda client: client.entries(ACCOUNT, NAIVE), "start_time"),
        (lambda client: client.entries(ACCOUNT, None, NAIVE), "end_time"),
        (lambda client: client.statement(ACCOUNT, NAIVE), "start_time"),
        (lambda client: client.list_transactions(ACCOUNT, end=NAIVE), "end_time"),
    ],
)
def test_a_moment_without_a_time_zone_is_a_value_error(
    run: Callable[..., Any], call: Call, field: str
) -> None:
    with scripted_gateway(CREATED) as gateway:
        with pytest.raises(ValueError, match="must have a time zone") as caught:
            run(gateway.target, call)
        assert gateway.requests == []
    assert isinstance(caught.value, InvalidArgumentError)
    assert [item.field for item in caught.value.violations] == [field]


# Who did it: actors and correlation ids

LEDGER = ledger_pb2.Ledger(name="books")
FOUND = ledger_pb2.Account(id=ACCOUNT)
CHANGES: dict[str, tuple[tuple[Any, ...], dict[str, Any], Any]] = {
    "create_ledger": (("books", []), {}, ledger_pb2.CreateLedgerResponse(ledger=LEDGER)),
    "update_ledger": (("books", 1), {}, ledger_pb2.UpdateLedgerResponse(ledger=LEDGER)),
    "create_account": ((), {}, ledger_pb2.CreateAccountResponse(account=FOUND)),
    "update_account": ((ACCOUNT, 1), {}, ledger_pb2.UpdateAccountResponse(account=FOUND)),
    "freeze_account": ((ACCOUNT,), {}, ledger_pb2.FreezeAccountResponse(account=FOUND)),
    "unfreeze_account": ((ACCOUNT,), {}, ledger_pb2.UnfreezeAccountResponse(account=FOUND)),
    "close_account": ((ACCOUNT,), {}, ledger_pb2.CloseAccountResponse(account=FOUND)),
    "create_transaction": ((ACCOUNT, 1), {"settled": True}, CREATED),
    "settle_transaction": (
        (TRANSACTION,),
        {},
        ledger_pb2.SettleTransactionResponse(transaction=CREATED.transaction),
    ),
    "cancel_transaction": (
        (TRANSACTION,),
        {},
        ledger_pb2.CancelTransactionResponse(transaction=CREATED.transaction),
    ),
    "reverse_transaction": (
        (TRANSACTION,),
        {},
        ledger_pb2.ReverseTransactionResponse(transaction=CREATED.transaction),
    ),
}


@pytest.mark.parametrize("method", CHANGES)
def test_every_change_sends_actor_and_correlation_id(run: Callable[..., Any], method: str) -> None:
    arguments, options, response = CHANGES[method]

    def call(**more: Any) -> Call:
        return lambda client: getattr(client, method)(*arguments, **options, **more)

    # Attempts are alike.
    lost = Failing(grpc.StatusCode.UNAVAILABLE)
    with scripted_gateway(lost, response) as gateway:
        run(gateway.target, call(actor="desk"), correlation_id="all")
        run(gateway.target, call(correlation_id="one"), correlation_id="all")
        run(gateway.target, call(correlation_id="one"))
        run(gateway.target, call())
        assert [item.actor for item in gateway.requests] == ["desk", "desk", "", "", ""]
        assert gateway.correlation_ids == ["all", "all", "one", "one", ""]


def test_the_correlation_id_goes_with_reads_too(run: Callable[..., Any]) -> None:
    with scripted_gateway(ledger_pb2.GetAccountResponse(account=FOUND)) as gateway:
        run(gateway.target, lambda client: client.get_account(ACCOUNT), correlation_id="c" * 128)
        assert gateway.correlation_ids == ["c" * 128]


@pytest.mark.parametrize("value", ["c" * 129, "two\nlines", "café", " c", "c ", " "])
def test_a_correlation_id_that_cannot_be_sent(run: Callable[..., Any], value: str) -> None:
    def call(client: Any) -> Any:
        return client.freeze_account(ACCOUNT, correlation_id=value)

    with scripted_gateway(CREATED) as gateway:
        with pytest.raises(InvalidArgumentError, match="at most 128 printable ASCII") as caught:
            run(gateway.target, call)
        with pytest.raises(InvalidArgumentError):
            run(gateway.target, call, correlation_id=value)
        assert gateway.requests == []
    assert [item.field for item in caught.value.violations] == ["correlation_id"]

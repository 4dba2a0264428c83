"""Balances, entries, statements, states and events: what the shard is asked, and what is shown."""

from typing import Any

import grpc
import msgspec
import pytest
from error_details import decode
from fake_shards import ACCOUNT, ACCOUNT_ID, TRANSACTION, TRANSACTION_VIEW, FakeShards
from google.protobuf.timestamp_pb2 import Timestamp

from ledger.v1 import ledger_pb2
from ledger_core import queries
from ledger_core.accounts import (
    AccountEventKind,
    AccountType,
    Direction,
    EntryKind,
    TimeBasis,
    TransactionStatus,
)
from ledger_core.errors import Reason
from ledger_core.results import (
    AccountEventPage,
    AccountEventView,
    BalanceView,
    CountersView,
    EntryPage,
    Failure,
    StatementEntryView,
    StatementView,
    TransactionPage,
    TransactionStatesView,
    TransactionStateView,
)

T_US = 1_700_000_000_000_001
T = Timestamp(seconds=1_700_000_000, nanos=1_000)
READ_POINT = ledger_pb2.ReadPoint(shard_id=3, applied_index=41)

COUNTERS = CountersView(100, 1_000, 50, 25)
BALANCE_VIEW = BalanceView(
    ACCOUNT_ID, "books", AccountType.LIABILITY, "USD", 2, COUNTERS, 900, 850, 4, T_US
)
BALANCE = ledger_pb2.Balance(
    account_id=ACCOUNT,
    ledger="books",
    type=ledger_pb2.ACCOUNT_TYPE_LIABILITY,
    currency="USD",
    currency_exponent=2,
    settled_balance=900,
    available_balance=850,
    debits_posted=100,
    credits_posted=1_000,
    debits_pending=50,
    credits_pending=25,
    version=4,
    update_time=T,
)
ENTRY_VIEW = StatementEntryView(
    sequence=4,
    kind=EntryKind.SETTLED,
    direction=Direction.DEBIT,
    amount=50,
    time_us=T_US,
    effective_time_us=5_000_000,
    home_account_id=ACCOUNT_ID,
    number=7,
    description="coffee ☕",
    external_reference="order 5",
    status=TransactionStatus.SETTLED,
    after=COUNTERS,
    settled_balance=900,
    available_balance=850,
    request_id="r",
    actor="desk",
    reversal_of=3,
)
ENTRY = ledger_pb2.AccountEntry(
    sequence=4,
    kind=ledger_pb2.ENTRY_KIND_SETTLED,
    direction=ledger_pb2.DIRECTION_DEBIT,
    amount=50,
    create_time=T,
    effective_time=Timestamp(seconds=5),
    transaction_id=TRANSACTION,
    description="coffee ☕",
    external_reference="order 5",
    transaction_status=ledger_pb2.TRANSACTION_STATUS_SETTLED,
    settled_balance=900,
    available_balance=850,
    debits_posted=100,
    credits_posted=1_000,
    debits_pending=50,
    credits_pending=25,
    request_id="r",
    actor="desk",
    reversal_of=ACCOUNT + "0" * 15 + "3",
)


def entries(*sequences: int) -> list[StatementEntryView]:
    return [msgspec.structs.replace(ENTRY_VIEW, sequence=number) for number in sequences]


def entry_page(*sequences: int, then: int = 0) -> EntryPage:
    return EntryPage(ACCOUNT_ID, "USD", 2, entries(*sequences), then)


def balance(version: int, time_us: int = T_US) -> BalanceView:
    return msgspec.structs.replace(BALANCE_VIEW, version=version, time_us=time_us)


# GetBalance


@pytest.mark.parametrize(
    ("fields", "as_of_us", "basis"),
    [
        ({}, None, TimeBasis.RECORDED),
        ({"basis": 1}, None, TimeBasis.RECORDED),
        ({"as_of_time": T}, T_US, TimeBasis.RECORDED),
        ({"as_of_time": Timestamp()}, 0, TimeBasis.RECORDED),
        # Times are whole microseconds: what is at or before 5.999 µs is at or before 5 µs.
        ({"as_of_time": Timestamp(nanos=5_999), "basis": 2}, 5, TimeBasis.EFFECTIVE),
    ],
)
async def test_a_balance_now_and_as_of_a_moment(
    fields: dict[str, Any], as_of_us: int | None, basis: TimeBasis, stub: Any, shards: FakeShards
) -> None:
    shards.result = BALANCE_VIEW
    request = ledger_pb2.GetBalanceRequest(account_id=ACCOUNT, **fields)
    response = await stub.GetBalance(request)
    assert response == ledger_pb2.GetBalanceResponse(balance=BALANCE, read_point=READ_POINT)
    (call,) = shards.calls
    assert call.account_id == ACCOUNT_ID
    assert call.message == queries.GetBalance(ACCOUNT_ID, as_of_us, basis)


async def test_a_balance_before_the_first_entry_has_no_time(stub: Any, shards: FakeShards) -> None:
    shards.result = msgspec.structs.replace(BALANCE_VIEW, version=0, time_us=0)
    shown = await stub.GetBalance(ledger_pb2.GetBalanceRequest(account_id=ACCOUNT))
    assert not shown.balance.HasField("update_time")


@pytest.mark.parametrize(
    "method",
    ["GetBalance", "ListEntries", "GetStatement", "ListAccountEvents", "ListTransactionStates"],
)
async def test_history_may_be_stale_and_of_nothing(
    method: str, stub: Any, shards: FakeShards
) -> None:
    of = {"transaction_id": TRANSACTION} if "States" in method else {"account_id": ACCOUNT}
    shards.result = Failure(Reason.ACCOUNT_NOT_FOUND, "there is no such account", "account_id")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(stub, method)(getattr(ledger_pb2, f"{method}Request")(consistency=2, **of))
    assert decode(caught.value).reason == "ACCOUNT_NOT_FOUND"
    assert [call.stale for call in shards.calls] == [True]


# ListEntries


async def test_entries_page_by_page(stub: Any, shards: FakeShards) -> None:
    shards.results = [entry_page(4, then=3), entry_page()]
    request = ledger_pb2.ListEntriesRequest(account_id=ACCOUNT, page_size=1)
    first = await stub.ListEntries(request)
    assert list(first.entries) == [ENTRY]
    assert first.read_point == READ_POINT
    assert (first.currency, first.currency_exponent) == ("USD", 2)
    request.page_token, request.page_size = first.next_page_token, 0
    assert not (await stub.ListEntries(request)).next_page_token
    assert shards.messages == [
        queries.ListEntries(ACCOUNT_ID, 1),
        queries.ListEntries(ACCOUNT_ID, 50, sequence=3),
    ]


async def test_entries_of_a_range_oldest_first(stub: Any, shards: FakeShards) -> None:
    """From a moment on, or before it, is the same as of the next whole microsecond."""
    shards.result = entry_page()
    await stub.ListEntries(
        ledger_pb2.ListEntriesRequest(
            account_id=ACCOUNT,
            oldest_first=True,
            start_time=Timestamp(seconds=5, nanos=1),
            end_time=Timestamp(seconds=6, nanos=999_999_001),
        )
    )
    assert shards.messages == [queries.ListEntries(ACCOUNT_ID, 50, False, 5_000_001, 7_000_000)]


async def test_an_entry_of_an_undecided_transaction_has_no_id(
    stub: Any, shards: FakeShards
) -> None:
    view = msgspec.structs.replace(ENTRY_VIEW, number=0, reversal_of=0)
    shards.result = EntryPage(ACCOUNT_ID, "USD", 2, [view], 0)
    (shown,) = (await stub.ListEntries(ledger_pb2.ListEntriesRequest(account_id=ACCOUNT))).entries
    assert (shown.transaction_id, shown.reversal_of) == ("", "")


LONG = "🪙" * 1_000
LONG_ENTRIES = [msgspec.structs.replace(ENTRY_VIEW, description=LONG)] * 1_000
LONG_EVENT = AccountEventView(
    AccountEventKind.UPDATED, T_US, "r", "", "", "", {"metadata": ("null", LONG)}, "", ""
)


@pytest.mark.parametrize("method", ["ListEntries", "GetStatement", "ListAccountEvents"])
async def test_a_page_too_big_for_a_client_is_asked_for_in_half(
    method: str, stub: Any, shards: FakeShards
) -> None:
    asked = []

    def answer(call: Any) -> Any:
        query = getattr(call.message, "entries", call.message)
        asked.append(query.page_size)
        page = EntryPage(ACCOUNT_ID, "USD", 2, LONG_ENTRIES[: query.page_size], 77)
        if isinstance(query, queries.ListAccountEvents):
            return AccountEventPage([LONG_EVENT] * query.page_size, 77, 0)
        return page if query is call.message else StatementView(BALANCE_VIEW, BALANCE_VIEW, page)

    shards.answer = answer
    request = getattr(ledger_pb2, f"{method}Request")(account_id=ACCOUNT, page_size=1_000)
    page = await getattr(stub, method)(request)
    assert asked == [1_000, 500]
    assert len(page.events if method == "ListAccountEvents" else page.entries) == 500
    assert page.next_page_token


# GetStatement


def statement_query(page_size: int, **fields: int) -> queries.GetStatement:
    return queries.GetStatement(queries.ListEntries(ACCOUNT_ID, page_size, False, **fields))


async def test_a_statement_of_a_period(stub: Any, shards: FakeShards) -> None:
    opening = msgspec.structs.replace(BALANCE_VIEW, version=3, time_us=0)
    shards.result = StatementView(opening, BALANCE_VIEW, entry_page(4))
    shown = await stub.GetStatement(
        ledger_pb2.GetStatementRequest(
            account_id=ACCOUNT, start_time=Timestamp(seconds=5), end_time=Timestamp(seconds=6)
        )
    )
    assert shown.closing_balance == BALANCE
    assert (shown.opening_balance.version, shown.opening_balance.settled_balance) == (3, 900)
    assert list(shown.entries) == [ENTRY]
    assert (shown.next_page_token, shown.read_point) == ("", READ_POINT)
    assert shards.messages == [statement_query(50, start_us=5_000_000, end_us=6_000_000)]


async def test_the_first_page_fixes_the_end(stub: Any, shards: FakeShards) -> None:
    shards.results = [
        StatementView(balance(0), balance(9, T_US), entry_page(1, 2, then=3)),
        StatementView(balance(0), balance(9, T_US), entry_page(3, 4, then=5)),
        StatementView(balance(0), balance(9, T_US), entry_page(5)),
    ]
    request = ledger_pb2.GetStatementRequest(account_id=ACCOUNT, page_size=2)
    while True:
        page = await stub.GetStatement(request)
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert shards.messages == [
        statement_query(2),
        statement_query(2, end_us=T_US + 1, sequence=3),
        statement_query(2, end_us=T_US + 1, sequence=5),
    ]


@pytest.mark.parametrize("then", [0, 6])
async def test_entries_recorded_since_at_the_very_same_time_are_not_in_it(
    then: int, stub: Any, shards: FakeShards
) -> None:
    """A leader whose clock is behind records at the last known time until it has caught up."""
    since = balance(6 if then else 5)
    shards.results = [
        StatementView(balance(0), balance(4), entry_page(1, then=2)),
        StatementView(balance(0), since, entry_page(2, 3, 4, 5, then=then)),
        entry_page(4, then=3),
    ]
    request = ledger_pb2.GetStatementRequest(account_id=ACCOUNT)
    first = await stub.GetStatement(request)
    request.page_token = first.next_page_token
    second = await stub.GetStatement(request)
    assert [item.sequence for item in second.entries] == [2, 3, 4]
    assert second.closing_balance == first.closing_balance == BALANCE
    assert not second.next_page_token
    assert shards.messages[2] == queries.ListEntries(ACCOUNT_ID, 1, sequence=4)


async def test_a_replica_that_is_behind_the_first_page_is_not_enough(
    stub: Any, shards: FakeShards
) -> None:
    shards.results = [
        StatementView(balance(0), balance(3), entry_page(1, then=2)),
        StatementView(balance(0), balance(2), entry_page(2)),
        StatementView(balance(0), balance(3), entry_page(2, 3)),
    ]
    request = ledger_pb2.GetStatementRequest(account_id=ACCOUNT, consistency=2)
    request.page_token = (await stub.GetStatement(request)).next_page_token
    page = await stub.GetStatement(request)
    assert [item.sequence for item in page.entries] == [2, 3]
    assert [call.stale for call in shards.calls] == [True, True, False]


@pytest.mark.parametrize("method", ["ListEntries", "GetStatement", "ListTransactions"])
async def test_a_replica_that_does_not_know_the_place_is_not_enough(
    method: str, stub: Any, shards: FakeShards
) -> None:
    pages = {
        "ListEntries": entry_page(1, then=2),
        "GetStatement": StatementView(balance(0), balance(3), entry_page(1, then=2)),
        "ListTransactions": TransactionPage([], 4, 5),
    }
    unknown = Failure(Reason.INVALID_FIELDS, "points to no entry", "page_token")
    shards.results = [pages[method], unknown, pages[method], unknown]
    request = getattr(ledger_pb2, f"{method}Request")(account_id=ACCOUNT, consistency=2)
    request.page_token = (await getattr(stub, method)(request)).next_page_token
    await getattr(stub, method)(request)
    # The leader knows: where it does not, the token is wrong.
    request.consistency = 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(stub, method)(request)
    assert [name for name, _ in decode(caught.value).violations] == ["page_token"]
    assert [call.stale for call in shards.calls] == [True, True, False, False]


# ListTransactionStates, ListAccountEvents


async def test_the_life_of_a_transaction(stub: Any, shards: FakeShards) -> None:
    shards.result = TransactionStatesView(
        TRANSACTION_VIEW,
        [
            TransactionStateView(TransactionStatus.PENDING, T_US, "r", "desk", "order", "ipv4:x"),
            TransactionStateView(TransactionStatus.EXPIRED, T_US, "", "", "", ""),
        ],
    )
    request = ledger_pb2.ListTransactionStatesRequest(transaction_id=TRANSACTION)
    shown = await stub.ListTransactionStates(request)
    assert (shown.transaction.id, shown.read_point) == (TRANSACTION, READ_POINT)
    assert list(shown.states) == [
        ledger_pb2.TransactionState(
            status=ledger_pb2.TRANSACTION_STATUS_PENDING,
            create_time=T,
            request_id="r",
            actor="desk",
            correlation_id="order",
            peer="ipv4:x",
        ),
        ledger_pb2.TransactionState(status=ledger_pb2.TRANSACTION_STATUS_EXPIRED, create_time=T),
    ]
    assert shards.messages == [queries.GetTransactionStates(ACCOUNT_ID, 7)]


async def test_the_life_of_an_account(stub: Any, shards: FakeShards) -> None:
    updated = AccountEventView(
        AccountEventKind.UPDATED,
        T_US,
        "r",
        "desk",
        "order",
        "ipv4:x",
        {"name": ("null", '"alice"'), "metadata": ("{}", '{"k":"v"}')},
        "",
        "",
    )
    refused = AccountEventView(
        AccountEventKind.TRANSACTION_REFUSED,
        T_US,
        "s",
        "",
        "",
        "",
        {},
        "INSUFFICIENT_FUNDS",
        "has nothing",
        ACCOUNT_ID,
        7,
    )
    shards.results = [AccountEventPage([refused, updated], 12, 0), AccountEventPage([], 0, 0)]
    request = ledger_pb2.ListAccountEventsRequest(account_id=ACCOUNT, page_size=2)
    first = await stub.ListAccountEvents(request)
    assert list(first.events) == [
        ledger_pb2.AccountEvent(
            kind=ledger_pb2.ACCOUNT_EVENT_KIND_TRANSACTION_REFUSED,
            create_time=T,
            request_id="s",
            reason="INSUFFICIENT_FUNDS",
            message="has nothing",
            transaction_id=TRANSACTION,
        ),
        ledger_pb2.AccountEvent(
            kind=ledger_pb2.ACCOUNT_EVENT_KIND_UPDATED,
            create_time=T,
            request_id="r",
            actor="desk",
            correlation_id="order",
            peer="ipv4:x",
            changes=[
                ledger_pb2.FieldChange(field="metadata", before="{}", after='{"k":"v"}'),
                ledger_pb2.FieldChange(field="name", before="null", after='"alice"'),
            ],
        ),
    ]
    request.page_token = first.next_page_token
    last = await stub.ListAccountEvents(request)
    assert (last.next_page_token, last.read_point) == ("", READ_POINT)
    assert shards.messages == [
        queries.ListAccountEvents(ACCOUNT_ID, 2),
        queries.ListAccountEvents(ACCOUNT_ID, 2, 12, 0),
    ]


async def test_transactions_of_an_account_by_filters(stub: Any, shards: FakeShards) -> None:
    shards.result = TransactionPage([], 12, 345)
    request = ledger_pb2.ListTransactionsRequest(
        account_id=ACCOUNT,
        status=ledger_pb2.TRANSACTION_STATUS_UNDECIDED,
        start_time=Timestamp(seconds=5, nanos=1),
        end_time=Timestamp(seconds=6),
        external_reference="order 5",
        metadata_key="k",
    )
    request.page_token = (await stub.ListTransactions(request)).next_page_token
    await stub.ListTransactions(request)
    wanted = queries.TransactionFilter(
        TransactionStatus.UNDECIDED, 5_000_001, 6_000_000, "order 5", "k"
    )
    assert shards.messages == [
        queries.ListTransactions(ACCOUNT_ID, 50, filter=wanted),
        queries.ListTransactions(ACCOUNT_ID, 50, 12, 345, filter=wanted),
    ]


@pytest.mark.parametrize(
    "enum",
    [
        (EntryKind, ledger_pb2.EntryKind),
        (TimeBasis, ledger_pb2.TimeBasis),
        (AccountEventKind, ledger_pb2.AccountEventKind),
    ],
)
def test_enumerations_have_the_same_numbers(enum: Any) -> None:
    ours, theirs = enum
    names = {name.split(theirs.DESCRIPTOR.values[0].name[:-11])[1]: n for name, n in theirs.items()}
    assert {item.name: item.value for item in ours} | {"UNSPECIFIED": 0} == names

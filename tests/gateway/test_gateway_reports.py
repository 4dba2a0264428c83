"""Reports: what the shards are asked, what callers get, and which requests are refused."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from error_details import Decoded, decode
from fake_shards import Call, FakeShards
from google.protobuf.timestamp_pb2 import Timestamp

from ledger.v1 import ledger_pb2, reports_pb2, reports_pb2_grpc
from ledger_core import queries
from ledger_core.accounts import AccountType, GroupRole, TimeBasis
from ledger_core.durations import duration_bucket
from ledger_core.errors import Reason, ShardUnavailableError
from ledger_core.ledgers import USD, ChartCode, Currency, ledger_key
from ledger_core.results import (
    AgeingPage,
    AgeingView,
    BookSettlementsView,
    CountersView,
    Failure,
    GroupTotalsView,
    LedgerView,
    Result,
    SettlementsView,
    TotalsView,
)

ASSET, LIABILITY, EQUITY, INCOME, EXPENSE = AccountType
CHART = [
    ChartCode("1", "Assets", ASSET),
    ChartCode("11", "Cash", ASSET, "1"),
    ChartCode("2", "Wallets", LIABILITY),
    ChartCode("4", "Fees", INCOME),
]
LEDGER = LedgerView("books", "", [USD, Currency("EUR", 2)], CHART, 0, 1, 1)
DAY_US = 86_400_000_000
INT64_MAX = 2**63 - 1


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return reports_pb2_grpc.ReportServiceStub(channel)


def group(
    account_type: AccountType,
    code: str,
    *counters: tuple[int, ...],
    role: GroupRole = GroupRole.ACCOUNT,
    currency: str = "USD",
) -> GroupTotalsView:
    sums = [CountersView(*item) for item in counters]
    return GroupTotalsView(currency, 2, account_type, code, role, 2, sums)


# Shard 0 has sent 30 to shard 1, which has not got it yet; it has earned 5 with it.
BOOKS = {
    0: [
        group(ASSET, "11", (100, 0, 3, 0)),
        group(LIABILITY, "2", (0, 65, 0, 3)),
        group(INCOME, "4", (0, 5)),
        group(ASSET, "", (0, 30), role=GroupRole.IN_TRANSIT),
    ],
    1: [
        group(ASSET, "", (40, 0), role=GroupRole.EXTERNAL),
        group(LIABILITY, "2", (0, 40)),
        group(ASSET, "", (0, 0), role=GroupRole.EXTERNAL, currency="EUR"),
    ],
}


def keep(shards: FakeShards, books: dict[int, list[GroupTotalsView]]) -> None:
    """Let the shards have these books, and one of them the ledger."""

    def answer(call: Call) -> Result | None:
        match call.message:
            case queries.GetLedger(name="books" | "main"):
                return LEDGER
            case queries.GetLedger():
                return Failure(Reason.LEDGER_NOT_FOUND, "no such ledger", "ledger")
            case queries.GetTotals():
                return TotalsView(books.get(call.shard_id, []), 7)
        return None

    shards.answer = answer


def asked(shards: FakeShards) -> list[Any]:
    """What was asked of each shard, the ledger left out."""
    found = [call for call in shards.calls if not isinstance(call.message, queries.GetLedger)]
    assert sorted(call.shard_id for call in found) == shards.shard_ids()
    return [call.message for call in found]


async def refused(call: Any) -> Decoded:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return decode(caught.value)


# Totals


async def test_a_trial_balance_is_summed_from_all_shards(stub: Any, shards: FakeShards) -> None:
    keep(shards, BOOKS)
    response = await stub.GetTrialBalance(reports_pb2.GetTrialBalanceRequest(ledger="books"))
    assert asked(shards) == [queries.GetTotals("books")] * 4
    assert [call.account_id for call in shards.calls].count(ledger_key("books")) == 1
    assert [point.shard_id for point in response.read_points] == [0, 1, 2, 3]
    usd, eur = response.currencies
    assert (usd.currency, usd.currency_exponent) == ("USD", 2)
    assert usd.lines[0] == reports_pb2.TrialBalanceLine(
        role=reports_pb2.LINE_ROLE_ACCOUNTS,
        code="11",
        name="Cash",
        type=ledger_pb2.ACCOUNT_TYPE_ASSET,
        accounts=2,
        debits_posted=100,
        debits_pending=3,
        debit_balance=100,
    )
    assert usd.lines[1] == reports_pb2.TrialBalanceLine(
        role=reports_pb2.LINE_ROLE_ACCOUNTS,
        code="2",
        name="Wallets",
        type=ledger_pb2.ACCOUNT_TYPE_LIABILITY,
        accounts=4,
        credits_posted=105,
        credits_pending=3,
        credit_balance=105,
    )
    assert [line.role for line in usd.lines[-2:]] == [
        reports_pb2.LINE_ROLE_EXTERNAL,
        reports_pb2.LINE_ROLE_IN_TRANSIT,
    ]
    assert usd.lines[-1].credit_balance == 30
    assert usd.total_debits == usd.total_credits == 140
    assert (eur.currency, eur.lines[:], eur.total_debits) == ("EUR", [], 0)


async def test_a_balance_sheet(stub: Any, shards: FakeShards) -> None:
    keep(shards, BOOKS)
    response = await stub.GetBalanceSheet(reports_pb2.GetBalanceSheetRequest(ledger="books"))
    usd = response.currencies[0]
    assert [(line.role, line.code, line.amounts[:]) for line in usd.assets.lines] == [
        (reports_pb2.LINE_ROLE_ACCOUNTS, "11", [100]),
        (reports_pb2.LINE_ROLE_EXTERNAL, "", [40]),
        (reports_pb2.LINE_ROLE_IN_TRANSIT, "", [-30]),
    ]
    assert [(line.role, line.amounts[:]) for line in usd.equity.lines] == [
        (reports_pb2.LINE_ROLE_EARNINGS, [5])
    ]
    totals = [section.totals[:] for section in (usd.assets, usd.liabilities, usd.equity)]
    assert totals == [[110], [105], [5]]


async def test_balances_by_the_chart(stub: Any, shards: FakeShards) -> None:
    keep(shards, BOOKS)
    response = await stub.GetChartBalances(reports_pb2.GetChartBalancesRequest(ledger="books"))
    lines = response.currencies[0].lines
    assert lines[1] == reports_pb2.ChartBalance(
        code="11",
        name="Cash",
        type=ledger_pb2.ACCOUNT_TYPE_ASSET,
        parent="1",
        depth=1,
        own_balance=100,
        total_balance=100,
        accounts=2,
        role=reports_pb2.LINE_ROLE_ACCOUNTS,
    )
    assert [(line.code, line.own_balance, line.total_balance) for line in lines] == [
        ("1", 0, 100),
        ("11", 100, 100),
        ("2", 105, 105),
        ("4", 5, 5),
        ("", 40, 40),
        ("", -30, -30),
    ]


REPORTS = {
    "GetTrialBalance": reports_pb2.GetTrialBalanceRequest,
    "GetBalanceSheet": reports_pb2.GetBalanceSheetRequest,
    "GetChartBalances": reports_pb2.GetChartBalancesRequest,
}


@pytest.mark.parametrize("rpc", REPORTS)
async def test_as_of_a_moment(stub: Any, shards: FakeShards, rpc: str) -> None:
    keep(shards, BOOKS)
    as_of = {"time": Timestamp(seconds=5, nanos=1_999), "basis": 1}
    await getattr(stub, rpc)(REPORTS[rpc](as_of=as_of, consistency=2))
    assert asked(shards) == [queries.GetTotals("main", [5_000_001], TimeBasis.RECORDED)] * 4
    assert all(call.stale for call in shards.calls)
    shards.calls.clear()
    later = Timestamp(seconds=200_000_000_000)  # by business dates, the future is known in part
    await getattr(stub, rpc)(REPORTS[rpc](as_of={"time": later, "basis": 2}))
    assert asked(shards)[0].as_of_us == [200_000_000_000_000_000]
    assert asked(shards)[0].basis is TimeBasis.EFFECTIVE


@pytest.mark.parametrize("rpc", REPORTS)
async def test_a_ledger_that_is_not_there(stub: Any, shards: FakeShards, rpc: str) -> None:
    keep(shards, {})
    error = await refused(getattr(stub, rpc)(REPORTS[rpc](ledger="other")))
    assert (error.code, error.reason) == ("NOT_FOUND", "LEDGER_NOT_FOUND")


async def test_a_ledger_without_accounts_has_no_parts(stub: Any, shards: FakeShards) -> None:
    keep(shards, {})
    response = await stub.GetTrialBalance(reports_pb2.GetTrialBalanceRequest())
    assert response.currencies[:] == []
    assert len(response.read_points) == 4


@pytest.mark.parametrize("rpc", REPORTS)
async def test_books_that_do_not_balance_are_never_shown(
    stub: Any, shards: FakeShards, rpc: str
) -> None:
    keep(shards, {**BOOKS, 2: [group(ASSET, "11", (5, 4))]})
    error = await refused(getattr(stub, rpc)(REPORTS[rpc]()))
    assert (error.code, error.reason) == ("INTERNAL", "INTERNAL")
    assert "shard 2 does not balance: 5 and 4 USD" in error.message
    assert "ledger verify" in error.message


@pytest.mark.parametrize("rpc", REPORTS)
async def test_sums_beyond_int64_are_refused(stub: Any, shards: FakeShards, rpc: str) -> None:
    half = INT64_MAX // 2 + 1
    full = [group(ASSET, "11", (half, 0)), group(LIABILITY, "2", (0, half))]
    keep(shards, {0: full})
    await getattr(stub, rpc)(REPORTS[rpc]())
    keep(shards, {0: full, 3: full})
    error = await refused(getattr(stub, rpc)(REPORTS[rpc]()))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "BALANCE_OVERFLOW")
    assert f"{2 * half} USD" in error.message


async def test_a_shard_that_is_away_fails_the_report(stub: Any, shards: FakeShards) -> None:
    keep(shards, BOOKS)
    books = shards.answer
    assert books is not None

    def answer(call: Call) -> Result | Exception | None:
        return ShardUnavailableError("away") if call.shard_id == 1 else books(call)

    shards.answer = answer
    error = await refused(stub.GetTrialBalance(reports_pb2.GetTrialBalanceRequest()))
    assert (error.code, error.retry_delay_s) == ("UNAVAILABLE", 1.0)


# Income statements


def times(start: int, end: int | None) -> reports_pb2.Period:
    """A period in seconds."""
    return reports_pb2.Period(
        start_time=Timestamp(seconds=start),
        end_time=None if end is None else Timestamp(seconds=end),
    )


async def test_periods_are_differences_of_one_state(stub: Any, shards: FakeShards) -> None:
    """Moments that two periods have in common are asked for once."""
    keep(
        shards,
        {
            1: [
                group(INCOME, "4", (0, 10), (0, 40), (10, 90)),
                group(EXPENSE, "6", (2, 0), (5, 0), (45, 0)),
                group(ASSET, "", (8, 0), (35, 0), (35, 0), role=GroupRole.EXTERNAL),
            ]
        },
    )
    response = await stub.GetIncomeStatement(
        reports_pb2.GetIncomeStatementRequest(
            ledger="books", periods=[times(1, 2), times(2, 3), times(1, 3), times(0, 1)]
        )
    )
    moments = [999_999, 1_999_999, 2_999_999]
    assert asked(shards) == [queries.GetTotals("books", moments, TimeBasis.EFFECTIVE)] * 4
    (usd,) = response.currencies
    assert usd.revenue.totals[:] == [30, 40, 70, 10]
    assert usd.expenses.totals[:] == [3, 40, 43, 2]
    assert usd.net_income[:] == [27, 0, 27, 8]
    assert usd.margin_basis_points[:] == [9_000, 0, 3_857, 8_000]
    assert [(line.code, line.name, line.amounts[:]) for line in usd.revenue.lines] == [
        ("4", "Fees", [30, 40, 70, 10])
    ]


async def test_a_period_without_an_end_has_everything_recorded(
    stub: Any, shards: FakeShards
) -> None:
    keep(shards, {})
    request = reports_pb2.GetIncomeStatementRequest(
        periods=[times(1, None)], basis=ledger_pb2.TIME_BASIS_RECORDED
    )
    await stub.GetIncomeStatement(request)
    end_of_time = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp()) * 1_000_000 + DAY_US - 1
    query = queries.GetTotals("main", [999_999, end_of_time], TimeBasis.RECORDED)
    assert asked(shards) == [query] * 4


async def test_bounds_between_microseconds(stub: Any, shards: FakeShards) -> None:
    """What happened at a microsecond is in the period that this microsecond is in."""
    keep(shards, {})
    start, end = Timestamp(seconds=1, nanos=1), Timestamp(seconds=1, nanos=2_001)
    period = reports_pb2.Period(start_time=start, end_time=end)
    await stub.GetIncomeStatement(reports_pb2.GetIncomeStatementRequest(periods=[period]))
    assert asked(shards)[0].as_of_us == [1_000_000, 1_000_002]


async def test_many_periods_fit_into_one_query(stub: Any, shards: FakeShards) -> None:
    keep(shards, {})
    periods = [times(3 * number + 1, 3 * number + 2) for number in range(32)]
    await stub.GetIncomeStatement(reports_pb2.GetIncomeStatementRequest(periods=periods))
    query = asked(shards)[0]
    assert len(query.as_of_us) == 64
    assert queries.decode_query(queries.encode_query(query)) == query


async def test_a_margin_beyond_int64_is_the_largest_one(stub: Any, shards: FakeShards) -> None:
    most = INT64_MAX
    keep(
        shards,
        {
            0: [
                group(EXPENSE, "6", (most, 0)),
                group(INCOME, "4", (0, 1)),
                group(ASSET, "", (0, most - 1)),
            ]
        },
    )
    request = reports_pb2.GetIncomeStatementRequest(periods=[times(0, 1)])
    (usd,) = (await stub.GetIncomeStatement(request)).currencies
    assert usd.net_income[:] == [1 - most]
    assert usd.margin_basis_points[:] == [-INT64_MAX]


# Ageing


def account(account_id: int, account_type: AccountType = ASSET) -> AgeingView:
    return AgeingView(account_id, "11", "till", account_type, "USD", 2, 9, [4, 3, 2, 0])


class Ages:
    """Accounts by shard, paged as a shard does: at most ``looks`` of them a call."""

    def __init__(self, accounts: dict[int, list[AgeingView]], looks: int) -> None:
        self.accounts = accounts
        self.looks = looks

    def __call__(self, call: Call) -> Result | None:
        query = call.message
        if isinstance(query, queries.GetLedger):
            return LEDGER
        assert isinstance(query, queries.ListAgeing)
        mine = self.accounts.get(call.shard_id, [])
        first = query.after_slot + 1
        end = min(first + min(self.looks, query.page_size), len(mine))
        return AgeingPage(mine[first:end], end - 1 if end < len(mine) else -1)


async def pages(stub: Any, **request: Any) -> list[reports_pb2.ListAgeingResponse]:
    found = [await stub.ListAgeing(reports_pb2.ListAgeingRequest(**request))]
    while found[-1].next_page_token:
        request["page_token"] = found[-1].next_page_token
        found.append(await stub.ListAgeing(reports_pb2.ListAgeingRequest(**request)))
        assert len(found) < 1_000
    return found


@pytest.mark.parametrize("seed", range(10))
async def test_ageing_is_paged_over_the_shards(stub: Any, shards: FakeShards, seed: int) -> None:
    rng = random.Random(seed)
    accounts = {
        shard_id: [account(100 * shard_id + number) for number in range(rng.randrange(9))]
        for shard_id in shards.shard_ids()
    }
    shards.answer = Ages(accounts, looks=rng.randrange(1, 5))
    page_size = rng.choice([1, 2, 5, 1_000])
    found = await pages(stub, page_size=page_size)
    shown = [int(line.account_id, 16) for page in found for line in page.lines]
    assert shown == [view.account_id for shard_id in accounts for view in accounts[shard_id]]
    assert all(len(page.lines) <= page_size for page in found)
    assert {point.shard_id for page in found for point in page.read_points} == {0, 1, 2, 3}


async def test_what_a_shard_is_asked_about_ages(stub: Any, shards: FakeShards) -> None:
    shards.answer = Ages({0: [account(1)]}, looks=5)
    (page,) = await pages(
        stub,
        ledger="books",
        type=ledger_pb2.ACCOUNT_TYPE_ASSET,
        code_prefix="1",
        bucket_days=[7, 14],
        as_of={"time": Timestamp(seconds=5), "basis": 2},
        consistency=2,
    )
    query = shards.calls[-1].message
    assert isinstance(query, queries.ListAgeing)
    assert query.bounds_us == [7 * DAY_US, 14 * DAY_US]
    assert (query.ledger, query.code_prefix, query.type) == ("books", "1", ASSET)
    assert (query.as_of_us, query.basis) == (5_000_000, TimeBasis.EFFECTIVE)
    assert shards.calls[-1].stale
    assert page.bucket_days[:] == [7, 14]
    assert page.lines[0] == reports_pb2.AgeingLine(
        account_id="0000000000000001",
        code="11",
        name="till",
        type=ledger_pb2.ACCOUNT_TYPE_ASSET,
        currency="USD",
        currency_exponent=2,
        balance=9,
        amounts=[4, 3, 2, 0],
    )


async def test_receivables_and_payables_are_the_default(stub: Any, shards: FakeShards) -> None:
    """Also 30, 60 and 90 days are. Ages are counted back from now by the gateway's clock."""
    shards.answer = Ages({2: [account(number, AccountType(number)) for number in range(1, 6)]}, 9)
    (page,) = await pages(stub)
    assert [line.type for line in page.lines] == [ASSET, LIABILITY]
    assert page.bucket_days[:] == [30, 60, 90]
    query = shards.calls[-1].message
    assert isinstance(query, queries.ListAgeing)
    assert (query.type, query.as_of_us) == (None, None)
    now = datetime.fromtimestamp(query.now_us / 1e6, UTC)
    assert abs(now - datetime.now(UTC)) < timedelta(minutes=5)


async def test_filters_that_fit_nothing_do_not_keep_a_page_busy(
    stub: Any, shards: FakeShards
) -> None:
    shards.answer = Ages({0: [account(1, EQUITY)] * 200}, looks=1)
    found = await pages(stub)
    assert [len(page.lines) for page in found] == [0] * len(found)
    assert len(found) == 13  # of 16 calls each


async def test_a_page_token_is_for_its_own_list(stub: Any, shards: FakeShards) -> None:
    shards.answer = Ages({0: [account(number) for number in range(9)]}, looks=9)
    token = (await stub.ListAgeing(reports_pb2.ListAgeingRequest(page_size=2))).next_page_token
    request = reports_pb2.ListAgeingRequest(page_token=token, page_size=7, consistency=2)
    assert len((await stub.ListAgeing(request)).lines) == 7
    for other in ({"ledger": "books"}, {"bucket_days": [1]}, {"type": 1}, {"code_prefix": "1"}):
        request = reports_pb2.ListAgeingRequest(page_token=token, **other)
        (violation,) = (await refused(stub.ListAgeing(request))).violations
        assert violation[0] == "page_token"
        assert "made for another" in violation[1]


# Settlement


def settlements(
    pending: int, oldest_us: int, ages: list[int], durations: dict[int, int]
) -> SettlementsView:
    book = BookSettlementsView(
        *("USD", 2, pending, 10 * pending, ages, oldest_us, 0xA, oldest_us % 7, False),
        *(sum(durations.values()), 1, 2, durations),
    )
    return SettlementsView([book])


async def test_settlement_of_all_shards(stub: Any, shards: FakeShards) -> None:
    views = {
        0: settlements(2, 3_000_002, [1, 1], {duration_bucket(10): 3}),
        2: settlements(1, 2_000_003, [0, 1], {duration_bucket(70_000_000): 1}),
    }

    def answer(call: Call) -> Result | None:
        if isinstance(call.message, queries.GetLedger):
            return LEDGER
        return views.get(call.shard_id, SettlementsView([]))

    shards.answer = answer
    response = await stub.GetSettlementReport(
        reports_pb2.GetSettlementReportRequest(
            start_time=Timestamp(seconds=86_399),
            end_time=Timestamp(seconds=86_400 * 9),
            bucket_days=[5],
        )
    )
    query = asked(shards)[0]
    assert (query.first_day, query.end_day, query.bounds_us) == (0, 10, [5 * DAY_US])
    (usd,) = response.currencies
    assert response.bucket_days[:] == [5]
    assert (usd.pending_transactions, usd.pending_amount, usd.pending_by_age[:]) == (3, 30, [1, 2])
    assert usd.oldest_pending_time == Timestamp(seconds=2, nanos=3_000)
    assert usd.oldest_pending_transaction_id == f"{0xA:016x}{2_000_003 % 7:016x}"
    ends = (usd.settled_transactions, usd.cancelled_transactions, usd.expired_transactions)
    assert ends == (4, 2, 4)
    assert usd.settle_median_ms == 1  # 10 µs, rounded up
    assert 70_000 <= usd.settle_p95_ms <= 72_240
    assert usd.settle_max_ms == usd.settle_p95_ms


async def test_nothing_settled_has_no_durations(stub: Any, shards: FakeShards) -> None:
    shards.answer = lambda call: (
        LEDGER
        if isinstance(call.message, queries.GetLedger)
        else settlements(0, 0, [0, 0, 0, 0], {})
    )
    response = await stub.GetSettlementReport(reports_pb2.GetSettlementReportRequest())
    (usd,) = response.currencies
    assert not usd.HasField("settle_median_ms")
    assert not usd.HasField("settle_max_ms")
    assert not usd.HasField("oldest_pending_time")
    assert usd.oldest_pending_transaction_id == ""
    assert response.bucket_days[:] == [1, 7, 30]
    query = asked(shards)[0]
    assert query.end_day - query.first_day == 30
    assert query.now_us // DAY_US == query.end_day - 1


async def test_a_start_alone_reaches_until_today(stub: Any, shards: FakeShards) -> None:
    shards.answer = lambda call: (
        LEDGER if isinstance(call.message, queries.GetLedger) else SettlementsView([])
    )
    start = Timestamp()
    start.FromDatetime(datetime.now(UTC) - timedelta(days=100))
    await stub.GetSettlementReport(reports_pb2.GetSettlementReportRequest(start_time=start))
    query = asked(shards)[0]
    assert (query.first_day, query.end_day) == (
        start.seconds // 86_400,
        query.now_us // DAY_US + 1,
    )


# Refused requests

FUTURE = {"time": Timestamp(seconds=200_000_000_000)}
AS_OF_FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"ledger": "Books"}, "ledger", "at most 63"),
    ({"consistency": 9}, "consistency", "has no value 9"),
    ({"as_of": FUTURE}, "as_of.time", "must not be in the future"),
    ({"as_of": {**FUTURE, "basis": 1}}, "as_of.time", "must not be in the future"),
    ({"as_of": {"time": {"seconds": -1}}}, "as_of.time", "between the years 1970 and 9999"),
    ({"as_of": {"time": {"nanos": -1}}}, "as_of.time", "must have nanos between"),
    ({"as_of": {"basis": 3}}, "as_of.basis", "has no value 3"),
    ({"as_of": {"basis": 2}}, "as_of.basis", "goes with time"),
]
PAGE_FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"page_size": -1}, "page_size", "between 0 and 1,000"),
    ({"page_size": 1_001}, "page_size", "between 0 and 1,000"),
    ({"page_token": "x"}, "page_token", "is not a page token"),
    ({"type": 3}, "type", "must be ASSET (receivables) or LIABILITY"),
    ({"type": 9}, "type", "must be ASSET (receivables) or LIABILITY"),
    ({"code_prefix": "-"}, "code_prefix", "at most 32 characters"),
]
BUCKET_FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"bucket_days": [0]}, "bucket_days[0]", "between 1 and 36,500, is 0"),
    ({"bucket_days": [1, 36_501]}, "bucket_days[1]", "between 1 and 36,500, is 36,501"),
    ({"bucket_days": [5, 5]}, "bucket_days[1]", "must be above the one before: 5 <= 5"),
    ({"bucket_days": [5, 9, 7]}, "bucket_days[2]", "must be above the one before: 7 <= 9"),
    ({"bucket_days": range(1, 14)}, "bucket_days", "must be at most 12, not 13"),
]
PERIOD = {"start_time": {"seconds": 1}, "end_time": {"seconds": 2}}
PERIOD_FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"periods": []}, "periods", "must be 1 to 32, not 0"),
    ({"periods": [PERIOD] * 33}, "periods", "must be 1 to 32, not 33"),
    ({"periods": [PERIOD, {}]}, "periods[1].start_time", "is required"),
    (
        {"periods": [{"start_time": {"seconds": 2}, "end_time": {"seconds": 2}}]},
        "periods[0].end_time",
        "must be after start_time",
    ),
    (
        {"periods": [{"start_time": {"seconds": 2}, "end_time": {"seconds": 1}}]},
        "periods[0].end_time",
        "must be after start_time",
    ),
    (
        {"periods": [{"start_time": {"seconds": -1}}]},
        "periods[0].start_time",
        "between the years 1970 and 9999",
    ),
    (
        {"periods": [{**PERIOD, "end_time": {"nanos": 2_000_000_000}}]},
        "periods[0].end_time",
        "must have nanos between",
    ),
    (
        {"periods": [{**PERIOD, "end_time": FUTURE["time"]}], "basis": 1},
        "periods[0].end_time",
        "must not be in the future",
    ),
    ({"periods": [PERIOD], "basis": 5}, "basis", "has no value 5"),
    ({"periods": [PERIOD], "ledger": "Books"}, "ledger", "at most 63"),
    ({"periods": [PERIOD], "consistency": 9}, "consistency", "has no value 9"),
]
DAY_FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"ledger": "Books"}, "ledger", "at most 63"),
    ({"consistency": 9}, "consistency", "has no value 9"),
    (
        {"start_time": {"seconds": 86_400}, "end_time": {"seconds": 86_399}},
        "start_time",
        "must not be after end_time",
    ),
    ({"start_time": FUTURE["time"]}, "start_time", "which is today when not set"),
    (
        {"start_time": {"seconds": 0}, "end_time": {"seconds": 86_400 * 3_660}},
        "start_time",
        "must be at most 3,660 days before the end, both included, is 3,661",
    ),
    ({"end_time": {"seconds": -1}}, "end_time", "between the years 1970 and 9999"),
]


@pytest.mark.parametrize(
    ("rpc", "request_type", "values", "field", "text"),
    [
        *(
            (name, request_type, *fault)
            for name, request_type in REPORTS.items()
            for fault in AS_OF_FAULTS
        ),
        *(
            ("ListAgeing", reports_pb2.ListAgeingRequest, *fault)
            for fault in [*AS_OF_FAULTS, *PAGE_FAULTS, *BUCKET_FAULTS]
        ),
        *(
            ("GetIncomeStatement", reports_pb2.GetIncomeStatementRequest, *fault)
            for fault in PERIOD_FAULTS
        ),
        *(
            ("GetSettlementReport", reports_pb2.GetSettlementReportRequest, *fault)
            for fault in [*DAY_FAULTS, *BUCKET_FAULTS]
        ),
    ],
)
async def test_a_wrong_field_is_named_and_no_shard_is_asked(
    stub: Any,
    shards: FakeShards,
    rpc: str,
    request_type: Any,
    values: dict[str, Any],
    field: str,
    text: str,
) -> None:
    error = await refused(getattr(stub, rpc)(request_type(**values)))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELDS")
    ((found, description),) = error.violations
    assert found == field
    assert text in description
    assert shards.calls == []


async def test_all_wrong_fields_are_named_at_once(stub: Any, shards: FakeShards) -> None:
    request = reports_pb2.ListAgeingRequest(
        ledger="Books", type=4, bucket_days=[0], page_size=-1, page_token="x", consistency=7
    )
    error = await refused(stub.ListAgeing(request))
    assert [field for field, _ in error.violations] == [
        "ledger",
        "type",
        "bucket_days[0]",
        "page_size",
        "page_token",
        "consistency",
    ]

"""`ledger report`, of a small café whose books are known, on a real standalone ledger."""

import csv
import io
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import click
import pytest
from click.testing import Result

from ledger.v1 import ledger_pb2, reports_pb2
from ledger_cli.output import Output
from ledger_cli.report import BUCKET_DAYS, PERIOD
from ledger_cli.report_ages import Ageing, show_ageing, show_settlement
from ledger_cli.report_parts import Heading
from ledger_client import InvalidArgumentError, LedgerClient, credit, debit
from ledger_client.reports import AsyncReportClient, ReportClient
from ledger_client.testing import StandaloneLedger

Run = Callable[..., Result]
Call = Callable[..., Any]

ASSET = ledger_pb2.ACCOUNT_TYPE_ASSET
CHART = [
    ("1", "Assets", ASSET, ""),
    ("10", "Till", ASSET, "1"),
    ("14", "Customers who owe", ASSET, "1"),
    ("20", "Suppliers", ledger_pb2.ACCOUNT_TYPE_LIABILITY, ""),
    ("30", "Equity", ledger_pb2.ACCOUNT_TYPE_EQUITY, ""),
    ("40", "Sales", ledger_pb2.ACCOUNT_TYPE_INCOME, ""),
    ("60", "Goods", ledger_pb2.ACCOUNT_TYPE_EXPENSE, ""),
]
ACCOUNTS = {
    "till": "1000",
    "ann": "1400",
    "bob": "1401",
    "roaster": "2000",
    "capital": "3000",
    "coffee": "4000",
    "beans": "6000",
}
POSTINGS = [
    ("2025-12-30", 500_00, "till", "capital"),
    ("2026-01-10", 80_00, "beans", "roaster"),
    ("2026-01-31", 120_00, "till", "coffee"),
    ("2026-02-15", 90_00, "ann", "coffee"),
    ("2026-03-10", 50_00, "roaster", "till"),
    ("2026-03-20", 40_00, "bob", "coffee"),
]


@pytest.fixture(scope="session")
def cafe(ledger: StandaloneLedger) -> str:
    """The name of the café's ledger. One coffee is pending, one was settled, one cancelled."""
    name = f"cafe-{uuid4().hex[:12]}"
    with LedgerClient(ledger.target) as client:
        client.create_ledger(
            name,
            [ledger_pb2.Currency(code="EUR", exponent=2)],
            [
                ledger_pb2.ChartLine(code=code, name=label, type=kind, parent=parent)
                for code, label, kind, parent in CHART
            ],
        )
        accounts = {
            who: client.create_account(
                ledger=name, code=code, name=who, limits=ledger_pb2.Limits()
            ).id
            for who, code in ACCOUNTS.items()
        }

        def post(amount: int, to: str, of: str, **more: Any) -> str:
            made = client.create_transaction(
                ledger=name,
                entries=[debit(accounts[to], amount), credit(accounts[of], amount)],
                **more,
            )
            assert made.status in (
                ledger_pb2.TRANSACTION_STATUS_SETTLED,
                ledger_pb2.TRANSACTION_STATUS_PENDING,
            )
            return made.id

        for day, amount, to, of in POSTINGS:
            noon = datetime.fromisoformat(f"{day}T12:00:00+00:00")
            post(amount, to, of, settled=True, effective_time=noon)
        client.create_transaction(accounts["till"], 25_00, "found", settled=True)
        post(3_00, "bob", "coffee", settled=False)
        client.settle_transaction(post(4_00, "bob", "coffee", settled=False))
        client.cancel_transaction(post(5_00, "bob", "coffee", settled=False))
    return name


@pytest.fixture
def show(run: Run, ledger: StandaloneLedger, cafe: str) -> Callable[..., str]:
    """Run a report of the café that must succeed, and return what it prints."""

    def show(*args: str) -> str:
        result = run("--gateway", ledger.target, "report", *args, "--ledger", cafe)
        assert result.exit_code == 0, result.output
        return result.stdout

    return show


def rows(text: str) -> list[list[str]]:
    """The lines of a table, without its rules and what is empty; cells are two spaces apart."""
    lines = [re.split(r" {2,}", line.strip()) for line in text.splitlines()]
    return [cells for cells in lines if cells != [""] and "─" not in cells[0]]


def records(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# Trial balance


def test_a_trial_balance(show: Callable[..., str], cafe: str) -> None:
    shown = show("trial-balance")
    assert rows(shown) == [
        [f"Trial balance of ledger {cafe}, now"],
        ["type", "code", "name", "accounts", "debit", "credit"],
        ["ASSET", "1000", "Till", "1", "595.00 EUR"],
        ["ASSET", "1400", "Customers who owe", "1", "90.00 EUR"],
        ["ASSET", "1401", "Customers who owe", "1", "44.00 EUR"],
        ["LIABILITY", "2000", "Suppliers", "1", "30.00 EUR"],
        ["EQUITY", "3000", "Equity", "1", "500.00 EUR"],
        ["INCOME", "4000", "Sales", "1", "254.00 EUR"],
        ["EXPENSE", "6000", "Goods", "1", "80.00 EUR"],
        ["ASSET", "External", "1", "25.00 EUR"],
        ["total", "809.00 EUR", "809.00 EUR"],
    ]
    # Amounts end in one column, the sums under a rule.
    lines = shown.splitlines()
    assert len({len(line) for line in lines[2:]}) == 1
    assert set(lines[-2]) == {"─"}


def test_a_trial_balance_as_of_a_date_is_that_of_its_end(show: Callable[..., str]) -> None:
    def till(day: str, basis: str) -> str:
        out = show("trial-balance", "--as-of", day, "--basis", basis, "-o", "csv")
        return next(line["debit_balance"] for line in records(out) if line["code"] == "1000")

    assert till("2026-01-30", "effective") == "50000"
    assert till("2026-01-31", "effective") == "62000"
    assert till("2026-01-31T11:59:59Z", "effective") == "50000"
    assert till("2026-03-10", "effective") == "57000"
    # None of it had been recorded by then.
    assert till("2026-01-31", "recorded") == "0"
    shown = show("trial-balance", "--as-of", "2026-01-31", "--basis", "effective")
    assert "as of 2026-01-31 23:59:59.999999 UTC, effective time" in shown


def test_a_trial_balance_for_programs(call: Call, show: Callable[..., str], cafe: str) -> None:
    found = call("report", "trial-balance", "--ledger", cafe)
    assert (found["ledger"], found["as_of_time"], found["basis"]) == (cafe, "", "RECORDED")
    (part,) = found["currencies"]
    assert (part["total_debits"], part["total_credits"]) == ("80900", "80900")
    assert part["lines"][2] == {
        "role": "ACCOUNTS",
        "type": "ASSET",
        "code": "1401",
        "name": "Customers who owe",
        "accounts": 1,
        "debits_posted": "4400",
        "credits_posted": "0",
        "debits_pending": "300",
        "credits_pending": "0",
        "debit_balance": "4400",
        "credit_balance": "0",
    }
    lines = records(show("trial-balance", "-o", "csv"))
    assert [line["role"] for line in lines] == ["ACCOUNTS"] * 7 + ["EXTERNAL"]
    assert sum(int(line["debit_balance"]) - int(line["credit_balance"]) for line in lines) == 0


# Balance sheet, income statement, chart


def test_a_balance_sheet(show: Callable[..., str], call: Call, cafe: str) -> None:
    assert rows(show("balance-sheet"))[1:] == [
        ["code", "name", "EUR"],
        ["ASSETS"],
        ["1000", "Till", "595.00 EUR"],
        ["1400", "Customers who owe", "90.00 EUR"],
        ["1401", "Customers who owe", "44.00 EUR"],
        ["External", "-25.00 EUR"],
        ["total assets", "704.00 EUR"],
        ["LIABILITIES"],
        ["2000", "Suppliers", "30.00 EUR"],
        ["total liabilities", "30.00 EUR"],
        ["EQUITY"],
        ["3000", "Equity", "500.00 EUR"],
        ["Earnings so far", "174.00 EUR"],
        ["total equity", "674.00 EUR"],
        ["total liabilities and equity", "704.00 EUR"],
    ]
    (part,) = call("report", "balance-sheet", "--ledger", cafe)["currencies"]
    assert part["equity"] == {
        "lines": [
            {
                "role": "ACCOUNTS",
                "type": "EQUITY",
                "code": "3000",
                "name": "Equity",
                "amounts": ["50000"],
            },
            {"role": "EARNINGS", "type": "EQUITY", "code": "", "name": "", "amounts": ["17400"]},
        ],
        "totals": ["67400"],
    }
    lines = records(show("balance-sheet", "-o", "csv"))
    assert [(line["section"], line["amount"]) for line in lines if line["kind"] == "TOTAL"] == [
        ("ASSETS", "70400"),
        ("LIABILITIES", "3000"),
        ("EQUITY", "67400"),
    ]


def test_an_income_statement(show: Callable[..., str], call: Call, cafe: str) -> None:
    periods = ("--period", "2026-01", "--period", "2026-02", "--period", "2026-Q1")
    shown = show("income-statement", *periods)
    assert rows(shown) == [
        [f"Income statement of ledger {cafe}, by effective time"],
        ["code", "name", "2026-01", "2026-02", "2026-Q1"],
        ["REVENUE"],
        ["4000", "Sales", "120.00 EUR", "90.00 EUR", "250.00 EUR"],
        ["total revenue", "120.00 EUR", "90.00 EUR", "250.00 EUR"],
        ["EXPENSES"],
        ["6000", "Goods", "80.00 EUR", "0.00 EUR", "80.00 EUR"],
        ["total expenses", "80.00 EUR", "0.00 EUR", "80.00 EUR"],
        ["net income", "40.00 EUR", "90.00 EUR", "170.00 EUR"],
        ["margin", "33.33 %", "100.00 %", "68.00 %"],
    ]
    found = call("report", "income-statement", "--ledger", cafe, *periods)
    (part,) = found["currencies"]
    assert found["periods"] == ["2026-01", "2026-02", "2026-Q1"]
    assert part["net_income"] == ["4000", "9000", "17000"]
    assert part["margin_basis_points"] == ["3333", "10000", "6800"]
    lines = records(show("income-statement", *periods, "-o", "csv"))
    assert [(line["section"], line["2026-Q1"]) for line in lines if line["kind"] == "TOTAL"] == [
        ("REVENUE", "25000"),
        ("EXPENSES", "8000"),
        ("NET_INCOME", "17000"),
        ("MARGIN_BASIS_POINTS", "6800"),
    ]


def test_an_income_statement_by_time_of_recording(call: Call, cafe: str) -> None:
    """All was recorded in this session; this year has not ended, so it ends now."""
    today = datetime.now(UTC)
    years = sorted({today.year, (today - timedelta(days=1)).year})
    periods = [item for year in years for item in ("--period", str(year))]
    (part,) = call(
        *("report", "income-statement", "--ledger", cafe, "--basis", "recorded", *periods)
    )["currencies"]
    assert sum(map(int, part["net_income"])) == 174_00
    (old,) = call(
        *("report", "income-statement", "--ledger", cafe),
        *("--basis", "recorded", "--period", "2020"),
    )["currencies"]
    assert old["net_income"] == ["0"]


def test_this_year_is_the_default_period(call: Call, cafe: str) -> None:
    before = datetime.now(UTC).year
    found = call("report", "income-statement", "--ledger", cafe)
    assert found["periods"][0] in (str(before), str(datetime.now(UTC).year))


def test_the_chart_as_a_tree(show: Callable[..., str], call: Call, cafe: str) -> None:
    shown = show("chart")
    assert rows(shown)[1:5] == [
        ["code", "name", "type", "accounts", "own", "with all under it"],
        ["1", "Assets", "ASSET", "0", "0.00 EUR", "729.00 EUR"],
        ["10", "Till", "ASSET", "1", "595.00 EUR", "595.00 EUR"],
        ["14", "Customers who owe", "ASSET", "2", "134.00 EUR", "134.00 EUR"],
    ]
    assert re.search(r"^1 +Assets", shown, re.MULTILINE)
    assert re.search(r"^  10 +  Till", shown, re.MULTILINE)
    (part,) = call("report", "chart", "--ledger", cafe)["currencies"]
    assert part["lines"][1] == {
        "role": "ACCOUNTS",
        "code": "10",
        "name": "Till",
        "type": "ASSET",
        "parent": "1",
        "depth": 1,
        "accounts": 1,
        "own_balance": "59500",
        "total_balance": "59500",
    }
    lines = records(show("chart", "-o", "csv"))
    assert [line["total_balance"] for line in lines if line["depth"] == "0"] == [
        *("72900", "3000", "50000", "25400", "8000", "-2500")
    ]


# Ageing


def test_ageing(show: Callable[..., str], call: Call, cafe: str) -> None:
    as_of = ("--as-of", "2026-03-31", "--basis", "effective")
    shown = show("ageing", *as_of)
    assert [cells[1:] for cells in rows(shown)[1:6]] == [
        [
            "name",
            "code",
            "type",
            "balance",
            "0-30 days",
            "30-60 days",
            "60-90 days",
            "over 90 days",
        ],
        ["till", "1000", "ASSET", "570.00 EUR", "0.00 EUR", "120.00 EUR", "0.00 EUR", "450.00 EUR"],
        ["ann", "1400", "ASSET", "90.00 EUR", "0.00 EUR", "90.00 EUR", "0.00 EUR", "0.00 EUR"],
        ["bob", "1401", "ASSET", "40.00 EUR", "40.00 EUR", "0.00 EUR", "0.00 EUR", "0.00 EUR"],
        [
            *("roaster", "2000", "LIABILITY", "30.00 EUR"),
            *("0.00 EUR", "0.00 EUR", "30.00 EUR", "0.00 EUR"),
        ],
    ]
    assert rows(shown)[6:] == [
        ["total", "ASSET", "700.00 EUR", "40.00 EUR", "210.00 EUR", "0.00 EUR", "450.00 EUR"],
        ["total", "LIABILITY", "30.00 EUR", "0.00 EUR", "0.00 EUR", "30.00 EUR", "0.00 EUR"],
    ]
    receivables = (*as_of, "--type", "ASSET", "--code-prefix", "14", "--bucket-days", "20,50")
    found = call("report", "ageing", "--ledger", cafe, *receivables)
    assert found["bucket_days"] == [20, 50]
    assert [(line["name"], line["amounts"]) for line in found["lines"]] == [
        ("ann", ["0", "9000", "0"]),
        ("bob", ["4000", "0", "0"]),
    ]
    assert found["totals"] == [
        {
            "type": "ASSET",
            "currency": "EUR",
            "currency_exponent": 2,
            "balance": "13000",
            "amounts": ["4000", "9000", "0"],
        }
    ]
    lines = records(show("ageing", *receivables, "-o", "csv"))
    assert [(line["kind"], line["name"], line["20-50 days"]) for line in lines] == [
        ("LINE", "ann", "9000"),
        ("LINE", "bob", "0"),
        ("TOTAL", "", "9000"),
    ]


def test_ageing_sums_all_accounts_however_many_are_shown(
    run: Run, ledger: StandaloneLedger, cafe: str
) -> None:
    short = run("--gateway", ledger.target, "report", "ageing", "--ledger", cafe, "--limit", "1")
    assert (
        "Only 1 of 4 accounts are shown; --all shows every one. The sums are of all."
        in short.stderr
    )
    assert "… 3 more" in short.stdout
    assert rows(short.stdout)[-2][:3] == ["total", "ASSET", "729.00 EUR"]
    everything = run("--gateway", ledger.target, "report", "ageing", "--ledger", cafe, "--all")
    assert everything.stderr == ""
    assert rows(everything.stdout)[-2:] == rows(short.stdout)[-2:]


def test_pages_of_ageing_are_summed_up() -> None:
    """By currency and type, and what is not kept is counted all the same."""
    found = Ageing(limit=2)
    for number, kind in enumerate((1, 2, 1, 1)):
        line = reports_pb2.AgeingLine(
            account_id=f"{number:016x}",
            type=ledger_pb2.AccountType.ValueType(kind),
            currency="USD" if number < 3 else "JPY",
            currency_exponent=2 if number < 3 else 0,
            balance=10**number,
            amounts=[10**number - 1, 1],
        )
        found.add(reports_pb2.ListAgeingResponse(lines=[line], bucket_days=[30]))
    assert (found.accounts, len(found.lines), found.left_out) == (4, 2, 2)
    totals = [
        (total.currency, total.type, total.exponent, total.amounts, total.balance)
        for total in found.totals()
    ]
    assert totals == [
        ("JPY", "ASSET", 0, [999, 1], 1_000),
        ("USD", "ASSET", 2, [99, 2], 101),
        ("USD", "LIABILITY", 2, [9, 1], 10),
    ]


def test_nothing_to_age(capsys: pytest.CaptureFixture[str]) -> None:
    show_ageing(Output("table"), Heading("main"), Ageing(50, [30]))
    assert "No account that was asked about has a balance." in capsys.readouterr().out
    show_ageing(Output("csv"), Heading("main"), Ageing(50, [30]))
    assert capsys.readouterr().out == (
        "kind,account_id,name,code,type,currency,currency_exponent,balance,0-30 days,over 30 days\n"
    )


# Settlement


def test_settlement(show: Callable[..., str], call: Call, cafe: str) -> None:
    shown = rows(show("settlement"))
    assert ["pending now", "1 transaction, 3.00 EUR"] in shown
    assert ["0-1 days", "1"] in shown
    assert ["over 30 days", "0"] in shown
    assert ["ended in the 30 days to today", "1 settled, 1 cancelled, 0 expired"] in shown
    (part,) = call("report", "settlement", "--ledger", cafe, "--bucket-days", "5")["currencies"]
    assert part["pending_amount"] == "300"
    assert part["pending_by_age"] == {"0-5 days": 1, "over 5 days": 0}
    assert len(part["oldest_pending_transaction_id"]) == 32
    assert 0 <= part["settle_median_ms"] <= part["settle_p95_ms"] <= part["settle_max_ms"]
    (line,) = records(show("settlement", "-o", "csv"))
    assert line["pending_by_age"] == "0-1 days=1;1-7 days=0;7-30 days=0;over 30 days=0"


def test_settlement_of_other_days(call: Call, cafe: str) -> None:
    days = ("--from", "2026-01-01", "--to", "2026-01-31")
    (part,) = call("report", "settlement", "--ledger", cafe, *days)["currencies"]
    assert (part["settled_transactions"], part["settle_median_ms"]) == (0, None)
    assert part["pending_transactions"] == 1


@pytest.mark.parametrize(
    ("duration_ms", "text"),
    [
        (0, "0 ms"),
        (1_999, "1999 ms"),
        (2_000, "2.0 s"),
        (119_999, "120.0 s"),
        (120_000, "2.0 min"),
        (7_200_000, "2.0 h"),
        (172_800_000, "2.0 d"),
    ],
)
def test_durations_are_readable(
    capsys: pytest.CaptureFixture[str], duration_ms: int, text: str
) -> None:
    part = reports_pb2.SettlementReport(
        currency="USD",
        currency_exponent=2,
        pending_transactions=5_000,
        pending_truncated=True,
        settle_median_ms=duration_ms,
        settle_p95_ms=duration_ms,
        settle_max_ms=duration_ms,
    )
    found = reports_pb2.GetSettlementReportResponse(currencies=[part])
    show_settlement(Output("table"), Heading(""), found, datetime(2026, 1, 1, tzinfo=UTC), None)
    out = capsys.readouterr().out
    assert f"median {text}, 95 % within {text}, longest {text}" in out
    assert "at least 5,000 transactions" in out
    assert "ended from 2026-01-01 to today" in out


# Nothing there, and mistakes


def test_a_ledger_without_accounts(run: Run, call: Call, ledger: StandaloneLedger) -> None:
    name = f"empty-{uuid4().hex[:12]}"
    call("ledgers", "create", name, "--currency", "EUR:2")
    to = ("--gateway", ledger.target, "report")
    for report in ("trial-balance", "balance-sheet", "income-statement", "chart", "settlement"):
        table = run(*to, report, "--ledger", name)
        assert table.exit_code == 0, table.output
        assert f"`ledger accounts create --ledger {name}` opens one" in table.stdout
        assert call("report", report, "--ledger", name)["currencies"] == []
        heading = run(*to, report, "--ledger", name, "-o", "csv").stdout
        assert heading.startswith("currency,currency_exponent,")
        assert heading.count("\n") == 1


@pytest.mark.parametrize(
    "report",
    ["trial-balance", "balance-sheet", "income-statement", "chart", "ageing", "settlement"],
)
def test_a_ledger_that_is_not_there(run: Run, ledger: StandaloneLedger, report: str) -> None:
    result = run("--gateway", ledger.target, "report", report, "--ledger", "nowhere")
    assert result.exit_code == 1
    assert "NOT_FOUND (LEDGER_NOT_FOUND)" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("trial-balance", "--as-of", "yesterday"), "must be a date such as 2026-01-31"),
        (("trial-balance", "--as-of", "2026-01-31T12:00:00"), "must have a time zone"),
        (("trial-balance", "--as-of", "9000-01-01"), "Leave it out for the books as they are now"),
        (("chart", "--as-of", "9000-01-01", "--basis", "recorded"), "--as-of is in the future"),
        (("balance-sheet", "--basis", "effective"), "--basis effective goes with --as-of"),
        (("ageing", "--basis", "effective"), "--basis effective goes with --as-of"),
        (("ageing", "--type", "EQUITY"), "'EQUITY' is not one of"),
        (("ageing", "--bucket-days", "30 60"), "must be days with commas between them"),
        (("ageing", "--bucket-days", "30,x"), "must be days with commas between them"),
        (("income-statement", "--period", "2026-13"), "must have a month from 01 to 12"),
        (("income-statement", "--period", "2026-00"), "must have a month from 01 to 12"),
        (("income-statement", "--period", "2026-Q5"), "such as 2026, 2026-Q1 or 2026-01"),
        (("income-statement", "--period", "26"), "such as 2026, 2026-Q1 or 2026-01"),
        (("income-statement", "--period", "9999"), "between the years 1970 and 9998"),
        (("income-statement", *["--period", "2026"] * 33), "32 times at most"),
        (("settlement", "--from", "2026-02-01", "--to", "2026-01-01"), "not be before --from"),
    ],
)
def test_wrong_usage_exits_with_2(run: Run, args: tuple[str, ...], said: str) -> None:
    result = run("report", *args)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_what_only_the_gateway_refuses(run: Run, ledger: StandaloneLedger) -> None:
    result = run("--gateway", ledger.target, "report", "ageing", "--bucket-days", "30,20")
    assert result.exit_code == 1
    assert "bucket_days[1]: must be above the one before: 20 <= 30" in result.stderr


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("2026", "2026-01-01", "2027-01-01"),
        ("2026-Q1", "2026-01-01", "2026-04-01"),
        ("2026-Q4", "2026-10-01", "2027-01-01"),
        ("2026-02", "2026-02-01", "2026-03-01"),
        ("2026-12", "2026-12-01", "2027-01-01"),
        ("1970", "1970-01-01", "1971-01-01"),
    ],
)
def test_periods_are_in_utc(text: str, start: str, end: str) -> None:
    period = PERIOD.convert(text, None, None)
    assert (period.start.isoformat(), period.end.isoformat()) == (
        f"{start}T00:00:00+00:00",
        f"{end}T00:00:00+00:00",
    )


def test_bucket_days_are_read_as_given() -> None:
    assert BUCKET_DAYS.convert("7,14,28", None, None) == [7, 14, 28]
    with pytest.raises(click.BadParameter):
        BUCKET_DAYS.convert("", None, None)


# The SDK


def test_the_client_of_reports(ledger: StandaloneLedger, cafe: str) -> None:
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
    effective = ledger_pb2.TIME_BASIS_EFFECTIVE
    with ReportClient(ledger.target) as reports:
        (trial,) = reports.trial_balance(cafe).currencies
        assert trial.total_debits == trial.total_credits == 809_00
        (sheet,) = reports.balance_sheet(cafe, as_of=end, basis=effective).currencies
        assert sheet.assets.totals == [620_00]
        (tree,) = reports.chart_balances(cafe, stale=True).currencies
        assert tree.lines[0].total_balance == 729_00
        (income,) = reports.income_statement([(start, end), (start, None)], cafe).currencies
        assert income.net_income == [40_00, 174_00]
        ages = list(reports.list_ageing(cafe, page_size=1, bucket_days=[7]))
        assert [line.name for line in ages] == ["till", "ann", "bob", "roaster"]
        (settlement,) = reports.settlement_report(cafe, start=start, end=end).currencies
        assert settlement.pending_transactions == 1
        with pytest.raises(InvalidArgumentError, match="time zone"):
            reports.trial_balance(cafe, as_of=datetime(2026, 1, 1))
        with pytest.raises(InvalidArgumentError, match="periods"):
            reports.income_statement([], cafe)


async def test_the_asyncio_client_of_reports(ledger: StandaloneLedger, cafe: str) -> None:
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
    async with AsyncReportClient(ledger.target) as reports:
        (trial,) = (await reports.trial_balance(cafe)).currencies
        assert trial.total_debits == 809_00
        assert len((await reports.balance_sheet(cafe)).currencies) == 1
        assert len((await reports.chart_balances(cafe)).currencies) == 1
        (income,) = (await reports.income_statement([(start, end)], cafe)).currencies
        assert income.net_income == [40_00]
        ages = [line.name async for line in reports.list_ageing(cafe, page_size=3)]
        assert ages == ["till", "ann", "bob", "roaster"]
        assert len((await reports.settlement_report(cafe)).currencies) == 1

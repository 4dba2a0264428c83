"""Reports balance whatever the totals are, and say of a small company what its books say."""

import random

import pytest

from ledger_core.accounts import AccountType, Direction, GroupRole
from ledger_core.durations import duration_bucket
from ledger_core.errors import Reason
from ledger_core.ledgers import ChartCode
from ledger_core.reports import (
    BalanceSheet,
    Chart,
    ChartBalances,
    CurrencyTotals,
    LineRole,
    Section,
    Settlements,
    UnbalancedError,
    balance_sheet,
    chart_balances,
    income_statement,
    margin_basis_points,
    merge_settlements,
    merge_totals,
    trial_balance,
)
from ledger_core.results import (
    BookSettlementsView,
    CountersView,
    GroupTotalsView,
    SettlementsView,
    TotalsView,
)

ASSET, LIABILITY, EQUITY, INCOME, EXPENSE = AccountType
ACCOUNT, EXTERNAL, IN_TRANSIT = GroupRole

# A small company
#
# Two shards: the till and equity are on the first one, customers and the rest on the second one.
# Moment 0 is the end of last year, moment 1 the end of this one, in which 30.00 are on their way
# from the first shard to the second one.

CHART = Chart(
    [
        ChartCode("1", "Assets", ASSET),
        ChartCode("11", "Cash", ASSET, "1"),
        ChartCode("12", "Receivables", ASSET, "1"),
        ChartCode("2", "Customers", LIABILITY),
        ChartCode("3", "Equity", EQUITY),
        ChartCode("4", "Revenue", INCOME),
        ChartCode("41", "Fees", INCOME, "4"),
        ChartCode("5", "Costs", EXPENSE),
        ChartCode("59", "Unused", EXPENSE, "5"),
    ]
)


def group(
    account_type: AccountType,
    code: str,
    *counters: tuple[int, ...],
    role: GroupRole = ACCOUNT,
    accounts: int = 1,
    currency: str = "USD",
) -> GroupTotalsView:
    sums = [CountersView(*item) for item in counters]
    return GroupTotalsView(currency, 2, account_type, code, role, accounts, sums)


COMPANY = {
    0: TotalsView(
        [
            group(ASSET, "1100", (500_00, 100_00), (900_00, 230_00), accounts=2),
            group(EQUITY, "30", (0, 400_00), (0, 400_00)),
            group(ASSET, "", (0, 0), (30_00, 300_00), role=IN_TRANSIT),
            group(ASSET, "", (0, 0), (0, 0), role=EXTERNAL),
        ],
        time_us=5,
    ),
    1: TotalsView(
        [
            group(ASSET, "1200", (80_00, 0), (100_00, 20_00)),
            group(ASSET, "1100", (0, 0), (0, 50_00)),
            group(LIABILITY, "21", (0, 30_00, 5_00), (40_00, 90_00, 0, 7_00), accounts=3),
            group(INCOME, "41", (0, 60_00), (10_00, 260_00)),
            group(INCOME, "49", (0, 0), (0, 20_00)),
            group(EXPENSE, "5", (30_00, 0), (90_00, 0)),
            group(ASSET, "", (0, 0), (250_00, 10_00), role=IN_TRANSIT),
            group(ASSET, "", (0, 20_00, 0, 5_00), (0, 40_00, 7_00), role=EXTERNAL),
        ],
        time_us=6,
    ),
}


def moment(index: int) -> CurrencyTotals:
    views = {
        shard_id: TotalsView(
            [
                group(
                    *(item.type, item.code),
                    tuple(
                        getattr(item.sums[index], name) for name in CountersView.__struct_fields__
                    ),
                    role=item.role,
                    accounts=item.accounts,
                )
                for item in view.groups
            ],
            view.time_us,
        )
        for shard_id, view in COMPANY.items()
    }
    (totals,) = merge_totals(views, ["USD"])
    return totals


def test_the_trial_balance_of_a_small_company() -> None:
    report = trial_balance(moment(1), CHART)
    assert (report.currency, report.exponent) == ("USD", 2)
    assert [
        (line.role.name, line.type.name, line.code, line.name, line.accounts)
        for line in report.lines
    ] == [
        ("ACCOUNTS", "ASSET", "1100", "Cash", 3),
        ("ACCOUNTS", "ASSET", "1200", "Receivables", 1),
        ("ACCOUNTS", "LIABILITY", "21", "Customers", 3),
        ("ACCOUNTS", "EQUITY", "30", "Equity", 1),
        ("ACCOUNTS", "INCOME", "41", "Fees", 1),
        ("ACCOUNTS", "INCOME", "49", "Revenue", 1),
        ("ACCOUNTS", "EXPENSE", "5", "Costs", 1),
        ("EXTERNAL", "ASSET", "", "", 2),
        ("IN_TRANSIT", "ASSET", "", "", 2),
    ]
    assert [(line.debit_balance, line.credit_balance) for line in report.lines] == [
        (620_00, 0),
        (80_00, 0),
        (0, 50_00),
        (0, 400_00),
        (0, 250_00),
        (0, 20_00),
        (90_00, 0),
        (0, 40_00),
        (0, 30_00),
    ]
    assert report.lines[2].sums == CountersView(40_00, 90_00, 0, 7_00)
    assert (report.total_debits, report.total_credits) == (790_00, 790_00)


def test_the_shards_own_accounts_are_shown_where_anything_was_ever_booked_on_them() -> None:
    roles = [line.role for line in trial_balance(moment(0), CHART).lines]
    assert roles.count(LineRole.EXTERNAL) == 1
    assert roles.count(LineRole.IN_TRANSIT) == 0


def amounts(section: Section) -> list[tuple[str, str, list[int]]]:
    return [(line.role.name, line.code, line.amounts) for line in section.lines]


def test_the_balance_sheet_of_a_small_company() -> None:
    report = balance_sheet(moment(1), CHART)
    assert amounts(report.assets) == [
        ("ACCOUNTS", "1100", [620_00]),
        ("ACCOUNTS", "1200", [80_00]),
        ("EXTERNAL", "", [-40_00]),
        ("IN_TRANSIT", "", [-30_00]),
    ]
    assert amounts(report.liabilities) == [("ACCOUNTS", "21", [50_00])]
    assert amounts(report.equity) == [("ACCOUNTS", "30", [400_00]), ("EARNINGS", "", [180_00])]
    assert (report.assets.totals, report.liabilities.totals) == ([630_00], [50_00])
    assert report.equity.totals == [580_00]


def test_the_income_statement_of_a_small_company() -> None:
    (totals,) = merge_totals(COMPANY, ["USD"])
    report = income_statement(totals, CHART, [(None, 0), (0, 1), (None, 1)])
    assert amounts(report.revenue) == [
        ("ACCOUNTS", "41", [60_00, 190_00, 250_00]),
        ("ACCOUNTS", "49", [0, 20_00, 20_00]),
    ]
    assert [line.name for line in report.revenue.lines] == ["Fees", "Revenue"]
    assert amounts(report.expenses) == [("ACCOUNTS", "5", [30_00, 60_00, 90_00])]
    assert report.net_income == [30_00, 150_00, 180_00]
    assert report.margin_basis_points == [5_000, 7_142, 6_666]
    # What is left of the whole time is what the balance sheet has as earnings.
    assert report.net_income[-1] == balance_sheet(moment(1), CHART).equity.lines[-1].amounts[0]


def test_the_chart_of_a_small_company() -> None:
    report = chart_balances(moment(1), CHART)
    assert [
        (line.depth, line.code, line.own_balance, line.total_balance, line.accounts)
        for line in report.lines
    ] == [
        (0, "1", 0, 700_00, 0),
        (1, "11", 620_00, 620_00, 3),
        (1, "12", 80_00, 80_00, 1),
        (0, "2", 50_00, 50_00, 3),
        (0, "3", 400_00, 400_00, 1),
        (0, "4", 20_00, 270_00, 1),
        (1, "41", 250_00, 250_00, 1),
        (0, "5", 90_00, 90_00, 1),
        (1, "59", 0, 0, 0),
        (0, "", -40_00, -40_00, 2),
        (0, "", -30_00, -30_00, 2),
    ]
    assert [line.role for line in report.lines[-2:]] == [LineRole.EXTERNAL, LineRole.IN_TRANSIT]
    assert [line.parent for line in report.lines[:3]] == ["", "1", "1"]


# Charts


def totals_of(*groups: GroupTotalsView) -> CurrencyTotals:
    """One shard with these groups, balanced by an expense without a code."""
    net = sum(item.sums[0].debits_posted - item.sums[0].credits_posted for item in groups)
    rest = group(EXPENSE, "", (max(-net, 0), max(net, 0)))
    (totals,) = merge_totals({0: TotalsView([*groups, rest], 0)}, ["USD"])
    return totals


def tree(report: ChartBalances) -> list[tuple[str, str, int, int]]:
    return [(line.code, line.type.name, line.depth, line.total_balance) for line in report.lines]


def test_without_a_chart_every_code_and_type_has_a_line() -> None:
    totals = totals_of(
        group(ASSET, "b", (5, 0)), group(ASSET, "a", (1, 0)), group(INCOME, "a", (0, 2))
    )
    assert tree(chart_balances(totals, Chart([]))) == [
        ("a", "ASSET", 0, 1),
        ("a", "INCOME", 0, 2),
        ("b", "ASSET", 0, 5),
        ("", "EXPENSE", 0, -4),
    ]


def test_codes_that_no_line_rules_stand_at_the_top() -> None:
    chart = Chart([ChartCode("2", "Two", ASSET), ChartCode("21", "Under it", ASSET, "2")])
    totals = totals_of(
        group(ASSET, "1", (5, 0)),
        group(ASSET, "210", (7, 0)),
        group(LIABILITY, "22", (0, 3)),  # older than the line that would rule it
        group(ASSET, "3", (1, 0)),
    )
    assert tree(chart_balances(totals, chart)) == [
        ("1", "ASSET", 0, 5),
        ("2", "ASSET", 0, 7),
        ("21", "ASSET", 1, 7),
        ("22", "LIABILITY", 0, 3),
        ("3", "ASSET", 0, 1),
        ("", "EXPENSE", 0, -10),
    ]
    names = [line.name for line in trial_balance(totals, chart).lines]
    assert names == ["", "Under it", "", "", ""]


def test_a_line_without_a_parent_counts_for_itself() -> None:
    """Codes that begin alike make no tree: only parents do."""
    chart = Chart([ChartCode("1", "One", ASSET), ChartCode("11", "Eleven", ASSET)])
    totals = totals_of(group(ASSET, "10", (5, 0)), group(ASSET, "11", (7, 0)))
    assert tree(chart_balances(totals, chart))[:2] == [("1", "ASSET", 0, 5), ("11", "ASSET", 0, 7)]


def test_a_chart_may_be_deep() -> None:
    codes = [f"{number:032}" for number in range(2_000)]
    chart = Chart(
        [
            ChartCode(code, "", ASSET, parent)
            for code, parent in zip(codes, ["", *codes], strict=False)
        ]
    )
    report = chart_balances(totals_of(group(ASSET, codes[-1], (5, 0))), chart)
    assert [line.depth for line in report.lines[:-1]] == list(range(2_000))
    assert {line.total_balance for line in report.lines[:-1]} == {5}
    assert [line.own_balance for line in report.lines[-3:-1]] == [0, 5]


@pytest.mark.parametrize(
    ("net", "revenue", "expected"),
    [
        (0, 0, 0),
        (5, 0, 0),
        (-5, 0, 0),
        (-50, -20, 0),
        (1, 3, 3_333),
        (-1, 3, -3_333),
        (-2, 3, -6_666),
        (7, 7, 10_000),
        (-14, 7, -20_000),
        (2**62, 2**62, 10_000),
    ],
)
def test_the_margin_is_rounded_towards_zero(net: int, revenue: int, expected: int) -> None:
    assert margin_basis_points(net, revenue) == expected


# Any totals


def test_currencies_come_in_the_order_of_the_ledger() -> None:
    groups = [group(ASSET, "", (0, 0), currency=name) for name in ("AAA", "EUR", "USD", "BBB")]
    views = {0: TotalsView(groups[:2], 0), 1: TotalsView(groups[2:], 0)}
    found = [totals.currency for totals in merge_totals(views, ["USD", "JPY", "EUR"])]
    assert found == ["USD", "EUR", "AAA", "BBB"]
    assert merge_totals({0: TotalsView([], 0)}, ["USD"]) == []


def test_sums_may_pass_int64() -> None:
    most = 2**63 - 1
    groups = [group(ASSET, "1", (most, 0)), group(LIABILITY, "2", (0, most))]
    (totals,) = merge_totals({shard: TotalsView(groups, 0) for shard in range(16)}, ["USD"])
    assert trial_balance(totals, CHART).total_debits == 16 * most


@pytest.mark.parametrize(
    ("counters", "said"),
    [
        ((5, 6), "shard 7 does not balance: 5 and 6 USD"),
        ((6, 6, 0, 1), "shard 7, of pending money does not balance: 0 and 1 USD"),
    ],
)
def test_a_shard_that_does_not_balance_is_named(counters: tuple[int, ...], said: str) -> None:
    good = TotalsView([group(ASSET, "1", (5, 5), (5, 5))], 0)
    bad = TotalsView([group(ASSET, "1", (5, 5), counters)], 0)
    with pytest.raises(UnbalancedError, match=said) as caught:
        merge_totals({3: good, 7: bad}, ["USD"])
    assert caught.value.reason is Reason.INTERNAL


def test_shards_that_are_wrong_in_opposite_ways_do_not_make_up_for_each_other() -> None:
    views = {
        0: TotalsView([group(ASSET, "1", (5, 4))], 0),
        1: TotalsView([group(ASSET, "1", (4, 5))], 0),
    }
    with pytest.raises(UnbalancedError, match="shard 0 "):
        merge_totals(views, ["USD"])


MOMENTS = 4


def random_views(rng: random.Random, shards: int, steps: int) -> dict[int, TotalsView]:
    """Book random entries; each shard balances, transfers leave their rest in transit."""
    books: dict[int, dict[tuple[str, AccountType, str, GroupRole], list[list[int]]]] = {
        shard_id: {} for shard_id in range(shards)
    }

    def book(shard_id: int, key: tuple[str, AccountType, str, GroupRole], side: Direction) -> None:
        sums = books[shard_id].setdefault(key, [[0] * 4 for _ in range(MOMENTS)])
        for index in range(first, MOMENTS):
            sums[index][posted * 2 + (side is Direction.CREDIT)] += amount

    def some(currency: str) -> tuple[str, AccountType, str, GroupRole]:
        code = "".join(rng.choices("123", k=rng.randrange(4)))
        return currency, rng.choice(list(AccountType)), code, ACCOUNT

    for _ in range(steps):
        first, posted = rng.randrange(MOMENTS), rng.randrange(2)
        amount = rng.randrange(1, 10 ** rng.randrange(1, 19))
        currency = rng.choice(["USD", "EUR", "JPY"])
        home, peer = rng.randrange(shards), rng.randrange(shards)
        book(home, some(currency), Direction.DEBIT)
        if rng.random() < 0.2:
            book(home, (currency, ASSET, "", EXTERNAL), Direction.CREDIT)
            continue
        in_transit = (currency, ASSET, "", IN_TRANSIT)
        book(home, in_transit, Direction.CREDIT)
        if rng.random() < 0.7:  # else it is in flight
            book(peer, in_transit, Direction.DEBIT)
            book(peer, some(currency), Direction.CREDIT)
    return {
        shard_id: TotalsView(
            [
                GroupTotalsView(
                    key[0], 2, key[1], key[2], key[3], 1, [CountersView(*item) for item in sums]
                )
                for key, sums in found.items()
            ],
            0,
        )
        for shard_id, found in books.items()
    }


def random_chart(rng: random.Random) -> Chart:
    """Lines with and without parents, types by the first digit."""
    types = dict(zip("123", rng.sample(list(AccountType), 3), strict=True))
    lines: dict[str, ChartCode] = {}
    for _ in range(rng.randrange(15)):
        code = "".join(rng.choices("123", k=rng.randrange(1, 4)))
        parents = ["", *(item for item in lines if item[0] == code[0] and item != code)]
        lines.setdefault(code, ChartCode(code, code, types[code[0]], rng.choice(parents)))
    return Chart(lines.values())


@pytest.mark.parametrize("seed", range(60))
def test_every_report_of_any_books_balances(seed: int) -> None:
    rng = random.Random(seed)
    views = random_views(rng, shards=rng.randrange(1, 17), steps=rng.randrange(80))
    chart = random_chart(rng)
    for totals in merge_totals(views, ["USD"]):
        trial = trial_balance(totals, chart)
        assert trial.total_debits == trial.total_credits
        net = sum(line.debit_balance - line.credit_balance for line in trial.lines)
        assert net == 0
        assert all(0 in (line.debit_balance, line.credit_balance) for line in trial.lines)

        sheet = balance_sheet(totals, chart)
        assert sheet.assets.totals[0] == sheet.liabilities.totals[0] + sheet.equity.totals[0]
        for section in (sheet.assets, sheet.liabilities, sheet.equity):
            assert section.totals == [sum(line.amounts[0] for line in section.lines)]

        earnings = sheet.equity.lines[-1].amounts[0]
        income = income_statement(totals, chart, [(None, 0), (0, 1), (1, 3), (None, 3), (0, 0)])
        assert income.net_income[0] == earnings
        assert sum(income.net_income[:3]) == income.net_income[3]
        assert income.net_income[4] == 0

        lines = chart_balances(totals, chart).lines
        assert sum(line.accounts for line in lines) == sum(line.accounts for line in trial.lines)
        for account_type in AccountType:
            own = sum(line.own_balance for line in lines if line.type is account_type)
            top = sum(
                line.total_balance
                for line in lines
                if line.type is account_type and line.depth == 0
            )
            assert (
                own
                == top
                == sum(group.balance() for group in totals.groups if group.type is account_type)
            )
        seen: set[str] = set()
        for line in lines:
            assert not line.parent or line.parent in seen
            seen.add(line.code)


def test_a_cut_of_shards_balances_too() -> None:
    """So what is in flight between two of them is no difference."""
    views = random_views(random.Random(1), shards=8, steps=300)
    sheets: list[BalanceSheet] = []
    for shard_id, view in views.items():
        sheets += [balance_sheet(totals, CHART) for totals in merge_totals({shard_id: view}, [])]
    whole = {totals.currency: balance_sheet(totals, CHART) for totals in merge_totals(views, [])}
    for currency, sheet in whole.items():
        parts = [part for part in sheets if part.currency == currency]
        assert sheet.assets.totals[0] == sum(part.assets.totals[0] for part in parts)


# Settlement


def settlements(currency: str = "USD", **values: object) -> BookSettlementsView:
    defaults: dict[str, object] = {
        "pending": 0,
        "pending_debits": 0,
        "pending_by_age": [0, 0, 0],
        "oldest_us": 0,
        "oldest_account_id": 0,
        "oldest_number": 0,
        "truncated": False,
        "settled": 0,
        "cancelled": 0,
        "expired": 0,
        "durations": {},
    }
    return BookSettlementsView(currency, 2, **(defaults | values))  # type: ignore[arg-type]


def test_settlements_of_all_shards_are_added_up() -> None:
    views = [
        SettlementsView(
            [
                settlements(
                    pending=3,
                    pending_debits=30,
                    pending_by_age=[1, 2, 0],
                    oldest_us=500,
                    oldest_account_id=8,
                    oldest_number=9,
                    settled=2,
                    cancelled=1,
                    durations={duration_bucket(1_000): 1, duration_bucket(2_000): 1},
                )
            ]
        ),
        SettlementsView(
            [
                settlements("EUR", pending=1, pending_debits=7, truncated=True),
                settlements(
                    pending=2,
                    pending_debits=5,
                    pending_by_age=[0, 1, 1],
                    oldest_us=400,
                    oldest_account_id=6,
                    oldest_number=7,
                    settled=2,
                    expired=4,
                    durations={duration_bucket(2_000): 1, duration_bucket(9_000_000): 1},
                ),
            ]
        ),
        SettlementsView([settlements()]),
    ]
    usd, eur = merge_settlements(views, ["USD", "EUR"])
    assert usd == Settlements(
        currency="USD",
        exponent=2,
        pending=5,
        pending_debits=35,
        pending_by_age=[1, 3, 1],
        oldest_us=400,
        oldest_account_id=6,
        oldest_number=7,
        truncated=False,
        settled=4,
        cancelled=1,
        expired=4,
        durations={
            duration_bucket(1_000): 1,
            duration_bucket(2_000): 2,
            duration_bucket(9_000_000): 1,
        },
    )
    median, longest = usd.duration_us(0.5), usd.duration_us(1.0)
    assert median is not None
    assert longest is not None
    assert 2_000 <= median <= 2_064
    assert 9_000_000 <= longest <= 9_288_000
    assert (eur.pending, eur.truncated, eur.oldest_us) == (1, True, 0)
    assert eur.duration_us(0.5) is None
    assert merge_settlements([], ["USD"]) == []

"""Reports: what the sums of all shards say, as accountants write it.

Each shard's books balance at every moment, so their sum does, whatever is in flight between them;
what is checked here is that, first shard by shard and then in every report. Amounts are plain ints
in minor units: sums over many accounts may pass int64, which is for whoever sends them to check.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain

from ledger_core.accounts import AccountType, Direction, GroupRole
from ledger_core.durations import quantile
from ledger_core.errors import LedgerError, Reason
from ledger_core.ledgers import ChartCode
from ledger_core.results import (
    BookSettlementsView,
    CountersView,
    GroupTotalsView,
    SettlementsView,
    TotalsView,
)

_BASIS_POINTS = 10_000
_NOTHING = CountersView()


class UnbalancedError(LedgerError):
    """Debits and credits differ: a fault of ours, or of a disk. The text says where."""

    def __init__(self, text: str) -> None:
        super().__init__(Reason.INTERNAL, f"{text}. `ledger verify` finds the first bad row")


class LineRole(IntEnum):
    """What the accounts of a line are; the numbers are those of the public API."""

    ACCOUNTS = 1
    EXTERNAL = 2
    """The world outside: the other side of transactions of the one-account form."""
    IN_TRANSIT = 3
    """Money on its way between shards."""
    EARNINGS = 4
    """Income minus expenses so far, which no account holds."""


_ROLES = {
    GroupRole.ACCOUNT: LineRole.ACCOUNTS,
    GroupRole.EXTERNAL: LineRole.EXTERNAL,
    GroupRole.IN_TRANSIT: LineRole.IN_TRANSIT,
}


class Chart:
    """A chart of accounts, in which codes are looked up."""

    def __init__(self, lines: Iterable[ChartCode]) -> None:
        self.lines = {line.code: line for line in lines}

    def line_of(self, code: str, account_type: AccountType) -> ChartCode | None:
        """Return the line that rules a code: the one with the longest fitting prefix.

        An account that is older than its line may be of another type: no line rules it.
        """
        prefixes = (code[:length] for length in range(len(code), 0, -1))
        line = next((self.lines[prefix] for prefix in prefixes if prefix in self.lines), None)
        return line if line and line.type is account_type else None

    def name_of(self, code: str, account_type: AccountType) -> str:
        """Return the name of the line that rules a code; empty where there is none."""
        line = self.line_of(code, account_type)
        return line.name if line else ""


@dataclass(frozen=True, slots=True)
class Group:
    """The accounts of one type, code and role on all shards; their sums, one for each moment."""

    type: AccountType
    code: str
    role: LineRole
    accounts: int
    sums: tuple[CountersView, ...]

    def net_debit(self, moment: int = 0) -> int:
        """Posted debits minus posted credits."""
        return self.sums[moment].debits_posted - self.sums[moment].credits_posted

    def balance(self, moment: int = 0) -> int:
        """The settled balance, seen from the normal side."""
        return _seen_from(self.type.normal_side, self.net_debit(moment))


@dataclass(frozen=True, slots=True)
class CurrencyTotals:
    """The sums of all shards in one currency, by role, type and code."""

    currency: str
    exponent: int
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class TrialBalanceLine:
    """The accounts of one type and code. The balance is in the column of its side."""

    role: LineRole
    code: str
    name: str
    type: AccountType
    accounts: int
    sums: CountersView
    debit_balance: int
    credit_balance: int


@dataclass(frozen=True, slots=True)
class TrialBalance:
    """Lines by type and code, external and in transit last; the columns' sums are equal."""

    currency: str
    exponent: int
    lines: list[TrialBalanceLine]
    total_debits: int
    total_credits: int


@dataclass(frozen=True, slots=True)
class ReportLine:
    """A line of a balance sheet or an income statement; one amount for each period."""

    role: LineRole
    code: str
    name: str
    type: AccountType
    amounts: list[int]


@dataclass(frozen=True, slots=True)
class Section:
    """Lines and their sums, one for each period, seen from the section's normal side."""

    lines: list[ReportLine]
    totals: list[int]


@dataclass(frozen=True, slots=True)
class BalanceSheet:
    """Assets, which are liabilities and equity together. Of amounts there is one."""

    currency: str
    exponent: int
    assets: Section
    liabilities: Section
    equity: Section


@dataclass(frozen=True, slots=True)
class IncomeStatement:
    """Revenue and expenses; one amount for each period."""

    currency: str
    exponent: int
    revenue: Section
    expenses: Section
    net_income: list[int]
    margin_basis_points: list[int]


@dataclass(frozen=True, slots=True)
class ChartBalance:
    """A line of the chart with its own accounts' balance, and that of all under it."""

    code: str
    name: str
    type: AccountType
    role: LineRole
    parent: str
    depth: int
    own_balance: int
    total_balance: int
    accounts: int


@dataclass(frozen=True, slots=True)
class ChartBalances:
    """Lines by code, each parent right before its children; external and in transit last."""

    currency: str
    exponent: int
    lines: list[ChartBalance]


@dataclass(frozen=True, slots=True)
class Settlements:
    """Pending transactions of all shards in one currency, and how they ended.

    Times and durations in microseconds; ``oldest_us`` 0: nothing is pending.
    """

    currency: str
    exponent: int
    pending: int
    pending_debits: int
    pending_by_age: list[int]
    oldest_us: int
    oldest_account_id: int
    oldest_number: int
    truncated: bool
    settled: int
    cancelled: int
    expired: int
    durations: Mapping[int, int]

    def duration_us(self, share: float) -> int | None:
        """How long ``share`` (0..1) of the settled ones took at most; None if there is none."""
        return quantile(self.durations, share)


def merge_totals(
    views: Mapping[int, TotalsView], currencies: Sequence[str]
) -> list[CurrencyTotals]:
    """Sum what the shards (by their ids) say, currency by currency.

    The order is that of ``currencies``, the ledger's; those without any account are left out. The
    shards' own accounts are left out where nothing was ever booked on them. UnbalancedError names
    the shard whose books do not balance.
    """
    for shard_id, view in views.items():
        _require_balanced(shard_id, view)
    every_group = list(chain.from_iterable(view.groups for view in views.values()))
    exponents = {group.currency: group.currency_exponent for group in every_group}
    merged: dict[tuple[str, GroupRole, AccountType, str], list[GroupTotalsView]] = {}
    for group in every_group:
        key = (group.currency, group.role, group.type, group.code)
        merged.setdefault(key, []).append(group)
    by_currency: dict[str, list[Group]] = {currency: [] for currency in exponents}
    for currency, role, account_type, code in sorted(merged):
        same = merged[currency, role, account_type, code]
        group_sums = tuple(_sum(sums) for sums in zip(*(view.sums for view in same), strict=True))
        if role is GroupRole.ACCOUNT or any(sums != _NOTHING for sums in group_sums):
            by_currency[currency].append(
                Group(
                    account_type,
                    code,
                    _ROLES[role],
                    sum(view.accounts for view in same),
                    group_sums,
                )
            )
    return [
        CurrencyTotals(currency, exponents[currency], tuple(by_currency[currency]))
        for currency in _in_order(exponents, currencies)
    ]


def trial_balance(totals: CurrencyTotals, chart: Chart) -> TrialBalance:
    """Put every balance into the column of its side; the columns must have equal sums."""
    lines = [
        TrialBalanceLine(
            group.role,
            group.code,
            chart.name_of(group.code, group.type),
            group.type,
            group.accounts,
            group.sums[0],
            debit_balance=max(group.net_debit(), 0),
            credit_balance=max(-group.net_debit(), 0),
        )
        for group in totals.groups
    ]
    debits = sum(line.debit_balance for line in lines)
    credits_ = sum(line.credit_balance for line in lines)
    _require_equal("the trial balance", totals.currency, debits, credits_)
    return TrialBalance(totals.currency, totals.exponent, lines, debits, credits_)


def balance_sheet(totals: CurrencyTotals, chart: Chart) -> BalanceSheet:
    """Set assets against liabilities and equity, earnings included; they must be equal."""

    def section(account_type: AccountType) -> Section:
        return _section(totals, chart, account_type, [lambda group: group.balance()])

    income, expense = section(AccountType.INCOME), section(AccountType.EXPENSE)
    earnings = income.totals[0] - expense.totals[0]
    equity = section(AccountType.EQUITY)
    equity = Section(
        [
            *equity.lines,
            ReportLine(LineRole.EARNINGS, "", "", AccountType.EQUITY, [earnings]),
        ],
        [equity.totals[0] + earnings],
    )
    assets, liabilities = section(AccountType.ASSET), section(AccountType.LIABILITY)
    _require_equal(
        "the balance sheet",
        totals.currency,
        assets.totals[0],
        liabilities.totals[0] + equity.totals[0],
    )
    return BalanceSheet(totals.currency, totals.exponent, assets, liabilities, equity)


def income_statement(
    totals: CurrencyTotals, chart: Chart, periods: Sequence[tuple[int | None, int]]
) -> IncomeStatement:
    """Compare two moments for each period: (before it, None for the very beginning; at its end).

    Both are positions in the sums of the totals.
    """

    def change(period: tuple[int | None, int]) -> Callable[[Group], int]:
        before, end = period
        return lambda group: group.balance(end) - (0 if before is None else group.balance(before))

    changes = [change(period) for period in periods]
    revenue = _section(totals, chart, AccountType.INCOME, changes)
    expenses = _section(totals, chart, AccountType.EXPENSE, changes)
    net_income = [
        earned - spent for earned, spent in zip(revenue.totals, expenses.totals, strict=True)
    ]
    margins = [
        margin_basis_points(net, earned)
        for net, earned in zip(net_income, revenue.totals, strict=True)
    ]
    return IncomeStatement(totals.currency, totals.exponent, revenue, expenses, net_income, margins)


def margin_basis_points(net_income: int, revenue: int) -> int:
    """Return net income by revenue in 1/10,000, rounded towards zero; 0 without revenue.

    Where more was paid back than was earned there is no revenue either.
    """
    if revenue <= 0:
        return 0
    margin = abs(net_income) * _BASIS_POINTS // revenue
    return margin if net_income >= 0 else -margin


def chart_balances(totals: CurrencyTotals, chart: Chart) -> ChartBalances:
    """Lay the balances over the chart.

    A line's own accounts are those whose code it rules and no longer line does. Codes that no line
    rules have lines of their own at the top.
    """
    own: dict[str, Counter[str]] = {}
    tops: list[ChartBalance] = []
    for group in totals.groups:
        line = chart.line_of(group.code, group.type)
        if line:
            sums = own.setdefault(line.code, Counter())
            sums.update(balance=group.balance(), accounts=group.accounts)
        else:
            tops.append(_top_line(group))
    tree = _tree(chart, own)
    blocks = [[line] for line in tops] + tree
    blocks.sort(key=lambda block: _chart_order(block[0]))
    lines = list(chain.from_iterable(blocks))
    _require_equal("the chart", totals.currency, *_sides(block[0] for block in blocks))
    return ChartBalances(totals.currency, totals.exponent, lines)


def merge_settlements(
    views: Iterable[SettlementsView], currencies: Sequence[str]
) -> list[Settlements]:
    """Add up what the shards say of pending transactions; in the order of ``currencies``."""
    merged: dict[str, list[BookSettlementsView]] = {}
    for book in chain.from_iterable(view.books for view in views):
        merged.setdefault(book.currency, []).append(book)
    return [_settlements(merged[currency]) for currency in _in_order(merged, currencies)]


def _settlements(books: Sequence[BookSettlementsView]) -> Settlements:
    durations: Counter[int] = Counter()
    for book in books:
        durations.update(book.durations)
    waiting = [book for book in books if book.oldest_us]
    oldest = min(waiting, key=lambda book: book.oldest_us, default=books[0])
    return Settlements(
        books[0].currency,
        books[0].currency_exponent,
        pending=sum(book.pending for book in books),
        pending_debits=sum(book.pending_debits for book in books),
        pending_by_age=[
            sum(bucket) for bucket in zip(*(book.pending_by_age for book in books), strict=True)
        ],
        oldest_us=oldest.oldest_us,
        oldest_account_id=oldest.oldest_account_id,
        oldest_number=oldest.oldest_number,
        truncated=any(book.truncated for book in books),
        settled=sum(book.settled for book in books),
        cancelled=sum(book.cancelled for book in books),
        expired=sum(book.expired for book in books),
        durations=durations,
    )


def _section(
    totals: CurrencyTotals,
    chart: Chart,
    account_type: AccountType,
    amounts: Sequence[Callable[[Group], int]],
) -> Section:
    lines = [
        ReportLine(
            group.role,
            group.code,
            chart.name_of(group.code, group.type),
            group.type,
            [amount(group) for amount in amounts],
        )
        for group in totals.groups
        if group.type is account_type
    ]
    sums = [sum(line.amounts[period] for line in lines) for period in range(len(amounts))]
    return Section(lines, sums)


def _tree(chart: Chart, own: Mapping[str, Counter[str]]) -> list[list[ChartBalance]]:
    """Return the lines of the chart, a list for each one at the top, parents before children."""
    children: dict[str, list[ChartCode]] = {}
    for code in sorted(chart.lines):
        line = chart.lines[code]
        children.setdefault(line.parent, []).append(line)
    ordered: list[tuple[ChartCode, int]] = []
    stack = [(line, 0) for line in reversed(children.get("", []))]
    while stack:
        line, depth = stack.pop()
        ordered.append((line, depth))
        stack += [(child, depth + 1) for child in reversed(children.get(line.code, []))]
    sums = {line.code: own.get(line.code, Counter())["balance"] for line, _ in ordered}
    for line, _ in reversed(ordered):  # children before parents
        if line.parent:
            sums[line.parent] += sums[line.code]
    blocks: list[list[ChartBalance]] = []
    for line, depth in ordered:
        if not depth:
            blocks.append([])
        mine = own.get(line.code, Counter())
        blocks[-1].append(
            ChartBalance(
                line.code,
                line.name,
                line.type,
                LineRole.ACCOUNTS,
                line.parent,
                depth,
                mine["balance"],
                sums[line.code],
                mine["accounts"],
            )
        )
    return blocks


def _top_line(group: Group) -> ChartBalance:
    balance = group.balance()
    return ChartBalance(
        group.code, "", group.type, group.role, "", 0, balance, balance, group.accounts
    )


def _chart_order(line: ChartBalance) -> tuple[LineRole, bool, str, AccountType]:
    """By code, accounts without one after them, the shards' own accounts last."""
    return line.role, not line.code, line.code, line.type


def _sides(lines: Iterable[ChartBalance]) -> tuple[int, int]:
    sums = {Direction.DEBIT: 0, Direction.CREDIT: 0}
    for line in lines:
        sums[line.type.normal_side] += line.total_balance
    return sums[Direction.DEBIT], sums[Direction.CREDIT]


def _require_balanced(shard_id: int, view: TotalsView) -> None:
    by_currency: dict[str, list[GroupTotalsView]] = {}
    for group in view.groups:
        by_currency.setdefault(group.currency, []).append(group)
    for currency, groups in by_currency.items():
        for moment in zip(*(group.sums for group in groups), strict=True):
            sums = _sum(moment)
            where = f"shard {shard_id}"
            _require_equal(where, currency, sums.debits_posted, sums.credits_posted)
            _require_equal(
                f"{where}, of pending money", currency, sums.debits_pending, sums.credits_pending
            )


def _require_equal(where: str, currency: str, debits: int, credits_: int) -> None:
    if debits != credits_:
        raise UnbalancedError(
            f"{where} does not balance: {debits} and {credits_} {currency} in minor units"
        )


def _sum(parts: Iterable[CountersView]) -> CountersView:
    debits = credits_ = debits_pending = credits_pending = 0
    for part in parts:
        debits += part.debits_posted
        credits_ += part.credits_posted
        debits_pending += part.debits_pending
        credits_pending += part.credits_pending
    return CountersView(debits, credits_, debits_pending, credits_pending)


def _seen_from(side: Direction, net_debit: int) -> int:
    return net_debit if side is Direction.DEBIT else -net_debit


def _in_order(found: Iterable[str], known: Sequence[str]) -> list[str]:
    """Return currencies in the ledger's order; those added meanwhile come last."""
    places = {currency: place for place, currency in enumerate(known)}
    return sorted(found, key=lambda currency: (places.get(currency, len(places)), currency))

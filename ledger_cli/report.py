"""`ledger report`: what a ledger's books say, as accountants write it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from ledger_cli import report_ages, report_tables
from ledger_cli.context import (
    Session,
    gateway_options,
    output_option,
    paging_options,
    pass_session,
    stale_option,
)
from ledger_cli.moments import BASES, START, as_of_options, check_basis, time_basis
from ledger_cli.options import Parsed, account_type
from ledger_cli.report_ages import Ageing
from ledger_cli.report_parts import Heading
from ledger_client.reports import ReportClient

Command = TypeVar("Command", bound=Callable[..., Any])

AGEING_TYPES = ("ASSET", "LIABILITY")
PERIODS_MAX = 32

_PAGE_SIZE = 1_000
_PERIOD = re.compile(r"(\d{4})(?:-(?:Q([1-4])|(\d{2})))?", re.ASCII)
_BUCKETS = re.compile(r"\d{1,6}(?:,\d{1,6})*", re.ASCII)


@dataclass(frozen=True)
class NamedPeriod:
    """A year, a quarter or a month in UTC, as it was given: ``2026-Q1``."""

    name: str
    start: datetime
    end: datetime


def _period(text: str) -> NamedPeriod:
    found = _PERIOD.fullmatch(text)
    if found is None:
        raise ValueError("must be a year, a quarter or a month, such as 2026, 2026-Q1 or 2026-01")
    year, quarter, month = (int(part) if part else None for part in found.groups())
    assert year is not None
    if not 1970 <= year <= 9998:
        raise ValueError("must be between the years 1970 and 9998")
    if month is not None and not 1 <= month <= 12:
        raise ValueError("must have a month from 01 to 12")
    first, length = 1, 12
    if quarter is not None:
        first, length = 3 * quarter - 2, 3
    elif month is not None:
        first, length = month, 1
    return NamedPeriod(text, _month(year, first), _month(year, first + length))


def _month(year: int, month: int) -> datetime:
    """Return the first moment of a month; month 13 is January of the next year."""
    return datetime(year + (month - 1) // 12, (month - 1) % 12 + 1, 1, tzinfo=UTC)


def _bucket_days(text: str) -> list[int]:
    if not _BUCKETS.fullmatch(text):
        raise ValueError("must be days with commas between them, such as 30,60,90")
    return [int(part) for part in text.split(",")]


PERIOD = Parsed("period", _period)
BUCKET_DAYS = Parsed("days", _bucket_days)


def report_options(command: Command) -> Command:
    """Add what all reports have: --ledger, --stale, --output and the gateway's options."""
    for add in (gateway_options, output_option, stale_option):
        command = add(command)
    return click.option("--ledger", default="", help="The ledger (default: main).")(command)


def bucket_days_option(default: str) -> Callable[[Command], Command]:
    """Add --bucket-days."""
    return click.option(
        "--bucket-days",
        type=BUCKET_DAYS,
        metavar="DAYS,DAYS,…",
        help=f"Ages in days at which buckets end, rising, at most 12 (default: {default}).",
    )


@click.group()
def report() -> None:
    """Trial balance, balance sheet, income statement and the like.

    Every report balances, whatever is in flight: money on its way between shards is a line of its
    own. There is one part for each currency.
    """


@report.command("trial-balance")
@as_of_options
@report_options
@pass_session
def trial_balance(
    session: Session, *, ledger: str, as_of: datetime | None, basis: str | None, stale: bool
) -> None:
    """Show debits and credits of every code; the two columns have equal sums."""
    _check_as_of(as_of, basis)
    with _client(session) as client:
        found = client.trial_balance(ledger, as_of=as_of, basis=time_basis(basis), stale=stale)
    report_tables.show_trial_balance(session.output, Heading(ledger, as_of, basis), found)


@report.command("balance-sheet")
@as_of_options
@report_options
@pass_session
def balance_sheet(
    session: Session, *, ledger: str, as_of: datetime | None, basis: str | None, stale: bool
) -> None:
    """Show assets, and the liabilities and equity that they are equal to."""
    _check_as_of(as_of, basis)
    with _client(session) as client:
        found = client.balance_sheet(ledger, as_of=as_of, basis=time_basis(basis), stale=stale)
    report_tables.show_balance_sheet(session.output, Heading(ledger, as_of, basis), found)


@report.command()
@as_of_options
@report_options
@pass_session
def chart(
    session: Session, *, ledger: str, as_of: datetime | None, basis: str | None, stale: bool
) -> None:
    """Show balances by the chart of accounts: each line's own, and with all lines under it."""
    _check_as_of(as_of, basis)
    with _client(session) as client:
        found = client.chart_balances(ledger, as_of=as_of, basis=time_basis(basis), stale=stale)
    report_tables.show_chart(session.output, Heading(ledger, as_of, basis), found)


@report.command("income-statement")
@click.option(
    "--period",
    "periods",
    type=PERIOD,
    multiple=True,
    metavar="YYYY|YYYY-Qn|YYYY-MM",
    help=(
        "A year, a quarter or a month in UTC; may be repeated, at most "
        f"{PERIODS_MAX} times, for columns side by side (default: this year)."
    ),
)
@click.option(
    "--basis",
    type=click.Choice(BASES),
    default="effective",
    show_default=True,
    help="effective: by business dates; recorded: by when it was recorded.",
)
@report_options
@pass_session
def income_statement(
    session: Session, *, ledger: str, periods: Sequence[NamedPeriod], basis: str, stale: bool
) -> None:
    """Show revenue and expenses of periods, and what is left of them."""
    if len(periods) > PERIODS_MAX:
        raise click.UsageError(f"--period can be given {PERIODS_MAX} times at most.")
    now = datetime.now(UTC)
    periods = periods or [_period(f"{now.year:04}")]
    # By time of recording the future is not known: a period that has not ended ends now.
    spans = [
        (period.start, None if basis == "recorded" and period.end > now else period.end)
        for period in periods
    ]
    with _client(session) as client:
        found = client.income_statement(spans, ledger, basis=time_basis(basis), stale=stale)
    names = [period.name for period in periods]
    report_tables.show_income_statement(session.output, Heading(ledger, None, basis), found, names)


@report.command()
@click.option(
    "--type",
    "kind",
    type=click.Choice(AGEING_TYPES),
    help="ASSET: receivables; LIABILITY: payables (default: both).",
)
@click.option("--code-prefix", default="", help="Accounts whose code begins so.")
@bucket_days_option("30,60,90")
@as_of_options
@paging_options
@report_options
@pass_session
def ageing(
    session: Session,
    *,
    ledger: str,
    kind: str | None,
    code_prefix: str,
    bucket_days: list[int] | None,
    as_of: datetime | None,
    basis: str | None,
    limit: int,
    everything: bool,
    stale: bool,
) -> None:
    """Show how old balances are, account by account, and their sums.

    What is left of an account is its newest money: first in, first out. The sums are always of all
    accounts, however many are shown.
    """
    _check_as_of(as_of, basis)
    found = Ageing(None if everything else limit)
    page_token = ""
    with _client(session) as client:
        while True:
            page = client.list_ageing_page(
                ledger,
                account_type=account_type(kind),
                code_prefix=code_prefix,
                bucket_days=bucket_days or (),
                as_of=as_of,
                basis=time_basis(basis),
                page_size=_PAGE_SIZE,
                page_token=page_token,
                stale=stale,
            )
            found.add(page)
            page_token = page.next_page_token
            if not page_token:
                break
    report_ages.show_ageing(session.output, Heading(ledger, as_of, basis), found)
    if found.left_out:
        click.echo(
            f"Only {limit} of {found.accounts:,} accounts are shown; --all shows every one. "
            "The sums are of all.",
            err=True,
        )


@report.command()
@click.option(
    "--from",
    "start",
    type=START,
    metavar="DATE",
    help="First day (UTC) whose ends count (default: 29 days before the last one).",
)
@click.option(
    "--to", "end", type=START, metavar="DATE", help="Last day, included (default: today)."
)
@bucket_days_option("1,7,30")
@report_options
@pass_session
def settlement(
    session: Session,
    *,
    ledger: str,
    start: datetime | None,
    end: datetime | None,
    bucket_days: list[int] | None,
    stale: bool,
) -> None:
    """Show what is pending and since when, and how long settlement has taken."""
    if start and end and end < start:
        raise click.UsageError("--to must not be before --from.")
    with _client(session) as client:
        found = client.settlement_report(
            ledger, start=start, end=end, bucket_days=bucket_days or (), stale=stale
        )
    report_ages.show_settlement(session.output, Heading(ledger), found, start, end)


def _check_as_of(as_of: datetime | None, basis: str | None) -> None:
    """Refuse a basis without a moment, and books that are still to be written."""
    check_basis(as_of, basis)
    if as_of and basis != "effective" and as_of > datetime.now(UTC):
        raise click.UsageError(
            "--as-of is in the future (a date means its end, in UTC). Leave it out for the books "
            "as they are now, or add --basis effective for what is dated until then."
        )


def _client(session: Session) -> ReportClient:
    session.check_gateway()
    return ReportClient(session.gateway, timeout_s=session.timeout_s)

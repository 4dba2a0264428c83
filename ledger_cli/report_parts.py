"""What all reports have in common when they are shown: headings, tables, names and amounts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import click
from rich.box import Box
from rich.table import Table
from rich.text import Text

from ledger.v1 import reports_pb2
from ledger_cli.output import console, printable
from ledger_core.money import format_amount

# Nothing but a rule below the heading and between sections.
_RULES = Box("    \n    \n ── \n    \n ── \n    \n    \n    \n")

_ROLE_NAMES = {
    reports_pb2.LINE_ROLE_EXTERNAL: "External",
    reports_pb2.LINE_ROLE_IN_TRANSIT: "In transit between shards",
    reports_pb2.LINE_ROLE_EARNINGS: "Earnings so far",
}

Money = Callable[[int], str]
NamedLine = reports_pb2.TrialBalanceLine | reports_pb2.ReportLine | reports_pb2.ChartBalance
CurrencyPart = (
    reports_pb2.TrialBalance
    | reports_pb2.BalanceSheet
    | reports_pb2.IncomeStatement
    | reports_pb2.ChartBalances
    | reports_pb2.SettlementReport
    | reports_pb2.AgeingLine
)


@dataclass(frozen=True)
class Heading:
    """What a report is about. ``as_of`` None: now."""

    ledger: str
    as_of: datetime | None = None
    basis: str | None = None

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "ledger": self.ledger or "main",
            "as_of_time": self.as_of.isoformat(timespec="microseconds") if self.as_of else "",
            "basis": (self.basis or "recorded").upper(),
        }

    def show(self, title: str, when: str = "") -> None:
        """Print it above the tables."""
        if not when and self.as_of:
            when = f"as of {self.as_of:%Y-%m-%d %H:%M:%S.%f} UTC, {self.basis or 'recorded'} time"
        about = Text.assemble((title, "bold"), f" of ledger {printable(self.ledger or 'main')}, ")
        console().print(about + Text(when or "now"))


def parts_or_hint(parts: Iterable[Any], heading: Heading) -> list[Any]:
    """Return the parts of a report; where there are none, say how to get some."""
    found = list(parts)
    if not found:
        ledger = heading.ledger or "main"
        click.echo(
            f"\nThe ledger has no accounts yet: `ledger accounts create --ledger {ledger}` opens "
            "one."
        )
    return found


def ruled_table(*columns: str, right: Iterable[str] = ()) -> Table:
    """Return an empty table with a rule under its heading and between its sections."""
    table = Table(box=_RULES, show_edge=False, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def print_table(table: Table) -> None:
    """Print a table below a blank line."""
    console().print()
    console().print(table)


def unit_record(part: CurrencyPart) -> dict[str, Any]:
    """Return the currency of a part as plain data."""
    return {"currency": part.currency, "currency_exponent": part.currency_exponent}


def money_of(part: CurrencyPart) -> Money:
    """Return what writes amounts of a part for people."""
    return partial(format_amount, currency=part.currency, exponent=part.currency_exponent)


def line_name(line: NamedLine) -> str:
    """Name a line: as the chart does, or by what its accounts are."""
    return _ROLE_NAMES.get(line.role) or printable(line.name) or ("" if line.code else "(no code)")


def role_name(line: NamedLine) -> str:
    """Name a role as people write it: ``IN_TRANSIT``."""
    return reports_pb2.LineRole.Name(line.role).removeprefix("LINE_ROLE_")

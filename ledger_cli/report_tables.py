"""Trial balance, balance sheet, income statement and chart, as tables, JSON or CSV.

In CSV a report is a list of lines; sums are lines of kind TOTAL, so that nobody adds them up twice.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from ledger.v1 import reports_pb2
from ledger_cli.output import (
    Output,
    type_name,
    write_json,
)
from ledger_cli.report_parts import (
    Heading,
    Money,
    line_name,
    money_of,
    parts_or_hint,
    print_table,
    role_name,
    ruled_table,
    unit_record,
)
from ledger_core.money import format_amount

# Trial balance


def show_trial_balance(
    output: Output, heading: Heading, found: reports_pb2.GetTrialBalanceResponse
) -> None:
    """Print a trial balance."""
    if output.format == "json":
        write_json(heading.record() | {"currencies": [_trial_record(x) for x in found.currencies]})
    elif output.format == "csv":
        lines = [
            unit_record(part) | _trial_line_record(line)
            for part in found.currencies
            for line in part.lines
        ]
        empty = unit_record(reports_pb2.TrialBalance()) | _trial_line_record(
            reports_pb2.TrialBalanceLine()
        )
        output.records(lines, columns=list(empty))
    else:
        heading.show("Trial balance")
        for part in parts_or_hint(found.currencies, heading):
            _print_trial_balance(part)


def _print_trial_balance(part: reports_pb2.TrialBalance) -> None:
    money = money_of(part)
    right = ("accounts", "debit", "credit")
    table = ruled_table("type", "code", "name", *right, right=right)
    for line in part.lines:
        table.add_row(
            type_name(line.type),
            line.code,
            line_name(line),
            f"{line.accounts:,}",
            money(line.debit_balance) if line.debit_balance else "",
            money(line.credit_balance) if line.credit_balance else "",
        )
    table.add_section()
    sums = (money(part.total_debits), money(part.total_credits))
    table.add_row("total", "", "", "", *sums, style="bold")
    print_table(table)


def _trial_record(part: reports_pb2.TrialBalance) -> dict[str, Any]:
    return unit_record(part) | {
        "lines": [_trial_line_record(line) for line in part.lines],
        "total_debits": str(part.total_debits),
        "total_credits": str(part.total_credits),
    }


def _trial_line_record(line: reports_pb2.TrialBalanceLine) -> dict[str, Any]:
    return {
        "role": role_name(line),
        "type": type_name(line.type),
        "code": line.code,
        "name": line.name,
        "accounts": line.accounts,
        "debits_posted": str(line.debits_posted),
        "credits_posted": str(line.credits_posted),
        "debits_pending": str(line.debits_pending),
        "credits_pending": str(line.credits_pending),
        "debit_balance": str(line.debit_balance),
        "credit_balance": str(line.credit_balance),
    }


# Balance sheet and income statement


def show_balance_sheet(
    output: Output, heading: Heading, found: reports_pb2.GetBalanceSheetResponse
) -> None:
    """Print a balance sheet."""
    names = ["amount"]
    if output.format == "json":
        write_json(
            heading.record()
            | {
                "currencies": [
                    unit_record(part) | _section_records(_balance_sections(part))
                    for part in found.currencies
                ]
            }
        )
    elif output.format == "csv":
        lines = [
            unit_record(part) | line
            for part in found.currencies
            for line in _section_lines(_balance_sections(part), names)
        ]
        output.records(lines, columns=_section_columns(names))
    else:
        heading.show("Balance sheet")
        for part in parts_or_hint(found.currencies, heading):
            table = ruled_table("", "code", "name", part.currency, right={part.currency})
            for name, section in _balance_sections(part).items():
                _add_section(table, name, section, money_of(part))
            total = part.liabilities.totals[0] + part.equity.totals[0]
            label = "total liabilities and equity"
            table.add_row(label, "", "", money_of(part)(total), style="bold")
            print_table(table)


def show_income_statement(
    output: Output,
    heading: Heading,
    found: reports_pb2.GetIncomeStatementResponse,
    periods: Sequence[str],
) -> None:
    """Print an income statement; ``periods`` are the names of its columns."""
    if output.format == "json":
        write_json(
            {"ledger": heading.record()["ledger"], "basis": heading.record()["basis"]}
            | {
                "periods": list(periods),
                "currencies": [_income_record(part) for part in found.currencies],
            }
        )
    elif output.format == "csv":
        lines = [
            unit_record(part) | line
            for part in found.currencies
            for line in [
                *_section_lines(_income_sections(part), periods),
                _total_line("net_income", part.net_income, periods),
                _total_line("margin_basis_points", part.margin_basis_points, periods),
            ]
        ]
        output.records(lines, columns=_section_columns(periods))
    else:
        heading.show("Income statement", f"by {heading.basis} time")
        for part in parts_or_hint(found.currencies, heading):
            _print_income_statement(part, periods)


def _print_income_statement(part: reports_pb2.IncomeStatement, periods: Sequence[str]) -> None:
    money = money_of(part)
    table = ruled_table("", "code", "name", *periods, right=periods)
    for name, section in _income_sections(part).items():
        _add_section(table, name, section, money)
    table.add_row("net income", "", "", *map(money, part.net_income), style="bold")
    table.add_row("margin", "", "", *map(_percent, part.margin_basis_points))
    print_table(table)


def _income_record(part: reports_pb2.IncomeStatement) -> dict[str, Any]:
    return (
        unit_record(part)
        | _section_records(_income_sections(part))
        | {
            "net_income": [str(amount) for amount in part.net_income],
            "margin_basis_points": [str(margin) for margin in part.margin_basis_points],
        }
    )


def _balance_sections(part: reports_pb2.BalanceSheet) -> dict[str, reports_pb2.ReportSection]:
    return {"assets": part.assets, "liabilities": part.liabilities, "equity": part.equity}


def _income_sections(part: reports_pb2.IncomeStatement) -> dict[str, reports_pb2.ReportSection]:
    return {"revenue": part.revenue, "expenses": part.expenses}


def _add_section(table: Table, name: str, section: reports_pb2.ReportSection, money: Money) -> None:
    table.add_row(name.upper(), style="bold")
    for line in section.lines:
        table.add_row("", line.code, line_name(line), *map(money, line.amounts))
    table.add_section()
    table.add_row(f"total {name}", "", "", *map(money, section.totals), style="bold")
    table.add_row()


def _section_records(sections: Mapping[str, reports_pb2.ReportSection]) -> dict[str, Any]:
    return {
        name: {
            "lines": [
                _line_record(line) | {"amounts": [str(amount) for amount in line.amounts]}
                for line in section.lines
            ],
            "totals": [str(amount) for amount in section.totals],
        }
        for name, section in sections.items()
    }


def _section_lines(
    sections: Mapping[str, reports_pb2.ReportSection], periods: Sequence[str]
) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for name, section in sections.items():
        lines += [
            {"kind": "LINE", "section": name.upper()}
            | _line_record(line)
            | _columns(periods, line.amounts)
            for line in section.lines
        ]
        lines.append(_total_line(name, section.totals, periods))
    return lines


def _total_line(section: str, amounts: Sequence[int], periods: Sequence[str]) -> dict[str, Any]:
    about = dict.fromkeys(_line_record(reports_pb2.ReportLine()), "")
    return {"kind": "TOTAL", "section": section.upper()} | about | _columns(periods, amounts)


def _columns(periods: Sequence[str], amounts: Sequence[int]) -> dict[str, str]:
    """Name amounts by their periods; one that is asked for twice has the same amounts twice."""
    return {period: str(amount) for period, amount in zip(periods, amounts, strict=True)}


def _section_columns(periods: Sequence[str]) -> list[str]:
    total = _total_line("", [0] * len(periods), periods)
    return list(unit_record(reports_pb2.BalanceSheet()) | total)


def _line_record(line: reports_pb2.ReportLine) -> dict[str, Any]:
    return {
        "role": role_name(line),
        "type": type_name(line.type),
        "code": line.code,
        "name": line.name,
    }


# Chart


def show_chart(
    output: Output, heading: Heading, found: reports_pb2.GetChartBalancesResponse
) -> None:
    """Print balances as the tree of the chart of accounts."""
    if output.format == "json":
        write_json(
            heading.record()
            | {
                "currencies": [
                    unit_record(part) | {"lines": [_chart_record(line) for line in part.lines]}
                    for part in found.currencies
                ]
            }
        )
    elif output.format == "csv":
        empty = unit_record(reports_pb2.ChartBalances()) | _chart_record(reports_pb2.ChartBalance())
        lines = [
            unit_record(part) | _chart_record(line)
            for part in found.currencies
            for line in part.lines
        ]
        output.records(lines, columns=list(empty))
    else:
        heading.show("Chart of accounts")
        for part in parts_or_hint(found.currencies, heading):
            _print_chart(part)


def _print_chart(part: reports_pb2.ChartBalances) -> None:
    money = money_of(part)
    right = ("accounts", "own", "with all under it")
    table = ruled_table("code", "name", "type", *right, right=right)
    for line in part.lines:
        indent = "  " * line.depth
        table.add_row(
            f"{indent}{line.code}",
            f"{indent}{line_name(line)}",
            type_name(line.type),
            f"{line.accounts:,}",
            money(line.own_balance),
            money(line.total_balance),
        )
    print_table(table)


def _chart_record(line: reports_pb2.ChartBalance) -> dict[str, Any]:
    return {
        "role": role_name(line),
        "code": line.code,
        "name": line.name,
        "type": type_name(line.type),
        "parent": line.parent,
        "depth": line.depth,
        "accounts": line.accounts,
        "own_balance": str(line.own_balance),
        "total_balance": str(line.total_balance),
    }


def _percent(basis_points: int) -> str:
    """Write basis points as percent, exactly: they may be larger than a float can hold."""
    return format_amount(basis_points, "%", 2)

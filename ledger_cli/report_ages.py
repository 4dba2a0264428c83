"""Ageing and settlement reports as tables, JSON or CSV."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import click
from rich.text import Text

from ledger.v1 import reports_pb2
from ledger_cli.output import (
    Output,
    console,
    full_time,
    printable,
    short_time,
    type_name,
    write_json,
)
from ledger_cli.report_parts import (
    Heading,
    money_of,
    parts_or_hint,
    print_table,
    ruled_table,
    unit_record,
)
from ledger_core.money import format_amount

# Ageing


@dataclass
class Ageing:
    """Pages of accounts by age, added up. ``limit``: how many accounts to keep; None: all."""

    limit: int | None
    bucket_days: Sequence[int] = ()
    lines: list[reports_pb2.AgeingLine] = field(default_factory=list)
    accounts: int = 0
    _sums: dict[tuple[str, str, int], list[int]] = field(default_factory=dict)
    """By currency, type and exponent: the sums by age, then that of the balances."""

    @property
    def left_out(self) -> int:
        """How many accounts are counted, but not kept."""
        return self.accounts - len(self.lines)

    def add(self, page: reports_pb2.ListAgeingResponse) -> None:
        """Take a page in."""
        self.bucket_days = list(page.bucket_days)
        self.accounts += len(page.lines)
        for line in page.lines:
            if self.limit is None or len(self.lines) < self.limit:
                self.lines.append(line)
            key = (line.currency, type_name(line.type), line.currency_exponent)
            sums = self._sums.setdefault(key, [0] * (len(line.amounts) + 1))
            for index, amount in enumerate((*line.amounts, line.balance)):
                sums[index] += amount

    def totals(self) -> list["AgeingTotal"]:
        """Return the sums by currency and type."""
        return [
            AgeingTotal(*key, amounts=amounts, balance=balance)
            for key, (*amounts, balance) in sorted(self._sums.items())
        ]


@dataclass(frozen=True)
class AgeingTotal:
    """What all accounts of a currency and a type have, by age."""

    currency: str
    type: str
    exponent: int
    amounts: list[int]
    balance: int


def show_ageing(output: Output, heading: Heading, found: Ageing) -> None:
    """Print accounts by age, and their sums."""
    buckets = bucket_names(found.bucket_days)
    if output.format == "json":
        write_json(
            heading.record()
            | {
                "bucket_days": list(found.bucket_days),
                "accounts": found.accounts,
                "lines": [_ageing_record(line) for line in found.lines],
                "totals": [_ageing_total_record(total) for total in found.totals()],
            }
        )
    elif output.format == "csv":
        empty = {"kind": ""} | _ageing_record(reports_pb2.AgeingLine())
        del empty["amounts"]
        columns = [*empty, *buckets]
        lines = [{"kind": "LINE"} | _ageing_record(line) for line in found.lines]
        totals = [{"kind": "TOTAL"} | _ageing_total_record(total) for total in found.totals()]
        rows = [_bucket_columns(row, buckets) for row in [*lines, *totals]]
        output.records([dict.fromkeys(columns, "") | row for row in rows], columns=columns)
    else:
        heading.show("Ageing")
        _print_ageing(found, buckets)


def _print_ageing(found: Ageing, buckets: Sequence[str]) -> None:
    if not found.accounts:
        click.echo("\nNo account that was asked about has a balance.")
        return
    right = ("balance", *buckets)
    table = ruled_table("account", "name", "code", "type", *right, right=right)
    for line in found.lines:
        table.add_row(
            line.account_id,
            printable(line.name),
            line.code,
            type_name(line.type),
            *map(money_of(line), (line.balance, *line.amounts)),
        )
    if found.left_out:
        table.add_row(f"… {found.left_out:,} more", style="dim")
    table.add_section()
    for total in found.totals():
        money = partial(format_amount, currency=total.currency, exponent=total.exponent)
        sums = map(money, (total.balance, *total.amounts))
        table.add_row("total", "", "", total.type, *sums, style="bold")
    print_table(table)


def bucket_names(days: Sequence[int]) -> list[str]:
    """Name buckets by the ages, in days, that they hold: ``0-30``, ``30-60``, ``over 60``."""
    starts = [0, *days]
    return [
        *(f"{start}-{end} days" for start, end in zip(starts, days, strict=False)),
        *([f"over {days[-1]} days"] if days else []),
    ]


def _bucket_columns(row: dict[str, Any], buckets: Sequence[str]) -> dict[str, Any]:
    amounts = row.pop("amounts")
    return row | dict(zip(buckets, amounts, strict=True))


def _ageing_record(line: reports_pb2.AgeingLine) -> dict[str, Any]:
    return {
        "account_id": line.account_id,
        "name": line.name,
        "code": line.code,
        "type": type_name(line.type),
        "currency": line.currency,
        "currency_exponent": line.currency_exponent,
        "balance": str(line.balance),
        "amounts": [str(amount) for amount in line.amounts],
    }


def _ageing_total_record(total: AgeingTotal) -> dict[str, Any]:
    return {
        "type": total.type,
        "currency": total.currency,
        "currency_exponent": total.exponent,
        "balance": str(total.balance),
        "amounts": [str(amount) for amount in total.amounts],
    }


# Settlement


def show_settlement(
    output: Output,
    heading: Heading,
    found: reports_pb2.GetSettlementReportResponse,
    start: datetime | None,
    end: datetime | None,
) -> None:
    """Print what is pending, and how pending transactions ended."""
    records = [
        unit_record(part) | _settlement_record(part, found.bucket_days) for part in found.currencies
    ]
    if output.format == "json":
        about = {"ledger": heading.record()["ledger"]}
        write_json(about | {"bucket_days": list(found.bucket_days), "currencies": records})
    elif output.format == "csv":
        empty = reports_pb2.SettlementReport(pending_by_age=[0] * (len(found.bucket_days) + 1))
        output.records(
            records, columns=list(unit_record(empty) | _settlement_record(empty, found.bucket_days))
        )
    else:
        heading.show("Settlement")
        days = f"ended {_days(start, end)}"
        for part in parts_or_hint(found.currencies, heading):
            console().print()
            output.fields(_settlement_fields(part, found.bucket_days, days))


def _settlement_fields(
    part: reports_pb2.SettlementReport, bucket_days: Sequence[int], days: str
) -> dict[str, str | Text]:
    at_least = "at least " if part.pending_truncated else ""
    amount = money_of(part)(part.pending_amount)
    fields: dict[str, str | Text] = {
        "currency": Text(part.currency, style="bold"),
        "pending now": f"{at_least}{_transactions(part.pending_transactions)}, {amount}",
    }
    for name, count in zip(bucket_names(bucket_days), part.pending_by_age, strict=False):
        fields[f"  {name}"] = f"{count:,}"
    if part.HasField("oldest_pending_time"):
        oldest = short_time(part.oldest_pending_time)
        fields["oldest"] = f"{oldest} ({part.oldest_pending_transaction_id})"
    fields[days] = (
        f"{part.settled_transactions:,} settled, {part.cancelled_transactions:,} cancelled, "
        f"{part.expired_transactions:,} expired"
    )
    if part.HasField("settle_median_ms"):
        fields["time to settle"] = (
            f"median {_duration(part.settle_median_ms)}, 95 % within "
            f"{_duration(part.settle_p95_ms)}, longest {_duration(part.settle_max_ms)}"
        )
    return fields


def _settlement_record(
    part: reports_pb2.SettlementReport, bucket_days: Sequence[int]
) -> dict[str, Any]:
    settled = part.HasField("settle_median_ms")
    return {
        "pending_transactions": part.pending_transactions,
        "pending_amount": str(part.pending_amount),
        "pending_by_age": dict(zip(bucket_names(bucket_days), part.pending_by_age, strict=True)),
        "pending_truncated": part.pending_truncated,
        "oldest_pending_time": full_time(part.oldest_pending_time),
        "oldest_pending_transaction_id": part.oldest_pending_transaction_id,
        "settled_transactions": part.settled_transactions,
        "cancelled_transactions": part.cancelled_transactions,
        "expired_transactions": part.expired_transactions,
        "settle_median_ms": part.settle_median_ms if settled else None,
        "settle_p95_ms": part.settle_p95_ms if settled else None,
        "settle_max_ms": part.settle_max_ms if settled else None,
    }


def _transactions(count: int) -> str:
    return "1 transaction" if count == 1 else f"{count:,} transactions"


def _days(start: datetime | None, end: datetime | None) -> str:
    last = f"{end.astimezone(UTC):%Y-%m-%d}" if end else "today"
    if start is None:
        return f"in the 30 days to {last}"
    return f"from {start.astimezone(UTC):%Y-%m-%d} to {last}"


def _duration(duration_ms: int) -> str:
    """Write a duration for people, in the largest unit that leaves at least two digits."""
    for unit, size_ms in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000)):
        if duration_ms >= 2 * size_ms:
            return f"{duration_ms / size_ms:.1f} {unit}"
    return f"{duration_ms} ms"

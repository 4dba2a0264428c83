"""Results as tables for people, JSON or CSV for programs.

Tables show amounts with their currency (``12.50 USD``). JSON and CSV have minor units; in JSON
amounts are strings, because JSON numbers lose digits above 2**53.
"""

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ledger.v1 import ledger_pb2
from ledger_core.money import format_amount

FORMATS = ("table", "json", "csv")
WIDTH_WITHOUT_TERMINAL = 240
"""Tables in files and pipes keep their whole lines: an id cut in two is of no use."""

_STATUS_STYLES = {"SETTLED": "green", "PENDING": "yellow", "CANCELLED": "dim", "EXPIRED": "dim"}


def console(*, stderr: bool = False) -> Console:
    """Return a console that cuts no lines short in files and pipes."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDTH_WITHOUT_TERMINAL
    return Console(stderr=stderr, width=width, highlight=False, emoji=False, markup=False)


def printable(text: str) -> str:
    """Replace what could steer a terminal: users choose descriptions."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


@dataclass(frozen=True)
class Output:
    """Prints results on stdout in the chosen format."""

    format: str

    def account(self, account: ledger_pb2.Account) -> None:
        """Print one account."""
        if self.format == "table":
            self.fields(_account_fields(account))
        else:
            self.record(account_record(account))

    def accounts(self, accounts: Iterable[ledger_pb2.Account]) -> None:
        """Print a list of accounts."""
        if self.format == "table":
            balances = ("available", "settled")
            table = new_table("id", "name", "code", "type", "state", *balances, right=balances)
            for item in accounts:
                money = partial(
                    format_amount, currency=item.currency, exponent=item.currency_exponent
                )
                table.add_row(
                    item.id,
                    printable(item.name),
                    item.code,
                    type_name(item.type),
                    state_name(item.state),
                    money(item.available_balance),
                    money(item.settled_balance),
                )
            console().print(table)
        else:
            self.records(
                [account_record(item) for item in accounts],
                columns=list(_flat(account_record(ledger_pb2.Account()))),
            )

    def ledger(self, ledger: ledger_pb2.Ledger) -> None:
        """Print one ledger with its chart."""
        if self.format != "table":
            self.record(ledger_record(ledger))
            return
        self.fields(_ledger_fields(ledger))
        if ledger.chart:
            table = new_table("code", "type", "name", "parent")
            for line in ledger.chart:
                table.add_row(line.code, type_name(line.type), printable(line.name), line.parent)
            console().print()
            console().print(table)

    def ledgers(self, ledgers: Iterable[ledger_pb2.Ledger]) -> None:
        """Print a list of ledgers, without their charts."""
        if self.format == "table":
            table = new_table("name", "currencies", "description")
            for item in ledgers:
                table.add_row(item.name, _currencies(item), printable(item.description))
            console().print(table)
        else:
            self.records(
                [ledger_record(item) for item in ledgers],
                columns=list(_flat(ledger_record(ledger_pb2.Ledger()))),
            )

    def transaction(self, transaction: ledger_pb2.Transaction) -> None:
        """Print one transaction."""
        if self.format == "table":
            self.fields(_transaction_fields(transaction))
        else:
            self.record(transaction_record(transaction))

    def transactions(self, transactions: Iterable[ledger_pb2.Transaction]) -> None:
        """Print a list of transactions."""
        if self.format == "table":
            table = new_table("id", "created", "amount", "status", "description", right={"amount"})
            for item in transactions:
                table.add_row(
                    item.id,
                    short_time(item.create_time),
                    _amount_text(item),
                    status_text(item.status),
                    printable(item.description),
                )
            console().print(table)
        else:
            self.records(
                [transaction_record(item) for item in transactions],
                columns=list(_flat(transaction_record(ledger_pb2.Transaction()))),
            )

    def record(self, record: dict[str, Any]) -> None:
        """Print one record as JSON or CSV."""
        if self.format == "json":
            write_json(record)
        else:
            self.records([record])

    def records(self, records: Sequence[dict[str, Any]], columns: Sequence[str] = ()) -> None:
        """Print records as JSON or CSV; ``columns`` are the CSV heading of an empty list."""
        if self.format == "json":
            write_json(records)
            return
        flat = [_flat(record) for record in records]
        writer = csv.DictWriter(
            sys.stdout, list(flat[0]) if flat else list(columns), lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(flat)

    def fields(self, fields: dict[str, str | Text]) -> None:
        """Print names and values in two columns."""
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in fields.items():
            grid.add_row(name, value)
        console().print(grid)


def new_table(*columns: str, right: Iterable[str] = ()) -> Table:
    """Return an empty table; amounts and other numbers go to the ``right``."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def write_json(value: object) -> None:
    """Print JSON on stdout."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def account_record(account: ledger_pb2.Account) -> dict[str, Any]:
    """Return an account as plain data, amounts as strings."""
    return {
        "id": account.id,
        "ledger": account.ledger,
        "code": account.code,
        "name": account.name,
        "type": type_name(account.type),
        "state": state_name(account.state),
        "currency": account.currency,
        "currency_exponent": account.currency_exponent,
        "available_balance": str(account.available_balance),
        "settled_balance": str(account.settled_balance),
        "debits_posted": str(account.debits_posted),
        "credits_posted": str(account.credits_posted),
        "debits_pending": str(account.debits_pending),
        "credits_pending": str(account.credits_pending),
        "pending_transactions": account.pending_transactions,
        "version": account.version,
        "minimum": str(account.limits.minimum) if account.limits.HasField("minimum") else None,
        "maximum": str(account.limits.maximum) if account.limits.HasField("maximum") else None,
        "metadata": dict(sorted(account.metadata.items())),
        "revision": account.revision,
        "create_time": full_time(account.create_time),
        "update_time": full_time(account.update_time),
    }


def ledger_record(ledger: ledger_pb2.Ledger) -> dict[str, Any]:
    """Return a ledger as plain data."""
    return {
        "name": ledger.name,
        "description": ledger.description,
        "currencies": {item.code: item.exponent for item in ledger.currencies},
        "chart": [
            {
                "code": line.code,
                "type": type_name(line.type),
                "name": line.name,
                "parent": line.parent,
            }
            for line in ledger.chart
        ],
        "revision": ledger.revision,
        "create_time": full_time(ledger.create_time),
        "update_time": full_time(ledger.update_time),
    }


def transaction_record(transaction: ledger_pb2.Transaction) -> dict[str, Any]:
    """Return a transaction as plain data, amounts as strings."""
    refusal = None
    if transaction.HasField("refusal"):
        refusal = {
            "reason": transaction.refusal.reason,
            "message": transaction.refusal.message,
            "entry_index": transaction.refusal.entry_index,
            "account_id": transaction.refusal.account_id,
            "required_amount": str(transaction.refusal.required_amount),
            "available_amount": str(transaction.refusal.available_amount),
        }
    return {
        "id": transaction.id,
        "account_id": transaction.account_id,
        "ledger": transaction.ledger,
        "amount": str(transaction.amount),
        "currency": transaction.currency,
        "currency_exponent": transaction.currency_exponent,
        "status": status_name(transaction.status),
        "description": transaction.description,
        "request_id": transaction.request_id,
        "external_reference": transaction.external_reference,
        "actor": transaction.actor,
        "metadata": dict(sorted(transaction.metadata.items())),
        "settled_amount": str(transaction.settled_amount),
        "reversal_of": transaction.reversal_of,
        "reversed_amounts": [str(amount) for amount in transaction.reversed_amounts],
        "expire_time": full_time(transaction.expire_time),
        "effective_time": full_time(transaction.effective_time),
        "create_time": full_time(transaction.create_time),
        "update_time": full_time(transaction.update_time),
        "refusal": refusal,
        "entries": [
            {
                "account_id": entry.account_id,
                "direction": direction_name(entry.direction),
                "amount": str(entry.amount),
                "currency": entry.currency,
                "currency_exponent": entry.currency_exponent,
            }
            for entry in transaction.entries
        ],
    }


def status_name(status: ledger_pb2.TransactionStatus.ValueType) -> str:
    """Name a status as people write it: ``SETTLED``."""
    return _word(ledger_pb2.TransactionStatus.Name(status), "TRANSACTION_STATUS_")


def type_name(value: ledger_pb2.AccountType.ValueType) -> str:
    """Name a type as people write it: ``LIABILITY``."""
    return _word(ledger_pb2.AccountType.Name(value), "ACCOUNT_TYPE_")


def state_name(value: ledger_pb2.AccountState.ValueType) -> str:
    """Name a state as people write it: ``OPEN``."""
    return _word(ledger_pb2.AccountState.Name(value), "ACCOUNT_STATE_")


def direction_name(value: ledger_pb2.Direction.ValueType) -> str:
    """Name a side as people write it: ``DEBIT``."""
    return _word(ledger_pb2.Direction.Name(value), "DIRECTION_")


def status_text(status: ledger_pb2.TransactionStatus.ValueType) -> Text:
    """Name a status, in its colour."""
    name = status_name(status)
    return Text(name, style=_STATUS_STYLES.get(name, "red"))


def full_time(timestamp: Timestamp) -> str:
    """RFC 3339 in UTC with microseconds; empty if not set."""
    if not timestamp.seconds and not timestamp.nanos:
        return ""
    return timestamp.ToDatetime(tzinfo=UTC).isoformat(timespec="microseconds")


def short_time(timestamp: Timestamp) -> str:
    """Return the time in UTC to the second, for tables; empty if not set."""
    if not timestamp.seconds and not timestamp.nanos:
        return ""
    moment: datetime = timestamp.ToDatetime(tzinfo=UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """Fit a record into one line of CSV: of nested data, the reason of a refusal is kept."""
    flat = {
        name: _flat_value(value)
        for name, value in record.items()
        if name not in ("entries", "refusal", "chart")
    }
    if "refusal" in record:
        flat["refusal_reason"] = record["refusal"]["reason"] if record["refusal"] else ""
    return flat


def _flat_value(value: Any) -> Any:
    match value:
        case dict():
            return ";".join(f"{key}={item}" for key, item in value.items())
        case list() if all(isinstance(item, str) for item in value):
            return ";".join(value)
        case _:
            return value


def _account_fields(account: ledger_pb2.Account) -> dict[str, str | Text]:
    def money(amount: int) -> str:
        return format_amount(amount, account.currency, account.currency_exponent)

    kind, state = type_name(account.type), state_name(account.state)
    fields: dict[str, str | Text] = {"account": Text(account.id, style="bold")}
    if account.name:
        fields["name"] = printable(account.name)
    if account.code:
        fields["code"] = account.code
    fields |= {
        "available": Text(money(account.available_balance), style="bold"),
        "settled": money(account.settled_balance),
        "pending": (
            f"{money(account.debits_pending)} out, {money(account.credits_pending)} in "
            f"({account.pending_transactions} transactions)"
        ),
        "ledger": f"{printable(account.ledger)}, {kind}, {state}",
    }
    if _limits_text(account) != f"at least {money(0)}":
        fields["limits"] = _limits_text(account) or "none"
    if account.metadata:
        fields["metadata"] = _pairs(account.metadata)
    fields["created"] = short_time(account.create_time)
    fields["updated"] = f"{short_time(account.update_time)} (version {account.version})"
    return fields


def _limits_text(account: ledger_pb2.Account) -> str:
    parts = []
    for name, word in (("minimum", "at least"), ("maximum", "at most")):
        if account.limits.HasField(name):  # type: ignore[arg-type]
            amount = getattr(account.limits, name)
            shown = format_amount(amount, account.currency, account.currency_exponent)
            parts.append(f"{word} {shown}")
    return ", ".join(parts)


def _ledger_fields(ledger: ledger_pb2.Ledger) -> dict[str, str | Text]:
    fields: dict[str, str | Text] = {"ledger": Text(ledger.name, style="bold")}
    if ledger.description:
        fields["description"] = printable(ledger.description)
    fields["currencies"] = _currencies(ledger)
    fields["chart"] = f"{len(ledger.chart)} lines" if ledger.chart else "none"
    fields["revision"] = str(ledger.revision)
    if ledger.create_time.seconds:
        fields["created"] = short_time(ledger.create_time)
        fields["updated"] = short_time(ledger.update_time)
    return fields


def _currencies(ledger: ledger_pb2.Ledger) -> str:
    return ", ".join(f"{item.code} ({item.exponent} digits)" for item in ledger.currencies)


def _pairs(metadata: Mapping[str, str]) -> str:
    return printable(", ".join(f"{key}={value}" for key, value in sorted(metadata.items())))


def _amount_text(transaction: ledger_pb2.Transaction) -> str:
    """Show what was asked for; of a transaction with entries, the sum of its debits."""
    if transaction.amount or not transaction.entries:
        return format_amount(
            transaction.amount, transaction.currency, transaction.currency_exponent
        )
    sums: dict[tuple[str, int], int] = {}
    for entry in transaction.entries:
        if entry.direction == ledger_pb2.DIRECTION_DEBIT:
            unit = (entry.currency, entry.currency_exponent)
            sums[unit] = sums.get(unit, 0) + entry.amount
    return ", ".join(format_amount(amount, *unit) for unit, amount in sums.items())


def _transaction_fields(transaction: ledger_pb2.Transaction) -> dict[str, str | Text]:
    fields: dict[str, str | Text] = {
        "transaction": Text(transaction.id or "none (a dry run)", style="bold"),
        "account": transaction.account_id,
        "amount": Text(_amount_text(transaction), style="bold"),
        "status": status_text(transaction.status),
    }
    if transaction.HasField("refusal"):
        fields["refused"] = printable(transaction.refusal.message)
    if transaction.settled_amount:
        fields["settled"] = format_amount(
            transaction.settled_amount, transaction.currency, transaction.currency_exponent
        )
    if transaction.reversal_of:
        fields["reverses"] = transaction.reversal_of
    fields["description"] = printable(transaction.description)
    reversed_amounts = transaction.reversed_amounts or [0] * len(transaction.entries)
    for number, entry in enumerate(transaction.entries):
        direction = direction_name(entry.direction).lower()
        unit = (entry.currency, entry.currency_exponent)
        text = f"{direction:6} {entry.account_id}  {format_amount(entry.amount, *unit)}"
        if reversed_amounts[number]:
            text += f" ({format_amount(reversed_amounts[number], *unit)} reversed)"
        fields[f"entry {number}"] = text
    if transaction.external_reference:
        fields["reference"] = printable(transaction.external_reference)
    if transaction.actor:
        fields["actor"] = printable(transaction.actor)
    if transaction.metadata:
        fields["metadata"] = _pairs(transaction.metadata)
    fields["request id"] = printable(transaction.request_id)
    if transaction.HasField("expire_time"):
        fields["expires"] = short_time(transaction.expire_time)
    if transaction.HasField("create_time"):
        fields["created"] = short_time(transaction.create_time)
        fields["updated"] = short_time(transaction.update_time)
    return fields


def _word(name: str, prefix: str) -> str:
    """Name an enumeration's value without the prefix that protobuf's scoping asks for."""
    return name.removeprefix(prefix)

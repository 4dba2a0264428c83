"""Results as tables for people, JSON or CSV for programs.

Tables show amounts with their currency (``12.50 USD``). JSON and CSV have minor units; in JSON
amounts are strings, because JSON numbers lose digits above 2**53.
"""

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
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
                    _seconds(item.create_time),
                    format_amount(item.amount, item.currency, item.currency_exponent),
                    _status_text(item.status),
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
        "type": _word(ledger_pb2.AccountType.Name(account.type), "ACCOUNT_TYPE_"),
        "state": _word(ledger_pb2.AccountState.Name(account.state), "ACCOUNT_STATE_"),
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
        "create_time": _time(account.create_time),
        "update_time": _time(account.update_time),
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
        "effective_time": _time(transaction.effective_time),
        "create_time": _time(transaction.create_time),
        "update_time": _time(transaction.update_time),
        "refusal": refusal,
        "entries": [
            {
                "account_id": entry.account_id,
                "direction": _word(ledger_pb2.Direction.Name(entry.direction), "DIRECTION_"),
                "amount": str(entry.amount),
                "currency": entry.currency,
            }
            for entry in transaction.entries
        ],
    }


def status_name(status: ledger_pb2.TransactionStatus.ValueType) -> str:
    """Name a status as people write it: ``SETTLED``."""
    return _word(ledger_pb2.TransactionStatus.Name(status), "TRANSACTION_STATUS_")


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """Fit a record into one line of CSV: of nested data, the reason of a refusal is kept."""
    if "entries" not in record:
        return record
    flat = {name: value for name, value in record.items() if name not in ("entries", "refusal")}
    flat["refusal_reason"] = record["refusal"]["reason"] if record["refusal"] else ""
    return flat


def _account_fields(account: ledger_pb2.Account) -> dict[str, str | Text]:
    def money(amount: int) -> str:
        return format_amount(amount, account.currency, account.currency_exponent)

    kind = _word(ledger_pb2.AccountType.Name(account.type), "ACCOUNT_TYPE_")
    state = _word(ledger_pb2.AccountState.Name(account.state), "ACCOUNT_STATE_")
    return {
        "account": Text(account.id, style="bold"),
        "available": Text(money(account.available_balance), style="bold"),
        "settled": money(account.settled_balance),
        "pending": (
            f"{money(account.debits_pending)} out, {money(account.credits_pending)} in "
            f"({account.pending_transactions} transactions)"
        ),
        "ledger": f"{printable(account.ledger)}, {kind}, {state}",
        "created": _seconds(account.create_time),
        "updated": f"{_seconds(account.update_time)} (version {account.version})",
    }


def _transaction_fields(transaction: ledger_pb2.Transaction) -> dict[str, str | Text]:
    def money(amount: int) -> str:
        return format_amount(amount, transaction.currency, transaction.currency_exponent)

    fields: dict[str, str | Text] = {
        "transaction": Text(transaction.id, style="bold"),
        "account": transaction.account_id,
        "amount": Text(money(transaction.amount), style="bold"),
        "status": _status_text(transaction.status),
    }
    if transaction.HasField("refusal"):
        fields["refused"] = printable(transaction.refusal.message)
    fields["description"] = printable(transaction.description)
    for number, entry in enumerate(transaction.entries):
        direction = _word(ledger_pb2.Direction.Name(entry.direction), "DIRECTION_").lower()
        amount = format_amount(entry.amount, entry.currency, transaction.currency_exponent)
        fields[f"entry {number}"] = f"{direction:6} {entry.account_id}  {amount}"
    fields["request id"] = printable(transaction.request_id)
    fields["created"] = _seconds(transaction.create_time)
    fields["updated"] = _seconds(transaction.update_time)
    return fields


def _status_text(status: ledger_pb2.TransactionStatus.ValueType) -> Text:
    name = status_name(status)
    return Text(name, style=_STATUS_STYLES.get(name, "red"))


def _word(name: str, prefix: str) -> str:
    """Name an enumeration's value without the prefix that protobuf's scoping asks for."""
    return name.removeprefix(prefix)


def _time(timestamp: Timestamp) -> str:
    """RFC 3339 in UTC with microseconds; empty if not set."""
    if not timestamp.seconds and not timestamp.nanos:
        return ""
    return timestamp.ToDatetime(tzinfo=UTC).isoformat(timespec="microseconds")


def _seconds(timestamp: Timestamp) -> str:
    moment: datetime = timestamp.ToDatetime(tzinfo=UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S")

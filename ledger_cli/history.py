"""What was, shown: balances, entries, statements, and the lives of accounts and transactions."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Protocol, TypeVar

from rich.text import Text

from ledger.v1 import ledger_pb2
from ledger_cli.output import (
    Output,
    console,
    direction_name,
    full_time,
    new_table,
    printable,
    short_time,
    status_name,
    status_text,
    transaction_record,
    type_name,
    write_json,
)
from ledger_core.money import format_amount

_EVENT_STYLES = {"CHANGE_REFUSED": "red", "TRANSACTION_REFUSED": "red"}
_MOVES_MONEY = (ledger_pb2.ENTRY_KIND_POSTED, ledger_pb2.ENTRY_KIND_SETTLED)


PageT = TypeVar("PageT", bound="_Page")


class _Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


def pages(fetch: Callable[..., PageT]) -> Iterator[PageT]:
    """Go through all pages, the first one included; ``fetch`` takes a ``page_token``."""
    page_token = ""
    while True:
        page = fetch(page_token=page_token)
        yield page
        page_token = page.next_page_token
        if not page_token:
            return


# Balances


def show_balance(output: Output, balance: ledger_pb2.Balance, as_of: datetime | None) -> None:
    """Print the balances of an account at a moment (None: now)."""
    if output.format != "table":
        moment = as_of.isoformat(timespec="microseconds") if as_of else ""
        output.record(balance_record(balance) | {"as_of_time": moment})
        return
    money = _money(balance.currency, balance.currency_exponent)
    fields: dict[str, str | Text] = {
        "account": Text(balance.account_id, style="bold"),
        "as of": as_of.strftime("%Y-%m-%d %H:%M:%S.%f") if as_of else "now",
        "available": Text(money(balance.available_balance), style="bold"),
        "settled": money(balance.settled_balance),
        "posted": f"{money(balance.debits_posted)} debit, {money(balance.credits_posted)} credit",
        "pending": (
            f"{money(balance.debits_pending)} debit, {money(balance.credits_pending)} credit"
        ),
        "ledger": f"{printable(balance.ledger)}, {type_name(balance.type)}",
        "last entry": _last_entry(balance),
    }
    output.fields(fields)


def balance_record(balance: ledger_pb2.Balance) -> dict[str, Any]:
    """Return balances as plain data, amounts as strings."""
    return {
        "account_id": balance.account_id,
        "ledger": balance.ledger,
        "type": type_name(balance.type),
        "currency": balance.currency,
        "currency_exponent": balance.currency_exponent,
        "settled_balance": str(balance.settled_balance),
        "available_balance": str(balance.available_balance),
        "debits_posted": str(balance.debits_posted),
        "credits_posted": str(balance.credits_posted),
        "debits_pending": str(balance.debits_pending),
        "credits_pending": str(balance.credits_pending),
        "version": balance.version,
        "update_time": full_time(balance.update_time),
    }


def _last_entry(balance: ledger_pb2.Balance) -> str:
    if not balance.version:
        return "none"
    return f"{short_time(balance.update_time)} (version {balance.version})"


# Entries


def show_entries(
    output: Output, entries: Sequence[ledger_pb2.AccountEntry], currency: str, exponent: int
) -> None:
    """Print entries of an account, whose amounts are in ``currency``."""
    if output.format != "table":
        output.records(
            [entry_record(entry) for entry in entries],
            columns=list(entry_record(ledger_pb2.AccountEntry())),
        )
        return
    money = _money(currency, exponent)
    amounts = ("debit", "credit", "balance", "available")
    table = new_table(
        *("number", "recorded", "transaction", "kind", *amounts, "description"),
        right=("number", *amounts),
    )
    for entry in entries:
        table.add_row(
            str(entry.sequence),
            short_time(entry.create_time),
            entry.transaction_id or "undecided",
            kind_name(entry.kind),
            *_amounts(entry, money),
            printable(entry.description),
            style=_style(entry),
        )
    console().print(table)


def entry_record(entry: ledger_pb2.AccountEntry) -> dict[str, Any]:
    """Return an entry as plain data, amounts as strings."""
    return {
        "sequence": entry.sequence,
        "kind": kind_name(entry.kind),
        "direction": direction_name(entry.direction),
        "amount": str(entry.amount),
        "settled_balance": str(entry.settled_balance),
        "available_balance": str(entry.available_balance),
        "debits_posted": str(entry.debits_posted),
        "credits_posted": str(entry.credits_posted),
        "debits_pending": str(entry.debits_pending),
        "credits_pending": str(entry.credits_pending),
        "create_time": full_time(entry.create_time),
        "effective_time": full_time(entry.effective_time),
        "transaction_id": entry.transaction_id,
        "transaction_status": status_name(entry.transaction_status),
        "description": entry.description,
        "external_reference": entry.external_reference,
        "request_id": entry.request_id,
        "actor": entry.actor,
        "reversal_of": entry.reversal_of,
    }


def kind_name(kind: ledger_pb2.EntryKind.ValueType) -> str:
    """Name what an entry did as people write it: ``POSTED``."""
    return ledger_pb2.EntryKind.Name(kind).removeprefix("ENTRY_KIND_")


def _amounts(entry: ledger_pb2.AccountEntry, money: Callable[[int], str]) -> list[str]:
    """Return debit, credit, balance and available; one of the first two is empty."""
    amount = money(entry.amount)
    sides = ["", amount]
    if entry.direction == ledger_pb2.DIRECTION_DEBIT:
        sides.reverse()
    return [*sides, money(entry.settled_balance), money(entry.available_balance)]


def _style(entry: ledger_pb2.AccountEntry) -> str:
    """Dim what did not move the settled balance."""
    return "" if entry.kind in _MOVES_MONEY else "dim"


# Statements


@dataclass(frozen=True)
class Statement:
    """The statement of an account for a period; ``entries`` may be the first ones only."""

    opening: ledger_pb2.Balance
    closing: ledger_pb2.Balance
    entries: Sequence[ledger_pb2.AccountEntry]
    start: datetime | None = None
    end: datetime | None = None

    @property
    def left_out(self) -> int:
        """How many entries of the period are not here: their numbers have no gaps."""
        return self.closing.version - self.opening.version - len(self.entries)


def show_statement(output: Output, statement: Statement) -> None:
    """Print a statement: opening balance, entries, closing balance."""
    if output.format == "json":
        write_json(
            {
                "account_id": statement.opening.account_id,
                "ledger": statement.opening.ledger,
                "currency": statement.opening.currency,
                "currency_exponent": statement.opening.currency_exponent,
                "start_time": _iso(statement.start),
                "end_time": _iso(statement.end),
                "opening_balance": balance_record(statement.opening),
                "entries": [entry_record(entry) for entry in statement.entries],
                "entries_left_out": statement.left_out,
                "closing_balance": balance_record(statement.closing),
            }
        )
    elif output.format == "csv":
        output.records(
            [
                _balance_line("OPENING", statement.opening, statement.start),
                *(_entry_line(entry) for entry in statement.entries),
                _balance_line("CLOSING", statement.closing, statement.end),
            ]
        )
    else:
        _print_statement(output, statement)


def _print_statement(output: Output, statement: Statement) -> None:
    opening, closing = statement.opening, statement.closing
    first, last = _text(statement.start) or "the beginning", _text(statement.end) or "now"
    output.fields(
        {
            "account": Text(opening.account_id, style="bold"),
            "ledger": f"{printable(opening.ledger)}, {type_name(opening.type)}",
            "period": f"{first} to {last}",
        }
    )
    console().print()
    money = _money(opening.currency, opening.currency_exponent)
    amounts = ("debit", "credit", "balance", "available")
    table = new_table("date", "what", *amounts, "kind", "status", right=amounts)

    def balance_row(name: str, balance: ledger_pb2.Balance, moment: str) -> None:
        shown = (money(balance.settled_balance), money(balance.available_balance))
        table.add_row(moment, name, "", "", *shown, style="bold")

    balance_row("opening balance", opening, _text(statement.start))
    for entry in statement.entries:
        table.add_row(
            short_time(entry.create_time),
            printable(entry.description),
            *_amounts(entry, money),
            kind_name(entry.kind),
            status_text(entry.transaction_status),
            style=_style(entry),
        )
    if statement.left_out > 0:
        table.add_row("", f"… {statement.left_out:,} more entries", style="dim")
    table.add_row(
        "",
        "posted in the period",
        money(closing.debits_posted - opening.debits_posted),
        money(closing.credits_posted - opening.credits_posted),
    )
    balance_row("closing balance", closing, _text(statement.end))
    console().print(table)


def _entry_line(entry: ledger_pb2.AccountEntry) -> dict[str, Any]:
    is_debit = entry.direction == ledger_pb2.DIRECTION_DEBIT
    return {
        "sequence": entry.sequence,
        "create_time": full_time(entry.create_time),
        "kind": kind_name(entry.kind),
        "description": entry.description,
        "debit": str(entry.amount) if is_debit else "",
        "credit": "" if is_debit else str(entry.amount),
        "settled_balance": str(entry.settled_balance),
        "available_balance": str(entry.available_balance),
        "transaction_status": status_name(entry.transaction_status),
        "transaction_id": entry.transaction_id,
        "effective_time": full_time(entry.effective_time),
        "external_reference": entry.external_reference,
        "request_id": entry.request_id,
        "actor": entry.actor,
        "reversal_of": entry.reversal_of,
    }


def _balance_line(
    kind: str, balance: ledger_pb2.Balance, moment: datetime | None
) -> dict[str, Any]:
    line = dict.fromkeys(_entry_line(ledger_pb2.AccountEntry()), "")
    return line | {
        "create_time": _iso(moment),
        "kind": kind,
        "settled_balance": str(balance.settled_balance),
        "available_balance": str(balance.available_balance),
    }


# Lives


def show_events(output: Output, events: Sequence[ledger_pb2.AccountEvent]) -> None:
    """Print what happened to an account, refused attempts included."""
    if output.format != "table":
        records = [event_record(event) for event in events]
        if output.format == "csv":
            records = [
                record | {"changes": _changes(event)}
                for record, event in zip(records, events, strict=True)
            ]
        output.records(records, columns=list(event_record(ledger_pb2.AccountEvent())))
        return
    table = new_table("time", "event", "what", "actor", "request id", "correlation id", "peer")
    for event in events:
        name = event_name(event.kind)
        table.add_row(
            short_time(event.create_time),
            Text(name, style=_EVENT_STYLES.get(name, "")),
            printable(_what(event)),
            printable(event.actor),
            printable(event.request_id),
            printable(event.correlation_id),
            printable(event.peer),
        )
    console().print(table)


def event_record(event: ledger_pb2.AccountEvent) -> dict[str, Any]:
    """Return an event as plain data; numbers in its changes are strings."""
    return {
        "kind": event_name(event.kind),
        "create_time": full_time(event.create_time),
        "request_id": event.request_id,
        "actor": event.actor,
        "correlation_id": event.correlation_id,
        "peer": event.peer,
        "changes": {
            change.field: {"before": _json(change.before), "after": _json(change.after)}
            for change in event.changes
        },
        "reason": event.reason,
        "message": event.message,
        "transaction_id": event.transaction_id,
    }


def event_name(kind: ledger_pb2.AccountEventKind.ValueType) -> str:
    """Name an event as people write it: ``OPENED``."""
    return ledger_pb2.AccountEventKind.Name(kind).removeprefix("ACCOUNT_EVENT_KIND_")


def show_states(
    output: Output,
    transaction: ledger_pb2.Transaction,
    states: Sequence[ledger_pb2.TransactionState],
) -> None:
    """Print a transaction as it is now, and every state that it has been in."""
    if output.format == "json":
        records = [state_record(state) for state in states]
        write_json({"transaction": transaction_record(transaction), "states": records})
        return
    if output.format == "csv":
        output.records(
            [state_record(state) for state in states],
            columns=list(state_record(ledger_pb2.TransactionState())),
        )
        return
    output.transaction(transaction)
    console().print()
    table = new_table("time", "status", "actor", "request id", "correlation id", "peer")
    for state in states:
        table.add_row(
            short_time(state.create_time),
            status_text(state.status),
            printable(state.actor),
            printable(state.request_id) or "the ledger itself",
            printable(state.correlation_id),
            printable(state.peer),
        )
    console().print(table)


def state_record(state: ledger_pb2.TransactionState) -> dict[str, Any]:
    """Return a state of a transaction as plain data."""
    return {
        "status": status_name(state.status),
        "create_time": full_time(state.create_time),
        "request_id": state.request_id,
        "actor": state.actor,
        "correlation_id": state.correlation_id,
        "peer": state.peer,
    }


def _what(event: ledger_pb2.AccountEvent) -> str:
    """Say what was changed, or why what was refused."""
    if not event.reason:
        return _changes(event)
    refused = f" {event.transaction_id}" if event.transaction_id else ""
    tried = f" ({_changes(event)})" if event.changes else ""
    return f"{event.reason}{refused}: {event.message}{tried}"


def _changes(event: ledger_pb2.AccountEvent) -> str:
    return ", ".join(
        f"{change.field}: {change.before or 'null'} → {change.after or 'null'}"
        for change in event.changes
    )


def _json(text: str) -> Any:
    """Read a value that was given as JSON. Numbers become strings, as amounts do everywhere."""
    try:
        return json.loads(text, parse_int=str, parse_float=str) if text else None
    except ValueError:
        return text


def _money(currency: str, exponent: int) -> Callable[[int], str]:
    return partial(format_amount, currency=currency, exponent=exponent)


def _iso(moment: datetime | None) -> str:
    return moment.isoformat(timespec="microseconds") if moment else ""


def _text(moment: datetime | None) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S") if moment else ""

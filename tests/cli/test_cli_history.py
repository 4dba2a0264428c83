"""History on the command line: moments, balances, entries, statements, lives."""

import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click
import pytest
from click.testing import Result
from google.protobuf.timestamp_pb2 import Timestamp

from ledger.v1 import ledger_pb2
from ledger_cli import history, moments
from ledger_cli.options import Parsed
from ledger_cli.output import Output

Run = Callable[..., Result]
Call = Callable[..., Any]

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def read(kind: Parsed[datetime], text: str) -> datetime:
    return kind.convert(text, None, None)


# Moments


@pytest.mark.parametrize(
    ("kind", "moment"),
    [
        (moments.START, "2026-01-31T00:00:00+00:00"),
        (moments.END, "2026-02-01T00:00:00+00:00"),
        (moments.AS_OF, "2026-01-31T23:59:59.999999+00:00"),
    ],
)
def test_a_date_is_a_whole_day_in_utc(kind: Parsed[datetime], moment: str) -> None:
    assert read(kind, "2026-01-31") == datetime.fromisoformat(moment)


@pytest.mark.parametrize("kind", [moments.START, moments.END, moments.AS_OF])
@pytest.mark.parametrize(
    "text", ["2026-01-31T12:00:00.000001Z", "2026-01-31T14:00:00.000001+02:00"]
)
def test_a_time_is_taken_as_it_is(kind: Parsed[datetime], text: str) -> None:
    assert read(kind, text) == datetime(2026, 1, 31, 12, 0, 0, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("yesterday", "must be a date such as 2026-01-31, or a time such as"),
        ("", "must be a date such as"),
        ("31.01.2026", "must be a date such as"),
        ("2026-02-30", "is no date: day is out of range for month"),
        ("2026-13-01", "is no date: month must be in 1..12"),
        ("0000-01-01", "is no date: year 0 is out of range"),
        ("2026-01-31T12:00:00", "must have a time zone, such as +00:00 or Z, or be a date alone"),
        ("2026-01-31 12:00", "must have a time zone"),
        ("0001-01-01T00:00:00+14:00", "is out of range"),
        ("9999-12-31T23:59:59-14:00", "is out of range"),
    ],
)
@pytest.mark.parametrize("kind", [moments.START, moments.END, moments.AS_OF])
def test_what_is_no_moment_is_said_clearly(kind: Parsed[datetime], text: str, said: str) -> None:
    with pytest.raises(click.BadParameter) as error:
        read(kind, text)
    assert error.value.message.startswith(f"{text!r} {said}")


def test_the_last_day_of_all_has_no_day_after_it() -> None:
    assert read(moments.AS_OF, "9999-12-31").year == 9999
    with pytest.raises(click.BadParameter, match="out of range"):
        read(moments.END, "9999-12-31")


# How it is shown


def at(day: int) -> Timestamp:
    moment = Timestamp()
    moment.FromDatetime(datetime(2026, 1, day, tzinfo=UTC))
    return moment


def a_balance(settled: int, version: int, day: int = 1) -> ledger_pb2.Balance:
    return ledger_pb2.Balance(
        account_id="0123456789abcdef",
        ledger="main",
        type=ledger_pb2.ACCOUNT_TYPE_LIABILITY,
        currency="USD",
        currency_exponent=2,
        settled_balance=settled,
        available_balance=settled - 1,
        credits_posted=settled,
        version=version,
        update_time=at(day),
    )


def an_entry(
    sequence: int,
    amount: int,
    settled: int,
    kind: ledger_pb2.EntryKind.ValueType = ledger_pb2.ENTRY_KIND_POSTED,
    status: ledger_pb2.TransactionStatus.ValueType = ledger_pb2.TRANSACTION_STATUS_SETTLED,
) -> ledger_pb2.AccountEntry:
    credit = amount > 0
    return ledger_pb2.AccountEntry(
        sequence=sequence,
        kind=kind,
        direction=ledger_pb2.DIRECTION_CREDIT if credit else ledger_pb2.DIRECTION_DEBIT,
        amount=abs(amount),
        create_time=at(sequence),
        effective_time=at(sequence),
        transaction_id=f"{sequence:032x}",
        transaction_status=status,
        description=f"entry\t{sequence}",
        settled_balance=settled,
        available_balance=settled,
    )


def a_page(
    token: str, closing: ledger_pb2.Balance, *entries: ledger_pb2.AccountEntry
) -> ledger_pb2.GetStatementResponse:
    return ledger_pb2.GetStatementResponse(
        opening_balance=a_balance(1000, 2),
        closing_balance=closing,
        entries=entries,
        next_page_token=token,
    )


THREE = (an_entry(3, 500, 1500), an_entry(4, -200, 1300), an_entry(5, 700, 2000))


def test_pages_are_fetched_until_the_last_or_enough() -> None:
    asked: list[str] = []

    def fetch(page_token: str) -> ledger_pb2.GetStatementResponse:
        asked.append(page_token)
        if page_token == "next":
            return a_page("", a_balance(2000, 5), THREE[2])
        return a_page("next", a_balance(1300, 4), *THREE[:2])

    whole = history.gather_statement(history.pages(fetch), None, None, None)
    assert asked == ["", "next"]
    assert [entry.sequence for entry in whole.entries] == [3, 4, 5]
    assert (whole.opening.settled_balance, whole.closing.settled_balance) == (1000, 2000)
    assert whole.left_out == 0
    asked.clear()
    part = history.gather_statement(history.pages(fetch), 1, None, None)
    assert (asked, len(part.entries), part.left_out) == ([""], 1, 1)


def statement(*entries: ledger_pb2.AccountEntry) -> history.Statement:
    return history.Statement(a_balance(1000, 2), a_balance(2000, 5), entries, NEW_YEAR, None)


def test_a_statement_as_a_table_goes_from_opening_to_closing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    history.show_statement(Output("table"), statement(*THREE))
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert ["period", "2026-01-01 00:00:00 to now"] in rows
    first = next(n for n, row in enumerate(rows) if "opening balance" in row)
    assert rows[first] == ["2026-01-01 00:00:00", "opening balance", "10.00 USD", "9.99 USD"]
    debit = ["2.00 USD", "13.00 USD", "13.00 USD", "POSTED", "SETTLED"]
    assert rows[first + 2] == ["2026-01-04 00:00:00", "entry\N{REPLACEMENT CHARACTER}4", *debit]
    assert rows[first + 4] == ["posted in the period", "0.00 USD", "10.00 USD"]
    assert rows[first + 5] == ["closing balance", "20.00 USD", "19.99 USD"]


def test_a_statement_that_is_cut_short_says_how_many_entries_are_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    history.show_statement(Output("table"), statement(THREE[0]))
    assert "… 2 more entries" in capsys.readouterr().out
    history.show_statement(Output("json"), statement(THREE[0]))
    assert json.loads(capsys.readouterr().out)["entries_left_out"] == 2


def test_a_statement_as_json_has_amounts_as_strings(capsys: pytest.CaptureFixture[str]) -> None:
    history.show_statement(Output("json"), statement(an_entry(3, 2**53 + 1, 2**53 + 1001)))
    shown = json.loads(capsys.readouterr().out)
    assert shown["opening_balance"]["settled_balance"] == "1000"
    assert shown["entries"][0]["amount"] == "9007199254740993"
    assert shown["entries"][0]["direction"] == "CREDIT"
    assert (shown["start_time"], shown["end_time"]) == ("2026-01-01T00:00:00.000000+00:00", "")


def test_a_statement_as_csv_is_one_line_for_each_entry_between_opening_and_closing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    history.show_statement(Output("csv"), statement(*THREE))
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    kinds = ["OPENING", "POSTED", "POSTED", "POSTED", "CLOSING"]
    assert [row["kind"] for row in rows] == kinds
    assert [(row["debit"], row["credit"]) for row in rows[1:-1]] == [
        ("", "500"),
        ("200", ""),
        ("", "700"),
    ]
    assert [row["settled_balance"] for row in rows] == ["1000", "1500", "1300", "2000", "2000"]


def test_events_show_changes_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    changed = ledger_pb2.AccountEvent(
        kind=ledger_pb2.ACCOUNT_EVENT_KIND_UPDATED,
        create_time=at(2),
        actor="ann\x1b[0m",
        changes=[
            ledger_pb2.FieldChange(field="name", before="null", after='"till"'),
            ledger_pb2.FieldChange(field="minimum", before="0", after="9007199254740993"),
        ],
    )
    refused = ledger_pb2.AccountEvent(
        kind=ledger_pb2.ACCOUNT_EVENT_KIND_TRANSACTION_REFUSED,
        create_time=at(1),
        reason="INSUFFICIENT_FUNDS",
        message="has 1.00 USD, needs 2.00",
        transaction_id="f" * 32,
    )
    history.show_events(Output("table"), [changed, refused])
    table = capsys.readouterr().out
    assert 'name: null → "till", minimum: 0 → 9007199254740993' in table
    assert f"INSUFFICIENT_FUNDS {'f' * 32}: has 1.00 USD, needs 2.00" in table
    assert "\x1b" not in table
    history.show_events(Output("json"), [changed, refused])
    events = json.loads(capsys.readouterr().out)
    assert events[0]["changes"] == {
        "name": {"before": None, "after": "till"},
        "minimum": {"before": "0", "after": "9007199254740993"},
    }
    assert [event["kind"] for event in events] == ["UPDATED", "TRANSACTION_REFUSED"]
    history.show_events(Output("csv"), [changed, refused])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert rows[0]["changes"] == 'name: null → "till", minimum: 0 → 9007199254740993'
    assert rows[1]["reason"] == "INSUFFICIENT_FUNDS"


@pytest.mark.parametrize("form", ["csv", "json", "table"])
def test_nothing_happened_in_every_format(capsys: pytest.CaptureFixture[str], form: str) -> None:
    history.show_events(Output(form), [])
    history.show_entries(Output(form), [], "USD", 2)
    history.show_statement(Output(form), statement())
    history.show_states(Output(form), ledger_pb2.ListTransactionStatesResponse())
    assert "Traceback" not in capsys.readouterr().out

"""History on the command line: moments, balances, entries, statements, lives."""

import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import click
import pytest
from click.testing import Result
from google.protobuf.timestamp_pb2 import Timestamp

from ledger.v1 import ledger_pb2
from ledger_cli import history, moments
from ledger_cli.options import Parsed
from ledger_cli.output import Output
from ledger_client.testing import StandaloneLedger

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


THREE = (an_entry(3, 500, 1500), an_entry(4, -200, 1300), an_entry(5, 700, 2000))


def test_pages_are_fetched_up_to_the_last() -> None:
    found = {
        "": ledger_pb2.ListEntriesResponse(entries=THREE[:2], next_page_token="next"),
        "next": ledger_pb2.ListEntriesResponse(next_page_token="last"),
        "last": ledger_pb2.ListEntriesResponse(entries=THREE[2:]),
    }
    listed = history.pages(lambda page_token: found[page_token])
    assert [entry.sequence for page in listed for entry in page.entries] == [3, 4, 5]


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
    in_vain = ledger_pb2.AccountEvent(
        kind=ledger_pb2.ACCOUNT_EVENT_KIND_CHANGE_REFUSED,
        create_time=at(1),
        reason="NAME_TAKEN",
        message="another one has it",
        changes=[ledger_pb2.FieldChange(field="name", before='""', after='"till"')],
    )
    history.show_events(Output("table"), [changed, refused, in_vain])
    table = capsys.readouterr().out
    assert 'name: null → "till", minimum: 0 → 9007199254740993' in table
    assert f"INSUFFICIENT_FUNDS {'f' * 32}: has 1.00 USD, needs 2.00" in table
    assert 'NAME_TAKEN: another one has it (name: "" → "till")' in table
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
    history.show_states(Output(form), ledger_pb2.Transaction(), [])
    assert "Traceback" not in capsys.readouterr().out


# Against a real ledger


@pytest.fixture
def account(call: Call) -> str:
    """An account with a past: a deposit, a partly settled hold, a refusal, a business date."""
    opened = call("accounts", "create", "--actor", "ann", "--correlation-id", "job 7")
    to = ("transactions", "create", "--account-id", opened["id"])
    call(*to, "--amount", "1000", "--settled", "--description", "top-up", "--reference", "o-1")
    hold = call(*to, "--amount", "-300", "--pending", "--description", "hold")["id"]
    call("transactions", "settle", hold, "--amount", "200", "--actor", "bob")
    call(*to, "--amount", "-900", "--settled", "--metadata", "shop=3")
    call(*to, "--amount", "50", "--settled", "--effective-time", "2020-01-05T12:00:00Z")
    return str(opened["id"])


def test_balances_now_and_as_of_a_day(call: Call, account: str) -> None:
    now = call("accounts", "balance", account)
    assert (now["settled_balance"], now["version"], now["as_of_time"]) == ("850", 6, "")
    then = call("accounts", "balance", account, "--as-of", "2020-01-05")
    assert (then["settled_balance"], then["version"]) == ("0", 0)
    assert then["as_of_time"] == "2020-01-05T23:59:59.999999+00:00"
    effective = ("--basis", "effective")
    then = call("accounts", "balance", account, "--as-of", "2020-01-05", *effective)
    assert then["settled_balance"] == "50"
    then = call("accounts", "balance", account, "--as-of", "2020-01-04", *effective)
    assert then["settled_balance"] == "0"


def test_a_statement_leads_from_the_opening_to_the_closing_balance(
    run: Run, call: Call, ledger: StandaloneLedger, account: str
) -> None:
    whole = call("accounts", "statement", account)
    assert whole["opening_balance"]["settled_balance"] == "0"
    assert [(entry["kind"], entry["settled_balance"]) for entry in whole["entries"]] == [
        ("POSTED", "1000"),
        ("PENDING", "1000"),
        ("SETTLED", "800"),
        ("CANCELLED", "800"),
        ("REFUSED", "800"),
        ("POSTED", "850"),
    ]
    assert whole["closing_balance"]["settled_balance"] == "850"
    fourth = whole["entries"][3]["create_time"]
    rest = call("accounts", "statement", account, "--from", fourth)
    assert [entry["sequence"] for entry in rest["entries"]] == [3, 4, 5, 6]
    assert rest["opening_balance"]["settled_balance"] == "1000"
    early = call("accounts", "statement", account, "--to", fourth)
    assert [entry["sequence"] for entry in early["entries"]] == [1, 2]
    assert early["closing_balance"]["available_balance"] == "700"
    cut = run("--gateway", ledger.target, "accounts", "statement", account, "--limit", "2")
    assert "… 4 more entries" in cut.stdout
    assert "Only 2 are shown" in cut.stderr


def test_pages_of_a_statement_are_fetched_as_needed(
    call: Call, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger_cli.accounts.PAGE_SIZE_MAX", 2)
    whole = call("accounts", "statement", account, "--all")
    assert [entry["sequence"] for entry in whole["entries"]] == [1, 2, 3, 4, 5, 6]
    assert whole["entries_left_out"] == 0
    part = call("accounts", "statement", account, "--limit", "3")
    assert [entry["sequence"] for entry in part["entries"]] == [1, 2, 3]
    assert part["entries_left_out"] == 3


def test_entries_in_both_orders(
    run: Run, call: Call, ledger: StandaloneLedger, account: str
) -> None:
    listed = call("accounts", "entries", account)
    assert [entry["sequence"] for entry in listed] == [6, 5, 4, 3, 2, 1]
    assert call("accounts", "entries", account, "--oldest-first") == listed[::-1]
    after = listed[3]["create_time"]
    assert call("accounts", "entries", account, "--from", after) == listed[:4]
    assert call("accounts", "entries", account, "--to", after) == listed[4:]
    shown = run("--gateway", ledger.target, "accounts", "entries", account, "--limit", "1")
    assert "Only 1 are shown" in shown.stderr
    assert "0.50 USD" in shown.stdout


def test_the_life_of_an_account_has_its_refused_attempts(
    run: Run, call: Call, ledger: StandaloneLedger, account: str
) -> None:
    call("accounts", "update", account, "--name", f"till {account}", "--actor", "ann")
    late = ("accounts", "update", account, "--name", "x", "--revision", "0", "--actor", "eve")
    assert run("--gateway", ledger.target, *late).exit_code == 1
    call("accounts", "freeze", account, "--actor", "bob")
    call("accounts", "unfreeze", account, "--actor", "bob")
    events = call("accounts", "events", account)
    assert [(event["kind"], event["actor"]) for event in events] == [
        ("UNFROZEN", "bob"),
        ("FROZEN", "bob"),
        ("CHANGE_REFUSED", "eve"),
        ("UPDATED", "ann"),
        ("TRANSACTION_REFUSED", ""),
        ("OPENED", "ann"),
    ]
    assert [event["reason"] for event in events][2] == "REVISION_MISMATCH"
    assert events[3]["changes"]["name"] == {"before": "", "after": f"till {account}"}
    assert events[-1]["correlation_id"] == "job 7"
    assert all(event["request_id"] and event["peer"] for event in events)
    assert call("accounts", "events", account, "--limit", "2") == events[:2]


def test_the_life_of_a_transaction_says_who_did_what(
    run: Run, call: Call, ledger: StandaloneLedger, account: str
) -> None:
    (hold,) = [item for item in call("transactions", "list", account) if item["amount"] == "-300"]
    life = call("transactions", "states", hold["id"])
    assert life["transaction"] == hold
    assert [(state["status"], state["actor"]) for state in life["states"]] == [
        ("PENDING", ""),
        ("SETTLED", "bob"),
    ]
    assert life["states"][0]["request_id"] == hold["request_id"]
    shown = run("--gateway", ledger.target, "transactions", "states", hold["id"]).stdout
    assert f"transaction  {hold['id']}" in shown
    csv_text = run("--gateway", ledger.target, "-o", "csv", "transactions", "states", hold["id"])
    assert [row["status"] for row in csv.DictReader(io.StringIO(csv_text.stdout))] == [
        "PENDING",
        "SETTLED",
    ]


def test_transactions_by_what_they_are_like(call: Call, account: str) -> None:
    every = call("transactions", "list", account)
    assert [item["amount"] for item in every] == ["50", "-900", "-300", "1000"]
    assert call("transactions", "list", "--account-id", account) == every
    assert call("transactions", "list", account, "--reference", "o-1") == every[3:]
    assert call("transactions", "list", account, "--metadata-key", "shop") == [every[1]]
    assert call("transactions", "list", account, "--status", "INSUFFICIENT_FUNDS") == [every[1]]
    moment = every[2]["create_time"]
    assert call("transactions", "list", account, "--from", moment) == every[:3]
    assert call("transactions", "list", account, "--to", moment) == every[3:]
    of_the_ledger = call("transactions", "list", "--ledger", "main", "--from", moment, "--all")
    assert [item for item in of_the_ledger if item["account_id"] == account] == every[:3]
    assert call("transactions", "list", "--to", "2020-01-01") == []


def test_actors_of_ledgers_are_taken(call: Call) -> None:
    name = f"actors-{uuid4().hex[:12]}"
    call("ledgers", "create", name, "--currency", "USD:2", "--actor", "ann")
    changed = call("ledgers", "update", name, "--description", "Ours", "--actor", "bob")
    assert changed["description"] == "Ours"


def test_a_correlation_id_may_come_from_the_environment(
    run: Run, call: Call, ledger: StandaloneLedger
) -> None:
    env = {"LEDGER_CORRELATION_ID": "from-env"}
    made = run("--gateway", ledger.target, "-o", "json", "accounts", "create", env=env)
    opened = json.loads(made.stdout)["id"]
    assert call("accounts", "events", opened)[0]["correlation_id"] == "from-env"
    over = ("--correlation-id", "given", "accounts", "freeze", opened)
    assert run("--gateway", ledger.target, *over, env=env).exit_code == 0
    assert call("accounts", "events", opened)[0]["correlation_id"] == "given"
    wrong = ("accounts", "freeze", opened, "--correlation-id", "\u00e9")
    refused = run("--gateway", ledger.target, *wrong)
    assert refused.exit_code == 1
    assert "  correlation_id: must be at most 128 printable ASCII" in refused.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("accounts", "balance", "a", "--as-of", "noon"), "'--as-of': 'noon' must be a date"),
        (("accounts", "balance", "a", "--basis", "effective"), "goes with --as-of"),
        (("accounts", "balance", "a", "--basis", "now"), "'now' is not one of"),
        (("accounts", "statement", "a", "--from", "2026-02-30"), "'--from': '2026-02-30' is no"),
        (("accounts", "entries", "a", "--to", "2026-01-01T00:00"), "must have a time zone"),
        (
            ("accounts", "entries", "a", "--from", "2026-01-02", "--to", "2026-01-01"),
            "--to must be after --from",
        ),
        (("transactions", "list", "a", "--ledger", "main"), "exclude each other"),
        (("transactions", "list", "a", "--account-id", "b"), "give one of them"),
        (("transactions", "list", "--status", "GONE"), "'GONE' is not one of"),
        (("transactions", "states"), "Missing argument 'TRANSACTION_ID'"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is_sent(
    run: Run, args: tuple[str, ...], said: str
) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize(
    "args", [("accounts", "balance"), ("accounts", "statement"), ("transactions", "list")]
)
def test_help_says_what_a_date_means(run: Run, args: tuple[str, ...]) -> None:
    shown = " ".join(run(*args, "--help").stdout.split())
    assert "end of that day in UTC" in shown

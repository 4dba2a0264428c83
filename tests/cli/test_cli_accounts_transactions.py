"""`ledger accounts` and `ledger transactions` against a real ledger."""

import csv
import io
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

from ledger_client.testing import StandaloneLedger

Run = Callable[..., Result]
Call = Callable[..., Any]


def test_the_first_steps(call: Call) -> None:
    account = call("accounts", "create")
    assert (account["available_balance"], account["type"], account["state"]) == (
        "0",
        "LIABILITY",
        "OPEN",
    )
    to = ("--account-id", account["id"])
    top_up = call("transactions", "create", *to, "--amount", "1000", "--settled")
    assert (top_up["status"], top_up["amount"]) == ("SETTLED", "1000")
    held = call("transactions", "create", *to, "--amount", "-500", "--pending")
    assert (held["status"], held["amount"]) == ("PENDING", "-500")
    assert [entry["direction"] for entry in held["entries"]] == ["DEBIT", "CREDIT"]
    settled = call("transactions", "settle", held["id"])
    assert settled["status"] == "SETTLED"
    held = call("transactions", "create", *to, "--amount=-500", "--pending")
    assert call("transactions", "cancel", held["id"])["status"] == "CANCELLED"
    assert call("transactions", "get", held["id"], "--stale")["status"] == "CANCELLED"
    refused = call("transactions", "create", *to, "--amount", "-501", "--settled")
    assert refused["status"] == "INSUFFICIENT_FUNDS"
    assert refused["refusal"]["required_amount"] == "501"
    assert refused["refusal"]["available_amount"] == "500"
    listed = call("transactions", "list", *to)
    assert [item["amount"] for item in listed] == ["-501", "-500", "-500", "1000"]
    account = call("accounts", "get", account["id"])
    assert (account["available_balance"], account["settled_balance"]) == ("500", "500")


def test_the_same_request_id_counts_once(call: Call) -> None:
    first = call("accounts", "create", "--request-id", "cli-once")
    assert call("accounts", "create", "--request-id", "cli-once") == first
    create = (
        *("transactions", "create", "--account-id", first["id"], "--amount", "7"),
        *("--settled", "--request-id", "cli-top-up"),
    )
    assert call(*create) == call(*create)
    assert call("accounts", "get", first["id"])["settled_balance"] == "7"


def test_tables_show_amounts_as_people_write_them(
    run: Run, call: Call, ledger: StandaloneLedger
) -> None:
    account = call("accounts", "create")["id"]
    create = ("transactions", "create", "--account-id", account)
    shown = run("--gateway", ledger.target, *create, "--amount", "1250", "--settled")
    assert shown.exit_code == 0
    assert "12.50 USD" in shown.stdout
    evil = "a\tb\x1b[31m\nc"
    run("--gateway", ledger.target, *create, "--amount=-2000", "--settled", "--description", evil)
    shown = run("transactions", "list", "--account-id", account, "--gateway", ledger.target)
    assert "-20.00 USD  INSUFFICIENT_FUNDS  a\N{REPLACEMENT CHARACTER}b" in shown.stdout
    assert "\x1b" not in shown.stdout
    shown = run("accounts", "get", account, "--gateway", ledger.target)
    assert account in shown.stdout
    assert "12.50 USD" in shown.stdout


def test_csv_has_minor_units_and_one_line_a_record(
    run: Run, call: Call, ledger: StandaloneLedger
) -> None:
    account = call("accounts", "create")["id"]
    create = ("transactions", "create", "--account-id", account)
    call(*create, "--amount", "9007199254740993", "--settled", "--description", 'a,"b"\nc')
    call(*create, "--amount", "-9007199254740994", "--settled")
    shown = run("-o", "csv", "--gateway", ledger.target, "transactions", "list", *create[2:])
    rows = list(csv.DictReader(io.StringIO(shown.stdout)))
    assert [row["amount"] for row in rows] == ["-9007199254740994", "9007199254740993"]
    assert [row["refusal_reason"] for row in rows] == ["INSUFFICIENT_FUNDS", ""]
    assert rows[1]["description"] == 'a,"b"\nc'
    shown = run("-o", "csv", "--gateway", ledger.target, "accounts", "get", account)
    assert next(csv.DictReader(io.StringIO(shown.stdout)))["settled_balance"] == "9007199254740993"


def test_an_empty_list_in_every_format(run: Run, call: Call, ledger: StandaloneLedger) -> None:
    account = call("accounts", "create")["id"]
    listing = ("--gateway", ledger.target, "transactions", "list", "--account-id", account)
    assert run(*listing, "-o", "json").stdout == "[]\n"
    assert run(*listing, "-o", "csv").stdout.startswith("id,account_id,")
    assert run(*listing).exit_code == 0


def test_a_list_says_when_there_is_more(run: Run, call: Call, ledger: StandaloneLedger) -> None:
    account = call("accounts", "create")["id"]
    for amount in range(1, 5):
        to = ("--account-id", account, "--amount", str(amount))
        call("transactions", "create", *to, "--settled")
    listing = ("--gateway", ledger.target, "transactions", "list", "--account-id", account)
    three = run(*listing, "--limit", "3")
    assert "Only 3 are shown" in three.stderr
    assert three.stdout.count(account) == 3
    for whole in (("--limit", "4"), ("--all",)):
        result = run(*listing, *whole)
        assert (result.stderr, result.stdout.count(account)) == ("", 4)


@pytest.mark.parametrize(
    ("args", "first_line"),
    [
        (("accounts", "get", "0" * 16), "NOT_FOUND (ACCOUNT_NOT_FOUND): "),
        (("transactions", "get", "0" * 32), "NOT_FOUND ("),
        (("accounts", "get", "xyz"), "INVALID_ARGUMENT (INVALID_FIELDS): wrong request"),
        (("accounts", "create", "--ledger", "other"), "NOT_FOUND (LEDGER_NOT_FOUND): "),
    ],
)
def test_refusals_are_one_clear_line_and_exit_code_1(
    run: Run, ledger: StandaloneLedger, args: tuple[str, ...], first_line: str
) -> None:
    result = run("--gateway", ledger.target, *args)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(first_line)


def test_every_wrong_field_has_a_line(run: Run, ledger: StandaloneLedger) -> None:
    result = run(
        *("--gateway", ledger.target, "transactions", "create", "--account-id", "x"),
        *("--amount", "0", "--settled", "--description", "d" * 1001),
    )
    assert result.exit_code == 1
    fields = [line.split(":")[0].strip() for line in result.stderr.splitlines()[1:]]
    assert sorted(fields) == ["account_id", "amount", "description"]


def test_settling_twice_is_refused(run: Run, call: Call, ledger: StandaloneLedger) -> None:
    account = call("accounts", "create")["id"]
    to = ("--account-id", account, "--amount", "5")
    transaction = call("transactions", "create", *to, "--pending")["id"]
    call("transactions", "settle", transaction)
    again = run("--gateway", ledger.target, "transactions", "settle", transaction)
    assert again.exit_code == 1
    assert again.stderr.startswith("FAILED_PRECONDITION (TRANSACTION_NOT_PENDING): ")

"""`ledger ledgers`, and what accounts and transactions can do with several of them."""

import csv
import io
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
from click.testing import Result

from ledger_client.testing import StandaloneLedger

Run = Callable[..., Result]
Call = Callable[..., Any]


@pytest.fixture
def two(call: Call) -> tuple[str, str]:
    """Two accounts, the first with 10.00 USD."""
    payer, payee = call("accounts", "create")["id"], call("accounts", "create")["id"]
    call("transactions", "create", "--account-id", payer, "--amount", "1000", "--settled")
    return payer, payee


def books() -> str:
    return f"books-{uuid4().hex[:12]}"


# Ledgers


def test_a_ledger_with_a_chart(run: Run, call: Call, ledger: StandaloneLedger) -> None:
    name = books()
    made = call(
        *("ledgers", "create", name, "--description", "Ours"),
        *("--currency", "EUR:2", "--currency", "JPY:0"),
        *("--chart", "1:ASSET:Assets", "--chart", "11:ASSET:Cash at hand"),
    )
    assert made["currencies"] == {"EUR": 2, "JPY": 0}
    assert [line["code"] for line in made["chart"]] == ["1", "11"]
    assert call("ledgers", "get", name) == made

    extended = call(
        *("ledgers", "update", name, "--currency", "USD:2"),
        *("--chart", "111:ASSET:Till:11", "--description", "All of it"),
    )
    assert extended["revision"] == 1
    assert list(extended["currencies"]) == ["EUR", "JPY", "USD"]
    assert extended["chart"][-1] == {
        "code": "111",
        "type": "ASSET",
        "name": "Till",
        "parent": "11",
    }
    late = run("--gateway", ledger.target, "ledgers", "update", name, "--revision", "0")
    assert late.exit_code == 1
    assert "REVISION_MISMATCH" in late.stderr

    till = call("accounts", "create", "--ledger", name, "--code", "1110", "--currency", "JPY")
    assert (till["type"], till["currency"], till["currency_exponent"]) == ("ASSET", "JPY", 0)
    wrong = run("--gateway", ledger.target, "accounts", "create", "--ledger", name, "--code", "5")
    assert "CODE_NOT_IN_CHART" in wrong.stderr


def test_ledgers_as_tables_and_csv(run: Run, call: Call, ledger: StandaloneLedger) -> None:
    name = books()
    call("ledgers", "create", name, "--currency", "EUR:2", "--chart", "1:ASSET:Assets")
    to = ("--gateway", ledger.target)
    table = run(*to, "ledgers", "get", name).stdout
    assert re.search(r"currencies +EUR \(2 digits\)", table)
    assert re.search(r"1 +ASSET +Assets", table)
    listed = run(*to, "ledgers", "list", "--all").stdout
    assert name in listed
    assert "main" in listed
    rows = list(csv.DictReader(io.StringIO(run(*to, "ledgers", "list", "-o", "csv").stdout)))
    assert {row["name"]: row["currencies"] for row in rows}[name] == "EUR=2"
    assert "main" in [item["name"] for item in call("ledgers", "list", "--all")]


# Accounts


def test_an_account_with_everything(run: Run, call: Call, ledger: StandaloneLedger) -> None:
    name = f"cash {uuid4()}"
    made = call(
        *("accounts", "create", "--name", name, "--code", "1000", "--type", "EQUITY"),
        *("--minimum", "-500", "--maximum", "900", "--metadata", "team=blue"),
        *("--metadata", "note=a=b"),
    )
    assert (made["name"], made["code"], made["type"]) == (name, "1000", "EQUITY")
    assert (made["minimum"], made["maximum"]) == ("-500", "900")
    assert made["metadata"] == {"note": "a=b", "team": "blue"}
    assert call("accounts", "get", "--name", name) == made
    assert call("accounts", "get", "--name", name, "--ledger", "main") == made
    table = run("--gateway", ledger.target, "accounts", "get", made["id"]).stdout
    assert re.search(r"limits +at least -5\.00 USD, at most 9\.00 USD", table)
    assert re.search(r"metadata +note=a=b, team=blue", table)
    taken = run("--gateway", ledger.target, "accounts", "create", "--name", name)
    assert taken.exit_code == 1
    assert "ALREADY_EXISTS (NAME_TAKEN)" in taken.stderr
    assert made["id"] in taken.stderr


@pytest.mark.parametrize(
    ("options", "minimum", "maximum"),
    [
        ((), "0", None),
        (("--maximum", "5"), "0", "5"),
        (("--minimum", "none"), None, None),
        (("--minimum", "-7", "--maximum", "none"), "-7", None),
    ],
)
def test_limits_of_a_new_account(
    call: Call, options: tuple[str, ...], minimum: str | None, maximum: str | None
) -> None:
    made = call("accounts", "create", *options)
    assert (made["minimum"], made["maximum"]) == (minimum, maximum)


def test_changes_of_an_account(run: Run, call: Call, ledger: StandaloneLedger) -> None:
    old, new = f"old {uuid4()}", f"new {uuid4()}"
    account = call("accounts", "create", "--name", old, "--metadata", "a=1", "--maximum", "9")["id"]
    changed = call("accounts", "update", account, "--name", new, "--minimum", "none")
    assert (changed["name"], changed["revision"]) == (new, 1)
    assert (changed["minimum"], changed["maximum"], changed["metadata"]) == (None, "9", {"a": "1"})
    assert call("accounts", "update", account, "--metadata", "b=2")["metadata"] == {"b": "2"}
    assert call("accounts", "update", account, "--no-metadata")["metadata"] == {}
    late = run("--gateway", ledger.target, "accounts", "update", account, "--revision", "1")
    assert "REVISION_MISMATCH" in late.stderr
    # The old name is free again.
    call("accounts", "create", "--name", old)
    assert call("accounts", "update", account, "--name", "")["name"] == ""

    assert call("accounts", "freeze", account)["state"] == "FROZEN"
    assert call("accounts", "unfreeze", account)["state"] == "OPEN"
    assert call("accounts", "close", account)["state"] == "CLOSED"
    closed = run("--gateway", ledger.target, "accounts", "freeze", account)
    assert "ACCOUNT_CLOSED" in closed.stderr


def test_lists_of_accounts(run: Run, call: Call, ledger: StandaloneLedger) -> None:
    name = books()
    call("ledgers", "create", name, "--currency", "EUR:2")
    made = [
        call("accounts", "create", "--ledger", name, *more)["id"]
        for more in (
            ("--code", "100"),
            ("--code", "101", "--metadata", "vip=yes"),
            ("--code", "200", "--type", "INCOME"),
            (),
        )
    ]
    call("accounts", "freeze", made[3])

    def listed(*filters: str) -> list[str]:
        return [item["id"] for item in call("accounts", "list", "--ledger", name, *filters)]

    assert listed() == made
    assert listed("--code-prefix", "10") == made[:2]
    assert listed("--metadata-key", "vip") == [made[1]]
    assert listed("--type", "INCOME") == [made[2]]
    assert listed("--state", "FROZEN") == [made[3]]
    assert listed("--all") == made
    to = ("--gateway", ledger.target, "accounts", "list", "--ledger", name)
    short = run(*to, "--limit", "3")
    assert "Only 3 are shown; --all shows every one." in short.stderr
    assert re.search(rf"{made[1]} +101 +LIABILITY +OPEN +0\.00 EUR +0\.00 EUR", short.stdout)
    rows = list(csv.DictReader(io.StringIO(run(*to, "-o", "csv").stdout)))
    assert [row["metadata"] for row in rows] == ["", "vip=yes", "", ""]


# Transactions


def test_entries(run: Run, call: Call, ledger: StandaloneLedger, two: tuple[str, str]) -> None:
    payer, payee = two
    made = call(
        *("transactions", "create", "--settled", "--reference", "order 5", "--actor", "me"),
        *("--metadata", "k=v", "--effective-time", "2026-01-31T12:00:00Z"),
        *("--entry", f"debit:{payer}:400", "--entry", f"credit:{payee}:400:USD"),
    )
    assert made["status"] == "SETTLED"
    assert (made["external_reference"], made["actor"]) == ("order 5", "me")
    assert made["metadata"] == {"k": "v"}
    assert made["effective_time"] == "2026-01-31T12:00:00.000000+00:00"
    assert [entry["direction"] for entry in made["entries"]] == ["DEBIT", "CREDIT"]
    assert call("accounts", "get", payee)["available_balance"] == "400"
    request = ("--account-id", payer, "--request-id", made["request_id"])
    assert call("transactions", "get", *request) == made
    table = run("--gateway", ledger.target, "transactions", "get", made["id"]).stdout
    assert re.search(r"amount +4\.00 USD", table)
    assert re.search(rf"entry 1 +credit {payee} +4\.00 USD", table)
    assert re.search(r"reference +order 5", table)


def test_a_dry_run_moves_nothing(
    run: Run, call: Call, ledger: StandaloneLedger, two: tuple[str, str]
) -> None:
    payer, payee = two
    for amount, status in (("1000", "SETTLED"), ("1001", "INSUFFICIENT_FUNDS")):
        entries = ("--entry", f"debit:{payer}:{amount}", "--entry", f"credit:{payee}:{amount}")
        made = call("transactions", "create", "--settled", "--dry-run", *entries)
        assert (made["id"], made["status"]) == ("", status)
    assert call("accounts", "get", payee)["version"] == 0
    table = run(
        *("--gateway", ledger.target, "transactions", "create", "--settled", "--dry-run"), *entries
    )
    assert "none (a dry run)" in table.stdout


def test_a_part_is_settled_and_reversed(
    run: Run, call: Call, ledger: StandaloneLedger, two: tuple[str, str]
) -> None:
    payer, payee = two
    entries = ("--entry", f"debit:{payer}:500", "--entry", f"credit:{payee}:500")
    held = call("transactions", "create", "--pending", "--expire-in", "7d", *entries)
    lifetime = datetime.fromisoformat(held["expire_time"]) - datetime.fromisoformat(
        held["create_time"]
    )
    assert 6.9 < lifetime.total_seconds() / 86_400 < 7.1
    settled = call("transactions", "settle", held["id"], "--amount", "300", "--actor", "me")
    assert (settled["status"], settled["settled_amount"]) == ("SETTLED", "300")
    part = call("transactions", "reverse", held["id"], "--amount", "100", "--amount", "100")
    assert (part["status"], part["reversal_of"]) == ("SETTLED", held["id"])
    table = run("--gateway", ledger.target, "transactions", "get", held["id"]).stdout
    assert re.search(r"settled +3\.00 USD", table)
    assert table.count("(1.00 USD reversed)") == 2
    rest = call("transactions", "reverse", held["id"], "--description", "the rest")
    assert [entry["amount"] for entry in rest["entries"]] == ["200", "200"]
    beyond = run("--gateway", ledger.target, "transactions", "reverse", held["id"])
    assert "REVERSAL_EXCEEDS" in beyond.stderr
    assert call("accounts", "get", payer)["available_balance"] == "1000"


ENTRY = "debit:0123456789abcdef:5"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("accounts", "get"), "Missing argument 'ACCOUNT_ID', or --name"),
        (("accounts", "get", "a", "--name", "b"), "one of them"),
        (("accounts", "get", "a", "--ledger", "b"), "--ledger goes with --name"),
        (("accounts", "create", "--type", "WALLET"), "'WALLET' is not one of"),
        (("accounts", "create", "--minimum", "1.5"), "must be minor units"),
        (("accounts", "create", "--maximum", str(2**63)), "must be minor units"),
        (("accounts", "create", "--metadata", "novalue"), "must be KEY=VALUE"),
        (("accounts", "update", "a", "--metadata", "a=b", "--no-metadata"), "exclude each other"),
        (("ledgers", "create", "b", "--currency", "USD"), "must be CODE:EXPONENT"),
        (("ledgers", "create", "b", "--chart", "1:CASH:x"), "must be CODE:TYPE:NAME"),
        (("transactions", "create", "--settled"), "--entry at least twice"),
        (
            ("transactions", "create", "--settled", "--entry", ENTRY, "--amount", "5"),
            "--entry excludes",
        ),
        (("transactions", "create", "--settled", "--entry", "debit:a"), "must be debit:ACCOUNT"),
        (("transactions", "create", "--settled", "--entry", "take:a:5"), "must be debit:ACCOUNT"),
        (("transactions", "create", "--settled", "--entry", "debit:a:-5"), "in minor units"),
        (("transactions", "create", "--settled", "--entry", "debit:a:5.00"), "in minor units"),
        (
            ("transactions", "create", "--settled", "--entry", ENTRY + ":USD:EUR"),
            "must be debit:ACCOUNT",
        ),
        (
            ("transactions", "create", "--pending", "--entry", ENTRY, "--expire-in", "soon"),
            "must be a number of s, m, h or d",
        ),
        (
            (
                *("transactions", "create", "--pending", "--entry", ENTRY),
                *("--expire-in", "1d", "--expire-time", "2030-01-01T00:00:00Z"),
            ),
            "exclude each other",
        ),
        (
            (
                *("transactions", "create", "--pending", "--entry", ENTRY),
                *("--expire-time", "2030-01-01T00:00:00"),
            ),
            "must have a time zone",
        ),
        (("transactions", "get"), "--account-id and --request-id"),
        (("transactions", "get", "t", "--account-id", "a", "--request-id", "r"), "one of both"),
        (("transactions", "settle", "t", "--amount", "0"), "'--amount'"),
        (("transactions", "reverse", "t", "--amount", "-1"), "'--amount'"),
    ],
)
def test_wrong_usage_exits_with_2(run: Run, args: tuple[str, ...], said: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""

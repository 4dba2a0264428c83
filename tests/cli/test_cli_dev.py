"""Seeding and the scenarios: they hold on a real ledger, and fail on one that breaks a promise."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

from ledger.v1 import ledger_pb2
from ledger_cli import context, scenarios
from ledger_client import AsyncLedgerClient, LedgerError
from ledger_client.testing import StandaloneLedger

Run = Callable[..., Result]
Call = Callable[..., Any]

SCENARIOS = ("scenario-1", "scenario-2", "scenario-3", "scenario-4")
ENTRY_SCENARIOS = tuple(f"scenario-{number}" for number in range(5, 12))


@pytest.mark.parametrize("balance", [0, 1, 12_345, 10**15 + 7])
def test_scenarios_hold_whatever_the_balance(
    run: Run, call: Call, ledger: StandaloneLedger, balance: int
) -> None:
    account = call("accounts", "create")["id"]
    to = ("--account-id", account)
    if balance:
        call("transactions", "create", *to, "--amount", str(balance), "--settled")
        call("transactions", "create", *to, "--amount", str(-(balance // 2) or -1), "--pending")
    for scenario in SCENARIOS:
        result = run("--gateway", ledger.target, "dev", scenario, *to)
        assert result.exit_code == 0, result.output
        assert f"{scenario} holds" in result.stdout
        assert "✓" in result.stdout


def test_every_scenario_has_its_command() -> None:
    assert tuple(scenarios.SCENARIOS) == SCENARIOS + ENTRY_SCENARIOS


@pytest.mark.parametrize("scenario", ENTRY_SCENARIOS)
def test_scenarios_with_accounts_of_their_own_hold(call: Call, scenario: str) -> None:
    # Twice: what they leave behind is in nobody's way.
    for _ in range(2):
        told = call("dev", scenario)
        assert told["ok"]
        assert len(told["claims"]) >= 3


def test_a_merchant_gets_what_is_left_after_commission_and_fee(call: Call) -> None:
    told = " ".join(call("dev", "scenario-5")["claims"])
    assert "merchant 86.80 USD, commissions 10.00 USD, fees 3.20 USD" in told


def test_a_scenario_opens_an_account_unless_given_one(call: Call) -> None:
    told = call("dev", "scenario-2")
    assert told["ok"]
    assert len(told["claims"]) == 7
    assert call("accounts", "get", told["account_id"])["settled_balance"] == "5000"


def test_a_scenario_on_an_unknown_account_is_a_clear_error(
    run: Run, ledger: StandaloneLedger
) -> None:
    result = run("--gateway", ledger.target, "dev", "scenario-1", "--account-id", "0" * 16)
    assert result.exit_code == 1
    assert result.stderr.startswith("NOT_FOUND (ACCOUNT_NOT_FOUND)")


class ForgetfulClient(AsyncLedgerClient):
    """Breaks the promise that a request id counts once."""

    async def create_transaction(self, *args: Any, **kwargs: Any) -> ledger_pb2.Transaction:
        return await super().create_transaction(*args, **kwargs | {"request_id": None})


class GenerousClient(AsyncLedgerClient):
    """Breaks the promise that nothing is paid beyond the funds."""

    async def create_transaction(
        self, account_id: str = "", amount: int = 0, description: str = "", **kwargs: Any
    ) -> ledger_pb2.Transaction:
        if amount < 0:
            await super().create_transaction(account_id, -amount, settled=True)
        return await super().create_transaction(account_id, amount, description, **kwargs)


class ShavingClient(AsyncLedgerClient):
    """Moves one cent more than it was asked to, wherever money moves between accounts."""

    async def create_transaction(self, *args: Any, **kwargs: Any) -> ledger_pb2.Transaction:
        entries = [ledger_pb2.Entry.FromString(e.SerializeToString()) for e in _entries(kwargs)]
        if entries:
            entries[0].amount += 1
            entries[1].amount += 1
        return await super().create_transaction(*args, **kwargs | {"entries": entries})


def _entries(kwargs: dict[str, Any]) -> list[ledger_pb2.Entry]:
    return list(kwargs.get("entries", ()))


@pytest.mark.parametrize(
    ("scenario", "client"),
    [
        ("scenario-1", GenerousClient),
        ("scenario-2", GenerousClient),
        ("scenario-3", GenerousClient),
        ("scenario-4", ForgetfulClient),
        *((scenario, ShavingClient) for scenario in ENTRY_SCENARIOS),
        ("scenario-11", ForgetfulClient),
    ],
)
def test_a_broken_promise_is_found(
    run: Run,
    ledger: StandaloneLedger,
    monkeypatch: pytest.MonkeyPatch,
    scenario: str,
    client: type[AsyncLedgerClient],
) -> None:
    monkeypatch.setattr(context, "AsyncLedgerClient", client)
    result = run("--gateway", ledger.target, "dev", scenario)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"✗ {scenario}: this does not hold: ")
    told = run("--gateway", ledger.target, "dev", scenario, "-o", "json")
    assert told.exit_code == 1
    assert not json.loads(told.stdout)["ok"]


def test_seeding_prints_every_id(run: Run, call: Call, ledger: StandaloneLedger) -> None:
    result = run("--gateway", ledger.target, "dev", "seed-accounts", "--count", "40")
    assert result.exit_code == 0
    ids = result.stdout.split()
    assert len(set(ids)) == 40
    assert call("accounts", "get", ids[-1])["id"] == ids[-1]
    assert len(call("dev", "seed-accounts", "--count", "3")) == 3


def test_seeding_that_fails_says_how_far_it_came(
    run: Run, ledger: StandaloneLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TiringClient(AsyncLedgerClient):
        made = 0

        async def create_account(self, **kwargs: Any) -> ledger_pb2.Account:
            if TiringClient.made == 5:
                raise LedgerError("RESOURCE_EXHAUSTED", "the queue is full", reason="OVERLOADED")
            TiringClient.made += 1
            return await super().create_account(**kwargs)

    monkeypatch.setattr(context, "AsyncLedgerClient", TiringClient)
    result = run(
        *("--gateway", ledger.target, "dev", "seed-accounts"),
        *("--count", "20", "--concurrency", "1"),
    )
    assert result.exit_code == 1
    assert len(result.stdout.split()) == 5
    assert "5 of 20 accounts were opened." in result.stderr
    assert "RESOURCE_EXHAUSTED (OVERLOADED): the queue is full" in result.stderr

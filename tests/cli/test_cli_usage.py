"""Usage, unreachable gateways, and what an error tells to do next."""

from collections.abc import Callable
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

import pytest
from click.testing import Result

from ledger_cli import context
from ledger_client import LedgerError

Run = Callable[..., Result]


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"ledger, version {version('ledger-service')}\n"


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("accounts",),
        ("transactions",),
        ("cluster",),
        ("dev",),
        ("verify", "--help"),
        ("dev", "scenario-3", "--help"),
        ("dev", "cluster", "--help"),
        ("transactions", "create", "--help"),
    ],
)
def test_help_says_how_to_use_it(run: Run, args: tuple[str, ...]) -> None:
    assert run(*args).output.startswith("Usage: ")


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (("unknown",), "No such command 'unknown'"),
        (("accounts", "get"), "Missing argument 'ACCOUNT_ID'"),
        (("accounts", "get", "a", "b"), "unexpected extra argument"),
        (("-o", "xml", "accounts", "create"), "'xml' is not one of"),
        (("--timeout", "0", "accounts", "create"), "'--timeout'"),
        (("--timeout", "soon", "accounts", "create"), "'--timeout'"),
        (("--gateway", "nowhere", "accounts", "create"), "must be host:port"),
        (("transactions", "create", "--account-id", "a", "--amount", "1"), "--settled"),
        (("transactions", "create", "--amount", "1", "--settled"), "--account-id"),
        (
            ("transactions", "create", "--account-id", "a", "--settled", "--amount", "1.5"),
            "'1.5' is not a valid integer",
        ),
        (
            ("transactions", "create", "--account-id", "a", "--settled", "--amount", str(2**63)),
            "is not in the range",
        ),
        (("transactions", "list", "--account-id", "a", "--limit", "0"), "'--limit'"),
        (("dev", "seed-accounts", "--count", "0"), "'--count'"),
        (("dev", "kill"), "Missing argument 'NAME'"),
        (("dev", "kill", "leader"), "--shard"),
        (("dev", "kill", "n1", "--shard", "3"), "--shard"),
        (("cluster", "generate", "--replicas", "2"), "replicas: must be one of 1, 3, 5, 7"),
        (("cluster", "generate", "--nodes", "1"), "cannot have 3 replicas on 1 nodes"),
    ],
)
def test_wrong_usage_exits_with_2(run: Run, args: tuple[str, ...], part: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert part in result.stderr
    assert result.stdout == ""


def test_a_wrong_address_in_the_environment_is_named(run: Run) -> None:
    result = run("accounts", "create", env={"LEDGER_GATEWAY": "nowhere"})
    assert result.exit_code == 2
    assert "'nowhere' must be host:port" in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ("accounts", "create"),
        ("accounts", "get", "0" * 16),
        ("transactions", "list", "--account-id", "0" * 16),
        ("dev", "scenario-1"),
        ("dev", "seed-accounts", "--count", "3"),
    ],
)
def test_without_a_gateway_it_says_how_to_start_one(run: Run, args: tuple[str, ...]) -> None:
    result = run("--timeout", "0.3", *args)
    assert result.exit_code == 1
    assert "UNAVAILABLE" in result.stderr or "DEADLINE_EXCEEDED" in result.stderr
    assert "ledger dev cluster" in result.stderr or "ledger cluster status" in result.stderr


class FailingClient:
    """Stands in for the client: every call fails with the error given."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def create_account(self, **_: Any) -> None:
        raise self.error

    def get_account(self, *_: Any, **__: Any) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "args", "said"),
    [
        (
            LedgerError("DEADLINE_EXCEEDED", "no result", reason="OUTCOME_UNKNOWN"),
            ("accounts", "create", "--request-id", "r-1"),
            "DEADLINE_EXCEEDED (OUTCOME_UNKNOWN): no result\nIt may or may not have happened. "
            "Repeat the command with --request-id r-1 to find out: it takes effect once.\n",
        ),
        (
            LedgerError("UNAVAILABLE", "no leader", reason="SHARD_UNAVAILABLE"),
            ("accounts", "create"),
            "UNAVAILABLE (SHARD_UNAVAILABLE): no leader\n"
            "`ledger cluster status` shows which shards have a leader.\n",
        ),
        (
            LedgerError("UNAVAILABLE", "refused"),
            ("accounts", "get", "a"),
            "UNAVAILABLE: refused\nIs the gateway running at 127.0.0.1:1? "
            "`ledger dev cluster` starts a local cluster with one.\n",
        ),
        (
            LedgerError("NOT_FOUND", "no such account", reason="ACCOUNT_NOT_FOUND"),
            ("accounts", "get", "a"),
            "NOT_FOUND (ACCOUNT_NOT_FOUND): no such account\n",
        ),
        (
            ZeroDivisionError("oops"),
            ("accounts", "get", "a"),
            "Unexpected ZeroDivisionError: oops. This is a bug in the command; "
            "LEDGER_DEBUG=1 shows where.\n",
        ),
    ],
)
def test_errors_say_what_to_do_next(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    args: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.setattr(context, "LedgerClient", lambda *_, **__: FailingClient(error))
    result = run(*args)
    assert (result.exit_code, result.stderr, result.stdout) == (1, said, "")

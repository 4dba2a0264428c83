"""A way to run the command in this process, against a real standalone ledger or none."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ledger_cli.local_cluster import free_cluster_ports
from ledger_cli.main import cli
from ledger_client.testing import StandaloneLedger, standalone_ledger

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def ledger() -> Iterator[StandaloneLedger]:
    with standalone_ledger() as running:
        yield running


@pytest.fixture
def run() -> Run:
    """Run `ledger` with arguments; no gateway listens where it looks by default."""

    def run(*args: str, env: dict[str, str] | None = None) -> Result:
        result = CliRunner().invoke(
            cli, list(args), env={"LEDGER_GATEWAY": "127.0.0.1:1", **(env or {})}
        )
        assert "Traceback" not in result.output
        return result

    return run


@pytest.fixture
def call(run: Run, ledger: StandaloneLedger) -> Callable[..., Any]:
    """Run a command that must succeed against the ledger and return its JSON."""

    def call(*args: str) -> Any:
        result = run("--gateway", ledger.target, *args, "-o", "json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return call


@pytest.fixture
def free_ports() -> Callable[[int], tuple[int, int]]:
    """Return a free base port for so many nodes, and a free port for a gateway."""

    return free_cluster_ports


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path

"""A way to run the command in this process, against a real standalone ledger or none."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

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
def free_ports() -> Callable[[int], int]:
    """Return the first of some successive ports that are free."""

    def find(count: int) -> int:
        # Test processes that run side by side look in different places first.
        first = 21_000 + os.getpid() * 37 % 8_000
        for base in range(first, 32_000, count + 3):
            sockets = []
            try:
                for port in range(base, base + count):
                    opened = socket.socket()
                    sockets.append(opened)
                    opened.bind(("127.0.0.1", port))
            except OSError:
                continue
            finally:
                for opened in sockets:
                    opened.close()
            return base
        raise AssertionError("no free ports")

    return find


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path

"""What `ledger_client.testing` offers to other teams."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ledger_client import LedgerClient
from ledger_client.testing import standalone_ledger

CONFTEST = 'pytest_plugins = ["ledger_client.testing"]\n'
TEST = """
from ledger_client import LedgerClient

def test_first_transaction(ledger):
    with LedgerClient(ledger.target) as client:
        account = client.create_account()
        client.create_transaction(account.id, 10_00, "top-up", settled=True)
        assert client.get_account(account.id).settled_balance == 10_00
"""


def test_the_pytest_plugin(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TEST)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    assert "1 passed" in result.stdout


def test_the_process_ends_with_the_context() -> None:
    with standalone_ledger() as running, LedgerClient(running.target) as client:
        assert client.serving_shards() == {"": True, "shard-0": True}
        assert running.target.startswith("127.0.0.1:")
        pid, data_dir = running.pid, running.data_dir
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not data_dir.exists()


def test_a_gateway_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file, not a directory")
    with (
        pytest.raises(RuntimeError, match="is a file"),
        standalone_ledger(tmp_path / "data"),
    ):
        pass

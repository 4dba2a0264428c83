"""The commands that people try first, against a real cluster."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from breaking import PATIENCE_S
from click.testing import CliRunner, Result

from ledger_cli import local_cluster
from ledger_cli.cluster_state import read_state
from ledger_cli.local_cluster import LocalCluster, free_cluster_ports
from ledger_cli.main import cli
from ledger_client import LedgerClient
from ledger_cluster.config import generate_cluster_config

Run = Callable[..., Result]

pytestmark = pytest.mark.cluster


@pytest.fixture
def run(
    cluster: LocalCluster, gateway: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Run `ledger` where its configuration is, as people do; it must succeed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cluster_config.json").write_text(cluster.config.dump())

    def run(*args: str) -> Result:
        result = CliRunner().invoke(cli, list(args), env={"LEDGER_GATEWAY": gateway})
        assert result.exit_code == 0, result.output
        return result

    return run


@pytest.fixture
def call(run: Run) -> Callable[..., Any]:
    return lambda *args: json.loads(run(*args, "-o", "json").stdout)


def test_a_first_transaction(call: Callable[..., Any]) -> None:
    account = call("accounts", "create")["id"]
    amount = ("transactions", "create", "--account-id", account, "--amount")
    assert call(*amount, "1000", "--description", "top-up", "--settled")["status"] == "SETTLED"
    purchase = call(*amount, "-300", "--pending")
    assert purchase["status"] == "PENDING"
    assert call("transactions", "settle", purchase["id"])["status"] == "SETTLED"
    assert call("accounts", "get", account)["available_balance"] == "700"
    listed = call("transactions", "list", "--account-id", account)
    assert [item["amount"] for item in listed] == ["-300", "1000"]


def test_seeding_and_scenarios(run: Run) -> None:
    assert len(run("dev", "seed-accounts", "--count", "30").stdout.split()) == 30
    for number in range(1, 5):
        assert f"scenario-{number} holds" in run("dev", f"scenario-{number}").stdout


def test_status_and_proof(run: Run, call: Callable[..., Any], cluster: LocalCluster) -> None:
    status = call("cluster", "status")
    assert status["serving_shards"] == len(cluster.config.shards)
    assert all(node["up"] for node in status["nodes"])
    assert call("verify")["ok"] is True
    assert "sum of all balances = 0 on every shard" in run("verify").stdout


def test_an_interrupted_demo_leaves_nothing(tmp_path: Path) -> None:
    # The command, with the ports that are ours.
    program = (
        "from ledger_cli import local_cluster, main; "
        f"local_cluster.PORTS = {local_cluster.PORTS}; main.main()"
    )
    demo = subprocess.Popen(
        [sys.executable, "-c", program, "dev", "demo"],
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with demo:
        assert demo.stdout is not None
        try:
            while "every shard has a leader" not in demo.stdout.readline():
                assert demo.poll() is None
            (data_dir,) = tmp_path.glob("ledger-demo-*/data")
            state = read_state(data_dir)
            assert state is not None
            assert len(state.processes) == 4
            demo.send_signal(signal.SIGINT)
            rest = demo.stdout.read()
            assert demo.wait(PATIENCE_S) == 128 + signal.SIGINT
        finally:
            demo.terminate()
    assert rest.endswith("Stopped before the end; nothing is left running.\n")
    assert not any(mark.alive for mark in state.processes.values())
    assert list(tmp_path.iterdir()) == []


def test_a_proxy_in_the_environment_is_for_the_web(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("grpc_proxy", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    base_port, gateway_port = free_cluster_ports(3)
    config = generate_cluster_config(3, 1, base_port=base_port)
    with LocalCluster(config, tmp_path, gateway_port) as running:
        running.wait_until_serving(10)
        with LedgerClient(running.gateway_address) as client:
            assert client.create_account().settled_balance == 0

"""The command ledger-gateway: usage errors, start and stop as a process."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from ledger_client.testing import StandaloneLedger, standalone_ledger
from ledger_gateway.main import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--standalone"], "--standalone needs --data-dir"),
        (["--data-dir", "d"], "--data-dir goes with --standalone only"),
        (
            ["--standalone", "--data-dir", "d", "--cluster-config", "c.json"],
            "--standalone and --cluster-config exclude each other",
        ),
        (["--port", "65536"], "65536 is not in the range"),
        (["--port", "http"], "is not a valid integer range"),
        (["--nope"], "No such option"),
    ],
)
def test_usage_errors(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert said in result.output


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ledger_gateway.main", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_every_fault_of_a_cluster_config_is_printed(tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps({"nodes": [], "shards": []}))
    result = run("--cluster-config", str(path))
    assert result.returncode == 1
    assert "nodes" in result.stderr
    assert "shards" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_cluster_config_is_named(tmp_path: Path) -> None:
    result = run("--cluster-config", str(tmp_path / "none.json"))
    assert result.returncode == 1
    assert "none.json" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandaloneLedger]:
    with standalone_ledger(tmp_path_factory.mktemp("running") / "data") as ledger:
        yield ledger


def test_a_port_in_use_is_one_line(running: StandaloneLedger, tmp_path: Path) -> None:
    port = running.target.rpartition(":")[2]
    result = run("--standalone", "--data-dir", str(tmp_path / "data"), "--port", port)
    assert result.returncode == 1
    assert result.stderr == (
        f"ledger-gateway: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    )


def test_a_data_directory_in_use_is_one_line(running: StandaloneLedger) -> None:
    result = run("--standalone", "--data-dir", str(running.data_dir), "--port", "0")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("ledger-gateway: ")
    assert str(running.data_dir) in result.stderr


@contextmanager
def started(tmp_path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "ledger_gateway.main", "--standalone"]
    with subprocess.Popen(
        [*command, "--data-dir", str(tmp_path / "data"), "--port", "0", *arguments],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with started(tmp_path) as process:
        assert process.stderr is not None
        listening = re.compile(r"gateway listening address=127\.0\.0\.1:(\d+)")
        found = next(filter(None, map(listening.search, process.stderr)))
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(10) == 0
    assert "gateway stopped" in rest
    assert "reachable from other machines" not in rest
    assert "Traceback" not in rest
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(found[1]))) != 0

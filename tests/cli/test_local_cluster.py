"""The local cluster: stand-ins for its processes, and once the real ones."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import Result

from ledger_cli import cluster_state
from ledger_cli.cluster_state import ProcessMark, mark_process, read_state
from ledger_cli.local_cluster import LocalCluster, LocalClusterError
from ledger_cluster.config import generate_cluster_config

Run = Callable[..., Result]

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('up', flush=True); time.sleep(600)"
)


class SleepingCluster(LocalCluster):
    """Its processes only sleep."""

    script = SLEEPER

    def command(self, name: str) -> list[str]:
        return [sys.executable, "-c", self.script]


@pytest.fixture
def cluster(
    tmp_path: Path, free_ports: Callable[[int], tuple[int, int]]
) -> Iterator[SleepingCluster]:
    base, gateway_port = free_ports(3)
    config = generate_cluster_config(3, 2, base_port=base)
    with SleepingCluster(config, tmp_path / "data", gateway_port) as running:
        yield running


def until(done: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def up(cluster: LocalCluster, name: str) -> None:
    log = cluster.data_dir / f"{name}.log"
    until(lambda: "up" in log.read_text())


def test_it_starts_everything_and_leaves_nothing(cluster: SleepingCluster) -> None:
    assert cluster.names == ("n1", "n2", "n3", "gateway")
    pids = [cluster.pid(name) for name in cluster.names]
    state = read_state(cluster.data_dir)
    assert state is not None
    assert {mark.pid for mark in state.processes.values()} == set(pids)
    assert state.supervisor.alive
    marks = state.processes.values()
    assert cluster.stop() == []
    assert not any(mark.alive for mark in marks)
    assert read_state(cluster.data_dir) is None


def test_kill_and_restart(cluster: SleepingCluster) -> None:
    before = mark_process(cluster.pid("n2"))
    cluster.kill("n2")
    assert not before.alive
    assert not cluster.running("n2")
    assert cluster.take_exits() == []
    with pytest.raises(LocalClusterError, match="n2 is not running"):
        cluster.kill("n2")
    cluster.restart("n2")
    assert cluster.running("n2")
    first = mark_process(cluster.pid("n1"))
    cluster.restart("n1")
    assert not first.alive
    for act in (cluster.kill, cluster.restart):
        with pytest.raises(LocalClusterError, match="no process 'n7'; there are n1, n2, n3, gat"):
            act("n7")


def test_a_death_is_reported_once_and_the_others_go_on(cluster: SleepingCluster) -> None:
    pid = cluster.pid("n3")
    os.kill(pid, signal.SIGKILL)
    until(lambda: not cluster.running("n3"))
    (death,) = cluster.take_exits()
    assert (death.name, death.pid, death.cause) == ("n3", pid, "was killed by signal 9")
    assert cluster.take_exits() == []
    assert cluster.running("n1")
    assert cluster.running("gateway")


def test_what_does_not_end_is_killed_in_bounded_time(
    tmp_path: Path, free_ports: Callable[[int], tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SleepingCluster, "script", STUBBORN)
    base, gateway_port = free_ports(1)
    config = generate_cluster_config(1, 1, 1, base_port=base)
    with SleepingCluster(config, tmp_path, gateway_port) as cluster:
        for name in cluster.names:
            up(cluster, name)
        began = time.monotonic()
        assert cluster.stop(timeout_s=0.4) == ["gateway", "n1"]
        assert time.monotonic() - began < 3


def test_waiting_is_bounded_and_says_what_is_missing(cluster: SleepingCluster) -> None:
    with pytest.raises(LocalClusterError, match=r"not ready after 0.2 s: no leader for 2 of 2"):
        cluster.wait_until_serving(0.2)
    os.kill(cluster.pid("n3"), signal.SIGKILL)
    with pytest.raises(LocalClusterError, match="n3 was killed by signal 9"):
        cluster.wait_until_serving(5)


def test_a_second_cluster_in_the_directory_is_refused(cluster: SleepingCluster) -> None:
    second = SleepingCluster(cluster.config, cluster.data_dir)
    with pytest.raises(LocalClusterError, match=r"already runs .* `ledger dev stop`"):
        second.start()
    assert read_state(cluster.data_dir) is not None


def test_ports_in_use_are_all_named(
    tmp_path: Path, free_ports: Callable[[int], tuple[int, int]]
) -> None:
    base, gateway_port = free_ports(1)
    config = generate_cluster_config(1, 1, 1, base_port=base)
    ports = (base, base + 1, gateway_port)
    with ExitStack() as servers:
        for port in ports:
            servers.enter_context(socket.create_server(("127.0.0.1", port)))
        with pytest.raises(LocalClusterError) as caught:
            SleepingCluster(config, tmp_path, gateway_port).start()
        lines = str(caught.value).splitlines()
        assert [line.split(":")[0] for line in lines] == ["n1", "n1", "gateway"]
        assert all(f"127.0.0.1:{port}:" in line for port, line in zip(ports, lines, strict=True))
        assert "address already in use" in str(caught.value)


def test_lines_reach_whoever_wants_them(
    tmp_path: Path, free_ports: Callable[[int], tuple[int, int]]
) -> None:
    base, gateway_port = free_ports(1)
    lines: list[tuple[str, str]] = []
    config = generate_cluster_config(1, 1, 1, base_port=base)
    cluster = SleepingCluster(
        config, tmp_path, gateway_port, on_line=lambda name, line: lines.append((name, line))
    )
    with cluster:
        until(lambda: len(lines) == 2)
    assert sorted(lines) == [("gateway", "up"), ("n1", "up")]


def test_a_process_is_known_by_its_start_too() -> None:
    mine = mark_process(os.getpid())
    assert mine.alive
    stranger = ProcessMark(os.getpid(), mine.started + "0")
    assert not stranger.alive
    stranger.send(signal.SIGKILL)  # or this test would not live to tell
    assert not ProcessMark(2**22 + 1, "").alive


def test_dev_stop_ends_what_a_killed_supervisor_left(run: Run, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE) as sleeper:
        assert sleeper.stdout is not None
        sleeper.stdout.readline()
        mark = mark_process(sleeper.pid)
        stranger = ProcessMark(os.getpid(), "another start")
        state = cluster_state.ClusterState(stranger, {"n1": mark, "n2": stranger}, "")
        cluster_state.write_state(tmp_path, state)
        cluster = SleepingCluster(generate_cluster_config(), tmp_path)
        with pytest.raises(
            LocalClusterError, match=r"earlier cluster still run .* n1 \(pid \d+\);"
        ):
            cluster.start()
        stopped = run("dev", "stop", "--data-dir", str(tmp_path))
        assert stopped.exit_code == 0
        assert stopped.stdout == "stopped what an earlier cluster had left running: n1\n"
        assert sleeper.wait(5) == -signal.SIGTERM
    assert read_state(tmp_path) is None


@pytest.mark.parametrize("command", [("kill", "n1"), ("restart", "n1"), ("stop",)])
def test_without_a_cluster_it_says_so(run: Run, in_tmp: Path, command: tuple[str, ...]) -> None:
    (in_tmp / "cluster_config.json").write_text(generate_cluster_config().dump())
    result = run("dev", *command)
    assert result.exit_code == 1
    assert result.stderr.startswith("No local cluster runs in data. `ledger dev cluster` starts")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"supervisor": 1}', "\x00"])
def test_an_unreadable_state_file_is_no_state(tmp_path: Path, text: str) -> None:
    (tmp_path / "cluster.json").write_text(text)
    assert read_state(tmp_path) is None


@pytest.mark.cluster
def test_the_real_thing(
    run: Run, in_tmp: Path, free_ports: Callable[[int], tuple[int, int]]
) -> None:
    base, gateway_port = free_ports(3)
    config = generate_cluster_config(3, 4, base_port=base)
    (in_tmp / "cluster_config.json").write_text(config.dump())
    gateway = ("--gateway", f"127.0.0.1:{gateway_port}")
    with (in_tmp / "log").open("wb") as log:
        supervisor = subprocess.Popen(
            [
                *(sys.executable, "-m", "ledger_cli.main"),
                *("dev", "cluster", "--gateway-port", str(gateway_port)),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:

        def said(text: str) -> Callable[[], bool]:
            return lambda: text in (in_tmp / "log").read_text()

        until(said("ready in "), 60)
        state = read_state(in_tmp / "data")
        assert state is not None
        assert run("cluster", "status").exit_code == 0
        assert run(*gateway, "dev", "scenario-1").exit_code == 0

        killed = run("dev", "kill", "leader", "--shard", "3")
        assert killed.exit_code == 0, killed.output
        name = killed.stdout.splitlines()[0].rpartition(" ")[2]
        until(lambda: run("cluster", "status").exit_code == 0, 10)
        assert run(*gateway, "dev", "scenario-3").exit_code == 0
        assert run("dev", "kill", name).stderr == f"Cannot kill {name}: {name} is not running.\n"
        assert run("verify").exit_code == 1

        restarted = run("dev", "restart", name)
        assert restarted.stdout.endswith(f"{name} answers\n"), restarted.output
        until(lambda: run("verify").exit_code == 0, 20)

        again = run("dev", "cluster")
        assert again.exit_code == 1
        assert "already runs in data" in again.stderr

        assert run("dev", "kill", "gateway").exit_code == 0
        assert run(*gateway, "--timeout", "0.3", "accounts", "create").exit_code == 1
        last = read_state(in_tmp / "data")
        assert last is not None
        supervisor.terminate()
        assert supervisor.wait(20) == 0
        marks = [*state.processes.values(), *last.processes.values()]
        assert not any(mark.alive for mark in marks)
        assert said("nothing is left running")()
    finally:
        supervisor.terminate()
        supervisor.wait(20)

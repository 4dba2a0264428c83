"""A whole cluster on this machine: a process for each node, and one for the gateway.

`LocalCluster` is for programs (tests, the demo); `ledger dev cluster` puts a supervisor around it.
"""

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ledger_cli.cluster_state import (
    ClusterState,
    ProcessMark,
    mark_process,
    read_state,
    remove_state,
    write_state,
)
from ledger_cli.node_probe import NodeAnswer, NodeProbe, serving_leader, shards_without_leader
from ledger_cluster.config import ClusterConfig, split_address

GATEWAY = "gateway"
STOP_TIMEOUT_S = 10.0
KILL_TIMEOUT_S = 10.0
_LINE_BYTES_MAX = 64 * 2**10

# Below the ports that systems give to outgoing connections, so that a node which is down for a
# while finds its port free when it comes back.
PORTS = range(10_000, 30_000)

OnLine = Callable[[str, str], None]


class LocalClusterError(RuntimeError):
    """The cluster cannot do that; the text says why and what to do."""


@dataclass(frozen=True)
class Exit:
    """A process that ended by itself: nobody here asked it to."""

    name: str
    pid: int
    code: int

    @property
    def cause(self) -> str:
        """Say how it ended."""
        return f"was killed by signal {-self.code}" if self.code < 0 else f"exited with {self.code}"


class LocalCluster:
    """Starts, kills and restarts the processes of a cluster; a context manager. One thread only.

    ``on_line(name, line)`` gets what the processes print, from other threads; without it, that goes
    to ``<data_dir>/<name>.log``. Processes are ended through the handles held here, never by a bare
    process id. They run in sessions of their own, so that a Ctrl-C in the terminal reaches only
    whoever holds this object.
    """

    def __init__(
        self,
        config: ClusterConfig,
        data_dir: str | Path,
        gateway_port: int = 8000,
        *,
        config_path: str | Path | None = None,
        on_line: OnLine | None = None,
    ) -> None:
        self.config = config
        self.data_dir = Path(data_dir)
        self.gateway_address = f"127.0.0.1:{gateway_port}"
        self._config_path = Path(config_path) if config_path else self.data_dir / "config.json"
        self._write_config = config_path is None
        self._on_line = on_line
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._marks: dict[str, ProcessMark] = {}
        self._readers: list[threading.Thread] = []
        self._probe: NodeProbe | None = None
        self._started_at = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """The processes: every node, then ``gateway``."""
        return (*(node.id for node in self.config.nodes), GATEWAY)

    def command(self, name: str) -> list[str]:
        """Return the command line of a process."""
        if name == GATEWAY:
            port = self.gateway_address.rpartition(":")[2]
            what = ["ledger_gateway.main", "--port", port]
        else:
            what = [
                "ledger_node.main",
                *("--node-id", self.config.node(name).id),
                *("--data-dir", str(self.data_dir / name)),
            ]
        return [sys.executable, "-m", *what, "--cluster-config", str(self._config_path)]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start all processes; `wait_until_serving` waits for them to be of use."""
        if self._processes:
            raise LocalClusterError("the cluster is already started")
        self._refuse_second_cluster()
        self._refuse_ports_in_use()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        if self._write_config:
            self._config_path.write_text(self.config.dump())
        self._probe = NodeProbe(self.config)
        self._started_at = time.monotonic()
        try:
            for name in self.names:
                self._spawn(name)
        except BaseException:
            self.stop(timeout_s=0)
            raise

    def wait_until_serving(self, timeout_s: float = 30.0) -> float:
        """Wait until every shard has a serving leader and the gateway knows it.

        Returns the seconds since `start`. Raises LocalClusterError that says what is missing if
        that takes longer than ``timeout_s`` or a process ends meanwhile.
        """
        deadline = time.monotonic() + timeout_s
        while missing := self.not_serving():
            if exits := self.take_exits():
                raise LocalClusterError("; ".join(f"{item.name} {item.cause}" for item in exits))
            if time.monotonic() > deadline:
                raise LocalClusterError(f"not ready after {timeout_s:g} s: {missing}")
            time.sleep(0.05)
        return time.monotonic() - self._started_at

    def not_serving(self, timeout_s: float = 1.0) -> str:
        """Ask once; return in words what does not serve yet, or nothing if all does."""
        assert self._probe is not None, "start() first"
        answers = self._probe.node_statuses(timeout_s)
        if silent := shards_without_leader(self.config, answers):
            return f"no leader for {len(silent)} of {len(self.config.shards)} shards: {silent}"
        with grpc.insecure_channel(
            self.gateway_address, options=[("grpc.enable_http_proxy", 0)]
        ) as channel:
            health = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
            try:
                reply = health.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
            except grpc.RpcError as error:
                return f"no answer from the gateway: {error.code().name}"
        if reply.status != health_pb2.HealthCheckResponse.SERVING:
            return "the gateway does not see all shards serving"
        return ""

    def leader_of(self, shard_id: int) -> str | None:
        """Return the node that leads the shard and serves, if one does."""
        return serving_leader(self.config.shard(shard_id), self.statuses())

    def statuses(self) -> dict[str, NodeAnswer]:
        """Ask every node how it is."""
        assert self._probe is not None, "start() first"
        return self._probe.node_statuses()

    def commit_indexes(self) -> dict[int, int]:
        """Return for every shard the highest index that a node knows to be committed."""
        highest = {shard.id: 0 for shard in self.config.shards}
        for answer in self.statuses().values():
            for replica in answer.status.replicas if answer.status else ():
                highest[replica.shard_id] = max(highest[replica.shard_id], replica.commit_index)
        return highest

    def has_applied(self, name: str, indexes: dict[int, int]) -> bool:
        """Whether all replicas on a node have applied what `commit_indexes` returned earlier."""
        answer = self.statuses()[name]
        return answer.status is not None and all(
            replica.applied_index >= indexes[replica.shard_id] for replica in answer.status.replicas
        )

    def running(self, name: str) -> bool:
        """Whether the process runs."""
        return name in self._processes and self._processes[name].poll() is None

    def pid(self, name: str) -> int:
        """Return the process id of a running process."""
        return self._known(name).pid

    def kill(self, name: str) -> None:
        """End a process at once, as ``kill -9`` does, and see it gone."""
        process = self._known(name)
        process.kill()
        process.wait(KILL_TIMEOUT_S)
        self._forget(name)

    def terminate(self, name: str, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Ask a process to end, with SIGTERM; kill it if it has not after ``timeout_s``.

        Returns its exit code, as `subprocess` gives it.
        """
        process = self._known(name)
        process.terminate()
        _wait_or_kill(process, time.monotonic() + timeout_s)
        self._forget(name)
        return process.returncode

    def restart(self, name: str) -> None:
        """Start a process again; one that runs is asked to end first."""
        if name not in self.names:
            raise LocalClusterError(self._no_such(name))
        if self.running(name):
            self.terminate(name)
        self._spawn(name)

    def take_exits(self) -> list[Exit]:
        """Return the processes that ended by themselves since the last call."""
        exits = []
        for name, process in list(self._processes.items()):
            code = process.poll()
            if code is not None:
                exits.append(Exit(name, process.pid, code))
                self._forget(name)
        return exits

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> list[str]:
        """End all processes: SIGTERM, and SIGKILL for those that take longer than ``timeout_s``.

        The gateway goes first, so that its last calls still find the nodes. Returns the names of
        those that had to be killed.
        """
        began = time.monotonic()
        killed = []
        nodes = [name for name in self._processes if name != GATEWAY]
        gateway = [GATEWAY] if GATEWAY in self._processes else []
        for group, deadline in ((gateway, began + timeout_s / 2), (nodes, began + timeout_s)):
            for name in group:
                self._processes[name].terminate()
            killed += [name for name in group if _wait_or_kill(self._processes[name], deadline)]
        was_started = bool(self._processes) or self._probe is not None
        self._processes.clear()
        self._marks.clear()
        for reader in self._readers:
            reader.join(timeout=1.0)
        self._readers.clear()
        if self._probe:
            self._probe.close()
            self._probe = None
        if was_started:
            remove_state(self.data_dir)
        return killed

    def _spawn(self, name: str) -> None:
        with ExitStack() as files:
            output: int | IO[bytes] = subprocess.PIPE
            if self._on_line is None:
                output = files.enter_context((self.data_dir / f"{name}.log").open("ab"))
            process = subprocess.Popen(  # noqa: S603 - our own modules
                self.command(name),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        self._processes[name] = process
        self._marks[name] = mark_process(process.pid)
        self._save_state()
        if process.stdout is not None:
            assert self._on_line is not None
            reader = threading.Thread(
                target=_read_lines,
                args=(name, process.stdout, self._on_line),
                name=f"output of {name}",
                daemon=True,
            )
            reader.start()
            self._readers = [item for item in self._readers if item.is_alive()] + [reader]

    def _known(self, name: str) -> subprocess.Popen[bytes]:
        if name not in self.names:
            raise LocalClusterError(self._no_such(name))
        if not self.running(name):
            raise LocalClusterError(f"{name} is not running")
        return self._processes[name]

    def _no_such(self, name: str) -> str:
        return f"there is no process {name!r}; there are {', '.join(self.names)}"

    def _forget(self, name: str) -> None:
        self._processes.pop(name, None)
        self._marks.pop(name, None)
        self._save_state()

    def _save_state(self) -> None:
        state = ClusterState(mark_process(os.getpid()), dict(self._marks), self.gateway_address)
        write_state(self.data_dir, state)

    def _refuse_second_cluster(self) -> None:
        state = read_state(self.data_dir)
        if state is None:
            return
        if state.supervisor.alive and any(mark.alive for mark in state.processes.values()):
            raise LocalClusterError(
                f"a cluster already runs in {self.data_dir} (pid {state.supervisor.pid}); "
                "stop it with `ledger dev stop`, or choose another --data-dir"
            )
        if state.left_over:
            names = ", ".join(f"{name} (pid {m.pid})" for name, m in state.left_over.items())
            raise LocalClusterError(
                f"processes of an earlier cluster still run in {self.data_dir}: {names}; "
                "stop them with `ledger dev stop`"
            )

    def _refuse_ports_in_use(self) -> None:
        problems = [
            f"{name}: {problem}"
            for name, address in (
                *(
                    (node.id, address)
                    for node in self.config.nodes
                    for address in (node.address, node.link_address)
                ),
                (GATEWAY, self.gateway_address),
            )
            if (problem := _cannot_listen(address))
        ]
        if problems:
            raise LocalClusterError("\n".join(problems))


def free_cluster_ports(nodes: int) -> tuple[int, int]:
    """Return a free base port for a generated configuration, and a free port for a gateway."""
    base_port = free_base_port(2 * nodes + 1)
    return base_port, base_port + 2 * nodes


def free_base_port(count: int) -> int:
    """Return the first of ``count`` successive ports that are free on the loopback address."""
    for _ in range(1_000):
        base = random.randrange(PORTS.start, PORTS.stop - count)  # noqa: S311 - no secret
        if not any(_cannot_listen(f"127.0.0.1:{base + step}") for step in range(count)):
            return base
    raise LocalClusterError(f"there are no {count} successive free ports on 127.0.0.1")


def _cannot_listen(address: str) -> str:
    """Say why no server can listen at the address here; nothing if one can."""
    host, port = split_address(address)
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As servers do: a port whose last connections are only fading out can be used.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen(1)
    except OSError as error:
        if isinstance(error, socket.gaierror):
            return f"{address}: host {host!r} is not known"
        reason = (error.strerror or str(error)).lower()
        return f"cannot listen at {address}: {reason}"
    return ""


def _wait_or_kill(process: subprocess.Popen[bytes], deadline: float) -> bool:
    """Wait for a process that was asked to end; return whether it had to be killed."""
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(KILL_TIMEOUT_S)
        return True
    return False


def _read_lines(name: str, stream: IO[bytes], on_line: OnLine) -> None:
    with stream:
        while line := stream.readline(_LINE_BYTES_MAX):
            try:
                on_line(name, line.decode(errors="replace").rstrip("\r\n"))
            except (OSError, ValueError):
                # Nobody reads our output any more. Go on reading, or the process would block.
                continue

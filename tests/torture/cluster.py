"""A cluster whose processes talk through proxies, and all that can be done to it.

Every process has a configuration of its own: the same cluster, but the link addresses of the others
are those of its proxies. What watches the cluster from outside uses the true addresses.
"""

import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

from ledger_cli.local_cluster import GATEWAY, Exit, LocalCluster, free_cluster_ports
from ledger_cluster.config import ClusterConfig, generate_cluster_config, split_address
from tests.torture.network import Network, Pair

ENDS_S_MAX = 20.0
# Small, so that nodes which were away for a while, or lost all, get snapshots.
LOG_KEEP_ENTRIES = 200


def make_config(nodes: int, shards: int, replicas: int = 3) -> tuple[ClusterConfig, int]:
    """Return a configuration on free ports, and a free port for the gateway."""
    base_port, gateway_port = free_cluster_ports(nodes)
    config = generate_cluster_config(
        nodes, shards, replicas, cluster_id="torture", base_port=base_port
    )
    return config, gateway_port


def links_of(config: ClusterConfig) -> dict[Pair, tuple[str, int]]:
    """Every pair of which the first dials the second, with the second's true link address."""
    ids = sorted(node.id for node in config.nodes)
    pairs = [(one, other) for one in ids for other in ids if one < other]
    pairs += [(GATEWAY, node_id) for node_id in ids]
    return {pair: split_address(config.node(pair[1]).link_address) for pair in pairs}


class TorturedCluster(LocalCluster):
    """A local cluster behind a `Network`. As its base: one thread only."""

    def __init__(
        self,
        config: ClusterConfig,
        data_dir: Path,
        gateway_port: int,
        network: Network,
        store_max_mib: dict[str, int] | None = None,
    ) -> None:
        super().__init__(config, data_dir, gateway_port)
        self._network = network
        self._store_max_mib = store_max_mib or {}
        self._frozen: set[str] = set()
        self._unexpected: list[Exit] = []
        data_dir.mkdir(parents=True, exist_ok=True)
        for name in self.names:
            (data_dir / f"{name}.json").write_text(self._seen_by(name).dump())

    def _seen_by(self, name: str) -> ClusterConfig:
        nodes = [
            replace(node, link_address=self._network.address((name, node.id)))
            if (name, node.id) in self._network.pairs
            else node
            for node in self.config.nodes
        ]
        return replace(self.config, nodes=tuple(nodes))

    def command(self, name: str) -> list[str]:
        """The base's command, with the process's own configuration and store bound."""
        command = super().command(name)
        command[-1] = str(self.data_dir / f"{name}.json")
        if name != GATEWAY:
            command += ["--log-keep-entries", str(LOG_KEEP_ENTRIES)]
        if name in self._store_max_mib:
            command += ["--store-max-mib", str(self._store_max_mib[name])]
        return command

    def kill_nodes(self, names: list[str]) -> None:
        """``kill -9`` of several nodes as nearly at once as one process can."""
        for name in names:
            os.kill(self.pid(name), signal.SIGKILL)
        for name in names:
            self._processes[name].wait(ENDS_S_MAX)
            self._forget(name)

    def freeze(self, name: str) -> None:
        """Stop a process where it stands; `thaw` lets it go on."""
        os.kill(self.pid(name), signal.SIGSTOP)
        self._frozen.add(name)

    def thaw(self, name: str) -> None:
        """Let a frozen process go on."""
        self._frozen.discard(name)
        if self.running(name):
            os.kill(self.pid(name), signal.SIGCONT)

    def start_refused(self, name: str) -> tuple[int | None, str]:
        """Start a node that should end by itself; return its exit code and what it printed.

        The code is None if it still runs after a while; it is killed then.
        """
        log = self.data_dir / f"{name}.log"
        before = log.stat().st_size if log.exists() else 0
        self.restart(name)
        return self.wait_for_end(name, 6.0), read_from(log, before)

    def wait_for_end(self, name: str, timeout_s: float) -> int | None:
        """Wait for a process to end by itself; return its exit code, or None after killing it."""
        process = self._processes[name]
        deadline = time.monotonic() + timeout_s
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        code = process.poll()
        if code is None:
            self.kill(name)
        else:
            self._forget(name)
        return code

    def stop(self, timeout_s: float = 10.0) -> list[str]:
        """End all processes, frozen ones too."""
        for name in list(self._frozen):
            self.thaw(name)
        return super().stop(timeout_s)

    def node_dir(self, name: str) -> Path:
        """Where a node keeps its data."""
        return self.data_dir / name

    def wipe(self, name: str) -> None:
        """Remove everything a node has stored."""
        for item in self.node_dir(name).iterdir():
            if item.is_dir():
                shutil.rmtree(item)
            else:
                item.unlink()

    def has_all(self, name: str) -> bool:
        """Whether a node has applied everything that is committed now."""
        return self.has_applied(name, self.commit_indexes())

    def all_proven(self) -> bool:
        """Whether every replica may vote: a wiped one may not until it has caught up."""
        return all(
            answer.status is not None and not any(item.unproven for item in answer.status.replicas)
            for answer in self.statuses().values()
        )

    def log_size(self, name: str) -> int:
        """How much a process has printed so far, in bytes; for `printed_since`."""
        log = self.data_dir / f"{name}.log"
        return log.stat().st_size if log.exists() else 0

    def printed_since(self, name: str, size: int) -> str:
        """What a process has printed since `log_size` was ``size``."""
        return read_from(self.data_dir / f"{name}.log", size)


def read_from(file: Path, position: int) -> str:
    """Return the text of a file from a byte position on."""
    with file.open("rb") as stream:
        stream.seek(position)
        return stream.read().decode(errors="replace")

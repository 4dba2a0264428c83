"""The supervisor of `ledger dev cluster`: keeps a local cluster up, in the foreground.

It stops everything on Ctrl-C, SIGTERM and SIGHUP. A process that dies by itself does not stop the
others. `ledger dev kill`, `restart` and `stop` reach it through files (`cluster_state`).
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.text import Text

from ledger_cli.cluster_state import answer_requests, clear_requests
from ledger_cli.local_cluster import GATEWAY, LocalCluster, LocalClusterError
from ledger_cli.output import console, printable

TURN_S = 0.05
READY_TIMEOUT_S = 60.0
_STYLES = ("cyan", "green", "yellow", "blue", "magenta", "bright_cyan", "bright_green")


class Supervisor:
    """Runs a cluster until it is told to stop."""

    def __init__(self, names: tuple[str, ...], restart_hint: str = "ledger dev restart") -> None:
        self._screen = console()
        self._restart_hint = restart_hint
        self._stop = threading.Event()
        self._width = max(map(len, names))
        self._styles = {
            name: "bold white" if name == GATEWAY else _STYLES[index % len(_STYLES)]
            for index, name in enumerate(names)
        }

    def show_line(self, name: str, line: str) -> None:
        """Print a line of a process behind its name."""
        text = Text.assemble(
            (f"{name:{self._width}} | ", self._styles[name]), printable(line.expandtabs())
        )
        self._screen.print(text, soft_wrap=True)

    def say(self, line: str, style: str = "bold") -> None:
        """Print a line of our own."""
        self._screen.print(Text(line, style=style), soft_wrap=True)

    def run(self, cluster: LocalCluster, ready_timeout_s: float = READY_TIMEOUT_S) -> None:
        """Start the cluster, keep it up until a signal or `ledger dev stop`, and stop it.

        Raises LocalClusterError if it does not come up.
        """
        with self._signals():
            cluster.start()
            clear_requests(cluster.data_dir)
            try:
                self._come_up(cluster, ready_timeout_s)
                while not self._stop.wait(TURN_S):
                    self._turn(cluster)
            finally:
                self.say("Stopping …")
                killed = cluster.stop()
                clear_requests(cluster.data_dir)
                for name in killed:
                    self.say(f"{name} did not stop in time and was killed", "bold red")
                self.say("Stopped; nothing is left running.")

    def _come_up(self, cluster: LocalCluster, timeout_s: float) -> None:
        began = time.monotonic()
        names = ", ".join(f"{name} (pid {cluster.pid(name)})" for name in cluster.names)
        self.say(f"Started {names}.")
        while (missing := cluster.not_serving()) and not self._stop.wait(TURN_S):
            if exits := cluster.take_exits():
                causes = "; ".join(f"{item.name} {item.cause}" for item in exits)
                raise LocalClusterError(f"The cluster did not come up: {causes} (its log is above)")
            self._answer(cluster)
            if time.monotonic() - began > timeout_s:
                raise LocalClusterError(f"The cluster is not up after {timeout_s:g} s: {missing}")
        if self._stop.is_set():
            return
        seconds = time.monotonic() - began
        shards = len(cluster.config.shards)
        self.say(f"ready in {seconds:.1f} s: every one of {shards} shards has a leader", "green")
        for line in (
            f"  gateway  {cluster.gateway_address}",
            "  try      ledger dev scenario-1",
            "           ledger cluster status",
            "           ledger dev kill leader --shard 3",
            "  stop     Ctrl-C",
        ):
            self.say(line, "")

    def _turn(self, cluster: LocalCluster) -> None:
        for item in cluster.take_exits():
            self.say(
                f"{item.name} (pid {item.pid}) {item.cause}; the others go on. "
                f"Start it again: {self._restart_hint} {item.name}",
                "bold red",
            )
        self._answer(cluster)

    def _answer(self, cluster: LocalCluster) -> None:
        answer_requests(cluster.data_dir, lambda action, name: self._act(cluster, action, name))

    def _act(self, cluster: LocalCluster, action: str, name: str) -> str:
        if action == "stop":
            self._stop.set()
            return "stopping"
        if action == "kill":
            pid = cluster.pid(name)
            cluster.kill(name)
            said = f"killed {name} (pid {pid})"
            self.say(f"{said}. Start it again: {self._restart_hint} {name}", "bold yellow")
        elif action == "restart":
            cluster.restart(name)
            said = f"started {name} (pid {cluster.pid(name)})"
            self.say(said, "bold green")
        else:
            raise LocalClusterError(f"unknown request {action!r}")
        return said

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(_number: int, _frame: FrameType | None) -> None:
            self._stop.set()

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

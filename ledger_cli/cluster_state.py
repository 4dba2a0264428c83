"""The state file of a local cluster, and the way in to its supervisor.

``cluster.json`` in the data directory says which processes run. A process is named by its id *and*
its start time: ids are used again, so an id alone may by now be some stranger's.

Requests to the supervisor are files too: ``control/<id>.request``, answered by
``control/<id>.reply``. That works wherever the data directory is, unlike a unix socket, whose path
may have about 100 bytes at most; and the supervisor ends processes through handles it holds.
"""

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

STATE_FILE = "cluster.json"
CONTROL_DIR = "control"
REPLY_POLL_S = 0.02


@dataclass(frozen=True)
class ProcessMark:
    """A process that can be told from a later one with the same id."""

    pid: int
    started: str

    @property
    def alive(self) -> bool:
        """Whether this very process is running."""
        return bool(self.started) and start_mark(self.pid) == self.started

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if this very process is still running."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


@dataclass(frozen=True)
class ClusterState:
    """What runs in a data directory: the supervisor and the processes by name."""

    supervisor: ProcessMark
    processes: dict[str, ProcessMark]
    gateway_address: str

    @property
    def left_over(self) -> dict[str, ProcessMark]:
        """Processes that outlived their supervisor."""
        if self.supervisor.alive:
            return {}
        return {name: mark for name, mark in self.processes.items() if mark.alive}


def mark_process(pid: int) -> ProcessMark:
    """Return the mark of a running process."""
    return ProcessMark(pid, start_mark(pid))


def start_mark(pid: int) -> str:
    """Return what tells the process from others of the same id; empty if it does not run."""
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return ""
        # The name of the program stands in parentheses and may itself hold any character.
        fields = stat.rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else f"{boot}/{fields[19]}"
    shown = subprocess.run(  # noqa: S603 - a fixed command
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)],  # noqa: S607 - found where the system has it
        capture_output=True,
        text=True,
        check=False,
        timeout=5,
    ).stdout.strip()
    condition, _, started = shown.partition(" ")
    return "" if condition.startswith("Z") else started.strip()


def write_state(data_dir: Path, state: ClusterState) -> None:
    """Replace the state file, whole."""
    _write_whole(data_dir / STATE_FILE, asdict(state))


def read_state(data_dir: Path) -> ClusterState | None:
    """Return the state; None if there is no readable one."""
    try:
        found = json.loads((data_dir / STATE_FILE).read_text())
        return ClusterState(
            supervisor=ProcessMark(**found["supervisor"]),
            processes={name: ProcessMark(**mark) for name, mark in found["processes"].items()},
            gateway_address=found["gateway_address"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def remove_state(data_dir: Path) -> None:
    """Remove the state file: nothing runs any more."""
    (data_dir / STATE_FILE).unlink(missing_ok=True)


def request(
    data_dir: Path, supervisor: ProcessMark, action: str, name: str, timeout_s: float
) -> str:
    """Ask the supervisor to do something; returns what it says.

    Raises TimeoutError if it does not answer, and RuntimeError with its words if it refuses.
    """
    control = data_dir / CONTROL_DIR
    control.mkdir(exist_ok=True)
    request_id = uuid.uuid4().hex
    asked, answered = control / f"{request_id}.request", control / f"{request_id}.reply"
    _write_whole(asked, {"action": action, "name": name})
    deadline = time.monotonic() + timeout_s
    try:
        while not answered.exists():
            if time.monotonic() > deadline or not supervisor.alive:
                raise TimeoutError(f"the supervisor (pid {supervisor.pid}) does not answer")
            time.sleep(REPLY_POLL_S)
        reply = json.loads(answered.read_text())
    finally:
        asked.unlink(missing_ok=True)
        answered.unlink(missing_ok=True)
    if not reply["ok"]:
        raise RuntimeError(reply["message"])
    return str(reply["message"])


def clear_requests(data_dir: Path) -> None:
    """Forget requests to an earlier supervisor."""
    for path in (data_dir / CONTROL_DIR).glob("*.re*"):
        path.unlink(missing_ok=True)


def answer_requests(data_dir: Path, act: Callable[[str, str], str]) -> None:
    """Let ``act(action, name)`` handle all requests that wait; a RuntimeError is a refusal."""
    for path in sorted((data_dir / CONTROL_DIR).glob("*.request")):
        try:
            asked = json.loads(path.read_text())
            action, name = str(asked["action"]), str(asked["name"])
        except (OSError, ValueError, KeyError, TypeError):
            path.unlink(missing_ok=True)
            continue
        path.unlink(missing_ok=True)
        try:
            reply = {"ok": True, "message": act(action, name)}
        except RuntimeError as error:
            reply = {"ok": False, "message": str(error)}
        _write_whole(path.with_suffix(".reply"), reply)


def _write_whole(path: Path, content: dict[str, Any]) -> None:
    """Write so that a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    draft.write_text(json.dumps(content, indent=2) + "\n")
    draft.replace(path)

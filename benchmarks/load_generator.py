"""Starts the process that makes the load, and hears from it."""

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

from benchmarks.histogram import Buckets
from benchmarks.load import DRAIN_S_MAX, Load

ROOT = Path(__file__).parent.parent
PATIENCE_S = 30.0
END_S_MAX = 5.0


class LoadError(RuntimeError):
    """The load could not be made; the text says why."""


@dataclass(frozen=True)
class LoadResult:
    """What the load process reports at the end of a load. All counts are of calls."""

    done: float
    failed: dict[str, int]
    unsent: int
    histogram: Buckets
    moments: list[float]


class LoadGenerator:
    """A context manager; one load at a time."""

    def __init__(self, target: str, accounts: Path, log: Path) -> None:
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.load_process", target, str(accounts)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                text=True,
                # A Ctrl-C in the terminal is for the program that started us.
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(
            target=_read, args=(self._process.stdout, self._lines), daemon=True
        )
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process that makes the load."""
        return self._process.pid

    def run(self, load: Load, on_event: Callable[[str, dict[str, Any]], None]) -> LoadResult:
        """Have a load made; tell of every event (see `load_process`) as it comes."""
        deadline = time.monotonic() + load.warmup_s + load.seconds + DRAIN_S_MAX + PATIENCE_S
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asdict(load)) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise LoadError(self._problem("does not listen")) from None
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise LoadError(self._problem("did not end in time")) from None
            if not line:
                raise LoadError(self._problem("ended by itself"))
            told = json.loads(line)
            event = told.pop("event")
            if event == "outcome":
                told.pop("at")
                told["histogram"] = [(value, count) for value, count in told["histogram"]]
                return LoadResult(**told)
            on_event(event, told)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(END_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(END_S_MAX)
        self._reader.join(END_S_MAX)

    def _problem(self, what: str) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"the load generator {what}: {lines[-1] if lines else 'it said nothing'}"


def _read(stream: IO[str], lines: "queue.Queue[str]") -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put("")

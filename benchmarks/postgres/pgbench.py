"""Runs pgbench on a server and reads what it has measured."""

import os
import re
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.histogram import Latencies
from benchmarks.postgres.server import PostgresError, Server

SCRIPTS = Path(__file__).parent
PATIENCE_S = 60.0
_RATE = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)
_FAILED = re.compile(r"^number of failed transactions: ([0-9]+)", re.MULTILINE)


@dataclass(frozen=True)
class PgbenchResult:
    """What it says. Calls are database transactions."""

    calls: int
    calls_per_s: float
    failed: int
    latencies: Latencies
    cpu_s: float
    """Of pgbench itself."""


def pgbench(
    server: Server,
    *,
    clients: int,
    per_call: int,
    accounts: int,
    seconds: float,
    passed: Callable[[float], None],
) -> PgbenchResult:
    """Make transfers for a time (whole seconds)."""
    script = "transfer.pgbench" if per_call == 1 else "transfers.pgbench"
    whole_s = max(1, round(seconds))
    with tempfile.TemporaryDirectory(prefix="ledger-bench-pgbench-") as folder:
        command = server.command(
            "pgbench",
            *("-n", "-M", "prepared", "-f", str(SCRIPTS / script)),
            *("-c", str(clients), "-j", str(min(clients, os.cpu_count() or 1))),
            *("-T", str(whole_s), "-D", f"accounts={accounts}", "-D", f"per_call={per_call}"),
            *("-l", f"--log-prefix={folder}/log"),
        )
        before = _children_cpu_s()
        output = _run(command, whole_s, passed)
        cpu_s = _children_cpu_s() - before
        latencies, calls = Latencies(), 0
        for log in Path(folder).iterdir():
            for line in log.read_text().splitlines():
                # Client, number, microseconds, script, and when it ended; `failed` for a time.
                took = line.split()[2]
                if took.isdecimal():
                    calls += 1
                    latencies.add(int(took) / 1e6)
    rate, failed = _RATE.search(output), _FAILED.search(output)
    if rate is None:
        raise PostgresError(f"pgbench: {output.strip()}")
    return PgbenchResult(calls, float(rate[1]), int(failed[1]) if failed else 0, latencies, cpu_s)


def _run(command: list[str], seconds: float, passed: Callable[[float], None]) -> str:
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                if time.monotonic() - began > seconds + PATIENCE_S:
                    raise PostgresError("pgbench did not end in time")
                passed(time.monotonic() - began)
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise PostgresError(f"pgbench: {text.strip()[-500:]}")
    return text


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

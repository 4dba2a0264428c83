"""Where a measurement was made, and of what: hardware, versions, commit. No names, no paths."""

import os
import platform
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = (
    "ledger-service",
    "grpcio",
    "protobuf",
    "lmdb",
    "msgspec",
    "numpy",
    "pysyncobj",
    "uvloop",
)
ROOT = Path(__file__).parent.parent
FSYNCS = 50


def describe(scratch: Path | None) -> dict[str, Any]:
    """Return all of it as JSON has it."""
    folder = scratch or Path(tempfile.gettempdir())
    return {
        "hardware": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
            "file_system": file_system(folder),
            "fsync_ms": fsync_ms(folder),
        },
        "versions": {
            "linux": platform.release(),
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def file_system(folder: Path) -> str:
    """Return the kind of file system that a folder is on, such as ``ext4``."""
    device = folder.resolve().stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0]
    return "unknown"


def fsync_ms(folder: Path) -> float:
    """Return the median time that it takes to append 4 KiB to a file and have them on the disk."""
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(FSYNCS):
            file.write(bytes(4096))
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return round(sorted(times)[FSYNCS // 2] * 1000, 3)


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _git(*arguments: str) -> str:
    try:
        return subprocess.check_output(
            ["git", *arguments], cwd=ROOT, text=True, stderr=subprocess.DEVNULL
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return ""

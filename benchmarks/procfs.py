"""What processes have used so far, from /proc (Linux).

Bytes written are what a process has passed to write calls (``wchar``): gRPC and PostgreSQL use
others for sockets, so this is what goes to files. ``write_bytes`` would seem better, but where the
kernel keeps files in large pages, it counts 1 MiB for 4 KiB written. What the disk gets, with the
file system's own journal, is known for the whole machine only: `Snapshot.disk_bytes`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
_SECTOR_BYTES = 512


@dataclass(frozen=True)
class Usage:
    """CPU time, and bytes written to files."""

    cpu_s: float = 0.0
    written_bytes: int = 0

    def __add__(self, other: Self) -> "Usage":
        return Usage(self.cpu_s + other.cpu_s, self.written_bytes + other.written_bytes)

    def __sub__(self, other: Self) -> "Usage":
        return Usage(self.cpu_s - other.cpu_s, self.written_bytes - other.written_bytes)


def usage(pid: int) -> Usage:
    """Return what a process has used, with those of its children that have ended."""
    fields = _stat(pid)
    # utime, stime, cutime, cstime: fields 14 to 17; the first one here is field 3.
    ticks = sum(int(field) for field in fields[11:15])
    return Usage(ticks / _TICKS_PER_S, _written_bytes(pid))


def tree_usage(pid: int) -> Usage:
    """Return what a process and all its children have used."""
    total = usage(pid)
    for child in _children(pid):
        try:
            total += usage(child)
        except OSError:
            # Ended since it was listed: its parent has its sums now.
            continue
    return total


def busy_cores_s() -> float:
    """Return the CPU time that all of the machine has spent working."""
    fields = (_PROC / "stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) / _TICKS_PER_S


def disk_bytes(folder: Path) -> int | None:
    """Return what has been written to the disk that a folder is on; None if it has none."""
    device = folder.stat().st_dev
    stat = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    try:
        return int(stat.read_text().split()[6]) * _SECTOR_BYTES
    except OSError:
        return None


@dataclass(frozen=True)
class Snapshot:
    """What the components of a system, and the machine, have used up to a moment."""

    components: Mapping[str, Usage]
    busy_s: float
    disk_bytes: int | None
    """Written to the disk that the data is on, by anyone; None where that cannot be told."""

    @classmethod
    def take(cls, components: Mapping[str, Usage], folder: Path) -> "Snapshot":
        """Add what the machine, and the disk of a folder, have done."""
        return cls(components, busy_cores_s(), disk_bytes(folder))

    def since(self, before: "Snapshot") -> dict[str, Usage]:
        """Return what each component has used between two moments."""
        return {name: used - before.components[name] for name, used in self.components.items()}

    def disk_bytes_since(self, before: "Snapshot") -> int | None:
        """Return what was written to the disk between two moments."""
        if self.disk_bytes is None or before.disk_bytes is None:
            return None
        return self.disk_bytes - before.disk_bytes

    def other_cores(self, before: "Snapshot", seconds: float) -> float:
        """Return how many cores have been busy with what is no component."""
        ours = sum(used.cpu_s for used in self.since(before).values())
        return round(max(0.0, self.busy_s - before.busy_s - ours) / seconds, 2)


def _stat(pid: int) -> list[str]:
    # The command's name, in brackets, may have blanks and brackets in it.
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _written_bytes(pid: int) -> int:
    for line in (_PROC / str(pid) / "io").read_text().splitlines():
        name, _, value = line.partition(": ")
        if name == "wchar":
            return int(value)
    raise OSError(f"no wchar of process {pid}")


def _children(pid: int) -> list[int]:
    return [
        int(child)
        for file in (_PROC / str(pid) / "task").glob("*/children")
        for child in file.read_text().split()
    ]

"""The file with the results of a run."""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.figures import Figures


@dataclass
class Results:
    """All that a run has shown, so far."""

    options: dict[str, Any]
    machine: dict[str, Any]
    began: float = field(default_factory=time.time)
    load_average_before: float = field(default_factory=lambda: os.getloadavg()[0])
    figures: list[Figures] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Steps that could not be done here, and why."""
    broken: dict[str, str] = field(default_factory=dict)
    """Steps in which something went wrong, and what."""

    def save(self, folder: Path) -> Path:
        """Write it into a folder, under a name made of time and commit; return the file."""
        folder.mkdir(parents=True, exist_ok=True)
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.began))
        commit = self.machine["commit"][:8] or "unknown"
        dirty = "-changed" if self.machine["uncommitted_changes"] else ""
        quick = "-quick" if self.options["quick"] else ""
        file = folder / f"{moment}-{commit}{dirty}{quick}.json"
        document = asdict(self) | {
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.began)),
            "took_s": round(time.time() - self.began, 1),
        }
        file.write_text(json.dumps(document, separators=(",", ":")) + "\n")
        return file

"""What the steps of a run share: the options, the progress bar, and the cluster that is up."""

from pathlib import Path
from typing import Protocol, Self

from benchmarks.figures import Figures
from benchmarks.progress import Progress
from benchmarks.stage import Size, Stage


class Bench:
    """Keeps the cluster of the last step, for the next one may want the same; a context manager."""

    def __init__(self, scratch: Path | None, progress: Progress) -> None:
        self.scratch = scratch
        self.progress = progress
        self.versions: dict[str, str] = {}
        """Of what else was measured."""
        self._stage: Stage | None = None
        self._part = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.clear()

    def stage(self, part: str, size: Size) -> Stage:
        """Return a cluster of a size, new unless the part has one: each starts without history."""
        if self._stage is None or (self._part, self._stage.size) != (part, size):
            self.clear()
            self._part = part
            self._stage = Stage(size, self.scratch, self.progress).__enter__()
        return self._stage

    def clear(self) -> None:
        """End the cluster that is up: what comes next needs the machine, or a new one."""
        if self._stage is not None:
            self._stage.__exit__()
            self._stage = None

    def prove(self) -> None:
        """See that the books of the cluster that is up are right; raises `MoneyError`."""
        if self._stage is not None:
            self._stage.prove()


class SkippedError(Exception):
    """A step cannot be done here; the text says why."""


class Step(Protocol):
    """One line of work in a run: one or more measurements that belong together."""

    @property
    def title(self) -> str:
        """What the progress bar says."""

    def run(self, bench: Bench) -> list[Figures]:
        """Do it. Raises `SkippedError`, or whatever went wrong."""

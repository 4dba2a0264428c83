"""The progress bar on the terminal, and lines that stay."""

from collections.abc import Iterable, Iterator
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

ItemT = TypeVar("ItemT")


class Progress:
    """Two bars, the whole and what is under way; a context manager. Without a terminal, lines."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._whole = self._bars.add_task("all", note="", total=None)
        self._now = self._bars.add_task("", note="", total=None)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._bars.stop()

    def through(self, items: Iterable[ItemT], total: int) -> Iterator[ItemT]:
        """Go through the steps of the whole."""
        self._bars.update(self._whole, total=total)
        for number, item in enumerate(items):
            self._bars.update(self._whole, completed=number, note=f"{number + 1} of {total}")
            yield item
        self._bars.update(self._whole, completed=total, note="")

    def expect(self, total: float, note: str) -> None:
        """Begin something that takes so much of whatever `passed` is told of."""
        self._bars.reset(self._now, total=total, note=note)

    def passed(self, completed: float, note: str) -> None:
        """Tell how much of it is done."""
        self._bars.update(self._now, completed=completed, note=note)

    def step(self, title: str) -> None:
        """Name what is under way."""
        self._bars.update(self._now, description=title)

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.console.print(line, markup=False, soft_wrap=True)

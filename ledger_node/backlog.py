"""What gateways carry to its end themselves, and leaders only where they do not.

A gateway is through with a block of transfers in milliseconds, mostly. So the leader does not keep
an object for each of up to 1,024 transfers, but notes their numbers as a range, and looks only
after some time which of them still stand in the table of what is unfinished.
"""

from collections import deque
from dataclasses import dataclass

# Notes of so long a time become one: so there are few of them, however small blocks are.
_GATHERED_S = 0.25


@dataclass(slots=True)
class _Note:
    since: float
    due_at: float
    first: int
    last: int


class Backlog:
    """Numbers that may stand in a table of one shard, and when to look.

    A range may have numbers in it that are none of the backlog's: only the table tells.
    """

    def __init__(self) -> None:
        self._notes: deque[_Note] = deque()
        # What is due, and not looked through yet: empty at first. `_end` never falls.
        self._next, self._end = 1, 0
        self._again_at = float("inf")

    @property
    def idle(self) -> bool:
        """Whether there is nothing to look at, now or later."""
        return not self._notes and self._next > self._end and self._again_at == float("inf")

    def add(self, first: int, last: int, now: float, delay_s: float) -> None:
        """Note that numbers from ``first`` to ``last`` are to be looked at after a delay."""
        due_at = now + delay_s
        newest = self._notes[-1] if self._notes else None
        if newest is not None and newest.since <= now < newest.since + _GATHERED_S:
            newest.first, newest.last = min(newest.first, first), max(newest.last, last)
            newest.due_at = max(newest.due_at, due_at)
        else:
            self._notes.append(_Note(now, due_at, first, last))

    def add_again(self, at: float) -> None:
        """Look through all that was due once more, from a time on: some of it was put back."""
        self._again_at = min(self._again_at, at)

    def due(self, now: float) -> tuple[int, int] | None:
        """Return the first and the last number that are to be looked at now."""
        if now >= self._again_at:
            self._again_at = float("inf")
            self._next = 1
        while self._notes and self._notes[0].due_at <= now:
            note = self._notes.popleft()
            self._next = min(self._next, note.first) if self._next <= self._end else note.first
            self._end = max(self._end, note.last)
        return (self._next, self._end) if self._next <= self._end else None

    def looked_at(self, last: int) -> None:
        """Go on behind a number the next time."""
        self._next = last + 1

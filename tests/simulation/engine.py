"""Simulated time: a queue of events, and a trace that tells whether two runs were the same."""

import hashlib
import heapq
import random
from collections import Counter
from collections.abc import Callable


class Violation(AssertionError):  # noqa: N818  (it is the finding, not a failure of the simulation)
    """The product broke one of its promises."""


def require(condition: object, what: str) -> None:
    """Raise a Violation unless the condition holds."""
    if not condition:
        raise Violation(what)


class Engine:
    """Runs events in the order of their time; equal times in the order they were asked for.

    ``rng`` is the only source of chance in a run, and events draw from it in the order they run.
    """

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.rng = random.Random(f"run {seed}")
        self.steps = 0
        self.counts: Counter[str] = Counter()
        self.log: Callable[[str], None] | None = None
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._asked = 0
        self._trace = hashlib.blake2b(digest_size=16)

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something later."""
        self.at(self.now + delay_s, action)

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Do something at a time that has not passed."""
        self._asked += 1
        heapq.heappush(self._queue, (max(time_s, self.now), self._asked, action))

    def run_until(self, time_s: float, done: Callable[[], bool] | None = None) -> bool:
        """Run events up to a time, or until ``done``; return whether it was."""
        queue = self._queue
        while queue and queue[0][0] <= time_s:
            if done is not None and done():
                return True
            self.now, _, action = heapq.heappop(queue)
            self.steps += 1
            action()
        if done is not None and done():
            return True
        self.now = time_s
        return False

    def note(self, what: str, data: bytes = b"") -> None:
        """Add an event to the trace."""
        self._trace.update(b"%.9f %d " % (self.now, len(data)))
        self._trace.update(what.encode())
        self._trace.update(data)
        if self.log is not None:
            self.log(f"{self.now:10.4f}  {what}  {data.hex()[:60]}")

    @property
    def trace_hash(self) -> str:
        """A hash of everything noted so far."""
        return self._trace.hexdigest()

"""Makes calls, in a closed or an open loop, and keeps count. Knows nothing of what is called."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from benchmarks.histogram import Latencies

DRAIN_S_MAX = 30.0
"""After the end, answers that are still to come are waited for so long."""

Call = Callable[[], Awaitable[None]]


class WrongAnswerError(Exception):
    """An answer came, but not the one that the load is there to get. The text is short."""


@dataclass(frozen=True)
class Load:
    """What to do. `time.monotonic` is the clock of all moments: all processes share it."""

    operation: str
    """A name in `benchmarks.operations`."""
    seconds: float
    warmup_s: float
    in_flight: int
    """Closed loop: so many calls all the time. Open loop: at most."""
    per_s: float | None = None
    """Calls to start each second, evenly spaced: an open loop. None: a closed one."""
    seed: int = 1
    per_call: int = 1
    """How many transactions a call carries. All counts are of calls."""
    connections: int = 1
    """Over how many the calls go, in turns; for operations that can have more than one."""
    timeline: bool = False
    """Whether to keep the moment at which each call was done."""


@dataclass
class Outcome:
    """What came of it."""

    done: float = 0.0
    """Calls answered as they should be. One that was under way when the measured seconds began or
    ended counts with the part of its time that is within them: calls may take as long as these."""
    latencies: Latencies = field(default_factory=Latencies)
    """Of what was begun, or planned, within the measured seconds."""
    failed: Counter[str] = field(default_factory=Counter)
    unsent: int = 0
    moments: list[float] = field(default_factory=list)
    """When calls were done, in order, if the load asks for it."""


class Run:
    """One load, begun when this is made."""

    def __init__(self, call: Call, load: Load) -> None:
        self.outcome = Outcome()
        self.began = time.monotonic()
        self.measured_from = self.began + load.warmup_s
        self.until = self.measured_from + load.seconds
        self._call = call
        self._load = load
        self._numbers = itertools.count()
        self._taken = 0

    async def run(self) -> Outcome:
        """Keep calling until the end; return after the last answer, or `DRAIN_S_MAX`."""
        worker = self._closed if self._load.per_s is None else self._open
        tasks = [asyncio.create_task(worker()) for _ in range(self._load.in_flight)]
        _, late = await asyncio.wait(tasks, timeout=self.until + DRAIN_S_MAX - time.monotonic())
        for task in late:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, asyncio.CancelledError):
                self.outcome.failed["no answer"] += 1
            elif isinstance(result, BaseException):
                raise result
        if self._load.per_s is not None:
            self._count_unsent(self._load.per_s)
        return self.outcome

    async def _closed(self) -> None:
        while (began := time.monotonic()) < self.until:
            await self._make(began)

    async def _open(self) -> None:
        """Take the next planned time, wait for it, call; whoever is late takes the next at once."""
        assert self._load.per_s is not None
        while True:
            number = next(self._numbers)
            if number >= self._planned(self._load.per_s):
                return
            planned = self.began + number / self._load.per_s
            while (early_s := planned - time.monotonic()) > 0:  # noqa: ASYNC110  (the clock's time)
                await asyncio.sleep(early_s)
            if time.monotonic() >= self.until:
                return
            self._taken += 1
            await self._make(planned)

    async def _make(self, began: float) -> None:
        problem = ""
        try:
            await self._call()
        except WrongAnswerError as error:
            problem = str(error)
        except Exception as error:
            problem = type(error).__name__
        ended = time.monotonic()
        if problem:
            self.outcome.failed[problem] += ended >= self.measured_from
            return
        if self._load.timeline:
            self.outcome.moments.append(ended)
        within_s = min(ended, self.until) - max(began, self.measured_from)
        if within_s > 0:
            self.outcome.done += within_s / (ended - began)
        if began >= self.measured_from:
            self.outcome.latencies.add(ended - began)

    def _planned(self, per_s: float) -> int:
        return round((self._load.warmup_s + self._load.seconds) * per_s)

    def _count_unsent(self, per_s: float) -> None:
        """Planned calls that nobody was free to make: they are as late as we know by now."""
        for number in range(self._taken, self._planned(per_s)):
            moment = self.began + number / per_s
            if moment >= self.measured_from:
                self.outcome.unsent += 1
                self.outcome.latencies.add(self.until - moment)

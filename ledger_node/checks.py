"""Continuous checks: each node looks, all the time and slowly, at the shards that it leads.

Their rules are in `integrity_checks` and `attention_checks`. Work is done in slices of about 2 ms
in a thread, each in one short read transaction, and after each slice the checker rests 99 times as
long as the slice kept the processor busy: about 1 % of a core. Where nothing was applied since a
check went through everything, it goes through it again every 10 minutes at most.

What was found is kept in memory, for `GetFindings`: of passes that are finished, and of those under
way. It is lost when the node stops leading, or stops; the next leader finds it again.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Final

import structlog

from ledger_node.attention_checks import (
    check_ageing_holds,
    check_holding_accounts,
    check_in_transit,
    check_negative_balances,
)
from ledger_node.check_context import (
    FINDINGS_MAX,
    VERIFY_ADVICE,
    Check,
    Context,
    Finding,
    Severity,
)
from ledger_node.in_transit import InTransit, in_transit
from ledger_node.integrity_checks import (
    check_counters,
    check_gaps,
    check_history,
    check_sums,
)
from ledger_node.store import ReadView, Store

CHECKS: Final[dict[str, Check]] = {
    "sums": check_sums,
    "counters": check_counters,
    "history": check_history,
    "ageing-holds": check_ageing_holds,
    "in-transit": check_in_transit,
    "holding-accounts": check_holding_accounts,
    "negative-balances": check_negative_balances,
    "gaps": check_gaps,
}

SLICE_S: Final = 0.002
"""A slice begins no further unit of work after so long."""
CPU_SHARE_MAX: Final = 0.01
REST_S_MIN: Final = 0.2
LOOK_S: Final = 5.0
"""How often it looks for something to do, where there was nothing."""
PASS_PAUSE_S: Final = 30.0
"""The pause of a check between two passes of a shard in which something was applied."""
IDLE_PASS_PAUSE_S: Final = 600.0

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Run:
    """How far a check is on a shard. ``finished_us`` is 0 before the end of its first pass."""

    check: str
    shard_id: int
    finished_us: int
    rows: int
    findings: int


@dataclass(frozen=True, slots=True)
class Transit:
    """What a shard has in transit at an index, and how many transactions are on their way there."""

    shard_id: int
    applied_index: int
    unfinished: int
    accounts: Sequence[InTransit]


@dataclass(frozen=True, slots=True)
class Report:
    """What all checks of a node have found. ``truncated``: there is more than is kept."""

    findings: Sequence[Finding]
    runs: Sequence[Run]
    transits: Sequence[Transit]
    truncated: bool


@dataclass
class _Job:
    """One check of one shard, pass after pass."""

    check: str
    shard_id: int
    steps: Iterator[None] | None = None
    context: Context | None = None
    generation: int = 0
    begun_index: int = -1
    due_at: float = 0.0
    """When the next pass may begin, if something was applied since the last one."""
    idle_due_at: float = 0.0
    """When it may begin in any case."""
    finished_us: int = 0
    rows: int = 0
    truncated: bool = False
    found: Mapping[tuple[str, str], Finding] = field(default_factory=dict)

    def is_due(self, now: float, applied_index: int) -> bool:
        """Whether there is something to do: a pass under way, or one to begin."""
        if self.steps is not None:
            return True
        changed = applied_index != self.begun_index
        return now >= (self.due_at if changed else self.idle_due_at)

    def findings(self) -> Mapping[tuple[str, str], Finding]:
        """Return what the last pass has found, and the one under way."""
        if self.context is None or not self.context.found:
            return self.found
        return {**self.found, **self.context.found}


class Checker:
    """The checks of one node. ``led_shards`` tells which shards it leads, and their applied index.

    `run` drives it from the event loop; `slice` does the work, in whatever thread.
    """

    def __init__(
        self,
        store: Store,
        led_shards: Callable[[], Mapping[int, int]],
        all_shard_ids: Sequence[int],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock_us: Callable[[], int] = lambda: time.time_ns() // 1_000,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._store = store
        self._led_shards = led_shards
        self._all_shard_ids = all_shard_ids
        self._clock = clock
        self._wall_clock_us = wall_clock_us
        self._cpu_clock = cpu_clock
        self._jobs: deque[_Job] = deque()
        # Held during a slice: a report waits for its end, in a thread.
        self._lock = Lock()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Check until `stop`. A fault of a check is logged, and never ends the node."""
        while not self._stopping.is_set():
            rest_s = LOOK_S
            try:
                rest_s = await asyncio.to_thread(self.slice, self._led_shards())
            except Exception:
                _log.exception("a check failed")
            try:
                await asyncio.wait_for(self._stopping.wait(), rest_s)
            except TimeoutError:
                continue

    def stop(self) -> None:
        """Let `run` end, after the slice under way: a few milliseconds."""
        self._stopping.set()

    def slice(self, led_shards: Mapping[int, int]) -> float:
        """Do some of what is due; return how long to rest then, in seconds."""
        cpu_at = self._cpu_clock()
        with self._lock:
            self._follow(led_shards)
            worked = self._work(led_shards)
        if not worked:
            return LOOK_S
        return max(REST_S_MIN, (self._cpu_clock() - cpu_at) * (1 / CPU_SHARE_MAX - 1))

    def _follow(self, led_shards: Mapping[int, int]) -> None:
        """Take up the shards that this node leads now, and drop the others."""
        known = {job.shard_id for job in self._jobs}
        if known != led_shards.keys():
            self._jobs = deque(job for job in self._jobs if job.shard_id in led_shards)
            self._jobs.extend(
                _Job(check, shard_id)
                for shard_id in sorted(led_shards.keys() - known)
                for check in CHECKS
            )

    def _work(self, led_shards: Mapping[int, int]) -> bool:
        """Take up due jobs in turn, until the slice is over; return whether there was one."""
        now = self._clock()
        due = [job for job in self._jobs if job.is_due(now, led_shards[job.shard_id])]
        if not due:
            return False
        with self._store.read() as view:
            for job in due:
                self._advance(job, view, led_shards[job.shard_id], now + SLICE_S)
                # The next slice begins with the others.
                self._jobs.remove(job)
                self._jobs.append(job)
                if self._clock() >= now + SLICE_S:
                    break
        return True

    def _advance(self, job: _Job, view: ReadView, applied_index: int, end_at: float) -> None:
        """Go on with a job until its pass or the slice is over; at least by one unit."""
        tables = view.shard(job.shard_id)
        if job.steps is None or job.context is None or job.generation != tables.generation:
            # A snapshot of another replica has taken the place of what was looked at so far.
            job.context = Context(job.check, job.shard_id, tables, self._wall_clock_us())
            job.steps = iter(CHECKS[job.check](job.context))
            job.generation = tables.generation
            job.begun_index = applied_index
        job.context.tables = tables
        job.context.now_us = self._wall_clock_us()
        try:
            for _ in job.steps:
                if self._clock() >= end_at:
                    return
        except Exception as error:
            job.context.find(
                Severity.ERROR,
                "",
                f"the check cannot go on: {error or type(error).__name__}",
                VERIFY_ADVICE,
            )
        self._finish(job, job.context)

    def _finish(self, job: _Job, context: Context) -> None:
        job.found, job.rows, job.truncated = context.found, context.rows, context.truncated
        job.finished_us = context.now_us
        job.steps = job.context = None
        now = self._clock()
        job.due_at = now + PASS_PAUSE_S
        job.idle_due_at = job.due_at if context.restless else now + IDLE_PASS_PAUSE_S

    # What was found

    def report(self) -> Report:
        """Return what is known now. Waits for the slice under way: call it in a thread."""
        with self._lock:
            findings: list[Finding] = []
            truncated = False
            for check in CHECKS:
                jobs = [job for job in self._jobs if job.check == check]
                of_check = [one for job in jobs for one in job.findings().values()]
                of_check.sort(key=lambda one: (-one.severity, one.shard_id, one.subject))
                truncated |= len(of_check) > FINDINGS_MAX
                truncated |= any(
                    job.truncated or (job.context is not None and job.context.truncated)
                    for job in jobs
                )
                findings += of_check[:FINDINGS_MAX]
            runs = [
                Run(job.check, job.shard_id, job.finished_us, job.rows, len(job.findings()))
                for job in self._jobs
            ]
            shard_ids = sorted({job.shard_id for job in self._jobs})
            transits = self._transits(shard_ids)
        return Report(findings, runs, transits, truncated)

    def _transits(self, shard_ids: Sequence[int]) -> list[Transit]:
        """Return what is in transit now between the shards led here and all others."""
        found = []
        with self._store.read() as view:
            for shard_id in shard_ids:
                tables = view.shard(shard_id)
                meta = tables.meta()
                peers = [peer for peer in self._all_shard_ids if peer != shard_id]
                unfinished = len(tables.in_flight_numbers()) + len(tables.undecided_numbers())
                accounts = in_transit(tables, meta, peers)
                found.append(Transit(shard_id, meta.applied_index, unfinished, accounts))
        return found

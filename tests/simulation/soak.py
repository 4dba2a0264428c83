"""Seed after seed, for as long as asked, in as many processes as asked."""

import argparse
import multiprocessing
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

from tests.simulation.plan import draw_plan
from tests.simulation.runner import RunFailed, run_plan

SEEDS_PER_TASK = 5
REPORT_EVERY_S = 30.0
# One seed in so many is run for longer.
LONG_EVERY, LONG_LENGTH = 10, 4.0

_Outcome = tuple[int, Counter[str], list[str]]


def main() -> None:
    """Run what the arguments say; end with 1 where a run failed."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seed-start", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    began = reported = time.monotonic()
    until = began + arguments.minutes * 60
    seeds, counts = 0, Counter[str]()
    failures: list[str] = []
    # The pool takes tasks as fast as it is given them, so it is given few ahead.
    waiting = threading.Semaphore(2 * arguments.jobs)
    # Fresh processes from time to time, so that memory stays bounded whatever a run leaves behind.
    with multiprocessing.Pool(arguments.jobs, maxtasksperchild=100) as pool:
        for done, counted, failed in pool.imap_unordered(
            run_seeds, _tasks(arguments.seed_start, until, waiting)
        ):
            waiting.release()
            seeds += done
            counts.update(counted)
            failures += failed
            for failure in failed:
                print(failure, flush=True)
            if time.monotonic() - reported > REPORT_EVERY_S:
                reported = time.monotonic()
                minutes = (reported - began) / 60
                print(f"{minutes:6.1f} min: {seeds:,} seeds, {len(failures)} failed", flush=True)
    _report(seeds, counts, failures, time.monotonic() - began)
    sys.exit(1 if failures else 0)


def _tasks(start: int, until: float, waiting: threading.Semaphore) -> Iterator[range]:
    """Hand out seeds until the time is over."""
    while waiting.acquire() and time.monotonic() < until:
        yield range(start, start + SEEDS_PER_TASK)
        start += SEEDS_PER_TASK


def run_seeds(seeds: range) -> _Outcome:
    """Run some seeds; return how many, what happened in them, and what failed."""
    counts: Counter[str] = Counter()
    failures = []
    for seed in seeds:
        length = LONG_LENGTH if seed % LONG_EVERY == 0 else 1.0
        try:
            report = run_plan(draw_plan(seed, length=length))
        except RunFailed as failure:
            failures.append(f"VIOLATION in seed {seed}: {failure}")
            continue
        counts.update(report.counts)
        counts["steps"] += report.steps
        counts["simulated seconds"] += round(report.simulated_s)
    return len(seeds), counts, failures


def _report(seeds: int, counts: Counter[str], failures: list[str], seconds: float) -> None:
    print(f"\n{seeds:,} seeds in {seconds / 60:.1f} minutes, {len(failures)} with a violation")
    for name in ("steps", "turns", "simulated seconds"):
        print(f"{counts.pop(name, 0):14,} {name}")
    faults = {name: n for name, n in counts.items() if name.startswith("fault: ")}
    print(f"{sum(faults.values()):14,} faults:")
    for name, count in sorted(faults.items()):
        print(f"{count:14,}   {name.removeprefix('fault: ')}")
    for name, count in sorted(counts.items()):
        if name not in faults:
            print(f"{count:14,} {name}")
    for failure in failures:
        print(failure)


if __name__ == "__main__":
    main()

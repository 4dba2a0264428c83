"""The command: one seed again, or as many as there is time for."""

import argparse
import sys
import time
from collections import Counter

from tests.simulation.plan import decode_plan, draw_plan
from tests.simulation.runner import RunFailed, run_plan


def main() -> None:
    """Run what the arguments say; end with 1 where a run failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this seed, and print its trace hash")
    parser.add_argument("--plan", help="run this plan, as a failed run printed it")
    parser.add_argument("--seeds", type=int, default=0, help="run as many seeds")
    parser.add_argument("--seed-start", type=int, default=0)
    parser.add_argument("--length", type=float, default=1.0, help="times the usual duration")
    parser.add_argument("--log", action="store_true", help="print every event")
    arguments = parser.parse_args()
    if arguments.seeds:
        run_seeds(arguments)
        return
    if arguments.plan is None and arguments.seed is None:
        parser.error("give --seed, --plan or --seeds")
    if arguments.plan:
        plan = decode_plan(arguments.plan)
    else:
        plan = draw_plan(arguments.seed, length=arguments.length)
    try:
        report = run_plan(plan, print if arguments.log else None)
    except RunFailed as failure:
        sys.exit(f"FAILED: {failure}")
    print(report.plan)
    print(dict(sorted(report.counts.items())))
    print(f"{report.steps} steps, {report.simulated_s:.1f} s, trace {report.trace_hash}")


def run_seeds(arguments: argparse.Namespace) -> None:
    """Run seeds one after the other."""
    counts: Counter[str] = Counter()
    began = time.perf_counter()
    failed = 0
    for seed in range(arguments.seed_start, arguments.seed_start + arguments.seeds):
        try:
            report = run_plan(draw_plan(seed, length=arguments.length))
        except RunFailed as failure:
            failed += 1
            print(f"FAILED: seed {seed}: {failure}", flush=True)
            continue
        counts += report.counts
        counts["steps"] += report.steps
    seconds = time.perf_counter() - began
    for name, count in sorted(counts.items()):
        print(f"{count:12,} {name}")
    print(f"{arguments.seeds} seeds in {seconds:.1f} s, {failed} failed")
    sys.exit(failed > 0)

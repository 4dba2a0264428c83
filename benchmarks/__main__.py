"""Runs the chosen parts, and reports: a table, a picture, and a file with everything."""

import signal
import sys
from dataclasses import asdict
from types import FrameType
from typing import Any

from rich.console import Console

from benchmarks.bench import Bench, SkippedError, Step
from benchmarks.machine import describe
from benchmarks.options import Options, parse_options
from benchmarks.parts import PARTS
from benchmarks.plot import svg
from benchmarks.progress import Progress
from benchmarks.results import Results
from benchmarks.table import LEGEND, table
from benchmarks.targets import legend

WIDTH = 300
"""Of the table in a file."""
IN_MEMORY = ("tmpfs", "ramfs")


def main() -> int:
    """Return 1 if a step broke."""
    options = parse_options()
    signal.signal(signal.SIGTERM, _stop)
    results = Results(_as_json(options), describe(options.scratch))
    file_system = results.machine["hardware"]["file_system"]
    if file_system in IN_MEMORY:
        sys.exit(
            f"bench: {file_system} keeps nothing, so fsync would cost nothing; name a folder on a "
            "disk with --scratch"
        )
    try:
        with Progress() as progress, Bench(options.scratch, progress) as bench:
            steps = [
                step for part in PARTS if part.name in options.only for step in part.steps(options)
            ]
            for step in progress.through(steps, len(steps)):
                _run(step, bench, results)
                results.machine["versions"] |= bench.versions
                _prove(step, bench, results)
    except KeyboardInterrupt:
        results.broken["all"] = "stopped before the end"
    return _report(results, options)


def _run(step: Step, bench: Bench, results: Results) -> None:
    progress = bench.progress
    progress.step(step.title)
    try:
        figures = step.run(bench)
    except SkippedError as error:
        results.skipped[step.title] = str(error)
        progress.say(f"{step.title}: skipped: {error}")
        return
    except Exception as error:
        bench.clear()
        results.broken[step.title] = f"{type(error).__name__}: {error}"
        progress.say(f"{step.title}: {results.broken[step.title]}")
        return
    results.figures += figures
    for item in figures:
        progress.say(
            f"{item.part}: {item.name}, {item.loop}: {item.per_s:,.0f}/s, "
            f"p50 {item.latency.p50_ms:.1f} ms, p99 {item.latency.p99_ms:.1f} ms"
        )


def _prove(step: Step, bench: Bench, results: Results) -> None:
    """See that the money is still right: figures of wrong books are worth nothing."""
    try:
        bench.prove()
    except Exception as error:
        bench.clear()
        what = f"{step.title}: the books"
        results.broken[what] = f"{type(error).__name__}: {error}"
        bench.progress.say(f"{what}: {results.broken[what]}")


def _report(results: Results, options: Options) -> int:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    console.print(table(results.figures))
    console.print(LEGEND, markup=False)
    for item in results.figures:
        if item.failed or item.unsent:
            failed = [f"{count:,} {what}" for what, count in item.failed.items()]
            failed += [f"{item.unsent:,} never sent"] if item.unsent else []
            what = f"{item.part}: {item.name}, {item.loop}"
            console.print(f"{what}: failed: {', '.join(failed)}", markup=False)
        if item.more:
            more = ", ".join(f"{name} {value:,.7g}" for name, value in item.more.items())
            console.print(f"{item.part}: {item.name}: {more}", markup=False)
    for line in legend(results.figures):
        console.print(line, markup=False)
    for what, why in (results.skipped | results.broken).items():
        console.print(f"{what}: {why}", markup=False)
    file = results.save(options.output)
    picture = file.with_suffix(".svg")
    picture.write_text(svg(results.figures, f"Ledger at {results.machine['commit'][:8]}"))
    console.print(f"written: {file.name} and {picture.name}", markup=False)
    return int(bool(results.broken))


def _as_json(options: Options) -> dict[str, Any]:
    # Without the folders: they are of this machine.
    return {
        name: value for name, value in asdict(options).items() if name not in ("scratch", "output")
    }


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

"""The results as a table on the terminal."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from benchmarks.figures import Figures
from benchmarks.targets import verdicts


def table(figures: Sequence[Figures]) -> Table:
    """Return a row for each measurement. Latencies in ms, CPU time in us for each one done."""
    result = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("part", "what", "loop"):
        result.add_column(heading, no_wrap=True)
    for heading in ("per s", "p50 ms", "p90", "p99", "p99.9", "max", "failed"):
        result.add_column(heading, justify="right", no_wrap=True)
    for heading in ("CPU us", "file B", "disk B", "store B", "lag", "other"):
        result.add_column(heading, justify="right", no_wrap=True)
    result.add_column("target", no_wrap=True)
    part = ""
    for item in figures:
        if part not in ("", item.part):
            result.add_row()
        judged = "; ".join(verdicts(item, figures))
        result.add_row(item.part if item.part != part else "", *_cells(item), judged)
        part = item.part
    return result


LEGEND = (
    "open: calls at planned times, at half of the closed loop's rate; latency from the planned time"
    "\nfor each one done: CPU us: of gateway + nodes + load (or: server + load); file B: bytes that"
    "\nthese have written to files; disk B: bytes that the disk was given by the whole machine"
    "\nstore B: growth of the stores of all nodes for each one done"
    "\nlag: most log entries that a follower was behind; other: cores busy with something else"
)


def _cells(item: Figures) -> Iterator[str]:
    latency = item.latency
    yield item.name
    yield "open" if item.loop == "open" else "closed"
    yield f"{item.per_s:,.0f}"
    for value in (
        latency.p50_ms,
        latency.p90_ms,
        latency.p99_ms,
        latency.p999_ms,
        latency.max_ms,
    ):
        yield f"{value:,.1f}" if latency.count else ""
    yield f"{sum(item.failed.values()) + item.unsent:,}"
    yield "+".join(f"{value:,.0f}" for value in item.cpu_us.values())
    yield f"{sum(item.written_bytes.values()):,.0f}"
    yield f"{item.disk_bytes:,.0f}" if item.disk_bytes is not None else ""
    yield f"{item.stored_bytes:,.0f}" if item.stored_bytes is not None else ""
    yield f"{item.lag.worst:,}" if item.lag else ""
    yield f"{item.other_cores:.1f}"

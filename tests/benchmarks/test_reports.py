"""What is reported: percentiles, table, picture, file."""

import io
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from benchmarks.figures import Figures, Lag
from benchmarks.histogram import Latencies
from benchmarks.kill_step import cost
from benchmarks.machine import describe
from benchmarks.operations import OPERATIONS
from benchmarks.options import parse_options
from benchmarks.parts import PARTS
from benchmarks.plot import svg
from benchmarks.procfs import Snapshot, tree_usage, usage
from benchmarks.results import Results
from benchmarks.scenario import Scenario
from benchmarks.table import table
from benchmarks.targets import POSTGRES, TARGETS, legend, verdicts


@given(st.lists(st.floats(1e-5, 100), min_size=1, max_size=200))
def test_percentiles_are_right_to_three_digits(times_s: list[float]) -> None:
    latencies = Latencies()
    for item in times_s:
        latencies.add(item)
    again = Latencies(latencies.buckets())
    ordered = sorted(round(item * 1e6) for item in times_s)
    percentiles = (1, 50, 90, 99, 100)
    exact = [ordered[-(-item * len(ordered) // 100) - 1] / 1000 for item in percentiles]
    assert again.at_ms(*percentiles) == pytest.approx(exact, rel=1e-3)
    assert again.summary() == latencies.summary()


def test_no_latencies() -> None:
    assert Latencies(Latencies().buckets()).summary().p99_ms == 0


def test_usage_of_this_process(tmp_path: Path) -> None:
    before = Snapshot.take({"this": usage(os.getpid())}, tmp_path)
    (tmp_path / "file").write_bytes(bytes(100_000))
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    after = Snapshot.take({"this": tree_usage(os.getpid())}, tmp_path)
    used = after.since(before)["this"]
    assert used.cpu_s >= 0.04
    assert used.written_bytes >= 100_000
    assert after.busy_s > before.busy_s


def test_every_part_has_steps_and_all_their_operations_exist() -> None:
    options = parse_options(["--quick", "--shards", "1,2", "--accounts", "7"])
    assert options.shards == (1, 2)
    steps = {part.name: part.steps(options) for part in PARTS}
    assert set(options.only) == set(steps)
    assert all(steps.values())
    titles = [step.title for part in steps.values() for step in part]
    assert len(set(titles)) == len(titles)
    operations = [s.operation for part in steps.values() for s in part if isinstance(s, Scenario)]
    assert set(operations) <= set(OPERATIONS)


@pytest.mark.parametrize("argument", ["--shards=0", "--accounts=a", "--seconds=0", "--only=all"])
def test_what_cannot_be_asked_for(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options([argument])
    assert argument.partition("=")[0] in capsys.readouterr().err


def _figures(loop: str) -> Figures:
    latencies = Latencies()
    for item in range(1, 100):
        latencies.add(item / 1000)
    return Figures(
        part="<part>",
        name="what & how",
        loop=loop,
        in_flight=4,
        seconds=1.0,
        done=99,
        per_s=99.0,
        latency=latencies.summary(),
        histogram=latencies.buckets(),
        failed={"REJECTED": 3},
        unsent=4,
        cpu_us={"gateway": 1.0, "nodes": 2.0},
        lag=Lag(1, 0.5, 6, 0.01),
    )


def test_targets() -> None:
    rows = [
        replace(_figures("closed"), part="sdk", name="one account, 256 at a time", per_s=12_500),
        replace(_figures("closed"), part="postgres", name=POSTGRES[1], per_s=13_000),
        replace(_figures("closed"), part="bulk", name="sustained", per_s=99_999, accounts=10_000),
        replace(_figures("open"), part="bulk", name="8 conn."),
        replace(_figures("closed"), part="single", name="one account, 1 at a time", accounts=7),
    ]
    assert [list(verdicts(item, rows)) for item in rows] == [
        [">= 12,000/s: ok", ">= PostgreSQL 13,000/s: short"],
        [],
        [">= 100,000/s: short?"],
        ["< 100 ms p99: ok"],
        ["< 6 ms p50: short"],
    ]
    sustained = replace(rows[2], seconds=60, per_s=70_000, accounts=10**6)
    assert list(verdicts(sustained, rows)) == [">= 70,000/s: ok"]
    assert len(list(legend(rows))) == 10


def test_every_target_has_a_row() -> None:
    options = parse_options(["--accounts", "1000000"])
    steps = [step for part in PARTS for step in part.steps(options)]
    scenarios = [step for step in steps if isinstance(step, Scenario)]
    rows = [
        replace(_figures(loop), part=s.part, name=s.name, accounts=s.size.accounts)
        for s in scenarios
        for loop in (["closed"] if s.open_share is None else ["closed", "open"])
    ]
    for target in TARGETS:
        assert target.part == "growth" or any(target.concerns(row) for row in rows), target.text
    names = [step.title for step in steps]
    assert ": ".join(POSTGRES) in names


def test_what_a_kill_has_cost() -> None:
    at = {"measuring": 0.0, "killed": 10.0, "restarted": 20.0, "ended": 30.0}
    moments = [0.5 + n for n in range(10)] + [12.0, 15.5, 15.6] + [20.0 + n for n in range(10)]
    assert cost(moments, 10, at) == {
        "pause s": 4.4,
        "before /s": 10,
        "down /s": 3,
        "again /s": 10,
        "lost by the kill": 70,
    }


def test_table_picture_and_file(tmp_path: Path) -> None:
    figures = [_figures("closed"), _figures("open")]
    console = Console(file=io.StringIO(), width=200)
    console.print(table(figures))
    assert isinstance(console.file, io.StringIO)
    row = console.file.getvalue().splitlines()[1].split()
    assert row[:5] == ["<part>", "what", "&", "how", "closed"]
    assert row[5:12] == ["99", "50.0", "90.0", "99.0", "99.0", "99.0", "7"]
    texts = "".join(ElementTree.fromstring(svg(figures, "title")).itertext())
    assert "<part>: what & how, 99/s" in texts
    ElementTree.fromstring(svg([], "nothing"))
    results = Results({"quick": True}, describe(tmp_path), figures=figures)
    file = results.save(tmp_path / "results")
    written = json.loads(file.read_text())
    assert written["figures"][1]["latency"]["p99_ms"] == pytest.approx(99, rel=1e-3)
    assert str(tmp_path) not in file.read_text()
    assert file.name.endswith("-quick.json")

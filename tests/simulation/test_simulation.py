"""Runs of the whole cluster under faults, and what makes them worth anything.

`LEDGER_SIMULATION_SEEDS` sets how many seeds are run; `scripts/soak` runs them for longer.
"""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.simulation.plan import (
    TARGETS,
    Fault,
    FaultKind,
    NetworkPlan,
    Plan,
    Timing,
    decode_plan,
    draw_plan,
    encode_plan,
)
from tests.simulation.runner import run_plan

SEEDS = int(os.environ.get("LEDGER_SIMULATION_SEEDS", "96"))
BATCHES = 4

FAST = Timing(0.04, 0.15, 0.25)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_seeds(batch: int) -> None:
    counts: Counter[str] = Counter()
    for seed in range(batch, SEEDS, BATCHES):
        counts += run_plan(draw_plan(seed)).counts
    # A simulation in which nothing happens finds nothing.
    seeds = SEEDS // BATCHES
    assert counts["writes ok"] > 20 * seeds
    assert counts["reads ok"] > seeds
    assert counts["leaders"] > seeds
    assert counts["crashed in a turn"] > 0
    assert counts["snapshots installed"] > 0
    assert counts["told SETTLED"] + counts["told PENDING"] > 2 * seeds
    assert counts["blocks: CommitTransfers"] > seeds
    assert counts["calls: Prepare"] > 10 * seeds
    assert counts["calls: Resolve"] > 0
    assert counts["calls in vain"] > 0
    assert counts["accounts undecided"] * 50 <= counts["accounts linearizable"]


def test_a_seed_gives_the_same_run_every_time() -> None:
    plan = draw_plan(7)
    first, second = run_plan(plan), run_plan(plan)
    assert first == second
    assert replace(first, plan=plan).trace_hash != run_plan(draw_plan(8)).trace_hash


def test_a_seed_gives_the_same_run_in_another_process() -> None:
    """Also where strings hash differently, as they do in every process."""
    traces = set()
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-m", "tests.simulation", "--seed", "7"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        traces.add(done.stdout.rsplit(maxsplit=1)[-1])
    assert traces == {run_plan(draw_plan(7)).trace_hash}


def test_a_plan_can_be_written_and_read() -> None:
    plan = draw_plan(3)
    assert decode_plan(encode_plan(plan)) == plan


def test_every_kind_of_fault_is_drawn() -> None:
    drawn = Counter(fault.kind for seed in range(100) for fault in draw_plan(seed).faults)
    assert set(drawn) == set(FaultKind)


def test_without_faults_nothing_fails() -> None:
    report = run_plan(Plan(seed=1, timing=FAST, think_s=0.02, run_s=3.0, gateway_dies=0))
    counts = report.counts
    assert counts["writes unknown"] + counts["reads refused"] == 0
    assert counts["leaders"] == 2
    assert counts["writes ok"] > 100


faults = st.builds(
    Fault,
    at_s=st.floats(0.2, 3.0).map(lambda at_s: round(at_s, 2)),
    kind=st.sampled_from(list(FaultKind)),
    target=st.integers(0, TARGETS - 1),
    amount=st.floats(0, 1).map(lambda amount: round(amount, 2)),
)
plans = st.builds(
    Plan,
    seed=st.integers(0, 1 << 32),
    nodes=st.sampled_from([3, 5]),
    shards=st.integers(1, 3),
    pre_vote=st.booleans(),
    timing=st.just(FAST),
    network=st.builds(
        NetworkPlan,
        harsh=st.booleans(),
        delay_s=st.sampled_from([0.001, 0.01]),
        loss=st.sampled_from([0.0, 0.1]),
        duplicate=st.sampled_from([0.0, 0.2]),
    ),
    run_s=st.just(3.2),
    gateways=st.integers(1, 2),
    clients=st.integers(1, 4),
    think_s=st.just(0.02),
    call_s=st.just(0.5),
    attempt_s=st.just(0.1),
    faults=st.lists(faults, max_size=12).map(
        lambda drawn: tuple(sorted(drawn, key=lambda fault: fault.at_s))
    ),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plan=plans)
def test_schedules_that_hypothesis_draws(plan: Plan) -> None:
    """On failure it shrinks the schedule, and the failure prints it as a command."""
    run_plan(msgspec.structs.replace(plan, bounds=draw_plan(plan.seed).bounds))

"""Every deliberate breakage of the product must be found.

By default each mutant gets the seed that found it soonest, and then others, up to a bound. The long
version, `LEDGER_SIMULATION_MUTANTS=all`, starts every mutant at seed 0, with and without the checks
that look into disks, and prints how many seeds each took.
"""

import os

import pytest

from tests.simulation.mutants import DIRECTED, FIRST_SEEDS, MUTANTS, Mutant, find
from tests.simulation.plan import draw_plan

ALL = os.environ.get("LEDGER_SIMULATION_MUTANTS") == "all"
SEEDS_MAX = 200


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_found(mutant: Mutant, capsys: pytest.CaptureFixture[str]) -> None:
    plans = [*DIRECTED.get(mutant.name, ()), *map(draw_plan, range(SEEDS_MAX))]
    if not ALL:
        plans = [draw_plan(seed) for seed in FIRST_SEEDS.get(mutant.name, ())] + plans
    found = find(mutant, plans)
    assert found is not None, f"{mutant} was not found in {len(plans)} runs"
    if ALL:
        with capsys.disabled():
            print(f"\n{mutant}: {found[0]} runs: {found[1]}")


@pytest.mark.timeout(900)
@pytest.mark.skipif(not ALL, reason="the long version")
@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_without_looking_into_disks(mutant: Mutant, capsys: pytest.CaptureFixture[str]) -> None:
    """For information: what the cluster does to its callers, and its own alarms, are enough?"""
    found = find(mutant, map(draw_plan, range(SEEDS_MAX)), strict=False)
    with capsys.disabled():
        print(f"\n{mutant}: {found or 'not found'}")

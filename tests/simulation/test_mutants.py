"""Every deliberate breakage of the product must be found, within 200 runs.

`LEDGER_SIMULATION_MUTANTS=all` prints how many runs each took, and does it all again without the
checks that look into disks.
"""

import os
from itertools import islice

import pytest

from tests.simulation import block_mutants, commit_mutants
from tests.simulation.mutants import MUTANTS, Mutant, find, plans_for

assert commit_mutants.__doc__, "importing it adds its mutants"
assert block_mutants.__doc__, "and this one its own"

ALL = os.environ.get("LEDGER_SIMULATION_MUTANTS") == "all"
RUNS_MAX = 200


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_found(mutant: Mutant, capsys: pytest.CaptureFixture[str]) -> None:
    found = find(mutant, islice(plans_for(mutant), RUNS_MAX))
    if ALL:
        with capsys.disabled():
            print(f"\n{mutant}: {found}")
    assert found is not None, f"{mutant} was not found in {RUNS_MAX} runs"


@pytest.mark.timeout(900)
@pytest.mark.skipif(not ALL, reason="the long version")
@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_without_looking_into_disks(mutant: Mutant, capsys: pytest.CaptureFixture[str]) -> None:
    """For information: do its callers and its own alarms tell, too?"""
    found = find(mutant, islice(plans_for(mutant), RUNS_MAX), strict=False)
    with capsys.disabled():
        print(f"\n{mutant}: {found or 'not found'}")

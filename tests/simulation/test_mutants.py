"""Every deliberate breakage of the product must be found, within 200 runs.

`LEDGER_SIMULATION_MUTANTS=all` prints how many runs each took, and does it all again without the
checks that look into disks.
"""

import os
from collections.abc import Iterator
from itertools import islice

import pytest

from tests.simulation import block_mutants, commit_mutants
from tests.simulation.mutants import MUTANTS, Mutant, find, plans_for
from tests.simulation.plan import Plan

assert commit_mutants.__doc__, "importing it adds its mutants"
assert block_mutants.__doc__, "and this one its own"

ALL = os.environ.get("LEDGER_SIMULATION_MUTANTS") == "all"
RUNS_MAX = 200

# The run that finds what several do not, counted from 1; it is done first, as only time is to be
# gained by that. Where the product or the simulation has changed, another one finds it: see above.
FOUND_BY = {
    "a caller is answered before the participants have applied the decision": 3,
    "a clearing entry is missing where there are two currencies": 3,
    "a decision is applied twice": 3,
    "a failed commit is ignored": 6,
    "a founded group takes a younger store into its roster": 4,
    "a new leader does not take up what is in flight": 3,
    "a participant does not record its yes": 2,
    "a participant does not remember that it waits for a decision": 3,
    "a participant forgets the last decision of a block": 2,
    "a read does not wait for the first commit of its leader's term": 21,
    "an install does not note its last step": 3,
    "entries that match are truncated": 28,
    "leaders leave to gateways what gateways have left": 3,
    "reserved money can be spent": 3,
    "the commit index is believed beyond what was verified": 90,
    "votes are counted, not tracked": 5,
    "what cannot be told now is dropped, when others wait for their turn": 5,
}


def runs(mutant: Mutant) -> Iterator[Plan]:
    """Yield the runs that may find a mutant."""
    if mutant.name in FOUND_BY and not ALL:
        yield from islice(plans_for(mutant), FOUND_BY[mutant.name] - 1, FOUND_BY[mutant.name])
    yield from islice(plans_for(mutant), RUNS_MAX)


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_found(mutant: Mutant, capsys: pytest.CaptureFixture[str]) -> None:
    found = find(mutant, runs(mutant))
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

"""Random schedules: see raft_fuzz. To look at one, run it with its seed and size alone."""

import os
import random
from collections import Counter

import pytest
from raft_fuzz import Fuzz, draw_bounds

BATCHES = 10
RUNS = int(os.environ.get("LEDGER_RAFT_FUZZ_RUNS", "40"))
STEPS = 1000


@pytest.mark.parametrize("batch", range(BATCHES))
def test_safety_and_progress_under_random_faults(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[str] = Counter()
    for seed in range(batch * RUNS, (batch + 1) * RUNS):
        draw_bounds(random.Random(seed), monkeypatch)
        fuzz = Fuzz(seed, size=(3, 3, 5, 3, 2, 4)[seed % 6])
        try:
            fuzz.run(STEPS)
        except BaseException as error:
            error.add_note(f"seed {seed}, {len(fuzz.names)} replicas")
            raise
        counts += fuzz.counts
    # A fuzzer that does nothing finds nothing.
    assert counts["applied"] > 10 * RUNS
    assert counts["unknown"] > 0
    assert counts["reads"] > RUNS
    assert counts["crashes"] > RUNS
    assert counts["crashes between halves"] > RUNS // 2
    assert counts["gathered"] > RUNS
    assert counts["leaders"] > RUNS
    assert counts["wipes"] > RUNS // 3
    assert counts["installs"] > RUNS // 3

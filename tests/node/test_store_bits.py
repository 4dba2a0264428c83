"""Sets of numbers as bits hold what a set holds."""

import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger_node.store_bits import NUMBERS_PER_ROW
from ledger_node.store_tables import ShardTables
from tests.node.shard import Shard

_runs = st.builds(
    lambda first, count, step: range(first, first + count, step),
    st.one_of(st.integers(0, 5 * NUMBERS_PER_ROW), st.integers(0, 2**63)),
    st.integers(1, 1_200),
    st.integers(1, 3),
)
_numbers = st.lists(_runs, min_size=1, max_size=3).map(lambda runs: sorted({*chain(*runs)}))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.booleans(), _numbers), min_size=1, max_size=6))
def test_numbers_are_in_until_they_are_taken_out(steps: list[tuple[bool, list[int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shard = Shard(Path(folder))
        tables = shard.store.shard(shard.shard.id)
        expected: set[int] = set()
        for enters, numbers in steps:
            if enters:
                tables.put_undecided(np.array(numbers, np.uint64))
                expected |= {*numbers}
            else:
                tables.drop_undecided_all(np.array(numbers, np.uint64))
                expected -= {*numbers}
            assert tables.undecided_numbers(first=0) == sorted(expected)
        check_ranges(tables, sorted(expected), steps[0][1])
        table: Any = tables.databases.state[tables.generation]["undecided_bits"]
        rows = tables.txn.stat(table)["entries"]
        assert rows == len({number // NUMBERS_PER_ROW for number in expected})
        shard.close()


def check_ranges(tables: ShardTables, expected: list[int], some: list[int]) -> None:
    """Numbers are found one by one, and by ranges, the lowest first."""
    for number in (some[0], some[-1], some[-1] + 1):
        assert tables.find_undecided(number) == (b"" if number in expected else None)
        assert tables.undecided_numbers(number) == [n for n in expected if n >= number]
        assert tables.undecided_numbers(0, number, 5) == [n for n in expected if n <= number][:5]


def test_rows_and_bits_are_listed_together(tmp_path: Path) -> None:
    """What came alone has a row of its own; both end with the same call."""
    shard = Shard(tmp_path)
    tables = shard.store.shard(shard.shard.id)
    tables.put_in_flight(np.array([3, 5, 2_000]))
    tables._put_row(tables._in_flight, (4).to_bytes(8), b"\x92\x01\xc0")
    assert tables.in_flight_numbers() == [3, 4, 5, 2_000]
    assert tables.in_flight_numbers(limit=2) == [3, 4]
    assert tables.in_flight_numbers(4, 1_999) == [4, 5]
    found = [tables.find_in_flight(number) for number in (3, 4, 6)]
    assert [record and record.state for record in found] == [0, 1, None]
    for number in (4, 5, 6):
        tables.drop_in_flight(number)
    assert tables.in_flight_numbers() == [3, 2_000]
    shard.close()

"""Checksums of many rows at once are those that zlib gives of each."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger_node.checksums import checksums, set_checksums

# Both sides of the number from which rows are summed together, and of a chunk of them.
COUNTS = (1, 191, 192, 600)


@given(
    sizes=st.tuples(st.integers(0, 40), st.integers(1, 472)),
    count=st.sampled_from([1, 2, 256, 257]),
    differing=st.floats(0, 1),
    seed=st.integers(0, 1 << 32),
)
def test_the_checksum_of_keys_and_rows_together_is_zlibs_whichever_bytes_differ(
    sizes: tuple[int, int], count: int, differing: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    both = np.repeat(rng.integers(0, 256, (1, sum(sizes)), np.uint8), count, 0)
    columns = rng.random(sum(sizes)) < differing
    both[:, columns] = rng.integers(0, 256, (count, int(columns.sum())), np.uint8)
    found = checksums(both[:, : sizes[0]], both[:, sizes[0] :])
    assert found.tolist() == [zlib.crc32(row.tobytes()) for row in both]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("width", [1, 32, 84, 700])
@pytest.mark.parametrize("key_size", [0, 4, 25])
def test_rows_end_with_the_checksum_of_their_keys_and_themselves(
    count: int, width: int, key_size: int
) -> None:
    rng = np.random.default_rng(count)
    keys = [rng.bytes(key_size) for _ in range(count)] if key_size else []
    rows = rng.integers(0, 256, (count, width + 4), np.uint8)
    set_checksums(rows.view(f"V{width + 4}")[:, 0], keys)
    for place, row in enumerate(rows):
        key = keys[place] if keys else b""
        assert row[-4:].tobytes() == zlib.crc32(key + row[:-4].tobytes()).to_bytes(4, "little")


def test_keys_of_several_lengths_are_summed_each_by_itself() -> None:
    keys = [b"k" * (place % 3) for place in range(300)]
    rows = np.zeros((300, 12), np.uint8)
    set_checksums(rows.view("V12")[:, 0], keys)
    for key, row in zip(keys, rows, strict=True):
        assert row[-4:].tobytes() == zlib.crc32(key + bytes(8)).to_bytes(4, "little")

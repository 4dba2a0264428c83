"""The accounts of a cluster under load, by shard, and how they are drawn."""

import random
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ledger_core.ids import format_account_id

Pairs: TypeAlias = tuple[NDArray[np.uint64], NDArray[np.uint64]]
_Places = NDArray[np.integer[Any]]


def account_texts(ids: NDArray[np.uint64]) -> list[str]:
    """Return account ids as they are written."""
    digits = ids.astype(">u8").tobytes().hex()
    return [digits[start : start + 16] for start in range(0, len(digits), 16)]


class AccountBook:
    """Account ids, those of one shard next to each other."""

    def __init__(self, by_shard: Mapping[int, Sequence[int]]) -> None:
        self.by_shard = by_shard
        self._ids = array("Q", (item for ids in by_shard.values() for item in ids))
        self._starts = [0, *accumulate(len(ids) for ids in by_shard.values())]

    def __len__(self) -> int:
        return len(self._ids)

    def save(self, folder: Path) -> None:
        """Write a file for each shard."""
        folder.mkdir()
        for shard_id, ids in self.by_shard.items():
            (folder / str(shard_id)).write_bytes(array("Q", ids).tobytes())

    @classmethod
    def load(cls, folder: Path) -> "AccountBook":
        """Read what `save` has written."""
        by_shard = {}
        for file in sorted(folder.iterdir(), key=lambda file: int(file.name)):
            ids = array("Q")
            ids.frombytes(file.read_bytes())
            by_shard[int(file.name)] = ids
        return cls(by_shard)

    def any(self, rng: random.Random) -> str:
        """Draw an account."""
        return self._text(int(rng.random() * len(self)))

    def first_pair(self) -> tuple[str, range]:
        """Return the first account, and the places of the others of its shard."""
        places = self._places(0)
        return self._text(places.start), range(places.start + 1, places.stop)

    def at(self, rng: random.Random, places: range) -> str:
        """Draw one of the accounts at these places."""
        return self._text(places.start + int(rng.random() * len(places)))

    def two_of_two_shards(self, rng: random.Random) -> tuple[str, str]:
        """Draw two accounts that are on different shards."""
        if len(self.by_shard) < 2:
            raise ValueError("two shards are needed")
        one = int(rng.random() * len(self))
        places = self._places(one)
        other = int(rng.random() * (len(self) - len(places)))
        return self._text(one), self._text(other if other < places.start else other + len(places))

    def pairs_of_a_shard(self, count: int, rng: np.random.Generator) -> Pairs:
        """Draw many pairs of different accounts that are on one shard each."""
        return self._within_shards(rng.integers(len(self), size=count), rng)

    def pairs_of_one_shard(self, count: int, rng: np.random.Generator) -> Pairs:
        """Draw pairs that are all on the same shard, whichever it is."""
        return self._within(self._places(int(rng.integers(len(self)))), count, rng)

    def pairs_of_first_shard(self, count: int, rng: np.random.Generator) -> Pairs:
        """Draw pairs that are all on the first shard."""
        return self._within(self._places(0), count, rng)

    def pairs(self, count: int, rng: np.random.Generator) -> Pairs:
        """Draw many pairs of different accounts."""
        one = rng.integers(len(self), size=count)
        other = rng.integers(len(self) - 1, size=count)
        return self._numbers(one, np.where(other == one, len(self) - 1, other))

    def _within(self, places: range, count: int, rng: np.random.Generator) -> Pairs:
        return self._within_shards(rng.integers(places.start, places.stop, size=count), rng)

    def _within_shards(self, one: _Places, rng: np.random.Generator) -> Pairs:
        bounds = np.array(self._starts)
        shard = np.searchsorted(bounds, one, "right") - 1
        low, high = bounds[shard], bounds[shard + 1]
        if (high - low < 2).any():
            raise ValueError("every shard needs two accounts")
        other = rng.integers(low, high - 1)
        return self._numbers(one, np.where(other == one, high - 1, other))

    def _numbers(self, one: _Places, other: _Places) -> Pairs:
        ids = np.frombuffer(self._ids, np.uint64)
        return ids[one], ids[other]

    def _places(self, place: int) -> range:
        shard = bisect_right(self._starts, place) - 1
        return range(self._starts[shard], self._starts[shard + 1])

    def _text(self, place: int) -> str:
        return format_account_id(self._ids[place])

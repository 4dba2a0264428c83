"""Latencies in a histogram of high dynamic range, and what is reported of them.

The buckets are those of HdrHistogram with three digits: each is at most a thousandth of its value
wide, so that microseconds and minutes fit in a few thousand counts, and percentiles are exact to
that thousandth. (Its Python package reads percentiles a rank too low and slowly.)
"""

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np

DIGITS_BITS = 11
"""Values are kept to so many binary digits: 1 in 1,024 at least."""

# They are counted so many at a time, which takes a fifth of what it takes one by one.
_UNCOUNTED_MAX = 4_096


@dataclass(frozen=True)
class Latency:
    """Percentiles of latencies, in milliseconds."""

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


Buckets = list[tuple[int, int]]
"""The largest value of a bucket, in microseconds, and how many are in it; in order of values."""


class Latencies:
    """Takes in latencies; can be written as buckets and read again."""

    def __init__(self, buckets: Iterable[tuple[int, int]] = ()) -> None:
        self._counts = Counter(dict(buckets))
        self._uncounted = array("d")

    def add(self, seconds: float) -> None:
        """Take in one more latency."""
        self._uncounted.append(seconds)
        if len(self._uncounted) >= _UNCOUNTED_MAX:
            self._count()

    def buckets(self) -> Buckets:
        """Return all that are not empty."""
        self._count()
        return sorted(self._counts.items())

    def at_ms(self, *percentiles: float) -> list[float]:
        """Return for each, from low to high, the latency that so many percent do not exceed."""
        self._count()
        total = self._counts.total()
        ranks = [max(1, ceil(Fraction(str(item)) * total / 100)) for item in percentiles]
        found: list[float] = []
        seen = 0
        for value, count in self.buckets():
            seen += count
            while len(found) < len(ranks) and seen >= ranks[len(found)]:
                found.append(value / 1000)
        return found or [0.0] * len(ranks)

    def summary(self) -> Latency:
        """Return what a report has of them; all zero if there are none."""
        self._count()
        total = self._counts.total()
        mean_us = sum(value * count for value, count in self._counts.items()) / max(total, 1)
        p50, p90, p99, p999, most = self.at_ms(50, 90, 99, 99.9, 100)
        return Latency(total, round(mean_us / 1000, 3), p50, p90, p99, p999, most)

    def _count(self) -> None:
        values = np.maximum(np.rint(np.array(self._uncounted) * 1e6), 1).astype(np.int64)
        self._uncounted = array("d")
        # The largest values that have the same leading digits.
        bits = np.frexp(values)[1]
        values |= (1 << np.maximum(bits - DIGITS_BITS, 0).astype(np.int64)) - 1
        for value, count in zip(*np.unique(values, return_counts=True), strict=True):
            self._counts[int(value)] += int(count)

"""Durations in buckets of about 3 %, so that quantiles of any number of them cost a few rows.

Buckets of this kind merge by adding: of days, and of shards. (HdrHistogram, Gil Tene, has the same
idea: a bucket is an exponent and the leading bits of the mantissa.)
"""

from collections.abc import Mapping

_SUB_BITS = 5
_SUB = 1 << _SUB_BITS


def duration_bucket(duration_us: int) -> int:
    """Return the bucket of a duration in microseconds (negative ones count as 0)."""
    value = max(0, duration_us)
    shift = max(0, value.bit_length() - _SUB_BITS - 1)
    return shift * _SUB + (value >> shift)


def bucket_ceiling(bucket: int) -> int:
    """Return the longest duration of a bucket, in microseconds."""
    shift = max(0, bucket // _SUB - 1)
    return ((bucket - shift * _SUB + 1) << shift) - 1


def quantile(counts: Mapping[int, int], share: float) -> int | None:
    """Return the duration that ``share`` (0..1) of all do not exceed, at most 3.2 % too long."""
    total = sum(counts.values())
    if not total:
        return None
    rank, seen = share * total, 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= rank:
            break
    return bucket_ceiling(bucket)

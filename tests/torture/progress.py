"""When each shard acknowledged writes: how long was it without?"""

import bisect
import itertools


class Progress:
    """The times at which every shard acknowledged a write, as `time.monotonic` tells them."""

    def __init__(self, shard_ids: list[int]) -> None:
        self._acknowledged_at: dict[int, list[float]] = {shard_id: [] for shard_id in shard_ids}

    def add(self, shard_id: int, moment: float) -> None:
        """Note that a shard acknowledged a write."""
        self._acknowledged_at[shard_id].append(moment)

    def silent_since(self, moment: float) -> list[int]:
        """Return the shards that have acknowledged no write since then."""
        return [
            shard_id
            for shard_id, times in self._acknowledged_at.items()
            if not times or times[-1] <= moment
        ]

    def longest_pause(self, since: float, until: float) -> tuple[float, int]:
        """Return the longest time without an acknowledged write on a shard, and the shard.

        A pause counts whole if a part of it falls between the two moments.
        """
        longest = (0.0, -1)
        for shard_id, times in self._acknowledged_at.items():
            first = max(0, bisect.bisect_left(times, since) - 1)
            last = bisect.bisect_right(times, until) + 1
            seen = [*times[first:last]] if times[first:last] else [since]
            if seen[-1] < until:
                seen.append(until)
            pause = max((b - a for a, b in itertools.pairwise(seen)), default=0.0)
            longest = max(longest, (pause, shard_id))
        return longest

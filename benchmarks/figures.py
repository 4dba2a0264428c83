"""What one measurement has shown."""

from dataclasses import dataclass, field

from benchmarks.histogram import Buckets, Latency


@dataclass(frozen=True)
class Lag:
    """How far the followers were behind the leaders, in log entries, over all samples."""

    samples: int
    mean: float
    """Of all followers of all shards."""
    worst: int
    """Of one follower of one shard."""
    caught_up_s: float
    """From the end of the load until every replica had applied all that was committed."""


@dataclass(frozen=True)
class Figures:
    """One row of the results. Rates and costs count transactions, or reads in a part of reads."""

    part: str
    name: str
    loop: str
    """"closed": the next call starts when one has ended. "open": calls start at planned times."""
    in_flight: int
    """Closed: how many calls are under way all the time. Open: how many there can be at most."""
    seconds: float
    done: int
    """Answered within the measured seconds, and as they should be. See `Outcome.done`."""
    per_s: float
    latency: Latency
    """Of calls. Open loop: from the planned time."""
    histogram: Buckets
    """All latencies."""
    per_call: int = 1
    """How many transactions a call carries."""
    connections: int = 1
    shards: int | None = None
    accounts: int | None = None
    planned_per_s: float | None = None
    failed: dict[str, int] = field(default_factory=dict)
    """Calls without the answer they should have, by what was wrong."""
    unsent: int = 0
    """Open loop: planned calls that had not been sent at the end; they count as that late."""
    cpu_us: dict[str, float] = field(default_factory=dict)
    """CPU time in microseconds for each one done, by component."""
    written_bytes: dict[str, float] = field(default_factory=dict)
    """Bytes written to files for each one done, by component."""
    disk_bytes: float | None = None
    """Bytes that the disk was given for each one done, by everything on the machine."""
    stored_bytes: float | None = None
    """Growth of the stores of all nodes for each one done."""
    lag: Lag | None = None
    more: dict[str, float] = field(default_factory=dict)
    """What only this kind of step has to tell, by name with unit."""
    other_cores: float = 0.0
    """Cores that were busy with something else meanwhile. Well above zero: measure again."""

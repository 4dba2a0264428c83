"""What the ledger is to reach, and whether it does. All targets are here, and nowhere else."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.figures import Figures

Measure = Callable[[Figures], float]


@dataclass(frozen=True)
class Target:
    """A limit for rows of the results."""

    part: str
    name: str
    """In the row's name."""
    limit: float
    text: str
    """As it was asked for."""
    loop: str = "closed"
    measure: Measure = lambda item: item.per_s
    unit: str = "/s"
    at_least: bool = True
    seconds: float = 0
    accounts: int = 0
    store_gb: float = 0
    """It holds for measurements that are so long and large; others only give an idea."""

    def concerns(self, item: Figures) -> bool:
        """Whether a row is judged by it."""
        return (
            (item.part, item.loop) == (self.part, self.loop)
            and self.name in item.name
            and (not self.accounts or (item.accounts == 10**6) == (self.accounts == 10**6))
        )

    def verdict(self, item: Figures) -> str:
        """Say what was asked for, and whether it is there."""
        value = self.measure(item)
        reached = value >= self.limit if self.at_least else value < self.limit
        sign = ">=" if self.at_least else "<"
        idea = "" if self._is_as_asked(item) else "?"
        return f"{sign} {self._shown}{self.unit}: {'ok' if reached else 'short'}{idea}"

    @property
    def _shown(self) -> str:
        return f"{self.limit:,.0f}" if self.limit >= 3 else f"{self.limit:.2f}"

    def _is_as_asked(self, item: Figures) -> bool:
        return (
            item.seconds >= self.seconds
            and (item.accounts or 0) >= self.accounts
            and item.more.get("store GB", 0) >= self.store_gb
        )


_SUSTAINED = (
    "both accounts on one shard: 100,000/s for 60 s, followers keeping up; 70,000/s with 10^6"
)
_P99 = "half of the highest bulk rate: p99 below 100 ms"
_LONE = "a lone settled transaction: median below 6 ms"

TARGETS = (
    Target("bulk", "sustained", 100_000, _SUSTAINED, seconds=60, accounts=10**4),
    Target("bulk", "sustained", 70_000, _SUSTAINED, seconds=60, accounts=10**6),
    Target("bulk", "any two accounts", 25_000, "random accounts over 16 shards: 25,000/s"),
    Target("bulk", "100 per call, 8 conn", 30_000, "batches of 100 from 8 connections: 30,000/s"),
    Target(
        "bulk",
        "",
        100,
        _P99,
        loop="open",
        measure=lambda item: item.latency.p99_ms,
        unit=" ms p99",
        at_least=False,
    ),
    Target("sdk", "256 at a time", 12_000, "256 concurrent single calls of the SDK: 12,000/s"),
    Target("sdk", "32 at a time", 6_000, "32 concurrent single calls of the SDK: 6,000/s"),
    Target("single", "64 at a time", 2_500, "single gRPC calls, 64 at a time: 2,500/s"),
    Target(
        "single",
        ", 1 at a time",
        6,
        _LONE,
        measure=lambda item: item.latency.p50_ms,
        unit=" ms p50",
        at_least=False,
    ),
    Target("reads", "GetBalance", 15_000, "GetBalance, linearizable, 256 at a time: 15,000/s"),
    Target(
        "growth",
        "",
        2 / 3,
        "from an empty to a 10 GB store throughput falls by less than a third",
        measure=lambda item: item.more["of first"],
        unit=" of the first",
        store_gb=10,
    ),
)
POSTGRES = ("postgres", "32 clients, 1 per transaction")
POSTGRES_TEXT = "256 concurrent single calls of the SDK: no less than PostgreSQL at 32 clients"


def verdicts(item: Figures, figures: Sequence[Figures]) -> Iterator[str]:
    """Judge a row; some targets compare it with others of the same run."""
    for target in TARGETS:
        if target.concerns(item):
            yield target.verdict(item)
    if (item.part, item.loop) == ("sdk", "closed") and "256 at a time" in item.name:
        for other in figures:
            if (other.part, other.name) == POSTGRES:
                reached = item.per_s >= other.per_s
                yield f">= PostgreSQL {other.per_s:,.0f}/s: {'ok' if reached else 'short'}"


def legend(figures: Sequence[Figures]) -> Iterator[str]:
    """Return the targets of the parts that were measured, in words."""
    parts = {item.part for item in figures}
    texts = [(target.part, target.text) for target in TARGETS]
    for part, text in dict.fromkeys([*texts, ("sdk", POSTGRES_TEXT)]):
        if part in parts:
            yield f"target of {part}: {text}"
    yield "ok? and short?: measured for less time, or with less, than the target is for"

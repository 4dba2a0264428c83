"""A step on a cluster: calls of one kind, as many as it takes, then some at planned times."""

from dataclasses import dataclass

from benchmarks.bench import Bench
from benchmarks.figures import Figures
from benchmarks.load import Load
from benchmarks.stage import Size

OPEN_IN_FLIGHT = 4_096


@dataclass(frozen=True)
class Scenario:
    """First a closed loop, which shows the highest rate; then an open one at a share of it."""

    part: str
    name: str
    operation: str
    size: Size
    in_flight: int
    seconds: float
    warmup_s: float
    open_share: float | None = 0.5
    """None: no open loop."""

    @property
    def title(self) -> str:
        """The name with its part."""
        return f"{self.part}: {self.name}"

    def run(self, bench: Bench) -> list[Figures]:
        """Do it."""
        stage = bench.stage(self.part, self.size)
        load = Load(self.operation, self.seconds, self.warmup_s, self.in_flight)
        closed = stage.measure(self.part, self.name, load)
        if self.open_share is None or not closed.done:
            return [closed]
        load = Load(
            self.operation,
            self.seconds,
            self.warmup_s,
            OPEN_IN_FLIGHT,
            per_s=max(1.0, closed.per_s * self.open_share),
            seed=2,
        )
        return [closed, stage.measure(self.part, self.name, load)]

"""A step on a cluster: calls of one kind, as many as it takes, then some at planned times."""

from dataclasses import dataclass, replace

from benchmarks.bench import Bench
from benchmarks.figures import Figures
from benchmarks.load import Load
from benchmarks.stage import Size

OPEN_IN_FLIGHT = 4_096
OPEN_IN_FLIGHT_BULK = 64


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
    per_call: int = 1
    connections: int = 1

    @property
    def title(self) -> str:
        """The name with its part."""
        return f"{self.part}: {self.name}"

    def run(self, bench: Bench) -> list[Figures]:
        """Do it."""
        stage = bench.stage(self.part, self.size)
        load = Load(
            self.operation,
            self.seconds,
            self.warmup_s,
            self.in_flight,
            per_call=self.per_call,
            connections=self.connections,
        )
        closed = stage.measure(self.part, self.name, load)
        if self.open_share is None or not closed.done:
            return [closed]
        load = replace(
            load,
            in_flight=OPEN_IN_FLIGHT if self.per_call == 1 else OPEN_IN_FLIGHT_BULK,
            per_s=max(1.0, closed.per_s / self.per_call * self.open_share),
            seed=2,
        )
        return [closed, stage.measure(self.part, self.name, load)]

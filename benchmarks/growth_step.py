"""A step that fills the stores: does throughput hold?"""

from dataclasses import dataclass, replace

from benchmarks.bench import Bench
from benchmarks.figures import Figures
from benchmarks.load import Load
from benchmarks.stage import Size

ROWS_MIN, ROWS = 3, 6
SLICE_S_MAX = 600.0


@dataclass(frozen=True)
class GrowthStep:
    """Bulk transfers until there are so many, or until a node's store is so large."""

    size: Size
    seconds: float
    """Of the first row; the others take what it needs to end after some `ROWS` rows."""
    warmup_s: float
    transfers: int
    store_gb: float | None
    part: str = "growth"

    @property
    def title(self) -> str:
        """What it does."""
        if self.store_gb:
            return f"{self.part}: until a store has {self.store_gb:g} GB"
        return f"{self.part}: until there are {self.transfers:,} transfers"

    def run(self, bench: Bench) -> list[Figures]:
        """Do it."""
        stage = bench.stage(self.part, self.size)
        load = Load(
            "bulk/one_shard", self.seconds, self.warmup_s, in_flight=8, per_call=8_192,
            connections=8,
        )  # fmt: skip
        limit = self.store_gb * 1e9 if self.store_gb else self.transfers
        found: list[Figures] = []
        done, grown = 0, 0.0
        stored = stage.store_bytes()
        while len(found) < ROWS_MIN or (grown < limit and found[-1].done):
            name = f"from {done / 1e6:.2f} million transfers, {stored / 1e9:.2f} GB"
            figures = stage.measure(self.part, name, replace(load, seed=len(found) + 1))
            done += figures.done
            stored = stage.store_bytes()
            before, grown = grown, float(stored if self.store_gb else done)
            more = {
                "transfers": float(done),
                "store GB": round(stored / 1e9, 3),
                "of first": round(figures.per_s / max((found or [figures])[0].per_s, 1.0), 3),
            }
            found.append(replace(figures, more=more))
            per_s = max(grown - before, 1.0) / load.seconds
            wanted_s = (limit - grown) / per_s / max(1, ROWS - len(found))
            load = replace(load, seconds=min(SLICE_S_MAX, max(self.seconds, wanted_s)))
        return found

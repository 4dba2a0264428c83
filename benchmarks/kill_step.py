"""A step that kills a leader while bulk calls run: what does it cost?"""

import itertools
import time
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.bench import Bench
from benchmarks.figures import Figures
from benchmarks.load import Load
from benchmarks.stage import Size


@dataclass(frozen=True)
class KillStep:
    """Kills a node after a third of the time, and starts it again after two thirds.

    The load is the client's `create_transfers`, which sends again what got lost. Every call has
    transfers of all shards, so that one shard without a leader holds up all of them.
    """

    size: Size
    seconds: float
    warmup_s: float
    part: str = "failover"
    name: str = "kill -9 of a leader, 1,000 per call, 8 connections"

    @property
    def title(self) -> str:
        """The name with its part."""
        return f"{self.part}: {self.name}"

    def run(self, bench: Bench) -> list[Figures]:
        """Do it."""
        stage = bench.stage(self.part, self.size)
        load = Load(
            "sdk_bulk/one_shard",
            self.seconds,
            self.warmup_s,
            in_flight=8,
            per_call=1_000,
            connections=8,
            timeline=True,
        )
        victim = stage.leader(0)
        at: dict[str, float] = {}

        def tell(event: str, told: dict[str, Any]) -> None:
            if event != "progress":
                at[event] = told["at"]
                return
            passed = load.seconds - told["left_s"]
            if passed >= load.seconds / 3 and "killed" not in at:
                at["killed"] = time.monotonic()
                stage.kill(victim)
            elif passed >= load.seconds * 2 / 3 and "restarted" not in at:
                at["restarted"] = time.monotonic()
                stage.restart(victim)

        figures, result = stage.observe(self.part, self.name, load, tell)
        return [replace(figures, more=cost(result.moments, load.per_call, at))]


def cost(moments: list[float], per_call: int, at: dict[str, float]) -> dict[str, float]:
    """Return what a kill has cost, from when calls were done and when things happened."""
    began, killed, restarted, ended = (
        at[name] for name in ("measuring", "killed", "restarted", "ended")
    )

    def done(since: float, until: float) -> int:
        return per_call * sum(since <= moment < until for moment in moments)

    def rate(since: float, until: float) -> float:
        return done(since, until) / max(until - since, 1e-9)

    later = [killed, *sorted(item for item in moments if killed <= item < ended), ended]
    before = rate(began, killed)
    missing = before * (restarted - killed) - done(killed, restarted)
    return {
        "pause s": round(max(b - a for a, b in itertools.pairwise(later)), 3),
        "before /s": round(before),
        "down /s": round(rate(killed, restarted)),
        "again /s": round(rate(restarted, ended)),
        "lost by the kill": round(max(0.0, missing)),
    }

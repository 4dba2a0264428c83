"""What a run prints: a line for every fault, and a table in the end."""

import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass, field


class Violation(Exception):  # noqa: N818  (what must not be, found)
    """A promise of the product that did not hold."""


@dataclass
class FaultRecord:
    """A fault that was injected, and the pause it came with."""

    kind: str
    what: str
    pause_s: float
    shard_id: int
    combined: bool


@dataclass
class Report:
    """Everything counted during a run."""

    faults: list[FaultRecord] = field(default_factory=list)
    checks: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, record: FaultRecord) -> None:
        """Count a fault in."""
        self.faults.append(record)

    def table(
        self,
        counts: Counter[str],
        refusals: Counter[str],
        transfers: Counter[str],
        seconds: float,
    ) -> str:
        """Return the whole as text."""
        by_kind: defaultdict[str, list[FaultRecord]] = defaultdict(list)
        for record in self.faults:
            by_kind[record.kind].append(record)
        refused = ", ".join(f"{name} {count:,}" for name, count in sorted(refusals.items()))
        lines = ["", f"{seconds:.0f} s under fire"]
        if counts:
            lines += [
                "",
                "operations of clients of single accounts",
                f"  acknowledged {counts['acknowledged']:>10,}   "
                f"(of them writes: {counts['acknowledged writes']:,})",
                f"  refused      {counts['refused']:>10,}   ({refused or 'none'})",
                f"  unknown      {counts['unknown']:>10,}   (each resolved by repeating it)",
            ]
        lines += [
            "",
            "transfers, their ends and reversals, between accounts on any shards",
            *(f"  {count:>10,}  {name}" for name, count in sorted(transfers.items())),
            "",
            "faults                  times   longest pause of a shard: median   worst",
        ]
        for kind, records in sorted(by_kind.items()):
            pauses = [record.pause_s for record in records]
            alone = [record.pause_s for record in records if not record.combined]
            lines.append(
                f"  {kind:20} {len(records):>6}   {statistics.median(pauses):>26.2f} s"
                f" {max(pauses):>7.2f} s"
                + (f"   (alone: worst {max(alone):.2f} s)" if alone else "")
            )
        lines.append(f"  {'all':20} {len(self.faults):>6}")
        lines += [f"  not injected: {kind}: {why}" for kind, why in self.skipped.items()]
        lines += ["", "checks that held"]
        lines += [f"  {count:>10,}  {name}" for name, count in sorted(self.checks.items())]
        return "\n".join(lines)

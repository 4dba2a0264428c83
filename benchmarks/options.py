"""What a run of the suite is asked for on the command line."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.parts import PARTS

RESULTS_DIR = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    """How long to measure what, and on clusters of which sizes."""

    only: tuple[str, ...]
    """Names of the parts to run."""
    seconds: float
    """Of each measurement, after its warm-up."""
    base_shards: int
    base_accounts: int
    """Of all parts that do not vary them."""
    shards: tuple[int, ...]
    accounts: tuple[int, ...]
    """What the parts `shards` and `accounts` go through."""
    transfers: int
    store_gb: float | None
    """How far the part `growth` goes; the second one rules if it is given."""
    quick: bool
    scratch: Path | None
    """Where clusters and databases live while they are measured; None: the system's own place."""
    output: Path

    @property
    def warmup_s(self) -> float:
        """How long each measurement runs before it counts."""
        return min(3.0, self.seconds / 4)

    @property
    def sustained_s(self) -> float:
        """How long the part `bulk` keeps its highest rate."""
        return min(6.0, 3 * self.seconds) if self.quick else max(60.0, self.seconds)

    @property
    def failover_s(self) -> float:
        """How long a kill is looked at, from well before it."""
        return 15.0 if self.quick else max(30.0, self.seconds)


def parse_options(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line; ends the program with a word if it cannot be understood."""
    parts = "\n".join(f"  {part.name:10} {part.what}" for part in PARTS)
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures the ledger: 3 nodes, 3 replicas, a gateway and the load, all here.",
        epilog=f"parts:\n{parts}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help="default: all")
    parser.add_argument("--seconds", type=_seconds, help="of each measurement (20; quick: 2)")
    parser.add_argument("--shards", type=_counts, help="for part shards (1,4,16,64; quick: 1,16)")
    parser.add_argument(
        "--accounts",
        type=_counts,
        help="for part accounts (1000,10000,100000,1000000; quick: 1000,10000)",
    )
    parser.add_argument(
        "--transfers", type=int, help="for part growth (5000000; quick: 100000): until there are N"
    )
    parser.add_argument(
        "--store-gb", type=float, help="for part growth: until a node's store is so large"
    )
    parser.add_argument("--quick", action="store_true", help="a look in a few minutes, no result")
    parser.add_argument("--scratch", type=Path, help="folder for the data, on the disk to measure")
    parser.add_argument("--output", type=Path, default=RESULTS_DIR, help="folder for the results")
    given = parser.parse_args(arguments)
    quick: bool = given.quick
    return Options(
        only=tuple(given.only or names),
        seconds=given.seconds or (2.0 if quick else 20.0),
        base_shards=16,
        base_accounts=2_000 if quick else 10_000,
        shards=given.shards or ((1, 16) if quick else (1, 4, 16, 64)),
        accounts=given.accounts or ((1_000, 10_000) if quick else (10**3, 10**4, 10**5, 10**6)),
        transfers=given.transfers or (100_000 if quick else 5_000_000),
        store_gb=given.store_gb,
        quick=quick,
        scratch=given.scratch,
        output=given.output,
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3_600:
        raise argparse.ArgumentTypeError("must be 0.1 to 3600")
    return seconds


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(part) for part in text.split(","))
    if min(counts) < 1:
        raise argparse.ArgumentTypeError("must be positive numbers with commas between them")
    return counts

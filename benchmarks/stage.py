"""A cluster with accounts, and a process that makes load on it."""

import asyncio
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.book import AccountBook
from benchmarks.figures import Figures
from benchmarks.fill import fill
from benchmarks.histogram import Latencies
from benchmarks.load import Load
from benchmarks.load_generator import LoadGenerator, LoadResult
from benchmarks.procfs import Snapshot, Usage, usage
from benchmarks.progress import Progress
from benchmarks.watch import Watch, catch_up, stored_bytes
from ledger_cli.local_cluster import GATEWAY, LocalCluster, free_cluster_ports
from ledger_cli.node_probe import NodeProbe
from ledger_cli.verify import prove
from ledger_cluster.config import generate_cluster_config

NODES, REPLICAS = 3, 3
START_S_MAX = 120.0
AUDIT_S_MAX = 300.0
SETTLE_S_MAX = 30.0
LOAD = "load"


Tell = Callable[[str, dict[str, Any]], None]
"""Hears of the events of a load: see `load_process`."""


class MoneyError(RuntimeError):
    """The books are not as they must be; the text says what is wrong."""


@dataclass(frozen=True)
class Size:
    """Of a cluster."""

    shards: int
    accounts: int


class Stage:
    """A context manager; everything is gone when it ends."""

    def __init__(self, size: Size, scratch: Path | None, progress: Progress) -> None:
        self.size = size
        self._progress = progress
        base_port, gateway_port = free_cluster_ports(NODES)
        self._config = generate_cluster_config(
            NODES, size.shards, REPLICAS, cluster_id="benchmark", base_port=base_port
        )
        self._exits = ExitStack()
        folder = tempfile.TemporaryDirectory(prefix="ledger-bench-", dir=scratch)
        self._folder = Path(self._exits.enter_context(folder))
        self._cluster = LocalCluster(self._config, self._folder / "data", gateway_port)
        self._book: AccountBook | None = None
        self._generator: LoadGenerator | None = None
        self._done = 0
        self._used_before: dict[str, Usage] = {}
        """What killed processes had used."""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._exits.close()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self._exits.close()

    def measure(self, part: str, name: str, load: Load) -> Figures:
        """Make a load and return what it has shown."""
        return self.observe(part, name, load, lambda _event, _told: None)[0]

    def observe(self, part: str, name: str, load: Load, tell: Tell) -> tuple[Figures, LoadResult]:
        """Do the same, tell of what happens meanwhile, and return the load's own report too."""
        assert self._generator is not None
        snapshots: dict[str, Snapshot] = {}

        def on_event(event: str, told: dict[str, Any]) -> None:
            if event in ("measuring", "ended"):
                snapshots[event] = self._snapshot()
            if event == "progress":
                done = round(told["done"] * load.per_call)
                self._progress.passed(load.seconds - told["left_s"], f"{done:,} done")
            tell(event, told)

        self._progress.expect(load.seconds, "warm-up")
        stored_before = stored_bytes(self._cluster.statuses())
        with Watch(self._config) as watch:
            result = self._generator.run(load, on_event)
        caught_up_s = catch_up(self._config)
        stored = stored_bytes(self._cluster.statuses()) - stored_before
        if exits := self._cluster.take_exits():
            raise RuntimeError("; ".join(f"{item.name} {item.cause}" for item in exits))
        before, after = snapshots["measuring"], snapshots["ended"]
        used = after.since(before)
        disk_bytes = after.disk_bytes_since(before)
        done = round(result.done * load.per_call)
        self._done += done if "/get_" not in load.operation else 0
        each = 1 / max(done, 1)
        seconds_in_all = load.warmup_s + load.seconds
        figures = Figures(
            part=part,
            name=name,
            loop="closed" if load.per_s is None else "open",
            in_flight=load.in_flight,
            shards=self.size.shards,
            accounts=self.size.accounts,
            seconds=load.seconds,
            planned_per_s=None if load.per_s is None else load.per_s * load.per_call,
            per_call=load.per_call,
            connections=load.connections,
            done=done,
            per_s=round(result.done * load.per_call / load.seconds, 1),
            failed=result.failed,
            unsent=result.unsent,
            latency=Latencies(result.histogram).summary(),
            histogram=result.histogram,
            cpu_us={item: round(use.cpu_s * each * 1e6, 1) for item, use in used.items()},
            written_bytes={item: round(use.written_bytes * each) for item, use in used.items()},
            disk_bytes=None if disk_bytes is None else round(disk_bytes * each),
            # The stores grow during the warm-up as well.
            stored_bytes=round(stored * each * load.seconds / seconds_in_all, 1),
            lag=watch.lag(caught_up_s),
            other_cores=after.other_cores(before, load.seconds),
        )
        return figures, result

    def prove(self) -> None:
        """Raise MoneyError unless books balance, replicas are equal, and nothing is lost."""
        deadline = time.monotonic() + SETTLE_S_MAX
        with NodeProbe(self._config) as probe:
            while True:
                proofs = prove(self._config, lambda shard_ids: probe.audits(shard_ids, AUDIT_S_MAX))
                unfinished = sum(proof.in_flight + proof.undecided for proof in proofs)
                if not unfinished or time.monotonic() > deadline:
                    break
                time.sleep(0.5)
        problems = [problem for proof in proofs for problem in proof.problems()]
        if unfinished:
            problems.append(f"{unfinished} transactions are unfinished after {SETTLE_S_MAX:g} s")
        entries = sum(proof.latest.entries for proof in proofs if proof.latest)
        # Opening an account gives it money. Every transaction has two entries at least.
        wanted = 2 * (self.size.accounts + self._done)
        if entries < wanted:
            problems.append(f"there are {entries:,} entries, and {wanted:,} were acknowledged")
        if problems:
            raise MoneyError("; ".join(problems[:5]))

    def leader(self, shard_id: int) -> str:
        """Return the node that leads a shard."""
        leader = self._cluster.leader_of(shard_id)
        assert leader is not None, "shards are served"
        return leader

    def kill(self, node_id: str) -> None:
        """End a node at once."""
        self._used_before[node_id] = self._used(node_id)
        self._cluster.kill(node_id)

    def restart(self, node_id: str) -> None:
        """Start it again."""
        self._cluster.restart(node_id)

    def store_bytes(self) -> int:
        """Return the size of the largest store of a node."""
        answers = self._cluster.statuses().values()
        return max(item.status.store_used_bytes for item in answers if item.status)

    def _start(self) -> None:
        self._progress.say(f"a cluster of {self.size.shards} shards, {self.size.accounts} accounts")
        self._exits.enter_context(self._cluster)
        self._cluster.wait_until_serving(START_S_MAX)
        self._progress.expect(self.size.accounts, "opening accounts")
        opening = fill(
            self._cluster, self.size.accounts, lambda count: self._progress.passed(count, "")
        )
        self._book = asyncio.run(opening)
        accounts = self._folder / "accounts"
        self._book.save(accounts)
        generator = LoadGenerator(
            self._cluster.gateway_address, accounts, self._folder / "load.log"
        )
        self._generator = self._exits.enter_context(generator)
        catch_up(self._config)

    def _snapshot(self) -> Snapshot:
        assert self._generator is not None
        components = {name: self._used(name) for name in self._cluster.names}
        nodes = [components.pop(node.id) for node in self._config.nodes]
        return Snapshot.take(
            {
                GATEWAY: components[GATEWAY],
                # Together: who leads what differs from run to run.
                "nodes": nodes[0] + nodes[1] + nodes[2],
                LOAD: usage(self._generator.pid),
            },
            self._folder,
        )

    def _used(self, name: str) -> Usage:
        before = self._used_before.get(name, Usage())
        if not self._cluster.running(name):
            return before
        return before + usage(self._cluster.pid(name))

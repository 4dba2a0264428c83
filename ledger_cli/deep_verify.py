"""The deep part of `ledger verify`: every replica reads all it has stored, and proves it.

Nodes work side by side, each on one replica after the other. A store whose node is stopped is read
by this process's own child instead.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from ledger.internal.v1 import shard_pb2
from ledger_cli.context import CliError
from ledger_cli.node_probe import NodeProbe
from ledger_cli.output import console
from ledger_cluster.config import ClusterConfig
from ledger_node.deep_audit import DeepAudit
from ledger_node.deep_audit_process import deep_audits
from ledger_node.store_check import refuse_damaged
from ledger_node.store_files import StoreCorruptError, StoreError, lock_directory, state_file


@dataclass(frozen=True)
class ReplicaProof:
    """What the deep audit of one replica found, or why there was none."""

    shard_id: int
    node_id: str
    found: shard_pb2.VerifyProgress | str

    def problems(self) -> list[str]:
        """Everything that is not as it must be."""
        name = f"shard {self.shard_id}: {self.node_id}"
        if isinstance(self.found, str):
            return [f"{name} could not be verified: {self.found}"]
        return [f"{name}: {fault}" for fault in self.found.faults]

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        found = shard_pb2.VerifyProgress() if isinstance(self.found, str) else self.found
        return {
            "shard_id": self.shard_id,
            "node_id": self.node_id,
            "proven": not self.problems(),
            "journal_entries": found.journal_entries,
            "entries": found.entries,
            "accounts": found.accounts,
            "transactions": found.transactions,
            "link": found.link.hex(),
            "orphaned_holds": found.orphaned_holds,
            "faults": len(found.faults),
        }


@dataclass
class _Shown:
    """How far all audits together are, as a share of their number."""

    progress: Progress | None
    shares: dict[tuple[str, int], float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, which: tuple[str, int], done: int, estimated: int) -> None:
        with self.lock:
            self.shares[which] = min(1.0, done / estimated) if estimated else 1.0
            if self.progress is not None:
                share = sum(self.shares.values())
                self.progress.update(self.progress.task_ids[0], completed=share)


@contextmanager
def _shown(what: str, total: int) -> Iterator[_Shown]:
    """Show a progress bar on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield _Shown(None)
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console(stderr=True),
        transient=True,
    ) as progress:
        progress.add_task(what, total=total)
        yield _Shown(progress)


def deep_verify(probe: NodeProbe, config: ClusterConfig, timeout_s: float) -> list[ReplicaProof]:
    """Have every node prove its replicas, one after the other, all nodes side by side."""
    replicas = {
        node.id: [shard.id for shard in config.shards if node.id in shard.node_ids]
        for node in config.nodes
    }

    def of_replica(node_id: str, shard_id: int) -> ReplicaProof:
        def tell(told: shard_pb2.VerifyProgress) -> None:
            shown.tell((node_id, shard_id), told.rows_done, told.rows_estimated)

        found = probe.verify_replica(node_id, shard_id, timeout_s, tell)
        shown.tell((node_id, shard_id), 1, 1)
        return ReplicaProof(shard_id, node_id, found)

    def of_node(node_id: str) -> list[ReplicaProof]:
        return [of_replica(node_id, shard_id) for shard_id in replicas[node_id]]

    count = sum(map(len, replicas.values()))
    with (
        _shown(f"proving {count} replicas", count) as shown,
        ThreadPoolExecutor(len(replicas)) as pool,
    ):
        try:
            found = [proof for proofs in pool.map(of_node, replicas) for proof in proofs]
        except BaseException:
            probe.close()  # ends the calls, and so the threads
            raise
    return sorted(found, key=lambda proof: (proof.shard_id, proof.node_id))


# A store without its node


@dataclass
class StoreProof:
    """What is in the store of a stopped node, shard by shard, and what is wrong with it."""

    audits: list[DeepAudit]
    problems: list[str]


def verify_store(path: Path) -> StoreProof:
    """Prove the store in a data directory whose node is stopped; CliError if that cannot be."""
    file = state_file(path / "store")
    if not file.is_file():
        raise CliError(f"{path} is no data directory of a node: there is no {file}.")
    try:
        lock = lock_directory(path)
    except StoreError as error:
        raise CliError(f"{error} `ledger verify` without --data-dir asks running nodes.") from None
    problems = []
    try:
        try:
            refuse_damaged(path)
        except StoreCorruptError as error:
            problems.append(str(error))
        audits = asyncio.run(_audit_all(path / "store"))
    finally:
        os.close(lock)
    for audit in audits:
        name = f"{file}, shard {audit.shard_id}" if audit.shard_id >= 0 else str(file)
        problems += [f"{name}: {fault}" for fault in audit.faults]
        if not audit.finished:
            problems.append(f"{name}: {audit.message or 'it was not read to its end'}")
    if not audits:
        problems.append(f"{file}: it holds no shard")
    return StoreProof(audits, problems)


async def _audit_all(store: Path) -> list[DeepAudit]:
    found: dict[int, DeepAudit] = {}
    with _shown("proving a store, shard by shard", 1) as shown:
        async for audit in deep_audits(store):
            found[audit.shard_id] = audit
            shown.shares.clear()
            shown.tell(("", audit.shard_id), audit.rows_done, audit.rows_estimated)
    return list(found.values())

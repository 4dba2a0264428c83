"""Looks at replicas while traffic and faults go on: each of them must balance in every sample."""

import asyncio
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from ledger.internal.v1 import shard_pb2
from ledger_cli.node_probe import NodeProbe
from ledger_cluster.config import ClusterConfig
from tests.torture.report import Violation

PAUSE_S = 0.4
# Replicas that are down, frozen or slow just now are not waited for.
SAMPLE_S_MAX = 1.5
FINISHED_S_MAX = 15.0

Sums = shard_pb2.LedgerSums


class Sampler:
    """Audits all replicas of one shard after the other, in a thread of its own."""

    def __init__(self, config: ClusterConfig, seed: int, checks: Counter[str]) -> None:
        self.violations: list[Violation] = []
        self.unfinished_max = 0
        """The most transactions that one shard was seen with on their way."""
        self._config = config
        self._rng = random.Random(seed)
        self._checks = checks
        self._hashes: dict[tuple[int, int], bytes] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampler")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to sample."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End after the sample that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._thread.shutdown()

    async def finished(self) -> float:
        """Wait until nothing is undecided or in flight anywhere; return how long that took."""
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        while True:
            left = await loop.run_in_executor(self._thread, partial(_unfinished, self._config))
            seconds = time.monotonic() - began
            if not left:
                self._checks["checkpoints with nothing undecided or in flight"] += 1
                return seconds
            if seconds > FINISHED_S_MAX:
                what = f"undecided or in flight {seconds:.0f} s after all was healed: {left}"
                self.violations.append(Violation(what))
                return seconds
            await asyncio.sleep(0.1)

    async def _run(self) -> None:
        shard_ids = [shard.id for shard in self._config.shards]
        loop = asyncio.get_running_loop()
        probe = NodeProbe(self._config)
        try:
            while True:
                self._rng.shuffle(shard_ids)
                for shard_id in shard_ids:
                    call = partial(probe.audits, [shard_id], SAMPLE_S_MAX)
                    audits = (await loop.run_in_executor(self._thread, call))[shard_id]
                    for node_id, audit in audits.items():
                        if not isinstance(audit, str):
                            self._look_at(shard_id, node_id, audit)
                    await asyncio.sleep(PAUSE_S * self._rng.uniform(0.2, 1.8))
        finally:
            probe.close()

    def _look_at(self, shard_id: int, node_id: str, audit: shard_pb2.ReplicaAudit) -> None:
        where = f"shard {shard_id} on {node_id} at index {audit.applied_index}"
        self._checks["samples of a replica under fire: balanced, posted and pending"] += 1
        self.unfinished_max = max(self.unfinished_max, audit.in_flight + audit.undecided)
        self.violations += [Violation(f"{where}: {fault}") for fault in audit.faults]
        self.violations += [
            Violation(f"{where} does not balance: {sums}")
            for sums in audit.sums
            if sums.debits_posted != sums.credits_posted
            or sums.debits_pending != sums.credits_pending
        ]
        seen = self._hashes.setdefault((shard_id, audit.applied_index), audit.chain_hash)
        if seen != audit.chain_hash:
            self.violations.append(Violation(f"{where} differs from another replica"))


def _unfinished(config: ClusterConfig) -> dict[int, tuple[int, int]]:
    """Return what the replicas still have in flight and undecided, by shard."""
    with NodeProbe(config) as probe:
        found = probe.audits([shard.id for shard in config.shards], SAMPLE_S_MAX * 4)
    left = {}
    for shard_id, audits in found.items():
        for audit in audits.values():
            if isinstance(audit, str):
                left[shard_id] = (-1, -1)
            elif audit.in_flight or audit.undecided:
                left[shard_id] = (audit.in_flight, audit.undecided)
    return left

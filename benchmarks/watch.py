"""Looks at the nodes while a load runs: how far followers are behind, how large stores are."""

import statistics
import threading
import time
from typing import Self

from benchmarks.figures import Lag
from ledger_cli.node_probe import NodeAnswer, NodeProbe, serving_leader
from ledger_cluster.config import ClusterConfig

PAUSE_S = 0.5
CATCH_UP_S_MAX = 60.0


class Watch:
    """Samples in a thread of its own, while it is entered."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._lags: list[int] = []
        self._samples = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ending.set()
        self._thread.join()

    def lag(self, caught_up_s: float) -> Lag:
        """Return what the samples have shown."""
        lags = self._lags or [0]
        return Lag(self._samples, round(statistics.fmean(lags), 2), max(lags), caught_up_s)

    def _run(self) -> None:
        with NodeProbe(self._config) as probe:
            while not self._ending.wait(PAUSE_S):
                self._lags += lags(self._config, probe.node_statuses())
                self._samples += 1


def lags(config: ClusterConfig, answers: dict[str, NodeAnswer]) -> list[int]:
    """Return how many entries every follower has yet to apply that its leader has applied.

    The nodes answer within milliseconds of each other, not at the same moment.
    """
    found = []
    for shard in config.shards:
        leader = serving_leader(shard, answers)
        ahead = answers[leader].replica(shard.id) if leader else None
        for node_id in shard.node_ids:
            replica = answers[node_id].replica(shard.id)
            if ahead and replica and node_id != leader:
                found.append(max(0, ahead.applied_index - replica.applied_index))
    return found


def stored_bytes(answers: dict[str, NodeAnswer]) -> int:
    """Return what the stores of all nodes hold together."""
    return sum(answer.status.store_used_bytes for answer in answers.values() if answer.status)


def catch_up(config: ClusterConfig) -> float:
    """Wait until all replicas have applied what is committed now; return how long that took."""
    began = time.monotonic()
    with NodeProbe(config) as probe:
        committed: dict[int, int] = {}
        while True:
            answers = probe.node_statuses()
            replicas = [
                replica
                for answer in answers.values()
                if answer.status
                for replica in answer.status.replicas
            ]
            if not committed:
                for replica in replicas:
                    known = committed.get(replica.shard_id, 0)
                    committed[replica.shard_id] = max(known, replica.commit_index)
            seconds = time.monotonic() - began
            expected = sum(len(shard.replicas) for shard in config.shards)
            if seconds > CATCH_UP_S_MAX or (
                len(replicas) == expected
                and all(item.applied_index >= committed[item.shard_id] for item in replicas)
            ):
                return round(seconds, 3)
            time.sleep(0.02)

"""The disk of a host: the real store in a folder, made to fail on demand, with a shadow beside it.

The shadow holds what was committed, as the simulation saw it written. Checks ask it what a host
would find after a crash, without opening its store.
"""

import shutil
import zlib
from enum import Enum
from pathlib import Path
from typing import Any

import lmdb

from ledger_cluster.config import ClusterConfig
from ledger_node.store import ShardRange, Store, StoreIdentity
from ledger_node.store_log import LogTables
from tests.simulation.engine import require

MAP_BYTES = 1 << 30
# So few that accounts often share a cell.
BALANCE_CELLS = 4


class SimulatedCrash(BaseException):
    """The process dies here. A BaseException, so that nothing on the way catches it."""


class DiskError(lmdb.DiskError):
    """The disk failed."""


class CrashPoint(Enum):
    """Where, at a commit."""

    BEFORE = "before it"
    AFTER = "right after it"
    SENT = "after it, when the messages of its turn are sent, and nothing of it is applied"


class ShadowLog:
    """What one replica has on disk: its log as (term, checksum) by index, its term and vote.

    Entries that compaction dropped are kept here: somebody may still want to compare them.
    """

    def __init__(self) -> None:
        self.entries: dict[int, tuple[int, int]] = {}
        self.payloads: dict[int, bytes] = {}
        self.last = 0
        self.floor = 0
        """Entries up to here are in the state, if no longer in the log."""
        self.restarted = 0
        """Entries up to here came as a snapshot."""
        self.hard_state: tuple[int, str | None] = (0, None)
        self.wiped = False
        """Whether the disk was emptied, and the replica has not caught up since."""

    def holds(self, index: int, entry: tuple[int, int]) -> bool:
        """Whether the replica would have this entry after a crash, in its log or in its state."""
        return index <= self.floor or (index <= self.last and self.entries.get(index) == entry)

    def append(self, index: int, term: int, payload: bytes) -> None:
        """Note a committed append."""
        if self.last == -1:
            self.restarted = self.floor = index
        else:
            require(index == self.last + 1, "the log on disk has a gap")
        self.entries[index] = (term, zlib.crc32(payload))
        self.payloads[index] = payload
        self.last = index

    def truncate(self, index: int) -> None:
        """Note a committed truncation."""
        for dropped in range(index, self.last + 1):
            del self.entries[dropped]
        self.last = min(self.last, index - 1)

    def drop_before(self, index: int) -> None:
        """Note a committed compaction."""
        self.floor = max(self.floor, index)

    def clear(self) -> None:
        """Note that the log is emptied, for the next append to begin a new one."""
        self.entries.clear()
        self.payloads.clear()
        self.last = -1

    def save_hard_state(self, term: int, voted_for: str | None) -> None:
        """Note a committed term and vote."""
        old_term, old_vote = self.hard_state
        require(term >= old_term, f"a stored term fell from {old_term} to {term}")
        if term == old_term and old_vote is not None:
            require(voted_for == old_vote, f"the vote stored for term {term} changed")
        self.hard_state = (term, voted_for)


class Disk:
    """What outlives the processes of one host."""

    def __init__(self, path: Path, config: ClusterConfig, node_id: str) -> None:
        self.path = path
        self._identity = StoreIdentity(config.cluster_id, node_id)
        self._shards = [
            ShardRange(shard.id, shard.lower_bound, shard.upper_bound)
            for shard in config.shards_on(node_id)
        ]
        self.shadows = {shard.id: ShadowLog() for shard in self._shards}
        self.is_full = False

    def wipe(self) -> None:
        """Lose everything: the directory is empty from now on."""
        shutil.rmtree(self.path)
        for shard_id in self.shadows:
            self.shadows[shard_id] = ShadowLog()
            self.shadows[shard_id].wiped = True

    def open(self) -> "SimulatedStore":
        """Open the store, and hold what it has against the shadow."""
        store = SimulatedStore.open(
            self.path,
            identity=self._identity,
            shards=self._shards,
            map_bytes=MAP_BYTES,
            sync=False,
            balance_cells=BALANCE_CELLS,
        )
        assert isinstance(store, SimulatedStore)
        store.disk, store.shadows = self, self.shadows
        for shard_id, shadow in self.shadows.items():
            log = Store.log(store, shard_id)
            last = log.bounds()[1]
            require(last == shadow.last, "the store lost or kept what it should not: log")
            require(
                log.hard_state() == shadow.hard_state,
                "the store lost or kept what it should not: term and vote",
            )
        return store


class SimulatedStore(Store):
    """The real store, with a fuse: it can fail at any access of a turn, or at a commit.

    A commit is one of the log, or a checkpoint.
    """

    disk: Disk
    shadows: dict[int, ShadowLog]
    fuse: int | None = None
    """Crash at this many accesses to the write transactions from now."""
    fail_next_commit = False
    fail_next_checkpoint = False
    crash_after_commit = False
    crash_after_checkpoint = False
    crash_at: "tuple[int, CrashPoint] | None" = None
    """Crash at this many commits from now."""
    crash_between_halves = False
    """Crash once the messages of a turn are sent, before its second half."""
    applies = False
    """Whether the second half of a turn is under way."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._written: list[tuple[Any, ...]] = []

    @property
    def uncommitted(self) -> bool:
        """Whether something was written to the log that is not committed."""
        return bool(self._written)

    @property
    def txn(self) -> lmdb.Transaction:
        """Return the write transaction of the state, if the process lives to see it."""
        self._burn()
        return super().txn

    @property
    def log_txn(self) -> lmdb.Transaction:
        """Return the write transaction of the log, if the process lives to see it."""
        self._burn()
        return super().log_txn

    def _burn(self) -> None:
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                raise SimulatedCrash

    def commit_log(self) -> None:
        """Commit, unless the disk or the process fails first."""
        if not self._log.is_open:
            return
        require(not (self.applies and self._written), "the second half of a turn wrote to the log")
        dies = self._commit_begins()
        if self.fail_next_commit:
            raise DiskError("simulated: no space left on device")
        super().commit_log()
        written, self._written = self._written, []
        for method, *arguments in written:
            method(*arguments)
        if dies or self.crash_after_commit:
            self.crash_after_commit = True
            raise SimulatedCrash

    def checkpoint(self) -> None:
        """Commit, unless the disk or the process fails first."""
        if not self._state.is_open:
            super().checkpoint()
            return
        # The process may die while it does this, or between this and the commit.
        self._write_back()
        dies = self._commit_begins()
        if self.fail_next_checkpoint:
            raise DiskError("simulated: no space left on device")
        super().checkpoint()
        if dies or self.crash_after_checkpoint:
            self.crash_after_checkpoint = True
            raise SimulatedCrash

    def _commit_begins(self) -> bool:
        """Crash if that is to be; return whether to crash when the commit is done."""
        dies = False
        if self.crash_at is not None:
            left, point = self.crash_at
            self.crash_at = (left - 1, point)
            if left == 1 and point is CrashPoint.BEFORE:
                raise SimulatedCrash
            dies = left == 1 and point is CrashPoint.AFTER
            self.crash_between_halves |= left == 1 and point is CrashPoint.SENT
        if self.fuse is not None:
            raise SimulatedCrash
        return dies

    def full(self) -> str | None:
        """Say so where the plan wants it; the disk of this machine has no part in a run."""
        return "simulated: no room" if self.disk.is_full else None

    def _room_bytes(self) -> int:
        return MAP_BYTES

    def abort(self) -> None:
        """Drop what is not committed."""
        self._written = []
        super().abort()

    def log(self, shard_id: int) -> LogTables:
        """Return the log of a shard; what is written to it is noted for the shadow."""
        return _Log(self, shard_id)


class _Log(LogTables):
    def __init__(self, store: SimulatedStore, shard_id: int) -> None:
        real = Store.log(store, shard_id)
        super().__init__(real._source, store._log_databases[shard_id])
        self._simulated = store
        self._shard_id = shard_id

    def append(self, index: int, term: int, payload: bytes) -> None:
        super().append(index, term, payload)
        shadow = self._simulated.shadows[self._shard_id]
        self._simulated._written.append((shadow.append, index, term, payload))

    def truncate(self, index: int) -> None:
        super().truncate(index)
        shadow = self._simulated.shadows[self._shard_id]
        self._simulated._written.append((shadow.truncate, index))

    def drop_before(self, index: int) -> None:
        super().drop_before(index)
        self._simulated._written.append(
            (self._simulated.shadows[self._shard_id].drop_before, index)
        )

    def clear(self) -> None:
        super().clear()
        self._simulated._written.append((self._simulated.shadows[self._shard_id].clear,))

    def save_raft_row(self, key: bytes, row: bytes) -> None:
        super().save_raft_row(key, row)
        self._note_write()

    def save_installing(self, index: int, term: int) -> None:
        super().save_installing(index, term)
        self._note_write()

    def drop_installing(self) -> None:
        super().drop_installing()
        self._note_write()

    def _note_write(self) -> None:
        """Note a write that the shadow has no use for."""
        self._simulated._written.append((_nothing,))

    def save_hard_state(self, term: int, voted_for: str | None) -> None:
        super().save_hard_state(term, voted_for)
        shadow = self._simulated.shadows[self._shard_id]
        self._simulated._written.append((shadow.save_hard_state, term, voted_for))


def _nothing() -> None:
    pass

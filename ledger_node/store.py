"""The store of a node: the logs and the states of all its shards, in two LMDB environments.

The modules named `store…`, and no others, use lmdb: this one has the environments and their turns,
`store_environments` opens them, `store_tables` and `store_history` have the typed tables of the
state, `store_log` those of the log, `store_raft` what Raft needs of both, and snapshots,
`store_files` the rest of a data directory, `store_scan` reads a store beside the node that has it.

One *turn* of the node writes log entries, terms and votes of all shards through one transaction,
which its first half commits with an fsync: they become durable together or not at all. The *state*
is written behind the log. Its transaction stays open over many turns, so that they share the pages
they touch, and is committed with an fsync at a *checkpoint*. The state is a function of the log and
has its applied index in it: after a crash, what the last checkpoint lacks is applied once more.
Balances that change are kept in memory (`BalanceCache`) and written once, before the checkpoint.

So these hold at any moment, whatever crashes when:

- the log on disk has every entry that the state on disk includes: it is committed first;
- it also has every entry that the state on disk does not include: `StoredRaftLog.durable_index`
  bounds what may be dropped;
- where a snapshot takes the place of both, the log says so before the state changes
  (`StoredRaftLog.finish_install`).

Tables of a shard (keys big-endian, so that LMDB sorts them by number). In the log:

    raft           "raft" -> term and vote; "standing" -> may it vote?; "installing" -> index and
                   term of a snapshot at the last step of its install
    log            log index -> checksum, term, payload

In the state:

    meta           "state" -> ShardMeta; "applied" -> index and term; "generation", "spare": below
    accounts       account id -> slot
    account_info   slot -> AccountRecord
    balances       slot -> BalanceRow, 68 bytes: dense, so that the hot rows share pages
    transactions   transaction number -> TransactionRecord
    requests       request key, scope -> RequestRow
    entries        position of the first row -> EntryRows of one log entry, appended
    entry_marks    slot, sequence // 64 -> position, time: a sparse index into an account's history
    ledgers        name -> LedgerRecord, of the ledgers that this shard keeps
    names          ledger, 0, name -> NameRecord, of the account names that this shard keeps
    in_flight      transaction number -> InFlightRecord: the home has to tell its participants
    in_flight_bits the same of what blocks have settled: sets of numbers (`store_bits`)
    undecided      transaction number -> Prepare: a participant waits for the home's decision
    undecided_bits the same of what blocks have prepared, which the records tell: sets of numbers
    expirations    time, transaction number -> nothing: pending transactions that will expire
    journal        running number -> JournalRecord: log entries, kept for good, and the hash chain
    account_events slot, journal number, ordinal -> AccountEventRecord
    groups         group number -> GroupRecord; group_numbers: the other way round
    totals         group number -> TotalsRow
    total_marks    group number, block of entries -> sums before the block
    effective_sums subject, level, bucket of effective time -> sums (`EFFECTIVE_SHIFTS`)
    effective_log  subject, time of recording -> sums of what has an effective time of its own
    pending        transaction number -> nothing: those with money reserved here, but undecided
    settlements    book, day -> SettlementRecord
    references     digest, transaction number -> nothing: by external reference and metadata key

What grows is appended; what is scattered stays small and dense.

All tables of the state but meta exist twice: one set in use, as "generation" says, and a spare one,
in which a snapshot from another replica is staged, and to which one row in one turn changes over.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import lmdb

from ledger_node.balance_cache import CELLS, BalanceCache
from ledger_node.records import ShardMeta
from ledger_node.store_check import refuse_damaged
from ledger_node.store_environments import Environments, open_environments
from ledger_node.store_files import (
    DAMAGE_ADVICE,
    StoreCorruptError,
    StoreError,
    StoreIdentity,
    check_identity,
    lock_directory,
)
from ledger_node.store_log import LOG_TABLES, LogDatabases, LogTables
from ledger_node.store_raft import StoredRaftLog
from ledger_node.store_rows import table_bytes
from ledger_node.store_tables import (
    EFFECTIVE_SHIFTS,
    ENTRIES_PER_BLOCK,
    ENTRIES_PER_MARK,
    GENERATIONS,
    GROUP_SUBJECT,
    SHARED_TABLES,
    STATE_TABLES,
    ShardDatabases,
    ShardTables,
)

__all__ = [
    "DEFAULT_MAP_BYTES",
    "EFFECTIVE_SHIFTS",
    "ENTRIES_PER_BLOCK",
    "ENTRIES_PER_MARK",
    "GROUP_SUBJECT",
    "ReadView",
    "ShardRange",
    "ShardTables",
    "Store",
    "StoreCorruptError",
    "StoreError",
    "StoreIdentity",
    "StoredRaftLog",
    "plain_reason",
]

DEFAULT_MAP_BYTES: Final = 64 << 30

# A checkpoint is made so long after the first write since the last one, in seconds, or when so many
# bytes of log entries have been applied. What a node applies again after a crash is no more. Where
# disks are slow, checkpoints wait for some times as long as the last one took, within a bound.
CHECKPOINT_S: Final = 0.15
CHECKPOINT_BYTES: Final = 8 << 20
_PAUSE_TIMES: Final = 10
_PAUSE_S_MAX: Final = 2.0

# Beyond these, `Store.full` asks for new writes to be refused.
_MAP_USE_MAX: Final = 0.9
_LIVE_MAX: Final = 0.75
_FREE_DISK_BYTES_MIN: Final = 64 << 20
# With less room than this for the state or on the disk, every turn is a checkpoint: what is not
# written yet is not seen by `Store.full`.
_ROOM_BYTES_MIN: Final = 512 << 20


@dataclass(frozen=True, slots=True)
class ShardRange:
    """A shard and the shard keys it holds, bounds included."""

    id: int
    lower_bound: int
    upper_bound: int


class Store:
    """Two environments per data directory and process. Not thread-safe: one thread owns it.

    Other threads may `read`.
    """

    def __init__(
        self, path: Path, environments: Environments, lock_fd: int, balance_cells: int
    ) -> None:
        self._balance_cells = balance_cells
        self._path = path
        self._environments = environments
        self._log = environments.log
        self._state = environments.state
        self._lock_fd = lock_fd
        self._databases: dict[int, ShardDatabases] = {}
        self._log_databases: dict[int, LogDatabases] = {}
        self._tables: dict[int, ShardTables] = {}
        self._written_since: float | None = None
        self._written_bytes = 0
        self._took_s = 0.0
        self._has_room = False
        self.checkpoints = 0
        """How many checkpoints were made since the store was opened."""

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        identity: StoreIdentity,
        shards: Sequence[ShardRange],
        map_bytes: int = DEFAULT_MAP_BYTES,
        sync: bool = True,
        check: bool = False,
        balance_cells: int = CELLS,
    ) -> "Store":
        """Open or create the data directory ``path``; StoreError says why that is refused.

        ``map_bytes`` bounds the size of each of both files; it is reserved address space, not disk.
        Only tests pass ``sync=False``, which gives up durability. ``check`` looks for damage first,
        in bounded time. ``balance_cells`` is how many balances of a shard are kept in memory, a
        power of two.
        """
        path.mkdir(parents=True, exist_ok=True)
        lock_fd = lock_directory(path)
        try:
            lmdb_version = ".".join(str(part) for part in lmdb.version()[:2])
            check_identity(path, identity, lmdb_version)
            if check:
                refuse_damaged(path)
            environments = open_environments(
                path / "store",
                map_bytes=map_bytes,
                log_tables=len(shards) * LOG_TABLES,
                state_tables=len(shards) * (SHARED_TABLES + GENERATIONS * len(STATE_TABLES)),
                sync=sync,
            )
            store = cls(path, environments, lock_fd, balance_cells)
            try:
                for shard in shards:
                    store._open_shard(shard)
                store.commit()
            except BaseException:
                store.close()
                raise
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(lock_fd)
            raise
        return store

    def _open_shard(self, shard: ShardRange) -> None:
        prefix = f"{shard.id:05d}"
        env, txn = self._log.env, self.log_txn
        self._log_databases[shard.id] = LogDatabases(
            env.open_db(f"{prefix}.raft".encode(), txn=txn),
            env.open_db(f"{prefix}.log".encode(), txn=txn),
        )
        env, txn = self._state.env, self.txn
        self._databases[shard.id] = ShardDatabases(
            env,
            env.open_db(f"{prefix}.meta".encode(), txn=txn),
            tuple(
                {
                    table: env.open_db(f"{prefix}{generation}.{table}".encode(), txn=txn)
                    for table in STATE_TABLES
                }
                for generation in ("", ".b")
            ),
        )
        tables = self.shard(shard.id)
        meta = tables.find_meta()
        if meta is None:
            tables.save_meta(ShardMeta(shard.lower_bound, shard.upper_bound))
        elif (meta.lower_bound, meta.upper_bound) != (shard.lower_bound, shard.upper_bound):
            raise StoreError(
                f"shard {shard.id} in {self._path} holds the keys "
                f"{meta.lower_bound:08x}..{meta.upper_bound:08x}, but the cluster configuration "
                f"says {shard.lower_bound:08x}..{shard.upper_bound:08x}. Shard ranges cannot be "
                f"changed under existing data: start with the configuration the data was made with."
            )

    # Writing

    @property
    def txn(self) -> lmdb.Transaction:
        """The write transaction of the state, open until the next checkpoint."""
        return self._state.txn

    @property
    def log_txn(self) -> lmdb.Transaction:
        """The write transaction of the log, open until the turn commits it."""
        return self._log.txn

    def shard(self, shard_id: int) -> ShardTables:
        """Return the state of a shard inside its write transaction.

        It is the same object for all who ask: an install changes the tables that it means.
        """
        tables = self._tables.get(shard_id)
        if tables is None:
            cache = BalanceCache(self._balance_cells)
            tables = ShardTables(self, self._databases[shard_id], cache)
            self._tables[shard_id] = tables
        return tables

    def log(self, shard_id: int) -> LogTables:
        """Return the log of a shard inside its write transaction."""
        return LogTables(_LogSource(self), self._log_databases[shard_id])

    def wrote(self, size: int) -> None:
        """Count what log entries or snapshots have brought to the state, in bytes."""
        self._written_bytes += size

    def end_turn(self, clock: Callable[[], float]) -> None:
        """Make the state durable, if a checkpoint is due.

        ``clock`` is monotonic, in seconds. A failure here is fatal for the process: memory is ahead
        of the disk, and an fsync that failed must not be tried again.
        """
        # Already done, but for a transaction in which entries were read.
        self.commit_log()
        if not self._state.is_open:
            return
        now = clock()
        if self._written_since is None:
            self._written_since = now
        pause_s = max(CHECKPOINT_S, min(_PAUSE_TIMES * self._took_s, _PAUSE_S_MAX))
        if (
            not self._has_room
            or now - self._written_since >= pause_s
            or self._written_bytes >= CHECKPOINT_BYTES
        ):
            self.checkpoint()
            self._took_s = clock() - now

    def commit_log(self) -> None:
        """Make what was written to the log durable."""
        self._log.commit()

    def checkpoint(self) -> None:
        """Make the state durable. The log has to be: nothing may be applied that it could lack."""
        assert not self._log.is_open, "the log is committed before the state"
        self._write_back()
        self._state.commit()
        self.checkpoints += 1
        self._written_since = None
        self._written_bytes = 0
        self._has_room = self._room_bytes() >= _ROOM_BYTES_MIN

    def _write_back(self) -> None:
        """Bring to the state's transaction what is newer in memory.

        This needs no more room than if every turn had done it: the same rows, which are all there
        already, so the same pages.
        """
        for tables in self._tables.values():
            tables.write_back()

    def commit(self) -> None:
        """Make everything durable that was written: the log, then the state."""
        self.commit_log()
        self.checkpoint()

    def abort(self) -> None:
        """Drop everything that is not durable, as a crash does."""
        self._log.abort()
        self._state.abort()
        for tables in self._tables.values():
            tables.forget()

    # Reading

    @contextlib.contextmanager
    def read(self) -> "Iterator[ReadView]":
        """Open a view of the last checkpoint. Keep it short: it keeps pages from reuse."""
        with self._state.env.begin() as txn:
            view = ReadView(txn, self._databases)
            try:
                yield view
            finally:
                # Its place among the readers, of which there are few, is free again only when the
                # transaction has no owner any more; a view may outlive its use.
                del view.txn

    @contextlib.contextmanager
    def read_newest(self) -> "Iterator[ReadView]":
        """Open a view of the state as applied so far, for the thread that owns the store."""
        if not self._state.is_open:
            with self.read() as view:
                yield view
            return
        view = ReadView(self._state.txn, self._databases, self._tables)
        try:
            yield view
        finally:
            del view.txn

    @property
    def files(self) -> Path:
        """The folder of the store's files, for processes that read them."""
        return self._path / "store"

    def forget_dead_readers(self) -> None:
        """Let pages be used again that a process was reading which has died."""
        for one in (self._log, self._state):
            one.env.reader_check()

    # Room

    def used_bytes(self) -> int:
        """Bytes of both files in use or once used; freed pages are reused, not returned."""
        return _used_bytes(self._log.env) + _used_bytes(self._state.env)

    def map_bytes(self) -> int:
        """The bound of each of both files."""
        size: int = self._state.env.info()["map_size"]
        return size

    def full(self) -> str | None:
        """Say what is nearly full, so that new writes are refused while what is under way ends."""
        bound = self.map_bytes()
        for one in (self._log, self._state):
            # Files never shrink. Pages that were used once and are free now are used again, but not
            # while somebody reads an older state: a snapshot on its way, an audit.
            used = _used_bytes(one.env)
            if used > bound * _MAP_USE_MAX and (
                _has_readers(one.env) or self._live_bytes(one.env) > bound * _LIVE_MAX
            ):
                return (
                    f"the store has used {used >> 20} of {bound >> 20} MiB: raise "
                    f"--store-max-mib on every node, one after the other"
                )
        free = self._free_disk_bytes()
        if free < _FREE_DISK_BYTES_MIN:
            return f"the disk has only {free >> 20} MiB free: make room on it"
        return None

    def _room_bytes(self) -> int:
        return min(self.map_bytes() - _used_bytes(self._state.env), self._free_disk_bytes())

    def _free_disk_bytes(self) -> int:
        stat = os.statvfs(self._path)
        return stat.f_bavail * stat.f_frsize

    def _live_bytes(self, env: lmdb.Environment) -> int:
        """Bytes that tables of a file hold as of its last commit."""
        if env is self._log.env:
            tables = [t for one in self._log_databases.values() for t in (one.raft, one.log)]
        else:
            tables = [one.meta for one in self._databases.values()]
            for one in self._databases.values():
                tables += [table for generation in one.state for table in generation.values()]
        with env.begin() as txn:
            return sum(table_bytes(txn, table) for table in tables)

    def close(self) -> None:
        """Drop what is not durable, close the files and release the directory."""
        self._environments.close()
        os.close(self._lock_fd)


class _LogSource:
    """The log's transaction, as its tables want it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def txn(self) -> lmdb.Transaction:
        return self._store.log_txn


def _used_bytes(env: lmdb.Environment) -> int:
    page_bytes: int = env.stat()["psize"]
    pages: int = env.info()["last_pgno"]
    return (pages + 1) * page_bytes


def _has_readers(env: lmdb.Environment) -> bool:
    lines = env.readers().splitlines()[1:]
    return any(line.split()[-1].isdigit() for line in lines)


def plain_reason(error: BaseException) -> str | None:
    """Say in words for whoever runs the node why its store failed; None if it was not the store."""
    if isinstance(error, StoreCorruptError):
        text = str(error)
        return text if DAMAGE_ADVICE in text else f"the store is damaged: {text}. {DAMAGE_ADVICE}"
    if isinstance(error, lmdb.MapFullError):
        return "the store has reached its bound: start the node with a larger --store-max-mib"
    if isinstance(error, lmdb.Error):
        text = str(error)
        if os.strerror(errno.ENOSPC) in text or os.strerror(errno.EDQUOT) in text:
            return f"the disk is full ({text}): make room on it and start the node again"
        if isinstance(error, lmdb.DiskError) or os.strerror(errno.EIO) in text:
            return f"the disk failed ({text}): see the system's log, then start the node again"
        if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.InvalidError):
            return f"the store is damaged ({text}). {DAMAGE_ADVICE}"
    return None


class ReadView:
    """A consistent view of the states of all shards at the end of some turn.

    ``live`` are the tables whose newest state it is of, where it is: it shares what they have in
    memory.
    """

    def __init__(
        self,
        txn: lmdb.Transaction,
        databases: Mapping[int, ShardDatabases],
        live: Mapping[int, ShardTables] = MappingProxyType({}),
    ) -> None:
        self.txn = txn
        self._live = live
        self._databases = databases

    def shard(self, shard_id: int) -> "ShardTables":
        """Return the tables of a shard, for reading."""
        live = self._live.get(shard_id)
        cache = None if live is None else live.balance_cache
        return ShardTables(self, self._databases[shard_id], cache)

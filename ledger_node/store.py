"""The store of a node: LMDB tables of all its shards in one environment.

The modules named `store…`, and no others, use lmdb: this one has the environment and its turns,
`store_tables` and `store_history` the typed tables, `store_raft` the Raft log and snapshots,
`store_files` the rest of a data directory, `store_scan` reads a store beside the node that has it.

One *turn* of the node writes through one LMDB transaction, which `Store.commit` ends with an fsync:
log entries, votes, state and applied index of all shards become durable together or not at all.

Tables of a shard (keys big-endian, so that LMDB sorts them by number):

    meta           "state" -> ShardMeta; "raft" -> term and vote; "applied" -> index and term;
                   "standing" -> may it vote?; "generation", "spare": see below
    log            log index -> checksum, term, payload
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
    undecided      transaction number -> Prepare: a participant waits for the home's decision
    expirations    time, transaction number -> nothing: pending transactions that will expire
    journal        running number -> JournalRecord: log entries, kept for good, and the hash chain
    account_events slot, journal number, ordinal -> AccountEventRecord
    groups         group number -> GroupRecord; group_numbers: the other way round
    totals         group number -> TotalsRow
    total_marks    group number, block of entries -> sums before the block
    effective_sums subject, level, bucket of effective time -> sums (`EFFECTIVE_SHIFTS`)
    effective_log  subject, time of recording -> sums of what has an effective time of its own
    pending        transaction number -> nothing: those with money reserved here
    settlements    book, day -> SettlementRecord
    references     digest, transaction number -> nothing: by external reference and metadata key

What grows is appended; what is scattered stays small and dense.

All tables but meta and log exist twice: one set in use, as "generation" says, and a spare one, in
which a snapshot from another replica is staged, and to which one row in one turn changes over.
"""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lmdb

from ledger_node.records import ShardMeta
from ledger_node.store_check import refuse_damaged
from ledger_node.store_files import (
    DAMAGE_ADVICE,
    StoreCorruptError,
    StoreError,
    StoreIdentity,
    check_identity,
    lock_directory,
)
from ledger_node.store_raft import StoredRaftLog
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
    table_bytes,
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

# Beyond these, `Store.full` asks for new writes to be refused.
_MAP_USE_MAX: Final = 0.9
_LIVE_MAX: Final = 0.75
_FREE_DISK_BYTES_MIN: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class ShardRange:
    """A shard and the shard keys it holds, bounds included."""

    id: int
    lower_bound: int
    upper_bound: int


class Store:
    """One environment per data directory and process. Not thread-safe: one thread owns it."""

    def __init__(self, path: Path, env: lmdb.Environment, lock_fd: int) -> None:
        self._path = path
        self._env = env
        self._lock_fd = lock_fd
        self._write_txn: lmdb.Transaction | None = None
        self._databases: dict[int, ShardDatabases] = {}

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
    ) -> "Store":
        """Open or create the data directory ``path``; StoreError says why that is refused.

        ``map_bytes`` bounds the size of the store; it is reserved address space, not disk. Only
        tests pass ``sync=False``, which gives up durability. ``check`` looks for damage first, in
        bounded time.
        """
        path.mkdir(parents=True, exist_ok=True)
        lock_fd = lock_directory(path)
        try:
            lmdb_version = ".".join(str(part) for part in lmdb.version()[:2])
            check_identity(path, identity, lmdb_version)
            if check:
                refuse_damaged(path)
            try:
                env = lmdb.open(
                    str(path / "store"),
                    map_size=map_bytes,
                    max_dbs=len(shards) * (SHARED_TABLES + GENERATIONS * len(STATE_TABLES)),
                    sync=sync,
                    metasync=sync,
                    lock=True,
                    max_readers=16,
                )
            except lmdb.Error as error:
                raise StoreCorruptError(
                    f"the store in {path} cannot be opened: {error}. If its files are damaged: "
                    f"{DAMAGE_ADVICE}"
                ) from error
            store = cls(path, env, lock_fd)
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
        prefix, txn = f"{shard.id:05d}", self.txn
        self._databases[shard.id] = ShardDatabases(
            self._env,
            self._env.open_db(f"{prefix}.meta".encode(), txn=txn),
            self._env.open_db(f"{prefix}.log".encode(), txn=txn),
            tuple(
                {
                    table: self._env.open_db(f"{prefix}{generation}.{table}".encode(), txn=txn)
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

    @property
    def txn(self) -> lmdb.Transaction:
        """The turn's write transaction, begun at its first use."""
        if self._write_txn is None:
            self._write_txn = self._env.begin(write=True)
        return self._write_txn

    def commit(self) -> None:
        """End the turn: make everything written since the last commit durable.

        A failure here is fatal for the process: memory is ahead of the disk, and an fsync that
        failed must not be tried again.
        """
        txn, self._write_txn = self._write_txn, None
        if txn is not None:
            txn.commit()

    def abort(self) -> None:
        """Drop everything written since the last commit."""
        txn, self._write_txn = self._write_txn, None
        if txn is not None:
            txn.abort()

    def shard(self, shard_id: int) -> "ShardTables":
        """Return the tables of a shard inside the turn's write transaction."""
        return ShardTables(self, self._databases[shard_id])

    @contextlib.contextmanager
    def read(self) -> "Iterator[ReadView]":
        """Open a view of the last committed state. Keep it short: it keeps pages from reuse."""
        with self._env.begin() as txn:
            view = ReadView(txn, self._databases)
            try:
                yield view
            finally:
                # Its place among the readers, of which there are few, is free again only when the
                # transaction has no owner any more; a view may outlive its use.
                del view.txn

    @property
    def files(self) -> Path:
        """The folder of the store's files, for processes that read them."""
        return self._path / "store"

    def forget_dead_readers(self) -> None:
        """Let pages be used again that a process was reading which has died."""
        self._env.reader_check()

    def used_bytes(self) -> int:
        """Bytes of the store file in use or once used; freed pages are reused, not returned."""
        page_bytes: int = self._env.stat()["psize"]
        pages: int = self._env.info()["last_pgno"]
        return (pages + 1) * page_bytes

    def map_bytes(self) -> int:
        """The bound on `used_bytes`."""
        size: int = self._env.info()["map_size"]
        return size

    def full(self) -> str | None:
        """Say what is nearly full, so that new writes are refused while what is under way ends."""
        bound = self.map_bytes()
        # The file never shrinks. Pages that were used once and are free now are used again, but not
        # while somebody reads an older state: a snapshot on its way, an audit.
        if self.used_bytes() > bound * _MAP_USE_MAX and (
            self._has_readers() or self._live_bytes() > bound * _LIVE_MAX
        ):
            return (
                f"the store has used {self.used_bytes() >> 20} of {bound >> 20} MiB: raise "
                f"--store-max-mib on every node, one after the other"
            )
        stat = os.statvfs(self._path)
        free = stat.f_bavail * stat.f_frsize
        if free < _FREE_DISK_BYTES_MIN:
            return f"the disk has only {free >> 20} MiB free: make room on it"
        return None

    def _has_readers(self) -> bool:
        lines = self._env.readers().splitlines()[1:]
        return any(line.split()[-1].isdigit() for line in lines)

    def _live_bytes(self) -> int:
        """Bytes that tables hold as of the last commit."""
        with self._env.begin() as txn:
            return sum(
                table_bytes(txn, table)
                for databases in self._databases.values()
                for table in (
                    databases.meta,
                    databases.log,
                    *(table for tables in databases.state for table in tables.values()),
                )
            )

    def close(self) -> None:
        """Drop what is not committed, close the environment and release the directory."""
        self.abort()
        self._env.close()
        os.close(self._lock_fd)


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
    """A consistent view of all shards at the end of some turn."""

    def __init__(self, txn: lmdb.Transaction, databases: dict[int, ShardDatabases]) -> None:
        self.txn = txn
        self._databases = databases

    def shard(self, shard_id: int) -> "ShardTables":
        """Return the tables of a shard, for reading."""
        return ShardTables(self, self._databases[shard_id])

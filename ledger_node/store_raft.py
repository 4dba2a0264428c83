"""A shard's Raft log, term and vote in the store, and its state as a snapshot.

A snapshot is made of *parts*: rows of the state tables in key order, so that they can be appended
where they arrive, and at the end the row of `ShardMeta` and how many rows each table has.

It is staged in the spare set of state tables, over many turns. The row "spare" of the meta table
is there whenever the spare set may hold anything: of an install under way, of one that a crash cut
short, or the former state after an install. A replica that starts knows no install under way, so
what it finds there is cleared away.

The last step of an install concerns two files, and a crash may come between any two writes:

1. the log notes which snapshot it is, and is committed, with all that was written before;
2. the state changes over to the snapshot, in a checkpoint;
3. the log begins anew behind it, without the note, when the turn ends.

A replica that finds the note looks at its state: before step 2 nothing has happened, the note is of
no use; after it step 3 is done again. Nothing is confirmed before step 3 is durable.
"""

from typing import Final, Protocol

import lmdb
import msgspec

from ledger_node.raft import Standing
from ledger_node.records import ShardMeta
from ledger_node.store_files import StoreCorruptError
from ledger_node.store_log import LogTables
from ledger_node.store_rows import table_bytes
from ledger_node.store_tables import STATE_TABLES, ShardTables

# A table up to this size is emptied at once; of a larger one, so many rows are removed in a turn.
_CLEAR_BYTES: Final = 8 << 20
_CLEAR_ROWS: Final = 2_000

_SPARE: Final = b"spare"
_APPLIED: Final = b"applied"
_STANDING: Final = b"standing"

# A part: (place in STATE_TABLES, key, value, key, value, ...) for each run of rows; the place after
# the last table has the trailer.
_TRAILER: Final = len(STATE_TABLES)
_Part = list[tuple[int, list[bytes]]]
_Trailer = tuple[bytes, list[int]]

_encode = msgspec.msgpack.Encoder().encode
_decode_part = msgspec.msgpack.Decoder(_Part).decode
_decode_trailer = msgspec.msgpack.Decoder(_Trailer).decode
_decode_applied = msgspec.msgpack.Decoder(tuple[int, int]).decode
_decode_standing = msgspec.msgpack.Decoder(tuple[int, bool, dict[str, int]]).decode
_decode_meta = msgspec.msgpack.Decoder(ShardMeta).decode


class CheckpointedStore(Protocol):
    """What is needed of a store beside its tables."""

    @property
    def checkpoints(self) -> int:
        """How many checkpoints were made."""

    def shard(self, shard_id: int) -> ShardTables:
        """Return the state of a shard."""

    def log(self, shard_id: int) -> LogTables:
        """Return the log of a shard."""

    def wrote(self, size: int) -> None:
        """Count what is brought to the state."""

    def commit_log(self) -> None:
        """Make the log durable."""

    def checkpoint(self) -> None:
        """Make the state durable."""


class StoredRaftLog:
    """A shard's Raft log and hard state, as `ledger_node.raft.RaftLog` wants them."""

    def __init__(self, store: CheckpointedStore, shard_id: int) -> None:
        self._store = store
        self._tables = store.shard(shard_id)
        self._log = store.log(shard_id)
        self._first, self._last = self._log.bounds()
        self._spare_holds_rows = self._tables.find_meta_row(_SPARE) is not None
        self._staging = False
        self._trailer: _Trailer | None = None
        applied = self.load_applied()
        # Applied up to here as of the last checkpoint; and now, as of which checkpoint's number.
        self._durable = 0 if applied is None else applied[0]
        self._applied, self._applied_at = self._durable, store.checkpoints

    def load_hard_state(self) -> tuple[int, str | None]:
        """Return (term, vote); (0, None) in a fresh store."""
        return self._log.hard_state()

    def save_hard_state(self, term: int, voted_for: str | None) -> None:
        """Store (term, vote) with this turn."""
        self._log.save_hard_state(term, voted_for)

    def applied_index(self) -> int:
        """Index of the last command that the stored state includes; 0 when there is none."""
        return self._tables.meta().applied_index

    def load_applied(self) -> tuple[int, int] | None:
        """Return index and term of the last entry applied; None in a fresh store."""
        data = self._tables.find_meta_row(_APPLIED)
        return None if data is None else _decode_applied(data)

    def save_applied(self, index: int, term: int) -> None:
        """Store index and term of the last entry applied, with the state."""
        self._durable = self.durable_index()
        self._applied, self._applied_at = index, self._store.checkpoints
        self._tables.save_meta_row(_APPLIED, _encode((index, term)))

    def durable_index(self) -> int:
        """Index of the last entry that the state includes as of the last checkpoint."""
        return self._applied if self._store.checkpoints > self._applied_at else self._durable

    def load_standing(self) -> Standing | None:
        """Return the replica's standing; None in a fresh store."""
        data = self._log.find_raft_row(_STANDING)
        return None if data is None else Standing(*_decode_standing(data))

    def save_standing(self, standing: Standing) -> None:
        """Store the replica's standing, with this turn."""
        row = (standing.incarnation, standing.proven, dict(standing.roster))
        self._log.save_raft_row(_STANDING, _encode(row))

    def first_index(self) -> int:
        """Index of the oldest entry kept."""
        return self._first

    def last_index(self) -> int:
        """Index of the newest entry; 0 when the log is empty."""
        return self._last

    def size_bytes(self) -> int:
        """Space that the log takes."""
        return self._log.size_bytes()

    def read(self, index: int) -> tuple[int, bytes]:
        """Return (term, payload)."""
        return self._log.entry(index)

    def append(self, index: int, term: int, payload: bytes) -> None:
        """Append with this turn."""
        assert index == self._last + 1, "the log has no gaps"
        self._log.append(index, term, payload)
        self._last = index

    def truncate_from(self, index: int) -> None:
        """Drop ``index`` and all after it, with this turn."""
        self._log.truncate(index)
        self._last = index - 1

    def drop_before(self, index: int) -> None:
        """Drop all entries before ``index``, with this turn."""
        self._log.drop_before(index)
        self._first = index

    def restart_at(self, index: int, term: int, payload: bytes) -> None:
        """Drop all entries and begin again with this one, with this turn: it ends an install."""
        self._log.drop_installing()
        self._log.clear()
        self._log.append(index, term, payload)
        self._first = self._last = index

    # Snapshots

    def unfinished_install(self) -> tuple[int, int] | None:
        """Return index and term of a snapshot that is the state, and that the log lies before."""
        installing = self._log.installing()
        if installing is None:
            return None
        if installing == self.load_applied():
            return installing
        self._log.drop_installing()
        return None

    def open_snapshot(self) -> "StateReader":
        """Return the state as of the last checkpoint."""
        return StateReader(self._tables)

    def begin_install(self) -> bool:
        """Mark the spare tables as in use; False while they are not empty."""
        if self._spare_holds_rows:
            self.tidy()
        if self._spare_holds_rows:
            return False
        self._tables.save_meta_row(_SPARE, b"")
        self._spare_holds_rows = self._staging = True
        self._trailer = None
        return True

    def stage(self, rows: bytes) -> None:
        """Put a part of a snapshot into the spare tables, with this turn."""
        assert self._staging, "an install was begun"
        txn = self._tables.txn
        spare = self._spare()
        self._store.wrote(len(rows))
        for place, flat in _decode_part(rows):
            if place == _TRAILER:
                self._trailer = _decode_trailer(flat[0])
                continue
            pairs = list(zip(flat[::2], flat[1::2], strict=True))
            with txn.cursor(spare[STATE_TABLES[place]]) as cursor:
                _, added = cursor.putmulti(pairs, overwrite=False, append=True)
            if added != len(pairs):
                raise StoreCorruptError(f"a snapshot has rows of {STATE_TABLES[place]} in disorder")

    def abandon_install(self) -> None:
        """Leave what is staged to be cleared away."""
        self._staging = False

    def finish_install(self, index: int, term: int) -> None:
        """Check what is staged, and change over to it, at once; `restart_at` has to follow."""
        assert self._staging, "an install was begun"
        if self._trailer is None:
            raise StoreCorruptError("a snapshot ended without its trailer")
        state, counts = self._trailer
        txn, spare = self._tables.txn, self._spare()
        for table, count in zip(STATE_TABLES, counts, strict=True):
            if (found := txn.stat(spare[table])["entries"]) != count:
                raise StoreCorruptError(f"a snapshot has {found} rows of {table}, not {count}")
        meta, ours = _decode_meta(state), self._tables.meta()
        if (meta.lower_bound, meta.upper_bound) != (ours.lower_bound, ours.upper_bound):
            raise StoreCorruptError("a snapshot holds another range of keys than this shard")
        if meta.applied_index > index:
            raise StoreCorruptError("a snapshot's state is newer than it says")
        self._log.save_installing(index, term)
        self._store.commit_log()
        self._tables.switch_generation()
        self._tables.save_meta(meta)
        self.save_applied(index, term)
        self._store.checkpoint()
        self._staging = False

    def tidy(self) -> None:
        """Clear away a bounded part of what the spare tables hold, unless it is being staged."""
        if not self._spare_holds_rows or self._staging:
            return
        txn = self._tables.txn
        for table in self._spare().values():
            if not txn.stat(table)["entries"]:
                continue
            if table_bytes(txn, table) <= _CLEAR_BYTES:
                txn.drop(table, delete=False)
            else:
                _delete_first(txn, table, _CLEAR_ROWS)
            return
        self._tables.delete_meta_row(_SPARE)
        self._spare_holds_rows = False

    def _spare(self) -> dict[str, lmdb._Database]:
        return self._tables.databases.state[1 - self._tables.generation]


class StateReader:
    """A shard's committed state in parts. Keep it no longer than needed: it keeps old pages."""

    def __init__(self, tables: ShardTables) -> None:
        self._txn = tables.databases.env.begin()
        view = ShardTables(self, tables.databases)
        applied = view.find_meta_row(_APPLIED)
        self.index, self.term = (0, 0) if applied is None else _decode_applied(applied)
        self._trailer = _encode(
            (
                view.find_meta_row(b"state"),
                [self._txn.stat(table)["entries"] for table in self._tables(view)],
            )
        )
        self._cursors = [self._txn.cursor(table) for table in self._tables(view)]
        self._place = 0
        self._at_row = self._cursors[0].first()

    @staticmethod
    def _tables(view: ShardTables) -> list[lmdb._Database]:
        state = view.databases.state[view.generation]
        return [state[table] for table in STATE_TABLES]

    @property
    def txn(self) -> lmdb.Transaction:
        """The transaction that holds the state still."""
        return self._txn

    def read(self, bytes_max: int) -> bytes:
        """Return the next part, at most one row longer than ``bytes_max``; empty at the end."""
        part: _Part = []
        size = 0
        while self._place < _TRAILER and size < bytes_max:
            cursor = self._cursors[self._place]
            flat: list[bytes] = []
            while self._at_row and size < bytes_max:
                key, value = cursor.item()
                flat += (key, value)
                size += len(key) + len(value)
                self._at_row = cursor.next()
            if flat:
                part.append((self._place, flat))
            if not self._at_row:
                self._place += 1
                self._at_row = self._place < _TRAILER and self._cursors[self._place].first()
        if self._place == _TRAILER and size < bytes_max:
            part.append((_TRAILER, [self._trailer]))
            self._place += 1
        return _encode(part) if part else b""

    def close(self) -> None:
        """End the transaction."""
        for cursor in self._cursors:
            cursor.close()
        self._txn.abort()


def _delete_first(txn: lmdb.Transaction, table: lmdb._Database, rows: int) -> None:
    with txn.cursor(table) as cursor:
        if cursor.first():
            while rows and cursor.delete():
                rows -= 1

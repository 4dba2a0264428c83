"""The store of a node: LMDB tables of all its shards in one environment. Only lmdb's user.

One *turn* of the node writes through one LMDB transaction, which `Store.commit` ends with an fsync:
log entries, votes, state and applied index of all shards become durable together or not at all.

Tables of a shard (keys big-endian, so that LMDB sorts them by number):

    meta           "state" -> ShardMeta; "raft" -> term and vote
    log            log index -> checksum, term, payload
    accounts       account id -> slot
    account_info   slot -> AccountRecord
    balances       slot -> BalanceRow, 64 bytes: dense, so that the hot rows share pages
    transactions   transaction number -> TransactionRecord
    requests       request key, scope -> RequestRow
    entries        position of the first row -> EntryRows of one log entry, appended
    entry_marks    slot, sequence // 64 -> position, time: a sparse index into an account's history
    ledgers        name -> LedgerRecord, of the ledgers that this shard keeps
    names          ledger, 0, name -> NameRecord, of the account names that this shard keeps
    in_flight      transaction number -> InFlightRecord: the home has to tell its participants
    undecided      transaction number -> Prepare: a participant waits for the home's decision
    expirations    time, transaction number -> nothing: pending transactions that will expire

What grows is appended; what is scattered stays small and dense.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, cast

import lmdb
import msgspec

from ledger_core.commands import Prepare
from ledger_node.records import (
    ENTRY_ROW_BYTES,
    AccountRecord,
    BalanceRow,
    EntryRow,
    InFlightRecord,
    LedgerRecord,
    NameRecord,
    RequestRow,
    ShardMeta,
    TransactionRecord,
)

FORMAT_VERSION: Final = 1
DEFAULT_MAP_BYTES: Final = 64 << 30
ENTRIES_PER_MARK: Final = 64

# Beyond these, `Store.full` asks for new writes to be refused.
_MAP_USE_MAX: Final = 0.9
_FREE_DISK_BYTES_MIN: Final = 64 << 20

_TABLES = (
    "meta",
    "log",
    "accounts",
    "account_info",
    "balances",
    "transactions",
    "requests",
    "entries",
    "entry_marks",
    "ledgers",
    "names",
    "in_flight",
    "undecided",
    "expirations",
)

_U64 = struct.Struct(">Q")
_U32 = struct.Struct(">I")
_EXPIRATION_KEY = struct.Struct(">QQ")
_MARK_KEY = struct.Struct(">IQ")
_MARK = struct.Struct("<Qq")
_LOG_HEADER = struct.Struct("<IQ")

_encode = msgspec.msgpack.Encoder().encode
_decode_meta = msgspec.msgpack.Decoder(ShardMeta).decode
_decode_account = msgspec.msgpack.Decoder(AccountRecord).decode
_decode_transaction = msgspec.msgpack.Decoder(TransactionRecord).decode
_decode_ledger = msgspec.msgpack.Decoder(LedgerRecord).decode
_decode_name = msgspec.msgpack.Decoder(NameRecord).decode
_decode_in_flight = msgspec.msgpack.Decoder(InFlightRecord).decode
_decode_prepare = msgspec.msgpack.Decoder(Prepare).decode
_decode_hard_state = msgspec.msgpack.Decoder(tuple[int, str | None]).decode


class StoreError(Exception):
    """The store cannot be opened or trusted. The text says what to do."""


class StoreCorruptError(StoreError):
    """Stored bytes are not what was written."""


@dataclass(frozen=True, slots=True)
class StoreIdentity:
    """To whom a data directory belongs."""

    cluster_id: str
    node_id: str


@dataclass(frozen=True, slots=True)
class ShardRange:
    """A shard and the shard keys it holds, bounds included."""

    id: int
    lower_bound: int
    upper_bound: int


class _TransactionSource(Protocol):
    @property
    def txn(self) -> lmdb.Transaction: ...


class Store:
    """One environment per data directory and process. Not thread-safe: one thread owns it."""

    def __init__(self, path: Path, env: lmdb.Environment, lock_fd: int) -> None:
        self._path = path
        self._env = env
        self._lock_fd = lock_fd
        self._write_txn: lmdb.Transaction | None = None
        self._databases: dict[int, dict[str, lmdb._Database]] = {}

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        identity: StoreIdentity,
        shards: Sequence[ShardRange],
        map_bytes: int = DEFAULT_MAP_BYTES,
        sync: bool = True,
    ) -> "Store":
        """Open or create the data directory ``path``; StoreError says why that is refused.

        ``map_bytes`` bounds the size of the store; it is reserved address space, not disk. Only
        tests pass ``sync=False``, which gives up durability.
        """
        path.mkdir(parents=True, exist_ok=True)
        lock_fd = _lock(path)
        try:
            _check_identity(path, identity)
            try:
                env = lmdb.open(
                    str(path / "store"),
                    map_size=map_bytes,
                    max_dbs=len(_TABLES) * len(shards),
                    sync=sync,
                    metasync=sync,
                    lock=True,
                    max_readers=16,
                )
            except lmdb.Error as error:
                raise StoreCorruptError(
                    f"the store in {path} cannot be opened: {error}. If its files are damaged, "
                    f"move the directory away and start the node empty: the other replicas hold "
                    f"the data."
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
        self._databases[shard.id] = {
            table: self._env.open_db(f"{shard.id:05d}.{table}".encode(), txn=self.txn)
            for table in _TABLES
        }
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
            yield ReadView(txn, self._databases)

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
        used, bound = self.used_bytes(), self.map_bytes()
        if used > bound * _MAP_USE_MAX:
            return (
                f"the store has used {used >> 20} of {bound >> 20} MiB: raise --store-max-mib on "
                f"every node, one after the other"
            )
        stat = os.statvfs(self._path)
        free = stat.f_bavail * stat.f_frsize
        if free < _FREE_DISK_BYTES_MIN:
            return f"the disk has only {free >> 20} MiB free: make room on it"
        return None

    def close(self) -> None:
        """Drop what is not committed, close the environment and release the directory."""
        self.abort()
        self._env.close()
        os.close(self._lock_fd)


class ReadView:
    """A consistent view of all shards at the end of some turn."""

    def __init__(
        self, txn: lmdb.Transaction, databases: dict[int, dict[str, lmdb._Database]]
    ) -> None:
        self.txn = txn
        self._databases = databases

    def shard(self, shard_id: int) -> "ShardTables":
        """Return the tables of a shard, for reading."""
        return ShardTables(self, self._databases[shard_id])


class ShardTables:
    """The tables of one shard, typed, inside one transaction of ``source``."""

    def __init__(self, source: _TransactionSource, databases: dict[str, lmdb._Database]) -> None:
        self._source = source
        self._meta = databases["meta"]
        self._log = databases["log"]
        self._accounts = databases["accounts"]
        self._account_info = databases["account_info"]
        self._balances = databases["balances"]
        self._transactions = databases["transactions"]
        self._requests = databases["requests"]
        self._entries = databases["entries"]
        self._entry_marks = databases["entry_marks"]
        self._ledgers = databases["ledgers"]
        self._names = databases["names"]
        self._in_flight = databases["in_flight"]
        self._undecided = databases["undecided"]
        self._expirations = databases["expirations"]

    # State

    def find_meta(self) -> ShardMeta | None:
        """Return the shard's running numbers, or None in a fresh store."""
        data = self._get(self._meta, b"state")
        return None if data is None else _decode_meta(data)

    def meta(self) -> ShardMeta:
        """Return the shard's running numbers."""
        meta = self.find_meta()
        assert meta is not None, "the shard was opened, so it has its meta row"
        return meta

    def save_meta(self, meta: ShardMeta) -> None:
        """Store the shard's running numbers."""
        self._source.txn.put(b"state", _encode(meta), db=self._meta)

    def find_slot(self, account_id: int) -> int | None:
        """Return the slot of an account."""
        data = self._get(self._accounts, _U64.pack(account_id))
        return None if data is None else _U32.unpack(data)[0]

    def add_account(self, slot: int, record: AccountRecord, balance: BalanceRow) -> None:
        """Store a new account under a free slot."""
        txn = self._source.txn
        key = _U32.pack(slot)
        added = txn.put(_U64.pack(record.account_id), key, db=self._accounts, overwrite=False)
        assert added, "an account id is never reused"
        txn.put(key, _encode(record), db=self._account_info)
        txn.put(key, balance.pack(), db=self._balances)

    def account_info(self, slot: int) -> AccountRecord:
        """Return what seldom changes of the account in a slot."""
        return _decode_account(self._must(self._account_info, _U32.pack(slot)))

    def balance(self, slot: int) -> BalanceRow:
        """Return the hot row of the account in a slot."""
        return BalanceRow.unpack(self._must(self._balances, _U32.pack(slot)))

    def save_balance(self, slot: int, row: BalanceRow) -> None:
        """Store the hot row of the account in a slot."""
        self._source.txn.put(_U32.pack(slot), row.pack(), db=self._balances)

    def balances(self) -> Iterator[tuple[int, BalanceRow]]:
        """Yield (slot, row) of every account."""
        with self._source.txn.cursor(self._balances) as cursor:
            for key, value in cursor:
                yield _U32.unpack(key)[0], BalanceRow.unpack(bytes(value))

    def find_transaction(self, number: int) -> TransactionRecord | None:
        """Return a transaction."""
        data = self._get(self._transactions, _U64.pack(number))
        return None if data is None else _decode_transaction(data)

    def save_transaction(self, number: int, record: TransactionRecord) -> None:
        """Store a transaction, new or changed."""
        self._source.txn.put(_U64.pack(number), _encode(record), db=self._transactions)

    def find_request(self, key: bytes) -> RequestRow | None:
        """Return the first result of a request."""
        data = self._get(self._requests, key)
        return None if data is None else RequestRow.unpack(data)

    def add_request(self, key: bytes, row: RequestRow) -> None:
        """Store the first result of a request."""
        added = self._source.txn.put(key, row.pack(), db=self._requests, overwrite=False)
        assert added, "a request has one first result"

    def append_entries(self, position: int, rows: Sequence[bytes]) -> None:
        """Append the packed entry rows of one log entry; the first gets ``position``."""
        self._source.txn.put(_U64.pack(position), b"".join(rows), db=self._entries, append=True)

    def entry(self, position: int) -> EntryRow:
        """Return the entry row at a position."""
        row = self.find_entry(position)
        if row is None:
            raise StoreCorruptError(f"there is no entry at position {position}")
        return row

    def find_entry(self, position: int) -> EntryRow | None:
        """Return the entry row at a position, or None where there is none."""
        with self._source.txn.cursor(self._entries) as cursor:
            key = _U64.pack(position)
            found = cursor.set_range(key)
            if not (found and cursor.key() == key) and not (
                cursor.prev() if found else cursor.last()
            ):
                return None
            offset = (position - _U64.unpack(cursor.key())[0]) * ENTRY_ROW_BYTES
            data = bytes(cursor.value()[offset : offset + ENTRY_ROW_BYTES])
        return EntryRow.unpack(data) if len(data) == ENTRY_ROW_BYTES else None

    def add_entry_mark(self, slot: int, sequence: int, position: int, time_us: int) -> None:
        """Note where an account's entry number ``sequence`` (a multiple of 64) lies."""
        self._source.txn.put(
            _MARK_KEY.pack(slot, sequence // ENTRIES_PER_MARK),
            _MARK.pack(position, time_us),
            db=self._entry_marks,
        )

    def save_account_info(self, slot: int, record: AccountRecord) -> None:
        """Store what seldom changes of the account in a slot."""
        self._source.txn.put(_U32.pack(slot), _encode(record), db=self._account_info)

    def accounts_after(self, slot: int) -> Iterator[tuple[int, AccountRecord]]:
        """Yield (slot, record) of the accounts behind a slot, in the order of their opening."""
        with self._source.txn.cursor(self._account_info) as cursor:
            if cursor.set_range(_U32.pack(slot + 1)):
                for key, value in cursor:
                    yield _U32.unpack(key)[0], _decode_account(value)

    def find_ledger(self, name: str) -> LedgerRecord | None:
        """Return a ledger that this shard keeps."""
        data = self._get(self._ledgers, name.encode())
        return None if data is None else _decode_ledger(data)

    def save_ledger(self, record: LedgerRecord) -> None:
        """Store a ledger, new or changed."""
        self._source.txn.put(record.name.encode(), _encode(record), db=self._ledgers)

    def ledgers_after(self, name: str) -> Iterator[LedgerRecord]:
        """Yield the ledgers that this shard keeps and that come after a name, by name."""
        with self._source.txn.cursor(self._ledgers) as cursor:
            if cursor.set_range(name.encode() + b"\0"):
                for _key, value in cursor:
                    yield _decode_ledger(value)

    def find_name(self, ledger: str, name: str) -> NameRecord | None:
        """Return who has a name."""
        data = self._get(self._names, _name_row_key(ledger, name))
        return None if data is None else _decode_name(data)

    def save_name(self, ledger: str, name: str, record: NameRecord) -> None:
        """Store who has a name."""
        self._source.txn.put(_name_row_key(ledger, name), _encode(record), db=self._names)

    def drop_name(self, ledger: str, name: str) -> None:
        """Store that nobody has a name."""
        self._source.txn.delete(_name_row_key(ledger, name), db=self._names)

    # Between shards, and time

    def find_in_flight(self, number: int) -> InFlightRecord | None:
        """Return what the participants of a transaction have yet to be told."""
        data = self._get(self._in_flight, _U64.pack(number))
        return None if data is None else _decode_in_flight(data)

    def save_in_flight(self, number: int, record: InFlightRecord) -> None:
        """Note that participants have to be told."""
        self._source.txn.put(_U64.pack(number), _encode(record), db=self._in_flight)

    def drop_in_flight(self, number: int) -> None:
        """Note that all participants have been told."""
        self._source.txn.delete(_U64.pack(number), db=self._in_flight)

    def in_flight_numbers(self) -> list[int]:
        """Return the transactions whose participants have to be told something."""
        with self._source.txn.cursor(self._in_flight) as cursor:
            return [_U64.unpack(key)[0] for key in cursor.iternext(keys=True, values=False)]

    def find_undecided(self, number: int) -> Prepare | None:
        """Return what this shard prepared, while it waits for the decision."""
        data = self._get(self._undecided, _U64.pack(number))
        return None if data is None else _decode_prepare(data)

    def save_undecided(self, number: int, prepare: Prepare) -> None:
        """Note that this shard waits for a decision."""
        self._source.txn.put(_U64.pack(number), _encode(prepare), db=self._undecided)

    def drop_undecided(self, number: int) -> None:
        """Note that this shard has the decision."""
        self._source.txn.delete(_U64.pack(number), db=self._undecided)

    def undecided_numbers(self) -> list[int]:
        """Return the transactions for whose decision this shard waits."""
        with self._source.txn.cursor(self._undecided) as cursor:
            return [_U64.unpack(key)[0] for key in cursor.iternext(keys=True, values=False)]

    def expirations_until(self, time_us: int) -> Iterator[tuple[int, int]]:
        """Yield (time, transaction number) of what expires at or before a time, earliest first."""
        with self._source.txn.cursor(self._expirations) as cursor:
            for key in cursor.iternext(keys=True, values=False):
                expire_us, number = _EXPIRATION_KEY.unpack(key)
                if expire_us > time_us:
                    return
                yield expire_us, number

    def add_expiration(self, time_us: int, number: int) -> None:
        """Note when a pending transaction expires."""
        self._source.txn.put(_EXPIRATION_KEY.pack(time_us, number), b"", db=self._expirations)

    def drop_expiration(self, time_us: int, number: int) -> None:
        """Note that a transaction does not expire any more."""
        self._source.txn.delete(_EXPIRATION_KEY.pack(time_us, number), db=self._expirations)

    # Raft log

    def hard_state(self) -> tuple[int, str | None]:
        """Return the current term and the vote in it; (0, None) in a fresh store."""
        data = self._get(self._meta, b"raft")
        return (0, None) if data is None else _decode_hard_state(data)

    def save_hard_state(self, term: int, voted_for: str | None) -> None:
        """Store the current term and the vote in it."""
        self._source.txn.put(b"raft", _encode((term, voted_for)), db=self._meta)

    def log_bounds(self) -> tuple[int, int]:
        """Return the first and the last index of the log; (1, 0) when it is empty."""
        with self._source.txn.cursor(self._log) as cursor:
            if not cursor.first():
                return 1, 0
            first = _U64.unpack(cursor.key())[0]
            cursor.last()
            return first, _U64.unpack(cursor.key())[0]

    def log_entry(self, index: int) -> tuple[int, bytes]:
        """Return (term, payload) of a log entry, after checking its checksum."""
        data = self._must(self._log, _U64.pack(index))
        checksum, term = _LOG_HEADER.unpack_from(data)
        payload = data[_LOG_HEADER.size :]
        if checksum != _log_checksum(index, term, payload):
            raise StoreCorruptError(
                f"log entry {index} fails its checksum: the disk or memory changed it. Move the "
                f"data directory away and start the node empty: the other replicas hold the data."
            )
        return term, payload

    def append_log(self, index: int, term: int, payload: bytes) -> None:
        """Append a log entry."""
        data = _LOG_HEADER.pack(_log_checksum(index, term, payload), term) + payload
        self._source.txn.put(_U64.pack(index), data, db=self._log, append=True)

    def truncate_log(self, index: int) -> None:
        """Drop the log entry ``index`` and all after it."""
        with self._source.txn.cursor(self._log) as cursor:
            if cursor.set_range(_U64.pack(index)):
                while cursor.delete():
                    pass

    def _get(self, table: lmdb._Database, key: bytes) -> bytes | None:
        # bytes: the environment is not opened for memoryviews (buffers=True).
        return cast("bytes | None", self._source.txn.get(key, db=table))

    def _must(self, table: lmdb._Database, key: bytes) -> bytes:
        data = self._get(table, key)
        if data is None:
            raise StoreCorruptError(f"the row {key.hex()} is missing")
        return data


class StoredRaftLog:
    """A shard's Raft log and hard state, as `ledger_node.raft.RaftLog` wants them."""

    def __init__(self, tables: ShardTables) -> None:
        self._tables = tables
        self._first, self._last = tables.log_bounds()

    def load_hard_state(self) -> tuple[int, str | None]:
        """Return (term, vote); (0, None) in a fresh store."""
        return self._tables.hard_state()

    def save_hard_state(self, term: int, voted_for: str | None) -> None:
        """Store (term, vote) with this turn."""
        self._tables.save_hard_state(term, voted_for)

    def applied_index(self) -> int:
        """Index of the last command that the stored state includes; 0 when there is none."""
        return self._tables.meta().applied_index

    def first_index(self) -> int:
        """Index of the oldest entry kept."""
        return self._first

    def last_index(self) -> int:
        """Index of the newest entry; 0 when the log is empty."""
        return self._last

    def read(self, index: int) -> tuple[int, bytes]:
        """Return (term, payload)."""
        return self._tables.log_entry(index)

    def append(self, index: int, term: int, payload: bytes) -> None:
        """Append with this turn."""
        assert index == self._last + 1, "the log has no gaps"
        self._tables.append_log(index, term, payload)
        self._last = index

    def truncate_from(self, index: int) -> None:
        """Drop ``index`` and all after it, with this turn."""
        self._tables.truncate_log(index)
        self._last = index - 1


def _name_row_key(ledger: str, name: str) -> bytes:
    # At most 64 characters and 128 of up to 4 bytes would pass LMDB's 511 bytes: hash what is long.
    key = ledger.encode() + b"\0" + name.encode()
    return key if len(key) <= 256 else hashlib.blake2b(key, digest_size=32).digest()


def _log_checksum(index: int, term: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<QQ", index, term)))


def _lock(path: Path) -> int:
    """Take the directory for this process, until the descriptor is closed or the process ends."""
    fd = os.open(path / "LOCK", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise StoreError(
            f"the data directory {path} is in use by process {holder}. Stop that process, or give "
            f"this one another directory."
        ) from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _check_identity(path: Path, identity: StoreIdentity) -> None:
    """Write the directory's identity the first time, and hold it against ours ever after."""
    file = path / "identity.json"
    lmdb_version = ".".join(str(part) for part in lmdb.version()[:2])
    ours = {
        "cluster_id": identity.cluster_id,
        "node_id": identity.node_id,
        "format_version": FORMAT_VERSION,
        "lmdb_version": lmdb_version,
    }
    if not file.exists():
        if (path / "store").exists():
            raise StoreCorruptError(
                f"{path} holds a store but no identity.json: it was not made by this program, or "
                f"part of it was deleted. Restore the file, or start with an empty directory."
            )
        _write_durably(file, json.dumps(ours, indent=2) + "\n")
        return
    try:
        theirs = json.loads(file.read_text())
    except ValueError as error:
        raise StoreCorruptError(f"{file} is not JSON: {error}") from error
    advice = {
        "cluster_id": "It belongs to another cluster: check --cluster-config and --data-dir.",
        "node_id": "It belongs to another node: check --node-id and --data-dir.",
        "format_version": "It was written by another version of this program: run that version.",
        "lmdb_version": "It was written by another LMDB release: install the lmdb package it had.",
    }
    for key, value in ours.items():
        found = theirs.get(key) if isinstance(theirs, dict) else None
        if found != value:
            raise StoreError(
                f"the data directory {path} has {key} {found!r}, but this process has {value!r}. "
                f"{advice[key]}"
            )


def _write_durably(file: Path, text: str) -> None:
    temporary = file.with_suffix(".tmp")
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(file)
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)

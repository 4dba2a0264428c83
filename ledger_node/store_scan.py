"""Reads a store beside the node that owns it, or without one: every row, as it was written.

For processes that prove a store (`deep_audit`). Nothing is ever written. What the rows mean is not
known here, only what tables there are, what their keys are made of, and whether a row is what was
stored.
"""

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lmdb

from ledger_node.store_environments import read_only
from ledger_node.store_files import LOG_FOLDER, STATE_FOLDER, StoreCorruptError
from ledger_node.store_log import LogDatabases, LogTables
from ledger_node.store_rows import unseal
from ledger_node.store_tables import STATE_TABLES, ShardDatabases, ShardTables

# What a key is made of, as people are told of a row; keys that are not numbers are shown in hex.
_KEYS: Final = {
    "account_info": (struct.Struct(">I"), ("slot",)),
    "balances": (struct.Struct(">I"), ("slot",)),
    "transactions": (struct.Struct(">Q"), ("transaction",)),
    "entries": (struct.Struct(">Q"), ("position",)),
    "entry_marks": (struct.Struct(">IQ"), ("slot", "mark")),
    "in_flight": (struct.Struct(">Q"), ("transaction",)),
    "in_flight_bits": (struct.Struct(">Q"), ("row",)),
    "undecided": (struct.Struct(">Q"), ("transaction",)),
    "undecided_bits": (struct.Struct(">Q"), ("row",)),
    "expirations": (struct.Struct(">QQ"), ("time", "transaction")),
    "journal": (struct.Struct(">Q"), ("number",)),
    "account_events": (struct.Struct(">IQH"), ("slot", "journal number", "ordinal")),
    "groups": (struct.Struct(">I"), ("group",)),
    "totals": (struct.Struct(">I"), ("group",)),
    "total_marks": (struct.Struct(">IQ"), ("group", "block")),
    "effective_sums": (struct.Struct(">IBQ"), ("subject", "level", "bucket")),
    "effective_log": (struct.Struct(">IQ"), ("subject", "time")),
    "pending": (struct.Struct(">Q"), ("transaction",)),
    "settlements": (struct.Struct(">HI"), ("book", "day")),
}

# Their rows are empty, or have checksums of their own.
UNSEALED_TABLES: Final = ("entries", "expirations", "pending", "references")


def key_numbers(table: str, key: bytes) -> tuple[int, ...]:
    """Return the numbers that a key is made of; StoreCorruptError if it cannot be one."""
    layout, _names = _KEYS[table]
    if len(key) != layout.size:
        raise StoreCorruptError(f"its key has {len(key)} bytes, not {layout.size}")
    return tuple(layout.unpack(key))


def row_name(table: str, key: bytes) -> str:
    """Name a row for people: ``slot 3, mark 1``."""
    if table in _KEYS and len(key) == _KEYS[table][0].size:
        layout, names = _KEYS[table]
        values = zip(names, layout.unpack(key), strict=True)
        return ", ".join(f"{name} {value}" for name, value in values)
    if table == "accounts" and len(key) == 8:
        return f"account {key.hex()}"
    return f"key {key.hex()}"


@dataclass(frozen=True, slots=True)
class _View:
    txn: lmdb.Transaction


class ScannedShard:
    """One shard of a store, in one state. ``log_env`` has its log."""

    def __init__(
        self,
        log_env: lmdb.Environment,
        env: lmdb.Environment,
        txn: lmdb.Transaction,
        name: str,
        both: bool,
    ) -> None:
        def table(suffix: str) -> lmdb._Database:
            return env.open_db(f"{name}{suffix}".encode(), txn=txn, create=False)

        self.id = int(name)
        self._name = name
        self._txn = txn
        self._log_env = log_env
        databases = ShardDatabases(
            env,
            table(".meta"),
            tuple(
                {item: table(f"{generation}.{item}") for item in STATE_TABLES}
                for generation in (("", ".b") if both else ("",))
            ),
        )
        self.tables = ShardTables(_View(txn), databases)
        self._state = databases.state[self.tables.generation]

    @contextlib.contextmanager
    def log(self) -> Iterator[LogTables]:
        """Open the shard's log as it is now: it has whatever led to the state, or is after it.

        Keep it short, as the node writes it all the time.
        """
        env = self._log_env
        with env.begin() as txn:
            raft, log = (
                env.open_db(f"{self._name}{suffix}".encode(), txn=txn, create=False)
                for suffix in (".raft", ".log")
            )
            yield LogTables(_View(txn), LogDatabases(raft, log))

    def count(self, table: str) -> int:
        """Return how many rows a table has."""
        entries: int = self._txn.stat(self._state[table])["entries"]
        return entries

    def log_count(self) -> int:
        """Return how many entries the Raft log has."""
        with self.log() as log:
            return log.count()

    def has(self, table: str, key: bytes) -> bool:
        """Whether a table has a row."""
        return self._txn.get(key, db=self._state[table]) is not None

    def raw(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, row) as stored, in key order; StoreCorruptError where that cannot be read."""
        try:
            with self._txn.cursor(self._state[table]) as cursor:
                for key, value in cursor:
                    yield bytes(key), bytes(value)
        except lmdb.Error as error:
            raise StoreCorruptError(f"it cannot be read any further: {error}") from error

    def row(self, table: str, key: bytes, value: bytes) -> bytes:
        """Return a row as it was before it was sealed; StoreCorruptError if it was changed."""
        return value if table in UNSEALED_TABLES else unseal(key, value)


class ScannedStore:
    """The shards of a store, all in one state: that of the last checkpoint when it was opened.

    While it is open, pages that a node has freed since are not used again: its file may grow.
    """

    def __init__(
        self, log_env: lmdb.Environment, env: lmdb.Environment, txn: lmdb.Transaction
    ) -> None:
        self._log_env = log_env
        self._env = env
        self._txn = txn
        self._names = {bytes(key).decode() for key, _ in txn.cursor()}

    @property
    def shard_ids(self) -> list[int]:
        """The shards that it holds."""
        return sorted(
            int(name.removesuffix(".meta")) for name in self._names if name.endswith(".meta")
        )

    def shard(self, shard_id: int) -> ScannedShard:
        """Return a shard; StoreCorruptError if its tables are not all there."""
        name = f"{shard_id:05d}"
        try:
            both = f"{name}.b.accounts" in self._names
            return ScannedShard(self._log_env, self._env, self._txn, name, both)
        except lmdb.Error as error:
            raise StoreCorruptError(
                f"the tables of shard {shard_id} are damaged: {error}"
            ) from error


@contextlib.contextmanager
def scanned_store(path: Path) -> Iterator[ScannedStore]:
    """Open the store in the folder ``path`` for reading, beside a node or alone.

    StoreCorruptError if it is none. Damaged pages can also crash the process that reads them.
    """
    with contextlib.ExitStack() as stack:
        try:
            log_env, env = (
                stack.enter_context(read_only(path, name)) for name in (LOG_FOLDER, STATE_FOLDER)
            )
        except lmdb.Error as error:
            raise StoreCorruptError(f"the store in {path} cannot be opened: {error}") from error
        # Logs are opened later, so that they are no older than the state.
        txn = stack.enter_context(env.begin())
        yield ScannedStore(log_env, env, txn)

"""Balances in memory are those that the store would have, and has after every checkpoint.

Two stores do the same: one keeps a few balances in memory, the other one none.
"""

import contextlib
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ledger_core.commands import CreateAccount
from ledger_node.records import AccountRecord, BalanceRow
from ledger_node.store import ShardTables, Store, StoreCorruptError
from ledger_node.store_columns import BALANCES, BalanceRows
from ledger_node.store_rows import seal
from tests.node.shard import Shard, open_store

CELLS = 4
ACCOUNTS = 9
SLOTS_MAX = 14

slot_sets = st.sets(st.integers(0, SLOTS_MAX - 1), min_size=1)


class GivenUpError(Exception):
    """An attempt fails."""


class Plain:
    """The tables of a store that keeps nothing in memory: its own are not used."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.tables = ShardTables(store, store._databases[0])


class BothStores(RuleBasedStateMachine):
    """Writes the same to a store with few cells and to one that has none."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(dir=shm if (shm := Path("/dev/shm")).is_dir() else None))
        self.versions = 0
        self.opened = self.durably_opened = 0
        self.open()
        for _ in range(ACCOUNTS):
            self.open_account()
        self.checkpoint()

    def open(self) -> None:
        self.cached = open_store(self.path / "cached", balance_cells=CELLS)
        self.plain = Plain(open_store(self.path / "plain"))

    def teardown(self) -> None:
        self.cached.close()
        self.plain.store.close()
        shutil.rmtree(self.path)

    def both(self) -> tuple[ShardTables, ShardTables]:
        return self.cached.shard(0), self.plain.tables

    def known(self, slots: set[int]) -> list[int]:
        return sorted(slot for slot in slots if slot < self.opened)

    def row(self, slot: int) -> BalanceRow:
        """A row that was never there before."""
        self.versions += 1
        return BalanceRow(self.versions, self.versions, account_id=slot + 1)

    def save_many(self, slots: list[int], *targets: ShardTables) -> None:
        rows: BalanceRows = np.zeros(len(slots), BALANCES)
        packed = b"".join(self.row(slot).pack() + bytes(4) for slot in slots)
        rows[:] = np.frombuffer(packed, BALANCES)
        for tables in targets:
            tables.save_balance_rows(np.array(slots, np.int64), rows.copy())

    # Reading: all that tables can be asked agrees.

    def check(self, ours: ShardTables, theirs: ShardTables, slots: list[int]) -> None:
        first, second = (
            tables.balance_rows(np.array(slots, np.int64)) for tables in (ours, theirs)
        )
        body = slice(BALANCES.itemsize - 4)
        assert [row.tobytes()[body] for row in first] == [row.tobytes()[body] for row in second]
        for slot in slots:
            assert ours.balance(slot) == theirs.balance(slot)

    @rule(slots=slot_sets, how=st.sampled_from(["applied", "newest", "checkpointed"]))
    def read(self, slots: set[int], how: str) -> None:
        ours, theirs = self.both()
        if how == "applied":
            self.check(ours, theirs, self.known(slots))
        elif how == "newest":
            with self.cached.read_newest() as view:
                self.check(view.shard(0), theirs, self.known(slots))
                assert list(view.shard(0).balances()) == list(theirs.balances())
        else:
            with self.cached.read() as view, self.plain.store.read() as other:
                assert list(view.shard(0).balances()) == list(other.shard(0).balances())

    @rule(slot=st.integers(0, SLOTS_MAX - 1))
    def read_one(self, slot: int) -> None:
        if slot < self.opened:
            ours, theirs = self.both()
            assert ours.balance(slot) == theirs.balance(slot)

    # Writing.

    @precondition(lambda self: self.opened < SLOTS_MAX)
    @rule()
    def open_account(self) -> None:
        slot, row = self.opened, self.row(self.opened)
        for tables in self.both():
            tables.add_account(slot, AccountRecord(slot + 1, "", 0), row)
        self.opened += 1

    @rule(slots=slot_sets)
    def save(self, slots: set[int]) -> None:
        if known := self.known(slots):
            self.save_many(known, *self.both())

    @rule(slot=st.integers(0, SLOTS_MAX - 1))
    def save_one(self, slot: int) -> None:
        if slot < self.opened:
            row = self.row(slot)
            for tables in self.both():
                tables.save_balance(slot, row)

    @rule(slots=slot_sets, fails=st.booleans())
    def attempt(self, slots: set[int], fails: bool) -> None:
        """Open an account and save balances in an attempt, which may fail."""
        opened, versions = self.opened, self.versions
        for tables in self.both():
            # The same rows for both.
            self.opened, self.versions = opened, versions
            with contextlib.suppress(GivenUpError), tables.attempt() as attempt:
                if self.opened < SLOTS_MAX:
                    record = AccountRecord(self.opened + 1, "", 0)
                    attempt.add_account(self.opened, record, self.row(self.opened))
                    self.opened += 1
                if known := self.known(slots):
                    self.save_many(known, attempt)
                    attempt.save_balance(known[0], self.row(known[0]))
                if fails:
                    raise GivenUpError
        self.opened = opened if fails else self.opened

    @rule()
    def switch_generation(self) -> None:
        """Use the other tables, which hold other rows, as a snapshot does."""
        versions = self.versions
        for tables in self.both():
            self.versions = versions
            spare = tables.databases.state[1 - tables.generation]["balances"]
            tables.txn.drop(spare, delete=False)
            for slot in range(self.opened):
                key = slot.to_bytes(4)
                tables.txn.put(key, seal(key, self.row(slot).pack()), db=spare)
            tables.switch_generation()

    # What ends a turn, or a process.

    @rule()
    def checkpoint(self) -> None:
        self.cached.commit()
        self.plain.store.commit()
        self.durably_opened = self.opened
        assert stored(self.cached) == stored(self.plain.store)

    @rule()
    def abort(self) -> None:
        self.cached.abort()
        self.plain.store.abort()
        # As a start does: which tables are in use was not durable.
        for tables in self.both():
            tables._use_generation()
        self.opened = self.durably_opened

    @rule(step=st.sampled_from(["before", "between", "after"]))
    def crash_at_a_checkpoint(self, step: str) -> None:
        """Before rows are brought to the transaction, before it is committed, or after that."""
        if step != "before":
            self.cached._write_back()
        if step == "after":
            self.cached.commit()
            self.plain.store.commit()
            self.durably_opened = self.opened
        self.cached.close()
        self.plain.store.close()
        self.open()
        self.opened = self.durably_opened
        assert stored(self.cached) == stored(self.plain.store)

    @invariant()
    def all_rows_are_the_same_in_order(self) -> None:
        ours, theirs = self.both()
        assert list(ours.balances()) == list(theirs.balances())
        assert list(ours.balances_after(3)) == list(theirs.balances_after(3))

    @invariant()
    def what_is_newer_in_memory_has_a_transaction(self) -> None:
        cache = self.cached.shard(0).balance_cache
        assert cache is not None
        assert self.cached._state.is_open or not cache.is_dirty


def stored(store: Store) -> list[list[tuple[bytes, bytes]]]:
    """The balances of all generations as of the last checkpoint."""
    with store.read() as view:
        return [
            [(bytes(key), bytes(value)) for key, value in view.txn.cursor(state["balances"])]
            for state in view.shard(0).databases.state
        ]


TestBothStores = BothStores.TestCase
TestBothStores.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


def bank(path: Path, accounts: int, **options: object) -> Store:
    """A store with accounts, reopened: nothing is in memory."""
    shard = Shard(path)
    shard.apply(*[CreateAccount(account, "main", f"r{account}") for account in range(1, accounts)])
    shard.close()
    return open_store(path, **options)


def test_rows_are_written_once_however_often_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = bank(tmp_path, 40)
    tables = store.shard(0)
    written: list[int] = []
    put = ShardTables._put_sealed

    def counting(self: ShardTables, table: lmdb._Database, keys: list[bytes], rows: object) -> None:
        written.append(len(keys))
        put(self, table, keys, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(ShardTables, "_put_sealed", counting)
    for first in (0, 5, 10):
        slots = np.arange(first, first + 10)
        tables.save_balance_rows(slots, tables.balance_rows(slots))
    store.commit()
    store.commit()
    assert written == [20]
    tables.save_balance(3, tables.balance(3))
    store.commit()
    assert written == [20, 1]
    store.close()


def test_a_checkpoint_is_due_when_only_memory_has_changed(tmp_path: Path) -> None:
    store = bank(tmp_path, 4)
    row = store.shard(0).balance(2)
    row.sequence += 1
    store.commit()
    assert not store._state.is_open
    store.shard(0).save_balance(2, row)
    store.end_turn(lambda: 10.0)
    store.end_turn(lambda: 20.0)
    with store.read() as view:
        assert view.shard(0).balance(2) == row
    store.close()


@pytest.mark.parametrize(
    "read", [ShardTables.balance, lambda tables, slot: tables.balance_rows(np.array([slot]))]
)
def test_damage_on_disk_is_found_though_other_rows_are_in_memory(
    tmp_path: Path, read: Callable[[ShardTables, int], object]
) -> None:
    store = bank(tmp_path, 40, balance_cells=8)
    tables = store.shard(0)
    tables.balance_rows(np.arange(8))
    database = tables.databases.state[0]["balances"]
    for slot in (3, 3 + 8):
        key = slot.to_bytes(4)
        row = tables.txn.get(key, db=database)
        tables.txn.put(key, bytes([row[0] ^ 1]) + row[1:], db=database)
    store.commit()
    read(tables, 3)
    with pytest.raises(StoreCorruptError, match="row 0000000b fails its checksum"):
        read(tables, 3 + 8)
    # A row that is only read is in memory as it is on disk: who goes through all looks there.
    with pytest.raises(StoreCorruptError, match="row 00000003 fails its checksum"):
        list(tables.balances())
    with store.read() as view, pytest.raises(StoreCorruptError):
        read(view.shard(0), 3)
    store.close()


def test_a_large_counter_leaves_memory_as_it_was(tmp_path: Path) -> None:
    store = bank(tmp_path, 4)
    tables = store.shard(0)
    row = tables.balance(2)
    row.debits_posted = 1 << 63
    with pytest.raises(struct.error):
        tables.save_balance(2, row)
    assert tables.balance(2).debits_posted == 0
    store.close()

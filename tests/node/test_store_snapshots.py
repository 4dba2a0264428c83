"""A shard's state on its way to another store: read, staged, and changed over to in one turn."""

from pathlib import Path

import pytest

from ledger_core.commands import CreateAccount, CreateTransaction
from ledger_core.ids import derive_account_id
from ledger_node import store_raft
from ledger_node.audit import audit
from ledger_node.raft import Standing
from ledger_node.state_machine import StateMachine
from ledger_node.store import ShardRange, Store, StoreCorruptError, StoredRaftLog
from ledger_node.store_raft import StateReader
from ledger_node.store_tables import STATE_TABLES
from tests.node.shard import IDENTITY, Shard, open_store

ACCOUNTS = [derive_account_id("main", f"account {number}") for number in range(20)]


def filled(path: Path, transactions: int = 100) -> Shard:
    """Make a shard with accounts and transactions, as a replica has it."""
    shard = Shard(path)
    for account in ACCOUNTS:
        shard.one(CreateAccount(account, "main", f"r{account}"))
    for number in range(transactions):
        account = ACCOUNTS[number % len(ACCOUNTS)]
        shard.one(CreateTransaction(account, number + 1, "x" * 50, True, f"t{number}"))
    StoredRaftLog(shard.store, 0).save_applied(shard.audit().applied_index, 7)
    shard.store.commit()
    return shard


def parts(store: Store, bytes_max: int = 2_000) -> list[bytes]:
    reader = StoredRaftLog(store, 0).open_snapshot()
    found = []
    while part := reader.read(bytes_max):
        found.append(part)
    reader.close()
    return found


def install(store: Store, found: list[bytes], index: int = 120) -> StoredRaftLog:
    log = StoredRaftLog(store, 0)
    while not log.begin_install():
        store.commit()
    for part in found:
        log.stage(part)
        store.commit()
    log.finish_install(index, 7)
    log.restart_at(index, 7, b"\1")
    store.commit()
    return log


def audit_of(store: Store) -> object:
    with store.read() as view:
        return audit(view.shard(0))


def rows(store: Store, generation: int) -> int:
    tables = store.shard(0)
    databases = tables.databases.state[generation]
    return sum(tables.txn.stat(databases[name])["entries"] for name in STATE_TABLES)


def test_a_state_arrives_as_it_was(tmp_path: Path) -> None:
    source = filled(tmp_path / "a")
    target = open_store(tmp_path / "b")
    found = parts(source.store)
    assert len(found) > 5
    log = install(target, found)
    assert audit_of(target) == source.audit()
    assert (log.first_index(), log.last_index()) == (120, 120)
    assert log.load_applied() == (120, 7)
    # And it goes on from there, to the same hashes, also after a reopen.
    target.close()
    target = open_store(tmp_path / "b")
    source.one(CreateTransaction(ACCOUNTS[3], 5, "", True, "one more"))
    index, payload = source.log[-1]
    StateMachine(target.shard(0), 0).apply(index, payload)
    target.commit()
    assert audit_of(target) == source.audit()
    source.close()
    target.close()


def test_an_empty_state_can_be_sent(tmp_path: Path) -> None:
    source, target = open_store(tmp_path / "a"), filled(tmp_path / "b")
    install(target.store, parts(source))
    assert target.audit() == audit_of(source)
    source.close()
    target.close()


def test_parts_are_bounded_and_in_order(tmp_path: Path) -> None:
    source = filled(tmp_path)
    assert all(len(part) < 1_500 for part in parts(source.store, 1_000))
    assert len(parts(source.store, 1)) > 300
    source.close()


def test_a_reader_holds_the_state_still_over_many_turns(tmp_path: Path) -> None:
    source, target = filled(tmp_path / "a"), open_store(tmp_path / "b")
    before = source.audit()
    reader = StateReader(source.store.shard(0))
    found = []
    while part := reader.read(1_000):
        found.append(part)
        source.one(CreateTransaction(ACCOUNTS[0], 1, "", True, f"meanwhile {len(found)}"))
    assert (reader.index, reader.term) == (120, 7)
    reader.close()
    install(target, found)
    assert audit_of(target) == before
    source.close()
    target.close()


def test_the_state_in_use_is_whole_until_the_last_part_is_committed(tmp_path: Path) -> None:
    source, target = filled(tmp_path / "a"), filled(tmp_path / "b", transactions=7)
    before = target.audit()
    log = StoredRaftLog(target.store, 0)
    log.begin_install()
    for part in parts(source.store):
        log.stage(part)
        target.store.commit()
        assert target.audit() == before
    log.finish_install(120, 7)
    assert target.audit() == source.audit()
    source.close()
    target.close()


def test_a_crash_at_any_part_leaves_the_old_state_and_the_next_install_works(
    tmp_path: Path,
) -> None:
    source = filled(tmp_path / "a")
    found = parts(source.store)
    for crash_at in range(len(found) + 1):
        path = tmp_path / f"b{crash_at}"
        target = filled(path, transactions=7)
        before = target.audit()
        log = StoredRaftLog(target.store, 0)
        log.begin_install()
        target.store.commit()
        for number, part in enumerate(found):
            log.stage(part)
            if number == crash_at:
                break
            target.store.commit()
        target.reopen()  # what was not committed is gone
        assert target.audit() == before
        install(target.store, found)
        assert target.audit() == source.audit()
        target.close()
    source.close()


def test_what_is_of_no_use_any_more_is_cleared_in_bounded_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_raft, "_CLEAR_BYTES", 4096)
    monkeypatch.setattr(store_raft, "_CLEAR_ROWS", 10)
    source, target = filled(tmp_path / "a"), filled(tmp_path / "b")
    before = target.audit()
    log = install(target.store, parts(source.store))
    former = rows(target.store, 0)
    assert former > 300
    turns = 0
    while rows(target.store, 0):
        left = rows(target.store, 0)
        log.tidy()
        target.store.commit()
        turns += 1
        assert left - rows(target.store, 0) <= 100
    assert turns > 10
    log.tidy()
    assert target.audit() == before
    assert log.begin_install()
    source.close()
    target.close()


def test_a_second_install_waits_until_the_first_is_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_raft, "_CLEAR_BYTES", 0)
    monkeypatch.setattr(store_raft, "_CLEAR_ROWS", 50)
    source, target = filled(tmp_path / "a"), filled(tmp_path / "b")
    found = parts(source.store)
    log = install(target.store, found)
    assert not log.begin_install()
    install(target.store, found)
    assert target.audit() == source.audit()
    target.reopen()
    assert not StoredRaftLog(target.store, 0).begin_install()
    source.close()
    target.close()


def test_staging_is_not_cleared_under_its_feet(tmp_path: Path) -> None:
    source, target = filled(tmp_path / "a"), open_store(tmp_path / "b")
    log = StoredRaftLog(target, 0)
    log.begin_install()
    for part in parts(source.store):
        log.stage(part)
        log.tidy()
    log.finish_install(120, 7)
    target.commit()
    assert audit_of(target) == source.audit()
    source.close()
    target.close()


def test_a_state_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    source = filled(tmp_path / "a")
    found = parts(source.store)
    cases = [
        (found[:-1], 120, "without its trailer"),
        (found[:2] + found[-1:], 120, "rows of"),
        (found, 100, "newer than it says"),
    ]
    for number, (some, index, what) in enumerate(cases):
        target = open_store(tmp_path / f"b{number}")
        with pytest.raises(StoreCorruptError, match=what):
            install(target, some, index)
        target.close()
    target = open_store(tmp_path / "c")
    with pytest.raises(StoreCorruptError, match="in disorder"):
        install(target, [found[1], found[0], *found[1:]])
    target.close()
    source.close()


def test_a_state_of_another_range_of_keys_is_refused(tmp_path: Path) -> None:
    source = filled(tmp_path / "a")
    target = Store.open(tmp_path / "b", identity=IDENTITY, shards=[ShardRange(0, 0, 9)], sync=False)
    with pytest.raises(StoreCorruptError, match="another range"):
        install(target, parts(source.store))
    source.close()
    target.close()


# The log and its notes.


def test_the_log_is_compacted_and_its_beginning_survives_a_reopen(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    log = StoredRaftLog(store, 0)
    for index in range(1, 2_001):
        log.append(index, 1, b"\0" + bytes(100))
    store.commit()
    size = log.size_bytes()
    log.drop_before(1_900)
    store.commit()
    assert log.size_bytes() < size / 10
    store.close()
    store = open_store(tmp_path)
    log = StoredRaftLog(store, 0)
    assert (log.first_index(), log.last_index()) == (1_900, 2_000)
    assert log.read(1_900)[0] == 1
    store.close()


def test_standing_and_applied_are_stored_with_the_turn(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    log = StoredRaftLog(store, 0)
    assert log.load_standing() is None
    assert log.load_applied() is None
    standing = Standing(2**63, proven=True, roster={"n2": 5})
    log.save_standing(standing)
    log.save_applied(9, 4)
    store.commit()
    log.save_applied(10, 4)
    log.save_standing(Standing(2**63, proven=False))
    store.close()
    store = open_store(tmp_path)
    log = StoredRaftLog(store, 0)
    assert log.load_standing() == standing
    assert log.load_applied() == (9, 4)
    store.close()

"""The state is written behind the log: what a crash leaves, and what may be dropped."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ledger_core.commands import CreateAccount, CreateTransaction
from ledger_core.ids import derive_account_id
from ledger_core.queries import GetAccount
from ledger_core.results import AccountView
from ledger_node import store as store_module
from ledger_node.audit import Audit, audit
from ledger_node.raft import FatalRaftError, LogLimits
from ledger_node.raft.journal import GroupJournal
from ledger_node.store import Store, StoreCorruptError, StoredRaftLog, StoreError
from ledger_node.store_check import refuse_damaged
from ledger_node.store_environments import open_environments
from tests.node.hosts import Hosts, results
from tests.node.shard import open_store
from tests.node.test_store_snapshots import audit_of, filled, parts

ALICE = derive_account_id("main", "alice")


def put(number: int) -> CreateTransaction:
    return CreateTransaction(ALICE, 1, "", True, f"t{number}")


def newest(store: Store) -> Audit:
    with store.read_newest() as view:
        return audit(view.shard(0))


# When the state becomes durable.


def test_a_turn_makes_the_log_durable_and_the_state_follows_after_a_while(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    log = StoredRaftLog(store, 0)
    log.append(1, 1, b"\1")
    log.save_applied(1, 1)
    store.end_turn(lambda: 10.0)
    log.append(2, 1, b"\1")
    log.save_applied(2, 1)
    store.end_turn(lambda: 10.0 + store_module.CHECKPOINT_S - 0.01)
    assert log.durable_index() == 0
    store.end_turn(lambda: 10.0 + store_module.CHECKPOINT_S)
    assert log.durable_index() == 2
    log.append(3, 1, b"\1")
    log.save_applied(3, 1)
    store.end_turn(lambda: 20.0)
    assert (log.load_applied(), log.durable_index()) == ((3, 1), 2)
    store.close()  # as a crash
    store = open_store(tmp_path)
    log = StoredRaftLog(store, 0)
    assert (log.last_index(), log.load_applied(), log.durable_index()) == (3, (2, 1), 2)
    store.close()


def test_much_that_was_applied_does_not_wait(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    log = StoredRaftLog(store, 0)
    log.save_applied(1, 1)
    store.wrote(store_module.CHECKPOINT_BYTES - 1)
    store.end_turn(lambda: 10.0)
    assert log.durable_index() == 0
    store.wrote(1)
    store.end_turn(lambda: 10.0)
    assert log.durable_index() == 1
    store.close()


def test_nothing_waits_where_room_is_short(tmp_path: Path) -> None:
    """What is not written yet is not seen by `full`."""
    store = open_store(tmp_path, map_bytes=64 << 20)
    log = StoredRaftLog(store, 0)
    log.save_applied(1, 1)
    store.end_turn(lambda: 10.0)
    assert log.durable_index() == 1
    store.close()


def test_readers_beside_the_loop_see_the_last_checkpoint(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    before = audit_of(store)
    tables = store.shard(0)
    meta = tables.meta()
    meta.applied_index = 5
    tables.save_meta(meta)
    store.end_turn(lambda: 10.0)
    assert audit_of(store) == before
    assert newest(store).applied_index == 5
    store.end_turn(lambda: 11.0)
    assert audit_of(store) == newest(store)
    store.close()


def test_a_node_at_rest_has_made_its_state_durable(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    hosts.settle(hosts.execute(hosts.leader(), CreateAccount(ALICE, "main", "alice"), put(1)))
    hosts.run(0.5)
    found = [audit_of(store) for store in hosts.stores.values()]
    assert found == [newest(store) for store in hosts.stores.values()]
    assert found[0] == found[1] == found[2]
    hosts.close()


# What a crash leaves.


def test_after_a_crash_of_all_nodes_what_was_acknowledged_is_applied_again(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    hosts.settle(hosts.execute(hosts.leader(), CreateAccount(ALICE, "main", "alice")))
    hosts.run(0.5)
    for number in range(12):
        hosts.settle(hosts.execute(hosts.leader(), put(number)))
        behind = [newest(s).applied_index - meta_index(s) for s in hosts.stores.values()]
        for node_id in list(hosts.nodes):
            hosts.stop(node_id)
        for node_id in [node.id for node in hosts.config.nodes]:
            hosts.start(node_id)
        reply = hosts.settle(hosts.query(hosts.leader(), GetAccount(ALICE)))
        (view,) = results(reply)
        assert isinstance(view, AccountView)
        assert view.settled_balance == number + 1
    assert any(behind), "nothing had to be applied again"
    hosts.run(0.5)
    first, *others = [audit_of(store) for store in hosts.stores.values()]
    assert others == [first, first]
    hosts.close()


def meta_index(store: Store) -> int:
    with store.read() as view:
        return view.shard(0).meta().applied_index


def test_the_log_keeps_what_the_state_on_disk_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "CHECKPOINT_S", 1_000.0)
    hosts = Hosts(tmp_path, log_limits=LogLimits(keep_entries=1))
    hosts.settle(hosts.execute(hosts.leader(), CreateAccount(ALICE, "main", "alice")))
    for number in range(30):
        hosts.settle(hosts.execute(hosts.leader(), put(number)))
    assert [store.log(0).bounds()[0] for store in hosts.stores.values()] == [1, 1, 1]
    for store in hosts.stores.values():
        store.commit()
    hosts.settle(hosts.execute(hosts.leader(), put(31)))
    hosts.run(0.5)
    assert all(store.log(0).bounds()[0] > 20 for store in hosts.stores.values())
    hosts.close()


# The last step of an install, which concerns both files.


def crash_in_install(path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a state that includes entry 120 of term 7, and crash at a step of its end."""
    source, target = filled(path / "source"), filled(path / "target", transactions=7)
    for index in range(1, 28):
        target.store.log(0).append(index, 7, b"\1")
    target.store.log(0).save_hard_state(9, "n2")
    target.store.commit()
    log = StoredRaftLog(target.store, 0)
    log.begin_install()
    for part in parts(source.store):
        log.stage(part)
    source.close()
    name, when = step.split()
    real: Callable[[Store], None] = getattr(Store, name)

    def crash(store: Store) -> None:
        if when == "after":
            real(store)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, name, crash)
        with pytest.raises(KeyboardInterrupt):
            log.finish_install(120, 7)
    target.close()


@pytest.mark.parametrize(
    "step",
    ["commit_log before", "commit_log after", "checkpoint before", "checkpoint after"],
)
def test_a_crash_at_the_end_of_an_install_leaves_all_of_it_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    crash_in_install(tmp_path, step, monkeypatch)
    path = tmp_path / "target"
    refuse_damaged(path)
    store = open_store(path)
    done = step == "checkpoint after"
    journal = GroupJournal(StoredRaftLog(store, 0))
    assert newest(store).applied_index == (120 if done else 27)
    assert (journal.first_index, journal.last_index) == ((120, 120) if done else (1, 27))
    assert (journal.term, journal.voted_for) == (9, "n2")
    store.end_turn(lambda: 1.0)
    store.close()
    # Once more: what was repaired stays so.
    store = open_store(path)
    assert store.log(0).installing() is None
    assert GroupJournal(StoredRaftLog(store, 0)).last_index == (120 if done else 27)
    store.close()


# Files that do not belong together.


def test_the_log_of_one_store_and_the_state_of_another_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        open_store(tmp_path / name).close()
    shutil.rmtree(tmp_path / "a" / "store" / "log")
    shutil.copytree(tmp_path / "b" / "store" / "log", tmp_path / "a" / "store" / "log")
    with pytest.raises(StoreCorruptError, match=r"are of two stores.*start the node empty"):
        open_store(tmp_path / "a")


@pytest.mark.parametrize("lost", ["log", "state"])
def test_one_file_without_the_other_is_refused(tmp_path: Path, lost: str) -> None:
    open_store(tmp_path).close()
    shutil.rmtree(tmp_path / "store" / lost)
    for check in (True, False, True):
        with pytest.raises(StoreError, match=rf"no {lost}.*start the node empty"):
            open_store(tmp_path, check=check)


@pytest.mark.parametrize("made", [("state",), ("state", "log"), ()])
def test_a_creation_that_was_cut_short_is_gone_on_with(
    tmp_path: Path, made: tuple[str, ...]
) -> None:
    open_store(tmp_path).close()
    shutil.rmtree(tmp_path / "store")

    environments = open_environments(
        tmp_path / "store", map_bytes=1 << 20, log_tables=9, state_tables=9, sync=False
    )
    for name in ("log", "state"):
        env = getattr(environments, name).env
        with env.begin(write=True) as txn:
            table = env.open_db(b"store", txn=txn)
            txn.delete(b"whole", db=table)
            if name not in made:
                txn.delete(b"id", db=table)
    environments.close()
    open_store(tmp_path).close()
    open_store(tmp_path).close()


def test_a_log_that_is_older_than_the_state_is_refused(tmp_path: Path) -> None:
    """Put back from a copy alone, it lacks entries and votes that others were told of."""
    store = open_store(tmp_path / "a")
    log = StoredRaftLog(store, 0)
    for index in range(1, 5):
        log.append(index, 0, b"\1")
    log.save_applied(4, 0)
    store.commit()
    store.close()
    shutil.copytree(tmp_path / "a" / "store" / "log", tmp_path / "old")
    store = open_store(tmp_path / "a")
    log = StoredRaftLog(store, 0)
    log.append(5, 0, b"\1")
    log.save_applied(5, 0)
    store.commit()
    store.close()
    shutil.rmtree(tmp_path / "a" / "store" / "log")
    shutil.move(tmp_path / "old", tmp_path / "a" / "store" / "log")
    store = open_store(tmp_path / "a")
    with pytest.raises(FatalRaftError, match="state is at entry 5"):
        GroupJournal(StoredRaftLog(store, 0))
    store.close()

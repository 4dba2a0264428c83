"""The store: what is committed survives, what is not is gone, and nothing foreign is opened."""

import json
import os
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import lmdb
import pytest

from ledger_core.commands import CreateAccount, CreateTransaction
from ledger_core.ids import derive_account_id
from ledger_core.queries import GetAccount
from ledger_core.results import AccountView, Failure
from ledger_node.store import (
    ENTRIES_PER_MARK,
    ShardRange,
    Store,
    StoreCorruptError,
    StoredRaftLog,
    StoreError,
    StoreIdentity,
)
from ledger_node.store_files import state_file
from tests.node.shard import IDENTITY, SHARD, Shard, open_store

ACCOUNT = derive_account_id("main", "alice")


def append(log: StoredRaftLog, index: int, term: int, payload: bytes = b"\0x") -> None:
    log.append(index, term, payload)


def test_state_log_and_votes_of_a_turn_become_durable_together_or_not_at_all(
    tmp_path: Path,
) -> None:
    store = open_store(tmp_path)
    log = StoredRaftLog(store, 0)
    append(log, 1, 1)
    log.save_hard_state(1, "n1")
    store.commit()
    append(log, 2, 2)
    log.save_hard_state(2, "n2")
    meta = store.shard(0).meta()
    meta.applied_index = 2
    store.shard(0).save_meta(meta)
    store.close()  # as a crash before the commit

    store = open_store(tmp_path)
    log = StoredRaftLog(store, 0)
    assert (log.first_index(), log.last_index()) == (1, 1)
    assert log.load_hard_state() == (1, "n1")
    assert log.applied_index() == 0
    store.close()


def test_state_survives_a_reopen_and_goes_on_where_it_was(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    shard.one(CreateAccount(ACCOUNT, "main", "alice"))
    shard.one(CreateTransaction(ACCOUNT, 100, "", True, "t1"))
    before = shard.audit()
    shard.reopen()
    assert shard.audit() == before
    shard.one(CreateTransaction(ACCOUNT, 100, "", True, "t1"))
    view = shard.ask(GetAccount(ACCOUNT))
    assert isinstance(view, AccountView)
    assert view.settled_balance == 100
    shard.close()


def test_a_view_that_is_kept_does_not_keep_its_place_among_the_readers(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    kept = []
    for _ in range(100):  # many more than may read at once
        with store.read() as view:
            kept.append(view.shard(0))
            assert kept[-1].meta().applied_index == 0
    with pytest.raises(AttributeError):
        kept[0].meta()
    store.close()


def test_readers_see_only_committed_turns(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    shard.one(CreateAccount(ACCOUNT, "main", "alice"))
    meta = shard.store.shard(0).meta()
    meta.applied_index = 77
    shard.store.shard(0).save_meta(meta)
    with shard.store.read() as view:
        assert view.shard(0).meta().applied_index == 1
    shard.store.abort()
    assert isinstance(shard.ask(GetAccount(1)), Failure)
    shard.close()


def test_the_log_is_cut_and_continued(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    log = StoredRaftLog(store, 0)
    for index in range(1, 6):
        append(log, index, 1, b"\0%d" % index)
    log.truncate_from(3)
    assert log.last_index() == 2
    append(log, 3, 2, b"\0new")
    store.commit()
    log = StoredRaftLog(store, 0)
    assert [log.read(index) for index in (1, 2, 3)] == [(1, b"\0001"), (1, b"\0002"), (2, b"\0new")]
    assert log.last_index() == 3
    store.close()


@pytest.mark.parametrize("place", [0, 5, -1])
def test_a_changed_log_entry_is_found_by_its_checksum(tmp_path: Path, place: int) -> None:
    store = open_store(tmp_path)
    append(StoredRaftLog(store, 0), 1, 7, b"\0money")
    store.commit()
    store.close()
    with lmdb.open(str(tmp_path / "store" / "log"), max_dbs=16) as env:
        log = env.open_db(b"00000.log")
        with env.begin(write=True) as txn:
            key = struct.pack(">Q", 1)
            data = bytearray(bytes(txn.get(key, db=log) or b""))
            data[place] ^= 1
            txn.put(key, bytes(data), db=log)
    store = open_store(tmp_path)
    with pytest.raises(StoreCorruptError, match="fails its checksum"):
        StoredRaftLog(store, 0).read(1)
    store.close()


def test_every_64th_entry_of_an_account_is_marked(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    shard.one(CreateAccount(ACCOUNT, "main", "alice"))
    for number in range(2 * ENTRIES_PER_MARK + 1):
        shard.one(CreateTransaction(ACCOUNT, 1, "", True, f"t{number}"))
    shard.close()
    with lmdb.open(str(tmp_path / "store" / "state"), max_dbs=16) as env:
        marks = env.open_db(b"00000.entry_marks")
        with env.begin() as txn, txn.cursor(marks) as cursor:
            found = [struct.unpack(">IQ", bytes(key)) for key in cursor.iternext(values=False)]
    # Slot 0 is the external account, which takes the other side of each; slot 1 is the customer's.
    assert found == [(0, 1), (0, 2), (1, 1), (1, 2)]


# A data directory belongs to one node of one cluster, one format, and one process.


@pytest.mark.parametrize(
    ("identity", "named"),
    [
        (StoreIdentity("other", "n1"), "cluster_id"),
        (StoreIdentity("cluster", "n2"), "node_id"),
    ],
)
def test_a_directory_of_another_owner_is_refused(
    tmp_path: Path, identity: StoreIdentity, named: str
) -> None:
    open_store(tmp_path).close()
    with pytest.raises(StoreError, match=f"has {named} '.*', but this .* belongs"):
        Store.open(tmp_path, identity=identity, shards=[SHARD])
    open_store(tmp_path).close()


@pytest.mark.parametrize(
    ("key", "value"), [("format_version", 999), ("lmdb_version", "1.0"), ("cluster_id", None)]
)
def test_a_directory_of_another_format_is_refused(tmp_path: Path, key: str, value: object) -> None:
    open_store(tmp_path).close()
    file = tmp_path / "identity.json"
    document = json.loads(file.read_text())
    document[key] = value
    file.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=f"has {key} "):
        open_store(tmp_path)


def test_a_store_without_its_identity_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    (tmp_path / "identity.json").unlink()
    with pytest.raises(StoreCorruptError, match=r"no identity\.json"):
        open_store(tmp_path)


def test_a_damaged_identity_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    (tmp_path / "identity.json").write_text("{")
    with pytest.raises(StoreCorruptError, match="is not JSON"):
        open_store(tmp_path)


def test_changed_shard_ranges_are_refused(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    with pytest.raises(StoreError, match=r"holds the keys 00000000\.\.ffffffff, but"):
        Store.open(tmp_path, identity=IDENTITY, shards=[ShardRange(0, 0, 7)])


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    data = state_file(tmp_path / "store")
    data.write_bytes(b"x" * data.stat().st_size)
    with pytest.raises(StoreCorruptError, match="cannot be opened"):
        open_store(tmp_path)


def test_a_second_process_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(StoreError, match=f"in use by process {os.getpid()}"):
        open_store(tmp_path)
    store.close()
    open_store(tmp_path).close()


def test_what_was_used_once_and_is_free_again_does_not_refuse_writes(tmp_path: Path) -> None:
    """A reader that stayed long (a snapshot on its way) lets the file grow; the pages come back."""
    store = open_store(tmp_path, map_bytes=4 << 20)
    tables = store.shard(0)
    for number in range(1, 60):
        tables.save_meta_row(b"%d" % number, bytes(64 << 10))
    store.commit()
    assert store.full() is not None
    for number in range(1, 60):
        tables.delete_meta_row(b"%d" % number)
    store.commit()
    assert store.used_bytes() > 3 << 20
    assert store.full() is None
    # While somebody reads, the free pages of that state cannot be used.
    with store.read():
        assert store.full() is not None
    assert store.full() is None
    store.close()


def test_writes_are_refused_before_the_store_or_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path, map_bytes=4 << 20)
    assert store.full() is None
    log = StoredRaftLog(store, 0)
    for index in range(1, 60):
        append(log, index, 1, bytes(64 << 10))
    store.commit()
    assert "raise --store-max-mib" in (store.full() or "")
    log.truncate_from(2)
    store.commit()
    assert store.full() is None
    for number in range(1, 60):
        store.shard(0).save_meta_row(b"%d" % number, bytes(64 << 10))
    store.commit()
    assert "raise --store-max-mib" in (store.full() or "")
    store.close()

    store = open_store(tmp_path / "small disk")
    stat = os.statvfs(tmp_path)
    fields = list(stat)
    fields[4] = 1  # f_bavail
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
    assert "make room" in (store.full() or "")
    store.close()


def test_kill_9_between_turns_leaves_the_end_of_a_turn(tmp_path: Path) -> None:
    """A process killed at any moment leaves whole turns: audit and chain agree with a replay."""
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from ledger_core.commands import CreateAccount, CreateTransaction
        from tests.node.shard import Shard
        shard = Shard(Path(sys.argv[1]))
        account = int(sys.argv[2])
        shard.one(CreateAccount(account, "main", "alice"))
        for number in range(100_000):
            shard.apply(*(CreateTransaction(account, 1, "", True, f"{number}.{k}") for k in "ab"))
            print(number, flush=True)
        """
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "killed"), str(ACCOUNT)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    acknowledged = -1
    for line in child.stdout:
        acknowledged = int(line)
        if acknowledged == 50:
            child.send_signal(signal.SIGKILL)
            break
    rest = child.stdout.read().split()
    child.stdout.close()
    child.wait()
    acknowledged = int(rest[-1]) if rest else acknowledged

    survivor = Shard(tmp_path / "killed")
    found = survivor.audit()
    turns = found.applied_index - 1
    assert turns >= acknowledged + 1
    assert found.faults == []
    assert found.transactions == 2 * turns
    survivor.close()

    replay = Shard(tmp_path / "replay")
    replay.one(CreateAccount(ACCOUNT, "main", "alice"))
    for number in range(turns):
        replay.apply(*(CreateTransaction(ACCOUNT, 1, "", True, f"{number}.{k}") for k in "ab"))
    assert replay.audit() == found
    replay.close()

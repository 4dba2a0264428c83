"""A node that comes back without its data, on real stores."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from ledger_core.commands import CreateAccount, CreateTransaction
from ledger_core.ids import derive_account_id
from ledger_core.queries import GetAccount
from ledger_core.results import AccountView
from ledger_node.audit import Audit, audit
from ledger_node.raft import LogLimits, snapshots
from ledger_node.store import Store
from tests.node.hosts import Hosts, results

ALICE = derive_account_id("main", "alice")


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    monkeypatch.setattr(snapshots, "CHUNK_BYTES", 1_000)
    hosts = Hosts(tmp_path, log_limits=LogLimits(keep_entries=3))
    yield hosts
    hosts.close()


def fill(hosts: Hosts, writes: int = 40) -> None:
    leader = hosts.leader()
    hosts.settle(hosts.execute(leader, CreateAccount(ALICE, "main", "alice")))
    for number in range(writes):
        transaction = CreateTransaction(ALICE, number + 1, "", True, f"t{number}")
        hosts.settle(hosts.execute(leader, transaction))


def audits(hosts: Hosts) -> list[Audit]:
    found = []
    for store in hosts.stores.values():
        with store.read_newest() as view:
            found.append(audit(view.shard(0)))
    return found


def caught_up(hosts: Hosts) -> bool:
    statuses = [node.replica_statuses()[0] for node in hosts.nodes.values()]
    return (
        len(statuses) == 3
        and len({status.applied_index for status in statuses}) == 1
        and not any(status.unproven or status.installing_bytes for status in statuses)
    )


def a_follower(hosts: Hosts) -> str:
    leader = hosts.leader()
    return next(node_id for node_id in hosts.nodes if node_id != leader)


def begin_install(hosts: Hosts, node_id: str) -> None:
    for _ in range(500):
        hosts.turn_all(0.01)
        if hosts.nodes[node_id].replica_statuses()[0].installing_bytes:
            return
    raise AssertionError("no snapshot came")


def fail_at_the_end(store: Store, commit_log: Callable[[], None]) -> None:
    """Commit what an install writes by itself, but not what its turn does."""
    if store.log(0).installing() is None:
        raise OSError("the disk failed")
    commit_log()


def rejoin(hosts: Hosts) -> None:
    for _ in range(500):
        hosts.turn_all(0.01)
        if caught_up(hosts):
            break
    first, *others = audits(hosts)
    assert first.faults == []
    assert others == [first, first]


def test_a_wiped_node_rejoins_by_snapshot_while_writes_go_on(hosts: Hosts) -> None:
    fill(hosts)
    node_id = a_follower(hosts)
    hosts.stop(node_id)
    hosts.wipe(node_id)
    fill(hosts, 10)
    hosts.start(node_id)
    status = hosts.nodes[node_id].replica_statuses()[0]
    assert status.unproven
    seen_installing = False
    leader = hosts.leader()
    for number in range(100):
        write = CreateTransaction(ALICE, 1, "", True, f"meanwhile {number}")
        hosts.settle(hosts.execute(leader, write))
        status = hosts.nodes[node_id].replica_statuses()[0]
        seen_installing |= status.installing_bytes > 0
    assert seen_installing
    rejoin(hosts)
    status = hosts.nodes[node_id].replica_statuses()[0]
    assert 40 < status.first_log_index < status.last_log_index
    reply = hosts.settle(hosts.query(node_id, GetAccount(ALICE), stale=True))
    (view,) = results(reply)
    assert isinstance(view, AccountView)
    assert view.settled_balance == sum(range(1, 41)) + 100


def test_it_may_die_in_any_turn_of_the_install(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time after one turn more, and once it is through, it is like the others."""
    fill(hosts)
    node_id = a_follower(hosts)
    longest = 0
    for turns in range(200):
        hosts.stop(node_id)
        hosts.wipe(node_id)
        hosts.start(node_id)
        begin_install(hosts, node_id)
        for _ in range(turns):
            hosts.turn_all(0.01)
        # Its next turn writes, but is not committed.
        before, store = audits(hosts), hosts.stores[node_id]
        hosts.now += 0.05
        monkeypatch.setattr(store, "commit_log", partial(fail_at_the_end, store, store.commit_log))
        with pytest.raises(OSError, match="disk"):
            hosts.turn(node_id)
        longest = max(longest, hosts.nodes[node_id].replica_statuses()[0].installing_bytes)
        done = before[list(hosts.nodes).index(node_id)].accounts == 2
        hosts.stop(node_id)
        hosts.start(node_id)
        rejoin(hosts)
        if done:
            break
    assert turns > 10
    assert longest > 5_000


def test_a_node_that_was_away_for_too_long_gets_a_snapshot(hosts: Hosts) -> None:
    fill(hosts, 5)
    node_id = a_follower(hosts)
    hosts.stop(node_id)
    fill(hosts, 30)
    hosts.start(node_id)
    assert not hosts.nodes[node_id].replica_statuses()[0].unproven
    rejoin(hosts)
    assert hosts.stores[node_id].shard(0).generation == 1
    # And once more, into the set of tables that it used first.
    hosts.stop(node_id)
    leader = hosts.leader()
    for number in range(30):
        write = CreateTransaction(ALICE, 1, "", True, f"again {number}")
        hosts.settle(hosts.execute(leader, write))
    hosts.start(node_id)
    rejoin(hosts)
    assert hosts.stores[node_id].shard(0).generation == 0


def test_a_wiped_leader_does_not_take_the_group_down(hosts: Hosts) -> None:
    fill(hosts)
    leader = hosts.leader()
    hosts.stop(leader)
    hosts.wipe(leader)
    hosts.start(leader)
    rejoin(hosts)
    assert hosts.leader() != leader

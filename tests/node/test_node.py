"""The turn: what a node promises, driven without network, clock or threads."""

from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from ledger.internal.v1 import shard_pb2
from ledger_core.commands import CreateAccount, CreateTransaction, decode_batch
from ledger_core.ids import derive_account_id
from ledger_core.queries import GetAccount
from ledger_core.results import AccountView, TransactionView
from ledger_node import node as node_module
from ledger_node import node_replicas
from ledger_node import store as store_module
from ledger_node.store import Store
from tests.node.hosts import Hosts, results

ALICE = derive_account_id("main", "alice")
OPEN = CreateAccount(ALICE, "main", "alice")


def put(amount: int, request_id: str) -> CreateTransaction:
    return CreateTransaction(ALICE, amount, "", True, request_id)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    hosts = Hosts(tmp_path)
    yield hosts
    hosts.close()


def test_a_write_is_answered_once_a_majority_has_it(hosts: Hosts) -> None:
    leader = hosts.leader()
    hosts.cut = set(hosts.nodes) - {leader}
    replies = hosts.execute(leader, OPEN)
    for _ in range(10):
        hosts.turn_all(0.01)
    assert replies == []
    hosts.cut.pop()
    assert isinstance(results(hosts.settle(replies))[0], AccountView)


def test_commands_that_wait_at_the_start_of_a_turn_become_one_log_entry(hosts: Hosts) -> None:
    leader = hosts.leader()
    before = hosts.stores[leader].log(0).bounds()[1]
    replies = [hosts.execute(leader, OPEN), hosts.execute(leader, put(1, "a"), put(2, "b"))]
    first, second = (hosts.settle(item) for item in replies)
    assert first.log_index == second.log_index == before + 1
    _, payload = hosts.stores[leader].log(0).entry(before + 1)
    assert len(decode_batch(payload[1:]).commands) == 3
    assert [type(r) for r in results(second)] == [TransactionView, TransactionView]


def fail() -> None:
    raise lmdb.DiskError("no space left on device")


def test_a_failed_commit_of_the_log_releases_nothing(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = hosts.leader()
    hosts.settle(hosts.execute(leader, OPEN))
    replies = hosts.execute(leader, put(1, "t"))
    reads = hosts.query(leader, GetAccount(ALICE))
    with monkeypatch.context() as patch:
        patch.setattr(hosts.stores[leader], "commit_log", fail)
        with pytest.raises(lmdb.DiskError):
            hosts.run(0.02)
    assert replies == []
    assert reads == []


def test_a_failed_checkpoint_ends_the_node_and_takes_back_no_answer(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "CHECKPOINT_S", 0.0)
    leader = hosts.leader()
    hosts.settle(hosts.execute(leader, OPEN))
    replies = hosts.execute(leader, put(1, "t"))
    with monkeypatch.context() as patch:
        patch.setattr(hosts.stores[leader], "checkpoint", fail)
        with pytest.raises(lmdb.DiskError):
            hosts.run(0.5)
    hosts.stop(leader)
    hosts.run(2.0)
    hosts.start(leader)
    (first,) = results(replies[0])
    (again,) = results(hosts.settle(hosts.execute(hosts.leader(), put(1, "t"))))
    assert isinstance(first, TransactionView)
    assert again == first


def test_no_message_leaves_before_its_turn_is_committed(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a message or a reply tells of is already in the committed log."""
    leader = hosts.leader()
    commit = Store.commit_log
    committed: list[int] = []

    def record(store: Store) -> None:
        commit(store)
        if store is hosts.stores[leader]:
            committed.append(store.log(0).bounds()[1])
            store._log.abort()

    monkeypatch.setattr(Store, "commit_log", record)
    hosts.execute(leader, OPEN)
    outbox = hosts.turn(leader)
    sent = [entry for ms in outbox.values() for m in ms for entry in m.entries]
    assert sent
    last = max(m.log_index + len(m.entries) for ms in outbox.values() for m in ms)
    assert committed[-1] == last


def test_followers_name_the_leader(hosts: Hosts) -> None:
    leader = hosts.leader()
    hosts.run(0.3)
    follower = next(node_id for node_id in hosts.nodes if node_id != leader)
    (reply,) = hosts.execute(follower, OPEN)
    assert (reply.outcome, reply.leader_id) == (shard_pb2.OUTCOME_NOT_LEADER, leader)
    (answer,) = hosts.query(follower, GetAccount(ALICE))
    assert (answer.outcome, answer.leader_id) == (shard_pb2.OUTCOME_NOT_LEADER, leader)


def test_a_shard_that_is_not_here_is_said_to_be_elsewhere(hosts: Hosts) -> None:
    (reply,) = hosts.execute("n1", OPEN, shard_id=9)
    (answer,) = hosts.query("n1", GetAccount(ALICE), shard_id=9)
    assert reply.outcome == answer.outcome == shard_pb2.OUTCOME_WRONG_NODE


def test_reads_see_every_acknowledged_write(hosts: Hosts) -> None:
    leader = hosts.leader()
    hosts.settle(hosts.execute(leader, OPEN))
    for number in range(5):
        hosts.settle(hosts.execute(leader, put(10, f"t{number}")))
        answer = hosts.settle(hosts.query(leader, GetAccount(ALICE)))
        (view,) = results(answer)
        assert isinstance(view, AccountView)
        assert view.settled_balance == 10 * (number + 1)
        assert answer.age_s == 0.0


def test_a_leader_without_its_majority_answers_no_linearizable_read(hosts: Hosts) -> None:
    leader = hosts.leader()
    hosts.settle(hosts.execute(leader, OPEN))
    hosts.cut = set(hosts.nodes) - {leader}
    replies = hosts.query(leader, GetAccount(ALICE))
    hosts.run(2.0)
    assert [reply.outcome for reply in replies] == [shard_pb2.OUTCOME_NOT_LEADER]


def test_stale_reads_are_answered_by_followers_and_their_age_grows(hosts: Hosts) -> None:
    leader = hosts.leader()
    hosts.settle(hosts.execute(leader, OPEN))
    hosts.run(0.5)
    follower = next(node_id for node_id in hosts.nodes if node_id != leader)
    fresh = hosts.settle(hosts.query(follower, GetAccount(ALICE), stale=True))
    assert isinstance(results(fresh)[0], AccountView)
    assert fresh.age_s < 0.3
    hosts.cut = {follower}
    hosts.run(2.0)
    old = hosts.settle(hosts.query(follower, GetAccount(ALICE), stale=True))
    assert 1.8 < old.age_s < 2.4


def test_what_waits_for_a_shard_is_bounded(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "WAITING_COMMANDS_MAX", 2)
    monkeypatch.setattr(node_module, "WAITING_QUERIES_MAX", 1)
    leader = hosts.leader()
    accepted = hosts.execute(leader, OPEN, put(1, "a"))
    (refused,) = hosts.execute(leader, put(1, "b"))
    assert refused.outcome == shard_pb2.OUTCOME_RESOURCE_EXHAUSTED
    assert "slow down" in refused.message
    asked = hosts.query(leader, GetAccount(ALICE))
    (full,) = hosts.query(leader, GetAccount(ALICE))
    assert full.outcome == shard_pb2.OUTCOME_RESOURCE_EXHAUSTED
    results(hosts.settle(accepted))
    hosts.settle(asked)
    results(hosts.settle(hosts.execute(leader, put(1, "b"))))


def test_what_is_not_committed_is_bounded_and_goes_on_when_followers_do(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_replicas, "UNCOMMITTED_ENTRIES_MAX", 3)
    leader = hosts.leader()
    hosts.settle(hosts.execute(leader, OPEN))
    hosts.run(0.3)
    before = hosts.stores[leader].log(0).bounds()[1]
    hosts.cut = set(hosts.nodes) - {leader}
    waiting = []
    for number in range(10):
        waiting.append(hosts.execute(leader, put(1, f"t{number}")))
        hosts.turn_all(0.001)
    assert hosts.stores[leader].log(0).bounds()[1] == before + 3
    # Blocked, not busy: the next turn is due at a tick, not at once.
    assert hosts.nodes[leader].next_turn_at() > 0.0
    hosts.cut = set()
    for replies in waiting:
        results(hosts.settle(replies))


def test_a_full_store_refuses_writes_and_still_reads(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = hosts.leader()
    hosts.settle(hosts.execute(leader, OPEN))
    monkeypatch.setattr(Store, "full", lambda _: "the disk has only 3 MiB free: make room on it")
    (reply,) = hosts.execute(leader, put(1, "t"))
    assert reply.outcome == shard_pb2.OUTCOME_RESOURCE_EXHAUSTED
    assert "make room" in reply.message
    results(hosts.settle(hosts.query(leader, GetAccount(ALICE))))


def test_writes_end_unknown_when_leadership_is_lost_and_a_repeat_tells(hosts: Hosts) -> None:
    old = hosts.leader()
    hosts.settle(hosts.execute(old, OPEN))
    hosts.cut = {old}
    replies = hosts.execute(old, put(7, "t"))
    hosts.run(3.0)
    assert [reply.outcome for reply in replies] == [shard_pb2.OUTCOME_UNKNOWN]
    new = next(n for n in hosts.nodes if n != old and hosts.nodes[n].replica_statuses()[0].serving)
    hosts.settle(hosts.execute(new, put(7, "t")))
    hosts.cut = set()
    hosts.run(2.0)
    hosts.settle(hosts.execute(hosts.leader(), put(7, "t")))
    (view,) = results(hosts.settle(hosts.query(hosts.leader(), GetAccount(ALICE))))
    assert isinstance(view, AccountView)
    assert view.settled_balance == 7


def test_a_node_that_drains_finishes_what_waits_and_hands_leadership_away(hosts: Hosts) -> None:
    leader = hosts.leader()
    replies = hosts.execute(leader, OPEN)
    hosts.nodes[leader].drain()
    (refused,) = hosts.execute(leader, put(1, "t"))
    assert refused.outcome == shard_pb2.OUTCOME_NOT_LEADER
    results(hosts.settle(replies))
    hosts.run(0.5)
    assert hosts.nodes[leader].drained
    assert hosts.leader() != leader


def test_nodes_that_stop_together_do_not_pass_leadership_around(hosts: Hosts) -> None:
    hosts.leader()
    terms = {n: node.replica_statuses()[0].term for n, node in hosts.nodes.items()}
    for node in hosts.nodes.values():
        node.drain()
    hosts.run(0.5)
    assert terms == {n: node.replica_statuses()[0].term for n, node in hosts.nodes.items()}


def test_a_node_that_stops_waits_only_for_who_could_take_over(hosts: Hosts) -> None:
    leader = hosts.leader()
    node = hosts.nodes[leader]
    one, other = (name for name in hosts.nodes if name != leader)
    node.drain()
    node.peer_stopping(one)
    assert not node.drained, "the other could"
    node.peer_disconnected(other)
    assert node.drained
    node.peer_connected(other)
    assert not node.drained, "it was only restarting"
    node.peer_stopping(other)
    assert node.drained
    assert node.leads
    node.peer_disconnected(one)
    node.peer_connected(one)
    assert not node.drained, "who comes back stops no more"


def test_a_shard_of_one_replica_serves_alone(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, nodes=1, shards=2, replicas=1)
    for shard_id in (0, 1):
        hosts.leader(shard_id)
    results(hosts.settle(hosts.execute("n1", OPEN)))
    results(hosts.settle(hosts.query("n1", GetAccount(ALICE))))
    assert hosts.nodes["n1"].drained
    hosts.close()


def test_the_store_is_asked_once_between_two_turns_whether_it_is_full(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = hosts.leader()
    answers = iter([None, "the disk is full"])
    monkeypatch.setattr(Store, "full", lambda _store: next(answers))
    hosts.turn(leader)  # forgets what it knew
    taken = [hosts.execute(leader, OPEN), hosts.execute(leader, put(1, "a"))]
    assert taken == [[], []]
    hosts.turn(leader)
    (refused,) = hosts.execute(leader, put(1, "b"))
    assert refused.outcome == shard_pb2.OUTCOME_RESOURCE_EXHAUSTED
    assert refused.message == "the disk is full"

"""The two halves of a turn: first the log, then the state; and what a follower lets gather."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ledger.internal.v1 import peer_pb2
from ledger_core.commands import CreateAccount, CreateTransaction
from ledger_core.ids import derive_account_id
from ledger_core.queries import GetAccount
from ledger_core.results import AccountView
from ledger_node.node import GATHER_TICKS, Outbox
from ledger_node.raft import applying
from ledger_node.store import Store
from tests.node.hosts import Hosts, results

ALICE = derive_account_id("main", "alice")
TICK_S = 0.07


def put(number: int, note: str = "") -> CreateTransaction:
    return CreateTransaction(ALICE, 1, note, True, f"t{number}")


class World:
    """A leader and one follower that are moved by hand, all the same at first."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.leader = hosts.leader()
        hosts.settle(hosts.execute(self.leader, CreateAccount(ALICE, "main", "alice")))
        hosts.run(0.5)
        self.follower, self.other = (n for n in hosts.nodes if n != self.leader)
        # Right after a tick of all, so that none comes by itself.
        hosts.turn_all(TICK_S)
        hosts.turn_all()
        hosts.turn_all()
        self._number = 0

    def carry(
        self, source: str, target: str, outbox: dict[str, list[peer_pb2.RaftMessage]]
    ) -> None:
        self.hosts.nodes[target].receive(source, outbox.get(target, []))

    def write(self, note: str = "") -> None:
        """Have an entry on the leader and the follower, and committed on the leader."""
        self._number += 1
        hosts = self.hosts
        replies = hosts.execute(self.leader, put(self._number, note))
        self.carry(self.leader, self.follower, hosts.turn(self.leader))
        self.carry(self.follower, self.leader, hosts.turn(self.follower))
        hosts.turn(self.leader)
        assert replies, "the leader applies at once"

    def hear_commit(self) -> None:
        """Have the follower told of what is committed: with the next entry."""
        self.write()

    def waiting(self, node_id: str | None = None) -> int:
        """How many committed entries a node has not applied."""
        (status,) = self.hosts.nodes[node_id or self.follower].replica_statuses()
        return status.commit_index - status.applied_index

    def balance(self, node_id: str) -> int:
        with self.hosts.stores[node_id].read_newest() as view:
            tables = view.shard(0)
            (_slot, row), *_ = (item for item in tables.balances() if item[1].credits_posted)
        return int(row.credits_posted)

    def bring_back(self, victim: str) -> None:
        """Have a stopped node replaced by another leader, start it again, and write once more."""
        hosts = self.hosts
        hosts.run(2.0)
        hosts.start(victim)
        hosts.settle(hosts.execute(hosts.leader(), put(2)))
        hosts.run(0.5)

    def balances(self) -> list[int]:
        return [self.balance(node_id) for node_id in self.hosts.nodes]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    hosts = Hosts(tmp_path)
    yield World(hosts)
    hosts.close()


# First the log, then the state.


def test_a_follower_confirms_an_entry_before_it_applies_earlier_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applying, "GATHER_ENTRIES_MAX", 1)
    world.write()
    hosts, node = world.hosts, world.hosts.nodes[world.follower]
    hosts.execute(world.leader, put(99))
    world.carry(world.leader, world.follower, hosts.turn(world.leader))
    assert world.waiting() == 0
    (confirmed,) = node.turn()[world.leader]
    assert confirmed.ok
    assert confirmed.match_index == hosts.stores[world.follower].log(0).bounds()[1]
    node.apply()
    assert world.waiting() == 1
    node.follow()
    assert world.waiting() == 0


def test_a_leader_sends_the_next_entry_before_it_applies_what_is_committed(world: World) -> None:
    hosts, node = world.hosts, world.hosts.nodes[world.leader]
    first = hosts.execute(world.leader, put(1))
    world.carry(world.leader, world.follower, hosts.turn(world.leader))
    world.carry(world.follower, world.leader, hosts.turn(world.follower))
    hosts.execute(world.leader, put(2))
    sent = node.turn()
    assert [len(message.entries) for message in sent[world.follower]] == [1]
    assert first == []
    assert world.waiting(world.leader) == 1
    node.apply()
    assert len(results(first[0])) == 1
    assert world.waiting(world.leader) == 0
    node.follow()


def test_entries_leave_before_their_leader_has_them_on_disk_and_nothing_else_does(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts, order = world.hosts, []
    commit_log = Store.commit_log

    def record(store: Store) -> None:
        order.append("commit")
        commit_log(store)

    def send_early(outbox: Outbox) -> None:
        order.append("entries")
        assert [len(message.entries) for message in outbox[world.follower]] == [1]
        world.carry(world.leader, world.follower, outbox)

    monkeypatch.setattr(Store, "commit_log", record)
    hosts.execute(world.leader, put(1))
    assert hosts.nodes[world.leader].turn(send_early) == {}
    assert order == ["entries", "commit"]
    (confirmed,) = hosts.nodes[world.follower].turn(send_early)[world.leader]
    assert confirmed.ok
    assert order == ["entries", "commit", "commit"], "a confirmation waits for the disk"


def test_entries_that_only_followers_have_are_not_lost_with_their_leader(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts, victim = world.hosts, world.leader
    replies = hosts.execute(victim, put(1))

    def fail() -> None:
        raise OSError("the disk is gone")

    def send_early(outbox: Outbox) -> None:
        world.carry(victim, world.follower, outbox)

    with monkeypatch.context() as patch:
        patch.setattr(hosts.stores[victim], "commit_log", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            hosts.nodes[victim].turn(send_early)
    hosts.turn(world.follower)
    hosts.stop(victim)
    assert replies == [], "nobody is answered by a node whose log is not on disk"
    world.bring_back(victim)
    assert world.balances() == [2, 2, 2]


def test_what_comes_between_the_halves_is_not_lost(world: World) -> None:
    hosts, node = world.hosts, world.hosts.nodes[world.leader]
    node.turn()
    write = hosts.execute(world.leader, put(1))
    read = hosts.query(world.leader, GetAccount(ALICE))
    stale = hosts.query(world.leader, GetAccount(ALICE), stale=True)
    node.apply()
    node.follow()
    results(hosts.settle(stale))
    results(hosts.settle(write))
    results(hosts.settle(read))


def test_a_crash_between_the_halves_loses_nothing_that_was_sent(world: World) -> None:
    hosts, victim = world.hosts, world.leader
    replies = hosts.execute(victim, put(1))
    world.carry(victim, world.follower, hosts.turn(victim))
    world.carry(world.follower, victim, hosts.turn(world.follower))
    hosts.nodes[victim].turn()
    assert world.waiting(victim) == 1
    hosts.stop(victim)
    assert replies == [], "nobody is answered by a node that has not applied"
    world.bring_back(victim)
    assert world.balances() == [2, 2, 2]


def test_a_crash_after_the_answers_loses_nothing_that_was_answered(world: World) -> None:
    hosts, victim = world.hosts, world.leader
    replies = hosts.execute(victim, put(1))
    world.carry(victim, world.follower, hosts.turn(victim))
    world.carry(world.follower, victim, hosts.turn(world.follower))
    hosts.nodes[victim].turn()
    hosts.nodes[victim].apply()
    assert len(results(replies[0])) == 1
    hosts.stop(victim)
    world.bring_back(victim)
    assert world.balances() == [2, 2, 2]


def test_the_parts_of_a_turn_take_turns(world: World) -> None:
    node = world.hosts.nodes[world.leader]
    with pytest.raises(AssertionError, match="has begun"):
        node.apply()
    node.turn()
    with pytest.raises(AssertionError, match="take turns"):
        node.turn()
    with pytest.raises(AssertionError, match="take turns"):
        node.follow()
    node.apply()
    with pytest.raises(AssertionError, match="take turns"):
        node.apply()


# What a follower lets gather.


def test_a_follower_joins_small_entries_until_its_next_tick(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    group = world.hosts.nodes[world.follower]._replicas[0].group
    apply = group._replica._apply

    def record(entries: Sequence[tuple[int, bytes]], wanted: bool) -> Sequence[object]:
        runs.append(len(entries))
        assert not wanted, "nobody waits for a follower"
        return apply(entries, wanted)

    monkeypatch.setattr(group._replica, "_apply", record)
    for _ in range(5):
        world.write()
    assert world.waiting() == 4
    # Gathering, not busy: the next turn is due at a tick.
    assert world.hosts.nodes[world.follower].next_turn_at() > world.hosts.now
    for _ in range(GATHER_TICKS):
        world.hosts.now += TICK_S
        world.hosts.turn(world.follower)
    assert world.waiting() == 0
    assert runs == [4]
    assert world.balance(world.follower) == 4


def test_a_follower_applies_when_many_entries_have_gathered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applying, "GATHER_ENTRIES_MAX", 3)
    seen = []
    for _ in range(7):
        world.write()
        seen.append(world.waiting())
    assert seen == [0, 1, 2, 0, 1, 2, 0]


def test_a_follower_applies_when_many_bytes_have_gathered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applying, "GATHER_BYTES_MAX", 400)
    world.write()
    world.write("x" * 400)
    assert world.waiting() == 1
    world.hear_commit()
    assert world.waiting() == 0


def test_a_stale_read_sees_what_has_gathered(world: World) -> None:
    for _ in range(4):
        world.write()
    assert world.waiting() == 3
    hosts = world.hosts
    replies = hosts.query(world.follower, GetAccount(ALICE), stale=True)
    hosts.turn(world.follower)
    assert world.waiting() == 0
    (view,) = results(replies[0])
    assert isinstance(view, AccountView)
    assert view.settled_balance == 3
    assert replies[0].age_s == 0.0


def test_a_new_leader_applies_what_has_gathered(world: World) -> None:
    for _ in range(4):
        world.write()
    assert world.waiting() == 3
    hosts, group = world.hosts, world.hosts.nodes[world.follower]._replicas[0].group
    node = hosts.nodes[world.follower]
    term = group.term
    node.receive(
        world.leader,
        [peer_pb2.RaftMessage(type=peer_pb2.RAFT_MESSAGE_TYPE_TIMEOUT_NOW, term=term)],
    )
    hosts.turn(world.follower)
    assert (group.term, world.waiting()) == (term + 1, 3)
    node.receive(
        world.other,
        [
            peer_pb2.RaftMessage(
                type=peer_pb2.RAFT_MESSAGE_TYPE_REQUEST_VOTE_REPLY, term=term + 1, ok=True
            )
        ],
    )
    hosts.turn(world.follower)
    assert group.role.name == "LEADER"
    assert world.waiting() == 0

"""A replica that may have forgotten its promises does not vote until it has caught up."""

import pytest
from raft_harness import CALM, Cluster

from ledger.internal.v1.peer_pb2 import (
    RAFT_MESSAGE_TYPE_APPEND_ENTRIES,
    RAFT_MESSAGE_TYPE_APPEND_ENTRIES_REPLY,
    RAFT_MESSAGE_TYPE_ASK,
    RAFT_MESSAGE_TYPE_ASK_REPLY,
    RAFT_MESSAGE_TYPE_REQUEST_VOTE,
    LogEntry,
    MemberStore,
    RaftMessage,
)
from ledger_node.raft import ProposalOutcome, RaftTiming, Role

NORMAL = RaftTiming()


def unproven(c: Cluster) -> list[str]:
    return [name for name in c.names if c.group(name).unproven]


def led_by_a(*, pre_vote: bool = False, timing: RaftTiming = CALM) -> Cluster:
    c = Cluster("ABC", timing=timing, pre_vote=pre_vote)
    c.elect("A", "BC")
    c.sync("A", "BC")
    return c


# Founding.


@pytest.mark.parametrize("seed", range(10))
def test_a_fresh_group_is_founded_at_once_by_all_its_members(seed: int) -> None:
    c = Cluster("ABC", timing=NORMAL, pre_vote=True, preferred_leader="B", seed=seed, proven=False)
    c.settle(4)
    assert c.leaders() == ["B"]
    assert c.group("B").term == 1
    assert unproven(c) == []


@pytest.mark.parametrize("size", [3, 5])
def test_a_fresh_group_is_not_founded_without_all_its_members(size: int) -> None:
    names = "ABCDE"[:size]
    c = Cluster(names, timing=NORMAL, pre_vote=True, preferred_leader="A", proven=False)
    c.isolate(names[-1], names)
    c.settle(60)
    assert c.leaders() == []
    assert unproven(c) == list(names)
    c.heal()
    c.settle(20)
    assert len(c.leaders()) == 1
    assert unproven(c) == []


def ask(c: Cluster, name: str, *others: str, times: int = 1) -> None:
    """Have an unproven replica hear what others know."""
    for _ in range(times):
        c.now += 1
        c.turn(name)
        for other in others:
            c.deliver(name, other)
            c.deliver(other, name)
        c.drop(name)


def founded_by_the_last(names: str) -> Cluster:
    """All have heard of all, but only the last has heard that they all see the same roster."""
    c = Cluster(names, proven=False)
    for name in names:
        ask(c, name, *(other for other in names if other != name))
    assert unproven(c) == list(names[:-1])
    return c


def test_who_is_in_the_roster_of_a_proven_member_is_proven_by_it_alone() -> None:
    c = founded_by_the_last("ABCDE")
    ask(c, "C", "E")
    ask(c, "A", "C")
    assert unproven(c) == ["B", "D"]


def test_a_disk_lost_while_a_group_is_founded_leaves_a_majority_that_may_vote() -> None:
    """C and D hold an entry, so they found no group with the new store; but A and B know them."""
    c = founded_by_the_last("ABCDE")
    for name in "AB":
        ask(c, name, "E")
    c.elect("A", "BE")
    for name in "CD":
        c.deliver("A", name)
    c.wipe("E")
    c.boot("A")
    assert unproven(c) == ["C", "D", "E"]
    for name in "CD":
        ask(c, name, *(other for other in c.names if other != name))
    assert unproven(c) == ["E"]
    c.elect("C", "ABD")
    ask(c, "E", *"ABCD")
    c.sync("C", "ABDE", rounds=5)
    assert unproven(c) == []


def test_a_disk_lost_before_others_know_that_they_are_founded_is_replaced_in_the_roster() -> None:
    c = founded_by_the_last("ABC")
    c.wipe("C")
    for _ in range(2):
        for name in c.names:
            ask(c, name, *(other for other in c.names if other != name))
    assert unproven(c) == []


def test_a_store_that_is_younger_than_a_leader_is_in_no_roster() -> None:
    """Else E, which confirmed an entry in its former life, could elect a leader that lacks it."""
    c = founded_by_the_last("ABCDE")
    for name in "AB":
        ask(c, name, "E")
    c.elect("A", "BE")
    c.propose("A", b"kept")
    c.sync("A", "BE")
    assert c.outcome(b"kept") is ProposalOutcome.APPLIED
    c.isolate("A", "BCDE")
    c.isolate("B", "ACDE")
    c.wipe("E")
    for _ in range(3):
        for name in "CDE":
            ask(c, name, *(other for other in "CDE" if other != name))
    assert unproven(c) == ["C", "D", "E"]
    c.heal()
    c.isolate("A", "BCDE")
    for name in "CDE":
        ask(c, name, *(other for other in "BCDE" if other != name))
    assert unproven(c) == ["E"]


def test_who_caught_up_hands_on_the_roster() -> None:
    c = founded_by_the_last("ABC")
    ask(c, "A", "C")
    c.elect("A", "C")
    c.wipe("C")
    ask(c, "C", *"AB")
    c.propose("A", b"x")
    c.sync("A", "C", rounds=5)
    assert unproven(c) == ["B"]
    ask(c, "B", "C")
    assert unproven(c) == []


@pytest.mark.parametrize("names", ["AB", "ABCD"])
def test_in_a_group_of_an_even_number_nobody_votes_before_it_is_founded(names: str) -> None:
    c = founded_by_the_last(names)
    for name in names[:-1]:
        assert c.group(name)._admission.informed
        assert not c.group(name)._admission.may_vote


def test_a_proven_member_does_not_tell_of_another_store() -> None:
    c = Cluster("ABC", proven=False)
    c.settle(4)
    assert unproven(c) == []
    c.wipe("C")
    c.settle(20)
    assert unproven(c) == ["C"]
    for name in "AB":
        c.turn(name, [("C", RaftMessage(shard_id=7, type=RAFT_MESSAGE_TYPE_ASK, incarnation=5))])
        answer = c.take(name, "C")[-1]
        assert not answer.unproven
        stores = {store.node_id: store.incarnation for store in answer.roster}
        assert stores["C"] not in (5, c.group("C")._admission.incarnation)


def test_answers_to_a_former_life_do_not_count() -> None:
    c = Cluster("ABC", proven=False)
    stale = RaftMessage(
        shard_id=7,
        type=RAFT_MESSAGE_TYPE_ASK_REPLY,
        term=9,
        peer_incarnation=1234,
        roster=[MemberStore(node_id="A", incarnation=c.group("A")._admission.incarnation)],
    )
    c.turn("A", [("B", stale), ("C", stale)])
    assert c.group("A").unproven
    assert c.group("A").term == 0


def test_a_group_of_one_is_proven_at_once() -> None:
    c = Cluster("A", timing=NORMAL, pre_vote=True, proven=False)
    assert unproven(c) == []
    c.settle(20)
    assert c.group("A").serving


def test_a_store_of_an_earlier_version_forgot_nothing() -> None:
    c = Cluster("ABC")
    assert unproven(c) == []


def test_being_proven_survives_a_restart() -> None:
    c = Cluster("ABC", timing=NORMAL, pre_vote=True, proven=False)
    c.settle(20)
    for name in c.names:
        c.boot(name)
    assert unproven(c) == []


# A store that was wiped.


def test_a_wiped_replica_does_not_elect_a_leader_that_lacks_a_commit() -> None:
    c = led_by_a(timing=NORMAL)
    c.isolate("C", "AB")
    c.propose("A", b"salary")
    c.sync("A", "B")
    assert c.outcome(b"salary") is ProposalOutcome.APPLIED
    c.heal()
    c.wipe("B")
    c.isolate("A", "BC")
    c.settle(60)
    for _ in range(5):
        c.campaign("C")
        c.campaign("B")
        c.quiesce()
    assert [name for name in c.leaders() if name != "A"] == []
    c.heal()
    c.settle(60)
    assert [c.state(name) for name in c.names] == [[b"salary"]] * 3
    assert unproven(c) == []


def test_a_wiped_replica_catches_up_while_writes_go_on_and_then_votes() -> None:
    c = led_by_a()
    for number in range(5):
        c.propose("A", b"before %d" % number)
    c.sync("A", "BC")
    c.wipe("B")
    assert unproven(c) == ["B"]
    c.now += 1
    c.turn("B")
    for number in range(5):
        c.propose("A", b"after %d" % number)
        c.quiesce()
        c.sync("A", "BC", rounds=1)
    assert unproven(c) == []
    assert c.state("B") == c.state("A")
    assert len(c.state("B")) == 10
    c.boot("B")
    c.isolate("A", "BC")
    c.elect("C", "B")


def test_a_leader_forgets_what_a_wiped_follower_had_confirmed() -> None:
    c = led_by_a()
    c.isolate("C", "A")
    c.propose("A", b"x")
    c.deliver("A", "B")
    late = c.take("B", "A")
    assert late[-1].ok
    c.wipe("B")
    c.now += 1
    c.turn("B")
    c.quiesce()
    # A asks the new store, and hears that it is another one.
    c.heartbeat("A")
    c.deliver("A", "B")
    c.deliver("B", "A", 1)
    c.turn("A", [("B", message) for message in late])
    assert c.group("A").commit_index == 2
    assert c.outcome(b"x") is None
    c.sync("A", "B")
    assert c.outcome(b"x") is ProposalOutcome.APPLIED
    assert c.state("B") == [b"x"]


def test_a_wiped_replica_does_not_help_a_leader_that_it_had_deposed() -> None:
    c = led_by_a()
    c.isolate("A", "BC")
    c.elect("C", "B")
    c.propose("C", b"kept")
    c.sync("C", "B")
    assert c.outcome(b"kept") is ProposalOutcome.APPLIED
    c.heal()
    c.isolate("C", "AB")
    c.wipe("B")
    c.propose("A", b"lost")
    c.read("A", "r")
    for _ in range(5):
        c.now += 1
        c.turn("B")
        c.sync("A", "B")
    assert c.outcome(b"lost") is None
    assert "r" not in c.reads
    c.heal()
    c.now += 1
    c.turn("B")
    c.quiesce()
    c.sync("A", "BC")
    assert c.group("A").role is Role.FOLLOWER
    c.sync("C", "AB")
    assert [c.state(name) for name in c.names] == [[b"kept"]] * 3


def wiped_and_informed() -> Cluster:
    """A leads, C is up, and B is new and knows the terms of both."""
    c = led_by_a()
    c.wipe("B")
    c.now += 1
    c.turn("B")
    for name in "AC":
        c.deliver("B", name)
        c.deliver(name, "B")
    c.drop("A")
    assert c.group("B")._admission.informed
    assert c.group("B").term == 1
    return c


def append_to_b(c: Cluster, *, term: int = 1, entry_term: int = 1, tagged: bool = True) -> None:
    """All there is, from A to B, in one message."""
    incarnation = c.group("B")._admission.incarnation
    message = RaftMessage(
        shard_id=7,
        type=RAFT_MESSAGE_TYPE_APPEND_ENTRIES,
        term=term,
        log_index=1,
        entries=[LogEntry(term=entry_term, payload=b"\1")],
        commit_index=2,
        peer_incarnation=incarnation if tagged else 0,
    )
    c.turn("B", [("A", message)])


def test_a_commit_of_the_leaders_own_term_proves() -> None:
    c = wiped_and_informed()
    append_to_b(c)
    assert unproven(c) == []
    assert c.stores["B"].disk.voted_for == "A"


def test_a_commit_of_an_earlier_term_does_not_prove() -> None:
    c = wiped_and_informed()
    append_to_b(c, term=2)
    assert unproven(c) == ["B"]
    reply = c.take("B", "A")[-1]
    assert reply.type == RAFT_MESSAGE_TYPE_APPEND_ENTRIES_REPLY
    assert reply.ok
    assert reply.unproven


def test_a_leader_that_may_think_of_another_store_does_not_prove() -> None:
    c = wiped_and_informed()
    append_to_b(c, tagged=False)
    assert unproven(c) == ["B"]


def test_in_the_term_it_was_proven_in_a_replica_has_voted() -> None:
    """In its former life it may have voted for its leader; it must not elect a second one."""
    c = wiped_and_informed()
    append_to_b(c)
    request = RaftMessage(
        shard_id=7, type=RAFT_MESSAGE_TYPE_REQUEST_VOTE, term=1, log_index=99, log_term=1
    )
    c.links.clear()
    c.turn("B", [("C", request)])
    assert not c.take("B", "C")[-1].ok


@pytest.mark.parametrize("names", ["AB", "ABCD"])
def test_in_a_group_of_an_even_number_a_wiped_replica_votes_once_it_is_informed(
    names: str,
) -> None:
    c = Cluster(names, timing=NORMAL, pre_vote=True, preferred_leader="A")
    c.settle(10)
    c.propose("A", b"x")
    c.settle(3)
    c.isolate("A", names)
    c.wipe("B")
    c.settle(20)
    assert c.group("B").unproven == (names == "AB")
    c.heal()
    c.settle(60)
    assert len(c.leaders()) == 1
    assert unproven(c) == []
    assert [c.state(name) for name in names] == [[b"x"]] * len(names)


def test_a_wiped_replica_of_a_pair_does_not_lead_before_it_has_caught_up() -> None:
    c = Cluster("AB")
    c.elect("A", "B")
    c.propose("A", b"x")
    c.sync("A", "B")
    c.boot("A")
    c.wipe("B")
    c.now += 1
    c.turn("B")
    c.quiesce()
    c.campaign("B")
    c.quiesce()
    assert c.leaders() == []
    c.elect("A", "B")
    c.sync("A", "B")
    assert unproven(c) == []
    assert c.state("B") == [b"x"]


def test_leadership_is_not_given_to_a_peer_that_may_not_vote() -> None:
    c = led_by_a()
    c.isolate("C", "AB")
    c.group("A").peer_disconnected("C")
    c.wipe("B")
    c.now += 1
    c.turn("B")
    c.drop("B", "C")
    c.heal()
    # B hears all terms, but A does not know its store yet when it is asked.
    c.isolate("A", "C")
    c.sync("A", "B")
    c.turn("B")
    c.quiesce()
    c.group("A")._replica._peers["B"].unproven = True
    asked: list[bool] = []
    c.turn("A", work=[lambda group, now: asked.append(group.transfer_leadership(now))])
    assert asked == [False]


def test_an_unproven_replica_is_not_made_to_campaign() -> None:
    c = wiped_and_informed()
    append_to_b(c, tagged=False)
    c.turn("A", work=[lambda group, now: group.transfer_leadership(now)])
    c.quiesce()
    assert c.group("B").role is Role.FOLLOWER
    c.campaign("B")
    assert c.group("B").role is Role.FOLLOWER

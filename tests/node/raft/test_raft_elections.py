"""Terms, votes and leadership. Each test is named after the rule it proves."""

import random

import pytest
from raft_harness import Cluster, Host, MemoryStore

from ledger.internal.v1.peer_pb2 import (
    RAFT_MESSAGE_TYPE_APPEND_ENTRIES,
    RAFT_MESSAGE_TYPE_APPEND_ENTRIES_REPLY,
    RAFT_MESSAGE_TYPE_PRE_VOTE,
    RAFT_MESSAGE_TYPE_REQUEST_VOTE,
    RAFT_MESSAGE_TYPE_REQUEST_VOTE_REPLY,
    RAFT_MESSAGE_TYPE_TIMEOUT_NOW,
    RaftMessage,
)
from ledger_node.raft import FatalRaftError, ProposalOutcome, RaftTiming, Role

NORMAL = RaftTiming()


def test_a_vote_survives_a_restart() -> None:
    c = Cluster("ABC")
    c.campaign("A")
    c.deliver("A", "C")
    c.deliver("C", "A")
    assert c.leaders() == ["A"]
    c.boot("C")  # before A's first append arrives
    c.campaign("B")
    c.deliver("B", "C")
    c.deliver("C", "B")
    assert c.group("B").term == c.group("A").term
    assert c.leaders() == ["A"]


def test_a_vote_is_on_disk_before_it_is_sent() -> None:
    c = Cluster("ABC")
    c.campaign("A")
    request = c.take("A", "C")
    assert c.hosts["C"].turn(c.now, [("A", request[0])], die=True) is None
    c.boot("C")
    assert c.stores["C"].disk.term == 0
    c.turn("C", [("A", request[0])])
    assert (c.stores["C"].disk.term, c.stores["C"].disk.voted_for) == (1, "A")
    assert c.take("C", "A")[0].ok


def test_the_term_survives_a_restart_of_the_whole_cluster() -> None:
    c = Cluster("ABC")
    for _ in range(5):
        c.campaign("A")
        c.drop("A")
    c.elect("A", "BC")
    c.sync("A", "BC")
    term = c.group("A").term
    for name in c.names:
        c.boot(name)
    assert [c.group(name).term for name in c.names] == [term] * 3
    # B is not reached, and C carries what A commits now into every later term.
    c.isolate("B", "AC")
    c.elect("A", "C")
    c.propose("A", b"salary")
    c.sync("A", "C")
    assert c.outcome(b"salary") is ProposalOutcome.APPLIED
    c.heal()
    c.campaign("B")
    c.quiesce()
    assert c.group("B").role is not Role.LEADER
    c.campaign("C")
    c.quiesce()
    c.settle(3)
    assert [c.state(name) for name in c.names] == [[b"salary"]] * 3


def test_a_repeated_vote_counts_once() -> None:
    c = Cluster("ABCDE")
    c.campaign("A")
    c.deliver("A", "B")
    vote = c.take("B", "A")[0]
    for _ in range(3):
        c.turn("A", [("B", vote)])
    assert c.group("A").role is Role.CANDIDATE
    c.deliver("A", "C")
    c.deliver("C", "A")
    assert c.group("A").role is Role.LEADER


def test_votes_of_strangers_do_not_count() -> None:
    c = Cluster("ABC")
    c.campaign("A")
    vote = RaftMessage(
        shard_id=7, type=RAFT_MESSAGE_TYPE_REQUEST_VOTE_REPLY, term=c.group("A").term, ok=True
    )
    c.turn("A", [("X", vote), ("A", vote)])
    assert c.group("A").role is Role.CANDIDATE


def test_a_refused_or_older_vote_does_not_count() -> None:
    c = Cluster("ABC")
    c.campaign("A")
    c.drop("A")
    c.campaign("A")
    term = c.group("A").term
    kind = RAFT_MESSAGE_TYPE_REQUEST_VOTE_REPLY
    c.turn("A", [("B", RaftMessage(shard_id=7, type=kind, term=term - 1, ok=True))])
    c.turn("A", [("B", RaftMessage(shard_id=7, type=kind, term=term, ok=False))])
    assert c.group("A").role is Role.CANDIDATE


def test_the_same_candidate_gets_its_vote_again() -> None:
    c = Cluster("ABC")
    c.campaign("A")
    c.deliver("A", "B", keep=True)
    c.drop("B", "A")
    c.deliver("A", "B")
    assert c.take("B", "A")[0].ok


def test_no_vote_for_a_candidate_with_an_older_log() -> None:
    c = Cluster("ABC")
    c.elect("A", "BC")
    c.isolate("C", "AB")
    c.propose("A", b"x")
    c.sync("A", "B")
    c.heal()
    c.campaign("C")
    c.deliver("C", "B")
    assert not c.take("B", "C")[0].ok
    assert c.group("B").term == c.group("C").term


def test_a_later_term_in_the_log_outweighs_a_longer_log() -> None:
    c = Cluster("ABC")
    c.elect("A", "BC")
    c.sync("A", "BC")
    c.isolate("A", "BC")
    c.propose("A", b"1", b"2", b"3")
    c.elect("B", "C")
    c.sync("B", "C")
    c.heal()
    c.campaign("A")
    c.drop("A")
    for _ in range(3):  # past the term of B
        c.group("A").receive(
            c.now,
            "B",
            RaftMessage(
                shard_id=7, type=RAFT_MESSAGE_TYPE_REQUEST_VOTE_REPLY, term=c.group("B").term
            ),
        )
        c.campaign("A")
    assert c.group("A").last_index > c.group("B").last_index
    c.drop("A", "B")
    c.campaign("A")
    c.deliver("A", "B")
    assert not c.take("B", "A")[-1].ok


def test_every_reply_and_request_of_a_higher_term_deposes() -> None:
    for kind in (
        RAFT_MESSAGE_TYPE_REQUEST_VOTE,
        RAFT_MESSAGE_TYPE_REQUEST_VOTE_REPLY,
        RAFT_MESSAGE_TYPE_APPEND_ENTRIES,
        RAFT_MESSAGE_TYPE_APPEND_ENTRIES_REPLY,
        RAFT_MESSAGE_TYPE_TIMEOUT_NOW,
    ):
        c = Cluster("ABC")
        c.elect("A", "BC")
        message = RaftMessage(shard_id=7, type=kind, term=9, log_index=1)
        c.turn("A", [("B", message)])
        assert c.group("A").role is Role.FOLLOWER
        assert c.stores["A"].disk.term == 9


def test_a_sender_of_an_older_term_learns_the_newer_one() -> None:
    c = Cluster("ABC")
    c.elect("A", "B")
    c.isolate("A", "BC")
    c.elect("B", "C")
    c.heal()
    c.drop("B")
    c.heartbeat("A")
    c.deliver("A", "C")
    c.deliver("C", "A")
    assert c.group("A").role is Role.FOLLOWER
    assert c.group("A").term == c.group("C").term


def test_a_leader_that_hears_no_majority_steps_down_soon() -> None:
    c = Cluster("ABC", timing=NORMAL, pre_vote=True, preferred_leader="A")
    c.settle(10)
    assert c.leaders() == ["A"]
    assert c.group("A").serving
    c.isolate("A", "BC")
    c.propose("A", b"lost")
    c.read("A", "r")
    start = c.now
    while c.group("A").role is Role.LEADER:
        assert c.now < start + 2 * NORMAL.election_min_s
        c.heartbeat("A")
    assert c.outcome(b"lost") is ProposalOutcome.UNKNOWN
    assert not c.reads["r"][0]
    assert c.group("A").leader_id is None


def test_a_leader_cut_off_is_replaced() -> None:
    c = Cluster("ABC", timing=NORMAL, pre_vote=True, preferred_leader="A")
    c.settle(10)
    c.isolate("A", "BC")
    c.settle(30)
    assert len(c.leaders()) == 1
    assert c.leaders() != ["A"]


def test_a_node_that_was_cut_off_does_not_raise_the_term() -> None:
    c = Cluster("ABC", timing=NORMAL, pre_vote=True, preferred_leader="A")
    c.settle(10)
    term = c.group("A").term
    c.isolate("C", "AB")
    c.settle(60)
    assert c.group("C").term == term
    c.heal()
    c.settle(60)
    assert c.leaders() == ["A"]
    assert c.group("A").term == term


def test_a_candidate_cannot_depose_a_leader_that_is_heard() -> None:
    c = Cluster("ABC", timing=NORMAL, pre_vote=True, preferred_leader="A")
    c.settle(10)
    term = c.group("A").term
    request = RaftMessage(
        shard_id=7, type=RAFT_MESSAGE_TYPE_REQUEST_VOTE, term=99, log_index=99, log_term=99
    )
    c.turn("A", [("C", request)])
    c.turn("B", [("C", request)])
    assert [c.group(name).term for name in "AB"] == [term, term]
    c.links.clear()
    ask = RaftMessage(
        shard_id=7, type=RAFT_MESSAGE_TYPE_PRE_VOTE, term=99, log_index=99, log_term=99
    )
    c.turn("A", [("C", ask)])
    c.turn("B", [("C", ask)])
    assert not c.take("A", "C")[-1].ok
    assert not c.take("B", "C")[-1].ok
    assert [c.group(name).term for name in "AB"] == [term, term]


def test_a_leader_that_only_sends_is_deposed() -> None:
    """Its followers hear it, but it hears none of them."""
    c = Cluster("ABC", timing=NORMAL, pre_vote=True, preferred_leader="A")
    c.settle(10)
    c.cut = {("B", "A"), ("C", "A")}
    c.settle(40)
    assert [name for name in c.leaders() if name != "A"]


def test_a_node_with_a_higher_term_does_not_block_the_group() -> None:
    c = Cluster("ABC", timing=NORMAL, pre_vote=True, preferred_leader="A")
    c.settle(10)
    c.isolate("C", "AB")
    c.stores["C"].save_hard_state(50, "C")
    c.stores["C"].commit()
    c.boot("C")
    c.heal()
    c.settle(60)
    c.propose(c.leaders()[-1], b"x")
    c.settle(5)
    assert [c.state(name) for name in c.names] == [[b"x"]] * 3


def test_leadership_moves_on_request_against_stickiness() -> None:
    c = Cluster("ABC", timing=NORMAL, pre_vote=True, preferred_leader="A")
    c.settle(10)
    term = c.group("A").term
    asked: list[bool] = []
    c.turn("A", work=[lambda group, now: asked.append(group.transfer_leadership(now))])
    c.quiesce()
    assert asked == [True]
    assert len(c.leaders()) == 1
    assert c.leaders() != ["A"]
    assert c.group(c.leaders()[0]).term == term + 1
    assert c.group("A").leader_id == c.leaders()[0]


def test_leadership_is_not_given_to_a_peer_that_lacks_entries() -> None:
    c = Cluster("ABC")
    c.elect("A", "BC")
    c.sync("A", "BC")
    asked: list[bool] = []
    c.propose("A", b"x")
    c.turn("A", work=[lambda group, now: asked.append(group.transfer_leadership(now))])
    c.turn("B", work=[lambda group, now: asked.append(group.transfer_leadership(now))])
    assert asked == [False, False]


def test_leadership_is_given_to_a_connected_peer_only() -> None:
    c = Cluster("ABC")
    c.elect("A", "BC")
    c.sync("A", "BC")
    asked: list[bool] = []
    c.group("A").peer_disconnected("C")
    c.turn("A", work=[lambda group, now: asked.append(group.transfer_leadership(now))])
    assert asked == [True]
    assert c.take("A", "B")[-1].type == RAFT_MESSAGE_TYPE_TIMEOUT_NOW
    c.group("A").peer_disconnected("B")
    c.turn("A", work=[lambda group, now: asked.append(group.transfer_leadership(now))])
    assert asked == [True, False]


@pytest.mark.parametrize(("sender", "age"), [("C", 0), ("A", 1)])
def test_timeout_now_is_taken_from_the_current_leader_only(sender: str, age: int) -> None:
    c = Cluster("ABC")
    c.elect("A", "BC")
    c.sync("A", "BC")
    term = c.group("B").term
    c.turn(
        "B",
        [(sender, RaftMessage(shard_id=7, type=RAFT_MESSAGE_TYPE_TIMEOUT_NOW, term=term - age))],
    )
    assert c.group("B").role is Role.FOLLOWER
    assert c.group("B").term == term


def test_heartbeats_do_not_put_off_a_requested_election() -> None:
    c = Cluster("ABC")
    c.elect("A", "BC")
    c.sync("A", "BC")
    c.turn("A", work=[lambda group, now: group.transfer_leadership(now)])
    c.heartbeat("A")
    c.turn("B", [("A", message) for message in c.take("A", "B")])
    c.turn("C", [("A", message) for message in c.take("A", "C")])
    assert sorted(c.group(name).role for name in "BC") == [Role.FOLLOWER, Role.CANDIDATE]


def test_the_preferred_leader_wins_a_fresh_cluster() -> None:
    for seed in range(10):
        c = Cluster("ABC", timing=NORMAL, pre_vote=True, preferred_leader="B", seed=seed)
        c.settle(4)
        assert c.leaders() == ["B"]
        assert c.group("B").term == 1


def test_the_preferred_leader_waits_for_its_links() -> None:
    c = Cluster("ABC", timing=NORMAL, pre_vote=True, preferred_leader="B", connect=False)
    c.settle(3)
    assert c.leaders() == []
    for name in c.names:
        for peer in c.names:
            if peer != name:
                c.group(name).peer_connected(peer)
    c.settle(3)
    assert c.leaders() == ["B"]
    assert c.group("B").term == 1


def test_the_preferred_leader_does_not_depose_another_after_a_restart() -> None:
    c = Cluster("ABC", timing=NORMAL, pre_vote=True, preferred_leader="A")
    c.settle(5)
    c.turn("A", work=[lambda group, now: group.transfer_leadership(now)])
    c.quiesce()
    leader, term = c.leaders()[0], c.group("A").term
    c.settle(5)
    c.boot("A")
    c.settle(40)
    assert c.leaders() == [leader]
    assert c.group("A").term == term


def test_a_group_of_one_leads_and_commits_alone() -> None:
    c = Cluster("A", timing=NORMAL, pre_vote=True)
    c.settle(20)
    assert c.group("A").serving
    c.propose("A", b"x")
    assert c.outcome(b"x") is ProposalOutcome.APPLIED
    c.read("A", "r")
    assert c.reads["r"] == (True, 3)
    c.boot("A")
    assert c.state("A") == [b"x"]
    c.settle(20)
    assert c.group("A").serving


def test_a_group_of_two_needs_both() -> None:
    c = Cluster("AB")
    c.campaign("A")
    assert c.group("A").role is Role.CANDIDATE
    c.quiesce()
    assert c.leaders() == ["A"]
    c.isolate("A", "B")
    c.propose("A", b"x")
    c.heartbeat("A")
    assert c.outcome(b"x") is None


def test_the_same_schedule_gives_the_same_history() -> None:
    def history() -> list[tuple[str, bytes]]:
        c = Cluster("CAB", timing=NORMAL, pre_vote=True, seed=3)
        sent: list[tuple[str, bytes]] = []
        for _ in range(30):
            c.now += 0.1
            for name in c.names:
                c.turn(name)
                for link in sorted(c.links):
                    sent += [(link[1], encoded) for encoded in c.links[link]]
            c.quiesce()
        return sent

    assert history() == history()


def test_two_leaders_in_one_term_stop_the_process() -> None:
    c = Cluster("ABC")
    c.elect("A", "BC")
    c.deliver("A", "B")
    claim = RaftMessage(
        shard_id=7, type=RAFT_MESSAGE_TYPE_APPEND_ENTRIES, term=c.group("A").term, log_index=1
    )
    with pytest.raises(FatalRaftError, match="two leaders"):
        c.turn("A", [("C", claim)])
    with pytest.raises(FatalRaftError, match="two leaders"):
        c.turn("B", [("C", claim)])


def test_nothing_is_sent_to_a_peer_that_is_not_connected() -> None:
    host = Host(
        "A", ["B", "C"], MemoryStore(), now=0.0, timing=NORMAL, rng=random.Random(1), connect=False
    )
    host.group.peer_connected("B")
    now = 0.0
    for _ in range(40):
        now += 0.15
        released = host.turn(now)
        assert released is not None
        assert {peer for peer, _ in released[0]} <= {"B"}
    assert host.group.term == 0, "no majority was ever asked"

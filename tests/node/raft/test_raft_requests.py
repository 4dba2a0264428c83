"""Proposals, apply and reads: what a client may be told, and when."""

import random
from collections.abc import Sequence
from functools import partial

import pytest
from raft_harness import CALM, Cluster, MemoryStore

from ledger.internal.v1.peer_pb2 import RAFT_MESSAGE_TYPE_APPEND_ENTRIES_REPLY, RaftMessage
from ledger_node.raft import FatalRaftError, ProposalOutcome, RaftGroup, applying


def test_a_proposal_is_acknowledged_once_a_majority_has_it_on_disk() -> None:
    c = Cluster("ABC")
    c.elect("A", "BC")
    c.sync("A", "BC")
    c.propose("A", b"x")
    assert c.outcome(b"x") is None
    append = c.take("A", "B")
    assert c.hosts["B"].turn(c.now, [("A", append[0])], die=True) is None
    c.boot("B")
    c.turn("A")
    assert c.outcome(b"x") is None
    c.turn("B", [("A", append[0])])
    c.deliver("B", "A")
    assert c.acks[b"x"] == (ProposalOutcome.APPLIED, 3, 3)
    assert c.stores["A"].disk.entries[-1] == c.stores["B"].disk.entries[-1] == (1, b"\0x")


def test_nothing_is_released_by_a_turn_that_was_not_committed() -> None:
    c = Cluster("ABC")
    c.elect("A", "BC")
    c.sync("A", "BC")
    c.propose("A", b"x")
    c.deliver("A", "B")
    replies = c.take("B", "A")
    assert c.hosts["A"].turn(c.now, [("B", m) for m in replies], die=True) is None
    assert c.outcome(b"x") is None
    c.boot("A")
    assert c.state("A") == []
    c.elect("B", "C")
    c.sync("B", "AC")
    assert c.state("A") == [b"x"]


def test_a_follower_takes_no_proposals_and_no_reads() -> None:
    c = Cluster("ABC")
    c.elect("A", "BC")
    c.sync("A", "BC")
    c.propose("B", b"x")
    c.read("B", "r")
    assert c.acks[b"x"] == (ProposalOutcome.NOT_LEADER, 0, None)
    assert c.reads["r"] == (False, c.group("B").applied_index)
    assert not c.links["B", "A"], "followers forward nothing"


def test_losing_leadership_leaves_the_outcome_unknown() -> None:
    c = Cluster("ABC")
    c.elect("A", "BC")
    c.sync("A", "BC")
    c.propose("A", b"kept", b"kept too")
    c.deliver("A", "C")
    c.links.clear()
    c.elect("C", "AB")
    assert c.outcome(b"kept") is ProposalOutcome.UNKNOWN
    c.sync("C", "AB")
    assert c.state("A") == [b"kept", b"kept too"], "unknown may mean applied"
    assert len(c.acks) == 2, "and it is told once"


def test_a_result_never_goes_to_another_proposal_at_the_same_index() -> None:
    c = Cluster("ABC")
    c.elect("A", "BC")
    c.sync("A", "BC")
    c.isolate("A", "BC")
    c.propose("A", b"old")
    c.elect("B", "C")
    c.sync("B", "C")
    c.heal()
    c.elect("B", "AC")
    c.propose("B", b"new")
    c.sync("B", "AC")
    c.elect("A", "BC")
    c.propose("A", b"newest")
    c.sync("A", "BC")
    assert c.outcome(b"old") is ProposalOutcome.UNKNOWN
    assert c.state("A") == [b"new", b"newest"]
    for payload in (b"new", b"newest"):
        outcome, index, _ = c.acks[payload]
        assert outcome is ProposalOutcome.APPLIED
        assert c.stores["A"].disk.state[index] == payload


def test_apply_is_resumed_after_a_restart_and_repeats_nothing() -> None:
    c = Cluster("ABC")
    c.elect("A", "BC")
    c.propose("A", b"1", b"2")
    c.sync("A", "BC")
    for name in c.names:
        c.boot(name)
        assert c.group(name).applied_index == c.stores[name].disk.applied
    c.elect("B", "AC")
    c.propose("B", b"3")
    c.sync("B", "AC")
    assert [c.state(name) for name in c.names] == [[b"1", b"2", b"3"]] * 3


def test_apply_is_bounded_per_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applying, "APPLY_ENTRIES_MAX", 2)
    c = Cluster("A")
    c.campaign("A")
    c.propose("A", b"1", b"2", b"3")
    assert c.group("A").has_pending_work
    assert c.state("A") == [b"1", b"2"]
    c.turn("A")
    assert c.state("A") == [b"1", b"2", b"3"]
    assert not c.group("A").has_pending_work
    monkeypatch.setattr(applying, "APPLY_BYTES_MAX", 3)
    c.propose("A", b"xx", b"yy")
    assert c.state("A")[3:] == [b"xx"]


def test_an_exception_in_apply_passes_through_and_applies_nothing_twice() -> None:
    store = MemoryStore()
    calls: list[bytes] = []

    def apply(entries: Sequence[tuple[int, bytes]], _wanted: bool) -> Sequence[int]:
        calls.extend(payload for _index, payload in entries)
        raise RuntimeError("broken")

    group = RaftGroup(
        shard_id=1,
        self_id="A",
        peer_ids=[],
        log=store,
        apply=apply,
        timing=CALM,
        rng=random.Random(1),
        now=0.0,
    )
    group.tick(1e6)
    group.propose(1e6, b"x", lambda outcome, index, result: None)
    group.tick(1e6)
    with pytest.raises(RuntimeError, match="broken"):
        group.apply(1e6)
    assert calls == [b"x"]
    assert group.take_completions() == []


def test_a_payload_above_the_bound_is_refused_before_anything_happens() -> None:
    c = Cluster("A")
    c.campaign("A")
    with pytest.raises(ValueError, match="at most"):
        c.propose("A", b"x" * (RaftGroup.PAYLOAD_BYTES_MAX + 1))
    c.propose("A", b"x" * RaftGroup.PAYLOAD_BYTES_MAX, b"")
    c.turn("A")
    assert c.state("A")[1] == b""


# Reads: thesis, section 6.4.


def reading_cluster() -> Cluster:
    c = Cluster("ABC")
    c.elect("A", "BC")
    c.sync("A", "BC")
    return c


def test_a_read_needs_a_round_that_began_after_it() -> None:
    c = reading_cluster()
    c.heartbeat("A")
    for name in "BC":
        c.deliver("A", name)
    c.read("A", "r")
    c.deliver("B", "A")  # answers of the round before
    c.deliver("C", "A")
    assert c.reads == {}
    c.deliver("A", "B")
    c.deliver("B", "A")
    assert c.reads["r"] == (True, c.group("A").applied_index)


def test_a_read_needs_a_majority_of_answers() -> None:
    c = Cluster("ABCDE")
    c.elect("A", "BCDE")
    c.sync("A", "BCDE")
    c.read("A", "r")
    c.deliver("A", "B")
    c.deliver("B", "A", keep=True)
    c.deliver("B", "A")
    assert c.reads == {}
    c.deliver("A", "C")
    c.deliver("C", "A")
    assert c.reads["r"][0]


def test_a_deposed_leader_serves_no_read() -> None:
    c = reading_cluster()
    c.elect("B", "C")
    c.drop("B", "A")
    c.propose("B", b"new")
    c.drop("B", "A")
    c.sync("B", "C")
    c.links.clear()
    assert c.outcome(b"new") is ProposalOutcome.APPLIED
    c.read("A", "r")
    assert c.reads == {}
    c.deliver("A", "C")
    c.deliver("C", "A")
    assert c.reads["r"][0] is False


def test_answers_of_another_term_confirm_no_read() -> None:
    c = reading_cluster()
    c.read("A", "r")
    answer = RaftMessage(
        shard_id=7,
        type=RAFT_MESSAGE_TYPE_APPEND_ENTRIES_REPLY,
        term=c.group("A").term - 1,
        ok=True,
        round=99,
        match_index=1,
    )
    c.turn("A", [("B", answer), ("C", answer)])
    assert c.reads == {}


def test_a_new_leader_reads_only_after_its_no_op() -> None:
    """It may not know yet what earlier leaders committed."""
    c = reading_cluster()
    c.propose("A", b"x")
    c.deliver("A", "B")
    c.deliver("B", "A")
    assert c.outcome(b"x") is ProposalOutcome.APPLIED
    c.links.clear()
    c.elect("B", "C")
    assert c.state("B") == []
    assert not c.group("B").serving
    c.read("B", "r")
    term = c.group("B").term
    for name in "AC":  # the round is confirmed, but no entry is
        answer = RaftMessage(
            shard_id=7,
            type=RAFT_MESSAGE_TYPE_APPEND_ENTRIES_REPLY,
            term=term,
            round=99,
            log_index=1,
        )
        c.turn("B", [(name, answer)])
    assert c.reads == {}
    c.links.clear()
    c.sync("B", "AC")
    ok, applied = c.reads["r"]
    assert ok
    assert applied >= c.acks[b"x"][1]
    assert c.state("B") == [b"x"]


def test_a_read_waits_until_its_index_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applying, "APPLY_ENTRIES_MAX", 1)
    c = Cluster("A")
    c.campaign("A")
    c.turn("A")
    c.propose("A", b"1", b"2", b"3")
    c.read("A", "r")
    assert c.reads == {}
    c.turn("A")
    assert c.reads["r"] == (True, 5)


def test_reads_of_one_turn_share_a_round() -> None:
    c = reading_cluster()

    def ask(group: RaftGroup[int], now: float) -> None:
        for i in range(50):
            group.read_index(now, partial(done, str(i)))

    def done(key: str, ok: bool, applied: int) -> None:
        c.reads[key] = (ok, applied)

    c.turn("A", work=[ask])
    assert len(c.links["A", "B"]) == len(c.links["A", "C"]) == 1
    c.quiesce()
    assert len(c.reads) == 50
    assert not c.links["A", "B"]


def test_a_read_whose_round_was_lost_is_served_by_the_next_heartbeat() -> None:
    c = reading_cluster()
    c.read("A", "r")
    c.links.clear()
    c.sync("A", "B", rounds=1)
    assert c.reads["r"][0]


def test_a_message_for_another_shard_stops_the_process() -> None:
    c = reading_cluster()
    with pytest.raises(FatalRaftError, match="another shard"):
        c.turn("A", [("B", RaftMessage(shard_id=8))])

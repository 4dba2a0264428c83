"""The log: matching, truncation, commit, catching up. Each test is named after its rule."""

import pytest
from raft_harness import Cluster

from ledger.internal.v1.peer_pb2 import (
    RAFT_MESSAGE_TYPE_APPEND_ENTRIES,
    RAFT_MESSAGE_TYPE_APPEND_ENTRIES_REPLY,
    LogEntry,
    RaftMessage,
)
from ledger_node.raft import FatalRaftError, ProposalOutcome, applying, progress, replica


def append(
    term: int, prev: tuple[int, int], commit: int, *entries: tuple[int, bytes]
) -> RaftMessage:
    """An append of `entries` (term, payload) after the entry `prev` (index, term)."""
    return RaftMessage(
        shard_id=7,
        type=RAFT_MESSAGE_TYPE_APPEND_ENTRIES,
        term=term,
        log_index=prev[0],
        log_term=prev[1],
        commit_index=commit,
        entries=[LogEntry(term=term, payload=payload) for term, payload in entries],
    )


def test_entries_that_match_are_never_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "MESSAGE_ENTRIES_MAX", 1)
    monkeypatch.setattr(replica, "FLUSH_MESSAGES_MAX", 10)
    c = Cluster("LFG")
    c.elect("L", "FG")
    c.sync("L", "FG")
    c.isolate("G", "LF")
    payloads = [b"tx%d" % i for i in range(6)]
    c.propose("L", *payloads)
    assert len(c.links["L", "F"]) == 6
    c.deliver("L", "F", count=1, keep=True)  # an early message comes again, late
    late = RaftMessage.FromString(c.links["L", "F"][0])
    c.deliver("L", "F")
    c.deliver("F", "L")
    assert {c.outcome(payload) for payload in payloads} == {ProposalOutcome.APPLIED}
    c.turn("F", [("L", late)])
    assert c.group("F").last_index == c.group("L").last_index
    # The leader is gone; the follower has to bring everything that was acknowledged.
    c.heal()
    c.isolate("L", "FG")
    c.elect("F", "G")
    c.sync("F", "G", rounds=6)
    assert c.state("G") == payloads


def test_truncation_starts_at_the_first_conflict() -> None:
    c = Cluster("ABC")
    c.turn("A", [("B", append(1, (1, 0), 1, (1, b"\0a"), (1, b"\0b"), (1, b"\0c")))])
    c.turn("A", [("C", append(2, (1, 0), 1, (1, b"\0a"), (2, b"\0d")))])
    assert c.stores["A"].disk.entries[1:] == [(1, b"\0a"), (2, b"\0d")]
    reply = c.take("A", "C")[-1]
    assert (reply.ok, reply.match_index) == (True, 3)


def test_an_append_that_leaves_a_gap_is_refused_with_a_hint() -> None:
    c = Cluster("ABC")
    c.turn("A", [("B", append(1, (5, 1), 5, (1, b"\0x")))])
    reply = c.take("A", "B")[-1]
    assert (reply.ok, reply.hint_index, reply.log_index) == (False, 2, 5)
    assert c.group("A").commit_index == 1


def test_a_conflict_hint_skips_the_run_of_a_term() -> None:
    c = Cluster("ABC")
    c.turn("A", [("B", append(1, (1, 0), 1, (1, b"\0a"), *[(1, b"\0o")] * 4))])
    c.turn("A", [("B", append(2, (6, 1), 2, *[(2, b"\0p")] * 4))])
    c.turn("A", [("C", append(5, (10, 4), 2))])
    assert c.take("A", "C")[-1].hint_index == 7
    c.turn("A", [("C", append(5, (5, 4), 2))])
    assert c.take("A", "C")[-1].hint_index == 3, "not at or below the commit index"


def test_truncating_a_committed_entry_stops_the_process() -> None:
    c = Cluster("ABC")
    c.turn("A", [("B", append(1, (1, 0), 3, (1, b"\0a"), (1, b"\0b")))])
    assert c.group("A").commit_index == 3
    with pytest.raises(FatalRaftError, match="committed entry 3"):
        c.turn("A", [("C", append(2, (2, 1), 3, (2, b"\0z")))])
    c.boot("A")
    with pytest.raises(FatalRaftError, match="committed entry 3"):
        c.turn("A", [("C", append(2, (3, 2), 3))])


def test_commit_covers_only_what_the_append_verified() -> None:
    c = Cluster("ABC")
    c.turn("A", [("B", append(1, (1, 0), 1, (1, b"\0a"), (1, b"\0orphan"), (1, b"\0orphan2")))])
    c.turn("A", [("C", append(2, (2, 1), 9))])
    assert c.group("A").commit_index == 2
    assert c.state("A") == [b"a"]


def test_an_unverified_append_commits_nothing() -> None:
    c = Cluster("ABC")
    c.turn("A", [("B", append(1, (1, 0), 1, (1, b"\0a")))])
    c.turn("A", [("C", append(2, (2, 2), 9))])
    assert c.group("A").commit_index == 1


def test_the_commit_index_never_falls() -> None:
    c = Cluster("ABC")
    c.turn("A", [("B", append(1, (1, 0), 3, (1, b"\0a"), (1, b"\0b")))])
    c.turn("A", [("B", append(1, (1, 0), 1))])
    c.turn("A", [("B", append(1, (2, 1), 2))])
    assert c.group("A").commit_index == 3


def test_a_deposed_leader_does_not_acknowledge_what_others_did_not_commit() -> None:
    c = Cluster("ABC")
    c.elect("A", "BC")
    c.sync("A", "BC")
    c.isolate("A", "BC")
    c.propose("A", b"refund")
    c.elect("B", "C")
    c.propose("B", b"r1", b"r2", b"r3")
    c.sync("B", "C")
    c.heal()
    c.sync("B", "AC")
    assert c.outcome(b"refund") is ProposalOutcome.UNKNOWN
    assert c.state("A") == [b"r1", b"r2", b"r3"]


def test_confirmations_of_an_earlier_leadership_do_not_count() -> None:
    c = Cluster("LFMNO")
    c.elect("L", "FMNO")
    c.sync("L", "FMNO")
    c.propose("L", *[b"old%d" % i for i in range(4)])
    c.deliver("L", "F")
    held = c.take("F", "L")
    for name in "LFMNO":
        c.drop(name)
    c.elect("M", "NO")
    c.sync("M", "LFNO")
    c.elect("L", "NO")
    c.sync("L", "FMNO")
    c.isolate("L", "FMNO")
    c.propose("L", *[b"new%d" % i for i in range(4)])
    assert any(message.ok for message in held)
    for message in held:
        c.turn("L", [("F", message)])
        c.turn("L", [("M", message)])
    assert not any(payload.startswith(b"new") for payload in c.acks)


def test_an_entry_of_an_earlier_term_is_not_committed_by_counting() -> None:
    """Raft paper, figure 8."""
    c = Cluster("ABCDE")
    c.elect("A", "BC")
    c.drop("A")
    c.propose("A", b"x")
    c.sync("A", "B", rounds=1)
    c.deliver("A", "B")
    c.links.clear()
    assert c.terms("B") == [0, 1, 1]
    c.campaign("E")  # term 1: C has voted for A
    c.links.clear()
    c.elect("E", "CD")
    c.deliver("E", "A", count=1)  # the vote request: A refuses it, but is deposed
    c.links.clear()
    c.elect("A", "BCD")
    assert c.terms("A") == [0, 1, 1, 3]
    # A majority gets x, but not the no-op of this term.
    term = c.group("A").term
    c.links.clear()
    for name in "BC":
        reply = RaftMessage(
            shard_id=7,
            type=RAFT_MESSAGE_TYPE_APPEND_ENTRIES_REPLY,
            term=term,
            ok=True,
            match_index=3,
        )
        c.turn("A", [(name, reply)])
    c.turn("A")
    assert c.group("A").commit_index == 1
    for name in "BC":
        reply.match_index = 4
        c.turn("A", [(name, reply)])
    assert c.group("A").commit_index == 4


def test_a_follower_with_an_orphan_entry_catches_up_under_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica, "MESSAGE_BYTES_MAX", 64_000)
    c = Cluster("ABC")
    c.elect("A", "BC")
    c.sync("A", "BC")
    c.isolate("A", "BC")
    c.propose("A", b"orphan")
    c.elect("B", "C")
    for i in range(12):
        c.propose("B", b"%d" % i + b"z" * 30_000)
        c.sync("B", "C", rounds=1)
    c.heal()
    for i in range(10):
        c.propose("B", b"more%d" % i)
        c.sync("B", "AC", rounds=1)
    c.sync("B", "AC")
    assert c.stores["A"].disk.entries == c.stores["B"].disk.entries
    assert c.group("A").applied_index == c.group("B").last_index


@pytest.mark.parametrize("lost", range(6))
def test_replication_heals_when_any_message_is_lost(
    monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    monkeypatch.setattr(replica, "MESSAGE_ENTRIES_MAX", 1)
    monkeypatch.setattr(replica, "FLUSH_MESSAGES_MAX", 10)
    for source, target in (("A", "B"), ("B", "A")):
        c = Cluster("AB")
        c.elect("A", "B")
        c.sync("A", "B")
        c.propose("A", *[b"%d" % i for i in range(6)])
        if source == "B":
            c.deliver("A", "B")
        queue = c.links[source, target]
        assert len(queue) == 6
        del queue[lost]
        c.deliver("A", "B")
        c.deliver("B", "A")
        c.sync("A", "B", rounds=3)
        assert len(c.acks) == 6
        assert c.stores["A"].disk.entries == c.stores["B"].disk.entries


def test_what_is_under_way_to_a_silent_peer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "MESSAGE_BYTES_MAX", 1000)
    monkeypatch.setattr(progress, "WINDOW_BYTES_MAX", 5000)
    c = Cluster("AB")
    c.elect("A", "B")
    c.sync("A", "B")
    for i in range(40):
        c.propose("A", b"%02d" % i + b"x" * 498)
    c.sync("A", "")
    sent = c.take("A", "B")
    assert 5000 <= sum(len(m.SerializeToString()) for m in sent) < 8000
    assert all(len(m.SerializeToString()) < 1200 for m in sent)
    c.sync("A", "B", rounds=12)
    assert len(c.acks) == 40


def test_entries_under_way_are_bounded_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "MESSAGE_ENTRIES_MAX", 3)
    monkeypatch.setattr(progress, "WINDOW_ENTRIES_MAX", 7)
    c = Cluster("AB")
    c.elect("A", "B")
    c.sync("A", "B")
    c.propose("A", *[b"%d" % i for i in range(30)])
    for _ in range(10):
        c.turn("A")
    assert 7 <= sum(len(m.entries) for m in c.take("A", "B")) <= 9
    c.sync("A", "B", rounds=20)
    assert len(c.acks) == 30


def test_a_probed_peer_gets_one_message_with_entries_at_a_time() -> None:
    c = Cluster("ABC")
    c.elect("A", "B")
    for i in range(20):
        c.propose("A", b"%d" % i)
        c.heartbeat("A")
    assert sum(len(m.entries) > 0 for m in c.take("A", "C")) == 1


def test_a_leader_says_when_more_remains_to_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "MESSAGE_ENTRIES_MAX", 1)
    monkeypatch.setattr(replica, "FLUSH_MESSAGES_MAX", 2)
    c = Cluster("AB")
    c.elect("A", "B")
    c.sync("A", "B")
    assert not c.group("A").has_pending_work
    c.propose("A", b"1", b"2", b"3")
    assert len(c.links["A", "B"]) == 2
    assert c.group("A").has_pending_work
    c.turn("A")
    assert len(c.links["A", "B"]) == 3
    assert not c.group("A").has_pending_work


def test_a_link_that_comes_back_resumes_after_what_was_confirmed() -> None:
    c = Cluster("AB")
    c.elect("A", "B")
    c.sync("A", "B")
    c.propose("A", b"x")
    c.group("A").peer_disconnected("B")
    c.drop("A")
    c.propose("A", b"y")
    assert not c.links["A", "B"]
    c.group("A").peer_connected("B")
    c.turn("A")
    c.quiesce()
    assert [c.outcome(p) for p in (b"x", b"y")] == [ProposalOutcome.APPLIED] * 2


def test_heartbeats_need_no_more_than_a_tick_per_period() -> None:
    """A host that ticks every heartbeat, give or take, never skips one."""
    c = Cluster("AB")
    c.elect("A", "B")
    c.sync("A", "B")
    for jitter in (0.0, 0.02, -0.02, 0.01, -0.03):
        c.now += 0.15 + jitter
        c.turn("A")
        assert len(c.take("A", "B")) == 1
        c.turn("A")
        assert not c.take("A", "B")


def test_the_heartbeats_of_all_groups_of_a_node_fall_together() -> None:
    clusters = [Cluster("AB") for _ in range(4)]
    for i, c in enumerate(clusters):
        c.now += 0.05 * i
        c.elect("A", "B")
    now = clusters[-1].now
    sent: list[int] = []
    for _ in range(60):
        now += 0.0501
        for c in clusters:
            c.now = now
            c.turn("A")
            c.deliver("A", "B", keep=True)
        sent.append(sum(len(c.take("A", "B")) for c in clusters))
        for c in clusters:
            c.deliver("B", "A")
    assert set(sent[10:]) == {0, 4}
    assert sent[10:].count(4) in range(15, 19)


def test_a_follower_knows_how_current_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applying, "APPLY_ENTRIES_MAX", 1)
    c = Cluster("ABC")
    assert c.group("B").current_at is None
    c.elect("A", "BC")
    c.sync("A", "BC")
    assert c.group("A").current_at == c.group("B").current_at == c.now
    c.propose("A", b"1", b"2", b"3")
    c.deliver("A", "B")
    c.deliver("B", "A")
    before = c.now
    c.heartbeat("A")
    c.deliver("A", "B")
    learned = c.now
    assert c.group("B").current_at == before
    c.now += 0.05
    c.turn("B")
    assert c.group("B").current_at == before
    c.turn("B")
    assert c.group("B").applied_index == c.group("B").commit_index
    assert c.group("B").current_at == learned


def test_a_confirmation_beyond_the_log_stops_the_process() -> None:
    c = Cluster("ABC")
    c.elect("A", "BC")
    lie = RaftMessage(
        shard_id=7,
        type=RAFT_MESSAGE_TYPE_APPEND_ENTRIES_REPLY,
        term=c.group("A").term,
        ok=True,
        match_index=99,
    )
    with pytest.raises(FatalRaftError, match="entries we lack"):
        c.turn("A", [("B", lie)])

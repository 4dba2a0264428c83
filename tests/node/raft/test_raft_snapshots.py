"""Log compaction, and followers whose entries are gone."""

import zlib
from collections.abc import Callable

import pytest
from raft_harness import Cluster

from ledger.internal.v1.peer_pb2 import (
    RAFT_MESSAGE_TYPE_APPEND_ENTRIES,
    RAFT_MESSAGE_TYPE_SNAPSHOT,
    RAFT_MESSAGE_TYPE_SNAPSHOT_REPLY,
    LogEntry,
    RaftMessage,
)
from ledger_node.raft import FatalRaftError, LogLimits, ProposalOutcome, Role, replica, snapshots


@pytest.fixture(autouse=True)
def _row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "CHUNK_BYTES", 1)


def led_by_a(keep_entries: int = 2, names: str = "ABC") -> Cluster:
    c = Cluster(names, log_limits=LogLimits(keep_entries=keep_entries))
    c.elect("A", names[1:])
    c.sync("A", names[1:])
    return c


def behind(writes: int = 8, keep_entries: int = 2) -> Cluster:
    """A leads, and C lacks entries that A has dropped."""
    c = led_by_a(keep_entries)
    c.isolate("C", "AB")
    # No longer heard, so nothing is kept for it.
    c.group("A").peer_disconnected("C")
    write(c, writes)
    c.heal()
    c.group("A").peer_connected("C")
    assert c.group("A").first_index > c.group("C").last_index
    return c


def write(c: Cluster, writes: int, followers: str = "B") -> None:
    for number in range(writes):
        c.propose("A", b"%d at %d" % (number, c.group("A").last_index))
        c.sync("A", followers, rounds=1)
    c.sync("A", followers)


def assert_equal(c: Cluster) -> None:
    states = [c.stores[name].disk.state for name in c.names]
    assert all(state == states[0] for state in states)
    assert [c.group(name).applied_index for name in c.names] == [c.group("A").last_index] * 3


def chunks(c: Cluster, src: str = "A", dst: str = "C") -> list[RaftMessage]:
    """Take the chunks off a link; lose the rest."""
    return [m for m in c.take(src, dst) if m.type == RAFT_MESSAGE_TYPE_SNAPSHOT]


def next_chunk(c: Cluster) -> RaftMessage:
    """Let A and C talk until the next chunk is on its way, and take it off the link."""
    for _ in range(100):
        if not c.links["A", "C"]:
            c.deliver("C", "A")
        if not c.links["A", "C"]:
            c.heartbeat("A")
        message = RaftMessage.FromString(c.links["A", "C"].popleft())
        if message.type == RAFT_MESSAGE_TYPE_SNAPSHOT:
            return message
        c.turn("C", [("A", message)])
    raise AssertionError("no chunk")


# Compaction.


def test_a_log_keeps_what_its_limits_say() -> None:
    c = led_by_a(keep_entries=4)
    write(c, 20, "BC")
    for name in c.names:
        group = c.group(name)
        assert group.last_index - group.first_index == 4
        assert c.stores[name].disk.first == group.first_index
    assert_equal(c)


def test_a_log_is_compacted_by_size_as_well() -> None:
    c = Cluster("A", log_limits=LogLimits(keep_bytes=1000))
    c.campaign("A")
    for number in range(30):
        c.propose("A", b"%099d" % number)
    assert 8 <= c.group("A").last_index - c.group("A").first_index <= 10


def test_one_tick_drops_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "COMPACT_ENTRIES_MAX", 3)
    c = Cluster("A", log_limits=LogLimits(keep_entries=1))
    c.campaign("A")
    c.propose("A", *(b"%d" % number for number in range(50)))
    assert c.group("A").first_index == 2
    c.turn("A")
    assert c.group("A").first_index == 5


def test_what_is_not_applied_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    c = led_by_a(keep_entries=1)
    c.propose("A", *(b"%d" % number for number in range(50)))
    assert c.group("A").applied_index == 2
    assert c.group("A").first_index <= 2


def test_a_live_follower_finds_what_it_needs_next() -> None:
    c = led_by_a(keep_entries=4)
    c.cut = {("C", "A")}
    write(c, 5)
    assert c.group("A").first_index == 2
    # But not for ever.
    write(c, 20)
    assert c.group("A").first_index > 2


def test_a_compacted_replica_restarts_where_it_was() -> None:
    c = led_by_a()
    write(c, 10, "BC")
    firsts = [c.group(name).first_index for name in c.names]
    for name in c.names:
        c.boot(name)
    assert [c.group(name).first_index for name in c.names] == firsts
    assert [c.group(name).applied_index for name in c.names] == [12, 12, 12]
    c.elect("B", "C")
    c.sync("B", "AC")
    c.propose("B", b"y")
    c.sync("B", "AC")
    assert c.outcome(b"y") is ProposalOutcome.APPLIED
    assert_equal(c)


def test_a_log_that_ends_in_a_no_op_restarts_after_it() -> None:
    c = led_by_a()
    assert c.group("A").applied_index == 2
    c.boot("A")
    assert c.group("A").applied_index == 2
    assert c.group("A").commit_index == 2


@pytest.mark.parametrize("lag", range(1, 12))
def test_a_follower_at_any_distance_from_the_edge_catches_up(lag: int) -> None:
    c = led_by_a(keep_entries=5)
    c.isolate("C", "AB")
    c.group("A").peer_disconnected("C")
    write(c, lag)
    # With its last entry at our marker, it needs no snapshot.
    gone = c.group("C").last_index < c.group("A").first_index
    assert gone == (lag > 5)
    c.heal()
    c.group("A").peer_connected("C")
    c.sync("A", "BC", rounds=30)
    assert_equal(c)
    assert c.stores["C"].take_installs() == gone


def test_a_follower_with_orphans_is_asked_at_the_marker_before_a_snapshot() -> None:
    """Its hint lies far back, since the run of its orphans' term begins there."""
    c = led_by_a(keep_entries=3)
    c.propose("A", b"3", b"4", b"5")
    c.deliver("A", "B")
    c.deliver("A", "C")
    c.isolate("A", "BC")
    c.propose("A", *(b"orphan %d" % number for number in range(5)))
    assert (c.group("A").commit_index, c.group("A").last_index) == (2, 10)
    for name in "BC":
        c.group(name).peer_disconnected("A")
    c.elect("B", "C")
    c.sync("B", "C")
    c.propose("B", b"7")
    c.sync("B", "C")
    c.elect("C", "B")
    c.sync("C", "B")
    assert c.group("C").first_index == 5
    c.heal()
    c.group("C").peer_connected("A")
    c.sync("C", "AB", rounds=10)
    assert c.state("A") == [b"3", b"4", b"5", b"7"]
    assert c.stores["A"].take_installs() == 0


def test_entries_before_the_log_are_known_to_match() -> None:
    c = led_by_a()
    write(c, 10, "BC")
    old = RaftMessage(
        shard_id=7,
        type=RAFT_MESSAGE_TYPE_APPEND_ENTRIES,
        term=1,
        log_index=2,
        log_term=1,
        entries=[LogEntry(term=1, payload=b"\0old")] * 3,
        commit_index=5,
    )
    c.turn("C", [("A", old)])
    reply = c.take("C", "A")[-1]
    assert (reply.ok, reply.match_index) == (True, 5)
    assert b"old" not in c.state("C")


def test_a_leader_that_contradicts_the_marker_stops_the_process() -> None:
    c = led_by_a()
    write(c, 10, "BC")
    first = c.group("C").first_index
    lie = RaftMessage(
        shard_id=7,
        type=RAFT_MESSAGE_TYPE_APPEND_ENTRIES,
        term=1,
        log_index=first - 1,
        log_term=1,
        entries=[LogEntry(term=0, payload=b"\0lie")],
    )
    with pytest.raises(FatalRaftError, match="contradicts"):
        c.turn("C", [("A", lie)])


# Snapshots.


def test_a_follower_whose_entries_are_gone_gets_a_snapshot() -> None:
    c = behind()
    c.sync("A", "BC", rounds=20)
    assert_equal(c)
    assert c.stores["C"].take_installs() == 1
    assert c.stores["C"].disk.spare is None
    assert all(reader.closed for reader in c.stores["A"].readers)


def test_a_state_without_rows_is_a_snapshot_too() -> None:
    c = led_by_a()
    c.isolate("C", "AB")
    c.group("A").peer_disconnected("C")
    for leader, follower in ("BA", "AB") * 4:
        c.elect(leader, follower)
        c.sync(leader, follower)
    assert c.group("A").first_index > c.group("C").last_index
    c.heal()
    c.group("A").peer_connected("C")
    c.sync("A", "BC", rounds=20)
    assert_equal(c)


def test_the_group_goes_on_writing_meanwhile_and_keeps_what_follows() -> None:
    c = behind()
    for number in range(7):
        c.propose("A", b"meanwhile %d" % number)
        c.sync("A", "B", rounds=1)
        c.deliver("A", "C", 2)
        c.deliver("C", "A")
    c.sync("A", "BC", rounds=20)
    assert_equal(c)
    assert c.stores["C"].take_installs() == 1


@pytest.mark.parametrize("lost", range(16))
@pytest.mark.parametrize("way", ["lost", "doubled", "delayed", "reply lost", "damaged"])
def test_any_message_of_a_stream_may_be(way: str, lost: int) -> None:
    """Lost, doubled, overtaken, or damaged: the stream heals, and the state is the same."""
    c = behind()
    count = 0
    held: list[RaftMessage] = []
    for _ in range(40):
        c.heartbeat("A")
        for message in c.take("A", "C"):
            again = [message]
            if message.type == RAFT_MESSAGE_TYPE_SNAPSHOT:
                if count == lost and way == "damaged":
                    damaged = RaftMessage()
                    damaged.CopyFrom(message)
                    damaged.chunk.rows += b"1=forged\n"
                    again = [damaged]
                elif count == lost:
                    again = {"lost": [], "doubled": [message] * 2, "delayed": []}.get(way, again)
                    held += [message] if way == "delayed" else []
                elif held:
                    again += [held.pop()]
                count += 1
            c.turn("C", [("A", item) for item in again])
        if way == "reply lost" and count == lost:
            c.drop("C", "A")
        c.deliver("C", "A")
        c.sync("A", "B", rounds=1)
    assert count > 8
    assert_equal(c)
    assert c.stores["C"].take_installs() == 1


def test_a_stream_that_lies_about_the_whole_is_not_installed() -> None:
    c = behind()
    before = dict(c.stores["C"].disk.state)
    forged = next_chunk(c)
    forged.chunk.rows = b"2=forged\n"
    forged.chunk.checksum = zlib.crc32(forged.chunk.rows)
    c.turn("C", [("A", forged)])
    for _ in range(15):
        c.deliver("C", "A")
        c.heartbeat("A")
        for message in c.take("A", "C"):
            c.turn("C", [("A", message)])
        if c.group("C").installing_bytes == 0:
            break
    assert c.stores["C"].disk.state == before
    assert c.stores["C"].take_installs() == 0
    c.sync("A", "BC", rounds=30)
    assert_equal(c)


def test_a_new_leader_starts_over() -> None:
    c = behind()
    for _ in range(2):
        c.turn("C", [("A", next_chunk(c))])
    assert c.group("C").installing_bytes > 0
    late = next_chunk(c)
    c.isolate("A", "BC")
    c.elect("B", "C")
    c.sync("B", "C", rounds=20)
    c.turn("C", [("A", late)])
    assert c.stores["C"].disk.state == c.stores["B"].disk.state
    assert c.stores["C"].take_installs() == 1
    c.heal()
    c.sync("B", "AC", rounds=20)
    assert_equal(c)


def test_a_newer_snapshot_takes_the_place_of_an_older(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "IDLE_S_MAX", 0.6)
    c = behind()
    first = next_chunk(c)
    c.turn("C", [("A", first)])
    late = next_chunk(c)
    write(c, 8)  # meanwhile the stream is given up, and a newer one begins
    c.drop("A", "C")
    c.sync("A", "BC", rounds=30)
    assert_equal(c)
    c.turn("C", [("A", first)])
    c.turn("C", [("A", late)])
    assert_equal(c)
    assert c.stores["C"].take_installs() == 1


def test_chunks_of_an_older_stream_do_not_mix_with_a_newer() -> None:
    c = behind()
    old = next_chunk(c)
    c.turn("C", [("A", old)])
    newer = RaftMessage()
    newer.CopyFrom(old)
    newer.chunk.stream += 5
    newer.chunk.index += 1
    c.turn("C", [("A", newer)])  # what the old one staged is being cleared
    c.turn("C", [("A", newer)])
    assert c.group("C")._replica._incoming is not None
    wanted = c.group("C")._replica._incoming.wanted
    assert wanted == 1
    c.drop("C")
    old.chunk.number = 1
    c.turn("C", [("A", old)])
    assert not c.take("C", "A")
    assert c.group("C")._replica._incoming.wanted == wanted


def test_a_snapshot_of_what_is_committed_is_confirmed_but_not_installed() -> None:
    c = behind()
    stale = next_chunk(c)
    c.turn("C", [("A", stale)])
    c.sync("A", "BC", rounds=20)
    write(c, 3, "BC")
    image = c.stores["C"].disk.copy()
    c.turn("C", [("A", stale)])
    reply = c.take("C", "A")[-1]
    assert reply.type == RAFT_MESSAGE_TYPE_SNAPSHOT_REPLY
    assert (reply.ok, reply.match_index) == (True, stale.chunk.index)
    assert c.stores["C"].disk == image


def test_a_log_that_leads_to_the_snapshot_is_kept() -> None:
    c = led_by_a(keep_entries=100)
    c.propose("A", b"1", b"2", b"3")
    c.deliver("A", "C")
    assert c.group("C").last_index == 5
    assert c.group("C").commit_index == 2
    message = RaftMessage(shard_id=7, type=RAFT_MESSAGE_TYPE_SNAPSHOT, term=1)
    message.chunk.stream = 1
    message.chunk.index, message.chunk.term = 4, 1
    c.turn("C", [("A", message)])
    reply = c.take("C", "A")[-1]
    assert (reply.ok, reply.match_index) == (True, 4)
    assert (c.group("C").commit_index, c.group("C").last_index) == (4, 5)
    assert c.state("C") == [b"1", b"2"]


def test_a_log_that_contradicts_the_snapshot_is_replaced() -> None:
    c = led_by_a()
    c.isolate("A", "BC")
    c.propose("A", *(b"orphan %d" % number for number in range(20)))
    c.elect("B", "C")
    for number in range(8):
        c.propose("B", b"%d" % number)
        c.sync("B", "C", rounds=1)
    c.sync("B", "C")
    c.heal()
    c.sync("B", "AC", rounds=30)
    c.propose("B", b"more")
    c.sync("B", "AC")
    assert c.stores["A"].take_installs() == 1
    assert c.state("A") == c.state("B") == c.state("C")
    assert c.outcome(b"orphan 1") is ProposalOutcome.UNKNOWN


def test_nothing_is_confirmed_before_the_switch_is_committed() -> None:
    c = behind()
    for _ in range(30):
        message = next_chunk(c)
        released = c.hosts["C"].turn(c.now, [("A", message)])
        assert released is not None
        for peer, reply in released[0]:
            if peer == "A" and reply.ok:
                assert c.stores["C"].disk.raft_applied == (reply.match_index, 1)
                return
            c.links["C", peer].append(reply.SerializeToString())
    raise AssertionError("never installed")


def turns_of_c(c: Cluster, die_at: int, after_commit: bool) -> int:
    """Let A bring C up to date; C dies in, or right after, its turn number `die_at`."""
    turns = 0
    for _ in range(60):
        c.heartbeat("A")
        for message in c.take("A", "C"):
            turns += 1
            if turns != die_at:
                c.turn("C", [("A", message)])
                continue
            before = c.stores["C"].disk.copy()
            if not after_commit:
                assert c.hosts["C"].turn(c.now, [("A", message)], die=True) is None
            else:
                c.turn("C", [("A", message)])
            c.boot("C")
            if not after_commit:
                assert c.stores["C"].disk.state == before.state
                assert c.group("C").last_index == before.last
            break
        c.deliver("C", "A")
        c.sync("A", "B", rounds=1)
        if c.group("C").applied_index == c.group("A").last_index and turns >= die_at:
            break
    return turns


@pytest.mark.parametrize("after_commit", [False, True])
def test_a_receiver_may_die_in_any_turn(after_commit: bool) -> None:
    total = turns_of_c(behind(), die_at=0, after_commit=False)
    assert total > 8
    for die_at in range(1, total + 1):
        c = behind()
        turns_of_c(c, die_at, after_commit)
        assert_equal(c)
        assert c.group("C").term == 1
        c.settle(2)
        assert c.stores["C"].disk.spare is None


@pytest.mark.parametrize("chunk", range(6))
def test_a_sender_may_die_in_any_turn(chunk: int) -> None:
    c = behind()
    for _ in range(chunk):
        c.turn("C", [("A", next_chunk(c))])
    c.boot("A")
    c.elect("A", "B")
    c.sync("A", "BC", rounds=30)
    assert_equal(c)


def test_a_wiped_replica_gets_a_snapshot_and_then_votes() -> None:
    c = led_by_a()
    write(c, 10, "BC")
    c.wipe("C")
    for _ in range(30):
        c.now += 0.2
        c.turn("C")
        c.propose("A", b"at %d" % c.group("A").last_index)
        c.sync("A", "BC", rounds=1)
        c.quiesce()
    c.sync("A", "BC")
    assert_equal(c)
    assert not c.group("C").unproven
    assert c.stores["C"].take_installs() == 1
    c.isolate("A", "BC")
    c.elect("B", "C")


# Bounds.


def test_one_chunk_goes_out_per_turn_and_a_few_ahead_of_the_answers() -> None:
    c = behind()
    c.heartbeat("A")
    c.deliver("A", "C")
    c.deliver("C", "A")
    c.drop("A")
    c.cut = {("C", "A")}
    sent = 0
    while c.group("A").has_pending_work:
        c.turn("A")
        found = chunks(c)
        assert len(found) <= 1
        sent += len(found)
        assert sent < 10
    assert sent <= snapshots.WINDOW_CHUNKS


def test_streams_of_a_node_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "STREAMS_MAX", 1)
    c = led_by_a(names="ABCDE")
    slots = c.group("A")._replica._slots
    slots._free = 1
    c.isolate("D", "ABC")
    c.isolate("E", "ABC")
    for name in "DE":
        c.group("A").peer_disconnected(name)
    write(c, 8, "BC")
    c.heal()
    for name in "DE":
        c.group("A").peer_connected(name)
    most = 0
    for _ in range(60):
        c.sync("A", "BCDE", rounds=1)
        most = max(most, len(c.group("A")._replica._outgoing))
    assert most == 1
    assert slots._free == 1
    assert c.state("D") == c.state("E") == c.state("A")


@pytest.mark.parametrize("how", ["idle", "disconnected", "deposed"])
def test_a_stream_that_ends_lets_its_reader_go(how: str) -> None:
    c = behind()
    next_chunk(c)
    (reader,) = c.stores["A"].readers
    assert not reader.closed
    ends: dict[str, Callable[[], object]] = {
        "idle": lambda: idle(c),
        "disconnected": lambda: c.group("A").peer_disconnected("C"),
        "deposed": lambda: c.elect("B", "C" if c.heal() else "A"),
    }
    ends[how]()
    assert reader.closed
    if how == "deposed":
        assert c.group("A").role is Role.FOLLOWER


def idle(c: Cluster) -> None:
    c.cut = {("C", "A")}
    c.drop("C", "A")
    for _ in range(int(snapshots.IDLE_S_MAX / c.timing.heartbeat_s) + 2):
        c.sync("A", "B", rounds=1)

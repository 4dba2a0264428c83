"""The seam to pysyncobj: what we touch must be there, and what is unsafe must be shut."""

import importlib.metadata
import inspect
import random
import re
from functools import partial
from pathlib import Path
from typing import Any

import pysyncobj.syncobj
import pytest
from pysyncobj import SyncObj
from raft_harness import CALM, Cluster, MemoryStore

import ledger_node.raft
from ledger.internal.v1.peer_pb2 import (
    RAFT_MESSAGE_TYPE_APPEND_ENTRIES,
    LogEntry,
    RaftMessage,
)
from ledger_node.raft import FatalRaftError, RaftGroup, RaftTiming
from ledger_node.raft.library import PINNED_VERSION
from ledger_node.raft.replica import Replica

SOURCE = inspect.getsource(pysyncobj.syncobj)

# Private state of SyncObj that we read or write.
STATE = {
    "_SyncObj__lastResponseTime",
    "_SyncObj__leaderCommitIndex",
    "_SyncObj__needLoadDumpFile",
    "_SyncObj__newAppendEntriesTime",
    "_SyncObj__noopIDx",
    "_SyncObj__raftCommitIndex",
    "_SyncObj__raftCurrentTerm",
    "_SyncObj__raftElectionDeadline",
    "_SyncObj__raftLastApplied",
    "_SyncObj__raftLeader",
    "_SyncObj__raftMatchIndex",
    "_SyncObj__raftState",
    "_SyncObj__transferInProgress",
    "_SyncObj__votedForNodeId",
    "_SyncObj__votesCount",
}
# Methods of SyncObj that we override or call.
METHODS = {
    "_SyncObj__applyLogEntries",
    "_SyncObj__connectedToAnyone",
    "_SyncObj__deleteEntriesFrom",
    "_SyncObj__doApplyCommand",
    "_SyncObj__doChangeCluster",
    "_SyncObj__generateRaftTimeout",
    "_SyncObj__loadDumpFile",
    "_SyncObj__onBecomeLeader",
    "_SyncObj__onMessageReceived",
    "_SyncObj__sendAppendEntries",
    "_SyncObj__sendNextNodeIdx",
    "_SyncObj__setCurrentTerm",
    "_SyncObj__setState",
    "_SyncObj__tryLogCompaction",
    "_SyncObj__updateClusterConfiguration",
    "_applyCommand",
    "_checkCommandsToApply",
    "doTick",
    "transferLeadership",
}
MODULE = {"_COMMAND_TYPE", "_RAFT_STATE", "createJournal", "createPoller", "monotonicTime"}


def group_of(store: MemoryStore, *peers: str) -> RaftGroup[int]:
    return RaftGroup(
        shard_id=7,
        self_id="A",
        peer_ids=peers,
        log=store,
        apply=store.apply,
        timing=CALM,
        rng=random.Random(1),
        now=0.0,
    )


def test_the_pinned_version_is_installed() -> None:
    assert importlib.metadata.version("pysyncobj") == PINNED_VERSION == "0.3.17"


def test_every_private_name_we_touch_exists() -> None:
    ours = "".join(path.read_text() for path in Path(ledger_node.raft.__file__).parent.glob("*.py"))
    assert set(re.findall(r"_SyncObj__\w+", ours)) - {"_SyncObj__name"} == STATE | {
        name for name in METHODS if name.startswith("_SyncObj__")
    }
    for name in METHODS:
        assert callable(getattr(SyncObj, name)), name
    for name in MODULE:
        assert hasattr(pysyncobj.syncobj, name), name
    attributes = set(re.findall(r"self\.(__\w+)", SOURCE))
    for name in STATE:
        assert name.removeprefix("_SyncObj") in attributes, name


def test_term_vote_and_role_change_through_the_methods_we_override_only() -> None:
    for attribute, setter in (
        ("raftCurrentTerm", "__setCurrentTerm"),
        ("votedForNodeId", "__setCurrentTerm"),
        ("raftState", "__setState"),
    ):
        setters = {
            name
            for name, function in inspect.getmembers(SyncObj, inspect.isfunction)
            if re.search(rf"self\.__{attribute} *[-+]?=[^=]", inspect.getsource(function))
        }
        assert setters == {"__init__", f"_SyncObj{setter}"}, attribute


def test_the_library_sees_no_real_clock_poller_or_journal() -> None:
    group_of(MemoryStore()).tick(123.0)
    assert pysyncobj.syncobj.monotonicTime() == 123.0
    with pytest.raises(FatalRaftError):
        pysyncobj.syncobj.createJournal(None)
    assert pysyncobj.syncobj.createPoller("auto").poll(0.0) is None


def test_there_are_no_utility_messages() -> None:
    replica = group_of(MemoryStore(), "B")._replica
    assert replica._transport._onUtilityMessageCallbacks == {}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("_SyncObj__onMessageReceived", (None, {"type": "apply_command"})),
        ("_SyncObj__loadDumpFile", (True,)),
        ("_SyncObj__doApplyCommand", (b"",)),
        ("_SyncObj__doChangeCluster", (("add", "X"),)),
        ("_SyncObj__updateClusterConfiguration", ([],)),
        ("_SyncObj__sendNextNodeIdx", (None,)),
        ("_SyncObj__deleteEntriesFrom", (1,)),
        ("_applyCommand", (b"", None)),
    ],
)
def test_unsafe_ways_of_the_library_stop_the_process(
    name: str, arguments: tuple[object, ...]
) -> None:
    replica = group_of(MemoryStore(), "B")._replica
    with pytest.raises(FatalRaftError):
        getattr(replica, name)(*arguments)


def test_members_do_not_change_through_the_library() -> None:
    replica = group_of(MemoryStore(), "B")._replica
    with pytest.raises(Exception, match="dynamicMembershipChange is disabled"):
        replica.removeNodeFromCluster("B")
    with pytest.raises(FatalRaftError):
        replica.setCodeVersion(0)


@pytest.mark.parametrize("kind", [2, 3, 9])
def test_entries_of_forbidden_kinds_stop_the_process(kind: int) -> None:
    c = Cluster("ABC")
    message = RaftMessage(
        shard_id=7,
        type=RAFT_MESSAGE_TYPE_APPEND_ENTRIES,
        term=1,
        log_index=1,
        entries=[LogEntry(term=1, payload=bytes([kind]) + b"rem C")],
    )
    with pytest.raises(FatalRaftError, match="neither"):
        c.turn("A", [("B", message)])
    store = MemoryStore()
    group_of(store)
    store.append(2, 0, bytes([kind]))
    group = group_of(store)
    group.tick(1e6)
    with pytest.raises(FatalRaftError, match="neither"):
        group.apply(1e6)


def test_an_entry_without_a_kind_stops_the_process() -> None:
    c = Cluster("ABC")
    message = RaftMessage(
        shard_id=7,
        type=RAFT_MESSAGE_TYPE_APPEND_ENTRIES,
        term=1,
        log_index=1,
        entries=[LogEntry(term=1)],
    )
    with pytest.raises(FatalRaftError):
        c.turn("A", [("B", message)])


def test_many_proposals_in_one_turn_fill_no_pipe() -> None:
    c = Cluster("A")
    c.campaign("A")
    group = c.group("A")
    for _ in range(66_000):
        group.propose(c.now, b"", lambda outcome, index, result: None)
    group.tick(c.now)
    group.apply(c.now)
    assert group.commit_index == 66_002


def test_time_alone_writes_nothing() -> None:
    """No compaction timer, no stored commit index: an idle group costs no fsync."""
    c = Cluster("ABC", timing=RaftTiming(), pre_vote=True, preferred_leader="A")
    c.settle(10)
    group, store = c.group("A"), c.stores["A"]
    for _ in range(4000):
        c.heartbeat("A")
        c.sync("A", "BC", rounds=0)
        for name in "BC":
            c.deliver("A", name)
            c.deliver(name, "A")
        assert not store._writes
    assert group.serving


def test_fatal_errors_are_not_caught_as_exceptions() -> None:
    assert not issubclass(FatalRaftError, Exception)


def test_timing_that_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="heartbeat"):
        RaftTiming(heartbeat_s=0.3, election_min_s=0.7, election_max_s=1.4)
    with pytest.raises(ValueError, match="heartbeat"):
        RaftTiming(election_min_s=1.4, election_max_s=0.7)


@pytest.mark.parametrize("seed", range(8))
def test_the_short_tick_of_a_follower_does_what_the_library_does(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clusters with the same chances, one of them with the library's tick everywhere."""

    def history() -> list[Any]:
        cluster = Cluster("ABC", timing=RaftTiming(), pre_vote=True, seed=seed)
        chances = random.Random(seed)
        seen: list[Any] = []
        for step in range(150):
            cluster.now += chances.choice([0.01, 0.07, 0.2])
            if step % 50 == 25:
                cluster.isolate(chances.choice("ABC"), "ABC")
            elif step % 50 == 49:
                cluster.heal()
            for name in "ABC":
                payload = bytes([1, step])
                propose = partial(_propose, payload) if chances.random() < 0.3 else None
                cluster.turn(name, work=[propose] if propose else [])
                group = cluster.group(name)
                known = (group.role, group.term, group.leader_id, group.current_at)
                log = (group.last_index, group.commit_index, group.applied_index)
                seen.append((*known, *log))
            if chances.random() < 0.8:
                cluster.quiesce()
        seen.append({link: list(queue) for link, queue in cluster.links.items()})
        return seen

    short = history()
    monkeypatch.setattr(Replica, "tick", lambda self: self.doTick(0.0))
    assert short == history()
    assert len({state[1] for state in short[:-1]}) > 1, "there was no election"


def _propose(payload: bytes, group: RaftGroup[int], now: float) -> None:
    group.propose(now, payload, lambda *_: None)

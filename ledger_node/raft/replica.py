# ruff: noqa: N802  the library's private names, in its own spelling
"""One replica: replication, snapshots and compaction, on top of apply, reads and elections."""

import math
import random
from collections.abc import Sequence
from typing import Any

from ledger.internal.v1.peer_pb2 import (
    RAFT_MESSAGE_TYPE_APPEND_ENTRIES,
    RAFT_MESSAGE_TYPE_APPEND_ENTRIES_REPLY,
    RAFT_MESSAGE_TYPE_SNAPSHOT,
    RAFT_MESSAGE_TYPE_SNAPSHOT_REPLY,
    RaftMessage,
    SnapshotChunk,
)
from ledger_node.raft.admission import Admission
from ledger_node.raft.applying import Applier, ApplyFunction
from ledger_node.raft.contract import (
    FatalRaftError,
    LogLimits,
    RaftTiming,
    Role,
    require,
)
from ledger_node.raft.journal import GroupJournal
from ledger_node.raft.library import Kind, clock
from ledger_node.raft.progress import Progress
from ledger_node.raft.snapshots import IncomingSnapshot, OutgoingSnapshot, StreamSlots

MESSAGE_BYTES_MAX = 1 << 20
MESSAGE_ENTRIES_MAX = 512
# Messages with entries to one peer in one flush, so that a turn stays short.
FLUSH_MESSAGES_MAX = 2
HINT_STEPS_MAX = 1024
# Entries that one tick may drop from the log.
COMPACT_ENTRIES_MAX = 256
# For followers that are about to need them, a leader keeps up to so many times its limits.
PINNED_MAX = 4

_ROLES = {role.value: role for role in Role}
_KNOWN_PREFIXES = (bytes([Kind.REGULAR]), bytes([Kind.NO_OP]))


class Replica(Applier):
    """One replica of one Raft group, without any input or output of its own."""

    def __init__(
        self,
        *,
        shard_id: int,
        self_id: str,
        peer_ids: Sequence[str],
        journal: GroupJournal,
        admission: Admission,
        apply: ApplyFunction,
        timing: RaftTiming,
        log_limits: LogLimits,
        slots: StreamSlots,
        rng: random.Random,
        preferred_leader: bool,
        pre_vote: bool,
    ) -> None:
        self._log_limits = log_limits
        self._slots = slots
        self._outgoing: dict[str, OutgoingSnapshot] = {}
        self._incoming: IncomingSnapshot | None = None
        self._streams_begun = 0
        self._may_compact = False
        self._heartbeat_due = False
        self.appends: list[tuple[str, RaftMessage]] = []
        super().__init__(
            shard_id=shard_id,
            self_id=self_id,
            peer_ids=peer_ids,
            journal=journal,
            admission=admission,
            apply=apply,
            timing=timing,
            rng=rng,
            preferred_leader=preferred_leader,
            pre_vote=pre_vote,
        )
        self._handlers |= {
            RAFT_MESSAGE_TYPE_APPEND_ENTRIES: self._on_append_entries,
            RAFT_MESSAGE_TYPE_APPEND_ENTRIES_REPLY: self._on_append_entries_reply,
            RAFT_MESSAGE_TYPE_SNAPSHOT: self._on_snapshot,
            RAFT_MESSAGE_TYPE_SNAPSHOT_REPLY: self._on_snapshot_reply,
        }

    # ---------------------------------------------------------------- leadership

    def _abandon_leadership(self) -> None:
        self._SyncObj__raftElectionDeadline = clock.now + self._SyncObj__generateRaftTimeout()
        self._heartbeat_due = self.unsent = False
        self._fail_waiting()
        for peer_id in list(self._outgoing):
            self._end_stream(peer_id)

    def _SyncObj__onBecomeLeader(self) -> None:
        last_index = self._journal.last_index
        for peer in self._peers.values():
            peer.reset(last_index)
        self._pre_vote_term = 0
        self._eager = False
        super()._SyncObj__onBecomeLeader()
        self.unsent = True

    # ---------------------------------------------------------------- followers: the log

    def _on_append_entries(self, now: float, peer: Progress, message: RaftMessage) -> None:
        self._hear_leader(now, peer)
        prev_index = message.log_index
        reply = self._reply_to_leader(message, RAFT_MESSAGE_TYPE_APPEND_ENTRIES_REPLY)
        # What lies before our log is committed, so this leader has it as we do.
        compacted = prev_index < self._journal.first_index
        own_term = None if compacted else self._journal.term_at(prev_index)
        if compacted or own_term == message.log_term:
            reply.ok = True
            reply.match_index = self._append(message)
            self._check_caught_up(peer, message, reply.match_index)
        else:
            reply.hint_index = self._conflict_hint(prev_index, own_term)
        reply.unproven = not self._admission.proven
        self._send(peer, reply)

    def _reply_to_leader(self, message: RaftMessage, kind: Any) -> RaftMessage:
        return RaftMessage(
            shard_id=self._shard_id,
            type=kind,
            term=message.term,
            round=message.round,
            log_index=message.log_index,
            incarnation=self._admission.incarnation,
        )

    def _append(self, message: RaftMessage) -> int:
        """Store the entries and return the last index now known to equal the leader's log."""
        journal, commit = self._journal, self._SyncObj__raftCommitIndex
        index = message.log_index
        for entry in message.entries:
            index += 1
            if index < journal.first_index:
                continue
            own_term = journal.term_at(index)
            if own_term == entry.term:
                # Held already. To cut here would lose what we may have confirmed.
                continue
            if own_term is not None:
                require(index > commit, f"leader contradicts committed entry {index}")
                journal.truncate_from(index)
            payload = entry.payload
            if payload[:1] not in _KNOWN_PREFIXES:
                raise FatalRaftError(f"entry {index} is neither command nor no-op")
            journal.add(payload, index, entry.term)
        self._SyncObj__leaderCommitIndex = message.commit_index
        self._hear_commit(message.commit_index)
        # Not beyond `index`: what follows in our log may be another leader's.
        self._SyncObj__raftCommitIndex = max(commit, min(message.commit_index, index))
        return index

    def _conflict_hint(self, prev_index: int, own_term: int | None) -> int:
        """Where the leader may try next: skip the run of the conflicting term.

        Raft paper, end of section 5.3. Everything up to the commit index is the leader's too.
        """
        commit = self._SyncObj__raftCommitIndex
        require(prev_index > commit, f"leader contradicts committed entry {prev_index}")
        if own_term is None:
            return self._journal.last_index + 1
        hint = prev_index
        lowest = max(commit + 1, prev_index - HINT_STEPS_MAX)
        while hint > lowest and self._journal.term_at(hint - 1) == own_term:
            hint -= 1
        return hint

    # ---------------------------------------------------------------- leaders: replication

    def _on_append_entries_reply(self, now: float, peer: Progress, message: RaftMessage) -> None:
        if not self._believe(now, peer, message):
            return
        journal = self._journal
        if message.ok:
            self._confirmed(peer, message.match_index)
        elif not peer.refused(message.log_index, message.hint_index, journal.first_index):
            return
        if peer.next_index <= journal.first_index or peer.may_send(journal.last_index):
            self.unsent = True

    def _believe(self, now: float, peer: Progress, message: RaftMessage) -> bool:
        """Take what every answer of a follower says; return whether the rest of it counts."""
        if self._SyncObj__raftState != Role.LEADER:
            return False
        last_index = self._journal.last_index
        if not peer.speaks(message.incarnation, message.round, self._round + 1, last_index):
            # Match falls if the follower came back empty; the commit index never does.
            self._SyncObj__raftMatchIndex[peer.node] = min(
                peer.match_index, self._SyncObj__raftMatchIndex[peer.node]
            )
            return False
        self._SyncObj__lastResponseTime[peer.node] = now
        peer.acked_round = max(peer.acked_round, message.round)
        peer.unproven = message.unproven
        return True

    def _confirmed(self, peer: Progress, match_index: int) -> None:
        require(match_index <= self._journal.last_index, "a follower confirms entries we lack")
        peer.accepted(match_index)
        self._SyncObj__raftMatchIndex[peer.node] = peer.match_index

    def _SyncObj__sendAppendEntries(self) -> None:
        """Remember that a heartbeat is due; `flush` sends, once, at the end of the turn."""
        # Some slack, so that a host that ticks every heartbeat never skips one by jitter. And
        # early, if whole multiples of the period have come round: so the groups of a node that
        # is ticked more often fall into step, and their heartbeats travel together.
        period, now = self._timing.heartbeat_s, clock.now
        in_step = math.ceil(now / period + 0.3) * period
        self._SyncObj__newAppendEntriesTime = min(now + 0.75 * period, in_step)
        self._heartbeat_due = True

    def flush(self) -> None:
        """Send what is new: entries, heartbeats, chunks, and the round waiting reads ask for."""
        if self._SyncObj__raftState != Role.LEADER:
            return
        probe = self._heartbeat_due or (bool(self._reads) and self._reads[-1][0] > self._round)
        if not (probe or self.unsent):
            return
        self._heartbeat_due = self.unsent = False
        self._round += 1
        last_index = self._journal.last_index
        # Followers that are equally far share the message object.
        built: dict[tuple[int, bool, int], tuple[RaftMessage, int]] = {}
        for peer in self._peers.values():
            if not peer.connected:
                continue
            messages = 0
            store = peer.incarnation if peer.unproven else 0
            if peer.next_index <= self._journal.first_index:
                self._send_chunk(peer)
            else:
                self._end_stream(peer.node.id)
                while messages < FLUSH_MESSAGES_MAX and peer.may_send(last_index):
                    key = (peer.next_index, True, store)
                    if key not in built:
                        built[key] = self._append_message(peer.next_index, last_index, store)
                    message, size = built[key]
                    self.appends.append((peer.node.id, message))
                    peer.sent(message.log_index + len(message.entries), size)
                    messages += 1
                if peer.may_send(last_index):
                    self.unsent = True
            if messages == 0 and probe:
                key = (peer.next_index, False, store)
                if key not in built:
                    built[key] = self._append_message(peer.next_index, 0, store)
                self.appends.append((peer.node.id, built[key][0]))

    def _append_message(
        self, next_index: int, last_index: int, peer_incarnation: int
    ) -> tuple[RaftMessage, int]:
        journal = self._journal
        # The marker is the first that can be named as the entry before.
        prev_index = max(next_index - 1, journal.first_index)
        prev_term = journal.term_at(prev_index)
        if prev_term is None:
            raise FatalRaftError("the next index of a follower is beyond the log")
        message = RaftMessage(
            shard_id=self._shard_id,
            type=RAFT_MESSAGE_TYPE_APPEND_ENTRIES,
            term=self._SyncObj__raftCurrentTerm,
            log_index=prev_index,
            log_term=prev_term,
            commit_index=self._SyncObj__raftCommitIndex,
            round=self._round,
            peer_incarnation=peer_incarnation,
        )
        size = 0
        for index in range(next_index, min(last_index, prev_index + MESSAGE_ENTRIES_MAX) + 1):
            payload, _index, term = journal.entry(index)
            if size and size + len(payload) > MESSAGE_BYTES_MAX:
                break
            message.entries.add(term=term, payload=payload)
            size += len(payload)
        return message, size

    # ---------------------------------------------------------------- leaders: snapshots

    def _send_chunk(self, peer: Progress) -> None:
        """Go on with the stream of a follower whose next entry is gone, or begin one."""
        now, peer_id = clock.now, peer.node.id
        stream = self._outgoing.get(peer_id)
        if stream is not None and stream.is_idle(now):
            self._end_stream(peer_id)
            stream = None
        stream = stream or self._begin_stream(peer_id)
        if stream is None:
            return
        chunk = stream.next_chunk(now)
        if chunk is not None:
            self._send(
                peer,
                RaftMessage(
                    shard_id=self._shard_id,
                    type=RAFT_MESSAGE_TYPE_SNAPSHOT,
                    term=self._SyncObj__raftCurrentTerm,
                    round=self._round,
                    peer_incarnation=peer.incarnation,
                    chunk=chunk,
                ),
            )
        if stream.may_send:
            self.unsent = True

    def _begin_stream(self, peer_id: str) -> OutgoingSnapshot | None:
        # Without a free slot, the next heartbeat tries again.
        if not self._slots.take():
            return None
        reader = self._journal.open_snapshot()
        if reader.index < self._journal.first_index:
            # Nothing that was applied is durable yet.
            reader.close()
            self._slots.give_back()
            self.unsent = True
            return None
        self._streams_begun += 1
        stream = OutgoingSnapshot(reader, self._streams_begun, clock.now)
        self._outgoing[peer_id] = stream
        return stream

    def _end_stream(self, peer_id: str) -> None:
        stream = self._outgoing.pop(peer_id, None)
        if stream is not None:
            stream.close()
            self._slots.give_back()

    def _on_snapshot_reply(self, now: float, peer: Progress, message: RaftMessage) -> None:
        if not self._believe(now, peer, message):
            return
        peer_id = peer.node.id
        if message.ok:
            self._confirmed(peer, message.match_index)
        stream = self._outgoing.get(peer_id)
        if (
            stream is not None
            and stream.number == message.chunk.stream
            and (message.ok or not stream.confirmed(message.chunk.number, now))
        ):
            self._end_stream(peer_id)
        self.unsent = True

    # ---------------------------------------------------------------- followers: snapshots

    def _on_snapshot(self, now: float, peer: Progress, message: RaftMessage) -> None:
        self._hear_leader(now, peer)
        journal, chunk = self._journal, message.chunk
        commit = self._SyncObj__raftCommitIndex
        reply = self._reply_to_leader(message, RAFT_MESSAGE_TYPE_SNAPSHOT_REPLY)
        reply.chunk.stream = chunk.stream
        if chunk.index <= commit or journal.term_at(chunk.index) == chunk.term:
            # We have all of it, or our log leads there: what a leader applied is committed.
            self._SyncObj__raftCommitIndex = max(commit, chunk.index)
            self._abandon_install()
            reply.ok = True
        elif (wanted := self._take_chunk(message.term, chunk)) is None:
            return
        else:
            reply.chunk.number = wanted
            reply.ok = journal.applied_index >= chunk.index
        if reply.ok:
            reply.match_index = chunk.index
        reply.unproven = not self._admission.proven
        self._send(peer, reply)

    def _take_chunk(self, term: int, chunk: SnapshotChunk) -> int | None:
        """Stage a chunk; return which is wanted next, or None for one of an earlier stream."""
        incoming = self._incoming
        if incoming is None or incoming.key < (term, chunk.stream):
            self._abandon_install()
            if chunk.number > 0 or not self._journal.begin_install():
                return 0
            incoming = self._incoming = IncomingSnapshot(term, chunk)
        elif incoming.key > (term, chunk.stream):
            return None
        if not incoming.accepts(chunk):
            return incoming.wanted
        incoming.took(chunk)
        if not chunk.last:
            self._journal.stage(chunk.rows)
            return incoming.wanted
        if not incoming.is_whole(chunk):
            self._abandon_install()
            return 0
        self._incoming = None
        self._journal.finish_install(incoming.index, incoming.term)
        self._SyncObj__raftCommitIndex = self._SyncObj__raftLastApplied = incoming.index
        return incoming.wanted

    def _abandon_install(self) -> None:
        if self._incoming is not None:
            self._incoming = None
            self._journal.abandon_install()

    @property
    def installing_bytes(self) -> int:
        """How much of a snapshot has come in; 0 if none is on its way."""
        return 0 if self._incoming is None else max(1, self._incoming.received_bytes)

    # ---------------------------------------------------------------- time, apply, compaction

    def tick(self) -> None:
        """Let time pass: compaction, elections, commit, heartbeats."""
        if self._may_compact:
            self._may_compact = False
            self._compact()
        if (
            self._SyncObj__raftState == Role.FOLLOWER
            and self._SyncObj__raftElectionDeadline >= clock.now
        ):
            # Nothing to elect, to count or to send: all that the library would do is this.
            self._SyncObj__applyLogEntries()
        else:
            self.doTick(0.0)

    def _applied_up_to(self, index: int) -> None:
        if self._incoming is not None and self._incoming.index <= index:
            self._abandon_install()
        # In the next turn: it writes to the log, and this turn's log is committed already.
        self._may_compact = True

    def _compact(self) -> None:
        """Drop applied entries that exceed the limits, a bounded number."""
        journal, limits = self._journal, self._log_limits
        first = journal.first_index
        entries, size = journal.last_index - first, journal.size_bytes()
        excess = entries - limits.keep_entries
        if size > limits.keep_bytes:
            excess = max(excess, math.ceil(entries * (1 - limits.keep_bytes / size)))
        # Not one by one: neighbours share pages.
        if excess < min(COMPACT_ENTRIES_MAX, max(1, entries // 16)):
            return
        target = min(first + min(excess, COMPACT_ENTRIES_MAX), journal.durable_index)
        if (
            self._SyncObj__raftState == Role.LEADER
            and entries <= PINNED_MAX * limits.keep_entries
            and size <= PINNED_MAX * limits.keep_bytes
        ):
            oldest = clock.now - self._timing.election_min_s
            for peer_id, peer in self._peers.items():
                if peer_id in self._outgoing:
                    target = min(target, self._outgoing[peer_id].index)
                elif (
                    peer.connected
                    and self._SyncObj__lastResponseTime[peer.node] > oldest
                    # One that is behind our first entry needs a snapshot anyway.
                    and peer.match_index >= first
                ):
                    target = min(target, peer.match_index)
        if target > first:
            journal.drop_before(target)

    # ---------------------------------------------------------------- for the group's status

    def set_connected(self, peer_id: str, connected: bool) -> None:
        """Note that the link to a peer is up or down."""
        peer = self._peers.get(peer_id)
        if peer is None:
            raise FatalRaftError(f"{peer_id} is not a peer of this group")
        if connected:
            peer.connected = True
            self.unsent = self.unsent or self._SyncObj__raftState == Role.LEADER
            self._transport._onNodeConnected(peer.node)
        else:
            peer.disconnected()
            self._end_stream(peer_id)
            self._transport._onNodeDisconnected(peer.node)

    def transfer(self) -> bool:
        """Ask the most caught-up connected peer to campaign, if the library finds it has all."""
        able = [peer for peer in self._peers.values() if peer.connected and not peer.unproven]
        if not able:
            return False
        sent = len(self.outbox)
        self.transferLeadership(max(able, key=lambda peer: (peer.match_index, peer.node.id)).node)
        return len(self.outbox) > sent

    @property
    def role(self) -> Role:
        """Role of this replica."""
        return _ROLES[self._SyncObj__raftState]

    def serves(self, now: float) -> bool:
        """Whether we lead, have committed in our term, and hear a majority."""
        noop_index = self._SyncObj__noopIDx
        if (
            self._SyncObj__raftState != Role.LEADER
            or noop_index is None
            or self._SyncObj__raftCommitIndex < noop_index
        ):
            return False
        oldest = now - self._timing.election_min_s
        heard = sum(seen > oldest for seen in self._SyncObj__lastResponseTime.values())
        return heard + 1 >= self._majority

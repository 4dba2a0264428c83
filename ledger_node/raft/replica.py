# ruff: noqa: N802  the library's private names, in its own spelling
"""One replica: replication, snapshots, apply and reads, on top of terms, votes and elections."""

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
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
from ledger_node.raft.contract import (
    FatalRaftError,
    LogLimits,
    ProposalOutcome,
    RaftTiming,
    Role,
    require,
)
from ledger_node.raft.elections import Voter
from ledger_node.raft.journal import Entry, GroupJournal
from ledger_node.raft.library import Kind, clock
from ledger_node.raft.progress import Progress
from ledger_node.raft.snapshots import IncomingSnapshot, OutgoingSnapshot, StreamSlots

APPLY_ENTRIES_MAX = 64
APPLY_BYTES_MAX = 1 << 20
MESSAGE_BYTES_MAX = 1 << 20
MESSAGE_ENTRIES_MAX = 512
# Messages with entries to one peer in one flush, so that a turn stays short.
FLUSH_MESSAGES_MAX = 2
HINT_STEPS_MAX = 1024
# Entries that one tick may drop from the log.
COMPACT_ENTRIES_MAX = 256
# For followers that are about to need them, a leader keeps up to so many times its limits.
PINNED_MAX = 4

ApplyFunction = Callable[[int, bytes], Any]
ProposalDone = Callable[[ProposalOutcome, int, Any], None]
ReadDone = Callable[[bool, int], None]

_ROLES = {role.value: role for role in Role}
_REGULAR_PREFIX = bytes([Kind.REGULAR])
_KNOWN_PREFIXES = (_REGULAR_PREFIX, bytes([Kind.NO_OP]))


class Replica(Voter):
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
        self._apply = apply
        self._log_limits = log_limits
        self._slots = slots
        self._outgoing: dict[str, OutgoingSnapshot] = {}
        self._incoming: IncomingSnapshot | None = None
        self._streams_begun = 0
        self._commit_floor = journal.applied_index
        # The leader's commit index at some time: once it is applied, we were current then.
        self._catching_up: tuple[int, float] | None = None
        self.current_at: float | None = None
        self._round = 0
        self._heartbeat_due = False
        self.unsent = False
        self._waiting: dict[int, tuple[int, ProposalDone]] = {}
        self._reads: deque[tuple[int, int, ReadDone]] = deque()
        self.completions: list[Callable[[], None]] = []
        super().__init__(
            shard_id=shard_id,
            self_id=self_id,
            peer_ids=peer_ids,
            journal=journal,
            admission=admission,
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
        """Tell everyone who waits: a later leader may or may not commit what we accepted."""
        self._SyncObj__raftElectionDeadline = clock.now + self._SyncObj__generateRaftTimeout()
        self._heartbeat_due = self.unsent = False
        for index, (_term, done) in self._waiting.items():
            self.completions.append(partial(done, ProposalOutcome.UNKNOWN, index, None))
        self._waiting.clear()
        self._fail_reads()
        for peer_id in list(self._outgoing):
            self._end_stream(peer_id)

    def _fail_reads(self) -> None:
        for _round, _index, done in self._reads:
            self.completions.append(partial(done, False, self._SyncObj__raftLastApplied))
        self._reads.clear()

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
        if self._catching_up is None:
            self._catching_up = (message.commit_index, clock.now)
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
                    self._send(peer, message)
                    peer.sent(message.log_index + len(message.entries), size)
                    messages += 1
                if peer.may_send(last_index):
                    self.unsent = True
            if messages == 0 and probe:
                key = (peer.next_index, False, store)
                if key not in built:
                    built[key] = self._append_message(peer.next_index, 0, store)
                self._send(peer, built[key][0])

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

    # ---------------------------------------------------------------- proposals, apply, reads

    def propose(self, payload: bytes, done: ProposalDone) -> None:
        """Append a command, if we lead."""
        if self._SyncObj__raftState != Role.LEADER:
            self.completions.append(partial(done, ProposalOutcome.NOT_LEADER, 0, None))
            return
        index = self._journal.last_index + 1
        term = self._SyncObj__raftCurrentTerm
        self._journal.add(_REGULAR_PREFIX + payload, index, term)
        self._waiting[index] = (term, done)
        self.unsent = True

    def tick(self) -> None:
        """Let time pass: elections, commit, apply, heartbeats."""
        if (
            self._SyncObj__raftState == Role.FOLLOWER
            and self._SyncObj__raftElectionDeadline >= clock.now
        ):
            # Nothing to elect, to count or to send: all that the library would do is this.
            self._SyncObj__applyLogEntries()
        else:
            self.doTick(0.0)

    def _SyncObj__applyLogEntries(self) -> bool:
        """Hand committed entries to the state machine, raw, a bounded number per tick."""
        commit, applied = self._SyncObj__raftCommitIndex, self._SyncObj__raftLastApplied
        require(self._commit_floor <= commit, "the commit index must not fall")
        require(applied <= commit <= self._journal.last_index, "commit index outside the log")
        self._commit_floor = commit
        if applied == commit:
            self._note_current(applied)
            return False
        size = term = 0
        stop = min(commit, applied + APPLY_ENTRIES_MAX)
        while applied < stop and size < APPLY_BYTES_MAX:
            entry: Entry = self._journal.entry(applied + 1)
            payload, index, term = entry
            result = None
            if payload[0] == Kind.REGULAR:
                result = self._apply(index, payload[1:])
            else:
                require(payload[0] == Kind.NO_OP, f"entry {index} is neither command nor no-op")
            size += len(payload)
            applied = self._SyncObj__raftLastApplied = index
            waiting = self._waiting.pop(index, None)
            if waiting is not None:
                proposed_term, done = waiting
                require(proposed_term == term, f"entry {index} is not the one proposed")
                self.completions.append(partial(done, ProposalOutcome.APPLIED, index, result))
        self._journal.save_applied(applied, term)
        if self._incoming is not None and self._incoming.index <= applied:
            self._abandon_install()
        self._note_current(applied)
        self._compact()
        return False

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

    def _note_current(self, applied: int) -> None:
        if self._catching_up is not None and self._catching_up[0] <= applied:
            self.current_at = self._catching_up[1]
            self._catching_up = None

    def read_index(self, done: ReadDone) -> None:
        """Queue a linearizable read (thesis, section 6.4).

        It waits until a round that starts after now is answered by a majority, so that no
        later leader exists, and until everything committed before now is applied: up to the
        commit index, and up to this term's no-op, which follows all earlier leaders' commits.
        """
        if self._SyncObj__raftState != Role.LEADER:
            self.completions.append(partial(done, False, self._SyncObj__raftLastApplied))
            return
        noop_index = self._SyncObj__noopIDx
        if noop_index is None:
            raise FatalRaftError("a leader without a no-op")
        round_needed = self._round + 1 if self._peers else 0
        index = max(self._SyncObj__raftCommitIndex, noop_index)
        self._reads.append((round_needed, index, done))

    def serve_reads(self) -> None:
        """Complete the reads whose round is confirmed and whose index is applied."""
        if not self._reads:
            return
        rounds = sorted([self._round, *(peer.acked_round for peer in self._peers.values())])
        confirmed = rounds[-self._majority]
        applied = self._SyncObj__raftLastApplied
        while self._reads and self._reads[0][0] <= confirmed and self._reads[0][1] <= applied:
            self.completions.append(partial(self._reads.popleft()[2], True, applied))

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

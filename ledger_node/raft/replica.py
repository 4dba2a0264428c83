# ruff: noqa: N802  the library's private names, in its own spelling
"""One replica: elections, replication, apply and reads, on top of the hardened library."""

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ledger.internal.v1.peer_pb2 import (
    RAFT_MESSAGE_TYPE_APPEND_ENTRIES,
    RAFT_MESSAGE_TYPE_APPEND_ENTRIES_REPLY,
    RAFT_MESSAGE_TYPE_PRE_VOTE,
    RAFT_MESSAGE_TYPE_PRE_VOTE_REPLY,
    RAFT_MESSAGE_TYPE_REQUEST_VOTE,
    RAFT_MESSAGE_TYPE_REQUEST_VOTE_REPLY,
    RAFT_MESSAGE_TYPE_TIMEOUT_NOW,
    RaftMessage,
)
from ledger_node.raft.contract import (
    FatalRaftError,
    ProposalOutcome,
    RaftTiming,
    Role,
    require,
)
from ledger_node.raft.hardening import HardenedSyncObj
from ledger_node.raft.journal import Entry, GroupJournal
from ledger_node.raft.library import Kind, Node, clock
from ledger_node.raft.progress import Progress

APPLY_ENTRIES_MAX = 64
APPLY_BYTES_MAX = 1 << 20
MESSAGE_BYTES_MAX = 1 << 20
MESSAGE_ENTRIES_MAX = 512
# Messages with entries to one peer in one flush, so that a turn stays short.
FLUSH_MESSAGES_MAX = 2
HINT_STEPS_MAX = 1024
# First election of the preferred leader of a group, in seconds.
EAGER_ELECTION_MIN_S = 0.05
EAGER_ELECTION_MAX_S = 0.2

ApplyFunction = Callable[[int, bytes], Any]
ProposalDone = Callable[[ProposalOutcome, int, Any], None]
ReadDone = Callable[[bool, int], None]

_REGULAR_PREFIX = bytes([Kind.REGULAR])
_KNOWN_PREFIXES = (_REGULAR_PREFIX, bytes([Kind.NO_OP]))
_NEVER = float("-inf")


class Replica(HardenedSyncObj):
    """One replica of one Raft group, without any input or output of its own."""

    def __init__(
        self,
        *,
        shard_id: int,
        self_id: str,
        peer_ids: Sequence[str],
        journal: GroupJournal,
        apply: ApplyFunction,
        timing: RaftTiming,
        rng: random.Random,
        preferred_leader: bool,
        pre_vote: bool,
    ) -> None:
        require(self_id not in peer_ids, "a replica is not its own peer")
        require(len(set(peer_ids)) == len(peer_ids), "a peer is named twice")
        self._shard_id = shard_id
        self._apply = apply
        self._timing = timing
        self._rng = rng
        self._pre_vote = pre_vote
        # Until it hears of a leader or a refusal, the preferred leader is in a hurry.
        self._eager = preferred_leader
        self._majority = (len(peer_ids) + 1) // 2 + 1
        self._peers = {peer_id: Progress(Node(peer_id)) for peer_id in sorted(peer_ids)}
        self._leader_seen = _NEVER
        self._campaign_is_transfer = False
        self._pre_vote_term = 0
        self._pre_voters: set[str] = set()
        self._pre_vote_retry = _NEVER
        self._commit_floor = journal.applied_index
        # The leader's commit index at some time: once it is applied, we were current then.
        self._catching_up: tuple[int, float] | None = None
        self.current_at: float | None = None
        self._round = 0
        self._heartbeat_due = False
        self.unsent = False
        self._waiting: dict[int, tuple[int, ProposalDone]] = {}
        self._reads: deque[tuple[int, int, ReadDone]] = deque()
        self.outbox: list[tuple[str, RaftMessage]] = []
        self.completions: list[Callable[[], None]] = []
        self._handlers: dict[int, Callable[[float, Progress, RaftMessage], None]] = {
            RAFT_MESSAGE_TYPE_REQUEST_VOTE: self._on_request_vote,
            RAFT_MESSAGE_TYPE_REQUEST_VOTE_REPLY: self._on_request_vote_reply,
            RAFT_MESSAGE_TYPE_APPEND_ENTRIES: self._on_append_entries,
            RAFT_MESSAGE_TYPE_APPEND_ENTRIES_REPLY: self._on_append_entries_reply,
            RAFT_MESSAGE_TYPE_TIMEOUT_NOW: self._on_timeout_now,
        }
        super().__init__(self_id, [peer.node for peer in self._peers.values()], journal, timing)

    # ---------------------------------------------------------------- term, vote and role

    def _SyncObj__setState(self, newState: int) -> None:  # noqa: N803
        was_leader = self._SyncObj__raftState == Role.LEADER
        super()._SyncObj__setState(newState)
        if was_leader and newState != Role.LEADER:
            self._abandon_leadership()

    def _abandon_leadership(self) -> None:
        """Tell everyone who waits: a later leader may or may not commit what we accepted."""
        self._SyncObj__raftElectionDeadline = clock.now + self._SyncObj__generateRaftTimeout()
        self._heartbeat_due = self.unsent = False
        for index, (_term, done) in self._waiting.items():
            self.completions.append(partial(done, ProposalOutcome.UNKNOWN, index, None))
        self._waiting.clear()
        self._fail_reads()

    def _fail_reads(self) -> None:
        for _round, _index, done in self._reads:
            self.completions.append(partial(done, False, self._SyncObj__raftLastApplied))
        self._reads.clear()

    def _step_down(self, term: int) -> None:
        """Follow a higher term (Raft paper, section 5.1)."""
        self._SyncObj__setCurrentTerm(term, None)
        self._SyncObj__setState(Role.FOLLOWER)
        self._SyncObj__raftLeader = None
        self._SyncObj__transferInProgress = False
        self._pre_vote_term = 0

    def _SyncObj__generateRaftTimeout(self) -> float:
        if self._eager:
            return self._rng.uniform(EAGER_ELECTION_MIN_S, EAGER_ELECTION_MAX_S)
        return self._rng.uniform(self._timing.election_min_s, self._timing.election_max_s)

    def _leader_is_alive(self, now: float) -> bool:
        """Leader stickiness (thesis, section 4.2.3): no votes while a leader is heard."""
        if not self._pre_vote:
            return False
        return (
            self._SyncObj__raftState == Role.LEADER
            or now - self._leader_seen < self._timing.election_min_s
        )

    # ---------------------------------------------------------------- elections

    def _SyncObj__connectedToAnyone(self) -> bool:
        """May we campaign? The library asks at every tick after the election deadline.

        Pre-vote (thesis, section 9.6): the term is raised only once a majority would vote.
        """
        now = clock.now
        self._campaign_is_transfer = self._SyncObj__transferInProgress
        if self._campaign_is_transfer:
            self._eager = False
            return True
        if 1 + sum(peer.connected for peer in self._peers.values()) < self._majority:
            self._SyncObj__raftElectionDeadline = now + self._SyncObj__generateRaftTimeout()
            return False
        if not self._pre_vote or not self._peers:
            self._eager = False
            return True
        next_term = self._SyncObj__raftCurrentTerm + 1
        if self._pre_vote_term == next_term and len(self._pre_voters) >= self._majority:
            self._pre_vote_term = 0
            self._eager = False
            return True
        if self._pre_vote_term != next_term or now >= self._pre_vote_retry:
            self._pre_vote_term = next_term
            self._pre_voters = {self._self_id}
            self._pre_vote_retry = now + self._SyncObj__generateRaftTimeout()
            self._SyncObj__raftLeader = None
            for peer in self._peers.values():
                self._send_vote_request(peer, RAFT_MESSAGE_TYPE_PRE_VOTE, next_term, False)
        return False

    def _send_vote_request(self, peer: Progress, kind: Any, term: int, transfer: bool) -> None:
        self._send(
            peer,
            RaftMessage(
                shard_id=self._shard_id,
                type=kind,
                term=term,
                log_index=self._journal.last_index,
                log_term=self._journal.last_term,
                transfer=transfer,
            ),
        )

    def _send_for_library(self, node: Node, message: dict[str, Any]) -> None:
        """Translate what the library's campaign and leadership transfer send."""
        peer = self._peers[node.id]
        if message["type"] == "request_vote":
            self._send_vote_request(
                peer, RAFT_MESSAGE_TYPE_REQUEST_VOTE, message["term"], self._campaign_is_transfer
            )
        elif message["type"] == "timeout_now":
            self._reply(peer, RAFT_MESSAGE_TYPE_TIMEOUT_NOW, message["term"])
        else:
            raise FatalRaftError(f"the library sent {message['type']}")

    def _send(self, peer: Progress, message: RaftMessage) -> None:
        if peer.connected:
            self.outbox.append((peer.node.id, message))

    def _reply(self, peer: Progress, kind: Any, term: int, ok: bool = False) -> None:
        self._send(peer, RaftMessage(shard_id=self._shard_id, type=kind, term=term, ok=ok))

    def _log_is_current(self, message: RaftMessage) -> bool:
        """Whether the candidate's log is at least as new as ours (Raft paper, section 5.4.1)."""
        return (message.log_term, message.log_index) >= (
            self._journal.last_term,
            self._journal.last_index,
        )

    def handle(self, now: float, peer_id: str, message: RaftMessage) -> None:
        """Take one message. Messages from outside the group, or of no known type, are dropped."""
        peer = self._peers.get(peer_id)
        if peer is None:
            return
        kind, term = message.type, message.term
        if kind == RAFT_MESSAGE_TYPE_PRE_VOTE:
            self._on_pre_vote(now, peer, message)
            return
        if kind == RAFT_MESSAGE_TYPE_PRE_VOTE_REPLY:
            self._on_pre_vote_reply(peer, message)
            return
        handler = self._handlers.get(kind)
        if handler is None:
            return
        current = self._SyncObj__raftCurrentTerm
        if term > current:
            if kind == RAFT_MESSAGE_TYPE_REQUEST_VOTE and (
                not message.transfer and self._leader_is_alive(now)
            ):
                return
            self._step_down(term)
        elif term < current:
            # A sender that is behind learns the term from the answer.
            if kind == RAFT_MESSAGE_TYPE_REQUEST_VOTE:
                self._reply(peer, RAFT_MESSAGE_TYPE_REQUEST_VOTE_REPLY, current)
            elif kind == RAFT_MESSAGE_TYPE_APPEND_ENTRIES:
                self._reply(peer, RAFT_MESSAGE_TYPE_APPEND_ENTRIES_REPLY, current)
            return
        handler(now, peer, message)

    def _on_pre_vote(self, now: float, peer: Progress, message: RaftMessage) -> None:
        current = self._SyncObj__raftCurrentTerm
        ok = (
            message.term > current
            and self._SyncObj__raftState != Role.LEADER
            and not self._leader_is_alive(now)
            and self._log_is_current(message)
        )
        self._reply(peer, RAFT_MESSAGE_TYPE_PRE_VOTE_REPLY, message.term if ok else current, ok)

    def _on_pre_vote_reply(self, peer: Progress, message: RaftMessage) -> None:
        if message.ok:
            if message.term == self._pre_vote_term:
                self._pre_voters.add(peer.node.id)
            return
        self._eager = False
        if message.term > self._SyncObj__raftCurrentTerm:
            self._step_down(message.term)

    def _on_request_vote(self, now: float, peer: Progress, message: RaftMessage) -> None:
        term, candidate = message.term, peer.node.id
        ok = self._SyncObj__votedForNodeId in (None, candidate) and self._log_is_current(message)
        if ok:
            self._eager = False
            self._SyncObj__setCurrentTerm(term, candidate)
            self._SyncObj__raftElectionDeadline = now + self._SyncObj__generateRaftTimeout()
        self._reply(peer, RAFT_MESSAGE_TYPE_REQUEST_VOTE_REPLY, term, ok)

    def _on_request_vote_reply(self, _now: float, peer: Progress, message: RaftMessage) -> None:
        if self._SyncObj__raftState == Role.CANDIDATE and message.ok:
            self._voters |= {peer.node.id}
            if len(self._voters) >= self._majority:
                self._SyncObj__onBecomeLeader()

    def _on_timeout_now(self, _now: float, peer: Progress, _message: RaftMessage) -> None:
        """Campaign at the next tick, if our leader asks (thesis, section 3.10)."""
        if self._SyncObj__raftState == Role.FOLLOWER and self._SyncObj__raftLeader == peer.node:
            self._SyncObj__transferInProgress = True
            self._SyncObj__raftElectionDeadline = _NEVER

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
        state = self._SyncObj__raftState
        require(state != Role.LEADER, "two leaders in one term")
        self._leader_seen = now
        self._eager = False
        self._pre_vote_term = 0
        if not self._SyncObj__transferInProgress:
            self._SyncObj__raftElectionDeadline = now + self._SyncObj__generateRaftTimeout()
        if state != Role.FOLLOWER:
            self._SyncObj__setState(Role.FOLLOWER)
        leader = self._SyncObj__raftLeader
        require(leader is None or leader == peer.node, "two leaders in one term")
        self._SyncObj__raftLeader = peer.node

        prev_index = message.log_index
        reply = RaftMessage(
            shard_id=self._shard_id,
            type=RAFT_MESSAGE_TYPE_APPEND_ENTRIES_REPLY,
            term=message.term,
            round=message.round,
            log_index=prev_index,
        )
        own_term = self._journal.term_at(prev_index)
        if own_term == message.log_term:
            reply.ok = True
            reply.match_index = self._append(message)
        else:
            reply.hint_index = self._conflict_hint(prev_index, own_term)
        self._send(peer, reply)

    def _append(self, message: RaftMessage) -> int:
        """Store the entries and return the last index now known to equal the leader's log."""
        journal, commit = self._journal, self._SyncObj__raftCommitIndex
        index = message.log_index
        for entry in message.entries:
            index += 1
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
        if self._SyncObj__raftState != Role.LEADER:
            return
        self._SyncObj__lastResponseTime[peer.node] = now
        peer.acked_round = max(peer.acked_round, message.round)
        last_index = self._journal.last_index
        if message.ok:
            require(message.match_index <= last_index, "a follower confirms entries we lack")
            peer.accepted(message.match_index)
            self._SyncObj__raftMatchIndex[peer.node] = peer.match_index
        elif not peer.refused(message.log_index, message.hint_index):
            return
        if peer.may_send(last_index):
            self.unsent = True

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
        """Send what is new: entries, heartbeats, and the round that waiting reads ask for."""
        if self._SyncObj__raftState != Role.LEADER:
            return
        probe = self._heartbeat_due or (bool(self._reads) and self._reads[-1][0] > self._round)
        if not (probe or self.unsent):
            return
        self._heartbeat_due = self.unsent = False
        self._round += 1
        last_index = self._journal.last_index
        # Followers that are equally far share the message object.
        built: dict[tuple[int, bool], tuple[RaftMessage, int]] = {}
        for peer in self._peers.values():
            if not peer.connected:
                continue
            messages = 0
            while messages < FLUSH_MESSAGES_MAX and peer.may_send(last_index):
                key = (peer.next_index, True)
                if key not in built:
                    built[key] = self._append_message(peer.next_index, last_index)
                message, size = built[key]
                self._send(peer, message)
                peer.sent(message.log_index + len(message.entries), size)
                messages += 1
            if messages == 0 and probe:
                key = (peer.next_index, False)
                if key not in built:
                    built[key] = self._append_message(peer.next_index, 0)
                self._send(peer, built[key][0])
            if peer.may_send(last_index):
                self.unsent = True

    def _append_message(self, next_index: int, last_index: int) -> tuple[RaftMessage, int]:
        journal = self._journal
        prev_index = next_index - 1
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
        )
        size = 0
        for index in range(next_index, min(last_index, prev_index + MESSAGE_ENTRIES_MAX) + 1):
            payload, _index, term = journal.entry(index)
            if size and size + len(payload) > MESSAGE_BYTES_MAX:
                break
            message.entries.add(term=term, payload=payload)
            size += len(payload)
        return message, size

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

    def _SyncObj__applyLogEntries(self) -> bool:
        """Hand committed entries to the state machine, raw, a bounded number per tick."""
        commit, applied = self._SyncObj__raftCommitIndex, self._SyncObj__raftLastApplied
        require(self._commit_floor <= commit, "the commit index must not fall")
        require(applied <= commit <= self._journal.last_index, "commit index outside the log")
        self._commit_floor = commit
        if applied == commit:
            self._note_current(applied)
            return False
        size = 0
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
        self._note_current(applied)
        return False

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
            self._transport._onNodeDisconnected(peer.node)

    def transfer(self) -> bool:
        """Ask the most caught-up connected peer to campaign; the library chooses it."""
        sent = len(self.outbox)
        self.transferLeadership()
        return len(self.outbox) > sent

    @property
    def role(self) -> Role:
        """Role of this replica."""
        return Role(self._SyncObj__raftState)

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

# ruff: noqa: N802  the library's private names, in its own spelling
"""Terms, votes and elections of one replica, on top of the hardened library."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from ledger.internal.v1.peer_pb2 import (
    RAFT_MESSAGE_TYPE_APPEND_ENTRIES,
    RAFT_MESSAGE_TYPE_APPEND_ENTRIES_REPLY,
    RAFT_MESSAGE_TYPE_ASK,
    RAFT_MESSAGE_TYPE_ASK_REPLY,
    RAFT_MESSAGE_TYPE_PRE_VOTE,
    RAFT_MESSAGE_TYPE_PRE_VOTE_REPLY,
    RAFT_MESSAGE_TYPE_REQUEST_VOTE,
    RAFT_MESSAGE_TYPE_REQUEST_VOTE_REPLY,
    RAFT_MESSAGE_TYPE_SNAPSHOT,
    RAFT_MESSAGE_TYPE_SNAPSHOT_REPLY,
    RAFT_MESSAGE_TYPE_TIMEOUT_NOW,
    MemberStore,
    RaftMessage,
)
from ledger_node.raft.admission import Admission
from ledger_node.raft.contract import FatalRaftError, RaftTiming, Role, require
from ledger_node.raft.hardening import HardenedSyncObj
from ledger_node.raft.journal import GroupJournal
from ledger_node.raft.library import Node, clock
from ledger_node.raft.progress import Progress

# First election of the preferred leader of a group, in seconds.
EAGER_ELECTION_MIN_S = 0.05
EAGER_ELECTION_MAX_S = 0.2

_NEVER = float("-inf")

# How a sender of an older term is answered.
_STALE_REPLY = {
    RAFT_MESSAGE_TYPE_REQUEST_VOTE: RAFT_MESSAGE_TYPE_REQUEST_VOTE_REPLY,
    RAFT_MESSAGE_TYPE_APPEND_ENTRIES: RAFT_MESSAGE_TYPE_APPEND_ENTRIES_REPLY,
    RAFT_MESSAGE_TYPE_SNAPSHOT: RAFT_MESSAGE_TYPE_SNAPSHOT_REPLY,
}

Handler = Callable[[float, Progress, RaftMessage], None]


class Voter(HardenedSyncObj):
    """What a replica does about terms, votes, its role, and its own admission to voting."""

    def __init__(
        self,
        *,
        shard_id: int,
        self_id: str,
        peer_ids: Sequence[str],
        journal: GroupJournal,
        admission: Admission,
        timing: RaftTiming,
        rng: random.Random,
        preferred_leader: bool,
        pre_vote: bool,
    ) -> None:
        require(self_id not in peer_ids, "a replica is not its own peer")
        require(len(set(peer_ids)) == len(peer_ids), "a peer is named twice")
        self._shard_id = shard_id
        self._timing = timing
        self._rng = rng
        self._pre_vote = pre_vote
        # Until it hears of a leader or a refusal, the preferred leader is in a hurry.
        self._eager = preferred_leader
        self._majority = (len(peer_ids) + 1) // 2 + 1
        self._peers = {peer_id: Progress(Node(peer_id)) for peer_id in sorted(peer_ids)}
        self._admission = admission
        self._leader_seen = _NEVER
        self._campaign_is_transfer = False
        self._pre_vote_term = 0
        self._pre_voters: set[str] = set()
        self._pre_vote_retry = _NEVER
        self.outbox: list[tuple[str, RaftMessage]] = []
        # The first are taken whatever their term; they speak of terms that may come, or of none.
        self._termless_handlers: dict[int, Handler] = {
            RAFT_MESSAGE_TYPE_PRE_VOTE: self._on_pre_vote,
            RAFT_MESSAGE_TYPE_PRE_VOTE_REPLY: self._on_pre_vote_reply,
            RAFT_MESSAGE_TYPE_ASK: self._on_ask,
            RAFT_MESSAGE_TYPE_ASK_REPLY: self._on_ask_reply,
        }
        self._handlers: dict[int, Handler] = {
            RAFT_MESSAGE_TYPE_REQUEST_VOTE: self._on_request_vote,
            RAFT_MESSAGE_TYPE_REQUEST_VOTE_REPLY: self._on_request_vote_reply,
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
        raise NotImplementedError

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
        if not self._admission.proven:
            return False
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
        kind = message.type
        if kind in self._termless_handlers:
            self._termless_handlers[kind](now, peer, message)
        elif kind in self._handlers and self._admission.informed:
            self._handle_in_term(now, peer, message)

    def _handle_in_term(self, now: float, peer: Progress, message: RaftMessage) -> None:
        kind, term = message.type, message.term
        current = self._SyncObj__raftCurrentTerm
        if term > current:
            if kind == RAFT_MESSAGE_TYPE_REQUEST_VOTE and (
                not message.transfer and self._leader_is_alive(now)
            ):
                return
            self._step_down(term)
        elif term < current:
            # A sender that is behind learns the term from the answer.
            if kind in _STALE_REPLY:
                self._reply(peer, _STALE_REPLY[kind], current)
            return
        self._handlers[kind](now, peer, message)

    # ---------------------------------------------------------------- admission to voting

    def seek_admission(self, now: float) -> None:
        """While unproven, ask all others every heartbeat what they know."""
        admission = self._admission
        if admission.proven or now < admission.asked_at + 0.75 * self._timing.heartbeat_s:
            return
        admission.asked_at = now
        for peer in self._peers.values():
            self._send(
                peer,
                RaftMessage(
                    shard_id=self._shard_id,
                    type=RAFT_MESSAGE_TYPE_ASK,
                    incarnation=admission.incarnation,
                ),
            )

    def _on_ask(self, _now: float, peer: Progress, message: RaftMessage) -> None:
        admission = self._admission
        self._send(
            peer,
            RaftMessage(
                shard_id=self._shard_id,
                type=RAFT_MESSAGE_TYPE_ASK_REPLY,
                term=self._SyncObj__raftCurrentTerm,
                incarnation=admission.incarnation,
                peer_incarnation=message.incarnation,
                unproven=not admission.proven,
                # Sorted: a message has one encoding, whatever process makes it.
                roster=[
                    MemberStore(node_id=node_id, incarnation=incarnation)
                    for node_id, incarnation in sorted(
                        admission.roster(holds_entries=self._journal.last_index > 1).items()
                    )
                ],
            ),
        )

    def _on_ask_reply(self, _now: float, peer: Progress, message: RaftMessage) -> None:
        admission = self._admission
        if admission.proven or message.peer_incarnation != admission.incarnation:
            return
        if message.term > self._SyncObj__raftCurrentTerm:
            self._step_down(message.term)
        roster = {store.node_id: store.incarnation for store in message.roster}
        admission.hear(peer.node.id, message.incarnation, roster, proven=not message.unproven)

    def _check_caught_up(self, peer: Progress, message: RaftMessage, match_index: int) -> None:
        """After an append of our leader: do we hold all that was ever committed?"""
        commit, journal = message.commit_index, self._journal
        if (
            self._admission.proven
            or message.peer_incarnation != self._admission.incarnation
            or not journal.first_index <= commit <= match_index
            or journal.term_at(commit) != message.term
        ):
            return
        # In this term we may have voted before: for this leader, as far as it matters now.
        if self._SyncObj__votedForNodeId is None:
            self._SyncObj__setCurrentTerm(message.term, peer.node.id)
        self._admission.caught_up()

    # ---------------------------------------------------------------- votes

    def _on_pre_vote(self, now: float, peer: Progress, message: RaftMessage) -> None:
        if not self._admission.may_vote:
            return
        current = self._SyncObj__raftCurrentTerm
        ok = (
            message.term > current
            and self._SyncObj__raftState != Role.LEADER
            and not self._leader_is_alive(now)
            and self._log_is_current(message)
        )
        self._reply(peer, RAFT_MESSAGE_TYPE_PRE_VOTE_REPLY, message.term if ok else current, ok)

    def _on_pre_vote_reply(self, _now: float, peer: Progress, message: RaftMessage) -> None:
        if message.ok:
            if message.term == self._pre_vote_term:
                self._pre_voters.add(peer.node.id)
            return
        self._eager = False
        if message.term > self._SyncObj__raftCurrentTerm:
            self._step_down(message.term)

    def _on_request_vote(self, now: float, peer: Progress, message: RaftMessage) -> None:
        if not self._admission.may_vote:
            return
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
        if (
            self._admission.proven
            and self._SyncObj__raftState == Role.FOLLOWER
            and self._SyncObj__raftLeader == peer.node
        ):
            self._SyncObj__transferInProgress = True
            self._SyncObj__raftElectionDeadline = _NEVER

    def _hear_leader(self, now: float, peer: Progress) -> None:
        """Note that the leader of our term showed itself."""
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

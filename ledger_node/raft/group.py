"""RaftGroup: what a node sees of one replica of one shard."""

import random
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from ledger.internal.v1.peer_pb2 import RaftMessage
from ledger_node.raft.admission import Admission
from ledger_node.raft.contract import (
    LogLimits,
    ProposalOutcome,
    RaftLog,
    RaftTiming,
    Role,
    require,
)
from ledger_node.raft.journal import GroupJournal
from ledger_node.raft.library import clock
from ledger_node.raft.replica import MESSAGE_BYTES_MAX, Replica
from ledger_node.raft.snapshots import StreamSlots

T = TypeVar("T")


class RaftGroup(Generic[T]):
    """One replica of one Raft group, driven by its host.

    In a turn's first half the host calls `receive`, `propose` and `read_index` as work arrives,
    then `tick`, then `flush`; it may send what `take_appends` returns, commits the log, and only
    then sends what `take_messages` returns. In the second half it calls `apply`, and then what
    `take_completions` returns. Only
    the first half writes to the log, only the second one applies. `now` is the host's monotonic
    time in seconds. The constructor writes to the log too: it belongs to a first half.

    `apply` gets the index and the payload of every committed proposal, in order, once, in runs of
    consecutive ones; and whether any result is waited for. Then it returns one for each of them;
    else what it returns is not looked at. It must not fail: errors of the domain are results, and
    any exception ends the process.
    `preferred_leader` makes this replica campaign soon after the start, so that a fresh cluster
    gets its configured leaders quickly. `pre_vote=False` is for tests: it lets more elections
    happen, by switching off pre-vote and leader stickiness. `slots` bounds the snapshots that a
    node sends at once: one object for all groups of a node.
    """

    PAYLOAD_BYTES_MAX = MESSAGE_BYTES_MAX

    def __init__(
        self,
        *,
        shard_id: int,
        self_id: str,
        peer_ids: Sequence[str],
        log: RaftLog,
        apply: Callable[[Sequence[tuple[int, bytes]], bool], Sequence[T]],
        timing: RaftTiming,
        rng: random.Random,
        now: float,
        log_limits: LogLimits | None = None,
        slots: StreamSlots | None = None,
        preferred_leader: bool = False,
        pre_vote: bool = True,
    ) -> None:
        clock.now = self._ticked_at = now
        self.shard_id = shard_id
        self._journal = GroupJournal(log)
        self._admission = Admission(
            log, is_new=self._journal.was_empty, self_id=self_id, peer_ids=peer_ids, rng=rng
        )
        self._replica = Replica(
            shard_id=shard_id,
            self_id=self_id,
            peer_ids=peer_ids,
            journal=self._journal,
            admission=self._admission,
            apply=apply,
            timing=timing,
            log_limits=log_limits or LogLimits(),
            slots=slots or StreamSlots(),
            rng=rng,
            preferred_leader=preferred_leader,
            pre_vote=pre_vote,
        )

    # Inputs.

    def receive(self, now: float, peer_id: str, message: RaftMessage) -> None:
        """Take a message of the authenticated node `peer_id`; it is not changed."""
        clock.now = now
        require(message.shard_id == self.shard_id, "a message for another shard")
        self._replica.handle(now, peer_id, message)

    def peer_connected(self, peer_id: str) -> None:
        """The link to a peer is up. Until this is called, nothing is sent to it."""
        self._replica.set_connected(peer_id, True)

    def peer_disconnected(self, peer_id: str) -> None:
        """The link to a peer is down; what was under way may be lost."""
        self._replica.set_connected(peer_id, False)

    def propose(
        self, now: float, payload: bytes, done: Callable[[ProposalOutcome, int, T | None], None]
    ) -> None:
        """Append a command to the log, if this replica leads.

        `done(outcome, log_index, result)` becomes a completion exactly once, in this turn or a
        later one; `result` is what `apply` returned for it, if the outcome is APPLIED.
        """
        clock.now = now
        if len(payload) > self.PAYLOAD_BYTES_MAX:
            raise ValueError(
                f"payload: has {len(payload)} bytes, at most {self.PAYLOAD_BYTES_MAX} are allowed"
            )
        self._replica.propose(payload, done)

    def read_index(self, now: float, done: Callable[[bool, int], None]) -> None:
        """Ask for a linearizable read.

        `done(True, applied_index)` means: the state at `applied_index` or later contains every
        write that was acknowledged before this call. `done(False, …)`: this replica does not
        lead, or ceased to.
        """
        clock.now = now
        self._replica.read_index(done)

    def tick(self, now: float) -> None:
        """Let time pass: elections, commit, and compaction (a bounded amount)."""
        clock.now = self._ticked_at = now
        self._journal.tidy()
        self._replica.seek_admission(now)
        self._replica.tick()

    def flush(self, now: float) -> None:
        """Make the messages of this turn; call it once, last in the first half."""
        clock.now = now
        self._replica.flush()

    def apply(self, now: float, *, may_gather: bool = False) -> int:
        """Apply what is committed, a bounded amount, and complete proposals and reads.

        Returns how many bytes the entries had. With `may_gather` a replica that does not lead
        leaves a few small entries for later, when more have come or the host calls this without.
        """
        clock.now = now
        size = self._replica.apply(may_gather=may_gather)
        self._replica.serve_reads()
        return size

    def transfer_leadership(self, now: float) -> bool:
        """Ask the most caught-up connected peer to take over; False if none has every entry.

        It only asks: leadership is lost when the peer wins its election. Under load, call it
        in a turn before proposing anything new.
        """
        clock.now = now
        return self._replica.transfer()

    # Outputs.

    def take_appends(self) -> list[tuple[str, RaftMessage]]:
        """Return (peer id, message) of a leader's entries and heartbeats; they wait for no commit.

        Followers may have entries on disk before their leader does (thesis, section 10.2.1). Its
        term has been on disk since before its election, and it counts its own copy of an entry
        only with what followers answer: in a later turn, when that copy is on disk. Messages may
        be shared.
        """
        appends, self._replica.appends = self._replica.appends, []
        return appends

    def take_messages(self) -> list[tuple[str, RaftMessage]]:
        """Return (peer id, message) to send, in order for each peer, once the log is committed.

        Without what `take_appends` has returned.
        """
        messages, self._replica.outbox = self._replica.outbox, []
        return messages + self.take_appends()

    def take_completions(self) -> list[Callable[[], None]]:
        """Return the `done` callbacks that are due after `apply`, bound to their arguments."""
        completions, self._replica.completions = self._replica.completions, []
        return completions

    # Status.

    @property
    def role(self) -> Role:
        """Role of this replica."""
        return self._replica.role

    @property
    def term(self) -> int:
        """Current term."""
        return self._journal.term

    @property
    def leader_id(self) -> str | None:
        """Node id of the leader as far as this replica knows."""
        leader = self._replica._SyncObj__raftLeader
        return None if leader is None else str(leader.id)

    @property
    def commit_index(self) -> int:
        """Index of the last entry known to be committed."""
        return self._replica._SyncObj__raftCommitIndex

    @property
    def applied_index(self) -> int:
        """Index of the last entry applied."""
        return self._replica._SyncObj__raftLastApplied

    @property
    def durable_index(self) -> int:
        """Index of the last entry applied as far as that is on disk."""
        return self._journal.durable_index

    @property
    def first_index(self) -> int:
        """Index of the last entry that was dropped from the log, in all but name; 1 at first."""
        return self._journal.first_index

    @property
    def unproven(self) -> bool:
        """Whether this replica may not vote, since its store was made empty: see `admission`."""
        return not self._admission.proven

    @property
    def installing_bytes(self) -> int:
        """How much of a snapshot has come in; 0 if none is being installed."""
        return self._replica.installing_bytes

    @property
    def last_index(self) -> int:
        """Index of the last entry of the log."""
        return self._journal.last_index

    @property
    def serving(self) -> bool:
        """Whether this replica leads, has committed in its term, and heard a majority lately.

        Lately: within `election_min_s` before the last tick.
        """
        return self._replica.serves(self._ticked_at)

    @property
    def current_at(self) -> float | None:
        """When this replica last had applied all that its leader had committed; None if never.

        For a leader that serves, the last tick. For a follower, the time a message of the leader
        came in whose commit index it has applied since: not later commits, so a read is older
        than this says by the way of that message.
        """
        return self._ticked_at if self.serving else self._replica.current_at

    @property
    def has_pending_work(self) -> bool:
        """Whether another turn is due at once: more to apply or to send than one turn may.

        Entries that gather are not due.
        """
        return self._replica.unsent or self._replica.has_more_to_apply

# ruff: noqa: N802  the library's private names, in its own spelling
"""What a replica does with what is committed: apply it, and answer proposals and reads.

All of it belongs to the second half of a turn, when the log of the turn is durable and its messages
are on their way. Nobody waits for what a follower applies, so a follower lets small entries gather:
a state machine does several in one go for less.
"""

import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ledger_node.raft.admission import Admission
from ledger_node.raft.contract import (
    FatalRaftError,
    ProposalOutcome,
    RaftTiming,
    Role,
    require,
)
from ledger_node.raft.elections import Voter
from ledger_node.raft.journal import Entry, GroupJournal
from ledger_node.raft.library import Kind, clock

# Bounds of what one turn applies, so that it stays short.
APPLY_ENTRIES_MAX = 64
APPLY_BYTES_MAX = 1 << 20

# A follower applies at once when so many committed entries, or bytes of them, have gathered; else
# when its host says so. Entries enough that what an entry costs by itself is shared by many. Bytes
# few enough that applying them takes about as long as a turn; the entries of bulk calls are larger,
# and gain nothing from company. A new leader has no more than this to make up for.
GATHER_ENTRIES_MAX = 16
GATHER_BYTES_MAX = 16 << 10

ApplyFunction = Callable[[Sequence[tuple[int, bytes]], bool], Sequence[Any]]
ProposalDone = Callable[[ProposalOutcome, int, Any], None]
ReadDone = Callable[[bool, int], None]

_REGULAR_PREFIX = bytes([Kind.REGULAR])


class Applier(Voter):
    """A replica's committed entries, on their way to the state machine and to who waits."""

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
        rng: random.Random,
        preferred_leader: bool,
        pre_vote: bool,
    ) -> None:
        self._apply = apply
        self._commit_floor = journal.applied_index
        self._gathers = False
        # The leader's commit index at some time: once it is applied, we were current then. The
        # first one that is not applied yet, and the last one heard.
        self._catching_up: tuple[int, float] | None = None
        self._heard_commit: tuple[int, float] | None = None
        self.current_at: float | None = None
        self._round = 0
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

    # ---------------------------------------------------------------- proposals

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

    def _fail_waiting(self) -> None:
        """Tell everyone who waits: a later leader may or may not commit what we accepted."""
        for index, (_term, done) in self._waiting.items():
            self.completions.append(partial(done, ProposalOutcome.UNKNOWN, index, None))
        self._waiting.clear()
        for _round, _index, done_reading in self._reads:
            self.completions.append(partial(done_reading, False, self._SyncObj__raftLastApplied))
        self._reads.clear()

    # ---------------------------------------------------------------- apply

    def _SyncObj__applyLogEntries(self) -> bool:
        """Check what the library has found committed. To apply it is the turn's second half."""
        commit, applied = self._SyncObj__raftCommitIndex, self._SyncObj__raftLastApplied
        require(self._commit_floor <= commit, "the commit index must not fall")
        require(applied <= commit <= self._journal.last_index, "commit index outside the log")
        self._commit_floor = commit
        return False

    def apply(self, *, may_gather: bool) -> int:
        """Hand committed entries to the state machine, raw, a bounded number; return their bytes.

        With ``may_gather`` a replica that does not lead leaves a few small ones for later.
        """
        size = 0
        applied, commit = self._SyncObj__raftLastApplied, self._SyncObj__raftCommitIndex
        self._gathers = may_gather and self._may_gather(applied, commit)
        if applied < commit and not self._gathers:
            size = self._apply_some(applied, commit)
        self._note_current(self._SyncObj__raftLastApplied)
        return size

    @property
    def has_more_to_apply(self) -> bool:
        """Whether committed entries are left that do not gather."""
        return self._SyncObj__raftCommitIndex > self._SyncObj__raftLastApplied and not self._gathers

    def _may_gather(self, applied: int, commit: int) -> bool:
        if self._SyncObj__raftState == Role.LEADER or commit - applied >= GATHER_ENTRIES_MAX:
            return False
        pending = range(applied + 1, commit + 1)
        return sum(len(self._journal.entry(index)[0]) for index in pending) < GATHER_BYTES_MAX

    def _apply_some(self, applied: int, commit: int) -> int:
        size = term = 0
        stop = min(commit, applied + APPLY_ENTRIES_MAX)
        run: list[Entry] = []
        while applied < stop and size < APPLY_BYTES_MAX:
            entry: Entry = self._journal.entry(applied + 1)
            payload, applied, term = entry
            size += len(payload)
            if payload[0] == Kind.REGULAR:
                run.append(entry)
                continue
            require(payload[0] == Kind.NO_OP, f"entry {applied} is neither command nor no-op")
            require(applied not in self._waiting, f"entry {applied} is not the one proposed")
            self._apply_run(run)
            run = []
        self._apply_run(run)
        self._SyncObj__raftLastApplied = applied
        self._journal.save_applied(applied, term)
        self._applied_up_to(applied)
        return size

    def _apply_run(self, run: Sequence[Entry]) -> None:
        """Apply consecutive commands, and complete the proposals among them."""
        if not run:
            return
        wanted = any(index in self._waiting for _payload, index, _term in run)
        results = self._apply([(index, payload[1:]) for payload, index, _term in run], wanted)
        if not wanted:
            return
        for (_payload, index, term), result in zip(run, results, strict=True):
            waiting = self._waiting.pop(index, None)
            if waiting is not None:
                proposed_term, done = waiting
                require(proposed_term == term, f"entry {index} is not the one proposed")
                self.completions.append(partial(done, ProposalOutcome.APPLIED, index, result))

    def _applied_up_to(self, index: int) -> None:
        raise NotImplementedError

    # ---------------------------------------------------------------- how old the state is

    def _hear_commit(self, commit_index: int) -> None:
        """Note what the leader says is committed, in a message that our log agrees with."""
        self._heard_commit = (commit_index, clock.now)
        if self._catching_up is None:
            self._catching_up = self._heard_commit

    def _note_current(self, applied: int) -> None:
        if self._heard_commit is not None and self._heard_commit[0] <= applied:
            self.current_at = self._heard_commit[1]
            self._heard_commit = self._catching_up = None
        elif self._catching_up is not None and self._catching_up[0] <= applied:
            self.current_at = self._catching_up[1]
            self._catching_up = self._heard_commit

    # ---------------------------------------------------------------- reads

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

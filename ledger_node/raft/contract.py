"""What the Raft package promises to its host, and what it needs from it.

The host is the node: it owns the store, the sockets and the clock. It calls a
`RaftGroup` within a *turn* and commits everything the turn wrote in one transaction
before it releases anything the turn produced, but for what `RaftGroup.take_appends` returns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Protocol


class FatalRaftError(BaseException):
    """A state that must not exist: the process has to stop without committing the turn.

    Derived from BaseException, so that no `except Exception` on the way keeps a broken
    replica alive. asyncio stores or logs even such errors: a host that runs on its event loop
    has to end the process itself.
    """


def require(condition: bool, what: str) -> None:
    """Stop the process with FatalRaftError unless `condition` holds."""
    if not condition:
        raise FatalRaftError(what)


class Role(IntEnum):
    """The three roles of a replica (Raft paper, section 5.1)."""

    FOLLOWER = 0
    CANDIDATE = 1
    LEADER = 2


class ProposalOutcome(Enum):
    """How a proposal ended.

    APPLIED: a majority has it on disk and this replica applied it. NOT_LEADER: it never
    entered the log. UNKNOWN: leadership was lost while it was under way, so it may still be
    applied; only asking by request id tells.
    """

    APPLIED = "applied"
    NOT_LEADER = "not_leader"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class RaftTiming:
    """The three durations of Raft, in seconds.

    `heartbeat_s`: how often a leader shows itself, and how often the host ticks a group.
    `election_min_s` and `election_max_s`: a follower that hears no leader for a random time
    between the two starts an election. A leader that hears no majority for `election_min_s`
    steps down.
    """

    heartbeat_s: float = 0.2
    election_min_s: float = 0.7
    election_max_s: float = 1.4

    def __post_init__(self) -> None:
        """Refuse durations with which elections could not settle."""
        if not 0 < 3 * self.heartbeat_s < self.election_min_s < self.election_max_s:
            raise ValueError(
                "timing: needs 0 < 3 * heartbeat_s < election_min_s < election_max_s, got "
                f"{self.heartbeat_s}, {self.election_min_s}, {self.election_max_s}"
            )


@dataclass(frozen=True, slots=True)
class LogLimits:
    """How much of what is applied a replica keeps in its log, for followers that lag.

    The newest `keep_entries`, or as many of them as `keep_bytes` hold. What is not yet applied is
    always kept.
    """

    keep_entries: int = 10_000
    keep_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        """Refuse limits below one."""
        if self.keep_entries < 1 or self.keep_bytes < 1:
            raise ValueError("log limits: keep_entries and keep_bytes must be at least 1")


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a replica may vote, which it may not if it can have forgotten what it promised.

    `incarnation` names its store: a random number, drawn when the store was made. `proven`: see
    `ledger_node.raft.admission`. `roster`: the incarnations that the group was founded with, by
    member, if this replica has heard of them.
    """

    incarnation: int
    proven: bool
    roster: Mapping[str, int] = field(default_factory=dict)


class SnapshotReader(Protocol):
    """A shard's committed state, held still while it is read in parts.

    `index` and `term` are those of the last entry that the state includes; 0 if there is none.
    """

    @property
    def index(self) -> int:
        """Index of the last entry that the state includes."""

    @property
    def term(self) -> int:
        """Term of that entry."""

    def read(self, bytes_max: int) -> bytes:
        """Return the next part, not much longer than `bytes_max`; empty at the end."""

    def close(self) -> None:
        """Let the state go."""


class RaftLog(Protocol):
    """Durable storage of one replica: log, term and vote, standing, and snapshots of its state.

    Every write goes into the transaction of the host's current turn and is durable once the
    host commits that turn. The state, with what `save_applied` stores, may become durable later: it
    is made of entries that are in the log until then. Reads see what was written before. Indices
    start at 1.
    """

    def load_hard_state(self) -> tuple[int, str | None]:
        """Return the current term and whom this replica voted for in it; (0, None) if empty."""

    def save_hard_state(self, term: int, voted_for: str | None) -> None:
        """Store the current term and the vote."""

    def load_standing(self) -> Standing | None:
        """Return what `save_standing` stored last; None if it never was called."""

    def save_standing(self, standing: Standing) -> None:
        """Store the standing."""

    def applied_index(self) -> int:
        """Return the index of the last entry in the state machine's stored state; 0 if none.

        Read once, when the replica starts. The state machine stores it with the state.
        """

    def load_applied(self) -> tuple[int, int] | None:
        """Return what `save_applied` stored last; None if it never was called."""

    def save_applied(self, index: int, term: int) -> None:
        """Store index and term of the last entry applied, be it a command or not."""

    def durable_index(self) -> int:
        """Return the index of the last entry that the state includes as far as it is durable."""

    def first_index(self) -> int:
        """Return the index of the oldest entry kept; 1 if the log is empty."""

    def last_index(self) -> int:
        """Return the index of the newest entry; 0 if the log is empty."""

    def size_bytes(self) -> int:
        """Return about how much space the log takes."""

    def read(self, index: int) -> tuple[int, bytes]:
        """Return (term, payload) of an entry that is in the log, its checksum verified."""

    def append(self, index: int, term: int, payload: bytes) -> None:
        """Add the entry after the last one."""

    def truncate_from(self, index: int) -> None:
        """Remove the entry at `index` and all entries after it."""

    def drop_before(self, index: int) -> None:
        """Remove all entries before the one at `index`."""

    def unfinished_install(self) -> tuple[int, int] | None:
        """Return index and term of an install that a crash left before its `restart_at`, if any.

        Asked once, when the replica starts.
        """

    def open_snapshot(self) -> SnapshotReader:
        """Return the state as it is durable, to be read over many turns."""

    def begin_install(self) -> bool:
        """Prepare to stage another state beside the present one.

        False: what is left of an earlier one is still being removed; ask again later.
        """

    def stage(self, rows: bytes) -> None:
        """Add what a `SnapshotReader` read, part after part, to the staged state."""

    def abandon_install(self) -> None:
        """Give up the staged state."""

    def finish_install(self, index: int, term: int) -> None:
        """Make the staged state, which is complete, the present one, durable at once.

        It includes the entry at `index`, of `term`, which becomes the one applied last. Then
        `restart_at` follows in the same turn; see `unfinished_install`.
        """

    def restart_at(self, index: int, term: int, payload: bytes) -> None:
        """Remove all entries, then add this one at `index`."""

    def tidy(self) -> None:
        """Remove a bounded part of staged or former state that is of no use any more."""

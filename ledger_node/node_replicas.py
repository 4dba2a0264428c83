"""What a node keeps of each replica: its group, its state machine, and what waits for it."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ledger.internal.v1 import shard_pb2
from ledger_cluster.config import ShardConfig
from ledger_core.queries import Query
from ledger_core.results import Result
from ledger_node.raft import RaftGroup, Role
from ledger_node.state_machine import StateMachine

UNCOMMITTED_ENTRIES_MAX = 64
"""So many entries a leader may have that are not committed yet."""


@dataclass(frozen=True, slots=True)
class ExecuteReply:
    """How a proposal ended. ``results`` are encoded, one per command, when the outcome is OK."""

    outcome: "shard_pb2.Outcome.ValueType"
    results: Sequence[bytes] = ()
    log_index: int = 0
    leader_id: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class QueryReply:
    """How queries ended. ``results`` are encoded, one per query, when the outcome is OK."""

    outcome: "shard_pb2.Outcome.ValueType"
    results: Sequence[bytes] = ()
    applied_index: int = 0
    age_s: float = 0.0
    leader_id: str = ""
    message: str = ""


@dataclass(slots=True)
class Proposal:
    """Commands that wait for their log entry, and who waits for them."""

    commands: Sequence[bytes]
    done: Callable[[ExecuteReply], None]


@dataclass(slots=True)
class Read:
    """Queries that wait for a state to be answered from, and who waits for them."""

    queries: Sequence[Query]
    done: Callable[[QueryReply], None]


@dataclass(slots=True)
class Turn:
    """A turn between its parts."""

    now: float
    ticks: bool
    replicas: Sequence["Replica"]
    applied: bool = False


@dataclass(slots=True)
class Replica:
    """One shard's replica on this node, with what waits for it."""

    config: ShardConfig
    group: RaftGroup[Sequence[Result]]
    state_machine: StateMachine
    proposals: deque[Proposal] = field(default_factory=deque)
    waiting_commands: int = 0
    reads: list[Read] = field(default_factory=list)
    stale_reads: list[Read] = field(default_factory=list)
    current_at: float = 0.0
    """When this replica last knew itself up to date with its leader."""
    coordinated: bool = False
    """Whether the coordinator carries on this shard's transactions: from when it serves, on."""

    @property
    def is_blocked(self) -> bool:
        """Whether a leader has to wait for its followers before it may propose more."""
        group = self.group
        return (
            group.role is Role.LEADER
            and group.last_index - group.commit_index >= UNCOMMITTED_ENTRIES_MAX
        )

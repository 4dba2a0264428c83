"""Raft for one shard: pysyncobj with everything that concerns safety replaced.

"Paper" is Ongaro and Ousterhout, In Search of an Understandable Consensus Algorithm (extended
version); "thesis" is Ongaro's, Consensus: Bridging Theory and Practice.

pysyncobj keeps:

- the state of a replica and its transitions; the tick that drives them (paper, figure 2)
- the campaign of a candidate and the start of a leader with its no-op (paper, 5.2 and 8)
- the commit rule: an entry of the current term on a majority (paper, 5.3 and 5.4.2)
- the step-down of a leader that hears no majority (thesis, 6.2)
- the check of the target of a leadership transfer (thesis, 3.10)

Ours, because the library's own loses acknowledged writes or stops:

- term and vote, checked and durable before anything that depends on them is sent (paper, 5.1
  and 5.2); votes as a set of members
- all message handling: terms, votes, log matching, truncation at the first conflict only,
  commit over the verified prefix only (paper, 5.3), conflict hints
- pre-vote (thesis, 9.6) and leader stickiness (thesis, 4.2.3)
- replication: progress per follower, windows, bounded messages (thesis, 10.2.1)
- the journal, on the host's store; apply, on raw bytes; results of proposals
- log compaction (paper, section 7), snapshots streamed from the store and installed in one step
- no vote for a replica whose store was wiped, until it has caught up (`admission`)
- linearizable reads by ReadIndex (thesis, 6.4)

Members of a group are fixed.

Modules: `contract` (types and duties), `library` (pin and patches of pysyncobj), `journal`,
`hardening` (the library with its unsafe ways closed), `admission` (may this replica vote?),
`elections` (terms, votes, roles), `progress` (one follower, as the leader sees it), `snapshots`
(streams of them), `applying` (proposals, apply, reads), `replica` (replication, compaction),
`group` (what the host calls).
"""

from ledger_node.raft.contract import (
    FatalRaftError,
    LogLimits,
    ProposalOutcome,
    RaftLog,
    RaftTiming,
    Role,
    SnapshotReader,
    Standing,
)
from ledger_node.raft.group import RaftGroup
from ledger_node.raft.snapshots import StreamSlots

__all__ = [
    "FatalRaftError",
    "LogLimits",
    "ProposalOutcome",
    "RaftGroup",
    "RaftLog",
    "RaftTiming",
    "Role",
    "SnapshotReader",
    "Standing",
    "StreamSlots",
]

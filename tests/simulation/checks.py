"""What must hold after every turn of every host (Raft paper, figure 3, and the books)."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from ledger.internal.v1 import peer_pb2
from ledger_cluster.config import ClusterConfig
from ledger_node.audit import audit
from ledger_node.raft import Role
from ledger_node.raft.library import Kind
from tests.simulation.disk import ShadowLog
from tests.simulation.engine import Engine, Violation, require
from tests.simulation.host import Host, Outbox

AUDIT_SHARE = 0.02


@dataclass(slots=True)
class ShardFacts:
    """What all replicas of a shard must agree on, as far as any of them has got."""

    committed: list[tuple[int, int]] = field(default_factory=list)
    """(term, checksum) of every committed entry, from index 1."""
    payloads: list[bytes] = field(default_factory=list)
    committed_in: list[int] = field(default_factory=list)
    """The term of the replica that was first seen to know."""
    chain: dict[int, bytes] = field(default_factory=dict)
    leaders: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Who (host and life) led in a term."""
    votes: dict[tuple[str, int], str] = field(default_factory=dict)
    """(host, term) -> whom it told that it voted for it."""


@dataclass(slots=True)
class _Seen:
    life: int
    state: tuple[int, int, int, int]
    committed: int = 0


class Checks:
    """Looks at hosts after their turns, and at what they release."""

    def __init__(
        self, engine: Engine, config: ClusterConfig, hosts: dict[str, Host], *, strict: bool
    ) -> None:
        self._engine = engine
        self._strict = strict
        self._hosts = hosts
        self.shards = {shard.id: ShardFacts() for shard in config.shards}
        self._members = {shard.id: shard.node_ids for shard in config.shards}
        self._seen: dict[tuple[str, int], _Seen] = {}
        self._restarted: dict[tuple[str, int], int] = {}
        # So that looking closer does not change what happens.
        self._next_audit = 1 / AUDIT_SHARE

    def turned(self, host: Host) -> None:
        """A host has committed a turn."""
        assert host.node is not None
        for shard_id, replica in host.node._replicas.items():
            group = replica.group
            state = (group.term, group.role, group.commit_index, group.applied_index)
            seen = self._seen.get((host.id, shard_id))
            if seen is None or seen.life != host.life:
                wiped = host.disk.shadows[shard_id].wiped
                term = seen.state[0] if seen and not wiped else 0
                seen = self._seen[host.id, shard_id] = _Seen(host.life, (term, 0, 0, 0))
            if state != seen.state:
                self._changed(host, shard_id, seen, state)
                seen.state = state

    def _changed(
        self, host: Host, shard_id: int, seen: _Seen, state: tuple[int, int, int, int]
    ) -> None:
        term, role, commit, applied = state
        facts, shadow = self.shards[shard_id], host.disk.shadows[shard_id]
        require(term >= seen.state[0], "a term fell")
        require(commit >= seen.committed, "a commit index fell")
        if self._strict:
            require(applied <= commit <= shadow.last, "commit index outside the log on disk")
            require(shadow.hard_state[0] == term, "a term was not stored with its turn")
        if role == Role.LEADER:
            self._leads(facts, shadow, host, shard_id, term)
            if (seen.state[0], seen.state[1]) == (term, role) and commit > seen.state[2]:
                self._counts(shadow, term, commit)
            self._follows(host, shard_id, shadow, term)
        if shadow.wiped and not host.group(shard_id).unproven:
            shadow.wiped = False
            self._engine.counts["wiped replicas back"] += 1
        if shadow.restarted > self._restarted.get((host.id, shard_id), 0):
            self._restarted[host.id, shard_id] = shadow.restarted
            self._engine.counts["snapshots installed"] += 1
        for index in range(max(seen.committed, shadow.restarted) + 1, commit + 1):
            entry = shadow.entries.get(index)
            if entry is None and not self._strict:
                return
            if entry is None:
                raise Violation(f"entry {index} is committed, but not on disk")
            if index > len(facts.committed):
                require(index == len(facts.committed) + 1, "a commit that nobody saw before")
                self._commits(facts, shard_id, index, entry, term)
                facts.payloads.append(shadow.payloads[index])
            require(facts.committed[index - 1] == entry, f"two commits at index {index}")
            seen.committed = index
        seen.committed = commit
        if applied != seen.state[3]:
            self._applied(facts, host, shard_id, applied)

    def _counts(self, shadow: ShadowLog, term: int, commit: int) -> None:
        """Only entries of a leader's own term are committed by counting (section 5.4.2)."""
        if self._strict:
            entry_term = shadow.entries[commit][0]
            require(entry_term == term, f"the leader of term {term} counted for term {entry_term}")

    def _follows(self, host: Host, shard_id: int, shadow: ShadowLog, term: int) -> None:
        """What a leader believes of its followers' logs is on their disks."""
        if not self._strict:
            return
        for peer_id, progress in host.group(shard_id)._replica._peers.items():
            match = progress.match_index
            theirs = self._hosts[peer_id].disk.shadows[shard_id]
            require(
                match == 1
                or match not in shadow.entries
                or match <= shadow.restarted
                or theirs.wiped
                or theirs.hard_state[0] > term
                or theirs.holds(match, shadow.entries[match]),
                f"the leader of term {term} believes entry {match} to be stored where it is not",
            )

    def _leads(
        self, facts: ShardFacts, shadow: ShadowLog, host: Host, shard_id: int, term: int
    ) -> None:
        who = (host.id, host.life)
        members = self._members[shard_id]
        if term in facts.leaders:
            first = facts.leaders[term]
            require(first == who, f"two leaders in term {term}: {first} and {who}")
            return
        facts.leaders[term] = who
        voters = sum(facts.votes.get((name, term)) == host.id for name in members)
        require(
            2 * voters > len(members) or not self._strict,
            f"the leader of term {term} has {voters} votes of {len(members)}",
        )
        self._engine.counts["leaders"] += 1
        for i, entry in enumerate(facts.committed if self._strict else ()):
            require(
                facts.committed_in[i] >= term or shadow.holds(i + 1, entry),
                f"the leader of term {term} lacks the committed entry {i + 1}",
            )

    def _commits(
        self, facts: ShardFacts, shard_id: int, index: int, entry: tuple[int, int], term: int
    ) -> None:
        """Someone is the first to know an entry committed: a majority must have it on disk."""
        members = self._members[shard_id]
        holders = sum(
            shadow.wiped or shadow.holds(index, entry)
            for shadow in (self._hosts[name].disk.shadows[shard_id] for name in members)
        )
        # Entry 1 is the same on every replica from the start.
        enough = 2 * holders > len(members) or index == 1 or not self._strict
        require(enough, f"entry {index} is committed without a majority")
        facts.committed.append(entry)
        facts.committed_in.append(term)
        self._engine.counts["entries committed"] += 1

    def _applied(self, facts: ShardFacts, host: Host, shard_id: int, applied: int) -> None:
        assert host.store is not None
        with host.store.read_newest() as view:
            meta = view.shard(shard_id).meta()
        index = meta.applied_index
        require(index <= applied, "the state is ahead of what was applied")
        for skipped in range(index + 1, applied + 1 if self._strict else 0):
            is_command = facts.payloads[skipped - 1][0] == Kind.REGULAR
            require(not is_command, f"entry {skipped} counts as applied, but is not in the state")
        if index:
            first = facts.chain.setdefault(index, meta.chain_hash)
            require(first == meta.chain_hash, f"replicas differ at index {index}")
        self._next_audit -= 1
        if self._next_audit <= 0:
            self._next_audit = 1 / AUDIT_SHARE
            self.audit(host, [shard_id])

    def wiped(self, host: Host) -> None:
        """A disk was emptied. Its host was no candidate that could still count its own vote."""
        for facts in self.shards.values():
            for (voter, term), candidate in list(facts.votes.items()):
                if voter == candidate == host.id:
                    del facts.votes[voter, term]

    def audit(self, host: Host, shard_ids: Iterable[int]) -> None:
        """Sum the books of replicas, and hold every account against its floor."""
        assert host.store is not None
        with host.store.read_newest() as view:
            for shard_id in shard_ids:
                tables = view.shard(shard_id)
                faults = audit(tables).faults
                require(not faults, f"the books of shard {shard_id}: {faults}")
                for _slot, row in tables.balances():
                    available = row.available_balance(row.type.normal_side)
                    require(not row.floored or available >= 0, "an account is below its floor")
        self._engine.counts["audits"] += 1

    def released(self, host: Host, outbox: Outbox) -> None:
        """Messages leave a host: what they say must be on its disk, and votes final."""
        for peer_id, messages in outbox.items() if self._strict else ():
            for message in messages:
                shadow = host.disk.shadows[message.shard_id]
                term, voted_for = shadow.hard_state
                if message.type == peer_pb2.RAFT_MESSAGE_TYPE_REQUEST_VOTE:
                    self._votes(host, message.shard_id, message.term, host.id)
                elif message.type == peer_pb2.RAFT_MESSAGE_TYPE_REQUEST_VOTE_REPLY and message.ok:
                    self._votes(host, message.shard_id, message.term, peer_id)
                    require(
                        term > message.term or (term, voted_for) == (message.term, peer_id),
                        "a vote was sent before it was stored",
                    )
                elif message.type == peer_pb2.RAFT_MESSAGE_TYPE_APPEND_ENTRIES:
                    require(term >= message.term, "a leader sent entries in a term it may forget")
                elif (
                    message.type == peer_pb2.RAFT_MESSAGE_TYPE_APPEND_ENTRIES_REPLY
                    and message.ok
                    and message.term == term
                ):
                    require(
                        message.match_index <= shadow.last,
                        "entries were confirmed before they were stored",
                    )

    def _votes(self, host: Host, shard_id: int, term: int, candidate: str) -> None:
        first = self.shards[shard_id].votes.setdefault((host.id, term), candidate)
        require(
            first == candidate, f"{host.id} voted twice in term {term}: {first} and {candidate}"
        )

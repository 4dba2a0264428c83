"""A node: one host of many replicas, driven in turns. Sans-I/O: no socket, clock or thread here.

One *turn* has two halves: first the log, then the state. `Node.turn` takes what has arrived, feeds
it to the Raft groups, writes what the logs have gained with one fsync, and only then lets the
messages to peers out: all but the entries that leaders replicate, which may be on their followers'
disks first (`RaftGroup.take_appends`). The second half applies what is committed: `Node.apply` what
somebody waits for, and lets replies and answers out; `Node.follow` the rest. So no peer waits for
what this node applies, and no caller for what it applies as a follower. **Persist before send**:
whatever another process may rely on is on disk, in the logs. The state follows in the store's
checkpoints. A crash at any point leaves the logs at the end of some turn's first half, and a state
that they lead on from.

All of them raise where the process must not go on (a failed commit, a broken invariant); the caller
ends the process and releases nothing more.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from ledger.internal.v1 import peer_pb2, shard_pb2
from ledger_cluster.channels import EXECUTE_BYTES_MAX, REPLAY_BYTES_MAX, RESULTS_BYTES_MAX
from ledger_cluster.config import ClusterConfig, ShardConfig
from ledger_core.commands import Command, CreateTransaction, encode_batch, encode_command
from ledger_core.queries import Query
from ledger_core.results import Result, decode_result, encode_result
from ledger_node.coordinator import Coordinator, ShardCall
from ledger_node.node_replicas import (
    ExecuteReply,
    Proposal,
    QueryReply,
    Read,
    Replica,
    Turn,
)
from ledger_node.raft import (
    LogLimits,
    ProposalOutcome,
    RaftGroup,
    RaftTiming,
    Role,
    StreamSlots,
)
from ledger_node.reads import answer
from ledger_node.state_machine import StateMachine
from ledger_node.store import ReadView, ShardTables, Store, StoredRaftLog
from ledger_node.views import transaction_view

# Bounds of a turn's work, so that heartbeats are never late.
MESSAGES_PER_TURN_MAX = 2_000
INBOX_MESSAGES_MAX = 50_000
BATCH_COMMANDS_MAX = 2_000
BATCH_BYTES_MAX = 512 << 10
ENTRY_BYTES_MAX = BATCH_BYTES_MAX + EXECUTE_BYTES_MAX
# The larger ones are entries of another journal, one in each log entry.
assert ENTRY_BYTES_MAX < REPLAY_BYTES_MAX < RaftGroup.PAYLOAD_BYTES_MAX

# A follower applies small entries that have gathered at every third tick, not all shards at the
# same one. In one turn followers apply so many bytes of entries at most: some milliseconds, so that
# what somebody waits for is not held up. Whatever it has, a run counts as so many.
GATHER_TICKS = 3
FOLLOW_BYTES_MAX = 32 << 10
FOLLOW_RUN_BYTES = 4 << 10

# How often a leader looks whether pending transactions are to expire.
EXPIRY_CHECK_S = 0.2

# Bounds of what may wait, per shard. A batch plus one more call fits into one log entry.
WAITING_COMMANDS_MAX = 20_000
WAITING_QUERIES_MAX = 20_000

Outbox = dict[str, list[peer_pb2.RaftMessage]]
"""Messages by the peer that they are for."""

_Unfinished = tuple[list[int], list[int]]
"""Transactions by number: those in flight at their home, and those undecided at a participant."""


class Node:
    """All replicas of one node. Inputs queue up; `turn`, then `apply`, then `follow` do the work.

    ``pre_vote=False`` is for tests: it lets more elections happen.
    """

    def __init__(
        self,
        *,
        config: ClusterConfig,
        node_id: str,
        store: Store,
        clock: Callable[[], float],
        wall_clock_us: Callable[[], int],
        rng: random.Random,
        timing: RaftTiming,
        log_limits: LogLimits | None = None,
        pre_vote: bool = True,
    ) -> None:
        self.node_id = node_id
        self._pre_vote = pre_vote
        self._log_limits = log_limits
        self._slots = StreamSlots()
        self._store = store
        self._clock = clock
        self._wall_clock_us = wall_clock_us
        self._inbox: deque[tuple[str, peer_pb2.RaftMessage]] = deque()
        self._touched: set[int] = set()
        self._draining = False
        # Peers that messages reach, and that do not stop.
        self._successors: set[str] = set()
        self._full = False
        self._full_message: str | None = None
        self._view: ReadView | None = None
        self._coordinator = Coordinator(self._propose_own, self._applied_tables)
        self._coordination: list[Callable[[], None]] = []
        self._begun: Turn | None = None
        self._expiry_check_at = 0.0
        self._ticks = 0
        self._followed = -1
        now = clock()
        self._next_tick = now
        self._tick_s = timing.heartbeat_s / 3
        self._replicas = {
            shard.id: self._open_replica(shard, timing, rng, now)
            for shard in config.shards_on(node_id)
        }

    def _open_replica(
        self, shard: ShardConfig, timing: RaftTiming, rng: random.Random, now: float
    ) -> Replica:
        tables = self._store.shard(shard.id)
        state_machine = StateMachine(tables, shard.id)
        group = RaftGroup(
            shard_id=shard.id,
            self_id=self.node_id,
            peer_ids=[node_id for node_id in shard.node_ids if node_id != self.node_id],
            log=StoredRaftLog(self._store, shard.id),
            apply=partial(self._apply, state_machine),
            timing=timing,
            rng=rng,
            now=now,
            log_limits=self._log_limits,
            slots=self._slots,
            preferred_leader=shard.node_ids[0] == self.node_id,
            pre_vote=self._pre_vote,
        )
        return Replica(shard, group, state_machine, current_at=now)

    def _apply(
        self,
        state_machine: StateMachine,
        entries: Sequence[tuple[int, bytes]],
        wanted: bool,
    ) -> Sequence[Sequence[Result]]:
        self._store.wrote(sum(len(payload) for _index, payload in entries))
        return state_machine.apply_run(entries, wanted=wanted)

    # Inputs

    def receive(self, peer_id: str, messages: Sequence[peer_pb2.RaftMessage]) -> None:
        """Queue messages of a peer for the next turn; drop them where too many wait.

        Messages may be lost at any time: Raft sends again what matters.
        """
        if len(self._inbox) + len(messages) <= INBOX_MESSAGES_MAX:
            self._inbox.extend((peer_id, message) for message in messages)

    def peer_connected(self, peer_id: str) -> None:
        """Note that messages reach a peer from now on."""
        self._successors.add(peer_id)
        for replica in self._replicas.values():
            if peer_id in replica.config.node_ids:
                replica.group.peer_connected(peer_id)

    def peer_disconnected(self, peer_id: str) -> None:
        """Note that a peer cannot be reached."""
        self._successors.discard(peer_id)
        for replica in self._replicas.values():
            if peer_id in replica.config.node_ids:
                replica.group.peer_disconnected(peer_id)

    def peer_stopping(self, peer_id: str) -> None:
        """Note that a peer takes over no leadership any more, until it is connected anew."""
        self._successors.discard(peer_id)

    def execute(
        self,
        shard_id: int,
        commands: Sequence[bytes],
        done: Callable[[ExecuteReply], None],
        begins: Sequence[CreateTransaction] = (),
        *,
        urgent: bool = False,
    ) -> None:
        """Queue encoded, valid commands; ``done`` is called once, maybe at once with a refusal.

        ``begins`` are those among them that begin a transaction across shards. ``urgent`` commands
        bring such ones to their end: they are taken although the store is nearly full.
        """
        replica = self._replicas.get(shard_id)
        if replica is None:
            done(ExecuteReply(shard_pb2.OUTCOME_WRONG_NODE))
        elif not self._leads(replica):
            done(ExecuteReply(shard_pb2.OUTCOME_NOT_LEADER, leader_id=self._leader_hint(replica)))
        elif replica.waiting_commands + len(commands) > WAITING_COMMANDS_MAX:
            message = f"{replica.waiting_commands} writes wait for shard {shard_id}; slow down"
            done(ExecuteReply(shard_pb2.OUTCOME_RESOURCE_EXHAUSTED, message=message))
        elif not urgent and (message := self._fullness()):
            done(ExecuteReply(shard_pb2.OUTCOME_RESOURCE_EXHAUSTED, message=message))
        else:
            replica.proposals.append(Proposal(commands, done))
            replica.waiting_commands += len(commands)
            self._touched.add(shard_id)
            for command in begins:
                self._coordinate(partial(self._begin, shard_id, command))

    def await_transaction(
        self, shard_id: int, number: int, state: int, done: Callable[[QueryReply], None]
    ) -> None:
        """Answer with the ``state``-th state of a transaction once all its shards have applied it.

        ``done`` is called once, in a later turn.
        """
        replica = self._replicas.get(shard_id)
        if replica is None or not self._leads(replica):
            leader_id = "" if replica is None else self._leader_hint(replica)
            done(QueryReply(shard_pb2.OUTCOME_NOT_LEADER, leader_id=leader_id))
            return

        def delivered(led: bool) -> None:
            reply = self._transaction_reply(replica, number, state) if led else None
            done(reply or QueryReply(shard_pb2.OUTCOME_NOT_LEADER))

        self._coordinate(partial(self._coordinator.await_delivery, shard_id, number, delivered))

    def call_ended(self, call: ShardCall, result: Result | None) -> None:
        """Take the result of a call that `take_calls` gave out; None where it is unknown."""
        self._coordinate(partial(call.done, result))

    def take_calls(self) -> list[ShardCall]:
        """Return the commands for other shards that are to be sent after `apply`."""
        return self._coordinator.take_calls()

    def query(
        self,
        shard_id: int,
        queries: Sequence[Query],
        done: Callable[[QueryReply], None],
        *,
        stale: bool,
    ) -> None:
        """Queue queries; ``done`` is called once, maybe at once with a refusal."""
        replica = self._replicas.get(shard_id)
        if replica is None:
            done(QueryReply(shard_pb2.OUTCOME_WRONG_NODE))
        elif not stale and not self._leads(replica):
            done(QueryReply(shard_pb2.OUTCOME_NOT_LEADER, leader_id=self._leader_hint(replica)))
        elif len(replica.reads) + len(replica.stale_reads) >= WAITING_QUERIES_MAX:
            message = f"{WAITING_QUERIES_MAX} reads wait for shard {shard_id}; slow down"
            done(QueryReply(shard_pb2.OUTCOME_RESOURCE_EXHAUSTED, message=message))
        else:
            reads = replica.stale_reads if stale else replica.reads
            reads.append(Read(queries, done))
            self._touched.add(shard_id)

    def drain(self) -> None:
        """Take no more work, finish what waits, and hand leadership away, turn by turn."""
        self._draining = True

    @property
    def drained(self) -> bool:
        """Whether this node leads nothing any more that another node could take over.

        Nobody waits for a peer that cannot be reached: it may be down for long, and when it is back
        it is elected as it would be by the handover, only later. Nor for one that stops as well.
        """
        return not any(
            replica.group.role is Role.LEADER
            and not self._successors.isdisjoint(replica.config.node_ids)
            for replica in self._replicas.values()
        )

    @property
    def leads(self) -> bool:
        """Whether this node leads any shard."""
        return any(replica.group.role is Role.LEADER for replica in self._replicas.values())

    # The turn

    def turn(self, send_early: Callable[[Outbox], None] | None = None) -> Outbox:
        """Do a turn's first half; return the messages for each peer, now safe to send.

        ``send_early`` is called before the commit, with what followers can write to their disks
        while this node writes to its own. `apply` and `follow` have to come before the next turn.
        Inputs may come in between.
        """
        assert self._begun is None, "the parts of a turn take turns"
        now = self._clock()
        self._full_message = None
        ticks = now >= self._next_tick
        if ticks:
            self._next_tick = now + self._tick_s
            self._ticks += 1
            touched = set(self._replicas)
            # Another node may have room: writes go on there.
            self._full = bool(self._fullness())
        else:
            touched = set(self._touched)
        hands_over = ticks and (self._draining or self._full)
        self._touched.clear()
        for _ in range(min(len(self._inbox), MESSAGES_PER_TURN_MAX)):
            peer_id, message = self._inbox.popleft()
            if (
                self._draining or self._full
            ) and message.type == peer_pb2.RAFT_MESSAGE_TYPE_TIMEOUT_NOW:
                # Nodes that stop, or that are full, must not hand leadership to each other in turn.
                continue
            if (replica := self._replicas.get(message.shard_id)) is not None:
                replica.group.receive(now, peer_id, message)
                touched.add(message.shard_id)
        replicas = [self._replicas[shard_id] for shard_id in sorted(touched)]
        for replica in replicas:
            self._propose_waiting(replica, now)
            self._confirm_reads(replica, now)
            replica.group.tick(now)
            if hands_over and replica.group.role is Role.LEADER:
                replica.group.transfer_leadership(now)
            replica.group.flush(now)
        if send_early is not None:
            early = _by_peer(item for replica in replicas for item in replica.group.take_appends())
            if early:
                send_early(early)
        self._store.commit_log()
        self._begun = Turn(now, ticks, replicas)
        return _by_peer(item for replica in replicas for item in replica.group.take_messages())

    def apply(self) -> None:
        """Begin a turn's second half: apply what somebody waits for, and answer."""
        turn = self._begun
        assert turn is not None, "a turn has begun"
        assert not turn.applied, "the parts of a turn take turns"
        turn.applied = True
        for replica in turn.replicas:
            if replica.group.role is Role.LEADER or replica.stale_reads:
                replica.group.apply(turn.now)
        for replica in turn.replicas:
            for complete in replica.group.take_completions():
                complete()
            self._answer_stale_reads(replica, turn.now, ticks=turn.ticks)
        self._run_coordinator(turn.replicas, turn.now, ticks=turn.ticks)

    def follow(self) -> None:
        """End a turn's second half with what nobody waits for.

        Applies what followers are to apply by now, a bounded amount over all shards, and makes a
        checkpoint of the state if one is due.
        """
        turn = self._begun
        assert turn is not None, "a turn has begun"
        assert turn.applied, "the parts of a turn take turns"
        self._begun = None
        size = 0
        for replica in sorted(turn.replicas, key=self._place_in_line):
            if replica.group.role is Role.LEADER:
                continue
            if size >= FOLLOW_BYTES_MAX:
                self._touched.add(replica.config.id)
                continue
            due = turn.ticks and (self._ticks + replica.config.id) % GATHER_TICKS == 0
            if applied := replica.group.apply(turn.now, may_gather=not due):
                size += max(applied, FOLLOW_RUN_BYTES)
                self._followed = replica.config.id
        self._store.end_turn(self._clock)
        for replica in turn.replicas:
            if replica.group.has_pending_work or (replica.proposals and not replica.is_blocked):
                self._touched.add(replica.config.id)

    def _place_in_line(self, replica: Replica) -> tuple[bool, int]:
        """Who was served last is behind all others."""
        return replica.config.id <= self._followed, replica.config.id

    def next_turn_at(self) -> float:
        """When the next turn is due: at once (0.0) if something waits, else at the next tick."""
        waiting = self._inbox or self._touched or self._coordination
        return 0.0 if waiting else self._next_tick

    def _fullness(self) -> str:
        """Say what is nearly full, if anything. The store is asked once between two turns."""
        if self._full_message is None:
            self._full_message = self._store.full() or ""
        return self._full_message

    def _propose_waiting(self, replica: Replica, now: float) -> None:
        """Turn all waiting commands, up to the bounds, into one log entry."""
        if not replica.proposals or replica.is_blocked:
            return
        taken: list[Proposal] = []
        commands: list[bytes] = []
        size = 0
        while replica.proposals and len(commands) < BATCH_COMMANDS_MAX and size < BATCH_BYTES_MAX:
            proposal = replica.proposals[0]
            size += sum(map(len, proposal.commands))
            if taken and size > ENTRY_BYTES_MAX:
                break
            taken.append(replica.proposals.popleft())
            commands.extend(proposal.commands)
        replica.waiting_commands -= len(commands)

        def done(
            outcome: ProposalOutcome, log_index: int, results: Sequence[Result] | None
        ) -> None:
            if outcome is not ProposalOutcome.APPLIED or results is None:
                refusal = ExecuteReply(
                    _PROPOSAL_OUTCOME[outcome], leader_id=self._leader_hint(replica)
                )
                for proposal in taken:
                    proposal.done(refusal)
                return
            start = 0
            for proposal in taken:
                end = start + len(proposal.commands)
                encoded = _fitting(map(encode_result, results[start:end]), end - start)
                proposal.done(
                    ExecuteReply(shard_pb2.OUTCOME_OK, results=encoded, log_index=log_index)
                )
                start = end

        replica.group.propose(now, encode_batch(self._wall_clock_us(), commands), done)

    def _confirm_reads(self, replica: Replica, now: float) -> None:
        """Ask once, for all waiting reads, whether this node still leads (ReadIndex)."""
        if not replica.reads:
            return
        reads, replica.reads = replica.reads, []

        def done(confirmed: bool, applied_index: int) -> None:
            if confirmed:
                self._answer(replica, reads, applied_index, age_s=0.0)
                return
            refusal = QueryReply(shard_pb2.OUTCOME_NOT_LEADER, leader_id=self._leader_hint(replica))
            for read in reads:
                read.done(refusal)

        replica.group.read_index(now, done)

    def _answer_stale_reads(self, replica: Replica, now: float, *, ticks: bool) -> None:
        if not (ticks or replica.stale_reads):
            return
        if (current_at := replica.group.current_at) is not None:
            replica.current_at = current_at
        if replica.stale_reads:
            reads, replica.stale_reads = replica.stale_reads, []
            self._answer(
                replica, reads, replica.group.applied_index, age_s=now - replica.current_at
            )

    def _answer(
        self, replica: Replica, reads: list[Read], applied_index: int, age_s: float
    ) -> None:
        """Answer from the state as applied."""
        with self._store.read_newest() as view:
            tables = view.shard(replica.config.id)
            for read in reads:
                answers = (answer(tables, query, replica.config.id) for query in read.queries)
                results = _fitting(map(encode_result, answers), len(read.queries))
                read.done(QueryReply(shard_pb2.OUTCOME_OK, results, applied_index, age_s))

    # Transactions across shards

    def _run_coordinator(self, replicas: Sequence[Replica], now: float, *, ticks: bool) -> None:
        """Let the coordinator see what this turn has applied, and act on it."""
        open_ended: list[tuple[Replica, _Unfinished, _Unfinished]] = []
        gained: list[Replica] = []
        for replica in replicas:
            in_flight, undecided = replica.state_machine.take_unfinished()
            later = replica.state_machine.take_unfinished_later()
            if replica.coordinated and not self._leads(replica):
                replica.coordinated = False
                self._coordinator.lose(replica.config.id)
            elif not replica.coordinated and replica.group.serving and self._leads(replica):
                replica.coordinated = True
                gained.append(replica)
            elif replica.coordinated and (in_flight or undecided or any(later)):
                open_ended.append((replica, (in_flight, undecided), later))
        checks_expiry = ticks and now >= self._expiry_check_at
        if checks_expiry:
            self._expiry_check_at = now + EXPIRY_CHECK_S
        ticks = ticks and not self._coordinator.idle
        if not (open_ended or gained or self._coordination or ticks or checks_expiry):
            return
        with self._store.read_newest() as view:
            self._view = view
            for replica in gained:
                self._coordinator.lead(replica.config.id, now)
            for replica, numbers, later in open_ended:
                self._coordinator.unfinished(replica.config.id, *numbers, now)
                self._coordinator.unfinished_later(replica.config.id, *later, now)
            steps, self._coordination = self._coordination, []
            for step in steps:
                step()
            if ticks:
                self._coordinator.tick(now)
            if checks_expiry:
                for replica in replicas:
                    self._expire(replica)
            self._view = None

    def _coordinate(self, step: Callable[[], None]) -> None:
        """Have the coordinator do something in the next turn's second half, or in this one's."""
        self._coordination.append(step)

    def _begin(self, shard_id: int, command: CreateTransaction) -> None:
        self._coordinator.begin(shard_id, command, self._clock())

    def _applied_tables(self, shard_id: int) -> ShardTables:
        assert self._view is not None, "the coordinator acts within a turn"
        return self._view.shard(shard_id)

    def _propose_own(
        self, shard_id: int, command: Command, reply: Callable[[Result | None], None]
    ) -> None:
        def done(executed: ExecuteReply) -> None:
            known = executed.outcome == shard_pb2.OUTCOME_OK
            result = decode_result(executed.results[0]) if known else None
            self._coordinate(partial(reply, result))

        self.execute(shard_id, [encode_command(command)], done, urgent=True)

    def _transaction_reply(self, replica: Replica, number: int, state: int) -> QueryReply | None:
        """Show a state of a transaction; None where this node has not heard of it.

        Who asks was told of it, so another node leads the shard by now.
        """
        tables = self._applied_tables(replica.config.id)
        record = tables.find_transaction(number)
        if record is None or state >= len(record.states):
            return None
        view = transaction_view(number, record, tables.meta().books[record.book], state)
        return QueryReply(shard_pb2.OUTCOME_OK, [encode_result(view)], replica.group.applied_index)

    def _expire(self, replica: Replica) -> None:
        """Give the state machine a time at which pending transactions expire, if some are due."""
        if not replica.coordinated:
            return
        tables = self._applied_tables(replica.config.id)
        due = any(tables.expirations_until(self._wall_clock_us()))
        if due and not tables.meta().importing:
            replica.proposals.append(Proposal([], lambda _reply: None))
            self._touched.add(replica.config.id)

    # Status

    def replica_statuses(self) -> list[shard_pb2.ReplicaStatus]:
        """Return where every replica stands."""
        return [
            shard_pb2.ReplicaStatus(
                shard_id=shard_id,
                role=_ROLE[replica.group.role],
                term=replica.group.term,
                leader_node_id=replica.group.leader_id or "",
                commit_index=replica.group.commit_index,
                applied_index=replica.group.applied_index,
                last_log_index=replica.group.last_index,
                serving=replica.group.serving and not self._draining,
                first_log_index=replica.group.first_index,
                unproven=replica.group.unproven,
                installing_bytes=replica.group.installing_bytes,
            )
            for shard_id, replica in self._replicas.items()
        ]

    def led_shards(self) -> dict[int, int]:
        """Return the shards that this node leads, and up to which index `Store.read` shows each."""
        return {
            shard_id: replica.group.durable_index
            for shard_id, replica in self._replicas.items()
            if replica.group.role is Role.LEADER and replica.group.serving and not self._draining
        }

    def shard_config(self, shard_id: int) -> ShardConfig | None:
        """Return the configuration of a shard that has a replica here."""
        replica = self._replicas.get(shard_id)
        return None if replica is None else replica.config

    def _leads(self, replica: Replica) -> bool:
        return replica.group.role is Role.LEADER and not self._draining

    def _leader_hint(self, replica: Replica) -> str:
        """Name the leader where it is known to be another node."""
        leader_id = replica.group.leader_id
        return leader_id if leader_id and leader_id != self.node_id else ""


def _by_peer(messages: Iterable[tuple[str, peer_pb2.RaftMessage]]) -> Outbox:
    """Return messages by the peer that they are for."""
    outbox: Outbox = {}
    for peer_id, message in messages:
        outbox.setdefault(peer_id, []).append(message)
    return outbox


def _fitting(results: Iterable[bytes], count: int) -> list[bytes]:
    """Return so many results; those behind the ones that fit into a message are left empty."""
    found: list[bytes] = []
    size = 0
    for result in results:
        size += len(result)
        if found and size > RESULTS_BYTES_MAX:
            break
        found.append(result)
    return found + [b""] * (count - len(found))


_ROLE = {
    Role.FOLLOWER: shard_pb2.REPLICA_ROLE_FOLLOWER,
    Role.CANDIDATE: shard_pb2.REPLICA_ROLE_CANDIDATE,
    Role.LEADER: shard_pb2.REPLICA_ROLE_LEADER,
}

_PROPOSAL_OUTCOME = {
    ProposalOutcome.NOT_LEADER: shard_pb2.OUTCOME_NOT_LEADER,
    ProposalOutcome.UNKNOWN: shard_pb2.OUTCOME_UNKNOWN,
    ProposalOutcome.APPLIED: shard_pb2.OUTCOME_OK,
}

"""One process: the real node on a simulated machine, with clocks and a disk of its own."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from ledger.internal.v1.peer_pb2 import RaftMessage
from ledger_cluster.config import ClusterConfig
from ledger_core.commands import CreateTransaction, encode_command, is_across_shards
from ledger_core.queries import Query
from ledger_node.coordinator import ShardCall
from ledger_node.node import Node
from ledger_node.node_replicas import ExecuteReply, QueryReply
from ledger_node.raft import LogLimits, RaftGroup, RaftTiming, Role
from ledger_node.raft.library import clock as library_clock
from ledger_node.shard_service import STEPS_TO_THE_END, _check_commands
from ledger_node.store import Store
from tests.simulation.disk import Disk, DiskError, SimulatedCrash, SimulatedStore
from tests.simulation.engine import Engine, require
from tests.simulation.gateway import Answer, End, Gateway, Kind
from tests.simulation.plan import Plan

T = TypeVar("T")
Outbox = dict[str, list[RaftMessage]]

DRAIN_S_MAX = 1.5
# Of the time that a turn takes, for its first half: the disk's part.
LOG_SHARE = 0.7
WALL_START_US = 1_700_000_000_000_000


class HostEvents(Protocol):
    """Who is told what happens to a host."""

    def started(self, host: "Host") -> None:
        """The host has a process."""

    def crashed(self, host: "Host") -> None:
        """The host's process is gone."""

    def wiped(self, host: "Host") -> None:
        """The host's disk was emptied."""

    def turned(self, host: "Host") -> None:
        """Half of a turn is done."""

    def released(self, host: "Host", outbox: Outbox) -> None:
        """A turn's messages leave the process."""


class Host:
    """A machine that runs one node, on and off."""

    def __init__(
        self, engine: Engine, plan: Plan, config: ClusterConfig, node_id: str, disk: Disk
    ) -> None:
        self.id = node_id
        self.disk = disk
        self.life = 0
        self.node: Node | None = None
        self.store: SimulatedStore | None = None
        self.disk_slow_until = 0.0
        self.disk_slow_s = 0.0
        self.events: HostEvents
        self.new_client: Callable[[str], Gateway]
        """Makes what carries the calls of a process to other shards."""
        self._client: Gateway | None = None
        self.strict = True
        self._engine = engine
        self._plan = plan
        self._config = config
        self._timing = RaftTiming(
            plan.timing.heartbeat_s, plan.timing.election_min_s, plan.timing.election_max_s
        )
        self._busy_until = 0.0
        self._turn_at: float | None = None
        self._in_turn = False
        self._between_halves = False
        # Clocks: local time is _local + (now - _since) * rate.
        self._since = 0.0
        self._local = engine.rng.uniform(0, 1000)
        self.rate = 1.0
        self.wall_offset_us = round(engine.rng.uniform(-1, 1) * 50_000)

    # Clocks.

    def clock(self) -> float:
        """Return this machine's monotonic clock."""
        return self._local + (self._engine.now - self._since) * self.rate

    def wall_clock_us(self) -> int:
        """Return this machine's idea of the time of day."""
        return WALL_START_US + round(self._engine.now * 1e6) + self.wall_offset_us

    def set_rate(self, rate: float) -> None:
        """Let the monotonic clock run faster or slower from now on."""
        self._local, self._since, self.rate = self.clock(), self._engine.now, rate
        self.wake()

    def jump(self, forward_s: float) -> None:
        """Let the monotonic clock jump."""
        assert forward_s >= 0
        self._local += forward_s
        self.wake()

    # Life.

    @property
    def alive(self) -> bool:
        """Whether there is a process."""
        return self.node is not None

    def start(self) -> None:
        """Start a process on what the disk holds."""
        if self.node is not None:
            return
        self.life += 1
        self._engine.note(f"start {self.id}")
        self.store = self.disk.open()
        for shard in self._config.shards_on(self.id):
            if self.store.log(shard.id).installing() is not None:
                self._engine.counts["starts at the last step of an install"] += 1
        self.node = Node(
            config=self._config,
            node_id=self.id,
            store=self.store,
            clock=self.clock,
            wall_clock_us=self.wall_clock_us,
            rng=random.Random(self._engine.rng.random()),
            timing=self._timing,
            log_limits=LogLimits(keep_entries=self._plan.bounds.keep_entries),
            pre_vote=self._plan.pre_vote,
        )
        self._client = self.new_client(self.id)
        self._busy_until = self._engine.now
        self._turn_at = None
        self._between_halves = False
        self.events.started(self)
        self.wake()

    def crash(self, why: str) -> None:
        """End the process; what is not committed is gone."""
        if self.node is None:
            return
        assert self.store is not None
        self._engine.note(f"crash {self.id}: {why}")
        self._engine.counts[why] += 1
        Store.abort(self.store)
        self.store.close()
        self.node = self.store = None
        if self._client is not None:
            self._client.stop()
        self.events.crashed(self)

    def drain(self) -> None:
        """Stop as an operator would: hand leadership away, then end."""
        if self.node is None:
            return
        self.node.drain()
        life, deadline = self.life, self._engine.now + DRAIN_S_MAX

        def poll() -> None:
            if self.node is None or self.life != life:
                return
            if self.node.drained or self._engine.now >= deadline:
                self.crash("drained" if self.node.drained else "drained in vain")
                return
            self.wake()
            self._engine.after(0.02, poll)

        poll()

    # What reaches the process.

    def receive(self, peer_id: str, messages: Sequence[RaftMessage]) -> None:
        """Hand messages of a peer to the process."""
        if self.node is not None:
            self.node.receive(peer_id, messages)
            self.wake()

    def peer_connected(self, peer_id: str) -> None:
        """Tell the process that a link is up."""
        if self.node is not None:
            library_clock.now = self.clock()
            self.node.peer_connected(peer_id)
            self.wake()

    def peer_disconnected(self, peer_id: str) -> None:
        """Tell the process that a link is down."""
        if self.node is not None:
            library_clock.now = self.clock()
            self.node.peer_disconnected(peer_id)

    def execute(
        self, shard_id: int, commands: Sequence[bytes], reply: Callable[[ExecuteReply], None]
    ) -> None:
        """Hand commands to the process, checked as its service does."""
        assert self.node is not None
        shard = self.node.shard_config(shard_id)
        decoded = [] if shard is None else _check_commands(shard, commands)
        begins = [
            command
            for command in decoded
            if isinstance(command, CreateTransaction) and is_across_shards(command)
        ]
        urgent = all(isinstance(command, STEPS_TO_THE_END) for command in decoded)
        self.node.execute(shard_id, commands, self._answering(reply), begins, urgent=urgent)
        self.wake()

    def await_transaction(
        self, shard_id: int, number: int, state: int, reply: Callable[[QueryReply], None]
    ) -> None:
        """Have the process answer once all shards of a transaction have applied it."""
        assert self.node is not None
        self.node.await_transaction(shard_id, number, state, self._answering(reply))
        self.wake()

    def query(
        self,
        shard_id: int,
        queries: Sequence[Query],
        reply: Callable[[QueryReply], None],
        *,
        stale: bool,
    ) -> None:
        """Hand queries to the process."""
        assert self.node is not None
        self.node.query(shard_id, queries, self._answering(reply), stale=stale)
        self.wake()

    def _answering(self, reply: Callable[[T], None]) -> Callable[[T], None]:
        """Return a callback whose reply leaves the process when the turn is over."""
        life = self.life

        def done(result: T) -> None:
            store = self.store
            early = self._in_turn and store is not None and store.uncommitted
            if early and not self.strict:
                self._engine.after(0.0, lambda: reply(result))
                return
            require(not early, "a reply was given before the commit")

            def leave() -> None:
                if self.node is not None and self.life == life:
                    reply(result)

            self._engine.at(self._busy_until, leave)

        return done

    # Turns.

    def wake(self) -> None:
        """Take a turn soon: what arrives meanwhile shares it."""
        if self.node is not None and not self._between_halves:
            self._turn_no_later_than(self._engine.now + self._plan.turn_s * 0.2)

    def _turn_no_later_than(self, time_s: float) -> None:
        time_s = max(time_s, self._busy_until)
        if self._turn_at is not None and self._turn_at <= time_s:
            return
        self._turn_at = time_s
        life = self.life

        def due() -> None:
            if self.node is not None and self.life == life and self._turn_at == time_s:
                self._turn_at = None
                self._turn()

        self._engine.at(time_s, due)

    def _turn(self) -> None:
        """Take a turn's first half; its messages leave when the disk is done, then comes the rest.

        Without messages the rest comes at once.
        """
        node, engine = self.node, self._engine
        assert node is not None
        self._take_time(LOG_SHARE)
        outbox = self._half(partial(node.turn, self._send_early))
        if outbox is None:
            return
        engine.counts["turns"] += 1
        self.events.turned(self)
        if not outbox:
            self._finish_turn()
            return
        self._between_halves = True
        life = self.life

        def release() -> None:
            if self.node is not None and self.life == life:
                self._between_halves = False
                self.events.released(self, outbox)
                self._take_time(1 - LOG_SHARE)
                self._finish_turn()

        engine.at(self._busy_until, release)

    def _send_early(self, outbox: Outbox) -> None:
        """Let messages leave before the commit of their turn, which may fail."""
        self._engine.counts["sent before a commit"] += 1
        self.events.released(self, outbox)

    def _finish_turn(self) -> None:
        """Take a turn's second half; replies and calls leave when the disk is done."""
        node, store, engine = self.node, self.store, self._engine
        assert node is not None
        assert store is not None
        if store.crash_between_halves:
            self.crash("crashed between the halves of a turn")
            return
        store.applies = True
        if self._half(node.apply) is None or self._half(node.follow) is None:
            return
        store.applies = False
        self.events.turned(self)
        calls = node.take_calls()
        if calls:
            life = self.life

            def release() -> None:
                if self.node is not None and self.life == life:
                    for call in calls:
                        self._carry_out(call)

            engine.at(self._busy_until, release)
        due_at = engine.now + max(0.0, node.next_turn_at() - self.clock()) / self.rate
        self._turn_no_later_than(due_at)

    def _take_time(self, share: float) -> None:
        """Be busy for a share of a turn, from now on."""
        engine = self._engine
        slow = engine.now < self.disk_slow_until
        duration_s = self.disk_slow_s if slow else self._plan.turn_s
        self._busy_until = engine.now + share * duration_s * engine.rng.uniform(0.2, 1.0)

    def _half(self, work: Callable[[], Outbox | None]) -> Outbox | None:
        """Do half of a turn; return what it sends, or None if the process did not survive it."""
        store = self.store
        assert store is not None
        self._in_turn = True
        try:
            outbox = work() or {}
        except SimulatedCrash:
            why = "crashed in a turn"
            if store.crash_after_commit:
                why = "crashed after a commit"
            elif store.crash_after_checkpoint:
                why = "crashed after a checkpoint"
            self.crash(why)
            return None
        except DiskError:
            # The server ends the process here: `fatal.die`.
            self.crash("stopped at a failed commit")
            return None
        finally:
            self._in_turn = False
        if self.strict:
            require(not store.uncommitted, "half a turn ended with something not committed")
        return outbox

    def _carry_out(self, call: ShardCall) -> None:
        """Send a command of the coordinator to another shard; its end reaches this life only."""
        node, client = self.node, self._client
        assert node is not None
        assert client is not None
        counts = self._engine.counts
        counts[f"calls: {type(call.command).__name__}"] += 1

        def done(answer: Answer) -> None:
            counts["calls answered" if answer.end is End.OK else "calls in vain"] += 1
            node.call_ended(call, answer.result if answer.end is End.OK else None)
            self.wake()

        data = encode_command(call.command)
        client.call(call.shard_id, Kind.EXECUTE, data, self._plan.shard_call_s, done)

    # For checks and faults.

    def group(self, shard_id: int) -> "RaftGroup[object]":
        """Return a shard's Raft group in this process."""
        assert self.node is not None
        return self.node._replicas[shard_id].group  # type: ignore[return-value]

    def leads(self, shard_id: int) -> bool:
        """Whether this process believes to lead a shard."""
        return (
            self.node is not None
            and shard_id in self.node._replicas
            and self.group(shard_id).role is Role.LEADER
        )

"""A small gateway: what `ledger_cluster.shard_client` does, in simulated time.

Leader cache, batches per shard and kind, redirects, retries of the same bytes until a deadline,
and the same three ways to end: a result, an unknown outcome, or the promise that nothing was done.
Hosts have one, too, for the calls of their coordinators; it ends with their process.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from ledger.internal.v1 import shard_pb2
from ledger_cluster.config import ClusterConfig, ShardConfig
from ledger_core.accounts import TransactionStatus
from ledger_core.queries import decode_query
from ledger_core.results import Result, TransactionView, decode_result
from ledger_node.node_replicas import ExecuteReply, QueryReply
from tests.simulation.engine import Engine, require
from tests.simulation.network import Network
from tests.simulation.plan import Plan

if TYPE_CHECKING:
    from tests.simulation.host import Host

BATCH_MAX = 500
BATCHES_IN_FLIGHT_MAX = 4
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.02, 0.25


class Kind(Enum):
    """Kinds of calls; they do not share batches."""

    EXECUTE = "write"
    QUERY = "read"
    STALE_QUERY = "stale read"


class End(Enum):
    """How a call ended. REFUSED promises that nothing was done, or ever will be."""

    OK = "ok"
    UNKNOWN = "unknown"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of a call; ``index`` is the log index (writes) or applied index (reads) behind it."""

    end: End
    result: Result | None = None
    index: int = 0
    place: int = 0
    """Place within the commands that the log entry or the batch had in common."""


@dataclass(slots=True, eq=False)
class _Call:
    data: bytes
    deadline: float
    done: Callable[[Answer], None]
    reached_node: bool = False
    ended: bool = False


class Gateway:
    """One gateway process, which never fails: its calls do."""

    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        config: ClusterConfig,
        network: Network,
        hosts: "dict[str, Host]",
        gateway_id: str,
    ) -> None:
        self.id = gateway_id
        self.stopped = False
        leaders = {shard.id: shard.node_ids[0] for shard in config.shards}
        self._lanes = {
            (shard.id, kind): _Lane(engine, plan, network, hosts, gateway_id, shard, kind, leaders)
            for shard in config.shards
            for kind in Kind
        }

    def call(
        self,
        shard_id: int,
        kind: Kind,
        data: bytes,
        timeout_s: float,
        done: Callable[[Answer], None],
    ) -> None:
        """Run a command or query; ``done`` is called once, by the deadline."""

        def ended(answer: Answer) -> None:
            if not self.stopped:
                done(answer)

        self._lanes[shard_id, kind].call(data, timeout_s, ended)

    def execute(
        self, shard_id: int, data: bytes, timeout_s: float, done: Callable[[Answer], None]
    ) -> None:
        """Run a command; one across shards is answered when all its shards have applied it."""
        lane = self._lanes[shard_id, Kind.EXECUTE]
        deadline = lane._engine.now + timeout_s

        def executed(answer: Answer) -> None:
            result = answer.result
            if isinstance(result, TransactionView) and result.in_flight is not None:
                _Delivery(lane, answer, result, deadline, done).attempt()
            else:
                done(answer)

        self.call(shard_id, Kind.EXECUTE, data, timeout_s, executed)

    def await_delivery(
        self, shard_id: int, begun: Answer, deadline: float, done: Callable[[Answer], None]
    ) -> None:
        """Answer once all shards have applied a transaction that was found in flight."""
        lane = self._lanes[shard_id, Kind.EXECUTE]
        assert isinstance(begun.result, TransactionView)
        _Delivery(lane, begun, begun.result, deadline, done).attempt()

    def stop(self) -> None:
        """End as a process does: nothing more is sent, and nobody is told anything."""
        self.stopped = True
        for lane in self._lanes.values():
            lane.stopped = True


class _Lane:
    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        network: Network,
        hosts: "dict[str, Host]",
        gateway_id: str,
        shard: ShardConfig,
        kind: Kind,
        leaders: dict[int, str],
    ) -> None:
        self._engine = engine
        self._network = network
        self._hosts = hosts
        self._id = gateway_id
        self._shard = shard
        self._kind = kind
        self._leaders = leaders
        self._attempt_s = plan.attempt_s
        self._calm_attempt_s = 4 * plan.timing.election_max_s
        self._waiting: list[_Call] = []
        self._in_flight = 0
        self._flush_due = False
        self.stopped = False

    def call(self, data: bytes, timeout_s: float, done: Callable[[Answer], None]) -> None:
        call = _Call(data, self._engine.now + timeout_s, done)
        self._waiting.append(call)
        self._engine.at(call.deadline, lambda: self._expire(call))
        self._flush_soon()

    def _expire(self, call: _Call) -> None:
        reached = call.reached_node and self._kind is Kind.EXECUTE
        self._end(call, Answer(End.UNKNOWN if reached else End.REFUSED))

    def _end(self, call: _Call, answer: Answer) -> None:
        if not call.ended:
            call.ended = True
            call.done(answer)

    def _flush_soon(self) -> None:
        if self._flush_due or self._in_flight >= BATCHES_IN_FLIGHT_MAX:
            return
        self._flush_due = True
        self._engine.after(0.0, self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        while self._waiting and self._in_flight < BATCHES_IN_FLIGHT_MAX:
            batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
            self._in_flight += 1
            _Batch(self, batch).attempt()

    @property
    def attempt_s(self) -> float:
        # Where nothing fails, every attempt gets its time.
        return self._calm_attempt_s if self._network.calm else self._attempt_s

    def batch_ended(self) -> None:
        self._in_flight -= 1
        if self._waiting:
            self._flush_soon()


class _Batch:
    """Calls that travel together, until each has ended."""

    def __init__(self, lane: _Lane, calls: list[_Call]) -> None:
        self._lane = lane
        self._calls = calls
        self._backoff_s = BACKOFF_S_MIN
        self._redirects = 0
        self._reached_before: list[bool] = []
        shard = lane._shard
        if lane._kind is Kind.STALE_QUERY:
            self._node_id = lane._engine.rng.choice(shard.node_ids)
        else:
            self._node_id = lane._leaders[shard.id]

    def attempt(self) -> None:
        """Send what has not ended to one node, once."""
        lane, engine = self._lane, self._lane._engine
        calls = self._calls = [call for call in self._calls if not call.ended]
        if lane.stopped:
            return
        if not calls:
            lane.batch_ended()
            return
        node_id = self._node_id
        answered = False
        # From here on a call may arrive, also if its deadline passes before this attempt ends.
        self._reached_before = [call.reached_node for call in calls]
        for call in calls:
            call.reached_node = True

        def once(action: Callable[[], None]) -> None:
            nonlocal answered
            if not answered and not lane.stopped:
                answered = True
                action()

        def reply(result: ExecuteReply | QueryReply) -> None:
            lane._network.carry(node_id, lane._id, lambda: once(lambda: self._replied(result)))

        def never_connected() -> None:
            once(lambda: self._failed(reached=False, leader_id=""))

        def broke() -> None:
            once(lambda: self._failed(reached=True, leader_id=""))

        def arrive() -> None:
            host = lane._hosts[node_id]
            if not host.alive:
                lane._network.carry(node_id, lane._id, never_connected)
                return
            data = [call.data for call in calls]
            if lane._kind is Kind.EXECUTE:
                host.execute(lane._shard.id, data, reply)
            else:
                queries = [decode_query(item) for item in data]
                stale = lane._kind is Kind.STALE_QUERY
                host.query(lane._shard.id, queries, reply, stale=stale)

        lane._network.carry(lane._id, node_id, arrive)
        remaining_s = max(call.deadline for call in calls) - engine.now
        engine.after(min(max(remaining_s, 0.001), lane.attempt_s), broke)

    def _failed(self, *, reached: bool, leader_id: str) -> None:
        for call, reached_before in zip(self._calls, self._reached_before, strict=True):
            call.reached_node = reached or reached_before
        self._next(leader_id)

    def _replied(self, reply: ExecuteReply | QueryReply) -> None:
        lane = self._lane
        if reply.outcome == shard_pb2.OUTCOME_OK:
            if lane._kind is not Kind.STALE_QUERY:
                lane._leaders[lane._shard.id] = self._node_id
            index = reply.log_index if isinstance(reply, ExecuteReply) else reply.applied_index
            require(len(reply.results) == len(self._calls), "as many results as there were calls")
            for place, (call, data) in enumerate(zip(self._calls, reply.results, strict=True)):
                lane._end(call, Answer(End.OK, decode_result(data), index, place))
            lane.batch_ended()
            return
        if reply.outcome == shard_pb2.OUTCOME_RESOURCE_EXHAUSTED:
            # Nothing was done now; an earlier attempt may have had its effect.
            for call, reached in zip(self._calls, self._reached_before, strict=True):
                known = not reached or lane._kind is not Kind.EXECUTE
                lane._end(call, Answer(End.REFUSED if known else End.UNKNOWN))
            lane.batch_ended()
            return
        unknown = reply.outcome == shard_pb2.OUTCOME_UNKNOWN
        self._failed(reached=unknown, leader_id=reply.leader_id)

    def _next(self, leader_id: str) -> None:
        lane = self._lane
        shard = lane._shard
        if leader_id and self._redirects < len(shard.replicas):
            self._redirects += 1
            self._node_id = lane._leaders[shard.id] = leader_id
            lane._engine.after(0.0, self.attempt)
            return
        self._redirects = 0
        node_ids = shard.node_ids
        self._node_id = node_ids[(node_ids.index(self._node_id) + 1) % len(node_ids)]
        wait_s = self._backoff_s * lane._engine.rng.uniform(0.5, 1.0)
        self._backoff_s = min(self._backoff_s * 2, BACKOFF_S_MAX)
        lane._engine.after(wait_s, self.attempt)


class _Delivery:
    """Waits at a transaction's home until all its shards have applied what is in flight."""

    def __init__(
        self,
        lane: _Lane,
        begun: Answer,
        transaction: TransactionView,
        deadline: float,
        done: Callable[[Answer], None],
    ) -> None:
        self._lane = lane
        self._begun = begun
        self._transaction = transaction
        self._deadline = deadline
        self._done = done
        self._backoff_s = BACKOFF_S_MIN
        self._ended = False
        lane._engine.at(deadline, lambda: self._end(Answer(End.UNKNOWN)))

    def _end(self, answer: Answer) -> None:
        if not self._ended:
            self._ended = True
            self._done(answer)

    def attempt(self) -> None:
        """Ask the node that is believed to lead the home, once."""
        lane = self._lane
        if self._ended:
            return
        node_id = lane._leaders[lane._shard.id]
        answered = False

        def once(action: Callable[[], None]) -> None:
            nonlocal answered
            if not answered:
                answered = True
                action()

        def reply(result: QueryReply) -> None:
            lane._network.carry(
                node_id, lane._id, lambda: once(lambda: self._replied(node_id, result))
            )

        def arrive() -> None:
            host = lane._hosts[node_id]
            if not host.alive:
                lane._network.carry(node_id, lane._id, lambda: once(lambda: self._next(node_id)))
                return
            state = self._transaction.in_flight or 0
            if self._transaction.status is TransactionStatus.UNDECIDED:
                state = max(state, 1)
            host.await_transaction(lane._shard.id, self._transaction.number, state, reply)

        lane._network.carry(lane._id, node_id, arrive)
        remaining_s = self._deadline - lane._engine.now
        lane._engine.after(
            min(max(remaining_s, 0.001), lane.attempt_s), lambda: once(lambda: self._next(node_id))
        )

    def _replied(self, node_id: str, reply: QueryReply) -> None:
        if reply.outcome != shard_pb2.OUTCOME_OK:
            self._next(node_id, reply.leader_id)
            return
        if self._transaction.status is not TransactionStatus.UNDECIDED:
            self._end(self._begun)
            return
        self._end(Answer(End.OK, decode_result(reply.results[0]), reply.applied_index))

    def _next(self, node_id: str, leader_id: str = "") -> None:
        lane = self._lane
        node_ids = lane._shard.node_ids
        following = node_ids[(node_ids.index(node_id) + 1) % len(node_ids)]
        lane._leaders[lane._shard.id] = leader_id or following
        wait_s = self._backoff_s * lane._engine.rng.uniform(0.5, 1.0)
        self._backoff_s = min(self._backoff_s * 2, BACKOFF_S_MAX)
        lane._engine.after(wait_s, self.attempt)

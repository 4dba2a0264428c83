"""The way to the shards of a cluster: leader cache, batching, retries, deadlines.

Calls for the same shard that come in while others are on their way travel together; a block of
transfers is a batch by itself, and sets out at once. A batch goes to the node that is thought to
lead; where it does not, the batch follows the redirect or tries the next replica, until every call
in it has its result or its deadline has passed. Sending a command again is safe: its request id
makes the state machine find the first result.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from grpc import aio

from ledger.internal.v1 import shard_pb2, shard_pb2_grpc
from ledger_cluster.channels import EXECUTE_BYTES_MAX, channel_options
from ledger_cluster.config import ClusterConfig, ShardConfig
from ledger_cluster.node_link import LinkError, NodeFaultError, NodeLink
from ledger_cluster.shard_map import ShardMap
from ledger_cluster.shards import Answer, Attempts
from ledger_core.accounts import TransactionStatus
from ledger_core.commands import (
    Command,
    CreateTransfers,
    TransfersBetweenShards,
    encode_command,
)
from ledger_core.errors import (
    LedgerError,
    OutcomeUnknownError,
    OverloadedError,
    Reason,
    ShardUnavailableError,
)
from ledger_core.queries import Query, encode_query
from ledger_core.results import Result, TransactionView, decode_result

_BATCH_MAX = 500
_BATCHES_IN_FLIGHT_MAX = 4
_WAITING_MAX = 20_000
# A command may be as large as hundreds of others.
_WAITING_BYTES_MAX = 32 << 20

# A leader that stalls (a stopped process, a lost link) is given up after this long, not after the
# whole deadline of the call.
_ATTEMPT_S_MAX = 1.5
_BACKOFF_S_MIN = 0.02
_BACKOFF_S_MAX = 0.25
_STATUS_TIMEOUT_S = 1.0
_LOOK_S = 0.01


class _Kind(Enum):
    EXECUTE = "writes"
    QUERY = "reads"
    STALE_QUERY = "stale reads"


@dataclass(slots=True)
class _Call:
    """One command or query, encoded, and who waits for it."""

    data: bytes
    reply: "asyncio.Future[_Reply]"
    deadline: float
    attempts: Attempts


@dataclass(slots=True)
class _Reply:
    data: bytes
    applied_index: int = 0
    age_ms: int = 0


class ShardClient:
    """Implements `ledger_cluster.shards.Shards` for a cluster. Lives on one event loop."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._map = ShardMap(config)
        self._channels = {
            node.id: aio.insecure_channel(node.address, options=channel_options())
            for node in config.nodes
        }
        self._stubs: dict[str, shard_pb2_grpc.ShardServiceAsyncStub] = {
            node_id: shard_pb2_grpc.ShardServiceStub(channel)
            for node_id, channel in self._channels.items()
        }
        self._links = {node.id: NodeLink(config, node.id) for node in config.nodes}
        leaders = {shard.id: shard.node_ids[0] for shard in config.shards}
        self._leaders = leaders
        self._lanes = {
            (shard.id, kind): _Lane(shard, kind, self._links, leaders)
            for shard in config.shards
            for kind in _Kind
        }

    def shard_ids(self) -> list[int]:
        """Return all shards, in the order of their ranges."""
        return [shard.id for shard in self._config.shards]

    def shard_bounds(self, shard_id: int) -> tuple[int, int]:
        """Return the first and the last of the shard keys that a shard holds."""
        shard = self._config.shard(shard_id)
        return shard.lower_bound, shard.upper_bound

    def shard_id_of(self, account_id: int) -> int:
        """Return the shard that holds an account."""
        return self._map.shard_of(account_id).id

    async def execute(
        self,
        account_id: int,
        command: Command,
        timeout_s: float,
        attempts: Attempts | None = None,
    ) -> Result:
        """Run a command exactly once, under its request id.

        One across shards is answered when all its shards have applied it, so that the caller's
        next read of any of its accounts sees it.
        """
        deadline = time.monotonic() + timeout_s
        shard = self._map.shard_of(account_id)
        result = await self.execute_on(shard.id, command, timeout_s, attempts)
        if not isinstance(result, TransactionView) or result.in_flight is None:
            return result
        decided = await self._await_transaction(shard, result, deadline)
        return decided if result.status is TransactionStatus.UNDECIDED else result

    async def execute_on(
        self,
        shard_id: int,
        command: Command,
        timeout_s: float,
        attempts: Attempts | None = None,
    ) -> Result:
        """Run a command on a shard, and return what that shard says."""
        lane, data = self._lanes[shard_id, _Kind.EXECUTE], encode_command(command)
        # Many calls share a block already, and the lanes of blocks bound how many are on their way.
        is_block = isinstance(command, CreateTransfers | TransfersBetweenShards)
        call = lane.call_alone if is_block else lane.call
        return decode_result((await call(data, timeout_s, attempts)).data)

    async def _await_transaction(
        self, shard: ShardConfig, transaction: TransactionView, deadline: float
    ) -> Result:
        """Wait at the home until all shards have applied what is in flight."""
        state = transaction.in_flight or 0
        if transaction.status is TransactionStatus.UNDECIDED:
            state = max(state, 1)
        wanted = shard_pb2.AwaitTransactionRequest(
            shard_id=shard.id, number=transaction.number, state=state
        )
        backoff_s = _BACKOFF_S_MIN
        while (remaining_s := deadline - time.monotonic()) > 0:
            node_id = self._leaders[shard.id]
            request = shard_pb2.ShardRequest(await_transaction=wanted)
            try:
                response = (await self._links[node_id].ask(request, remaining_s)).query
            except (LinkError, NodeFaultError):
                self._leaders[shard.id] = next_replica(shard, node_id)
            else:
                if response.outcome == shard_pb2.OUTCOME_OK:
                    return decode_result(response.results[0])
                hint = response.leader_node_id
                self._leaders[shard.id] = (
                    hint if hint in self._links else next_replica(shard, node_id)
                )
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311  (jitter)
            backoff_s = min(backoff_s * 2, _BACKOFF_S_MAX)
        raise OutcomeUnknownError(
            f"the transaction is {transaction.status.name} and has not reached all its shards in "
            f"time: repeat it with the same request id to know"
        )

    async def query(
        self, account_id: int, query: Query, timeout_s: float, *, stale: bool = False
    ) -> Answer:
        """Answer a query, from the leader or, if ``stale``, from any replica."""
        return await self.query_shard(self.shard_id_of(account_id), query, timeout_s, stale=stale)

    async def query_shard(
        self, shard_id: int, query: Query, timeout_s: float, *, stale: bool = False
    ) -> Answer:
        """Answer a query that is for one shard."""
        kind = _Kind.STALE_QUERY if stale else _Kind.QUERY
        reply = await self._lanes[shard_id, kind].call(encode_query(query), timeout_s)
        return Answer(decode_result(reply.data), shard_id, reply.applied_index, reply.age_ms)

    async def serving_shards(self) -> dict[int, bool]:
        """Ask every node what it leads, as far as calls reach it; refresh the leader cache."""
        statuses = await asyncio.gather(*map(self._status, self._links), return_exceptions=True)
        serving = {shard.id: False for shard in self._config.shards}
        for status in statuses:
            if isinstance(status, shard_pb2.NodeStatus):
                for replica in status.replicas:
                    if replica.serving and replica.shard_id in serving:
                        serving[replica.shard_id] = True
                        self._leaders[replica.shard_id] = status.node_id
        return serving

    async def _status(self, node_id: str) -> shard_pb2.NodeStatus:
        """Ask a node over gRPC; what it leads counts only where there is a link for calls, too."""
        asking = self._stubs[node_id].GetNodeStatus(
            shard_pb2.GetNodeStatusRequest(), timeout=_STATUS_TIMEOUT_S
        )
        reached = await self._links[node_id].reach(_STATUS_TIMEOUT_S)
        status = await asking
        return status if reached else shard_pb2.NodeStatus()

    async def close(self) -> None:
        """Let the batches that are under way end, then close the connections."""
        await asyncio.gather(*(lane.close() for lane in self._lanes.values()))
        await asyncio.gather(*(link.close() for link in self._links.values()))
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))


class _Lane:
    """Calls of one kind for one shard: they queue, travel in batches, and are tried again."""

    def __init__(
        self,
        shard: ShardConfig,
        kind: _Kind,
        links: dict[str, NodeLink],
        leaders: dict[int, str],
    ) -> None:
        self._shard = shard
        self._kind = kind
        self._links = links
        self._leaders = leaders
        self._waiting: list[_Call] = []
        self._waiting_bytes = 0
        self._batches: set[asyncio.Task[None]] = set()
        self._alone = 0
        self._flush_scheduled = False
        self._closed = False

    async def call(self, data: bytes, timeout_s: float, attempts: Attempts | None = None) -> _Reply:
        """Send one call, with whatever else waits, and return its reply."""
        self._require_open()
        if len(self._waiting) >= _WAITING_MAX or self._waiting_bytes > _WAITING_BYTES_MAX:
            raise OverloadedError(
                f"{len(self._waiting)} {self._kind.value} wait for shard {self._shard.id} already; "
                f"slow down"
            )
        loop = asyncio.get_running_loop()
        deadline = time.monotonic() + timeout_s
        call = _Call(data, loop.create_future(), deadline, attempts or Attempts())
        self._waiting.append(call)
        self._waiting_bytes += len(data)
        self._schedule_flush()
        timer = loop.call_later(timeout_s, self._expire, call, timeout_s)
        try:
            return await call.reply
        finally:
            timer.cancel()

    async def call_alone(
        self, data: bytes, timeout_s: float, attempts: Attempts | None = None
    ) -> _Reply:
        """Send one call at once, and return its reply. How many there may be, the caller bounds."""
        self._require_open()
        until = time.monotonic() + timeout_s
        reply: asyncio.Future[_Reply] = asyncio.get_running_loop().create_future()
        call = _Call(data, reply, until, attempts or Attempts())
        self._alone += 1
        try:
            await self._carry([call], until)
        except Exception as error:
            raise LedgerError(Reason.INTERNAL, "the reply of a node made no sense") from error
        finally:
            self._alone -= 1
        if not reply.done():
            raise self._expired(call, timeout_s)
        return reply.result()

    async def close(self) -> None:
        """Refuse new calls and wait for those under way."""
        self._closed = True
        self._flush()
        while self._batches:
            await asyncio.wait(self._batches)
        while self._alone:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(_LOOK_S)

    def _require_open(self) -> None:
        if self._closed:
            raise ShardUnavailableError("the gateway is stopping; try another one")

    def _schedule_flush(self) -> None:
        # At the end of this pass of the event loop: what came in together travels together.
        if not self._flush_scheduled and len(self._batches) < _BATCHES_IN_FLIGHT_MAX:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        while self._waiting and len(self._batches) < _BATCHES_IN_FLIGHT_MAX:
            task = asyncio.create_task(self._carry_or_fail(self._take_batch()))
            self._batches.add(task)
            task.add_done_callback(self._batch_ended)

    def _take_batch(self) -> list[_Call]:
        size = 0
        for count, call in enumerate(self._waiting):
            size += len(call.data)
            # A single call may be larger: an entry of a journal that is imported.
            if count == _BATCH_MAX or (count and size > EXECUTE_BYTES_MAX):
                break
        else:
            count = len(self._waiting)
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        self._waiting_bytes -= sum(len(call.data) for call in batch)
        return batch

    def _batch_ended(self, task: asyncio.Task[None]) -> None:
        self._batches.discard(task)
        task.result()
        if self._waiting:
            self._schedule_flush()

    async def _carry_or_fail(self, batch: list[_Call]) -> None:
        try:
            await self._carry(batch)
        except Exception as error:
            _fail(batch, LedgerError(Reason.INTERNAL, "the reply of a node made no sense"))
            raise RuntimeError(f"a batch for shard {self._shard.id} failed") from error

    async def _carry(self, batch: list[_Call], until: float = float("inf")) -> None:
        """Send a batch until each call in it is answered or has given up, or until so late."""
        node_id = self._first_choice()
        backoff_s = _BACKOFF_S_MIN
        redirects = 0
        while (
            batch := [call for call in batch if not call.reply.done()]
        ) and time.monotonic() < until:
            outcome, leader_id, message = await self._attempt(node_id, batch)
            if outcome == shard_pb2.OUTCOME_RESOURCE_EXHAUSTED:
                self._refuse(batch, message)
                return
            if outcome == shard_pb2.OUTCOME_OK:
                continue
            if leader_id in self._links and redirects < len(self._shard.replicas):
                # Someone knows the leader: follow at once, but not in circles.
                redirects += 1
                node_id = self._leaders[self._shard.id] = leader_id
                continue
            redirects = 0
            node_id = next_replica(self._shard, node_id)
            pause_s = backoff_s * random.uniform(0.5, 1.0)  # noqa: S311  (jitter)
            left_s = max(until - time.monotonic(), 0.0)
            await asyncio.sleep(min(pause_s, left_s))
            if pause_s >= left_s:
                return
            backoff_s = min(backoff_s * 2, _BACKOFF_S_MAX)

    async def _attempt(
        self, node_id: str, batch: list[_Call]
    ) -> tuple["shard_pb2.Outcome.ValueType", str, str]:
        """Send a batch to one node once; return (outcome, leader hint, message)."""
        remaining_s = max(call.deadline for call in batch) - time.monotonic()
        timeout_s = min(max(remaining_s, 0.001), _ATTEMPT_S_MAX)
        # From here on a call may arrive, also if its deadline passes before this attempt ends.
        reached_before = [call.attempts.reached_node for call in batch]
        for call in batch:
            call.attempts.reached_node = True
            call.attempts.last_failure = f"node {node_id}: has not answered yet"
        outcome, leader_id, message = shard_pb2.OUTCOME_UNKNOWN, "", ""
        try:
            response = await self._send(node_id, [call.data for call in batch], timeout_s)
        except NodeFaultError as error:
            for call, reached in zip(batch, reached_before, strict=True):
                fault = LedgerError(Reason.INTERNAL, f"node {node_id}: {error}")
                unknown = self._kind is _Kind.EXECUTE and reached
                _fail([call], _refused_later(fault.message) if unknown else fault)
            return shard_pb2.OUTCOME_OK, "", ""
        except LinkError as error:
            failure, may_have_arrived = str(error), error.may_have_arrived
        else:
            outcome, leader_id = response.outcome, response.leader_node_id
            message = response.message
            if outcome == shard_pb2.OUTCOME_OK:
                self._succeeded(node_id, batch, response)
            failure = _OUTCOME_IN_WORDS.get(outcome, "answered too late")
            # Done counts as well: a call whose deadline has just passed is yet to say how it ended.
            may_have_arrived = outcome in (shard_pb2.OUTCOME_UNKNOWN, shard_pb2.OUTCOME_OK)
        for call, reached in zip(batch, reached_before, strict=True):
            call.attempts.reached_node = may_have_arrived or reached
            call.attempts.last_failure = f"node {node_id}: {failure}"
        return outcome, leader_id, message

    async def _send(
        self, node_id: str, data: Sequence[bytes], timeout_s: float
    ) -> shard_pb2.ExecuteResponse | shard_pb2.QueryResponse:
        link, shard_id = self._links[node_id], self._shard.id
        # Filled in place: protobuf copies a message that is made part of another one.
        request = shard_pb2.ShardRequest()
        if self._kind is _Kind.EXECUTE:
            request.execute.shard_id = shard_id
            request.execute.commands.extend(data)
            return (await link.ask(request, timeout_s)).execute
        request.query.shard_id = shard_id
        request.query.queries.extend(data)
        request.query.stale = self._kind is _Kind.STALE_QUERY
        return (await link.ask(request, timeout_s)).query

    def _succeeded(
        self,
        node_id: str,
        batch: list[_Call],
        response: shard_pb2.ExecuteResponse | shard_pb2.QueryResponse,
    ) -> None:
        if self._kind is not _Kind.STALE_QUERY:
            self._leaders[self._shard.id] = node_id
        applied_index, age_ms = 0, 0
        if isinstance(response, shard_pb2.QueryResponse):
            applied_index, age_ms = response.applied_index, response.age_ms
        for call, data in zip(batch, response.results, strict=True):
            # An empty one did not fit into the message: its call goes on with the next attempt.
            if data and not call.reply.done():
                call.reply.set_result(_Reply(data, applied_index, age_ms))

    def _refuse(self, batch: list[_Call], message: str) -> None:
        """End calls whose last attempt a node refused; an earlier one may have had its effect."""
        for call in batch:
            unknown = self._kind is _Kind.EXECUTE and call.attempts.reached_node
            _fail([call], _refused_later(message) if unknown else OverloadedError(message))

    def _first_choice(self) -> str:
        if self._kind is _Kind.STALE_QUERY:
            return random.choice(self._shard.node_ids)  # noqa: S311  (spreads the load)
        return self._leaders[self._shard.id]

    def _expire(self, call: _Call, timeout_s: float) -> None:
        """End a call that has no reply in time."""
        if not call.reply.done():
            call.reply.set_exception(self._expired(call, timeout_s))

    def _expired(self, call: _Call, timeout_s: float) -> LedgerError:
        failure = call.attempts.last_failure
        what = f"shard {self._shard.id} gave no result within {timeout_s:.1f} s ({failure})"
        if self._kind is _Kind.EXECUTE and call.attempts.reached_node:
            return OutcomeUnknownError(
                f"{what}; the write may have happened: repeat it with the same request id to know"
            )
        return ShardUnavailableError(f"{what}; nothing was done, try again")


_OUTCOME_IN_WORDS: dict[int, str] = {
    shard_pb2.OUTCOME_NOT_LEADER: "not the leader",
    shard_pb2.OUTCOME_UNKNOWN: "lost its leadership while the write was under way",
    shard_pb2.OUTCOME_WRONG_NODE: "has no replica of the shard",
}


def next_replica(shard: ShardConfig, node_id: str) -> str:
    """Return the node to try after ``node_id``."""
    node_ids = shard.node_ids
    if node_id not in node_ids:
        return node_ids[0]
    return node_ids[(node_ids.index(node_id) + 1) % len(node_ids)]


def _refused_later(message: str) -> OutcomeUnknownError:
    """Return the error of a write that may have reached a node before it was refused."""
    return OutcomeUnknownError(
        f"an attempt had no answer and the next one was refused: {message}; the write may have "
        f"happened: repeat it with the same request id to know"
    )


def _fail(batch: list[_Call], error: LedgerError) -> None:
    for call in batch:
        if not call.reply.done():
            call.reply.set_exception(error)

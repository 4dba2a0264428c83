"""The node's door for gateways and tools: decode, check, hand to the node, await the result."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from importlib.metadata import version
from typing import Any, NoReturn

import grpc
import msgspec
from grpc import aio

from ledger.internal.v1 import shard_pb2, shard_pb2_grpc
from ledger_cluster.channels import EXECUTE_BYTES_MAX, REPLAY_BYTES_MAX
from ledger_cluster.config import ShardConfig
from ledger_core.commands import (
    ApplyDecision,
    ApplyTransfers,
    Command,
    CreateTransaction,
    Decide,
    Delivered,
    DeliveredTransfers,
    Replay,
    Resolve,
    decode_command,
    is_across_shards,
)
from ledger_core.queries import Query, decode_query
from ledger_node.audit import Audit, audit
from ledger_node.checks import Checker
from ledger_node.command_check import command_fault
from ledger_node.deep_audit import DeepAudit
from ledger_node.deep_audit_process import deep_audits
from ledger_node.in_transit import InTransit
from ledger_node.node import Node
from ledger_node.node_replicas import ExecuteReply, QueryReply
from ledger_node.shard_exchange import ReplyDone
from ledger_node.store import Store

COMMANDS_PER_CALL_MAX = 2_000
VERIFICATIONS_WAITING_MAX = 64
# What brings a transaction across shards to its end, and so makes reserved money free.
STEPS_TO_THE_END = (
    *(ApplyDecision, Decide, Delivered, Resolve),
    *(ApplyTransfers, DeliveredTransfers),
)

# What the decoding and the check of a request raise, where its sender and this node do not speak
# the same protocol.
MALFORMED = (ValueError, msgspec.MsgspecError)


class ShardService(shard_pb2_grpc.ShardServiceServicer):
    """Serves the replicas of one node. ``wake`` makes the node take a turn soon."""

    def __init__(self, node: Node, store: Store, wake: asyncio.Event, checker: Checker) -> None:
        self._node = node
        self._store = store
        self._wake = wake
        self._checker = checker
        self._started = time.monotonic()
        self._verifying = asyncio.Lock()
        self._verifications = 0

    async def Execute(  # noqa: N802  (the name in the protocol)
        self,
        request: shard_pb2.ExecuteRequest,
        context: aio.ServicerContext[shard_pb2.ExecuteRequest, shard_pb2.ExecuteResponse],
    ) -> shard_pb2.ExecuteResponse:
        """Run commands."""
        reply: asyncio.Future[shard_pb2.ShardReply] = asyncio.get_running_loop().create_future()
        try:
            self._execute(request, _resolve(reply))
        except MALFORMED as error:
            await _refuse(context, error)
        self._wake.set()
        return (await reply).execute

    def take(self, request: shard_pb2.ShardRequest, done: ReplyDone) -> None:
        """Hand a request to the node; ``done`` is called once, now or in a turn of the node."""
        kind = request.WhichOneof("request")
        try:
            if kind == "execute":
                self._execute(request.execute, done)
            elif kind == "query":
                self._query(request.query, done)
            elif kind == "await_transaction":
                wanted = request.await_transaction
                self._node.await_transaction(
                    wanted.shard_id, wanted.number, wanted.state, _query_done(done)
                )
            else:
                raise ValueError("no request of a known kind")
        except MALFORMED as error:
            done(shard_pb2.ShardReply(fault=f"malformed request: {error}"))
        self._wake.set()

    def _execute(self, request: shard_pb2.ExecuteRequest, done: ReplyDone) -> None:
        """Run commands; they are checked before they may enter the log."""
        shard = self._node.shard_config(request.shard_id)
        commands = [] if shard is None else _check_commands(shard, request.commands)
        begins = [
            command
            for command in commands
            if isinstance(command, CreateTransaction) and is_across_shards(command)
        ]

        def executed(reply: ExecuteReply) -> None:
            answer = shard_pb2.ShardReply()
            # Filled in place: protobuf copies a message that is made part of another one.
            response = answer.execute
            response.outcome = reply.outcome
            response.leader_node_id = reply.leader_id
            response.results.extend(reply.results)
            response.log_index = reply.log_index
            response.message = reply.message
            done(answer)

        self._node.execute(
            request.shard_id,
            request.commands,
            executed,
            begins,
            urgent=all(isinstance(command, STEPS_TO_THE_END) for command in commands),
        )

    def _query(self, request: shard_pb2.QueryRequest, done: ReplyDone) -> None:
        queries: Sequence[Query] = [decode_query(data) for data in request.queries]
        self._node.query(request.shard_id, queries, _query_done(done), stale=request.stale)

    async def GetNodeStatus(  # noqa: N802  (the name in the protocol)
        self,
        request: shard_pb2.GetNodeStatusRequest,  # noqa: ARG002
        context: aio.ServicerContext[shard_pb2.GetNodeStatusRequest, shard_pb2.NodeStatus],  # noqa: ARG002
    ) -> shard_pb2.NodeStatus:
        """Tell where every replica of this node stands."""
        return shard_pb2.NodeStatus(
            node_id=self._node.node_id,
            version=version("ledger-service"),
            uptime_ms=round((time.monotonic() - self._started) * 1000),
            replicas=self._node.replica_statuses(),
            store_used_bytes=self._store.used_bytes(),
            store_map_bytes=self._store.map_bytes(),
        )

    async def AuditReplica(  # noqa: N802  (the name in the protocol)
        self,
        request: shard_pb2.AuditReplicaRequest,
        context: aio.ServicerContext[shard_pb2.AuditReplicaRequest, shard_pb2.ReplicaAudit],  # noqa: ARG002
    ) -> shard_pb2.ReplicaAudit:
        """Sum the books of a replica, in a thread: turns go on meanwhile."""
        if self._node.shard_config(request.shard_id) is None:
            return shard_pb2.ReplicaAudit(
                outcome=shard_pb2.OUTCOME_WRONG_NODE, shard_id=request.shard_id
            )
        result = await asyncio.to_thread(self._audit, request.shard_id)
        return shard_pb2.ReplicaAudit(
            outcome=shard_pb2.OUTCOME_OK,
            shard_id=request.shard_id,
            applied_index=result.applied_index,
            chain_hash=result.chain_hash,
            accounts=result.accounts,
            transactions=result.transactions,
            entries=result.entries,
            sums=[
                shard_pb2.LedgerSums(
                    ledger=ledger,
                    currency=currency,
                    debits_posted=str(sums.debits_posted),
                    credits_posted=str(sums.credits_posted),
                    debits_pending=str(sums.debits_pending),
                    credits_pending=str(sums.credits_pending),
                    currency_exponent=result.exponents[ledger, currency],
                )
                for (ledger, currency), sums in sorted(result.sums.items())
            ],
            faults=result.faults,
            in_flight=result.in_flight,
            undecided=result.undecided,
            unfinished_since_us=result.unfinished_since_us,
            in_transit=[transit_message(request.shard_id, item) for item in result.in_transit],
        )

    async def VerifyReplica(  # noqa: N802  (the name in the protocol)
        self,
        request: shard_pb2.VerifyReplicaRequest,
        context: aio.ServicerContext[shard_pb2.VerifyReplicaRequest, shard_pb2.VerifyProgress],
    ) -> AsyncIterator[shard_pb2.VerifyProgress]:
        """Prove what a replica has stored, in a process of its own; one at a time."""
        if self._node.shard_config(request.shard_id) is None:
            yield shard_pb2.VerifyProgress(outcome=shard_pb2.OUTCOME_WRONG_NODE, finished=True)
            return
        if self._verifications == VERIFICATIONS_WAITING_MAX:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._verifications} verifications wait on this node already",
            )
        self._verifications += 1
        try:
            async with (
                self._verifying,
                contextlib.aclosing(deep_audits(self._store.files, request.shard_id)) as audits,
            ):
                async for audit in audits:
                    yield _verify_progress(audit)
        finally:
            self._verifications -= 1
            # A process that was killed has left its place among the readers of the store.
            self._store.forget_dead_readers()

    async def GetFindings(  # noqa: N802  (the name in the protocol)
        self,
        request: shard_pb2.GetFindingsRequest,  # noqa: ARG002
        context: aio.ServicerContext[shard_pb2.GetFindingsRequest, shard_pb2.NodeFindings],  # noqa: ARG002
    ) -> shard_pb2.NodeFindings:
        """Tell what the checks in the background have found."""
        report = await asyncio.to_thread(self._checker.report)
        return shard_pb2.NodeFindings(
            node_id=self._node.node_id,
            findings=[
                shard_pb2.Finding(
                    check=finding.check,
                    severity=finding.severity,  # type: ignore[arg-type]
                    shard_id=finding.shard_id,
                    subject=finding.subject,
                    message=finding.message,
                    advice=finding.advice,
                    since_us=finding.since_us,
                    ledger=finding.ledger,
                )
                for finding in report.findings
            ],
            runs=[
                shard_pb2.CheckRun(
                    check=run.check,
                    shard_id=run.shard_id,
                    finished_us=run.finished_us,
                    rows=run.rows,
                    findings=run.findings,
                )
                for run in report.runs
            ],
            truncated=report.truncated,
            transits=[
                shard_pb2.ShardTransit(
                    shard_id=transit.shard_id,
                    applied_index=transit.applied_index,
                    unfinished=transit.unfinished,
                    accounts=[
                        transit_message(transit.shard_id, account) for account in transit.accounts
                    ],
                )
                for transit in report.transits
            ],
        )

    def _audit(self, shard_id: int) -> Audit:
        with self._store.read() as view:
            return audit(view.shard(shard_id))


def transit_message(shard_id: int, transit: InTransit) -> shard_pb2.InTransit:
    """Return what is in transit as a message."""
    return shard_pb2.InTransit(
        shard_id=shard_id,
        peer_shard_id=transit.peer_shard_id,
        ledger=transit.ledger,
        currency=transit.currency,
        currency_exponent=transit.currency_exponent,
        net=str(transit.net),
    )


def _verify_progress(audit: DeepAudit) -> shard_pb2.VerifyProgress:
    return shard_pb2.VerifyProgress(
        outcome=shard_pb2.OUTCOME_OK,
        rows_done=audit.rows_done,
        rows_estimated=audit.rows_estimated,
        finished=audit.finished,
        faults=audit.faults,
        journal_entries=audit.journal_entries,
        entries=audit.entries,
        accounts=audit.accounts,
        transactions=audit.transactions,
        link=bytes.fromhex(audit.link),
        message=audit.message,
        orphaned_holds=audit.orphaned_holds,
    )


def _query_done(done: ReplyDone) -> Callable[[QueryReply], None]:
    def answered(reply: QueryReply) -> None:
        response = shard_pb2.QueryResponse(
            outcome=reply.outcome,
            leader_node_id=reply.leader_id,
            results=reply.results,
            applied_index=reply.applied_index,
            age_ms=round(reply.age_s * 1000),
            message=reply.message,
        )
        done(shard_pb2.ShardReply(query=response))

    return answered


def _check_commands(shard: ShardConfig, commands: Sequence[bytes]) -> list[Command]:
    """Decode commands; raise where one must not enter the log: every replica would apply it."""
    if not 1 <= len(commands) <= COMMANDS_PER_CALL_MAX:
        raise ValueError(f"{len(commands)} commands; 1 to {COMMANDS_PER_CALL_MAX} are taken")
    # A journal entry that is imported has what was a whole log entry, and travels alone.
    bytes_max = REPLAY_BYTES_MAX if len(commands) == 1 else EXECUTE_BYTES_MAX
    if (size := sum(map(len, commands))) > bytes_max:
        raise ValueError(f"{size} bytes of commands; at most {bytes_max} are taken")
    decoded = []
    for data in commands:
        command: Command = decode_command(data)
        if fault := command_fault(command, shard.id, shard.lower_bound, shard.upper_bound):
            raise ValueError(fault)
        decoded.append(command)
    if size > EXECUTE_BYTES_MAX and not isinstance(decoded[0], Replay):
        raise ValueError(f"a command of {size} bytes; at most {EXECUTE_BYTES_MAX} are taken")
    return decoded


async def _refuse(context: aio.ServicerContext[Any, Any], error: Exception) -> NoReturn:
    """End a call whose sender and this node do not speak the same protocol."""
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"malformed request: {error}")


def _resolve(future: "asyncio.Future[shard_pb2.ShardReply]") -> ReplyDone:
    """Return a callback that ends the future, unless its caller has gone."""

    def resolve(reply: shard_pb2.ShardReply) -> None:
        if not future.done():
            future.set_result(reply)

    return resolve

"""Asks the nodes themselves: their status, and audits of their replicas."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import grpc

from ledger.internal.v1 import shard_pb2, shard_pb2_grpc
from ledger_cluster.config import ClusterConfig, ShardConfig
from ledger_cluster.dialling import link_problem

STATUS_TIMEOUT_S = 2.0

_OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.enable_http_proxy", 0),
    # A node that has just come up is to be seen at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 64 * 2**20),
)


@dataclass(frozen=True)
class NodeAnswer:
    """What a node said of itself, or why it said nothing."""

    status: shard_pb2.NodeStatus | None
    problem: str = ""

    def replica(self, shard_id: int) -> shard_pb2.ReplicaStatus | None:
        """Return the status of its replica of the shard."""
        replicas = self.status.replicas if self.status else ()
        return next((item for item in replicas if item.shard_id == shard_id), None)


class NodeProbe:
    """Connections to all nodes of a cluster; a context manager, for one thread."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._channels = {
            node.id: grpc.insecure_channel(node.address, options=_OPTIONS) for node in config.nodes
        }
        self._stubs = {
            node_id: shard_pb2_grpc.ShardServiceStub(channel)
            for node_id, channel in self._channels.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        for channel in self._channels.values():
            channel.close()

    def node_statuses(self, timeout_s: float = STATUS_TIMEOUT_S) -> dict[str, NodeAnswer]:
        """Ask every node at once; the slowest may take ``timeout_s``."""
        calls = {
            node_id: stub.GetNodeStatus.future(shard_pb2.GetNodeStatusRequest(), timeout=timeout_s)
            for node_id, stub in self._stubs.items()
        }
        answers = {}
        for node_id, call in calls.items():
            try:
                answer = NodeAnswer(call.result())
            except grpc.RpcError as error:
                answer = NodeAnswer(None, _problem(error))
            if answer.status and answer.status.node_id != node_id:
                found = answer.status.node_id
                answer = NodeAnswer(None, f"another node answers at its address: {found!r}")
            answers[node_id] = answer
        return answers

    def link_problems(self) -> dict[str, str]:
        """Make a link to every node, as gateways do; return why that fails where it does."""

        async def try_all() -> list[str]:
            tries = (link_problem(self._config, node.id) for node in self._config.nodes)
            return await asyncio.gather(*tries)

        problems = zip(self._config.nodes, asyncio.run(try_all()), strict=True)
        return {node.id: problem for node, problem in problems if problem}

    def audits(
        self, shard_ids: Sequence[int], timeout_s: float
    ) -> dict[int, dict[str, shard_pb2.ReplicaAudit | str]]:
        """Audit all replicas of the shards, those of one shard at once.

        The result has an audit or, in words, what went wrong, for every shard and node.
        """
        result: dict[int, dict[str, shard_pb2.ReplicaAudit | str]] = {}
        for shard_id in shard_ids:
            request = shard_pb2.AuditReplicaRequest(shard_id=shard_id)
            calls = {
                node_id: self._stubs[node_id].AuditReplica.future(request, timeout=timeout_s)
                for node_id in self._config.shard(shard_id).node_ids
            }
            result[shard_id] = {node_id: _audit(call) for node_id, call in calls.items()}
        return result

    def verify_replica(
        self,
        node_id: str,
        shard_id: int,
        timeout_s: float,
        tell: Callable[[shard_pb2.VerifyProgress], None],
    ) -> shard_pb2.VerifyProgress | str:
        """Have a node prove what its replica has stored; return what it found, or why it did not.

        ``tell`` gets, now and then, how far it is. May be called from several threads at once.
        """
        request = shard_pb2.VerifyReplicaRequest(shard_id=shard_id)
        last = shard_pb2.VerifyProgress()
        try:
            for last in self._stubs[node_id].VerifyReplica(request, timeout=timeout_s):
                tell(last)
        except grpc.RpcError as error:
            return _problem(error)
        if last.outcome != shard_pb2.OUTCOME_OK:
            return shard_pb2.Outcome.Name(last.outcome).removeprefix("OUTCOME_").lower()
        if not last.finished:
            return last.message or "it ended before it was done"
        return last

    def findings(
        self, timeout_s: float = STATUS_TIMEOUT_S
    ) -> dict[str, shard_pb2.NodeFindings | str]:
        """Ask every node at once what its checks have found; or return why it did not say."""
        calls = {
            node_id: stub.GetFindings.future(shard_pb2.GetFindingsRequest(), timeout=timeout_s)
            for node_id, stub in self._stubs.items()
        }
        answers: dict[str, shard_pb2.NodeFindings | str] = {}
        for node_id, call in calls.items():
            try:
                answers[node_id] = call.result()
            except grpc.RpcError as error:
                answers[node_id] = _problem(error)
        return answers


def serving_leader(shard: ShardConfig, answers: dict[str, NodeAnswer]) -> str | None:
    """Return the node whose replica leads the shard and serves, the one of the highest term."""
    leaders = [
        (replica.term, node_id)
        for node_id in shard.node_ids
        if (replica := answers[node_id].replica(shard.id))
        and replica.role == shard_pb2.REPLICA_ROLE_LEADER
        and replica.serving
    ]
    return max(leaders)[1] if leaders else None


def shards_without_leader(config: ClusterConfig, answers: dict[str, NodeAnswer]) -> list[int]:
    """Return the shards that do not serve."""
    return [shard.id for shard in config.shards if serving_leader(shard, answers) is None]


def _audit(call: Any) -> shard_pb2.ReplicaAudit | str:
    try:
        audit: shard_pb2.ReplicaAudit = call.result()
    except grpc.RpcError as error:
        return _problem(error)
    if audit.outcome != shard_pb2.OUTCOME_OK:
        return shard_pb2.Outcome.Name(audit.outcome).removeprefix("OUTCOME_").lower()
    return audit


def _problem(error: grpc.RpcError) -> str:
    """Name in a few words why a node did not answer."""
    code = error.code()
    if code is grpc.StatusCode.UNAVAILABLE:
        return "down"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    first_line = (error.details() or "").partition("\n")[0]
    return f"{code.name}: {first_line}"

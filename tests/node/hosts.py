"""A few nodes in one thread: instant links, a clock that the test moves, real stores."""

import random
import shutil
from pathlib import Path
from typing import TypeVar

from ledger.internal.v1 import peer_pb2, shard_pb2
from ledger_cluster.config import ClusterConfig, generate_cluster_config
from ledger_core.commands import Command, CreateTransaction, encode_command, is_across_shards
from ledger_core.queries import Query
from ledger_core.results import decode_result
from ledger_node.coordinator import ShardCall
from ledger_node.node import Node
from ledger_node.node_replicas import ExecuteReply, QueryReply
from ledger_node.raft import LogLimits, RaftTiming
from ledger_node.store import ShardRange, Store, StoreIdentity

Reply = TypeVar("Reply", ExecuteReply, QueryReply)


class Hosts:
    """``turn_all`` gives every node that is up a turn and delivers what it sent."""

    def __init__(
        self,
        folder: Path,
        nodes: int = 3,
        shards: int = 1,
        replicas: int = 3,
        log_limits: LogLimits | None = None,
    ) -> None:
        self.config: ClusterConfig = generate_cluster_config(nodes, shards, replicas)
        self.folder = folder
        self.log_limits = log_limits
        self.now = 100.0
        self.cut: set[str] = set()
        self.unreachable_shards: set[int] = set()
        """Shards that no coordinator's call reaches."""
        self.calls: list[ShardCall] = []
        """Every call that a coordinator has made."""
        self.stores: dict[str, Store] = {}
        self.nodes: dict[str, Node] = {}
        for node in self.config.nodes:
            self.start(node.id)

    def start(self, node_id: str) -> None:
        """Start a node on what its folder holds."""
        ranges = [
            ShardRange(shard.id, shard.lower_bound, shard.upper_bound)
            for shard in self.config.shards_on(node_id)
        ]
        self.stores[node_id] = Store.open(
            self.folder / node_id,
            identity=StoreIdentity(self.config.cluster_id, node_id),
            shards=ranges,
            sync=False,
        )
        self.nodes[node_id] = Node(
            config=self.config,
            node_id=node_id,
            store=self.stores[node_id],
            clock=lambda: self.now,
            wall_clock_us=lambda: int(self.now * 1e6),
            rng=random.Random(f"{node_id} at {self.now}"),
            timing=RaftTiming(),
            log_limits=self.log_limits,
        )
        for peer_id in self.nodes:
            if peer_id != node_id:
                self.nodes[node_id].peer_connected(peer_id)
                self.nodes[peer_id].peer_connected(node_id)

    def stop(self, node_id: str) -> None:
        """End a node as a crash does: what its turn has not committed is lost."""
        self.stores.pop(node_id).close()
        del self.nodes[node_id]
        for node in self.nodes.values():
            node.peer_disconnected(node_id)

    def wipe(self, node_id: str) -> None:
        """Delete the folder of a node that is down."""
        shutil.rmtree(self.folder / node_id)

    def turn(self, node_id: str) -> dict[str, list[peer_pb2.RaftMessage]]:
        """Take both halves of a turn; return what the first one sends."""
        outbox = self.nodes[node_id].turn()
        self.nodes[node_id].apply()
        self.nodes[node_id].follow()
        return outbox

    def turn_all(self, seconds: float = 0.0) -> None:
        self.now += seconds
        for node_id in self.nodes:
            for peer_id, messages in self.turn(node_id).items():
                if peer_id in self.nodes and not {node_id, peer_id} & self.cut:
                    self.nodes[peer_id].receive(node_id, messages)
            for call in self.nodes[node_id].take_calls():
                self.calls.append(call)
                self._carry_out(node_id, call)

    def _carry_out(self, node_id: str, call: ShardCall) -> None:
        """Do what a node's shard client does: send a command to the leader of its shard."""
        caller = self.nodes[node_id]
        leader = self.find_leader(call.shard_id)
        if leader is None or call.shard_id in self.unreachable_shards or node_id in self.cut:
            caller.call_ended(call, None)
            return

        def done(reply: ExecuteReply) -> None:
            known = reply.outcome == shard_pb2.OUTCOME_OK
            caller.call_ended(call, decode_result(reply.results[0]) if known else None)

        self.nodes[leader].execute(call.shard_id, [encode_command(call.command)], done)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.turn_all(0.01)

    def find_leader(self, shard_id: int) -> str | None:
        for node_id, node in self.nodes.items():
            for status in node.replica_statuses():
                if status.shard_id == shard_id and status.serving and node_id not in self.cut:
                    return node_id
        return None

    def leader(self, shard_id: int = 0) -> str:
        for _ in range(500):
            self.turn_all(0.01)
            if (leader := self.find_leader(shard_id)) is not None:
                return leader
        raise AssertionError("no leader")

    def execute(self, node_id: str, *commands: Command, shard_id: int = 0) -> list[ExecuteReply]:
        """Hand commands to a node; the list gets the reply once there is one."""
        replies: list[ExecuteReply] = []
        encoded = [encode_command(command) for command in commands]
        begins = [
            command
            for command in commands
            if isinstance(command, CreateTransaction) and is_across_shards(command)
        ]
        self.nodes[node_id].execute(shard_id, encoded, replies.append, begins)
        return replies

    def query(
        self, node_id: str, *queries: Query, shard_id: int = 0, stale: bool = False
    ) -> list[QueryReply]:
        replies: list[QueryReply] = []
        self.nodes[node_id].query(shard_id, queries, replies.append, stale=stale)
        return replies

    def settle(self, replies: list[Reply]) -> Reply:
        """Let time pass until there is a reply."""
        for _ in range(500):
            if replies:
                (reply,) = replies
                return reply
            self.turn_all(0.01)
        raise AssertionError("no reply")

    def close(self) -> None:
        for store in self.stores.values():
            store.close()


def results(reply: ExecuteReply | QueryReply) -> list[object]:
    assert reply.outcome == shard_pb2.OUTCOME_OK, reply
    return [decode_result(data) for data in reply.results]

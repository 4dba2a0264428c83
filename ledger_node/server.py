"""The node as a process: the event loop that drives turns, and the gRPC server around it."""

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from pathlib import Path

import structlog
from grpc import aio

from ledger.internal.v1 import peer_pb2, shard_pb2_grpc
from ledger_cluster.channels import server_options
from ledger_cluster.config import ClusterConfig
from ledger_cluster.shard_client import ShardClient
from ledger_core.errors import LedgerError
from ledger_core.results import Result
from ledger_node.checks import Checker
from ledger_node.coordinator import ShardCall
from ledger_node.fatal import die
from ledger_node.link_listener import LinkListener
from ledger_node.node import Node, Outbox
from ledger_node.peers import PeerLinks
from ledger_node.raft import LogLimits, RaftTiming
from ledger_node.shard_service import ShardService
from ledger_node.store import ShardRange, Store, StoreIdentity

# A stop hands leadership away and lets calls end within these bounds, then closes regardless.
DRAIN_S_MAX = 1.5
GRACE_S = 1.0

# A command for another shard that has no result after so long is sent anew by the coordinator.
CALL_S_MAX = 2.0

_log = structlog.get_logger()


class NodeServer:
    """One node: its store, its replicas, its links to peers and its server."""

    def __init__(
        self, config: ClusterConfig, node_id: str, store: Store, log_limits: LogLimits
    ) -> None:
        self._config = config
        self._node_id = node_id
        self._store = store
        self._wake = asyncio.Event()
        self._node = Node(
            config=config,
            node_id=node_id,
            store=store,
            clock=time.monotonic,
            wall_clock_us=lambda: time.time_ns() // 1_000,
            rng=random.Random(),  # noqa: S311  (election timeouts, no secrets)
            timing=RaftTiming(),
            log_limits=log_limits,
        )
        self._links = PeerLinks(config, node_id, _WakingNode(self._node, self._wake))
        self._server = aio.server(options=server_options())
        self._turns: asyncio.Task[None] | None = None
        self._shards = ShardClient(config)
        self._calls: set[asyncio.Task[None]] = set()
        self._checker = Checker(store, self._node.led_shards, [shard.id for shard in config.shards])
        self._checking: asyncio.Task[None] | None = None
        self._shard_service = ShardService(self._node, store, self._wake, self._checker)
        self._listener = LinkListener(config, node_id, self._links, self._shard_service.take)

    @classmethod
    def open(
        cls,
        config: ClusterConfig,
        node_id: str,
        data_dir: Path,
        store_max_bytes: int,
        log_limits: LogLimits,
    ) -> "NodeServer":
        """Open the data directory; StoreError says why that is refused."""
        store = Store.open(
            data_dir,
            identity=StoreIdentity(config.cluster_id, node_id),
            shards=[
                ShardRange(shard.id, shard.lower_bound, shard.upper_bound)
                for shard in config.shards_on(node_id)
            ],
            map_bytes=store_max_bytes,
            check=True,
        )
        try:
            return cls(config, node_id, store, log_limits)
        except BaseException:
            store.close()
            raise

    async def start(self) -> None:
        """Listen and take turns; OSError when the address cannot be bound."""
        own = self._config.node(self._node_id)
        shard_pb2_grpc.add_ShardServiceServicer_to_server(self._shard_service, self._server)
        try:
            self._server.add_insecure_port(own.address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {own.address}: is the port in use?") from error
        await self._listener.start()
        await self._server.start()
        self._turns = asyncio.create_task(self._take_turns(), name="turns")
        self._checking = asyncio.create_task(self._checker.run(), name="checks")
        self._links.start()
        _log.info(
            "node started",
            node=self._node_id,
            address=own.address,
            link_address=own.link_address,
            shards=len(self._config.shards_on(self._node_id)),
        )

    async def stop(self) -> None:
        """Hand leadership away, finish what waits, and close."""
        started = time.monotonic()
        self._node.drain()
        self._links.tell_stopping()
        while not self._node.drained and time.monotonic() - started < DRAIN_S_MAX:
            self._wake.set()
            await asyncio.sleep(0.02)
        kept = self._node.leads
        await asyncio.gather(self._listener.stop(GRACE_S), self._server.stop(GRACE_S))
        await self._links.stop()
        if self._turns is not None:
            self._turns.cancel()
            await asyncio.gather(self._turns, return_exceptions=True)
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        if self._checking is not None:
            # Not cancelled: its thread must be done with the store before that is closed.
            self._checker.stop()
            await asyncio.gather(self._checking, return_exceptions=True)
        await self._shards.close()
        try:
            # So that the next start has nothing to apply again.
            self._store.commit()
        finally:
            self._store.close()
        _log.info(
            "node stopped",
            node=self._node_id,
            leadership="kept: no peer could take it" if kept else "handed away",
            seconds=round(time.monotonic() - started, 2),
        )

    async def _take_turns(self) -> None:
        """Take a turn whenever something arrived or a timer is due."""
        node = self._node
        while True:
            await self._wait_for_work(node.next_turn_at())
            # What has come by now shares the turn.
            await asyncio.sleep(0)
            self._wake.clear()
            try:
                outbox = node.turn(self._send)
            except BaseException as error:
                die("the node stops, and has confirmed nothing of its last turn", error)
            # Peers work while this node applies.
            self._send(outbox)
            try:
                node.apply()
            except BaseException as error:
                die("the node stops, and no reply of its last turn was released", error)
            for call in node.take_calls():
                task = asyncio.create_task(self._carry_out(call))
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)
            # Replies leave before what nobody waits for.
            await asyncio.sleep(0)
            try:
                node.follow()
            except BaseException as error:
                die("the node stops: what it had to apply as a follower failed", error)

    def _send(self, outbox: Outbox) -> None:
        """Send messages to peers, now."""
        for peer_id, messages in outbox.items():
            self._links.send(peer_id, messages)
        self._links.flush()

    async def _carry_out(self, call: ShardCall) -> None:
        """Send a command of the coordinator to another shard, and hand back what came of it."""
        result: Result | None = None
        with contextlib.suppress(LedgerError):
            result = await self._shards.execute_on(call.shard_id, call.command, CALL_S_MAX)
        self._node.call_ended(call, result)
        self._wake.set()

    async def _wait_for_work(self, due_at: float) -> None:
        wait_s = due_at - time.monotonic()
        if wait_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()


class _WakingNode:
    """What links tell the node, each time with a turn to follow."""

    def __init__(self, node: Node, wake: asyncio.Event) -> None:
        self._node = node
        self._wake = wake

    def peer_connected(self, peer_id: str) -> None:
        self._node.peer_connected(peer_id)

    def peer_disconnected(self, peer_id: str) -> None:
        self._node.peer_disconnected(peer_id)

    def peer_stopping(self, peer_id: str) -> None:
        self._node.peer_stopping(peer_id)

    def receive(self, peer_id: str, messages: Sequence[peer_pb2.RaftMessage]) -> None:
        self._node.receive(peer_id, messages)
        self._wake.set()

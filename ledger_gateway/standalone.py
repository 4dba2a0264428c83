"""A whole ledger in the gateway's process: the node's state machine and store, without Raft.

For development and for other teams' tests. The rules, the store and the durability are those of a
cluster (every write is on disk before it is acknowledged), but nothing is replicated.
"""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from ledger_cluster.shards import Answer, Attempts
from ledger_core.commands import Command, encode_batch, encode_command
from ledger_core.errors import OutcomeUnknownError, OverloadedError, ShardUnavailableError
from ledger_core.ids import U32_MAX
from ledger_core.queries import Query
from ledger_core.results import Result
from ledger_node.fatal import die
from ledger_node.node import ENTRY_BYTES_MAX
from ledger_node.reads import answer
from ledger_node.state_machine import StateMachine
from ledger_node.store import ShardRange, Store, StoreIdentity

_SHARD_ID = 0
_QUEUE_MAX = 10_000
_BATCH_MAX = 1_000

# After a turn the next one waits for as long as the turn took, within these bounds: what comes
# meanwhile shares its fsync. The lower bound is the resolution of the event loop's timers.
_REST_S_MIN = 0.001
_REST_S_MAX = 0.003


@dataclass(slots=True)
class _Pending:
    command: bytes
    result: asyncio.Future[Result]


class StandaloneShards:
    """One shard that holds every account; implements `ledger_cluster.shards.Shards`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._state_machine = StateMachine(store.shard(_SHARD_ID), _SHARD_ID)
        self._queue: list[_Pending] = []
        self._turn_scheduled = False
        self._ready_at = 0.0
        self._closed = False

    @classmethod
    def open(cls, data_dir: Path) -> "StandaloneShards":
        """Open or create the data directory; StoreError says why that is refused."""
        return cls(
            Store.open(
                data_dir,
                identity=StoreIdentity(cluster_id="standalone", node_id="standalone"),
                shards=[ShardRange(_SHARD_ID, 0, U32_MAX)],
            )
        )

    def shard_ids(self) -> list[int]:
        """Return the one shard."""
        return [_SHARD_ID]

    def shard_bounds(self, shard_id: int) -> tuple[int, int]:  # noqa: ARG002
        """Return all there are."""
        return 0, U32_MAX

    def shard_id_of(self, account_id: int) -> int:  # noqa: ARG002  (one shard holds every account)
        """Return the one shard."""
        return _SHARD_ID

    async def execute(
        self,
        account_id: int,  # noqa: ARG002
        command: Command,
        timeout_s: float,
        attempts: Attempts | None = None,
    ) -> Result:
        """Run a command; all that wait for the same turn share one fsync."""
        if self._closed:
            raise ShardUnavailableError("the gateway is stopping")
        if len(self._queue) >= _QUEUE_MAX:
            raise OverloadedError(f"{_QUEUE_MAX} writes are waiting already; try again later")
        if full := self._store.full():
            raise OverloadedError(full)
        loop = asyncio.get_running_loop()
        pending = _Pending(encode_command(command), loop.create_future())
        self._queue.append(pending)
        if attempts is not None:
            attempts.reached_node = True
        self._schedule_turn()
        try:
            return await asyncio.wait_for(pending.result, timeout_s)
        except TimeoutError:
            raise OutcomeUnknownError(
                f"no result within {timeout_s:.1f} s; repeat with the same request id to find out"
            ) from None

    async def query(
        self, account_id: int, query: Query, timeout_s: float, *, stale: bool = False
    ) -> Answer:
        """Answer from the last committed state, which is always the newest here."""
        return await self.query_shard(self.shard_id_of(account_id), query, timeout_s, stale=stale)

    async def query_shard(
        self,
        shard_id: int,  # noqa: ARG002
        query: Query,
        timeout_s: float,  # noqa: ARG002
        *,
        stale: bool = False,  # noqa: ARG002
    ) -> Answer:
        """Answer from the last committed state, in which nothing is past its time."""
        self._expire()
        with self._store.read() as view:
            tables = view.shard(_SHARD_ID)
            return Answer(
                answer(tables, query, _SHARD_ID), _SHARD_ID, tables.meta().applied_index, age_ms=0
            )

    async def serving_shards(self) -> dict[int, bool]:
        """The one shard serves until it is closed."""
        return {_SHARD_ID: not self._closed}

    async def close(self) -> None:
        """Finish what waits, then close the store."""
        self._closed = True
        while self._queue:
            self._turn()
        self._store.close()

    def _schedule_turn(self) -> None:
        if not self._turn_scheduled:
            self._turn_scheduled = True
            rest_s = max(0.0, self._ready_at - time.monotonic())
            asyncio.get_running_loop().call_later(rest_s, self._turn)

    def _turn(self) -> None:
        """Apply what waits as one log entry, make it durable, then answer."""
        self._turn_scheduled = False
        if not self._queue:
            return
        began_at = time.monotonic()
        batch = self._take_batch()
        results = self._apply([item.command for item in batch])
        ended_at = time.monotonic()
        self._ready_at = ended_at + min(max(ended_at - began_at, _REST_S_MIN), _REST_S_MAX)
        if self._queue:
            self._schedule_turn()
        for item, result in zip(batch, results, strict=True):
            if not item.result.done():
                item.result.set_result(result)

    def _take_batch(self) -> list[_Pending]:
        """Take what waits, up to the bounds of a log entry of a cluster: so it can be imported."""
        size = 0
        for count, item in enumerate(self._queue):
            size += len(item.command)
            if count == _BATCH_MAX or (count and size > ENTRY_BYTES_MAX):
                break
        else:
            count = len(self._queue)
        batch, self._queue = self._queue[:count], self._queue[count:]
        return batch

    def _expire(self) -> None:
        """Let pending transactions expire whose time is over: every log entry does so."""
        with self._store.read() as view:
            tables = view.shard(_SHARD_ID)
            due = any(tables.expirations_until(_now_us())) and not tables.meta().importing
        if due and not self._store.full():
            self._apply([])

    def _apply(self, batch: list[bytes]) -> list[Result]:
        try:
            index = self._store.shard(_SHARD_ID).meta().applied_index + 1
            results = self._state_machine.apply(index, encode_batch(_now_us(), batch))
            self._store.commit()
        except BaseException as error:
            die("the standalone ledger stops: a write could not be applied or stored", error)
        return results


def _now_us() -> int:
    return time.time_ns() // 1_000

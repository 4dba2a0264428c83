"""Several shards of the node's own state machine and store in this process, with a clock of ours.

For what happens on one shard at a time: nobody carries transactions across shards to their end.
"""

from pathlib import Path

from ledger_cluster.shards import Answer, Attempts
from ledger_core.commands import Command, encode_batch, encode_command
from ledger_core.ids import shard_key
from ledger_core.queries import Query
from ledger_core.results import Result
from ledger_node.reads import answer
from ledger_node.state_machine import StateMachine
from ledger_node.store import ShardRange, Store, StoreIdentity

_IDENTITY = StoreIdentity("cluster", "n1")


class NodeShards:
    """Implements `ledger_cluster.shards.Shards`. Every command is a log entry, at ``time_us``."""

    def __init__(self, folder: Path, count: int) -> None:
        self.time_us = 1_700_000_000_000_000
        self._width = 2**32 // count + 1
        self._stores = []
        for number in range(count):
            upper = min((number + 1) * self._width, 2**32) - 1
            shard = ShardRange(number, number * self._width, upper)
            path = folder / f"shard-{number}"
            self._stores.append(Store.open(path, identity=_IDENTITY, shards=[shard], sync=False))

    def shard_ids(self) -> list[int]:
        return list(range(len(self._stores)))

    def shard_bounds(self, shard_id: int) -> tuple[int, int]:
        return shard_id * self._width, min((shard_id + 1) * self._width, 2**32) - 1

    def shard_id_of(self, account_id: int) -> int:
        return shard_key(account_id) // self._width

    async def execute(
        self,
        account_id: int,
        command: Command,
        timeout_s: float,
        attempts: Attempts | None = None,
    ) -> Result:
        del timeout_s, attempts
        shard_id = self.shard_id_of(account_id)
        store = self._stores[shard_id]
        tables = store.shard(shard_id)
        payload = encode_batch(self.time_us, [encode_command(command)])
        (result,) = StateMachine(tables, shard_id).apply(tables.meta().applied_index + 1, payload)
        store.commit()
        return result

    async def query(
        self, account_id: int, query: Query, timeout_s: float, *, stale: bool = False
    ) -> Answer:
        return await self.query_shard(self.shard_id_of(account_id), query, timeout_s, stale=stale)

    async def query_shard(
        self, shard_id: int, query: Query, timeout_s: float, *, stale: bool = False
    ) -> Answer:
        del timeout_s, stale
        with self._stores[shard_id].read() as view:
            tables = view.shard(shard_id)
            found = answer(tables, query, shard_id)
            return Answer(found, shard_id, tables.meta().applied_index, age_ms=0)

    async def serving_shards(self) -> dict[int, bool]:
        return dict.fromkeys(self.shard_ids(), True)

    async def close(self) -> None:
        self.close_stores()

    def close_stores(self) -> None:
        for store in self._stores:
            store.close()

"""The three shards of `tests.node.several_shards` behind a gateway: rules and store."""

from ledger_cluster.shards import Answer, Attempts
from ledger_core.commands import Command
from ledger_core.ids import shard_key
from ledger_core.queries import GetTransaction, Query
from ledger_core.results import Result, TransactionView
from ledger_node.command_check import command_fault
from tests.node.several_shards import World


class WorldShards:
    """Implements `ledger_cluster.shards.Shards`. Every command is a log entry of its own."""

    def __init__(self, world: World) -> None:
        self.world = world

    def shard_ids(self) -> list[int]:
        return [shard.shard.id for shard in self.world.shards]

    def shard_bounds(self, shard_id: int) -> tuple[int, int]:
        shard = self.world.shards[shard_id].shard
        return shard.lower_bound, shard.upper_bound

    def shard_id_of(self, account_id: int) -> int:
        key = shard_key(account_id)
        (found,) = (
            item.shard.id
            for item in self.world.shards
            if item.shard.lower_bound <= key <= item.shard.upper_bound
        )
        return found

    async def execute(
        self,
        account_id: int,
        command: Command,
        timeout_s: float,
        attempts: Attempts | None = None,
    ) -> Result:
        del timeout_s, attempts
        shard_id = self.shard_id_of(account_id)
        assert command_fault(command, shard_id, *self.shard_bounds(shard_id)) is None
        shard = self.world.shards[shard_id]
        result = shard.one(command)
        if isinstance(result, TransactionView) and result.in_flight is not None:
            self.world.drive()
            return shard.ask(GetTransaction(result.account_id, result.number))
        return result

    async def query(
        self, account_id: int, query: Query, timeout_s: float, *, stale: bool = False
    ) -> Answer:
        return await self.query_shard(self.shard_id_of(account_id), query, timeout_s, stale=stale)

    async def query_shard(
        self, shard_id: int, query: Query, timeout_s: float, *, stale: bool = False
    ) -> Answer:
        del timeout_s, stale
        return Answer(self.world.shards[shard_id].ask(query), shard_id, 1, age_ms=0)

    async def serving_shards(self) -> dict[int, bool]:
        return dict.fromkeys(self.shard_ids(), True)

    async def close(self) -> None:
        self.world.close()

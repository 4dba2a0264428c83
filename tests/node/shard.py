"""One shard for tests: a store in a folder, its state machine, and a log index that counts."""

from pathlib import Path

from ledger_core.commands import Command, encode_batch, encode_command
from ledger_core.ids import U32_MAX
from ledger_core.queries import Query
from ledger_core.results import Failure, Result, TransactionView
from ledger_node.audit import Audit, audit
from ledger_node.reads import answer
from ledger_node.state_machine import StateMachine
from ledger_node.store import ShardRange, Store, StoreIdentity

IDENTITY = StoreIdentity("cluster", "n1")
SHARD = ShardRange(0, 0, U32_MAX)


def open_store(path: Path, shard: ShardRange = SHARD, **options: object) -> Store:
    return Store.open(path, identity=IDENTITY, shards=[shard], sync=False, **options)  # type: ignore[arg-type]


class Shard:
    """Applies commands as a node does: one batch, one log entry, one commit."""

    def __init__(self, path: Path, shard: ShardRange = SHARD) -> None:
        self.path = path
        self.shard = shard
        self.store = open_store(path, shard)
        self.time_us = 1_000_000
        self.log: list[tuple[int, bytes]] = []

    def apply(self, *commands: Command, time_us: int | None = None) -> list[Result]:
        self.time_us += 1
        tables = self.store.shard(self.shard.id)
        index = tables.meta().applied_index + 1
        payload = encode_batch(
            self.time_us if time_us is None else time_us, [encode_command(c) for c in commands]
        )
        self.log.append((index, payload))
        results = StateMachine(tables, self.shard.id).apply(index, payload)
        self.store.commit()
        return results

    def one(self, command: Command) -> Result:
        (result,) = self.apply(command)
        return result

    def transaction(self, command: Command) -> TransactionView:
        result = self.one(command)
        assert isinstance(result, TransactionView), result
        return result

    def failure(self, command: Command) -> Failure:
        result = self.one(command)
        assert isinstance(result, Failure), result
        return result

    def ask(self, query: Query) -> Result:
        with self.store.read() as view:
            return answer(view.shard(self.shard.id), query, self.shard.id)

    def audit(self) -> Audit:
        with self.store.read() as view:
            return audit(view.shard(self.shard.id))

    def reopen(self) -> None:
        self.store.close()
        self.store = open_store(self.path, self.shard)

    def close(self) -> None:
        self.store.close()

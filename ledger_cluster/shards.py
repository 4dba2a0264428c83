"""The door to the shards, as the gateway sees it.

Two implementations: `ledger_cluster.shard_client.ShardClient` (a cluster, over its links) and
`ledger_gateway.standalone.StandaloneShards` (one shard in this process).
"""

from dataclasses import dataclass
from typing import Protocol

from ledger_core.commands import Command
from ledger_core.queries import Query
from ledger_core.results import Result


@dataclass(frozen=True, slots=True)
class Answer:
    """A query's result and the state it was taken from.

    ``age_ms`` is 0 for linearizable reads; for stale ones, the milliseconds since the answering
    replica last knew itself up to date with its leader.
    """

    result: Result
    shard_id: int
    applied_index: int
    age_ms: int


@dataclass(slots=True)
class Attempts:
    """How far a command has come, for who sent it and can wait no longer.

    ``reached_node`` is true while an attempt may have arrived at a node that did not refuse it:
    only then can the command have happened. ``last_failure`` says what became of the last one.
    """

    reached_node: bool = False
    last_failure: str = "no node was tried"


class Shards(Protocol):
    """Runs commands and queries on the shard that holds ``account_id``.

    That may be any u64 by which something routes: the key of a ledger or of a name as well.

    ``timeout_s`` bounds the whole call, retries included. All methods raise OverloadedError or
    ShardUnavailableError (nothing was done); `execute` raises OutcomeUnknownError where a write was
    sent and no result came back in time.
    """

    def shard_ids(self) -> list[int]:
        """Return all shards, always in the same order."""
        ...

    def shard_bounds(self, shard_id: int) -> tuple[int, int]:
        """Return the first and the last of the shard keys that a shard holds."""
        ...

    def shard_id_of(self, account_id: int) -> int:
        """Return the shard that holds an account."""
        ...

    async def execute(
        self,
        account_id: int,
        command: Command,
        timeout_s: float,
        attempts: Attempts | None = None,
    ) -> Result:
        """Run a command exactly once, under its request id, however often it has to be sent.

        ``attempts`` is kept up to date meanwhile. Once cancelled, nothing more is sent.
        """
        ...

    async def query(
        self, account_id: int, query: Query, timeout_s: float, *, stale: bool = False
    ) -> Answer:
        """Answer a query."""
        ...

    async def query_shard(
        self, shard_id: int, query: Query, timeout_s: float, *, stale: bool = False
    ) -> Answer:
        """Answer a query that is for one shard, not for an account."""
        ...

    async def serving_shards(self) -> dict[int, bool]:
        """Tell for every shard whether it serves now: it has a leader that a majority answers."""
        ...

    async def close(self) -> None:
        """Let calls end, then close connections and files."""
        ...

"""What benchmarks share: filling a cluster in large batches, progress, and figures of times."""

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from grpc import aio
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ledger.internal.v1 import shard_pb2, shard_pb2_grpc
from ledger_cli.local_cluster import LocalCluster
from ledger_cli.node_probe import serving_leader
from ledger_cli.output import console
from ledger_cluster.channels import channel_options
from ledger_core.commands import Command, encode_command
from ledger_core.results import Failure, decode_result

BATCH = 1_500
PATIENCE_S = 60.0
ATTEMPT_S = 15.0


class Feeder:
    """Runs commands on the leaders of their shards; an async context manager.

    Within a shard, commands are applied in the order given.
    """

    def __init__(self, cluster: LocalCluster) -> None:
        self._config = cluster.config
        self._channels: dict[str, aio.Channel] = {}
        answers = cluster.statuses()
        self.leaders = {
            shard.id: serving_leader(shard, answers) or shard.node_ids[0]
            for shard in cluster.config.shards
        }

    async def __aenter__(self) -> Self:
        self._channels = {
            node.id: aio.insecure_channel(node.address, options=channel_options())
            for node in self._config.nodes
        }
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))

    async def send(
        self,
        shard_id: int,
        commands: Iterable[Command],
        sent: Callable[[int], object] = lambda _count: None,
        batch_size: int = BATCH,
    ) -> None:
        """Run commands of one shard, batch after batch; ``sent`` is told the size of each."""
        todo = iter(commands)
        while batch := list(itertools.islice(todo, batch_size)):
            await self._send(shard_id, batch)
            sent(len(batch))

    async def _send(self, shard_id: int, commands: Sequence[Command]) -> None:
        """Run commands, again until they are answered: their request ids make that safe."""
        request = shard_pb2.ExecuteRequest(
            shard_id=shard_id, commands=map(encode_command, commands)
        )
        nodes = itertools.cycle(self._config.shard(shard_id).node_ids)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            stub: shard_pb2_grpc.ShardServiceAsyncStub = shard_pb2_grpc.ShardServiceStub(
                self._channels[self.leaders[shard_id]]
            )
            try:
                reply = await stub.Execute(request, timeout=ATTEMPT_S)
            except aio.AioRpcError as error:
                reply = shard_pb2.ExecuteResponse(message=error.details() or "")
            if reply.outcome == shard_pb2.OUTCOME_OK:
                for result in map(decode_result, reply.results):
                    if isinstance(result, Failure):
                        raise SystemExit(f"shard {shard_id}: {result.reason}: {result.message}")
                return
            if reply.outcome != shard_pb2.OUTCOME_RESOURCE_EXHAUSTED:
                self.leaders[shard_id] = reply.leader_node_id or next(nodes)
            await asyncio.sleep(0.1)
        raise SystemExit(f"shard {shard_id} took nothing for {PATIENCE_S:g} s: {reply.message}")


@contextmanager
def progress_bar(text: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show a bar on a terminal; yields what counts on."""
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    shown_on = console(stderr=True)
    with Progress(
        *columns, console=shown_on, transient=True, disable=not shown_on.is_terminal
    ) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)


def median_ms(seconds: Sequence[float]) -> float:
    """Return the median, in milliseconds."""
    return statistics.median(seconds) * 1_000


def p99_ms(seconds: Sequence[float]) -> float:
    """Return what 99 of 100 stay below, in milliseconds."""
    if len(seconds) < 2:
        return seconds[0] * 1_000
    return statistics.quantiles(seconds, n=100)[98] * 1_000

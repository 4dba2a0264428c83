"""The command ``ledger-gateway``."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Any

import click
import structlog

from ledger_cluster.config import ClusterConfigError, load_cluster_config
from ledger_cluster.process import (
    configure_log,
    event_loop_factory,
    settle_garbage_collection,
    stop_requested,
)
from ledger_cluster.shard_client import ShardClient
from ledger_cluster.shards import Shards
from ledger_gateway.server import GatewayServer, ListenError, is_loopback

_GRACE_S = 5.0

_log = structlog.get_logger("ledger_gateway")

OpenShards = Callable[[], Awaitable[Shards]]


class StartError(click.ClickException):
    """The gateway cannot start; the text says why. Printed without a traceback, exit code 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it under the command's name, as ledger-node does."""
        click.echo(f"ledger-gateway: {self.message}", file=file or sys.stderr)


@click.command()
@click.version_option(package_name="ledger-service", prog_name="ledger-gateway")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. There is no TLS and no authentication yet: keep it private.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 takes a free one and logs which.",
)
@click.option(
    "--cluster-config",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("cluster_config.json"),
    show_default=True,
    help="The cluster to serve.",
)
@click.option(
    "--standalone",
    is_flag=True,
    help="Serve from a store in this process, without a cluster: for development and tests.",
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where a standalone gateway keeps its data; made if missing.",
)
@click.pass_context
def main(
    ctx: click.Context,
    *,
    host: str,
    port: int,
    cluster_config: Path,
    standalone: bool,
    data_dir: Path | None,
) -> None:
    """Serve the public API of the ledger, ledger.v1.LedgerService, over gRPC.

    Routes each call to the node that leads the shard of its account, or, with --standalone, answers
    it from a store of its own.
    """
    given = ctx.get_parameter_source("cluster_config") is not click.core.ParameterSource.DEFAULT
    if standalone and given:
        raise click.UsageError("--standalone and --cluster-config exclude each other.")
    if standalone and data_dir is None:
        raise click.UsageError("--standalone needs --data-dir.")
    if data_dir is not None and not standalone:
        raise click.UsageError("--data-dir goes with --standalone only.")
    configure_log()
    open_shards = _cluster(cluster_config) if data_dir is None else _standalone(data_dir)
    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        runner.run(_serve(open_shards, host, port))


async def _serve(open_shards: OpenShards, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = stop_requested()
    shards = await open_shards()
    try:
        server = GatewayServer(shards, host=host, port=port)
        try:
            await server.start()
            settle_garbage_collection()
        except ListenError as error:
            raise StartError(str(error)) from error
        _log.info("gateway listening", address=server.address)
        if not is_loopback(host):
            _log.warning(
                "reachable from other machines without TLS and authentication",
                address=server.address,
            )
        await stop.wait()
        _log.info("gateway stopping", grace_s=_GRACE_S)
        await server.stop(_GRACE_S)
    finally:
        await shards.close()
    _log.info("gateway stopped")


def _cluster(path: Path) -> OpenShards:
    """Return what connects to the cluster described by the file."""
    try:
        config = load_cluster_config(path)
    except ClusterConfigError as error:
        raise StartError(f"the cluster configuration cannot be used:\n{error}") from error

    async def open_shards() -> Shards:
        return ShardClient(config)

    return open_shards


def _standalone(data_dir: Path) -> OpenShards:
    """Return what opens the store in the directory."""
    # Imported here alone: a gateway of a cluster needs nothing of the node.
    from ledger_gateway.standalone import StandaloneShards  # noqa: PLC0415

    async def open_shards() -> Shards:
        try:
            return StandaloneShards.open(data_dir)
        except Exception as error:
            # In use, of another version, not writable, not a directory, …: the text says which.
            raise StartError(f"cannot open {data_dir}: {error}") from error

    return open_shards


if __name__ == "__main__":
    main()

"""The ``ledger-node`` command."""

import asyncio
import sys
from pathlib import Path

import click

from ledger_cluster.config import ClusterConfig, ClusterConfigError, load_cluster_config
from ledger_cluster.process import (
    configure_log,
    event_loop_factory,
    settle_garbage_collection,
    stop_requested,
)
from ledger_node.raft import FatalRaftError, LogLimits
from ledger_node.server import NodeServer
from ledger_node.store import DEFAULT_MAP_BYTES, StoreError
from ledger_node.store_files import DAMAGE_ADVICE


@click.command(context_settings={"show_default": True})
@click.version_option(package_name="ledger-service", prog_name="ledger-node")
@click.option("--node-id", required=True, help="Which node of the configuration to be.")
@click.option(
    "--data-dir",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the node keeps its store; made if it is not there.",
)
@click.option(
    "--cluster-config",
    default="cluster_config.json",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The cluster configuration, the same file for every node and gateway.",
)
@click.option(
    "--store-max-mib",
    default=DEFAULT_MAP_BYTES >> 20,
    type=click.IntRange(64),
    help="Bound on the size of each of the store's two files. Address space, not disk: leave it "
    "large.",
)
@click.option(
    "--log-keep-entries",
    default=LogLimits().keep_entries,
    envvar="LEDGER_NODE_LOG_KEEP_ENTRIES",
    show_envvar=True,
    type=click.IntRange(1),
    help="Applied log entries to keep per shard, for nodes that come back; one that was away for "
    "longer gets a snapshot.",
)
def main(
    node_id: str,
    data_dir: Path,
    cluster_config: Path,
    store_max_mib: int,
    log_keep_entries: int,
) -> None:
    """Run one node of a ledger cluster: a replica of every shard placed on it.

    The node listens on the two addresses that the configuration gives it: for links of other nodes
    and gateways, and for gRPC of gateways (health checks) and tools. SIGTERM stops it gracefully:
    it hands its leadership to other nodes first.
    """
    try:
        config = load_cluster_config(cluster_config)
        config.node(node_id)
    except ClusterConfigError as error:
        sys.exit(f"ledger-node: the cluster configuration cannot be used:\n{error}")
    except LookupError as error:
        sys.exit(f"ledger-node: --node-id: {error.args[0]}")
    configure_log()
    try:
        with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
            limits = LogLimits(keep_entries=log_keep_entries)
            runner.run(_serve(config, node_id, data_dir, store_max_mib << 20, limits))
    except (StoreError, OSError) as error:
        sys.exit(f"ledger-node: {error}")
    except FatalRaftError as error:
        sys.exit(f"ledger-node: the store in {data_dir} is damaged: {error}. {DAMAGE_ADVICE}")


async def _serve(
    config: ClusterConfig,
    node_id: str,
    data_dir: Path,
    store_max_bytes: int,
    log_limits: LogLimits,
) -> None:
    stopping = stop_requested()
    server = NodeServer.open(config, node_id, data_dir, store_max_bytes, log_limits)
    await server.start()
    settle_garbage_collection()
    await stopping.wait()
    await server.stop()


if __name__ == "__main__":
    main()

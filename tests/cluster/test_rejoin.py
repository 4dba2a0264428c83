"""Nodes that come back without their data directory: by the log, and by snapshots."""

import shutil
import time
from collections.abc import Iterator
from functools import partial

import pytest
from breaking import check_replicas, measured, off_loop, running_traffic, until, until_written

from ledger_cli.local_cluster import LocalCluster, free_cluster_ports
from ledger_cluster.config import generate_cluster_config

pytestmark = pytest.mark.cluster

NODES, SHARDS = 3, 4


@pytest.fixture(scope="module", params=[None, 5], ids=["by the log", "by snapshots"])
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalCluster]:
    """A cluster of its own, with logs of the usual length or very short ones."""
    base_port, gateway_port = free_cluster_ports(NODES)
    config = generate_cluster_config(NODES, SHARDS, base_port=base_port)
    with pytest.MonkeyPatch.context() as patch:
        if request.param is not None:
            patch.setenv("LEDGER_NODE_LOG_KEEP_ENTRIES", str(request.param))
        data_dir = tmp_path_factory.mktemp("cluster")
        with LocalCluster(config, data_dir, gateway_port) as started:
            started.wait_until_serving(60)
            yield started
            assert started.take_exits() == []


def can_vote(cluster: LocalCluster, name: str) -> bool:
    status = cluster.statuses()[name].status
    return status is not None and not any(
        replica.unproven or replica.installing_bytes for replica in status.replicas
    )


async def test_every_node_in_turn_loses_its_data_under_load(cluster: LocalCluster) -> None:
    async with running_traffic(cluster) as traffic:
        await until_written(traffic, time.monotonic())
        for node in cluster.config.nodes:
            await off_loop(partial(cluster.kill, node.id))
            await off_loop(partial(shutil.rmtree, cluster.data_dir / node.id))
            await until_written(traffic, time.monotonic())
            began = time.monotonic()
            await off_loop(partial(cluster.restart, node.id))
            indexes = await off_loop(cluster.commit_indexes)
            # One after the other: only a minority may be without its data at a time.
            await until(
                lambda name=node.id: can_vote(cluster, name),  # type: ignore[misc]
                f"{node.id} has caught up",
            )
            await until(partial(cluster.has_applied, node.id, indexes), f"{node.id} is current")
            measured.append(f"{node.id} without its data: back {time.monotonic() - began:.2f} s")
    await off_loop(partial(check_replicas, cluster))


async def test_all_nodes_restart_after_compaction(cluster: LocalCluster) -> None:
    async with running_traffic(cluster) as traffic:
        await until_written(traffic, time.monotonic())
        for node in cluster.config.nodes:
            await off_loop(partial(cluster.kill, node.id))
        for node in cluster.config.nodes:
            await off_loop(partial(cluster.restart, node.id))
        await until_written(traffic, time.monotonic())
    await off_loop(partial(check_replicas, cluster))

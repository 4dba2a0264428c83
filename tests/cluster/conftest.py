"""One real cluster for all tests of this folder (for each process that runs tests).

Each of them finds and leaves it whole.
"""

from collections.abc import Callable, Iterator

import breaking
import pytest

from ledger_cli.local_cluster import GATEWAY, LocalCluster, free_cluster_ports
from ledger_cluster.config import generate_cluster_config

NODES, SHARDS = 3, 6


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    base_port, gateway_port = free_cluster_ports(NODES)
    config = generate_cluster_config(NODES, SHARDS, cluster_id="under-test", base_port=base_port)
    data_dir = tmp_path_factory.mktemp("cluster")
    with LocalCluster(config, data_dir, gateway_port) as cluster:
        breaking.measured.append(f"start: all served after {cluster.wait_until_serving(60):.2f} s")
        yield cluster


@pytest.fixture
def cluster(shared_cluster: LocalCluster) -> Iterator[LocalCluster]:
    """The shared cluster with everything running, whatever the test before has done."""
    for name in shared_cluster.names:
        if not shared_cluster.running(name):
            shared_cluster.take_exits()
            shared_cluster.restart(name)
    shared_cluster.wait_until_serving(breaking.PATIENCE_S)
    yield shared_cluster
    assert shared_cluster.take_exits() == []


@pytest.fixture
def gateway(cluster: LocalCluster) -> str:
    assert cluster.running(GATEWAY)
    return cluster.gateway_address


@pytest.fixture(autouse=True)
def tell_what_was_measured(record_property: Callable[[str, object], None]) -> Iterator[None]:
    """Send it along with the test's report: the process that prints the summary is another one."""
    yield
    for line in breaking.measured:
        record_property("measured", line)
    breaking.measured.clear()

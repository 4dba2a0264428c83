"""What a node refuses to start with, and peers it refuses to talk to: each says why."""

import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from breaking import PATIENCE_S, log_of, run_to_its_end, until

from ledger_cli.local_cluster import LocalCluster, free_cluster_ports
from ledger_client import LedgerClient
from ledger_cluster.config import ClusterConfig, generate_cluster_config
from ledger_node.store import ShardRange, Store, StoreIdentity

pytestmark = pytest.mark.cluster


@pytest.fixture
def config(tmp_path: Path) -> ClusterConfig:
    config = generate_cluster_config(3, 4, cluster_id="mine", base_port=free_cluster_ports(3)[0])
    (tmp_path / "cluster_config.json").write_text(config.dump())
    return config


def _used_data_dir(config: ClusterConfig, node_id: str, path: Path) -> Path:
    """Make what a node leaves behind."""
    shards = [
        ShardRange(shard.id, shard.lower_bound, shard.upper_bound)
        for shard in config.shards_on(node_id)
    ]
    Store.open(path, identity=StoreIdentity(config.cluster_id, node_id), shards=shards).close()
    return path


def test_the_data_of_another_node(config: ClusterConfig, tmp_path: Path) -> None:
    data = _used_data_dir(config, "n2", tmp_path / "data")
    code, printed = run_to_its_end(
        "ledger_node.main", "--node-id", "n1", "--data-dir", data, cwd=tmp_path
    )
    assert code == 1
    assert printed.startswith(f"ledger-node: the data directory {data} has node_id 'n2', but")


def test_the_data_of_another_cluster(config: ClusterConfig, tmp_path: Path) -> None:
    data = _used_data_dir(replace(config, cluster_id="theirs"), "n1", tmp_path / "data")
    code, printed = run_to_its_end(
        "ledger_node.main", "--node-id", "n1", "--data-dir", data, cwd=tmp_path
    )
    assert code == 1
    assert "has cluster_id 'theirs', but this process has 'mine'" in printed


def test_changed_shard_ranges(config: ClusterConfig, tmp_path: Path) -> None:
    data = _used_data_dir(config, "n1", tmp_path / "data")
    changed = generate_cluster_config(3, 3, cluster_id="mine", base_port=7000)
    (tmp_path / "cluster_config.json").write_text(changed.dump())
    code, printed = run_to_its_end(
        "ledger_node.main", "--node-id", "n1", "--data-dir", data, cwd=tmp_path
    )
    assert code == 1
    assert "shard 0 in" in printed
    assert "Shard ranges cannot be changed under existing data" in printed


def test_an_unknown_node_id(config: ClusterConfig, tmp_path: Path) -> None:
    code, printed = run_to_its_end(
        "ledger_node.main", "--node-id", "n9", "--data-dir", "data", cwd=tmp_path
    )
    assert code == 1
    assert "there is no node 'n9' in the cluster; its nodes are n1, n2, n3" in printed
    assert not (tmp_path / "data").exists()


def test_a_second_process_on_a_data_directory(cluster: LocalCluster, tmp_path: Path) -> None:
    pid = cluster.pid("n1")
    code, printed = run_to_its_end(*cluster.command("n1")[2:], cwd=tmp_path)
    assert code == 1
    assert f"is in use by process {pid}" in printed
    assert cluster.running("n1")
    assert cluster.not_serving() == ""


def test_a_port_in_use(config: ClusterConfig, tmp_path: Path) -> None:
    address, link_address = config.node("n1").address, config.node("n1").link_address
    host, port = link_address.split(":")
    with socket.create_server((host, int(port))):
        code, printed = run_to_its_end(
            "ledger_node.main", "--node-id", "n1", "--data-dir", "data", cwd=tmp_path
        )
        assert code == 1
        assert f"ledger-node: cannot listen on {link_address} for links" in printed
    host, port = address.split(":")
    with socket.create_server((host, int(port))):
        code, printed = run_to_its_end(
            "ledger_node.main", "--node-id", "n1", "--data-dir", "data", cwd=tmp_path
        )
        assert code == 1
        assert f"ledger-node: cannot listen on {address}" in printed
        code, printed = run_to_its_end("ledger_gateway.main", "--port", port, cwd=tmp_path)
        assert code == 1
        assert address in printed


class _OddNode(LocalCluster):
    """A cluster whose third node can be given another configuration."""

    other_config: ClusterConfig | None = None

    def command(self, name: str) -> list[str]:
        command = super().command(name)
        if name == "n3" and self.other_config is not None:
            path = self.data_dir / "other.json"
            path.write_text(self.other_config.dump())
            command[-1] = str(path)
        return command


def _other_layout(config: ClusterConfig) -> ClusterConfig:
    first, *others = config.shards
    return replace(config, shards=(replace(first, replicas=first.replicas[::-1]), *others))


def _other_cluster(config: ClusterConfig) -> ClusterConfig:
    return replace(config, cluster_id="theirs")


@pytest.fixture(
    params=[
        (_other_layout, "have different cluster configurations; give every node the same file"),
        (_other_cluster, "is of cluster 'mine', 'n3' of 'theirs'"),
    ],
    ids=["layout", "cluster id"],
)
def odd_cluster(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[LocalCluster, str]]:
    change, reason = request.param
    base_port, gateway_port = free_cluster_ports(3)
    config = generate_cluster_config(3, 3, cluster_id="mine", base_port=base_port)
    cluster = _OddNode(config, tmp_path / "data", gateway_port)
    with cluster:
        # All members have to meet once; then one comes back empty, and wrongly configured.
        cluster.wait_until_serving(PATIENCE_S)
        cluster.kill("n3")
        shutil.rmtree(cluster.data_dir / "n3")
        cluster.other_config = change(config)
        cluster.restart("n3")
        yield cluster, reason


async def test_peers_with_another_configuration(odd_cluster: tuple[LocalCluster, str]) -> None:
    cluster, reason = odd_cluster
    cluster.wait_until_serving(PATIENCE_S)
    assert {cluster.leader_of(shard.id) for shard in cluster.config.shards} <= {"n1", "n2"}
    await until(lambda: reason in log_of(cluster, "n3"), "n3 says whom it refuses and why")
    await until(lambda: reason in log_of(cluster, "n1"), "n1 says so too")
    await until(lambda: reason in log_of(cluster, "n2"), "n2 says so too")
    with LedgerClient(cluster.gateway_address) as client:
        account = client.create_account()
        client.create_transaction(account.id, 1, settled=True)
        assert client.get_account(account.id).settled_balance == 1
    # The odd one has heard of none of that.
    assert not cluster.has_applied("n3", cluster.commit_indexes())

"""Real processes under fire, in short; ``scripts/torture`` does the same for as long as asked."""

import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import lmdb
import pytest
from breaking import measured, off_loop, run_to_its_end, start_again, until

from ledger_cli.local_cluster import GATEWAY, LocalCluster, free_cluster_ports
from ledger_client import LedgerClient, ResourceExhaustedError
from ledger_cluster.config import generate_cluster_config
from ledger_core.ids import new_request_id
from tests.torture.campaign import Campaign
from tests.torture.damage import spoil

pytestmark = pytest.mark.cluster

SECONDS = 10
KINDS = ["kill -9", "freeze", "restart", "cut", "delay", "kill -9 of all"]
STORE_MAX_MIB = 64
BALLAST_MIB = 59


async def test_kills_stops_and_cuts() -> None:
    campaign = Campaign(SECONDS, 20, print, shards=4, kinds=KINDS)
    await campaign.run()
    assert campaign.violations == [], f"see {campaign.directory}"
    assert len(campaign.report.faults) >= 3
    assert not campaign.directory.exists()
    measured.append(f"torture: {len(campaign.report.faults)} faults, nothing lost or doubled")


async def test_damaged_stores(cluster: LocalCluster, tmp_path: Path) -> None:
    with LedgerClient(cluster.gateway_address) as client:
        for _ in range(30):
            client.create_transaction(client.create_account().id, 5, settled=True)
    committed = await off_loop(cluster.commit_indexes)
    await until(partial(cluster.has_applied, "n3", committed), "n3 has it all")
    await off_loop(partial(cluster.kill, "n3"))
    shutil.copytree(cluster.data_dir / "n3", tmp_path / "whole")
    await start_again(cluster, "n3")
    (tmp_path / "cluster_config.json").write_text(cluster.config.dump())

    for how in ("truncated", "newest log entry", "balance"):
        data = tmp_path / how
        shutil.copytree(tmp_path / "whole", data)
        spoil(data, random.Random(7), how)
        code, printed = run_to_its_end(
            "ledger_node.main", "--node-id", "n3", "--data-dir", data, cwd=tmp_path
        )
        assert code == 1
        assert printed.startswith(f"ledger-node: the store in {data} is damaged: ")
        assert "Move the data directory away and start the node empty" in printed
        assert printed.count("\n") == 1


class _SmallCluster(LocalCluster):
    """A cluster whose nodes have small stores."""

    def command(self, name: str) -> list[str]:
        bound = [] if name == GATEWAY else ["--store-max-mib", str(STORE_MAX_MIB)]
        return [*super().command(name), *bound]


@pytest.fixture
def small_cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    base_port, gateway_port = free_cluster_ports(1)
    config = generate_cluster_config(1, 1, 1, cluster_id="small", base_port=base_port)
    with _SmallCluster(config, tmp_path, gateway_port) as cluster:
        cluster.wait_until_serving()
        yield cluster


def test_a_full_store(small_cluster: LocalCluster) -> None:
    cluster = small_cluster
    request_id = new_request_id()
    with LedgerClient(cluster.gateway_address, timeout_s=2.0) as client:
        account = client.create_account()
        first = client.create_transaction(account.id, 7, settled=True, request_id=request_id)
        assert cluster.terminate("n1") == 0
        _fill(cluster.data_dir / "n1" / "store" / "state")
        cluster.restart("n1")
        cluster.wait_until_serving()

        with pytest.raises(ResourceExhaustedError, match="raise --store-max-mib") as caught:
            client.create_transaction(account.id, 1, settled=True)
        assert caught.value.reason == "OVERLOADED"
        assert client.get_account(account.id).settled_balance == 7
        assert [item.id for item in client.list_transactions(account.id)] == [first.id]
        assert client.get_transaction(first.id) == first
    assert cluster.running("n1")


def _fill(store: Path) -> None:
    """Fill the store of a node that is down, beyond the share from which it refuses writes."""
    env = lmdb.open(str(store), map_size=STORE_MAX_MIB << 20, max_dbs=1_000)
    with env.begin(write=True) as txn:
        # A table that is in use only while a snapshot comes in.
        ballast = env.open_db(b"00000.b.entries", txn=txn)
        for number in range(BALLAST_MIB):
            txn.put(number.to_bytes(4), bytes((1 << 20) - 64), db=ballast)
    env.close()

"""`ledger checks`, with nodes that say what the test tells them to; `ledger verify --data-dir`."""

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import lmdb
import pytest
from click.testing import Result

from ledger.internal.v1 import shard_pb2, shard_pb2_grpc
from ledger_cli import transit
from ledger_cluster.config import generate_cluster_config
from ledger_core.commands import CreateAccount, CreateTransaction
from ledger_core.ids import derive_account_id
from tests.node.shard import Shard

Run = Callable[..., Result]

CHECKED_US = 1_700_000_000_000_000
ERROR, WARNING, INFO = (
    shard_pb2.SEVERITY_ERROR,
    shard_pb2.SEVERITY_WARNING,
    shard_pb2.SEVERITY_INFO,
)


@dataclass
class FakeNode(shard_pb2_grpc.ShardServiceServicer):
    """A node with the findings that a test gives it."""

    findings: Any
    asked: int = 0
    on_ask: Callable[[], None] = field(default=lambda: None)

    def GetFindings(self, request: Any, context: Any) -> Any:
        self.asked += 1
        self.on_ask()
        return self.findings

    def GetNodeStatus(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def AuditReplica(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def VerifyReplica(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def Execute(self, request: Any, context: Any) -> Any:
        raise NotImplementedError


@dataclass
class FakeCluster:
    """Three nodes, two shards: n1 leads shard 0, n2 leads shard 1."""

    nodes: dict[str, FakeNode]
    servers: dict[str, grpc.Server]

    def find(self, node_id: str, check: str, severity: Any, subject: str, **more: Any) -> None:
        shard_id = {"n1": 0, "n2": 1}.get(node_id, 0)
        finding = {"shard_id": shard_id, "message": "it is so", "advice": "do this", **more}
        self.nodes[node_id].findings.findings.append(
            shard_pb2.Finding(check=check, severity=severity, subject=subject, **finding)
        )


def run_of(check: str, shard_id: int, finished_us: int = CHECKED_US) -> Any:
    return shard_pb2.CheckRun(check=check, shard_id=shard_id, finished_us=finished_us, rows=5)


@pytest.fixture
def cluster(in_tmp: Path, free_ports: Callable[[int], tuple[int, int]]) -> Iterator[FakeCluster]:
    config = generate_cluster_config(3, 2, base_port=free_ports(3)[0])
    (in_tmp / "cluster_config.json").write_text(config.dump())
    nodes, servers = {}, {}
    for node in config.nodes:
        led = {"n1": [0], "n2": [1]}.get(node.id, [])
        nodes[node.id] = FakeNode(
            shard_pb2.NodeFindings(
                node_id=node.id,
                runs=[run_of(check, shard_id) for shard_id in led for check in ("sums", "gaps")],
                transits=[shard_pb2.ShardTransit(shard_id=s, applied_index=7) for s in led],
            )
        )
        server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
        shard_pb2_grpc.add_ShardServiceServicer_to_server(nodes[node.id], server)
        server.add_insecure_port(node.address)
        server.start()
        servers[node.id] = server
    yield FakeCluster(nodes, servers)
    for server in servers.values():
        server.stop(None).wait(5)


def test_nothing_was_found(run: Run, cluster: FakeCluster) -> None:
    shown = run("checks")
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert "✓ nothing was found" in shown.stdout
    assert "2023-11-14 22:13:20" in shown.stdout


def test_findings_are_shown_the_worst_first(run: Run, cluster: FakeCluster) -> None:
    cluster.find("n1", "negative-balances", INFO, "account a")
    cluster.find("n1", "ageing-holds", WARNING, "transaction t", since_us=CHECKED_US)
    cluster.find("n2", "counters", ERROR, "account b", advice="Run `ledger verify`.")
    shown = run("checks")
    assert shown.exit_code == 1
    lines = [line.split()[0] for line in shown.stdout.splitlines()[1:4]]
    assert lines == ["ERROR", "WARNING", "INFO"]
    assert "counters: Run `ledger verify`." in shown.stdout
    report = json.loads(run("checks", "-o", "json").stdout)
    assert not report["ok"]
    assert report["findings"][1] == {
        "severity": "WARNING",
        "check": "ageing-holds",
        "shard_id": 0,
        "ledger": "",
        "subject": "transaction t",
        "since": "2023-11-14T22:13:20+00:00",
        "message": "it is so",
        "advice": "do this",
    }
    assert report["checks"][0] == {
        "check": "sums",
        "finished_time": "2023-11-14T22:13:20+00:00",
        "shards": 2,
        "shards_not_finished": [],
        "rows": 10,
        "findings": 0,
    }
    rows = list(csv.DictReader(io.StringIO(run("checks", "-o", "csv").stdout)))
    assert [row["subject"] for row in rows] == ["account b", "transaction t", "account a"]


def test_warnings_are_no_failure(run: Run, cluster: FakeCluster) -> None:
    cluster.find("n1", "ageing-holds", WARNING, "transaction t")
    assert run("checks").exit_code == 0
    assert json.loads(run("checks", "-o", "json").stdout)["ok"]


def test_an_empty_csv_has_its_heading(run: Run, cluster: FakeCluster) -> None:
    assert run("checks", "-o", "csv").stdout == (
        "severity,check,shard_id,ledger,subject,since,message,advice\n"
    )


def test_a_finding_of_two_nodes_counts_once(run: Run, cluster: FakeCluster) -> None:
    """While leadership goes from one to the other, both may have it."""
    for node_id in ("n1", "n3"):
        cluster.find(node_id, "ageing-holds", WARNING, "transaction t")
    assert len(json.loads(run("checks", "-o", "json").stdout)["findings"]) == 1


def test_a_pass_that_is_not_over_yet_is_said(run: Run, cluster: FakeCluster) -> None:
    cluster.nodes["n2"].findings.runs[0].finished_us = 0
    assert "not yet on 1 of 2 shards" in run("checks").stdout


def test_a_node_that_is_down_is_said(run: Run, cluster: FakeCluster) -> None:
    cluster.servers["n2"].stop(None).wait(5)
    shown = run("checks")
    assert shown.exit_code == 0
    assert shown.stderr == (
        "n2 did not answer: down\nNobody who answered checks shards 1: they have no leader yet.\n"
    )
    report = json.loads(run("checks", "-o", "json").stdout)
    assert (report["nodes_down"], report["unchecked_shards"]) == ({"n2": "down"}, [1])


def test_without_any_node_nothing_is_known(run: Run, cluster: FakeCluster) -> None:
    for server in cluster.servers.values():
        server.stop(None).wait(5)
    shown = run("checks")
    assert shown.exit_code == 1
    assert shown.stderr.startswith("No node answers.")


def due(shard_id: int, peer_shard_id: int, net: int) -> Any:
    return shard_pb2.InTransit(
        shard_id=shard_id,
        peer_shard_id=peer_shard_id,
        ledger="main",
        currency="USD",
        currency_exponent=2,
        net=str(net),
    )


def test_what_is_in_transit_must_net_to_zero(
    run: Run, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transit, "PAUSE_S", 0.0)
    first, second = (cluster.nodes[node_id].findings.transits[0] for node_id in ("n1", "n2"))
    first.accounts.append(due(0, 1, 500))
    second.accounts.append(due(1, 0, -500))
    assert run("checks").exit_code == 0
    second.accounts[0].net = "-400"
    report = json.loads(run("checks", "-o", "json").stdout)
    (finding,) = report["findings"]
    assert (finding["severity"], finding["subject"]) == ("ERROR", "shards 0 and 1")
    assert "to 1.00 USD, and nothing is in flight" in finding["message"]
    second.unfinished = 1
    assert run("checks").exit_code == 0


def test_shards_that_go_on_are_not_held_against_each_other(
    run: Run, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transit, "PAUSE_S", 0.0)
    node = cluster.nodes["n1"]
    node.findings.transits[0].accounts.append(due(0, 1, 500))

    def goes_on() -> None:
        node.findings.transits[0].applied_index += 1

    node.on_ask = goes_on
    assert run("checks").exit_code == 0
    assert node.asked == 1 + transit.ROUNDS_MAX


# A store without its node


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    shard = Shard(tmp_path / "n1")
    account = derive_account_id("main", "alice")
    shard.one(CreateAccount(account, "main", "alice"))
    for number in range(20):
        shard.one(CreateTransaction(account, 10, "", True, f"t{number}"))
    log = shard.store.log(0)
    log.save_hard_state(1, None)
    for index, payload in shard.log:
        log.append(index, 1, payload)
    shard.store.commit()
    shard.close()
    return shard.path


def test_the_store_of_a_stopped_node_is_proven(run: Run, data_dir: Path) -> None:
    shown = run("verify", "--data-dir", str(data_dir))
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert "✓ the store is proven from its first entry on (40 entries)" in shown.stdout
    report = json.loads(run("verify", "--data-dir", str(data_dir), "-o", "json").stdout)
    assert report["ok"]
    assert report["shards"][0]["journal_entries"] == 21
    rows = list(
        csv.DictReader(io.StringIO(run("verify", "--data-dir", str(data_dir), "-o", "csv").stdout))
    )
    assert [(row["shard_id"], row["proven"]) for row in rows] == [("0", "True")]


def test_faults_name_file_table_and_row(run: Run, data_dir: Path) -> None:
    env = lmdb.open(str(data_dir / "store" / "state"), max_dbs=100)
    with env.begin(write=True) as txn:
        journal = env.open_db(b"00000.journal", txn=txn)
        key = (7).to_bytes(8)
        txn.put(key, b"x" + txn.get(key, db=journal)[1:], db=journal)
    env.close()
    shown = run("verify", "--data-dir", str(data_dir))
    assert shown.exit_code == 1
    assert (
        f"{data_dir / 'store' / 'state' / 'data.mdb'}, shard 0: table journal, number 7: "
        "fails its checksum" in shown.stderr
    )
    assert "✗ the store is not what was written" in shown.stdout


def test_a_store_in_use_is_left_alone(run: Run, data_dir: Path) -> None:
    held = Shard(data_dir)
    shown = run("verify", "--data-dir", str(data_dir))
    held.close()
    assert shown.exit_code == 1
    assert "is in use by process" in shown.stderr
    assert run("verify", "--data-dir", str(data_dir)).exit_code == 0


def test_what_is_no_data_directory_is_a_clear_error(run: Run, tmp_path: Path) -> None:
    shown = run("verify", "--data-dir", str(tmp_path / "nowhere"))
    assert shown.exit_code == 1
    assert "nowhere is no data directory of a node" in shown.stderr


def test_a_cut_file_is_a_fault_and_no_crash(run: Run, data_dir: Path) -> None:
    shutil.copytree(data_dir, data_dir.with_name("cut"))
    file = data_dir.with_name("cut") / "store" / "state" / "data.mdb"
    with file.open("r+b") as stream:
        stream.truncate(3 * 4096)
    shown = run("verify", "--data-dir", str(data_dir.with_name("cut")))
    assert shown.exit_code == 1
    assert "is damaged" in shown.stderr

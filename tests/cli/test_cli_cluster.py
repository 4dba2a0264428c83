"""`ledger cluster` and `ledger verify`, with nodes that say what the test tells them to."""

import csv
import io
import json
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import Result

from ledger.internal.v1 import shard_pb2, shard_pb2_grpc
from ledger_cli import transit, verify
from ledger_cluster.config import ClusterConfig, generate_cluster_config, load_cluster_config

Run = Callable[..., Result]

LEADER = shard_pb2.REPLICA_ROLE_LEADER
FOLLOWER = shard_pb2.REPLICA_ROLE_FOLLOWER


@dataclass
class FakeNode(shard_pb2_grpc.ShardServiceServicer):
    """A node with the status and audits that a test gives it; a list is answered in turn."""

    status: shard_pb2.NodeStatus
    audits: dict[int, list[shard_pb2.ReplicaAudit]] = field(default_factory=dict)
    faults: dict[int, list[str]] = field(default_factory=dict)
    """What the deep audit of a shard finds here."""

    def GetNodeStatus(self, request: Any, context: Any) -> Any:
        return self.status

    def AuditReplica(self, request: Any, context: Any) -> Any:
        answers = self.audits[request.shard_id]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def VerifyReplica(self, request: Any, context: Any) -> Any:
        yield shard_pb2.VerifyProgress(outcome=shard_pb2.OUTCOME_OK, rows_done=1, rows_estimated=2)
        yield shard_pb2.VerifyProgress(
            outcome=shard_pb2.OUTCOME_OK,
            finished=True,
            journal_entries=3,
            entries=2,
            faults=self.faults.get(request.shard_id, []),
        )

    def GetFindings(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def Execute(self, request: Any, context: Any) -> Any:
        raise NotImplementedError


@dataclass
class FakeCluster:
    """Three nodes of two shards; n1 leads shard 0 and n2 leads shard 1."""

    config: ClusterConfig
    nodes: dict[str, FakeNode]
    servers: dict[str, grpc.Server]

    def stop(self, node_id: str) -> None:
        self.servers[node_id].stop(None).wait(5)


def replica(shard_id: int, role: Any, *, applied: int, serving: bool = False) -> Any:
    return shard_pb2.ReplicaStatus(
        shard_id=shard_id,
        role=role,
        term=4,
        commit_index=10,
        applied_index=applied,
        serving=serving,
    )


def audit(shard_id: int, *, index: int = 10, chain: bytes = b"\1", debits: int = 500) -> Any:
    sums = shard_pb2.LedgerSums(
        ledger="main",
        currency="USD",
        currency_exponent=2,
        debits_posted=str(debits),
        credits_posted="500",
        debits_pending="20",
        credits_pending="20",
    )
    return shard_pb2.ReplicaAudit(
        outcome=shard_pb2.OUTCOME_OK,
        shard_id=shard_id,
        applied_index=index,
        chain_hash=chain,
        accounts=2,
        transactions=1,
        entries=2,
        sums=[sums],
    )


@pytest.fixture
def cluster(in_tmp: Path, free_ports: Callable[[int], tuple[int, int]]) -> Iterator[FakeCluster]:
    config = generate_cluster_config(3, 2, base_port=free_ports(3)[0])
    (in_tmp / "cluster_config.json").write_text(config.dump())
    nodes, servers = {}, {}
    for node in config.nodes:
        replicas = [
            replica(
                shard.id,
                LEADER if shard.node_ids[0] == node.id else FOLLOWER,
                applied=9 if node.id == "n3" else 10,
                serving=shard.node_ids[0] == node.id,
            )
            for shard in config.shards
        ]
        nodes[node.id] = FakeNode(
            shard_pb2.NodeStatus(node_id=node.id, replicas=replicas, version="9.9"),
            {shard.id: [audit(shard.id)] for shard in config.shards},
        )
        server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
        shard_pb2_grpc.add_ShardServiceServicer_to_server(nodes[node.id], server)
        server.add_insecure_port(node.address)
        server.start()
        servers[node.id] = server
    yield FakeCluster(config, nodes, servers)
    for server in servers.values():
        server.stop(None).wait(5)


def test_generate_writes_a_good_file(run: Run, in_tmp: Path) -> None:
    result = run("cluster", "generate", "--nodes", "5", "--shards", "7", "--out", "c.json")
    assert result.exit_code == 0
    config = load_cluster_config(in_tmp / "c.json")
    assert (len(config.nodes), len(config.shards)) == (5, 7)
    checked = run("cluster", "check", "c.json")
    assert checked.exit_code == 0
    assert "5 nodes, 7 shards with 3 replicas each" in checked.stdout


def test_generate_makes_a_new_cluster_id_each_time(run: Run) -> None:
    first, second = (json.loads(run("cluster", "generate").stdout) for _ in range(2))
    assert first["cluster_id"] != second["cluster_id"]
    given = json.loads(run("cluster", "generate", "--cluster-id", "mine", "--host", "::1").stdout)
    assert given["cluster_id"] == "mine"
    assert given["nodes"][0]["address"] == "[::1]:7000"


def test_generate_overwrites_only_by_force(run: Run, in_tmp: Path) -> None:
    (in_tmp / "c.json").write_text("mine")
    result = run("cluster", "generate", "--out", "c.json")
    assert (result.exit_code, result.stderr) == (
        1,
        "c.json exists already; --force overwrites it.\n",
    )
    assert (in_tmp / "c.json").read_text() == "mine"
    assert run("cluster", "generate", "--out", "c.json", "--force").exit_code == 0
    assert run("cluster", "generate", "--out", "no/where.json").exit_code == 1


def test_check_names_every_fault(run: Run, in_tmp: Path) -> None:
    document = json.loads(generate_cluster_config(shards=2).dump())
    document["nodes"][0]["address"] = "x"
    del document["shards"][0]["id"]
    (in_tmp / "c.json").write_text(json.dumps(document))
    result = run("cluster", "check", "c.json")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 2
    assert "c.json: nodes[0].address: " in result.stderr


@pytest.mark.parametrize("command", [("cluster", "status"), ("verify",), ("dev", "cluster")])
def test_a_missing_configuration_is_a_clear_error(
    run: Run, in_tmp: Path, command: tuple[str, ...]
) -> None:
    result = run(*command)
    assert result.exit_code == 1
    assert result.stderr == (
        "cluster_config.json: no such file; `ledger cluster generate` writes a cluster "
        "configuration\n"
    )


def test_status_of_a_whole_cluster(run: Run, cluster: FakeCluster) -> None:
    shown = run("cluster", "status")
    assert shown.exit_code == 0
    assert "2 of 2 shards have a leader that serves" in shown.stdout
    assert "#10 leader" in shown.stdout
    assert "#9 (1 behind)" in shown.stdout
    report = json.loads(run("cluster", "status", "-o", "json").stdout)
    assert report["serving_shards"] == 2
    assert [shard["leader"] for shard in report["shards"]] == ["n1", "n2"]
    assert report["shards"][0]["replicas"][2] == {
        "node_id": "n3",
        "role": "follower",
        "term": 4,
        "commit_index": 10,
        "applied_index": 9,
        "lag": 1,
        "first_log_index": 0,
        "unproven": False,
        "installing_bytes": 0,
    }
    rows = list(csv.DictReader(io.StringIO(run("cluster", "status", "-o", "csv").stdout)))
    assert [(row["shard_id"], row["node_id"]) for row in rows][:3] == [
        ("0", "n1"),
        ("0", "n2"),
        ("0", "n3"),
    ]


def test_status_shows_what_is_down_and_exits_with_1(run: Run, cluster: FakeCluster) -> None:
    cluster.stop("n2")
    shown = run("cluster", "status")
    assert shown.exit_code == 1
    assert "1 of 2 shards have a leader that serves" in shown.stdout
    assert any(line.startswith("n2") and "down" in line for line in shown.stdout.splitlines())
    report = json.loads(run("cluster", "status", "-o", "json").stdout)
    assert [shard["serving"] for shard in report["shards"]] == [True, False]


def test_a_node_that_is_up_but_cannot_be_linked_is_found_out(
    run: Run, cluster: FakeCluster
) -> None:
    """As where a firewall has the port of the links closed."""
    address = cluster.config.node("n2").link_address
    shown = " ".join(run("cluster", "status").stdout.split())
    assert (
        f"no link at {address}: connection refused; that port must be open to nodes and gateways"
        in shown
    )
    node = json.loads(run("cluster", "status", "-o", "json").stdout)["nodes"][1]
    assert (node["up"], node["link_address"]) == (True, address)
    assert node["link_problem"] == "connection refused"


def test_a_leader_that_does_not_serve_is_none(run: Run, cluster: FakeCluster) -> None:
    cluster.nodes["n1"].status.replicas[0].serving = False
    report = json.loads(run("cluster", "status", "-o", "json").stdout)
    assert report["shards"][0]["leader"] is None


def test_another_node_at_the_address_is_said(run: Run, cluster: FakeCluster) -> None:
    cluster.nodes["n3"].status.node_id = "n9"
    shown = run("cluster", "status")
    assert shown.exit_code == 0
    assert "another node answers at its address: 'n9'" in shown.stdout


def test_verify_proves_good_books(run: Run, cluster: FakeCluster) -> None:
    shown = run("verify")
    assert shown.exit_code == 0
    assert "✓ sum of all balances = 0 on every shard (2 shards, 4 entries)" in shown.stdout
    assert "✓ all 6 replicas equal" in shown.stdout
    assert "5.00 USD" in shown.stdout
    report = json.loads(run("verify", "-o", "json").stdout)
    assert report["ok"]
    assert report["shards"][1]["debits_pending"] == "20"
    assert report["shards"][1]["replicas_equal"] == 3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (audit(1, debits=501), "posted debits and credits of ledger main differ by 0.01 USD"),
        (audit(1, chain=b"\2"), "shard 1: replicas differ at applied index 10: "),
        (
            shard_pb2.ReplicaAudit(outcome=shard_pb2.OUTCOME_WRONG_NODE),
            "shard 1: n3 could not be audited: wrong_node",
        ),
        (audit(1, index=9), "not all replicas were seen at one applied index (n2: 10, n3: 9"),
    ],
)
def test_verify_finds(
    run: Run, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, wrong: Any, said: str
) -> None:
    monkeypatch.setattr(verify, "PAUSE_S", 0.0)
    cluster.nodes["n3"].audits[1] = [wrong]
    shown = run("verify")
    assert shown.exit_code == 1
    assert said in shown.stderr
    assert "shard 0" not in shown.stderr


def test_verify_reports_faults_of_accounts(run: Run, cluster: FakeCluster) -> None:
    faulty = audit(0)
    faulty.faults.append("account 1: counters differ from its history")
    cluster.nodes["n2"].audits[0] = [faulty]
    shown = run("verify")
    assert shown.exit_code == 1
    assert shown.stderr == "shard 0: n2: account 1: counters differ from its history\n"


def test_verify_has_every_replica_prove_its_history(run: Run, cluster: FakeCluster) -> None:
    shown = run("verify")
    assert shown.exit_code == 0
    assert "✓ all 6 replicas proven from their first entry on (12 entries, 18 links" in shown.stdout
    cluster.nodes["n2"].faults[1] = ["table entries, position 7: fails its checksum"]
    shown = run("verify")
    assert shown.exit_code == 1
    assert shown.stderr == "shard 1: n2: table entries, position 7: fails its checksum\n"
    assert "✗ replicas that are not proven: shard 1 on n2" in shown.stdout
    report = json.loads(run("verify", "-o", "json").stdout)
    assert not report["ok"]
    assert [(r["shard_id"], r["node_id"], r["faults"]) for r in report["replicas"]][3:] == [
        (1, "n1", 0),
        (1, "n2", 1),
        (1, "n3", 0),
    ]
    assert run("verify", "--quick").exit_code == 0


def due(shard_id: int, peer_shard_id: int, net: int) -> Any:
    return shard_pb2.InTransit(
        shard_id=shard_id,
        peer_shard_id=peer_shard_id,
        ledger="main",
        currency="USD",
        currency_exponent=2,
        net=str(net),
    )


def test_verify_nets_what_is_in_transit(
    run: Run, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transit, "PAUSE_S", 0.0)
    for node in cluster.nodes.values():
        node.audits[0][0].in_transit.append(due(0, 1, 500))
        node.audits[1][0].in_transit.append(due(1, 0, -500))
    shown = run("verify", "--quick")
    assert shown.exit_code == 0
    assert "✓ what is in transit between shards nets to zero" in shown.stdout
    for node in cluster.nodes.values():
        node.audits[1][0].in_transit[0].net = "-499"
    shown = run("verify", "--quick")
    assert shown.exit_code == 1
    assert shown.stderr == (
        "shards 0 and 1: what is in transit between them in ledger main does not net to zero, but "
        "to 0.01 USD, and nothing is in flight\n"
    )
    # While something is in flight, the one side may have it, and the other not yet.
    for node in cluster.nodes.values():
        node.audits[0][0].in_flight = 1
    assert run("verify", "--quick").exit_code == 0


def test_shards_that_go_on_are_not_netted(
    run: Run, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked one after the other, they can differ by a transaction that passed in between."""
    monkeypatch.setattr(transit, "PAUSE_S", 0.0)
    for node in cluster.nodes.values():
        for index in range(40):
            first = audit(0, index=11 + index)
            first.in_transit.append(due(0, 1, 500 + index))
            node.audits[0].append(first)
        node.audits[1][0].in_transit.append(due(1, 0, -499))
    assert run("verify", "--quick").exit_code == 0


def test_verify_tells_what_is_on_its_way(run: Run, cluster: FakeCluster) -> None:
    assert "✓ no transaction is undecided or in flight" in run("verify").stdout
    now_us = time.time_ns() // 1_000
    for node in cluster.nodes.values():
        node.audits[1][0].undecided, node.audits[1][0].unfinished_since_us = 2, now_us
    shown = run("verify")
    assert shown.exit_code == 0
    assert "2 transactions across shards are on their way" in shown.stdout
    assert json.loads(run("verify", "-o", "json").stdout)["shards"][1]["undecided"] == 2
    for node in cluster.nodes.values():
        node.audits[1][0].unfinished_since_us = now_us - 60_000_000
    shown = run("verify")
    assert shown.exit_code == 1
    assert "shard 1: a transaction across shards is unfinished for 60 s" in shown.stderr
    assert "✗ 2 transactions across shards unfinished, for up to 60 s" in shown.stdout


def test_verify_without_a_node_is_no_proof(run: Run, cluster: FakeCluster) -> None:
    cluster.stop("n3")
    shown = run("verify")
    assert shown.exit_code == 1
    assert "shard 0: n3 could not be audited: down" in shown.stderr
    assert "✓ sum of all balances = 0" in shown.stdout
    assert "✗ replicas not proven equal: shards 0, 1" in shown.stdout


def test_verify_without_any_node(run: Run, cluster: FakeCluster) -> None:
    for node_id in cluster.nodes:
        cluster.stop(node_id)
    shown = run("verify")
    assert shown.exit_code == 1
    assert "no replica answers" in shown.stdout
    assert "✗ not proven to balance: shards 0, 1" in shown.stdout


def test_under_traffic_replicas_are_compared_over_several_rounds(
    run: Run, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "PAUSE_S", 0.0)
    chains = {index: bytes([index]) for index in range(10, 16)}
    for node_id, indexes in {"n1": (10, 12, 14), "n2": (12, 13, 15), "n3": (11, 13, 14)}.items():
        cluster.nodes[node_id].audits[0] = [
            audit(0, index=index, chain=chains[index]) for index in indexes
        ]
    assert run("verify").exit_code == 0

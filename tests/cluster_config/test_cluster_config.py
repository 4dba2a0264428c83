"""The cluster configuration: what loads, what does not, and what the faults say."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger_cluster.config import (
    ClusterConfig,
    ClusterConfigError,
    generate_cluster_config,
    load_cluster_config,
    parse_cluster_config,
    split_address,
)

ROOT = Path(__file__).parents[2]


def document() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(generate_cluster_config(nodes=3, shards=4).dump())
    return loaded


def faults_of(document: Any) -> list[tuple[str, str]]:
    text = document if isinstance(document, str | bytes) else json.dumps(document)
    with pytest.raises(ClusterConfigError) as caught:
        parse_cluster_config(text, "c.json")
    assert len(str(caught.value).splitlines()) == len(caught.value.faults)
    return [(fault.path, fault.message) for fault in caught.value.faults]


def test_the_committed_configuration_is_the_generated_one() -> None:
    config = load_cluster_config(ROOT / "cluster_config.json")
    assert config == generate_cluster_config(nodes=3, shards=16, replicas=3)
    assert (ROOT / "cluster_config.json").read_text() == config.dump()
    assert [node.address for node in config.nodes] == [f"127.0.0.1:{p}" for p in (7000, 7001, 7002)]
    assert [node.link_address[-5:] for node in config.nodes] == [":7003", ":7004", ":7005"]


def test_the_procfile_starts_the_nodes_of_the_committed_configuration() -> None:
    config = load_cluster_config(ROOT / "cluster_config.json")
    lines = (ROOT / "Procfile").read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == [*(n.id for n in config.nodes), "gateway"]
    assert all(line.partition(": ")[2].startswith("exec ledger-") for line in lines)
    assert "/" not in "".join(lines).replace("data/n", "")


def test_lookups() -> None:
    config = generate_cluster_config()
    assert config.node("n2").address == "127.0.0.1:7001"
    assert config.shard(4).node_ids == ("n2", "n3", "n1")
    assert config.shards_on("n3") == config.shards
    with pytest.raises(LookupError, match=r"no node 'n9' .* n1, n2, n3"):
        config.node("n9")
    with pytest.raises(LookupError, match=r"no shard 16 .* from 0 to 15"):
        config.shard(16)


def test_digest_depends_on_content_alone() -> None:
    config = generate_cluster_config(shards=4)
    shuffled = document()
    shuffled["nodes"].reverse()
    shuffled["shards"].reverse()
    assert parse_cluster_config(json.dumps(shuffled)).digest == config.digest
    for number, node in enumerate(shuffled["nodes"]):
        node["address"] = f"another.network:{7000 + number}"
        node["link_address"] = f"a.third.one:{7000 + number}"
    assert parse_cluster_config(json.dumps(shuffled)).digest == config.digest
    shuffled["shards"][0]["replicas"].reverse()
    assert parse_cluster_config(json.dumps(shuffled)).digest != config.digest


def test_digest_never_changes() -> None:
    assert generate_cluster_config().digest == "f20f3bfb4a2107391693b9b94aa7f06e"


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "path", "part"),
    [
        (lambda d: d.pop("cluster_id"), "cluster_id", "is missing"),
        (lambda d: d.update(cluster_id=7), "cluster_id", "must be a string, not a number"),
        (lambda d: d.update(cluster_id="a b"), "cluster_id", "must be 1 to 64 letters"),
        (lambda d: d.update(extra=1), "extra", "is unknown here"),
        (lambda d: d.update({"\n": 1}), "'\\n'", "is unknown here"),
        (lambda d: d.pop("nodes"), "nodes", "is missing"),
        (lambda d: d.update(nodes={}), "nodes", "must be a list, not an object"),
        (lambda d: d.update(nodes=[]), "nodes", "is empty"),
        (lambda d: d["nodes"].extend([{}] * 126), "nodes", "has 129 members; the most is 128"),
        (lambda d: d["nodes"].append(None), "nodes[3]", "must be an object with id, address"),
        (lambda d: d["nodes"][1].pop("address"), "nodes[1].address", "is missing"),
        (lambda d: d["nodes"][1].update(address=7001), "nodes[1].address", "host:port, not a num"),
        (lambda d: d["nodes"][1].update(address="n1"), "nodes[1].address", "must be host:port"),
        (lambda d: d["nodes"][1].update(address="a:0"), "nodes[1].address", "port '0'"),
        (lambda d: d["nodes"][1].update(address="a:65536"), "nodes[1].address", "1 to 65535"),
        (lambda d: d["nodes"][1].update(address="::1:7000"), "nodes[1].address", "in brackets"),
        (lambda d: d["nodes"][1].update(address="[::g]:70"), "nodes[1].address", "no IPv6"),
        (lambda d: d["nodes"][1].update(address="300.0.0.1:7"), "nodes[1].address", "no IPv4"),
        (lambda d: d["nodes"][1].update(address="a/b:7"), "nodes[1].address", "nor a host name"),
        (
            lambda d: d["nodes"][1].update(address="127.0.0.1:7000"),
            "nodes[1].address",
            "already used at nodes[0].address",
        ),
        (
            lambda d: d["nodes"][1].pop("link_address"),
            "nodes[1].link_address",
            "is missing; write where the node listens for the other nodes and for gateways",
        ),
        (lambda d: d["nodes"][1].update(link_address="n1"), "nodes[1].link_address", "host:port"),
        (
            lambda d: d["nodes"][1].update(link_address="127.0.0.1:7001"),
            "nodes[1].link_address",
            "already used at nodes[1].address",
        ),
        (
            lambda d: d["nodes"][1].update(link_address="127.0.0.1:7000"),
            "nodes[1].link_address",
            "already used at nodes[0].address",
        ),
        (
            lambda d: d["nodes"][1].update(link_address="127.0.0.1:7003"),
            "nodes[1].link_address",
            "already used at nodes[0].link_address",
        ),
        (lambda d: d["shards"][1].update(id=0), "shards[1].id", "already used at shards[0].id"),
        (lambda d: d["shards"][1].update(id=True), "shards[1].id", "must be a whole number"),
        (lambda d: d["shards"][1].update(id=-1), "shards[1].id", "must be a whole number"),
        (lambda d: d["shards"][1].update(id=65536), "shards[1].id", "from 0 to 65535"),
        (lambda d: d.update(shards=[]), "shards", "is empty"),
        (lambda d: d.update(shards="all"), "shards", "must be a list, not a string"),
        (lambda d: d["shards"].__setitem__(0, 1.5), "shards[0]", "not a number"),
        (lambda d: d["shards"][0].pop("upper_bound"), "shards[0].upper_bound", "is missing"),
        (lambda d: d["shards"][0].update(lower_bound=0), "shards[0].lower_bound", "8 lower-case"),
        (lambda d: d["shards"][0].update(lower_bound="0"), "shards[0].lower_bound", "hex digits"),
        (
            lambda d: d["shards"][1].update(lower_bound="90000000"),
            "shards[1].lower_bound",
            "begins at 90000000, which is after its upper_bound 7fffffff",
        ),
        (
            lambda d: d["shards"][0].update(lower_bound="00000001"),
            "shards[0].lower_bound",
            "keys 00000000..00000000 are in no shard: shard 0 begins at 00000001",
        ),
        (
            lambda d: d["shards"][1].update(lower_bound="40000010"),
            "shards[1].lower_bound",
            "keys 40000000..4000000f are in no shard: shard 1 begins at 40000010 and shard 0 ends "
            "at 3fffffff",
        ),
        (
            lambda d: d["shards"][1].update(lower_bound="3ffffff0"),
            "shards[1].lower_bound",
            "keys 3ffffff0..3fffffff are in both shard 0 and shard 1",
        ),
        (
            lambda d: d["shards"][3].update(upper_bound="fffffffe"),
            "shards[3].upper_bound",
            "keys ffffffff..ffffffff are in no shard: shard 3 is the last one",
        ),
        (lambda d: d["shards"][0].update(replicas=[]), "shards[0].replicas", "is empty"),
        (lambda d: d["shards"][0].update(replicas=3), "shards[0].replicas", "must be a list"),
        (lambda d: d["shards"][0]["replicas"].pop(), "shards[0].replicas", "2 replicas; it must"),
        (
            lambda d: d["shards"][0].update(replicas=d["shards"][0]["replicas"][:1]),
            "shards[0].replicas",
            "has 1 replica where most shards have 3",
        ),
        (
            lambda d: d["shards"][0]["replicas"][0].update(node_id="n9"),
            "shards[0].replicas[0].node_id",
            "there is no node 'n9'; the nodes are n1, n2, n3",
        ),
        (
            lambda d: d["shards"][0]["replicas"][1].update(node_id="n1"),
            "shards[0].replicas[1].node_id",
            "shard 0 already has a replica on node 'n1'",
        ),
        (
            lambda d: d["shards"][1]["replicas"][0].update(id="s0-n1"),
            "shards[1].replicas[0].id",
            "already used at shards[0].replicas[0].id",
        ),
        (lambda d: d["shards"][0]["replicas"][0].pop("id"), "shards[0].replicas[0].id", "missing"),
        (
            lambda d: d["shards"][0]["replicas"][0].update(id=[]),
            "shards[0].replicas[0].id",
            "must be a string, not a list",
        ),
    ],
)
def test_one_fault_is_reported_once_with_its_path(change: Change, path: str, part: str) -> None:
    faulty = document()
    change(faulty)
    faults = faults_of(faulty)
    assert [fault[0] for fault in faults] == [path]
    assert part in faults[0][1]


def test_a_repeated_node_id_is_a_fault() -> None:
    faulty = document()
    faulty["nodes"].append({"id": "n1", "address": "h:1", "link_address": "h:2"})
    assert faults_of(faulty) == [("nodes[3].id", "node id 'n1' is already used at nodes[0].id")]


def test_all_faults_are_reported_together() -> None:
    faulty = document()
    del faulty["cluster_id"]
    faulty["nodes"][0]["address"] = "nowhere"
    faulty["shards"][1]["upper_bound"] = "60000000"
    faulty["shards"][2]["replicas"][2]["node_id"] = "n7"
    faulty["shards"][3]["color"] = "red"
    with pytest.raises(ClusterConfigError) as caught:
        parse_cluster_config(json.dumps(faulty), "c.json")
    assert str(caught.value).splitlines() == [
        "c.json: cluster_id: is missing",
        "c.json: nodes[0].address: 'nowhere' must be host:port, such as 127.0.0.1:7000",
        "c.json: shards[2].replicas[2].node_id: there is no node 'n7'; the nodes are n1, n2, n3",
        "c.json: shards[3].color: is unknown here; known are id, lower_bound, upper_bound, "
        "replicas",
        "c.json: shards[2].lower_bound: keys 60000001..7fffffff are in no shard: shard 2 begins "
        "at 80000000 and shard 1 ends at 60000000",
    ]


def test_gaps_are_not_judged_while_a_bound_is_unreadable() -> None:
    faulty = document()
    faulty["shards"][1]["lower_bound"] = "x"
    assert [path for path, _ in faults_of(faulty)] == ["shards[1].lower_bound"]


def test_same_address_in_other_words_is_a_repeat() -> None:
    faulty = document()
    faulty["nodes"][0]["address"] = "[::1]:7000"
    faulty["nodes"][1]["address"] = "[0:0::1]:7000"
    assert [path for path, _ in faults_of(faulty)] == ["nodes[1].address"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"nodes": [}', "not JSON: Expecting value at line 1, column 12"),
        ("{\n  'a': 1}", "at line 2, column 3"),
        ("", "not JSON"),
        (b"\xff", "not UTF-8 text: wrong byte at offset 0"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 10_000, "a number is too long"),
        (" " * (8 * 2**20 + 1), "larger than 8 MiB"),
        ("[]", "must be an object with cluster_id, nodes, shards, not a list"),
        ("null", "not null"),
    ],
)
def test_text_that_is_no_configuration(text: str | bytes, message: str) -> None:
    ((path, said),) = faults_of(text)
    assert path == ""
    assert message in said


def test_a_key_given_twice_is_a_fault() -> None:
    text = generate_cluster_config().dump().replace("{", '{"cluster_id": "other",', 1)
    assert faults_of(text) == [("cluster_id", "is given more than once")]


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ClusterConfigError, match="no such file; `ledger cluster generate`"):
        load_cluster_config(tmp_path / "none.json")
    with pytest.raises(ClusterConfigError, match="is a directory"):
        load_cluster_config(tmp_path)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:7000", ("127.0.0.1", 7000)),
        ("node-1.example.org:65535", ("node-1.example.org", 65535)),
        ("[fe80::1]:1", ("fe80::1", 1)),
        ("localhost:80", ("localhost", 80)),
    ],
)
def test_addresses(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address) == expected


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int, int]:
    replicas = draw(st.sampled_from([1, 3, 5, 7]))
    return draw(st.integers(replicas, 20)), draw(st.integers(1, 200)), replicas


@given(sizes())
def test_generated_clusters_are_even_and_read_back(size: tuple[int, int, int]) -> None:
    nodes, shards, replicas = size
    config = generate_cluster_config(nodes, shards, replicas)
    assert parse_cluster_config(config.dump()) == config
    assert (len(config.nodes), len(config.shards)) == (nodes, shards)

    widths = [shard.upper_bound - shard.lower_bound + 1 for shard in config.shards]
    assert sum(widths) == 2**32
    assert max(widths) - min(widths) <= 1

    for counted in (
        Counter(shard.node_ids[0] for shard in config.shards),
        Counter(node_id for shard in config.shards for node_id in shard.node_ids),
    ):
        counts = [counted[node.id] for node in config.nodes]
        assert max(counts) - min(counts) <= replicas
    leaders = Counter(shard.node_ids[0] for shard in config.shards)
    assert max(leaders.values()) - min(leaders[node.id] for node in config.nodes) <= 1
    assert all(len(set(shard.node_ids)) == replicas for shard in config.shards)


@pytest.mark.parametrize(
    ("size", "path", "part"),
    [
        ((0, 1, 1), "nodes", "must be from 1 to 128"),
        ((3, 0, 3), "shards", "must be from 1 to 1024"),
        ((3, 1025, 3), "shards", "must be from 1 to 1024"),
        ((3, 16, 2), "replicas", "must be one of 1, 3, 5, 7, not 2"),
        ((3, 16, 5), "replicas", "cannot have 5 replicas on 3 nodes"),
    ],
)
def test_the_generator_refuses(size: tuple[int, int, int], path: str, part: str) -> None:
    with pytest.raises(ClusterConfigError) as caught:
        generate_cluster_config(*size)
    faults = {fault.path: fault.message for fault in caught.value.faults}
    assert part in faults[path]


def test_the_generator_refuses_ports_beyond_the_last() -> None:
    with pytest.raises(ClusterConfigError, match=r"6 ports \(two per node\) from 65531 on"):
        generate_cluster_config(base_port=65_531)
    assert isinstance(generate_cluster_config(base_port=65_530), ClusterConfig)

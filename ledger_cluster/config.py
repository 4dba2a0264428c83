"""The cluster configuration: which nodes there are, and which of them hold which shard.

Read once, at start, into frozen records. Loading checks everything at once: `ClusterConfigError`
lists every fault with its path in the file, so that one look is enough to repair it. The checks
are in `ledger_cluster.config_check`.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ledger_cluster.config_check import (
    FILE_BYTES_MAX,
    KEY_MAX,
    NODES_MAX,
    REPLICA_COUNTS,
    SHARDS_MAX,
    Fault,
    check_document,
    parse_document,
    split_address,
)

__all__ = [
    "ClusterConfig",
    "ClusterConfigError",
    "Fault",
    "NodeConfig",
    "ReplicaConfig",
    "ShardConfig",
    "generate_cluster_config",
    "load_cluster_config",
    "parse_cluster_config",
    "split_address",
]


class ClusterConfigError(ValueError):
    """The configuration cannot be used; ``faults`` says everything that is wrong with it.

    The text of the error has one fault a line, each with the file and the path in it.
    """

    def __init__(self, source: str, faults: list[Fault]) -> None:
        lines = (": ".join(part for part in (source, f.path, f.message) if part) for f in faults)
        super().__init__("\n".join(lines))
        self.source = source
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """A host of replicas.

    ``address`` is where its gRPC server listens, for gateways' health checks and for tools;
    ``link_address`` where it listens for the links of other nodes and of gateways. Both are
    ``host:port``; IPv6 hosts stand in brackets.
    """

    id: str
    address: str
    link_address: str


@dataclass(frozen=True, slots=True)
class ReplicaConfig:
    """A copy of a shard, placed on a node."""

    id: str
    node_id: str


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """A range of shard keys and the Raft group that holds its accounts.

    The bounds are u32 shard keys, both inclusive. The first replica is the preferred leader.
    """

    id: int
    lower_bound: int
    upper_bound: int
    replicas: tuple[ReplicaConfig, ...]

    @property
    def node_ids(self) -> tuple[str, ...]:
        """The nodes that hold a replica, the preferred leader first."""
        return tuple(replica.node_id for replica in self.replicas)


@dataclass(frozen=True)
class ClusterConfig:
    """The whole cluster. Shards are sorted by their range and cover all 2**32 keys."""

    cluster_id: str
    nodes: tuple[NodeConfig, ...]
    shards: tuple[ShardConfig, ...]

    @cached_property
    def _nodes_by_id(self) -> dict[str, NodeConfig]:
        return {node.id: node for node in self.nodes}

    @cached_property
    def _shards_by_id(self) -> dict[int, ShardConfig]:
        return {shard.id: shard for shard in self.shards}

    def node(self, node_id: str) -> NodeConfig:
        """Return a node; LookupError names the nodes that exist."""
        if (node := self._nodes_by_id.get(node_id)) is None:
            known = ", ".join(self._nodes_by_id)
            raise LookupError(f"there is no node {node_id!r} in the cluster; its nodes are {known}")
        return node

    def shard(self, shard_id: int) -> ShardConfig:
        """Return a shard; LookupError says that there is none of this id."""
        if (shard := self._shards_by_id.get(shard_id)) is None:
            ids = sorted(self._shards_by_id)
            raise LookupError(
                f"there is no shard {shard_id} in the cluster; its {len(ids)} shards have "
                f"ids from {ids[0]} to {ids[-1]}"
            )
        return shard

    def shards_on(self, node_id: str) -> tuple[ShardConfig, ...]:
        """Return the shards that have a replica on the node."""
        return tuple(shard for shard in self.shards if node_id in shard.node_ids)

    @cached_property
    def digest(self) -> str:
        """32 hex digits that are equal for two configurations of the same cluster.

        The layout of the file and the order of its nodes and shards do not matter; the order of a
        shard's replicas does, for it names the preferred leader. Addresses do not matter either:
        a node may be reached at different ones from different networks.
        """
        document = self._layout() | {"nodes": sorted(node.id for node in self.nodes)}
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=16, person=b"cluster config").hexdigest()

    def dump(self) -> str:
        """Return the text of the configuration file, one node or replica a line."""
        nodes = ",\n".join(
            f'    {{"id": {json.dumps(node.id)}, "address": {json.dumps(node.address)}, '
            f'"link_address": {json.dumps(node.link_address)}}}'
            for node in self.nodes
        )
        shards = ",\n".join(_dump_shard(shard) for shard in self.shards)
        return (
            f'{{\n  "cluster_id": {json.dumps(self.cluster_id)},\n'
            f'  "nodes": [\n{nodes}\n  ],\n  "shards": [\n{shards}\n  ]\n}}\n'
        )

    def _layout(self) -> dict[str, Any]:
        return {
            "cluster_id": self.cluster_id,
            "shards": [
                {
                    "id": shard.id,
                    "lower_bound": f"{shard.lower_bound:08x}",
                    "upper_bound": f"{shard.upper_bound:08x}",
                    "replicas": [{"id": r.id, "node_id": r.node_id} for r in shard.replicas],
                }
                for shard in self.shards
            ],
        }


def _dump_shard(shard: ShardConfig) -> str:
    replicas = ",\n".join(
        f'        {{"id": {json.dumps(replica.id)}, "node_id": {json.dumps(replica.node_id)}}}'
        for replica in shard.replicas
    )
    return (
        f'    {{\n      "id": {shard.id},\n'
        f'      "lower_bound": "{shard.lower_bound:08x}",\n'
        f'      "upper_bound": "{shard.upper_bound:08x}",\n'
        f'      "replicas": [\n{replicas}\n      ]\n    }}'
    )


def load_cluster_config(path: str | Path) -> ClusterConfig:
    """Read and check a configuration file; ClusterConfigError lists all that is wrong."""
    source = str(path)
    try:
        with Path(path).open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        advice = "no such file; `ledger cluster generate` writes a cluster configuration"
        raise ClusterConfigError(source, [Fault("", advice)]) from None
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        raise ClusterConfigError(source, [Fault("", reason)]) from None
    return parse_cluster_config(data, source)


def parse_cluster_config(data: str | bytes, source: str = "cluster configuration") -> ClusterConfig:
    """Check the text of a configuration file; ``source`` names it in errors."""
    document, faults = parse_document(data)
    if not faults:
        faults = check_document(document)
    if faults:
        raise ClusterConfigError(source, faults)
    return _build(document)


def _build(document: Any) -> ClusterConfig:
    """Build the records from a document that has no faults."""
    nodes = (
        NodeConfig(id=item["id"], address=item["address"], link_address=item["link_address"])
        for item in document["nodes"]
    )
    shards = (
        ShardConfig(
            id=item["id"],
            lower_bound=int(item["lower_bound"], 16),
            upper_bound=int(item["upper_bound"], 16),
            replicas=tuple(
                ReplicaConfig(id=replica["id"], node_id=replica["node_id"])
                for replica in item["replicas"]
            ),
        )
        for item in document["shards"]
    )
    return ClusterConfig(
        cluster_id=document["cluster_id"],
        nodes=tuple(nodes),
        shards=tuple(sorted(shards, key=lambda shard: shard.lower_bound)),
    )


def generate_cluster_config(
    nodes: int = 3,
    shards: int = 16,
    replicas: int = 3,
    *,
    cluster_id: str = "local",
    host: str = "127.0.0.1",
    base_port: int = 7000,
) -> ClusterConfig:
    """Make a cluster of ``nodes`` nodes on successive ports of one host, n1 on ``base_port``.

    The ports of their links follow, in the same order: twice ``nodes`` ports are taken.

    The ranges of the shards differ by one key at most. Replicas go around the nodes, so that
    preferred leaders and replicas are spread evenly.
    """
    faults = [
        Fault(name, f"must be from 1 to {limit}, not {count}")
        for name, count, limit in (("nodes", nodes, NODES_MAX), ("shards", shards, SHARDS_MAX))
        if not 1 <= count <= limit
    ]
    if replicas not in REPLICA_COUNTS:
        allowed = ", ".join(map(str, REPLICA_COUNTS))
        faults.append(Fault("replicas", f"must be one of {allowed}, not {replicas}"))
    elif replicas > nodes:
        faults.append(
            Fault(
                "replicas",
                f"a shard cannot have {replicas} replicas on {nodes} nodes: "
                "each replica needs a node of its own",
            )
        )
    if not 1 <= base_port <= 65_536 - 2 * max(nodes, 1):
        ports = f"{2 * nodes} ports (two per node) from {base_port} on"
        faults.append(Fault("base_port", f"{ports} are not all within 1..65535"))
    if faults:
        raise ClusterConfigError("", faults)

    bounds = [index * (KEY_MAX + 1) // shards for index in range(shards + 1)]
    config = ClusterConfig(
        cluster_id=cluster_id,
        nodes=tuple(
            NodeConfig(
                id=f"n{index + 1}",
                address=f"{host}:{base_port + index}",
                link_address=f"{host}:{base_port + nodes + index}",
            )
            for index in range(nodes)
        ),
        shards=tuple(
            ShardConfig(
                id=index,
                lower_bound=bounds[index],
                upper_bound=bounds[index + 1] - 1,
                replicas=tuple(
                    ReplicaConfig(id=f"s{index}-{node_id}", node_id=node_id)
                    for node_id in (f"n{(index + step) % nodes + 1}" for step in range(replicas))
                ),
            )
            for index in range(shards)
        ),
    )
    # What the generator writes passes the same checks as what people write.
    return parse_cluster_config(config.dump(), source="")

"""`ledger cluster`: make and check configurations, and see how the cluster is."""

import os
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from ledger.internal.v1 import shard_pb2
from ledger_cli.context import (
    CliError,
    Session,
    cluster_config_option,
    output_option,
    pass_session,
)
from ledger_cli.node_probe import NodeAnswer, NodeProbe, serving_leader
from ledger_cli.output import console, new_table
from ledger_cluster.config import (
    ClusterConfig,
    ClusterConfigError,
    ShardConfig,
    generate_cluster_config,
    load_cluster_config,
)

_ROLES = {
    shard_pb2.REPLICA_ROLE_FOLLOWER: "follower",
    shard_pb2.REPLICA_ROLE_CANDIDATE: "candidate",
    shard_pb2.REPLICA_ROLE_LEADER: "leader",
}


@click.group()
def cluster() -> None:
    """Configure a cluster, and see how it is."""


@cluster.command()
@click.option("--nodes", default=3, show_default=True, help="Number of nodes.")
@click.option("--shards", default=16, show_default=True, help="Number of shards.")
@click.option("--replicas", default=3, show_default=True, help="Replicas of each shard: odd.")
@click.option("--cluster-id", help="Data belongs to one cluster id for good (default: a new one).")
@click.option("--host", default="127.0.0.1", show_default=True, help="Host of all nodes.")
@click.option(
    "--base-port",
    default=7000,
    show_default=True,
    help="Port of n1; those of the other nodes follow, then the nodes' ports for links.",
)
@click.option("--out", type=click.Path(path_type=Path), help="File to write (default: stdout).")
@click.option("--force", is_flag=True, help="Overwrite the file.")
def generate(
    *,
    nodes: int,
    shards: int,
    replicas: int,
    cluster_id: str | None,
    host: str,
    base_port: int,
    out: Path | None,
    force: bool,
) -> None:
    """Write the configuration of a new cluster."""
    try:
        config = generate_cluster_config(
            nodes,
            shards,
            replicas,
            cluster_id=cluster_id or f"cluster-{os.urandom(4).hex()}",
            host=f"[{host}]" if ":" in host and not host.startswith("[") else host,
            base_port=base_port,
        )
    except ClusterConfigError as error:
        raise click.UsageError(str(error)) from None
    if out is None:
        click.echo(config.dump(), nl=False)
        return
    try:
        with out.open("w" if force else "x") as file:
            file.write(config.dump())
    except FileExistsError:
        raise CliError(f"{out} exists already; --force overwrites it.") from None
    except OSError as error:
        raise CliError(f"{out} cannot be written: {(error.strerror or '').lower()}.") from None
    click.echo(f"Wrote {out}: {_describe(config)}.", err=True)


@cluster.command()
@click.argument("file", type=click.Path(path_type=Path), default=Path("cluster_config.json"))
def check(file: Path) -> None:
    """Check a configuration file and name every fault."""
    config = load_cluster_config(file)
    click.echo(f"{file} is good: {_describe(config)}.")


@cluster.command()
@cluster_config_option
@output_option
@pass_session
def status(session: Session, cluster_config: str) -> None:
    """Show for every shard its leader, its term and how far each replica is.

    Tells as well which nodes cannot be linked, as other nodes and gateways must be able to do.
    Exits with 0 if every shard has a leader that serves, else with 1.
    """
    config = load_cluster_config(cluster_config)
    with NodeProbe(config) as probe:
        answers = probe.node_statuses()
        link_problems = probe.link_problems()
    report = status_report(config, answers, link_problems)
    if session.output_format == "json":
        session.output.record(report)
    elif session.output_format == "csv":
        session.output.records(
            [
                {"shard_id": shard["id"], "serving": shard["serving"], **replica}
                for shard in report["shards"]
                for replica in shard["replicas"]
            ]
        )
    else:
        _print_grid(config, report)
    if report["serving_shards"] < len(config.shards):
        raise click.exceptions.Exit(1)


def status_report(
    config: ClusterConfig, answers: dict[str, NodeAnswer], link_problems: dict[str, str]
) -> dict[str, Any]:
    """Return the state of the cluster as plain data."""
    shards = [_shard_report(shard, answers) for shard in config.shards]
    nodes: list[dict[str, Any]] = []
    for node in config.nodes:
        told = answers[node.id].status or shard_pb2.NodeStatus()
        nodes.append(
            {
                "id": node.id,
                "address": node.address,
                "up": answers[node.id].status is not None,
                "problem": answers[node.id].problem,
                "link_address": node.link_address,
                "link_problem": link_problems.get(node.id, ""),
                "version": told.version,
                "uptime_ms": told.uptime_ms,
                "store_used_bytes": told.store_used_bytes,
                "store_map_bytes": told.store_map_bytes,
                "leads": sum(shard["leader"] == node.id for shard in shards),
            }
        )
    return {
        "cluster_id": config.cluster_id,
        "nodes": nodes,
        "shards": shards,
        "serving_shards": sum(shard["serving"] for shard in shards),
    }


def _shard_report(shard: ShardConfig, answers: dict[str, NodeAnswer]) -> dict[str, Any]:
    leader = serving_leader(shard, answers)
    told = {node_id: answers[node_id].replica(shard.id) for node_id in shard.node_ids}
    committed = max((item.commit_index for item in told.values() if item), default=0)
    replicas: list[dict[str, Any]] = []
    for node_id, item in told.items():
        replicas.append(
            {
                "node_id": node_id,
                "role": _ROLES.get(item.role, "unknown") if item else "down",
                "term": item.term if item else None,
                "commit_index": item.commit_index if item else None,
                "applied_index": item.applied_index if item else None,
                "lag": committed - item.applied_index if item else None,
                "first_log_index": item.first_log_index if item else None,
                "unproven": item.unproven if item else None,
                "installing_bytes": item.installing_bytes if item else None,
            }
        )
    leading = told[leader] if leader else None
    return {
        "id": shard.id,
        "lower_bound": f"{shard.lower_bound:08x}",
        "upper_bound": f"{shard.upper_bound:08x}",
        "serving": leader is not None,
        "leader": leader,
        "term": leading.term if leading else None,
        "replicas": replicas,
    }


def _print_grid(config: ClusterConfig, report: dict[str, Any]) -> None:
    node_ids = [node.id for node in config.nodes]
    table = new_table("shard", "keys from", "leader", "term", *node_ids, right={"shard", "term"})
    for shard in report["shards"]:
        cells = {
            replica["node_id"]: _cell(replica, shard["leader"]) for replica in shard["replicas"]
        }
        table.add_row(
            str(shard["id"]),
            shard["lower_bound"],
            Text(shard["leader"] or "none", style="green" if shard["leader"] else "red"),
            str(shard["term"] or "-"),
            *(cells.get(node_id, Text("")) for node_id in node_ids),
        )
    screen = console()
    screen.print(table)
    screen.print()
    for node in report["nodes"]:
        if node["up"]:
            screen.print(
                f"{node['id']}  {node['address']}  up {node['uptime_ms'] / 1000:.0f} s, leads "
                f"{node['leads']}, store {node['store_used_bytes'] / 2**20:.1f} MiB, "
                f"version {node['version']}"
            )
            if node["link_problem"]:
                line = (
                    f"    no link at {node['link_address']}: {node['link_problem']}; "
                    f"that port must be open to nodes and gateways"
                )
                screen.print(Text(line, style="red"))
        else:
            line = f"{node['id']}  {node['address']}  {node['problem']}"
            screen.print(Text(line, style="red"))
    serving, total = report["serving_shards"], len(report["shards"])
    style = "green" if serving == total else "red"
    screen.print(Text(f"{serving} of {total} shards have a leader that serves", style=style))


def _cell(replica: dict[str, Any], leader: str | None) -> Text:
    if replica["role"] == "down":
        return Text("down", style="red")
    text = f"#{replica['applied_index']}"
    if replica["lag"]:
        text += f" ({replica['lag']} behind)"
    if replica["installing_bytes"]:
        text += f", snapshot: {replica['installing_bytes'] / 2**20:.1f} MiB so far"
    elif replica["unproven"]:
        text += ", no vote yet"
    if replica["node_id"] == leader:
        return Text(f"{text} leader", style="green")
    return Text(text if replica["role"] == "follower" else f"{text} {replica['role']}")


def _describe(config: ClusterConfig) -> str:
    return (
        f"cluster {config.cluster_id}, {_count(len(config.nodes), 'node')}, "
        f"{_count(len(config.shards), 'shard')} with "
        f"{_count(len(config.shards[0].replicas), 'replica')} each"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"

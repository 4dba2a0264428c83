"""`ledger checks`: what the checks in the background have found, on all nodes together."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
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
from ledger_cli.node_probe import NodeProbe
from ledger_cli.output import console, new_table, printable
from ledger_cli.transit import ShardTransit, TransitFault, transit_faults
from ledger_cluster.config import ClusterConfig, load_cluster_config

TIMEOUT_S = 10.0

_STYLES = {
    shard_pb2.SEVERITY_ERROR: "bold red",
    shard_pb2.SEVERITY_WARNING: "yellow",
    shard_pb2.SEVERITY_INFO: "dim",
}
_COLUMNS = ("severity", "check", "shard_id", "ledger", "subject", "since", "message", "advice")

Answers = dict[str, shard_pb2.NodeFindings | str]


@dataclass
class Checked:
    """What all nodes together say; a finding that two of them have counts once."""

    findings: list[shard_pb2.Finding] = field(default_factory=list)
    runs: dict[str, dict[int, shard_pb2.CheckRun]] = field(default_factory=dict)
    """By check and shard: the newest pass."""
    down: dict[str, str] = field(default_factory=dict)
    """Nodes that did not answer, and why."""
    unchecked_shards: list[int] = field(default_factory=list)
    """Shards that no node that answered leads."""
    truncated: bool = False

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(finding.severity == shard_pb2.SEVERITY_ERROR for finding in self.findings)

    def check_records(self) -> list[dict[str, Any]]:
        """Return for each check when it last went through everything, as plain data."""
        return [
            {
                "check": check,
                "finished_time": _time(min(run.finished_us for run in runs.values())),
                "shards": len(runs),
                "shards_not_finished": [
                    shard_id for shard_id, run in sorted(runs.items()) if not run.finished_us
                ],
                "rows": sum(run.rows for run in runs.values()),
                "findings": sum(finding.check == check for finding in self.findings),
            }
            for check, runs in self.runs.items()
        ]


def merge(config: ClusterConfig, answers: Answers, transit: Iterable[TransitFault]) -> Checked:
    """Put together what all nodes say, the worst first."""
    checked = Checked()
    found: dict[tuple[str, int, str, str], shard_pb2.Finding] = {}
    for node_id, answer in answers.items():
        if isinstance(answer, str):
            checked.down[node_id] = answer
            continue
        checked.truncated |= answer.truncated
        for finding in answer.findings:
            key = (finding.check, finding.shard_id, finding.subject, finding.message)
            found.setdefault(key, finding)
        for run in answer.runs:
            runs = checked.runs.setdefault(run.check, {})
            if run.shard_id not in runs or runs[run.shard_id].finished_us < run.finished_us:
                runs[run.shard_id] = run
    for fault in transit:
        finding = _transit_finding(fault)
        found[finding.check, finding.shard_id, finding.subject, finding.message] = finding
    checked.findings = sorted(
        found.values(),
        key=lambda one: (-one.severity, one.check, one.ledger, one.subject, one.shard_id),
    )
    seen = {shard_id for runs in checked.runs.values() for shard_id in runs}
    checked.unchecked_shards = [shard.id for shard in config.shards if shard.id not in seen]
    return checked


def _transit_finding(fault: TransitFault) -> shard_pb2.Finding:
    return shard_pb2.Finding(
        check="in-transit",
        severity=shard_pb2.SEVERITY_ERROR,
        shard_id=fault.shard_id,
        subject=f"shards {fault.shard_id} and {fault.peer_shard_id}",
        message=str(fault),
        advice="Run `ledger verify`: it proves both shards from their first entries on.",
        ledger=fault.ledger,
    )


def _transits(answers: Answers) -> dict[int, ShardTransit]:
    """Return what each shard has in transit, as the leader that is furthest says."""
    found: dict[int, ShardTransit] = {}
    for answer in answers.values():
        for item in answer.transits if not isinstance(answer, str) else ():
            known = found.get(item.shard_id)
            if known is None or known.applied_index < item.applied_index:
                found[item.shard_id] = ShardTransit(
                    item.shard_id, item.applied_index, item.unfinished, item.accounts
                )
    return found


@click.command(short_help="Show what the checks in the background have found.")
@cluster_config_option
@output_option
@pass_session
def checks(session: Session, cluster_config: str) -> None:
    """Show what the checks in the background have found, the worst first.

    Every node looks all the time, slowly, at the shards that it leads: whether books balance and
    histories are whole, and what someone should look at, such as old holds. This asks all nodes,
    and holds against each other what shards have in transit.

    Exits with 1 if there is an ERROR, or if no node answers.
    """
    config = load_cluster_config(cluster_config)
    with NodeProbe(config) as probe:
        answers = probe.findings(TIMEOUT_S)
        transit = transit_faults(
            _transits(answers), lambda _shard_ids: _transits(probe.findings(TIMEOUT_S))
        )
    checked = merge(config, answers, transit)
    if len(checked.down) == len(config.nodes):
        raise CliError("No node answers. `ledger cluster status` shows the cluster's state.")
    if session.output_format == "json":
        session.output.record(_report(checked))
    elif session.output_format == "csv":
        session.output.records([_record(one) for one in checked.findings], columns=_COLUMNS)
    else:
        _print_findings(checked)
        _print_runs(checked)
    _print_gaps(checked)
    if checked.errors:
        raise click.exceptions.Exit(1)


def _report(checked: Checked) -> dict[str, Any]:
    return {
        "ok": not checked.errors,
        "findings": [_record(finding) for finding in checked.findings],
        "truncated": checked.truncated,
        "checks": checked.check_records(),
        "nodes_down": checked.down,
        "unchecked_shards": checked.unchecked_shards,
    }


def _record(finding: shard_pb2.Finding) -> dict[str, Any]:
    return {
        "severity": _severity(finding),
        "check": finding.check,
        "shard_id": finding.shard_id,
        "ledger": finding.ledger,
        "subject": finding.subject,
        "since": _time(finding.since_us),
        "message": finding.message,
        "advice": finding.advice,
    }


def _print_findings(checked: Checked) -> None:
    screen = console()
    if not checked.findings:
        screen.print(Text("✓ nothing was found", style="bold green"))
        screen.print()
        return
    table = new_table("severity", "check", "shard", "about", "since", "what", right={"shard"})
    for finding in checked.findings:
        table.add_row(
            Text(_severity(finding), style=_STYLES.get(finding.severity, "")),
            finding.check,
            str(finding.shard_id),
            printable(finding.subject),
            _time(finding.since_us)[:19].replace("T", " "),
            printable(finding.message),
        )
    screen.print(table)
    screen.print()
    if checked.truncated:
        screen.print("There is more: a node keeps 200 findings of a check.")
    advice = {(finding.check, finding.advice): None for finding in checked.findings}
    for check, text in advice:
        screen.print(f"{check}: {printable(text)}")
    screen.print()


def _print_runs(checked: Checked) -> None:
    numbers = {"shards", "rows", "findings"}
    table = new_table("check", "went through everything", *sorted(numbers), right=numbers)
    for record in checked.check_records():
        when = record["finished_time"][:19].replace("T", " ")
        if waiting := record["shards_not_finished"]:
            when = f"not yet on {len(waiting)} of {record['shards']} shards"
        table.add_row(record["check"], when, *(str(record[column]) for column in sorted(numbers)))
    console().print(table)


def _print_gaps(checked: Checked) -> None:
    """Say on stderr what is not known."""
    for node_id, problem in checked.down.items():
        click.echo(f"{node_id} did not answer: {problem}", err=True)
    if checked.unchecked_shards:
        shards = ", ".join(map(str, checked.unchecked_shards))
        click.echo(
            f"Nobody who answered checks shards {shards}: they have no leader yet.", err=True
        )


def _severity(finding: shard_pb2.Finding) -> str:
    return shard_pb2.Severity.Name(finding.severity).removeprefix("SEVERITY_")


def _time(time_us: int) -> str:
    """RFC 3339 in UTC; empty if not known."""
    if not time_us:
        return ""
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="seconds")

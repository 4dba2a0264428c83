"""`ledger verify`: proves the books of every shard from the replicas themselves."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from ledger.internal.v1 import shard_pb2
from ledger_cli.context import Session, cluster_config_option, output_option, pass_session
from ledger_cli.deep_verify import ReplicaProof, deep_verify, verify_store
from ledger_cli.export_report import export_option, print_export_check
from ledger_cli.node_probe import NodeProbe
from ledger_cli.output import console, new_table
from ledger_cli.transit import ShardTransit, TransitFault, transit_faults
from ledger_cluster.config import ClusterConfig, ShardConfig, load_cluster_config
from ledger_core.ledgers import MAIN_NAME, USD
from ledger_core.money import format_amount
from ledger_node.deep_audit import AUDIT_S_MAX

ATTEMPTS = 10
PAUSE_S = 0.3
# A transaction across shards ends within seconds while its shards can reach each other.
UNFINISHED_S_MAX = 30.0

# The sums of a shard that has no account yet.
_NOTHING = shard_pb2.LedgerSums(
    ledger=MAIN_NAME,
    currency=USD.code,
    currency_exponent=USD.exponent,
    debits_posted="0",
    credits_posted="0",
    debits_pending="0",
    credits_pending="0",
)

Audits = dict[str, shard_pb2.ReplicaAudit | str]
Audit = Callable[[list[int]], dict[int, Audits]]


@dataclass
class ShardProof:
    """What the audits of one shard's replicas have shown so far."""

    shard: ShardConfig
    audits: Audits = field(default_factory=dict)
    """The last answer of each node: an audit, or what went wrong."""
    hashes: dict[int, dict[str, bytes]] = field(default_factory=dict)
    """Chain hash by applied index and node, from all attempts: under traffic two replicas may be
    seen at one index in different attempts."""

    def add(self, audits: Audits) -> None:
        """Take in one more round of audits."""
        for node_id, audit in audits.items():
            self.audits[node_id] = audit
            if not isinstance(audit, str):
                self.hashes.setdefault(audit.applied_index, {})[node_id] = audit.chain_hash

    @property
    def answers(self) -> dict[str, shard_pb2.ReplicaAudit]:
        """The audits there are."""
        return {
            node_id: audit for node_id, audit in self.audits.items() if not isinstance(audit, str)
        }

    @property
    def latest(self) -> shard_pb2.ReplicaAudit | None:
        """The audit that reaches furthest."""
        return max(self.answers.values(), key=lambda audit: audit.applied_index, default=None)

    @property
    def in_flight(self) -> int:
        """How many transactions' participants the shard has still to ask or to tell."""
        return self.latest.in_flight if self.latest else 0

    @property
    def undecided(self) -> int:
        """For how many transactions' decisions the shard waits."""
        return self.latest.undecided if self.latest else 0

    @property
    def unfinished_s(self) -> float:
        """For how long the oldest of these has been so."""
        since_us = self.latest.unfinished_since_us if self.latest else 0
        return max(0.0, time.time() - since_us / 1e6) if since_us else 0.0

    @property
    def compared(self) -> set[str]:
        """The largest set of nodes that are linked by having been seen at one index."""
        groups: list[set[str]] = []
        for nodes in self.hashes.values():
            linked = set(nodes)
            for group in [group for group in groups if group & linked]:
                linked |= group
                groups.remove(group)
            groups.append(linked)
        return max(groups, key=len, default=set())

    @property
    def conclusive(self) -> bool:
        """Whether another round could change nothing."""
        return self.compared >= set(self.answers)

    def problems(self) -> list[str]:
        """Everything that is not as it must be."""
        name = f"shard {self.shard.id}"
        found = [
            f"{name}: {node_id} could not be audited: {audit}"
            for node_id, audit in self.audits.items()
            if isinstance(audit, str)
        ]
        for node_id, audit in self.answers.items():
            found += [f"{name}: {node_id}: {fault}" for fault in audit.faults]
            for sums in audit.sums:
                found += [
                    f"{name}: {node_id}: {kind} debits and credits of ledger {sums.ledger} differ "
                    f"by {_money(difference, sums)}"
                    for kind, difference in _differences(sums).items()
                    if difference
                ]
        if self.unfinished_s > UNFINISHED_S_MAX:
            found.append(
                f"{name}: a transaction across shards is unfinished for {self.unfinished_s:.0f} s: "
                f"{self.in_flight} in flight, {self.undecided} undecided"
            )
        for index, by_node in sorted(self.hashes.items()):
            if len(set(by_node.values())) > 1:
                shown = ", ".join(f"{node}: {value.hex()}" for node, value in by_node.items())
                found.append(f"{name}: replicas differ at applied index {index}: {shown}")
        if self.answers and not self.conclusive:
            indexes = ", ".join(f"{n}: {a.applied_index}" for n, a in self.answers.items())
            found.append(
                f"{name}: not all replicas were seen at one applied index ({indexes}); "
                "verify again when less is being written"
            )
        return found


def prove(config: ClusterConfig, audit: Audit) -> list[ShardProof]:
    """Audit every replica of every shard, again where replicas were at different indexes."""
    proofs = {shard.id: ShardProof(shard) for shard in config.shards}
    todo = list(proofs)
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S)
        for shard_id, audits in audit(todo).items():
            proofs[shard_id].add(audits)
        todo = [shard_id for shard_id in todo if not proofs[shard_id].conclusive]
        if not todo:
            break
    return list(proofs.values())


@click.command(short_help="Prove all that is stored, that books balance, and replicas are equal.")
@cluster_config_option
@click.option(
    "--quick",
    is_flag=True,
    help="Only sum the accounts and compare replicas; do not read the histories.",
)
@click.option(
    "--audit-timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1, max=3600),
    default=120.0,
    show_default=True,
    help="How long summing the accounts of one shard may take.",
)
@click.option(
    "--deep-timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1, max=AUDIT_S_MAX),
    default=AUDIT_S_MAX,
    show_default=True,
    help="How long reading all that a replica has stored may take.",
)
@click.option(
    "--data-dir",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Prove the store of a node that is stopped, instead of a cluster.",
)
@export_option
@output_option
@pass_session
def verify(
    session: Session,
    *,
    cluster_config: str,
    quick: bool,
    audit_timeout: float,
    deep_timeout: float,
    data_dir: Path | None,
    export_file: Path | None,
) -> None:
    """Prove the books: every shard balances, its replicas are equal, and its history is whole.

    Sums debits and credits of every replica of every shard from its accounts, and compares the hash
    chains of replicas at one applied index. Counts the transactions across shards that are on their
    way; one that takes longer than 30 s is a fault. When none is, what shards have in transit must
    net to zero.

    Then every replica reads all that it has stored, in a process of its own beside the work that
    goes on, and proves it from the first entry of its journal: every checksum, digest and link,
    every entry from the one before it, every account, total, transaction and hold from the entries.
    --quick leaves that out.

    Exits with 1 if anything is not as it must be, or could not be proven.
    """
    if data_dir is not None and export_file is not None:
        raise click.UsageError("--data-dir and --export cannot be given together.")
    if export_file is not None:
        print_export_check(session, export_file)
        return
    if data_dir is not None:
        _verify_store(session, data_dir)
        return
    config = load_cluster_config(cluster_config)
    replicas: list[ReplicaProof] = []
    with NodeProbe(config) as probe:

        def audits(shard_ids: list[int]) -> dict[int, Audits]:
            return probe.audits(shard_ids, audit_timeout)

        proofs = prove(config, audits)
        transit = transit_faults(_transits(proofs), lambda ids: _ask_transits(config, audits, ids))
        if not quick:
            replicas = deep_verify(probe, config, deep_timeout)
    problems = [problem for proof in proofs for problem in proof.problems()]
    problems += [str(fault) for fault in transit]
    problems += [problem for replica in replicas for problem in replica.problems()]
    records = [record for proof in proofs for record in _records(proof)]
    if session.output_format == "json":
        session.output.record(
            {
                "ok": not problems,
                "problems": problems,
                "shards": records,
                "replicas": [replica.record() for replica in replicas],
            }
        )
    elif session.output_format == "csv":
        session.output.records(records)
    else:
        _print_proofs(proofs)
        _print_conclusion(proofs)
        _print_transit(proofs, transit)
        if not quick:
            _print_replicas(replicas)
    _end(problems)


def _end(problems: list[str]) -> None:
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        raise click.exceptions.Exit(1)


def _verify_store(session: Session, data_dir: Path) -> None:
    """Prove the store of a stopped node."""
    proof = verify_store(data_dir)
    records = [
        {
            "shard_id": audit.shard_id,
            "applied_index": audit.applied_index,
            "chain_hash": audit.link,
            "proven": audit.finished and not audit.faults,
            "journal_entries": audit.journal_entries,
            "entries": audit.entries,
            "accounts": audit.accounts,
            "transactions": audit.transactions,
            "orphaned_holds": audit.orphaned_holds,
            "faults": len(audit.faults),
        }
        for audit in proof.audits
    ]
    if session.output_format == "json":
        session.output.record(
            {"ok": not proof.problems, "problems": proof.problems, "shards": records}
        )
    elif session.output_format == "csv":
        session.output.records(records)
    else:
        numbers = ("shard", "index", "journal", "entries", "accounts", "transactions", "faults")
        table = new_table(*numbers, right=numbers)
        for audit in proof.audits:
            counts = (audit.journal_entries, audit.entries, audit.accounts, audit.transactions)
            table.add_row(
                str(audit.shard_id),
                str(audit.applied_index),
                *map(str, counts),
                str(len(audit.faults)),
            )
        console().print(table)
        console().print()
        if proof.problems:
            console().print(Text("✗ the store is not what was written", style="bold red"))
        else:
            entries = sum(audit.entries for audit in proof.audits)
            line = f"✓ the store is proven from its first entry on ({entries} entries)"
            console().print(Text(line, style="bold green"))
    _end(proof.problems)


def _transits(proofs: list[ShardProof]) -> dict[int, ShardTransit]:
    """Return what each shard has in transit, as the audit that reaches furthest says."""
    return {
        proof.shard.id: ShardTransit(
            proof.shard.id,
            latest.applied_index,
            proof.in_flight + proof.undecided,
            latest.in_transit,
        )
        for proof in proofs
        if (latest := proof.latest) is not None
    }


def _ask_transits(
    config: ClusterConfig, audit: Audit, shard_ids: list[int]
) -> dict[int, ShardTransit]:
    proofs = []
    for shard_id, audits in audit(shard_ids).items():
        proofs.append(ShardProof(config.shard(shard_id)))
        proofs[-1].add(audits)
    return _transits(proofs)


def _records(proof: ShardProof) -> list[dict[str, Any]]:
    latest = proof.latest or shard_pb2.ReplicaAudit()
    return [
        {
            "shard_id": proof.shard.id,
            "applied_index": latest.applied_index,
            "chain_hash": latest.chain_hash.hex(),
            "replicas_equal": len(proof.compared),
            "replicas": len(proof.shard.replicas),
            "accounts": latest.accounts,
            "transactions": latest.transactions,
            "entries": latest.entries,
            "in_flight": latest.in_flight,
            "undecided": latest.undecided,
            "ledger": sums.ledger,
            "currency": sums.currency,
            "debits_posted": sums.debits_posted,
            "credits_posted": sums.credits_posted,
            "debits_pending": sums.debits_pending,
            "credits_pending": sums.credits_pending,
        }
        for sums in latest.sums or [_NOTHING]
    ]


def _print_proofs(proofs: list[ShardProof]) -> None:
    numbers = ["shard", "index", "entries", "debits", "credits", "difference"]
    pending = ["pending debits", "pending credits", "pending difference"]
    table = new_table(*numbers, *pending, "equal replicas", right={*numbers, *pending})
    for proof in proofs:
        latest = proof.latest
        if latest is None:
            table.add_row(str(proof.shard.id), Text("no replica answers", style="red"))
            continue
        good = not proof.problems()
        equal = f"{len(proof.compared)} of {len(proof.shard.replicas)}"
        for sums in latest.sums or [_NOTHING]:
            difference = _differences(sums)
            table.add_row(
                str(proof.shard.id),
                str(latest.applied_index),
                str(latest.entries),
                _money(sums.debits_posted, sums),
                _money(sums.credits_posted, sums),
                _money(difference["posted"], sums),
                _money(sums.debits_pending, sums),
                _money(sums.credits_pending, sums),
                _money(difference["pending"], sums),
                Text(equal, style="green" if good else "red"),
            )
    console().print(table)


def _print_conclusion(proofs: list[ShardProof]) -> None:
    unbalanced = [
        proof.shard.id
        for proof in proofs
        if not proof.answers
        or any(
            any(_differences(sums).values())
            for audit in proof.answers.values()
            for sums in audit.sums
        )
    ]
    screen = console()
    screen.print()
    unfinished = sum(proof.in_flight + proof.undecided for proof in proofs)
    longest_s = max((proof.unfinished_s for proof in proofs), default=0.0)
    if longest_s > UNFINISHED_S_MAX:
        line = f"✗ {unfinished} transactions across shards unfinished, for up to {longest_s:.0f} s"
        screen.print(Text(line, style="bold red"))
    elif unfinished:
        screen.print(f"  {unfinished} transactions across shards are on their way")
    else:
        screen.print(Text("✓ no transaction is undecided or in flight", style="bold green"))
    if unbalanced:
        shards = ", ".join(map(str, unbalanced))
        screen.print(Text(f"✗ not proven to balance: shards {shards}", style="bold red"))
    else:
        entries = sum(proof.latest.entries for proof in proofs if proof.latest)
        line = f"✓ sum of all balances = 0 on every shard ({len(proofs)} shards, {entries} entries)"
        screen.print(Text(line, style="bold green"))
    unequal = [p.shard.id for p in proofs if len(p.compared) < len(p.shard.replicas) or _differ(p)]
    if unequal:
        shards = ", ".join(map(str, unequal))
        screen.print(Text(f"✗ replicas not proven equal: shards {shards}", style="bold red"))
    else:
        replicas = sum(len(proof.shard.replicas) for proof in proofs)
        line = f"✓ all {replicas} replicas equal those of the same shard at the same index"
        screen.print(Text(line, style="bold green"))


def _print_transit(proofs: list[ShardProof], faults: list[TransitFault]) -> None:
    if faults:
        line = "✗ what is in transit between shards does not net to zero"
        console().print(Text(line, style="bold red"))
    elif any(proof.latest and proof.latest.in_transit for proof in proofs) and not any(
        proof.in_flight + proof.undecided for proof in proofs
    ):
        line = "✓ what is in transit between shards nets to zero"
        console().print(Text(line, style="bold green"))


def _print_replicas(replicas: list[ReplicaProof]) -> None:
    wrong = [replica for replica in replicas if replica.problems()]
    if wrong:
        names = ", ".join(f"shard {replica.shard_id} on {replica.node_id}" for replica in wrong)
        console().print(Text(f"✗ replicas that are not proven: {names}", style="bold red"))
        return
    found = [replica.found for replica in replicas if not isinstance(replica.found, str)]
    line = (
        f"✓ all {len(replicas)} replicas proven from their first entry on "
        f"({sum(one.entries for one in found)} entries, "
        f"{sum(one.journal_entries for one in found)} links of the journals)"
    )
    console().print(Text(line, style="bold green"))


def _differ(proof: ShardProof) -> bool:
    return any(len(set(by_node.values())) > 1 for by_node in proof.hashes.values())


def _differences(sums: shard_pb2.LedgerSums) -> dict[str, int]:
    return {
        "posted": int(sums.debits_posted) - int(sums.credits_posted),
        "pending": int(sums.debits_pending) - int(sums.credits_pending),
    }


def _money(amount: int | str, sums: shard_pb2.LedgerSums) -> str:
    return format_amount(int(amount), sums.currency, sums.currency_exponent)

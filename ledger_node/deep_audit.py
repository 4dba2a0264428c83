"""The deep audit: reads everything that one replica has stored, and proves it.

It proves the journal from its first entry on, that every entry follows from the one before it, that
every account, total and transaction is what the entries make it, and that every index has exactly
the rows that it must have. `docs/CHECKS.md` says how to read what it finds.

It reads one state of the store, in one read transaction of a process of its own: pages that the
node frees meanwhile are not used again, so that the store may grow by what is written during the
audit. `AUDIT_S_MAX` bounds that. It runs at the lowest priority: turns go first.

Memory: about 250 bytes for each account of the shard, and 16 bytes for each transaction: 400 MB for
1,000,000 accounts and 10,000,000 transactions.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from ledger_node.proof import UNREADABLE, Proof, TooLongError, plain
from ledger_node.proof_accounts import prove_accounts, read_accounts
from ledger_node.proof_history import HistoryProof
from ledger_node.proof_indexes import prove_indexes
from ledger_node.proof_transactions import prove_booked, read_transactions
from ledger_node.store_scan import ScannedShard, scanned_store
from ledger_node.store_tables import STATE_TABLES

AUDIT_S_MAX: Final = 6 * 3600.0
_NICENESS: Final = 19
_TELL_S: Final = 0.2
"""How often a process tells how far it is."""


@dataclass
class DeepAudit:
    """What a deep audit found. ``faults``: the first 100, each naming table and row.

    ``orphaned_holds`` counts accounts whose reserved money is not what pending transactions have
    reserved. ``finished`` is False while it is under way, and where the time was over.
    """

    shard_id: int
    rows_done: int = 0
    rows_estimated: int = 0
    finished: bool = False
    faults: list[str] = field(default_factory=list)
    journal_entries: int = 0
    entries: int = 0
    accounts: int = 0
    transactions: int = 0
    orphaned_holds: int = 0
    applied_index: int = 0
    link: str = ""
    message: str = ""


def deep_audit(
    shard: ScannedShard,
    tell: Callable[[DeepAudit], None] = lambda _audit: None,
    seconds_max: float = AUDIT_S_MAX,
) -> DeepAudit:
    """Prove a shard as it is stored. ``tell`` gets, now and then, how far that is."""
    result = DeepAudit(shard.id, rows_estimated=_estimate(shard))

    def advanced(rows: int) -> None:
        result.rows_done = min(rows, result.rows_estimated)
        tell(result)

    try:
        proof = Proof(shard, advanced, time.monotonic() + seconds_max)
    except (*UNREADABLE, AssertionError) as error:
        result.faults = [f"table meta, state: {plain(error)}"]
        result.finished = True
        return result
    try:
        _prove(proof, result)
        result.rows_done, result.finished = result.rows_estimated, True
    except TooLongError:
        result.message = f"not all was read within {seconds_max:.0f} s"
    result.faults = proof.faults
    result.orphaned_holds = proof.orphaned_holds
    return result


def _prove(proof: Proof, result: DeepAudit) -> None:
    meta = proof.meta
    result.link, result.applied_index = meta.chain_hash.hex(), meta.applied_index
    read_accounts(proof)
    result.accounts = len(proof.accounts.ids)
    transactions = read_transactions(proof)
    result.transactions = proof.shard.count("transactions")
    history = HistoryProof(proof, transactions)
    history.run()
    result.journal_entries = proof.shard.count("journal")
    result.entries = history.entries
    prove_booked(proof, transactions)
    prove_accounts(proof, history.newest_marks)
    prove_indexes(proof)


def _estimate(shard: ScannedShard) -> int:
    """Return about how many rows are read: most tables once, of entries every single one."""
    rows = sum(shard.count(table) for table in STATE_TABLES) + shard.log_count()
    twice = ("balances", "account_info", "pending", "expirations", "undecided")
    rows += sum(shard.count(table) for table in twice)
    try:
        entries = shard.tables.meta().next_position - 1
    except (*UNREADABLE, AssertionError):
        return rows
    return rows + max(0, entries - shard.count("entries"))


class _Teller:
    """Prints an audit as a line of JSON: what it found, or at most every 0.2 s how far it is."""

    def __init__(self) -> None:
        self._told_at = 0.0

    def __call__(self, audit: DeepAudit) -> None:
        if not audit.finished and not audit.message and time.monotonic() < self._told_at + _TELL_S:
            return
        self._told_at = time.monotonic()
        print(json.dumps(asdict(audit)), flush=True)


def main(store: str, shard_id: str = "") -> int:
    """Audit one shard of a store, or all; print lines of JSON. Started by `deep_audit_process`."""
    os.nice(_NICENESS)
    tell = _Teller()
    with scanned_store(Path(store)) as scanned:
        for one in [int(shard_id)] if shard_id else scanned.shard_ids:
            tell(deep_audit(scanned.shard(one), tell))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except UNREADABLE as error:
        sys.exit(plain(error))

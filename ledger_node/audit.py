"""The books of one replica, summed: the proof that no money appeared or vanished on it."""

from collections import defaultdict
from dataclasses import dataclass, field

from ledger_core.accounts import Counters
from ledger_core.ids import format_account_id
from ledger_node.in_transit import InTransit, of_account
from ledger_node.store import ShardTables

FAULTS_MAX = 100


@dataclass(slots=True)
class Audit:
    """Sums by (ledger, currency) as of ``applied_index``, in minor units, and what is wrong.

    The books balance where ``debits_posted == credits_posted`` and
    ``debits_pending == credits_pending`` for every ledger and currency.
    """

    applied_index: int
    chain_hash: bytes
    accounts: int = 0
    transactions: int = 0
    entries: int = 0
    sums: dict[tuple[str, str], Counters] = field(default_factory=lambda: defaultdict(Counters))
    exponents: dict[tuple[str, str], int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    in_flight: int = 0
    """Transactions whose participants this shard, their home, has still to ask or to tell."""
    undecided: int = 0
    """Transactions for whose decision this shard waits."""
    unfinished_since_us: int = 0
    """Since when the oldest of these two kinds is so; 0 if there is none."""
    in_transit: list[InTransit] = field(default_factory=list)


def audit(tables: ShardTables) -> Audit:
    """Sum all accounts, and hold each one's counters against the last entry of its history."""
    meta = tables.meta()
    result = Audit(
        applied_index=meta.applied_index,
        chain_hash=meta.chain_hash,
        transactions=meta.next_transaction - 1 - meta.skipped_transactions,
        entries=meta.next_position - 1,
    )
    in_flight, undecided = tables.in_flight_numbers(), tables.undecided_numbers()
    result.in_flight, result.undecided = len(in_flight), len(undecided)
    result.unfinished_since_us = min(
        (_changed_us(tables, number) for number in (*in_flight, *undecided)), default=0
    )
    for _slot, balance in tables.balances():
        result.accounts += 1
        book = meta.books[balance.book]
        sums = result.sums[book.ledger, book.currency]
        result.exponents[book.ledger, book.currency] = book.currency_exponent
        sums.debits_posted += balance.debits_posted
        sums.credits_posted += balance.credits_posted
        sums.debits_pending += balance.debits_pending
        sums.credits_pending += balance.credits_pending
        if (transit := of_account(meta, balance)) is not None:
            result.in_transit.append(transit)
        after = Counters()
        if balance.last_position:
            after = tables.entry(balance.last_position).after
        ours = Counters(
            balance.debits_posted,
            balance.credits_posted,
            balance.debits_pending,
            balance.credits_pending,
        )
        if ours != after and len(result.faults) < FAULTS_MAX:
            result.faults.append(
                f"account {format_account_id(balance.account_id)}: its counters are {ours}, but "
                f"its last entry says {after}"
            )
    for (ledger, currency), sums in sorted(result.sums.items()):
        posted = sums.debits_posted - sums.credits_posted
        pending = sums.debits_pending - sums.credits_pending
        if posted or pending:
            result.faults.append(
                f"ledger {ledger} in {currency} does not balance: debits exceed credits by "
                f"{posted} posted and {pending} pending"
            )
    return result


def _changed_us(tables: ShardTables, number: int) -> int:
    """Return when a transaction got the state that it has."""
    record = tables.find_transaction(number)
    assert record is not None, "what is unfinished is recorded"
    return record.states[-1].time_us

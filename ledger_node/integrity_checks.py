"""Checks of what must hold whatever people do: sums, counters, histories, numbers without gaps.

A finding of these means that the store or the program is wrong.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from ledger_core.accounts import Counters
from ledger_core.ids import format_account_id
from ledger_core.money import format_amount
from ledger_node.check_context import (
    DAMAGED,
    ROWS_PER_UNIT,
    VERIFY_ADVICE,
    Context,
    Severity,
    accounts,
    add,
    counters,
)
from ledger_node.records import ENTRY_EFFECT, BalanceRow, EntryRow
from ledger_node.store import ShardTables
from ledger_node.sums import add_effect

_MISSING_SHOWN_MAX: Final = 10


def check_sums(context: Context) -> Iterator[None]:
    """Debits equal credits in every ledger and currency, by the totals of groups."""
    tables, meta = context.tables, context.tables.meta()
    sums: defaultdict[int, Counters] = defaultdict(Counters)
    for number, group in tables.groups():
        add(sums[group.book], tables.totals(number))
        context.rows += 1
    for index, of_book in sorted(sums.items()):
        book = meta.books[index]
        for kind, debits, credits_ in (
            ("posted", of_book.debits_posted, of_book.credits_posted),
            ("pending", of_book.debits_pending, of_book.credits_pending),
        ):
            if debits != credits_:
                difference = format_amount(debits - credits_, book.currency, book.currency_exponent)
                context.find(
                    Severity.ERROR,
                    f"{book.ledger} in {book.currency}",
                    f"{kind} debits exceed credits by {difference}",
                    VERIFY_ADVICE,
                    ledger=book.ledger,
                )
    yield


def check_counters(context: Context) -> Iterator[None]:
    """Every account's row is what its last entry says; the totals are what the accounts are.

    The second only if nothing was applied during the whole pass.
    """
    began = context.tables.meta().applied_index
    sums: defaultdict[int, Counters] = defaultdict(Counters)
    for unit in accounts(context):
        for _slot, balance in unit:
            add(sums[balance.group], balance)
            account_id = format_account_id(balance.account_id)
            try:
                what = _counters_fault(context.tables, balance)
            except DAMAGED as error:
                context.damaged(f"the last entry of account {account_id}", error)
                continue
            if what:
                context.find(Severity.ERROR, account_id, what, VERIFY_ADVICE)
        yield
    if context.tables.meta().applied_index != began:
        return
    tables = context.tables
    for number, _group in tables.groups():
        totals = tables.totals(number)
        if counters(totals) != counters(sums[number]):
            context.find(
                Severity.ERROR,
                f"group {number}",
                f"its totals are {counters(totals)}, but its accounts make "
                f"{counters(sums[number])}",
                VERIFY_ADVICE,
            )
    yield


def _counters_fault(tables: ShardTables, balance: BalanceRow) -> str:
    newest = tables.entry(balance.last_position) if balance.last_position else None
    ours = (balance.account_id, balance.sequence, counters(balance))
    told = (balance.account_id, 0, (0, 0, 0, 0))
    if newest is not None:
        told = (newest.account_id, newest.sequence, counters(newest.after))
    if ours == told:
        return ""
    return (
        f"its row says entry {ours[1]} and counters {ours[2]}, but its last entry is number "
        f"{told[1]} and says {told[2]}"
    )


def check_history(context: Context) -> Iterator[None]:
    """Every entry that there is at the start follows from the account's entry before it."""
    end = context.tables.meta().next_position
    for first in range(1, end, ROWS_PER_UNIT):
        for position in range(first, min(first + ROWS_PER_UNIT, end)):
            context.rows += 1
            try:
                row = context.tables.entry(position)
                what = _history_fault(context.tables, row)
            except DAMAGED as error:
                context.damaged(f"entry {position}", error)
                continue
            if what:
                context.find(
                    Severity.ERROR,
                    format_account_id(row.account_id),
                    f"entry {row.sequence} (position {position}, transaction {row.transaction}): "
                    f"{what}",
                    VERIFY_ADVICE,
                    since_us=row.time_us,
                )
        yield


def _history_fault(tables: ShardTables, row: EntryRow) -> str:
    account_id, sequence, time_us, expected = row.account_id, 0, 0, Counters()
    if row.previous:
        before = tables.entry(row.previous)
        account_id, sequence, time_us = before.account_id, before.sequence, before.time_us
        add(expected, before.after)
    posted, pending = ENTRY_EFFECT[row.kind]
    add_effect(expected, row.direction, posted * row.amount, pending * row.amount)
    if account_id != row.account_id:
        return "the entry before it is of another account"
    if row.sequence != sequence + 1:
        return f"the entry before it is number {sequence}"
    if row.time_us < time_us:
        return "it is older than the entry before it"
    if counters(row.after) != counters(expected):
        return f"it says {counters(row.after)}, but makes {counters(expected)}"
    return ""


def check_gaps(context: Context) -> Iterator[None]:
    """Journal and transactions are numbered without gaps, but for what an import left out."""
    for table in ("journal", "transactions"):
        tables, meta = context.tables, context.tables.meta()
        end = meta.next_journal if table == "journal" else meta.next_transaction
        skipped = 0 if table == "journal" else meta.skipped_transactions
        database = tables.databases.state[tables.generation][table]
        count = tables.txn.stat(database)["entries"]
        context.rows += count
        if count == end - 1 - skipped:
            continue
        context.find(
            Severity.ERROR,
            table,
            f"has {count} rows, not {end - 1 - skipped}",
            VERIFY_ADVICE,
        )
        if not skipped:
            yield from _find_missing(context, table, end)
    yield


def _find_missing(context: Context, table: str, end: int) -> Iterator[None]:
    """Name the first numbers that are missing."""
    missing = 0
    for first in range(1, end, ROWS_PER_UNIT):
        tables = context.tables
        for number in range(first, min(first + ROWS_PER_UNIT, end)):
            database = tables.databases.state[tables.generation][table]
            if tables.txn.get(number.to_bytes(8), db=database) is None:
                context.find(
                    Severity.ERROR, f"{table} {number}", "the row is missing", VERIFY_ADVICE
                )
                missing += 1
                if missing == _MISSING_SHOWN_MAX:
                    return
        yield

"""The history of an account: balances as of a moment, entries, statements, events.

The newest entry never changes and new ones go in front of it, so pages stay stable while writes go
on. What a read costs depends on the size of its page, never on the length of the history.
"""

from collections.abc import Iterable
from itertools import islice

from ledger_core.accounts import Counters, TimeBasis
from ledger_core.ids import U64_MAX
from ledger_core.queries import (
    GetBalance,
    GetStatement,
    ListAccountEvents,
    ListEntries,
)
from ledger_core.results import (
    AccountEventPage,
    AccountEventView,
    BalanceView,
    CountersView,
    EntryPage,
    Failure,
    StatementEntryView,
    StatementView,
)
from ledger_node.moments import entries_back, entry_as_of, make_effective, sequence_as_of
from ledger_node.pages import PageRoom, RecordReader, page_token_failure
from ledger_node.records import (
    AccountEventRecord,
    BalanceRow,
    EntryRow,
    TransactionRecord,
)
from ledger_node.store_tables import ShardTables
from ledger_node.views import account_not_found

_ORDINAL_MAX = 65_535


def counters_view(counters: Counters) -> CountersView:
    """Show four counters."""
    return CountersView(
        counters.debits_posted,
        counters.credits_posted,
        counters.debits_pending,
        counters.credits_pending,
    )


# Balances


def get_balance(tables: ShardTables, query: GetBalance) -> BalanceView | Failure:
    """Tell the balances of an account, now or just after a moment."""
    slot = tables.find_slot(query.account_id)
    if slot is None:
        return account_not_found(query.account_id)
    return _balance_as_of(tables, slot, tables.balance(slot), query.as_of_us, query.basis)


def _balance_as_of(
    tables: ShardTables,
    slot: int,
    balance: BalanceRow,
    time_us: int | None,
    basis: TimeBasis = TimeBasis.RECORDED,
) -> BalanceView:
    """Show the balances just after a moment; now (None) everything recorded counts."""
    newest: EntryRow | None = None
    if time_us is not None:
        found = entry_as_of(tables, slot, balance, time_us)
        newest = found[1] if found else None
    elif balance.last_position:
        newest = tables.entry(balance.last_position)
    counters = newest.after if newest else Counters()
    if time_us is not None and basis is TimeBasis.EFFECTIVE:
        make_effective(tables, slot, time_us, counters)
    book = tables.meta().books[balance.book]
    normal_side = balance.type.normal_side
    return BalanceView(
        account_id=balance.account_id,
        ledger=book.ledger,
        type=balance.type,
        currency=book.currency,
        currency_exponent=book.currency_exponent,
        counters=counters_view(counters),
        settled_balance=counters.settled_balance(normal_side),
        available_balance=counters.available_balance(normal_side),
        version=newest.sequence if newest else 0,
        time_us=newest.time_us if newest else 0,
    )


# Entries


def list_entries(tables: ShardTables, query: ListEntries) -> EntryPage | Failure:
    """Show a page of an account's entries, each with the balances after it."""
    slot = tables.find_slot(query.account_id)
    if slot is None:
        return account_not_found(query.account_id)
    return _entry_page(tables, slot, tables.balance(slot), query)


def get_statement(tables: ShardTables, query: GetStatement) -> StatementView | Failure:
    """Show a page of entries between the balances before and after the whole range."""
    entries = query.entries
    slot = tables.find_slot(entries.account_id)
    if slot is None:
        return account_not_found(entries.account_id)
    balance = tables.balance(slot)
    page = _entry_page(tables, slot, balance, entries)
    if isinstance(page, Failure):
        return page
    # A range that ends before it starts has no entries: both balances are those of its start.
    end_us = max(entries.start_us, entries.end_us) - 1 if entries.end_us else None
    return StatementView(
        opening=_balance_as_of(tables, slot, balance, entries.start_us - 1),
        closing=_balance_as_of(tables, slot, balance, end_us),
        page=page,
    )


def _entry_page(
    tables: ShardTables, slot: int, balance: BalanceRow, query: ListEntries
) -> EntryPage | Failure:
    book = tables.meta().books[balance.book]
    first = 1
    if query.start_us:
        first += sequence_as_of(tables, slot, balance, query.start_us - 1)
    last = balance.sequence
    if query.end_us:
        last = sequence_as_of(tables, slot, balance, query.end_us - 1)
    start = query.sequence or (last if query.newest_first else first)
    if query.sequence and not first <= start <= last:
        return page_token_failure("no entry of this account in this range")
    shown: list[StatementEntryView] = []
    room = PageRoom(query.page_size)
    records = RecordReader(tables)
    for row in _page_rows(tables, slot, balance, query, (first, start, last)):
        next_sequence = row.sequence
        if records.spent:
            break
        view = _entry_view(records.read(row.transaction), row, balance)
        if not room.take(view):
            break
        shown.append(view)
    else:
        next_sequence = 0
    return EntryPage(
        balance.account_id, book.currency, book.currency_exponent, shown, next_sequence
    )


def _page_rows(
    tables: ShardTables,
    slot: int,
    balance: BalanceRow,
    query: ListEntries,
    bounds: tuple[int, int, int],
) -> Iterable[EntryRow]:
    """Return the rows that a page may show, in its order, and one more where there is one."""
    first, start, last = bounds
    if first > last:
        return []
    count = query.page_size + 1
    if query.newest_first:
        found = islice(entries_back(tables, slot, balance, start), min(count, start - first + 1))
        return (row for _, row in found)
    end = min(start + count - 1, last)
    found = islice(entries_back(tables, slot, balance, end), end - start + 1)
    return reversed([row for _, row in found])


def _entry_view(
    record: TransactionRecord, row: EntryRow, balance: BalanceRow
) -> StatementEntryView:
    normal_side = balance.type.normal_side
    return StatementEntryView(
        sequence=row.sequence,
        kind=row.kind,
        direction=row.direction,
        amount=row.amount,
        time_us=row.time_us,
        effective_time_us=record.effective_time_us,
        home_account_id=record.account_id,
        number=home_number(row.transaction, record),
        description=record.description,
        external_reference=record.external_reference,
        status=record.status,
        after=counters_view(row.after),
        settled_balance=row.after.settled_balance(normal_side),
        available_balance=row.after.available_balance(normal_side),
        request_id=record.states[0].request_id,
        actor=record.states[0].actor,
        reversal_of=record.reversal_of,
    )


def home_number(number: int, record: TransactionRecord) -> int:
    """Return a transaction's number at its home; 0 where a participant has not learned it yet."""
    return number if record.home_shard_id is None else record.home_number


# Events


def list_account_events(
    tables: ShardTables, query: ListAccountEvents
) -> AccountEventPage | Failure:
    """Show a page of an account's life, newest first."""
    slot = tables.find_slot(query.account_id)
    if slot is None:
        return account_not_found(query.account_id)
    before = query.journal_number, query.ordinal
    if before == (0, 0):
        before = U64_MAX, _ORDINAL_MAX
    shown: list[AccountEventView] = []
    room = PageRoom(query.page_size)
    last = 0, 0
    for number, ordinal, record in tables.account_events_before(slot, *before):
        view = _event_view(tables, record)
        if not room.take(view):
            return AccountEventPage(shown, *last)
        shown.append(view)
        last = number, ordinal
    return AccountEventPage(shown, 0, 0)


def _event_view(tables: ShardTables, event: AccountEventRecord) -> AccountEventView:
    home_account_id = number = 0
    if event.transaction:
        record = tables.find_transaction(event.transaction)
        assert record is not None, "an event names a transaction that is recorded here"
        home_account_id, number = record.account_id, home_number(event.transaction, record)
    return AccountEventView(
        kind=event.kind,
        time_us=event.time_us,
        request_id=event.request_id,
        actor=event.actor,
        correlation_id=event.correlation_id,
        peer=event.peer,
        changes=event.changes,
        reason=event.reason,
        message=event.message,
        home_account_id=home_account_id,
        number=number,
    )

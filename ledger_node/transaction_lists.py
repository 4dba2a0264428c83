"""Lists of transactions: of an account and of a ledger, newest first, with filters.

A page looks at a bounded number of entries or records. It may show fewer than asked for, or none,
and have a next one all the same: a filter that fits few costs many pages, never a long one.
"""

from collections.abc import Callable, Iterator
from itertools import islice

from ledger_core.accounts import EntryKind, TransactionStatus
from ledger_core.ids import U64_MAX, metadata_key_digest, reference_digest
from ledger_core.queries import (
    ALL_TRANSACTIONS,
    ListLedgerTransactions,
    ListTransactions,
    TransactionFilter,
)
from ledger_core.results import (
    Failure,
    LedgerTransactionPage,
    TransactionPage,
    TransactionView,
)
from ledger_node.moments import entry_as_of
from ledger_node.pages import ENTRIES_READ_MAX, PageRoom, RecordReader, page_token_failure
from ledger_node.records import BalanceRow, EntryRow, TransactionRecord
from ledger_node.store_tables import ShardTables
from ledger_node.views import account_not_found, transaction_view

# How many entries of an account's history a page may look at for each transaction it may show.
# Settled and cancelled transactions have two entries, of which the first is shown: a page that
# meets more of the others than this ends early, and the next one goes on.
_ENTRIES_PER_SHOWN = 4

# How many entries of an account, or records of a shard, a page with filters may look at.
ENTRIES_LOOKED_MAX = 500
RECORDS_LOOKED_MAX = 1_500

# The sequence number of a cursor whose position is a transaction number: no account has so many
# entries.
_BY_NUMBER = U64_MAX

_OPEN = (TransactionStatus.PENDING, TransactionStatus.UNDECIDED)

_NO_ENTRY = "no entry of this account"

Numbered = tuple[int, TransactionRecord]


def _fits(record: TransactionRecord, wanted: TransactionFilter) -> bool:
    """Whether a transaction is what a filter asks for, but for the time of its creation."""
    return (
        wanted.status in (None, record.status)
        and wanted.external_reference in ("", record.external_reference)
        and (not wanted.metadata_key or wanted.metadata_key in record.metadata)
    )


# Of an account


def list_transactions(tables: ShardTables, query: ListTransactions) -> TransactionPage | Failure:
    """Show a page of the transactions of an account."""
    slot = tables.find_slot(query.account_id)
    if slot is None:
        return account_not_found(query.account_id)
    balance = tables.balance(slot)
    wanted = query.filter
    if wanted.status in _OPEN and balance.pending_transactions == 0:
        return TransactionPage([], 0, 0)
    if query.sequence == _BY_NUMBER:
        return _found_of_account(tables, query, balance, query.position)
    if query.position:
        entry = tables.find_entry(query.position)
        if entry is None or (entry.account_id, entry.sequence) != (
            query.account_id,
            query.sequence,
        ):
            return page_token_failure(_NO_ENTRY)
        return _history_of_account(tables, query, query.position)
    if (wanted.external_reference or wanted.metadata_key) and balance.sequence > ENTRIES_LOOKED_MAX:
        return _found_of_account(tables, query, balance, U64_MAX)
    position = balance.last_position
    if wanted.end_us:
        newest = entry_as_of(tables, slot, balance, wanted.end_us - 1)
        position = newest[0] if newest else 0
    return _history_of_account(tables, query, position)


def _history_of_account(
    tables: ShardTables, query: ListTransactions, position: int
) -> TransactionPage:
    """Walk back along the account's entries, and show what made each first one.

    New entries go in front of the newest, so the walk from a given entry never changes: pages stay
    stable while writes go on.
    """
    wanted = query.filter
    looks = query.page_size * _ENTRIES_PER_SHOWN
    if wanted != ALL_TRANSACTIONS:
        looks = max(looks, ENTRIES_LOOKED_MAX)
    books = tables.meta().books
    shown: list[TransactionView] = []
    room, records = PageRoom(query.page_size), RecordReader(tables)
    for looked, (at, entry, is_first) in enumerate(_first_entries(tables, position)):
        if entry.time_us < wanted.start_us:
            break
        if room.full or looked == looks or records.spent:
            return TransactionPage(shown, entry.sequence, at)
        if not is_first or not _may_fit(entry, wanted):
            continue
        record = records.read(entry.transaction)
        if not _fits(record, wanted):
            continue
        view = transaction_view(entry.transaction, record, books[record.book])
        if not room.take(view):
            return TransactionPage(shown, entry.sequence, at)
        shown.append(view)
    return TransactionPage(shown, 0, 0)


def _first_entries(tables: ShardTables, position: int) -> Iterator[tuple[int, EntryRow, bool]]:
    """Yield (position, row, whether it is the transaction's first one here), newest first.

    A transaction may have several entries on an account, one right after the other.
    """
    later: tuple[int, EntryRow] | None = None
    for at, row in tables.entries_back(position):
        if later is not None:
            again = row.kind.creates and row.transaction == later[1].transaction
            yield *later, later[1].kind.creates and not again
        later = at, row
    if later is not None:
        yield *later, later[1].kind.creates


def _may_fit(entry: EntryRow, wanted: TransactionFilter) -> bool:
    """Whether the transaction of an entry is worth reading, as far as the entry alone tells."""
    if wanted.end_us and entry.time_us >= wanted.end_us:
        return False
    if wanted.status is None or entry.kind is EntryKind.PENDING:
        return True
    if entry.kind is EntryKind.POSTED:
        return wanted.status is TransactionStatus.SETTLED
    return wanted.status.is_refusal


def _found_of_account(
    tables: ShardTables, query: ListTransactions, balance: BalanceRow, before: int
) -> TransactionPage | Failure:
    """Show what an index finds, as far as it is of the account."""
    wanted, meta = query.filter, tables.meta()
    if not (wanted.external_reference or wanted.metadata_key):
        return page_token_failure(_NO_ENTRY)

    def of_account(record: TransactionRecord) -> bool:
        return _fits(record, wanted) and any(
            entry.account_id == query.account_id for entry in record.booked
        )

    if wanted.end_us:
        before = min(before, _first_number_from(tables, meta.next_transaction, wanted.end_us))
    ledger = meta.books[balance.book].ledger
    found = _found(tables, ledger, wanted, before)
    shown, last, exhausted = _take(tables, found, wanted, of_account, query.page_size)
    return (
        TransactionPage(shown, 0, 0) if exhausted else TransactionPage(shown, _BY_NUMBER, last[1])
    )


# Of a ledger


def list_ledger_transactions(
    tables: ShardTables, query: ListLedgerTransactions
) -> LedgerTransactionPage:
    """Show a page of the transactions of a ledger whose home this shard is."""
    meta, wanted = tables.meta(), query.filter
    books = {index for index, book in enumerate(meta.books) if book.ledger == query.ledger}

    def of_ledger(record: TransactionRecord) -> bool:
        return record.home_shard_id is None and record.book in books and _fits(record, wanted)

    end = meta.next_transaction
    before = end
    if wanted.end_us:
        before = _first_number_from(tables, end, wanted.end_us)
    if query.before_us:
        # Of those created at just this time, the ones with lower numbers.
        first = _first_number_from(tables, end, query.before_us)
        behind = _first_number_from(tables, end, query.before_us + 1)
        before = min(before, max(first, min(query.before_number, behind)))
    found = _found(tables, query.ledger, wanted, before)
    shown, last, exhausted = _take(tables, found, wanted, of_ledger, query.page_size)
    return LedgerTransactionPage(shown, *last, exhausted)


def _found(
    tables: ShardTables, ledger: str, wanted: TransactionFilter, before: int
) -> Iterator[Numbered]:
    """Yield what may fit with numbers below ``before``, newest first, from the best index."""
    if wanted.external_reference:
        numbers = tables.referenced_before(
            reference_digest(ledger, wanted.external_reference), before
        )
    elif wanted.metadata_key:
        numbers = tables.referenced_before(metadata_key_digest(ledger, wanted.metadata_key), before)
    elif wanted.status in _OPEN:
        numbers = tables.pending_before(before)
    else:
        return tables.transactions_before(before)
    return _records(tables, numbers)


def _records(tables: ShardTables, numbers: Iterator[int]) -> Iterator[Numbered]:
    for number in numbers:
        record = tables.find_transaction(number)
        assert record is not None, "an index names transactions that are recorded"
        yield number, record


def _take(
    tables: ShardTables,
    found: Iterator[Numbered],
    wanted: TransactionFilter,
    fits: Callable[[TransactionRecord], bool],
    page_size: int,
) -> tuple[list[TransactionView], tuple[int, int], bool]:
    """Return what fits, (time, number) of the last one looked at, and whether that was all."""
    books = tables.meta().books
    shown: list[TransactionView] = []
    room = PageRoom(page_size)
    last = 0, 0
    entries = 0
    for looked, (number, record) in enumerate(islice(found, RECORDS_LOOKED_MAX + 1)):
        create_time_us = record.states[0].time_us
        if create_time_us < wanted.start_us:
            break
        if room.full or looked == RECORDS_LOOKED_MAX or entries > ENTRIES_READ_MAX:
            return shown, last, False
        entries += len(record.entries)
        if fits(record):
            view = transaction_view(number, record, books[record.book])
            if not room.take(view):
                return shown, last, False
            shown.append(view)
        last = create_time_us, number
    return shown, last, True


def _first_number_from(tables: ShardTables, end: int, time_us: int) -> int:
    """Return the number from which on transactions were created at or after a moment.

    Numbers rise with time; some may be missing (after an import). ``end`` is behind the last one.
    """
    low, high = 1, end
    while low < high:
        middle = (low + high) // 2
        found = tables.transaction_from(middle)
        if found is None or found[1].states[0].time_us >= time_us:
            high = middle
        else:
            low = found[0] + 1
    return high

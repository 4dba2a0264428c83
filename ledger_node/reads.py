"""Answers to queries, from one consistent view of a shard's tables."""

from itertools import islice

from ledger_core.errors import Reason
from ledger_core.ids import format_account_id, is_system_account_id, transaction_request_key
from ledger_core.queries import (
    DryRun,
    FindName,
    GetAccount,
    GetLedger,
    GetTransaction,
    GetTransactionByRequest,
    ListAccounts,
    ListLedgers,
    ListTransactions,
    Query,
)
from ledger_core.results import (
    AccountPage,
    AccountView,
    Failure,
    LedgerPage,
    NameView,
    Result,
    TransactionPage,
    TransactionView,
    encode_result,
)
from ledger_node.books import Books
from ledger_node.ledger_rules import find_ledger, ledger_not_found
from ledger_node.records import AccountRecord, Book, TransactionRecord
from ledger_node.store import ShardTables
from ledger_node.transaction_rules import dry_run
from ledger_node.views import (
    account_not_found,
    account_view,
    ledger_view,
    transaction_not_found,
    transaction_view,
)

# How many entries of an account's history a page may look at for each transaction it may show.
# Settled and cancelled transactions have two entries, of which the first is shown: a page that
# meets more of the others than this ends early, and the next one goes on.
_ENTRIES_PER_SHOWN = 4

# A page ends early when it has so many bytes: a gRPC message has its limit.
_PAGE_BYTES_MAX = 4 << 20

# How many accounts one page of a list may look at.
ACCOUNTS_PER_PAGE_MAX = 5_000


def answer(tables: ShardTables, query: Query, shard_id: int) -> Result:
    """Answer a query to a shard; a Failure says what was not found."""
    match query:
        case GetAccount():
            return _get_account(tables, query.account_id)
        case GetTransaction():
            return _get_transaction(tables, query)
        case ListTransactions():
            return _list_transactions(tables, query)
        case ListAccounts():
            return _list_accounts(tables, query)
        case GetLedger():
            ledger = find_ledger(tables, query.name)
            return ledger_not_found(query.name) if ledger is None else ledger_view(ledger)
        case ListLedgers():
            found = islice(tables.ledgers_after(query.after), query.page_size)
            return LedgerPage([ledger_view(record) for record in found])
        case FindName():
            owner = tables.find_name(query.ledger, query.name)
            return NameView(query.ledger, query.name, owner.account_id if owner else None)
        case GetTransactionByRequest():
            return _get_transaction_by_request(tables, query)
        case DryRun():
            books = Books(tables, tables.meta(), shard_id)
            return dry_run(books, query.transaction)


def _get_account(tables: ShardTables, account_id: int) -> Result:
    slot = tables.find_slot(account_id)
    if slot is None:
        return account_not_found(account_id)
    return _account(tables, tables.meta().books, slot, tables.account_info(slot))


def _account(
    tables: ShardTables, books: list[Book], slot: int, record: AccountRecord
) -> AccountView:
    balance = tables.balance(slot)
    update_time_us = record.create_time_us
    if balance.last_position:
        update_time_us = tables.entry(balance.last_position).time_us
    return account_view(record, balance, books[balance.book], update_time_us)


def _list_accounts(tables: ShardTables, query: ListAccounts) -> Result:
    """Look through the accounts in the order of their opening.

    A page looks at a bounded number of accounts, and may show fewer than asked for, or none.
    """
    meta = tables.meta()
    shown: list[AccountView] = []
    last_slot = query.after_slot
    for slot, record in islice(tables.accounts_after(query.after_slot), ACCOUNTS_PER_PAGE_MAX):
        last_slot = slot
        if is_system_account_id(meta.lower_bound, record.account_id):
            continue
        if not record.code.startswith(query.code_prefix) or (
            query.metadata_key and query.metadata_key not in record.metadata
        ):
            continue
        view = _account(tables, meta.books, slot, record)
        if (
            view.ledger == query.ledger
            and query.type in (None, view.type)
            and query.state in (None, view.state)
        ):
            shown.append(view)
            if len(shown) == query.page_size:
                break
    return AccountPage(shown, last_slot if last_slot + 1 < meta.next_slot else -1)


def _get_transaction(tables: ShardTables, query: GetTransaction) -> Result:
    record = tables.find_transaction(query.number)
    if record is None or record.account_id != query.account_id:
        return transaction_not_found(query.account_id, query.number)
    return _transaction(tables, query.number, record)


def _get_transaction_by_request(tables: ShardTables, query: GetTransactionByRequest) -> Result:
    """Tell what became of CreateTransaction, also while it is undecided."""
    key = transaction_request_key(query.account_id, query.request_id)
    request = tables.find_request(key)
    if request is None:
        account_id = format_account_id(query.account_id)
        return Failure(
            Reason.TRANSACTION_NOT_FOUND,
            f"account {account_id} has seen no transaction with request id {query.request_id!r}",
            field="request_id",
            metadata={"account_id": account_id, "request_id": query.request_id},
        )
    record = tables.find_transaction(request.number)
    assert record is not None, "every request of this kind has its transaction"
    return _transaction(tables, request.number, record)


def _transaction(tables: ShardTables, number: int, record: TransactionRecord) -> TransactionView:
    in_flight = tables.find_in_flight(number) if record.participants else None
    return transaction_view(
        number,
        record,
        tables.meta().books[record.book],
        in_flight=None if in_flight is None else in_flight.state,
    )


def _list_transactions(tables: ShardTables, query: ListTransactions) -> Result:
    """Walk back along the account's entries, and show the first entry of every transaction.

    New entries go in front of the newest, so the walk from a given entry never changes: pages stay
    stable while writes go on.
    """
    slot = tables.find_slot(query.account_id)
    if slot is None:
        return account_not_found(query.account_id)
    balance = tables.balance(slot)
    sequence, position = query.sequence, query.position
    if position == 0:
        sequence, position = balance.sequence, balance.last_position
    books = tables.meta().books
    shown: list[TransactionView] = []
    shown_bytes = 0
    for _ in range(query.page_size * _ENTRIES_PER_SHOWN):
        if position == 0 or len(shown) == query.page_size or shown_bytes > _PAGE_BYTES_MAX:
            break
        entry = tables.find_entry(position)
        if entry is None or (entry.account_id, entry.sequence) != (query.account_id, sequence):
            return Failure(
                Reason.INVALID_FIELDS,
                "the page token points to no entry of this account; start again without a token",
                field="page_token",
            )
        if entry.kind.creates:
            record = tables.find_transaction(entry.transaction)
            assert record is not None, "every entry has its transaction"
            shown.append(transaction_view(entry.transaction, record, books[record.book]))
            shown_bytes += len(encode_result(shown[-1]))
        sequence, position = sequence - 1, entry.previous
    if position == 0:
        return TransactionPage(shown, 0, 0)
    return TransactionPage(shown, sequence, position)

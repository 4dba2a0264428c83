"""What a shard has now: accounts, transactions, ledgers and names."""

from itertools import islice

from ledger_core.errors import Reason
from ledger_core.ids import format_account_id, is_system_account_id, transaction_request_key
from ledger_core.queries import (
    FindName,
    GetAccount,
    GetLedger,
    GetTransaction,
    GetTransactionByRequest,
    GetTransactionStates,
    ListAccounts,
    ListLedgers,
)
from ledger_core.results import (
    AccountPage,
    AccountView,
    Failure,
    LedgerPage,
    LedgerView,
    NameView,
    TransactionStatesView,
    TransactionStateView,
    TransactionView,
)
from ledger_node.ledger_rules import find_ledger, ledger_not_found
from ledger_node.records import AccountRecord, Book, TransactionRecord
from ledger_node.store_tables import ShardTables
from ledger_node.views import (
    account_not_found,
    account_view,
    ledger_view,
    transaction_not_found,
    transaction_view,
)

# How many accounts one page of a list may look at.
ACCOUNTS_PER_PAGE_MAX = 5_000


# Accounts


def get_account(tables: ShardTables, query: GetAccount) -> AccountView | Failure:
    """Show an account with its balances."""
    return shown_account(tables, tables.meta().books, query.account_id)


def shown_account(tables: ShardTables, books: list[Book], account_id: int) -> AccountView | Failure:
    """Show an account of the shard, which has these books."""
    slot = tables.find_slot(account_id)
    if slot is None:
        return account_not_found(account_id)
    return _account(tables, books, slot, tables.account_info(slot))


def _account(
    tables: ShardTables, books: list[Book], slot: int, record: AccountRecord
) -> AccountView:
    balance = tables.balance(slot)
    update_time_us = record.create_time_us
    if balance.last_position:
        update_time_us = tables.entry(balance.last_position).time_us
    return account_view(record, balance, books[balance.book], update_time_us)


def list_accounts(tables: ShardTables, query: ListAccounts) -> AccountPage:
    """Show a page of accounts in the order of their opening.

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


# Transactions


def get_transaction(tables: ShardTables, query: GetTransaction) -> TransactionView | Failure:
    """Show a transaction as it is now."""
    record = tables.find_transaction(query.number)
    if record is None or record.account_id != query.account_id:
        return transaction_not_found(query.account_id, query.number)
    return _transaction(tables, query.number, record)


def get_transaction_states(
    tables: ShardTables, query: GetTransactionStates
) -> TransactionStatesView | Failure:
    """Show the life of a transaction, oldest state first."""
    record = tables.find_transaction(query.number)
    if record is None or record.account_id != query.account_id:
        return transaction_not_found(query.account_id, query.number)
    states = [
        TransactionStateView(
            state.status,
            state.time_us,
            state.request_id,
            state.actor,
            state.correlation_id,
            state.peer,
        )
        for state in record.states
    ]
    return TransactionStatesView(_transaction(tables, query.number, record), states)


def get_transaction_by_request(
    tables: ShardTables, query: GetTransactionByRequest
) -> TransactionView | Failure:
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


# Ledgers and names


def get_ledger(tables: ShardTables, query: GetLedger) -> LedgerView | Failure:
    """Show a ledger that this shard keeps."""
    ledger = find_ledger(tables, query.name)
    return ledger_not_found(query.name) if ledger is None else ledger_view(ledger)


def list_ledgers(tables: ShardTables, query: ListLedgers) -> LedgerPage:
    """Show a page of the ledgers that this shard keeps."""
    found = islice(tables.ledgers_after(query.after), query.page_size)
    return LedgerPage([ledger_view(record) for record in found])


def find_name(tables: ShardTables, query: FindName) -> NameView:
    """Tell which account has claimed a name."""
    owner = tables.find_name(query.ledger, query.name)
    return NameView(query.ledger, query.name, owner.account_id if owner else None)

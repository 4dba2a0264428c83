"""Answers to queries, from one consistent view of a shard's tables."""

from ledger_core.errors import Reason
from ledger_core.queries import GetAccount, GetTransaction, ListTransactions, Query
from ledger_core.results import Failure, Result, TransactionPage, TransactionView
from ledger_node.store import ShardTables
from ledger_node.views import (
    account_not_found,
    account_view,
    transaction_not_found,
    transaction_view,
)

# How many entries of an account's history a page may look at for each transaction it may show.
# Settled and cancelled transactions have two entries, of which the first is shown: a page that
# meets more of the others than this ends early, and the next one goes on.
_ENTRIES_PER_SHOWN = 4


def answer(tables: ShardTables, query: Query) -> Result:
    """Answer a query; a Failure says what was not found."""
    match query:
        case GetAccount():
            return _get_account(tables, query.account_id)
        case GetTransaction():
            return _get_transaction(tables, query)
        case ListTransactions():
            return _list_transactions(tables, query)


def _get_account(tables: ShardTables, account_id: int) -> Result:
    slot = tables.find_slot(account_id)
    if slot is None:
        return account_not_found(account_id)
    record = tables.account_info(slot)
    balance = tables.balance(slot)
    update_time_us = record.create_time_us
    if balance.last_position:
        update_time_us = tables.entry(balance.last_position).time_us
    return account_view(record, balance, tables.meta().books[balance.book], update_time_us)


def _get_transaction(tables: ShardTables, query: GetTransaction) -> Result:
    record = tables.find_transaction(query.number)
    if record is None or record.account_id != query.account_id:
        return transaction_not_found(query.account_id, query.number)
    return transaction_view(query.number, record, tables.meta().books[record.book])


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
    for _ in range(query.page_size * _ENTRIES_PER_SHOWN):
        if position == 0 or len(shown) == query.page_size:
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
        sequence, position = sequence - 1, entry.previous
    if position == 0:
        return TransactionPage(shown, 0, 0)
    return TransactionPage(shown, sequence, position)

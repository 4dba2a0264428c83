"""Many accounts at once, from one state: what they have now.

Balances are read as arrays. `tests/node/test_batch_reads.py` holds them against single reads.
"""

import numpy as np
from numpy.typing import NDArray

from ledger_core.queries import GetAccounts, GetBalances
from ledger_core.results import AccountsView, BalanceBookView, BalancesView
from ledger_core.transfers import U64Array, big_endian, split_rows
from ledger_node.current_reads import shown_account
from ledger_node.store_columns import BALANCES
from ledger_node.store_tables import ShardTables
from ledger_node.views import account_not_found


def get_balances(tables: ShardTables, query: GetBalances) -> BalancesView:
    """Tell the balances of accounts as columns."""
    ids, where = np.unique(np.array(query.account_ids, np.uint64), return_inverse=True)
    rows = _balance_rows(tables, ids)
    times_us = _update_times_us(tables, rows)[where]
    rows = rows.take(where)
    missing = np.flatnonzero(rows["type"] == 0).tolist()
    # Places in the shard's list of books become places in the answer's.
    used, places = np.unique(rows["book"][rows["type"] != 0], return_inverse=True)
    book_places = np.zeros(len(rows), "<u2")
    book_places[rows["type"] != 0] = places
    books = tables.meta().books
    return BalancesView(
        types=rows["type"].tobytes(),
        book_places=book_places.tobytes(),
        debits_posted=rows["debits_posted"].tobytes(),
        credits_posted=rows["credits_posted"].tobytes(),
        debits_pending=rows["debits_pending"].tobytes(),
        credits_pending=rows["credits_pending"].tobytes(),
        versions=rows["sequence"].tobytes(),
        times_us=times_us.tobytes(),
        books=[
            BalanceBookView(book.ledger, book.currency, book.currency_exponent)
            for book in map(books.__getitem__, used.tolist())
        ],
        missing={index: account_not_found(query.account_ids[index]) for index in missing},
    )


def get_accounts(tables: ShardTables, query: GetAccounts) -> AccountsView:
    """Show accounts with their balances."""
    books = tables.meta().books
    return AccountsView(
        [shown_account(tables, books, account_id) for account_id in query.account_ids]
    )


def _balance_rows(tables: ShardTables, ids: U64Array) -> NDArray[np.void]:
    """Return the balance rows of accounts whose ids rise; all 0 where there is no account."""
    rows = np.zeros(len(ids), BALANCES)
    found_ids, found_slots = tables.slot_rows(split_rows(big_endian(ids)))
    if found_ids:
        known = np.frombuffer(b"".join(found_ids), ">u8").astype(np.uint64)
        slots = np.frombuffer(b"".join(found_slots), ">u4").astype(np.int64)
        order = np.argsort(slots)
        rows[np.searchsorted(ids, known[order])] = tables.balance_rows(slots[order])
    return rows


def _update_times_us(tables: ShardTables, rows: NDArray[np.void]) -> NDArray[np.int64]:
    """Return when the newest entry of each row was recorded; 0: there is none."""
    positions = rows["last_position"]
    places = np.argsort(positions)
    places = places[positions[places] > 0]
    times_us = np.zeros(len(rows), "<i8")
    times_us[places] = tables.entry_times_us(positions[places].tolist())
    return times_us

"""How old the balances of accounts are: receivables and payables by age.

First in, first out, from the counters alone: what an account still has is the newest money that
came in. With B the settled balance (seen from the account's normal side) at the moment, and
I(x) = inflow posted up to the moment, minus inflow posted up to x before it:

    the youngest bucket, up to the age x1, has  min(B, I(x1))
    the next one, up to x2, has                 min(what is left of B, I(x2) - I(x1))
    ...
    the last one has what is left.

B never exceeds all that ever came in, so the buckets add up to it. A balance below zero has no age:
it stands in the youngest bucket.
"""

from collections.abc import Iterator

from ledger_core.accounts import Counters, Direction
from ledger_core.ids import is_system_account_id
from ledger_core.queries import ListAgeing
from ledger_core.results import AgeingPage, AgeingView
from ledger_node.moments import counters_as_of
from ledger_node.pages import PageRoom
from ledger_node.records import BalanceRow, Book
from ledger_node.store_tables import ShardTables

# How many accounts a page may look at, and how many balances it may look up in histories.
ACCOUNTS_PER_PAGE_MAX = 5_000
LOOKUPS_PER_PAGE_MAX = 200


def list_ageing(tables: ShardTables, query: ListAgeing) -> AgeingPage:
    """Show a page of the accounts whose balances are not 0, each by age."""
    meta = tables.meta()
    if query.after_slot >= meta.next_slot:
        return AgeingPage([], -1)
    reader = _Ages(tables, query, query.now_us or meta.time_us)
    books = {index: book for index, book in enumerate(meta.books) if book.ledger == query.ledger}
    shown: list[AgeingView] = []
    room = PageRoom(query.page_size)
    last_slot = query.after_slot
    for looked, (slot, balance) in enumerate(tables.balances_after(query.after_slot), start=1):
        if (
            (book := books.get(balance.book)) is not None
            and query.type in (None, balance.type)
            and not is_system_account_id(meta.lower_bound, balance.account_id)
        ):
            view = _account(reader, book, slot, balance, query.code_prefix)
            if view is not None:
                if not room.take(view):
                    break
                shown.append(view)
        last_slot = slot
        if room.full or looked == ACCOUNTS_PER_PAGE_MAX or reader.lookups >= LOOKUPS_PER_PAGE_MAX:
            break
    return AgeingPage(shown, last_slot if last_slot + 1 < meta.next_slot else -1)


def _account(
    reader: "_Ages", book: Book, slot: int, balance: BalanceRow, code_prefix: str
) -> AgeingView | None:
    if code_prefix and not reader.tables.account_info(slot).code.startswith(code_prefix):
        return None
    settled = reader.settled_balance(slot, balance)
    if settled == 0:
        return None
    record = reader.tables.account_info(slot)
    return AgeingView(
        account_id=balance.account_id,
        code=record.code,
        name=record.name,
        type=balance.type,
        currency=book.currency,
        currency_exponent=book.currency_exponent,
        settled_balance=settled,
        amounts=reader.amounts(slot, balance, settled),
    )


class _Ages:
    """The balances of accounts at one moment, and how old they are."""

    def __init__(self, tables: ShardTables, query: ListAgeing, now_us: int) -> None:
        self.tables = tables
        self._as_of_us = query.as_of_us
        self._moment_us = now_us if query.as_of_us is None else query.as_of_us
        self._bounds_us = query.bounds_us
        self._basis = query.basis
        self.lookups = 0
        """How often a history was looked into."""

    def settled_balance(self, slot: int, balance: BalanceRow) -> int:
        """Return the balance at the moment, seen from the account's normal side."""
        return self._at_moment(slot, balance).settled_balance(balance.type.normal_side)

    def amounts(self, slot: int, balance: BalanceRow, settled: int) -> list[int]:
        """Split a balance by age, youngest first."""
        # Less than nothing is less than any inflow: it goes whole to the youngest bucket.
        amounts, left = [], settled
        inflows = self._inflows(slot, balance)
        inflow = next(inflows)
        for _ in self._bounds_us:
            older = next(inflows) if left else 0
            amounts.append(min(left, inflow - older))
            left -= amounts[-1]
            inflow = older
        return [*amounts, left]

    def _inflows(self, slot: int, balance: BalanceRow) -> Iterator[int]:
        """Yield what had come in by the moment, and by every bound before it."""
        yield _inflow(balance, self._at_moment(slot, balance))
        for bound_us in self._bounds_us:
            yield _inflow(balance, self._as_of(slot, balance, self._moment_us - bound_us))

    def _at_moment(self, slot: int, balance: BalanceRow) -> Counters:
        if self._as_of_us is None:
            return balance
        return self._as_of(slot, balance, self._as_of_us)

    def _as_of(self, slot: int, balance: BalanceRow, time_us: int) -> Counters:
        if balance.sequence == 0:
            return balance
        self.lookups += 1
        return counters_as_of(self.tables, slot, balance, time_us, self._basis)


def _inflow(balance: BalanceRow, counters: Counters) -> int:
    if balance.type.normal_side is Direction.CREDIT:
        return counters.credits_posted
    return counters.debits_posted

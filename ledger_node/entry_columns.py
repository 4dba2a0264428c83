"""Books many entries at once: their rows, balances, marks and totals.

An entry says what its account's counters are after it. So the entries of each account are taken
one after the other, and running sums give all of them at once. Same as `Books.book_entries`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ledger_core.accounts import AccountType, Direction, EntryKind
from ledger_core.transfers import I64Array
from ledger_node.books import Books, InvariantError
from ledger_node.checksums import set_checksums
from ledger_node.records import ENTRY_EFFECT, ENTRY_ROW_BYTES
from ledger_node.store import ENTRIES_PER_MARK
from ledger_node.store_columns import BalanceRows

BoolArray = NDArray[np.bool_]
IndexArray = NDArray[np.intp]

# An entry row as numbers of 8 bytes, as `EntryRow` packs it; the last one has direction, kind, and
# the checksum.
_NUMBERS = ENTRY_ROW_BYTES // 8
_ACCOUNT, _TRANSACTION, _AMOUNT, _TIME, _SEQUENCE, _PREVIOUS, _COUNTERS = range(7)
_LAST = _NUMBERS - 1

_EFFECTS = np.array([(0, 0), *(ENTRY_EFFECT[kind] for kind in EntryKind)])
_CREDIT_NORMAL = np.array(
    [False] + [kind.normal_side is Direction.CREDIT for kind in AccountType], dtype=bool
)
_DEBIT, _CREDIT = np.int64(Direction.DEBIT), np.int64(Direction.CREDIT)
_COUNTER_NAMES = ("debits_posted", "credits_posted", "debits_pending", "credits_pending")


@dataclass(slots=True)
class AccountColumns:
    """Accounts, each once: their slots, which rise, and their rows as they are now."""

    slots: I64Array
    rows: BalanceRows

    @property
    def credit_normal(self) -> BoolArray:
        """Whether credits make the balance grow."""
        found: BoolArray = _CREDIT_NORMAL[self.rows["type"]]
        return found

    def available(self) -> I64Array:
        """Return the settled balances without what is reserved for outflow."""
        rows, net = self.rows, self.rows["credits_posted"] - self.rows["debits_posted"]
        reserved = np.where(self.credit_normal, rows["debits_pending"], rows["credits_pending"])
        available: I64Array = np.where(self.credit_normal, net, -net) - reserved
        return available


@dataclass(slots=True)
class EntryColumns:
    """Entries in their order. ``account`` is the place of each one's account."""

    account: IndexArray
    debits: BoolArray
    amount: I64Array
    kind: NDArray[np.uint8]
    number: I64Array

    def only(self, kept: BoolArray) -> "EntryColumns":
        """Return some of them."""
        return EntryColumns(
            self.account[kept],
            self.debits[kept],
            self.amount[kept],
            self.kind[kept],
            self.number[kept],
        )


def distinct(values: I64Array) -> tuple[I64Array, IndexArray]:
    """Return values as they rise, each once, and the place of every one among them."""
    # As `numpy.unique` does it, with less around it.
    order = values.argsort()
    rising = values[order]
    is_first = np.ones(len(values), bool)
    np.not_equal(rising[1:], rising[:-1], out=is_first[1:])
    places = np.empty(len(values), np.intp)
    places[order] = is_first.cumsum() - 1
    return rising[is_first], places


def read_balances(books: Books, slots: I64Array) -> AccountColumns:
    """Read accounts that exist, each once; their slots rise."""
    return AccountColumns(slots, books.tables.balance_rows(slots))


def book_columns(books: Books, accounts: AccountColumns, entries: EntryColumns) -> None:
    """Change the counters of accounts, and append to their histories; the entries must balance.

    The rows of accounts become what they are after the entries.
    """
    count = len(entries.account)
    if not count:
        return
    effects = _Effects(entries)
    # Places are few: sorting small numbers is cheaper.
    order = entries.account.astype(np.int16).argsort(kind="stable")
    account = entries.account[order]
    is_first = np.ones(count, bool)
    np.not_equal(account[1:], account[:-1], out=is_first[1:])
    starts = is_first.nonzero()[0]
    ends = np.append(starts[1:], count)
    of = is_first.cumsum() - 1
    touched = account[starts]
    rows = accounts.rows.take(touched)
    first = books.meta.next_position
    # In the order of accounts: what each had before, and what came before it here.
    table = np.empty((count, _NUMBERS), np.int64)
    table[:, _ACCOUNT] = rows["account_id"].view(np.int64)[of]
    table[:, _TRANSACTION] = entries.number[order]
    table[:, _AMOUNT] = entries.amount[order]
    table[:, _TIME] = books.meta.time_us
    table[:, _SEQUENCE] = (rows["sequence"] + 1 - starts)[of] + np.arange(count)
    table[1:, _PREVIOUS] = order[:-1] + first
    table[starts, _PREVIOUS] = rows["last_position"]
    table[:, _LAST] = effects.sides[order]
    moved = np.zeros((4, len(touched)), np.int64)
    sums = np.zeros(count + 1, np.int64)
    for place, name in enumerate(_COUNTER_NAMES):
        if (added := effects.counters[place]) is None:
            table[:, _COUNTERS + place] = rows[name][of]
            continue
        added[order].cumsum(out=sums[1:])
        table[:, _COUNTERS + place] = (rows[name] - sums[starts])[of] + sums[1:]
        moved[place] = sums[ends] - sums[starts]
        rows[name] += moved[place]
    if effects.transactions is not None:
        effects.transactions[order].cumsum(out=sums[1:])
        rows["pending_transactions"] += (sums[ends] - sums[starts]).astype(np.uint32)
    rows["sequence"] += ends - starts
    rows["last_position"] = order[ends - 1] + first
    accounts.rows[touched] = rows
    _check_balance(rows["book"], moved)
    books.tables.save_balance_rows(accounts.slots[touched], rows)
    _add_totals(books, rows["group"], moved)
    in_order = np.empty_like(table)
    in_order[order] = table
    _add_marks(books, accounts.slots[entries.account], in_order[:, _SEQUENCE])
    books.append_rows(_with_checksums(in_order), count)


class _Effects:
    """What entries are, as their rows end, and what they add.

    That is to the four counters of their accounts, and to the number of pending transactions; None
    where none of them does.
    """

    def __init__(self, entries: EntryColumns) -> None:
        posted, pending = _EFFECTS[entries.kind].T
        side = np.where(entries.debits, _DEBIT, _CREDIT)
        self.sides: I64Array = entries.kind.astype(np.int64) << 8 | side
        self.transactions: I64Array | None = pending if pending.any() else None
        self.counters: list[I64Array | None] = [None] * 4
        for place, effect in ((0, posted), (2, pending)):
            if effect.any():
                added = effect * entries.amount
                debits = np.where(entries.debits, added, 0)
                self.counters[place : place + 2] = [debits, added - debits]


def _check_balance(books: NDArray[np.uint16], moved: I64Array) -> None:
    """Assert that debits equal credits in every book, posted and pending."""
    for book in {*books.tolist()}:
        sums = moved[:, books == book].sum(axis=1).tolist()
        if (sums[0], sums[2]) != (sums[1], sums[3]):
            raise InvariantError(f"a block of transfers leaves book {book} unbalanced: {sums}")


def _add_totals(books: Books, groups: NDArray[np.uint32], moved: I64Array) -> None:
    """Add what accounts were moved by to the totals of their groups."""
    for group in sorted({*groups.tolist()}):
        added = moved[:, groups == group].sum(axis=1).tolist()
        if not any(added):
            continue
        totals = books.totals(group)
        totals.debits_posted += added[0]
        totals.credits_posted += added[1]
        totals.debits_pending += added[2]
        totals.credits_pending += added[3]


def _add_marks(books: Books, slots: I64Array, sequences: I64Array) -> None:
    meta = books.meta
    for place in (sequences % ENTRIES_PER_MARK == 0).nonzero()[0].tolist():
        books.tables.add_entry_mark(
            int(slots[place]), int(sequences[place]), meta.next_position + place, meta.time_us
        )


def _with_checksums(table: I64Array) -> bytes:
    """Return packed entry rows with their CRC-32: the end of the last number."""
    set_checksums(table.view(f"V{ENTRY_ROW_BYTES}")[:, 0])
    return table.tobytes()

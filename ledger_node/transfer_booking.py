"""Books the items of a block that become transactions, taken or refused: every row they make.

An entry says what its account's counters are after it, so each account's entries are taken one
after the other (`Sides.by_account`), and sums so far (`Moved`) give all of them at once.

A block has one segment: its command. Where the blocks of several commands are joined, each has its
own; log entries begin and end between them.
"""

from dataclasses import dataclass, field
from itertools import compress
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ledger_core.accounts import Direction, EntryKind, TransactionStatus
from ledger_core.commands import CreateTransfers, Refused
from ledger_core.results import Failure, RefusalView
from ledger_core.transfers import (
    I64Array,
    TransferForm,
    amounts,
    block_parts,
    first_accounts,
    form_column,
    second_accounts,
    transfer_command,
)
from ledger_node.account_events import note_refused_transaction
from ledger_node.books import Books, InvariantError
from ledger_node.checksums import set_checksums
from ledger_node.records import (
    ENTRY_ROW_BYTES,
    FLOORED_BIT,
    LIMITED_BIT,
)
from ledger_node.store import ENTRIES_PER_MARK
from ledger_node.store_columns import (
    ROW_ACCOUNT,
    ROW_COUNTERS,
    ROW_POSITION,
    ROW_POSTED,
    ROW_SEQUENCE,
)
from ledger_node.store_leg_columns import number_keys
from ledger_node.transaction_rules import add_references, expand, new_record
from ledger_node.transfer_blocks import (
    Accounts,
    BoolArray,
    Groups,
    Moved,
    Sides,
    has_one_account_form,
    outflow,
)
from ledger_node.transfer_records import PlainTransfers, ends_of, plain_rows
from ledger_node.views import refusal_view

SETTLED: Final = int(TransactionStatus.SETTLED)

# An `EntryRow` as numbers of 8 bytes each: their places. The last one has direction, kind and
# checksum.
_ENTRY_NUMBERS = ENTRY_ROW_BYTES // 8
_ACCOUNT, _TRANSACTION, _AMOUNT, _TIME, _SEQUENCE, _PREVIOUS = range(6)
_POSTED, _COUNTERS, _LAST = slice(6, 8), slice(6, 10), 10
# The last number of entries, by whether they debit: posted ones, and refused ones.
_DIRECTIONS = np.array([Direction.CREDIT, Direction.DEBIT], np.int64)
_POSTED_ENDS = _DIRECTIONS | EntryKind.POSTED << 8
_REFUSED_ENDS = _DIRECTIONS | EntryKind.REFUSED << 8
_ENTRY = np.dtype(f"V{ENTRY_ROW_BYTES}")
_MARK_MASK = np.array(ENTRIES_PER_MARK - 1)
assert ENTRIES_PER_MARK & ENTRIES_PER_MARK - 1 == 0, "a power of two"


@dataclass(slots=True)
class Segment:
    """The items, from ``start`` to before ``end``, of a command of a log entry.

    ``time_us`` is when that log entry is recorded.
    """

    start: int
    end: int
    time_us: int


@dataclass(slots=True)
class _Entries:
    """The packed entries of a segment. The rows of their accounts are stored already.

    ``totals`` has credits and debits that they add to each of some ``groups`` of accounts.
    """

    first_position: int
    rows: bytes
    groups: list[int]
    totals: list[list[int]]

    def append(self, books: Books) -> None:
        """Append the entries to those of the log entry that is under way."""
        if self.first_position != books.meta.next_position:
            raise InvariantError("something else was booked between the segments of a block")
        imbalance = 0
        for group, (credited, debited) in zip(self.groups, self.totals, strict=True):
            if debited or credited:
                totals = books.totals(group)
                totals.debits_posted += debited
                totals.credits_posted += credited
                imbalance += debited - credited
        if imbalance:
            raise InvariantError("a block of transfers leaves the books unbalanced")
        # Of accounts that do not exist there are none: the log entry may have no entries at all.
        if self.rows:
            books.append_rows(self.rows, len(self.rows) // ENTRY_ROW_BYTES)


@dataclass(slots=True)
class Booking:
    """The items of a block that become transactions, on their way into the tables.

    ``statuses`` has that of each item, 0 where it makes no transaction; ``moved`` is by those that
    are settled. Call `book`, then `append` for each of the ``segments``, in their order.
    """

    books: Books
    block: CreateTransfers
    accounts: Accounts
    sides: Sides
    moved: Moved
    statuses: NDArray[np.uint8]
    refused: dict[int, Refused]
    segments: list[Segment]
    _numbers: I64Array = field(init=False)
    _special: list[int] = field(default_factory=list)
    _entries: list[_Entries] = field(default_factory=list)

    def book(self, keys: list[bytes], *, claimed: bool) -> None:
        """Write the rows that no log entry has to itself.

        ``keys`` are those of the requests, ``claimed`` as if all items became transactions.
        """
        recorded = self.statuses != 0
        made = np.count_nonzero(recorded)
        if claimed and made < len(keys):
            self.books.tables.drop_requests(keys)
            claimed = False
        if not made:
            return
        next_number = self.books.meta.next_transaction
        all_made = made == len(recorded)
        if all_made:
            self._numbers = np.arange(next_number, next_number + made)
        else:
            self._numbers = recorded.cumsum() + (next_number - 1)
        times_us = self._times_us()
        self._entries = self._book_entries(None if all_made else recorded, times_us)
        if not claimed:
            made_keys = [*compress(keys, recorded.tolist())]
            self.books.tables.add_request_rows(made_keys, self._numbers[recorded])
        special = {*self.refused, *self.block.texts}
        if special:
            self._special = sorted(item for item in special if recorded[item])
            recorded[self._special] = False
        self._add_plain(None if all_made and not special else recorded, times_us)

    def _times_us(self) -> I64Array:
        """Return when each item is recorded."""
        times_us = np.empty(len(self.statuses), np.int64)
        for segment in self.segments:
            times_us[segment.start : segment.end] = segment.time_us
        return times_us

    def append(self, place: int = 0) -> tuple[int, dict[int, RefusalView]]:
        """Make a segment part of the log entry that is under way, which has the segment's time.

        Returns the first transaction number, 0 if there is none, and why items were refused.
        """
        start, end = self.segments[place].start, self.segments[place].end
        count = end - start - self.statuses[start:end].tobytes().count(0)
        if not count:
            return 0, {}
        first_number = self.books.take_transaction_numbers(count)
        if self._entries:
            self._entries[place].append(self.books)
        refusals = {}
        for item in self._special:
            if start <= item < end and (view := self._add_special(item)):
                refusals[item - start] = view
        return first_number, refusals

    def _book_entries(self, recorded: BoolArray | None, times_us: I64Array) -> list[_Entries]:
        """Book two entries for each item ``recorded`` (None: all), but none of missing accounts."""
        sides, moved = self.sides, self.moved
        numbers, times_us = self._numbers.repeat(2), times_us.repeat(2)
        if recorded is not None or not self.accounts.all_known:
            kept = self.accounts.known[sides.account]
            if recorded is not None:
                kept &= recorded[sides.item]
            sides = sides.only(kept)
            moved = Moved(sides, moved.effects[kept])
            numbers, times_us = numbers[kept], times_us[kept]
        if not len(sides.item):
            return []
        rows = _book_entries(
            self.books, self.accounts, sides, moved, numbers=numbers, times_us=times_us
        )
        return self._cut(rows, sides, moved)

    def _cut(self, rows: bytes, sides: Sides, moved: Moved) -> list[_Entries]:
        """Cut packed entries at the ends of segments; add up what each adds to groups."""
        first, size = self.books.meta.next_position, ENTRY_ROW_BYTES
        group_of = self.accounts.rows["group"].astype(np.int64)
        groups = sorted(set(group_of.tolist()))
        if len(groups) == 1 == len(self.segments):
            debited, credited = moved.total
            return [_Entries(first, rows, groups, [[credited, debited]])]
        ends = sides.item.searchsorted([segment.end for segment in self.segments]).tolist()
        starts = [0, *ends[:-1]]
        width = groups[-1] + 1
        at = 2 * group_of[sides.account]
        at += sides.debits
        for place, start in enumerate(starts[1:], 1):
            at[start : ends[place]] += place * 2 * width
        sums = np.zeros(len(ends) * 2 * width, np.int64)
        np.add.at(sums, at, moved.effects)
        totals = sums.reshape(-1, width, 2).take(groups, 1).tolist()
        return [
            _Entries(first + start, rows[start * size : end * size], groups, of_segment)
            for start, end, of_segment in zip(starts, ends, totals, strict=True)
        ]

    def _add_plain(self, plain: BoolArray | None, times_us: I64Array) -> None:
        """Write the transactions of items that were settled and have no texts; None: all."""
        books, transfers = self.books, self._plain_transfers()
        ends = ends_of(block_parts(self.block), times_us)
        book = self.accounts.book
        if plain is None and book is not None:
            heads = plain_rows(transfers, book, books.meta.books[book], times_us)
            rows = [head + end for head, end in zip(heads, ends, strict=True)]
            books.tables.add_transaction_rows(number_keys(self._numbers), rows)
            return
        book_of = self.accounts.rows["book"][self.sides.account[::2]]
        if plain is None:
            plain = np.ones(len(book_of), bool)
        for book in sorted(set(book_of[plain].tolist())):
            heads = plain_rows(transfers, book, books.meta.books[book], times_us)
            items = (plain & (book_of == book)).nonzero()[0]
            books.tables.add_transaction_rows(
                number_keys(self._numbers[items]),
                [heads[item] + ends[item] for item in items.tolist()],
            )

    def _plain_transfers(self) -> PlainTransfers:
        block, sides, values = self.block, self.sides, amounts(self.block)
        second, signed = second_accounts(block), None
        if has_one_account_form(block):
            forms = form_column(block)
            second = self.accounts.rows["account_id"][sides.account[1::2]]
            signed = np.where(forms == TransferForm.OUT, -values, values)
            signed[forms < TransferForm.IN] = 0
        debits = sides.debits[::2]
        return PlainTransfers(
            first_accounts(block), second, signed, values, debits, block.request_ids
        )

    def _add_special(self, item: int) -> RefusalView | None:
        """Write the transaction of an item that was refused, or has texts."""
        books, number, refused = self.books, int(self._numbers[item]), self.refused.get(item)
        asked = expanded = transfer_command(self.block, item, books.shard_id)
        if not asked.entries:
            made = expand(Books(books.tables, books.meta, books.shard_id), asked)
            assert not isinstance(made, Failure), "failures are not recorded"
            expanded = made
        status = TransactionStatus(int(self.statuses[item]))
        record = new_record(books, expanded, status, refused)
        record.amount = asked.amount
        books.save_transaction(number, record)
        add_references(books, number, record)
        if refused is None:
            return None
        note_refused_transaction(books, number, record)
        return refusal_view(record, books.meta.books[record.book])


def _book_entries(
    books: Books,
    accounts: Accounts,
    sides: Sides,
    moved: Moved,
    *,
    numbers: I64Array,
    times_us: I64Array,
) -> bytes:
    """Store the rows of accounts, and marks; return the packed entries.

    ``numbers`` and ``times_us`` are those of the sides' transactions.
    """
    groups, count = sides.by_account, len(numbers)
    starts, ends = groups.bounds[:-1], groups.bounds[1:]
    if len(sides.touched) < len(accounts.slots):
        accounts = accounts.only(sides.touched)
    rows, positions = accounts.numbers, groups.order + books.meta.next_position
    # From the rows of the accounts: what each had before, and what was added since.
    before = rows.take(groups.group_of, 0)
    entries = np.empty((count, _ENTRY_NUMBERS), np.int64)
    entries[:, _ACCOUNT] = before[:, ROW_ACCOUNT]
    entries[:, _TRANSACTION] = numbers
    entries[:, _AMOUNT] = sides.amount
    entries[:, _TIME] = times_us
    entries[:, _COUNTERS] = before[:, ROW_COUNTERS]
    entries[:, _POSTED] += moved.so_far
    entries[:, _LAST] = _ends(sides, moved)
    if groups.differ:
        entries[:, _SEQUENCE] = before[:, ROW_SEQUENCE] + 1
        entries[:, _PREVIOUS] = before[:, ROW_POSITION]
    else:
        sequences, previous = np.arange(1, count + 1), np.empty(count, np.int64)
        sequences -= starts.take(groups.group)
        entries[:, _SEQUENCE] = before[:, ROW_SEQUENCE] + sequences.take(groups.rank)
        previous[1:] = positions[:-1]
        previous[starts] = rows[:, ROW_POSITION]
        entries[:, _PREVIOUS] = previous.take(groups.rank)
    rows[:, ROW_POSTED] += moved.sums
    rows[:, ROW_SEQUENCE] += ends - starts
    rows[:, ROW_POSITION] = positions.take(ends - 1)
    _check(accounts, moved)
    books.tables.save_balance_rows(accounts.slots, accounts.rows)
    _add_marks(books, accounts, groups, entries)
    return _with_checksums(entries)


def _ends(sides: Sides, moved: Moved) -> I64Array:
    """Return the last number of each entry, without its checksum."""
    posted = _POSTED_ENDS.take(sides.debits)
    if np.count_nonzero(moved.effects) == len(posted):
        return posted
    return np.where(moved.effects, posted, _REFUSED_ENDS.take(sides.debits))


def _check(accounts: Accounts, moved: Moved) -> None:
    """Assert that the block balances, and what the funds check promised."""
    debited, credited = moved.total
    if debited != credited:
        raise InvariantError("a block of transfers leaves the books unbalanced")
    if not accounts.have_floors:
        return
    below = accounts.available() < 0
    if np.count_nonzero(below):
        below &= accounts.rows["flags"] & (FLOORED_BIT | LIMITED_BIT) == FLOORED_BIT
        if (below & (outflow(moved, accounts) > 0)).any():
            raise InvariantError("a block of transfers overdraws an account")


def _add_marks(
    books: Books, accounts: Accounts, groups: Groups, entries: NDArray[np.int64]
) -> None:
    unmarked = entries[:, _SEQUENCE] & _MARK_MASK
    if np.count_nonzero(unmarked) == len(unmarked):
        return
    for side in (unmarked == 0).nonzero()[0].tolist():
        books.tables.add_entry_mark(
            int(accounts.slots[groups.group_of[side]]),
            int(entries[side, _SEQUENCE]),
            books.meta.next_position + side,
            int(entries[side, _TIME]),
        )


def _with_checksums(entries: NDArray[np.int64]) -> bytes:
    """Return packed entry rows with their CRC-32, which is the end of the last number."""
    set_checksums(entries.view(_ENTRY)[:, 0])
    return entries.tobytes()

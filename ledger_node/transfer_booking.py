"""Books the items of a block that become transactions, taken or refused: every row they make.

An entry says what its account's counters are after it, so each account's entries are taken one
after the other (`Sides.by_account`), and sums so far (`Moved`) give all of them at once.
"""

import itertools
import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ledger_core.accounts import Direction, EntryKind, TransactionStatus
from ledger_core.commands import NO_HASH, CreateTransfers, Refused
from ledger_core.results import Failure, RefusalView
from ledger_core.transfers import (
    I64Array,
    TransferForm,
    amounts,
    big_endian,
    block_parts,
    first_accounts,
    form_column,
    split_rows,
    transfer_command,
)
from ledger_node.account_events import note_refused_transaction
from ledger_node.books import Books, InvariantError
from ledger_node.records import (
    BALANCE_ROW_BYTES,
    CRC,
    ENTRY_ROW_BYTES,
    FLOORED_BIT,
    LIMITED_BIT,
)
from ledger_node.store import ENTRIES_PER_MARK
from ledger_node.transaction_rules import add_references, expand, new_record
from ledger_node.transfer_blocks import (
    BALANCES,
    Accounts,
    BoolArray,
    IndexArray,
    Moved,
    Sides,
    available,
)
from ledger_node.transfer_records import PlainTransfers, ends_of, plain_rows
from ledger_node.views import refusal_view

SETTLED: Final = int(TransactionStatus.SETTLED)

# An entry row as numbers of 8 bytes each, as `EntryRow` has them: its columns. The last one has
# direction, kind and checksum.
_ENTRY_NUMBERS = ENTRY_ROW_BYTES // 8
_ACCOUNT, _TRANSACTION, _AMOUNT, _TIME, _SEQUENCE, _PREVIOUS = range(6)
_DEBITS, _CREDITS, _DEBITS_PENDING, _CREDITS_PENDING, _LAST = range(6, _ENTRY_NUMBERS)


@dataclass(slots=True)
class Booking:
    """The items of a block that become transactions, on their way into the tables.

    ``statuses`` has that of each item, 0 where it makes no transaction; ``moved`` is by those that
    are settled.
    """

    books: Books
    block: CreateTransfers
    accounts: Accounts
    sides: Sides
    moved: Moved
    statuses: NDArray[np.uint8]

    def book(
        self, keys: list[bytes], refused: dict[int, Refused]
    ) -> tuple[int, dict[int, RefusalView]]:
        """Write all rows; return the first transaction number, and why items were refused."""
        items = self.statuses.nonzero()[0].tolist()
        if not items:
            return 0, {}
        first_number = self.books.take_transaction_numbers(len(items))
        self._book_entries(first_number)
        numbers = dict(zip(items, itertools.count(first_number), strict=False))
        self._add_requests(numbers, keys)
        special = {*refused, *self.block.texts}.intersection(items)
        self._add_plain([item for item in items if item not in special], numbers)
        refusals = {}
        for item in sorted(special):
            if view := self._add_special(item, numbers[item], refused.get(item)):
                refusals[item] = view
        return first_number, refusals

    def _book_entries(self, first_number: int) -> None:
        """Append two entries for each item, but none of accounts that do not exist."""
        sides, moved = self.sides, self.moved
        recorded = self.statuses != 0
        kept = self.accounts.known[sides.account] & recorded[sides.item]
        if not kept.all():
            sides = sides.only(kept)
            moved = Moved(sides, moved.effects[kept])
        if len(sides.item):
            numbers = recorded.cumsum() + (first_number - 1)
            _book_entries(self.books, self.accounts, sides, moved, numbers)

    def _add_requests(self, numbers: dict[int, int], keys: list[bytes]) -> None:
        """Remember the requests, without a hash of their bodies: the transactions tell them."""
        # As `RequestRow.pack` does it, in state 0.
        self.books.tables.add_request_rows(
            [keys[item] for item in numbers],
            [NO_HASH + number.to_bytes(8, "little") + bytes(8) for number in numbers.values()],
        )

    def _add_plain(self, items: list[int], numbers: dict[int, int]) -> None:
        """Write the transactions of items that were settled and have no texts."""
        books, sides = self.books, self.sides
        ends = ends_of(block_parts(self.block), books.meta.time_us)
        chosen = np.array(items, np.int64)
        of_book = self.accounts.rows["book"][sides.account[2 * chosen]]
        for number in sorted(set(of_book.tolist())):
            of_this = chosen[of_book == number]
            heads = plain_rows(
                self._plain_transfers(of_this),
                number,
                books.meta.books[number],
                books.meta.time_us,
            )
            places = of_this.tolist()
            books.tables.add_transaction_rows(
                [numbers[item].to_bytes(8) for item in places],
                [head + ends[item] for head, item in zip(heads, places, strict=True)],
            )

    def _plain_transfers(self, items: IndexArray) -> PlainTransfers:
        block, sides = self.block, self.sides
        forms, values = form_column(block)[items], amounts(block)[items]
        signed = np.where(forms == TransferForm.IN, values, 0)
        signed = np.where(forms == TransferForm.OUT, -values, signed)
        return PlainTransfers(
            first_accounts(block)[items],
            self.accounts.rows["account_id"][sides.account[2 * items + 1]],
            signed,
            values,
            sides.debits[2 * items],
            np.frombuffer(block.request_ids, "V16")[items].tobytes(),
        )

    def _add_special(self, item: int, number: int, refused: Refused | None) -> RefusalView | None:
        """Write the transaction of an item that was refused, or has texts."""
        books = self.books
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
    books: Books, accounts: Accounts, sides: Sides, moved: Moved, numbers: I64Array
) -> None:
    first, groups = books.meta.next_position, sides.by_account
    count, order, group, starts = len(sides.item), groups.order, groups.group, groups.starts
    rows = accounts.rows[sides.touched]
    entries = np.empty((count, _ENTRY_NUMBERS), np.int64)
    entries[:, _TRANSACTION] = numbers[sides.item]
    entries[:, _AMOUNT] = sides.amount
    entries[:, _TIME] = books.meta.time_us
    entries[:, _LAST] = np.where(sides.debits, Direction.DEBIT, Direction.CREDIT)
    entries[:, _LAST] |= np.where(moved.effects, EntryKind.POSTED << 8, EntryKind.REFUSED << 8)
    # The others in the order of accounts: what each had before, and what came before.
    previous = np.empty(count, np.int64)
    previous[1:] = order[:-1] + first
    previous[starts] = rows["last_position"]
    for column, values in (
        (_ACCOUNT, rows["account_id"].view(np.int64)[group]),
        (_SEQUENCE, (rows["sequence"] + 1 - starts)[group] + np.arange(count)),
        (_PREVIOUS, previous),
        (_DEBITS, (rows["debits_posted"] - moved.debits[starts])[group] + moved.debits[1:]),
        (_CREDITS, (rows["credits_posted"] - moved.credits[starts])[group] + moved.credits[1:]),
        (_DEBITS_PENDING, rows["debits_pending"][group]),
        (_CREDITS_PENDING, rows["credits_pending"][group]),
    ):
        entries[:, column][order] = values
    rows["debits_posted"] += moved.debited
    rows["credits_posted"] += moved.credited
    rows["sequence"] += groups.ends - starts
    rows["last_position"] = order[groups.ends - 1] + first
    _check(rows, accounts.credit_normal[sides.touched], moved)
    slots = accounts.slots[sides.touched]
    _save_balances(books, slots, rows)
    _add_totals(books, rows["group"], moved)
    _add_marks(books, accounts.slots[sides.account], entries[:, _SEQUENCE])
    books.append_rows(_with_checksums(entries), count)


def _check(rows: NDArray[np.void], credit_normal: BoolArray, moved: Moved) -> None:
    """Assert that the block balances, and what the funds check promised."""
    if int(moved.debited.sum()) != int(moved.credited.sum()):
        raise InvariantError("a block of transfers leaves the books unbalanced")
    has_paid = np.where(credit_normal, moved.debited, moved.credited) > 0
    has_paid &= rows["flags"] & (FLOORED_BIT | LIMITED_BIT) == FLOORED_BIT
    if (has_paid & (available(rows, credit_normal) < 0)).any():
        raise InvariantError("a block of transfers overdraws an account")


def _save_balances(books: Books, slots: I64Array, rows: NDArray[np.void]) -> None:
    raw, size = rows.tobytes(), BALANCES.itemsize
    books.tables.save_balance_rows(
        split_rows(big_endian(slots.astype(np.uint32))),
        # Without the checksum that they were read with.
        [raw[at : at + BALANCE_ROW_BYTES] for at in range(0, len(raw), size)],
    )


def _add_totals(books: Books, account_groups: NDArray[np.uint32], moved: Moved) -> None:
    numbers, place = np.unique(account_groups, return_inverse=True)
    debited, credited = np.zeros((2, len(numbers)), np.int64)
    np.add.at(debited, place, moved.debited)
    np.add.at(credited, place, moved.credited)
    for number, debit, credit in zip(
        numbers.tolist(), debited.tolist(), credited.tolist(), strict=True
    ):
        if debit or credit:
            totals = books.totals(number)
            totals.debits_posted += debit
            totals.credits_posted += credit


def _add_marks(books: Books, slots: I64Array, sequences: I64Array) -> None:
    meta = books.meta
    for side in (sequences % ENTRIES_PER_MARK == 0).nonzero()[0].tolist():
        books.tables.add_entry_mark(
            int(slots[side]), int(sequences[side]), meta.next_position + side, meta.time_us
        )


def _with_checksums(entries: NDArray[np.int64]) -> bytes:
    """Return packed entry rows with their CRC-32, which is the end of the last number."""
    raw, pack, crc32 = entries.tobytes(), CRC.pack, zlib.crc32
    rows = [raw[at : at + ENTRY_ROW_BYTES - 4] for at in range(0, len(raw), ENTRY_ROW_BYTES)]
    return b"".join([row + pack(crc32(row)) for row in rows])

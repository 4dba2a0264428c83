"""What a block of transfers does to the books: judged by `transfer_blocks`, booked here at once."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ledger_core.accounts import Direction, EntryKind, TransactionStatus
from ledger_core.commands import CreateTransaction, CreateTransfers, Entry, Refused, TransferPart
from ledger_core.ledgers import MAIN_NAME, Currency
from ledger_core.results import (
    BookView,
    Failure,
    RefusalView,
    Result,
    TransactionView,
    TransfersView,
)
from ledger_core.transfers import (
    I64Array,
    TransferForm,
    amounts,
    big_endian,
    block_parts,
    byte_rows,
    request_id_texts,
    request_keys,
    split_rows,
    transfer_command,
)
from ledger_node.account_events import note_refused_transaction
from ledger_node.books import Books, InvariantError
from ledger_node.records import (
    ENTRY_ROW_BYTES,
    FLOORED_BIT,
    LIMITED_BIT,
    REQUEST_ROW_BYTES,
    Book,
    EntryRecord,
    StateRecord,
    TransactionRecord,
)
from ledger_node.refusal_rules import refusal, refused_status
from ledger_node.store import ENTRIES_PER_MARK
from ledger_node.store_columns import Bytes
from ledger_node.transaction_rules import add_references, expand, new_record
from ledger_node.transfer_blocks import (
    ENTRIES,
    Accounts,
    Judge,
    Sides,
    read_accounts,
    sides_of,
    static_refusals,
)
from ledger_node.views import refusal_view

Execute = Callable[[Books, CreateTransaction], Result]
"""Executes a transfer as a single command."""

_SETTLED = int(TransactionStatus.SETTLED)


def create_transfers(
    books: Books, block: CreateTransfers, execute: Execute
) -> tuple[TransfersView, object] | None:
    """Do the transfers of a block, in their order; return what became of each, and the outcome.

    Nothing is done, and None returned, where its accounts are of several ledgers: an item of the
    journal is of one ledger. Then `one_by_one` does it, and each transfer is an item.
    """
    books.write_rows()
    key_rows = request_keys(block)
    keys = split_rows(key_rows)
    accounts = read_accounts(books, block)
    if _mixes_ledgers(books, block, accounts):
        return None
    todo = np.ones(len(keys), bool)
    if known := books.tables.known_requests(keys):
        todo &= np.array([key not in known for key in keys])
    if len(set(keys)) < len(keys):
        return one_by_one(books, block, accounts, execute)
    two = np.frombuffer(block.forms, "u1") < TransferForm.IN
    # Even a refused transaction has its book.
    book = books.book(block.ledger, block.currency) if (two & todo).any() else 0
    sides = sides_of(block, accounts)
    static = todo & static_refusals(block, accounts, book)
    judge = Judge(books, accounts, sides, amounts(block), todo & ~static)
    if judge.could_overflow:
        return one_by_one(books, block, accounts, execute)
    refused, failed = _refusals(books, block, judge, static)
    recorded = todo.copy()
    recorded[failed] = False
    statuses = np.where(recorded, np.uint8(_SETTLED), np.uint8(0))
    for index, why in refused.items():
        statuses[index] = refused_status(why)
    taken = _Taken(books, block, accounts, sides, statuses)
    first_number = taken.book(key_rows, refused)
    others: dict[int, TransactionView | Failure] = {}
    for index in np.flatnonzero(~recorded).tolist():
        result = execute(books, transfer_command(block, index, books.shard_id))
        if not isinstance(result, TransactionView | Failure):
            raise InvariantError(f"a transfer led to {result}")
        others[index] = result
    view = TransfersView(
        books.meta.time_us,
        first_number,
        statuses.tobytes(),
        taken.refusals,
        others,
        *_one_account_books(books, block, accounts),
    )
    return view, (first_number, view.statuses)


def _one_account_books(
    books: Books, block: CreateTransfers, accounts: Accounts
) -> tuple[list[BookView], bytes, bytes]:
    """Return what `TransfersView` has of the one-account form: books, their places, and sides."""
    one = (np.frombuffer(block.forms, "u1") >= TransferForm.IN) & accounts.known[accounts.first]
    if not one.any():
        return [], b"", b""
    numbers, some, places = np.unique(
        accounts.rows["book"][accounts.first[one]], return_index=True, return_inverse=True
    )
    external_ids = accounts.rows["account_id"][accounts.second[one]][some]
    views = []
    for number, external_id in zip(numbers.tolist(), external_ids.tolist(), strict=True):
        book = books.meta.books[number]
        views.append(BookView(book.ledger, book.currency, book.currency_exponent, external_id))
    of_items = np.zeros(len(one), "<u2")
    of_items[one] = places
    sides = np.zeros(len(one), np.uint8)
    debits = sides_of(block, accounts).first_debits[one]
    sides[one] = np.where(debits, np.uint8(Direction.DEBIT), np.uint8(Direction.CREDIT))
    return views, of_items.tobytes(), sides.tobytes()


def _mixes_ledgers(books: Books, block: CreateTransfers, accounts: Accounts) -> bool:
    """Whether the items are of several ledgers: in the one-account form, the account tells."""
    one = np.frombuffer(block.forms, "u1") >= TransferForm.IN
    home = accounts.first[one]
    found = np.unique(accounts.rows["book"][home][accounts.known[home]])
    ledgers = {books.meta.books[book].ledger for book in found.tolist()}
    return len(ledgers if one.all() else ledgers | {block.ledger}) > 1


def one_by_one(
    books: Books, block: CreateTransfers, accounts: Accounts, execute: Execute
) -> tuple[TransfersView, object]:
    """Do the transfers of a block as single commands: what cannot be judged together."""
    first_number, next_number = 0, books.meta.next_transaction
    statuses = bytearray(len(block.forms))
    refusals: dict[int, RefusalView] = {}
    others: dict[int, TransactionView | Failure] = {}
    for index in range(len(block.forms)):
        result = execute(books, transfer_command(block, index, books.shard_id))
        if not isinstance(result, TransactionView | Failure):
            raise InvariantError(f"a transfer led to {result}")
        if isinstance(result, Failure) or result.number != next_number:
            others[index] = result
            continue
        first_number = first_number or next_number
        next_number += 1
        statuses[index] = result.status
        if result.refusal is not None:
            refusals[index] = result.refusal
    view = TransfersView(
        books.meta.time_us,
        first_number,
        bytes(statuses),
        refusals,
        others,
        *_one_account_books(books, block, accounts),
    )
    return view, (first_number, view.statuses)


def _refusals(
    books: Books, block: CreateTransfers, judge: Judge, static: NDArray[np.bool_]
) -> tuple[dict[int, Refused], list[int]]:
    """Return why items are refused, and which fail without being recorded."""
    refused: dict[int, Refused] = {}
    failed = []
    # Only to read: what it has seen must not be written back.
    reader = Books(books.tables, books.meta, books.shard_id)
    for index in np.flatnonzero(static).tolist():
        command = transfer_command(block, index, books.shard_id)
        why: Refused | None
        if command.entries:
            why = refusal(reader, command)
        else:
            expanded = expand(reader, command)
            if isinstance(expanded, Failure):
                failed.append(index)
                continue
            why = refusal(reader, expanded, own_accounts=True)
        if why is None:
            raise InvariantError(f"transfer {index} is refused for no reason")
        refused[index] = why
    for index in np.flatnonzero(judge.careful).tolist():
        if (why := judge.judge(index)) is not None:
            refused[index] = why
    return refused, failed


@dataclass(slots=True)
class _Taken:
    """The items that become transactions, taken or refused, on their way into the tables."""

    books: Books
    block: CreateTransfers
    accounts: Accounts
    sides: Sides
    statuses: NDArray[np.uint8]
    refusals: dict[int, RefusalView] = field(default_factory=dict)

    def book(self, keys: Bytes, refused: dict[int, Refused]) -> int:
        """Write transactions, requests, entries, balances and sums; return the first number."""
        items = np.flatnonzero(self.statuses)
        if not len(items):
            return 0
        first_number = self.books.take_transaction_numbers(len(items))
        numbers = first_number + np.arange(len(items))
        self._book_entries(items, numbers)
        self._add_requests(items, numbers, keys)
        self._add_transactions(items, numbers, refused)
        return first_number

    # Entries and balances

    def _book_entries(self, items: NDArray[np.intp], numbers: I64Array) -> None:
        """Append two entries for each item, but none of accounts that do not exist."""
        accounts, sides, meta = self.accounts, self.sides, self.books.meta
        where = np.stack([accounts.first[items], accounts.second[items]], axis=1).ravel()
        exists = accounts.known[where]
        debits = np.stack([sides.first_debits[items], ~sides.first_debits[items]], axis=1).ravel()
        where, debits = where[exists], debits[exists]
        count = len(where)
        values = np.repeat(amounts(self.block)[items], 2)[exists]
        settled = np.repeat(self.statuses[items] == _SETTLED, 2)[exists]
        effects = np.where(settled, values, 0)
        positions = meta.next_position + np.arange(count)

        # Each account's entries next to each other, in their order.
        order = np.argsort(where, kind="stable")
        of = where[order]
        starts = np.flatnonzero(np.r_[True, of[1:] != of[:-1]]) if count else np.zeros(0, np.intp)
        segment = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, count]))
        base = accounts.rows[of]
        rows = np.zeros(count, ENTRIES)
        rows["account_id"] = base["account_id"]
        rows["transaction"] = np.repeat(numbers, 2)[exists][order]
        rows["amount"] = values[order]
        rows["time_us"] = meta.time_us
        rows["sequence"] = base["sequence"] + 1 + (np.arange(count) - starts[segment])
        previous = np.empty(count, np.uint64)
        previous[1:] = positions[order][:-1]
        previous[starts] = base["last_position"][starts]
        rows["previous"] = previous
        for column, side in (("debits_posted", debits), ("credits_posted", ~debits)):
            added = np.cumsum(np.where(side, effects, 0)[order])
            before = np.r_[0, added[starts[1:] - 1]] if count else added
            rows[column] = base[column] + added - before[segment]
        rows["debits_pending"] = base["debits_pending"]
        rows["credits_pending"] = base["credits_pending"]
        rows["direction"] = np.where(debits, Direction.DEBIT, Direction.CREDIT)[order]
        rows["kind"] = np.where(settled, EntryKind.POSTED, EntryKind.REFUSED)[order]
        if not count:
            return
        ends = np.r_[starts[1:], count] - 1
        self._save_balances(of[ends], rows[ends], positions[order][ends])
        self._add_marks(of, rows, positions[order])
        in_order = np.empty(count, ENTRIES)
        in_order[order] = rows
        self._add_totals(where, debits, effects)
        self._check(where, debits, effects)
        self.books.append_rows(_with_checksums(in_order), count)

    def _save_balances(
        self, touched: NDArray[np.intp], last: NDArray[np.void], positions: I64Array
    ) -> None:
        rows = self.accounts.rows
        for column in ("debits_posted", "credits_posted", "sequence"):
            rows[column][touched] = last[column]
        rows["last_position"][touched] = positions
        slots = self.accounts.slots[touched]
        order = np.argsort(slots)
        self.books.tables.save_balance_rows(
            big_endian(slots[order].astype(np.uint32)), byte_rows(rows[touched[order]])
        )

    def _add_marks(self, of: NDArray[np.intp], rows: NDArray[np.void], positions: I64Array) -> None:
        tables, slots = self.books.tables, self.accounts.slots
        for i in np.flatnonzero(rows["sequence"] % ENTRIES_PER_MARK == 0).tolist():
            tables.add_entry_mark(
                int(slots[of[i]]),
                int(rows["sequence"][i]),
                int(positions[i]),
                self.books.meta.time_us,
            )

    def _add_totals(
        self, where: NDArray[np.intp], debits: NDArray[np.bool_], effects: I64Array
    ) -> None:
        groups, place = np.unique(self.accounts.rows["group"][where], return_inverse=True)
        moved = np.zeros((2, len(groups)), np.int64)
        np.add.at(moved[0], place, np.where(debits, effects, 0))
        np.add.at(moved[1], place, np.where(debits, 0, effects))
        for group, debit, credit in zip(groups.tolist(), *moved.tolist(), strict=True):
            if debit or credit:
                totals = self.books.totals(group)
                totals.debits_posted += debit
                totals.credits_posted += credit

    def _check(self, where: NDArray[np.intp], debits: NDArray[np.bool_], effects: I64Array) -> None:
        """Assert that the block balances, and what the funds check promised."""
        if int(np.where(debits, effects, -effects).sum()):
            raise InvariantError("a block of transfers leaves the books unbalanced")
        rows, flags = self.accounts.rows, self.accounts.rows["flags"]
        out = np.zeros(len(rows), bool)
        out[where[(debits == self.accounts.is_credit_normal[where]) & (effects > 0)]] = True
        plain = (flags & FLOORED_BIT != 0) & (flags & LIMITED_BIT == 0)
        if (out & plain & (self.accounts.settled() < self.accounts.reserved())).any():
            raise InvariantError("a block of transfers overdraws an account")

    # Requests and transactions

    def _add_requests(self, items: NDArray[np.intp], numbers: I64Array, keys: Bytes) -> None:
        """Remember the requests, without a hash of their bodies: the transactions tell them."""
        rows = np.zeros((len(items), REQUEST_ROW_BYTES), np.uint8)
        # As `RequestRow.pack` does it, with `NO_HASH` and state 0.
        rows[:, 16:24] = numbers.astype("<u8").view(np.uint8).reshape(-1, 8)
        self.books.tables.add_request_rows(keys[items], rows)

    def _add_transactions(
        self, items: NDArray[np.intp], numbers: I64Array, refused: dict[int, Refused]
    ) -> None:
        books, block = self.books, self.block
        special = refused.keys() | block.texts.keys()
        plain = np.array([item not in special for item in items.tolist()], bool)
        of_book = self.accounts.rows["book"][self.accounts.first[items]]
        start = 0
        for part in block_parts(block):
            of_part = plain & (items >= start) & (items < start + part.count)
            start += part.count
            for book in np.unique(of_book[of_part]).tolist():
                chosen = of_part & (of_book == book)
                rows = self._plain_rows(items[chosen], book, part)
                books.tables.add_transaction_rows(big_endian(numbers[chosen]), rows)
        for item, number in zip(items[~plain].tolist(), numbers[~plain].tolist(), strict=True):
            record = self._record(item, refused.get(item))
            books.save_transaction(number, record)
            add_references(books, number, record)
            if record.refusal is not None:
                note_refused_transaction(books, number, record)
                view = refusal_view(record, books.meta.books[record.book])
                assert view is not None
                self.refusals[item] = view

    def _record(self, item: int, refused: Refused | None) -> TransactionRecord:
        """Return the record of an item that was refused, or has texts."""
        asked = expanded = transfer_command(self.block, item, self.books.shard_id)
        if not asked.entries:
            reader = Books(self.books.tables, self.books.meta, self.books.shard_id)
            made = expand(reader, asked)
            assert not isinstance(made, Failure), "failures are not recorded"
            expanded = made
        status = TransactionStatus(int(self.statuses[item]))
        record = new_record(self.books, expanded, status, refused)
        record.amount = asked.amount
        return record

    def _plain_rows(self, items: NDArray[np.intp], book: int, part: TransferPart) -> Bytes:
        """Encode records that differ in numbers only: a template, and the columns laid over it."""
        accounts, block, sides = self.accounts, self.block, self.sides
        template, at = _template(self.books, book, part)
        rows = np.tile(np.frombuffer(template, np.uint8), (len(items), 1))
        values = amounts(block)[items]
        forms = np.frombuffer(block.forms, "u1")[items]
        signed = np.where(forms == TransferForm.IN, values, 0)
        signed = np.where(forms == TransferForm.OUT, -values, signed)
        ids = accounts.rows["account_id"]
        home, other = ids[accounts.first[items]], ids[accounts.second[items]]
        for place, column in (
            (at.home, home),
            (at.first, home),
            (at.second, other),
            (at.amount, signed),
            (at.first_amount, values),
            (at.second_amount, values),
        ):
            rows[:, place : place + 8] = big_endian(column)
        debits = sides.first_debits[items]
        rows[:, at.first + 8] = np.where(debits, Direction.DEBIT, Direction.CREDIT)
        rows[:, at.second + 8] = np.where(debits, Direction.CREDIT, Direction.DEBIT)
        rows[:, at.amount - 1] = _INT64
        raw = np.frombuffer(block.request_ids, np.uint8).reshape(-1, 16)[items]
        rows[:, at.request_id : at.request_id + 36] = request_id_texts(raw.tobytes())
        return rows


_INT64 = 0xD3
"""What msgpack puts before a signed number of 8 bytes."""


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the columns of plain records lie in their encoding."""

    home: int
    first: int
    second: int
    amount: int
    first_amount: int
    second_amount: int
    request_id: int


def _template(books: Books, book_number: int, part: TransferPart) -> tuple[bytes, _Places]:
    """Encode a record with numbers that are as long as any, and find where they are."""
    book, meta = books.meta.books[book_number], books.meta
    marks = [(0xF0 + i) << 56 | 0x0123456789ABCD for i in range(4)]
    sums = [(0x70 + i) << 56 | 0x0123456789ABCD for i in range(2)]
    text = "request-id-request-id-request-id-36-"
    entries = [
        EntryRecord(marks[i], Direction.DEBIT, sums[i - 1], book.currency, book.currency_exponent)
        for i in (1, 2)
    ]
    state = StateRecord(
        TransactionStatus.SETTLED,
        meta.time_us,
        text,
        part.actor,
        part.source.correlation_id,
        part.source.peer,
    )
    record = TransactionRecord(
        marks[0], marks[3], "", True, book_number, entries, [state], meta.time_us
    )
    row = record.encoded()
    places = [row.index(mark.to_bytes(8)) for mark in (*marks, *sums)]
    return row, _Places(
        home=places[0],
        first=places[1],
        second=places[2],
        amount=places[3],
        first_amount=places[4],
        second_amount=places[5],
        request_id=row.index(text.encode()),
    )


def _with_checksums(rows: NDArray[np.void]) -> bytes:
    """Return packed entry rows with their CRC-32."""
    raw = rows.tobytes()
    size, length = ENTRY_ROW_BYTES, ENTRY_ROW_BYTES - 4
    crc32 = zlib.crc32
    rows["crc"] = [crc32(raw[start : start + length]) for start in range(0, len(raw), size)]
    return rows.tobytes()


def command_of(record: TransactionRecord, book: Book, shard_id: int) -> CreateTransaction:
    """Return what was asked, from the transaction that it made as a transfer of a block.

    Across shards, its record on any of them will do.
    """
    first = record.states[0]
    entries = [
        Entry(
            entry.account_id,
            entry.direction,
            entry.amount,
            Currency(entry.currency or book.currency, entry.currency_exponent),
            shard_id if entry.shard_id is None else entry.shard_id,
        )
        for entry in record.entries
    ]
    return CreateTransaction(
        account_id=record.account_id,
        amount=record.amount,
        description=record.description,
        settled=True,
        request_id=first.request_id,
        entries=[] if record.amount else entries,
        ledger=MAIN_NAME if record.amount else book.ledger,
        external_reference=record.external_reference,
        metadata=record.metadata,
        actor=first.actor,
    )

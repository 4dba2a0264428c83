"""What a block of transfers does to the books: judged by `transfer_blocks`, booked here at once."""

from collections.abc import Callable

import numpy as np

from ledger_core.accounts import Direction
from ledger_core.commands import CreateTransaction, CreateTransfers, Entry, Refused
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
    TRANSFERS_PER_BLOCK_MAX,
    I64Array,
    TransferForm,
    form_column,
    request_keys,
    split_rows,
    transfer_command,
)
from ledger_node.books import Books, InvariantError
from ledger_node.records import (
    Book,
    TransactionRecord,
)
from ledger_node.refusal_rules import refusal, refused_status
from ledger_node.transaction_rules import expand
from ledger_node.transfer_blocks import (
    Accounts,
    BoolArray,
    Judge,
    Moved,
    Sides,
    has_one_account_form,
    read_accounts,
    static_refusals,
)
from ledger_node.transfer_booking import SETTLED, Booking, Segment

ALL = np.ones(TRANSFERS_PER_BLOCK_MAX, bool)
"""Cut to the length of a block: all of its items."""
_ALL_SETTLED = np.full(TRANSFERS_PER_BLOCK_MAX, SETTLED, np.uint8)
ALL.flags.writeable = _ALL_SETTLED.flags.writeable = False

Execute = Callable[[Books, CreateTransaction], Result]
"""Executes a transfer as a single command."""


def create_transfers(
    books: Books, block: CreateTransfers, execute: Execute
) -> tuple[TransfersView, object] | None:
    """Do the transfers of a block, in their order; return what became of each, and the outcome.

    Nothing is done, and None returned, where its accounts are of several ledgers: an item of the
    journal is of one ledger. Then `one_by_one` does it, and each transfer is an item.
    """
    books.write_rows()
    accounts, sides = read_accounts(books, block)
    if mixes_ledgers(books, block, accounts, sides):
        return None
    keys = split_rows(request_keys(block))
    if len(set(keys)) < len(keys):
        return one_by_one(books, block, execute)
    known = books.tables.claim_requests(keys, books.meta.next_transaction)
    todo = np.array([key not in known for key in keys]) if known else ALL[: len(keys)]
    # Even a refused transaction has its book.
    two = todo[form_column(block) < TransferForm.IN] if has_one_account_form(block) else todo
    book = books.book(block.ledger, block.currency) if np.count_nonzero(two) else 0
    segments = [Segment(0, len(keys), books.meta.time_us)]
    booking = judge_block(books, block, accounts, sides, todo=todo, book=book, segments=segments)
    if booking is None:
        if not known:
            books.tables.drop_requests(keys)
        return one_by_one(books, block, execute)
    booking.book(keys, claimed=not known)
    first_number, refusals = booking.append()
    statuses = booking.statuses.tobytes()
    others: dict[int, TransactionView | Failure] = {}
    for index in (booking.statuses == 0).nonzero()[0].tolist() if 0 in statuses else ():
        result = execute(books, transfer_command(block, index, books.shard_id))
        if not isinstance(result, TransactionView | Failure):
            raise InvariantError(f"a transfer led to {result}")
        others[index] = result
    view = TransfersView(
        books.meta.time_us,
        first_number,
        statuses,
        refusals,
        others,
        *one_account_books(books, block, accounts, sides.account, sides.debits),
    )
    return view, (first_number, statuses)


def judge_block(
    books: Books,
    block: CreateTransfers,
    accounts: Accounts,
    sides: Sides,
    *,
    todo: BoolArray,
    book: int,
    segments: list[Segment],
) -> Booking | None:
    """Find out what becomes of the items ``todo``; None: a counter of an account may have no room.

    ``book`` is that of the two-account form.
    """
    static = static_refusals(block, accounts, sides, book)
    judged = todo if static is None else todo & ~static
    are_all = np.count_nonzero(judged) == len(judged)
    moved = Moved(sides, sides.amount if are_all else sides.amount * judged[sides.item])
    judge = Judge(books, accounts, sides, moved)
    last = segments[-1].start
    if judge.could_overflow(int(sides.amount[: 2 * last : 2].sum()) if last else 0):
        return None
    if are_all and not judge.careful():
        statuses = _ALL_SETTLED[: len(judged)]
        return Booking(books, block, accounts, sides, moved, statuses, {}, segments)
    refused, failed = _refusals(books, block, judge, todo & ~judged, judged)
    statuses = todo * np.uint8(SETTLED)
    for index in failed:
        statuses[index] = 0
    for index, why in refused.items():
        statuses[index] = refused_status(why)
    if refused:
        moved = Moved(sides, sides.amount * (statuses == SETTLED)[sides.item])
    return Booking(books, block, accounts, sides, moved, statuses, refused, segments)


def one_account_books(
    books: Books,
    block: CreateTransfers,
    accounts: Accounts,
    account: I64Array,
    debits: BoolArray,
) -> tuple[list[BookView], bytes, bytes]:
    """Return what `TransfersView` has of the one-account form: books, their places, and sides.

    ``account`` and ``debits`` are as in `Sides`.
    """
    if not has_one_account_form(block):
        return [], b"", b""
    first, second = account[::2], account[1::2]
    one = (form_column(block) >= TransferForm.IN) & accounts.known[first]
    if not one.any():
        return [], b"", b""
    numbers, some, places = np.unique(
        accounts.rows["book"][first[one]], return_index=True, return_inverse=True
    )
    external_ids = accounts.rows["account_id"][second[one]][some]
    views = []
    for number, external_id in zip(numbers.tolist(), external_ids.tolist(), strict=True):
        book = books.meta.books[number]
        views.append(BookView(book.ledger, book.currency, book.currency_exponent, external_id))
    of_items = np.zeros(len(one), "<u2")
    of_items[one] = places
    directions = np.where(debits[::2], np.uint8(Direction.DEBIT), np.uint8(Direction.CREDIT))
    directions[~one] = 0
    return views, of_items.tobytes(), directions.tobytes()


def mixes_ledgers(books: Books, block: CreateTransfers, accounts: Accounts, sides: Sides) -> bool:
    """Whether the items are of several ledgers: in the one-account form, the account tells."""
    if not has_one_account_form(block):
        return False
    one = form_column(block) >= TransferForm.IN
    home = sides.account[::2][one]
    found = set(accounts.rows["book"][home][accounts.known[home]].tolist())
    ledgers = {books.meta.books[book].ledger for book in found}
    return len(ledgers if one.all() else ledgers | {block.ledger}) > 1


def one_by_one(
    books: Books, block: CreateTransfers, execute: Execute
) -> tuple[TransfersView, object]:
    """Do the transfers of a block as single commands: what cannot be judged together."""
    accounts, sides = read_accounts(books, block)
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
        *one_account_books(books, block, accounts, sides.account, sides.debits),
    )
    return view, (first_number, view.statuses)


def _refusals(
    books: Books, block: CreateTransfers, judge: Judge, static: BoolArray, judged: BoolArray
) -> tuple[dict[int, Refused], list[int]]:
    """Return why items are refused, and which fail without being recorded."""
    refused: dict[int, Refused] = {}
    failed = []
    for index in static.nonzero()[0].tolist():
        # Only to read: what it has seen must not be written back.
        reader = Books(books.tables, books.meta, books.shard_id)
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
    for index in judge.careful():
        if judged[index] and (why := judge.judge(index)) is not None:
            refused[index] = why
    return refused, failed


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

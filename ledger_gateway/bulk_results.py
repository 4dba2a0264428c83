"""What became of the items of a bulk call, as messages: columns for transfers, else one by one."""

import asyncio
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ledger.v1 import ledger_pb2
from ledger_core.accounts import Direction, TransactionStatus
from ledger_core.commands import TransferText
from ledger_core.errors import LedgerError
from ledger_core.ledgers import Currency
from ledger_core.results import (
    BookView,
    EntryView,
    Failure,
    TransactionView,
    TransfersView,
)
from ledger_core.transfers import TransferForm
from ledger_gateway import conversion
from ledger_gateway.errors import failure_error, to_call_error
from ledger_gateway.transfer_columns import IndexArray
from ledger_gateway.transfer_pieces import Transfers

Result = TransactionView | Failure | LedgerError

_NO_TEXT = TransferText()
_ITEMS_PER_TURN = 128


async def give_way(count: int) -> None:
    """Let others have their turn on the event loop, now and then: thousands of items take long."""
    if count % _ITEMS_PER_TURN == 0:
        await asyncio.sleep(0)


def result(found: Result) -> ledger_pb2.TransactionResult:
    """Return a transaction, or why there is none."""
    if isinstance(found, TransactionView):
        return ledger_pb2.TransactionResult(transaction=conversion.transaction(found))
    error = failure_error(found) if isinstance(found, Failure) else found
    return ledger_pb2.TransactionResult(error=to_call_error(error))


async def transfer_results(transfers: Transfers) -> ledger_pb2.TransferResults:
    """Return what became of transfers as columns; `give_way` between those that have no columns."""
    size = len(transfers.columns)
    numbers = np.zeros(size, np.uint64)
    statuses = np.zeros(size, np.uint8)
    times_us = np.zeros(size, np.int64)
    book_indexes = np.zeros(size, np.int64)
    directions = np.zeros(size, np.uint8)
    books: dict[BookView, int] = {}
    refusals: dict[int, ledger_pb2.Refusal] = {}
    others: dict[int, ledger_pb2.TransactionResult] = {}
    for items, outcome in transfers.outcomes.blocks:
        if isinstance(outcome, LedgerError):
            others |= dict.fromkeys(items.tolist(), result(outcome))
            continue
        of_block = np.frombuffer(outcome.statuses, np.uint8)
        taken = items[of_block != 0]
        statuses[items] = of_block
        numbers[taken] = outcome.first_number + np.arange(len(taken), dtype=np.uint64)
        times_us[taken] = outcome.time_us
        indexes_of_block, directions_of_block = _booked(transfers, items, outcome, books)
        book_indexes[taken] = indexes_of_block[of_block != 0]
        directions[taken] = directions_of_block[of_block != 0]
        for count, (place, refusal) in enumerate(outcome.refusals.items()):
            await give_way(count)
            refusals[int(items[place])] = conversion.refusal(refusal)
        for count, (place, other) in enumerate(outcome.others.items()):
            await give_way(count)
            others[int(items[place])] = result(other)
    for count, (item, single) in enumerate(transfers.outcomes.singles.items()):
        await give_way(count)
        others[item] = result(single)
    return ledger_pb2.TransferResults(
        numbers=numbers.tolist(),
        statuses=statuses.tobytes(),
        create_times_us=times_us.tolist(),
        refusals=refusals,
        others=others,
        books=[
            ledger_pb2.TransferBook(
                ledger=book.ledger,
                currency=book.currency,
                currency_exponent=book.currency_exponent,
                external_account_id=book.external_account_id,
            )
            for book in books
        ],
        book_indexes=book_indexes.tolist(),
        first_directions=directions.tobytes(),
    )


def _booked(
    transfers: Transfers, items: IndexArray, outcome: TransfersView, books: dict[BookView, int]
) -> tuple[IndexArray, NDArray[np.uint8]]:
    """Return where the transfers of a block were booked, and the direction of their first entries.

    Where is the place in ``books``, to which new ones are added. Transfers that were not taken have
    some value.
    """
    # With two accounts, the terms say it, and the form is the direction.
    forms = transfers.columns.forms[items]
    one = forms >= TransferForm.IN
    indexes = np.zeros(len(items), np.intp)
    if not one.all():
        currency = transfers.terms.currency
        own = BookView(transfers.terms.ledger, currency.code, currency.exponent, 0)
        indexes[:] = books.setdefault(own, len(books))
    if not outcome.books:
        return indexes, forms
    named = np.array([books.setdefault(book, len(books)) for book in outcome.books], np.intp)
    indexes[one] = named[np.frombuffer(outcome.book_places, "<u2")[one]]
    return indexes, np.where(one, np.frombuffer(outcome.sides, np.uint8), forms)


def transaction_results(
    transfers: Transfers,
) -> Iterator[tuple[int, ledger_pb2.TransactionResult]]:
    """Return what became of each transfer, with its place, as a single call would say it."""
    for items, outcome in transfers.outcomes.blocks:
        if isinstance(outcome, LedgerError):
            error = result(outcome)
            for item in items.tolist():
                yield item, error
            continue
        number = outcome.first_number
        for place, item in enumerate(items.tolist()):
            if not outcome.statuses[place]:
                yield item, result(outcome.others[place])
                continue
            yield item, result(_view(transfers, item, outcome, place, number))
            number += 1
    for item, single in transfers.outcomes.singles.items():
        yield item, result(single)


def _view(
    transfers: Transfers, item: int, outcome: TransfersView, place: int, number: int
) -> TransactionView:
    """Return the transaction that a transfer has made, from its ``place`` in a block."""
    columns, terms = transfers.columns, transfers.terms
    form = TransferForm(int(columns.forms[item]))
    home, amount = int(columns.first[item]), int(columns.amounts[item])
    ledger, currency, signed = terms.ledger, terms.currency, 0
    if form.is_one_account:
        book = _book(outcome, place)
        ledger, currency = book.ledger, Currency(book.currency, book.currency_exponent)
        side, other = Direction(outcome.sides[place]), book.external_account_id
        signed = amount if form is TransferForm.IN else -amount
    else:
        side = Direction.DEBIT if form is TransferForm.DEBIT else Direction.CREDIT
        other = int(columns.second[item])
    text = columns.texts.get(item, _NO_TEXT)
    return TransactionView(
        account_id=home,
        number=number,
        amount=signed,
        description=text.description,
        status=TransactionStatus(outcome.statuses[place]),
        ledger=ledger,
        currency=currency.code,
        currency_exponent=currency.exponent,
        entries=[
            EntryView(home, side, amount, currency.code, currency.exponent),
            EntryView(other, side.opposite, amount, currency.code, currency.exponent),
        ],
        refusal=outcome.refusals.get(place),
        request_id=columns.request_id(item),
        create_time_us=outcome.time_us,
        update_time_us=outcome.time_us,
        effective_time_us=outcome.time_us,
        external_reference=text.external_reference,
        metadata=text.metadata,
        actor=terms.actor,
    )


def _book(outcome: TransfersView, place: int) -> BookView:
    return outcome.books[int.from_bytes(outcome.book_places[2 * place : 2 * place + 2], "little")]

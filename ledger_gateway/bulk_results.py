"""What became of the items of a bulk call, as messages: columns for transfers, else one by one."""

import asyncio
from collections.abc import Iterator
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from ledger.v1 import ledger_pb2
from ledger_core.commands import TransferText
from ledger_core.errors import LedgerError
from ledger_core.results import BookView, Failure, TransactionView, TransfersView
from ledger_core.transfers import TransferForm
from ledger_gateway import conversion
from ledger_gateway.errors import failure_error, to_call_error
from ledger_gateway.transfer_columns import IndexArray
from ledger_gateway.transfer_pieces import Outcomes, Transfers
from ledger_gateway.transfer_views import Transfer, transaction_view

Result = TransactionView | Failure | LedgerError

_NO_TEXT = TransferText()
# As a plain number, which numpy compares far faster than a member of an enum.
_IN = int(TransferForm.IN)
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


async def transfer_results(
    transfers: Transfers,
) -> tuple[IndexArray, ledger_pb2.TransferResults]:
    """Return which transfers have an outcome, in their order, and these as columns.

    `give_way` between those that have no columns.
    """
    size, outcomes = len(transfers.columns), transfers.outcomes
    columns = _Columns(size)
    there, places = _ended(outcomes, size)
    refusals: dict[int, ledger_pb2.Refusal] = {}
    others: dict[int, ledger_pb2.TransactionResult] = {}
    taken: list[tuple[IndexArray, TransfersView]] = []
    for items, outcome in outcomes.blocks:
        if isinstance(outcome, LedgerError):
            others |= dict.fromkeys(places[items].tolist(), result(outcome))
            continue
        taken.append((items, outcome))
        for count, (place, refusal) in enumerate(outcome.refusals.items()):
            await give_way(count)
            refusals[int(places[items[place]])] = conversion.refusal(refusal)
        for count, (place, other) in enumerate(outcome.others.items()):
            await give_way(count)
            others[int(places[items[place]])] = result(other)
    if taken:
        columns.fill(transfers, taken)
    for count, (item, single) in enumerate(outcomes.singles.items()):
        await give_way(count)
        others[int(places[item])] = result(single)
    if len(there) < size:
        columns.keep(there)
    return there, ledger_pb2.TransferResults(
        numbers=columns.numbers.tolist(),
        statuses=columns.statuses.tobytes(),
        create_times_us=columns.times_us.tolist(),
        refusals=refusals,
        others=others,
        books=[
            ledger_pb2.TransferBook(
                ledger=book.ledger,
                currency=book.currency,
                currency_exponent=book.currency_exponent,
                external_account_id=book.external_account_id,
            )
            for book in columns.books
        ],
        book_indexes=columns.book_indexes.tolist(),
        first_directions=columns.directions.tobytes(),
    )


def _ended(outcomes: Outcomes, size: int) -> tuple[IndexArray, IndexArray]:
    """Return which of so many items have an outcome, and the place of each among them."""
    if outcomes.count() == size:
        return np.arange(size), np.arange(size)
    ended = np.zeros(size, np.bool_)
    ended[[*outcomes.singles]] = True
    for items, _ in outcomes.blocks:
        ended[items] = True
    return np.flatnonzero(ended), np.cumsum(ended) - 1


class _Columns:
    """The columns of results: all 0 for items that were not taken."""

    def __init__(self, size: int) -> None:
        self.numbers = np.zeros(size, np.uint64)
        self.statuses = np.zeros(size, np.uint8)
        self.times_us = np.zeros(size, np.int64)
        self.book_indexes = np.zeros(size, np.intp)
        self.directions = np.zeros(size, np.uint8)
        self.books: dict[BookView, int] = {}

    def fill(self, transfers: Transfers, blocks: list[tuple[IndexArray, TransfersView]]) -> None:
        """Enter what became of the items of all blocks at once: there may be many small ones."""
        views = [view for _, view in blocks]
        counts = [len(view.statuses) for view in views]
        items = np.concatenate([items for items, _ in blocks])
        statuses = np.frombuffer(b"".join([view.statuses for view in views]), np.uint8)
        taken = statuses != 0
        # Within a block, those that were taken are numbered one after the other.
        before = taken.cumsum() - taken
        offsets = np.array([view.first_number for view in views])
        offsets -= before.take([0, *accumulate(counts[:-1])])
        numbers = before + offsets.repeat(counts)
        times_us = np.array([view.time_us for view in views]).repeat(counts)
        indexes, directions = self._booked(transfers, blocks, items)
        self.statuses[items] = statuses
        for column, values in (
            (self.numbers, numbers),
            (self.times_us, times_us),
            (self.book_indexes, indexes),
            (self.directions, directions),
        ):
            column[items] = values * taken

    def keep(self, items: IndexArray) -> None:
        """Leave out all others."""
        self.numbers = self.numbers[items]
        self.statuses = self.statuses[items]
        self.times_us = self.times_us[items]
        self.book_indexes = self.book_indexes[items]
        self.directions = self.directions[items]

    def _booked(
        self,
        transfers: Transfers,
        blocks: list[tuple[IndexArray, TransfersView]],
        items: IndexArray,
    ) -> tuple[IndexArray, NDArray[np.uint8]]:
        """Return where transfers were booked, and the direction of their first entries.

        Where is the place in ``books``. Transfers that were not taken have some value.
        """
        # With two accounts, the terms say it, and the form is the direction.
        directions = transfers.columns.forms[items]
        one = directions >= _IN
        indexes = np.zeros(len(items), np.intp)
        if not one.all():
            currency = transfers.terms.currency
            own = BookView(transfers.terms.ledger, currency.code, currency.exponent, 0)
            indexes[:] = self.books.setdefault(own, len(self.books))
        start = 0
        for of_block, view in blocks:
            end = start + len(of_block)
            if view.books:
                places = start + np.flatnonzero(one[start:end])
                named = [self.books.setdefault(book, len(self.books)) for book in view.books]
                of_items = np.frombuffer(view.book_places, "<u2")[places - start]
                indexes[places] = np.array(named, np.intp)[of_items]
                directions[places] = np.frombuffer(view.sides, np.uint8)[places - start]
            start = end
        return indexes, directions


def transaction_results(
    transfers: Transfers,
) -> Iterator[tuple[int, ledger_pb2.TransactionResult]]:
    """Return what became of each transfer, with its place, as a single call would say it."""
    return ((item, result(found)) for item, found in results_of(transfers))


def results_of(transfers: Transfers) -> Iterator[tuple[int, Result]]:
    """Return what became of each transfer, with its place."""
    for items, outcome in transfers.outcomes.blocks:
        if isinstance(outcome, LedgerError):
            for item in items.tolist():
                yield item, outcome
            continue
        number = outcome.first_number
        for place, item in enumerate(items.tolist()):
            if not outcome.statuses[place]:
                yield item, outcome.others[place]
                continue
            yield item, _view(transfers, item, outcome, place, number)
            number += 1
    yield from transfers.outcomes.singles.items()


def _view(
    transfers: Transfers, item: int, outcome: TransfersView, place: int, number: int
) -> TransactionView:
    """Return the transaction that a transfer has made, from its ``place`` in a block."""
    columns, terms = transfers.columns, transfers.terms
    asked = Transfer(
        form=int(columns.forms[item]),
        home=int(columns.first[item]),
        other=int(columns.second[item]),
        amount=int(columns.amounts[item]),
        request_id=columns.request_id(item),
        text=columns.texts.get(item, _NO_TEXT),
        actor=terms.actor,
        ledger=terms.ledger,
        currency=terms.currency,
    )
    return transaction_view(asked, outcome, place, number)

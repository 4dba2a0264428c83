"""A transfer of a block as the transaction that it made: what a single call would have answered."""

from typing import NamedTuple

from ledger_core.accounts import Direction, TransactionStatus
from ledger_core.commands import TransferText
from ledger_core.ledgers import Currency
from ledger_core.results import BookView, EntryView, TransactionView, TransfersView
from ledger_core.transfers import TransferForm


class Transfer(NamedTuple):
    """What was asked for. ``form`` is a `TransferForm`; with one account ``other`` is 0.

    Then ledger and currency are the account's, and those here mean nothing.
    """

    form: int
    home: int
    other: int
    amount: int
    request_id: str
    text: TransferText
    actor: str
    ledger: str
    currency: Currency


def transaction_view(
    asked: Transfer, outcome: TransfersView, place: int, number: int
) -> TransactionView:
    """Return the transaction that a transfer has made, from its ``place`` in a block."""
    home, amount, text = asked.home, asked.amount, asked.text
    if asked.form >= TransferForm.IN:
        book = _book(outcome, place)
        ledger, currency, exponent = book.ledger, book.currency, book.currency_exponent
        side, other = Direction(outcome.sides[place]), book.external_account_id
        signed = amount if asked.form == TransferForm.IN else -amount
    else:
        ledger, signed = asked.ledger, 0
        currency, exponent = asked.currency.code, asked.currency.exponent
        side = Direction.DEBIT if asked.form == TransferForm.DEBIT else Direction.CREDIT
        other = asked.other
    return TransactionView(
        account_id=home,
        number=number,
        amount=signed,
        description=text.description,
        status=TransactionStatus(outcome.statuses[place]),
        ledger=ledger,
        currency=currency,
        currency_exponent=exponent,
        entries=[
            EntryView(home, side, amount, currency, exponent),
            EntryView(other, side.opposite, amount, currency, exponent),
        ],
        refusal=outcome.refusals.get(place),
        request_id=asked.request_id,
        create_time_us=outcome.time_us,
        update_time_us=outcome.time_us,
        effective_time_us=outcome.time_us,
        external_reference=text.external_reference,
        metadata=text.metadata,
        actor=asked.actor,
    )


def _book(outcome: TransfersView, place: int) -> BookView:
    return outcome.books[int.from_bytes(outcome.book_places[2 * place : 2 * place + 2], "little")]

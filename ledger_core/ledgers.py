"""Ledgers: sets of books. Today there is one, ``main``, from the start."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ledger:
    """A set of books with its default currency.

    ``currency_exponent`` is the number of digits after the decimal point (ISO 4217).
    """

    name: str
    currency: str
    currency_exponent: int


MAIN = Ledger(name="main", currency="USD", currency_exponent=2)

LEDGERS = {MAIN.name: MAIN}

"""Amounts: int64 minor units, and how people read them."""

INT64_MAX = 2**63 - 1


def format_amount(amount: int, currency: str, exponent: int) -> str:
    """Write minor units for people: ``format_amount(-1250, "USD", 2) == "-12.50 USD"``."""
    sign, digits = "-" if amount < 0 else "", str(abs(amount)).rjust(exponent + 1, "0")
    if exponent:
        digits = f"{digits[:-exponent]}.{digits[-exponent:]}"
    return f"{sign}{digits} {currency}"

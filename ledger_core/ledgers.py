"""Ledgers: sets of books, each with its currencies and its chart of accounts.

Currencies and codes are only ever added to a ledger, never changed: whoever read an older revision
of it knows less, but nothing wrong.
"""

import hashlib
import re
from typing import Annotated

import msgspec

from ledger_core.accounts import AccountType

LEDGER_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}\Z")
CURRENCY_CODE = re.compile(r"[A-Z][A-Z0-9_]{2,11}\Z")
CHART_CODE = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,31}\Z")

CURRENCY_EXPONENT_MAX = 8
CURRENCIES_MAX = 64
CHART_CODES_MAX = 2_000
LABEL_CHARACTERS_MAX = 128

Label = Annotated[str, msgspec.Meta(max_length=LABEL_CHARACTERS_MAX)]


class Currency(msgspec.Struct, array_like=True, frozen=True):
    """A currency of a ledger, or any other unit it counts in.

    ``exponent`` is the number of digits after the decimal point: 2 for USD (ISO 4217), 0 for JPY.
    """

    code: Annotated[str, msgspec.Meta(min_length=3, max_length=12)]
    exponent: Annotated[int, msgspec.Meta(ge=0, le=CURRENCY_EXPONENT_MAX)]


class ChartCode(msgspec.Struct, array_like=True, frozen=True):
    """A line of a chart of accounts.

    Its type is that of all accounts whose code begins with ``code``; longer lines that begin so
    have the same one. ``parent`` is the code of the line above it, of the same type; empty at the
    top.
    """

    code: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    name: Label
    type: AccountType
    parent: Annotated[str, msgspec.Meta(max_length=32)] = ""


USD = Currency("USD", 2)

MAIN_NAME = "main"


def ledger_key(name: str) -> int:
    """Return the u64 by which a ledger routes to the shard that keeps it, like an account's id."""
    return int.from_bytes(
        hashlib.blake2b(name.encode(), digest_size=8, person=b"ledger key").digest()
    )


def name_key(ledger: str, name: str) -> int:
    """Return the u64 by which an account's name routes to the shard that keeps its claim."""
    digest = hashlib.blake2b(digest_size=8, person=b"name key")
    digest.update(ledger.encode() + b"\0" + name.encode())
    return int.from_bytes(digest.digest())


def line_of(chart: list[ChartCode], code: str) -> ChartCode | None:
    """Return the line of the chart that rules a code: the one with the longest fitting prefix."""
    fitting = [line for line in chart if code.startswith(line.code)]
    return max(fitting, key=lambda line: len(line.code), default=None)


def chart_faults(known: list[ChartCode], added: list[ChartCode]) -> list[tuple[int, str]]:
    """Return what is wrong with lines to be added to a chart, as (index in added, sentence)."""
    faults: list[tuple[int, str]] = []
    lines = {line.code: line for line in known}
    for index, line in enumerate(added):
        if line.code in lines:
            faults.append((index, f"code {line.code!r} is in the chart already"))
            continue
        parent = lines.get(line.parent)
        above = line_of(list(lines.values()), line.code)
        if line.parent and parent is None:
            faults.append(
                (index, f"parent {line.parent!r} is not in the chart above {line.code!r}")
            )
        elif parent is not None and parent.type is not line.type:
            faults.append(
                (
                    index,
                    f"{line.code!r} is {line.type.name}, but its parent {line.parent!r} is "
                    f"{parent.type.name}",
                )
            )
        elif above is not None and above.type is not line.type:
            faults.append(
                (
                    index,
                    f"{line.code!r} is {line.type.name}, but {above.code!r}, which has ruled codes "
                    f"that begin so, is {above.type.name}",
                )
            )
        lines[line.code] = line
    return faults

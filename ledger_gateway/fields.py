"""Fields of requests: what is wrong with a value, if anything.

Each function returns a list of violations under the field's name in the API, empty for a good
value; `validation` puts them together for each request.
"""

import re
from collections.abc import Callable, Container, Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from ledger.v1 import ledger_pb2
from ledger_core.commands import (
    METADATA_KEY_CHARACTERS_MAX,
    METADATA_KEYS_MAX,
    METADATA_VALUE_CHARACTERS_MAX,
    REQUEST_ID_CHARACTERS_MAX,
)
from ledger_core.errors import FieldViolation
from ledger_core.ids import parse_account_id, parse_transaction_id
from ledger_core.ledgers import CHART_CODE, CURRENCY_CODE, LABEL_CHARACTERS_MAX, LEDGER_NAME
from ledger_core.money import INT64_MAX

PAGE_SIZE_DEFAULT = 50

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SECONDS_MAX = 253_402_300_799
"""The last second of the year 9999, the end of google.protobuf.Timestamp."""

Violations = list[FieldViolation]


def wrong(field: str, description: str) -> Violations:
    """Return one violation."""
    return [FieldViolation(field, description)]


def account_id(value: str, field: str = "account_id", required: str = "is required") -> Violations:
    """16 hex digits."""
    return _parsed(value, field, required, parse_account_id)


def transaction_id(value: str, required: str = "is required") -> Violations:
    """32 hex digits."""
    return _parsed(value, "transaction_id", required, parse_transaction_id)


def request_id(value: str) -> Violations:
    """Any text without control characters, of bounded length."""
    return line("request_id", value, REQUEST_ID_CHARACTERS_MAX)


def text(field: str, value: str, characters_max: int) -> Violations:
    """Any text of bounded length."""
    if len(value) > characters_max:
        return wrong(field, f"must have at most {characters_max:,} characters, has {len(value):,}")
    return []


def line(field: str, value: str, characters_max: int) -> Violations:
    """Text without control characters, of bounded length."""
    if found := text(field, value, characters_max):
        return found
    if _CONTROL.search(value):
        return wrong(field, "must not have control characters")
    return []


def label(field: str, value: str) -> Violations:
    """Name an account or a line of a chart."""
    if value != value.strip():
        return wrong(field, "must not begin or end with a space")
    return line(field, value, LABEL_CHARACTERS_MAX)


def ledger(value: str, field: str = "ledger") -> Violations:
    """Name a ledger; empty is checked by who requires it."""
    if value and not LEDGER_NAME.match(value):
        return wrong(
            field, "must be at most 63 characters of a-z, 0-9, '-' and '_', the first one a letter"
        )
    return []


def chart_code(field: str, value: str) -> Violations:
    """Place in a chart; empty is checked by who requires it."""
    if value and not CHART_CODE.match(value):
        return wrong(
            field,
            "must be at most 32 characters of a-z, A-Z, 0-9, '.', '_' and '-', the first one a "
            "letter or digit",
        )
    return []


def currency_code(field: str, value: str) -> Violations:
    """Code of a currency; empty is checked by who requires it."""
    if value and not CURRENCY_CODE.match(value):
        return wrong(
            field, "must be 3 to 12 characters of A-Z, 0-9 and '_', the first one a letter"
        )
    return []


def enum(field: str, value: int, known: Container[int]) -> Violations:
    """Name a value of an enumeration; which of them are required is checked elsewhere."""
    if value not in known:
        return wrong(field, f"has no value {value}")
    return []


def consistency(value: int) -> Violations:
    """A ReadConsistency."""
    return enum("consistency", value, ledger_pb2.ReadConsistency.values())


def signed_amount(field: str, value: int) -> Violations:
    """Minor units, negative ones too."""
    if abs(value) > INT64_MAX:
        # -2**63 alone: its magnitude, which is what gets booked, does not fit into int64.
        return wrong(field, f"must be at least -{INT64_MAX}")
    return []


def part_amount(field: str, value: int) -> Violations:
    """Minor units, 0 or more."""
    return wrong(field, "must not be negative") if value < 0 else []


def metadata(field: str, values: Mapping[str, str]) -> Violations:
    """Keys and values, all of bounded length."""
    found: Violations = []
    if len(values) > METADATA_KEYS_MAX:
        found += wrong(field, f"must have at most {METADATA_KEYS_MAX} keys, has {len(values):,}")
    for key, value in sorted(values.items()):
        if not key:
            found += wrong(field, "must not have an empty key")
        elif problem := line(field, key, METADATA_KEY_CHARACTERS_MAX):
            found += wrong(
                field, f"the key {key[:METADATA_KEY_CHARACTERS_MAX]!r} {problem[0].description}"
            )
        else:
            found += text(f"{field}[{key}]", value, METADATA_VALUE_CHARACTERS_MAX)
    return found


def limits(value: ledger_pb2.Limits, field: str = "limits") -> Violations:
    """Bounds of balances, the lower one not above the upper one."""
    found = [
        *signed_amount(f"{field}.minimum", value.minimum),
        *signed_amount(f"{field}.maximum", value.maximum),
    ]
    both = value.HasField("minimum") and value.HasField("maximum")
    if not found and both and value.minimum > value.maximum:
        return wrong(
            f"{field}.minimum", f"must not be above the maximum: {value.minimum} > {value.maximum}"
        )
    return found


def moment(field: str, value: Timestamp) -> Violations:
    """Any time from 1970 to 9999."""
    if not 0 <= value.nanos < 1_000_000_000:
        return wrong(field, f"must have nanos between 0 and 999,999,999, has {value.nanos:,}")
    if not 0 <= value.seconds <= _SECONDS_MAX:
        return wrong(field, "must be a time between the years 1970 and 9999")
    return []


def page_size(value: int, maximum: int) -> Violations:
    """How many to show at most."""
    if not 0 <= value <= maximum:
        return wrong("page_size", f"must be between 0 and {maximum:,}; 0 means {PAGE_SIZE_DEFAULT}")
    return []


def page_token(decode: Callable[[], object]) -> Violations:
    """Check a page token by decoding it."""
    try:
        decode()
    except ValueError as error:
        return wrong("page_token", str(error))
    return []


def _parsed(value: str, field: str, required: str, parse: Callable[[str], object]) -> Violations:
    if not value:
        return wrong(field, required)
    try:
        parse(value)
    except ValueError as error:
        return wrong(field, str(error))
    return []

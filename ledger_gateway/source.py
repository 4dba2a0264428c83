"""Where a request comes from, for the audit: the caller's correlation id, and its address."""

import re
from collections.abc import Iterable

from ledger_core.commands import SOURCE_CHARACTERS_MAX, Source
from ledger_gateway import fields, validation
from ledger_gateway.fields import Violations, wrong
from ledger_gateway.shard_calls import Context

CORRELATION_ID_KEY = "x-correlation-id"
TRACEPARENT_KEY = "traceparent"

Metadata = Iterable[tuple[str, str | bytes]]

# W3C Trace Context: version, trace id, parent id, flags, and whatever later versions add. Ids of
# zeros alone are none, and the version ff is none.
_TRACEPARENT = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})-(?P<trace_id>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}"
    r"-[0-9a-f]{2}(?P<more>-.*)?\Z"
)


def require_valid(violations: Violations, context: Context) -> Source:
    """Return the source of a request.

    Raises InvalidRequestError if there are violations or the caller's correlation id is wrong, with
    all that is wrong at once.
    """
    metadata = context.invocation_metadata() or ()
    correlation_ids = _values(metadata, CORRELATION_ID_KEY)
    validation.require([*violations, *_correlation_id_faults(correlation_ids)])
    correlation_id = next(filter(None, correlation_ids), "")
    return Source(
        correlation_id or _trace_id(_values(metadata, TRACEPARENT_KEY)),
        context.peer()[:SOURCE_CHARACTERS_MAX],
    )


def _values(metadata: Metadata, key: str) -> list[str]:
    return [value for item_key, value in metadata if item_key == key and isinstance(value, str)]


def _correlation_id_faults(values: list[str]) -> Violations:
    if len(set(values)) > 1:
        return wrong(CORRELATION_ID_KEY, "must not be given twice")
    for value in values[:1]:
        if found := fields.text(CORRELATION_ID_KEY, value, SOURCE_CHARACTERS_MAX):
            return found
        if not value.isprintable():
            return wrong(CORRELATION_ID_KEY, "must have printable characters only")
    return []


def _trace_id(values: list[str]) -> str:
    """Return the trace id of a traceparent; "" if it is malformed, which is not to be told."""
    found = _TRACEPARENT.match(values[0]) if len(values) == 1 else None
    if found is None or (found["version"] == "00" and found["more"]):
        return ""
    return found["trace_id"]

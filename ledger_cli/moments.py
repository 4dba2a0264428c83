"""Moments as people write them: a time with its zone, or a date, which is a day in UTC.

A range begins with the first moment of a date and ends with its last one; as of a date is as of its
last microsecond.
"""

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeVar

import click

from ledger.v1 import ledger_pb2
from ledger_cli.options import Parsed

Command = TypeVar("Command", bound=Callable[..., Any])

BASES = ("recorded", "effective")

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_DAY = timedelta(days=1)
_MICROSECOND = timedelta(microseconds=1)


def _start(text: str) -> datetime:
    """Read a time, or a date: its first moment in UTC."""
    if not _DATE.fullmatch(text):
        return _time(text)
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"is no date: {error}") from None
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _end(text: str) -> datetime:
    """Read a time, or a date: the first moment in UTC that is after it."""
    start = _start(text)
    try:
        return start + _DAY if _DATE.fullmatch(text) else start
    except OverflowError:
        raise ValueError("is out of range") from None


def _as_of(text: str) -> datetime:
    """Read a time, or a date: its last microsecond in UTC."""
    start = _start(text)
    return start + (_DAY - _MICROSECOND) if _DATE.fullmatch(text) else start


def _time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            "must be a date such as 2026-01-31, or a time such as 2026-01-31T12:00:00+00:00"
        ) from None
    if moment.tzinfo is None:
        raise ValueError("must have a time zone, such as +00:00 or Z, or be a date alone")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("is out of range") from None


START = Parsed("time", _start)
END = Parsed("time", _end)
AS_OF = Parsed("time", _as_of)


def range_options(command: Command) -> Command:
    """Add --from and --to, as ``start`` and ``end``."""
    command = click.option(
        "--to",
        "end",
        type=END,
        metavar="TIME|DATE",
        help="Recorded before this time; a date: up to the end of that day in UTC.",
    )(command)
    return click.option(
        "--from",
        "start",
        type=START,
        metavar="TIME|DATE",
        help="Recorded from this time on; a date: from the start of that day in UTC.",
    )(command)


def as_of_options(command: Command) -> Command:
    """Add --as-of and --basis."""
    command = click.option(
        "--basis",
        type=click.Choice(BASES),
        help=(
            "recorded: what the books said at that moment; effective: what they say now about it, "
            "by business dates (default: recorded)."
        ),
    )(command)
    return click.option(
        "--as-of",
        type=AS_OF,
        metavar="TIME|DATE",
        help="As it was at this time; a date: at the end of that day in UTC (default: now).",
    )(command)


def check_range(start: datetime | None, end: datetime | None) -> None:
    """Refuse a range that ends before it begins."""
    if start and end and end <= start:
        raise click.UsageError("--to must be after --from.")


def check_basis(as_of: datetime | None, basis: str | None) -> None:
    """Refuse business dates without a moment: now, everything that was recorded counts."""
    if basis == "effective" and not as_of:
        raise click.UsageError("--basis effective goes with --as-of.")


def time_basis(name: str | None) -> ledger_pb2.TimeBasis.ValueType:
    """Return the basis of this name; unspecified for None."""
    return ledger_pb2.TimeBasis.Value(f"TIME_BASIS_{(name or 'unspecified').upper()}")

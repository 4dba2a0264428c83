"""Options with an inner structure: entries, currencies, lines of a chart, metadata, limits."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

import click

from ledger.v1 import ledger_pb2
from ledger_client import LedgerError, credit, debit
from ledger_core.money import INT64_MAX

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])

ACCOUNT_TYPES = ("ASSET", "LIABILITY", "EQUITY", "INCOME", "EXPENSE")
ACCOUNT_STATES = ("OPEN", "FROZEN", "CLOSED")
NO_LIMIT = "none"

_DURATION = re.compile(r"(\d+)([smhd])\Z")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


@dataclass(frozen=True)
class Bound:
    """A limit as it was given; None: no limit, on purpose."""

    value: int | None


class Parsed(click.ParamType, Generic[T]):  # type: ignore[type-arg]  # generic since click 8.3
    """A value that a function reads; its ValueError says what is wrong."""

    def __init__(self, name: str, parse: Callable[[str], T]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> T:
        """Read the text of an option."""
        try:
            return self._parse(value)
        except (ValueError, LedgerError) as error:
            self.fail(f"{value!r} {error}", param, ctx)


def _entry(text: str) -> ledger_pb2.Entry:
    match text.split(":"):
        case [("debit" | "credit") as side, account_id, amount, *rest] if len(rest) <= 1:
            make = debit if side == "debit" else credit
            return make(account_id, _amount(amount), *rest)
    raise ValueError("must be debit:ACCOUNT:AMOUNT or credit:ACCOUNT:AMOUNT, then maybe :CURRENCY")


def _amount(text: str) -> int:
    if not re.fullmatch(r"\d{1,19}", text, re.ASCII) or int(text) > INT64_MAX:
        raise ValueError("must have its amount in minor units, such as 500")
    return int(text)


def _currency(text: str) -> ledger_pb2.Currency:
    code, colon, exponent = text.partition(":")
    if not colon or not re.fullmatch(r"\d", exponent, re.ASCII):
        raise ValueError("must be CODE:EXPONENT, such as USD:2 or JPY:0")
    return ledger_pb2.Currency(code=code, exponent=int(exponent))


def _chart_line(text: str) -> ledger_pb2.ChartLine:
    match text.split(":"):
        case [code, kind, name, *rest] if kind in ACCOUNT_TYPES and len(rest) <= 1:
            return ledger_pb2.ChartLine(
                code=code, type=account_type(kind), name=name, parent=rest[0] if rest else ""
            )
    raise ValueError(f"must be CODE:TYPE:NAME, then maybe :PARENT; TYPE is {_or(ACCOUNT_TYPES)}")


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError("must be KEY=VALUE")
    return key, value


def _duration_s(text: str) -> int:
    found = _DURATION.match(text)
    if found is None or not int(found[1]):
        raise ValueError("must be a number of s, m, h or d, such as 30m")
    return int(found[1]) * _SECONDS[found[2]]


def _time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("must be a time such as 2026-01-31T12:00:00+00:00") from None
    if moment.tzinfo is None:
        raise ValueError("must have a time zone, such as +00:00 or Z")
    return moment


def _bound(text: str) -> Bound:
    if text == NO_LIMIT:
        return Bound(None)
    if not re.fullmatch(r"-?\d{1,19}", text, re.ASCII) or abs(int(text)) > INT64_MAX:
        raise ValueError(f"must be minor units, such as 500, or {NO_LIMIT}")
    return Bound(int(text))


def _or(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


ENTRY = Parsed("entry", _entry)
CURRENCY = Parsed("currency", _currency)
CHART_LINE = Parsed("chart line", _chart_line)
PAIR = Parsed("pair", _pair)
TIME = Parsed("time", _time)
DURATION_S = Parsed("duration", _duration_s)
BOUND = Parsed("limit", _bound)


def account_type(name: str | None) -> ledger_pb2.AccountType.ValueType:
    """Return the type of this name; unspecified for None."""
    return ledger_pb2.AccountType.Value(f"ACCOUNT_TYPE_{name or 'UNSPECIFIED'}")


def account_state(name: str | None) -> ledger_pb2.AccountState.ValueType:
    """Return the state of this name; unspecified for None."""
    return ledger_pb2.AccountState.Value(f"ACCOUNT_STATE_{name or 'UNSPECIFIED'}")


def metadata_option(command: Command) -> Command:
    """Add --metadata, which may be given many times."""
    return click.option(
        "--metadata", type=PAIR, multiple=True, metavar="KEY=VALUE", help="May be repeated."
    )(command)


def currency_and_chart_options(command: Command) -> Command:
    """Add --currency and --chart, which may be given many times."""
    command = click.option(
        "--chart",
        type=CHART_LINE,
        multiple=True,
        metavar="CODE:TYPE:NAME[:PARENT]",
        help="A line of the chart of accounts; may be repeated, parents first.",
    )(command)
    return click.option(
        "--currency",
        "currencies",
        type=CURRENCY,
        multiple=True,
        metavar="CODE:EXPONENT",
        help="Such as USD:2; may be repeated. The first one of a ledger is its default.",
    )(command)


def limit_options(command: Command) -> Command:
    """Add --minimum and --maximum."""
    command = click.option(
        "--maximum",
        type=BOUND,
        metavar="MINOR_UNITS|none",
        help="Most that the settled balance and pending inflows may be together.",
    )(command)
    return click.option(
        "--minimum",
        type=BOUND,
        metavar="MINOR_UNITS|none",
        help="Least that the available balance may be (0 for a new account).",
    )(command)

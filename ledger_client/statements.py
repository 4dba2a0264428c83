"""Statements: the balances around a period, and the entries in it."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from ledger.v1 import ledger_pb2


@dataclass(frozen=True, slots=True)
class Statement:
    """The statement of an account: the entries lead from the opening to the closing balance."""

    opening: ledger_pb2.Balance
    """Just before the period."""
    closing: ledger_pb2.Balance
    """At the end of the period, or as it was when the statement was asked for."""
    entries: Iterator[ledger_pb2.AccountEntry]
    """Oldest first, fetched page by page as you go through them; once."""


@dataclass(frozen=True, slots=True)
class AsyncStatement:
    """The statement of an account: the entries lead from the opening to the closing balance."""

    opening: ledger_pb2.Balance
    """Just before the period."""
    closing: ledger_pb2.Balance
    """At the end of the period, or as it was when the statement was asked for."""
    entries: AsyncIterator[ledger_pb2.AccountEntry]
    """Oldest first, fetched page by page as you go through them; once."""

"""Python SDK of the ledger: `LedgerClient`, and `AsyncLedgerClient` for asyncio.

    from ledger_client import LedgerClient, credit, debit

    with LedgerClient("127.0.0.1:8000") as ledger:
        alice, bob = ledger.create_account().id, ledger.create_account().id
        ledger.create_transaction(alice, 10_00, "top-up", settled=True)
        ledger.create_transaction(entries=[debit(alice, 4_00), credit(bob, 4_00)], settled=True)

Calls of `create_transaction` that run at the same time travel together, as few bulk calls; whoever
has many transactions at once calls `create_transactions`, or `create_transfers` with columns,
and `create_atomic` where they are to happen together or not at all.

Amounts are int minor units, moments datetimes with a time zone. Every change carries a request id
and is retried under it, so that it happens once however often it had to be sent.
`ledger_client.testing` runs a ledger for tests.
"""

from ledger_client.async_client import AsyncLedgerClient
from ledger_client.client import LedgerClient
from ledger_client.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    LedgerError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    ServerCancelledError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    UnknownError,
)
from ledger_client.parts import credit, debit, limits
from ledger_client.statements import AsyncStatement, Statement
from ledger_client.transfers import TransferResults
from ledger_core.errors import FieldViolation

__all__ = [
    "AlreadyExistsError",
    "AsyncLedgerClient",
    "AsyncStatement",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "FieldViolation",
    "InternalError",
    "InvalidArgumentError",
    "LedgerClient",
    "LedgerError",
    "NotFoundError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "ServerCancelledError",
    "Statement",
    "TransferResults",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "UnknownError",
    "credit",
    "debit",
    "limits",
]

"""Building requests, shared by the sync and the asyncio client."""

from typing import TypeVar

from google.protobuf.message import Message

from ledger.v1 import ledger_pb2
from ledger_client.errors import invalid_argument
from ledger_core.errors import FieldViolation
from ledger_core.ids import new_request_id

MessageT = TypeVar("MessageT", bound=Message)


def create_account(request_id: str | None, ledger: str) -> ledger_pb2.CreateAccountRequest:
    """Build a CreateAccount request."""
    return _fill(
        ledger_pb2.CreateAccountRequest(),
        request_id=request_id or new_request_id(),
        ledger=ledger,
    )


def get_account(account_id: str, stale: bool) -> ledger_pb2.GetAccountRequest:
    """Build a GetAccount request."""
    return _fill(
        ledger_pb2.GetAccountRequest(), account_id=account_id, consistency=_consistency(stale)
    )


def create_transaction(
    account_id: str, amount: int, description: str, settled: bool, request_id: str | None
) -> ledger_pb2.CreateTransactionRequest:
    """Build a CreateTransaction request."""
    return _fill(
        ledger_pb2.CreateTransactionRequest(),
        account_id=account_id,
        amount=amount,
        description=description,
        settled=settled,
        request_id=request_id or new_request_id(),
    )


def get_transaction(transaction_id: str, stale: bool) -> ledger_pb2.GetTransactionRequest:
    """Build a GetTransaction request."""
    return _fill(
        ledger_pb2.GetTransactionRequest(),
        transaction_id=transaction_id,
        consistency=_consistency(stale),
    )


def settle_transaction(
    transaction_id: str, request_id: str | None
) -> ledger_pb2.SettleTransactionRequest:
    """Build a SettleTransaction request."""
    return _fill(
        ledger_pb2.SettleTransactionRequest(),
        transaction_id=transaction_id,
        request_id=request_id or new_request_id(),
    )


def cancel_transaction(
    transaction_id: str, request_id: str | None
) -> ledger_pb2.CancelTransactionRequest:
    """Build a CancelTransaction request."""
    return _fill(
        ledger_pb2.CancelTransactionRequest(),
        transaction_id=transaction_id,
        request_id=request_id or new_request_id(),
    )


def list_transactions(
    account_id: str, page_size: int, page_token: str, stale: bool
) -> ledger_pb2.ListTransactionsRequest:
    """Build a ListTransactions request."""
    return _fill(
        ledger_pb2.ListTransactionsRequest(),
        account_id=account_id,
        page_size=page_size,
        page_token=page_token,
        consistency=_consistency(stale),
    )


def _consistency(stale: bool) -> ledger_pb2.ReadConsistency.ValueType:
    if stale:
        return ledger_pb2.READ_CONSISTENCY_STALE
    return ledger_pb2.READ_CONSISTENCY_LINEARIZABLE


def _fill(message: MessageT, **fields: object) -> MessageT:
    """Set the fields; InvalidArgumentError names all those that the message cannot hold.

    Protobuf refuses them with a text that names no field.
    """
    violations = []
    for name, value in fields.items():
        try:
            setattr(message, name, value)
        except (TypeError, ValueError) as error:
            violations.append(FieldViolation(name, _problem(value, error)))
    if violations:
        raise invalid_argument(violations)
    return message


def _problem(value: object, error: Exception) -> str:
    if isinstance(error, UnicodeError):
        return "must be text that UTF-8 can encode"
    if isinstance(error, ValueError) and isinstance(value, int):
        return f"must fit into the field: {value} is out of range"
    return f"must not be of type {type(value).__name__}"

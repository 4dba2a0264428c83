"""Requests: all wrong fields at once, by their names in the API, before anything is sent.

One function per request; each returns a list of field violations, empty for a valid request. What
only the shard can know (does the account exist?) is not asked here.
"""

import re

from ledger.v1 import ledger_pb2
from ledger_core.commands import DESCRIPTION_CHARACTERS_MAX, REQUEST_ID_CHARACTERS_MAX
from ledger_core.errors import FieldViolation
from ledger_core.ids import parse_account_id, parse_transaction_id
from ledger_core.money import INT64_MAX
from ledger_core.queries import PAGE_SIZE_MAX
from ledger_gateway.pagination import decode_page_token

PAGE_SIZE_DEFAULT = 50

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LEDGER_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}\Z")

Violations = list[FieldViolation]


def create_account(request: ledger_pb2.CreateAccountRequest) -> Violations:
    """Check CreateAccount."""
    return [*_request_id(request.request_id), *_ledger(request.ledger)]


def get_account(request: ledger_pb2.GetAccountRequest) -> Violations:
    """Check GetAccount."""
    return [*_account_id(request.account_id), *_consistency(request.consistency)]


def create_transaction(request: ledger_pb2.CreateTransactionRequest) -> Violations:
    """Check CreateTransaction."""
    return [
        *_account_id(request.account_id),
        *_amount(request.amount),
        *_description(request.description),
        *_request_id(request.request_id),
    ]


def get_transaction(request: ledger_pb2.GetTransactionRequest) -> Violations:
    """Check GetTransaction."""
    return [*_transaction_id(request.transaction_id), *_consistency(request.consistency)]


def end_transaction(
    request: ledger_pb2.SettleTransactionRequest | ledger_pb2.CancelTransactionRequest,
) -> Violations:
    """Check SettleTransaction and CancelTransaction."""
    return [*_transaction_id(request.transaction_id), *_request_id(request.request_id)]


def list_transactions(request: ledger_pb2.ListTransactionsRequest) -> Violations:
    """Check ListTransactions."""
    account = _account_id(request.account_id)
    return [
        *account,
        *_page_size(request.page_size),
        *_page_token(request.page_token, None if account else parse_account_id(request.account_id)),
        *_consistency(request.consistency),
    ]


def _account_id(value: str) -> Violations:
    if not value:
        return [FieldViolation("account_id", "is required")]
    try:
        parse_account_id(value)
    except ValueError as error:
        return [FieldViolation("account_id", str(error))]
    return []


def _transaction_id(value: str) -> Violations:
    if not value:
        return [FieldViolation("transaction_id", "is required")]
    try:
        parse_transaction_id(value)
    except ValueError as error:
        return [FieldViolation("transaction_id", str(error))]
    return []


def _amount(value: int) -> Violations:
    if value == 0:
        return [FieldViolation("amount", "must not be 0")]
    if abs(value) > INT64_MAX:
        # -2**63 alone: its magnitude, which is what gets booked, does not fit into int64.
        return [FieldViolation("amount", f"must be at least -{INT64_MAX}")]
    return []


def _description(value: str) -> Violations:
    if len(value) > DESCRIPTION_CHARACTERS_MAX:
        return [
            FieldViolation(
                "description",
                f"must have at most {DESCRIPTION_CHARACTERS_MAX:,} characters, has {len(value):,}",
            )
        ]
    return []


def _request_id(value: str) -> Violations:
    if len(value) > REQUEST_ID_CHARACTERS_MAX:
        return [
            FieldViolation(
                "request_id",
                f"must have at most {REQUEST_ID_CHARACTERS_MAX} characters, has {len(value):,}",
            )
        ]
    if _CONTROL.search(value):
        return [FieldViolation("request_id", "must not have control characters")]
    return []


def _ledger(value: str) -> Violations:
    if value and not _LEDGER_NAME.match(value):
        return [
            FieldViolation(
                "ledger",
                "must be at most 63 characters of a-z, 0-9, '-' and '_', the first one a letter",
            )
        ]
    return []


def _page_size(value: int) -> Violations:
    if not 0 <= value <= PAGE_SIZE_MAX:
        return [
            FieldViolation(
                "page_size",
                f"must be between 0 and {PAGE_SIZE_MAX:,}; 0 means {PAGE_SIZE_DEFAULT}",
            )
        ]
    return []


def _page_token(value: str, account_id: int | None) -> Violations:
    try:
        decode_page_token(value, account_id)
    except ValueError as error:
        return [FieldViolation("page_token", str(error))]
    return []


def _consistency(value: int) -> Violations:
    if value not in ledger_pb2.ReadConsistency.values():
        return [FieldViolation("consistency", f"has no value {value}")]
    return []

"""The public RPCs, top to bottom: start reading here.

Every method goes the same way: check the request, make a command or a query of it, run that on the
shard that holds the account, convert the result. Whatever goes wrong is raised as a LedgerError;
the interceptor turns it into a status.
"""
# ruff: noqa: N802 - gRPC names the methods

import asyncio
from typing import Any

import grpc

from ledger.v1 import ledger_pb2, ledger_pb2_grpc
from ledger_cluster.shards import Answer, Shards
from ledger_core import commands, queries
from ledger_core.errors import (
    FieldViolation,
    InvalidRequestError,
    OutcomeUnknownError,
    ShardUnavailableError,
)
from ledger_core.ids import (
    derive_account_id,
    new_request_id,
    parse_account_id,
    parse_transaction_id,
)
from ledger_core.ledgers import MAIN
from ledger_core.results import AccountView, Result, TransactionPage, TransactionView
from ledger_gateway import conversion, validation
from ledger_gateway.errors import unwrap
from ledger_gateway.pagination import Cursor, decode_page_token, encode_page_token

SERVICE_NAME = ledger_pb2.DESCRIPTOR.services_by_name["LedgerService"].full_name

TIMEOUT_DEFAULT_S = 10.0
TIMEOUT_MAX_S = 60.0

# What the shards get is a little less than what the caller has left, so that an answer such as
# "outcome unknown" still reaches the caller; a twentieth of it, at most this.
_ANSWER_RESERVE_S = 0.1
# How much longer than its own deadline a call to the shards may take before it is given up.
_OVERRUN_S = 1.0

# Clients refuse messages above 4 MiB by default. A page that comes close is asked for anew with
# half the size: only pages full of the longest descriptions do.
_PAGE_BYTES_MAX = 3_500_000

Context = grpc.aio.ServicerContext[Any, Any]


class LedgerService(ledger_pb2_grpc.LedgerServiceServicer):
    """`ledger.v1.LedgerService` on top of the shards. Holds no state of its own."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    async def CreateAccount(
        self, request: ledger_pb2.CreateAccountRequest, context: Context
    ) -> ledger_pb2.CreateAccountResponse:
        """Open an account."""
        _require(validation.create_account(request))
        ledger = request.ledger or MAIN.name
        request_id = request.request_id or new_request_id()
        account_id = derive_account_id(ledger, request_id)
        command = commands.CreateAccount(account_id, ledger, request_id)
        result = await self._execute(account_id, command, context)
        return ledger_pb2.CreateAccountResponse(
            account=conversion.account(unwrap(result, AccountView))
        )

    async def GetAccount(
        self, request: ledger_pb2.GetAccountRequest, context: Context
    ) -> ledger_pb2.GetAccountResponse:
        """Return an account with its balances."""
        _require(validation.get_account(request))
        account_id = parse_account_id(request.account_id)
        query = queries.GetAccount(account_id)
        answer = await self._query(account_id, query, request.consistency, context)
        return ledger_pb2.GetAccountResponse(
            account=conversion.account(unwrap(answer.result, AccountView)),
            read_point=conversion.read_point(answer),
        )

    async def CreateTransaction(
        self, request: ledger_pb2.CreateTransactionRequest, context: Context
    ) -> ledger_pb2.CreateTransactionResponse:
        """Move money into or out of an account, at once or as a pending transaction."""
        _require(validation.create_transaction(request))
        account_id = parse_account_id(request.account_id)
        command = commands.CreateTransaction(
            account_id,
            request.amount,
            request.description,
            request.settled,
            request.request_id or new_request_id(),
        )
        result = await self._execute(account_id, command, context)
        return ledger_pb2.CreateTransactionResponse(
            transaction=conversion.transaction(unwrap(result, TransactionView))
        )

    async def GetTransaction(
        self, request: ledger_pb2.GetTransactionRequest, context: Context
    ) -> ledger_pb2.GetTransactionResponse:
        """Return a transaction."""
        _require(validation.get_transaction(request))
        account_id, number = parse_transaction_id(request.transaction_id)
        query = queries.GetTransaction(account_id, number)
        answer = await self._query(account_id, query, request.consistency, context)
        return ledger_pb2.GetTransactionResponse(
            transaction=conversion.transaction(unwrap(answer.result, TransactionView)),
            read_point=conversion.read_point(answer),
        )

    async def SettleTransaction(
        self, request: ledger_pb2.SettleTransactionRequest, context: Context
    ) -> ledger_pb2.SettleTransactionResponse:
        """Post what a pending transaction reserved."""
        _require(validation.end_transaction(request))
        account_id, number = parse_transaction_id(request.transaction_id)
        request_id = request.request_id or new_request_id()
        command = commands.SettleTransaction(account_id, number, request_id)
        result = await self._execute(account_id, command, context)
        return ledger_pb2.SettleTransactionResponse(
            transaction=conversion.transaction(unwrap(result, TransactionView))
        )

    async def CancelTransaction(
        self, request: ledger_pb2.CancelTransactionRequest, context: Context
    ) -> ledger_pb2.CancelTransactionResponse:
        """Release what a pending transaction reserved."""
        _require(validation.end_transaction(request))
        account_id, number = parse_transaction_id(request.transaction_id)
        request_id = request.request_id or new_request_id()
        command = commands.CancelTransaction(account_id, number, request_id)
        result = await self._execute(account_id, command, context)
        return ledger_pb2.CancelTransactionResponse(
            transaction=conversion.transaction(unwrap(result, TransactionView))
        )

    async def ListTransactions(
        self, request: ledger_pb2.ListTransactionsRequest, context: Context
    ) -> ledger_pb2.ListTransactionsResponse:
        """List the transactions of an account, newest first, page by page."""
        _require(validation.list_transactions(request))
        account_id = parse_account_id(request.account_id)
        cursor = decode_page_token(request.page_token, account_id)
        page_size = request.page_size or validation.PAGE_SIZE_DEFAULT
        while True:
            query = queries.ListTransactions(account_id, page_size, *cursor)
            answer = await self._query(account_id, query, request.consistency, context)
            page = unwrap(answer.result, TransactionPage)
            response = ledger_pb2.ListTransactionsResponse(
                transactions=[conversion.transaction(item) for item in page.transactions],
                next_page_token=encode_page_token(
                    account_id, Cursor(page.next_sequence, page.next_position)
                ),
                read_point=conversion.read_point(answer),
            )
            if len(page.transactions) <= 1 or response.ByteSize() <= _PAGE_BYTES_MAX:
                return response
            page_size = len(page.transactions) // 2

    async def _execute(
        self, account_id: int, command: commands.Command, context: Context
    ) -> Result:
        timeout_s = _timeout_s(context)
        try:
            async with asyncio.timeout(timeout_s + _OVERRUN_S):
                return await self._shards.execute(account_id, command, timeout_s)
        except TimeoutError:
            raise OutcomeUnknownError(
                "no result in time: the write may have happened; repeat it with the same request_id"
            ) from None

    async def _query(
        self, account_id: int, query: queries.Query, consistency: int, context: Context
    ) -> Answer:
        timeout_s = _timeout_s(context)
        stale = consistency == ledger_pb2.READ_CONSISTENCY_STALE
        try:
            async with asyncio.timeout(timeout_s + _OVERRUN_S):
                return await self._shards.query(account_id, query, timeout_s, stale=stale)
        except TimeoutError:
            raise ShardUnavailableError("the shard did not answer in time") from None


def _require(violations: list[FieldViolation]) -> None:
    if violations:
        raise InvalidRequestError(violations)


def _timeout_s(context: Context) -> float:
    """Return how long the shards may take: what the caller has left, but never without bound.

    With hardly any time left the call is still tried: it may be quick enough.
    """
    remaining_s: float | None = context.time_remaining()
    if remaining_s is None:
        return TIMEOUT_DEFAULT_S
    reserve_s = min(_ANSWER_RESERVE_S, remaining_s / 20)
    return min(max(remaining_s - reserve_s, 0.001), TIMEOUT_MAX_S)

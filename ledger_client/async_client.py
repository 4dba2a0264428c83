"""The client for asyncio: the methods of `LedgerClient`, to be awaited."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Self, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ledger.v1 import ledger_pb2, ledger_pb2_grpc
from ledger_client import _channel, _requests
from ledger_client._retries import Attempts
from ledger_client.errors import from_rpc_error

ResponseT = TypeVar("ResponseT")


class _Connection:
    """A channel and its stubs, bound to the event loop that runs when it is made."""

    def __init__(self, target: str) -> None:
        self.channel = grpc.aio.insecure_channel(target, options=_channel.OPTIONS)
        self.ledger = ledger_pb2_grpc.LedgerServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)  # type: ignore[no-untyped-call]


class AsyncLedgerClient:
    """Talks to a gateway; share one among tasks, and close it in the end (or use ``async with``).

    ``timeout_s`` bounds every call, retries included. Changes carry a request id, made here unless
    given, and every attempt of a call repeats it. Methods raise `LedgerError`.
    """

    def __init__(self, target: str, timeout_s: float = 10.0) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._connection: _Connection | None = None

    async def create_account(
        self, *, request_id: str | None = None, ledger: str = ""
    ) -> ledger_pb2.Account:
        """Open an account in the ledger, "main" by default."""
        request = _requests.create_account(request_id, ledger)
        return (await self._call(self._connect().ledger.CreateAccount, request)).account

    async def get_account(self, account_id: str, *, stale: bool = False) -> ledger_pb2.Account:
        """Return an account with its balances; ``stale``: as any replica knows it."""
        request = _requests.get_account(account_id, stale)
        return (await self._call(self._connect().ledger.GetAccount, request)).account

    async def create_transaction(
        self,
        account_id: str,
        amount: int,
        description: str = "",
        *,
        settled: bool,
        request_id: str | None = None,
    ) -> ledger_pb2.Transaction:
        """Move ``amount`` minor units into (> 0) or out of (< 0) the account.

        ``settled``: at once, else pending. Look at the status of the result: an outflow beyond the
        available balance is no error, it comes back as INSUFFICIENT_FUNDS.
        """
        request = _requests.create_transaction(account_id, amount, description, settled, request_id)
        return (await self._call(self._connect().ledger.CreateTransaction, request)).transaction

    async def get_transaction(
        self, transaction_id: str, *, stale: bool = False
    ) -> ledger_pb2.Transaction:
        """Return a transaction; ``stale``: as any replica knows it."""
        request = _requests.get_transaction(transaction_id, stale)
        return (await self._call(self._connect().ledger.GetTransaction, request)).transaction

    async def settle_transaction(
        self, transaction_id: str, *, request_id: str | None = None
    ) -> ledger_pb2.Transaction:
        """Post what a pending transaction reserved."""
        request = _requests.settle_transaction(transaction_id, request_id)
        return (await self._call(self._connect().ledger.SettleTransaction, request)).transaction

    async def cancel_transaction(
        self, transaction_id: str, *, request_id: str | None = None
    ) -> ledger_pb2.Transaction:
        """Release what a pending transaction reserved."""
        request = _requests.cancel_transaction(transaction_id, request_id)
        return (await self._call(self._connect().ledger.CancelTransaction, request)).transaction

    async def list_transactions_page(
        self, account_id: str, *, page_size: int = 0, page_token: str = "", stale: bool = False
    ) -> ledger_pb2.ListTransactionsResponse:
        """Return one page of an account's transactions, newest first."""
        request = _requests.list_transactions(account_id, page_size, page_token, stale)
        return await self._call(self._connect().ledger.ListTransactions, request)

    async def list_transactions(
        self, account_id: str, *, page_size: int = 0, stale: bool = False
    ) -> AsyncIterator[ledger_pb2.Transaction]:
        """Go through all transactions of an account, newest first, page by page."""
        page_token = ""
        while True:
            page = await self.list_transactions_page(
                account_id, page_size=page_size, page_token=page_token, stale=stale
            )
            for transaction in page.transactions:
                yield transaction
            page_token = page.next_page_token
            if not page_token:
                return

    async def serving_shards(self) -> dict[str, bool]:
        """Tell what serves now: ``""`` is the whole, ``"shard-0"``, … are the shards."""
        return _channel.serving(
            await self._call(self._connect().health.List, health_pb2.HealthListRequest())
        )

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.channel.close()
            self._connection = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    def _connect(self) -> _Connection:
        # Not in __init__: a client may be made before there is an event loop.
        if self._connection is None:
            self._connection = _Connection(self._target)
        return self._connection

    async def _call(
        self, method: Callable[..., Awaitable[ResponseT]], request: Message
    ) -> ResponseT:
        attempts = Attempts(self._timeout_s)
        while True:
            try:
                return await method(request, timeout=attempts.timeout_s())
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
            await asyncio.sleep(attempts.pause_s(failure))

"""The client for synchronous code."""

import time
from collections.abc import Callable, Iterator
from typing import Self, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ledger.v1 import ledger_pb2, ledger_pb2_grpc
from ledger_client import _channel, _requests
from ledger_client._retries import Attempts
from ledger_client.errors import from_rpc_error

ResponseT = TypeVar("ResponseT")


class LedgerClient:
    """Talks to a gateway; share one among threads, and close it in the end (or use ``with``).

    ``timeout_s`` bounds every call, retries included. Changes carry a request id, made here unless
    given, and every attempt of a call repeats it. Methods raise `LedgerError`.
    """

    def __init__(self, target: str, timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(target, options=_channel.OPTIONS)
        self._stub = ledger_pb2_grpc.LedgerServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)  # type: ignore[no-untyped-call]

    def create_account(
        self, *, request_id: str | None = None, ledger: str = ""
    ) -> ledger_pb2.Account:
        """Open an account in the ledger, "main" by default."""
        request = _requests.create_account(request_id, ledger)
        return self._call(self._stub.CreateAccount, request).account

    def get_account(self, account_id: str, *, stale: bool = False) -> ledger_pb2.Account:
        """Return an account with its balances; ``stale``: as any replica knows it."""
        request = _requests.get_account(account_id, stale)
        return self._call(self._stub.GetAccount, request).account

    def create_transaction(
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
        return self._call(self._stub.CreateTransaction, request).transaction

    def get_transaction(
        self, transaction_id: str, *, stale: bool = False
    ) -> ledger_pb2.Transaction:
        """Return a transaction; ``stale``: as any replica knows it."""
        request = _requests.get_transaction(transaction_id, stale)
        return self._call(self._stub.GetTransaction, request).transaction

    def settle_transaction(
        self, transaction_id: str, *, request_id: str | None = None
    ) -> ledger_pb2.Transaction:
        """Post what a pending transaction reserved."""
        request = _requests.settle_transaction(transaction_id, request_id)
        return self._call(self._stub.SettleTransaction, request).transaction

    def cancel_transaction(
        self, transaction_id: str, *, request_id: str | None = None
    ) -> ledger_pb2.Transaction:
        """Release what a pending transaction reserved."""
        request = _requests.cancel_transaction(transaction_id, request_id)
        return self._call(self._stub.CancelTransaction, request).transaction

    def list_transactions_page(
        self, account_id: str, *, page_size: int = 0, page_token: str = "", stale: bool = False
    ) -> ledger_pb2.ListTransactionsResponse:
        """Return one page of an account's transactions, newest first."""
        request = _requests.list_transactions(account_id, page_size, page_token, stale)
        return self._call(self._stub.ListTransactions, request)

    def list_transactions(
        self, account_id: str, *, page_size: int = 0, stale: bool = False
    ) -> Iterator[ledger_pb2.Transaction]:
        """Go through all transactions of an account, newest first, page by page."""
        page_token = ""
        while True:
            page = self.list_transactions_page(
                account_id, page_size=page_size, page_token=page_token, stale=stale
            )
            yield from page.transactions
            page_token = page.next_page_token
            if not page_token:
                return

    def serving_shards(self) -> dict[str, bool]:
        """Tell what serves now: ``""`` is the whole, ``"shard-0"``, … are the shards."""
        return _channel.serving(self._call(self._health.List, health_pb2.HealthListRequest()))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _call(self, method: Callable[..., ResponseT], request: Message) -> ResponseT:
        attempts = Attempts(self._timeout_s)
        while True:
            try:
                return method(request, timeout=attempts.timeout_s())
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
            time.sleep(attempts.pause_s(failure))

"""The client for asyncio: the methods of `LedgerClient`, to be awaited."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Self, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from ledger.v1 import ledger_pb2
from ledger_client import _channel, _requests
from ledger_client._async_history import AsyncHistoryCalls
from ledger_client._async_transactions import AsyncTransactionCalls
from ledger_client._atomic import AsyncAtomicCalls
from ledger_client._channel import AsyncConnection
from ledger_client._reads import AccountRead
from ledger_client._retries import Attempts
from ledger_client.errors import LedgerError, from_rpc_error

ResponseT = TypeVar("ResponseT")


class AsyncLedgerClient(AsyncTransactionCalls, AsyncAtomicCalls, AsyncHistoryCalls):
    """Talks to a gateway; share one among tasks, and close it in the end (or use ``async with``).

    ``timeout_s`` bounds every call, retries included. Changes carry a request id, made here unless
    given, and every attempt of a call repeats it. Methods raise `LedgerError`.

    ``correlation_id`` is yours: the ledger records it with every change, so that you find what a
    piece of work did. It goes with all calls of this client that are not given one of their own. At
    most 128 printable ASCII characters.

    ``batching``: concurrent calls of `create_transaction`, `get_balance` and `get_account` travel
    together, as few large ones. Nothing waits for a timer, and each call has its own result,
    deadline and error all the same. A read never joins a call that was sent before it was made.
    """

    def __init__(
        self,
        target: str,
        timeout_s: float = 10.0,
        *,
        correlation_id: str = "",
        batching: bool = True,
    ) -> None:
        self._metadata = _channel.metadata(correlation_id)
        self._batching = batching
        self._target = target
        self._timeout_s = timeout_s
        self._connection: AsyncConnection | None = None

    async def create_ledger(
        self,
        name: str,
        currencies: Iterable[ledger_pb2.Currency],
        chart: Iterable[ledger_pb2.ChartLine] = (),
        description: str = "",
        *,
        actor: str = "",
        request_id: str | None = None,
        correlation_id: str = "",
    ) -> ledger_pb2.Ledger:
        """Make a ledger; its first currency is the default of its accounts and entries."""
        request = _requests.create_ledger(
            name=name,
            currencies=currencies,
            chart=chart,
            description=description,
            actor=actor,
            request_id=request_id,
        )
        return (
            await self._call(self._connect().ledger.CreateLedger, request, correlation_id)
        ).ledger

    async def get_ledger(self, ledger: str = "", *, stale: bool = False) -> ledger_pb2.Ledger:
        """Return a ledger with its chart, "main" by default."""
        request = _requests.get_ledger(ledger, stale)
        return (await self._call(self._connect().ledger.GetLedger, request)).ledger

    async def list_ledgers_page(
        self, *, page_size: int = 0, page_token: str = "", stale: bool = False
    ) -> ledger_pb2.ListLedgersResponse:
        """Return one page of all ledgers by name, without their charts."""
        request = _requests.list_ledgers(page_size, page_token, stale)
        return await self._call(self._connect().ledger.ListLedgers, request)

    async def list_ledgers(
        self, *, page_size: int = 0, stale: bool = False
    ) -> AsyncIterator[ledger_pb2.Ledger]:
        """Go through all ledgers by name, page by page, without their charts."""
        page_token = ""
        while True:
            page = await self.list_ledgers_page(
                page_size=page_size, page_token=page_token, stale=stale
            )
            for item in page.ledgers:
                yield item
            page_token = page.next_page_token
            if not page_token:
                return

    async def update_ledger(
        self,
        ledger: str,
        revision: int,
        *,
        description: str | None = None,
        currencies: Iterable[ledger_pb2.Currency] = (),
        chart: Iterable[ledger_pb2.ChartLine] = (),
        actor: str = "",
        request_id: str | None = None,
        correlation_id: str = "",
    ) -> ledger_pb2.Ledger:
        """Add currencies and lines of the chart to a ledger, or change its description.

        ``revision``: of the ledger as you last read it; if it has changed since, nothing is done.
        """
        request = _requests.update_ledger(
            ledger=ledger,
            revision=revision,
            description=description,
            currencies=currencies,
            chart=chart,
            actor=actor,
            request_id=request_id,
        )
        return (
            await self._call(self._connect().ledger.UpdateLedger, request, correlation_id)
        ).ledger

    async def create_account(
        self,
        *,
        ledger: str = "",
        currency: str = "",
        code: str = "",
        account_type: ledger_pb2.AccountType.ValueType = ledger_pb2.ACCOUNT_TYPE_UNSPECIFIED,
        name: str = "",
        limits: ledger_pb2.Limits | None = None,
        metadata: Mapping[str, str] | None = None,
        actor: str = "",
        request_id: str | None = None,
        correlation_id: str = "",
    ) -> ledger_pb2.Account:
        """Open an account in the ledger, "main" by default.

        By default it is a LIABILITY, a customer's wallet, that never goes below zero; see `limits`.
        """
        request = _requests.create_account(
            request_id=request_id,
            ledger=ledger,
            currency=currency,
            code=code,
            account_type=account_type,
            name=name,
            limits=limits,
            metadata=metadata,
            actor=actor,
        )
        return (
            await self._call(self._connect().ledger.CreateAccount, request, correlation_id)
        ).account

    async def get_account(
        self, account_id: str = "", *, ledger: str = "", name: str = "", stale: bool = False
    ) -> ledger_pb2.Account:
        """Return an account with its balances, by its id, or by its name in a ledger.

        ``stale``: as any replica knows it.
        """
        connection = self._connect()
        method = connection.ledger.GetAccount
        if ledger or name:
            request = _requests.get_account(account_id, ledger, name, stale)
            return (await self._call(method, request)).account
        read = AccountRead(account_id, stale)
        return await self._one(method, connection.accounts[bool(stale)], read)

    async def get_accounts(
        self, account_ids: Iterable[str], *, stale: bool = False
    ) -> list[ledger_pb2.Account | LedgerError]:
        """Do what as many calls of `get_account` would do, in few calls.

        Returns what became of each, in their order: the account, or the LedgerError that the single
        call would have raised. Accounts of one call and shard are read from one state of it.
        """
        connection = self._connect()
        reads = [AccountRead(account_id, stale) for account_id in account_ids]
        batches = connection.account_batches(self._metadata)
        return await self._many(connection.ledger.GetAccount, batches, reads)

    async def list_accounts_page(
        self,
        ledger: str = "",
        *,
        code_prefix: str = "",
        account_type: ledger_pb2.AccountType.ValueType = ledger_pb2.ACCOUNT_TYPE_UNSPECIFIED,
        state: ledger_pb2.AccountState.ValueType = ledger_pb2.ACCOUNT_STATE_UNSPECIFIED,
        metadata_key: str = "",
        page_size: int = 0,
        page_token: str = "",
        stale: bool = False,
    ) -> ledger_pb2.ListAccountsResponse:
        """Return one page of the accounts of a ledger that fit all filters given."""
        request = _requests.list_accounts(
            ledger=ledger,
            code_prefix=code_prefix,
            account_type=account_type,
            state=state,
            metadata_key=metadata_key,
            page_size=page_size,
            page_token=page_token,
            stale=stale,
        )
        return await self._call(self._connect().ledger.ListAccounts, request)

    async def list_accounts(
        self,
        ledger: str = "",
        *,
        code_prefix: str = "",
        account_type: ledger_pb2.AccountType.ValueType = ledger_pb2.ACCOUNT_TYPE_UNSPECIFIED,
        state: ledger_pb2.AccountState.ValueType = ledger_pb2.ACCOUNT_STATE_UNSPECIFIED,
        metadata_key: str = "",
        page_size: int = 0,
        stale: bool = False,
    ) -> AsyncIterator[ledger_pb2.Account]:
        """Go through the accounts of a ledger that fit all filters given, page by page."""
        page_token = ""
        while True:
            page = await self.list_accounts_page(
                ledger,
                code_prefix=code_prefix,
                account_type=account_type,
                state=state,
                metadata_key=metadata_key,
                page_size=page_size,
                page_token=page_token,
                stale=stale,
            )
            for item in page.accounts:
                yield item
            page_token = page.next_page_token
            if not page_token:
                return

    async def update_account(
        self,
        account_id: str,
        revision: int,
        *,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        limits: ledger_pb2.Limits | None = None,
        actor: str = "",
        request_id: str | None = None,
        correlation_id: str = "",
    ) -> ledger_pb2.Account:
        """Change name, metadata (all of it) or limits; what is None stays as it is.

        ``revision``: of the account as you last read it; if it has changed since, nothing is done.
        """
        request = _requests.update_account(
            account_id=account_id,
            revision=revision,
            name=name,
            metadata=metadata,
            limits=limits,
            actor=actor,
            request_id=request_id,
        )
        return (
            await self._call(self._connect().ledger.UpdateAccount, request, correlation_id)
        ).account

    async def freeze_account(
        self,
        account_id: str,
        *,
        actor: str = "",
        request_id: str | None = None,
        correlation_id: str = "",
    ) -> ledger_pb2.Account:
        """Let an account take no new transactions; pending ones can still end."""
        request = _requests.change_account(
            ledger_pb2.FreezeAccountRequest, account_id, actor, request_id
        )
        return (
            await self._call(self._connect().ledger.FreezeAccount, request, correlation_id)
        ).account

    async def unfreeze_account(
        self,
        account_id: str,
        *,
        actor: str = "",
        request_id: str | None = None,
        correlation_id: str = "",
    ) -> ledger_pb2.Account:
        """Let a frozen account take new transactions again."""
        request = _requests.change_account(
            ledger_pb2.UnfreezeAccountRequest, account_id, actor, request_id
        )
        return (
            await self._call(self._connect().ledger.UnfreezeAccount, request, correlation_id)
        ).account

    async def close_account(
        self,
        account_id: str,
        *,
        actor: str = "",
        request_id: str | None = None,
        correlation_id: str = "",
    ) -> ledger_pb2.Account:
        """Close an account for good: only at zero, with nothing pending."""
        request = _requests.change_account(
            ledger_pb2.CloseAccountRequest, account_id, actor, request_id
        )
        return (
            await self._call(self._connect().ledger.CloseAccount, request, correlation_id)
        ).account

    async def get_transaction(
        self,
        transaction_id: str = "",
        *,
        account_id: str = "",
        request_id: str = "",
        stale: bool = False,
    ) -> ledger_pb2.Transaction:
        """Return a transaction, by its id, or by its home account and the request that made it.

        The latter tells what became of a request whose answer was lost; `NotFoundError`: it was
        never seen. ``stale``: as any replica knows it.
        """
        request = _requests.get_transaction(transaction_id, account_id, request_id, stale)
        return (await self._call(self._connect().ledger.GetTransaction, request)).transaction

    async def settle_transaction(
        self,
        transaction_id: str,
        *,
        amount: int = 0,
        actor: str = "",
        request_id: str | None = None,
        correlation_id: str = "",
    ) -> ledger_pb2.Transaction:
        """Post what a pending transaction reserved: all (0), or ``amount`` of a two-entry one."""
        request = _requests.settle_transaction(transaction_id, amount, actor, request_id)
        return (
            await self._call(self._connect().ledger.SettleTransaction, request, correlation_id)
        ).transaction

    async def cancel_transaction(
        self,
        transaction_id: str,
        *,
        actor: str = "",
        request_id: str | None = None,
        correlation_id: str = "",
    ) -> ledger_pb2.Transaction:
        """Release what a pending transaction reserved."""
        request = _requests.cancel_transaction(transaction_id, actor, request_id)
        return (
            await self._call(self._connect().ledger.CancelTransaction, request, correlation_id)
        ).transaction

    async def reverse_transaction(
        self,
        transaction_id: str,
        amounts: Sequence[int] = (),
        description: str = "",
        *,
        actor: str = "",
        request_id: str | None = None,
        correlation_id: str = "",
    ) -> ledger_pb2.Transaction:
        """Post the mirror entries of a settled transaction; return the new transaction.

        ``amounts``: how much of each entry, in their order; by default all that is left.
        """
        request = _requests.reverse_transaction(
            transaction_id, amounts, description, actor, request_id
        )
        return (
            await self._call(self._connect().ledger.ReverseTransaction, request, correlation_id)
        ).transaction

    async def serving_shards(self) -> dict[str, bool]:
        """Tell what serves now: ``""`` is the whole, ``"shard-0"``, … are the shards."""
        return _channel.serving(
            await self._call(self._connect().health.List, health_pb2.HealthListRequest())
        )

    async def close(self) -> None:
        """Close the connection; calls that wait for an answer end."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    def _connect(self) -> AsyncConnection:
        # Not in __init__: a client may be made before there is an event loop.
        if self._connection is None:
            self._connection = AsyncConnection(self._target, self._metadata, self._timeout_s)
        return self._connection

    async def _call(
        self,
        method: Callable[..., Awaitable[ResponseT]],
        request: Message,
        correlation_id: str = "",
        attempts: Attempts | None = None,
    ) -> ResponseT:
        metadata = _channel.metadata(correlation_id) or self._metadata
        attempts = attempts or Attempts(self._timeout_s)
        while True:
            try:
                return await method(request, timeout=attempts.timeout_s(), metadata=metadata)
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
            await asyncio.sleep(attempts.pause_s(failure))

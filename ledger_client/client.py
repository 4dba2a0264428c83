"""The client for synchronous code."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Self, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ledger.v1 import ledger_pb2, ledger_pb2_grpc
from ledger_client import _channel, _requests
from ledger_client._atomic import AtomicCalls
from ledger_client._bulk import TRANSACTIONS
from ledger_client._history import HistoryCalls
from ledger_client._reads import ACCOUNTS, AccountRead
from ledger_client._retries import Attempts
from ledger_client._sync_batches import ThreadBatches
from ledger_client._transactions import TransactionCalls
from ledger_client.errors import LedgerError, from_rpc_error

ResponseT = TypeVar("ResponseT")


class LedgerClient(TransactionCalls, AtomicCalls, HistoryCalls):
    """Talks to a gateway; share one among threads, and close it in the end (or use ``with``).

    ``timeout_s`` bounds every call, retries included. Changes carry a request id, made here unless
    given, and every attempt of a call repeats it. Methods raise `LedgerError`.

    ``correlation_id`` is yours: the ledger records it with every change, so that you find what a
    piece of work did. It goes with all calls of this client that are not given one of their own. At
    most 128 printable ASCII characters.

    ``batching``: calls of `create_transaction`, `get_balance` and `get_account` by several threads
    at the same time travel together, as few large ones. Nothing waits for a timer, and each call
    has its own result, deadline and error all the same. A read never joins a call that was sent
    before it was made. Make clients after a fork, not before: neither gRPC nor batches survive it.
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
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(target, options=_channel.OPTIONS)
        self._stub = ledger_pb2_grpc.LedgerServiceStub(self._channel)
        self._batches = ThreadBatches(
            TRANSACTIONS,
            self._stub.CreateTransactions,
            self._metadata,
            timeout_s,
            self._stub.StreamCreateTransactions,
        )
        # By whether they may be stale.
        self._balances = {stale: self._balance_batches() for stale in (False, True)}
        self._accounts = {stale: self._account_batches() for stale in (False, True)}
        self._health = health_pb2_grpc.HealthStub(self._channel)  # type: ignore[no-untyped-call]

    def create_ledger(
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
        return self._call(self._stub.CreateLedger, request, correlation_id).ledger

    def get_ledger(self, ledger: str = "", *, stale: bool = False) -> ledger_pb2.Ledger:
        """Return a ledger with its chart, "main" by default."""
        request = _requests.get_ledger(ledger, stale)
        return self._call(self._stub.GetLedger, request).ledger

    def list_ledgers_page(
        self, *, page_size: int = 0, page_token: str = "", stale: bool = False
    ) -> ledger_pb2.ListLedgersResponse:
        """Return one page of all ledgers by name, without their charts."""
        request = _requests.list_ledgers(page_size, page_token, stale)
        return self._call(self._stub.ListLedgers, request)

    def list_ledgers(
        self, *, page_size: int = 0, stale: bool = False
    ) -> Iterator[ledger_pb2.Ledger]:
        """Go through all ledgers by name, page by page, without their charts."""
        page_token = ""
        while True:
            page = self.list_ledgers_page(page_size=page_size, page_token=page_token, stale=stale)
            yield from page.ledgers
            page_token = page.next_page_token
            if not page_token:
                return

    def update_ledger(
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
        return self._call(self._stub.UpdateLedger, request, correlation_id).ledger

    def create_account(
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
        return self._call(self._stub.CreateAccount, request, correlation_id).account

    def get_account(
        self, account_id: str = "", *, ledger: str = "", name: str = "", stale: bool = False
    ) -> ledger_pb2.Account:
        """Return an account with its balances, by its id, or by its name in a ledger.

        ``stale``: as any replica knows it.
        """
        method = self._stub.GetAccount
        if ledger or name:
            request = _requests.get_account(account_id, ledger, name, stale)
            return self._call(method, request).account
        read = AccountRead(account_id, stale)
        return self._one(method, self._accounts[bool(stale)], read)

    def get_accounts(
        self, account_ids: Iterable[str], *, stale: bool = False
    ) -> list[ledger_pb2.Account | LedgerError]:
        """Do what as many calls of `get_account` would do, in few calls.

        Returns what became of each, in their order: the account, or the LedgerError that the single
        call would have raised. Accounts of one call and shard are read from one state of it.
        """
        reads = [AccountRead(account_id, stale) for account_id in account_ids]
        return self._many(self._stub.GetAccount, self._account_batches(), reads)

    def list_accounts_page(
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
        return self._call(self._stub.ListAccounts, request)

    def list_accounts(
        self,
        ledger: str = "",
        *,
        code_prefix: str = "",
        account_type: ledger_pb2.AccountType.ValueType = ledger_pb2.ACCOUNT_TYPE_UNSPECIFIED,
        state: ledger_pb2.AccountState.ValueType = ledger_pb2.ACCOUNT_STATE_UNSPECIFIED,
        metadata_key: str = "",
        page_size: int = 0,
        stale: bool = False,
    ) -> Iterator[ledger_pb2.Account]:
        """Go through the accounts of a ledger that fit all filters given, page by page."""
        page_token = ""
        while True:
            page = self.list_accounts_page(
                ledger,
                code_prefix=code_prefix,
                account_type=account_type,
                state=state,
                metadata_key=metadata_key,
                page_size=page_size,
                page_token=page_token,
                stale=stale,
            )
            yield from page.accounts
            page_token = page.next_page_token
            if not page_token:
                return

    def update_account(
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
        return self._call(self._stub.UpdateAccount, request, correlation_id).account

    def freeze_account(
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
        return self._call(self._stub.FreezeAccount, request, correlation_id).account

    def unfreeze_account(
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
        return self._call(self._stub.UnfreezeAccount, request, correlation_id).account

    def close_account(
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
        return self._call(self._stub.CloseAccount, request, correlation_id).account

    def get_transaction(
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
        return self._call(self._stub.GetTransaction, request).transaction

    def settle_transaction(
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
        return self._call(self._stub.SettleTransaction, request, correlation_id).transaction

    def cancel_transaction(
        self,
        transaction_id: str,
        *,
        actor: str = "",
        request_id: str | None = None,
        correlation_id: str = "",
    ) -> ledger_pb2.Transaction:
        """Release what a pending transaction reserved."""
        request = _requests.cancel_transaction(transaction_id, actor, request_id)
        return self._call(self._stub.CancelTransaction, request, correlation_id).transaction

    def reverse_transaction(
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
        return self._call(self._stub.ReverseTransaction, request, correlation_id).transaction

    def _account_batches(self) -> ThreadBatches[ledger_pb2.Account]:
        method = self._stub.BatchGetAccounts
        return ThreadBatches(ACCOUNTS, method, self._metadata, self._timeout_s)

    def serving_shards(self) -> dict[str, bool]:
        """Tell what serves now: ``""`` is the whole, ``"shard-0"``, … are the shards."""
        return _channel.serving(self._call(self._health.List, health_pb2.HealthListRequest()))

    def close(self) -> None:
        """Close the connection; calls that wait for an answer end."""
        self._batches.close()
        for stale in (False, True):
            self._balances[stale].close()
            self._accounts[stale].close()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _call(
        self,
        method: Callable[..., ResponseT],
        request: Message,
        correlation_id: str = "",
        attempts: Attempts | None = None,
    ) -> ResponseT:
        metadata = _channel.metadata(correlation_id) or self._metadata
        attempts = attempts or Attempts(self._timeout_s)
        while True:
            try:
                return method(request, timeout=attempts.timeout_s(), metadata=metadata)
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
            time.sleep(attempts.pause_s(failure))

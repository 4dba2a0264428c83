"""History, for synchronous code: a part of `LedgerClient`."""

from collections.abc import Iterable, Iterator
from datetime import datetime

from ledger.v1 import ledger_pb2, ledger_pb2_grpc
from ledger_client import _requests
from ledger_client._reads import BALANCES, BalanceRead
from ledger_client._sync_batches import ThreadBatches
from ledger_client._together import TogetherCalls
from ledger_client.errors import LedgerError
from ledger_client.statements import Statement

_ANY_STATUS = ledger_pb2.TRANSACTION_STATUS_UNSPECIFIED


class HistoryCalls(TogetherCalls):
    """What was: transactions, balances, entries, statements, and who did what."""

    _stub: ledger_pb2_grpc.LedgerServiceStub
    _balances: dict[bool, ThreadBatches[ledger_pb2.Balance]]

    def list_transactions_page(
        self,
        account_id: str = "",
        *,
        ledger: str = "",
        status: ledger_pb2.TransactionStatus.ValueType = _ANY_STATUS,
        start: datetime | None = None,
        end: datetime | None = None,
        external_reference: str = "",
        metadata_key: str = "",
        page_size: int = 0,
        page_token: str = "",
        stale: bool = False,
    ) -> ledger_pb2.ListTransactionsResponse:
        """Return one page of transactions that fit all filters given, newest first."""
        request = _requests.list_transactions(
            account_id=account_id,
            ledger=ledger,
            status=status,
            start=start,
            end=end,
            external_reference=external_reference,
            metadata_key=metadata_key,
            page_size=page_size,
            page_token=page_token,
            stale=stale,
        )
        return self._call(self._stub.ListTransactions, request)

    def list_transactions(
        self,
        account_id: str = "",
        *,
        ledger: str = "",
        status: ledger_pb2.TransactionStatus.ValueType = _ANY_STATUS,
        start: datetime | None = None,
        end: datetime | None = None,
        external_reference: str = "",
        metadata_key: str = "",
        page_size: int = 0,
        stale: bool = False,
    ) -> Iterator[ledger_pb2.Transaction]:
        """Go through the transactions of an account, or of a ledger ("main" by default).

        Newest first, page by page, refused ones included; those that fit all filters given.
        ``start`` and ``end`` bound the time of creation: from the one on, before the other.
        """
        page_token = ""
        while True:
            page = self.list_transactions_page(
                account_id,
                ledger=ledger,
                status=status,
                start=start,
                end=end,
                external_reference=external_reference,
                metadata_key=metadata_key,
                page_size=page_size,
                page_token=page_token,
                stale=stale,
            )
            yield from page.transactions
            page_token = page.next_page_token
            if not page_token:
                return

    def get_balance(
        self,
        account_id: str,
        as_of: datetime | None = None,
        *,
        basis: ledger_pb2.TimeBasis.ValueType = ledger_pb2.TIME_BASIS_UNSPECIFIED,
        stale: bool = False,
    ) -> ledger_pb2.Balance:
        """Return the balances of an account now, or as they were at a moment, however long ago.

        Everything up to and including ``as_of`` counts, by the time of recording: what the books
        said at that moment. With TIME_BASIS_EFFECTIVE the effective time counts, where one was
        given: what the books say today about that moment.
        """
        method = self._stub.GetBalance
        if as_of is not None or basis:
            request = _requests.get_balance(account_id, as_of, basis, stale)
            return self._call(method, request).balance
        read = BalanceRead(account_id, stale)
        return self._one(method, self._balances[bool(stale)], read)

    def get_balances(
        self, account_ids: Iterable[str], *, stale: bool = False
    ) -> list[ledger_pb2.Balance | LedgerError]:
        """Do what as many calls of `get_balance` would do for now, in few calls.

        Returns what became of each, in their order: the balance, or the LedgerError that the single
        call would have raised. A call takes 8,192; what it reads on one shard is of one state.
        """
        reads = [BalanceRead(account_id, stale) for account_id in account_ids]
        return self._many(self._stub.GetBalance, self._balance_batches(), reads)

    def _balance_batches(self) -> ThreadBatches[ledger_pb2.Balance]:
        method = self._stub.BatchGetBalances
        return ThreadBatches(BALANCES, method, self._metadata, self._timeout_s)

    def entries_page(
        self,
        account_id: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        oldest_first: bool = False,
        page_size: int = 0,
        page_token: str = "",
        stale: bool = False,
    ) -> ledger_pb2.ListEntriesResponse:
        """Return one page of the entries of an account, newest first unless told otherwise."""
        request = _requests.list_entries(
            account_id=account_id,
            start=start,
            end=end,
            oldest_first=oldest_first,
            page_size=page_size,
            page_token=page_token,
            stale=stale,
        )
        return self._call(self._stub.ListEntries, request)

    def entries(
        self,
        account_id: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        oldest_first: bool = False,
        page_size: int = 0,
        stale: bool = False,
    ) -> Iterator[ledger_pb2.AccountEntry]:
        """Go through the entries of an account with the balances after each, page by page.

        Those recorded from ``start`` on and before ``end``; all by default.
        """
        page_token = ""
        while True:
            page = self.entries_page(
                account_id,
                start,
                end,
                oldest_first=oldest_first,
                page_size=page_size,
                page_token=page_token,
                stale=stale,
            )
            yield from page.entries
            page_token = page.next_page_token
            if not page_token:
                return

    def statement_page(
        self,
        account_id: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        page_size: int = 0,
        page_token: str = "",
        stale: bool = False,
    ) -> ledger_pb2.GetStatementResponse:
        """Return one page of the statement of an account, with opening and closing balances."""
        request = _requests.get_statement(
            account_id=account_id,
            start=start,
            end=end,
            page_size=page_size,
            page_token=page_token,
            stale=stale,
        )
        return self._call(self._stub.GetStatement, request)

    def statement(
        self,
        account_id: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        page_size: int = 0,
        stale: bool = False,
    ) -> Statement:
        """Return the statement of an account for a period: from ``start`` on, before ``end``.

        By default from the account's first entry up to now. What is recorded while you go through
        the entries is not in it.
        """
        page = self.statement_page(account_id, start, end, page_size=page_size, stale=stale)

        def rest(page: ledger_pb2.GetStatementResponse) -> Iterator[ledger_pb2.AccountEntry]:
            yield from page.entries
            while page.next_page_token:
                page = self.statement_page(
                    account_id,
                    start,
                    end,
                    page_size=page_size,
                    page_token=page.next_page_token,
                    stale=stale,
                )
                yield from page.entries

        return Statement(page.opening_balance, page.closing_balance, rest(page))

    def transaction_states(
        self, transaction_id: str, *, stale: bool = False
    ) -> list[ledger_pb2.TransactionState]:
        """Return every state that a transaction has been in, oldest first, and who made it."""
        request = _requests.list_transaction_states(transaction_id, stale)
        return list(self._call(self._stub.ListTransactionStates, request).states)

    def account_events_page(
        self, account_id: str, *, page_size: int = 0, page_token: str = "", stale: bool = False
    ) -> ledger_pb2.ListAccountEventsResponse:
        """Return one page of what happened to an account, newest first."""
        request = _requests.list_account_events(account_id, page_size, page_token, stale)
        return self._call(self._stub.ListAccountEvents, request)

    def account_events(
        self, account_id: str, *, page_size: int = 0, stale: bool = False
    ) -> Iterator[ledger_pb2.AccountEvent]:
        """Go through what happened to an account other than entries, newest first, page by page.

        Its opening, changes of its name, limits, metadata and state, and refused attempts.
        """
        page_token = ""
        while True:
            page = self.account_events_page(
                account_id, page_size=page_size, page_token=page_token, stale=stale
            )
            yield from page.events
            page_token = page.next_page_token
            if not page_token:
                return

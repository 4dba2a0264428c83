"""History, for asyncio: a part of `AsyncLedgerClient`."""

from collections.abc import AsyncIterator, Iterable
from datetime import datetime

from ledger.v1 import ledger_pb2
from ledger_client import _requests
from ledger_client._async_together import AsyncTogetherCalls
from ledger_client._channel import AsyncConnection
from ledger_client._reads import BalanceRead
from ledger_client.errors import LedgerError
from ledger_client.statements import AsyncStatement

_ANY_STATUS = ledger_pb2.TRANSACTION_STATUS_UNSPECIFIED


class AsyncHistoryCalls(AsyncTogetherCalls):
    """What was: transactions, balances, entries, statements, and who did what."""

    def _connect(self) -> AsyncConnection:
        raise NotImplementedError

    async def list_transactions_page(
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
        return await self._call(self._connect().ledger.ListTransactions, request)

    async def list_transactions(
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
    ) -> AsyncIterator[ledger_pb2.Transaction]:
        """Go through the transactions of an account, or of a ledger ("main" by default).

        Newest first, page by page, refused ones included; those that fit all filters given.
        ``start`` and ``end`` bound the time of creation: from the one on, before the other.
        """
        page_token = ""
        while True:
            page = await self.list_transactions_page(
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
            for transaction in page.transactions:
                yield transaction
            page_token = page.next_page_token
            if not page_token:
                return

    async def get_balance(
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
        connection = self._connect()
        method = connection.ledger.GetBalance
        if as_of is not None or basis:
            request = _requests.get_balance(account_id, as_of, basis, stale)
            return (await self._call(method, request)).balance
        read = BalanceRead(account_id, stale)
        return await self._one(method, connection.balances[bool(stale)], read)

    async def get_balances(
        self, account_ids: Iterable[str], *, stale: bool = False
    ) -> list[ledger_pb2.Balance | LedgerError]:
        """Do what as many calls of `get_balance` would do for now, in few calls.

        Returns what became of each, in their order: the balance, or the LedgerError that the single
        call would have raised. A call takes 8,192; what it reads on one shard is of one state.
        """
        connection = self._connect()
        reads = [BalanceRead(account_id, stale) for account_id in account_ids]
        batches = connection.balance_batches(self._metadata)
        return await self._many(connection.ledger.GetBalance, batches, reads)

    async def entries_page(
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
        return await self._call(self._connect().ledger.ListEntries, request)

    async def entries(
        self,
        account_id: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        oldest_first: bool = False,
        page_size: int = 0,
        stale: bool = False,
    ) -> AsyncIterator[ledger_pb2.AccountEntry]:
        """Go through the entries of an account with the balances after each, page by page.

        Those recorded from ``start`` on and before ``end``; all by default.
        """
        page_token = ""
        while True:
            page = await self.entries_page(
                account_id,
                start,
                end,
                oldest_first=oldest_first,
                page_size=page_size,
                page_token=page_token,
                stale=stale,
            )
            for entry in page.entries:
                yield entry
            page_token = page.next_page_token
            if not page_token:
                return

    async def statement_page(
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
        return await self._call(self._connect().ledger.GetStatement, request)

    async def statement(
        self,
        account_id: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        page_size: int = 0,
        stale: bool = False,
    ) -> AsyncStatement:
        """Return the statement of an account for a period: from ``start`` on, before ``end``.

        By default from the account's first entry up to now. What is recorded while you go through
        the entries is not in it.
        """
        page = await self.statement_page(account_id, start, end, page_size=page_size, stale=stale)

        async def rest(
            page: ledger_pb2.GetStatementResponse,
        ) -> AsyncIterator[ledger_pb2.AccountEntry]:
            for entry in page.entries:
                yield entry
            while page.next_page_token:
                page = await self.statement_page(
                    account_id,
                    start,
                    end,
                    page_size=page_size,
                    page_token=page.next_page_token,
                    stale=stale,
                )
                for entry in page.entries:
                    yield entry

        return AsyncStatement(page.opening_balance, page.closing_balance, rest(page))

    async def transaction_states(
        self, transaction_id: str, *, stale: bool = False
    ) -> list[ledger_pb2.TransactionState]:
        """Return every state that a transaction has been in, oldest first, and who made it."""
        request = _requests.list_transaction_states(transaction_id, stale)
        return list(
            (await self._call(self._connect().ledger.ListTransactionStates, request)).states
        )

    async def account_events_page(
        self, account_id: str, *, page_size: int = 0, page_token: str = "", stale: bool = False
    ) -> ledger_pb2.ListAccountEventsResponse:
        """Return one page of what happened to an account, newest first."""
        request = _requests.list_account_events(account_id, page_size, page_token, stale)
        return await self._call(self._connect().ledger.ListAccountEvents, request)

    async def account_events(
        self, account_id: str, *, page_size: int = 0, stale: bool = False
    ) -> AsyncIterator[ledger_pb2.AccountEvent]:
        """Go through what happened to an account other than entries, newest first, page by page.

        Its opening, changes of its name, limits, metadata and state, and refused attempts.
        """
        page_token = ""
        while True:
            page = await self.account_events_page(
                account_id, page_size=page_size, page_token=page_token, stale=stale
            )
            for event in page.events:
                yield event
            page_token = page.next_page_token
            if not page_token:
                return

"""The RPCs of history: what an account had and did, and who did what."""
# ruff: noqa: N802 - gRPC names the methods

from msgspec import structs

from ledger.v1 import ledger_pb2
from ledger_cluster.shards import Answer
from ledger_core import queries
from ledger_core.accounts import TimeBasis
from ledger_core.ids import parse_account_id, parse_transaction_id
from ledger_core.results import (
    AccountEventPage,
    BalanceView,
    EntryPage,
    StatementView,
    TransactionStatesView,
)
from ledger_gateway import conversion, fields, validation
from ledger_gateway.errors import unwrap
from ledger_gateway.pagination import (
    ACCOUNT_EVENTS,
    ENTRIES,
    STATEMENT,
    EntryCursor,
    EventCursor,
    StatementCursor,
    fitting_page,
)
from ledger_gateway.shard_calls import Context, ShardCalls


class HistoryRpcs:
    """Showing what was: an account's history from its shard, a transaction's from its home."""

    _shards: ShardCalls

    async def GetBalance(
        self, request: ledger_pb2.GetBalanceRequest, context: Context
    ) -> ledger_pb2.GetBalanceResponse:
        """Return the balances of an account, now or as of a moment."""
        validation.require(validation.get_balance(request))
        account_id = parse_account_id(request.account_id)
        query = queries.GetBalance(
            account_id,
            conversion.time_us(request.as_of_time) if request.HasField("as_of_time") else None,
            TimeBasis(request.basis or TimeBasis.RECORDED),
        )
        answer = await self._shards.query(account_id, query, context, request.consistency)
        return ledger_pb2.GetBalanceResponse(
            balance=conversion.balance(unwrap(answer.result, BalanceView)),
            read_point=conversion.read_point(answer),
        )

    async def ListEntries(
        self, request: ledger_pb2.ListEntriesRequest, context: Context
    ) -> ledger_pb2.ListEntriesResponse:
        """List the entries of an account, page by page."""
        validation.require(validation.list_entries(request))
        account_id = parse_account_id(request.account_id)
        (sequence,) = ENTRIES.decode(request) or EntryCursor(0)

        async def ask(page_size: int) -> tuple[ledger_pb2.ListEntriesResponse, int]:
            query = queries.ListEntries(
                account_id,
                page_size,
                not request.oldest_first,
                conversion.time_us_up(request.start_time),
                conversion.time_us_up(request.end_time),
                sequence,
            )
            answer = await self._shards.query_page(account_id, query, context, request.consistency)
            page = unwrap(answer.result, EntryPage)
            response = ledger_pb2.ListEntriesResponse(
                entries=[conversion.account_entry(item) for item in page.entries],
                read_point=conversion.read_point(answer),
                currency=page.currency,
                currency_exponent=page.currency_exponent,
            )
            if page.next_sequence:
                then = EntryCursor(page.next_sequence)
                response.next_page_token = ENTRIES.encode(request, then)
            return response, len(page.entries)

        return await fitting_page(request.page_size or fields.PAGE_SIZE_DEFAULT, ask)

    async def GetStatement(
        self, request: ledger_pb2.GetStatementRequest, context: Context
    ) -> ledger_pb2.GetStatementResponse:
        """Return the statement of an account, page by page.

        The first page fixes the end of a period that is not over: entries that are recorded while
        the caller goes through the pages are not in it.
        """
        validation.require(validation.get_statement(request))
        cursor = STATEMENT.decode(request)

        async def ask(page_size: int) -> tuple[ledger_pb2.GetStatementResponse, int]:
            answer = await self._statement(request, cursor, page_size, context)
            view = unwrap(answer.result, StatementView)
            closing, entries, then = view.closing, view.page.entries, view.page.next_sequence
            if cursor and closing.version > cursor.version:
                # Recorded since, at the very microsecond that the first page ended with.
                closing = await self._balance_after(closing, cursor.version, context)
                entries = [item for item in entries if item.sequence <= cursor.version]
                then = then if then <= cursor.version else 0
            response = ledger_pb2.GetStatementResponse(
                opening_balance=conversion.balance(view.opening),
                closing_balance=conversion.balance(closing),
                entries=[conversion.account_entry(item) for item in entries],
                read_point=conversion.read_point(answer),
            )
            if then:
                next_page = StatementCursor(then, closing.time_us + 1, closing.version)
                response.next_page_token = STATEMENT.encode(request, next_page)
            return response, len(view.page.entries)

        return await fitting_page(request.page_size or fields.PAGE_SIZE_DEFAULT, ask)

    async def ListTransactionStates(
        self, request: ledger_pb2.ListTransactionStatesRequest, context: Context
    ) -> ledger_pb2.ListTransactionStatesResponse:
        """Return every state that a transaction has been in."""
        validation.require(validation.list_transaction_states(request))
        account_id, number = parse_transaction_id(request.transaction_id)
        query = queries.GetTransactionStates(account_id, number)
        answer = await self._shards.query(account_id, query, context, request.consistency)
        view = unwrap(answer.result, TransactionStatesView)
        return ledger_pb2.ListTransactionStatesResponse(
            transaction=conversion.transaction(view.transaction),
            states=[conversion.transaction_state(item) for item in view.states],
            read_point=conversion.read_point(answer),
        )

    async def ListAccountEvents(
        self, request: ledger_pb2.ListAccountEventsRequest, context: Context
    ) -> ledger_pb2.ListAccountEventsResponse:
        """List what happened to an account, newest first, page by page."""
        validation.require(validation.list_account_events(request))
        account_id = parse_account_id(request.account_id)
        cursor = ACCOUNT_EVENTS.decode(request) or EventCursor(0, 0)

        async def ask(page_size: int) -> tuple[ledger_pb2.ListAccountEventsResponse, int]:
            query = queries.ListAccountEvents(account_id, page_size, *cursor)
            answer = await self._shards.query(account_id, query, context, request.consistency)
            page = unwrap(answer.result, AccountEventPage)
            response = ledger_pb2.ListAccountEventsResponse(
                events=[conversion.account_event(item) for item in page.events],
                read_point=conversion.read_point(answer),
            )
            if page.next_journal_number:
                then = EventCursor(page.next_journal_number, page.next_ordinal)
                response.next_page_token = ACCOUNT_EVENTS.encode(request, then)
            return response, len(page.events)

        return await fitting_page(request.page_size or fields.PAGE_SIZE_DEFAULT, ask)

    async def _statement(
        self,
        request: ledger_pb2.GetStatementRequest,
        cursor: StatementCursor | None,
        page_size: int,
        context: Context,
    ) -> Answer:
        """Ask for a page, from a replica that knows at least what the first page showed."""
        account_id = parse_account_id(request.account_id)
        query = queries.GetStatement(
            queries.ListEntries(
                account_id,
                page_size,
                newest_first=False,
                start_us=conversion.time_us_up(request.start_time),
                end_us=cursor.end_us if cursor else conversion.time_us_up(request.end_time),
                sequence=cursor.sequence if cursor else 0,
            )
        )
        answer = await self._shards.query_page(account_id, query, context, request.consistency)
        view = answer.result
        if cursor and isinstance(view, StatementView) and view.closing.version < cursor.version:
            answer = await self._shards.query(account_id, query, context)
        return answer

    async def _balance_after(
        self, closing: BalanceView, version: int, context: Context
    ) -> BalanceView:
        """Return the balance of an account just after one of its entries."""
        query = queries.ListEntries(closing.account_id, 1, sequence=version)
        answer = await self._shards.query(closing.account_id, query, context)
        (entry,) = unwrap(answer.result, EntryPage).entries
        return structs.replace(
            closing,
            counters=entry.after,
            settled_balance=entry.settled_balance,
            available_balance=entry.available_balance,
            version=version,
            time_us=entry.time_us,
        )

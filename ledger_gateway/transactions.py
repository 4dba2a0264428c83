"""The RPCs of transactions."""
# ruff: noqa: N802 - gRPC names the methods

import time

from ledger.v1 import ledger_pb2
from ledger_core import commands, queries
from ledger_core.accounts import Direction
from ledger_core.errors import FieldViolation, InvalidRequestError
from ledger_core.ids import new_request_id, parse_account_id, parse_transaction_id
from ledger_core.ledgers import MAIN_NAME, Currency
from ledger_core.money import format_amount
from ledger_core.results import TransactionPage, TransactionView
from ledger_gateway import conversion, fields, validation
from ledger_gateway.dry_run import dry_run
from ledger_gateway.errors import unwrap
from ledger_gateway.heavy_work import HeavyWork
from ledger_gateway.ledger_directory import LedgerDirectory
from ledger_gateway.ledger_transactions import ledger_transactions
from ledger_gateway.pagination import ACCOUNT_TRANSACTIONS, Cursor, fitting_page
from ledger_gateway.shard_calls import Context, ShardCalls, Timed
from ledger_gateway.single_transfers import SingleTransfers
from ledger_gateway.source import require_valid


class TransactionRpcs:
    """Moving money, and showing what moved. A transaction lives on the shard of its home account.

    That is `account_id`, or the account of the first entry.
    """

    _shards: ShardCalls
    _directory: LedgerDirectory
    _heavy: HeavyWork
    _singles: SingleTransfers

    async def CreateTransaction(
        self, request: ledger_pb2.CreateTransactionRequest, context: Context
    ) -> ledger_pb2.CreateTransactionResponse:
        """Move money, at once or as a pending transaction."""
        source = require_valid(validation.create_transaction(request), context)
        with self._singles.under_way:
            if (transfer := self._singles.transfer(request)) is None:
                made = await self._create_transaction(request, source, context)
                return ledger_pb2.CreateTransactionResponse(transaction=made)
            view = await self._singles.create(transfer, source, context)
        response = ledger_pb2.CreateTransactionResponse()
        conversion.fill_transaction(response.transaction, view)
        return response

    async def GetTransaction(
        self, request: ledger_pb2.GetTransactionRequest, context: Context
    ) -> ledger_pb2.GetTransactionResponse:
        """Return a transaction, by its id or by the request that created it."""
        validation.require(validation.get_transaction(request))
        query: queries.Query
        if request.transaction_id:
            account_id, number = parse_transaction_id(request.transaction_id)
            query = queries.GetTransaction(account_id, number)
        else:
            account_id = parse_account_id(request.account_id)
            query = queries.GetTransactionByRequest(account_id, request.request_id)
        answer = await self._shards.query(account_id, query, context, request.consistency)
        return ledger_pb2.GetTransactionResponse(
            transaction=conversion.transaction(unwrap(answer.result, TransactionView)),
            read_point=conversion.read_point(answer),
        )

    async def SettleTransaction(
        self, request: ledger_pb2.SettleTransactionRequest, context: Context
    ) -> ledger_pb2.SettleTransactionResponse:
        """Post what a pending transaction reserved, or a part of it."""
        source = require_valid(validation.settle_transaction(request), context)
        account_id, number = parse_transaction_id(request.transaction_id)
        command = commands.SettleTransaction(
            account_id,
            number,
            request.request_id or new_request_id(),
            request.amount,
            request.actor,
            source,
        )
        return ledger_pb2.SettleTransactionResponse(
            transaction=await self._execute(command, context)
        )

    async def CancelTransaction(
        self, request: ledger_pb2.CancelTransactionRequest, context: Context
    ) -> ledger_pb2.CancelTransactionResponse:
        """Release what a pending transaction reserved."""
        source = require_valid(validation.cancel_transaction(request), context)
        account_id, number = parse_transaction_id(request.transaction_id)
        command = commands.CancelTransaction(
            account_id, number, request.request_id or new_request_id(), request.actor, source
        )
        return ledger_pb2.CancelTransactionResponse(
            transaction=await self._execute(command, context)
        )

    async def ReverseTransaction(
        self, request: ledger_pb2.ReverseTransactionRequest, context: Context
    ) -> ledger_pb2.ReverseTransactionResponse:
        """Post the mirror entries of a settled transaction, or parts of them."""
        source = require_valid(validation.reverse_transaction(request), context)
        account_id, number = parse_transaction_id(request.transaction_id)
        command = commands.ReverseTransaction(
            account_id,
            number,
            request.request_id or new_request_id(),
            list(request.amounts),
            request.description,
            request.actor,
            source,
        )
        return ledger_pb2.ReverseTransactionResponse(
            transaction=await self._execute(command, context)
        )

    async def ListTransactions(
        self, request: ledger_pb2.ListTransactionsRequest, context: Context
    ) -> ledger_pb2.ListTransactionsResponse:
        """List the transactions of an account or a ledger, newest first, page by page."""
        validation.require(validation.list_transactions(request))
        if not request.account_id:
            await self._directory.require(request.ledger or MAIN_NAME, context)
            return await ledger_transactions(self._shards, request, context)
        account_id = parse_account_id(request.account_id)
        cursor = ACCOUNT_TRANSACTIONS.decode(request) or Cursor(0, 0)
        wanted = conversion.transaction_filter(request)

        async def ask(page_size: int) -> tuple[ledger_pb2.ListTransactionsResponse, int]:
            query = queries.ListTransactions(account_id, page_size, *cursor, filter=wanted)
            answer = await self._shards.query_page(account_id, query, context, request.consistency)
            page = unwrap(answer.result, TransactionPage)
            response = ledger_pb2.ListTransactionsResponse(
                transactions=[conversion.transaction(item) for item in page.transactions],
                read_point=conversion.read_point(answer),
            )
            if page.next_position:
                then = Cursor(page.next_sequence, page.next_position)
                response.next_page_token = ACCOUNT_TRANSACTIONS.encode(request, then)
            return response, len(page.transactions)

        return await fitting_page(request.page_size or fields.PAGE_SIZE_DEFAULT, ask)

    async def _execute(
        self,
        command: (
            commands.SettleTransaction | commands.CancelTransaction | commands.ReverseTransaction
        ),
        context: Context,
    ) -> ledger_pb2.Transaction:
        result = await self._shards.execute(command, context)
        return conversion.transaction(unwrap(result, TransactionView))

    async def _create_transaction(
        self,
        request: ledger_pb2.CreateTransactionRequest,
        source: commands.Source,
        context: Timed,
    ) -> ledger_pb2.Transaction:
        """Run a request whose fields are right; raises LedgerError."""
        command = await self._new_transaction(request, source, context)
        if request.dry_run:
            return await dry_run(self._shards, command, context)
        if len({entry.shard_id for entry in command.entries}) <= 1:
            result = await self._shards.execute_in_step(command, context)
        else:
            async with self._heavy.place(command.entries, context):
                result = await self._shards.execute(command, context)
        return conversion.transaction(unwrap(result, TransactionView))

    async def _new_transaction(
        self,
        request: ledger_pb2.CreateTransactionRequest,
        source: commands.Source,
        context: Timed,
    ) -> commands.CreateTransaction:
        """Fill in the currencies and shards of the entries, and check what these decide."""
        ledger = request.ledger or MAIN_NAME
        entries = await self._entries(ledger, request, context)
        home = request.entries[0].account_id if request.entries else request.account_id
        command = commands.CreateTransaction(
            account_id=parse_account_id(home),
            amount=request.amount,
            description=request.description,
            settled=request.settled,
            request_id=request.request_id or new_request_id(),
            entries=entries,
            ledger=ledger,
            external_reference=request.external_reference,
            effective_time_us=conversion.time_us(request.effective_time),
            expire_time_us=conversion.time_us(request.expire_time),
            metadata=conversion.metadata(request.metadata),
            actor=request.actor,
            source=source,
        )
        expired = request.HasField("expire_time") and command.expire_time_us <= _now_us()
        if expired and not (request.request_id and await self._is_known(command, context)):
            raise InvalidRequestError([FieldViolation("expire_time", "must be in the future")])
        return command

    async def _entries(
        self, ledger: str, request: ledger_pb2.CreateTransactionRequest, context: Timed
    ) -> list[commands.Entry]:
        if not request.entries:
            return []
        currencies = await self._directory.currencies(
            ledger,
            {
                f"entries[{index}].currency": entry.currency
                for index, entry in enumerate(request.entries)
            },
            context,
        )
        entries = [
            self._entry(entry, currency)
            for entry, currency in zip(request.entries, currencies.values(), strict=True)
        ]
        if differences := commands.unbalanced_currencies(entries):
            by_code = {currency.code: currency for currency in currencies.values()}
            raise InvalidRequestError(
                [
                    FieldViolation("entries", imbalance(by_code[code], difference))
                    for code, difference in differences.items()
                ]
            )
        return entries

    def _entry(self, entry: ledger_pb2.Entry, currency: Currency) -> commands.Entry:
        account_id = parse_account_id(entry.account_id)
        return commands.Entry(
            account_id=account_id,
            direction=Direction(entry.direction),
            amount=entry.amount,
            currency=currency,
            shard_id=self._shards.shard_id_of(account_id),
            expected_version=(
                entry.expected_version if entry.HasField("expected_version") else None
            ),
            minimum_balance=entry.minimum_balance if entry.HasField("minimum_balance") else None,
            maximum_balance=entry.maximum_balance if entry.HasField("maximum_balance") else None,
        )

    async def _is_known(self, command: commands.CreateTransaction, context: Timed) -> bool:
        """Whether this is a repeat: its time may be over, but it has an answer."""
        query = queries.GetTransactionByRequest(command.account_id, command.request_id)
        answer = await self._shards.query(command.account_id, query, context)
        return isinstance(answer.result, TransactionView)


def _now_us() -> int:
    return time.time_ns() // 1_000


def imbalance(currency: Currency, difference: int) -> str:
    """Say by how much entries are out of balance in a currency."""
    more, less = ("debits", "credits") if difference > 0 else ("credits", "debits")
    money = format_amount(abs(difference), currency.code, currency.exponent)
    return f"must balance in {currency.code}: {more} exceed {less} by {money}"

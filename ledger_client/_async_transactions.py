"""Creating transactions, for asyncio: a part of `AsyncLedgerClient`.

Single calls that run at the same time travel together, as bulk calls. A call with a correlation id
of its own goes alone: a bulk call has one for all.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import grpc

from ledger.v1 import ledger_pb2
from ledger_client import _batches, _channel, _items
from ledger_client._async_together import AsyncTogetherCalls
from ledger_client.errors import LedgerError, from_rpc_error
from ledger_client.transfers import TransferResults

if TYPE_CHECKING:
    from ledger_client._channel import AsyncConnection
    from ledger_client._columns import AccountIds, Amounts, Chunk, Forms, RequestIds

Metadata = tuple[tuple[str, str], ...]


class AsyncTransactionCalls(AsyncTogetherCalls):
    """Creating transactions: one, many, and columns of transfers."""

    def _connect(self) -> "AsyncConnection":
        raise NotImplementedError

    async def create_transaction(
        self,
        account_id: str = "",
        amount: int = 0,
        description: str = "",
        *,
        settled: bool,
        entries: Sequence[ledger_pb2.Entry] = (),
        ledger: str = "",
        external_reference: str = "",
        effective_time: datetime | None = None,
        expire_time: datetime | None = None,
        metadata: Mapping[str, str] | None = None,
        actor: str = "",
        dry_run: bool = False,
        request_id: str | None = None,
        correlation_id: str = "",
    ) -> ledger_pb2.Transaction:
        """Move money: between accounts (``entries``), or into and out of one of them.

        ``entries`` are made by `debit` and `credit` and balance in every currency. Without them,
        ``amount`` minor units go into (> 0) or out of (< 0) the account ``account_id``.

        ``settled``: at once, else pending, until settled, cancelled or ``expire_time``. Look at the
        status of the result: an outflow beyond the available balance is no error, it comes back as
        INSUFFICIENT_FUNDS, and other refusals as REJECTED. ``dry_run`` only tells the status.
        """
        item = _items.item(
            account_id,
            amount,
            description,
            settled,
            entries,
            ledger=ledger,
            external_reference=external_reference,
            effective_time=effective_time,
            expire_time=expire_time,
            metadata=metadata,
            actor=actor,
            dry_run=dry_run,
            request_id=request_id,
        )
        connection = self._connect()
        method = connection.ledger.CreateTransaction
        return await self._one(method, connection.transactions, item, correlation_id)

    async def create_transactions(
        self,
        transactions: Iterable[ledger_pb2.CreateTransactionRequest | Mapping[str, Any]],
        *,
        correlation_id: str = "",
    ) -> list[ledger_pb2.Transaction | LedgerError]:
        """Do what as many calls of `create_transaction` would do, in few bulk calls.

        Each is a request, or the arguments of `create_transaction` as a mapping. Returns what
        became of each, in their order: the transaction, or the LedgerError that the single call
        would have raised. They are independent of each other, and each bulk call has the client's
        ``timeout_s``.
        """
        items = _items.items(transactions)
        connection = self._connect()
        metadata = _channel.metadata(correlation_id) or self._metadata
        batches = connection.transaction_batches(metadata)
        method = connection.ledger.CreateTransaction
        return await self._many(method, batches, items, correlation_id)

    async def create_transfers(
        self,
        first_account_ids: "AccountIds",
        second_account_ids: "AccountIds | None",
        amounts: "Amounts",
        *,
        forms: "Forms" = ledger_pb2.TRANSFER_FORM_DEBIT,
        ledger: str = "",
        currency: str = "",
        request_ids: "RequestIds | None" = None,
        texts: Mapping[int, ledger_pb2.TransferText] | None = None,
        actor: str = "",
        correlation_id: str = "",
    ) -> TransferResults:
        """Post many settled transfers between two accounts each: the fastest way in.

        Columns of equal length, as sequences or numpy arrays: accounts by their ids (16 hex digits,
        or the numbers that these are), ``amounts`` in minor units, > 0. ``forms`` tells what the
        first account of each (or of all) does: TRANSFER_FORM_DEBIT (the second one is credited) or
        CREDIT, or IN and OUT for money into or out of one account alone; then the second id is 0.
        ``currency`` is that of all entries; the default is the ledger's first one.

        ``request_ids``: UUIDs, or 16 bytes of one each in a row; made here if there are none. Give
        them where a load that broke off is to be repeated. ``texts``: by index, for those that have
        any. Each bulk call of 8,192 transfers has the client's ``timeout_s``.

        InvalidArgumentError: these are no such columns, and nothing was sent. All other errors are
        in the results, each by its index.
        """
        # Only those who have columns need numpy.
        from ledger_client._columns import Columns  # noqa: PLC0415

        columns = Columns(
            first_account_ids,
            second_account_ids,
            amounts,
            forms,
            ledger=ledger,
            currency=currency,
            request_ids=request_ids,
            texts=texts,
            actor=actor,
        )
        stub = self._connect().ledger
        metadata = _channel.metadata(correlation_id) or self._metadata
        chunks = columns.chunks(self._timeout_s)

        async def send_some() -> None:
            for chunk in chunks:
                await _send(chunk, stub.CreateTransactions, metadata)

        async with asyncio.TaskGroup() as group:
            for _ in range(_batches.CALLS_MAX):
                group.create_task(send_some())
        return columns.results


async def _send(
    chunk: "Chunk",
    method: Callable[..., Awaitable[ledger_pb2.CreateTransactionsResponse]],
    metadata: Metadata,
) -> None:
    pause_s: float | None = 0.0
    while pause_s is not None:
        if pause_s:
            await asyncio.sleep(pause_s)
        try:
            response = await method(chunk.request(), timeout=chunk.timeout_s(), metadata=metadata)
        except grpc.RpcError as error:
            pause_s = chunk.fail(from_rpc_error(error))
        else:
            pause_s = chunk.answer(response)

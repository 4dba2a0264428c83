"""Atomic calls: many transfers together or not at all, as one transaction.

A part of `LedgerClient` and of `AsyncLedgerClient`.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

from ledger.v1 import ledger_pb2, ledger_pb2_grpc
from ledger_client._requests import fill, given
from ledger_client._retries import Attempts
from ledger_core.ids import new_request_id

if TYPE_CHECKING:
    from ledger_client._channel import AsyncConnection
    from ledger_client._columns import AccountIds, Amounts, Forms

ResponseT = TypeVar("ResponseT")


class AtomicCalls:
    """All or nothing, for synchronous code."""

    _stub: ledger_pb2_grpc.LedgerServiceStub

    def _call(
        self,
        method: Callable[..., ResponseT],
        request: Message,
        correlation_id: str = "",
        attempts: Attempts | None = None,
    ) -> ResponseT:
        raise NotImplementedError

    def create_atomic(
        self,
        items: Iterable[Sequence[ledger_pb2.Entry]],
        *,
        ledger: str = "",
        description: str = "",
        external_reference: str = "",
        effective_time: datetime | None = None,
        metadata: Mapping[str, str] | None = None,
        actor: str = "",
        request_id: str | None = None,
        correlation_id: str = "",
    ) -> ledger_pb2.Transaction:
        """Post many transfers, splits or exchanges at once: all of them, or none.

        Each item has its entries, made by `debit` and `credit`, and balances by itself. Together
        they are one transaction of at most 1,024 entries, on any shards of one ledger. Look at the
        status of the result, as with `create_transaction`: where it is a refusal nothing moved, and
        ``refusal.item`` names the item in the way, such as "transactions[17]".
        """
        request = _of_entries(
            items,
            ledger,
            description=description,
            external_reference=external_reference,
            effective_time=effective_time,
            metadata=metadata,
            actor=actor,
            request_id=request_id,
        )
        return self._call(self._stub.CreateTransactions, request, correlation_id).atomic

    def create_atomic_transfers(
        self,
        first_account_ids: "AccountIds",
        second_account_ids: "AccountIds",
        amounts: "Amounts",
        *,
        forms: "Forms" = ledger_pb2.TRANSFER_FORM_DEBIT,
        ledger: str = "",
        currency: str = "",
        description: str = "",
        external_reference: str = "",
        effective_time: datetime | None = None,
        metadata: Mapping[str, str] | None = None,
        actor: str = "",
        request_id: str | None = None,
        correlation_id: str = "",
    ) -> ledger_pb2.Transaction:
        """Do as `create_atomic` does with columns, as `create_transfers` has them: at most 512.

        ``forms`` are TRANSFER_FORM_DEBIT or CREDIT. ``refusal.item`` is such as "transfers[17]".
        """
        request = _of_columns(
            first_account_ids,
            second_account_ids,
            amounts,
            forms=forms,
            ledger=ledger,
            currency=currency,
            description=description,
            external_reference=external_reference,
            effective_time=effective_time,
            metadata=metadata,
            actor=actor,
            request_id=request_id,
        )
        return self._call(self._stub.CreateTransactions, request, correlation_id).atomic


class AsyncAtomicCalls:
    """All or nothing, for asyncio."""

    def _connect(self) -> "AsyncConnection":
        raise NotImplementedError

    async def _call(
        self,
        method: Callable[..., Awaitable[ResponseT]],
        request: Message,
        correlation_id: str = "",
        attempts: Attempts | None = None,
    ) -> ResponseT:
        raise NotImplementedError

    async def create_atomic(
        self,
        items: Iterable[Sequence[ledger_pb2.Entry]],
        *,
        ledger: str = "",
        description: str = "",
        external_reference: str = "",
        effective_time: datetime | None = None,
        metadata: Mapping[str, str] | None = None,
        actor: str = "",
        request_id: str | None = None,
        correlation_id: str = "",
    ) -> ledger_pb2.Transaction:
        """Post many transfers, splits or exchanges at once: all of them, or none.

        Each item has its entries, made by `debit` and `credit`, and balances by itself. Together
        they are one transaction of at most 1,024 entries, on any shards of one ledger. Look at the
        status of the result, as with `create_transaction`: where it is a refusal nothing moved, and
        ``refusal.item`` names the item in the way, such as "transactions[17]".
        """
        request = _of_entries(
            items,
            ledger,
            description=description,
            external_reference=external_reference,
            effective_time=effective_time,
            metadata=metadata,
            actor=actor,
            request_id=request_id,
        )
        method = self._connect().ledger.CreateTransactions
        return (await self._call(method, request, correlation_id)).atomic

    async def create_atomic_transfers(
        self,
        first_account_ids: "AccountIds",
        second_account_ids: "AccountIds",
        amounts: "Amounts",
        *,
        forms: "Forms" = ledger_pb2.TRANSFER_FORM_DEBIT,
        ledger: str = "",
        currency: str = "",
        description: str = "",
        external_reference: str = "",
        effective_time: datetime | None = None,
        metadata: Mapping[str, str] | None = None,
        actor: str = "",
        request_id: str | None = None,
        correlation_id: str = "",
    ) -> ledger_pb2.Transaction:
        """Do as `create_atomic` does with columns, as `create_transfers` has them: at most 512.

        ``forms`` are TRANSFER_FORM_DEBIT or CREDIT. ``refusal.item`` is such as "transfers[17]".
        """
        request = _of_columns(
            first_account_ids,
            second_account_ids,
            amounts,
            forms=forms,
            ledger=ledger,
            currency=currency,
            description=description,
            external_reference=external_reference,
            effective_time=effective_time,
            metadata=metadata,
            actor=actor,
            request_id=request_id,
        )
        method = self._connect().ledger.CreateTransactions
        return (await self._call(method, request, correlation_id)).atomic


def _of_entries(
    items: Iterable[Sequence[ledger_pb2.Entry]], ledger: str, **whole: Any
) -> ledger_pb2.CreateTransactionsRequest:
    request = ledger_pb2.CreateTransactionsRequest(atomic=_whole(**whole))
    for entries in items:
        one = request.transactions.add(settled=True)
        fill(one, entries=list(entries), ledger=ledger)
    return request


def _of_columns(
    first_account_ids: "AccountIds",
    second_account_ids: "AccountIds",
    amounts: "Amounts",
    *,
    forms: "Forms",
    ledger: str,
    currency: str,
    **whole: Any,
) -> ledger_pb2.CreateTransactionsRequest:
    # Only those who have columns need numpy.
    import numpy as np  # noqa: PLC0415

    from ledger_client._columns import Columns  # noqa: PLC0415

    columns = Columns(
        first_account_ids,
        second_account_ids,
        amounts,
        forms,
        ledger=ledger,
        currency=currency,
        request_ids=None,
        texts=None,
        actor="",
    )
    request = columns.request(np.arange(len(columns.first)))
    request.transfers.ClearField("request_ids")
    request.atomic.CopyFrom(_whole(**whole))
    return request


def _whole(
    *,
    effective_time: datetime | None,
    metadata: Mapping[str, str] | None,
    request_id: str | None,
    **texts: str,
) -> ledger_pb2.AtomicTransaction:
    return fill(
        ledger_pb2.AtomicTransaction(),
        request_id=request_id or new_request_id(),
        **texts,
        **given(effective_time=effective_time, metadata=metadata),
    )

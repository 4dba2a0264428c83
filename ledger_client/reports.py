"""Reports of a ledger: `ReportClient`, and `AsyncReportClient` for asyncio.

    from ledger_client.reports import ReportClient

    with ReportClient("127.0.0.1:8000") as reports:
        for part in reports.trial_balance("main").currencies:
            print(part.currency, part.total_debits, part.total_credits)

``as_of`` is a moment up to and including which everything counts (None: now), by time of recording
or, with ``basis``, by effective time. Amounts are int minor units. Methods raise `LedgerError`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import datetime
from typing import Self, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from ledger.v1 import ledger_pb2, reports_pb2, reports_pb2_grpc
from ledger_client import _channel
from ledger_client._requests import fill, given
from ledger_client._retries import Attempts
from ledger_client.errors import from_rpc_error

MessageT = TypeVar("MessageT", bound=Message)

Basis: TypeAlias = ledger_pb2.TimeBasis.ValueType
DEFAULT_BASIS = ledger_pb2.TIME_BASIS_UNSPECIFIED
"""RECORDED; of an income statement, EFFECTIVE."""


class ReportClient:
    """Asks a gateway for reports; share one among threads, and close it in the end (or ``with``).

    ``timeout_s`` bounds every call, retries included.
    """

    def __init__(self, target: str, timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(target, options=_channel.OPTIONS)
        self._stub = reports_pb2_grpc.ReportServiceStub(self._channel)

    def trial_balance(
        self,
        ledger: str = "",
        *,
        as_of: datetime | None = None,
        basis: Basis = DEFAULT_BASIS,
        stale: bool = False,
    ) -> reports_pb2.GetTrialBalanceResponse:
        """Return debits and credits of every code."""
        request = _as_of(reports_pb2.GetTrialBalanceRequest(), ledger, as_of, basis, stale)
        return self._call(self._stub.GetTrialBalance, request)

    def balance_sheet(
        self,
        ledger: str = "",
        *,
        as_of: datetime | None = None,
        basis: Basis = DEFAULT_BASIS,
        stale: bool = False,
    ) -> reports_pb2.GetBalanceSheetResponse:
        """Return assets against liabilities and equity."""
        request = _as_of(reports_pb2.GetBalanceSheetRequest(), ledger, as_of, basis, stale)
        return self._call(self._stub.GetBalanceSheet, request)

    def chart_balances(
        self,
        ledger: str = "",
        *,
        as_of: datetime | None = None,
        basis: Basis = DEFAULT_BASIS,
        stale: bool = False,
    ) -> reports_pb2.GetChartBalancesResponse:
        """Return balances by the lines of the chart of accounts."""
        request = _as_of(reports_pb2.GetChartBalancesRequest(), ledger, as_of, basis, stale)
        return self._call(self._stub.GetChartBalances, request)

    def income_statement(
        self,
        periods: Sequence[tuple[datetime, datetime | None]],
        ledger: str = "",
        *,
        basis: Basis = DEFAULT_BASIS,
        stale: bool = False,
    ) -> reports_pb2.GetIncomeStatementResponse:
        """Return revenue and expenses of periods: each from its start, before its end (or now)."""
        request = _income_statement(periods, ledger, basis, stale)
        return self._call(self._stub.GetIncomeStatement, request)

    def list_ageing_page(
        self,
        ledger: str = "",
        *,
        account_type: ledger_pb2.AccountType.ValueType = ledger_pb2.ACCOUNT_TYPE_UNSPECIFIED,
        code_prefix: str = "",
        bucket_days: Sequence[int] = (),
        as_of: datetime | None = None,
        basis: Basis = DEFAULT_BASIS,
        page_size: int = 0,
        page_token: str = "",
        stale: bool = False,
    ) -> reports_pb2.ListAgeingResponse:
        """Return one page of balances by age, account by account."""
        request = _ageing(
            _as_of(reports_pb2.ListAgeingRequest(), ledger, as_of, basis, stale),
            account_type=account_type,
            code_prefix=code_prefix,
            bucket_days=bucket_days,
            page_size=page_size,
            page_token=page_token,
        )
        return self._call(self._stub.ListAgeing, request)

    def list_ageing(
        self,
        ledger: str = "",
        *,
        account_type: ledger_pb2.AccountType.ValueType = ledger_pb2.ACCOUNT_TYPE_UNSPECIFIED,
        code_prefix: str = "",
        bucket_days: Sequence[int] = (),
        as_of: datetime | None = None,
        basis: Basis = DEFAULT_BASIS,
        page_size: int = 0,
        stale: bool = False,
    ) -> Iterator[reports_pb2.AgeingLine]:
        """Go through balances by age, page by page."""
        page_token = ""
        while True:
            page = self.list_ageing_page(
                ledger,
                account_type=account_type,
                code_prefix=code_prefix,
                bucket_days=bucket_days,
                as_of=as_of,
                basis=basis,
                page_size=page_size,
                page_token=page_token,
                stale=stale,
            )
            yield from page.lines
            page_token = page.next_page_token
            if not page_token:
                return

    def settlement_report(
        self,
        ledger: str = "",
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        bucket_days: Sequence[int] = (),
        stale: bool = False,
    ) -> reports_pb2.GetSettlementReportResponse:
        """Return what is pending, and how pending transactions ended from day to day (UTC)."""
        request = _settlement(ledger, start, end, bucket_days, stale)
        return self._call(self._stub.GetSettlementReport, request)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _call(self, method: Callable[..., MessageT], request: Message) -> MessageT:
        attempts = Attempts(self._timeout_s)
        while True:
            try:
                return method(request, timeout=attempts.timeout_s())
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
            time.sleep(attempts.pause_s(failure))


class AsyncReportClient:
    """The methods of `ReportClient`, to be awaited. Make it inside the event loop that uses it."""

    def __init__(self, target: str, timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s
        self._channel = grpc.aio.insecure_channel(target, options=_channel.OPTIONS)
        self._stub = reports_pb2_grpc.ReportServiceStub(self._channel)

    async def trial_balance(
        self,
        ledger: str = "",
        *,
        as_of: datetime | None = None,
        basis: Basis = DEFAULT_BASIS,
        stale: bool = False,
    ) -> reports_pb2.GetTrialBalanceResponse:
        """Return debits and credits of every code."""
        request = _as_of(reports_pb2.GetTrialBalanceRequest(), ledger, as_of, basis, stale)
        return await self._call(self._stub.GetTrialBalance, request)

    async def balance_sheet(
        self,
        ledger: str = "",
        *,
        as_of: datetime | None = None,
        basis: Basis = DEFAULT_BASIS,
        stale: bool = False,
    ) -> reports_pb2.GetBalanceSheetResponse:
        """Return assets against liabilities and equity."""
        request = _as_of(reports_pb2.GetBalanceSheetRequest(), ledger, as_of, basis, stale)
        return await self._call(self._stub.GetBalanceSheet, request)

    async def chart_balances(
        self,
        ledger: str = "",
        *,
        as_of: datetime | None = None,
        basis: Basis = DEFAULT_BASIS,
        stale: bool = False,
    ) -> reports_pb2.GetChartBalancesResponse:
        """Return balances by the lines of the chart of accounts."""
        request = _as_of(reports_pb2.GetChartBalancesRequest(), ledger, as_of, basis, stale)
        return await self._call(self._stub.GetChartBalances, request)

    async def income_statement(
        self,
        periods: Sequence[tuple[datetime, datetime | None]],
        ledger: str = "",
        *,
        basis: Basis = DEFAULT_BASIS,
        stale: bool = False,
    ) -> reports_pb2.GetIncomeStatementResponse:
        """Return revenue and expenses of periods: each from its start, before its end (or now)."""
        request = _income_statement(periods, ledger, basis, stale)
        return await self._call(self._stub.GetIncomeStatement, request)

    async def list_ageing_page(
        self,
        ledger: str = "",
        *,
        account_type: ledger_pb2.AccountType.ValueType = ledger_pb2.ACCOUNT_TYPE_UNSPECIFIED,
        code_prefix: str = "",
        bucket_days: Sequence[int] = (),
        as_of: datetime | None = None,
        basis: Basis = DEFAULT_BASIS,
        page_size: int = 0,
        page_token: str = "",
        stale: bool = False,
    ) -> reports_pb2.ListAgeingResponse:
        """Return one page of balances by age, account by account."""
        request = _ageing(
            _as_of(reports_pb2.ListAgeingRequest(), ledger, as_of, basis, stale),
            account_type=account_type,
            code_prefix=code_prefix,
            bucket_days=bucket_days,
            page_size=page_size,
            page_token=page_token,
        )
        return await self._call(self._stub.ListAgeing, request)

    async def list_ageing(
        self,
        ledger: str = "",
        *,
        account_type: ledger_pb2.AccountType.ValueType = ledger_pb2.ACCOUNT_TYPE_UNSPECIFIED,
        code_prefix: str = "",
        bucket_days: Sequence[int] = (),
        as_of: datetime | None = None,
        basis: Basis = DEFAULT_BASIS,
        page_size: int = 0,
        stale: bool = False,
    ) -> AsyncIterator[reports_pb2.AgeingLine]:
        """Go through balances by age, page by page."""
        page_token = ""
        while True:
            page = await self.list_ageing_page(
                ledger,
                account_type=account_type,
                code_prefix=code_prefix,
                bucket_days=bucket_days,
                as_of=as_of,
                basis=basis,
                page_size=page_size,
                page_token=page_token,
                stale=stale,
            )
            for line in page.lines:
                yield line
            page_token = page.next_page_token
            if not page_token:
                return

    async def settlement_report(
        self,
        ledger: str = "",
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        bucket_days: Sequence[int] = (),
        stale: bool = False,
    ) -> reports_pb2.GetSettlementReportResponse:
        """Return what is pending, and how pending transactions ended from day to day (UTC)."""
        request = _settlement(ledger, start, end, bucket_days, stale)
        return await self._call(self._stub.GetSettlementReport, request)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def _call(self, method: Callable[..., Awaitable[MessageT]], request: Message) -> MessageT:
        attempts = Attempts(self._timeout_s)
        while True:
            try:
                return await method(request, timeout=attempts.timeout_s())
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
            await asyncio.sleep(attempts.pause_s(failure))


def _as_of(
    request: MessageT, ledger: str, as_of: datetime | None, basis: Basis, stale: bool
) -> MessageT:
    moment = fill(reports_pb2.AsOf(), **given(time=as_of), basis=basis)
    return fill(request, ledger=ledger, as_of=moment, consistency=_consistency(stale))


def _income_statement(
    periods: Sequence[tuple[datetime, datetime | None]], ledger: str, basis: Basis, stale: bool
) -> reports_pb2.GetIncomeStatementRequest:
    return fill(
        reports_pb2.GetIncomeStatementRequest(),
        ledger=ledger,
        periods=[
            fill(reports_pb2.Period(), start_time=start, **given(end_time=end))
            for start, end in periods
        ],
        basis=basis,
        consistency=_consistency(stale),
    )


def _ageing(
    request: reports_pb2.ListAgeingRequest,
    *,
    account_type: ledger_pb2.AccountType.ValueType,
    code_prefix: str,
    bucket_days: Sequence[int],
    page_size: int,
    page_token: str,
) -> reports_pb2.ListAgeingRequest:
    return fill(
        request,
        type=account_type,
        code_prefix=code_prefix,
        bucket_days=list(bucket_days),
        page_size=page_size,
        page_token=page_token,
    )


def _settlement(
    ledger: str,
    start: datetime | None,
    end: datetime | None,
    bucket_days: Sequence[int],
    stale: bool,
) -> reports_pb2.GetSettlementReportRequest:
    return fill(
        reports_pb2.GetSettlementReportRequest(),
        ledger=ledger,
        **given(start_time=start, end_time=end),
        bucket_days=list(bucket_days),
        consistency=_consistency(stale),
    )


def _consistency(stale: bool) -> ledger_pb2.ReadConsistency.ValueType:
    if stale:
        return ledger_pb2.READ_CONSISTENCY_STALE
    return ledger_pb2.READ_CONSISTENCY_LINEARIZABLE

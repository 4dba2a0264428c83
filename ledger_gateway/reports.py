"""`ledger.v1.ReportService`: trial balance, balance sheet, income statement and the like.

Every report goes the same way: check the request, ask all shards at once for the sums of the
ledger's accounts, add them up, and lay them out (`ledger_core.reports`). Each shard answers from
one state of its own, which balances; so the report does, although no two shards are asked at the
same instant: what is on its way between them is a line of its own.
"""
# ruff: noqa: N802 - gRPC names the methods

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog
from google.protobuf.message import Message

from ledger.v1 import ledger_pb2, reports_pb2, reports_pb2_grpc
from ledger_cluster.shards import Answer, Shards
from ledger_core import queries, reports
from ledger_core.accounts import AccountType, TimeBasis
from ledger_core.ledgers import MAIN_NAME, ledger_key
from ledger_core.results import AgeingPage, LedgerView, SettlementsView, TotalsView
from ledger_gateway import conversion, fields, report_messages, report_requests
from ledger_gateway.errors import unwrap
from ledger_gateway.ledger_directory import LedgerDirectory
from ledger_gateway.pagination import FIRST_ACCOUNT, AccountCursor
from ledger_gateway.shard_calls import Context, ShardCalls
from ledger_gateway.validation import require

REPORT_SERVICE_NAME = reports_pb2.DESCRIPTOR.services_by_name["ReportService"].full_name

# What one call to a shard may bring, how much a page holds before it ends early, and how many calls
# it may take: fewer than a list of accounts, since ages are looked up in histories.
_ACCOUNTS_PER_CALL_MAX = 64
_PAGE_BYTES_MAX = 1_000_000
_CALLS_PER_PAGE_MAX = 16

_log = structlog.get_logger(__name__)

PartT = TypeVar("PartT", bound=Message)


@dataclass(frozen=True, slots=True)
class _Books:
    """A ledger's chart and currencies, and what every shard has answered about it."""

    ledger: LedgerView
    answers: list[Answer]

    def read_points(self) -> list[ledger_pb2.ReadPoint]:
        return [conversion.read_point(answer) for answer in self.answers]

    def currencies(self) -> list[str]:
        return [currency.code for currency in self.ledger.currencies]


class ReportService(reports_pb2_grpc.ReportServiceServicer):
    """Reports on top of the shards. Keeps nothing but what it remembers of ledgers."""

    def __init__(
        self, shards: Shards, clock_us: Callable[[], int] = lambda: time.time_ns() // 1_000
    ) -> None:
        self._shards = ShardCalls(shards)
        self._directory = LedgerDirectory(self._shards)
        self._clock_us = clock_us

    async def GetTrialBalance(
        self, request: reports_pb2.GetTrialBalanceRequest, context: Context
    ) -> reports_pb2.GetTrialBalanceResponse:
        """Return debits and credits of every code."""
        books = await self._as_of(request, context)
        return reports_pb2.GetTrialBalanceResponse(
            currencies=await _parts(
                books,
                lambda totals, chart: report_messages.trial_balance(
                    reports.trial_balance(totals, chart)
                ),
            ),
            read_points=books.read_points(),
        )

    async def GetBalanceSheet(
        self, request: reports_pb2.GetBalanceSheetRequest, context: Context
    ) -> reports_pb2.GetBalanceSheetResponse:
        """Return assets against liabilities and equity."""
        books = await self._as_of(request, context)
        return reports_pb2.GetBalanceSheetResponse(
            currencies=await _parts(
                books,
                lambda totals, chart: report_messages.balance_sheet(
                    reports.balance_sheet(totals, chart)
                ),
            ),
            read_points=books.read_points(),
        )

    async def GetIncomeStatement(
        self, request: reports_pb2.GetIncomeStatementRequest, context: Context
    ) -> reports_pb2.GetIncomeStatementResponse:
        """Return revenue and expenses of periods, all from one state of each shard."""
        require(report_requests.income_statement(request, self._clock_us()))
        periods = report_requests.periods(request)
        basis = report_requests.basis(request.basis, TimeBasis.EFFECTIVE)
        query = queries.GetTotals(request.ledger or MAIN_NAME, periods.moments, basis)
        books = await self._ask_all(query.ledger, query, request.consistency, context)
        return reports_pb2.GetIncomeStatementResponse(
            currencies=await _parts(
                books,
                lambda totals, chart: report_messages.income_statement(
                    reports.income_statement(totals, chart, periods.spans)
                ),
            ),
            read_points=books.read_points(),
        )

    async def GetChartBalances(
        self, request: reports_pb2.GetChartBalancesRequest, context: Context
    ) -> reports_pb2.GetChartBalancesResponse:
        """Return balances by the lines of the chart."""
        books = await self._as_of(request, context)
        return reports_pb2.GetChartBalancesResponse(
            currencies=await _parts(
                books,
                lambda totals, chart: report_messages.chart_balances(
                    reports.chart_balances(totals, chart)
                ),
            ),
            read_points=books.read_points(),
        )

    async def ListAgeing(
        self, request: reports_pb2.ListAgeingRequest, context: Context
    ) -> reports_pb2.ListAgeingResponse:
        """List balances by age page by page, one shard after the other."""
        now_us = self._clock_us()
        require(report_requests.ageing(request, now_us))
        ledger = request.ledger or MAIN_NAME
        await self._directory.require(ledger, context)
        page_size = request.page_size or fields.PAGE_SIZE_DEFAULT
        days = report_requests.bucket_days(request.bucket_days, report_requests.AGEING_BUCKETS)
        response = reports_pb2.ListAgeingResponse(bucket_days=days)
        position, after_slot = report_requests.AGEING.decode(request) or FIRST_ACCOUNT
        shard_ids = self._shards.shard_ids()
        for _ in range(_CALLS_PER_PAGE_MAX):
            missing = page_size - len(response.lines)
            if not missing or position >= len(shard_ids) or response.ByteSize() > _PAGE_BYTES_MAX:
                break
            query = queries.ListAgeing(
                ledger,
                min(missing, _ACCOUNTS_PER_CALL_MAX),
                report_requests.bounds_us(days),
                report_requests.as_of_us(request.as_of),
                report_requests.basis(request.as_of.basis),
                after_slot,
                request.code_prefix,
                AccountType(request.type) if request.type else None,
                now_us,
            )
            answer = await self._shards.query_shard(
                shard_ids[position], query, context, request.consistency
            )
            page = unwrap(answer.result, AgeingPage)
            response.lines.extend(
                report_messages.ageing_line(view)
                for view in page.accounts
                if view.type in report_requests.AGEING_TYPES
            )
            if after_slot == -1 or not response.read_points:
                response.read_points.append(conversion.read_point(answer))
            after_slot = page.last_slot
            if after_slot == -1:
                position += 1
        if position < len(shard_ids):
            response.next_page_token = report_requests.AGEING.encode(
                request, AccountCursor(position, after_slot)
            )
        return response

    async def GetSettlementReport(
        self, request: reports_pb2.GetSettlementReportRequest, context: Context
    ) -> reports_pb2.GetSettlementReportResponse:
        """Return what is pending, and how long settlement took."""
        now_us = self._clock_us()
        require(report_requests.settlement(request, now_us))
        days = report_requests.bucket_days(request.bucket_days, report_requests.PENDING_BUCKETS)
        query = queries.GetSettlements(
            request.ledger or MAIN_NAME,
            *report_requests.settlement_days(request, now_us),
            report_requests.bounds_us(days),
            now_us,
        )
        books = await self._ask_all(query.ledger, query, request.consistency, context)
        views = [unwrap(answer.result, SettlementsView) for answer in books.answers]
        return reports_pb2.GetSettlementReportResponse(
            currencies=[
                report_messages.settlement_report(report)
                for report in reports.merge_settlements(views, books.currencies())
            ],
            read_points=books.read_points(),
            bucket_days=days,
        )

    async def _as_of(self, request: report_requests.TotalsRequest, context: Context) -> _Books:
        """Check a request for balances at one moment, and get the sums of all shards."""
        require(report_requests.totals(request, self._clock_us()))
        moment = report_requests.as_of_us(request.as_of)
        query = queries.GetTotals(
            request.ledger or MAIN_NAME,
            [] if moment is None else [moment],
            report_requests.basis(request.as_of.basis),
        )
        return await self._ask_all(query.ledger, query, request.consistency, context)

    async def _ask_all(
        self, ledger: str, query: queries.Query, consistency: int, context: Context
    ) -> _Books:
        """Ask all shards at once, and the ledger's own for its chart; RefusedError without it."""
        named, *answers = await asyncio.gather(
            self._shards.query(ledger_key(ledger), queries.GetLedger(ledger), context, consistency),
            *(
                self._shards.query_shard(shard_id, query, context, consistency)
                for shard_id in self._shards.shard_ids()
            ),
        )
        view = self._directory.remember(unwrap(named.result, LedgerView))
        return _Books(view, answers)


async def _parts(
    books: _Books, build: Callable[[reports.CurrencyTotals, reports.Chart], PartT]
) -> list[PartT]:
    """Make a report of the sums of all shards, a part for each currency.

    In a thread: with tens of thousands of codes it takes a while, and other calls go on.
    """
    return await asyncio.to_thread(_build, books, build)


def _build(
    books: _Books, build: Callable[[reports.CurrencyTotals, reports.Chart], PartT]
) -> list[PartT]:
    chart = reports.Chart(books.ledger.chart)
    views = {answer.shard_id: unwrap(answer.result, TotalsView) for answer in books.answers}
    try:
        merged = reports.merge_totals(views, books.currencies())
        return [build(totals, chart) for totals in merged]
    except reports.UnbalancedError as error:
        points = {answer.shard_id: answer.applied_index for answer in books.answers}
        _log.error("books do not balance", ledger=books.ledger.name, why=str(error), at=points)
        raise

"""Requests for reports: what is wrong with them, and the moments that they mean.

A moment is a time up to and including which everything counts, in microseconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from ledger.v1 import ledger_pb2, reports_pb2
from ledger_core.accounts import AccountType, TimeBasis
from ledger_core.queries import PAGE_SIZE_MAX
from ledger_gateway import conversion, fields
from ledger_gateway.fields import Violations, wrong
from ledger_gateway.pagination import AccountCursor, PageTokens

PERIODS_MAX = 32
BUCKETS_MAX = 12
BUCKET_DAYS_MAX = 36_500
SETTLEMENT_DAYS_MAX = 3_660
SETTLEMENT_DAYS_DEFAULT = 30
DAY_US = 86_400_000_000

AGEING_BUCKETS = (30, 60, 90)
PENDING_BUCKETS = (1, 7, 30)
AGEING = PageTokens(
    b"ageing token", AccountCursor, "Iq", positive=0, of="ledger, moment, buckets or filters"
)
AGEING_TYPES = (AccountType.ASSET, AccountType.LIABILITY)

# The last microsecond of the year 9999: everything that is recorded counts, whatever its date.
_END_OF_TIME_US = 253_402_300_799_999_999

TotalsRequest = (
    reports_pb2.GetTrialBalanceRequest
    | reports_pb2.GetBalanceSheetRequest
    | reports_pb2.GetChartBalancesRequest
)


@dataclass(frozen=True, slots=True)
class Periods:
    """Periods as positions in a list of moments: (before it, None for the beginning; its end)."""

    moments: list[int]
    spans: list[tuple[int | None, int]]


def totals(request: TotalsRequest, now_us: int) -> Violations:
    """Check GetTrialBalance, GetBalanceSheet and GetChartBalances."""
    return [
        *fields.ledger(request.ledger),
        *_as_of(request.as_of, now_us),
        *fields.consistency(request.consistency),
    ]


def income_statement(request: reports_pb2.GetIncomeStatementRequest, now_us: int) -> Violations:
    """Check GetIncomeStatement."""
    found: Violations = []
    if not 1 <= len(request.periods) <= PERIODS_MAX:
        found += wrong("periods", f"must be 1 to {PERIODS_MAX}, not {len(request.periods):,}")
    recorded = request.basis == ledger_pb2.TIME_BASIS_RECORDED
    for index, period in enumerate(request.periods[:PERIODS_MAX]):
        found += _period(f"periods[{index}]", period, now_us if recorded else None)
    return [
        *fields.ledger(request.ledger),
        *found,
        *_basis("basis", request.basis),
        *fields.consistency(request.consistency),
    ]


def ageing(request: reports_pb2.ListAgeingRequest, now_us: int) -> Violations:
    """Check ListAgeing."""
    unspecified = ledger_pb2.ACCOUNT_TYPE_UNSPECIFIED
    return [
        *fields.ledger(request.ledger),
        *(
            wrong(
                "type", "must be ASSET (receivables) or LIABILITY (payables), or not set for both"
            )
            if request.type not in (unspecified, *AGEING_TYPES)
            else []
        ),
        *fields.chart_code("code_prefix", request.code_prefix),
        *_bucket_days(request.bucket_days),
        *_as_of(request.as_of, now_us),
        *fields.page_size(request.page_size, PAGE_SIZE_MAX),
        *fields.page_token(lambda: AGEING.decode(request)),
        *fields.consistency(request.consistency),
    ]


def settlement(request: reports_pb2.GetSettlementReportRequest, now_us: int) -> Violations:
    """Check GetSettlementReport."""
    times = [
        *fields.moment("start_time", request.start_time),
        *fields.moment("end_time", request.end_time),
    ]
    if not times:
        first_day, end_day = settlement_days(request, now_us)
        if end_day <= first_day:
            times = wrong("start_time", "must not be after end_time, which is today when not set")
        elif end_day - first_day > SETTLEMENT_DAYS_MAX:
            times = wrong(
                "start_time",
                f"must be at most {SETTLEMENT_DAYS_MAX:,} days before the end, both included, "
                f"is {end_day - first_day:,}",
            )
    return [
        *fields.ledger(request.ledger),
        *times,
        *_bucket_days(request.bucket_days),
        *fields.consistency(request.consistency),
    ]


def as_of_us(as_of: reports_pb2.AsOf) -> int | None:
    """Return the moment asked for; None: now, with everything that is recorded."""
    return conversion.time_us(as_of.time) if as_of.HasField("time") else None


def basis(value: int, default: TimeBasis = TimeBasis.RECORDED) -> TimeBasis:
    """Return the basis asked for, or the default."""
    return TimeBasis(value) if value else default


def periods(request: reports_pb2.GetIncomeStatementRequest) -> Periods:
    """Return the moments just before and at the end of each period, each moment once."""
    bounds = [(_before_us(period.start_time), _period_end_us(period)) for period in request.periods]
    moments = sorted({moment for bound in bounds for moment in bound if moment >= 0})
    place = {moment: index for index, moment in enumerate(moments)}
    return Periods(moments, [(place.get(before), place[end]) for before, end in bounds])


def bucket_days(asked: Sequence[int], default: Sequence[int]) -> list[int]:
    """Return the ages in days at which buckets end."""
    return list(asked or default)


def bounds_us(days: Sequence[int]) -> list[int]:
    """Return ages in days in microseconds."""
    return [day * DAY_US for day in days]


def settlement_days(
    request: reports_pb2.GetSettlementReportRequest, now_us: int
) -> tuple[int, int]:
    """Return the days, since the Unix epoch: the first one, and the one after the last."""
    end_us = conversion.time_us(request.end_time) if request.HasField("end_time") else now_us
    end_day = end_us // DAY_US + 1
    if request.HasField("start_time"):
        return conversion.time_us(request.start_time) // DAY_US, end_day
    return max(end_day - SETTLEMENT_DAYS_DEFAULT, 0), end_day


def _as_of(value: reports_pb2.AsOf, now_us: int) -> Violations:
    found = [*fields.moment("as_of.time", value.time), *_basis("as_of.basis", value.basis)]
    if value.basis == ledger_pb2.TIME_BASIS_EFFECTIVE and not value.HasField("time"):
        found += wrong("as_of.basis", "goes with time: now, everything recorded counts")
    elif not found and basis(value.basis) is TimeBasis.RECORDED:
        found += _past("as_of.time", conversion.time_us(value.time), now_us)
    return found


def _period(path: str, period: reports_pb2.Period, now_us: int | None) -> Violations:
    """Check a period; ``now_us`` is when it must have ended, None where it need not."""
    if not period.HasField("start_time"):
        return wrong(f"{path}.start_time", "is required")
    found = [
        *fields.moment(f"{path}.start_time", period.start_time),
        *fields.moment(f"{path}.end_time", period.end_time),
    ]
    if found or not period.HasField("end_time"):
        return found
    if _period_end_us(period) <= _before_us(period.start_time):
        return wrong(f"{path}.end_time", "must be after start_time")
    if now_us is not None:
        return _past(f"{path}.end_time", _period_end_us(period), now_us)
    return []


def _past(field: str, time_us: int, now_us: int) -> Violations:
    """Refuse a moment that is still to come: what will be recorded by then, nobody knows."""
    if time_us > now_us:
        return wrong(
            field, "must not be in the future by time of recording; leave it out for the state now"
        )
    return []


def _basis(field: str, value: int) -> Violations:
    return fields.enum(field, value, ledger_pb2.TimeBasis.values())


def _bucket_days(days: Sequence[int]) -> Violations:
    found: Violations = []
    if len(days) > BUCKETS_MAX:
        found += wrong("bucket_days", f"must be at most {BUCKETS_MAX}, not {len(days):,}")
    for index, day in enumerate(days[:BUCKETS_MAX]):
        if not 1 <= day <= BUCKET_DAYS_MAX:
            found += wrong(
                f"bucket_days[{index}]", f"must be between 1 and {BUCKET_DAYS_MAX:,}, is {day:,}"
            )
        elif index and day <= days[index - 1]:
            found += wrong(
                f"bucket_days[{index}]", f"must be above the one before: {day} <= {days[index - 1]}"
            )
    return found


def _before_us(start: Timestamp) -> int:
    """Return the last moment before a time; -1: there is none."""
    nanos = start.seconds * 1_000_000_000 + start.nanos
    return -(-nanos // 1_000) - 1


def _period_end_us(period: reports_pb2.Period) -> int:
    """Return the last moment of a period; without an end everything recorded counts."""
    return _before_us(period.end_time) if period.HasField("end_time") else _END_OF_TIME_US

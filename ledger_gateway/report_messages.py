"""Reports as messages of the API. Field by field; amounts that int64 cannot hold are refused."""

from ledger.v1 import ledger_pb2, reports_pb2
from ledger_core import reports
from ledger_core.accounts import AccountType
from ledger_core.errors import Reason, RefusedError
from ledger_core.ids import format_account_id, format_transaction_id
from ledger_core.money import INT64_MAX
from ledger_core.results import AgeingView
from ledger_gateway import conversion

_MS_US = 1_000


def trial_balance(report: reports.TrialBalance) -> reports_pb2.TrialBalance:
    """The trial balance of a currency."""
    unit = report.currency
    return reports_pb2.TrialBalance(
        currency=unit,
        currency_exponent=report.exponent,
        lines=[_trial_balance_line(line, unit) for line in report.lines],
        total_debits=_int64(report.total_debits, unit),
        total_credits=_int64(report.total_credits, unit),
    )


def balance_sheet(report: reports.BalanceSheet) -> reports_pb2.BalanceSheet:
    """The balance sheet of a currency."""
    return reports_pb2.BalanceSheet(
        currency=report.currency,
        currency_exponent=report.exponent,
        assets=_section(report.assets, report.currency),
        liabilities=_section(report.liabilities, report.currency),
        equity=_section(report.equity, report.currency),
    )


def income_statement(report: reports.IncomeStatement) -> reports_pb2.IncomeStatement:
    """The income statement of a currency."""
    return reports_pb2.IncomeStatement(
        currency=report.currency,
        currency_exponent=report.exponent,
        revenue=_section(report.revenue, report.currency),
        expenses=_section(report.expenses, report.currency),
        net_income=[_int64(amount, report.currency) for amount in report.net_income],
        # A ratio beyond int64 says no more than the largest one.
        margin_basis_points=[
            max(-INT64_MAX, min(margin, INT64_MAX)) for margin in report.margin_basis_points
        ],
    )


def chart_balances(report: reports.ChartBalances) -> reports_pb2.ChartBalances:
    """The balances of a currency by the lines of the chart."""
    return reports_pb2.ChartBalances(
        currency=report.currency,
        currency_exponent=report.exponent,
        lines=[
            reports_pb2.ChartBalance(
                code=line.code,
                name=line.name,
                type=_type(line.type),
                parent=line.parent,
                depth=line.depth,
                own_balance=_int64(line.own_balance, report.currency),
                total_balance=_int64(line.total_balance, report.currency),
                accounts=line.accounts,
                role=_role(line.role),
            )
            for line in report.lines
        ],
    )


def ageing_line(view: AgeingView) -> reports_pb2.AgeingLine:
    """An account's balance by age."""
    return reports_pb2.AgeingLine(
        account_id=format_account_id(view.account_id),
        code=view.code,
        name=view.name,
        type=_type(view.type),
        currency=view.currency,
        currency_exponent=view.currency_exponent,
        balance=view.settled_balance,
        amounts=view.amounts,
    )


def settlement_report(report: reports.Settlements) -> reports_pb2.SettlementReport:
    """What is pending in a currency, and how pending transactions ended."""
    message = reports_pb2.SettlementReport(
        currency=report.currency,
        currency_exponent=report.exponent,
        pending_transactions=report.pending,
        pending_amount=_int64(report.pending_debits, report.currency),
        pending_by_age=report.pending_by_age,
        pending_truncated=report.truncated,
        settled_transactions=report.settled,
        cancelled_transactions=report.cancelled,
        expired_transactions=report.expired,
        settle_median_ms=_ms(report.duration_us(0.5)),
        settle_p95_ms=_ms(report.duration_us(0.95)),
        settle_max_ms=_ms(report.duration_us(1.0)),
    )
    if report.oldest_us:
        message.oldest_pending_time.CopyFrom(conversion.timestamp(report.oldest_us))
        message.oldest_pending_transaction_id = format_transaction_id(
            report.oldest_account_id, report.oldest_number
        )
    return message


def _trial_balance_line(
    line: reports.TrialBalanceLine, currency: str
) -> reports_pb2.TrialBalanceLine:
    return reports_pb2.TrialBalanceLine(
        role=_role(line.role),
        code=line.code,
        name=line.name,
        type=_type(line.type),
        accounts=line.accounts,
        debits_posted=_int64(line.sums.debits_posted, currency),
        credits_posted=_int64(line.sums.credits_posted, currency),
        debits_pending=_int64(line.sums.debits_pending, currency),
        credits_pending=_int64(line.sums.credits_pending, currency),
        debit_balance=_int64(line.debit_balance, currency),
        credit_balance=_int64(line.credit_balance, currency),
    )


def _section(section: reports.Section, currency: str) -> reports_pb2.ReportSection:
    return reports_pb2.ReportSection(
        lines=[
            reports_pb2.ReportLine(
                role=_role(line.role),
                code=line.code,
                name=line.name,
                type=_type(line.type),
                amounts=[_int64(amount, currency) for amount in line.amounts],
            )
            for line in section.lines
        ],
        totals=[_int64(amount, currency) for amount in section.totals],
    )


def _int64(amount: int, currency: str) -> int:
    """Return the amount; RefusedError if a sum has become too large for the API."""
    if abs(amount) > INT64_MAX:
        raise RefusedError(
            Reason.BALANCE_OVERFLOW,
            f"a sum of the report is {amount} {currency} in minor units, more than int64 holds; "
            f"no account is affected. Keep such books in a currency with a smaller exponent, or in "
            f"several ledgers",
            metadata={"currency": currency},
        )
    return amount


def _ms(duration_us: int | None) -> int | None:
    """Round up, as the buckets of durations do."""
    return None if duration_us is None else -(-duration_us // _MS_US)


def _type(value: AccountType) -> ledger_pb2.AccountType.ValueType:
    return ledger_pb2.AccountType.ValueType(value)


def _role(value: reports.LineRole) -> reports_pb2.LineRole.ValueType:
    return reports_pb2.LineRole.ValueType(value)

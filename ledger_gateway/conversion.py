"""Results of the shards as messages of the API, and parts of requests as parts of commands.

Field by field, nothing decided here.
"""

from collections.abc import Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from ledger.v1 import ledger_pb2
from ledger_cluster.shards import Answer
from ledger_core.accounts import AccountType, TransactionStatus
from ledger_core.commands import Limits
from ledger_core.ids import format_account_id, format_transaction_id
from ledger_core.ledgers import ChartCode, Currency
from ledger_core.queries import TransactionFilter
from ledger_core.results import (
    AccountEventView,
    AccountView,
    BalanceView,
    LedgerView,
    RefusalView,
    StatementEntryView,
    TransactionStateView,
    TransactionView,
)


def ledger(view: LedgerView, *, with_chart: bool = True) -> ledger_pb2.Ledger:
    """A ledger, with or without its chart."""
    return ledger_pb2.Ledger(
        name=view.name,
        description=view.description,
        currencies=[
            ledger_pb2.Currency(code=item.code, exponent=item.exponent) for item in view.currencies
        ],
        chart=[_chart_line(item) for item in view.chart] if with_chart else [],
        revision=view.revision,
        create_time=timestamp(view.create_time_us),
        update_time=timestamp(view.update_time_us),
    )


def account(view: AccountView) -> ledger_pb2.Account:
    """An account with its balances."""
    return ledger_pb2.Account(
        id=format_account_id(view.account_id),
        available_balance=view.available_balance,
        settled_balance=view.settled_balance,
        create_time=timestamp(view.create_time_us),
        update_time=timestamp(view.update_time_us),
        ledger=view.ledger,
        type=ledger_pb2.AccountType.ValueType(view.type),
        state=ledger_pb2.AccountState.ValueType(view.state),
        currency=view.currency,
        currency_exponent=view.currency_exponent,
        debits_posted=view.debits_posted,
        credits_posted=view.credits_posted,
        debits_pending=view.debits_pending,
        credits_pending=view.credits_pending,
        pending_transactions=view.pending_transactions,
        version=view.version,
        code=view.code,
        name=view.name,
        limits=ledger_pb2.Limits(minimum=view.limits.minimum, maximum=view.limits.maximum),
        metadata=view.metadata,
        revision=view.revision,
    )


def transaction(view: TransactionView) -> ledger_pb2.Transaction:
    """A transaction with its entries."""
    message = ledger_pb2.Transaction()
    fill_transaction(message, view)
    return message


def fill_transaction(message: ledger_pb2.Transaction, view: TransactionView) -> None:
    """Do the same in place. Protobuf copies what a message is made of, so this costs a third."""
    message.id = format_transaction_id(view.account_id, view.number)
    message.amount = view.amount
    message.description = view.description
    message.status = ledger_pb2.TransactionStatus.ValueType(view.status)
    _fill_time(message.create_time, view.create_time_us)
    _fill_time(message.update_time, view.update_time_us)
    message.account_id = format_account_id(view.account_id)
    message.ledger = view.ledger
    message.currency = view.currency
    message.currency_exponent = view.currency_exponent
    for entry in view.entries:
        message.entries.add(
            account_id=format_account_id(entry.account_id),
            direction=ledger_pb2.Direction.ValueType(entry.direction),
            amount=entry.amount,
            currency=entry.currency,
            currency_exponent=entry.currency_exponent,
        )
    if view.refusal:
        message.refusal.CopyFrom(refusal(view.refusal))
    message.request_id = view.request_id
    _fill_time(message.effective_time, view.effective_time_us)
    message.external_reference = view.external_reference
    if view.metadata:
        message.metadata.update(view.metadata)
    message.actor = view.actor
    if view.expire_time_us:
        _fill_time(message.expire_time, view.expire_time_us)
    message.settled_amount = view.settled_amount
    message.reversal_of = _transaction_id(view.account_id, view.reversal_of)
    if view.reversed_amounts:
        message.reversed_amounts.extend(view.reversed_amounts)


def refusal(view: RefusalView) -> ledger_pb2.Refusal:
    """Why a transaction was refused."""
    return ledger_pb2.Refusal(
        reason=view.reason,
        entry_index=view.entry_index,
        account_id=format_account_id(view.account_id),
        required_amount=view.required_amount,
        available_amount=view.available_amount,
        message=view.message,
    )


def balance(view: BalanceView) -> ledger_pb2.Balance:
    """The balances of an account at a moment."""
    return ledger_pb2.Balance(
        account_id=format_account_id(view.account_id),
        ledger=view.ledger,
        type=ledger_pb2.AccountType.ValueType(view.type),
        currency=view.currency,
        currency_exponent=view.currency_exponent,
        settled_balance=view.settled_balance,
        available_balance=view.available_balance,
        debits_posted=view.counters.debits_posted,
        credits_posted=view.counters.credits_posted,
        debits_pending=view.counters.debits_pending,
        credits_pending=view.counters.credits_pending,
        version=view.version,
        update_time=timestamp(view.time_us) if view.time_us else None,
    )


def account_entry(view: StatementEntryView) -> ledger_pb2.AccountEntry:
    """A line of a statement."""
    return ledger_pb2.AccountEntry(
        sequence=view.sequence,
        kind=ledger_pb2.EntryKind.ValueType(view.kind),
        direction=ledger_pb2.Direction.ValueType(view.direction),
        amount=view.amount,
        create_time=timestamp(view.time_us),
        effective_time=timestamp(view.effective_time_us),
        transaction_id=_transaction_id(view.home_account_id, view.number),
        description=view.description,
        external_reference=view.external_reference,
        transaction_status=ledger_pb2.TransactionStatus.ValueType(view.status),
        settled_balance=view.settled_balance,
        available_balance=view.available_balance,
        debits_posted=view.after.debits_posted,
        credits_posted=view.after.credits_posted,
        debits_pending=view.after.debits_pending,
        credits_pending=view.after.credits_pending,
        request_id=view.request_id,
        actor=view.actor,
        reversal_of=_transaction_id(view.home_account_id, view.reversal_of),
    )


def transaction_state(view: TransactionStateView) -> ledger_pb2.TransactionState:
    """A step in the life of a transaction."""
    return ledger_pb2.TransactionState(
        status=ledger_pb2.TransactionStatus.ValueType(view.status),
        create_time=timestamp(view.time_us),
        request_id=view.request_id,
        actor=view.actor,
        correlation_id=view.correlation_id,
        peer=view.peer,
    )


def account_event(view: AccountEventView) -> ledger_pb2.AccountEvent:
    """A step in the life of an account; its changes by the names of their fields."""
    return ledger_pb2.AccountEvent(
        kind=ledger_pb2.AccountEventKind.ValueType(view.kind),
        create_time=timestamp(view.time_us),
        request_id=view.request_id,
        actor=view.actor,
        correlation_id=view.correlation_id,
        peer=view.peer,
        changes=[
            ledger_pb2.FieldChange(field=field, before=before, after=after)
            for field, (before, after) in sorted(view.changes.items())
        ],
        reason=view.reason,
        message=view.message,
        transaction_id=_transaction_id(view.home_account_id, view.number),
    )


def read_point(answer: Answer) -> ledger_pb2.ReadPoint:
    """Where in the shard's log an answer was taken."""
    return ledger_pb2.ReadPoint(
        shard_id=answer.shard_id, applied_index=answer.applied_index, age_ms=answer.age_ms
    )


def timestamp(time_us: int) -> Timestamp:
    """Microseconds since the Unix epoch, exactly: floats would round."""
    message = Timestamp()
    _fill_time(message, time_us)
    return message


def _fill_time(message: Timestamp, time_us: int) -> None:
    message.seconds, micros = divmod(time_us, 1_000_000)
    message.nanos = micros * 1_000


def time_us(value: Timestamp) -> int:
    """Whole microseconds since the Unix epoch; 0 if not set."""
    return value.seconds * 1_000_000 + value.nanos // 1_000


def time_us_up(value: Timestamp) -> int:
    """Microseconds since the Unix epoch, rounded up; 0 if not set.

    Times of the ledger are whole microseconds: those from a moment on, or before it, are those from
    this one on, or before it.
    """
    return value.seconds * 1_000_000 - -value.nanos // 1_000


def transaction_filter(request: ledger_pb2.ListTransactionsRequest) -> TransactionFilter:
    """What the transactions of a list have to be like."""
    return TransactionFilter(
        status=TransactionStatus(request.status) if request.status else None,
        start_us=time_us_up(request.start_time),
        end_us=time_us_up(request.end_time),
        external_reference=request.external_reference,
        metadata_key=request.metadata_key,
    )


def currency(value: ledger_pb2.Currency) -> Currency:
    """A currency of a ledger."""
    return Currency(value.code, value.exponent)


def chart_code(value: ledger_pb2.ChartLine) -> ChartCode:
    """A line of a chart."""
    return ChartCode(value.code, value.name, AccountType(value.type), value.parent)


def limits(value: ledger_pb2.Limits) -> Limits:
    """Bounds, None where there is none."""
    return Limits(
        minimum=value.minimum if value.HasField("minimum") else None,
        maximum=value.maximum if value.HasField("maximum") else None,
    )


def metadata(values: Mapping[str, str]) -> dict[str, str]:
    """Metadata in one order, so that a repeated request has the same bytes as the first one."""
    return dict(sorted(values.items()))


def _transaction_id(account_id: int, number: int) -> str:
    """Transactions count from 1: 0 is none."""
    return format_transaction_id(account_id, number) if number else ""


def _chart_line(line: ChartCode) -> ledger_pb2.ChartLine:
    return ledger_pb2.ChartLine(
        code=line.code,
        name=line.name,
        type=ledger_pb2.AccountType.ValueType(line.type),
        parent=line.parent,
    )

"""Building requests, shared by the sync and the asyncio client."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from ledger.v1 import ledger_pb2
from ledger_client.errors import invalid_argument
from ledger_core.errors import FieldViolation
from ledger_core.ids import new_request_id

MessageT = TypeVar("MessageT", bound=Message)


def create_ledger(
    *,
    name: str,
    currencies: Iterable[ledger_pb2.Currency],
    chart: Iterable[ledger_pb2.ChartLine],
    description: str,
    actor: str,
    request_id: str | None,
) -> ledger_pb2.CreateLedgerRequest:
    """Build a CreateLedger request."""
    return fill(
        ledger_pb2.CreateLedgerRequest(),
        name=name,
        currencies=list(currencies),
        chart=list(chart),
        description=description,
        actor=actor,
        request_id=request_id or new_request_id(),
    )


def get_ledger(ledger: str, stale: bool) -> ledger_pb2.GetLedgerRequest:
    """Build a GetLedger request."""
    return fill(ledger_pb2.GetLedgerRequest(), ledger=ledger, consistency=consistency(stale))


def list_ledgers(page_size: int, page_token: str, stale: bool) -> ledger_pb2.ListLedgersRequest:
    """Build a ListLedgers request."""
    return fill(
        ledger_pb2.ListLedgersRequest(),
        page_size=page_size,
        page_token=page_token,
        consistency=consistency(stale),
    )


def update_ledger(
    *,
    ledger: str,
    revision: int,
    description: str | None,
    currencies: Iterable[ledger_pb2.Currency],
    chart: Iterable[ledger_pb2.ChartLine],
    actor: str,
    request_id: str | None,
) -> ledger_pb2.UpdateLedgerRequest:
    """Build an UpdateLedger request."""
    return fill(
        ledger_pb2.UpdateLedgerRequest(),
        ledger=ledger,
        revision=revision,
        currencies=list(currencies),
        chart=list(chart),
        actor=actor,
        request_id=request_id or new_request_id(),
        **given(description=description),
    )


def create_account(
    *,
    request_id: str | None,
    ledger: str,
    currency: str,
    code: str,
    account_type: ledger_pb2.AccountType.ValueType,
    name: str,
    limits: ledger_pb2.Limits | None,
    metadata: Mapping[str, str] | None,
    actor: str,
) -> ledger_pb2.CreateAccountRequest:
    """Build a CreateAccount request."""
    return fill(
        ledger_pb2.CreateAccountRequest(),
        request_id=request_id or new_request_id(),
        ledger=ledger,
        currency=currency,
        code=code,
        type=account_type,
        name=name,
        actor=actor,
        **given(limits=limits, metadata=metadata),
    )


def get_account(
    account_id: str, ledger: str, name: str, stale: bool
) -> ledger_pb2.GetAccountRequest:
    """Build a GetAccount request."""
    return fill(
        ledger_pb2.GetAccountRequest(),
        account_id=account_id,
        ledger=ledger,
        name=name,
        consistency=consistency(stale),
    )


def list_accounts(
    *,
    ledger: str,
    code_prefix: str,
    account_type: ledger_pb2.AccountType.ValueType,
    state: ledger_pb2.AccountState.ValueType,
    metadata_key: str,
    page_size: int,
    page_token: str,
    stale: bool,
) -> ledger_pb2.ListAccountsRequest:
    """Build a ListAccounts request."""
    return fill(
        ledger_pb2.ListAccountsRequest(),
        ledger=ledger,
        code_prefix=code_prefix,
        type=account_type,
        state=state,
        metadata_key=metadata_key,
        page_size=page_size,
        page_token=page_token,
        consistency=consistency(stale),
    )


def update_account(
    *,
    account_id: str,
    revision: int,
    name: str | None,
    metadata: Mapping[str, str] | None,
    limits: ledger_pb2.Limits | None,
    actor: str,
    request_id: str | None,
) -> ledger_pb2.UpdateAccountRequest:
    """Build an UpdateAccount request."""
    values = None
    if metadata is not None:
        values = fill(ledger_pb2.Metadata(), values=metadata)
    return fill(
        ledger_pb2.UpdateAccountRequest(),
        account_id=account_id,
        revision=revision,
        actor=actor,
        request_id=request_id or new_request_id(),
        **given(name=name, metadata=values, limits=limits),
    )


def change_account(
    kind: type[MessageT], account_id: str, actor: str, request_id: str | None
) -> MessageT:
    """Build a FreezeAccount, UnfreezeAccount or CloseAccount request."""
    return fill(
        kind(), account_id=account_id, actor=actor, request_id=request_id or new_request_id()
    )


def create_transaction(
    *,
    account_id: str,
    amount: int,
    description: str,
    settled: bool,
    entries: Sequence[ledger_pb2.Entry],
    ledger: str,
    external_reference: str,
    effective_time: datetime | None,
    expire_time: datetime | None,
    metadata: Mapping[str, str] | None,
    actor: str,
    dry_run: bool,
    request_id: str | None,
) -> ledger_pb2.CreateTransactionRequest:
    """Build a CreateTransaction request."""
    return fill(
        ledger_pb2.CreateTransactionRequest(),
        account_id=account_id,
        amount=amount,
        description=description,
        settled=settled,
        entries=entries,
        ledger=ledger,
        external_reference=external_reference,
        actor=actor,
        dry_run=dry_run,
        request_id=request_id or new_request_id(),
        **given(effective_time=effective_time, expire_time=expire_time, metadata=metadata),
    )


def get_transaction(
    transaction_id: str, account_id: str, request_id: str, stale: bool
) -> ledger_pb2.GetTransactionRequest:
    """Build a GetTransaction request."""
    return fill(
        ledger_pb2.GetTransactionRequest(),
        transaction_id=transaction_id,
        account_id=account_id,
        request_id=request_id,
        consistency=consistency(stale),
    )


def settle_transaction(
    transaction_id: str, amount: int, actor: str, request_id: str | None
) -> ledger_pb2.SettleTransactionRequest:
    """Build a SettleTransaction request."""
    return fill(
        ledger_pb2.SettleTransactionRequest(),
        transaction_id=transaction_id,
        amount=amount,
        actor=actor,
        request_id=request_id or new_request_id(),
    )


def cancel_transaction(
    transaction_id: str, actor: str, request_id: str | None
) -> ledger_pb2.CancelTransactionRequest:
    """Build a CancelTransaction request."""
    return fill(
        ledger_pb2.CancelTransactionRequest(),
        transaction_id=transaction_id,
        actor=actor,
        request_id=request_id or new_request_id(),
    )


def reverse_transaction(
    transaction_id: str,
    amounts: Sequence[int],
    description: str,
    actor: str,
    request_id: str | None,
) -> ledger_pb2.ReverseTransactionRequest:
    """Build a ReverseTransaction request."""
    return fill(
        ledger_pb2.ReverseTransactionRequest(),
        transaction_id=transaction_id,
        amounts=amounts,
        description=description,
        actor=actor,
        request_id=request_id or new_request_id(),
    )


def list_transactions(
    *,
    account_id: str,
    ledger: str,
    status: ledger_pb2.TransactionStatus.ValueType,
    start: datetime | None,
    end: datetime | None,
    external_reference: str,
    metadata_key: str,
    page_size: int,
    page_token: str,
    stale: bool,
) -> ledger_pb2.ListTransactionsRequest:
    """Build a ListTransactions request."""
    return fill(
        ledger_pb2.ListTransactionsRequest(),
        account_id=account_id,
        ledger=ledger,
        status=status,
        external_reference=external_reference,
        metadata_key=metadata_key,
        page_size=page_size,
        page_token=page_token,
        consistency=consistency(stale),
        **given(start_time=start, end_time=end),
    )


def get_balance(
    account_id: str,
    as_of: datetime | None,
    basis: ledger_pb2.TimeBasis.ValueType,
    stale: bool,
) -> ledger_pb2.GetBalanceRequest:
    """Build a GetBalance request."""
    return fill(
        ledger_pb2.GetBalanceRequest(),
        account_id=account_id,
        basis=basis,
        consistency=consistency(stale),
        **given(as_of_time=as_of),
    )


def list_entries(
    *,
    account_id: str,
    start: datetime | None,
    end: datetime | None,
    oldest_first: bool,
    page_size: int,
    page_token: str,
    stale: bool,
) -> ledger_pb2.ListEntriesRequest:
    """Build a ListEntries request."""
    return fill(
        ledger_pb2.ListEntriesRequest(),
        account_id=account_id,
        oldest_first=oldest_first,
        page_size=page_size,
        page_token=page_token,
        consistency=consistency(stale),
        **given(start_time=start, end_time=end),
    )


def get_statement(
    *,
    account_id: str,
    start: datetime | None,
    end: datetime | None,
    page_size: int,
    page_token: str,
    stale: bool,
) -> ledger_pb2.GetStatementRequest:
    """Build a GetStatement request."""
    return fill(
        ledger_pb2.GetStatementRequest(),
        account_id=account_id,
        page_size=page_size,
        page_token=page_token,
        consistency=consistency(stale),
        **given(start_time=start, end_time=end),
    )


def list_transaction_states(
    transaction_id: str, stale: bool
) -> ledger_pb2.ListTransactionStatesRequest:
    """Build a ListTransactionStates request."""
    return fill(
        ledger_pb2.ListTransactionStatesRequest(),
        transaction_id=transaction_id,
        consistency=consistency(stale),
    )


def list_account_events(
    account_id: str, page_size: int, page_token: str, stale: bool
) -> ledger_pb2.ListAccountEventsRequest:
    """Build a ListAccountEvents request."""
    return fill(
        ledger_pb2.ListAccountEventsRequest(),
        account_id=account_id,
        page_size=page_size,
        page_token=page_token,
        consistency=consistency(stale),
    )


def fill(message: MessageT, **fields: object) -> MessageT:
    """Set the fields; InvalidArgumentError names all those that the message cannot hold.

    Protobuf refuses them with a text that names no field.
    """
    violations = []
    for name, value in fields.items():
        try:
            _set(message, name, value)
        except (TypeError, ValueError, AttributeError) as error:
            violations.append(FieldViolation(name, _problem(value, error)))
    if violations:
        raise invalid_argument(violations)
    return message


def given(**fields: object) -> dict[str, object]:
    """Return the fields that are not None: the others stay unset."""
    return {name: value for name, value in fields.items() if value is not None}


def _set(message: Message, name: str, value: object) -> None:
    match value:
        case Message():
            # Set even if there is nothing in it: no limits are not the same as none given.
            getattr(message, name).SetInParent()
            getattr(message, name).CopyFrom(value)
        case Mapping():
            getattr(message, name).update(value)
        case list() | tuple():
            getattr(message, name).extend(value)
        case datetime():
            if value.tzinfo is None:
                raise ValueError("must have a time zone, such as datetime.UTC")
            moment = Timestamp()
            moment.FromDatetime(value)
            getattr(message, name).CopyFrom(moment)
        case _:
            setattr(message, name, value)


def consistency(stale: bool) -> ledger_pb2.ReadConsistency.ValueType:
    if stale:
        return ledger_pb2.READ_CONSISTENCY_STALE
    return ledger_pb2.READ_CONSISTENCY_LINEARIZABLE


def _problem(value: object, error: Exception) -> str:
    match value:
        case datetime() if isinstance(error, ValueError):
            return str(error)
        case int() if isinstance(error, ValueError):
            return f"must fit into the field: {value} is out of range"
        case Mapping() | list() | tuple() if not isinstance(error, UnicodeError):
            return "has elements that the field cannot hold"
    if isinstance(error, UnicodeError):
        return "must be text that UTF-8 can encode"
    return f"must not be of type {type(value).__name__}"

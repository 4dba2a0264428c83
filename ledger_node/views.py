"""From stored rows to what commands and queries return, and the failures both have."""

from ledger_core.accounts import AccountState
from ledger_core.commands import CreateAccount
from ledger_core.errors import Reason
from ledger_core.ids import format_account_id, format_transaction_id
from ledger_core.ledgers import Currency
from ledger_core.refusals import refusal_message
from ledger_core.results import (
    AccountView,
    EntryView,
    Failure,
    LedgerView,
    RefusalView,
    TransactionView,
)
from ledger_node.records import (
    AccountRecord,
    BalanceRow,
    Book,
    LedgerRecord,
    TransactionRecord,
)


def account_view(
    record: AccountRecord, balance: BalanceRow, book: Book, update_time_us: int
) -> AccountView:
    """Show an account with the balances of ``balance``."""
    normal_side = balance.type.normal_side
    return AccountView(
        account_id=record.account_id,
        ledger=book.ledger,
        type=balance.type,
        state=balance.state,
        currency=book.currency,
        currency_exponent=book.currency_exponent,
        settled_balance=balance.settled_balance(normal_side),
        available_balance=balance.available_balance(normal_side),
        debits_posted=balance.debits_posted,
        credits_posted=balance.credits_posted,
        debits_pending=balance.debits_pending,
        credits_pending=balance.credits_pending,
        pending_transactions=balance.pending_transactions,
        version=balance.sequence,
        create_time_us=record.create_time_us,
        update_time_us=max(update_time_us, record.update_time_us),
        code=record.code,
        name=record.name,
        limits=record.limits,
        metadata=record.metadata,
        revision=record.revision,
        previous_name=record.previous_name,
    )


def opened_account_view(command: CreateAccount, create_time_us: int) -> AccountView:
    """Show an account as it was when it was opened, whatever it has become since."""
    return AccountView(
        account_id=command.account_id,
        ledger=command.ledger,
        type=command.type,
        state=AccountState.OPEN,
        currency=command.currency.code,
        currency_exponent=command.currency.exponent,
        settled_balance=0,
        available_balance=0,
        debits_posted=0,
        credits_posted=0,
        debits_pending=0,
        credits_pending=0,
        pending_transactions=0,
        version=0,
        create_time_us=create_time_us,
        update_time_us=create_time_us,
        code=command.code,
        name=command.name,
        limits=command.limits,
        metadata=command.metadata,
        revision=0,
    )


def ledger_view(record: LedgerRecord) -> LedgerView:
    """Show a ledger."""
    return LedgerView(
        name=record.name,
        description=record.description,
        currencies=record.currencies,
        chart=record.chart,
        revision=record.revision,
        create_time_us=record.create_time_us,
        update_time_us=record.update_time_us,
    )


def transaction_view(
    number: int,
    record: TransactionRecord,
    book: Book,
    state: int = -1,
    *,
    in_flight: int | None = None,
) -> TransactionView:
    """Show a transaction as it was in its ``state``-th state; by default as it is now.

    A participant's record is shown under the number that it has at its home.
    """
    shown = record.states[state]
    at_last = shown is record.states[-1]
    return TransactionView(
        account_id=record.account_id,
        number=number if record.home_shard_id is None else record.home_number,
        amount=record.amount,
        description=record.description,
        status=shown.status,
        ledger=book.ledger,
        currency=book.currency,
        currency_exponent=book.currency_exponent,
        entries=[
            EntryView(
                entry.account_id,
                entry.direction,
                entry.amount,
                entry.currency or book.currency,
                entry.currency_exponent if entry.currency else book.currency_exponent,
            )
            for entry in record.entries
        ],
        refusal=refusal_view(record, book) if shown.status.is_refusal else None,
        request_id=record.states[0].request_id,
        create_time_us=record.states[0].time_us,
        update_time_us=shown.time_us,
        effective_time_us=record.effective_time_us,
        external_reference=record.external_reference,
        metadata=record.metadata,
        actor=record.states[0].actor,
        expire_time_us=record.expire_time_us,
        settled_amount=record.settled_amount if at_last else 0,
        reversal_of=record.reversal_of,
        # Reversals come after every state: they are shown of the transaction as it is now only.
        reversed_amounts=record.reversed_amounts
        if state == -1 and any(record.reversed_amounts)
        else [],
        in_flight=in_flight,
    )


def account_failure(reason: Reason, account_id: int, predicate: str) -> Failure:
    """Say of the account that a request names what is wrong with it."""
    text = format_account_id(account_id)
    return Failure(
        reason, f"account {text} {predicate}", field="account_id", metadata={"account_id": text}
    )


def account_not_found(account_id: int) -> Failure:
    """Say that there is no such account."""
    return account_failure(Reason.ACCOUNT_NOT_FOUND, account_id, "does not exist")


def transaction_not_found(account_id: int, number: int) -> Failure:
    """Say that there is no such transaction."""
    text = format_transaction_id(account_id, number)
    return Failure(
        Reason.TRANSACTION_NOT_FOUND,
        f"transaction {text} does not exist",
        field="transaction_id",
        metadata={"transaction_id": text},
    )


def refusal_view(record: TransactionRecord, book: Book) -> RefusalView | None:
    """Show why a transaction was refused, if it was."""
    refusal = record.refusal
    if refusal is None:
        return None

    account_id = record.entries[refusal.entry_index].account_id
    currency = Currency(book.currency, book.currency_exponent)
    return RefusalView(
        reason=refusal.reason,
        entry_index=refusal.entry_index,
        account_id=account_id,
        required_amount=refusal.required_amount,
        available_amount=refusal.available_amount,
        message=refusal_message(refusal, account_id, currency),
        reserved_amount=refusal.reserved_amount,
    )

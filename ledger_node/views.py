"""From stored rows to what commands and queries return, and the failures both have."""

from ledger_core.errors import Reason
from ledger_core.ids import format_account_id, format_transaction_id
from ledger_core.money import format_amount
from ledger_core.results import AccountView, EntryView, Failure, RefusalView, TransactionView
from ledger_node.records import AccountRecord, BalanceRow, Book, TransactionRecord


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
        update_time_us=update_time_us,
    )


def transaction_view(
    number: int, record: TransactionRecord, book: Book, state: int = -1
) -> TransactionView:
    """Show a transaction as it was in its ``state``-th state; by default as it is now."""
    shown = record.states[state]
    return TransactionView(
        account_id=record.account_id,
        number=number,
        amount=record.amount,
        description=record.description,
        status=shown.status,
        ledger=book.ledger,
        currency=book.currency,
        currency_exponent=book.currency_exponent,
        entries=[
            EntryView(entry.account_id, entry.direction, entry.amount, book.currency)
            for entry in record.entries
        ],
        refusal=_refusal_view(record, book),
        request_id=record.states[0].request_id,
        create_time_us=record.states[0].time_us,
        update_time_us=shown.time_us,
        effective_time_us=record.effective_time_us,
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


def _refusal_view(record: TransactionRecord, book: Book) -> RefusalView | None:
    refusal = record.refusal
    if refusal is None:
        return None

    def money(amount: int) -> str:
        return format_amount(amount, book.currency, book.currency_exponent)

    account_id = record.entries[refusal.entry_index].account_id
    message = (
        f"account {format_account_id(account_id)} has {money(refusal.available_amount)} available, "
        f"needs {money(refusal.required_amount)}"
    )
    if refusal.reserved_amount:
        message += f" ({money(refusal.reserved_amount)} reserved by pending transactions)"
    return RefusalView(
        reason=record.status.name,
        entry_index=refusal.entry_index,
        account_id=account_id,
        required_amount=refusal.required_amount,
        available_amount=refusal.available_amount,
        message=message,
    )

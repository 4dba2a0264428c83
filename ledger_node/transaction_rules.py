"""The rules of transactions: what is refused and why, what is booked, and how they end."""

from collections import defaultdict

from ledger_core.accounts import AccountState, Direction, EntryKind, TransactionStatus
from ledger_core.commands import (
    NO_OVERDRAFT,
    CancelTransaction,
    CreateTransaction,
    Limits,
    SettleTransaction,
)
from ledger_core.errors import Reason, RefusalReason
from ledger_core.ids import format_account_id, format_transaction_id, is_system_account_id
from ledger_core.money import format_amount
from ledger_core.results import Failure
from ledger_node.books import Books, InvariantError
from ledger_node.records import (
    BalanceRow,
    EntryRecord,
    RefusalRecord,
    StateRecord,
    TransactionRecord,
)
from ledger_node.views import account_failure, account_not_found, transaction_not_found


def create_transaction(books: Books, command: CreateTransaction) -> int | Failure:
    """Record a transaction, booked or refused; return its number, or why nothing was recorded."""
    account_id = command.account_id
    slot = books.find_slot(account_id)
    if slot is None:
        return account_not_found(account_id)
    if is_system_account_id(books.meta.lower_bound, account_id):
        return account_failure(
            Reason.SYSTEM_ACCOUNT,
            account_id,
            "belongs to the ledger itself and moves only as the other side of a customer's "
            "transaction",
        )
    balance = books.balance(slot)
    normal_side = balance.type.normal_side
    direction = normal_side if command.amount > 0 else normal_side.opposite
    amount = abs(command.amount)
    external = books.balance(books.meta.books[balance.book].external_slot)
    entries = [
        EntryRecord(account_id, direction, amount),
        EntryRecord(external.account_id, direction.opposite, amount),
    ]
    refusal = _refusal(books, entries)
    if refusal is None and (failure := _overflow(books, entries)):
        return failure
    if refusal is not None:
        status, kind = _REFUSED_STATUS.get(refusal.reason, _REJECTED), EntryKind.REFUSED
    elif command.settled:
        status, kind = TransactionStatus.SETTLED, EntryKind.POSTED
    else:
        status, kind = TransactionStatus.PENDING, EntryKind.PENDING
    time_us = books.meta.time_us
    record = TransactionRecord(
        account_id=account_id,
        amount=command.amount,
        description=command.description,
        settled=command.settled,
        book=balance.book,
        entries=entries,
        states=[StateRecord(status, time_us, command.request_id)],
        effective_time_us=time_us,
        refusal=refusal,
    )
    number = books.next_transaction_number()
    books.save_transaction(number, record)
    books.book_entries(number, record, kind)
    if refusal is None:
        _check_floors(books, entries)
    return number


def end_transaction(
    books: Books, command: SettleTransaction | CancelTransaction
) -> TransactionRecord | Failure:
    """Settle or cancel a pending transaction, whatever has become of its accounts meanwhile."""
    record = books.find_transaction(command.number)
    if record is None or record.account_id != command.account_id:
        return transaction_not_found(command.account_id, command.number)
    if record.status is not TransactionStatus.PENDING:
        transaction_id = format_transaction_id(command.account_id, command.number)
        return Failure(
            Reason.TRANSACTION_NOT_PENDING,
            f"transaction {transaction_id} is {record.status.name}; only PENDING transactions "
            f"can be settled or cancelled",
            field="transaction_id",
            metadata={"transaction_id": transaction_id, "status": record.status.name},
        )
    if isinstance(command, SettleTransaction):
        status, kind = TransactionStatus.SETTLED, EntryKind.SETTLED
    else:
        status, kind = TransactionStatus.CANCELLED, EntryKind.CANCELLED
    record.states.append(StateRecord(status, books.meta.time_us, command.request_id))
    books.save_transaction(command.number, record)
    books.book_entries(command.number, record, kind)
    return record


_REJECTED = TransactionStatus.REJECTED
_REFUSED_STATUS = {RefusalReason.INSUFFICIENT_FUNDS: TransactionStatus.INSUFFICIENT_FUNDS}


def _refusal(books: Books, entries: list[EntryRecord]) -> RefusalRecord | None:
    """Return why the accounts do not take the transaction, or None.

    Balances are judged by the state after the whole transaction. States come before funds, funds
    before other limits.
    """
    for index, entry in enumerate(entries):
        state = books.balance(books.slot(entry.account_id)).state
        if state is not AccountState.OPEN:
            return RefusalRecord(index, reason=_STATE_REFUSALS[state])
    inflows: defaultdict[int, int] = defaultdict(int)
    for entry in entries:
        slot = books.slot(entry.account_id)
        is_inflow = entry.direction is books.balance(slot).type.normal_side
        inflows[slot] += entry.amount if is_inflow else -entry.amount
    for index, entry in enumerate(entries):
        slot = books.slot(entry.account_id)
        if refusal := _overdraft(books, index, slot, -inflows[slot]):
            return refusal
    for index, entry in enumerate(entries):
        slot = books.slot(entry.account_id)
        if refusal := _overfull(books, index, slot, inflows[slot]):
            return refusal
    return None


_STATE_REFUSALS = {
    AccountState.FROZEN: RefusalReason.ACCOUNT_FROZEN,
    AccountState.CLOSED: RefusalReason.ACCOUNT_CLOSED,
}


def _overdraft(books: Books, index: int, slot: int, outflow: int) -> RefusalRecord | None:
    """Only outflows are checked: an inflow is accepted however low the balance is."""
    balance = books.balance(slot)
    minimum = limits_of(books, slot, balance).minimum
    if minimum is None or outflow <= 0:
        return None
    normal_side = balance.type.normal_side
    available = balance.available_balance(normal_side)
    if available - outflow >= minimum:
        return None
    return RefusalRecord(
        entry_index=index,
        required_amount=outflow,
        available_amount=available - minimum,
        reserved_amount=balance.settled_balance(normal_side) - available,
    )


def _overfull(books: Books, index: int, slot: int, inflow: int) -> RefusalRecord | None:
    """Only inflows are checked. Pending inflows count: settling them must not pass the limit."""
    balance = books.balance(slot)
    maximum = limits_of(books, slot, balance).maximum
    if maximum is None or inflow <= 0:
        return None
    pending = balance.pending_inflow()
    room = maximum - balance.settled_balance(balance.type.normal_side) - pending
    if inflow <= room:
        return None
    return RefusalRecord(
        entry_index=index,
        required_amount=inflow,
        available_amount=room,
        reserved_amount=pending,
        reason=RefusalReason.LIMIT_EXCEEDED,
    )


def limits_of(books: Books, slot: int, balance: BalanceRow) -> Limits:
    """Return an account's limits; only accounts with unusual ones have their record read."""
    if balance.limited:
        return books.info(slot).limits
    return NO_OVERDRAFT if balance.floored else _NO_LIMITS


_NO_LIMITS = Limits(minimum=None)


def _overflow(books: Books, entries: list[EntryRecord]) -> Failure | None:
    """Return a failure if booking the entries would take a counter beyond int64."""
    for entry in entries:
        balance = books.balance(books.slot(entry.account_id))
        room = balance.room(entry.direction)
        if entry.amount > room:
            book = books.meta.books[balance.book]
            account_id = format_account_id(entry.account_id)
            return Failure(
                Reason.BALANCE_OVERFLOW,
                f"the {entry.direction.name.lower()}s of account {account_id} would pass "
                f"2**63 - 1; there is room for "
                f"{format_amount(room, book.currency, book.currency_exponent)}",
                field="amount",
                metadata={"account_id": account_id, "room": str(room)},
            )
    return None


def _check_floors(books: Books, entries: list[EntryRecord]) -> None:
    """Assert what `_overdraft` promised: no outflow took an account below its minimum."""
    for entry in entries:
        slot = books.slot(entry.account_id)
        balance = books.balance(slot)
        normal_side: Direction = balance.type.normal_side
        minimum = limits_of(books, slot, balance).minimum
        if (
            minimum is not None
            and entry.direction is not normal_side
            and balance.available_balance(normal_side) < minimum
        ):
            raise InvariantError(f"account {format_account_id(balance.account_id)} is overdrawn")

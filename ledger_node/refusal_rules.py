"""Why the accounts of a shard do not take a transaction: every reason, in order of precedence."""

from collections import defaultdict
from collections.abc import Callable, Iterable

from ledger_core.accounts import AccountState, TransactionStatus
from ledger_core.commands import (
    NO_OVERDRAFT,
    CreateTransaction,
    Entry,
    Limits,
    Refused,
)
from ledger_core.errors import RefusalReason
from ledger_core.ids import format_account_id, is_system_account_id
from ledger_node.books import Books, InvariantError
from ledger_node.records import BalanceRow, EntryRecord

_NO_LIMITS = Limits(minimum=None)


def refused_status(refused: Refused) -> TransactionStatus:
    """Return the status of a transaction that is refused so."""
    if refused.reason is RefusalReason.INSUFFICIENT_FUNDS:
        return TransactionStatus.INSUFFICIENT_FUNDS
    return TransactionStatus.REJECTED


def refusal(
    books: Books, command: CreateTransaction, *, own_accounts: bool = False
) -> Refused | None:
    """Return why the accounts on this shard do not take a transaction with entries, or None.

    Kinds of reasons are checked one after the other, in the order of `RefusalReason`, each for all
    entries. Balances are judged by the state after the whole transaction: what an account gets and
    pays in it is netted if it settles at once; if it is pending first (which it always is across
    shards), the account must have all that it pays, for pending inflows are not available.
    ``own_accounts`` lets the shard's own accounts take part.
    """
    entries = command.entries
    nets = command.settled and all(entry.shard_id == books.shard_id for entry in entries)
    local = [(i, entry) for i, entry in enumerate(entries) if entry.shard_id == books.shard_id]
    for reason, holds in _CHECKS:
        if own_accounts and reason is RefusalReason.SYSTEM_ACCOUNT:
            continue
        for index, entry in local:
            if holds(books, command, entry):
                return Refused(index, reason=reason)
    moved = _Moved(books, [entry for _, entry in local], nets=nets)
    for limit in (_overdraft, _overfull):
        for index, entry in local:
            slot = books.slot(entry.account_id)
            if refused := limit(books, index, slot, moved):
                return refused
    for index, entry in local:
        balance = books.balance(books.slot(entry.account_id))
        room = balance.room(entry.direction)
        if entry.amount > room:
            return Refused(index, entry.amount, room, reason=RefusalReason.BALANCE_OVERFLOW)
    return None


def _is_missing(books: Books, _command: CreateTransaction, entry: Entry) -> bool:
    return books.find_slot(entry.account_id) is None


def _is_own(books: Books, _command: CreateTransaction, entry: Entry) -> bool:
    return is_system_account_id(books.meta.lower_bound, entry.account_id)


def _is_of_other_ledger(books: Books, command: CreateTransaction, entry: Entry) -> bool:
    return books.book_of(entry.account_id).ledger != command.ledger


def _has_other_currency(books: Books, _command: CreateTransaction, entry: Entry) -> bool:
    return books.book_of(entry.account_id).currency != entry.currency.code


def _is_closed(books: Books, _command: CreateTransaction, entry: Entry) -> bool:
    return books.balance(books.slot(entry.account_id)).state is AccountState.CLOSED


def _is_frozen(books: Books, _command: CreateTransaction, entry: Entry) -> bool:
    return books.balance(books.slot(entry.account_id)).state is AccountState.FROZEN


def _is_at_other_version(books: Books, _command: CreateTransaction, entry: Entry) -> bool:
    version = books.balance(books.slot(entry.account_id)).sequence
    return entry.expected_version not in (None, version)


def _falls_below(books: Books, command: CreateTransaction, entry: Entry) -> bool:
    minimum = entry.minimum_balance
    return minimum is not None and _settled_after(books, command, entry) < minimum


def _rises_above(books: Books, command: CreateTransaction, entry: Entry) -> bool:
    maximum = entry.maximum_balance
    return maximum is not None and _settled_after(books, command, entry) > maximum


def _settled_after(books: Books, command: CreateTransaction, entry: Entry) -> int:
    """Return an account's settled balance as it would be with the whole transaction settled."""
    slot = books.slot(entry.account_id)
    balance = books.balance(slot)
    local = [item for item in command.entries if item.shard_id == books.shard_id]
    moved = _Moved(books, local, nets=False)
    settled = balance.settled_balance(balance.type.normal_side)
    return settled + moved.inflow[slot] - moved.outflow[slot]


_CHECKS: tuple[tuple[RefusalReason, Callable[[Books, CreateTransaction, Entry], bool]], ...] = (
    (RefusalReason.ACCOUNT_NOT_FOUND, _is_missing),
    (RefusalReason.SYSTEM_ACCOUNT, _is_own),
    (RefusalReason.LEDGER_MISMATCH, _is_of_other_ledger),
    (RefusalReason.CURRENCY_MISMATCH, _has_other_currency),
    (RefusalReason.ACCOUNT_CLOSED, _is_closed),
    (RefusalReason.ACCOUNT_FROZEN, _is_frozen),
    (RefusalReason.VERSION_MISMATCH, _is_at_other_version),
    (RefusalReason.BALANCE_BELOW_MINIMUM, _falls_below),
    (RefusalReason.BALANCE_ABOVE_MAXIMUM, _rises_above),
)


class _Moved:
    """By slot: what goes out, what comes in, and the difference."""

    def __init__(
        self, books: Books, entries: Iterable[Entry] | Iterable[EntryRecord], *, nets: bool
    ) -> None:
        self.outflow: defaultdict[int, int] = defaultdict(int)
        self.inflow: defaultdict[int, int] = defaultdict(int)
        for entry in entries:
            slot = books.slot(entry.account_id)
            is_inflow = entry.direction is books.balance(slot).type.normal_side
            (self.inflow if is_inflow else self.outflow)[slot] += entry.amount
        if nets:
            for slot in self.outflow.keys() & self.inflow.keys():
                netted = min(self.outflow[slot], self.inflow[slot])
                self.outflow[slot] -= netted
                self.inflow[slot] -= netted


def _overdraft(books: Books, index: int, slot: int, moved: _Moved) -> Refused | None:
    """Only outflows are checked: an inflow is accepted however low the balance is."""
    balance, outflow = books.balance(slot), moved.outflow[slot]
    minimum = limits_of(books, slot, balance).minimum
    if minimum is None or outflow == 0:
        return None
    normal_side = balance.type.normal_side
    available = balance.available_balance(normal_side)
    if available - outflow >= minimum:
        return None
    return Refused(
        entry_index=index,
        required_amount=outflow,
        available_amount=available - minimum,
        reserved_amount=balance.settled_balance(normal_side) - available,
    )


def _overfull(books: Books, index: int, slot: int, moved: _Moved) -> Refused | None:
    """Only inflows are checked. Pending inflows count: settling them must not pass the limit."""
    balance, inflow = books.balance(slot), moved.inflow[slot]
    maximum = limits_of(books, slot, balance).maximum
    if maximum is None or inflow == 0:
        return None
    pending = balance.pending_inflow()
    room = maximum - balance.settled_balance(balance.type.normal_side) - pending
    if inflow <= room:
        return None
    return Refused(
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


def check_floors(books: Books, entries: Iterable[EntryRecord], *, nets: bool) -> None:
    """Assert what `_overdraft` promised: no outflow took an account below its minimum."""
    for slot, outflow in _Moved(books, entries, nets=nets).outflow.items():
        balance = books.balance(slot)
        minimum = limits_of(books, slot, balance).minimum
        available = balance.available_balance(balance.type.normal_side)
        if outflow and minimum is not None and available < minimum:
            raise InvariantError(f"account {format_account_id(balance.account_id)} is overdrawn")

"""Why the accounts of a shard do not take a transaction: every reason, in order of precedence."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cached_property

from ledger_core.accounts import AccountState, Direction, TransactionStatus
from ledger_core.commands import (
    NO_OVERDRAFT,
    CreateTransaction,
    Entry,
    Limits,
    Refused,
)
from ledger_core.errors import RefusalReason
from ledger_core.ids import format_account_id, is_system_account_id
from ledger_core.money import INT64_MAX
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
    asked = _Asked(books, command)
    for reason, holds in _CHECKS:
        if own_accounts and reason is RefusalReason.SYSTEM_ACCOUNT:
            continue
        for index, entry in asked.local:
            if holds(books, asked, entry):
                return Refused(index, reason=reason)
    moved = _Moved(books, asked.local_entries, nets=command.settled and asked.is_local)
    for limit in (_overdraft, _overfull):
        for index, entry in asked.local:
            slot = books.slot(entry.account_id)
            if refused := limit(books, index, slot, moved):
                return refused
    return _overflow(books, asked)


def _overflow(books: Books, asked: "_Asked") -> Refused | None:
    """Entries on one side of an account count together: each of them alone might fit."""
    booked: defaultdict[tuple[int, Direction], int] = defaultdict(int)
    for index, entry in asked.local:
        slot = books.slot(entry.account_id)
        booked[slot, entry.direction] += entry.amount
        total, room = booked[slot, entry.direction], books.balance(slot).room(entry.direction)
        if total > room:
            return refused_amounts(index, total, room, reason=RefusalReason.BALANCE_OVERFLOW)
    return None


def refused_amounts(
    entry_index: int,
    required: int,
    available: int,
    reserved: int = 0,
    *,
    reason: RefusalReason = RefusalReason.INSUFFICIENT_FUNDS,
) -> Refused:
    """Return a refusal for its amounts. Sums of entries and distances between balances may pass
    64 bits, and are shown as the last number that fits.
    """
    return Refused(entry_index, _shown(required), _shown(available), _shown(reserved), reason)


def _shown(amount: int) -> int:
    return max(-INT64_MAX, min(amount, INT64_MAX))


class _Asked:
    """What a transaction asks of this shard: ``local`` are its entries here, with their indexes."""

    def __init__(self, books: Books, command: CreateTransaction) -> None:
        self._books = books
        self.ledger = command.ledger
        self.local = [
            (index, entry)
            for index, entry in enumerate(command.entries)
            if entry.shard_id == books.shard_id
        ]
        self.is_local = len(self.local) == len(command.entries)

    @property
    def local_entries(self) -> list[Entry]:
        """The same without their indexes."""
        return [entry for _, entry in self.local]

    @cached_property
    def moved(self) -> "_Moved":
        """What all of them move, once it is known that their accounts exist."""
        return _Moved(self._books, self.local_entries, nets=False)


def _is_missing(books: Books, _asked: _Asked, entry: Entry) -> bool:
    return books.find_slot(entry.account_id) is None


def _is_own(books: Books, _asked: _Asked, entry: Entry) -> bool:
    return is_system_account_id(books.meta.lower_bound, entry.account_id)


def _is_of_other_ledger(books: Books, asked: _Asked, entry: Entry) -> bool:
    return books.book_of(entry.account_id).ledger != asked.ledger


def _has_other_currency(books: Books, _asked: _Asked, entry: Entry) -> bool:
    return books.book_of(entry.account_id).currency != entry.currency.code


def _is_closed(books: Books, _asked: _Asked, entry: Entry) -> bool:
    return books.balance(books.slot(entry.account_id)).state is AccountState.CLOSED


def _is_frozen(books: Books, _asked: _Asked, entry: Entry) -> bool:
    return books.balance(books.slot(entry.account_id)).state is AccountState.FROZEN


def _is_at_other_version(books: Books, _asked: _Asked, entry: Entry) -> bool:
    version = books.balance(books.slot(entry.account_id)).sequence
    return entry.expected_version not in (None, version)


def _falls_below(books: Books, asked: _Asked, entry: Entry) -> bool:
    minimum = entry.minimum_balance
    return minimum is not None and _settled_after(books, asked, entry) < minimum


def _rises_above(books: Books, asked: _Asked, entry: Entry) -> bool:
    maximum = entry.maximum_balance
    return maximum is not None and _settled_after(books, asked, entry) > maximum


def _settled_after(books: Books, asked: _Asked, entry: Entry) -> int:
    """Return an account's settled balance as it would be with the whole transaction settled."""
    slot = books.slot(entry.account_id)
    balance = books.balance(slot)
    settled = balance.settled_balance(balance.type.normal_side)
    return settled + asked.moved.inflow[slot] - asked.moved.outflow[slot]


_CHECKS: tuple[tuple[RefusalReason, Callable[[Books, _Asked, Entry], bool]], ...] = (
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
    reserved = balance.settled_balance(normal_side) - available
    return refused_amounts(index, outflow, available - minimum, reserved)


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
    return refused_amounts(index, inflow, room, pending, reason=RefusalReason.LIMIT_EXCEEDED)


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

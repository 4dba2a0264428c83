"""Blocks of transfers, applied as arrays: the same as their items one after the other.

What an item does depends on those before it in one way only: they change balances, and with them
whether an account that may not go below a floor, or above a limit, takes the item. So the items
are told apart:

- those whose accounts do not take them whatever the balances (unknown, frozen, of another ledger):
  the rules of single transactions say why;
- repeats of a request, which have no effect;
- those that touch an account which could refuse one of the block's items: these are judged one
  after the other (`Judge`). An account cannot refuse if it has enough for all that goes out of it
  in the whole block, whatever comes in;
- all others: nothing can refuse them.

Then all that were taken are booked together. `tests/node/test_transfer_blocks.py` holds every row
and every answer against the same items as single commands.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ledger_core.accounts import AccountState, AccountType, Direction
from ledger_core.commands import CreateTransfers, Limits, Refused
from ledger_core.errors import RefusalReason
from ledger_core.money import INT64_MAX
from ledger_core.transfers import (
    AMOUNTS_SUM_MAX,
    TRANSFERS_PER_BLOCK_MAX,
    I64Array,
    TransferForm,
    amounts,
    form_column,
)
from ledger_node.books import Books
from ledger_node.records import (
    BALANCE_ROW_BYTES,
    FLOORED_BIT,
    LIMITED_BIT,
    STATE_BITS,
    BalanceRow,
)
from ledger_node.refusal_rules import limits_of, refused_amounts
from ledger_node.store_columns import (
    BALANCES,
    ROW_COUNTERS,
    BalanceRows,
    are_own,
    customers_book,
    place,
    place_books,
    place_slots,
)

_CREDIT_NORMAL = np.array(
    [False] + [kind.normal_side is Direction.CREDIT for kind in AccountType], dtype=bool
)
_CREDIT_NORMAL_TYPES = bytes(kind for kind in AccountType if _CREDIT_NORMAL[kind])
_OPEN: Final = int(AccountState.OPEN)
# Open, without limits but for a floor at most.
_PLAIN_FLAGS = bytes((_OPEN, _OPEN | FLOORED_BIT))
_FLOORLESS_FLAGS = bytes(flags for flags in range(256) if not flags & FLOORED_BIT)
_TWO_ACCOUNT_FORMS = bytes((TransferForm.DEBIT, TransferForm.CREDIT))
# Two sides of 1,024 transfers are told apart by so many bits.
_SIDE_BITS = 11
_SIDES = np.arange(1 << _SIDE_BITS)
_SIDES.flags.writeable = False
_ITEMS = _SIDES >> 1
_DEBITING_FORMS = np.array([TransferForm.DEBIT, TransferForm.CREDIT], np.uint8)[_SIDES & 1]
"""The form in which a side, first or second, debits its account."""
assert len(_SIDES) >= TRANSFERS_PER_BLOCK_MAX << 1
# numpy takes them faster than numbers of Python.
_SHIFT, _SIDE_MASK = np.array(_SIDE_BITS), np.array((1 << _SIDE_BITS) - 1)

BoolArray = NDArray[np.bool_]
IndexArray = NDArray[np.intp]


class Groups:
    """Numbers below 2**52 by their values: equal ones are a group.

    ``order`` has the places of all by value, those of a group in their order, and ``rank`` where
    each is in that order. Group g is from ``bounds[g]`` to before ``bounds[g + 1]`` there, and
    ``group`` says which each is of; ``group_of`` says it of each number in its own place. Where all
    numbers ``differ``, each is a group.
    """

    def __init__(self, values: I64Array) -> None:
        # Sorting numbers is several times as fast as `argsort`, which can keep the order, too.
        count = len(values)
        keys = values << _SHIFT
        keys |= _SIDES[:count]
        keys.sort()
        self.order: I64Array = keys & _SIDE_MASK
        self.rank: I64Array = np.empty(count, np.int64)
        self.rank[self.order] = _SIDES[:count]
        keys >>= _SHIFT
        is_bound = np.empty(count + 1, bool)
        is_bound[0] = is_bound[count] = True
        np.not_equal(keys[1:], keys[:-1], out=is_bound[1:count])
        self.bounds: I64Array = is_bound.nonzero()[0]
        self.differ = len(self.bounds) > count
        self.group: I64Array = _SIDES[:count]
        self.group_of: I64Array = self.rank
        self.values: I64Array = keys
        if not self.differ:
            self.group = np.add.accumulate(is_bound[:count], dtype=np.int64)
            self.group -= 1
            self.group_of = self.group.take(self.rank)
            self.values = keys.take(self.bounds[:-1])


class Accounts:
    """The accounts that a block names, each once, by book and slot: their rows.

    Those that do not exist are one together, the first one: it is not known, and its row all 0.
    """

    def __init__(self, places: I64Array, slots: I64Array, rows: BalanceRows) -> None:
        self.places = places
        self.slots = slots
        self.rows = rows
        self.numbers: I64Array = rows.view(np.int64).reshape(len(places), -1)
        """The same rows as numbers of 8 bytes each."""
        self.book = customers_book(places)
        """The book of all, if they are customers' and have one in common."""
        flags = rows["flags"].tobytes()
        self.are_plain = not flags.translate(None, _PLAIN_FLAGS)
        """Whether all are open, and none has other limits than a floor."""
        self.have_floors = flags.translate(None, _FLOORLESS_FLAGS) != b""
        self.all_credit_normal = not rows["type"].tobytes().translate(None, _CREDIT_NORMAL_TYPES)
        self._credit_normal: BoolArray | None = None

    @classmethod
    def read(cls, books: Books, places: I64Array) -> "Accounts":
        """Read the rows of places, which rise."""
        slots = place_slots(places)
        if places[0]:
            return cls(places, slots, books.tables.balance_rows(slots))
        rows = np.zeros(len(places), BALANCES)
        rows[1:] = books.tables.balance_rows(slots[1:])
        return cls(places, slots, rows)

    def only(self, kept: I64Array) -> "Accounts":
        """Return some of these, with rows of their own."""
        return Accounts(self.places.take(kept), self.slots.take(kept), self.rows.take(kept))

    @property
    def credit_normal(self) -> BoolArray:
        """Whether credits make the balance grow."""
        if self._credit_normal is None:
            self._credit_normal = _CREDIT_NORMAL[self.rows["type"]]
        return self._credit_normal

    @property
    def all_known(self) -> bool:
        """Whether all exist."""
        return bool(self.places[0])

    @property
    def known(self) -> BoolArray:
        """Whether they exist."""
        known: BoolArray = self.places != 0
        return known

    def available(self) -> I64Array:
        """Return their settled balances without what is reserved for outflow."""
        rows = self.rows
        net: I64Array = rows["credits_posted"] - rows["debits_posted"]
        left: I64Array = net - rows["debits_pending"]
        if self.all_credit_normal:
            return left
        return _either(self.credit_normal, left, -net - rows["credits_pending"])


@dataclass(slots=True)
class Sides:
    """The two entries of every item, one after the other: of which item, and of which account.

    ``by_account`` has those of an account together; ``touched`` are the accounts of its groups.
    """

    item: IndexArray
    account: I64Array
    debits: BoolArray
    amount: I64Array
    by_account: Groups
    touched: I64Array

    def only(self, kept: BoolArray) -> "Sides":
        """Return some of these."""
        account = self.account[kept]
        groups = Groups(account)
        return Sides(
            self.item[kept], account, self.debits[kept], self.amount[kept], groups, groups.values
        )


class Moved:
    """What sides add to counters: ``effects`` has the amount of each, 0 of those that do nothing.

    Debits and credits: ``total``, ``sums`` of each group of `Sides.by_account`, and ``so_far``, the
    sums of its account up to and with each side.
    """

    def __init__(self, sides: Sides, effects: I64Array) -> None:
        groups, count = sides.by_account, len(effects)
        self.effects = effects
        self.so_far: I64Array = np.empty((count, 2), np.int64)
        np.multiply(effects, sides.debits, out=self.so_far[:, 0])
        np.subtract(effects, self.so_far[:, 0], out=self.so_far[:, 1])
        self.sums: I64Array = self.so_far.take(groups.order, 0)
        self.total: list[int] = np.add.reduce(self.sums).tolist()
        if not groups.differ:
            running = np.zeros((count + 1, 2), np.int64)
            np.add.accumulate(self.sums, out=running[1:])
            at_bounds = running.take(groups.bounds, 0)
            self.sums = at_bounds[1:] - at_bounds[:-1]
            running[1:] -= at_bounds.take(groups.group, 0)
            self.so_far = running[1:].take(groups.rank, 0)


def read_accounts(books: Books, block: CreateTransfers) -> tuple[Accounts, Sides]:
    """Read the accounts of a block, the external ones included, and what the block does to them."""
    forms, count = form_column(block), len(block.forms)
    columns = np.frombuffer(block.first_accounts + block.second_accounts, "<u8")
    places = books.tables.places(columns.reshape(2, count).T.reshape(-1))
    has_one = has_one_account_form(block)
    if has_one and places.any():
        slots = np.array([book.external_slot for book in books.meta.books])
        external, homes = place(slots, np.arange(len(slots)), own=True), places[::2]
        other = np.where(homes, external[place_books(homes)], 0)
        places[1::2] = np.where(forms >= TransferForm.IN, other, places[1::2])
    groups = Groups(places)
    accounts = Accounts.read(books, groups.values)
    debits: BoolArray = forms.repeat(2) == _DEBITING_FORMS[: 2 * count]
    if has_one:
        # In the one-account form money comes in on the account's normal side.
        in_debits = accounts.credit_normal[groups.group_of[::2]] != (forms == TransferForm.IN)
        first, second = debits[::2], debits[1::2]
        first[:] = np.where(forms >= TransferForm.IN, in_debits, first)
        second[:] = ~first
    return accounts, Sides(
        _ITEMS[: 2 * count],
        groups.group_of,
        debits,
        amounts(block).repeat(2),
        groups,
        _SIDES[: len(groups.values)],
    )


def has_one_account_form(block: CreateTransfers) -> bool:
    """Whether items are in the one-account form."""
    # Nothing is left when nothing else is there.
    return block.forms.strip(_TWO_ACCOUNT_FORMS) != b""


def outflow(moved: Moved, accounts: Accounts) -> I64Array:
    """Return what goes out of accounts, all of which are touched."""
    debited: I64Array = moved.sums[:, 0]
    if accounts.all_credit_normal:
        return debited
    return _either(accounts.credit_normal, debited, moved.sums[:, 1])


def _either(choice: BoolArray, first: I64Array, second: I64Array) -> I64Array:
    either: I64Array = np.where(choice, first, second)
    return either


def static_refusals(
    block: CreateTransfers, accounts: Accounts, sides: Sides, book: int
) -> BoolArray | None:
    """Tell which items are refused, or fail, whatever the balances are; None: none of them."""
    if accounts.are_plain and accounts.book == book:
        return None
    able: BoolArray = (accounts.rows["flags"] & STATE_BITS) == AccountState.OPEN
    able &= accounts.known & ~are_own(accounts.places)
    in_book = able & (place_books(accounts.places) == book)
    of_sides = in_book[sides.account]
    taken: BoolArray = of_sides[::2] & of_sides[1::2]
    if has_one_account_form(block):
        one = form_column(block) >= TransferForm.IN
        taken = np.where(one, able[sides.account[::2]], taken)
    return None if taken.all() else ~taken


class Judge:
    """Judges items one after the other, by the accounts among theirs that could refuse them.

    ``moved`` is by all items that may be taken.
    """

    def __init__(self, books: Books, accounts: Accounts, sides: Sides, moved: Moved) -> None:
        self._books = books
        self._accounts = accounts
        self._sides = sides
        self._highest = int(accounts.numbers[:, ROW_COUNTERS].max())
        self._could_refuse = _could_refuse(accounts, moved)
        self._states: dict[int, _Watched] = {}

    def could_overflow(self, before: int) -> bool:
        """Whether a counter of an account may have no room: then nothing can be judged here.

        ``before``: the amounts of all segments but the last one. That one, too, is judged by what
        it would find if the others were booked.
        """
        # Posted and pending money count together.
        return 2 * (self._highest + before) + AMOUNTS_SUM_MAX > INT64_MAX

    def careful(self) -> list[int]:
        """Return the items that touch an account that could refuse."""
        if self._could_refuse is None:
            return []
        touched = self._could_refuse[self._sides.account]
        found: list[int] = (touched[::2] | touched[1::2]).nonzero()[0].tolist()
        return found

    def judge(self, index: int) -> Refused | None:
        """Return why an item is refused; else count it in. Items come in their order."""
        sides, amount = self._sides, int(self._sides.amount[2 * index])
        moves = [
            (entry_index, self._watched(int(sides.account[side])), self._comes_in(side))
            for entry_index, side in enumerate((2 * index, 2 * index + 1))
        ]
        for rule in (_overdraft, _overfull):
            for entry_index, state, comes_in in moves:
                if state and (refused := rule(entry_index, state, comes_in, amount)):
                    return refused
        for _, state, comes_in in moves:
            if state:
                state.settled += amount if comes_in else -amount
        return None

    def _comes_in(self, side: int) -> bool:
        """Whether money comes in on a side."""
        account = self._sides.account[side]
        return bool(self._sides.debits[side] != self._accounts.credit_normal[account])

    def _watched(self, account: int) -> "_Watched | None":
        assert self._could_refuse is not None, "an item is judged by an account"
        if not self._could_refuse[account]:
            return None
        state = self._states.get(account)
        if state is None:
            state = self._states[account] = self._watch(account)
        return state

    def _watch(self, account: int) -> "_Watched":
        accounts = self._accounts
        slot = int(accounts.slots[account])
        row = BalanceRow.unpack(accounts.rows[account].tobytes()[:BALANCE_ROW_BYTES])
        settled = row.settled_balance(row.type.normal_side)
        return _Watched(
            settled,
            settled - row.available_balance(row.type.normal_side),
            row.pending_inflow(),
            limits_of(self._books, slot, row),
        )


def _could_refuse(accounts: Accounts, moved: Moved) -> BoolArray | None:
    """Tell which accounts could refuse an item; None: none of them."""
    if accounts.are_plain and not accounts.have_floors:
        return None
    out = outflow(moved, accounts)
    could: BoolArray = accounts.available() < out
    if accounts.are_plain and not np.count_nonzero(could):
        return None
    flags = accounts.rows["flags"]
    could &= (flags & FLOORED_BIT != 0) & (out > 0)
    could |= flags & LIMITED_BIT != 0
    return could if np.count_nonzero(could) else None


@dataclass(slots=True)
class _Watched:
    """An account that could refuse, as it is before the next item."""

    settled: int
    reserved: int
    pending_inflow: int
    limits: Limits


def _overdraft(entry_index: int, state: _Watched, comes_in: bool, amount: int) -> Refused | None:
    minimum, available = state.limits.minimum, state.settled - state.reserved
    if comes_in or minimum is None or available - amount >= minimum:
        return None
    return refused_amounts(entry_index, amount, available - minimum, state.reserved)


def _overfull(entry_index: int, state: _Watched, comes_in: bool, amount: int) -> Refused | None:
    maximum = state.limits.maximum
    if not comes_in or maximum is None:
        return None
    room = maximum - state.settled - state.pending_inflow
    if amount <= room:
        return None
    reason = RefusalReason.LIMIT_EXCEEDED
    return refused_amounts(entry_index, amount, room, state.pending_inflow, reason=reason)

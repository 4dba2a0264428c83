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

import numpy as np
from numpy.typing import NDArray

from ledger_core.accounts import AccountState, AccountType, Direction
from ledger_core.commands import CreateTransfers, Limits, Refused
from ledger_core.errors import RefusalReason
from ledger_core.ids import SYSTEM_ACCOUNTS_MAX
from ledger_core.money import INT64_MAX
from ledger_core.transfers import (
    I64Array,
    TransferForm,
    amounts,
    big_endian,
    first_accounts,
    form_column,
    mixed_ids,
    second_accounts,
    split_rows,
)
from ledger_node.books import Books
from ledger_node.records import (
    BALANCE_ROW_BYTES,
    FLOORED_BIT,
    LIMITED_BIT,
    STATE_BITS,
    BalanceRow,
)
from ledger_node.refusal_rules import limits_of
from ledger_node.store_columns import place, place_books, place_slots

# Signed where it can be: numpy makes floats of what is signed and unsigned together.
BALANCES = np.dtype(
    [
        ("debits_posted", "<i8"),
        ("credits_posted", "<i8"),
        ("debits_pending", "<i8"),
        ("credits_pending", "<i8"),
        ("account_id", "<u8"),
        ("sequence", "<i8"),
        ("last_position", "<i8"),
        ("pending_transactions", "<u4"),
        ("group", "<u4"),
        ("book", "<u2"),
        ("type", "u1"),
        ("flags", "u1"),
        ("crc", "<u4"),
    ]
)
"""A `BalanceRow` with its checksum."""
assert BALANCES.itemsize == BALANCE_ROW_BYTES + 4

_CREDIT_NORMAL = np.array(
    [False] + [kind.normal_side is Direction.CREDIT for kind in AccountType], dtype=bool
)
# Two sides of 1,024 transfers are told apart by so many bits.
_SIDE_BITS = 11

BoolArray = NDArray[np.bool_]
IndexArray = NDArray[np.intp]


class Groups:
    """Numbers by their values, not above 2**52: equal ones are a group.

    ``order`` has the places of all by value, those of a group in their order; ``group`` is the
    group of each of them then, and groups go from ``starts`` to before ``ends`` there.
    """

    def __init__(self, values: I64Array) -> None:
        # Sorting numbers is several times as fast as `argsort`, which can keep the order, too.
        keys = values << _SIDE_BITS | np.arange(len(values))
        keys.sort()
        self.order: I64Array = keys & (1 << _SIDE_BITS) - 1
        keys >>= _SIDE_BITS
        is_first = np.ones(len(keys), bool)
        np.not_equal(keys[1:], keys[:-1], out=is_first[1:])
        self.starts: IndexArray = is_first.nonzero()[0]
        self.ends: IndexArray = np.append(self.starts[1:], len(keys))
        self.group: I64Array = is_first.cumsum() - 1
        self.values: I64Array = keys[self.starts]


class Accounts:
    """The accounts that a block names, each once, by book and slot: their rows.

    Those that do not exist are one together, the first one: it is not known, and its row all 0.
    """

    def __init__(self, books: Books, places: I64Array) -> None:
        self.known: BoolArray = places != 0
        self.slots: I64Array = place_slots(places)
        known = self.slots if self.known[0] else self.slots[1:]
        rows = books.tables.sealed_balance_rows(split_rows(big_endian(known.astype(np.uint32))))
        if len(known) < len(places):
            rows[:0] = bytes(BALANCES.itemsize)
        self.rows = np.frombuffer(rows, BALANCES)
        mixed = mixed_ids(self.rows["account_id"]) - np.uint64(books.meta.lower_bound << 32)
        self.system: BoolArray = mixed < SYSTEM_ACCOUNTS_MAX
        """Whether they are the shard's own."""
        self.credit_normal: BoolArray = _CREDIT_NORMAL[self.rows["type"]]
        """Whether credits make the balance grow."""


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

    ``debits`` and ``credits`` are sums so far, in the order of `Sides.by_account`, beginning with
    0; ``debited`` and ``credited`` are those of whole groups.
    """

    def __init__(self, sides: Sides, effects: I64Array) -> None:
        groups = sides.by_account
        self.effects = effects
        self.debits, self.credits = np.zeros((2, len(effects) + 1), np.int64)
        debits = np.where(sides.debits, effects, 0)
        debits[groups.order].cumsum(out=self.debits[1:])
        (effects - debits)[groups.order].cumsum(out=self.credits[1:])
        self.debited: I64Array = self.debits[groups.ends] - self.debits[groups.starts]
        self.credited: I64Array = self.credits[groups.ends] - self.credits[groups.starts]


def read_accounts(books: Books, block: CreateTransfers) -> tuple[Accounts, Sides]:
    """Read the accounts of a block, the external ones included, and what the block does to them."""
    forms, count = form_column(block), len(block.forms)
    ids = np.empty((count, 2), np.uint64)
    ids[:, 0], ids[:, 1] = first_accounts(block), second_accounts(block)
    places = books.tables.places(ids.ravel())
    one = forms >= TransferForm.IN
    has_one = bool(one.any())
    if has_one:
        homes = places[::2]
        external = np.array(
            [place(book.external_slot, i) for i, book in enumerate(books.meta.books)]
        )
        places[1::2] = np.where(one, np.where(homes, external[place_books(homes)], 0), places[1::2])
    groups = Groups(places)
    accounts = Accounts(books, groups.values)
    account = np.empty(2 * count, np.int64)
    account[groups.order] = groups.group
    first_debits = forms == TransferForm.DEBIT
    if has_one:
        # In the one-account form money comes in on the account's normal side.
        in_out = (forms == TransferForm.OUT) == accounts.credit_normal[account[::2]]
        first_debits = np.where(one, in_out, first_debits)
    debits = np.empty((count, 2), bool)
    debits[:, 0], debits[:, 1] = first_debits, ~first_debits
    return accounts, Sides(
        np.arange(2 * count) >> 1,
        account,
        debits.ravel(),
        amounts(block).repeat(2),
        groups,
        np.arange(len(groups.values)),
    )


def available(rows: NDArray[np.void], credit_normal: BoolArray) -> I64Array:
    """Return the settled balances of accounts without what is reserved for outflow."""
    net = rows["credits_posted"] - rows["debits_posted"]
    return np.where(credit_normal, net - rows["debits_pending"], -net - rows["credits_pending"])


def static_refusals(
    block: CreateTransfers, accounts: Accounts, sides: Sides, book: int
) -> BoolArray:
    """Tell which items are refused, or fail, whatever the balances are."""
    rows = accounts.rows
    able = (rows["flags"] & STATE_BITS) == AccountState.OPEN
    able &= accounts.known
    able &= ~accounts.system
    in_book = (able & (rows["book"] == book))[sides.account]
    taken = in_book[::2] & in_book[1::2]
    if not taken.all():
        one = form_column(block) >= TransferForm.IN
        taken = np.where(one, able[sides.account[::2]], taken)
    return ~taken


class Judge:
    """Judges items one after the other, by the accounts among theirs that could refuse them.

    ``moved`` is by all items that may be taken.
    """

    def __init__(self, books: Books, accounts: Accounts, sides: Sides, moved: Moved) -> None:
        self._books = books
        self._accounts = accounts
        self._sides = sides
        rows, flags = accounts.rows, accounts.rows["flags"]
        highest = max(
            (rows["debits_posted"] + rows["debits_pending"]).max(),
            (rows["credits_posted"] + rows["credits_pending"]).max(),
        )
        self.could_overflow = int(highest) + int(moved.debits[-1]) > INT64_MAX
        """Whether a counter of an account may have no room: then nothing can be judged here."""
        out = np.where(accounts.credit_normal, moved.debited, moved.credited)
        self._could_refuse: BoolArray = (flags & FLOORED_BIT != 0) & (out > 0)
        self._could_refuse &= available(rows, accounts.credit_normal) < out
        self._could_refuse |= flags & LIMITED_BIT != 0
        self._states: dict[int, _Watched] = {}

    def careful(self) -> BoolArray:
        """Tell which items touch an account that could refuse."""
        touched = self._could_refuse[self._sides.account]
        found: BoolArray = touched[::2] | touched[1::2]
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
    return Refused(entry_index, amount, available - minimum, state.reserved)


def _overfull(entry_index: int, state: _Watched, comes_in: bool, amount: int) -> Refused | None:
    maximum = state.limits.maximum
    if not comes_in or maximum is None:
        return None
    room = maximum - state.settled - state.pending_inflow
    if amount <= room:
        return None
    return Refused(entry_index, amount, room, state.pending_inflow, RefusalReason.LIMIT_EXCEEDED)

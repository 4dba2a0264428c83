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
    big_endian,
    first_accounts,
    mixed_ids,
    second_accounts,
    split_rows,
)
from ledger_node.books import Books
from ledger_node.records import (
    BALANCE_ROW_BYTES,
    ENTRY_ROW_BYTES,
    FLOORED_BIT,
    LIMITED_BIT,
    STATE_BITS,
    BalanceRow,
)
from ledger_node.refusal_rules import limits_of, refused_amounts

BALANCES = np.dtype(
    [
        ("debits_posted", "<i8"),
        ("credits_posted", "<i8"),
        ("debits_pending", "<i8"),
        ("credits_pending", "<i8"),
        ("account_id", "<u8"),
        ("sequence", "<u8"),
        ("last_position", "<u8"),
        ("pending_transactions", "<u4"),
        ("group", "<u4"),
        ("book", "<u2"),
        ("type", "u1"),
        ("flags", "u1"),
    ]
)
ENTRIES = np.dtype(
    [
        ("account_id", "<u8"),
        ("transaction", "<u8"),
        ("amount", "<i8"),
        ("time_us", "<i8"),
        ("sequence", "<u8"),
        ("previous", "<u8"),
        ("debits_posted", "<i8"),
        ("credits_posted", "<i8"),
        ("debits_pending", "<i8"),
        ("credits_pending", "<i8"),
        ("direction", "u1"),
        ("kind", "u1"),
        ("pad", "<u2"),
        ("crc", "<u4"),
    ]
)
assert BALANCES.itemsize == BALANCE_ROW_BYTES
assert ENTRIES.itemsize == ENTRY_ROW_BYTES

_CREDIT_NORMAL = np.array(
    [False] + [kind.normal_side is Direction.CREDIT for kind in AccountType], dtype=bool
)

BoolArray = NDArray[np.bool_]
IndexArray = NDArray[np.intp]


@dataclass(slots=True)
class Accounts:
    """The accounts that a block names, each once: their rows, all 0 where there is none.

    ``first`` and ``second`` say which account is which item's.
    """

    rows: NDArray[np.void]
    known: BoolArray
    system: BoolArray
    slots: I64Array
    first: IndexArray
    second: IndexArray

    @property
    def is_credit_normal(self) -> BoolArray:
        """Whether credits make the balance grow."""
        found: BoolArray = _CREDIT_NORMAL[self.rows["type"]]
        return found

    @property
    def is_open(self) -> BoolArray:
        """Whether accounts take new transactions."""
        found: BoolArray = (self.rows["flags"] & STATE_BITS) == AccountState.OPEN
        return found

    def settled(self) -> I64Array:
        """Settled balances."""
        net: I64Array = self.rows["credits_posted"] - self.rows["debits_posted"]
        return np.where(self.is_credit_normal, net, -net)

    def reserved(self) -> I64Array:
        """What is reserved for outflow."""
        reserved: I64Array = np.where(
            self.is_credit_normal, self.rows["debits_pending"], self.rows["credits_pending"]
        )
        return reserved


def read_accounts(books: Books, block: CreateTransfers) -> Accounts:
    """Read the accounts of a block, the external ones included."""
    forms = np.frombuffer(block.forms, "u1")
    two = forms < TransferForm.IN
    named = np.concatenate([first_accounts(block), second_accounts(block)[two]])
    ids, where = np.unique(named, return_inverse=True)
    found_ids, found_slots = books.tables.slot_rows(split_rows(big_endian(ids)))
    known_ids = np.frombuffer(b"".join(found_ids), ">u8").astype(np.uint64)
    places = np.searchsorted(ids, known_ids)
    first = where[: len(forms)]
    second = np.zeros(len(forms), np.intp)
    second[two] = where[len(forms) :]
    slots = np.zeros(len(ids), np.int64)
    slots[places] = np.frombuffer(b"".join(found_slots), ">u4")
    rows = np.zeros(len(ids), BALANCES)
    rows[places] = _rows_of(books, slots[places])
    rows["account_id"] = ids
    known = np.zeros(len(ids), bool)
    known[places] = True
    mixed = mixed_ids(ids) - np.uint64(books.meta.lower_bound << 32)
    accounts = Accounts(rows, known, mixed < SYSTEM_ACCOUNTS_MAX, slots, first, second)
    if not two.all():
        _add_external(books, accounts, np.flatnonzero(~two))
    return accounts


def _add_external(books: Books, accounts: Accounts, items: IndexArray) -> None:
    """Let the other account of items of the one-account form be the external one of their book."""
    first = accounts.first[items]
    for book in np.unique(accounts.rows["book"][first][accounts.known[first]]).tolist():
        slot = books.meta.books[book].external_slot
        row = _rows_of(books, np.array([slot]))
        same = np.flatnonzero((accounts.rows["account_id"] == row["account_id"]) & accounts.known)
        if len(same):
            place = int(same[0])
        else:
            place = len(accounts.rows)
            accounts.rows = np.concatenate([accounts.rows, row])
            accounts.known = np.append(accounts.known, True)
            accounts.system = np.append(accounts.system, True)
            accounts.slots = np.append(accounts.slots, slot)
        of_book = accounts.known[first] & (accounts.rows["book"][first] == book)
        accounts.second[items[of_book]] = place


def _rows_of(books: Books, slots: I64Array) -> NDArray[np.void]:
    order = np.argsort(slots)
    keys = split_rows(big_endian(slots[order].astype(np.uint32)))
    rows = np.empty(len(slots), BALANCES)
    rows[order] = np.frombuffer(books.tables.balance_rows(keys), BALANCES)
    return rows


@dataclass(slots=True)
class Sides:
    """The two entries of every item: whether it debits its account, and whether money comes in."""

    first_debits: BoolArray
    first_in: BoolArray
    second_in: BoolArray


def sides_of(block: CreateTransfers, accounts: Accounts) -> Sides:
    """Return on which sides the items book."""
    forms = np.frombuffer(block.forms, "u1")
    credit_normal = accounts.is_credit_normal
    first_debits = np.where(
        forms < TransferForm.IN,
        forms == TransferForm.DEBIT,
        (forms == TransferForm.OUT) == credit_normal[accounts.first],
    )
    return Sides(
        first_debits,
        first_debits != credit_normal[accounts.first],
        first_debits == credit_normal[accounts.second],
    )


def static_refusals(block: CreateTransfers, accounts: Accounts, book: int) -> BoolArray:
    """Tell which items are refused, or fail, whatever the balances are."""
    forms = np.frombuffer(block.forms, "u1")
    first, second = accounts.first, accounts.second
    usable = accounts.known & accounts.is_open
    own = ~accounts.system & (accounts.rows["book"] == book)
    two = forms < TransferForm.IN
    return ~np.where(
        two,
        usable[first] & usable[second] & own[first] & own[second],
        usable[first] & ~accounts.system[first],
    )


class Judge:
    """Judges items one after the other, by the accounts among theirs that could refuse them."""

    def __init__(
        self, books: Books, accounts: Accounts, sides: Sides, values: I64Array, todo: BoolArray
    ) -> None:
        self._books = books
        self._accounts = accounts
        self._sides = sides
        self._values = values
        self.careful = self._careful(todo)
        """Items that touch an account which could refuse."""
        self._states: dict[int, _Watched] = {}

    def _careful(self, todo: BoolArray) -> BoolArray:
        accounts, sides = self._accounts, self._sides
        first, second = accounts.first[todo], accounts.second[todo]
        values, count = self._values[todo], len(accounts.rows)
        out, debited, credited = (np.zeros(count, np.int64) for _ in range(3))
        np.add.at(out, first, np.where(sides.first_in[todo], 0, values))
        np.add.at(out, second, np.where(sides.second_in[todo], 0, values))
        np.add.at(debited, np.where(sides.first_debits[todo], first, second), values)
        np.add.at(credited, np.where(sides.first_debits[todo], second, first), values)
        rows, flags = accounts.rows, accounts.rows["flags"]
        available = accounts.settled() - accounts.reserved()
        could_refuse = (flags & LIMITED_BIT != 0) | (
            (flags & FLOORED_BIT != 0) & (out > 0) & (available < out)
        )
        self.could_overflow = bool(
            (
                (debited > INT64_MAX - rows["debits_posted"] - rows["debits_pending"])
                | (credited > INT64_MAX - rows["credits_posted"] - rows["credits_pending"])
            ).any()
        )
        """Whether a counter of an account may have no room: then nothing can be judged here."""
        self._could_refuse = could_refuse
        careful: BoolArray = todo & (could_refuse[accounts.first] | could_refuse[accounts.second])
        return careful

    def judge(self, index: int) -> Refused | None:
        """Return why an item is refused; else count it in. Items come in their order."""
        accounts, sides, amount = self._accounts, self._sides, int(self._values[index])
        moves = (
            (0, self._watched(int(accounts.first[index])), bool(sides.first_in[index])),
            (1, self._watched(int(accounts.second[index])), bool(sides.second_in[index])),
        )
        for rule in (_overdraft, _overfull):
            for entry_index, state, comes_in in moves:
                if state and (refused := rule(entry_index, state, comes_in, amount)):
                    return refused
        for _, state, comes_in in moves:
            if state:
                state.settled += amount if comes_in else -amount
        return None

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
        row = BalanceRow.unpack(accounts.rows[account].tobytes())
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

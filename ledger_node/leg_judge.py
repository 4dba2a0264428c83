"""Which items of a block of transfers between shards their accounts on this shard refuse, and why.

An account refuses an item for what it is (unknown, frozen, of another ledger), or for what it has.
Only the latter depends on the items before: an account cannot refuse if it has enough for all that
goes out of it in the whole block, whatever comes in.
"""

import functools
from dataclasses import dataclass
from typing import Final

import numpy as np

from ledger_core.accounts import AccountState
from ledger_core.commands import Limits, Refused
from ledger_core.errors import RefusalReason
from ledger_core.ids import SYSTEM_ACCOUNTS_MAX, system_account_id
from ledger_core.money import INT64_MAX
from ledger_core.transfer_legs import LegBlock, i64_column, own_accounts, own_debits, peer_shards
from ledger_core.transfers import I64Array, U64Array, mixed_ids
from ledger_node.books import BOOK_BITS, Books, InvariantError
from ledger_node.entry_columns import (
    AccountColumns,
    BoolArray,
    IndexArray,
    distinct,
    read_balances,
)
from ledger_node.records import (
    BALANCE_ROW_BYTES,
    FLOORED_BIT,
    LIMITED_BIT,
    STATE_BITS,
    BalanceRow,
)
from ledger_node.refusal_rules import limits_of
from ledger_node.store_columns import place_slots

# numpy compares with plain numbers much faster.
_OPEN: Final = int(AccountState.OPEN)


@dataclass(slots=True)
class LegSides:
    """What every item books here: an entry on its own account, and one on a clearing account.

    ``own`` and ``clearing`` are places in ``accounts``; ``own`` means nothing where the item's
    account is not ``known``. ``takes``: the account is one that the item may have. ``debits``: the
    own entry is a debit, the clearing entry a credit.
    """

    accounts: AccountColumns
    own: IndexArray
    known: BoolArray
    takes: BoolArray
    clearing: IndexArray
    debits: BoolArray
    amount: I64Array

    @property
    def comes_in(self) -> BoolArray:
        """Whether an item brings money to its own account."""
        found: BoolArray = self.debits != self.accounts.credit_normal[self.own]
        return found

    @property
    def clearing_ids(self) -> U64Array:
        """The clearing account of every item."""
        ids: U64Array = self.accounts.rows["account_id"][self.clearing]
        return ids

    def could_overflow(self) -> bool:
        """Whether a counter of an account may have no room for all of the block."""
        rows = self.accounts.rows
        highest = max(
            int((rows["debits_posted"] + rows["debits_pending"]).max()),
            int((rows["credits_posted"] + rows["credits_pending"]).max()),
        )
        return highest + int(self.amount.sum()) > INT64_MAX

    def check_floors(self, taken: BoolArray) -> None:
        """Assert, once they are booked, what the funds check promised of the items taken."""
        rows = self.accounts.rows
        paid = np.zeros(len(rows), bool)
        paid[self.own[taken & ~self.comes_in]] = True
        paid &= rows["flags"] & (FLOORED_BIT | LIMITED_BIT) == FLOORED_BIT
        if (paid & (self.accounts.available() < 0)).any():
            raise InvariantError("a block of transfers overdraws an account")


def read_sides(books: Books, block: LegBlock, book: int) -> LegSides | None:
    """Read the accounts of a block; None where a clearing account is missing, or one is named."""
    ids = own_accounts(block)
    if ((mixed_ids(ids) - np.uint64(books.meta.lower_bound << 32)) < SYSTEM_ACCOUNTS_MAX).any():
        return None
    # Shards have small numbers: each marks its place.
    shards = peer_shards(block)
    is_peer = np.bincount(shards) > 0
    lower_bound = books.meta.lower_bound
    clearing = books.tables.places(
        np.array(
            [_clearing_id(lower_bound, book, p) for p in is_peer.nonzero()[0].tolist()], np.uint64
        )
    )
    if not clearing.all():
        return None
    own = books.tables.places(ids)
    known = own != 0
    # What does not exist gets any account, which is not looked at.
    places = np.concatenate([np.where(known, own, clearing[0]), clearing])
    slots, account = distinct(place_slots(places))
    accounts = read_balances(books, slots)
    rows, count = accounts.rows, len(ids)
    able = (rows["flags"] & STATE_BITS == _OPEN) & (rows["book"] == book)
    return LegSides(
        accounts,
        account[:count],
        known,
        known & able[account[:count]],
        account[count:][is_peer.cumsum()[shards] - 1],
        own_debits(block),
        i64_column(block.amounts),
    )


@functools.lru_cache(maxsize=4_096)
def _clearing_id(lower_bound: int, book: int, peer_shard_id: int) -> int:
    return system_account_id(lower_bound, (peer_shard_id + 1) << BOOK_BITS | book)


@dataclass(slots=True)
class _Watched:
    """An account that could refuse, as it is before the next item."""

    settled: int
    reserved: int
    pending_inflow: int
    limits: Limits


class LegJudge:
    """Judges items one after the other, of those that are on an account which could refuse.

    What is taken is posted, or with ``reserves`` only reserved. Refusals are by ``entry_index``.
    """

    def __init__(
        self, books: Books, sides: LegSides, todo: BoolArray, entry_index: int, *, reserves: bool
    ) -> None:
        self._books = books
        self._sides = sides
        self._entry_index = entry_index
        self._reserves = reserves
        self._comes_in = sides.comes_in
        self._watched: dict[int, _Watched] = {}
        rows = sides.accounts.rows
        out = np.zeros(len(rows), np.int64)
        leaving = todo & ~self._comes_in
        np.add.at(out, sides.own[leaving], sides.amount[leaving])
        flags = rows["flags"]
        could_refuse = (flags & LIMITED_BIT != 0) | (
            (flags & FLOORED_BIT != 0) & (out > 0) & (sides.accounts.available() < out)
        )
        self.careful: BoolArray = todo & could_refuse[sides.own]
        """Items on an account that could refuse."""

    def refuses(self, item: int) -> Refused | None:
        """Return why an item is refused, after those that were taken before it."""
        state, amount = self._state(item), int(self._sides.amount[item])
        if self._comes_in[item]:
            maximum = state.limits.maximum
            if maximum is None:
                return None
            room = maximum - state.settled - state.pending_inflow
            if amount <= room:
                return None
            reason = RefusalReason.LIMIT_EXCEEDED
            return Refused(self._entry_index, amount, room, state.pending_inflow, reason)
        minimum, available = state.limits.minimum, state.settled - state.reserved
        if minimum is None or available - amount >= minimum:
            return None
        return Refused(self._entry_index, amount, available - minimum, state.reserved)

    def take(self, item: int) -> None:
        """Count an item in. Items come in their order."""
        state, amount = self._state(item), int(self._sides.amount[item])
        comes_in = bool(self._comes_in[item])
        if not self._reserves:
            state.settled += amount if comes_in else -amount
        elif comes_in:
            state.pending_inflow += amount
        else:
            state.reserved += amount

    def _state(self, item: int) -> _Watched:
        account = int(self._sides.own[item])
        state = self._watched.get(account)
        if state is None:
            accounts = self._sides.accounts
            row = BalanceRow.unpack(accounts.rows[account].tobytes()[:BALANCE_ROW_BYTES])
            settled = row.settled_balance(row.type.normal_side)
            state = self._watched[account] = _Watched(
                settled,
                settled - row.available_balance(row.type.normal_side),
                row.pending_inflow(),
                limits_of(self._books, int(accounts.slots[account]), row),
            )
        return state

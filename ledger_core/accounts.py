"""Accounts and transactions: the vocabulary of double entry, and what a balance is.

The numbers of the enumerations are those of the public API and are stored: they never change.
"""

from dataclasses import dataclass
from enum import IntEnum


class AccountType(IntEnum):
    """The five types of accounts. The type gives an account its normal side."""

    ASSET = 1
    LIABILITY = 2
    EQUITY = 3
    INCOME = 4
    EXPENSE = 5

    @property
    def normal_side(self) -> "Direction":
        """The side that makes the balance grow: debit for ASSET and EXPENSE, else credit."""
        return _NORMAL_SIDE[self]


class Direction(IntEnum):
    """The side of an entry."""

    DEBIT = 1
    CREDIT = 2

    @property
    def opposite(self) -> "Direction":
        """The other side."""
        return Direction.CREDIT if self is Direction.DEBIT else Direction.DEBIT


_NORMAL_SIDE = {
    AccountType.ASSET: Direction.DEBIT,
    AccountType.LIABILITY: Direction.CREDIT,
    AccountType.EQUITY: Direction.CREDIT,
    AccountType.INCOME: Direction.CREDIT,
    AccountType.EXPENSE: Direction.DEBIT,
}


class AccountState(IntEnum):
    """Whether an account takes new transactions."""

    OPEN = 1
    FROZEN = 2
    CLOSED = 3


class TransactionStatus(IntEnum):
    """The life of a transaction: PENDING, or at once one of the final statuses."""

    PENDING = 1
    SETTLED = 2
    CANCELLED = 3
    INSUFFICIENT_FUNDS = 4
    EXPIRED = 5
    REJECTED = 6
    UNDECIDED = 7
    """Across shards, before its home's decision: money is reserved, nothing has moved."""

    @property
    def is_refusal(self) -> bool:
        """Whether the transaction was refused when it was created: nothing ever moved."""
        return self in (TransactionStatus.INSUFFICIENT_FUNDS, TransactionStatus.REJECTED)


class EntryKind(IntEnum):
    """What an entry in an account's history did."""

    POSTED = 1
    """Moved posted money at once (a transaction created with settled=true)."""
    PENDING = 2
    """Made money pending."""
    SETTLED = 3
    """Turned pending money into posted money."""
    CANCELLED = 4
    """Released pending money."""
    REFUSED = 5
    """Moved nothing: the transaction was refused."""
    EXPIRED = 6
    """Released pending money whose time was over."""

    @property
    def creates(self) -> bool:
        """Whether this is the first entry of its transaction in an account's history."""
        return self in (EntryKind.POSTED, EntryKind.PENDING, EntryKind.REFUSED)


class GroupRole(IntEnum):
    """What the accounts of a group are: a ledger's own, or a shard's."""

    ACCOUNT = 0
    EXTERNAL = 1
    """The world outside, in transactions of the one-account form."""
    IN_TRANSIT = 2
    """Money between this shard and another one."""


class TimeBasis(IntEnum):
    """Which time of an entry counts when a balance is asked for as of a moment.

    The effective time of an entry is that of its transaction, where one was given; else it is the
    time of recording.
    """

    RECORDED = 1
    EFFECTIVE = 2


class AccountEventKind(IntEnum):
    """What happened to an account, other than entries."""

    OPENED = 1
    UPDATED = 2
    FROZEN = 3
    UNFROZEN = 4
    CLOSED = 5
    CHANGE_REFUSED = 6
    """Someone tried to change the account, in vain."""
    TRANSACTION_REFUSED = 7
    """A transaction was refused because of this account."""


@dataclass(slots=True)
class Counters:
    """The four counters of an account, in minor units, each within 0..2**63-1.

    All balances are made of them. Posted counters only grow; pending counters fall when a pending
    transaction ends.
    """

    debits_posted: int = 0
    credits_posted: int = 0
    debits_pending: int = 0
    credits_pending: int = 0

    def settled_balance(self, normal_side: Direction) -> int:
        """Posted inflows minus posted outflows, seen from the account's normal side."""
        net = self.credits_posted - self.debits_posted
        return net if normal_side is Direction.CREDIT else -net

    def available_balance(self, normal_side: Direction) -> int:
        """The settled balance minus what is reserved for outflow.

        Pending inflows do not count: that money is not there yet.
        """
        reserved = self.debits_pending if normal_side is Direction.CREDIT else self.credits_pending
        return self.settled_balance(normal_side) - reserved

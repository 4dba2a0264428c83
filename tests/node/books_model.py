"""The whole ledger on one shard, written the simplest way: lists of what happened, summed anew.

It has no counters: balances are worked out from the transactions each time.
"""

from dataclasses import dataclass, field

from ledger_core.accounts import AccountType, Direction, TransactionStatus
from ledger_core.commands import CreateTransaction, Limits
from ledger_core.errors import Reason, RefusalReason

S = TransactionStatus
R = RefusalReason


@dataclass
class ModelAccount:
    type: AccountType
    limits: Limits = field(default_factory=Limits)
    state: str = "OPEN"


@dataclass
class ModelEntry:
    account_id: int
    direction: Direction
    amount: int


@dataclass
class ModelTransaction:
    entries: list[ModelEntry]
    status: TransactionStatus
    settled_amount: int = 0
    expire_us: int = 0
    reversed_amounts: list[int] = field(default_factory=list)

    def settled_of(self, entry: ModelEntry) -> int:
        return self.settled_amount or entry.amount


Outcome = Reason | tuple[int, TransactionStatus, RefusalReason | None]


@dataclass
class BooksModel:
    accounts: dict[int, ModelAccount] = field(default_factory=dict)
    transactions: list[ModelTransaction] = field(default_factory=list)
    time_us: int = 0

    # Balances

    def _flows(self, account_id: int, *, inflow: bool, status: TransactionStatus) -> int:
        side = self.accounts[account_id].type.normal_side
        total = 0
        for transaction in self.transactions:
            if transaction.status is not status:
                continue
            for entry in transaction.entries:
                if entry.account_id == account_id and (entry.direction is side) is inflow:
                    settled = status is S.SETTLED
                    total += transaction.settled_of(entry) if settled else entry.amount
        return total

    def settled(self, account_id: int) -> int:
        return self._flows(account_id, inflow=True, status=S.SETTLED) - self._flows(
            account_id, inflow=False, status=S.SETTLED
        )

    def available(self, account_id: int) -> int:
        return self.settled(account_id) - self._flows(account_id, inflow=False, status=S.PENDING)

    def coming(self, account_id: int) -> int:
        return self._flows(account_id, inflow=True, status=S.PENDING)

    # Time

    def advance(self, time_us: int) -> None:
        self.time_us = max(self.time_us, time_us)
        for transaction in self.transactions:
            due = 0 < transaction.expire_us <= self.time_us
            if transaction.status is S.PENDING and due:
                transaction.status = S.EXPIRED

    # Commands

    def create(self, command: CreateTransaction) -> Outcome:
        entries = [ModelEntry(e.account_id, e.direction, e.amount) for e in command.entries]
        reason = self._refusal(command, entries)
        if reason is R.INSUFFICIENT_FUNDS:
            status = S.INSUFFICIENT_FUNDS
        elif reason is not None:
            status = S.REJECTED
        else:
            status = S.SETTLED if command.settled else S.PENDING
        self.transactions.append(
            ModelTransaction(entries, status, expire_us=command.expire_time_us)
        )
        return len(self.transactions), status, reason

    def _refusal(
        self, command: CreateTransaction, entries: list[ModelEntry]
    ) -> RefusalReason | None:
        if any(e.account_id not in self.accounts for e in entries):
            return R.ACCOUNT_NOT_FOUND
        states = {self.accounts[entry.account_id].state for entry in entries}
        if "CLOSED" in states:
            return R.ACCOUNT_CLOSED
        if "FROZEN" in states:
            return R.ACCOUNT_FROZEN
        out: dict[int, int] = {}
        into: dict[int, int] = {}
        for entry in entries:
            side = self.accounts[entry.account_id].type.normal_side
            flow = into if entry.direction is side else out
            flow[entry.account_id] = flow.get(entry.account_id, 0) + entry.amount
        after = {
            entry.account_id: self.settled(entry.account_id)
            + into.get(entry.account_id, 0)
            - out.get(entry.account_id, 0)
            for entry in entries
        }
        for asked in command.entries:
            if (
                asked.minimum_balance is not None
                and after[asked.account_id] < asked.minimum_balance
            ):
                return R.BALANCE_BELOW_MINIMUM
        for asked in command.entries:
            if (
                asked.maximum_balance is not None
                and after[asked.account_id] > asked.maximum_balance
            ):
                return R.BALANCE_ABOVE_MAXIMUM
        if command.settled:
            for account_id in out.keys() & into.keys():
                netted = min(out[account_id], into[account_id])
                out[account_id] -= netted
                into[account_id] -= netted
        for account_id, amount in out.items():
            minimum = self.accounts[account_id].limits.minimum
            if minimum is not None and amount and self.available(account_id) - amount < minimum:
                return R.INSUFFICIENT_FUNDS
        for account_id, amount in into.items():
            maximum = self.accounts[account_id].limits.maximum
            total = self.settled(account_id) + self.coming(account_id) + amount
            if maximum is not None and amount and total > maximum:
                return R.LIMIT_EXCEEDED
        return None

    def _find(self, home: int, number: int) -> ModelTransaction | None:
        if not 1 <= number <= len(self.transactions):
            return None
        transaction = self.transactions[number - 1]
        return transaction if transaction.entries[0].account_id == home else None

    def settle(self, home: int, number: int, amount: int) -> Outcome:
        transaction = self._find(home, number)
        if transaction is None:
            return Reason.TRANSACTION_NOT_FOUND
        if transaction.status is not S.PENDING:
            return Reason.TRANSACTION_NOT_PENDING
        whole = transaction.entries[0].amount
        if amount and (len(transaction.entries) != 2 or amount > whole):
            return Reason.SETTLE_AMOUNT
        transaction.status = S.SETTLED
        transaction.settled_amount = 0 if amount == whole else amount
        return number, S.SETTLED, None

    def cancel(self, home: int, number: int) -> Outcome:
        transaction = self._find(home, number)
        if transaction is None:
            return Reason.TRANSACTION_NOT_FOUND
        if transaction.status is not S.PENDING:
            return Reason.TRANSACTION_NOT_PENDING
        transaction.status = S.CANCELLED
        return number, S.CANCELLED, None

    def reverse(self, home: int, number: int, amounts: list[int]) -> Outcome:
        original = self._find(home, number)
        if original is None:
            return Reason.TRANSACTION_NOT_FOUND
        if original.status is not S.SETTLED:
            return Reason.TRANSACTION_NOT_SETTLED
        done = original.reversed_amounts or [0] * len(original.entries)
        left = [
            original.settled_of(entry) - part
            for entry, part in zip(original.entries, done, strict=True)
        ]
        parts = amounts or left
        if len(parts) != len(left) or not any(parts):
            return Reason.REVERSAL_EXCEEDS
        if any(part > rest for part, rest in zip(parts, left, strict=True)):
            return Reason.REVERSAL_EXCEEDS
        difference = sum(
            part if entry.direction is Direction.DEBIT else -part
            for entry, part in zip(original.entries, parts, strict=True)
        )
        if difference:
            return Reason.INVALID_FIELDS
        mirror = [
            ModelEntry(entry.account_id, entry.direction.opposite, part)
            for entry, part in zip(original.entries, parts, strict=True)
            if part
        ]
        asked = CreateTransaction(home, 0, "", True, "r")
        reason = self._refusal(asked, mirror)
        status = S.SETTLED if reason is None else S.REJECTED
        if reason is R.INSUFFICIENT_FUNDS:
            status = S.INSUFFICIENT_FUNDS
        if reason is None:
            original.reversed_amounts = [a + b for a, b in zip(done, parts, strict=True)]
        # The home account may have no entry in a part: it is the home all the same.
        entries = mirror if mirror[0].account_id == home else [ModelEntry(home, _ANY, 0), *mirror]
        self.transactions.append(ModelTransaction(entries, status))
        return len(self.transactions), status, reason

    def freeze(self, account_id: int) -> Reason | None:
        account = self.accounts[account_id]
        if account.state == "CLOSED":
            return Reason.ACCOUNT_CLOSED
        if account.state == "FROZEN":
            return Reason.ACCOUNT_NOT_OPEN
        account.state = "FROZEN"
        return None

    def unfreeze(self, account_id: int) -> Reason | None:
        account = self.accounts[account_id]
        if account.state == "CLOSED":
            return Reason.ACCOUNT_CLOSED
        if account.state == "OPEN":
            return Reason.ACCOUNT_NOT_FROZEN
        account.state = "OPEN"
        return None

    def close(self, account_id: int) -> Reason | None:
        account = self.accounts[account_id]
        if account.state == "CLOSED":
            return Reason.ACCOUNT_CLOSED
        pending = any(
            entry.account_id == account_id
            for transaction in self.transactions
            if transaction.status is S.PENDING
            for entry in transaction.entries
        )
        if self.settled(account_id) or pending:
            return Reason.ACCOUNT_NOT_EMPTY
        account.state = "CLOSED"
        return None


_ANY = Direction.DEBIT

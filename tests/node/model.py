"""A ledger in a few dictionaries: what the state machine must do, written the simplest way.

It knows nothing of counters, slots, rows or hashes. Balances are worked out from the list of
transactions each time, so that a mistake in incremental bookkeeping cannot be made twice.
"""

from dataclasses import dataclass, field

from ledger_core.accounts import TransactionStatus
from ledger_core.commands import CancelTransaction, CreateTransaction, SettleTransaction
from ledger_core.errors import Reason
from ledger_core.money import INT64_MAX

PENDING = TransactionStatus.PENDING
SETTLED = TransactionStatus.SETTLED
CANCELLED = TransactionStatus.CANCELLED
INSUFFICIENT_FUNDS = TransactionStatus.INSUFFICIENT_FUNDS


@dataclass
class ModelTransaction:
    account_id: int
    amount: int
    status: TransactionStatus


@dataclass
class Model:
    """Accounts, transactions in order (their number is place + 1), and first results."""

    accounts: set[int] = field(default_factory=set)
    transactions: list[ModelTransaction] = field(default_factory=list)
    results: dict[tuple[object, ...], tuple[object, object]] = field(default_factory=dict)

    def settled(self, account_id: int) -> int:
        return sum(
            t.amount
            for t in self.transactions
            if t.account_id == account_id and t.status is SETTLED
        )

    def reserved(self, account_id: int) -> int:
        return sum(
            -t.amount
            for t in self.transactions
            if t.account_id == account_id and t.status is PENDING and t.amount < 0
        )

    def available(self, account_id: int) -> int:
        return self.settled(account_id) - self.reserved(account_id)

    def _volume(self, *, inflow: bool) -> int:
        """All money that moved or may still move one way: bounded, so that nothing overflows."""
        return sum(
            abs(t.amount)
            for t in self.transactions
            if t.status in (SETTLED, PENDING) and (t.amount > 0) is inflow
        )

    def create_transaction(
        self, command: CreateTransaction
    ) -> Reason | tuple[int, TransactionStatus]:
        """Return (number, status), or the reason why nothing was recorded."""
        scope = ("account", command.account_id, command.request_id)
        body = (command.amount, command.description, command.settled)
        if scope in self.results:
            first_body, result = self.results[scope]
            return result if first_body == body else Reason.REQUEST_ID_REUSED  # type: ignore[return-value]
        if command.account_id not in self.accounts:
            return Reason.ACCOUNT_NOT_FOUND
        inflow = command.amount > 0
        if not inflow and self.available(command.account_id) < -command.amount:
            status = INSUFFICIENT_FUNDS
        # The external account, the same for all accounts, takes the other side of every entry.
        elif self._volume(inflow=inflow) + abs(command.amount) > INT64_MAX:
            return Reason.BALANCE_OVERFLOW
        else:
            status = SETTLED if command.settled else PENDING
        self.transactions.append(ModelTransaction(command.account_id, command.amount, status))
        result = (len(self.transactions), status)
        self.results[scope] = (body, result)
        return result

    def end_transaction(
        self, command: SettleTransaction | CancelTransaction
    ) -> Reason | tuple[int, TransactionStatus]:
        """Settle or cancel."""
        scope = ("transaction", command.account_id, command.number, command.request_id)
        body = type(command)
        if scope in self.results:
            first_body, result = self.results[scope]
            return result if first_body == body else Reason.REQUEST_ID_REUSED  # type: ignore[return-value]
        if not 1 <= command.number <= len(self.transactions):
            return Reason.TRANSACTION_NOT_FOUND
        transaction = self.transactions[command.number - 1]
        if transaction.account_id != command.account_id:
            return Reason.TRANSACTION_NOT_FOUND
        if transaction.status is not PENDING:
            return Reason.TRANSACTION_NOT_PENDING
        transaction.status = SETTLED if isinstance(command, SettleTransaction) else CANCELLED
        result = (command.number, transaction.status)
        self.results[scope] = (body, result)
        return result

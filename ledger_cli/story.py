"""What scenarios are told with: claims that are checked, and balances held against them."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ledger.v1 import ledger_pb2
from ledger_cli.output import status_name
from ledger_client import AsyncLedgerClient, LedgerError
from ledger_core.money import format_amount

SETTLED = ledger_pb2.TRANSACTION_STATUS_SETTLED
PENDING = ledger_pb2.TRANSACTION_STATUS_PENDING
CANCELLED = ledger_pb2.TRANSACTION_STATUS_CANCELLED
INSUFFICIENT_FUNDS = ledger_pb2.TRANSACTION_STATUS_INSUFFICIENT_FUNDS


class ClaimError(Exception):
    """Something that the ledger promises did not hold."""


@dataclass
class Story:
    """One telling of a scenario: the client, the account, and the claims that held so far."""

    client: AsyncLedgerClient
    account_id: str
    tell: Callable[[str], None]
    claims: list[str] = field(default_factory=list)
    _unit: tuple[str, int] = ("USD", 2)

    def claim(self, holds: bool, text: str, otherwise: object = "") -> None:
        """Tell a claim that holds; raise ClaimError, with what was found, if it does not."""
        if not holds:
            found = f" (found: {otherwise})" if otherwise != "" else ""
            raise ClaimError(f"this does not hold: {text}{found}")
        self.claims.append(text)
        self.tell(f"✓ {text}")

    def money(self, amount: int) -> str:
        """Write an amount in the account's currency."""
        return format_amount(amount, *self._unit)

    async def balance(self) -> ledger_pb2.Account:
        """Read the account."""
        account = await self.client.get_account(self.account_id)
        self._unit = (account.currency, account.currency_exponent)
        return account

    async def move(
        self, amount: int, description: str, *, settled: bool, request_id: str | None = None
    ) -> ledger_pb2.Transaction:
        """Move money into (> 0) or out of (< 0) the account."""
        return await self.client.create_transaction(
            self.account_id, amount, description, settled=settled, request_id=request_id
        )

    async def expect(
        self, before: ledger_pb2.Account, text: str, *, available: int, settled: int, pending: int
    ) -> ledger_pb2.Account:
        """Claim how balances and pending transactions changed since ``before``."""
        after = await self.balance()
        changes = (
            after.available_balance - before.available_balance,
            after.settled_balance - before.settled_balance,
            after.pending_transactions - before.pending_transactions,
        )
        self.claim(
            changes == (available, settled, pending),
            f"{text}: available {self.money(after.available_balance)}, "
            f"settled {self.money(after.settled_balance)}",
            f"changes by {changes}, not {(available, settled, pending)}",
        )
        return after

    # With several accounts

    async def open(self, top_up: int = 0, **options: Any) -> str:
        """Open an account, with money in it, and return its id."""
        account = await self.client.create_account(**options)
        if top_up:
            await self.client.create_transaction(account.id, top_up, "top-up", settled=True)
        return account.id

    async def post(
        self,
        text: str,
        entries: Sequence[ledger_pb2.Entry],
        *,
        settled: bool = True,
        **options: Any,
    ) -> ledger_pb2.Transaction:
        """Book entries and claim that the accounts take them."""
        transaction = await self.client.create_transaction(
            entries=entries, description=text, settled=settled, **options
        )
        expected = SETTLED if settled else PENDING
        self.claim(transaction.status == expected, text, _outcome(transaction))
        return transaction

    async def refused(
        self, text: str, entries: Sequence[ledger_pb2.Entry], **options: Any
    ) -> ledger_pb2.Transaction:
        """Claim that the accounts do not take entries, for lack of money."""
        transaction = await self.client.create_transaction(
            entries=entries, description=text, settled=True, **options
        )
        self.claim(
            transaction.status == INSUFFICIENT_FUNDS,
            f"{text} is refused: {transaction.refusal.message}",
            _outcome(transaction),
        )
        return transaction

    async def fails(self, text: str, reason: str, call: Awaitable[object]) -> None:
        """Claim that a call fails for a reason."""
        error = await error_of(call)
        self.claim(
            error is not None and error.reason == reason,
            f"{text}: {error.message if error else ''}",
            error or "no error",
        )

    async def holds(self, text: str, balances: Mapping[str, tuple[str, int]]) -> None:
        """Claim the available balances of accounts, by what they are called in the story."""
        found, wanted = [], []
        for name, (account_id, amount) in balances.items():
            account = await self.client.get_account(account_id)
            unit = (account.currency, account.currency_exponent)
            found.append(f"{name} {format_amount(account.available_balance, *unit)}")
            wanted.append(f"{name} {format_amount(amount, *unit)}")
        self.claim(found == wanted, f"{text}: {', '.join(wanted)}", ", ".join(found))


async def error_of(call: Awaitable[object]) -> LedgerError | None:
    """Return the error with which a call ends, if it does."""
    try:
        await call
    except LedgerError as error:
        return error
    return None


def words_of(error: LedgerError) -> str:
    """Return everything that an error says."""
    return " ".join([error.message, *error.metadata, *error.metadata.values()])


def _outcome(transaction: ledger_pb2.Transaction) -> str:
    return f"{status_name(transaction.status)} {transaction.refusal.message}".strip()

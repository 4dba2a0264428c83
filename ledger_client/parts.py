"""Parts of requests: entries of transactions, and limits of accounts."""

from ledger.v1 import ledger_pb2
from ledger_client._requests import fill, given


def debit(
    account_id: str,
    amount: int,
    currency: str = "",
    *,
    expected_version: int | None = None,
    minimum_balance: int | None = None,
    maximum_balance: int | None = None,
) -> ledger_pb2.Entry:
    """Return an entry on the debit side: out of a customer's account, into an ASSET or EXPENSE.

    ``currency``: the ledger's default if empty. The other arguments are preconditions: the
    account's version before, bounds of its settled balance after the whole transaction.
    """
    preconditions = given(
        expected_version=expected_version,
        minimum_balance=minimum_balance,
        maximum_balance=maximum_balance,
    )
    return _entry(ledger_pb2.DIRECTION_DEBIT, account_id, amount, currency, preconditions)


def credit(
    account_id: str,
    amount: int,
    currency: str = "",
    *,
    expected_version: int | None = None,
    minimum_balance: int | None = None,
    maximum_balance: int | None = None,
) -> ledger_pb2.Entry:
    """Return an entry on the credit side: into a customer's account, out of an ASSET or EXPENSE.

    The arguments are those of `debit`.
    """
    preconditions = given(
        expected_version=expected_version,
        minimum_balance=minimum_balance,
        maximum_balance=maximum_balance,
    )
    return _entry(ledger_pb2.DIRECTION_CREDIT, account_id, amount, currency, preconditions)


def limits(minimum: int | None = None, maximum: int | None = None) -> ledger_pb2.Limits:
    """Return bounds of an account's balances, None for none: ``limits()`` has no bounds at all."""
    return fill(ledger_pb2.Limits(), **given(minimum=minimum, maximum=maximum))


def _entry(
    direction: ledger_pb2.Direction.ValueType,
    account_id: str,
    amount: int,
    currency: str,
    preconditions: dict[str, object],
) -> ledger_pb2.Entry:
    return fill(
        ledger_pb2.Entry(),
        account_id=account_id,
        direction=direction,
        amount=amount,
        currency=currency,
        **preconditions,
    )

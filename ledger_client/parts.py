"""Parts of requests: entries of transactions, and limits of accounts."""

from ledger.v1 import ledger_pb2
from ledger_client._requests import fill, given

_DEBIT = ledger_pb2.DIRECTION_DEBIT
_CREDIT = ledger_pb2.DIRECTION_CREDIT


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
    return _entry(
        _DEBIT,
        account_id,
        amount,
        currency,
        expected_version=expected_version,
        minimum_balance=minimum_balance,
        maximum_balance=maximum_balance,
    )


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
    return _entry(
        _CREDIT,
        account_id,
        amount,
        currency,
        expected_version=expected_version,
        minimum_balance=minimum_balance,
        maximum_balance=maximum_balance,
    )


def limits(minimum: int | None = None, maximum: int | None = None) -> ledger_pb2.Limits:
    """Return bounds of an account's balances, None for none: ``limits()`` has no bounds at all."""
    return fill(ledger_pb2.Limits(), **given(minimum=minimum, maximum=maximum))


def _entry(
    direction: ledger_pb2.Direction.ValueType,
    account_id: str,
    amount: int,
    currency: str,
    *,
    expected_version: int | None,
    minimum_balance: int | None,
    maximum_balance: int | None,
) -> ledger_pb2.Entry:
    # Constructors would take None for "not set".
    if account_id is not None and amount is not None and currency is not None:
        try:
            return ledger_pb2.Entry(
                account_id=account_id,
                direction=direction,
                amount=amount,
                currency=currency,
                expected_version=expected_version,
                minimum_balance=minimum_balance,
                maximum_balance=maximum_balance,
            )
        except (TypeError, ValueError):
            pass
    # Again, field by field, to tell which ones are wrong.
    return fill(
        ledger_pb2.Entry(),
        account_id=account_id,
        direction=direction,
        amount=amount,
        currency=currency,
        **given(
            expected_version=expected_version,
            minimum_balance=minimum_balance,
            maximum_balance=maximum_balance,
        ),
    )

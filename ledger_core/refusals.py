"""Why a transaction was refused, in a sentence for people."""

from ledger_core.commands import Refused
from ledger_core.errors import RefusalReason
from ledger_core.ids import format_account_id
from ledger_core.ledgers import Currency
from ledger_core.money import format_amount


def refusal_message(refused: Refused, account_id: int, currency: Currency) -> str:
    """Say which account did not take the transaction, and why."""
    return f"account {format_account_id(account_id)} {_why(refused, currency)}"


def _why(refused: Refused, currency: Currency) -> str:
    """Say the reason as the predicate of a sentence about the account."""

    def money(amount: int) -> str:
        return format_amount(amount, currency.code, currency.exponent)

    required, available = money(refused.required_amount), money(refused.available_amount)
    held = money(refused.reserved_amount) if refused.reserved_amount else ""
    match refused.reason:
        case RefusalReason.INSUFFICIENT_FUNDS:
            more = f" ({held} reserved by pending transactions)" if held else ""
            return f"has {available} available, needs {required}{more}"
        case RefusalReason.LIMIT_EXCEEDED:
            more = f" ({held} on their way by pending transactions)" if held else ""
            return f"has room for {available} below its maximum balance, got {required}{more}"
        case RefusalReason.BALANCE_OVERFLOW:
            return f"has room for {available} below 2**63 - 1, got {required}"
        case reason:
            return _PREDICATES[reason]


_PREDICATES = {
    RefusalReason.ACCOUNT_NOT_FOUND: "does not exist",
    RefusalReason.SYSTEM_ACCOUNT: "belongs to the ledger itself",
    RefusalReason.LEDGER_MISMATCH: "belongs to another ledger",
    RefusalReason.CURRENCY_MISMATCH: "has another currency",
    RefusalReason.ACCOUNT_CLOSED: "is closed",
    RefusalReason.ACCOUNT_FROZEN: "is frozen",
    RefusalReason.VERSION_MISMATCH: "is not at the expected version",
    RefusalReason.BALANCE_BELOW_MINIMUM: "would be below the minimum that the entry demands",
    RefusalReason.BALANCE_ABOVE_MAXIMUM: "would be above the maximum that the entry demands",
    RefusalReason.SHARD_UNREACHABLE: "is on a shard that could not be reached in time",
    RefusalReason.ABANDONED: "took part, but the transaction was given up before it was decided",
}

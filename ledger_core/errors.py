"""Errors of the ledger, and the reasons that name them.

    LedgerError                     carries a Reason; the reason fixes the gRPC status
    ├── InvalidRequestError         INVALID_ARGUMENT, with one FieldViolation per wrong field
    ├── RefusedError                NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION: a Failure value
    ├── OverloadedError             RESOURCE_EXHAUSTED: a queue, the store or the disk is full
    ├── ShardUnavailableError       UNAVAILABLE: no leader or no majority; nothing was done
    └── OutcomeUnknownError         DEADLINE_EXCEEDED: the write may or may not have happened

Inside the state machine refusals are values (`ledger_core.results.Failure`), not exceptions.
"""

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """The gRPC status codes that the ledger uses, by name."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    INTERNAL = "INTERNAL"


class Reason(StrEnum):
    """Why a call failed: the ``reason`` of google.rpc.ErrorInfo in domain ``ledger``."""

    INVALID_FIELDS = "INVALID_FIELDS"
    LEDGER_NOT_FOUND = "LEDGER_NOT_FOUND"
    LEDGER_EXISTS = "LEDGER_EXISTS"
    CURRENCY_NOT_IN_LEDGER = "CURRENCY_NOT_IN_LEDGER"
    CODE_NOT_IN_CHART = "CODE_NOT_IN_CHART"
    TYPE_NOT_IN_CHART = "TYPE_NOT_IN_CHART"
    NAME_TAKEN = "NAME_TAKEN"
    REVISION_MISMATCH = "REVISION_MISMATCH"
    ACCOUNT_NOT_OPEN = "ACCOUNT_NOT_OPEN"
    ACCOUNT_NOT_FROZEN = "ACCOUNT_NOT_FROZEN"
    ACCOUNT_CLOSED = "ACCOUNT_CLOSED"
    ACCOUNT_NOT_EMPTY = "ACCOUNT_NOT_EMPTY"
    ACCOUNT_NOT_FOUND = "ACCOUNT_NOT_FOUND"
    TRANSACTION_NOT_FOUND = "TRANSACTION_NOT_FOUND"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    ACCOUNT_ID_TAKEN = "ACCOUNT_ID_TAKEN"
    SYSTEM_ACCOUNT = "SYSTEM_ACCOUNT"
    TRANSACTION_NOT_PENDING = "TRANSACTION_NOT_PENDING"
    BALANCE_OVERFLOW = "BALANCE_OVERFLOW"
    SETTLE_AMOUNT = "SETTLE_AMOUNT"
    TRANSACTION_NOT_SETTLED = "TRANSACTION_NOT_SETTLED"
    REVERSAL_EXCEEDS = "REVERSAL_EXCEEDS"
    JOURNAL_NOT_EMPTY = "JOURNAL_NOT_EMPTY"
    JOURNAL_GAP = "JOURNAL_GAP"
    REPLAY_DIFFERS = "REPLAY_DIFFERS"
    OVERLOADED = "OVERLOADED"
    SHARD_UNAVAILABLE = "SHARD_UNAVAILABLE"
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    INTERNAL = "INTERNAL"

    @property
    def status(self) -> Status:
        """The gRPC status that goes with the reason, always the same one."""
        return _STATUS[self]


_STATUS = {
    Reason.INVALID_FIELDS: Status.INVALID_ARGUMENT,
    Reason.LEDGER_NOT_FOUND: Status.NOT_FOUND,
    Reason.LEDGER_EXISTS: Status.ALREADY_EXISTS,
    Reason.CURRENCY_NOT_IN_LEDGER: Status.FAILED_PRECONDITION,
    Reason.CODE_NOT_IN_CHART: Status.FAILED_PRECONDITION,
    Reason.TYPE_NOT_IN_CHART: Status.FAILED_PRECONDITION,
    Reason.NAME_TAKEN: Status.ALREADY_EXISTS,
    Reason.REVISION_MISMATCH: Status.FAILED_PRECONDITION,
    Reason.ACCOUNT_NOT_OPEN: Status.FAILED_PRECONDITION,
    Reason.ACCOUNT_NOT_FROZEN: Status.FAILED_PRECONDITION,
    Reason.ACCOUNT_CLOSED: Status.FAILED_PRECONDITION,
    Reason.ACCOUNT_NOT_EMPTY: Status.FAILED_PRECONDITION,
    Reason.ACCOUNT_NOT_FOUND: Status.NOT_FOUND,
    Reason.TRANSACTION_NOT_FOUND: Status.NOT_FOUND,
    Reason.REQUEST_ID_REUSED: Status.ALREADY_EXISTS,
    Reason.ACCOUNT_ID_TAKEN: Status.ALREADY_EXISTS,
    Reason.SYSTEM_ACCOUNT: Status.FAILED_PRECONDITION,
    Reason.TRANSACTION_NOT_PENDING: Status.FAILED_PRECONDITION,
    Reason.BALANCE_OVERFLOW: Status.FAILED_PRECONDITION,
    Reason.SETTLE_AMOUNT: Status.FAILED_PRECONDITION,
    Reason.TRANSACTION_NOT_SETTLED: Status.FAILED_PRECONDITION,
    Reason.REVERSAL_EXCEEDS: Status.FAILED_PRECONDITION,
    Reason.JOURNAL_NOT_EMPTY: Status.FAILED_PRECONDITION,
    Reason.JOURNAL_GAP: Status.FAILED_PRECONDITION,
    Reason.REPLAY_DIFFERS: Status.FAILED_PRECONDITION,
    Reason.OVERLOADED: Status.RESOURCE_EXHAUSTED,
    Reason.SHARD_UNAVAILABLE: Status.UNAVAILABLE,
    Reason.OUTCOME_UNKNOWN: Status.DEADLINE_EXCEEDED,
    Reason.INTERNAL: Status.INTERNAL,
}


class RefusalReason(StrEnum):
    """Why a transaction was refused; recorded with it, for good. In order of precedence."""

    ACCOUNT_NOT_FOUND = "ACCOUNT_NOT_FOUND"
    SYSTEM_ACCOUNT = "SYSTEM_ACCOUNT"
    LEDGER_MISMATCH = "LEDGER_MISMATCH"
    CURRENCY_MISMATCH = "CURRENCY_MISMATCH"
    ACCOUNT_CLOSED = "ACCOUNT_CLOSED"
    ACCOUNT_FROZEN = "ACCOUNT_FROZEN"
    VERSION_MISMATCH = "VERSION_MISMATCH"
    BALANCE_BELOW_MINIMUM = "BALANCE_BELOW_MINIMUM"
    BALANCE_ABOVE_MAXIMUM = "BALANCE_ABOVE_MAXIMUM"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"
    LIMIT_EXCEEDED = "LIMIT_EXCEEDED"
    BALANCE_OVERFLOW = "BALANCE_OVERFLOW"
    SHARD_UNREACHABLE = "SHARD_UNREACHABLE"
    ABANDONED = "ABANDONED"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A request field, by its name in the API, and what is wrong with it."""

    field: str
    description: str


class LedgerError(Exception):
    """A call that failed, as the caller shall see it."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        metadata: dict[str, str] | None = None,
        violations: list[FieldViolation] | None = None,
        retry_delay_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = metadata or {}
        self.violations = violations or []
        self.retry_delay_s = retry_delay_s


class InvalidRequestError(LedgerError):
    """Fields of the request are wrong; nothing was sent anywhere."""

    def __init__(self, violations: list[FieldViolation]) -> None:
        message = "; ".join(f"{item.field}: {item.description}" for item in violations)
        super().__init__(Reason.INVALID_FIELDS, message, violations=violations)


class RefusedError(LedgerError):
    """The ledger refused; nothing was changed."""


class OverloadedError(LedgerError):
    """Something bounded is full; nothing was done."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.OVERLOADED, message, retry_delay_s=0.5)


class ShardUnavailableError(LedgerError):
    """No node could take the call before the deadline; nothing was done."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.SHARD_UNAVAILABLE, message, retry_delay_s=1.0)


class OutcomeUnknownError(LedgerError):
    """A write was sent, but no result came back: it may have happened.

    Repeating it with the same request id is safe, and tells.
    """

    def __init__(self, message: str) -> None:
        super().__init__(Reason.OUTCOME_UNKNOWN, message)

"""What the client raises: one class per gRPC status.

    LedgerError                     status, reason, message, metadata, violations, retry_delay_s
    ├── InvalidArgumentError        INVALID_ARGUMENT: fields are wrong, see violations; a ValueError
    ├── NotFoundError               NOT_FOUND
    ├── AlreadyExistsError          ALREADY_EXISTS: a request id with another body, a name taken, …
    ├── FailedPreconditionError     FAILED_PRECONDITION: no longer pending, …
    ├── ResourceExhaustedError      RESOURCE_EXHAUSTED: the service is full; nothing was done
    ├── UnavailableError            UNAVAILABLE: no leader, or the gateway cannot be reached
    ├── DeadlineExceededError       DEADLINE_EXCEEDED: a change may or may not have happened
    ├── UnauthenticatedError        UNAUTHENTICATED
    ├── PermissionDeniedError       PERMISSION_DENIED
    ├── UnimplementedError          UNIMPLEMENTED: the server is older than the client
    ├── ServerCancelledError        CANCELLED by the server; a change may have happened
    ├── UnknownError                UNKNOWN: something in between failed; a change may have happened
    └── InternalError               INTERNAL: a bug in the service; the message has an incident id

A change whose outcome is unknown can be repeated safely with the same request id, and that tells.
"""

from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from ledger.v1 import ledger_pb2
from ledger_core.errors import FieldViolation

_STATUS_DETAILS_KEY = "grpc-status-details-bin"


class LedgerError(Exception):
    """A call that failed. ``str()`` gives status, reason and message in one line."""

    def __init__(
        self,
        status: str,
        message: str,
        *,
        reason: str = "",
        metadata: dict[str, str] | None = None,
        violations: list[FieldViolation] | None = None,
        retry_delay_s: float | None = None,
    ) -> None:
        super().__init__(f"{status} ({reason}): {message}" if reason else f"{status}: {message}")
        self.status = status
        """The gRPC status by name, such as ``NOT_FOUND``."""
        self.reason = reason
        """Why, such as ``ACCOUNT_NOT_FOUND``; empty if the ledger itself did not answer."""
        self.message = message
        self.metadata = metadata or {}
        self.violations = violations or []
        """Every wrong field of the request."""
        self.retry_delay_s = retry_delay_s
        """How long the server asks to wait before another attempt, if it does."""


class InvalidArgumentError(LedgerError, ValueError):
    """Fields of the request are wrong: found by the client or by the server."""


class NotFoundError(LedgerError):
    """There is no such account, transaction or ledger."""


class AlreadyExistsError(LedgerError):
    """The request id was used for something else, or a name or ledger is there already."""


class FailedPreconditionError(LedgerError):
    """The state of the account or transaction does not allow it."""


class ResourceExhaustedError(LedgerError):
    """Something bounded is full; nothing was done."""


class UnavailableError(LedgerError):
    """The ledger, or the part of it that holds the account, cannot be reached now."""


class DeadlineExceededError(LedgerError):
    """No answer in time: a change may or may not have happened."""


class UnauthenticatedError(LedgerError):
    """The caller is not known."""


class PermissionDeniedError(LedgerError):
    """The caller may not do that."""


class UnimplementedError(LedgerError):
    """The server does not have this call."""


class ServerCancelledError(LedgerError):
    """The server gave the call up: a change may or may not have happened."""


class UnknownError(LedgerError):
    """Something between client and ledger failed: a change may or may not have happened."""


class InternalError(LedgerError):
    """A bug in the service."""


_CLASSES: dict[str, type[LedgerError]] = {
    "INVALID_ARGUMENT": InvalidArgumentError,
    "NOT_FOUND": NotFoundError,
    "ALREADY_EXISTS": AlreadyExistsError,
    "FAILED_PRECONDITION": FailedPreconditionError,
    "RESOURCE_EXHAUSTED": ResourceExhaustedError,
    "UNAVAILABLE": UnavailableError,
    "DEADLINE_EXCEEDED": DeadlineExceededError,
    "UNAUTHENTICATED": UnauthenticatedError,
    "PERMISSION_DENIED": PermissionDeniedError,
    "UNIMPLEMENTED": UnimplementedError,
    "CANCELLED": ServerCancelledError,
    "UNKNOWN": UnknownError,
    "INTERNAL": InternalError,
}


_STATUS_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


def invalid_argument(violations: list[FieldViolation]) -> InvalidArgumentError:
    """Return the error for a request that cannot even be built."""
    return InvalidArgumentError(
        "INVALID_ARGUMENT",
        "; ".join(f"{item.field}: {item.description}" for item in violations),
        reason="INVALID_FIELDS",
        violations=violations,
    )


def from_rpc_error(error: grpc.RpcError) -> LedgerError:
    """Return what a failed call means. Sync and asyncio calls fail with the same methods."""
    status = error.code().name
    details = _status_details(error)
    reason = ""
    metadata: dict[str, str] = {}
    violations: list[FieldViolation] = []
    retry_delay_s: float | None = None
    for detail in details.details:
        error_info = error_details_pb2.ErrorInfo()
        bad_request = error_details_pb2.BadRequest()
        retry_info = error_details_pb2.RetryInfo()
        if detail.Unpack(error_info):
            reason = error_info.reason
            metadata = dict(error_info.metadata)
        elif detail.Unpack(bad_request):
            violations = [
                FieldViolation(item.field, item.description)
                for item in bad_request.field_violations
            ]
        elif detail.Unpack(retry_info):
            retry_delay_s = retry_info.retry_delay.ToNanoseconds() / 1e9
    failure = of_status(
        status,
        error.details() or "",
        reason=reason,
        metadata=metadata,
        violations=violations,
        retry_delay_s=retry_delay_s,
    )
    failure.__cause__ = error
    return failure


def from_call_error(error: ledger_pb2.CallError) -> LedgerError:
    """Return why a transaction of a bulk call failed: the same as its single call would raise."""
    return of_status(
        _STATUS_NAMES.get(error.code, "UNKNOWN"),
        error.message,
        reason=error.reason,
        metadata=dict(error.metadata),
        violations=[FieldViolation(item.field, item.description) for item in error.violations],
        retry_delay_s=error.retry_delay_ms / 1_000 if error.retry_delay_ms else None,
    )


def of_status(
    status: str,
    message: str,
    *,
    reason: str = "",
    metadata: dict[str, str] | None = None,
    violations: list[FieldViolation] | None = None,
    retry_delay_s: float | None = None,
) -> LedgerError:
    """Return an error of the class that goes with its status."""
    return _CLASSES.get(status, LedgerError)(
        status,
        message,
        reason=reason,
        metadata=metadata,
        violations=violations,
        retry_delay_s=retry_delay_s,
    )


def again(error: LedgerError) -> LedgerError:
    """Return an error that says the same."""
    same = of_status(
        error.status,
        error.message,
        reason=error.reason,
        metadata=dict(error.metadata),
        violations=list(error.violations),
        retry_delay_s=error.retry_delay_s,
    )
    same.__cause__ = error.__cause__
    return same


def _status_details(error: grpc.RpcError) -> status_pb2.Status:
    # Typed by the stubs as one pair, it is a sequence of pairs.
    trailers: Any = error.trailing_metadata()
    for key, value in trailers or ():
        if key == _STATUS_DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    return status_pb2.Status()

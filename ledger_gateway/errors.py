"""Errors as callers see them: a gRPC status with google.rpc details.

Every error carries exactly one ErrorInfo (reason, domain ``ledger``, metadata), a BadRequest where
request fields are at fault, and a RetryInfo where trying again later helps.
"""

from typing import Any, Never, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from ledger.v1 import ledger_pb2
from ledger_core.errors import FieldViolation, LedgerError, OverloadedError, Reason, RefusedError
from ledger_core.results import Failure, Result

DOMAIN = "ledger"

STATUS_DETAILS_KEY = "grpc-status-details-bin"
"""The trailer that carries the google.rpc.Status of a failed call."""

# A status travels in HTTP/2 trailers, which clients limit to 8 KiB by default; a longer one would
# reach the caller as a broken call. Up to 3 bytes a character in one place, up to 4 in another.
_MESSAGE_CHARS_MAX = 500
_METADATA_CHARS_MAX = 128
_VIOLATIONS_MAX = 10
# In one answer there may be thousands of errors of this kind.
_ITEM_MESSAGE_CHARS_MAX = 300
_ITEM_VIOLATIONS_MAX = 4

ViewT = TypeVar("ViewT", bound=Result)


def unwrap(result: Result, kind: type[ViewT]) -> ViewT:
    """Return the result, which must be of this kind; raise RefusedError for a Failure."""
    if isinstance(result, Failure):
        raise failure_error(result)
    if not isinstance(result, kind):
        raise TypeError(f"expected {kind.__name__}, the shard answered {type(result).__name__}")
    return result


def failure_error(failure: Failure) -> LedgerError:
    """Return a Failure as an error."""
    if failure.reason is Reason.OVERLOADED:
        return OverloadedError(failure.message)
    violations = [FieldViolation(failure.field, failure.message)] if failure.field else None
    return RefusedError(
        failure.reason, failure.message, metadata=failure.metadata, violations=violations
    )


def to_status(error: LedgerError) -> status_pb2.Status:
    """Return the google.rpc.Status of an error."""
    status = status_pb2.Status(
        code=status_code(error).value[0],
        message=_clip(error.message, _MESSAGE_CHARS_MAX),
    )
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(
            reason=error.reason,
            domain=DOMAIN,
            metadata={
                key: _clip(value, _METADATA_CHARS_MAX) for key, value in error.metadata.items()
            },
        )
    )
    if error.violations:
        bad_request = error_details_pb2.BadRequest()
        for violation in error.violations[:_VIOLATIONS_MAX]:
            bad_request.field_violations.add(
                field=_clip(violation.field, _METADATA_CHARS_MAX),
                description=_clip(violation.description, _METADATA_CHARS_MAX),
                reason=error.reason,
            )
        status.details.add().Pack(bad_request)
    if error.retry_delay_s is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_delay_s * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def to_call_error(error: LedgerError) -> ledger_pb2.CallError:
    """Return an error of one item of a call that has many."""
    return ledger_pb2.CallError(
        code=status_code(error).value[0],
        reason=error.reason,
        message=_clip(error.message, _ITEM_MESSAGE_CHARS_MAX),
        violations=[
            ledger_pb2.FieldViolation(
                field=_clip(violation.field, _METADATA_CHARS_MAX),
                description=_clip(violation.description, _METADATA_CHARS_MAX),
            )
            for violation in error.violations[:_ITEM_VIOLATIONS_MAX]
        ],
        metadata={key: _clip(value, _METADATA_CHARS_MAX) for key, value in error.metadata.items()},
        retry_delay_ms=round((error.retry_delay_s or 0.0) * 1_000),
    )


def status_code(error: LedgerError) -> grpc.StatusCode:
    """Return the gRPC status code of an error: its reason fixes it."""
    return grpc.StatusCode[error.reason.status.value]


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: LedgerError) -> Never:
    """End the call with the error's status."""
    status = to_status(error)
    await context.abort(
        status_code(error), status.message, ((STATUS_DETAILS_KEY, status.SerializeToString()),)
    )


def _clip(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"

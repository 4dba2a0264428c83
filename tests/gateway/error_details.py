"""Errors as a caller decodes them, independently of the SDK."""

from dataclasses import dataclass

import grpc
from google.rpc import error_details_pb2, status_pb2


@dataclass
class Decoded:
    code: str
    message: str
    reason: str
    metadata: dict[str, str]
    violations: list[tuple[str, str]]
    retry_delay_s: float | None


def decode(error: grpc.aio.AioRpcError) -> Decoded:
    """Decode, and hold the rules for all errors: one ErrorInfo, at most one of each other."""
    (data,) = [value for key, value in error.trailing_metadata() if key.endswith("-details-bin")]
    status = status_pb2.Status.FromString(data)
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    kinds = [detail.type_url for detail in status.details]
    assert len(set(kinds)) == len(kinds)

    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry_info = error_details_pb2.RetryInfo()
    found = [
        next(kind for kind in (info, bad_request, retry_info) if detail.Unpack(kind))
        for detail in status.details
    ]
    assert info in found
    assert info.domain == "ledger"
    return Decoded(
        code=error.code().name,
        message=status.message,
        reason=info.reason,
        metadata=dict(info.metadata),
        violations=[(item.field, item.description) for item in bad_request.field_violations],
        retry_delay_s=(
            retry_info.retry_delay.ToTimedelta().total_seconds()
            if any(item is retry_info for item in found)
            else None
        ),
    )

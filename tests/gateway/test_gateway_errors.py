"""Every error: its status, its details, and what must not get out."""

import asyncio
import re
from typing import Any

import grpc
import pytest
from error_details import decode
from fake_shards import ACCOUNT, ACCOUNT_VIEW, TRANSACTION, FakeShards, until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from ledger.v1 import ledger_pb2
from ledger_core.errors import (
    FieldViolation,
    LedgerError,
    OutcomeUnknownError,
    OverloadedError,
    Reason,
    ShardUnavailableError,
)
from ledger_core.results import Failure
from ledger_gateway import ledger_service, shard_calls
from ledger_gateway.errors import to_status

GET = ledger_pb2.GetAccountRequest(account_id=ACCOUNT)
SETTLE = ledger_pb2.SettleTransactionRequest(transaction_id=TRANSACTION)


async def get_error(stub: Any, **options: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetAccount(GET, **options)
    return caught.value


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (Reason.LEDGER_NOT_FOUND, "NOT_FOUND"),
        (Reason.ACCOUNT_NOT_FOUND, "NOT_FOUND"),
        (Reason.TRANSACTION_NOT_FOUND, "NOT_FOUND"),
        (Reason.REQUEST_ID_REUSED, "ALREADY_EXISTS"),
        (Reason.ACCOUNT_ID_TAKEN, "ALREADY_EXISTS"),
        (Reason.SYSTEM_ACCOUNT, "FAILED_PRECONDITION"),
        (Reason.TRANSACTION_NOT_PENDING, "FAILED_PRECONDITION"),
        (Reason.BALANCE_OVERFLOW, "FAILED_PRECONDITION"),
        (Reason.INVALID_FIELDS, "INVALID_ARGUMENT"),
    ],
)
async def test_a_failure_of_the_shard(
    stub: Any, shards: FakeShards, reason: Reason, code: str
) -> None:
    shards.result = Failure(reason, "the reason in words: 5 €", "some_field", {"key": "value"})
    for call in (stub.GetAccount(GET), stub.SettleTransaction(SETTLE)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        error = decode(caught.value)
        assert (error.code, error.reason) == (code, reason)
        assert error.message == "the reason in words: 5 €"
        assert error.metadata == {"key": "value"}
        assert error.violations == [("some_field", "the reason in words: 5 €")]
        assert error.retry_delay_s is None


async def test_what_a_shard_was_too_busy_for_may_be_tried_again(
    stub: Any, shards: FakeShards
) -> None:
    shards.result = Failure(Reason.OVERLOADED, "a log entry is full; try again")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.SettleTransaction(
            ledger_pb2.SettleTransactionRequest(transaction_id="0" * 31 + "1")
        )
    error = decode(caught.value)
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert error.retry_delay_s


async def test_a_failure_without_a_field_has_no_violations(stub: Any, shards: FakeShards) -> None:
    shards.result = Failure(Reason.ACCOUNT_NOT_FOUND, "there is no such account")
    assert decode(await get_error(stub)).violations == []


@pytest.mark.parametrize(
    ("raised", "code", "retry_delay_s"),
    [
        (OverloadedError("full"), "RESOURCE_EXHAUSTED", 0.5),
        (ShardUnavailableError("no leader"), "UNAVAILABLE", 1.0),
        (OutcomeUnknownError("who knows"), "DEADLINE_EXCEEDED", None),
    ],
)
async def test_an_error_of_the_shards(
    stub: Any, shards: FakeShards, raised: LedgerError, code: str, retry_delay_s: float | None
) -> None:
    shards.result = raised
    error = decode(await get_error(stub))
    assert (error.code, error.reason, error.message) == (code, raised.reason, raised.message)
    assert error.retry_delay_s == retry_delay_s


def test_every_reason_has_a_grpc_status() -> None:
    for reason in Reason:
        assert to_status(LedgerError(reason, "")).code > 0


def test_a_status_always_fits_into_the_trailers() -> None:
    status = to_status(
        LedgerError(
            Reason.REQUEST_ID_REUSED,
            "€" * 5_000,
            metadata={f"key{index}": "€" * 5_000 for index in range(4)},
            violations=[FieldViolation(f"field{index}", "€" * 5_000) for index in range(4)],
        )
    )
    # The message travels twice: in the details and, with 9 bytes a character, as grpc-message.
    assert len(status.SerializeToString()) * 4 / 3 + len(status.message) * 9 < 12_000


async def test_a_huge_error_still_arrives(stub: Any, shards: FakeShards) -> None:
    shards.result = Failure(
        Reason.REQUEST_ID_REUSED, "x" * 5_000, "description", {"first": "x" * 4_000}
    )
    error = decode(await get_error(stub))
    assert error.code == "ALREADY_EXISTS"
    assert error.message.endswith("x…")


async def test_no_exception_text_leaves_the_process(stub: Any, shards: FakeShards) -> None:
    shards.result = RuntimeError("secret: /var/lib/ledger, password 1234")
    with capture_logs() as logs:
        caught = await get_error(stub)
    error = decode(caught)
    assert (error.code, error.reason) == ("INTERNAL", "INTERNAL")
    assert "secret" not in repr(caught)
    assert "RuntimeError" not in repr(caught)
    (line,) = [line for line in logs if line["event"] == "call failed"]
    assert re.fullmatch("[0-9a-f]{8}", line["incident"])
    assert line["incident"] in error.message
    assert line["exc_info"]
    assert line["method"] == "/ledger.v1.LedgerService/GetAccount"


async def test_an_answer_of_the_wrong_kind_is_internal(stub: Any, shards: FakeShards) -> None:
    shards.result = ACCOUNT_VIEW
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.SettleTransaction(SETTLE)
    assert decode(caught.value).code == "INTERNAL"
    assert "AccountView" not in repr(caught.value)


async def test_an_unknown_method_is_unimplemented(channel: grpc.aio.Channel) -> None:
    for method in ("/ledger.v1.LedgerService/Nope", "/nope.Nope/Nope"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(method)(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_request_above_the_limit_is_refused(stub: Any, shards: FakeShards) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetAccount(ledger_pb2.GetAccountRequest(account_id="0" * 300_000))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert shards.calls == []


async def test_calls_beyond_the_limit_are_refused_and_health_checks_are_not(
    stub: Any, shards: FakeShards, channel: grpc.aio.Channel
) -> None:
    shards.hold = asyncio.Event()
    running = [asyncio.ensure_future(stub.GetAccount(GET)) for _ in range(3)]
    await until(lambda: len(shards.calls) == 3)
    error = decode(await get_error(stub))
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert error.retry_delay_s == 0.5
    health = health_pb2_grpc.HealthStub(channel)
    await health.Check(health_pb2.HealthCheckRequest(service=""))
    shards.hold.set()
    await asyncio.gather(*running)
    await stub.GetAccount(GET)


async def test_a_cancelled_call_cancels_its_work(stub: Any, shards: FakeShards) -> None:
    shards.hold = asyncio.Event()
    call = stub.GetAccount(GET)
    pending = asyncio.ensure_future(call.code())
    await until(lambda: bool(shards.calls))
    with capture_logs() as logs:
        call.cancel()
        await pending
        await until(lambda: shards.cancelled)
    assert logs == []
    # Nothing is left that counts against the limit.
    shards.hold = None
    for _ in range(4):
        await stub.GetAccount(GET)


@pytest.mark.parametrize(
    ("given_s", "least_s", "most_s"),
    [
        (None, 10.0, 10.0),
        (5.0, 4.5, 5.0),
        (0.5, 0.3, 0.5),
        (3_600.0, 60.0, 60.0),
    ],
)
async def test_every_call_has_a_bounded_deadline(
    stub: Any, shards: FakeShards, given_s: float | None, least_s: float, most_s: float
) -> None:
    await stub.GetAccount(GET, timeout=given_s)
    assert least_s <= shards.calls[0].timeout_s <= most_s


class _Context:
    def time_remaining(self) -> float:
        return 0.0


async def test_with_no_time_left_the_call_is_still_tried(shards: FakeShards) -> None:
    service = ledger_service.LedgerService(shards)
    response = await service.GetAccount(GET, _Context())  # type: ignore[arg-type]
    assert response.account.id == ACCOUNT
    assert shards.calls[0].timeout_s > 0


async def test_shards_that_overrun_their_deadline_are_given_up(
    stub: Any, shards: FakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_calls, "_OVERRUN_S", 0.01)
    monkeypatch.setattr(shard_calls, "TIMEOUT_DEFAULT_S", 0.01)
    shards.hold = asyncio.Event()
    assert decode(await get_error(stub)).reason == "SHARD_UNAVAILABLE"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.SettleTransaction(SETTLE)
    assert decode(caught.value).reason == "OUTCOME_UNKNOWN"

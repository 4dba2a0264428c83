"""Where requests come from: every change carries it, and wrong metadata is refused."""

from typing import Any

import grpc
import pytest
from error_details import decode
from fake_shards import ACCOUNT, ACCOUNT_VIEW, TRANSACTION, TRANSACTION_VIEW, FakeShards

from ledger.v1 import ledger_pb2
from ledger_core import commands
from ledger_core.commands import NO_SOURCE
from ledger_core.ledgers import USD
from ledger_core.results import LedgerView
from ledger_gateway.source import require_valid

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
LEDGER_VIEW = LedgerView("books", "", [USD], [], 1, 1, 1)

# Every RPC that changes something: a valid request, and what the shard answers.
CHANGES: dict[str, tuple[dict[str, Any], Any]] = {
    "CreateLedger": (
        {"name": "books", "currencies": [{"code": "USD", "exponent": 2}]},
        LEDGER_VIEW,
    ),
    "UpdateLedger": ({"ledger": "books", "revision": 1}, LEDGER_VIEW),
    "CreateAccount": ({}, ACCOUNT_VIEW),
    "UpdateAccount": ({"account_id": ACCOUNT, "revision": 1}, ACCOUNT_VIEW),
    "FreezeAccount": ({"account_id": ACCOUNT}, ACCOUNT_VIEW),
    "UnfreezeAccount": ({"account_id": ACCOUNT}, ACCOUNT_VIEW),
    "CloseAccount": ({"account_id": ACCOUNT}, ACCOUNT_VIEW),
    "CreateTransaction": ({"account_id": ACCOUNT, "amount": 1}, TRANSACTION_VIEW),
    "SettleTransaction": ({"transaction_id": TRANSACTION}, TRANSACTION_VIEW),
    "CancelTransaction": ({"transaction_id": TRANSACTION}, TRANSACTION_VIEW),
    "ReverseTransaction": ({"transaction_id": TRANSACTION}, TRANSACTION_VIEW),
}


async def change(stub: Any, shards: FakeShards, method: str, metadata: Any, **fields: Any) -> Any:
    """Call the RPC, and return what the shard was asked last."""
    request, shards.result = CHANGES[method]
    message = getattr(ledger_pb2, f"{method}Request")(**(request | fields))
    await getattr(stub, method)(message, metadata=metadata)
    return shards.calls[-1]


# `test_gateway_bulk`, `test_gateway_parts` and `test_gateway_stream` hold the same for these.
BULK = {"CreateTransactions", "StreamCreateTransactions", "StreamTransactions"}


def test_every_change_is_in_the_table() -> None:
    service = ledger_pb2.DESCRIPTOR.services_by_name["LedgerService"]
    assert set(CHANGES) | BULK == {
        method.name
        for method in service.methods
        if not method.name.startswith(("Get", "List", "BatchGet"))
    }


@pytest.mark.parametrize("method", CHANGES)
async def test_every_change_carries_its_source_and_actor(
    method: str, stub: Any, shards: FakeShards
) -> None:
    call = await change(stub, shards, method, [("x-correlation-id", "order 4711")], actor="desk")
    assert call.source.correlation_id == "order 4711"
    assert call.source.peer.startswith("ipv4:127.0.0.1:")
    assert call.message.actor == "desk"


@pytest.mark.parametrize("method", CHANGES)
@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ([("x-correlation-id", "c" * 129)], "at most 128 characters, has 129"),
        ([("x-correlation-id", "a"), ("x-correlation-id", "b")], "must not be given twice"),
    ],
)
async def test_a_wrong_correlation_id_is_refused(
    method: str, metadata: Any, said: str, stub: Any, shards: FakeShards
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await change(stub, shards, method, metadata, actor="two\nlines")
    error = decode(caught.value)
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELDS")
    assert [name for name, _ in error.violations] == ["actor", "x-correlation-id"]
    assert said in error.violations[1][1]
    assert shards.calls == []


@pytest.mark.parametrize(
    ("metadata", "correlation_id"),
    [
        ([], ""),
        ([("x-correlation-id", "c" * 128)], "c" * 128),
        ([("x-correlation-id", "same"), ("x-correlation-id", "same")], "same"),
        ([("x-correlation-id", "c"), ("traceparent", TRACEPARENT)], "c"),
        ([("x-correlation-id", ""), ("traceparent", TRACEPARENT)], TRACE_ID),
        ([("traceparent", TRACEPARENT)], TRACE_ID),
        ([("traceparent", TRACEPARENT.replace("00-", "01-", 1))], TRACE_ID),
        ([("traceparent", TRACEPARENT.replace("00-", "01-", 1) + "-more")], TRACE_ID),
        # Malformed ones are ignored, as the W3C wants it.
        ([("traceparent", TRACEPARENT + "-more")], ""),
        ([("traceparent", TRACEPARENT + "0")], ""),
        ([("traceparent", TRACEPARENT[:-1])], ""),
        ([("traceparent", TRACEPARENT.upper())], ""),
        ([("traceparent", TRACEPARENT.replace("00-", "ff-", 1))], ""),
        ([("traceparent", TRACEPARENT.replace(TRACE_ID, "0" * 32))], ""),
        ([("traceparent", TRACEPARENT.replace("00f067aa0ba902b7", "0" * 16))], ""),
        ([("traceparent", "what?")], ""),
    ],
)
async def test_the_correlation_id_is_the_callers_or_the_trace_id(
    metadata: Any, correlation_id: str, stub: Any, shards: FakeShards
) -> None:
    call = await change(stub, shards, "FreezeAccount", metadata)
    assert call.source.correlation_id == correlation_id


async def test_reads_and_steps_between_shards_have_no_source(stub: Any, shards: FakeShards) -> None:
    await stub.GetAccount(
        ledger_pb2.GetAccountRequest(account_id=ACCOUNT),
        metadata=[("x-correlation-id", "c" * 129)],
    )
    assert [call.source for call in shards.calls] == [NO_SOURCE]


class Context:
    """A call as servers see it, with metadata that gRPC clients refuse to send."""

    def __init__(self, peer: str, *metadata: tuple[str, str | bytes]) -> None:
        self._peer, self._metadata = peer, metadata

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...] | None:
        return self._metadata or None


@pytest.mark.parametrize("value", ["tab\t", "line\n", "nul\x00", "c1 \x85", "\x7f"])
def test_unprintable_characters_are_refused(value: str) -> None:
    context: Any = Context("unix:", ("x-correlation-id", value))
    with pytest.raises(Exception, match="x-correlation-id: must have printable characters only"):
        require_valid([], context)


def test_a_long_address_is_shortened_and_binary_metadata_ignored() -> None:
    context: Any = Context("unix:" + "p" * 200, ("x-correlation-id-bin", b"\xff"))
    assert require_valid([], context) == commands.Source("", "unix:" + "p" * 123)
    nothing: Any = Context("")
    assert require_valid([], nothing) == NO_SOURCE


def test_two_traces_are_none() -> None:
    context: Any = Context("", ("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT))
    assert require_valid([], context) == NO_SOURCE

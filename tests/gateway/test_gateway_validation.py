"""Wrong input of every kind at every field: status, reason, field; and the shards see nothing."""

from typing import Any

import grpc
import pytest
from error_details import decode
from fake_shards import ACCOUNT, ACCOUNT_ID, TRANSACTION, FakeShards

from ledger.v1 import ledger_pb2
from ledger_core.results import TransactionPage
from ledger_gateway.pagination import Cursor, encode_page_token

ACCOUNT_ID_FAULTS = {
    "": "is required",
    "abc": "16 lower-case hex digits",
    ACCOUNT + "0": "16 lower-case hex digits",
    ACCOUNT.upper(): "16 lower-case hex digits",
    "0123456789abcdeg": "16 lower-case hex digits",
    " 123456789abcdef": "16 lower-case hex digits",
    ACCOUNT + "\n": "16 lower-case hex digits",
    "\uff10123456789abcdef": "16 lower-case hex digits",
    "0x23456789abcdef": "16 lower-case hex digits",
    TRANSACTION: "16 lower-case hex digits",
}
TRANSACTION_ID_FAULTS = {
    "": "is required",
    ACCOUNT: "32 lower-case hex digits",
    TRANSACTION.upper(): "32 lower-case hex digits",
    TRANSACTION + "0": "32 lower-case hex digits",
    TRANSACTION[:-1] + "-": "32 lower-case hex digits",
}
REQUEST_ID_FAULTS = {
    "r" * 129: "at most 128 characters, has 129",
    "é" * 129: "at most 128 characters, has 129",
    "line\nbreak": "control characters",
    "nul\x00": "control characters",
    "c1 control \x85": "control characters",
}
CONSISTENCY_FAULTS = {3: "has no value 3", -1: "has no value -1"}
PAGE_TOKEN_FAULTS = {
    "x": "is not a page token",
    "0": "is not a page token",
    "A" * 40: "is not a page token",
    encode_page_token(ACCOUNT_ID, Cursor(5, 9)) + "=": "is not a page token",
    encode_page_token(ACCOUNT_ID, Cursor(5, 9))[:-1]: "is not a page token",
    encode_page_token(ACCOUNT_ID, Cursor(5, 9)).swapcase(): "is not a page token",
    encode_page_token(ACCOUNT_ID + 1, Cursor(5, 9)): "made for another account",
}

# RPC -> (a valid request, field -> {wrong value: what is said about it})
RPCS: dict[str, tuple[dict[str, Any], dict[str, dict[Any, str]]]] = {
    "CreateAccount": (
        {"request_id": "r", "ledger": "main"},
        {
            "request_id": REQUEST_ID_FAULTS,
            "ledger": {
                "Main": "the first one a letter",
                "9books": "the first one a letter",
                "my books": "the first one a letter",
                "a" * 64: "at most 63",
            },
        },
    ),
    "GetAccount": (
        {"account_id": ACCOUNT},
        {"account_id": ACCOUNT_ID_FAULTS, "consistency": CONSISTENCY_FAULTS},
    ),
    "CreateTransaction": (
        {"account_id": ACCOUNT, "amount": 1, "description": "d", "request_id": "r"},
        {
            "account_id": ACCOUNT_ID_FAULTS,
            "amount": {0: "must not be 0", -(2**63): "at least -9223372036854775807"},
            "description": {
                "d" * 1_001: "at most 1,000 characters, has 1,001",
                "☕" * 1_001: "at most 1,000 characters, has 1,001",
                "d" * 100_000: "at most 1,000 characters, has 100,000",
            },
            "request_id": REQUEST_ID_FAULTS,
        },
    ),
    "GetTransaction": (
        {"transaction_id": TRANSACTION},
        {"transaction_id": TRANSACTION_ID_FAULTS, "consistency": CONSISTENCY_FAULTS},
    ),
    "SettleTransaction": (
        {"transaction_id": TRANSACTION, "request_id": "r"},
        {"transaction_id": TRANSACTION_ID_FAULTS, "request_id": REQUEST_ID_FAULTS},
    ),
    "CancelTransaction": (
        {"transaction_id": TRANSACTION, "request_id": "r"},
        {"transaction_id": TRANSACTION_ID_FAULTS, "request_id": REQUEST_ID_FAULTS},
    ),
    "ListTransactions": (
        {"account_id": ACCOUNT},
        {
            "account_id": ACCOUNT_ID_FAULTS,
            "page_size": {-1: "between 0 and 1,000", 1_001: "between 0 and 1,000"},
            "page_token": PAGE_TOKEN_FAULTS,
            "consistency": CONSISTENCY_FAULTS,
        },
    ),
}


def test_every_field_of_every_request_is_in_the_table() -> None:
    # settled is a bool: it has no wrong value.
    for method, (_, faults) in RPCS.items():
        descriptor = getattr(ledger_pb2, f"{method}Request").DESCRIPTOR
        assert set(faults) == {field.name for field in descriptor.fields} - {"settled"}


@pytest.mark.parametrize("method", RPCS)
async def test_each_wrong_value_is_refused_by_field(
    method: str, stub: Any, shards: FakeShards
) -> None:
    valid, faults = RPCS[method]
    for field, values in faults.items():
        for value, said in values.items():
            request = getattr(ledger_pb2, f"{method}Request")(**(valid | {field: value}))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await getattr(stub, method)(request)
            error = decode(caught.value)
            assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELDS")
            assert [name for name, _ in error.violations] == [field], value
            assert said in error.violations[0][1]
            assert field in error.message
    assert shards.calls == []


@pytest.mark.parametrize("method", RPCS)
async def test_all_wrong_fields_are_named_at_once(
    method: str, stub: Any, shards: FakeShards
) -> None:
    _, faults = RPCS[method]
    wrong = {field: next(iter(values)) for field, values in faults.items()}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(stub, method)(getattr(ledger_pb2, f"{method}Request")(**wrong))
    error = decode(caught.value)
    assert sorted(name for name, _ in error.violations) == sorted(faults)
    assert shards.calls == []


@pytest.mark.parametrize(
    "changes",
    [
        {"amount": 2**63 - 1},
        {"amount": -(2**63 - 1)},
        {"description": "☕" * 1_000},
        {"description": ""},
        {"request_id": "é" * 128},
        {"request_id": ""},
    ],
)
async def test_the_last_valid_values_pass(
    changes: dict[str, Any], stub: Any, shards: FakeShards
) -> None:
    valid, _ = RPCS["CreateTransaction"]
    # The answer is an account: a bug of the shards, found only after the request went through.
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CreateTransaction(ledger_pb2.CreateTransactionRequest(**(valid | changes)))
    assert decode(caught.value).code == "INTERNAL"
    assert len(shards.calls) == 1


async def test_the_largest_page_passes(stub: Any, shards: FakeShards) -> None:
    shards.result = TransactionPage([], 0, 0)
    request = ledger_pb2.ListTransactionsRequest(account_id=ACCOUNT, page_size=1_000)
    assert not (await stub.ListTransactions(request)).next_page_token


@pytest.mark.parametrize("method", RPCS)
async def test_bytes_that_are_no_request_are_refused(
    method: str, channel: grpc.aio.Channel, shards: FakeShards
) -> None:
    call = channel.unary_unary(f"/ledger.v1.LedgerService/{method}")
    # Field 1 cut short, and field 1 as a string that is not UTF-8.
    for data in (b"\x0a\xff", b"\x0a\x02\xff\xfe"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(data)
        error = decode(caught.value)
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELDS")
    assert shards.calls == []

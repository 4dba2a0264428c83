"""Wrong input of every kind at every field: status, reason, field; and the shards see nothing."""

import re
from typing import Any

import grpc
import pytest
from error_details import decode
from fake_shards import ACCOUNT, TRANSACTION, FakeShards
from history_faults import HISTORY_PARTS, HISTORY_RPCS
from wrong_values import (
    ACCOUNT_ID_FAULTS,
    ACCOUNTS_TOKEN,
    ACTOR_FAULTS,
    CODE_FAULTS,
    CONSISTENCY_FAULTS,
    CONTROL_FAULTS,
    CURRENCY_FAULTS,
    DESCRIPTION_FAULTS,
    KEY_FAULTS,
    LABEL_FAULTS,
    LEDGER_FAULTS,
    LEDGERS_TOKEN,
    PAGE_SIZE_FAULTS,
    REQUEST_ID_FAULTS,
    TRANSACTION_ID_FAULTS,
    TYPE_FAULTS,
)

from ledger.v1 import ledger_pb2
from ledger_core.results import TransactionPage

# RPC -> (a valid request, field -> {wrong value: what is said about it})
RPCS: dict[str, tuple[dict[str, Any], dict[str, dict[Any, str]]]] = {
    "CreateLedger": (
        {"name": "books", "currencies": [{"code": "USD", "exponent": 2}], "request_id": "r"},
        {
            "name": {"": "is required"} | LEDGER_FAULTS,
            "description": DESCRIPTION_FAULTS,
            "request_id": REQUEST_ID_FAULTS,
            "actor": ACTOR_FAULTS,
        },
    ),
    "GetLedger": ({}, {"ledger": LEDGER_FAULTS, "consistency": CONSISTENCY_FAULTS}),
    "ListLedgers": (
        {},
        {
            "page_size": {-1: "between 0 and 100", 101: "between 0 and 100"},
            "page_token": {
                "x": "is not a page token",
                LEDGERS_TOKEN[:-1]: "is not a page token",
                ACCOUNTS_TOKEN: "is not a page token",
            },
            "consistency": CONSISTENCY_FAULTS,
        },
    ),
    "UpdateLedger": (
        {"ledger": "books"},
        {
            "ledger": LEDGER_FAULTS,
            "description": DESCRIPTION_FAULTS,
            "request_id": REQUEST_ID_FAULTS,
            "actor": ACTOR_FAULTS,
        },
    ),
    "CreateAccount": (
        {"request_id": "r", "ledger": "main"},
        {
            "request_id": REQUEST_ID_FAULTS,
            "ledger": LEDGER_FAULTS,
            "currency": CURRENCY_FAULTS,
            "code": CODE_FAULTS,
            "type": TYPE_FAULTS,
            "name": LABEL_FAULTS,
            "actor": ACTOR_FAULTS,
        },
    ),
    "GetAccount": (
        {"account_id": ACCOUNT},
        {
            "account_id": ACCOUNT_ID_FAULTS,
            "consistency": CONSISTENCY_FAULTS,
            "ledger": {"books": "goes with name"},
            "name": {"alice": "goes without account_id"},
        },
    ),
    "ListAccounts": (
        {},
        {
            "ledger": LEDGER_FAULTS,
            "page_size": PAGE_SIZE_FAULTS,
            "page_token": {
                "x": "is not a page token",
                ACCOUNTS_TOKEN[:-1]: "is not a page token",
                LEDGERS_TOKEN: "is not a page token",
            },
            "consistency": CONSISTENCY_FAULTS,
            "code_prefix": CODE_FAULTS,
            "type": TYPE_FAULTS,
            "state": {4: "has no value 4"},
            "metadata_key": KEY_FAULTS,
        },
    ),
    "UpdateAccount": (
        {"account_id": ACCOUNT},
        {
            "account_id": ACCOUNT_ID_FAULTS,
            "name": LABEL_FAULTS,
            "request_id": REQUEST_ID_FAULTS,
            "actor": ACTOR_FAULTS,
        },
    ),
    **{
        method: (
            {"account_id": ACCOUNT},
            {
                "account_id": ACCOUNT_ID_FAULTS,
                "request_id": REQUEST_ID_FAULTS,
                "actor": ACTOR_FAULTS,
            },
        )
        for method in ("FreezeAccount", "UnfreezeAccount", "CloseAccount")
    },
    "CreateTransaction": (
        {"account_id": ACCOUNT, "amount": 1, "description": "d", "request_id": "r"},
        {
            "account_id": ACCOUNT_ID_FAULTS,
            "amount": {0: "must not be 0", -(2**63): "at least -9223372036854775807"},
            "description": DESCRIPTION_FAULTS,
            "request_id": REQUEST_ID_FAULTS,
            "ledger": {"books": "goes with entries"},
            "external_reference": {"r" * 257: "at most 256 characters"} | CONTROL_FAULTS,
            "actor": ACTOR_FAULTS,
        },
    ),
    "GetTransaction": (
        {"transaction_id": TRANSACTION},
        {
            "transaction_id": TRANSACTION_ID_FAULTS,
            "consistency": CONSISTENCY_FAULTS,
            "account_id": {ACCOUNT: "goes without transaction_id"},
            "request_id": {"r": "goes without transaction_id"},
        },
    ),
    "SettleTransaction": (
        {"transaction_id": TRANSACTION, "request_id": "r"},
        {
            "transaction_id": TRANSACTION_ID_FAULTS,
            "request_id": REQUEST_ID_FAULTS,
            "amount": {-1: "must not be negative", -(2**63): "must not be negative"},
            "actor": ACTOR_FAULTS,
        },
    ),
    "CancelTransaction": (
        {"transaction_id": TRANSACTION, "request_id": "r"},
        {
            "transaction_id": TRANSACTION_ID_FAULTS,
            "request_id": REQUEST_ID_FAULTS,
            "actor": ACTOR_FAULTS,
        },
    ),
    "ReverseTransaction": (
        {"transaction_id": TRANSACTION, "request_id": "r"},
        {
            "transaction_id": TRANSACTION_ID_FAULTS,
            "request_id": REQUEST_ID_FAULTS,
            "description": DESCRIPTION_FAULTS,
            "actor": ACTOR_FAULTS,
        },
    ),
    **HISTORY_RPCS,
}

# Fields that have no wrong value: booleans, and revisions, which the shard compares.
ANY_VALUE = {"settled", "dry_run", "revision", "oldest_first"}


def entry(**changes: Any) -> dict[str, Any]:
    return {"account_id": ACCOUNT, "direction": 1, "amount": 5} | changes


def entries(**changes: Any) -> dict[str, Any]:
    """A transaction of two entries, the second one changed."""
    both = [entry(), entry(direction=2) | changes]
    return {"account_id": "", "amount": 0, "entries": both}


USD = {"code": "USD", "exponent": 2}
LINE = {"code": "1", "name": "Assets", "type": 1}

# RPC, changes to its valid request, the path of the one violation, what is said about it.
PARTS: list[tuple[str, dict[str, Any], str, str]] = [
    ("CreateLedger", {"currencies": []}, "currencies", "at least one"),
    ("CreateLedger", {"currencies": [USD, USD]}, "currencies[1].code", "is there twice"),
    ("CreateLedger", {"currencies": [{"exponent": 2}]}, "currencies[0].code", "is required"),
    ("CreateLedger", {"currencies": [{"code": "USD"}]}, "currencies[0].exponent", "is required"),
    (
        "CreateLedger",
        {"currencies": [USD | {"exponent": 9}]},
        "currencies[0].exponent",
        "at most 8",
    ),
    (
        "CreateLedger",
        {"currencies": [{"code": f"C{number:03}", "exponent": 0} for number in range(65)]},
        "currencies",
        "at most 64",
    ),
    ("CreateLedger", {"chart": [LINE, LINE]}, "chart[1]", "is in the chart already"),
    ("CreateLedger", {"chart": [LINE | {"parent": "0"}]}, "chart[0]", "is not in the chart above"),
    (
        "CreateLedger",
        {"chart": [LINE, {"code": "11", "type": 2, "parent": "1"}]},
        "chart[1]",
        "'11' is LIABILITY, but its parent '1' is ASSET",
    ),
    ("CreateLedger", {"chart": [LINE | {"code": ""}]}, "chart[0].code", "is required"),
    ("CreateLedger", {"chart": [LINE | {"code": "?"}]}, "chart[0].code", "letter or digit"),
    ("CreateLedger", {"chart": [LINE | {"type": 0}]}, "chart[0].type", "is required"),
    ("CreateLedger", {"chart": [LINE | {"type": 7}]}, "chart[0].type", "has no value 7"),
    ("CreateLedger", {"chart": [LINE | {"name": "n" * 129}]}, "chart[0].name", "at most 128"),
    ("CreateLedger", {"chart": [LINE | {"parent": "?"}]}, "chart[0].parent", "letter or digit"),
    ("UpdateLedger", {"currencies": [{"code": "USD"}]}, "currencies[0].exponent", "is required"),
    ("UpdateLedger", {"chart": [LINE | {"type": 0}]}, "chart[0].type", "is required"),
    (
        "CreateAccount",
        {"limits": {"minimum": 5, "maximum": 4}},
        "limits.minimum",
        "must not be above the maximum: 5 > 4",
    ),
    ("CreateAccount", {"limits": {"minimum": -(2**63)}}, "limits.minimum", "at least -92"),
    ("CreateAccount", {"limits": {"maximum": -(2**63)}}, "limits.maximum", "at least -92"),
    ("CreateAccount", {"metadata": {"": "v"}}, "metadata", "an empty key"),
    ("CreateAccount", {"metadata": {"k" * 65: "v"}}, "metadata", "at most 64 characters"),
    ("CreateAccount", {"metadata": {"k\n": "v"}}, "metadata", "control characters"),
    ("CreateAccount", {"metadata": {"k": "v" * 257}}, "metadata[k]", "at most 256 characters"),
    (
        "CreateAccount",
        {"metadata": {f"key{number}": "" for number in range(33)}},
        "metadata",
        "at most 32 keys, has 33",
    ),
    ("GetAccount", {"account_id": "", "name": "a\tb"}, "name", "control characters"),
    ("GetAccount", {"account_id": "", "name": "a", "ledger": "A"}, "ledger", "at most 63"),
    (
        "UpdateAccount",
        {"metadata": {"values": {"k": "v" * 257}}},
        "metadata.values[k]",
        "at most 256 characters",
    ),
    (
        "UpdateAccount",
        {"limits": {"minimum": 5, "maximum": 4}},
        "limits.minimum",
        "must not be above",
    ),
    ("CreateTransaction", entries(account_id=""), "entries[1].account_id", "is required"),
    ("CreateTransaction", entries(account_id="x"), "entries[1].account_id", "16 lower-case"),
    ("CreateTransaction", entries(direction=0), "entries[1].direction", "is required"),
    ("CreateTransaction", entries(direction=3), "entries[1].direction", "has no value 3"),
    ("CreateTransaction", entries(amount=0), "entries[1].amount", "greater than 0"),
    ("CreateTransaction", entries(amount=-5), "entries[1].amount", "greater than 0"),
    ("CreateTransaction", entries(currency="usd"), "entries[1].currency", "3 to 12 characters"),
    (
        "CreateTransaction",
        entries(minimum_balance=2, maximum_balance=1),
        "entries[1].minimum_balance",
        "must not be above maximum_balance",
    ),
    (
        "CreateTransaction",
        entries(maximum_balance=-(2**63)),
        "entries[1].maximum_balance",
        "at least -92",
    ),
    ("CreateTransaction", entries() | {"amount": 1}, "amount", "goes without entries"),
    ("CreateTransaction", entries() | {"account_id": ACCOUNT}, "account_id", "without entries"),
    ("CreateTransaction", entries() | {"ledger": "A"}, "ledger", "at most 63"),
    (
        "CreateTransaction",
        entries() | {"entries": [entry()]},
        "entries",
        "must be 2 to 1,024, not 1",
    ),
    (
        "CreateTransaction",
        entries() | {"entries": [entry()] * 1_025},
        "entries",
        "must be 2 to 1,024, not 1,025",
    ),
    (
        "CreateTransaction",
        entries(amount=7),
        "entries",
        "must balance in USD: credits exceed debits by 0.02 USD",
    ),
    (
        "CreateTransaction",
        {"metadata": {"k": "v" * 257}},
        "metadata[k]",
        "at most 256 characters",
    ),
    (
        "CreateTransaction",
        {"effective_time": {"seconds": -1}},
        "effective_time",
        "between the years 1970 and 9999",
    ),
    (
        "CreateTransaction",
        {"effective_time": {"seconds": 1, "nanos": -1}},
        "effective_time",
        "nanos between 0 and",
    ),
    (
        "CreateTransaction",
        {"expire_time": {"seconds": 253_402_300_800}},
        "expire_time",
        "between the years 1970 and 9999",
    ),
    (
        "CreateTransaction",
        {"expire_time": {"seconds": 4_000_000_000}, "settled": True},
        "expire_time",
        "pending transactions only",
    ),
    (
        "CreateTransaction",
        {"expire_time": {"seconds": 1_000_000_000}, "request_id": ""},
        "expire_time",
        "must be in the future",
    ),
    (
        "GetTransaction",
        {"transaction_id": "", "account_id": ACCOUNT},
        "request_id",
        "is required with account_id",
    ),
    (
        "GetTransaction",
        {"transaction_id": "", "request_id": "r"},
        "account_id",
        "is required with request_id",
    ),
    ("ReverseTransaction", {"amounts": [1, -1]}, "amounts[1]", "must not be negative"),
    ("ReverseTransaction", {"amounts": [0, 0]}, "amounts", "must not all be 0"),
    ("ReverseTransaction", {"amounts": [1] * 1_025}, "amounts", "at most 1,024"),
    *HISTORY_PARTS,
]


def test_every_field_of_every_request_is_in_the_tables() -> None:
    service = ledger_pb2.DESCRIPTOR.services_by_name["LedgerService"]
    # `test_gateway_bulk` and `test_gateway_batch_reads` have the tables of calls for many.
    bulk = {
        *("CreateTransactions", "StreamCreateTransactions", "StreamTransactions"),
        *("BatchGetBalances", "BatchGetAccounts"),
    }
    assert set(RPCS) | bulk == {method.name for method in service.methods}
    for method, (_, faults) in RPCS.items():
        parts = {re.split(r"[.\[]", path)[0] for name, _, path, _ in PARTS if name == method}
        descriptor = getattr(ledger_pb2, f"{method}Request").DESCRIPTOR
        assert set(faults) | parts == {field.name for field in descriptor.fields} - ANY_VALUE
    entry_fields = {field.name for field in ledger_pb2.Entry.DESCRIPTOR.fields}
    checked = {path.split("].")[1] for _, _, path, _ in PARTS if path.startswith("entries[1].")}
    # The exponent is output only; maximum_balance above minimum_balance is one violation.
    assert checked == entry_fields - {"currency_exponent", "expected_version"}


@pytest.mark.parametrize(("method", "changes", "path", "said"), PARTS)
async def test_each_wrong_part_is_refused_by_path(
    method: str, changes: dict[str, Any], path: str, said: str, stub: Any, shards: FakeShards
) -> None:
    request = getattr(ledger_pb2, f"{method}Request")(**(RPCS[method][0] | changes))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(stub, method)(request)
    error = decode(caught.value)
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELDS")
    assert [name for name, _ in error.violations] == [path]
    assert said in error.violations[0][1]
    assert shards.calls == []


async def test_wrong_parts_are_named_together(stub: Any, shards: FakeShards) -> None:
    request = ledger_pb2.CreateTransactionRequest(
        entries=[ledger_pb2.Entry(amount=-1), ledger_pb2.Entry(account_id="x")],
        account_id=ACCOUNT,
        actor="a" * 200,
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CreateTransaction(request)
    assert [name for name, _ in decode(caught.value).violations] == [
        "account_id",
        "entries[0].account_id",
        "entries[0].direction",
        "entries[0].amount",
        "entries[1].account_id",
        "entries[1].direction",
        "entries[1].amount",
        "actor",
    ]
    assert shards.calls == []


async def test_a_huge_key_does_not_break_the_answer(stub: Any, shards: FakeShards) -> None:
    request = ledger_pb2.CreateAccountRequest(metadata={"€" * 60: "v" * 300, "k" * 60_000: "v"})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CreateAccount(request)
    assert decode(caught.value).code == "INVALID_ARGUMENT"


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
    valid, faults = RPCS[method]
    # The second value where there are two: an empty id may mean another form of the request.
    wrong = valid | {field: list(values)[:2][-1] for field, values in faults.items()}
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
        {"external_reference": "r" * 256, "actor": "a" * 128},
        {"metadata": {f"{number:064}": "é" * 256 for number in range(32)}},
        {"expire_time": {"seconds": 253_402_300_799}, "effective_time": {"seconds": 1}},
        entries(),
        entries(minimum_balance=-(2**63 - 1), maximum_balance=2**63 - 1),
        entries() | {"entries": [entry(), entry(direction=2)] * 32},
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
    # Its first text cut short, and as a string that is not UTF-8.
    tag = b"\x12" if method == "ListLedgers" else b"\x0a"
    for data in (tag + b"\xff", tag + b"\x02\xff\xfe"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(data)
        error = decode(caught.value)
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELDS")
    assert shards.calls == []

"""Each RPC: what the shard is asked, and what the caller gets."""

import uuid
from typing import Any

import msgspec
from fake_shards import ACCOUNT, ACCOUNT_ID, ACCOUNT_VIEW, TRANSACTION, TRANSACTION_VIEW, FakeShards
from google.protobuf.timestamp_pb2 import Timestamp

from ledger.v1 import ledger_pb2
from ledger_core import commands, queries
from ledger_core.accounts import TransactionStatus
from ledger_core.ids import derive_account_id
from ledger_core.results import RefusalView, TransactionPage

CREATE_TIME = Timestamp(seconds=1_700_000_000, nanos=1_000)
UPDATE_TIME = Timestamp(seconds=1_700_000_000, nanos=999_999_000)

ACCOUNT_PROTO = ledger_pb2.Account(
    id=ACCOUNT,
    available_balance=850,
    settled_balance=900,
    create_time=CREATE_TIME,
    update_time=UPDATE_TIME,
    ledger="main",
    type=ledger_pb2.ACCOUNT_TYPE_LIABILITY,
    state=ledger_pb2.ACCOUNT_STATE_OPEN,
    currency="USD",
    currency_exponent=2,
    debits_posted=100,
    credits_posted=1_000,
    debits_pending=50,
    credits_pending=25,
    pending_transactions=2,
    version=4,
    limits=ledger_pb2.Limits(minimum=0),
)
TRANSACTION_PROTO = ledger_pb2.Transaction(
    id=TRANSACTION,
    amount=-50,
    description="coffee ☕",
    status=ledger_pb2.TRANSACTION_STATUS_PENDING,
    create_time=CREATE_TIME,
    update_time=UPDATE_TIME,
    account_id=ACCOUNT,
    ledger="main",
    currency="USD",
    currency_exponent=2,
    entries=[
        ledger_pb2.Entry(
            account_id=ACCOUNT,
            direction=ledger_pb2.DIRECTION_DEBIT,
            amount=50,
            currency="USD",
            currency_exponent=2,
        ),
        ledger_pb2.Entry(
            account_id="0000000000000001",
            direction=ledger_pb2.DIRECTION_CREDIT,
            amount=50,
            currency="USD",
            currency_exponent=2,
        ),
    ],
    request_id="request-1",
    effective_time=Timestamp(seconds=1_700_000_000),
)
READ_POINT = ledger_pb2.ReadPoint(shard_id=3, applied_index=41)


async def test_create_account_routes_by_the_derived_id(stub: Any, shards: FakeShards) -> None:
    response = await stub.CreateAccount(ledger_pb2.CreateAccountRequest(request_id="r-1"))
    assert response.account == ACCOUNT_PROTO
    (call,) = shards.calls
    account_id = derive_account_id("main", "r-1")
    assert call.account_id == account_id
    assert call.message == commands.CreateAccount(account_id, "main", "r-1")


async def test_create_transaction(stub: Any, shards: FakeShards) -> None:
    shards.result = TRANSACTION_VIEW
    response = await stub.CreateTransaction(
        ledger_pb2.CreateTransactionRequest(
            account_id=ACCOUNT, amount=-50, description="coffee ☕", request_id="request-1"
        )
    )
    assert response.transaction == TRANSACTION_PROTO
    (call,) = shards.calls
    assert call.account_id == ACCOUNT_ID
    assert call.message == commands.CreateTransaction(
        ACCOUNT_ID, -50, "coffee ☕", False, "request-1"
    )


async def test_a_refused_transaction_is_an_answer(stub: Any, shards: FakeShards) -> None:
    shards.result = msgspec.structs.replace(
        TRANSACTION_VIEW,
        status=TransactionStatus.INSUFFICIENT_FUNDS,
        refusal=RefusalView("INSUFFICIENT_FUNDS", 0, ACCOUNT_ID, 50, 10, "needs 0.50 USD"),
    )
    response = await stub.CreateTransaction(
        ledger_pb2.CreateTransactionRequest(account_id=ACCOUNT, amount=-50)
    )
    assert response.transaction.status == ledger_pb2.TRANSACTION_STATUS_INSUFFICIENT_FUNDS
    assert response.transaction.refusal == ledger_pb2.Refusal(
        reason="INSUFFICIENT_FUNDS",
        account_id=ACCOUNT,
        required_amount=50,
        available_amount=10,
        message="needs 0.50 USD",
    )


async def test_settle_and_cancel(stub: Any, shards: FakeShards) -> None:
    shards.result = TRANSACTION_VIEW
    settled = await stub.SettleTransaction(
        ledger_pb2.SettleTransactionRequest(transaction_id=TRANSACTION, request_id="s")
    )
    cancelled = await stub.CancelTransaction(
        ledger_pb2.CancelTransactionRequest(transaction_id=TRANSACTION, request_id="c")
    )
    assert settled.transaction == cancelled.transaction == TRANSACTION_PROTO
    assert [call.message for call in shards.calls] == [
        commands.SettleTransaction(ACCOUNT_ID, 7, "s"),
        commands.CancelTransaction(ACCOUNT_ID, 7, "c"),
    ]


async def test_a_missing_request_id_is_made_time_ordered_and_unique(
    stub: Any, shards: FakeShards
) -> None:
    shards.result = TRANSACTION_VIEW
    made = set()
    for _ in range(2):
        await stub.CreateTransaction(
            ledger_pb2.CreateTransactionRequest(account_id=ACCOUNT, amount=1)
        )
        await stub.SettleTransaction(
            ledger_pb2.SettleTransactionRequest(transaction_id=TRANSACTION)
        )
        await stub.CancelTransaction(
            ledger_pb2.CancelTransactionRequest(transaction_id=TRANSACTION)
        )
    shards.result = ACCOUNT_VIEW
    await stub.CreateAccount(ledger_pb2.CreateAccountRequest())
    for call in shards.calls:
        assert not isinstance(
            call.message, queries.GetAccount | queries.GetTransaction | queries.ListTransactions
        )
        made.add(call.message.request_id)
        assert uuid.UUID(call.message.request_id).version == 7
    assert len(made) == 7


async def test_reads_tell_where_they_were_taken(stub: Any, shards: FakeShards) -> None:
    account = await stub.GetAccount(ledger_pb2.GetAccountRequest(account_id=ACCOUNT))
    assert account == ledger_pb2.GetAccountResponse(account=ACCOUNT_PROTO, read_point=READ_POINT)
    shards.result = TRANSACTION_VIEW
    transaction = await stub.GetTransaction(
        ledger_pb2.GetTransactionRequest(transaction_id=TRANSACTION)
    )
    assert transaction == ledger_pb2.GetTransactionResponse(
        transaction=TRANSACTION_PROTO, read_point=READ_POINT
    )
    assert [(call.account_id, call.message) for call in shards.calls] == [
        (ACCOUNT_ID, queries.GetAccount(ACCOUNT_ID)),
        (ACCOUNT_ID, queries.GetTransaction(ACCOUNT_ID, 7)),
    ]


async def test_stale_reads_only_on_request(stub: Any, shards: FakeShards) -> None:
    ages = []
    for consistency in ledger_pb2.ReadConsistency.values():
        response = await stub.GetAccount(
            ledger_pb2.GetAccountRequest(account_id=ACCOUNT, consistency=consistency)
        )
        ages.append(response.read_point.age_ms)
    assert [call.stale for call in shards.calls] == [False, False, True]
    assert ages == [0, 0, 5]


async def test_pages_go_on_where_the_last_one_ended(stub: Any, shards: FakeShards) -> None:
    shards.result = TransactionPage([TRANSACTION_VIEW], 12, 345)
    first = await stub.ListTransactions(ledger_pb2.ListTransactionsRequest(account_id=ACCOUNT))
    assert list(first.transactions) == [TRANSACTION_PROTO]
    assert first.read_point == READ_POINT
    shards.result = TransactionPage([], 0, 0)
    last = await stub.ListTransactions(
        ledger_pb2.ListTransactionsRequest(
            account_id=ACCOUNT, page_size=7, page_token=first.next_page_token
        )
    )
    assert not last.next_page_token
    assert [call.message for call in shards.calls] == [
        queries.ListTransactions(ACCOUNT_ID, 50),
        queries.ListTransactions(ACCOUNT_ID, 7, 12, 345),
    ]


async def test_a_page_too_big_for_a_client_is_asked_for_in_half(
    stub: Any, shards: FakeShards
) -> None:
    long = msgspec.structs.replace(TRANSACTION_VIEW, description="🪙" * 1_000)
    shards.results = [TransactionPage([long] * 1_000, 0, 0), TransactionPage([long] * 500, 8, 9)]
    page = await stub.ListTransactions(
        ledger_pb2.ListTransactionsRequest(account_id=ACCOUNT, page_size=1_000)
    )
    assert len(page.transactions) == 500
    assert page.next_page_token
    assert [call.message for call in shards.calls] == [
        queries.ListTransactions(ACCOUNT_ID, 1_000),
        queries.ListTransactions(ACCOUNT_ID, 500),
    ]

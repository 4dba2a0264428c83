"""Transactions with entries: what becomes of a request, dry runs, and repeats after expiry."""

from typing import Any

import grpc
import msgspec
import pytest
from error_details import decode
from fake_shards import (
    ACCOUNT,
    ACCOUNT_ID,
    ACCOUNT_VIEW,
    TRANSACTION,
    TRANSACTION_VIEW,
    Call,
    FakeShards,
)
from google.protobuf.timestamp_pb2 import Timestamp

from ledger.v1 import ledger_pb2
from ledger_core import commands, queries
from ledger_core.accounts import Direction, TransactionStatus
from ledger_core.commands import Refused
from ledger_core.errors import Reason, RefusalReason
from ledger_core.ledgers import USD, Currency
from ledger_core.results import Failure, LedgerView, Result, VoteView

EUR = Currency("EUR", 3)
DEBIT, CREDIT = ledger_pb2.DIRECTION_DEBIT, ledger_pb2.DIRECTION_CREDIT
FX = LedgerView("fx", "", [USD, EUR], [], 0, 1, 1)


def side(number: int, direction: Any, amount: int, **more: Any) -> ledger_pb2.Entry:
    return ledger_pb2.Entry(account_id=f"{number:016x}", direction=direction, amount=amount, **more)


def transfer(**changes: Any) -> ledger_pb2.CreateTransactionRequest:
    entries = [side(2, DEBIT, 500), side(7, CREDIT, 500)]
    return ledger_pb2.CreateTransactionRequest(
        **{"entries": entries, "settled": True, "request_id": "r"} | changes
    )


async def test_entries_get_their_shards_and_currencies(stub: Any, shards: FakeShards) -> None:
    shards.answer = lambda call: FX if isinstance(call.message, queries.GetLedger) else None
    shards.result = TRANSACTION_VIEW
    await stub.CreateTransaction(
        ledger_pb2.CreateTransactionRequest(
            entries=[
                side(2, DEBIT, 500, expected_version=0),
                side(3, CREDIT, 500, currency="USD", minimum_balance=-1),
                side(4, DEBIT, 450, currency="EUR", maximum_balance=0),
                side(5, CREDIT, 450, currency="EUR"),
            ],
            ledger="fx",
            description="exchange",
            external_reference="order 5",
            effective_time=Timestamp(seconds=5, nanos=6_999),
            expire_time=Timestamp(seconds=4_000_000_000),
            metadata={"z": "1", "a": "2"},
            actor="desk",
            request_id="r",
        )
    )
    call = shards.calls[-1]
    assert call.account_id == 2
    assert call.message == commands.CreateTransaction(
        account_id=2,
        amount=0,
        description="exchange",
        settled=False,
        request_id="r",
        entries=[
            commands.Entry(2, Direction.DEBIT, 500, USD, 2, expected_version=0),
            commands.Entry(3, Direction.CREDIT, 500, USD, 3, minimum_balance=-1),
            commands.Entry(4, Direction.DEBIT, 450, EUR, 0, maximum_balance=0),
            commands.Entry(5, Direction.CREDIT, 450, EUR, 1),
        ],
        ledger="fx",
        external_reference="order 5",
        effective_time_us=5_000_006,
        expire_time_us=4_000_000_000_000_000,
        metadata={"a": "2", "z": "1"},
        actor="desk",
    )


async def test_each_unbalanced_currency_is_named(stub: Any, shards: FakeShards) -> None:
    shards.result = FX
    request = transfer(
        ledger="fx",
        entries=[
            side(2, DEBIT, 500),
            side(3, CREDIT, 400),
            side(4, DEBIT, 1, currency="EUR"),
            side(5, CREDIT, 2, currency="EUR"),
        ],
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CreateTransaction(request)
    assert decode(caught.value).violations == [
        ("entries", "must balance in USD: debits exceed credits by 1.00 USD"),
        ("entries", "must balance in EUR: credits exceed debits by 0.001 EUR"),
    ]


async def test_an_unknown_currency_names_the_entry(stub: Any, shards: FakeShards) -> None:
    shards.result = FX
    entries = [side(2, DEBIT, 5, currency="GBP"), side(3, CREDIT, 5, currency="GBP")]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CreateTransaction(transfer(ledger="fx", entries=entries))
    error = decode(caught.value)
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "CURRENCY_NOT_IN_LEDGER")
    assert [field for field, _ in error.violations] == [
        "entries[0].currency",
        "entries[1].currency",
    ]


async def test_everything_of_a_transaction_is_shown(stub: Any, shards: FakeShards) -> None:
    shards.result = msgspec.structs.replace(
        TRANSACTION_VIEW,
        external_reference="order 5",
        metadata={"k": "v"},
        actor="desk",
        expire_time_us=9_000_001,
        settled_amount=40,
        reversal_of=3,
        reversed_amounts=[1, 2],
        status=TransactionStatus.UNDECIDED,
    )
    shown = (await stub.CreateTransaction(transfer())).transaction
    assert shown.status == ledger_pb2.TRANSACTION_STATUS_UNDECIDED
    assert (shown.external_reference, shown.actor) == ("order 5", "desk")
    assert dict(shown.metadata) == {"k": "v"}
    assert shown.expire_time == Timestamp(seconds=9, nanos=1_000)
    assert shown.settled_amount == 40
    assert shown.reversal_of == ACCOUNT + "0" * 15 + "3"
    assert list(shown.reversed_amounts) == [1, 2]


async def test_settle_cancel_and_reverse_carry_everything(stub: Any, shards: FakeShards) -> None:
    shards.result = TRANSACTION_VIEW
    to = {"transaction_id": TRANSACTION, "request_id": "r", "actor": "desk"}
    await stub.SettleTransaction(ledger_pb2.SettleTransactionRequest(amount=7, **to))
    await stub.CancelTransaction(ledger_pb2.CancelTransactionRequest(**to))
    await stub.ReverseTransaction(
        ledger_pb2.ReverseTransactionRequest(amounts=[5, 0, 5], description="back", **to)
    )
    assert shards.messages == [
        commands.SettleTransaction(ACCOUNT_ID, 7, "r", 7, "desk"),
        commands.CancelTransaction(ACCOUNT_ID, 7, "r", "desk"),
        commands.ReverseTransaction(ACCOUNT_ID, 7, "r", [5, 0, 5], "back", "desk"),
    ]


async def test_the_outcome_of_a_request(stub: Any, shards: FakeShards) -> None:
    shards.result = TRANSACTION_VIEW
    request = ledger_pb2.GetTransactionRequest(account_id=ACCOUNT, request_id="r")
    assert (await stub.GetTransaction(request)).transaction.id == TRANSACTION
    (call,) = shards.calls
    assert call.account_id == ACCOUNT_ID
    assert call.message == queries.GetTransactionByRequest(ACCOUNT_ID, "r")
    shards.result = Failure(Reason.TRANSACTION_NOT_FOUND, "never seen", "request_id")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetTransaction(request)
    assert decode(caught.value).code == "NOT_FOUND"


async def test_a_repeat_whose_time_is_over_gets_its_first_answer(
    stub: Any, shards: FakeShards
) -> None:
    shards.result = TRANSACTION_VIEW
    past = transfer(settled=False, expire_time=Timestamp(seconds=1_000_000_000))
    assert (await stub.CreateTransaction(past)).transaction.id == TRANSACTION
    assert [type(item) for item in shards.messages] == [
        queries.GetTransactionByRequest,
        commands.CreateTransaction,
    ]
    shards.answer = lambda call: Failure(Reason.TRANSACTION_NOT_FOUND, "never seen")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CreateTransaction(past)
    assert decode(caught.value).violations == [("expire_time", "must be in the future")]


# Dry runs


def votes(shards: FakeShards, refusals: dict[int, Refused]) -> None:
    def answer(call: Call) -> Result | Exception | None:
        if isinstance(call.message, queries.DryRun):
            return VoteView(refusals.get(call.shard_id))
        return ACCOUNT_VIEW if isinstance(call.message, queries.GetAccount) else None

    shards.answer = answer


@pytest.mark.parametrize("settled", [True, False])
async def test_a_dry_run_asks_each_shard_once_and_changes_nothing(
    stub: Any, shards: FakeShards, settled: bool
) -> None:
    votes(shards, {})
    entries = [side(2, DEBIT, 500), side(7, CREDIT, 200), side(6, CREDIT, 300)]
    request = transfer(entries=entries, settled=settled, dry_run=True)
    shown = (await stub.CreateTransaction(request)).transaction
    assert {call.shard_id for call in shards.calls} == {2, 3}
    assert all(isinstance(item, queries.DryRun) for item in shards.messages)
    assert len(shards.calls) == 2
    assert shown.status == (
        ledger_pb2.TRANSACTION_STATUS_SETTLED if settled else ledger_pb2.TRANSACTION_STATUS_PENDING
    )
    assert (shown.id, shown.account_id) == ("", f"{2:016x}")
    assert not shown.HasField("create_time")
    assert [(item.account_id, item.amount, item.currency) for item in shown.entries] == [
        (item.account_id, item.amount, "USD") for item in entries
    ]


async def test_the_refusal_of_the_lowest_entry_counts(stub: Any, shards: FakeShards) -> None:
    frozen = Refused(1, reason=RefusalReason.ACCOUNT_FROZEN)
    poor = Refused(0, 500, 120, 30)
    votes(shards, {3: frozen, 2: poor})
    shown = (await stub.CreateTransaction(transfer(dry_run=True))).transaction
    assert shown.status == ledger_pb2.TRANSACTION_STATUS_INSUFFICIENT_FUNDS
    assert shown.refusal == ledger_pb2.Refusal(
        reason="INSUFFICIENT_FUNDS",
        entry_index=0,
        account_id=f"{2:016x}",
        required_amount=500,
        available_amount=120,
        message=(
            f"account {2:016x} has 1.20 USD available, needs 5.00 USD "
            "(0.30 USD reserved by pending transactions)"
        ),
    )
    votes(shards, {3: frozen})
    shown = (await stub.CreateTransaction(transfer(dry_run=True))).transaction
    assert shown.status == ledger_pb2.TRANSACTION_STATUS_REJECTED
    assert shown.refusal.message == f"account {7:016x} is frozen"


@pytest.mark.parametrize("reason", RefusalReason)
async def test_every_refusal_has_a_sentence(
    stub: Any, shards: FakeShards, reason: RefusalReason
) -> None:
    votes(shards, {2: Refused(0, 500, 120, 30, reason)})
    shown = (await stub.CreateTransaction(transfer(dry_run=True))).transaction
    assert shown.refusal.reason == reason
    assert shown.refusal.message.startswith(f"account {2:016x} ")


async def test_a_dry_run_of_the_one_account_form(stub: Any, shards: FakeShards) -> None:
    votes(shards, {3: Refused(0, 50, 10)})
    request = ledger_pb2.CreateTransactionRequest(account_id=ACCOUNT, amount=-50, dry_run=True)
    shown = (await stub.CreateTransaction(request)).transaction
    assert (shown.amount, shown.currency, shown.ledger) == (-50, "USD", "main")
    assert shown.refusal.account_id == ACCOUNT
    assert not shown.entries

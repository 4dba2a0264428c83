"""The real thing in one process: the standalone gateway, through the SDK."""

import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from ledger.v1 import ledger_pb2
from ledger_client import (
    AlreadyExistsError,
    AsyncLedgerClient,
    FailedPreconditionError,
    InvalidArgumentError,
    LedgerClient,
    NotFoundError,
)
from ledger_client.testing import StandaloneLedger, standalone_ledger
from ledger_gateway.pagination import ACCOUNT_TRANSACTIONS, Cursor

INT64_MAX = 2**63 - 1

Status = ledger_pb2.TransactionStatus
SETTLED = ledger_pb2.TRANSACTION_STATUS_SETTLED
PENDING = ledger_pb2.TRANSACTION_STATUS_PENDING
CANCELLED = ledger_pb2.TRANSACTION_STATUS_CANCELLED
INSUFFICIENT_FUNDS = ledger_pb2.TRANSACTION_STATUS_INSUFFICIENT_FUNDS


@pytest.fixture
def client(ledger: StandaloneLedger) -> Iterator[LedgerClient]:
    with LedgerClient(ledger.target) as client:
        yield client


@pytest.fixture
def account(client: LedgerClient) -> str:
    """An account with 10.00 USD in it."""
    account_id = client.create_account().id
    client.create_transaction(account_id, 10_00, "top-up", settled=True)
    return account_id


def balances(client: LedgerClient, account_id: str) -> tuple[int, int]:
    account = client.get_account(account_id)
    return account.settled_balance, account.available_balance


def test_a_new_account(client: LedgerClient) -> None:
    account = client.create_account()
    assert len(account.id) == 16
    assert (account.ledger, account.currency, account.currency_exponent) == ("main", "USD", 2)
    assert account.type == ledger_pb2.ACCOUNT_TYPE_LIABILITY
    assert account.state == ledger_pb2.ACCOUNT_STATE_OPEN
    assert (account.settled_balance, account.available_balance) == (0, 0)
    assert account.create_time == account.update_time
    assert client.get_account(account.id) == account
    assert client.get_account(account.id, stale=True) == account


def test_money_in_at_once(client: LedgerClient) -> None:
    account_id = client.create_account().id
    transaction = client.create_transaction(account_id, 10_00, "top-up ☕", settled=True)
    assert transaction.status == SETTLED
    assert transaction.id.startswith(account_id)
    assert transaction.account_id == account_id
    assert (transaction.amount, transaction.description) == (10_00, "top-up ☕")
    assert uuid.UUID(transaction.request_id).version == 7
    mine, external = transaction.entries
    assert (mine.account_id, mine.direction, mine.amount) == (
        account_id,
        ledger_pb2.DIRECTION_CREDIT,
        10_00,
    )
    assert (external.direction, external.amount) == (ledger_pb2.DIRECTION_DEBIT, 10_00)
    assert external.account_id != account_id
    assert client.get_transaction(transaction.id) == transaction
    assert client.get_transaction(transaction.id, stale=True) == transaction
    assert balances(client, account_id) == (10_00, 10_00)


def test_pending_money_out_is_reserved_then_settled(client: LedgerClient, account: str) -> None:
    pending = client.create_transaction(account, -4_00, "purchase", settled=False)
    assert pending.status == PENDING
    assert balances(client, account) == (10_00, 6_00)
    assert client.get_account(account).pending_transactions == 1
    settled = client.settle_transaction(pending.id)
    assert settled.status == SETTLED
    assert balances(client, account) == (6_00, 6_00)
    assert client.get_account(account).pending_transactions == 0
    assert client.get_transaction(pending.id) == settled


def test_pending_money_out_is_free_again_when_cancelled(client: LedgerClient, account: str) -> None:
    pending = client.create_transaction(account, -4_00, "purchase", settled=False)
    cancelled = client.cancel_transaction(pending.id)
    assert cancelled.status == CANCELLED
    assert balances(client, account) == (10_00, 10_00)


def test_pending_money_in_is_not_available(client: LedgerClient, account: str) -> None:
    pending = client.create_transaction(account, 5_00, "wire", settled=False)
    assert balances(client, account) == (10_00, 10_00)
    client.settle_transaction(pending.id)
    assert balances(client, account) == (15_00, 15_00)


@pytest.mark.parametrize("settled", [True, False])
def test_an_outflow_beyond_the_funds_is_recorded_and_moves_nothing(
    client: LedgerClient, account: str, settled: bool
) -> None:
    refused = client.create_transaction(account, -10_01, "too much", settled=settled)
    assert refused.status == INSUFFICIENT_FUNDS
    assert refused.refusal.reason == "INSUFFICIENT_FUNDS"
    assert refused.refusal.account_id == account
    assert (refused.refusal.required_amount, refused.refusal.available_amount) == (10_01, 10_00)
    assert "10.00 USD" in refused.refusal.message
    assert balances(client, account) == (10_00, 10_00)
    assert client.get_transaction(refused.id) == refused
    assert next(client.list_transactions(account)) == refused
    assert client.create_transaction(account, -10_00, "all", settled=True).status == SETTLED
    assert balances(client, account) == (0, 0)


def test_reserved_money_cannot_be_spent_again(client: LedgerClient, account: str) -> None:
    client.create_transaction(account, -7_00, "hold", settled=False)
    refused = client.create_transaction(account, -4_00, "purchase", settled=True)
    assert refused.status == INSUFFICIENT_FUNDS
    assert refused.refusal.available_amount == 3_00


def test_a_repeat_gives_the_first_result_and_counts_once(
    client: LedgerClient, account: str
) -> None:
    request_id = f"order {uuid.uuid4()}"
    first = client.create_transaction(account, -3_00, "o", settled=False, request_id=request_id)
    for _ in range(3):
        again = client.create_transaction(account, -3_00, "o", settled=False, request_id=request_id)
        assert again == first
    assert balances(client, account) == (10_00, 7_00)
    settled = client.settle_transaction(first.id, request_id="s")
    assert client.settle_transaction(first.id, request_id="s") == settled
    assert balances(client, account) == (7_00, 7_00)
    pending = client.create_transaction(account, -1_00, "p", settled=False)
    cancelled = client.cancel_transaction(pending.id, request_id="s")
    assert client.cancel_transaction(pending.id, request_id="s") == cancelled


def test_a_refusal_is_sticky(client: LedgerClient, account: str) -> None:
    request_id = str(uuid.uuid4())
    first = client.create_transaction(account, -11_00, settled=True, request_id=request_id)
    client.create_transaction(account, 50_00, settled=True)
    again = client.create_transaction(account, -11_00, settled=True, request_id=request_id)
    assert again == first
    assert again.status == INSUFFICIENT_FUNDS


def test_accounts_are_opened_once_per_request_id(client: LedgerClient) -> None:
    request_id = f"customer {uuid.uuid4()}"
    first = client.create_account(request_id=request_id)
    client.create_transaction(first.id, 1_00, settled=True)
    assert client.create_account(request_id=request_id).id == first.id


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"amount": -3_01}, "amount"),
        ({"amount": 3_00}, "amount"),
        ({"description": "other"}, "description"),
        ({"settled": True}, "settled"),
    ],
)
def test_a_request_id_is_not_for_another_body(
    client: LedgerClient, account: str, changes: dict[str, object], field: str
) -> None:
    body = {"amount": -3_00, "description": "d", "settled": False, "request_id": "r"}
    client.create_transaction(account, **body)  # type: ignore[arg-type]
    before = client.get_account(account)
    with pytest.raises(AlreadyExistsError) as caught:
        client.create_transaction(account, **(body | changes))  # type: ignore[arg-type]
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert [item.field for item in caught.value.violations] == ["request_id"]
    assert field in caught.value.message
    assert client.get_account(account) == before


def test_a_transaction_ends_once(client: LedgerClient, account: str) -> None:
    def ended(
        end: Callable[[str], ledger_pb2.Transaction], again: Callable[[str], ledger_pb2.Transaction]
    ) -> None:
        pending = client.create_transaction(account, -1_00, settled=False)
        end(pending.id)
        before = client.get_account(account)
        with pytest.raises(FailedPreconditionError) as caught:
            again(pending.id)
        assert caught.value.reason == "TRANSACTION_NOT_PENDING"
        assert [item.field for item in caught.value.violations] == ["transaction_id"]
        assert pending.id in caught.value.message
        assert client.get_account(account) == before

    ended(client.settle_transaction, client.settle_transaction)
    ended(client.settle_transaction, client.cancel_transaction)
    ended(client.cancel_transaction, client.settle_transaction)
    ended(client.cancel_transaction, client.cancel_transaction)
    # Neither had a transaction that was never pending anything to end.
    for amount in (1, -100_00):
        done = client.create_transaction(account, amount, settled=True)
        with pytest.raises(FailedPreconditionError):
            client.settle_transaction(done.id)


def test_unknown_things_are_not_found(client: LedgerClient, account: str) -> None:
    nobody = "00000000deadbeef"
    calls: list[tuple[Callable[[], object], str, str]] = [
        (partial(client.get_account, nobody), "ACCOUNT_NOT_FOUND", "account_id"),
        (partial(client.get_account, nobody, stale=True), "ACCOUNT_NOT_FOUND", "account_id"),
        (
            partial(client.create_transaction, nobody, 1, settled=True),
            "ACCOUNT_NOT_FOUND",
            "account_id",
        ),
        (partial(client.list_transactions_page, nobody), "ACCOUNT_NOT_FOUND", "account_id"),
        (partial(client.create_account, ledger="nobodys"), "LEDGER_NOT_FOUND", "ledger"),
    ]
    for transaction_id in (account + "f" * 16, account + "0" * 16, nobody + "0" * 15 + "1"):
        calls += [
            (partial(call, transaction_id), "TRANSACTION_NOT_FOUND", "transaction_id")
            for call in (
                client.get_transaction,
                client.settle_transaction,
                client.cancel_transaction,
            )
        ]
    for call, reason, field in calls:
        with pytest.raises(NotFoundError) as caught:
            call()
        assert caught.value.reason == reason
        assert [item.field for item in caught.value.violations] == [field]


def test_another_accounts_transaction_id_is_not_found(client: LedgerClient, account: str) -> None:
    transaction = client.create_transaction(account, 1, settled=True)
    other = client.create_account().id
    with pytest.raises(NotFoundError):
        client.get_transaction(other + transaction.id[16:])


def test_amounts_at_the_edge_of_int64(client: LedgerClient) -> None:
    account_id = client.create_account().id
    refused = client.create_transaction(account_id, -(INT64_MAX // 3 * 2), settled=True)
    assert refused.status == INSUFFICIENT_FUNDS
    with pytest.raises(InvalidArgumentError) as caught:
        client.create_transaction(account_id, -(2**63), settled=True)
    assert [item.field for item in caught.value.violations] == ["amount"]
    # Two thirds fit once, beside the little that the other tests moved.
    held = client.create_transaction(account_id, INT64_MAX // 3 * 2, settled=False)
    with pytest.raises(FailedPreconditionError) as overflow:
        client.create_transaction(account_id, INT64_MAX // 3 * 2, settled=False)
    assert overflow.value.reason == "BALANCE_OVERFLOW"
    client.cancel_transaction(held.id)
    assert balances(client, account_id) == (0, 0)


def test_what_is_past_its_time_has_expired_for_whoever_looks(
    client: LedgerClient, account: str
) -> None:
    in_a_moment = datetime.now(UTC) + timedelta(seconds=0.3)
    held = client.create_transaction(
        account, -10_00, "hold", settled=False, expire_time=in_a_moment, request_id="hold"
    )
    assert held.status == PENDING
    assert balances(client, account) == (10_00, 0)
    time.sleep(0.5)
    assert balances(client, account) == (10_00, 10_00)
    assert client.get_transaction(held.id).status == ledger_pb2.TRANSACTION_STATUS_EXPIRED
    with pytest.raises(FailedPreconditionError):
        client.settle_transaction(held.id)
    again = client.create_transaction(
        account, -10_00, "hold", settled=False, expire_time=in_a_moment, request_id="hold"
    )
    assert again == held


def test_nobody_moves_the_external_account(client: LedgerClient, account: str) -> None:
    (top_up,) = client.list_transactions(account)
    external = top_up.entries[1].account_id
    with pytest.raises(FailedPreconditionError) as caught:
        client.create_transaction(external, 1, settled=True)
    assert caught.value.reason == "SYSTEM_ACCOUNT"
    assert client.get_account(external).type == ledger_pb2.ACCOUNT_TYPE_ASSET


def test_pages_are_newest_first_and_stable_while_writes_go_on(client: LedgerClient) -> None:
    account_id = client.create_account().id
    made = [
        client.create_transaction(account_id, number, str(number), settled=number % 3 > 0)
        for number in range(1, 26)
    ]
    pending = [item for item in made if item.status == PENDING]
    found: list[str] = []
    page_token = ""
    while True:
        page = client.list_transactions_page(account_id, page_size=7, page_token=page_token)
        assert len(page.transactions) <= 7
        found += [item.id for item in page.transactions]
        page_token = page.next_page_token
        if not page_token:
            break
        # New ones do not shift the pages; old ones that end keep their place.
        client.create_transaction(account_id, 1_000, "meanwhile", settled=True)
        client.settle_transaction(pending.pop(0).id)
    assert found == [item.id for item in reversed(made)]
    assert len(list(client.list_transactions(account_id, page_size=4))) > len(made)
    assert not client.list_transactions_page(client.create_account().id).transactions


def test_a_page_token_is_for_its_account_alone(client: LedgerClient, account: str) -> None:
    client.create_transaction(account, 1, settled=True)
    token = client.list_transactions_page(account, page_size=1).next_page_token
    assert token
    other = client.create_account().id
    for account_id, wrong in ((other, token), (account, token[:-1] + "!"), (account, token + "A")):
        with pytest.raises(InvalidArgumentError) as caught:
            client.list_transactions_page(account_id, page_token=wrong)
        assert [item.field for item in caught.value.violations] == ["page_token"]


@pytest.mark.parametrize(
    "cursor", [(1, 0), (0, 1), (10**6, 1), (1, 10**6), (2**64 - 1, 2**64 - 1), (2, 1)]
)
def test_a_forged_page_token_leads_nowhere(
    client: LedgerClient, account: str, cursor: tuple[int, int]
) -> None:
    listed = ledger_pb2.ListTransactionsRequest(account_id=account)
    token = ACCOUNT_TRANSACTIONS.encode(listed, Cursor(*cursor))
    with pytest.raises(InvalidArgumentError) as caught:
        client.list_transactions_page(account, page_token=token)
    assert [item.field for item in caught.value.violations] == ["page_token"]


def test_wrong_input_changes_nothing(client: LedgerClient, account: str) -> None:
    before = client.get_account(account), list(client.list_transactions(account))
    for arguments, fields in [
        ((account, 0, "d"), ["amount"]),
        ((account, 2**63, "d"), ["amount"]),
        ((account, 1, "d" * 1_001), ["description"]),
        ((account.upper(), 0, "d" * 1_001), ["account_id", "amount", "description"]),
    ]:
        with pytest.raises(InvalidArgumentError) as caught:
            client.create_transaction(*arguments, settled=True)
        assert caught.value.reason == "INVALID_FIELDS"
        assert [item.field for item in caught.value.violations] == fields
    assert (client.get_account(account), list(client.list_transactions(account))) == before


async def test_the_asyncio_client(ledger: StandaloneLedger) -> None:
    async with AsyncLedgerClient(ledger.target) as client:
        account_id = (await client.create_account()).id
        for _ in range(3):
            await client.create_transaction(account_id, 1_00, settled=True)
        pending = await client.create_transaction(account_id, -1_00, settled=False)
        assert (await client.settle_transaction(pending.id)).status == SETTLED
        pending = await client.create_transaction(account_id, -1_00, settled=False)
        assert (await client.cancel_transaction(pending.id)).status == CANCELLED
        assert (await client.get_transaction(pending.id)).status == CANCELLED
        listed = [item async for item in client.list_transactions(account_id, page_size=2)]
        assert len(listed) == 5
        assert listed == list((await client.list_transactions_page(account_id)).transactions)
        assert (await client.get_account(account_id)).available_balance == 2_00
        assert await client.serving_shards() == {"": True, "shard-0": True}
        with pytest.raises(NotFoundError):
            await client.get_account("0" * 16)


@pytest.mark.parametrize("end", [StandaloneLedger.stop, StandaloneLedger.kill])
def test_what_was_acknowledged_outlives_the_process(
    tmp_path: Path, end: Callable[[StandaloneLedger], object]
) -> None:
    with standalone_ledger(tmp_path / "data") as first, LedgerClient(first.target) as client:
        account_id = client.create_account(request_id="a").id
        for _ in range(20):
            client.create_transaction(account_id, 1_00, settled=True)
        pending = client.create_transaction(account_id, -5_00, settled=False, request_id="p")
        account = client.get_account(account_id)
        listed = list(client.list_transactions(account_id))
        end(first)
    with standalone_ledger(tmp_path / "data") as second, LedgerClient(second.target) as client:
        assert client.get_account(account_id) == account
        assert list(client.list_transactions(account_id)) == listed
        again = client.create_transaction(account_id, -5_00, settled=False, request_id="p")
        assert again == pending
        assert client.settle_transaction(pending.id).status == SETTLED
        assert balances(client, account_id) == (15_00, 15_00)

"""Batching against a real ledger: what comes back is what the ledger has, field by field."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from ledger.v1 import ledger_pb2
from ledger_client import (
    AsyncLedgerClient,
    InvalidArgumentError,
    LedgerClient,
    LedgerError,
    NotFoundError,
    credit,
    debit,
    limits,
)
from ledger_client._items import Item
from ledger_client.testing import StandaloneLedger, standalone_ledger

NOBODY = "0123456789abcdef"


@pytest.fixture(scope="module")
def ledger() -> Iterator[StandaloneLedger]:
    with standalone_ledger() as running:
        yield running


@pytest.fixture
def client(ledger: StandaloneLedger) -> Iterator[LedgerClient]:
    """Sends every call by itself."""
    with LedgerClient(ledger.target, batching=False) as running:
        yield running


@pytest.fixture
def from_columns(monkeypatch: pytest.MonkeyPatch) -> list[ledger_pb2.Transaction]:
    """Transactions that the SDK has made of columns."""
    made: list[ledger_pb2.Transaction] = []
    original = Item.transaction

    def transaction(self: Item, *args: Any) -> ledger_pb2.Transaction:
        made.append(original(self, *args))
        return made[-1]

    monkeypatch.setattr(Item, "transaction", transaction)
    return made


def together(ledger: StandaloneLedger, calls: list[Callable[[Any], Any]]) -> list[Any]:
    async def run() -> list[Any]:
        async with AsyncLedgerClient(ledger.target, 30.0) as client:
            return await asyncio.gather(*(call(client) for call in calls), return_exceptions=True)

    return asyncio.run(run())


def plain_calls(client: LedgerClient) -> list[Callable[[Any], Any]]:
    """Transfers in both forms; settled ones, refused ones, with and without texts."""
    alice, bob = client.create_account().id, client.create_account().id
    asset = client.create_account(
        account_type=ledger_pb2.ACCOUNT_TYPE_ASSET, limits=limits(), currency="USD"
    ).id
    client.create_ledger(
        "books",
        [
            ledger_pb2.Currency(code="EUR", exponent=3),
            ledger_pb2.Currency(code="JPY", exponent=0),
        ],
        request_id="books",
    )
    euro, yen, other_yen = (
        client.create_account(ledger="books", currency=currency).id
        for currency in ("EUR", "JPY", "JPY")
    )
    frozen = client.create_account().id
    client.freeze_account(frozen)

    def two(debited: str, credited: str, amount: int, **options: Any) -> Callable[[Any], Any]:
        currency = options.pop("currency", "")
        entries = [debit(debited, amount, currency), credit(credited, amount, currency)]
        return lambda sdk: sdk.create_transaction(entries=entries, settled=True, **options)

    def one(account_id: str, amount: int, *args: Any, **options: Any) -> Callable[[Any], Any]:
        return lambda sdk: sdk.create_transaction(
            account_id, amount, *args, settled=True, **options
        )

    return [
        one(alice, 500),
        one(alice, -5, "out", external_reference="r", metadata={"k": "v", "a": "b"}),
        one(alice, -500_000),
        one(alice, 7, actor="me"),
        one(asset, 7),
        one(asset, -7),
        one(yen, 70),
        one(euro, 70),
        one(frozen, 7),
        two(alice, bob, 3),
        two(alice, bob, 3, description="d", metadata={"x": "y"}),
        two(alice, bob, 3, currency="USD"),
        two(alice, bob, 3, actor="me"),
        two(bob, alice, 300_000),
        two(yen, other_yen, 3, ledger="books", currency="JPY"),
        two(yen, other_yen, 3, ledger="books"),
        two(alice, frozen, 3),
        two(alice, NOBODY, 3),
        two(NOBODY, alice, 3),
        two(alice, euro, 3),
        lambda sdk: sdk.create_transaction(entries=[credit(bob, 2), debit(alice, 2)], settled=True),
    ]


def test_every_field_is_that_of_the_ledger(
    ledger: StandaloneLedger,
    client: LedgerClient,
    from_columns: list[ledger_pb2.Transaction],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Every group as columns, however small.
    monkeypatch.setattr("ledger_client._bulk._GROUP_MIN", 1)
    calls = plain_calls(client)
    told = together(ledger, calls * 4)
    assert all(isinstance(made, ledger_pb2.Transaction) for made in told)
    for made in told:
        assert made == client.get_transaction(made.id)
        # Not only equal: every field is there, and nothing else.
        assert made.SerializeToString(deterministic=True) == client.get_transaction(
            made.id
        ).SerializeToString(deterministic=True)
    statuses = {made.status for made in from_columns}
    assert {2, 4, 6} <= statuses, "settled, without funds, and rejected"
    assert {made.ledger for made in from_columns} == {"main", "books"}
    assert {made.currency_exponent for made in from_columns} == {0, 2, 3}
    assert any(made.amount > 0 for made in from_columns)
    assert any(made.amount < 0 for made in from_columns)


def test_what_is_told_is_what_a_single_call_tells(
    ledger: StandaloneLedger, client: LedgerClient
) -> None:
    alice, bob = client.create_account().id, client.create_account().id
    entries = [debit(alice, 3), credit(bob, 3)]
    calls: list[Callable[[Any], Any]] = [
        lambda sdk: sdk.create_transaction(NOBODY, 5, settled=True),
        lambda sdk: sdk.create_transaction(entries=entries, settled=True, ledger="nowhere"),
        lambda sdk: sdk.create_transaction(
            entries=[debit(alice, 3, "GBP"), credit(bob, 3, "GBP")], settled=True
        ),
        lambda sdk: sdk.create_transaction(alice, 3, "x" * 1_001, settled=True),
        lambda sdk: sdk.create_transaction(alice, 3, settled=True, actor="x" * 129),
        lambda sdk: sdk.create_transaction(
            alice, 3, settled=True, external_reference="\n", metadata={"": "v"}
        ),
        lambda sdk: sdk.create_transaction(entries=[debit(alice, 3), credit(bob, 4)], settled=True),
        lambda sdk: sdk.create_transaction("x", 3, settled=True),
        lambda sdk: sdk.create_transaction(alice, 0, settled=True),
    ]
    good: list[Callable[[Any], Any]] = [
        lambda sdk: sdk.create_transaction(alice, 5, settled=True) for _ in range(5)
    ]
    told = together(ledger, [*good, *calls])
    assert all(isinstance(made, ledger_pb2.Transaction) for made in told[:5])
    for call, error in zip(calls, told[5:], strict=True):
        with pytest.raises(LedgerError) as caught:
            call(client)
        single = caught.value
        assert type(error) is type(single)
        assert (str(error), error.metadata, error.violations, error.retry_delay_s) == (
            str(single),
            single.metadata,
            single.violations,
            single.retry_delay_s,
        )


def test_a_request_happens_once_however_it_travels(
    ledger: StandaloneLedger, client: LedgerClient
) -> None:
    alice = client.create_account().id
    request_id = "01980000-0000-7000-8000-000000000001"

    def call(sdk: Any) -> Any:
        return sdk.create_transaction(alice, 5, "once", settled=True, request_id=request_id)

    told = [call(client), *together(ledger, [call] * 20), call(client)]
    assert all(made == told[0] for made in told)
    assert client.get_account(alice).settled_balance == 5


def test_threads_share_batches(ledger: StandaloneLedger) -> None:
    with LedgerClient(ledger.target) as shared, ThreadPoolExecutor(16) as pool:
        alice = shared.create_account().id
        told = list(
            pool.map(lambda _: shared.create_transaction(alice, 1, settled=True), range(200))
        )
        assert len({made.id for made in told}) == 200
        assert all(made == shared.get_transaction(made.id) for made in told[::20])
        assert shared.get_account(alice).settled_balance == 200


def test_many_transactions_and_columns_of_transfers(
    ledger: StandaloneLedger, client: LedgerClient
) -> None:
    alice, bob = client.create_account().id, client.create_account().id
    told = client.create_transactions(
        [
            {"account_id": alice, "amount": 100, "settled": True},
            {"account_id": alice, "amount": 5, "settled": False},
            ledger_pb2.CreateTransactionRequest(account_id=NOBODY, amount=5, settled=True),
        ]
    )
    assert isinstance(told[2], LedgerError)
    for made in told[:2]:
        assert isinstance(made, ledger_pb2.Transaction)
        assert made == client.get_transaction(made.id)

    results = client.create_transfers(
        [alice] * 101,
        np.full(101, int(bob, 16), np.uint64),
        np.ones(101, np.int64),
        texts={100: ledger_pb2.TransferText(description="one too many")},
        actor="loader",
    )
    assert (results.statuses[:100] == ledger_pb2.TRANSACTION_STATUS_SETTLED).all()
    assert results.refusals[100].reason == "INSUFFICIENT_FUNDS"
    last = client.get_transaction(results.transaction_id(100))
    assert (last.description, last.actor) == ("one too many", "loader")
    assert last.create_time.ToMicroseconds() == results.create_times_us[100]
    repeated = client.create_transfers(
        [alice] * 101,
        [bob] * 101,
        [1] * 101,
        request_ids=results.request_ids,
        actor="loader",
        texts={100: ledger_pb2.TransferText(description="one too many")},
    )
    assert (repeated.numbers == results.numbers).all()
    assert (repeated.statuses == results.statuses).all()
    assert (repeated.create_times_us == results.create_times_us).all()
    assert client.get_account(bob).settled_balance == 100


def test_reads_together_are_those_of_single_calls(
    ledger: StandaloneLedger, client: LedgerClient
) -> None:
    for call in plain_calls(client):
        with contextlib.suppress(LedgerError):
            call(client)
    ids = [account.id for account in client.list_accounts()]
    ids += [account.id for account in client.list_accounts("books")]
    for name in ("get_balance", "get_account"):
        calls = [
            lambda sdk, one=one, name=name: getattr(sdk, name)(one) for one in [*ids, NOBODY, "abc"]
        ]
        told = together(ledger, calls)
        singles = asyncio.run(_one_by_one(ledger.target, calls))
        assert [type(one) for one in told[-2:]] == [NotFoundError, InvalidArgumentError]
        assert list(map(str, told[-2:])) == list(map(str, singles[-2:]))
        # Not only equal: every field is there, and nothing else.
        assert [made.SerializeToString(deterministic=True) for made in told[:-2]] == [
            made.SerializeToString(deterministic=True) for made in singles[:-2]
        ]
    assert client.get_balances(ids) == [client.get_balance(one) for one in ids]
    assert client.get_accounts(ids) == [client.get_account(one) for one in ids]


async def _one_by_one(target: str, calls: list[Callable[[Any], Any]]) -> list[Any]:
    async with AsyncLedgerClient(target, 30.0, batching=False) as sdk:
        return [(await asyncio.gather(call(sdk), return_exceptions=True))[0] for call in calls]


def test_a_read_begun_after_a_write_was_acknowledged_sees_it(ledger: StandaloneLedger) -> None:
    """However many other reads and writes of the client are under way, and travel with it."""

    async def check(sdk: AsyncLedgerClient, account_id: str) -> None:
        for count in range(1, 15):
            made = await sdk.create_transaction(account_id, 1, settled=True)
            assert made.status == ledger_pb2.TRANSACTION_STATUS_SETTLED
            balance, account = await asyncio.gather(
                sdk.get_balance(account_id), sdk.get_account(account_id)
            )
            assert balance.settled_balance == account.settled_balance == count
            assert balance.version == count

    async def run() -> None:
        async with AsyncLedgerClient(ledger.target, 30.0) as sdk:
            accounts = [await sdk.create_account() for _ in range(20)]
            await asyncio.gather(*(check(sdk, account.id) for account in accounts))

    asyncio.run(run())

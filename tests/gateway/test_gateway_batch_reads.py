"""BatchGetBalances and BatchGetAccounts: what shards are asked; the same answers as one by one."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from error_details import decode
from fake_shards import ACCOUNT_VIEW, Call, FakeShards, until
from hypothesis import given, settings
from hypothesis import strategies as st
from node_shards import NodeShards

from ledger.v1 import ledger_pb2
from ledger_core.accounts import AccountType
from ledger_core.commands import CreateAccount, CreateTransaction, Limits
from ledger_core.errors import LedgerError, ShardUnavailableError
from ledger_core.ids import derive_account_id, format_account_id, shard_key
from ledger_core.ledgers import Currency
from ledger_core.queries import GetAccounts, GetBalances
from ledger_core.results import AccountsView, BalanceBookView, BalancesView, Failure, Result
from ledger_gateway.ledger_service import LedgerService
from ledger_gateway.server import GatewayServer

STALE = ledger_pb2.READ_CONSISTENCY_STALE
NOBODY = 0xABCDEF
BOOKS = ["main", "books"]


class _Context:
    """What the RPCs read of a call."""

    def time_remaining(self) -> float:
        return 10.0


def of_shard(shard_id: int, count: int) -> list[int]:
    """Ids that route to one of the four shards of `FakeShards`."""
    found = (number for number in range(1, 10**6) if shard_key(number) >> 30 == shard_id)
    return [next(found) for _ in range(count)]


def balances_view(count: int) -> BalancesView:
    zeros = bytes(8 * count)
    return BalancesView(
        bytes([AccountType.LIABILITY]) * count,
        bytes(2 * count),
        zeros,
        zeros,
        zeros,
        zeros,
        zeros,
        zeros,
        [BalanceBookView("main", "USD", 2)],
        {},
    )


def answering(call: Call) -> Result:
    """What a shard would say if all its accounts were there."""
    if isinstance(call.message, GetBalances):
        return balances_view(len(call.message.account_ids))
    assert isinstance(call.message, GetAccounts)
    return AccountsView([ACCOUNT_VIEW for _ in call.message.account_ids])


# Against shards that remember what they are asked


@pytest.mark.parametrize("method", ["BatchGetBalances", "BatchGetAccounts"])
@pytest.mark.parametrize("consistency", [0, STALE])
async def test_every_shard_is_asked_once_for_its_accounts(
    method: str, consistency: int, stub: Any, shards: FakeShards
) -> None:
    shards.answer = answering
    ids = [of_shard(2, 2)[0], of_shard(0, 1)[0], of_shard(2, 2)[1], of_shard(2, 2)[0]]
    request = getattr(ledger_pb2, f"{method}Request")(account_ids=ids, consistency=consistency)
    response = await getattr(stub, method)(request)
    asked = {call.shard_id: call for call in shards.calls}
    assert len(asked) == len(shards.calls) == 2
    message: Any = asked[2].message
    assert message.account_ids == [ids[0], ids[2], ids[3]]
    assert {call.stale for call in shards.calls} == {consistency == STALE}
    points = [(point.shard_id, point.applied_index) for point in response.read_points]
    assert sorted(points) == [(0, 41), (2, 41)]
    assert [points[index][0] for index in response.read_point_indexes] == [2, 0, 2, 2]
    assert {point.age_ms for point in response.read_points} == {5 if consistency else 0}


async def test_a_shard_that_is_away_fails_its_accounts_alone(stub: Any, shards: FakeShards) -> None:
    away = ShardUnavailableError("shard 1 is away")
    shards.answer = lambda call: away if call.shard_id == 1 else answering(call)
    ids = [of_shard(1, 2)[0], of_shard(0, 1)[0], of_shard(1, 2)[1]]
    balances = await stub.BatchGetBalances(ledger_pb2.BatchGetBalancesRequest(account_ids=ids))
    assert sorted(balances.errors) == [0, 2]
    assert list(balances.types) == [0, AccountType.LIABILITY, 0]
    accounts = await stub.BatchGetAccounts(ledger_pb2.BatchGetAccountsRequest(account_ids=ids))
    assert [result.WhichOneof("result") for result in accounts.results] == [
        "error",
        "account",
        "error",
    ]
    for error in (balances.errors[0], balances.errors[2], accounts.results[0].error):
        assert error.code == grpc.StatusCode.UNAVAILABLE.value[0]
        assert (error.reason, error.message) == ("SHARD_UNAVAILABLE", "shard 1 is away")
        assert error.retry_delay_ms > 0
    for response in (balances, accounts):
        assert [point.shard_id for point in response.read_points] == [0]
        assert list(response.read_point_indexes) == [0, 0, 0]


@pytest.mark.parametrize(
    ("method", "most"), [("BatchGetBalances", 8_192), ("BatchGetAccounts", 256)]
)
async def test_how_many_a_call_may_ask_for(
    method: str, most: int, stub: Any, shards: FakeShards
) -> None:
    shards.answer = answering
    kind = getattr(ledger_pb2, f"{method}Request")
    await getattr(stub, method)(kind(account_ids=range(1, most + 1)))
    shards.calls.clear()
    for count in (0, most + 1):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(stub, method)(kind(account_ids=range(count), consistency=7))
        error = decode(caught.value)
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELDS")
        assert error.violations == [
            ("account_ids", f"must be 1 to {most:,}, not {count:,}"),
            ("consistency", "has no value 7"),
        ]
    assert shards.calls == []


async def test_what_is_being_read_is_bounded(
    stub: Any, gateway: GatewayServer, shards: FakeShards
) -> None:
    gateway._ledger_service._reading._size_max = 3
    shards.answer, shards.hold = answering, asyncio.Event()
    request = ledger_pb2.BatchGetBalancesRequest(account_ids=[1, 2])
    first = asyncio.ensure_future(stub.BatchGetBalances(request))
    await until(lambda: bool(shards.calls))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.BatchGetBalances(request)
    error = decode(caught.value)
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    shards.hold.set()
    await first
    await stub.BatchGetBalances(request)


async def test_an_answer_of_the_wrong_kind_is_a_fault_of_ours(
    stub: Any, shards: FakeShards
) -> None:
    shards.result = ACCOUNT_VIEW
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.BatchGetBalances(ledger_pb2.BatchGetBalancesRequest(account_ids=[1]))
    assert decode(caught.value).code == "INTERNAL"


# Against shards as nodes have them


class World:
    """Four shards with accounts in two ledgers and three currencies."""

    def __init__(self, folder: Path) -> None:
        self.shards = NodeShards(folder, 4)
        self.service = LedgerService(self.shards)  # type: ignore[arg-type]
        self.ids: list[int] = []

    async def fill(self) -> None:
        currencies = [Currency("USD", 2), Currency("EUR", 2), Currency("JPY", 0)]
        for number in range(24):
            ledger = BOOKS[number % 2]
            account_id = derive_account_id(ledger, f"r{number}")
            type_ = list(AccountType)[number % 5]
            currency = currencies[number % 3 if number % 2 else 0]
            limits = Limits(None)
            await self._do(
                account_id,
                CreateAccount(account_id, ledger, f"r{number}", type_, currency, limits=limits),
            )
            for count in range(number % 4):
                self.shards.time_us += 1_001
                amount = 7 * number + count
                done = count % 2 == 0
                command = CreateTransaction(account_id, amount, "", done, f"{number} {count}")
                await self._do(account_id, command)
            self.ids.append(account_id)
        self.ids += [NOBODY, 0]

    async def _do(self, account_id: int, command: Any) -> None:
        result = await self.shards.execute(account_id, command, 1.0)
        assert not isinstance(result, Failure), result

    async def single(self, method: str, account_id: int) -> Any:
        """Return the balance or account, or the error that the call raises."""
        request = getattr(ledger_pb2, f"{method}Request")(account_id=format_account_id(account_id))
        try:
            return await getattr(self.service, method)(request, _Context())
        except LedgerError as error:
            return error


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("shards"))
    asyncio.run(made.fill())
    return made


def balance_of(response: ledger_pb2.BatchGetBalancesResponse, index: int, account_id: int) -> Any:
    """Return what the columns say of an account, as GetBalance would."""
    book = response.books[response.book_indexes[index]]
    balance = ledger_pb2.Balance(
        account_id=format_account_id(account_id),
        ledger=book.ledger,
        type=response.types[index],  # type: ignore[arg-type]
        currency=book.currency,
        currency_exponent=book.currency_exponent,
        settled_balance=response.settled_balances[index],
        available_balance=response.available_balances[index],
        debits_posted=response.debits_posted[index],
        credits_posted=response.credits_posted[index],
        debits_pending=response.debits_pending[index],
        credits_pending=response.credits_pending[index],
        version=response.versions[index],
    )
    if response.update_times_us[index]:
        balance.update_time.FromMicroseconds(response.update_times_us[index])
    point = response.read_points[response.read_point_indexes[index]]
    return ledger_pb2.GetBalanceResponse(balance=balance, read_point=point)


def compare_errors(error: ledger_pb2.CallError, single: Any) -> None:
    assert error.code == grpc.StatusCode.NOT_FOUND.value[0]
    assert (error.reason, error.message) == (single.reason, single.message)
    assert dict(error.metadata) == single.metadata
    assert [item.field for item in error.violations] == [item.field for item in single.violations]


@settings(max_examples=60, deadline=None)
@given(places=st.lists(st.integers(0, 25), min_size=1, max_size=40))
def test_the_same_as_one_by_one(world: World, places: list[int]) -> None:
    ids = [world.ids[place] for place in places]

    async def compare() -> None:
        context: Any = _Context()
        balances = await world.service.BatchGetBalances(
            ledger_pb2.BatchGetBalancesRequest(account_ids=ids), context
        )
        accounts = await world.service.BatchGetAccounts(
            ledger_pb2.BatchGetAccountsRequest(account_ids=ids), context
        )
        for index, account_id in enumerate(ids):
            single = await world.single("GetBalance", account_id)
            if index in balances.errors:
                compare_errors(balances.errors[index], single)
            else:
                assert balance_of(balances, index, account_id) == single
            single = await world.single("GetAccount", account_id)
            result = accounts.results[index]
            if result.HasField("error"):
                compare_errors(result.error, single)
            else:
                point = accounts.read_points[accounts.read_point_indexes[index]]
                assert single == ledger_pb2.GetAccountResponse(
                    account=result.account, read_point=point
                )
        missing = [index for index, one in enumerate(ids) if one in (NOBODY, 0)]
        assert sorted(balances.errors) == missing
        for column in (balances.types, balances.book_indexes, balances.versions):
            assert [column[index] for index in missing] == [0] * len(missing)

    asyncio.run(compare())

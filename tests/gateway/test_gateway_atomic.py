"""Atomic calls: what is refused, and that the items of a call happen together or not at all."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from bulk_shards import ACCOUNTS, CREDIT, DEBIT, IN, BulkShards, Item, transfers
from error_details import decode
from fake_shards import until
from google.protobuf.timestamp_pb2 import Timestamp
from world_shards import WorldShards

from ledger.v1 import ledger_pb2
from ledger_client import AlreadyExistsError, AsyncLedgerClient, credit, debit
from ledger_core.commands import ENTRIES_MAX, CreateTransaction
from ledger_core.ids import format_account_id
from ledger_core.ledgers import USD, Currency
from ledger_core.queries import GetLedger
from ledger_core.results import LedgerView
from ledger_gateway.server import GatewayServer
from tests.node.several_shards import SHARDS, World

A, B, C = ACCOUNTS[0][:3]
D = ACCOUNTS[1][0]
EUR = Currency("EUR", 2)
Status = ledger_pb2.TransactionStatus
Request = ledger_pb2.CreateTransactionsRequest
Single = ledger_pb2.CreateTransactionRequest
Entry = ledger_pb2.Entry


@pytest.fixture
def shards() -> BulkShards:
    ledger = LedgerView("main", "", [USD, EUR], [], 1, 0, 0)
    return BulkShards(answer=lambda call: ledger if isinstance(call.message, GetLedger) else None)


def move(first: int, second: int, amount: int = 5, currency: str = "") -> list[Entry]:
    return [
        debit(format_account_id(first), amount, currency),
        credit(format_account_id(second), amount, currency),
    ]


def items(*of_entries: list[Entry], **changes: Any) -> Request:
    """An atomic call of general transactions; ``changes`` are made to the last one."""
    request = Request(atomic=ledger_pb2.AtomicTransaction())
    for entries in of_entries:
        request.transactions.add(entries=entries, settled=True)
    for name, value in changes.items():
        field = getattr(request.transactions[-1], name)
        if isinstance(field, bool | str | int):
            setattr(request.transactions[-1], name, value)
        elif isinstance(value, dict):
            field.update(value)
        else:
            field.CopyFrom(value)
    return request


def columns(*of_transfers: Item, **changes: Any) -> Request:
    request = Request(transfers=transfers(of_transfers, **({"request_ids": b""} | changes)))
    request.atomic.SetInParent()
    return request


# What an atomic call may not be

ONE: Item = (DEBIT, A, B, 5)
MOVE = move(A, B)
MANY = [ONE] * (ENTRIES_MAX // 2)
WHOLE = "must be empty: an atomic call is one transaction; use atomic."
TEXT = ledger_pb2.TransferText(description="d")
LAST = "transactions[1]"


@pytest.mark.parametrize(
    ("request_", "field", "said"),
    [
        (items(MOVE, MOVE, request_id="r"), f"{LAST}.request_id", f"{WHOLE}request_id"),
        (items(MOVE, MOVE, description="d"), f"{LAST}.description", f"{WHOLE}description"),
        (
            items(MOVE, MOVE, external_reference="e"),
            f"{LAST}.external_reference",
            f"{WHOLE}external_reference",
        ),
        (items(MOVE, MOVE, metadata={"a": "b"}), f"{LAST}.metadata", f"{WHOLE}metadata"),
        (
            items(MOVE, MOVE, effective_time=Timestamp(seconds=1)),
            f"{LAST}.effective_time",
            f"{WHOLE}effective_time",
        ),
        (items(MOVE, MOVE, actor="a"), f"{LAST}.actor", f"{WHOLE}actor"),
        (items(MOVE, MOVE, settled=False), f"{LAST}.settled", "must be true: an atomic call moves"),
        (
            items(MOVE, MOVE, expire_time=Timestamp(seconds=1)),
            f"{LAST}.expire_time",
            "goes with pending transactions only",
        ),
        (items(MOVE, MOVE, dry_run=True), f"{LAST}.dry_run", "cannot be part of an atomic call"),
        (items(MOVE, [], amount=5), f"{LAST}.amount", "its other side is another account on every"),
        (
            items(MOVE, [], account_id=format_account_id(A), amount=5),
            f"{LAST}.account_id",
            "name both accounts",
        ),
        (items(MOVE, []), f"{LAST}.entries", "must be 2 or more, not 0"),
        (items(MOVE, MOVE[:1]), f"{LAST}.entries", "must be 2 or more, not 1"),
        (items(MOVE, MOVE, ledger="fx"), f"{LAST}.ledger", "must be 'main', as that of the first"),
        (
            items(MOVE, [MOVE[0], *move(A, B, 4)[1:]]),
            f"{LAST}.entries",
            "debits exceed credits by 0.01 USD: each item balances by itself",
        ),
        # Together these would balance.
        (
            items([MOVE[0], *move(A, B, 4)[1:]], [*move(A, B, 4)[:1], MOVE[1]]),
            "transactions[0].entries",
            "each item balances by itself",
        ),
        (
            items(MOVE, [*move(A, B, 5, "EUR")[:1], MOVE[1]]),
            f"{LAST}.entries",
            "must balance in EUR",
        ),
        (items(MOVE, [MOVE[0], Entry(amount=5)]), f"{LAST}.entries[1].account_id", "is required"),
        (items(MOVE, move(A, B, 0)), f"{LAST}.entries[0].amount", "must be greater than 0"),
        (columns(ONE, (IN, A, 0, 5)), "transfers.forms[1]", "the one-account form cannot be part"),
        (columns(ONE, request_ids=bytes(16)), "transfers.request_ids", f"{WHOLE}request_id"),
        (columns(ONE, texts={0: TEXT}), "transfers.texts", f"{WHOLE}description"),
        (columns(ONE, actor="a"), "transfers.actor", f"{WHOLE}actor"),
        (columns((DEBIT, A, A, 5)), "transfers.second_account_ids[0]", "must not be the first"),
        (columns(), "transactions", "must be 1 to 8,192"),
        (columns(*MANY, ONE), "atomic", "at most 1,024 entries; these items have 1,026, two for"),
    ],
)
async def test_what_an_atomic_call_may_not_be(
    stub: Any, shards: BulkShards, request_: Request, field: str, said: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CreateTransactions(request_)
    error = decode(caught.value)
    assert error.code == "INVALID_ARGUMENT"
    found = [text for name, text in error.violations if name == field]
    assert any(said[:100] in text for text in found), error.violations
    assert not any(isinstance(message, CreateTransaction) for message in shards.messages)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"description": "d" * 1_001}, "atomic.description"),
        ({"request_id": "r" * 129}, "atomic.request_id"),
        ({"external_reference": "a\n"}, "atomic.external_reference"),
        ({"metadata": {"": "v"}}, "atomic.metadata"),
        ({"effective_time": Timestamp(seconds=-1)}, "atomic.effective_time"),
        ({"actor": "a\n"}, "atomic.actor"),
    ],
)
async def test_the_whole_has_the_bounds_of_a_transaction(
    stub: Any, values: dict[str, Any], field: str
) -> None:
    request = items(MOVE)
    request.atomic.CopyFrom(ledger_pb2.AtomicTransaction(**values))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CreateTransactions(request)
    assert [name for name, _ in decode(caught.value).violations] == [field]


async def test_a_currency_that_the_ledger_lacks_is_named_where_it_is(stub: Any) -> None:
    for request, field in (
        (items(MOVE, move(A, B, 5, "JPY")), "transactions[1].entries[0].currency"),
        (columns(ONE, currency="JPY"), "transfers.currency"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CreateTransactions(request)
        error = decode(caught.value)
        assert error.reason == "CURRENCY_NOT_IN_LEDGER"
        assert error.violations[0][0] == field


# One transaction


async def test_all_items_are_the_entries_of_one_transaction_in_their_order(
    stub: Any, shards: BulkShards
) -> None:
    request = items(move(A, B, 1), move(D, C, 2, "EUR") + move(B, D, 3))
    request.transfers.CopyFrom(
        transfers([(DEBIT, A, D, 4), (CREDIT, B, C, 5)], request_ids=b"", currency="EUR")
    )
    request.atomic.request_id = "payroll"
    request.atomic.actor = "clerk"
    response = await stub.CreateTransactions(request)
    (command,) = [item for item in shards.messages if isinstance(item, CreateTransaction)]
    assert response.atomic.request_id
    assert (command.request_id, command.actor, command.settled) == ("payroll", "clerk", True)
    assert [
        (entry.account_id, entry.direction, entry.amount, entry.currency)
        for entry in command.entries
    ] == [
        *((A, 1, 1, USD), (B, 2, 1, USD)),
        *((D, 1, 2, EUR), (C, 2, 2, EUR), (B, 1, 3, USD), (D, 2, 3, USD)),
        *((A, 1, 4, EUR), (D, 2, 4, EUR), (B, 2, 5, EUR), (C, 1, 5, EUR)),
    ]
    assert not response.results
    assert not response.HasField("transfers")


async def test_few_large_transactions_are_on_their_way_at_once(
    stub: Any, shards: BulkShards
) -> None:
    """Atomic or not; those that are not large do not wait for them."""
    shards.hold = asyncio.Event()
    spread = [(DEBIT, ACCOUNTS[n % 4][0], ACCOUNTS[n % 4][1], 5) for n in range(ENTRIES_MAX // 2)]
    whole = columns(*spread)
    # Four shards, and as much work as on 16 if all of them are at once.
    streams = asyncio.gather(*(_streamed(stub, [whole] * 6) for _ in range(2)))
    await until(lambda: shards.at_work[0] == 4)
    one = asyncio.ensure_future(stub.CreateTransactions(items(MOVE)))
    await until(lambda: shards.at_work[0] == 5)
    await asyncio.sleep(0.05)
    assert shards.at_work_most[0] == 5
    shards.hold.set()
    assert (await one).HasField("atomic")
    assert [len(found) for found in await streams] == [6, 6]
    assert shards.at_work_most[0] == 5


async def test_what_waited_too_long_for_its_turn_was_not_begun(
    stub: Any, shards: BulkShards
) -> None:
    shards.hold = asyncio.Event()
    spread = [(DEBIT, ACCOUNTS[n % 4][0], ACCOUNTS[n % 4][1], 5) for n in range(ENTRIES_MAX // 2)]
    first = [asyncio.ensure_future(_streamed(stub, [columns(*spread)] * 4))]
    await until(lambda: shards.at_work[0] == 4)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CreateTransactions(columns(*spread), timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    shards.hold.set()
    await asyncio.gather(*first)
    assert len([item for item in shards.messages if isinstance(item, CreateTransaction)]) == 4


async def _streamed(stub: Any, requests: list[Request]) -> list[Any]:
    return [response async for response in stub.StreamTransactions(iter(requests))]


# On real shards


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Three shards with two accounts each, of 1.00."""
    world = World(tmp_path)
    yield world
    world.check_every_shard_balances()
    world.check_nothing_is_in_flight()
    world.close()


@pytest.fixture
async def client(world: World) -> AsyncIterator[AsyncLedgerClient]:
    server = GatewayServer(WorldShards(world))
    await server.start()
    async with AsyncLedgerClient(server.address) as client:
        yield client
    await server.stop(0)


def moves(world: World, *of: tuple[tuple[int, int], tuple[int, int], int]) -> list[list[Entry]]:
    """Items of (from, to, amount), each an account as (shard, which)."""
    return [
        move(world.accounts[source[0]][source[1]], world.accounts[to[0]][to[1]], amount)
        for source, to, amount in of
    ]


def totals(world: World) -> list[int]:
    return [settled for settled, _available in world.balances()]


ON_ONE = [((0, 0), (0, 1), 60), ((0, 1), (0, 0), 10), ((0, 0), (0, 1), 40)]
ON_ALL = [((0, 0), (1, 0), 60), ((2, 1), (0, 1), 100), ((1, 1), (2, 0), 7)]


@pytest.mark.parametrize(
    ("wanted", "after"),
    [(ON_ONE, [10, 190, 100, 100, 100, 100]), (ON_ALL, [40, 200, 160, 93, 107, 0])],
)
async def test_all_items_happen(
    client: AsyncLedgerClient, world: World, wanted: Any, after: list[int]
) -> None:
    made = await client.create_atomic(
        moves(world, *wanted), description="payroll", external_reference="2026-03", actor="clerk"
    )
    assert made.status == Status.TRANSACTION_STATUS_SETTLED
    assert (made.description, made.external_reference, made.actor) == (
        *("payroll", "2026-03"),
        "clerk",
    )
    assert totals(world) == after
    assert await client.get_transaction(made.id) == made
    reversal = await client.reverse_transaction(made.id)
    assert reversal.reversal_of == made.id
    assert totals(world) == [100] * 2 * SHARDS


@pytest.mark.parametrize(
    ("wanted", "item", "entry"),
    [
        ([*ON_ONE[:2], ((0, 1), (0, 0), 500)], "transactions[0]", 1),
        ([*ON_ALL[:2], ((1, 1), (2, 0), 101)], "transactions[2]", 4),
    ],
)
async def test_nothing_happens_where_one_item_is_refused_and_that_is_sticky(
    client: AsyncLedgerClient, world: World, wanted: Any, item: str, entry: int
) -> None:
    """Funds count for the whole: the refusal names the first item of the account."""
    asked = moves(world, *wanted)
    refused = await client.create_atomic(asked, request_id="r")
    assert refused.status == Status.TRANSACTION_STATUS_INSUFFICIENT_FUNDS
    assert (refused.refusal.item, refused.refusal.entry_index) == (item, entry)
    assert refused.refusal.account_id == refused.entries[entry].account_id
    assert totals(world) == [100] * 2 * SHARDS
    rich = refused.refusal.account_id
    await client.create_transaction(rich, 1_000, "top-up", settled=True)
    assert await client.create_atomic(asked, request_id="r") == refused
    again = await client.create_atomic(asked, request_id="again")
    assert again.status == Status.TRANSACTION_STATUS_SETTLED


async def test_a_refused_transfer_is_named(client: AsyncLedgerClient, world: World) -> None:
    """Of any shard: the second one is on its home's, the fourth one on another shard."""
    (a, b), (c, d), (e, _) = world.accounts
    for frozen, place in ((b, 1), (e, 3)):
        await client.freeze_account(format_account_id(frozen))
        refused = await client.create_atomic_transfers([a, b, c, d], [c, d, b, e], [1, 2, 3, 4])
        assert refused.status == Status.TRANSACTION_STATUS_REJECTED
        assert refused.refusal.reason == "ACCOUNT_FROZEN"
        assert refused.refusal.item == f"transfers[{place}]"
        await client.unfreeze_account(format_account_id(frozen))
    assert totals(world) == [100] * 2 * SHARDS


async def test_a_repeat_has_the_first_result_and_another_body_has_none(
    client: AsyncLedgerClient, world: World
) -> None:
    asked = moves(world, *ON_ALL)
    first = await client.create_atomic(asked, request_id="r", description="d")
    after = totals(world)
    assert await client.create_atomic(asked, request_id="r", description="d") == first
    # The same entries as columns are the same request.
    rows = [entry.account_id for entry in first.entries]
    amounts = [entry.amount for entry in first.entries[::2]]
    again = await client.create_atomic_transfers(
        rows[::2], rows[1::2], amounts, request_id="r", description="d"
    )
    assert again == first
    for other in (asked[:2], [*asked[:2], *moves(world, ((1, 1), (2, 0), 8))]):
        with pytest.raises(AlreadyExistsError) as caught:
            await client.create_atomic(other, request_id="r", description="d")
        assert caught.value.reason == "REQUEST_ID_REUSED"
        assert [item.field for item in caught.value.violations] == ["atomic.request_id"]
    assert totals(world) == after


async def test_a_stream_does_the_same(client: AsyncLedgerClient, world: World) -> None:
    request = Request(atomic=ledger_pb2.AtomicTransaction(request_id="r"))
    for entries in moves(world, *ON_ALL):
        request.transactions.add(entries=entries, settled=True)
    account_id = format_account_id(world.accounts[0][0])
    single = Request(transactions=[Single(account_id=account_id, amount=1, settled=True)])
    stub = client._connect().ledger
    found = [item async for item in stub.StreamTransactions(iter([request, single, request]))]
    assert [item.HasField("atomic") for item in found] == [True, False, True]
    assert found[0] == found[2]
    assert found[0].atomic.status == Status.TRANSACTION_STATUS_SETTLED
    assert (await client.create_atomic(moves(world, *ON_ALL), request_id="r")) == found[0].atomic


async def test_as_many_transfers_as_an_atomic_call_takes(
    client: AsyncLedgerClient, world: World
) -> None:
    """Over all shards; read back, listed and reversed in part."""
    bank = []
    for shard_id, name in ((0, 0), (1, 0), (2, 0)):
        account_id = world.accounts[shard_id][name]
        world.apply(shard_id, _rich(account_id, f"rich {shard_id}"))
        bank.append(account_id)
    count = ENTRIES_MAX // 2
    others = [world.accounts[number % SHARDS][1] for number in range(count)]
    made = await client.create_atomic_transfers(
        [bank[number // 7 % SHARDS] for number in range(count)],
        others,
        [number % 50 + 1 for number in range(count)],
        metadata={"run": "1"},
    )
    assert made.status == Status.TRANSACTION_STATUS_SETTLED
    assert len(made.entries) == ENTRIES_MAX
    assert await client.get_transaction(made.id) == made
    listed = [item async for item in client.list_transactions(ledger="main", metadata_key="run")]
    assert listed == [made]
    history = [item async for item in client.entries(format_account_id(others[1]), page_size=300)]
    # Reserved, and settled.
    assert [item.transaction_id for item in history].count(made.id) == 2 * len(
        range(1, count, SHARDS)
    )
    parts = [entry.amount for entry in made.entries[:20]] + [0] * (ENTRIES_MAX - 20)
    part = await client.reverse_transaction(made.id, parts)
    assert len(part.entries) == 20
    rest = await client.reverse_transaction(made.id)
    assert len(rest.entries) == ENTRIES_MAX - 20
    assert totals(world)[1::2] == [100] * SHARDS


def _rich(account_id: int, request_id: str) -> CreateTransaction:
    return CreateTransaction(account_id, 10**6, "", True, request_id)


async def test_currencies_may_differ_from_item_to_item(
    client: AsyncLedgerClient, world: World
) -> None:
    eur = ledger_pb2.Currency(code="EUR", exponent=2)
    await client.update_ledger("main", 0, currencies=[eur])
    kind = ledger_pb2.ACCOUNT_TYPE_ASSET
    bank = (await client.create_account(currency="EUR", account_type=kind)).id
    opened = [(await client.create_account(currency="EUR")).id for _ in range(2)]
    euros = [[debit(bank, 7, "EUR"), credit(account_id, 7, "EUR")] for account_id in opened]
    dollars = moves(world, *ON_ALL)
    made = await client.create_atomic([dollars[0], *euros, *dollars[1:]])
    assert made.status == Status.TRANSACTION_STATUS_SETTLED
    assert [(await client.get_account(one)).settled_balance for one in (bank, *opened)] == [
        14,
        7,
        7,
    ]
    assert totals(world) == [40, 200, 160, 93, 107, 0]

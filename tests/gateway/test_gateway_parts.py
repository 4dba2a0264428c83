"""Bulk calls answered in parts: each item once, few parts, and every way in which they end."""

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any
from unittest.mock import Mock, patch

import grpc
import numpy as np
import pytest
from bulk_shards import ACCOUNTS, DEBIT, IN, SETTLED, BulkShards, Item, bulk, on_shards, transfers
from error_details import decode
from fake_shards import ACCOUNT_VIEW, TRANSACTION_VIEW, until
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from ledger.v1 import ledger_pb2
from ledger_core.accounts import Direction
from ledger_core.commands import CreateTransfers
from ledger_core.errors import OutcomeUnknownError, Reason, ShardUnavailableError
from ledger_core.ledgers import USD
from ledger_core.results import BookView, Failure, RefusalView, TransfersView
from ledger_gateway import bulk_call, transfer_columns
from ledger_gateway.bulk_call import BulkCall, Part
from ledger_gateway.bulk_work import Room
from ledger_gateway.plain_transfers import Sorted
from ledger_gateway.server import GatewayServer
from ledger_gateway.transfer_columns import Terms
from ledger_gateway.transfer_pieces import Transfers

A, B = ACCOUNTS[0][:2]
METHOD = "/ledger.v1.LedgerService/StreamCreateTransactions"
NO_FUNDS = int(ledger_pb2.TRANSACTION_STATUS_INSUFFICIENT_FUNDS)
Request = ledger_pb2.CreateTransactionsRequest
Response = ledger_pb2.CreateTransactionsResponse
Single = ledger_pb2.CreateTransactionRequest


@pytest.fixture
def shards() -> BulkShards:
    return BulkShards()


def rows(columns: ledger_pb2.TransferResults) -> list[tuple[Any, ...]]:
    """All that columns say of each transfer."""
    return [
        (
            *(columns.numbers[place], columns.statuses[place], columns.create_times_us[place]),
            columns.first_directions[place],
            columns.books[columns.book_indexes[place]].external_account_id if status else None,
            columns.refusals.get(place),
            columns.others.get(place),
        )
        for place, status in enumerate(columns.statuses)
    ]


def joined(parts: list[Part]) -> tuple[dict[int, Any], dict[int, Any]]:
    """The results of general transactions and of transfers, by index; each is in one part."""
    transactions: dict[int, Any] = {}
    of_transfers: dict[int, Any] = {}
    for part in parts:
        for of_kind, indexes, results in (
            (transactions, part.transaction_indexes, list(part.part.results)),
            (of_transfers, part.transfer_indexes, rows(part.part.transfers)),
        ):
            assert of_kind.keys().isdisjoint(indexes)
            assert len(set(indexes)) == len(indexes)
            of_kind.update(zip(indexes, results, strict=True))
    return transactions, of_transfers


def whole(response: Response) -> tuple[dict[int, Any], dict[int, Any]]:
    return dict(enumerate(response.results)), dict(enumerate(rows(response.transfers)))


# The answer, put together from parts


def view(count: int, rng: Random) -> TransfersView:
    """What may become of the transfers of a block."""
    statuses = bytes(rng.choice((SETTLED, SETTLED, NO_FUNDS, 0)) for _ in range(count))
    return TransfersView(
        rng.randrange(1, 2**50),
        rng.randrange(1, 1_000),
        statuses,
        {
            place: RefusalView("INSUFFICIENT_FUNDS", 0, A, place, 0, "")
            for place, status in enumerate(statuses)
            if status == NO_FUNDS
        },
        {
            place: rng.choice((Failure(Reason.ACCOUNT_NOT_FOUND, f"{place}"), TRANSACTION_VIEW))
            for place, status in enumerate(statuses)
            if not status
        },
        [BookView("main", "USD", 2, rng.randrange(1, 4))],
        bytes(2 * count),
        bytes([rng.choice((Direction.DEBIT, Direction.CREDIT))]) * count,
    )


class Scripted:
    """A call of transfers and general transactions, which come to their ends as ``seed`` says."""

    def __init__(self, columns: int, plain: int, alone: int, seed: int) -> None:
        self._rng = Random(seed)
        self._columns, self._group = self._transfers(columns), self._transfers(plain)
        indexes = list(range(plain + alone))
        self._rng.shuffle(indexes)
        self._alone = indexes[plain:]
        self.call = BulkCall(columns + plain + alone, self._columns if columns else None)
        self.call.sort(Sorted([], [self._group], [sorted(indexes[:plain])]))

    async def work(self) -> None:
        rng = self._rng
        events = [(self.call, [index]) for index in self._alone]
        for of in (self._columns, self._group):
            places = list(range(len(of.columns)))
            rng.shuffle(places)
            while places:
                size = rng.randint(1, len(places))
                events.append((of, places[:size]))  # type: ignore[arg-type]
                del places[:size]
        rng.shuffle(events)
        for of, some in events:
            for _ in range(rng.choice((0, 0, 1, 5))):
                await asyncio.sleep(0)
            self._end(of, some)

    def _transfers(self, count: int) -> Transfers:
        asked = transfers([(self._rng.choice((DEBIT, IN)), A, 0, 1) for _ in range(count)])
        return Transfers(transfer_columns.columns(asked), Terms("main", USD, ""))

    def _end(self, of: Any, some: list[int]) -> None:
        rng = self._rng
        if isinstance(of, BulkCall):
            error = ledger_pb2.CallError(message=f"{some}")
            of.add(some[0], ledger_pb2.TransactionResult(error=error))
        elif len(some) == 1 and rng.random() < 0.5:
            of.outcomes.add_single(some[0], OutcomeUnknownError("?"))
        else:
            items = np.array(some, np.intp)
            failed = rng.random() < 0.2
            outcome = ShardUnavailableError("!") if failed else view(len(some), rng)
            of.outcomes.add_block(items, outcome)


@settings(deadline=None)
@given(
    columns=st.integers(0, 40),
    plain=st.integers(0, 20),
    alone=st.integers(0, 5),
    seed=st.integers(0, 2**32),
    least=st.sampled_from((1, 4, 64)),
)
def test_parts_say_together_what_the_whole_answer_says(
    columns: int, plain: int, alone: int, seed: int, least: int
) -> None:
    async def run() -> None:
        at_once = Scripted(columns, plain, alone, seed)
        await at_once.work()
        in_parts = Scripted(columns, plain, alone, seed)
        with patch.object(bulk_call, "PART_ITEMS_MIN", least):
            parts = [part async for part in in_parts.call.parts(in_parts.work())]
        assert joined(parts) == whole(await at_once.call.response())
        left = columns + plain + alone
        for part in parts:
            size = len(part.transaction_indexes) + len(part.transfer_indexes)
            assert size == left or size >= max(least, left / 2)
            left -= size

    asyncio.run(run())


async def test_work_that_breaks_ends_the_parts() -> None:
    call = BulkCall(2, None)

    async def work() -> None:
        call.add(0, ledger_pb2.TransactionResult())
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        [part async for part in call.parts(work())]


# On shards


class Parts:
    """A call that a test reads part by part."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def next(self) -> Part:
        async with asyncio.timeout(5):
            part = await self.call.read()
        assert isinstance(part, Part)
        return part

    async def rest(self) -> list[Part]:
        """All parts until the end; raises what the call ends with."""
        found = []
        async with asyncio.timeout(5):
            while (part := await self.call.read()) is not grpc.aio.EOF:
                found.append(part)
        return found

    async def error(self) -> Any:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.rest()
        return decode(caught.value)


def asked(stub: Any, request: Request, **options: Any) -> Parts:
    return Parts(stub.StreamCreateTransactions(request, **options))


def wide(count: int = 256) -> Request:
    """Transfers on all four shards, in turn."""
    return bulk(on_shards(count, 0, 1, 2, 3))


async def test_who_waits_for_one_shard_does_not_wait_for_another(
    stub: Any, shards: BulkShards
) -> None:
    shards.gates = {2: asyncio.Event(), 3: asyncio.Event()}
    parts = asked(stub, wide())
    first = await parts.next()
    assert {index % 4 for index in first.transfer_indexes} == {0, 1}
    assert len(first.transfer_indexes) == 128
    assert first.part.transfers.statuses == bytes([SETTLED]) * 128
    shards.gates[3].set()
    second = await parts.next()
    assert {index % 4 for index in second.transfer_indexes} == {3}
    shards.gates[2].set()
    assert {index % 4 for part in await parts.rest() for index in part.transfer_indexes} == {2}


async def test_too_few_for_a_part_wait_for_others(stub: Any, shards: BulkShards) -> None:
    shards.gates = {shard_id: asyncio.Event() for shard_id in range(4)}
    parts = asked(stub, wide())
    reading = asyncio.create_task(parts.next())
    shards.gates[0].set()
    await until(lambda: shards.at_work[-1] == 3)
    # The gateway has had time for a part: it has answered another call.
    await stub.CreateTransactions(bulk([(DEBIT, A, B, 5)]))
    assert not reading.done()
    shards.gates[1].set()
    assert len((await reading).transfer_indexes) == 128
    shards.gates[2].set()
    shards.gates[3].set()
    assert sum(len(part.transfer_indexes) for part in await parts.rest()) == 128


@pytest.mark.parametrize(
    "request_",
    [
        bulk(on_shards(256, 1)),
        wide(63),
        bulk([(DEBIT, A, B, 5)]),
        Request(transactions=[Single(account_id="x")] * 100),
    ],
)
async def test_one_shard_or_few_items_are_one_part(
    stub: Any, shards: BulkShards, request_: Request
) -> None:
    assert len(await asked(stub, request_).rest()) == 1


async def test_items_of_all_kinds(stub: Any, shards: BulkShards) -> None:
    """On one shard, between two, alone, wrong, and of a shard that is away."""
    request = bulk(
        [
            *on_shards(100, 0, 1, 2, 3),
            *((DEBIT, ACCOUNTS[n % 3][0], ACCOUNTS[n % 3 + 1][1], 7) for n in range(100)),
            (DEBIT, A, B, 2**51),
        ]
    )
    for number in range(40):
        account_id = "x" if number % 5 == 0 else f"{ACCOUNTS[number % 4][2]:016x}"
        request.transactions.add(account_id=account_id, amount=1, settled=number % 3 > 0)
    away = ShardUnavailableError("no leader")
    shards.answer = lambda call: (
        away if call.shard_id == 3 and isinstance(call.message, CreateTransfers) else None
    )
    transactions, of_transfers = joined(await asked(stub, request).rest())
    results, columns = whole(await stub.CreateTransactions(request))
    assert sorted(transactions) == sorted(results)
    assert sorted(of_transfers) == sorted(columns)
    for index, result in results.items():
        assert transactions[index].error == result.error
    for index, row in columns.items():
        error = None if row[-1] is None else row[-1].error
        told = of_transfers[index][-1]
        assert (of_transfers[index][1], told and told.error) == (row[1], error)


async def test_an_atomic_call_has_one_part(stub: Any, shards: BulkShards) -> None:
    items: list[Item] = [(DEBIT, A, B, 5), (DEBIT, A, B, 6)]
    request = bulk(items, request_ids=b"")
    request.atomic.request_id = "r"
    (part,) = await asked(stub, request).rest()
    assert part.part.atomic.status == SETTLED
    assert (list(part.transfer_indexes), list(part.transaction_indexes)) == ([], [])


# What fails a call as a whole


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (bulk([(DEBIT, A, B, 0)]).SerializeToString(), "INVALID_ARGUMENT", "transfers.amounts[0]"),
        (b"", "INVALID_ARGUMENT", "must be 1 to 8,192"),
        (b"\xff\xff", "INVALID_ARGUMENT", "not a valid protobuf message"),
        (bytes((2 << 20) + 1), "RESOURCE_EXHAUSTED", "at most 2,097,152 are taken"),
    ],
)
async def test_a_wrong_request_is_refused(
    channel: grpc.aio.Channel, shards: BulkShards, data: bytes, code: str, said: str
) -> None:
    error = await Parts(channel.unary_stream(METHOD)(data)).error()
    assert (error.code, said in error.message) == (code, True)
    assert shards.calls == []


async def test_a_wrong_source_is_refused(stub: Any, shards: BulkShards) -> None:
    metadata = [("x-correlation-id", "c" * 129)]
    error = await asked(stub, wide(), metadata=metadata).error()
    assert [name for name, _ in error.violations] == ["x-correlation-id"]
    await asked(stub, wide(), metadata=[("x-correlation-id", "batch 7")]).rest()
    assert {call.source.correlation_id for call in shards.calls} == {"batch 7"}


async def test_a_caller_that_does_not_read_its_answer_holds_no_room(
    gateway: GatewayServer, shards: BulkShards
) -> None:
    context = Mock(time_remaining=lambda: None, invocation_metadata=tuple, peer=str)
    parts = gateway._ledger_service.StreamCreateTransactions(wide(), context)
    shards.gates = {3: asyncio.Event()}
    reading = asyncio.ensure_future(anext(parts))
    await until(lambda: shards.at_work[-1] == 1)
    assert gateway._ledger_service._work.room._size
    assert len((await reading).transfer_indexes) == 192
    shards.gates[3].set()
    await until(lambda: not gateway._ledger_service._work.room._size)
    assert len((await anext(parts)).transfer_indexes) == 64


async def test_without_room_it_is_refused(
    stub: Any, gateway: GatewayServer, shards: BulkShards
) -> None:
    gateway._ledger_service._work.room = Room(1)
    shards.hold = asyncio.Event()
    parts = asked(stub, wide())
    await until(lambda: shards.at_work[-1] == 4)
    error = await asked(stub, wide()).error()
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    shards.hold.set()
    await parts.rest()
    await asked(stub, wide()).rest()


async def test_it_counts_as_a_call_until_its_end(stub: Any, shards: BulkShards) -> None:
    shards.hold = asyncio.Event()
    held = [asked(stub, wide()) for _ in range(3)]
    await until(lambda: shards.at_work[-1] == 4)
    error = await asked(stub, wide()).error()
    assert "concurrent calls" in error.message
    shards.hold.set()
    for parts in held:
        await parts.rest()
    await asked(stub, wide()).rest()


# Ends


@pytest.fixture
async def halfway(stub: Any, shards: BulkShards) -> AsyncIterator[Parts]:
    """A call with a part of its answer; what is on shard 3 is held."""
    shards.gates = {3: asyncio.Event()}
    parts = asked(stub, wide(), timeout=30)
    first = await parts.next()
    assert 3 not in {index % 4 for index in first.transfer_indexes}
    yield parts
    parts.call.cancel()


def idle(gateway: GatewayServer, shards: BulkShards) -> bool:
    """Whether nothing is left of what calls began."""
    return shards.at_work[-1] == 0 and gateway._ledger_service._work.room._size == 0


async def test_a_cancelled_call_leaves_nothing(
    halfway: Parts, gateway: GatewayServer, shards: BulkShards
) -> None:
    halfway.call.cancel()
    await until(lambda: idle(gateway, shards))
    assert shards.cancelled


async def test_at_the_deadline_the_others_are_told_that_it_is_unknown(
    stub: Any, gateway: GatewayServer, shards: BulkShards
) -> None:
    shards.gates = {3: asyncio.Event()}
    parts = await asked(stub, wide(), timeout=0.5).rest()
    _, results = joined(parts)
    assert sorted(results) == list(range(256))
    assert {results[index][-1].error.reason for index in range(3, 256, 4)} == {"OUTCOME_UNKNOWN"}
    await until(lambda: idle(gateway, shards))


async def test_a_bug_in_the_middle_is_an_incident(halfway: Parts, shards: BulkShards) -> None:
    shards.answer = lambda _: ACCOUNT_VIEW
    with capture_logs() as logs:
        shards.gates[3].set()
        error = await halfway.error()
    assert (error.code, error.reason) == ("INTERNAL", "INTERNAL")
    assert [log["incident"] for log in logs] == [error.metadata["incident"]]


async def test_a_stopping_gateway_finishes_what_is_in_work(
    halfway: Parts, gateway: GatewayServer, shards: BulkShards
) -> None:
    stopped = asyncio.create_task(gateway.stop(5))
    await until(gateway._ledger_service._stopping.is_set)
    shards.gates[3].set()
    rest = await halfway.rest()
    assert 3 in {index % 4 for part in rest for index in part.transfer_indexes}
    await stopped

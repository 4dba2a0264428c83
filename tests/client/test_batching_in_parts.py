"""Bulk calls that are answered in parts: who wakes when, and what breaks in the middle.

`test_batching` holds that callers notice nothing else of it.
"""

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from random import Random
from typing import Any

import grpc
import pytest
from bulk_gateway import BulkGateway, Part, Response, bulk_gateway, part_of, singles_of
from hypothesis import given
from hypothesis import strategies as st
from scripted_gateway import Failing
from test_batches import AWAY, Clock, answer, fill

from ledger.v1 import ledger_pb2
from ledger_client import (
    AsyncLedgerClient,
    InternalError,
    LedgerClient,
    LedgerError,
    ServerCancelledError,
    UnavailableError,
    UnimplementedError,
    _batches,
    credit,
    debit,
)
from ledger_client._batches import Batches
from ledger_client._bulk import TRANSACTIONS, Bulk
from ledger_client._items import Item

A, B = "0123456789abcdef", "fedcba9876543210"
TRANSFER: dict[str, Any] = {"entries": [debit(A, 5), credit(B, 5)], "settled": True}

Told = ledger_pb2.Transaction | LedgerError


@pytest.fixture(autouse=True)
def _all_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_batches, "PARTS_ITEMS_MIN", 2)
    monkeypatch.setattr(_batches, "_PATIENCE_S", 1_000.0)
    monkeypatch.setattr(_batches, "_FIRST_ATTEMPT_S", 1_000.0)


# The rules, without a network


class Asked:
    """A call of so many items that is under way."""

    def __init__(self, count: int, **options: object) -> None:
        self.clock = Clock()
        self.woken: list[Item] = []
        self.batches = Batches(TRANSACTIONS, self.woken.append, self.clock, jitter=lambda: 1.0)
        self.items = fill(self.batches, count, **options)
        call: Bulk
        (call,) = self.batches.take()
        assert self.batches.ask_in_parts(call)
        self.call = call
        self.response = answer(call)

    def tell(self, *transfers: int, errors: dict[int, ledger_pb2.CallError] | None = None) -> bool:
        """Answer a part; ``errors`` are by place in it."""
        part = part_of(self.response, [], list(transfers))
        for place, error in (errors or {}).items():
            columns = part.part.transfers
            columns.statuses = columns.statuses[:place] + b"\0" + columns.statuses[place + 1 :]
            columns.others[place].error.CopyFrom(error)
        return self.batches.answer_part(self.call, part)


def test_each_part_wakes_its_callers_at_once() -> None:
    asked = Asked(4)
    assert not asked.tell(2, 0)
    assert asked.woken == [asked.items[2], asked.items[0]]
    assert asked.tell(1, 3)
    assert asked.woken[2:] == [asked.items[1], asked.items[3]]


def test_what_is_asked_for_meanwhile_goes_out_together_at_the_end() -> None:
    asked = Asked(8)
    for some in ((0, 1, 2), (3, 4), (5, 6)):
        asked.tell(*some)
        fill(asked.batches, len(some))
        assert asked.batches.take() == []
    assert asked.tell(7)
    fill(asked.batches, 1)
    asked.batches.end(asked.call)
    assert [len(call) for call in asked.batches.take()] == [8]
    # The status of the stream comes behind.
    asked.batches.end_of_parts(asked.call)
    asked.batches.end(asked.call)
    assert asked.batches._items_ahead == 8


def test_a_call_is_slow_once_no_part_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_batches, "_PATIENCE_S", 1.0)
    asked = Asked(3)
    asked.clock.now_s += 0.9
    asked.tell(0)
    fill(asked.batches, 1)
    asked.clock.now_s += 0.9
    assert asked.batches.take() == []
    assert asked.batches.wake_at() == pytest.approx(asked.clock.now_s + 0.1)
    asked.clock.now_s += 0.2
    assert [len(call) for call in asked.batches.take()] == [1]


def test_small_calls_are_answered_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_batches, "PARTS_ITEMS_MIN", 5)
    batches = Batches(TRANSACTIONS, lambda _: None)
    fill(batches, 4)
    (call,) = batches.take()
    assert not batches.ask_in_parts(call)


def test_a_stream_that_breaks_is_tried_again_for_what_was_in_no_part() -> None:
    asked = Asked(4)
    asked.tell(1, 2)
    asked.batches.fail(asked.call, UnavailableError("UNAVAILABLE", "gone"))
    asked.batches.end(asked.call)
    assert asked.woken == asked.items[1:3]
    asked.clock.now_s += 1.0
    (again,) = asked.batches.take()
    assert list(again.items()) == [asked.items[0], asked.items[3]]


def test_what_is_to_be_tried_again_is_so_once_whatever_becomes_of_the_stream() -> None:
    asked = Asked(4)
    away = ledger_pb2.CallError(code=14, reason="SHARD_UNAVAILABLE", retry_delay_ms=1_000)
    asked.tell(1, 2, errors={0: away})
    asked.batches.fail(asked.call, AWAY)
    asked.batches.end(asked.call)
    assert asked.woken == [asked.items[2]]
    assert len(asked.batches) == 3
    asked.clock.now_s += 10.0
    sent = [one for call in asked.batches.take() for one in call.items()]
    assert sorted(sent, key=asked.items.index) == [asked.items[index] for index in (0, 1, 3)]


@pytest.mark.parametrize("status", ["INTERNAL", "INVALID_ARGUMENT"])
def test_what_is_certain_of_the_stream_is_asked_item_by_item(status: str) -> None:
    asked = Asked(3)
    asked.tell(1)
    told = asked.items[1].outcome
    asked.batches.fail(asked.call, InternalError(status, "a bug"))
    assert [one.outcome for one in asked.items] == [None, told, None]
    assert len(asked.woken) == 3


def test_what_is_in_no_part_of_a_whole_stream_is_asked_item_by_item() -> None:
    asked = Asked(3)
    asked.tell(1)
    asked.batches.end_of_parts(asked.call)
    assert asked.woken == [asked.items[1], asked.items[0], asked.items[2]]
    assert (asked.items[0].outcome, asked.items[2].outcome) == (None, None)


@pytest.mark.parametrize("torn", [[0, 0], [1, 2], [3], [0, 2**32 - 1]])
def test_a_part_of_something_else_is_asked_item_by_item(torn: list[int]) -> None:
    """An item twice, one that was in a part before, and one that is none."""
    asked = Asked(3)
    asked.tell(1)
    part = part_of(asked.response, [], [0] * len(torn))
    del part.transfer_indexes[:]
    part.transfer_indexes.extend(torn)
    asked.batches.answer_part(asked.call, part)
    assert asked.items[1].outcome is not None
    assert (asked.items[0].outcome, asked.items[2].outcome) == (None, None)
    assert len(asked.woken) == 3
    # What comes after it changes nothing.
    asked.tell(2)
    assert len(asked.woken) == 3


def test_a_part_without_its_results_is_asked_item_by_item() -> None:
    asked = Asked(2)
    asked.batches.answer_part(asked.call, Part(transfer_indexes=[0, 1], part=Response()))
    assert [one.outcome for one in asked.woken] == [None, None]


def test_deadlines_and_the_end_are_for_what_was_in_no_part() -> None:
    asked = Asked(3, deadline=101.0)
    asked.tell(0)
    asked.clock.now_s = 101.0
    asked.batches.expire()
    assert [one.outcome is None for one in asked.items] == [False] * 3
    assert len(asked.woken) == 3
    other = Asked(3)
    other.tell(0)
    other.batches.close()
    errors = [one.outcome for one in other.items[1:]]
    assert [type(error) for error in errors] == 2 * [ServerCancelledError]
    assert not isinstance(other.items[0].outcome, LedgerError)


def test_a_gateway_without_parts_is_asked_for_none_for_a_while() -> None:
    asked = Asked(3)
    assert asked.batches.has_no_parts(asked.call, UnimplementedError("UNIMPLEMENTED", ""))
    assert not asked.batches.ask_in_parts(asked.call)
    assert asked.batches.has_bulk
    # Without parts, it is bulk calls that there are none of.
    assert not asked.batches.has_no_parts(asked.call, UnimplementedError("UNIMPLEMENTED", ""))
    asked.clock.now_s += 60.0
    assert asked.batches.ask_in_parts(asked.call)


@given(count=st.integers(2, 30), singles=st.integers(0, 5), seed=st.integers(0, 2**32))
def test_each_item_wakes_once_with_its_own_result(count: int, singles: int, seed: int) -> None:
    rng = Random(seed)
    woken: list[Item] = []
    batches = Batches(TRANSACTIONS, woken.append)
    added = fill(batches, count) + fill(batches, singles, settled=False)
    call: Bulk
    (call,) = batches.take()
    whole = answer(call)
    whole.transfers.numbers[:] = range(1, count + 1)
    for index, result in enumerate(whole.results):
        result.transaction.amount = index
    items = [(0, index) for index in range(singles)] + [(1, index) for index in range(count)]
    rng.shuffle(items)
    left = len(items)
    while items:
        some = [items.pop() for _ in range(rng.randint(1, len(items)))]
        left -= len(some)
        part = part_of(whole, *([i for kind, i in some if kind == of] for of in (0, 1)))
        assert batches.answer_part(call, part) == (not left)
        assert len(woken) == count + singles - left
    assert set(woken) == set(added)
    numbers = [int(one.outcome.id[16:], 16) for one in call.transfers]
    assert numbers == list(range(1, count + 1))
    assert [one.outcome.amount for one in call.singles] == list(range(singles))


# Against a gateway


@pytest.fixture
def gateway() -> Iterator[BulkGateway]:
    with bulk_gateway() as running:
        running.part_sizes = lambda count: iter([count // 2, count])
        yield running


def async_calls(gateway: BulkGateway, count: int, rounds: int) -> list[Told]:
    async def run() -> list[Told]:
        async with AsyncLedgerClient(gateway.target, 60.0) as client:
            told: list[Told] = []
            for _ in range(rounds):
                ahead = client._connect().transactions.begin_single()
                assert ahead is not None
                calls = [client.create_transaction(**TRANSFER) for _ in range(count)]
                told += await asyncio.gather(*calls, return_exceptions=True)  # type: ignore[arg-type]
                client._connect().transactions.end_single(ahead)
            return told

    return asyncio.run(run())


def sync_calls(gateway: BulkGateway, count: int, rounds: int) -> list[Told]:
    def call(_: int) -> Told:
        try:
            return client.create_transaction(**TRANSFER)
        except LedgerError as error:
            return error

    with LedgerClient(gateway.target, 60.0) as client, ThreadPoolExecutor(count) as pool:
        told: list[Told] = []
        for _ in range(rounds):
            ahead = client._batches.begin_single()
            assert ahead is not None
            # So that the threads wait for each other, however they come.
            client._batches._batches._items_ahead = count
            told += pool.map(call, range(count))
            client._batches._batches._items_ahead = 1
            client._batches.end_single(ahead)
        return told


@pytest.fixture(params=[async_calls, sync_calls])
def together(request: pytest.FixtureRequest) -> Callable[..., list[Told]]:
    """Makes some calls at the same time, several times; they go out as one bulk call."""
    return request.param  # type: ignore[no-any-return]


def test_a_stream_that_breaks_is_tried_again_for_the_others(
    gateway: BulkGateway, together: Callable[..., list[Told]]
) -> None:
    broken: list[int] = []

    def before_part(left: int) -> Failing | None:
        if left == 5 and not broken:
            broken.append(left)
            return Failing(grpc.StatusCode.UNAVAILABLE)
        return None

    gateway.before_part = before_part
    told = together(gateway, 10, 1)
    assert len({made.id for made in told if isinstance(made, ledger_pb2.Transaction)}) == 10
    asked = [one.request_id for bulk in gateway.bulks for one in singles_of(bulk.transfers)]
    assert gateway.bulk_sizes[0] == 10
    assert (len(asked), len(set(asked[10:])), set(asked[10:]) < set(asked[:10])) == (15, 5, True)
    assert len(gateway.made) == 10


@pytest.fixture
def release(gateway: BulkGateway) -> Iterator[threading.Event]:
    """Lets the second half of answers come."""
    event = threading.Event()

    def before_part(left: int) -> None:
        if left == 5:
            event.wait(60.0)

    gateway.before_part = before_part
    yield event
    event.set()


async def test_the_first_callers_wake_before_the_others_have_an_answer(
    gateway: BulkGateway, release: threading.Event
) -> None:
    async with AsyncLedgerClient(gateway.target, 60.0) as client:
        client._connect().transactions.begin_single()
        calls = [asyncio.ensure_future(client.create_transaction(**TRANSFER)) for _ in range(10)]
        for first in itertools.islice(asyncio.as_completed(calls), 5):
            await first
        assert sum(call.done() for call in calls) == 5
        release.set()
        await asyncio.gather(*calls)


def test_so_do_threads(gateway: BulkGateway, release: threading.Event) -> None:
    with LedgerClient(gateway.target, 60.0) as client, ThreadPoolExecutor(10) as pool:
        client._batches.begin_single()
        client._batches._batches._items_ahead = 10
        calls = [pool.submit(client.create_transaction, **TRANSFER) for _ in range(10)]
        for _ in itertools.islice(as_completed(calls), 5):
            pass
        assert sum(call.done() for call in calls) == 5
        release.set()
        for call in calls:
            call.result()


def test_a_gateway_without_parts_is_used_without(
    gateway: BulkGateway, together: Callable[..., list[Told]]
) -> None:
    gateway.has_parts = False
    told = together(gateway, 10, 3)
    assert len({made.id for made in told if isinstance(made, ledger_pb2.Transaction)}) == 30
    assert gateway.bulk_sizes == [10, 10, 10]
    assert len(gateway.in_parts) == 1


def test_a_call_whose_answer_no_thread_can_read_is_made_item_by_item(
    gateway: BulkGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "ledger-client-parts":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    told = sync_calls(gateway, 10, 2)
    assert len({made.id for made in told if isinstance(made, ledger_pb2.Transaction)}) == 20
    assert len(gateway.made) == 20

"""The transactions of a ledger: lists of all shards in one order, none twice, none skipped."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import grpc
import msgspec
import pytest
from error_details import decode
from fake_shards import TRANSACTION_VIEW, Call, FakeShards
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.v1 import ledger_pb2
from ledger_core.accounts import TransactionStatus
from ledger_core.errors import Reason, ShardUnavailableError
from ledger_core.queries import GetLedger, ListLedgerTransactions, TransactionFilter
from ledger_core.results import Failure, LedgerTransactionPage, LedgerView, Result, TransactionView
from ledger_gateway import pagination
from ledger_gateway.ledger_transactions import ledger_transactions
from ledger_gateway.shard_calls import ShardCalls

BOOKS = LedgerView("books", "", [], [], 1, 1, 1)
PENDING = ledger_pb2.TRANSACTION_STATUS_PENDING


def view(shard_id: int, number: int, time_us: int, description: str = "") -> TransactionView:
    return msgspec.structs.replace(
        TRANSACTION_VIEW,
        account_id=shard_id,
        number=number,
        create_time_us=time_us,
        description=description or f"{time_us} {shard_id} {number}",
    )


@dataclass
class LedgerShards(FakeShards):
    """Shards that list transactions in the order of their numbers, backwards.

    A page looks at ``looks_max`` of them, and shows those that have ``shown`` in their description.
    """

    transactions: list[list[TransactionView]] = field(default_factory=list)
    looks_max: int = 100
    shown: str = ""

    def __post_init__(self) -> None:
        self.shard_count = len(self.transactions)
        self.answer = self._list

    def _list(self, call: Call) -> Result | Exception | None:
        query = call.message
        if isinstance(query, GetLedger):
            return BOOKS
        assert isinstance(query, ListLedgerTransactions)
        before = (query.before_us or 2**63, query.before_number)
        behind = [
            item
            for item in reversed(self.transactions[call.shard_id])
            if (item.create_time_us, item.number) < before
        ]
        looked: list[TransactionView] = []
        found: list[TransactionView] = []
        while len(looked) < min(self.looks_max, len(behind)) and len(found) < query.page_size:
            looked.append(behind[len(looked)])
            if self.shown in looked[-1].description:
                found.append(looked[-1])
        if len(looked) == len(behind):
            return LedgerTransactionPage(found, 0, 0, exhausted=True)
        last = looked[-1]
        return LedgerTransactionPage(found, last.create_time_us, last.number, exhausted=False)


class Context:
    def time_remaining(self) -> float | None:
        return None


def page(shards: FakeShards, size: int, token: str = "") -> ledger_pb2.ListTransactionsResponse:
    request = ledger_pb2.ListTransactionsRequest(ledger="books", page_size=size, page_token=token)
    context: Any = Context()
    return asyncio.run(ledger_transactions(ShardCalls(shards), request, context))


def all_pages(shards: LedgerShards, size: int) -> list[str]:
    """Go through all pages, within bounds; return the descriptions shown."""
    shown, token = [], ""
    for _ in range(10 + 2 * sum(map(len, shards.transactions))):
        answer = page(shards, size, token)
        assert len(answer.transactions) <= size
        assert [item.shard_id for item in answer.read_points] == shards.shard_ids()
        shown += [item.description for item in answer.transactions]
        token = answer.next_page_token
        if not token:
            return shown
    raise AssertionError("the pages do not end")


def expected(shards: LedgerShards) -> list[str]:
    ordered = sorted(
        (-item.create_time_us, shard_id, -item.number, item.description)
        for shard_id, items in enumerate(shards.transactions)
        for item in items
    )
    return [description for *_, description in ordered if shards.shown in description]


@st.composite
def ledgers(draw: st.DrawFn) -> LedgerShards:
    """One to five shards; times never fall, and many are equal, also on different shards."""
    transactions = []
    for shard_id in range(draw(st.integers(1, 5))):
        times = sorted(draw(st.lists(st.integers(1, 4), max_size=12)))
        transactions.append(
            [
                view(shard_id, number, time_us, draw(st.sampled_from(["", f"rare {number}"])))
                for number, time_us in enumerate(times, start=1)
            ]
        )
    return LedgerShards(
        transactions=transactions,
        looks_max=draw(st.integers(1, 12)),
        shown=draw(st.sampled_from(["", "rare"])),
    )


@settings(max_examples=300)
@given(ledgers(), st.integers(1, 7), st.integers(1, 3))
def test_everything_is_shown_once_in_one_order(
    shards: LedgerShards, size: int, rounds: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ledger_gateway.ledger_transactions._ROUNDS_MAX", rounds)
        patch.setattr("ledger_gateway.ledger_transactions._PER_CALL_MIN", 1)
        assert all_pages(shards, size) == expected(shards)


@given(ledgers(), st.integers(1, 7))
def test_what_is_new_does_not_disturb_the_pages(shards: LedgerShards, size: int) -> None:
    before, shown, token = expected(shards), [], ""
    for _ in range(10 + 2 * len(before)):
        answer = page(shards, size, token)
        shown += [item.description for item in answer.transactions]
        token = answer.next_page_token
        if not token:
            break
        for shard_id, items in enumerate(shards.transactions):
            items.append(view(shard_id, len(items) + 1, 5, "new rare"))
    assert shown == before


def test_one_round_is_enough_where_transactions_are_spread_evenly() -> None:
    """Each shard is asked once, and not for a whole page."""
    shards = LedgerShards(
        transactions=[
            [view(shard_id, number, 10 * number + shard_id) for number in range(1, 101)]
            for shard_id in range(4)
        ]
    )
    assert len(page(shards, 100).transactions) == 100
    assert [call.message.page_size for call in shards.calls] == [50] * 4  # type: ignore[union-attr]


def test_a_shard_that_has_it_all_is_asked_until_the_page_is_full() -> None:
    transactions = [[view(0, number, number) for number in range(1, 101)], [], [], []]
    shards = LedgerShards(transactions=transactions)
    assert len(page(shards, 100).transactions) == 100
    assert [call.shard_id for call in shards.calls] == [0, 1, 2, 3, 0]


def test_nothing_passes_a_shard_that_has_not_got_that_far() -> None:
    """Shard 1 looks at transactions that do not fit: older ones of shard 0 wait for it."""
    shards = LedgerShards(
        transactions=[
            [view(0, number, number, "rare") for number in range(1, 6)],
            [view(1, 1, 2, "rare"), *(view(1, number, 100 + number) for number in range(2, 60))],
        ],
        looks_max=5,
        shown="rare",
    )
    first = page(shards, 10)
    assert not first.transactions
    assert first.next_page_token
    # No more than 8 times each, and shard 0 once: what it has is not lost, but asked for again.
    assert [call.shard_id for call in shards.calls].count(1) == 8
    assert [call.shard_id for call in shards.calls].count(0) == 1
    shards.calls.clear()
    assert all_pages(shards, 10) == expected(shards)


def test_a_page_ends_before_it_is_too_big_for_a_client() -> None:
    long = "🪙" * 1_000
    shards = LedgerShards(
        transactions=[
            [view(shard_id, number, number, long) for number in range(1, 601)]
            for shard_id in range(2)
        ],
        looks_max=1_000,
    )
    first = page(shards, 1_000)
    assert 800 < len(first.transactions) < 1_000
    assert first.ByteSize() < pagination.PAGE_BYTES_MAX + 1_000
    rest = page(shards, 1_000, first.next_page_token)
    assert len(first.transactions) + len(rest.transactions) == 1_200
    assert not rest.next_page_token


def test_a_shard_that_makes_no_progress_is_a_fault_not_a_page() -> None:
    shards = FakeShards(shard_count=1)
    shards.result = LedgerTransactionPage([], 7, 3, exhausted=False)
    token = page(shards, 5).next_page_token
    with pytest.raises(RuntimeError, match="no further"):
        page(shards, 5, token)


async def test_the_request_goes_to_every_shard(stub: Any, shards: FakeShards) -> None:
    shards.answer = lambda call: BOOKS if isinstance(call.message, GetLedger) else None
    shards.result = LedgerTransactionPage([], 0, 0, exhausted=True)
    response = await stub.ListTransactions(
        ledger_pb2.ListTransactionsRequest(
            ledger="books", status=PENDING, metadata_key="k", consistency=2
        )
    )
    calls = [call for call in shards.calls if call.shard_id >= 0 and call.account_id == -1]
    wanted = TransactionFilter(TransactionStatus.PENDING, metadata_key="k")
    assert [call.message for call in calls] == [ListLedgerTransactions("books", 25, wanted)] * 4
    assert [call.stale for call in calls] == [True] * 4
    assert not response.HasField("read_point")
    assert [item.shard_id for item in response.read_points] == [0, 1, 2, 3]
    assert not response.next_page_token


async def test_the_ledger_is_main_where_nothing_is_named(stub: Any, shards: FakeShards) -> None:
    shards.result = LedgerTransactionPage([], 0, 0, exhausted=True)
    await stub.ListTransactions(ledger_pb2.ListTransactionsRequest())
    assert {call.message.ledger for call in shards.calls} == {"main"}  # type: ignore[union-attr]


async def test_a_ledger_that_is_not_there(stub: Any, shards: FakeShards) -> None:
    shards.result = Failure(Reason.LEDGER_NOT_FOUND, "there is no such ledger", "ledger")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListTransactions(ledger_pb2.ListTransactionsRequest(ledger="nothing"))
    error = decode(caught.value)
    assert (error.code, error.reason) == ("NOT_FOUND", "LEDGER_NOT_FOUND")
    assert [name for name, _ in error.violations] == ["ledger"]


async def test_a_shard_that_is_away_makes_the_list_unavailable(
    stub: Any, shards: FakeShards
) -> None:
    """A list with a hole in it would be wrong."""
    shards.result = LedgerTransactionPage([], 0, 0, exhausted=True)
    shards.answer = lambda call: ShardUnavailableError("away") if call.shard_id == 2 else None
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListTransactions(ledger_pb2.ListTransactionsRequest())
    assert decode(caught.value).reason == "SHARD_UNAVAILABLE"

"""Lanes: items of several calls share a block, and each call gets what became of its own."""

import asyncio
import gc
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bulk_shards import BulkShards
from fake_shards import until
from hypothesis import given
from hypothesis import strategies as st

from ledger_cluster.channels import EXECUTE_BYTES_MAX
from ledger_core.accounts import Direction
from ledger_core.commands import (
    ApplyTransfers,
    CommitTransfers,
    CreateTransfers,
    DeliveredTransfers,
    PrepareTransfers,
    Refused,
    Source,
    TransferText,
)
from ledger_core.errors import (
    LedgerError,
    OutcomeUnknownError,
    OverloadedError,
    Reason,
    ShardUnavailableError,
)
from ledger_core.ledgers import USD, Currency
from ledger_core.results import (
    BookView,
    Done,
    Failure,
    RefusalView,
    TransfersView,
    TransferVotesView,
)
from ledger_gateway import beats, block_lanes
from ledger_gateway.beats import Beats
from ledger_gateway.block_kinds import (
    APPLY,
    ASKED,
    COMMIT,
    CREATE,
    DECIDED,
    DELIVERED,
    PREPARE,
    block_terms,
    numbers_of,
)
from ledger_gateway.block_lanes import Answer, Kind, Lane, Piece, Round, join_rows
from ledger_gateway.shard_calls import Deadline, ShardCalls

TERMS = block_terms("main", USD)
EUROS = block_terms("main", Currency("EUR", 2))
RECORDED_US = 1_700_000_000_000_000


def piece(count: int, first: int = 1, **more: Any) -> Piece:
    """Items with the amounts ``first``, ``first`` + 1, …"""
    rows = np.zeros(count, ASKED)
    rows["first"], rows["second"] = 7, 8
    rows["form"] = 1
    rows["amount"] = np.arange(first, first + count)
    return Piece(rows, more.pop("size", 100 * count), **more)


class Given(Deadline):
    """A deadline so many seconds from now."""

    def __init__(self, seconds: float = 10.0) -> None:
        class Timed:
            def time_remaining(self) -> float:
                return seconds

        super().__init__(Timed())


class Asked(Round):
    """A round that remembers answers in the order in which they came."""

    def __init__(self, lane: Lane, seconds: float = 10.0) -> None:
        super().__init__(Given(seconds))
        self._lane = lane
        self.answers: list[Answer] = []

    def ask(self, piece: Piece, terms: object = TERMS) -> "Asked":
        self.put(self._lane, terms, piece, self.answers.append)
        return self

    @property
    def error(self) -> LedgerError:
        (found,) = self.answers
        assert isinstance(found, LedgerError)
        return found


@pytest.fixture
def shards() -> BulkShards:
    """They take every block, and do not look at the accounts."""
    shards = BulkShards(shard_count=1)
    shards.answer = shards.taken
    return shards


@pytest.fixture(autouse=True)
def _no_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bulk_shards.command_fault", lambda *_: None)


def lane_of(shards: BulkShards, kind: Kind = CREATE, in_flight_max: int = 1) -> Lane:
    return Lane(ShardCalls(shards), 0, kind, in_flight_max)


def amounts(shards: BulkShards) -> list[list[int]]:
    """The items of every block that was sent."""
    found = []
    for call in shards.calls:
        assert isinstance(call.message, CreateTransfers)
        found.append(np.frombuffer(call.message.amounts, "<i8").tolist())
    return found


# Joining and splitting


_refused = st.builds(Refused, st.integers(0, 1), st.integers(0, 9), st.integers(0, 9))
_refusal = st.builds(
    RefusalView,
    st.just("INSUFFICIENT_FUNDS"),
    st.integers(0, 1),
    st.integers(1, 9),
    st.integers(0, 9),
    st.integers(0, 9),
    st.text(max_size=3),
)
_other = st.builds(Failure, st.just(Reason.ACCOUNT_NOT_FOUND), st.text(max_size=3))
_sizes = st.lists(st.integers(1, 5), min_size=1, max_size=6)
_item = st.tuples(
    st.sampled_from(["settled", "refused", "other"]), _refusal, _other, st.integers(0, 1)
)


@given(_sizes, st.data(), st.integers(1, 1_000))
def test_every_item_gets_its_own_result_whatever_is_joined(
    sizes: list[int], data: st.DataObject, first_number: int
) -> None:
    items = data.draw(st.lists(_item, min_size=sum(sizes), max_size=sum(sizes)))
    books = [BookView("main", "USD", 2, 1), BookView("fx", "EUR", 2, 2)]
    view = TransfersView(
        RECORDED_US,
        first_number,
        bytes({"settled": 2, "refused": 4, "other": 0}[kind] for kind, *_ in items),
        {place: item[1] for place, item in enumerate(items) if item[0] == "refused"},
        {place: item[2] for place, item in enumerate(items) if item[0] == "other"},
        books,
        b"".join(bytes([book, 0]) for *_, book in items),
        bytes(Direction.DEBIT + book for *_, book in items),
    )
    found = CREATE.split(view, sizes)
    assert COMMIT.split(view, sizes) == found
    number, start = first_number, 0
    for size, of_piece in zip(sizes, found, strict=True):
        assert isinstance(of_piece, TransfersView)
        assert (of_piece.time_us, len(of_piece.statuses)) == (RECORDED_US, size)
        numbers = numbers_of(of_piece)
        for place, (kind, refusal, other, book) in enumerate(items[start : start + size]):
            assert of_piece.statuses[place] == {"settled": 2, "refused": 4, "other": 0}[kind]
            assert of_piece.refusals.get(place) == (refusal if kind == "refused" else None)
            assert of_piece.others.get(place) == (other if kind == "other" else None)
            assert of_piece.books[of_piece.book_places[2 * place]] == books[book]
            assert of_piece.sides[place] == Direction.DEBIT + book
            if kind != "other":
                assert numbers[place] == number
                number += 1
        start += size


@given(_sizes, st.data())
def test_a_block_has_the_items_of_its_pieces_with_their_texts_votes_and_sources(
    sizes: list[int], data: st.DataObject
) -> None:
    pieces, wanted = [], []
    for number, size in enumerate(sizes):
        places = st.sets(st.integers(0, size - 1))
        texts = {place: TransferText(f"{number}.{place}") for place in data.draw(places)}
        refused = {place: data.draw(_refused) for place in data.draw(places)}
        actor = data.draw(st.sampled_from("xy"))
        made = piece(size, 10 * number, texts=texts, refused=refused, actor=actor)
        made.source = Source(f"call of {actor}")
        pieces.append(made)
        wanted += [
            (10 * number + place, texts.get(place), refused.get(place), actor)
            for place in range(size)
        ]
    rows = join_rows([item.rows for item in pieces])
    for kind in (CREATE, PREPARE, COMMIT):
        command = kind.join(TERMS, pieces, rows)
        assert isinstance(command, CreateTransfers | PrepareTransfers | CommitTransfers)
        found = np.frombuffer(command.amounts, "<i8").tolist()
        actors = []
        for part in command.parts:
            assert part.source == Source(f"call of {part.actor}")
            actors += [part.actor] * part.count
        if isinstance(command, CreateTransfers) and not actors:
            assert command.source == Source(f"call of {command.actor}")
            actors = [command.actor] * len(found)
        votes = command.refused if isinstance(command, CommitTransfers) else None
        assert [
            (amount, command.texts.get(place), (votes or {}).get(place), actors[place])
            for place, amount in enumerate(found)
        ] == [
            (item[0], item[1], item[2] if votes is not None else None, item[3]) for item in wanted
        ]


@given(_sizes, st.data())
def test_every_item_gets_its_own_vote(sizes: list[int], data: st.DataObject) -> None:
    places = data.draw(st.sets(st.integers(0, sum(sizes) - 1)))
    refused = {place: Refused(1, place) for place in places}
    numbers = np.arange(sum(sizes), dtype="<u8")
    found = PREPARE.split(TransferVotesView(refused, numbers.tobytes()), sizes)
    start = 0
    for size, of_piece in zip(sizes, found, strict=True):
        assert of_piece == TransferVotesView(
            {place - start: refused[place] for place in places if start <= place < start + size},
            numbers[start : start + size].tobytes(),
        )
        start += size


def test_decisions_and_deliveries_are_joined() -> None:
    pieces = []
    for number in (1, 3):
        rows = np.zeros(2, DECIDED)
        rows["first"], rows["second"], rows["status"] = 5, 6, (2, 4)
        rows["number"] = (number, number + 1)
        pieces.append(Piece(rows, 10, refused={1: Refused(0, number)}))
    rows = join_rows([item.rows for item in pieces])
    apply = APPLY.join(TERMS, pieces, rows)
    assert isinstance(apply, ApplyTransfers)
    assert (apply.routing_id, apply.ledger) == (6, "main")
    assert np.frombuffer(apply.numbers, "<u8").tolist() == [1, 2, 3, 4]
    assert apply.statuses == bytes([2, 4, 2, 4])
    assert apply.refused == {1: Refused(0, 1), 3: Refused(0, 3)}
    delivered = DELIVERED.join(TERMS, pieces, rows)
    assert isinstance(delivered, DeliveredTransfers)
    assert (delivered.routing_id, delivered.numbers) == (5, apply.numbers)
    assert APPLY.split(Done(), [2, 2]) == [Done(), Done()]


# When blocks go


async def test_what_comes_in_together_goes_together_at_once(shards: BulkShards) -> None:
    lane = lane_of(shards)
    calls = [Asked(lane).ask(piece(2, first)) for first in (1, 3)]
    for call in calls:
        assert await call.wait()
    assert amounts(shards) == [[1, 2, 3, 4]]
    assert [view.first_number for call in calls for view in call.answers] == [1, 3]  # type: ignore[union-attr]
    assert lane.idle


async def test_what_comes_in_while_a_block_is_on_its_way_shares_the_next_one(
    shards: BulkShards,
) -> None:
    """A second block goes out beside it when that is worth its cost, and no third one."""
    lane, gate = lane_of(shards, in_flight_max=2), asyncio.Event()
    shards.gates = {0: gate}
    calls = [Asked(lane).ask(piece(1, 1))]
    await until(lambda: len(shards.calls) == 1)
    for first, count in ((100, 30), (200, 33)):
        calls.append(Asked(lane).ask(piece(count, first)))
        await asyncio.sleep(0.002)
    assert len(shards.calls) == 1
    calls.append(Asked(lane).ask(piece(1, 300)))
    await until(lambda: len(shards.calls) == 2)
    calls.append(Asked(lane).ask(piece(64, 400)))
    await asyncio.sleep(0.002)
    assert len(shards.calls) == 2
    gate.set()
    for call in calls:
        assert await call.wait()
    found = amounts(shards)
    assert [(block[0], len(block)) for block in found] == [(1, 1), (100, 64), (400, 64)]
    assert found[1][30] == 200
    assert shards.at_work_most[0] == 2


async def test_blocks_are_bounded_and_pieces_stay_whole_and_in_order(shards: BulkShards) -> None:
    lane = lane_of(shards)
    call = Asked(lane)
    sizes = [500, 500, 30, 1_024, 1]
    for number, size in enumerate(sizes):
        call.ask(piece(size, 2_000 * number))
    assert await call.wait()
    assert [len(block) for block in amounts(shards)] == [1_000, 30, 1_024, 1]
    assert [item // 2_000 for block in amounts(shards) for item in block] == [
        number for number, size in enumerate(sizes) for _ in range(size)
    ]


async def test_blocks_are_bounded_in_bytes(shards: BulkShards) -> None:
    call = Asked(lane_of(shards))
    for number in range(5):
        call.ask(piece(1, number, size=EXECUTE_BYTES_MAX * 2 // 5))
    assert await call.wait()
    assert amounts(shards) == [[0, 1], [2, 3], [4]]


async def test_blocks_are_of_one_ledger_and_currency_and_take_turns(shards: BulkShards) -> None:
    call = Asked(lane_of(shards))
    for first in (1, 1_001, 2_001):
        call.ask(piece(600, first))
    call.ask(piece(1, 9_000), EUROS)
    assert await call.wait()
    assert [(block[0], len(block)) for block in amounts(shards)] == [
        (1, 600),
        (9_000, 1),
        (1_001, 600),
        (2_001, 600),
    ]


async def test_deliveries_wait_for_each_other(shards: BulkShards) -> None:
    lane = lane_of(shards, DELIVERED)

    def delivered(count: int) -> Piece:
        return Piece(np.zeros(count, DECIDED), 8 * count)

    for _ in range(3):
        lane.put(TERMS, delivered(10))
        await asyncio.sleep(0.001)
    assert shards.calls == []
    await until(lambda: len(shards.calls) == 1)
    lane.put(TERMS, delivered(1))
    lane.put(TERMS, delivered(1_023))
    # A whole block goes at once.
    await asyncio.sleep(0.002)
    sent = [call.message for call in shards.calls]
    assert [len(item.numbers) // 8 for item in sent] == [30, 1_024]  # type: ignore[union-attr]


async def test_what_waits_is_bounded(shards: BulkShards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_lanes, "WAITING_ITEMS_MAX", 10)
    shards.gates = {0: asyncio.Event()}
    lane = lane_of(shards)
    first = Asked(lane).ask(piece(5))
    await until(lambda: len(shards.calls) == 1)
    waiting, refused = Asked(lane).ask(piece(10)), Asked(lane).ask(piece(1))
    assert await refused.wait()
    assert isinstance(refused.error, OverloadedError)
    shards.gates[0].set()
    assert await first.wait()
    assert await waiting.wait()
    assert len(shards.calls) == 2


async def test_what_is_answered_leaves_nothing_to_the_garbage_collector(
    shards: BulkShards,
) -> None:
    lane = lane_of(shards)
    gc.disable()
    try:
        calls = [Asked(lane).ask(piece(2, first)) for first in (1, 3)]
        for call in calls:
            assert await call.wait()
        found = [weakref.ref(call) for call in calls]
        del call, calls
        assert [one() for one in found] == [None, None]
    finally:
        gc.enable()


# Failures


@pytest.mark.parametrize(
    "error", [OutcomeUnknownError("who knows"), ShardUnavailableError("gone"), OverloadedError("!")]
)
async def test_a_block_that_fails_fails_for_all_that_are_in_it(
    shards: BulkShards, error: LedgerError
) -> None:
    shards.answer = lambda _: error
    lane = lane_of(shards)
    calls = [Asked(lane).ask(piece(1)) for _ in range(2)]
    for call in calls:
        assert await call.wait()
        assert call.error is error
    assert lane.idle


async def test_an_answer_that_makes_no_sense_is_raised_in_every_call(shards: BulkShards) -> None:
    shards.answer = lambda _: Done()
    lane = lane_of(shards)
    calls = [Asked(lane).ask(piece(1)) for _ in range(2)]
    for call in calls:
        with pytest.raises(TypeError, match="expected TransfersView"):
            await call.wait()
    short = TransfersView(1, 1, b"\2", {}, {})
    shards.answer = lambda _: short
    with pytest.raises(TypeError, match="1 results for 2 transfers"):
        await Asked(lane).ask(piece(2)).wait()


async def hasty_and_patient(
    shards: BulkShards, *, ahead: bool = False
) -> tuple[Asked, Asked, Lane]:
    """Two calls of which the first gives up; they share a block, or wait behind another one."""
    shards.gates = {0: asyncio.Event()}
    lane = lane_of(shards)
    if ahead:
        Asked(lane).ask(piece(1, 100))
        await until(lambda: len(shards.calls) == 1)
    hasty, patient = Asked(lane, seconds=0.05).ask(piece(2, 1)), Asked(lane).ask(piece(2, 3))
    assert await hasty.wait()
    return hasty, patient, lane


async def test_who_gives_up_what_may_have_arrived_does_not_know(shards: BulkShards) -> None:
    hasty, patient, lane = await hasty_and_patient(shards)
    assert isinstance(hasty.error, OutcomeUnknownError)
    assert not lane.idle
    shards.gates[0].set()
    assert await patient.wait()
    assert amounts(shards) == [[1, 2, 3, 4]]
    (view,) = patient.answers
    assert isinstance(view, TransfersView)
    assert view.first_number == 3


async def test_who_gives_up_in_line_knows_that_nothing_was_done(shards: BulkShards) -> None:
    hasty, patient, _ = await hasty_and_patient(shards, ahead=True)
    assert isinstance(hasty.error, ShardUnavailableError)
    assert "nothing was done" in hasty.error.message
    shards.gates[0].set()
    assert await patient.wait()
    assert amounts(shards) == [[100], [3, 4]]


async def test_what_has_reached_no_node_is_taken_out_of_its_block(shards: BulkShards) -> None:
    shards.reached_node = False
    hasty, patient, _ = await hasty_and_patient(shards)
    assert isinstance(hasty.error, ShardUnavailableError)
    assert "no node was tried); nothing was done" in hasty.error.message
    await until(lambda: shards.cancelled)
    shards.gates[0].set()
    assert await patient.wait()
    assert amounts(shards) == [[1, 2, 3, 4], [3, 4]]


async def test_a_block_for_which_nobody_waits_is_sent_no_more(shards: BulkShards) -> None:
    shards.gates = {0: asyncio.Event()}
    lane = lane_of(shards)
    calls = [asyncio.ensure_future(Asked(lane).ask(piece(1)).wait()) for _ in range(2)]
    await until(lambda: len(shards.calls) == 1)
    calls[0].cancel()
    await asyncio.sleep(0.002)
    assert not shards.cancelled
    calls[1].cancel()
    await until(lambda: shards.cancelled)
    assert lane.idle


async def test_a_block_that_is_called_off_before_it_was_sent_holds_up_no_other_lane(
    shards: BulkShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In this time no beat is held for too long, and none has taken any.
    monkeypatch.setattr(beats, "time", SimpleNamespace(monotonic=lambda: 1_000.0))
    shared, calls = Beats(), ShardCalls(shards)
    hasty, other = (Lane(calls, 0, CREATE, beats=shared) for _ in range(2))
    given_up = piece(1, 1)
    hasty.put(TERMS, given_up)
    await asyncio.sleep(0)
    assert given_up.block is not None  # its task has been made, and has not taken a step
    hasty.give_up(given_up)
    await asyncio.sleep(0)
    other.put(TERMS, piece(1, 2))
    for _ in range(20):  # passes of the event loop, in which no timer goes off
        await asyncio.sleep(0)
    assert amounts(shards) == [[2]]


async def test_a_cancelled_call_leaves_the_line(shards: BulkShards) -> None:
    shards.gates = {0: asyncio.Event()}
    lane = lane_of(shards)
    first = Asked(lane).ask(piece(1, 1))
    await until(lambda: len(shards.calls) == 1)
    cancelled = asyncio.ensure_future(Asked(lane).ask(piece(1, 2)).wait())
    third = Asked(lane).ask(piece(1, 3))
    await asyncio.sleep(0.002)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    shards.gates[0].set()
    assert await first.wait()
    assert await third.wait()
    assert amounts(shards) == [[1], [3]]


@pytest.mark.parametrize(("kind", "of_kind"), [(COMMIT, ASKED), (APPLY, DECIDED)])
async def test_what_cannot_be_taken_back_goes_on_when_its_caller_has_gone(
    shards: BulkShards, kind: Kind, of_kind: np.dtype[np.void]
) -> None:
    shards.gates = {0: asyncio.Event()}
    late: list[Answer] = []
    call = Asked(lane_of(shards, kind), seconds=0.03)
    call.ask(Piece(np.zeros(2, of_kind), 10, late=late.append))
    assert await call.wait()
    assert isinstance(call.error, OutcomeUnknownError)
    (sent,) = shards.calls
    assert 4 < sent.timeout_s < 6
    shards.gates[0].set()
    await until(lambda: bool(late))
    assert not isinstance(late[0], Exception)


async def test_a_commit_in_line_is_taken_back_and_a_decision_is_not(shards: BulkShards) -> None:
    for kind, of_kind, error in (
        (COMMIT, ASKED, ShardUnavailableError),
        (APPLY, DECIDED, OutcomeUnknownError),
    ):
        shards.calls.clear()
        shards.gates = {0: asyncio.Event()}
        lane = lane_of(shards, kind)
        first = Asked(lane).ask(Piece(np.zeros(1, of_kind), 10))
        await until(lambda: len(shards.calls) == 1)
        call = Asked(lane, seconds=0.02).ask(Piece(np.zeros(1, of_kind), 10, late=_ignore))
        assert await call.wait()
        assert isinstance(call.error, error)
        shards.gates[0].set()
        assert await first.wait()
        await until(lambda lane=lane: lane.idle)  # type: ignore[misc]
        assert len(shards.calls) == (1 if kind is COMMIT else 2)


def _ignore(answer: Answer) -> None:
    """Somebody is told, but nothing is to be done."""

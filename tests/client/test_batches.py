"""What goes out when, and what becomes of it: the rules of batching, without a network."""

from uuid import UUID

import pytest

from ledger.v1 import ledger_pb2
from ledger_client import (
    DeadlineExceededError,
    InternalError,
    LedgerError,
    NotFoundError,
    ResourceExhaustedError,
    ServerCancelledError,
    UnavailableError,
    UnimplementedError,
    _batches,
    credit,
    debit,
)
from ledger_client._batches import Batches
from ledger_client._bulk import TRANSACTIONS, Bulk
from ledger_client._items import Item, item_of, items
from ledger_client._requests import create_transaction
from ledger_core.ids import shard_key

A, B = "0123456789abcdef", "fedcba9876543210"
AWAY = UnavailableError("UNAVAILABLE", "no leader", reason="SHARD_UNAVAILABLE", retry_delay_s=1.0)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def woken() -> list[Item]:
    return []


@pytest.fixture
def batches(clock: Clock, woken: list[Item]) -> Batches:
    return Batches(TRANSACTIONS, woken.append, clock, jitter=lambda: 1.0)


def new(deadline: float = 110.0, **options: object) -> Item:
    given = {
        "account_id": "",
        "amount": 0,
        "description": "",
        "settled": True,
        "entries": [debit(A, 5), credit(B, 5)],
    } | options
    (made,) = items([given])
    assert isinstance(made, Item)
    made.deadline = deadline
    return made


def fill(batches: Batches, count: int, **options: object) -> list[Item]:
    added = [new(**options) for _ in range(count)]
    for one in added:
        batches.add(one)
    return added


def take(batches: Batches) -> list[int]:
    return [len(call) for call in batches.take()]


def answer(call: Bulk) -> ledger_pb2.CreateTransactionsResponse:
    made = ledger_pb2.TransactionResult(transaction=ledger_pb2.Transaction(id=A + A))
    response = ledger_pb2.CreateTransactionsResponse(results=[made] * len(call.singles))
    count = len(call.transfers)
    columns = response.transfers
    columns.statuses = bytes([ledger_pb2.TRANSACTION_STATUS_SETTLED]) * count
    columns.first_directions = bytes(count)
    for column in (columns.numbers, columns.create_times_us, columns.book_indexes):
        column.extend([0] * count)
    columns.books.add()
    return response


def test_with_nothing_under_way_all_that_waits_goes_at_once(batches: Batches) -> None:
    assert batches.is_idle
    fill(batches, 3)
    assert not batches.is_idle
    assert take(batches) == [3]
    assert not batches.is_idle


def test_others_gather_until_as_many_wait_as_are_under_way(batches: Batches) -> None:
    fill(batches, 4)
    assert take(batches) == [4]
    fill(batches, 3)
    assert take(batches) == []
    fill(batches, 1)
    assert take(batches) == [4]


def test_an_answer_lets_those_go_that_wait(batches: Batches) -> None:
    fill(batches, 4)
    (call,) = batches.take()
    fill(batches, 1)
    assert take(batches) == []
    batches.answer(call, answer(call))
    batches.end(call)
    assert take(batches) == [1]


def test_a_single_call_of_its_caller_counts_as_under_way(batches: Batches) -> None:
    call = batches.begin_single()
    assert not batches.is_idle
    fill(batches, 1)
    assert take(batches) == [1]
    fill(batches, 1)
    assert take(batches) == []
    batches.end(call)
    assert take(batches) == [1]


def test_no_more_calls_are_under_way_than_allowed(batches: Batches) -> None:
    calls = []
    for _ in range(_batches.CALLS_MAX):
        fill(batches, 16 * 2 ** len(calls))
        calls += batches.take()
    fill(batches, 10_000)
    assert len(calls) == _batches.CALLS_MAX
    assert take(batches) == []
    batches.end(calls[0])
    assert take(batches) == [_batches.ITEMS_MAX]


def test_a_call_has_a_bounded_number_of_items_in_their_order(batches: Batches) -> None:
    added = fill(batches, _batches.ITEMS_MAX + 5)
    calls = batches.take()
    assert [len(call) for call in calls] == [_batches.ITEMS_MAX]
    assert list(calls[0].items()) == added[: _batches.ITEMS_MAX]


def test_a_call_has_a_bounded_size(batches: Batches) -> None:
    fill(batches, 5_000, description="x" * 1_000)
    call, *_ = batches.take()
    size = call.request().ByteSize()
    assert 0.8 * _batches.BYTES_MAX < size <= _batches.BYTES_MAX


def test_a_call_of_messages_has_a_bounded_size(batches: Batches) -> None:
    fill(batches, 5_000, description="x" * 1_000, settled=False)
    call, *_ = batches.take()
    assert 0.9 * _batches.BYTES_MAX < call.request().ByteSize() <= _batches.BYTES_MAX


def test_a_slow_call_no_longer_holds_the_others_back(batches: Batches, clock: Clock) -> None:
    fill(batches, 100)
    (slow,) = batches.take()
    fill(batches, 1)
    assert take(batches) == []
    wake_at = batches.wake_at()
    assert wake_at is not None
    clock.now_s = wake_at
    assert take(batches) == [1]
    assert batches.wake_at() is None
    batches.end(slow)
    fill(batches, 1)
    assert take(batches) == [1]


def test_slow_calls_are_bounded_and_each_makes_others_wait_longer(
    batches: Batches, clock: Clock
) -> None:
    pauses: list[float] = []
    while True:
        fill(batches, 1, deadline=1e9)
        if not batches.take():
            break
        fill(batches, 1, deadline=1e9)
        while not batches.is_idle and (wake_at := batches.wake_at()) is not None:
            pauses.append(wake_at - clock.now_s)
            clock.now_s = wake_at
            if batches.take():
                break
    assert len(batches._under_way) == _batches._ALL_CALLS_MAX
    assert pauses[0] == pytest.approx(_batches._PATIENCE_S)
    assert sum(pauses) > 10.0


def test_the_queue_is_bounded(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_batches, "WAITING_MAX", 10)
    fill(batches, 10)
    with pytest.raises(ResourceExhaustedError, match="nothing was done"):
        fill(batches, 1)
    assert take(batches) == [10]
    fill(batches, 1)


def test_what_nobody_waits_for_is_not_sent(batches: Batches) -> None:
    first, second = fill(batches, 2)
    first.done = True
    (call,) = batches.take()
    assert list(call.items()) == [second]


def test_what_nobody_waits_for_any_longer_gets_no_result(
    batches: Batches, woken: list[Item]
) -> None:
    first, second = fill(batches, 2)
    (call,) = batches.take()
    first.done = True
    batches.answer(call, answer(call))
    assert woken == [second]
    assert first.outcome is None


@pytest.mark.parametrize(
    ("options", "is_transfer"),
    [
        ({}, True),
        ({"entries": [credit(A, 5), debit(B, 5)]}, True),
        ({"entries": [debit(A, 5, "EUR"), credit(B, 5, "EUR")], "ledger": "books"}, True),
        ({"entries": (), "account_id": A, "amount": 5}, True),
        ({"entries": (), "account_id": A, "amount": -5}, True),
        ({"request_id": "01980000-0000-7000-8000-000000000000"}, True),
        ({"description": "d", "external_reference": "r", "metadata": {"k": "v"}}, True),
        ({"actor": "me"}, True),
        ({"settled": False}, False),
        ({"dry_run": True}, False),
        ({"request_id": "order 1"}, False),
        ({"request_id": "01980000-0000-7000-8000-00000000000A"}, False),
        ({"entries": [debit(A, 5, "USD"), credit(B, 5)]}, False),
        ({"entries": [debit(A, 5), credit(B, 6)]}, False),
        ({"entries": [debit(A, 5), debit(B, 5)]}, False),
        ({"entries": [debit(A, 5), credit(A, 5)]}, False),
        ({"entries": [debit(A, 5), credit("0" * 16, 5)]}, False),
        ({"entries": [debit(A, 5), credit("x", 5)]}, False),
        ({"entries": [debit(A, 0), credit(B, 0)]}, False),
        ({"entries": [debit(A, 2**50), credit(B, 2**50)]}, False),
        ({"entries": [debit(A, 5, expected_version=0), credit(B, 5)]}, False),
        ({"entries": [debit(A, 5), credit(B, 5, minimum_balance=0)]}, False),
        ({"entries": [debit(A, 5), credit(B, 5, maximum_balance=0)]}, False),
        ({"entries": [debit(A, 5), credit(B, 2), credit(B, 3)]}, False),
        ({"entries": (), "account_id": A, "amount": 0}, False),
        ({"entries": (), "account_id": A, "amount": 5, "ledger": "books"}, False),
        ({"account_id": A}, False),
        ({"amount": 5}, False),
        # Wrong: as a column, one would fail all others of its call.
        ({"description": "x" * 1_001}, False),
        ({"external_reference": "x" * 257}, False),
        ({"external_reference": "\n"}, False),
        ({"metadata": {"": "v"}}, False),
        ({"metadata": {"k": "v" * 257}}, False),
        ({"metadata": {f"k{n}": "" for n in range(33)}}, False),
        ({"actor": "x" * 129}, False),
        ({"actor": "\0"}, False),
        ({"ledger": "Books"}, False),
        ({"entries": [debit(A, 5, "usd"), credit(B, 5, "usd")]}, False),
    ],
)
def test_what_travels_as_columns_is_asked_for_as_by_a_single_call(
    options: dict[str, object], is_transfer: bool
) -> None:
    made = new(**options)
    assert (made.request is None) == is_transfer
    asked = made.single()
    given = {
        "account_id": "",
        "amount": 0,
        "description": "",
        "settled": True,
        "entries": [debit(A, 5), credit(B, 5)],
        "ledger": "",
        "external_reference": "",
        "effective_time": None,
        "expire_time": None,
        "metadata": None,
        "actor": "",
        "dry_run": False,
        "request_id": asked.request_id,
    } | options
    assert asked == create_transaction(**given)  # type: ignore[arg-type]
    again = item_of(asked)
    assert (again.request is None, again.single()) == (is_transfer, asked)


def test_a_request_without_an_id_is_given_one_and_is_not_changed() -> None:
    request = ledger_pb2.CreateTransactionRequest(account_id=A, amount=5, settled=False)
    made = item_of(request)
    assert made.single().request_id
    assert not request.request_id


def test_groups_that_are_large_go_in_calls_of_their_own(batches: Batches) -> None:
    fill(batches, 50, actor="one")
    fill(batches, 60, actor="two")
    fill(batches, 3, actor="three")
    fill(batches, 2, settled=False)
    two, one = batches.take()
    assert {found.group[2] for found in two.transfers} == {"two"}
    assert {found.group[2] for found in one.transfers} == {"one"}
    # Of two messages, and three transfers that are not worth columns.
    assert (len(two.transfers), len(two.singles), len(one.transfers)) == (60, 5, 50)
    assert len(one.singles) == 0
    request = two.request()
    assert (request.transfers.actor, len(request.transactions)) == ("two", 5)


def test_what_failed_for_now_rests_and_goes_out_again_by_itself(
    batches: Batches, clock: Clock
) -> None:
    (first,) = fill(batches, 1)
    (call,) = batches.take()
    batches.fail(call, AWAY)
    batches.end(call)
    assert not first.done
    wake_at = batches.wake_at()
    assert wake_at is not None
    assert wake_at - clock.now_s == pytest.approx(1.05)
    (second,) = fill(batches, 1)
    (other,) = batches.take()
    assert list(other.items()) == [second]
    batches.end(other)
    clock.now_s = wake_at
    (again,) = batches.take()
    assert list(again.items()) == [first]
    assert again.request().transfers.request_ids == first.key


def test_one_item_fails_alone(batches: Batches, woken: list[Item]) -> None:
    bad, away, good = fill(batches, 3)
    (call,) = batches.take()
    response = answer(call)
    columns = response.transfers
    columns.statuses = bytes([0, 0, columns.statuses[2]])
    columns.others[0].error.CopyFrom(ledger_pb2.CallError(code=5, reason="GONE", message="gone"))
    columns.others[1].error.CopyFrom(ledger_pb2.CallError(code=14, retry_delay_ms=250))
    batches.answer(call, response)
    assert woken == [bad, good]
    assert isinstance(bad.outcome, NotFoundError)
    assert not away.done
    assert isinstance(away.error, UnavailableError)
    assert away.error.retry_delay_s == 0.25


def test_an_item_is_tried_until_its_own_deadline(
    batches: Batches, clock: Clock, woken: list[Item]
) -> None:
    (soon,) = fill(batches, 1, deadline=101.0)
    (late,) = fill(batches, 1, deadline=110.0)
    (call,) = batches.take()
    batches.fail(call, AWAY)
    assert woken == [soon]
    assert isinstance(soon.outcome, UnavailableError)
    assert soon.outcome.reason == "SHARD_UNAVAILABLE"
    assert not late.done


def failing(call: Bulk, *places: int) -> ledger_pb2.CreateTransactionsResponse:
    """An answer in which some transfers have no result."""
    response = answer(call)
    columns = response.transfers
    columns.statuses = bytes(0 if at in places else 2 for at in range(len(call)))
    for at in places:
        columns.others[at].error.CopyFrom(ledger_pb2.CallError(code=14, retry_delay_ms=100))
    return response


def test_accounts_of_a_shard_that_is_away_go_aside_until_it_is_back(
    batches: Batches, clock: Clock
) -> None:
    there = {"entries": [debit(B, 5), credit(A, 5)]}
    (first,) = fill(batches, 1)
    fill(batches, 1, **there)
    (call,) = batches.take()
    batches.answer(call, failing(call, 0))
    batches.end(call)
    # New ones for the same account, and for others.
    (second,) = fill(batches, 1)
    fill(batches, 1, **there)
    aside, other = batches.take()
    assert list(aside.items()) == [second]
    assert batches.timeout_s(aside) == 5.0
    assert batches.timeout_s(other) == pytest.approx(0.5, rel=0.01)
    # Those wait for nothing that is aside.
    batches.answer(other, answer(other))
    batches.end(other)
    assert batches.is_idle
    batches.answer(aside, answer(aside))
    batches.end(aside)
    fill(batches, 1)
    fill(batches, 1, **there)
    assert take(batches) == [2]
    assert not first.done


def test_one_call_aside_at_a_time_for_each_part_of_the_keys(batches: Batches) -> None:
    fill(batches, 1)
    (call,) = batches.take()
    batches.answer(call, failing(call, 0))
    fill(batches, 1)
    (call,) = batches.take()
    fill(batches, 2)
    assert take(batches) == []
    batches.end(call)
    assert take(batches) == [2]


def test_a_call_without_an_answer_in_time_is_sorted_out_aside(
    batches: Batches, clock: Clock, woken: list[Item]
) -> None:
    homes = [f"{number:016x}" for number in range(1, 201)]
    added = [fill(batches, 1, entries=[debit(home, 5), credit(A, 5)])[0] for home in homes]
    (call,) = batches.take()
    batches.fail(call, DeadlineExceededError("DEADLINE_EXCEEDED", "no answer"))
    batches.end(call)
    clock.now_s = batches.wake_at() or 0.0
    calls = batches.take()
    # Each has a part of the keys, so that what is well is not held up.
    assert len(calls) == 16
    assert all(batches.timeout_s(call) > 1.0 for call in calls)
    lanes = [{shard_key(item.first) >> 28 for item in call.items()} for call in calls]
    assert all(len(lane) == 1 for lane in lanes)
    for call in calls[1:]:
        batches.answer(call, answer(call))
        batches.end(call)
    waiting = list(calls[0].items())
    assert len(woken) == len(added) - len(waiting)
    # What is new goes aside for the part that is still away, and for no other.
    fill(batches, 1, entries=[debit(f"{waiting[0].first:016x}", 5), credit(A, 5)])
    assert take(batches) == []
    fill(batches, 1, entries=[debit(f"{woken[0].first:016x}", 5), credit(A, 5)])
    (call,) = batches.take()
    assert [item.first for item in call.items()] == [woken[0].first]
    assert batches.timeout_s(call) == pytest.approx(4.0, rel=0.9)


def test_first_attempts_have_a_multiple_of_the_usual_time(batches: Batches, clock: Clock) -> None:
    timeouts = []
    for _ in range(40):
        fill(batches, 1, deadline=clock.now_s + 60.0)
        (call,) = batches.take()
        timeouts.append(batches.timeout_s(call))
        clock.now_s += 0.5
        batches.answer(call, answer(call))
        batches.end(call)
    assert timeouts[0] == pytest.approx(0.5, rel=0.01)
    assert timeouts == sorted(timeouts)
    assert timeouts[-1] == pytest.approx(4.0, rel=0.1)
    # Calls that wait for a shard that is away tell nothing.
    fill(batches, 1, deadline=clock.now_s + 60.0)
    (call,) = batches.take()
    clock.now_s += 10.0
    batches.answer(call, failing(call, 0))
    batches.end(call)
    fill(batches, 1, entries=[debit(B, 5), credit(A, 5)], deadline=clock.now_s + 60.0)
    (call,) = batches.take()
    assert batches.timeout_s(call) == pytest.approx(4.0, rel=0.1)


def test_an_open_outcome_stays_open(batches: Batches, clock: Clock) -> None:
    (one,) = fill(batches, 1, deadline=103.0)
    for error in (DeadlineExceededError("DEADLINE_EXCEEDED", "who knows"), AWAY, AWAY, AWAY):
        if calls := batches.take():
            batches.fail(calls[0], error)
            batches.end(calls[0])
        clock.now_s = batches.wake_at() or clock.now_s
    assert isinstance(one.outcome, DeadlineExceededError)
    assert one.outcome.message == "who knows"


@pytest.mark.parametrize(
    "error", [InternalError("INTERNAL", "bug"), ResourceExhaustedError("RESOURCE_EXHAUSTED", "big")]
)
def test_what_is_certain_of_a_call_is_asked_item_by_item(
    batches: Batches, woken: list[Item], error: LedgerError
) -> None:
    added = fill(batches, 3)
    (call,) = batches.take()
    batches.fail(call, error)
    assert woken == added
    assert {one.outcome for one in added} == {None}
    assert batches.has_bulk


def test_an_answer_to_something_else_is_asked_item_by_item(
    batches: Batches, woken: list[Item]
) -> None:
    added = fill(batches, 3)
    (call,) = batches.take()
    batches.answer(call, ledger_pb2.CreateTransactionsResponse())
    assert woken == added
    assert {one.outcome for one in added} == {None}


def test_a_gateway_without_bulk_calls_is_asked_for_none_for_a_while(
    batches: Batches, clock: Clock
) -> None:
    fill(batches, 1)
    (call,) = batches.take()
    batches.fail(call, UnimplementedError("UNIMPLEMENTED", ""))
    assert not batches.has_bulk
    clock.now_s += 60.0
    assert batches.has_bulk


def test_deadlines_end_what_waits_and_what_is_under_way(
    batches: Batches, clock: Clock, woken: list[Item]
) -> None:
    sent = fill(batches, 2, deadline=101.0)
    batches.take()
    (queued,) = fill(batches, 1, deadline=102.0)
    (last,) = fill(batches, 1, deadline=103.0)
    assert batches.expire() == 101.0
    clock.now_s = 101.0
    assert batches.expire() == 102.0
    assert woken == sent
    clock.now_s = 102.0
    assert batches.expire() == 103.0
    errors = [one.outcome for one in (*sent, queued)]
    assert [type(error) for error in errors] == 3 * [DeadlineExceededError]
    assert "may or may not" in str(errors[0])
    assert "nothing was done" in str(errors[2])
    # Each of them has an error, and a traceback, of its own.
    assert errors[0] is not errors[1]
    assert not last.done


def test_closing_ends_everything(batches: Batches, woken: list[Item]) -> None:
    (sent,) = fill(batches, 1)
    (call,) = batches.take()
    (resting,) = fill(batches, 1)
    (other,) = batches.take()
    batches.fail(other, AWAY)
    batches.end(other)
    (queued, _) = fill(batches, 2)
    batches.close()
    assert len(woken) == 4
    assert len(batches) == 0
    for one, fate in ((sent, "may or may not"), (resting, "may or may not"), (queued, "nothing")):
        assert isinstance(one.outcome, ServerCancelledError)
        assert fate in str(one.outcome)
    batches.answer(call, answer(call))
    assert len(woken) == 4


def test_arguments_are_those_of_create_transaction() -> None:
    with pytest.raises(TypeError, match="colour"):
        items([{"account_id": A, "amount": 5, "settled": True, "colour": "red"}])
    (wrong,) = items([{"account_id": A, "amount": 2**70, "settled": True}])
    assert isinstance(wrong, LedgerError)
    assert [found.field for found in wrong.violations] == ["amount"]


def test_each_item_has_a_request_id_of_its_own() -> None:
    keys = [new().key for _ in range(1_000)]
    assert len(set(keys)) == 1_000
    assert {UUID(bytes=key).version for key in keys} == {7}

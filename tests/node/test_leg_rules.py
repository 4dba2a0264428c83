"""Transfers between two shards as blocks: atomic whatever is repeated, late, lost or in between."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ledger_core.accounts import EntryKind, TransactionStatus
from ledger_core.commands import (
    ApplyDecision,
    FreezeAccount,
    Prepare,
    Refused,
    Resolve,
    Source,
    TransferPart,
    TransferText,
)
from ledger_core.errors import Reason, RefusalReason
from ledger_core.queries import ListTransactions
from ledger_core.results import (
    Done,
    Failure,
    TransactionPage,
    TransactionView,
    TransfersView,
    VoteView,
)
from ledger_core.transfer_legs import leg_command, prepare_of
from ledger_node.records import InFlightRecord
from ledger_node.store_check import check
from tests.node.legs import (
    Leg,
    account_of,
    apply_and_deliver,
    apply_block,
    commit,
    commit_block,
    delivered_block,
    prepare,
    prepare_block,
    uuid_of,
)
from tests.node.several_shards import World

S = TransactionStatus
ABANDONED = Refused(0, reason=RefusalReason.ABANDONED)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.check_every_shard_balances()
    world.check_histories()
    world.close()
    for shard in world.shards:
        assert list(check(shard.path / "store")) == []


def legs_of(*amounts: int) -> list[Leg]:
    """From the first account of shard 0 to that of shard 1, or the other way round."""
    return [Leg((0, 0), (1, 0), amount, uuid_of(i + 1)) for i, amount in enumerate(amounts)]


def test_money_moves_between_shards_and_every_shard_balances_at_every_step(world: World) -> None:
    legs = legs_of(30, -10, 5)
    assert prepare(world, 1, legs) == {}
    world.check_every_shard_balances()
    # Reserved at the participant; the home knows of nothing.
    assert world.balances()[0] == (100, 100)
    assert world.balances()[2] == (100, 90)
    assert len(world.undecided(1)) == 3
    view = commit(world, 0, legs)
    world.check_every_shard_balances()
    assert (list(view.statuses), view.refusals, view.others) == ([2, 2, 2], {}, {})
    assert world.balances()[0] == (75, 75)
    numbers = [*range(view.first_number, view.first_number + 3)]
    assert world.in_flight(0) == {number: InFlightRecord(0) for number in numbers}
    assert world.apply(1, apply_block(world, 1, legs, view)) == Done()
    world.check_every_shard_balances()
    assert world.balances()[2] == (125, 125)
    assert world.undecided(1) == {}
    world.apply(0, delivered_block(world, 0, numbers))
    world.check_nothing_is_in_flight()
    assert world.in_transit() == {(0, 1): -25, (1, 0): 25}


def test_the_home_records_what_it_commits_as_settled_at_once(world: World) -> None:
    (leg,) = legs = legs_of(30)
    prepare(world, 1, legs)
    view = commit(world, 0, legs)
    record = world.record(0, view.first_number)
    assert [state.status for state in record.states] == [S.SETTLED]
    (participant,) = record.participants
    assert (participant.shard_id, participant.routing_id) == (1, account_of(world, leg.other))
    assert record.origin == prepare_of(prepare_block(world, 1, legs), 0, 1).origin
    assert [entry.amount for entry in record.clearing] == [30]
    with world.shards[0].store.read() as view_:
        kinds = [row.kind for _, rows in view_.shard(0).blocks_from(1) for row in rows]
    assert kinds[-2:] == [EntryKind.POSTED, EntryKind.POSTED]


def test_a_no_of_the_participant_is_the_refusal_of_the_transfer(world: World) -> None:
    legs = legs_of(-101, -60, -60)
    before = world.balances()
    refused = prepare(world, 1, legs)
    assert {index: why.available_amount for index, why in refused.items()} == {0: 100, 2: 40}
    view = commit(world, 0, legs, refused)
    assert list(view.statuses) == [4, 2, 4]
    assert {index: why.entry_index for index, why in view.refusals.items()} == {0: 1, 2: 1}
    # Only what is settled has to be told.
    assert list(world.in_flight(0)) == [view.first_number + 1]
    apply_and_deliver(world, legs, view)
    world.check_nothing_is_in_flight()
    assert world.balances()[0] == (160, 160)
    assert world.balances()[1:2] + world.balances()[3:] == before[1:2] + before[3:]
    # Also at the participant, under the id that it has at home.
    listed = world.shards[1].ask(ListTransactions(account_of(world, (1, 0)), 3))
    assert isinstance(listed, TransactionPage)
    shown = {(t.number - view.first_number, t.status) for t in listed.transactions}
    assert shown == {(0, S.INSUFFICIENT_FUNDS), (1, S.SETTLED), (2, S.INSUFFICIENT_FUNDS)}


def test_a_participant_that_is_not_told_of_a_refusal_by_the_home_asks(world: World) -> None:
    legs = legs_of(80, 30)
    assert prepare(world, 1, legs) == {}
    view = commit(world, 0, legs)
    assert list(view.statuses) == [2, 4]
    assert view.refusals[1].entry_index == 0
    world.drive()
    world.check_nothing_is_in_flight()
    assert (world.balances()[0], world.balances()[2]) == ((20, 20), (180, 180))
    assert [world.balance(s, 0).pending_transactions for s in (0, 1)] == [0, 0]


def test_of_two_reasons_that_of_the_lower_entry_counts(world: World) -> None:
    """The home has no funds, and the participant's account is frozen."""
    world.shards[1].one(FreezeAccount(account_of(world, (1, 0)), "f"))
    legs = legs_of(101, 100)
    refused = prepare(world, 1, legs)
    assert {why.reason for why in refused.values()} == {RefusalReason.ACCOUNT_FROZEN}
    view = commit(world, 0, legs, refused)
    reasons = [(why.entry_index, why.reason) for why in view.refusals.values()]
    assert reasons == [(0, "INSUFFICIENT_FUNDS"), (1, "ACCOUNT_FROZEN")]


def test_a_repeat_gives_the_first_result_and_another_body_is_none(world: World) -> None:
    legs = legs_of(30, 101)
    for _ in range(2):
        assert prepare(world, 1, legs) == {}
    first = commit(world, 0, legs)
    again = commit(world, 0, legs)
    assert (list(again.statuses), again.first_number) == ([0, 0], 0)
    for index, status in enumerate((S.SETTLED, S.INSUFFICIENT_FUNDS)):
        other = again.others[index]
        assert isinstance(other, TransactionView)
        assert (other.number, other.status) == (first.first_number + index, status)
    other_body = [Leg(legs[0].home, legs[0].other, 31, legs[0].request_id)]
    failure = commit(world, 0, other_body).others[0]
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.REQUEST_ID_REUSED
    for _ in range(2):
        apply_and_deliver(world, legs, first)
    world.check_nothing_is_in_flight()
    # Also as a single request.
    single = world.begin(leg_command(commit_block(world, 0, legs), 0, 0))
    assert isinstance(single, TransactionView)
    assert (single.number, single.status) == (first.first_number, S.SETTLED)
    assert world.balances()[2] == (130, 130)


@pytest.mark.parametrize("first_as_block", [True, False])
@pytest.mark.parametrize("second_as_block", [True, False])
def test_what_was_prepared_under_a_request_id_is_compared_with_what_comes_under_it_again(
    world: World, first_as_block: bool, second_as_block: bool
) -> None:
    def vote(amount: int, *, as_block: bool) -> Refused | None:
        legs = legs_of(amount)
        if as_block:
            return prepare(world, 1, legs).get(0)
        command = leg_command(commit_block(world, 0, legs), 0, 0)
        single = world.apply(1, world.prepare_of(command))
        assert isinstance(single, VoteView)
        return single.refused

    assert vote(60, as_block=first_as_block) is None
    assert vote(60, as_block=second_as_block) is None
    assert vote(50, as_block=second_as_block) == ABANDONED
    world.drive()
    assert vote(60, as_block=second_as_block) == ABANDONED
    world.check_nothing_is_in_flight()
    assert world.balances() == [(100, 100)] * 6


def test_what_was_prepared_is_not_settled_because_another_body_took_its_request_id(
    world: World,
) -> None:
    assert prepare(world, 1, legs_of(60)) == {}
    other = [Leg((0, 0), (2, 0), 50, uuid_of(1))]
    assert prepare(world, 2, other) == {}
    assert list(commit(world, 0, other).statuses) == [2]
    world.drive()
    world.check_nothing_is_in_flight()
    assert [world.balances()[place] for place in (0, 2, 4)] == [(50, 50), (100, 100), (150, 150)]


def test_a_commit_after_the_refusal_of_its_abandoned_prepare_is_refused(world: World) -> None:
    legs = legs_of(60)
    assert prepare(world, 1, legs) == {}
    world.drive()
    late = commit(world, 0, legs).others[0]
    assert isinstance(late, TransactionView)
    assert late.refusal is not None
    assert (late.status, late.refusal.reason) == (S.REJECTED, "ABANDONED")
    assert prepare(world, 1, legs) == {0: ABANDONED}
    world.check_nothing_is_in_flight()
    assert world.balances() == [(100, 100)] * 6


def test_nothing_can_make_a_decision_fail_after_yes(world: World) -> None:
    legs = legs_of(-60)
    assert prepare(world, 1, legs) == {}
    world.shards[1].one(FreezeAccount(account_of(world, (1, 0)), "f"))
    apply_and_deliver(world, legs, commit(world, 0, legs))
    assert (world.balances()[0], world.balances()[2]) == ((160, 160), (40, 40))
    world.check_nothing_is_in_flight()


@pytest.mark.parametrize("last", range(5))
@pytest.mark.parametrize("amounts", [(30, -10), (101, -10), (-101, 10)])
def test_the_sender_of_a_block_may_stop_after_any_step(
    world: World, last: int, amounts: tuple[int, int]
) -> None:
    """Whoever comes next has only what is stored, and brings it to one end on both shards."""
    legs = legs_of(*amounts)
    refused: dict[int, Refused] = {}
    view: TransfersView | None = None
    if last >= 1:
        refused = prepare(world, 1, legs)
    if last >= 2:
        view = commit(world, 0, legs, refused)
    if last >= 3:
        assert view is not None
        world.apply(1, apply_block(world, 1, legs, view))
    if last >= 4:
        assert view is not None
        world.apply(0, delivered_block(world, 0, [view.first_number, view.first_number + 1]))
    for shard in world.shards:
        shard.reopen()
    world.drive()
    world.drive()
    world.check_nothing_is_in_flight()
    # A repeat of it all is answered as at first, and changes nothing.
    balances = world.balances()
    again = commit(world, 0, legs, prepare(world, 1, legs))
    if last >= 1:
        # What the participant had refused, no home had heard of before.
        assert S.SETTLED not in again.statuses
        first = [again.others.get(index) for index in range(len(legs))]
        settled = [isinstance(o, TransactionView) and o.status is S.SETTLED for o in first]
        moved = sum(leg.amount for leg, done in zip(legs, settled, strict=True) if done)
        assert balances[0] == (100 - moved, 100 - moved)
        assert balances[2] == (100 + moved, 100 + moved)
        assert world.balances() == balances


def test_a_decision_that_overtakes_its_prepare_makes_that_a_no(world: World) -> None:
    legs = legs_of(101)
    view = commit(world, 0, legs)
    world.apply(1, apply_block(world, 1, legs, view))
    assert prepare(world, 1, legs) == {0: ABANDONED}
    world.check_nothing_is_in_flight()


def test_steps_of_blocks_and_single_steps_go_together(world: World) -> None:
    """What a block prepared is decided alone, and the other way round."""
    legs = legs_of(30, 20)
    block = prepare_block(world, 1, legs)
    single = prepare_of(block, 1, 1)
    assert world.apply(1, single) == VoteView(None)
    assert prepare(world, 1, legs) == {}
    undecided = world.undecided(1)
    assert [p.origin for p in undecided.values()] == [single.origin, prepare_of(block, 0, 1).origin]
    view = commit(world, 0, legs)
    decision = world.decision(0, view.first_number)
    assert isinstance(decision, ApplyDecision)
    assert world.apply(1, decision) == Done()
    resolved = world.apply(0, Resolve(next(iter(undecided.values()))))
    assert isinstance(resolved, TransactionView)
    assert (resolved.number, resolved.status) == (view.first_number + 1, S.SETTLED)
    apply_and_deliver(world, legs, view)
    world.check_nothing_is_in_flight()
    assert world.balances()[2] == (150, 150)


def test_both_records_have_the_texts_and_who_asked(world: World) -> None:
    text = TransferText("note", "order 7", {"k": "v"})
    legs = [Leg((0, 0), (1, 0), 1 + i, uuid_of(i + 1), text if i == 1 else None) for i in range(3)]
    parts = [TransferPart(2, "alice", Source("a", "10.0.0.1")), TransferPart(1, "bob")]
    world.apply(1, prepare_block(world, 1, legs, parts))
    view = world.apply(0, commit_block(world, 0, legs, parts=parts))
    assert isinstance(view, TransfersView)
    apply_and_deliver(world, legs, view)
    for shard_id in (0, 1):
        with world.shards[shard_id].store.read() as view_:
            first = view_.shard(shard_id).meta().next_transaction - 3
        records = [world.record(shard_id, first + i) for i in range(3)]
        assert [r.description for r in records] == ["", "note", ""]
        assert (records[1].external_reference, records[1].metadata) == ("order 7", {"k": "v"})
        asked = [(r.states[0].actor, r.states[0].correlation_id, r.states[0].peer) for r in records]
        assert asked == [("alice", "a", "10.0.0.1")] * 2 + [("bob", "", "")]
        assert [r.states[0].request_id for r in records] == [leg.request_id for leg in legs]


def test_an_item_is_prepared_as_the_command_that_it_stands_for(world: World) -> None:
    """Undecided, it is kept so that its home can be asked; nobody has to carry it on at once."""
    legs = legs_of(30)
    prepare(world, 1, legs)
    (prepared,) = world.undecided(1).values()
    assert isinstance(prepared, Prepare)
    block = prepare_block(world, 1, legs)
    # Any account of the participant leads to it.
    block = msgspec.structs.replace(block, routing_id=prepared.routing_id)
    assert prepared.routing_id == account_of(world, legs[0].other)
    assert prepared == prepare_of(block, 0, 1)
    assert prepared.transaction == leg_command(commit_block(world, 0, legs), 0, 0)

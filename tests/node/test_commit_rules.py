"""Two-phase commit as replicated steps: atomic whatever is repeated, late, lost or out of order."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ledger_core.accounts import TransactionStatus
from ledger_core.commands import (
    ApplyDecision,
    CancelTransaction,
    CreateTransaction,
    Decide,
    Delivered,
    FreezeAccount,
    Prepare,
    Refused,
    Resolve,
    ReverseTransaction,
    SettleTransaction,
    Vote,
)
from ledger_core.errors import Reason, RefusalReason
from ledger_core.queries import GetTransaction, ListTransactions
from ledger_core.results import Failure, TransactionPage, TransactionView, VoteView
from ledger_node.store_check import check
from tests.node.leg_blocks import is_leg, send_rounds, transfer_id
from tests.node.several_shards import SHARDS, World

S = TransactionStatus


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.check_every_shard_balances()
    world.close()
    # What a node would find at its next start.
    for shard in world.shards:
        assert list(check(shard.path / "store")) == []


def transfer(
    world: World, amount: int, request_id: str = "t", **options: bool
) -> CreateTransaction:
    """From an account of shard 0 to one of shard 1."""
    return world.create(
        [world.entry(0, 0, -amount), world.entry(1, 0, amount)], request_id, **options
    )


def view(result: object) -> TransactionView:
    assert isinstance(result, TransactionView), result
    return result


def test_money_moves_between_shards_and_every_shard_balances_at_every_step(world: World) -> None:
    command = transfer(world, 30)
    begun = view(world.begin(command))
    assert (begun.status, begun.in_flight) == (S.UNDECIDED, 0)
    world.check_every_shard_balances()
    # Reserved at the home, not yet known elsewhere.
    assert world.balances()[0] == (100, 70)
    assert world.in_transit() == {(0, 1): -30}  # due to shard 1
    prepare = world.in_flight(0)[begun.number].prepare
    assert prepare is not None
    votes = world.votes(prepare, [1])
    world.check_every_shard_balances()
    assert world.balances()[2] == (100, 100)
    decided = view(world.apply(0, Decide(command.account_id, begun.number, votes)))
    assert decided.status is S.SETTLED
    world.check_every_shard_balances()
    assert world.balances()[0] == (70, 70)
    world.apply(1, world.decision(0, begun.number))
    assert world.balances()[2] == (130, 130)
    world.apply(0, Delivered(command.account_id, begun.number, 1))
    world.check_nothing_is_in_flight()
    assert world.in_transit() == {(0, 1): -30, (1, 0): 30}
    # A repeat gives the first result, with nothing left in flight.
    repeat = view(world.begin(command))
    assert (repeat.status, repeat.in_flight, repeat.number) == (S.SETTLED, None, begun.number)


def test_a_home_without_funds_refuses_at_once(world: World) -> None:
    refused = view(world.begin(transfer(world, 101)))
    assert (refused.status, refused.in_flight) == (S.INSUFFICIENT_FUNDS, None)
    world.check_nothing_is_in_flight()


def test_a_participant_without_funds_makes_the_transaction_refused_everywhere(
    world: World,
) -> None:
    command = world.create([world.entry(0, 0, 101), world.entry(1, 0, -101)], "t")
    before = world.balances()
    begun = view(world.begin(command))
    world.drive()
    refused = view(world.begin(command))
    assert (refused.status, refused.number) == (S.INSUFFICIENT_FUNDS, begun.number)
    assert refused.refusal is not None
    assert (refused.refusal.entry_index, refused.refusal.available_amount) == (1, 100)
    assert world.balances() == before
    world.check_nothing_is_in_flight()


def test_all_histories_show_the_reason_that_the_home_gives(world: World) -> None:
    poor, frozen = world.accounts[1][0], world.accounts[2][0]
    world.shards[2].one(FreezeAccount(frozen, "f"))
    command = world.create(
        [world.entry(0, 0, 102), world.entry(1, 0, -101), world.entry(2, 0, -1)], "t"
    )
    begun = view(world.begin(command))
    world.drive()
    for shard_id, account_id in ((0, command.account_id), (1, poor), (2, frozen)):
        listed = world.shards[shard_id].ask(ListTransactions(account_id, 1))
        assert isinstance(listed, TransactionPage)
        (shown,) = listed.transactions
        assert (shown.number, shown.status) == (begun.number, S.INSUFFICIENT_FUNDS)
        assert shown.refusal is not None
        assert shown.refusal.entry_index == 1


@pytest.mark.parametrize("end", ["settle", "settle in part", "cancel", "expire"])
def test_a_pending_transaction_ends_the_same_way_on_all_shards(world: World, end: str) -> None:
    command = transfer(world, 40, settled=False)
    if end == "expire":
        command = world.create(command.entries, "t", settled=False, expire_time_us=5_000_000)
    begun = view(world.begin(command))
    world.drive()
    assert view(world.begin(command)).status is S.PENDING
    assert (world.balances()[0], world.balances()[2]) == ((100, 60), (100, 100))
    world.check_nothing_is_in_flight()
    home = world.shards[0]
    if end == "settle":
        view(home.one(SettleTransaction(command.account_id, begun.number, "s")))
    elif end == "settle in part":
        view(home.one(SettleTransaction(command.account_id, begun.number, "s", 15)))
    elif end == "cancel":
        view(home.one(CancelTransaction(command.account_id, begun.number, "c")))
    else:
        home.apply(time_us=4_999_999)
        assert world.balances()[0] == (100, 60)
        home.apply(time_us=5_000_000)
    moved = {"settle": 40, "settle in part": 15}.get(end, 0)
    assert world.balances()[0] == (100 - moved, 100 - moved)
    world.drive()
    assert world.balances()[2] == (100 + moved, 100 + moved)
    assert [world.balance(s, 0).pending_transactions for s in (0, 1)] == [0, 0]
    world.check_nothing_is_in_flight()


def test_a_vote_that_is_missing_is_a_no(world: World) -> None:
    command = world.create(
        [world.entry(0, 0, -50), world.entry(1, 0, 20), world.entry(2, 0, 30)], "t"
    )
    begun = view(world.begin(command))
    prepare = world.in_flight(0)[begun.number].prepare
    assert prepare is not None
    votes = world.votes(prepare, [1])
    decided = view(world.apply(0, Decide(command.account_id, begun.number, votes)))
    assert decided.status is S.REJECTED
    assert decided.refusal is not None
    assert (decided.refusal.reason, decided.refusal.entry_index) == ("SHARD_UNREACHABLE", 2)
    # The Prepare for shard 2 is still on its way, and arrives after the decision.
    world.drive()
    late = world.apply(2, prepare)
    assert isinstance(late, VoteView)
    assert late.refused is not None
    world.check_nothing_is_in_flight()
    assert world.balances() == [(100, 100)] * 6


def test_a_participant_that_never_hears_again_asks_and_the_home_refuses_what_it_never_began(
    world: World,
) -> None:
    command = world.create([world.entry(0, 0, 60), world.entry(1, 0, -60)], "t")
    prepare = world.prepare_of(command)
    assert world.apply(1, prepare) == VoteView(None)
    assert world.balances()[2] == (100, 40)
    world.drive()
    assert world.balances()[2] == (100, 100)
    world.check_nothing_is_in_flight()


def test_a_begin_after_the_refusal_of_its_abandoned_prepare_is_refused(world: World) -> None:
    command = transfer(world, 60)
    begun = view(world.begin(command))
    prepare = world.in_flight(0)[begun.number].prepare
    assert prepare is not None
    world.drive()

    again = World(world.shards[0].path.parent / "again")
    assert again.apply(1, prepare) == VoteView(None)
    again.drive()
    late = view(again.begin(command))
    assert late.status is S.REJECTED
    assert late.refusal is not None
    assert late.refusal.reason == RefusalReason.ABANDONED
    again.drive()
    again.check_nothing_is_in_flight()
    assert again.balances() == [(100, 100)] * 6
    again.close()


def test_a_participant_votes_no_on_another_body_under_a_request_id_that_it_prepared(
    world: World,
) -> None:
    """Else the home would commit amounts that differ from those reserved here."""
    assert world.apply(1, world.prepare_of(transfer(world, 60))) == VoteView(None)
    other = transfer(world, 50)
    begun = view(world.begin(other))
    assert begun.status is S.UNDECIDED
    prepare = world.in_flight(0)[begun.number].prepare
    assert prepare is not None
    vote = world.apply(1, prepare)
    assert vote == VoteView(Refused(0, reason=RefusalReason.ABANDONED))
    world.drive()
    refused = view(world.begin(other))
    assert refused.status is S.REJECTED
    assert world.balances() == [(100, 100)] * 6
    world.check_nothing_is_in_flight()


def test_what_was_prepared_is_not_settled_because_another_body_took_its_request_id(
    world: World,
) -> None:
    """The home settles the other one without asking the shard that only the first one names."""
    assert world.apply(1, world.prepare_of(transfer(world, 60))) == VoteView(None)
    other = world.create([world.entry(0, 0, -50), world.entry(2, 0, 50)], "t")
    begun = view(world.begin(other))
    world.drive()
    assert view(world.begin(other)).status is S.SETTLED
    assert world.balances() == [(50, 50), *[(100, 100)] * 3, (150, 150), (100, 100)]
    world.check_nothing_is_in_flight()
    with world.shards[1].store.read() as view_:
        tables = view_.shard(1)
        last = tables.find_transaction(tables.meta().next_transaction - 1)
    assert last is not None
    assert last.status is S.REJECTED
    assert last.home_number != begun.number


def test_nothing_can_make_a_decision_fail_after_yes(world: World) -> None:
    command = world.create([world.entry(0, 0, 60), world.entry(1, 0, -60)], "t")
    begun = view(world.begin(command))
    prepare = world.in_flight(0)[begun.number].prepare
    assert prepare is not None
    votes = world.votes(prepare, [1])
    participant = world.accounts[1][0]
    world.shards[1].one(FreezeAccount(participant, "f"))
    world.shards[0].one(FreezeAccount(command.account_id, "f"))
    world.apply(0, Decide(command.account_id, begun.number, votes))
    world.drive()
    assert (world.balances()[0], world.balances()[2]) == ((160, 160), (40, 40))


def test_a_reversal_across_shards_moves_the_money_back_once(world: World) -> None:
    command = transfer(world, 40)
    begun = view(world.begin(command))
    home, account_id = world.shards[0], command.account_id
    world.drive()
    part = view(home.one(ReverseTransaction(account_id, begun.number, "r1", [15, 15])))
    assert part.reversal_of == begun.number
    world.drive()
    assert (world.balances()[0], world.balances()[2]) == ((75, 75), (125, 125))
    listed = world.shards[1].ask(ListTransactions(world.accounts[1][0], 1))
    assert isinstance(listed, TransactionPage)
    assert listed.transactions[0].reversal_of == begun.number
    shown = home.ask(GetTransaction(account_id, begun.number))
    assert view(shown).reversed_amounts == [15, 15]
    # A repeat is answered as at first.
    assert view(world.begin(command)).reversed_amounts == []
    too_much = home.one(ReverseTransaction(account_id, begun.number, "r2", [26, 26]))
    assert isinstance(too_much, Failure)
    assert too_much.reason is Reason.REVERSAL_EXCEEDS
    view(home.one(ReverseTransaction(account_id, begun.number, "r3")))
    world.drive()
    assert world.balances() == [(100, 100)] * 6
    nothing_left = home.one(ReverseTransaction(account_id, begun.number, "r4"))
    assert isinstance(nothing_left, Failure)
    world.check_nothing_is_in_flight()


def test_a_refused_reversal_leaves_the_whole_to_be_reversed(world: World) -> None:
    command = transfer(world, 40)
    begun = view(world.begin(command))
    world.drive()
    receiver = world.accounts[1][0]
    world.shards[1].one(CreateTransaction(receiver, -140, "", True, "spend"))
    view(world.shards[0].one(ReverseTransaction(command.account_id, begun.number, "r1")))
    world.drive()
    refused = view(world.shards[0].one(ReverseTransaction(command.account_id, begun.number, "r1")))
    assert refused.status is S.INSUFFICIENT_FUNDS
    shown = world.shards[0].ask(GetTransaction(command.account_id, begun.number))
    assert view(shown).reversed_amounts == []
    world.shards[1].one(CreateTransaction(receiver, 40, "", True, "refill"))
    view(world.shards[0].one(ReverseTransaction(command.account_id, begun.number, "r2")))
    world.drive()
    assert world.balances()[0] == (100, 100)
    world.check_nothing_is_in_flight()


# The coordinator stops after every single log entry; whoever comes next has only what is stored.

Step = Callable[[World, CreateTransaction, dict[str, int]], None]


def _begin(world: World, command: CreateTransaction, numbers: dict[str, int]) -> None:
    numbers["t"] = view(world.begin(command)).number


def _prepare(shard_id: int) -> Step:
    def step(world: World, command: CreateTransaction, numbers: dict[str, int]) -> None:
        prepare = world.in_flight(0)[numbers["t"]].prepare
        assert prepare is not None
        world.apply(shard_id, prepare)

    return step


def _decide(world: World, command: CreateTransaction, numbers: dict[str, int]) -> None:
    prepare = world.in_flight(0)[numbers["t"]].prepare
    assert prepare is not None
    votes = world.votes(prepare, [1, 2])
    world.apply(0, Decide(command.account_id, numbers["t"], votes))


def _tell(shard_id: int) -> Step:
    def step(world: World, command: CreateTransaction, numbers: dict[str, int]) -> None:
        world.apply(shard_id, world.decision(0, numbers["t"]))

    return step


def _delivered(world: World, command: CreateTransaction, numbers: dict[str, int]) -> None:
    state = len(world.record(0, numbers["t"]).states) - 1
    world.apply(0, Delivered(command.account_id, numbers["t"], state))


def _settle(world: World, command: CreateTransaction, numbers: dict[str, int]) -> None:
    world.apply(0, SettleTransaction(command.account_id, numbers["t"], "s"))


STEPS: list[Step] = [
    _begin,
    _prepare(1),
    _prepare(2),
    _decide,
    _tell(1),
    _tell(2),
    _delivered,
    _settle,
    _tell(1),
    _tell(2),
    _delivered,
]


@pytest.mark.parametrize("last", range(len(STEPS)))
def test_the_coordinator_of_a_commit_may_stop_after_any_log_entry(
    tmp_path: Path, last: int
) -> None:
    world = World(tmp_path)
    command = world.create(
        [world.entry(0, 0, 50), world.entry(1, 0, -49), world.entry(2, 0, -1)], "t", settled=False
    )
    number = _stop_after(world, command, STEPS[: last + 1])
    assert view(world.begin(command)).status is S.PENDING
    paid = 50 if world.record(0, number).status is S.SETTLED else 0
    assert world.balances()[0][0] == 100 + paid
    assert world.balances()[2][0] == 100 - paid * 49 // 50
    world.close()


@pytest.mark.parametrize("last", range(len(STEPS) - 4))
def test_the_coordinator_of_a_refusal_may_stop_after_any_log_entry(
    tmp_path: Path, last: int
) -> None:
    world = World(tmp_path)
    command = world.create(
        [world.entry(0, 0, 102), world.entry(1, 0, -101), world.entry(2, 0, -1)], "t"
    )
    _stop_after(world, command, STEPS[: last + 1])
    assert view(world.begin(command)).status is S.INSUFFICIENT_FUNDS
    assert world.balances() == [(100, 100)] * 6
    world.close()


def _stop_after(world: World, command: CreateTransaction, steps: list[Step]) -> int:
    """Do the steps with a restart of all shards after each, then let someone else carry on."""
    numbers: dict[str, int] = {}
    for step in steps:
        step(world, command, numbers)
        world.check_every_shard_balances()
        for shard in world.shards:
            shard.reopen()
    world.drive()
    world.check_nothing_is_in_flight()
    world.check_every_shard_balances()
    return numbers["t"]


# Anything in any order

amounts = st.integers(1, 120)
places = st.tuples(st.integers(0, SHARDS - 1), st.integers(0, 1))


class AnyOrder(RuleBasedStateMachine):
    """Begins, prepares, decisions, their repeats and their losses, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.world = World(self.folder)
        self.commands: list[CreateTransaction] = []
        self.prepares: list[Prepare] = []
        self.decisions: list[tuple[int, ApplyDecision]] = []
        self.blocks: list[Iterator[None]] = []
        self.count = 0

    def teardown(self) -> None:
        self.world.drive()
        # A home may have begun what a participant learned of only now.
        self.world.drive()
        self.world.check_nothing_is_in_flight()
        self.world.check_every_shard_balances()
        self.world.check_histories()
        self.check_atomicity()
        assert sum(settled for settled, _ in self.world.balances()) == 600
        self.world.close()
        shutil.rmtree(self.folder)

    def check_atomicity(self) -> None:
        """Every shard that has heard of a transaction has it in the home's status."""
        for home in range(SHARDS):
            with self.world.shards[home].store.read() as view_:
                tables = view_.shard(home)
                records = {
                    n: tables.find_transaction(n) for n in range(1, tables.meta().next_transaction)
                }
            for record in records.values():
                assert record is not None
                if record.home_shard_id is not None and record.home_number:
                    at_home = self.world.record(record.home_shard_id, record.home_number)
                    assert at_home.status is record.status or (
                        at_home.status.is_refusal and record.status.is_refusal
                    )

    @rule(
        payer=places,
        payees=st.lists(places, min_size=1, max_size=3),
        settled=st.booleans(),
        amount=amounts,
        home_pays=st.booleans(),
    )
    def begin(
        self,
        payer: tuple[int, int],
        payees: list[tuple[int, int]],
        settled: bool,
        amount: int,
        home_pays: bool,
    ) -> None:
        entries = [self.world.entry(*payer, -amount * len(payees))]
        entries += [self.world.entry(*payee, amount) for payee in payees]
        if not home_pays:
            entries.reverse()
        self.count += 1
        command = self.world.create(entries, transfer_id(self.count), settled=settled)
        self.commands.append(command)
        self.world.begin(command)
        self.prepares.append(self.world.prepare_of(command))

    @rule(transfers=st.lists(st.tuples(places, places, amounts), min_size=1, max_size=4))
    def start_block(self, transfers: list[tuple[tuple[int, int], tuple[int, int], int]]) -> None:
        """A gateway takes some transfers, new ones and some that came alone, through its rounds."""
        items = [command for command in self.commands[-2:] if is_leg(command)]
        for one, other, amount in transfers:
            if one[0] != other[0]:
                self.count += 1
                entries = [self.world.entry(*one, -amount), self.world.entry(*other, amount)]
                items.append(self.world.create(entries, transfer_id(self.count)))
        self.commands += [item for item in items if item not in self.commands]
        if items:
            self.blocks.append(send_rounds(self.world, items))

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def next_round(self, data: st.DataObject) -> None:
        next(data.draw(st.sampled_from(self.blocks)), None)

    @precondition(lambda self: self.prepares)
    @rule(data=st.data(), shard_id=st.integers(0, SHARDS - 1))
    def prepare_any_time(self, data: st.DataObject, shard_id: int) -> None:
        """Also long after the decision."""
        prepare = data.draw(st.sampled_from(self.prepares))
        shards = {entry.shard_id for entry in prepare.transaction.entries}
        if shard_id in shards and shard_id != prepare.home_shard_id:
            self.world.apply(shard_id, prepare)

    @precondition(lambda self: self.commands)
    @rule(data=st.data())
    def prepare_before_begin(self, data: st.DataObject) -> None:
        """A leader sent Prepare, and was gone before it recorded its own part."""
        command = data.draw(st.sampled_from(self.commands))
        self.count += 1
        lost = self.world.create(command.entries, f"lost {self.count}")
        prepare = self.world.prepare_of(lost)
        for shard_id in {entry.shard_id for entry in lost.entries} - {prepare.home_shard_id}:
            self.world.apply(shard_id, prepare)
        self.prepares.append(prepare)
        if data.draw(st.booleans()):
            self.commands.append(lost)

    @precondition(lambda self: self.commands)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        self.world.begin(data.draw(st.sampled_from(self.commands)))

    @rule(data=st.data(), home=st.integers(0, SHARDS - 1))
    def decide(self, data: st.DataObject, home: int) -> None:
        """With all votes, or without those that did not come in time."""
        for number, in_flight in self.world.in_flight(home).items():
            if in_flight.prepare is None:
                continue
            record = self.world.record(home, number)
            others = [p.shard_id for p in record.participants]
            asked = [s for s in others if data.draw(st.booleans())]
            votes: list[Vote] = self.world.votes(in_flight.prepare, asked)
            self.world.apply(home, Decide(record.account_id, number, votes))
            break

    @rule(data=st.data(), home=st.integers(0, SHARDS - 1))
    def tell(self, data: st.DataObject, home: int) -> None:
        """One participant; the message may come again much later."""
        for number, in_flight in self.world.in_flight(home).items():
            record = self.world.record(home, number)
            if in_flight.prepare is None or record.status is not S.UNDECIDED:
                other = data.draw(st.sampled_from([p.shard_id for p in record.participants]))
                decision = self.world.decision(home, number)
                self.decisions.append((other, decision))
                self.world.apply(other, decision)
                break

    @precondition(lambda self: self.decisions)
    @rule(data=st.data())
    def tell_again(self, data: st.DataObject) -> None:
        self.world.apply(*data.draw(st.sampled_from(self.decisions)))

    @rule(data=st.data(), home=st.integers(0, SHARDS - 1), settle=st.booleans())
    def end(self, data: st.DataObject, home: int, settle: bool) -> None:
        number = data.draw(st.integers(1, 8))
        with self.world.shards[home].store.read() as view_:
            record = view_.shard(home).find_transaction(number)
        if record is not None and record.home_shard_id is None:
            self.count += 1
            command = SettleTransaction if settle else CancelTransaction
            self.world.apply(home, command(record.account_id, number, f"end {self.count}"))

    @rule(home=st.integers(0, SHARDS - 1))
    def drive_home(self, home: int) -> None:
        self.world.drive_home(home)

    @rule(shard_id=st.integers(0, SHARDS - 1))
    def ask_home(self, shard_id: int) -> None:
        self.world.drive_participant(shard_id)

    @precondition(lambda self: self.prepares)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        prepare = data.draw(st.sampled_from(self.prepares))
        self.world.apply(prepare.home_shard_id, Resolve(prepare))

    @invariant()
    def every_shard_balances_and_nobody_is_overdrawn(self) -> None:
        self.world.check_every_shard_balances()
        assert all(available >= 0 for _, available in self.world.balances())


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)

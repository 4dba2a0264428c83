"""Blocks of transfers between shards on whole nodes: whatever their gateway leaves is finished."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger_core.accounts import TransactionStatus
from ledger_core.commands import (
    ApplyDecision,
    FreezeAccount,
    Refused,
    Resolve,
)
from ledger_core.results import Done, TransactionView, TransfersView, TransferVotesView
from ledger_node import coordinator
from ledger_node.backlog import Backlog
from ledger_node.coordinator import GATEWAY_S_MAX
from tests.node.bank import SHARDS, Bank
from tests.node.hosts import Hosts, results
from tests.node.leg_blocks import (
    apply_block,
    commit_block,
    delivered_block,
    prepare_block,
    transfer_id,
)

S = TransactionStatus


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Bank]:
    hosts = Hosts(tmp_path, nodes=3, shards=SHARDS, replicas=3)
    bank = Bank(hosts)
    yield bank
    hosts.unreachable_shards.clear()
    hosts.cut.clear()
    hosts.run(2.0)
    bank.check_books()
    bank.check_nothing_is_open()
    hosts.close()


class Gateway:
    """Takes transfers from shard 0 to shard 1 through their rounds, one by one."""

    def __init__(self, bank: Bank, amounts: list[int], first_id: int = 1) -> None:
        self.bank = bank
        self.items = [
            bank.transfer({0: -amount, 1: amount}, transfer_id(first_id + place))
            for place, amount in enumerate(amounts)
        ]
        self.refused: dict[int, Refused] = {}
        self.view = TransfersView(0, 0, b"", {}, {})

    @property
    def numbers(self) -> list[int]:
        return list(range(self.view.first_number, self.view.first_number + len(self.items)))

    def prepare(self) -> None:
        votes = self.bank.write(1, prepare_block(self.items))
        assert isinstance(votes, TransferVotesView)
        self.refused = votes.refused

    def commit(self) -> None:
        view = self.bank.write(0, commit_block(self.items, self.refused))
        assert isinstance(view, TransfersView)
        self.view = view

    def apply(self) -> None:
        statuses = [S(status) for status in self.view.statuses]
        done = self.bank.write(1, apply_block(self.items, self.numbers, statuses, self.refused))
        assert done == Done()

    def deliver(self) -> None:
        settled = [
            (item, number)
            for item, number, status in zip(
                self.items, self.numbers, self.view.statuses, strict=True
            )
            if status == S.SETTLED
        ]
        block = delivered_block([item for item, _ in settled], [number for _, number in settled])
        assert self.bank.write(0, block) == Done()

    def rounds(self, last: int) -> None:
        for one in (self.prepare, self.commit, self.apply, self.deliver)[:last]:
            one()


def test_nobody_else_does_anything_for_what_a_gateway_finishes(bank: Bank) -> None:
    bank.hosts.calls.clear()
    Gateway(bank, [10, 20, 5]).rounds(4)
    assert bank.open_rows(0) == bank.open_rows(1) == ([], [])
    assert bank.balances()[:2] == [(65, 65), (135, 135)]
    bank.hosts.run(GATEWAY_S_MAX + 1.0)
    assert bank.hosts.calls == []
    assert all(node._coordinator.idle for node in bank.hosts.nodes.values())


@pytest.mark.parametrize("last", [1, 2, 3])
def test_what_a_gateway_has_left_after_a_round_is_finished_by_leaders(
    bank: Bank, last: int
) -> None:
    gateway = Gateway(bank, [10, 20, 5])
    gateway.rounds(last)
    bank.hosts.calls.clear()
    bank.hosts.run(GATEWAY_S_MAX * 0.8)
    assert bank.hosts.calls == [], "the gateway has its time"
    bank.hosts.run(GATEWAY_S_MAX * 0.2 + 1.0)
    bank.check_nothing_is_open()
    if last == 1:
        # Nobody was told that it happened, and nobody ever will be.
        assert bank.balances()[:2] == [(100, 100), (100, 100)]
        gateway.commit()
        others = [gateway.view.others[place] for place in range(3)]
        assert [o.status for o in others if isinstance(o, TransactionView)] == [S.REJECTED] * 3
        assert gateway.view.statuses == bytes(3)
    assert bank.balances()[:2] == ([(100, 100)] * 2 if last == 1 else [(65, 65), (135, 135)])


@pytest.mark.parametrize("last", [1, 2, 3])
def test_leaders_that_change_between_rounds_change_nothing(bank: Bank, last: int) -> None:
    gateway = Gateway(bank, [10, 20, 5])
    gateway.rounds(last)
    for shard_id in (0, 1):
        old = bank.hosts.leader(shard_id)
        bank.hosts.cut = {old}
        bank.hosts.run(2.5)
        assert bank.hosts.leader(shard_id) != old
        bank.hosts.cut = set()
        bank.hosts.run(1.0)
    # The new leaders have taken it up: what the gateway does now comes late, and is a repeat.
    for one in (gateway.prepare, gateway.commit, gateway.apply, gateway.deliver)[last:]:
        if one == gateway.apply and 0 in gateway.view.statuses:
            break
        one()
    bank.hosts.run(1.0)
    bank.check_nothing_is_open()
    first = bank.balances()[:2]
    assert first in ([(65, 65), (135, 135)], [(100, 100), (100, 100)])
    assert (first == [(65, 65), (135, 135)]) or last == 1


def test_who_repeats_a_transfer_alone_waits_until_it_is_delivered(bank: Bank) -> None:
    """Nobody had taken it up: its gateway was to have some more time."""
    gateway = Gateway(bank, [10, 20])
    gateway.rounds(2)
    assert bank.balances()[1] == (100, 100)
    repeated = gateway.items[1]
    view = bank.submit(repeated)
    assert (view.status, view.in_flight) == (S.SETTLED, 0)
    replies: list = []
    began = bank.hosts.now
    leader = bank.hosts.leader(0)
    bank.hosts.nodes[leader].await_transaction(0, view.number, 0, replies.append)
    (told,) = results(bank.hosts.settle(replies))
    assert isinstance(told, TransactionView)
    assert told.status is S.SETTLED
    assert bank.hosts.now - began < GATEWAY_S_MAX / 2
    assert bank.balances()[1] == (120, 120), "that of the other one is still to come"
    bank.hosts.run(GATEWAY_S_MAX + 1.0)


def test_a_participant_asks_for_what_was_refused_and_not_told(bank: Bank) -> None:
    """The home refuses at the commit: it has nothing in flight then."""
    gateway = Gateway(bank, [500, 30])
    gateway.rounds(2)
    assert list(gateway.view.statuses) == [S.INSUFFICIENT_FUNDS, S.SETTLED]
    assert len(bank.open_rows(0)[0]) == 1
    bank.hosts.calls.clear()
    bank.hosts.run(GATEWAY_S_MAX + 2.0)
    kinds = {type(call.command) for call in bank.hosts.calls}
    assert kinds == {ApplyDecision, Resolve}
    bank.check_nothing_is_open()
    assert bank.balances()[:2] == [(70, 70), (130, 130)]


def test_many_are_taken_up_a_few_at_a_time(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "TAKEN_UP_MAX", 20)
    monkeypatch.setattr(coordinator, "TAKEN_UP_AT_ONCE", 8)
    gateway = Gateway(bank, [1] * 90)
    gateway.rounds(2)
    most = 0
    bank.hosts.run(GATEWAY_S_MAX * 0.9)
    for _ in range(300):
        bank.hosts.turn_all(0.01)
        for node in bank.hosts.nodes.values():
            most = max(most, len(node._coordinator._homed))
    assert 8 <= most <= 20
    bank.check_nothing_is_open()
    assert bank.balances()[:2] == [(10, 10), (190, 190)]


def test_who_cannot_be_told_does_not_keep_others_waiting(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More is to be taken up than there is room for, the first ones for a shard that is away."""
    monkeypatch.setattr(coordinator, "TAKEN_UP_MAX", 4)
    Gateway(bank, [1] * 12).rounds(2)
    others = [bank.transfer({0: -1, 2: 1}, transfer_id(100 + place)) for place in range(12)]
    bank.write(2, prepare_block(others))
    bank.write(0, commit_block(others))
    bank.hosts.unreachable_shards = {1}
    # Participants that ask by themselves would hide it.
    monkeypatch.setattr(coordinator.Coordinator, "_ask_home", lambda *_arguments: None)
    bank.hosts.run(GATEWAY_S_MAX + 3.0)
    assert len(bank.open_rows(0)[0]) == 12, "those for shard 1"
    assert bank.balances()[2] == (112, 112)
    bank.hosts.unreachable_shards = set()
    bank.hosts.run(4.0)
    monkeypatch.undo()


def test_a_block_and_a_single_call_of_the_same_transfer_are_one(bank: Bank) -> None:
    gateway = Gateway(bank, [10])
    gateway.prepare()
    begun = bank.submit(gateway.items[0])
    gateway.commit()
    (first,) = gateway.view.others.values()
    assert isinstance(first, TransactionView)
    assert first.number == begun.number
    assert bank.finish(gateway.items[0], begun.number).status is S.SETTLED
    assert bank.balances()[:2] == [(90, 90), (110, 110)]


def test_after_a_vote_nothing_keeps_leaders_from_finishing(bank: Bank) -> None:
    gateway = Gateway(bank, [10])
    gateway.rounds(2)
    bank.write(1, FreezeAccount(gateway.items[0].entries[1].account_id, "freeze"))
    bank.hosts.run(GATEWAY_S_MAX + 1.0)
    assert bank.balances()[:2] == [(90, 90), (110, 110)]


# The notes of what a gateway is about to finish


def test_notes_are_few_however_many_blocks_there_are() -> None:
    backlog = Backlog()
    for step in range(1_000):
        backlog.add(10 * step + 1, 10 * step + 10, now=step / 100, delay_s=5.0)
        assert backlog.due(step / 100) is None or step / 100 >= 5.0
    assert len(backlog._notes) <= 41


def test_what_was_looked_at_is_not_looked_at_again() -> None:
    backlog = Backlog()
    assert backlog.idle
    backlog.add(5, 20, now=0.0, delay_s=1.0)
    assert (backlog.due(0.9), backlog.due(1.0)) == (None, (5, 20))
    backlog.looked_at(9)
    assert backlog.due(1.0) == (10, 20)
    backlog.add(30, 40, now=1.0, delay_s=1.0)
    backlog.looked_at(20)
    assert backlog.due(1.5) is None
    assert not backlog.idle
    assert backlog.due(2.0) == (30, 40)
    backlog.looked_at(40)
    assert backlog.idle


def test_what_was_put_back_is_looked_at_once_more() -> None:
    backlog = Backlog()
    backlog.add(5, 20, now=0.0, delay_s=0.0)
    assert backlog.due(0.0) == (5, 20)
    backlog.looked_at(20)
    backlog.add_again(at=3.0)
    assert not backlog.idle
    assert backlog.due(2.9) is None
    assert backlog.due(3.0) == (1, 20)
    backlog.looked_at(20)
    assert backlog.idle

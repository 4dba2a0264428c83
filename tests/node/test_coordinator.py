"""Transactions across shards on whole nodes: driven by leaders, resumed by the next ones."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger.internal.v1 import shard_pb2
from ledger_core.accounts import TransactionStatus
from ledger_core.commands import (
    ApplyDecision,
    CreateTransaction,
    Decide,
    Prepare,
    Resolve,
    SettleTransaction,
)
from ledger_core.results import TransactionView
from ledger_node.coordinator import VOTE_S_MAX
from ledger_node.store import Store
from tests.node.bank import SHARDS, Bank
from tests.node.hosts import Hosts, results

S = TransactionStatus


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Bank]:
    hosts = Hosts(tmp_path, nodes=3, shards=SHARDS, replicas=3)
    bank = Bank(hosts)
    yield bank
    hosts.unreachable_shards.clear()
    hosts.cut.clear()
    hosts.run(6.0)
    bank.check_books()
    bank.check_nothing_is_open()
    hosts.close()


def test_a_transfer_is_seen_on_every_shard_when_it_is_answered(bank: Bank) -> None:
    command = bank.transfer({0: -30, 1: 10, 2: 20})
    begun = bank.submit(command)
    assert begun.status is S.UNDECIDED
    finished = bank.finish(command, begun.number)
    assert finished.status is S.SETTLED
    assert bank.balances() == [(70, 70), (110, 110), (120, 120)]


def test_participants_are_asked_while_the_home_is_still_writing(bank: Bank) -> None:
    """Two rounds of Raft until the commit point: Begin and Prepare together, then Decide."""
    command = bank.transfer({0: -30, 1: 30})
    leader = bank.hosts.leader(0)
    bank.hosts.calls.clear()
    replies = bank.hosts.execute(leader, command, shard_id=0)
    while not bank.hosts.calls:
        bank.hosts.turn_all(0.001)
    assert replies == []
    assert [type(call.command) for call in bank.hosts.calls] == [Prepare]
    (begun,) = results(bank.hosts.settle(replies))
    assert isinstance(begun, TransactionView)
    bank.finish(command, begun.number)
    # Nobody was asked twice.
    kinds = [type(call.command) for call in bank.hosts.calls]
    assert kinds == [Prepare, ApplyDecision]


def test_a_participant_that_refuses_is_heard(bank: Bank) -> None:
    command = bank.transfer({0: 101, 1: -101})
    begun = bank.submit(command)
    finished = bank.finish(command, begun.number)
    assert finished.status is S.INSUFFICIENT_FUNDS
    assert finished.refusal is not None
    assert finished.refusal.entry_index == 1
    assert bank.balances() == [(100, 100)] * 3


def test_a_home_that_refuses_at_once_calls_off_whom_it_asked(bank: Bank) -> None:
    command = bank.transfer({0: -101, 1: 101})
    refused = bank.submit(command)
    assert (refused.status, refused.in_flight) == (S.INSUFFICIENT_FUNDS, None)
    bank.hosts.run(0.5)
    bank.check_nothing_is_open()
    assert bank.balances() == [(100, 100)] * 3


def test_pending_and_settled_later(bank: Bank) -> None:
    command = bank.transfer({0: -30, 1: 30}, settled=False)
    begun = bank.submit(command)
    assert bank.finish(command, begun.number).status is S.PENDING
    assert bank.balances()[:2] == [(100, 70), (100, 100)]
    settle = SettleTransaction(command.account_id, begun.number, "s")
    replies = bank.hosts.execute(bank.hosts.leader(0), settle, shard_id=0)
    (settled,) = results(bank.hosts.settle(replies))
    assert isinstance(settled, TransactionView)
    assert (settled.status, settled.in_flight) == (S.SETTLED, 2)
    bank.finish(command, begun.number, 2)
    assert bank.balances()[:2] == [(70, 70), (130, 130)]


def test_the_next_leader_of_the_home_goes_on(bank: Bank) -> None:
    command = bank.transfer({0: -30, 1: 30})
    bank.hosts.unreachable_shards = {1}
    begun = bank.submit(command)
    old = bank.hosts.leader(0)
    bank.hosts.cut = {old}
    bank.hosts.run(2.5)
    bank.hosts.unreachable_shards = set()
    assert bank.hosts.leader(0) != old
    assert bank.finish(command, begun.number).status in (S.SETTLED, S.REJECTED)
    bank.hosts.cut = set()
    bank.hosts.run(2.0)


def test_a_participant_that_cannot_be_reached_makes_the_transaction_refused_in_time(
    bank: Bank,
) -> None:
    command = bank.transfer({0: -30, 1: 10, 2: 20})
    bank.hosts.unreachable_shards = {2}
    begun = bank.submit(command)
    bank.hosts.run(VOTE_S_MAX + 1.0)
    leader = bank.hosts.leader(0)
    replies: list = []
    bank.hosts.nodes[leader].await_transaction(0, begun.number, 1, replies.append)
    with bank.hosts.stores[leader].read_newest() as view:
        record = view.shard(0).find_transaction(begun.number)
    assert record is not None
    assert record.status is S.REJECTED
    # Its own money is free again, and that of the participant that could be reached.
    assert bank.balances()[:2] == [(100, 100), (100, 100)]
    bank.hosts.unreachable_shards = set()
    bank.hosts.run(2.0)


def test_a_participant_without_decision_asks_a_home_that_never_began(bank: Bank) -> None:
    command = bank.transfer({0: 40, 1: -40})
    old = bank.hosts.leader(0)
    # The home's leader asks, and is gone before its own part is on a majority.
    bank.hosts.execute(old, command, shard_id=0)
    bank.hosts.turn(old)
    calls = bank.hosts.nodes[old].take_calls()
    assert [type(call.command) for call in calls] == [Prepare]
    prepare = calls[0].command
    assert isinstance(prepare, Prepare)
    participant = bank.hosts.leader(1)
    if participant == old:
        pytest.fail("the preferred leaders of the shards are different nodes")
    bank.hosts.cut = {old}
    vote = bank.hosts.settle(bank.hosts.execute(participant, prepare, shard_id=1))
    assert vote.results
    bank.hosts.calls.clear()
    bank.hosts.run(8.0)
    assert any(isinstance(call.command, Resolve) for call in bank.hosts.calls)
    assert bank.balances()[1] == (100, 100)
    late = bank.submit(command)
    assert late.status is S.REJECTED
    bank.hosts.cut = set()
    bank.hosts.run(2.0)


def test_a_pending_transaction_expires_without_any_traffic(bank: Bank) -> None:
    command = bank.transfer({0: -30, 1: 30}, settled=False)
    expire_us = int((bank.hosts.now + 3.0) * 1e6)
    command = CreateTransaction(
        command.account_id, 0, "", False, "t", command.entries, expire_time_us=expire_us
    )
    begun = bank.submit(command)
    assert bank.finish(command, begun.number).status is S.PENDING
    assert bank.balances()[0] == (100, 70)
    bank.hosts.run(4.0)
    assert bank.balances()[:2] == [(100, 100), (100, 100)]
    leader = bank.hosts.leader(0)
    with bank.hosts.stores[leader].read_newest() as view:
        record = view.shard(0).find_transaction(begun.number)
    assert record is not None
    assert record.status is S.EXPIRED


def test_no_decision_is_made_twice(bank: Bank) -> None:
    """Repeats of a request, also while it is in flight, find the one transaction."""
    command = bank.transfer({0: -30, 1: 30})
    numbers = {bank.submit(command).number for _ in range(3)}
    (number,) = numbers
    bank.finish(command, number)
    assert bank.submit(command).number == number
    assert bank.balances()[:2] == [(70, 70), (130, 130)]
    assert not any(isinstance(call.command, Decide) for call in bank.hosts.calls)


def test_a_leader_does_not_answer_for_what_it_has_not_heard_of(bank: Bank) -> None:
    """Another node has replaced it, and told the caller of a transaction, or of a later state."""
    command = bank.transfer({0: -30, 1: 30}, settled=False)
    begun = bank.submit(command)
    bank.finish(command, begun.number)
    leader = bank.hosts.leader(0)
    for number, state in ((begun.number, 2), (begun.number + 100, 1)):
        replies: list = []
        bank.hosts.nodes[leader].await_transaction(0, number, state, replies.append)
        assert bank.hosts.settle(replies).outcome == shard_pb2.OUTCOME_NOT_LEADER


def test_a_full_store_is_not_asked_again_without_a_rest(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the log does not take now is tried again at a tick, not turn after turn."""
    command = bank.transfer({0: -30, 1: 30})
    bank.hosts.unreachable_shards = {1}
    begun = bank.submit(command)
    monkeypatch.setattr(Store, "full", lambda _self: "no room")
    bank.hosts.unreachable_shards = set()
    bank.hosts.run(VOTE_S_MAX + 1.0)
    for _ in range(20):
        bank.hosts.turn_all()
    assert all(node.next_turn_at() > bank.hosts.now for node in bank.hosts.nodes.values())
    monkeypatch.undo()
    bank.finish(command, begun.number)

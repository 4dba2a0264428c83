"""The checks find what they are there for: every kind of lie, made up here."""

from collections.abc import Callable

import pytest

from ledger.v1 import ledger_pb2
from tests.simulation import linearizability as lin
from tests.torture.checks import differences, plain_calls
from tests.torture.workload import (
    CANCELLED,
    INSUFFICIENT_FUNDS,
    PENDING,
    SETTLED,
    Account,
    Operation,
)

Case = tuple[Account, list[ledger_pb2.Transaction], ledger_pb2.Account]


def transaction(number: int, amount: int, status: int) -> ledger_pb2.Transaction:
    return ledger_pb2.Transaction(
        id=f"t{number}",
        request_id=f"r{number}",
        amount=amount,
        status=status,  # type: ignore[arg-type]
    )


def create(number: int, amount: int, status: int, *, settled: bool = True) -> Operation:
    """An acknowledged create, one second long, the n-th of them in the n-th second."""
    return Operation(
        "create",
        float(number),
        f"r{number}",
        amount,
        settled=settled,
        end_s=number + 0.9,
        answer=transaction(number, amount, status),
    )


def case() -> Case:
    """100 in, 30 held and settled, 20 held, 500 refused, 10 held and cancelled; all as it was."""
    account = Account("a", 0)
    account.operations = [
        Operation("open", 0.0, "r0", end_s=0.5, answer=ledger_pb2.Account(id="a")),
        create(1, 100, SETTLED),
        create(2, -30, PENDING, settled=False),
        create(3, -20, PENDING, settled=False),
        create(4, -500, INSUFFICIENT_FUNDS),
        create(5, -10, PENDING, settled=False),
        Operation(
            "settle", 6.0, "s2", transaction_id="t2", end_s=6.5, answer=transaction(2, -30, SETTLED)
        ),
        Operation(
            "cancel",
            7.0,
            "c5",
            transaction_id="t5",
            end_s=7.5,
            answer=transaction(5, -10, CANCELLED),
        ),
        Operation("create", 8.0, "r8", 77, refused="UNAVAILABLE"),
    ]
    listed = [
        transaction(5, -10, CANCELLED),
        transaction(4, -500, INSUFFICIENT_FUNDS),
        transaction(3, -20, PENDING),
        transaction(2, -30, SETTLED),
        transaction(1, 100, SETTLED),
    ]
    state = ledger_pb2.Account(settled_balance=70, available_balance=50, pending_transactions=1)
    return account, listed, state


def test_the_truth_passes() -> None:
    account, listed, state = case()
    assert differences(account, listed, state) == []
    assert lin.is_linearizable(plain_calls(account))


def _lose(_account: Account, listed: list[ledger_pb2.Transaction], _state: object) -> None:
    listed.pop(0)


def _double(_account: Account, listed: list[ledger_pb2.Transaction], _state: object) -> None:
    listed.append(transaction(1, 100, SETTLED))


def _invent(_account: Account, listed: list[ledger_pb2.Transaction], _state: object) -> None:
    listed.append(transaction(9, 0, SETTLED))


def _do_what_was_refused(
    _account: Account, listed: list[ledger_pb2.Transaction], state: ledger_pb2.Account
) -> None:
    listed.append(transaction(8, 77, SETTLED))
    state.settled_balance += 77
    state.available_balance += 77


def _change_amount(
    _account: Account, listed: list[ledger_pb2.Transaction], state: ledger_pb2.Account
) -> None:
    listed[-1].amount = 101
    state.settled_balance += 1
    state.available_balance += 1


def _forget_a_settlement(
    _account: Account, listed: list[ledger_pb2.Transaction], state: ledger_pb2.Account
) -> None:
    listed[3].status = PENDING
    state.settled_balance += 30
    state.pending_transactions += 1


def _wrong_balance(
    _account: Account, _listed: list[ledger_pb2.Transaction], state: ledger_pb2.Account
) -> None:
    state.available_balance += 1


@pytest.mark.parametrize(
    ("lie", "found"),
    [
        (_lose, "is missing"),
        (_double, "twice"),
        (_invent, "never asked for"),
        (_do_what_was_refused, "was refused, but it happened"),
        (_change_amount, "but there is"),
        (_forget_a_settlement, "but there is"),
        (_wrong_balance, "but its transactions make"),
    ],
)
def test_lies_are_found(
    lie: Callable[[Account, list[ledger_pb2.Transaction], ledger_pb2.Account], None], found: str
) -> None:
    account, listed, state = case()
    lie(account, listed, state)
    assert any(found in text for text in differences(account, listed, state))


def test_a_stale_answer_is_not_linearizable() -> None:
    account, _, _ = case()
    old = ledger_pb2.Account(settled_balance=100, available_balance=100)
    account.operations.append(Operation("read", 9.0, end_s=9.5, answer=old))
    assert not lin.is_linearizable(plain_calls(account))
    account.operations[-1].start_s = 1.95
    assert lin.is_linearizable(plain_calls(account))

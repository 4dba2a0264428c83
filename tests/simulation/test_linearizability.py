"""Small histories that are linearizable, or are not, and why."""

import random

import pytest

from tests.simulation.linearizability import (
    Call,
    CreateAccount,
    CreateTransaction,
    EndTransaction,
    GetBalances,
    Operation,
    check,
    is_linearizable,
)

A = "account"


def call(start_s: float, end_s: float | None, operation: Operation, result: object = None) -> Call:
    return Call(A, start_s, end_s, operation, result)


OPENED = call(0, 1, CreateAccount())


def pay(start_s: float, end_s: float | None, amount: int, status: str = "settled") -> Call:
    return call(start_s, end_s, CreateTransaction(amount, settled=True), (f"t{start_s}", status))


def read(start_s: float, end_s: float | None, settled: int, available: int | None = None) -> Call:
    result = (settled, settled if available is None else available)
    return call(start_s, end_s, GetBalances(), result)


LINEARIZABLE = {
    "nothing": [],
    "one after the other": [OPENED, pay(2, 3, 10), read(4, 5, 10), pay(6, 7, -4), read(8, 9, 6)],
    "a read during a write sees it": [OPENED, pay(2, 5, 10), read(3, 4, 10)],
    "a read during a write does not see it": [OPENED, pay(2, 5, 10), read(3, 4, 0)],
    "reads during a write see it from some moment on": [
        OPENED,
        pay(2, 9, 10),
        read(3, 4, 0),
        read(5, 6, 10),
    ],
    "concurrent writes in either order": [
        OPENED,
        pay(2, 5, 10),
        pay(2.5, 4, -10),
        read(6, 7, 0),
    ],
    "no account yet": [call(0, 1, GetBalances(), None), call(2, 3, CreateAccount())],
    "no account for a payment": [
        call(0, 1, CreateTransaction(5, settled=True), None),
        call(2, 3, CreateAccount()),
    ],
    "overspending is refused": [OPENED, pay(2, 3, -1, "insufficient funds"), read(4, 5, 0)],
    "an unknown write that took effect later": [
        OPENED,
        pay(2, None, 10),
        read(3, 4, 0),
        read(5, 6, 0),
        read(7, 8, 10),
    ],
    "an unknown write that never took effect": [
        OPENED,
        pay(2, None, 10),
        read(3, 4, 0),
        pay(5, 6, -10, "insufficient funds"),
    ],
    "an unknown read": [OPENED, call(2, None, GetBalances()), read(3, 4, 0)],
    "the life of a reservation": [
        OPENED,
        pay(2, 3, 100),
        call(4, 5, CreateTransaction(-60, settled=False), ("t", "pending")),
        read(6, 7, 100, 40),
        pay(8, 9, -50, "insufficient funds"),
        call(10, 11, EndTransaction("t", settle=True), True),
        call(12, 13, EndTransaction("t", settle=False), False),
        read(14, 15, 40),
    ],
    "a cancelled reservation": [
        OPENED,
        pay(2, 3, 100),
        call(4, 5, CreateTransaction(-60, settled=False), ("t", "pending")),
        call(6, 7, EndTransaction("t", settle=False), True),
        read(8, 9, 100),
    ],
    "settled by an unknown call": [
        OPENED,
        call(2, 3, CreateTransaction(7, settled=False), ("t", "pending")),
        call(4, None, EndTransaction("t", settle=True)),
        read(5, 6, 0),
        read(7, 8, 7),
        call(9, 10, EndTransaction("t", settle=False), False),
    ],
}

NOT_LINEARIZABLE = {
    "stale read": [OPENED, pay(2, 3, 10), read(4, 5, 0)],
    "reads that go back": [OPENED, pay(2, 9, 10), read(3, 4, 10), read(5, 6, 0)],
    "lost update": [OPENED, pay(2, 3, 10), pay(4, 5, 20), read(6, 7, 20)],
    "double apply": [OPENED, pay(2, 3, 10), read(4, 5, 20)],
    "double apply of an unknown write": [OPENED, pay(2, None, 10), read(4, 5, 20)],
    "an unknown write that was undone": [
        OPENED,
        pay(2, None, 10),
        read(3, 4, 10),
        read(5, 6, 0),
    ],
    "an effect before its call": [OPENED, read(2, 3, 10), pay(4, 5, 10)],
    "overspending": [OPENED, pay(2, 3, 10), pay(4, 5, -20)],
    "both overspend together": [OPENED, pay(2, 3, 10), pay(4, 7, -10), pay(5, 6, -10)],
    "refused in spite of funds": [OPENED, pay(2, 3, 10), pay(4, 5, -5, "insufficient funds")],
    "settled and cancelled": [
        OPENED,
        pay(2, 3, 100),
        call(4, 5, CreateTransaction(-60, settled=False), ("t", "pending")),
        call(6, 9, EndTransaction("t", settle=True), True),
        call(7, 8, EndTransaction("t", settle=False), True),
    ],
    "opened twice": [OPENED, call(2, 3, CreateAccount())],
    "a pending inflow that counts": [
        OPENED,
        call(2, 3, CreateTransaction(7, settled=False), ("t", "pending")),
        read(4, 5, 0, 7),
    ],
    "settled without anyone": [
        OPENED,
        call(2, 3, CreateTransaction(7, settled=False), ("t", "pending")),
        call(4, 5, EndTransaction("t", settle=True), False),
    ],
}


@pytest.mark.parametrize("name", LINEARIZABLE)
def test_linearizable(name: str) -> None:
    assert is_linearizable(LINEARIZABLE[name])


@pytest.mark.parametrize("name", NOT_LINEARIZABLE)
def test_not_linearizable(name: str) -> None:
    assert not is_linearizable(NOT_LINEARIZABLE[name])


def test_accounts_are_independent() -> None:
    stale = NOT_LINEARIZABLE["stale read"]
    other = [Call("other", c.start_s, c.end_s, c.operation, c.result) for c in stale]
    fine = LINEARIZABLE["one after the other"]
    assert check(fine) is None
    assert check([*fine, *other]) == "other"


def test_a_hint_guides_and_proves_nothing() -> None:
    for histories, expected in ((LINEARIZABLE, True), (NOT_LINEARIZABLE, False)):
        for history in histories.values():
            for order in (1, -1):
                hinted = [
                    Call(c.account, c.start_s, c.end_s, c.operation, c.result, order * i)
                    for i, c in enumerate(history)
                ]
                assert is_linearizable(hinted) is expected


@pytest.mark.parametrize("seed", range(40))
def test_histories_made_from_an_order(seed: int) -> None:
    """Calls around the moments of a serial run are linearizable; with one wrong read, not."""
    rng = random.Random(seed)
    balance, moment_s = 0, 1.0
    history = [OPENED]
    for _ in range(60):
        moment_s += rng.random()
        start_s, end_s = moment_s - rng.random() * 3, moment_s + rng.random() * 3
        if rng.random() < 0.4:
            history.append(read(max(start_s, 1), end_s, balance))
        else:
            amount = rng.choice((1, 5, -3, -8))
            enough = balance + amount >= 0
            balance += amount if enough else 0
            unknown = rng.random() < 0.15
            status = "settled" if enough else "insufficient funds"
            history.append(pay(max(start_s, 1), None if unknown else end_s, amount, status))
    history.append(read(moment_s + 10, moment_s + 11, balance))
    rng.shuffle(history)
    assert is_linearizable(history)
    assert not is_linearizable([*history, read(moment_s + 12, moment_s + 13, balance + 1000)])

"""The witness itself: it must notice what it is there to notice. No process is started here."""

from copy import deepcopy

import pytest

from ledger.v1 import ledger_pb2
from ledger_cli.traffic import SETTLED, Traffic, Write, differences


def _transaction(number: int, amount: int) -> ledger_pb2.Transaction:
    return ledger_pb2.Transaction(
        id=f"t{number}", request_id=f"r{number}", amount=amount, status=SETTLED
    )


WRITES = [Write(f"r{n}", "a", amount, _transaction(n, amount)) for n, amount in enumerate((5, 7))]
LISTED = [_transaction(1, 7), _transaction(0, 5)]


def _account(balance: int) -> ledger_pb2.Account:
    return ledger_pb2.Account(settled_balance=balance, available_balance=balance)


def test_what_is_as_it_was_answered() -> None:
    assert differences(WRITES, LISTED, _account(12)) == []


@pytest.mark.parametrize(
    ("listed", "balance", "fault"),
    [
        (LISTED[:1], 12, "transaction t0 was acknowledged and is missing"),
        ([*LISTED, LISTED[0]], 12, "request r1 is there 2 times"),
        ([*LISTED, _transaction(2, 1)], 12, "transaction t2 was never asked for"),
        ([LISTED[0], _transaction(0, 6)], 12, "transaction t0 is not as it was answered"),
        (LISTED, 17, "settled 17 and available 17, but what was acknowledged sums to 12"),
    ],
)
def test_what_is_not(listed: list[ledger_pb2.Transaction], balance: int, fault: str) -> None:
    assert differences(WRITES, listed, _account(balance)) == [fault]


def test_two_requests_with_one_transaction() -> None:
    writes = deepcopy(WRITES)
    writes[1].answer = writes[0].answer
    assert "2 writes have only 1 transactions" in differences(writes, LISTED, _account(12))


def test_a_pause_counts_from_the_last_answer_before(monkeypatch: pytest.MonkeyPatch) -> None:
    traffic = Traffic(None, {3: ["a"], 4: ["b"]})  # type: ignore[arg-type]  # nothing is sent
    traffic._answered_at = {3: [1.0, 2.0, 3.5, 3.6], 4: [1.0]}
    monkeypatch.setattr("time.monotonic", lambda: 4.0)
    assert traffic.longest_pause_s(3, 2.2, 4.0) == 1.5
    assert traffic.pauses_s(3.55, 4.0) == {3: pytest.approx(0.4), 4: 3.0}
    assert not traffic.has_answers_since(1.0)

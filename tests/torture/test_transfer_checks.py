"""The checks of transfers find what they are there for: every kind of lie, made up here."""

from collections.abc import Callable
from copy import deepcopy

import pytest

from ledger.v1 import ledger_pb2
from ledger_client import credit, debit
from tests.torture.transfer_checks import Books, differences
from tests.torture.transfers import Step
from tests.torture.workload import INSUFFICIENT_FUNDS, PENDING, SETTLED

Lie = Callable[[Books], object]


def made(number: int, amount: int, status: int, **fields: object) -> ledger_pb2.Transaction:
    """Of a to b, as the ledger answers."""
    return ledger_pb2.Transaction(
        id=f"t{number}",
        request_id=f"r{number}",
        account_id="a",
        status=status,  # type: ignore[arg-type]
        entries=[debit("a", amount), credit("b", amount)],
        **fields,  # type: ignore[arg-type]
    )


def top_up() -> ledger_pb2.Transaction:
    entries = [debit("external", 100), credit("a", 100)]
    return ledger_pb2.Transaction(
        id="t0", request_id="r0", account_id="a", status=SETTLED, entries=entries
    )


def transfer(number: int, amount: int, status: int) -> Step:
    answer = made(number, amount, status)
    return Step("transfer", "a", f"r{number}", tuple(answer.entries), answer=answer)


def case() -> tuple[list[Step], Books]:
    """100 into a; 30 to b, 10 of them back; 20 held and 5 of them settled; 6 held; 500 refused."""
    back = ledger_pb2.Transaction(
        id="t4",
        request_id="r4",
        account_id="a",
        status=SETTLED,
        entries=[credit("a", 10), debit("b", 10)],
        reversal_of="t1",
    )
    steps = [
        Step("move", "a", "r0", amount=100, answer=top_up()),
        transfer(1, 30, SETTLED),
        transfer(2, 20, PENDING),
        transfer(3, 500, INSUFFICIENT_FUNDS),
        Step("settle", "a", "s2", amount=5, transaction_id="t2", answer=made(2, 20, SETTLED)),
        Step("reverse", "a", "r4", amounts=(10, 10), transaction_id="t1", answer=back),
        transfer(5, 6, PENDING),
        Step("transfer", "a", "r6", refused=True),
    ]
    partly = made(2, 20, SETTLED, settled_amount=5)
    at_home = [
        made(5, 6, PENDING),
        back,
        made(3, 500, INSUFFICIENT_FUNDS),
        partly,
        made(1, 30, SETTLED, reversed_amounts=[10, 10]),
        top_up(),
    ]
    at_other = [made(5, 6, PENDING), back, partly, made(1, 30, SETTLED)]
    accounts = {
        "a": ledger_pb2.Account(settled_balance=75, available_balance=69, pending_transactions=1),
        "b": ledger_pb2.Account(settled_balance=25, available_balance=25, pending_transactions=1),
    }
    # Not the same objects twice: a lie about one side must leave the other alone.
    return steps, Books(accounts, {"a": at_home, "b": [deepcopy(item) for item in at_other]})


def test_the_truth_passes() -> None:
    assert differences(*case()) == []


def only_half(books: Books) -> object:
    books.accounts["b"].settled_balance -= 30
    books.accounts["b"].available_balance -= 30
    return books.histories["b"].pop()


def twice(books: Books) -> None:
    books.histories["b"].append(books.histories["b"][-1])


def invented(books: Books) -> None:
    books.histories["b"].append(made(9, 1, SETTLED))


def refused_and_done(books: Books) -> None:
    books.histories["b"].append(made(3, 500, SETTLED))


def done_though_nothing_was(books: Books) -> None:
    books.histories["a"].append(made(6, 1, SETTLED))


def undecided(books: Books) -> None:
    books.histories["b"][0].status = ledger_pb2.TRANSACTION_STATUS_UNDECIDED


def other_part(books: Books) -> None:
    books.histories["b"][2].settled_amount = 6


def money_made(books: Books) -> None:
    books.accounts["a"].settled_balance += 1


def reversal_forgotten(books: Books) -> None:
    books.histories["a"][4].reversed_amounts[:] = [5, 5]


@pytest.mark.parametrize(
    ("lie", "found"),
    [
        (only_half, "is not in the histories of ['b']"),
        (twice, "b has r1 twice"),
        (invented, "was never made"),
        (refused_and_done, "was refused, but b shows"),
        (done_though_nothing_was, "r6 was refused, but a shows"),
        (undecided, "is shown by b as"),
        (other_part, "was settled in different parts"),
        (money_made, "but 100 was brought in"),
        (money_made, "but its transactions make 75 and 69"),
        (reversal_forgotten, "was reversed by 20"),
    ],
)
def test_lies_are_found(lie: Lie, found: str) -> None:
    steps, books = case()
    lie(books)
    assert any(found in text for text in differences(steps, books))

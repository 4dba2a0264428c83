"""The rules of the ledger, each by commands and results only."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger_core.accounts import Direction, TransactionStatus
from ledger_core.commands import (
    CancelTransaction,
    CreateAccount,
    CreateTransaction,
    Entry,
    Limits,
    SettleTransaction,
    UpdateAccount,
    encode_batch,
    encode_command,
)
from ledger_core.errors import Reason
from ledger_core.ids import derive_account_id, system_account_id
from ledger_core.ledgers import USD
from ledger_core.money import INT64_MAX
from ledger_core.queries import GetAccount, GetTransaction, ListTransactions
from ledger_core.results import AccountView, Failure, TransactionPage, TransactionView
from ledger_node.books import InvariantError
from ledger_node.state_machine import StateMachine
from tests.node.shard import Shard

ACCOUNT = derive_account_id("main", "alice")
OTHER = derive_account_id("main", "bob")
EXTERNAL = system_account_id(0, 0)


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    shard = Shard(tmp_path / "shard")
    shard.one(CreateAccount(ACCOUNT, "main", "alice"))
    yield shard
    audit = shard.audit()
    assert audit.faults == []
    shard.close()


def put(
    amount: int, request_id: str, *, settled: bool = True, account_id: int = ACCOUNT
) -> CreateTransaction:
    return CreateTransaction(account_id, amount, "", settled, request_id)


def account(shard: Shard, account_id: int = ACCOUNT) -> AccountView:
    view = shard.ask(GetAccount(account_id))
    assert isinstance(view, AccountView)
    return view


def balances(shard: Shard, account_id: int = ACCOUNT) -> tuple[int, int]:
    view = account(shard, account_id)
    return view.settled_balance, view.available_balance


def test_money_in_is_a_credit_of_the_account_and_a_debit_of_the_external_account(
    shard: Shard,
) -> None:
    transaction = shard.transaction(put(1000, "t1"))
    assert [(e.account_id, e.direction, e.amount) for e in transaction.entries] == [
        (ACCOUNT, Direction.CREDIT, 1000),
        (EXTERNAL, Direction.DEBIT, 1000),
    ]
    assert balances(shard) == (1000, 1000)
    assert balances(shard, EXTERNAL) == (1000, 1000)


def test_a_pending_outflow_is_reserved_and_a_pending_inflow_is_not_available(
    shard: Shard,
) -> None:
    shard.apply(put(1000, "t1"), put(-300, "t2", settled=False), put(50, "t3", settled=False))
    assert balances(shard) == (1000, 700)
    assert account(shard).pending_transactions == 2


@pytest.mark.parametrize(("amount", "settled_after"), [(-300, 700), (300, 1300)])
def test_settling_moves_the_money_for_good(shard: Shard, amount: int, settled_after: int) -> None:
    shard.one(put(1000, "t1"))
    pending = shard.transaction(put(amount, "t2", settled=False))
    settled = shard.transaction(SettleTransaction(ACCOUNT, pending.number, "s"))
    assert settled.status is TransactionStatus.SETTLED
    assert balances(shard) == (settled_after, settled_after)
    assert account(shard).pending_transactions == 0


@pytest.mark.parametrize("amount", [-300, 300])
def test_cancelling_leaves_the_balances_as_before(shard: Shard, amount: int) -> None:
    shard.one(put(1000, "t1"))
    pending = shard.transaction(put(amount, "t2", settled=False))
    cancelled = shard.transaction(CancelTransaction(ACCOUNT, pending.number, "c"))
    assert cancelled.status is TransactionStatus.CANCELLED
    assert balances(shard) == (1000, 1000)
    assert account(shard).pending_transactions == 0


@pytest.mark.parametrize("settled", [True, False])
def test_an_outflow_may_take_the_last_cent_but_not_one_more(shard: Shard, settled: bool) -> None:
    shard.apply(put(1000, "t1"), put(-400, "t2", settled=False))
    refused = shard.transaction(put(-601, "t3", settled=settled))
    assert refused.status is TransactionStatus.INSUFFICIENT_FUNDS
    assert refused.refusal is not None
    assert (refused.refusal.required_amount, refused.refusal.available_amount) == (601, 600)
    assert "has 6.00 USD available, needs 6.01 USD (4.00 USD reserved" in refused.refusal.message
    assert balances(shard) == (1000, 600)
    accepted = shard.transaction(put(-600, "t4", settled=settled))
    assert accepted.status is not TransactionStatus.INSUFFICIENT_FUNDS
    assert balances(shard)[1] == 0


def test_a_refusal_is_sticky(shard: Shard) -> None:
    refused = shard.transaction(put(-1, "t1"))
    shard.one(put(1000, "t2"))
    assert shard.transaction(put(-1, "t1")) == refused
    assert balances(shard) == (1000, 1000)


def test_a_repeat_gives_the_first_result_even_after_the_transaction_went_on(
    shard: Shard,
) -> None:
    pending = shard.transaction(put(500, "t1", settled=False))
    settled = shard.transaction(SettleTransaction(ACCOUNT, pending.number, "s"))
    assert shard.transaction(put(500, "t1", settled=False)) == pending
    assert shard.transaction(SettleTransaction(ACCOUNT, pending.number, "s")) == settled
    assert shard.ask(GetTransaction(ACCOUNT, pending.number)) == settled
    assert balances(shard) == (500, 500)


def test_a_repeat_inside_one_batch_counts_once(shard: Shard) -> None:
    results = shard.apply(put(500, "t1"), put(500, "t1"), put(500, "t1"))
    assert results[0] == results[1] == results[2]
    assert balances(shard) == (500, 500)


def test_a_repeated_account_creation_gives_the_account_as_it_was_opened(shard: Shard) -> None:
    opened = shard.one(CreateAccount(OTHER, "main", "bob"))
    shard.one(put(100, "t1", account_id=OTHER))
    assert shard.one(CreateAccount(OTHER, "main", "bob")) == opened


@pytest.mark.parametrize(
    ("changed", "differing"),
    [
        (CreateTransaction(ACCOUNT, 501, "", True, "t1"), "amount"),
        (CreateTransaction(ACCOUNT, 500, "other", True, "t1"), "description"),
        (CreateTransaction(ACCOUNT, 500, "", False, "t1"), "settled"),
        (CreateTransaction(ACCOUNT, -500, "x", False, "t1"), "amount,description,settled"),
    ],
)
def test_another_body_under_a_used_request_id_is_refused_and_named(
    shard: Shard, changed: CreateTransaction, differing: str
) -> None:
    shard.one(put(500, "t1"))
    failure = shard.failure(changed)
    assert failure.reason is Reason.REQUEST_ID_REUSED
    assert failure.metadata == {"differing_fields": differing}
    assert balances(shard) == (500, 500)


def test_a_settle_and_a_cancel_cannot_share_a_request_id(shard: Shard) -> None:
    pending = shard.transaction(put(500, "t1", settled=False))
    shard.one(SettleTransaction(ACCOUNT, pending.number, "end"))
    failure = shard.failure(CancelTransaction(ACCOUNT, pending.number, "end"))
    assert (failure.reason, failure.metadata) == (
        Reason.REQUEST_ID_REUSED,
        {"differing_fields": "method"},
    )


def test_request_ids_of_different_accounts_and_transactions_are_apart(shard: Shard) -> None:
    shard.one(CreateAccount(OTHER, "main", "bob"))
    first = shard.transaction(put(500, "same", settled=False))
    second = shard.transaction(put(700, "same", settled=False, account_id=OTHER))
    shard.transaction(SettleTransaction(ACCOUNT, first.number, "same"))
    shard.transaction(CancelTransaction(OTHER, second.number, "same"))
    assert balances(shard) == (500, 500)
    assert balances(shard, OTHER) == (0, 0)


# Refusals, in the order in which they take precedence.

NOT_PENDING_COMMANDS = [
    (end, again)
    for end in (SettleTransaction, CancelTransaction)
    for again in (SettleTransaction, CancelTransaction)
]


@pytest.mark.parametrize(("end", "again"), NOT_PENDING_COMMANDS)
def test_only_pending_transactions_can_be_ended(shard: Shard, end: type, again: type) -> None:
    pending = shard.transaction(put(500, "t1", settled=False))
    ended = shard.transaction(end(ACCOUNT, pending.number, "first"))
    failure = shard.failure(again(ACCOUNT, pending.number, "second"))
    assert failure.reason is Reason.TRANSACTION_NOT_PENDING
    assert failure.field == "transaction_id"
    assert failure.metadata["status"] == ended.status.name
    assert shard.ask(GetTransaction(ACCOUNT, pending.number)) == ended


@pytest.mark.parametrize("end", [SettleTransaction, CancelTransaction])
def test_a_settled_or_refused_transaction_cannot_be_ended(shard: Shard, end: type) -> None:
    settled = shard.transaction(put(500, "t1"))
    refused = shard.transaction(put(-501, "t2"))
    for transaction in (settled, refused):
        failure = shard.failure(end(ACCOUNT, transaction.number, "e"))
        assert failure.reason is Reason.TRANSACTION_NOT_PENDING
    assert balances(shard) == (500, 500)


@pytest.mark.parametrize("end", [SettleTransaction, CancelTransaction])
def test_a_transaction_is_found_only_under_its_own_account(shard: Shard, end: type) -> None:
    shard.one(CreateAccount(OTHER, "main", "bob"))
    pending = shard.transaction(put(500, "t1", settled=False))
    for account_id, number in ((OTHER, pending.number), (ACCOUNT, 99), (ACCOUNT, 0)):
        failure = shard.failure(end(account_id, number, "e"))
        assert (failure.reason, failure.field) == (Reason.TRANSACTION_NOT_FOUND, "transaction_id")
        found = shard.ask(GetTransaction(account_id, number))
        assert isinstance(found, Failure)
        assert found.reason is Reason.TRANSACTION_NOT_FOUND


def test_an_unknown_account_is_refused_before_anything_else(shard: Shard) -> None:
    failure = shard.failure(put(-INT64_MAX, "t1", account_id=OTHER))
    assert (failure.reason, failure.field) == (Reason.ACCOUNT_NOT_FOUND, "account_id")
    # Nothing was recorded: once the account exists, the same request is free to succeed.
    shard.one(CreateAccount(OTHER, "main", "bob"))
    assert shard.transaction(put(5, "t1", account_id=OTHER)).status is TransactionStatus.SETTLED


def test_an_account_id_of_another_request_is_never_overwritten(shard: Shard) -> None:
    shard.one(put(500, "t1"))
    failure = shard.failure(CreateAccount(ACCOUNT, "main", "mallory"))
    assert (failure.reason, failure.field) == (Reason.ACCOUNT_ID_TAKEN, "request_id")
    assert balances(shard) == (500, 500)


def test_ids_kept_for_the_shards_own_accounts_cannot_be_opened(shard: Shard) -> None:
    failure = shard.failure(CreateAccount(system_account_id(0, 7), "main", "mallory"))
    assert failure.reason is Reason.ACCOUNT_ID_TAKEN


def test_the_external_account_moves_only_as_the_other_side(shard: Shard) -> None:
    failure = shard.failure(put(500, "t1", account_id=EXTERNAL))
    assert (failure.reason, failure.field) == (Reason.SYSTEM_ACCOUNT, "account_id")


def test_counters_never_overflow(shard: Shard) -> None:
    shard.one(CreateAccount(OTHER, "main", "bob"))
    assert shard.transaction(put(INT64_MAX - 10, "t1")).status is TransactionStatus.SETTLED
    before = account(shard)
    for settled in (True, False):
        failure = shard.failure(put(11, f"t2{settled}", settled=settled))
        assert (failure.reason, failure.field) == (Reason.BALANCE_OVERFLOW, "amount")
        assert failure.metadata["room"] == "10"
    assert account(shard) == before
    # The shard's external account is the other side of every account's money.
    assert shard.failure(put(11, "t3", account_id=OTHER)).reason is Reason.BALANCE_OVERFLOW
    assert shard.transaction(put(10, "t4")).status is TransactionStatus.SETTLED
    # What is refused for its funds moves nothing, so it overflows nothing.
    shard.one(put(-5, "t5"))
    refused = shard.transaction(put(-INT64_MAX, "t6"))
    assert refused.status is TransactionStatus.INSUFFICIENT_FUNDS
    assert balances(shard) == (INT64_MAX - 5, INT64_MAX - 5)


def test_pending_money_counts_towards_overflow_so_that_settling_never_fails(
    shard: Shard,
) -> None:
    pending = shard.transaction(put(INT64_MAX, "t1", settled=False))
    assert shard.failure(put(1, "t2")).reason is Reason.BALANCE_OVERFLOW
    # Not even another account may take the room that the external account needs.
    shard.one(CreateAccount(OTHER, "main", "bob"))
    assert shard.failure(put(1, "t3", account_id=OTHER)).reason is Reason.BALANCE_OVERFLOW
    shard.transaction(SettleTransaction(ACCOUNT, pending.number, "s"))
    assert balances(shard) == (INT64_MAX, INT64_MAX)


def test_a_failure_takes_no_transaction_number(shard: Shard) -> None:
    first = shard.transaction(put(500, "t1"))
    shard.failure(put(5, "t2", account_id=OTHER))
    shard.failure(SettleTransaction(ACCOUNT, first.number, "s"))
    assert shard.transaction(put(500, "t3")).number == first.number + 1


# Time, history, log


def test_time_never_runs_backwards(shard: Shard) -> None:
    shard.apply(put(1, "t1"), time_us=5_000_000)
    (late,) = shard.apply(put(1, "t2"), time_us=4_000_000)
    assert isinstance(late, TransactionView)
    assert late.create_time_us == 5_000_000


def test_pages_list_newest_first_and_stay_stable_while_writes_go_on(shard: Shard) -> None:
    numbers = [shard.transaction(put(1, f"t{i}", settled=i % 3 > 0)).number for i in range(10)]
    shard.transaction(SettleTransaction(ACCOUNT, numbers[0], "s"))
    shard.transaction(put(-1_000, "refused"))
    listed: list[int] = []
    sequence = position = 0
    while True:
        page = shard.ask(ListTransactions(ACCOUNT, 3, sequence, position))
        assert isinstance(page, TransactionPage)
        assert len(page.transactions) <= 3
        listed += [t.number for t in page.transactions]
        shard.one(put(1, f"while listing {len(listed)}"))
        sequence, position = page.next_sequence, page.next_position
        if not position:
            break
    assert listed == [numbers[-1] + 1, *reversed(numbers)]


@pytest.mark.parametrize("cursor", [(1, 10_000), (5, 1), (2, 2)])
def test_a_cursor_that_points_nowhere_is_refused(shard: Shard, cursor: tuple[int, int]) -> None:
    shard.one(put(1, "t1"))
    failure = shard.ask(ListTransactions(ACCOUNT, 3, *cursor))
    assert isinstance(failure, Failure)
    assert (failure.reason, failure.field) == (Reason.INVALID_FIELDS, "page_token")


def test_a_log_entry_is_never_applied_twice(shard: Shard) -> None:
    shard.one(put(1, "t1"))
    index, payload = shard.log[-1]
    with pytest.raises(InvariantError, match="applied already"):
        StateMachine(shard.store.shard(0), 0).apply(index, payload)
    shard.store.abort()


def test_the_hash_chain_covers_order_payload_and_outcome(tmp_path: Path) -> None:
    def chain(name: str, *batches: tuple[CreateTransaction, ...]) -> bytes:
        shard = Shard(tmp_path / name)
        shard.one(CreateAccount(ACCOUNT, "main", "alice"))
        for batch in batches:
            shard.apply(*batch, time_us=2_000_000)
        result = shard.audit().chain_hash
        shard.close()
        return result

    a, b = put(1, "a"), put(2, "b")
    chains = [
        chain("1", (a, b)),
        chain("2", (b, a)),
        chain("3", (a,), (b,)),
        chain("4", (a,)),
        chain("5", (a, put(3, "b"))),
    ]
    assert len(set(chains)) == len(chains)
    assert chain("again", (a, b)) == chains[0]


def test_books_that_do_not_balance_stop_the_replica(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A bug in the rules: the external account's entry keeps the customer's direction.
    monkeypatch.setattr(Direction, "opposite", property(lambda self: self))
    payload = encode_batch(1, [encode_command(put(5, "t1"))])
    with pytest.raises(InvariantError, match="unbalanced"):
        StateMachine(shard.store.shard(0), 0).apply(99, payload)
    shard.store.abort()


def test_money_that_comes_and_goes_in_one_transaction_needs_no_funds_below_the_minimum(
    shard: Shard,
) -> None:
    """The minimum was raised above the balance: what leaves the balance as it is still goes."""
    shard.one(UpdateAccount(ACCOUNT, "u", 0, limits=Limits(500)))
    entries = [
        Entry(ACCOUNT, Direction.DEBIT, 9, USD, 0),
        Entry(ACCOUNT, Direction.CREDIT, 9, USD, 0),
    ]
    settled = shard.transaction(CreateTransaction(ACCOUNT, 0, "", True, "t", entries))
    assert settled.status is TransactionStatus.SETTLED
    # Pending it would reserve what is not there.
    pending = shard.transaction(CreateTransaction(ACCOUNT, 0, "", False, "p", entries))
    assert pending.status is TransactionStatus.INSUFFICIENT_FUNDS

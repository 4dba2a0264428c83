"""Transactions of many entries, up to the limit, and with amounts up to what 64 bits hold."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger_core.accounts import AccountType, Direction, TransactionStatus
from ledger_core.commands import (
    NO_OVERDRAFT,
    CreateAccount,
    CreateTransaction,
    CreateTransfers,
    Entry,
    Limits,
    UpdateAccount,
)
from ledger_core.errors import RefusalReason
from ledger_core.ids import derive_account_id, shard_key
from ledger_core.ledgers import USD
from ledger_core.money import INT64_MAX
from ledger_core.results import RefusalView, TransactionView, TransfersView
from ledger_core.transfers import TransferForm
from tests.node.several_shards import World
from tests.node.shard import Shard

D, C = Direction.DEBIT, Direction.CREDIT
HALF = 2**62


def account(name: str) -> int:
    return derive_account_id("main", name)


def entry(name: str, direction: Direction, amount: int) -> Entry:
    return Entry(account(name), direction, amount, USD, 0)


def create(*entries: Entry, request_id: str = "t", settled: bool = True) -> CreateTransaction:
    return CreateTransaction(entries[0].account_id, 0, "", settled, request_id, list(entries))


def open_account(
    shard: Shard,
    name: str,
    type_: AccountType = AccountType.LIABILITY,
    limits: Limits = NO_OVERDRAFT,
) -> None:
    shard.one(CreateAccount(account(name), "main", name, type_, limits=limits))


def refused(shard: Shard, command: CreateTransaction) -> RefusalView:
    before = shard.audit()
    view = shard.transaction(command)
    after = shard.audit()
    assert (after.sums, after.faults) == (before.sums, [])
    assert view.status.is_refusal
    assert view.refusal is not None
    return view.refusal


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    shard = Shard(tmp_path)
    for name in ("a", "b", "c"):
        open_account(shard, name)
    for name in ("cash", "bank", "till"):
        open_account(shard, name, AccountType.ASSET)
    yield shard
    assert shard.audit().faults == []
    shard.close()


# Amounts


@pytest.mark.parametrize("settled", [True, False])
def test_entries_on_one_side_of_an_account_overflow_it_together(
    shard: Shard, settled: bool
) -> None:
    """Each of them alone would fit."""
    found = refused(
        shard,
        create(
            entry("cash", D, HALF),
            entry("a", C, HALF),
            entry("bank", D, HALF),
            entry("a", C, HALF),
            settled=settled,
        ),
    )
    assert (found.reason, found.entry_index) == (RefusalReason.BALANCE_OVERFLOW, 3)
    assert (found.required_amount, found.available_amount) == (INT64_MAX, INT64_MAX)
    fits = create(
        entry("cash", D, HALF),
        entry("a", C, HALF),
        entry("bank", D, HALF - 1),
        entry("a", C, HALF - 1),
        request_id="fits",
    )
    assert shard.transaction(fits).status is TransactionStatus.SETTLED


def test_an_outflow_may_be_larger_than_what_can_be_said(shard: Shard) -> None:
    found = refused(
        shard,
        create(
            entry("a", D, INT64_MAX),
            entry("b", C, INT64_MAX),
            entry("a", D, INT64_MAX),
            entry("c", C, INT64_MAX),
            entry("a", D, INT64_MAX),
            entry("cash", C, INT64_MAX),
        ),
    )
    assert (found.reason, found.entry_index) == (RefusalReason.INSUFFICIENT_FUNDS, 0)
    assert (found.required_amount, found.available_amount) == (INT64_MAX, 0)


def test_an_inflow_may_be_larger_than_what_can_be_said(shard: Shard) -> None:
    open_account(shard, "small", limits=Limits(maximum=10))
    entries = []
    for name in ("cash", "bank", "till"):
        entries += [entry(name, D, INT64_MAX), entry("small", C, INT64_MAX)]
    found = refused(shard, create(*entries))
    assert (found.reason, found.entry_index) == (RefusalReason.LIMIT_EXCEEDED, 1)
    assert (found.required_amount, found.available_amount) == (INT64_MAX, 10)


def test_what_is_available_may_be_more_than_what_can_be_said(shard: Shard) -> None:
    open_account(shard, "rich", limits=Limits(minimum=-INT64_MAX))
    shard.transaction(CreateTransaction(account("rich"), INT64_MAX, "", True, "f"))
    entries = []
    for name in ("a", "b", "c"):
        entries += [entry("rich", D, INT64_MAX), entry(name, C, INT64_MAX)]
    found = refused(shard, create(*entries))
    assert (found.reason, found.entry_index) == (RefusalReason.INSUFFICIENT_FUNDS, 0)
    assert (found.required_amount, found.available_amount) == (INT64_MAX, INT64_MAX)


@pytest.mark.parametrize("in_a_block", [False, True])
def test_what_is_missing_may_be_more_than_what_can_be_said(shard: Shard, in_a_block: bool) -> None:
    open_account(shard, "poor", limits=Limits(minimum=None))
    shard.transaction(CreateTransaction(account("poor"), -INT64_MAX, "", True, "f"))
    shard.one(UpdateAccount(account("poor"), "u", 0, limits=Limits(minimum=INT64_MAX)))
    if in_a_block:
        view = shard.one(
            CreateTransfers(
                routing_id=account("poor"),
                ledger="main",
                currency=USD,
                forms=bytes([TransferForm.DEBIT]),
                first_accounts=account("poor").to_bytes(8, "little"),
                second_accounts=account("a").to_bytes(8, "little"),
                amounts=(1).to_bytes(8, "little"),
                request_ids=bytes(16),
            )
        )
        assert isinstance(view, TransfersView)
        found = view.refusals[0]
    else:
        found = refused(shard, create(entry("poor", D, 1), entry("a", C, 1)))
    assert (found.reason, found.available_amount) == ("INSUFFICIENT_FUNDS", -INT64_MAX)


def test_what_a_shard_is_due_may_be_larger_than_what_can_be_said(tmp_path: Path) -> None:
    """Its accounts have room for it, but the account between the shards has not."""
    world = World(tmp_path, funds=0)
    names = iter(range(1_000))
    entries: list[Entry] = []
    for shard_id, side in ((0, D), (1, C)):
        found = 0
        while found < 3:
            name = f"more {next(names)}"
            bounds = world.shards[shard_id].shard
            if bounds.lower_bound <= shard_key(account(name)) <= bounds.upper_bound:
                kind = AccountType.ASSET if side is D else AccountType.LIABILITY
                world.apply(shard_id, CreateAccount(account(name), "main", name, kind))
                entries.append(Entry(account(name), side, INT64_MAX, USD, shard_id))
                found += 1
    view = world.begin(world.create(entries, "t"))
    assert isinstance(view, TransactionView)
    world.drive()
    record = world.record(0, view.number)
    assert record.status is TransactionStatus.REJECTED
    assert record.refusal is not None
    assert record.refusal.reason is RefusalReason.BALANCE_OVERFLOW
    assert record.refusal.required_amount == INT64_MAX
    world.check_nothing_is_in_flight()
    world.check_every_shard_balances()
    world.close()

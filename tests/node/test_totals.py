"""Sums by group and by effective time, and what transactions are listed under."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from ledger_core.accounts import AccountType, Counters, Direction, GroupRole
from ledger_core.commands import (
    CancelTransaction,
    CreateAccount,
    CreateTransaction,
    Entry,
    Limits,
    ReverseTransaction,
    SettleTransaction,
)
from ledger_core.durations import duration_bucket
from ledger_core.ids import derive_account_id, metadata_key_digest, reference_digest
from ledger_core.ledgers import USD
from ledger_core.money import INT64_MAX
from ledger_node.records import (
    GroupRecord,
    SettlementRecord,
    TotalsRow,
    pack_sums,
    unpack_sums,
)
from tests.node.histories import Histories
from tests.node.history_model import HistoryModel, four
from tests.node.several_shards import World
from tests.node.shard import Shard

DAY_US = 86_400_000_000
NAMES = ["cash", "till", "alice", "bob"]
IDS = {name: derive_account_id("main", name) for name in NAMES}


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    """Two assets with the code 1000, two liabilities without one."""
    shard = Shard(tmp_path / "shard")
    for name in NAMES:
        type_, code = AccountType.LIABILITY, ""
        if name in ("cash", "till"):
            type_, code = AccountType.ASSET, "1000"
        opened = CreateAccount(IDS[name], "main", name, type_, USD, code, limits=Limits(None))
        shard.one(opened)
    yield shard
    with shard.store.read() as view:
        HistoryModel(view.shard(0)).check(Random(1))
    shard.close()


def pay(
    debit: str, credit: str, amount: int, request_id: str, **options: object
) -> CreateTransaction:
    entries = [
        Entry(IDS[debit], Direction.DEBIT, amount, USD, 0),
        Entry(IDS[credit], Direction.CREDIT, amount, USD, 0),
    ]
    settled = bool(options.pop("settled", True))
    return CreateTransaction(
        IDS[debit],
        0,
        "",
        settled,
        request_id,
        entries,
        **options,  # type: ignore[arg-type]
    )


def totals(shard: Shard) -> dict[GroupRecord, tuple[int, ...]]:
    with shard.store.read() as view:
        tables = view.shard(shard.shard.id)
        return {
            group: (tables.totals(number).accounts, *four(tables.totals(number)))
            for number, group in tables.groups()
        }


ASSETS = GroupRecord(0, AccountType.ASSET, "1000")
CUSTOMERS = GroupRecord(0, AccountType.LIABILITY)
EXTERNAL = GroupRecord(0, AccountType.ASSET, "", GroupRole.EXTERNAL)


def test_accounts_with_a_code_and_type_in_common_are_summed(shard: Shard) -> None:
    assert totals(shard) == {
        EXTERNAL: (1, 0, 0, 0, 0),
        ASSETS: (2, 0, 0, 0, 0),
        CUSTOMERS: (2, 0, 0, 0, 0),
    }
    shard.one(pay("cash", "alice", 50, "t1"))
    shard.one(pay("till", "bob", 7, "t2", settled=False))
    shard.one(CreateTransaction(IDS["alice"], 9, "", True, "t3"))
    assert totals(shard) == {
        EXTERNAL: (1, 9, 0, 0, 0),
        ASSETS: (2, 50, 0, 7, 0),
        CUSTOMERS: (2, 0, 59, 0, 7),
    }


def test_money_in_transit_has_a_group_of_its_own(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.begin(world.create([world.entry(0, 0, -5), world.entry(1, 0, 5)], "t"))
    world.drive()
    in_transit = GroupRecord(0, AccountType.ASSET, "", GroupRole.IN_TRANSIT)
    assert totals(world.shards[0])[in_transit] == (1, 0, 5, 0, 0)
    assert totals(world.shards[1])[in_transit] == (1, 5, 0, 0, 0)
    world.close()


def test_sums_may_pass_64_bits(shard: Shard) -> None:
    """Each account's counters are below 2**63, but nothing bounds their sum."""
    for number, (asset, customer) in enumerate([("cash", "alice"), ("till", "bob")]):
        shard.one(pay(asset, customer, INT64_MAX, f"t{number}", effective_time_us=5))
    assert totals(shard)[ASSETS] == (2, 2 * INT64_MAX, 0, 0, 0)


def test_sums_keep_their_sign_in_128_bits() -> None:
    for value in (0, 1, -1, 2**64, -(2**64), 2**95 - 1, -(2**95)):
        sums = Counters(value, -value, 1, -1)
        assert unpack_sums(pack_sums(sums)) == sums
        row = TotalsRow(value, -value, 3, -4, accounts=5, last_block=6)
        assert TotalsRow.unpack(row.pack()) == row


def test_marks_say_what_a_group_was_before_each_block_of_entries(shard: Shard) -> None:
    """300 log entries of two rows each: blocks begin at positions 256 and 512."""
    for number in range(300):
        shard.one(pay("cash", "alice", 1, f"t{number}"))
    with shard.store.read() as view:
        tables = view.shard(0)
        (group,) = (number for number, record in tables.groups() if record == ASSETS)
        marks = [tables.total_mark_from(group, block) for block in range(4)]
    # Positions start at 1: the log entry of position 255 and 256 began in the first block.
    assert [mark and mark.debits_posted for mark in marks] == [0, 128, 256, None]


def test_only_dated_transactions_count_at_an_effective_time(shard: Shard) -> None:
    now = shard.time_us + 1
    shard.one(pay("cash", "alice", 50, "t1"))
    shard.one(pay("cash", "alice", 30, "t2", effective_time_us=now + 1))
    with shard.store.read() as view:
        tables = view.shard(0)
        slot = tables.find_slot(IDS["alice"])
        assert slot is not None
        # Given, but the time of recording: not dated.
        assert tables.effective_log(slot, 2**62) == Counters()
    shard.one(pay("cash", "alice", 20, "t3", effective_time_us=7, settled=False))
    with shard.store.read() as view:
        tables = view.shard(0)
        assert tables.effective_log(slot, 2**62) == Counters(0, 0, 0, 20)
        assert tables.effective_log(slot, shard.time_us - 1) == Counters()
        assert list(tables.effective_sums(slot, 4, 0, 100)) == [(7, Counters(0, 0, 0, 20))]
        assert list(tables.effective_sums(slot, 0, 0, 100)) == [(0, Counters(0, 0, 0, 20))]


def test_how_a_dated_transaction_ends_counts_at_its_effective_time(shard: Shard) -> None:
    made = shard.transaction(pay("cash", "alice", 20, "t", effective_time_us=7, settled=False))
    shard.one(SettleTransaction(IDS["cash"], made.number, "s", 15))
    with shard.store.read() as view:
        tables = view.shard(0)
        slot = tables.find_slot(IDS["alice"])
        assert slot is not None
        assert tables.effective_sum(slot, 4, 7) == Counters(0, 15, 0, 0)
        assert tables.effective_log(slot, shard.time_us - 1) == Counters(0, 0, 0, 20)
        assert tables.effective_log(slot, shard.time_us) == Counters(0, 15, 0, 0)


def pending(shard: Shard) -> list[int]:
    with shard.store.read() as view:
        return list(view.shard(shard.shard.id).pending_after(0))


def test_transactions_are_listed_as_pending_while_they_hold_money(shard: Shard) -> None:
    for number in range(4):
        expire_us = shard.time_us + 10_000 if number == 3 else 0
        shard.one(pay("cash", "alice", 5, f"t{number}", settled=False, expire_time_us=expire_us))
    shard.one(pay("cash", "alice", 5, "settled"))
    assert pending(shard) == [1, 2, 3, 4]
    shard.one(SettleTransaction(IDS["cash"], 2, "s"))
    shard.one(CancelTransaction(IDS["cash"], 1, "c"))
    assert pending(shard) == [3, 4]
    shard.apply(time_us=shard.time_us + 10_000)
    assert pending(shard) == [3]


@pytest.mark.parametrize("settled", [True, False])
def test_what_is_undecided_is_listed_on_both_sides(tmp_path: Path, settled: bool) -> None:
    """As pending at its home; at the participant as undecided, until it is pending for good."""
    world = World(tmp_path)
    command = world.create([world.entry(0, 0, -5), world.entry(1, 0, 5)], "t", settled=settled)
    world.begin(command)
    world.apply(1, world.prepare_of(command))
    assert (pending(world.shards[0]), pending(world.shards[1])) == ([3], [])
    assert [*world.undecided(1)] == [3]
    world.drive()
    assert [*world.undecided(1)] == []
    left = [] if settled else [3]
    assert pending(world.shards[0]) == pending(world.shards[1]) == left
    world.close()


def settlements(shard: Shard) -> list[tuple[int, SettlementRecord]]:
    with shard.store.read() as view:
        return list(view.shard(shard.shard.id).settlements(0, 0, 2**32 - 1))


def test_how_pending_transactions_end_is_counted_by_day(shard: Shard) -> None:
    for number in range(5):
        shard.one(
            pay(
                "cash",
                "alice",
                5,
                f"t{number}",
                settled=False,
                expire_time_us=2 * DAY_US if number == 4 else 0,
            )
        )
    shard.one(pay("cash", "alice", 5, "at once"))
    assert settlements(shard) == []
    created = shard.time_us - 5
    shard.time_us = created + 1_000
    shard.one(SettleTransaction(IDS["cash"], 1, "s1"))
    shard.one(SettleTransaction(IDS["cash"], 1, "s1 again"))
    shard.time_us = DAY_US
    shard.one(SettleTransaction(IDS["cash"], 2, "s2", 3))
    shard.one(CancelTransaction(IDS["cash"], 3, "c"))
    shard.apply(time_us=2 * DAY_US)
    first, second, third = settlements(shard)
    assert first == (0, SettlementRecord(1, 0, 0, {duration_bucket(1_000): 1}))
    assert second[0] == 1
    assert (second[1].settled, second[1].cancelled, second[1].expired) == (1, 1, 0)
    assert third == (2, SettlementRecord(0, 0, 1))


def test_a_transaction_across_shards_is_counted_at_its_home(tmp_path: Path) -> None:
    world = World(tmp_path)
    entries = [world.entry(0, 0, -5), world.entry(1, 0, 5)]
    for request_id in ("a", "b"):
        world.begin(world.create(entries, request_id, settled=False))
    world.begin(world.create(entries, "at once"))
    world.drive()
    assert settlements(world.shards[0]) == []
    world.apply(0, SettleTransaction(entries[0].account_id, 3, "s"))
    world.apply(0, CancelTransaction(entries[0].account_id, 4, "c"))
    world.drive()
    ((_, counts),) = settlements(world.shards[0])
    assert (counts.settled, counts.cancelled) == (1, 1)
    assert settlements(world.shards[1]) == []
    world.check_histories()
    world.close()


def test_transactions_are_found_by_reference_and_metadata_key(shard: Shard) -> None:
    shard.one(pay("cash", "alice", 5, "a", external_reference="i1", metadata={"k": "1"}))
    shard.one(pay("cash", "alice", 5, "b", external_reference="k"))
    shard.one(pay("cash", "bob", 5, "c"))
    # Refused ones are found like others.
    refused = Entry(IDS["cash"], Direction.DEBIT, 5, USD, 0, expected_version=99)
    entries = [refused, Entry(IDS["bob"], Direction.CREDIT, 5, USD, 0)]
    shard.one(
        CreateTransaction(
            IDS["cash"], 0, "", True, "d", entries, external_reference="i1", metadata={"k": "2"}
        )
    )
    shard.one(ReverseTransaction(IDS["cash"], 1, "r"))
    with shard.store.read() as view:
        tables = view.shard(0)

        def found(digest: bytes) -> list[int]:
            return list(tables.referenced_before(digest, 2**60))

        assert found(reference_digest("main", "i1")) == [4, 1]
        assert found(reference_digest("main", "k")) == [2]
        assert found(metadata_key_digest("main", "k")) == [4, 1]
        assert found(reference_digest("other", "i1")) == []


def test_digests_of_references_and_keys_never_change() -> None:
    """They are stored: golden vectors."""
    assert reference_digest("main", "invoice 1").hex() == "43bb0810ecdea0dfaf2ab333269c1e70"
    assert metadata_key_digest("main", "invoice 1").hex() == "91f899dde517a1bf04072b293c266ffa"


@pytest.mark.parametrize("seed", range(3))
def test_random_histories_across_shards(tmp_path: Path, seed: int) -> None:
    world = Histories(tmp_path, seed)
    for _ in range(4):
        world.run(60)
        world.check_histories()
    world.close()

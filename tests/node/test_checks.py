"""The continuous checks: what each finds, what it costs, and when it looks again."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from ledger_core.accounts import AccountType
from ledger_core.commands import (
    Command,
    CreateAccount,
    CreateTransaction,
    Limits,
    SettleTransaction,
    UpdateAccount,
)
from ledger_core.ids import derive_account_id, format_account_id, format_transaction_id
from ledger_node import checks
from ledger_node.check_context import DAY_US, FINDINGS_MAX, SECOND_US, Finding, Severity
from ledger_node.checks import CHECKS, Checker, Report
from ledger_node.records import ENTRY_ROW_BYTES, EntryRow
from ledger_node.store_tables import GENERATIONS, STATE_TABLES
from tests.node.several_shards import SHARDS, World
from tests.node.shard import Shard

ALICE, BOB = (derive_account_id("main", name) for name in ("alice", "bob"))
ALICE_ID = format_account_id(ALICE)


class Watched:
    """A checker of some shards in one store, with clocks that the test moves."""

    def __init__(self, shard: Shard, *, now_us: int | None = None) -> None:
        self.shard = shard
        self.now = 1_000.0
        self.now_us = shard.time_us if now_us is None else now_us
        self.cpu = 0.0
        self.cpu_per_look = 0.0
        self.step = 0.0
        """How much the clock moves whenever it is looked at."""
        self.led: dict[int, int] = {shard.shard.id: 1}
        self.checker = Checker(
            shard.store,
            lambda: self.led,
            range(SHARDS),
            clock=self._clock,
            wall_clock_us=lambda: self.now_us,
            cpu_clock=self._cpu_clock,
        )

    def _clock(self) -> float:
        self.now += self.step
        return self.now

    def _cpu_clock(self) -> float:
        self.cpu += self.cpu_per_look
        return self.cpu

    def slice(self) -> float:
        self.led = {shard_id: self._index() for shard_id in self.led}
        return self.checker.slice(self.led)

    def _index(self) -> int:
        with self.shard.store.read() as view:
            return view.shard(self.shard.shard.id).meta().applied_index

    def run(self) -> Report:
        """Let all checks that are due go through everything."""
        for _ in range(10_000):
            if self.slice() == checks.LOOK_S:
                return self.checker.report()
        raise AssertionError("the checks do not come to an end")

    def again(self, seconds: float = checks.IDLE_PASS_PAUSE_S) -> Report:
        self.now += seconds
        return self.run()


def found(report: Report, check: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.check == check]


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    shard = Shard(tmp_path / "shard")
    for account_id, name in ((ALICE, "alice"), (BOB, "bob")):
        shard.one(CreateAccount(account_id, "main", name))
        for number in range(50):
            shard.one(CreateTransaction(account_id, 10, "", True, f"{name} {number}"))
    yield shard
    shard.close()


@pytest.fixture
def watched(shard: Shard) -> Watched:
    return Watched(shard)


def change_balance(shard: Shard, account_id: int, **changes: object) -> None:
    tables = shard.store.shard(0)
    slot = tables.find_slot(account_id)
    assert slot is not None
    tables.save_balance(slot, replace(tables.balance(slot), **changes))  # type: ignore[arg-type]
    shard.store.commit()


def test_nothing_is_found_where_all_is_well(watched: Watched) -> None:
    report = watched.run()
    assert report.findings == []
    assert [run.check for run in report.runs] == list(CHECKS)
    assert {run.finished_us for run in report.runs} == {watched.now_us}
    rows = {run.check: run.rows for run in report.runs}
    # Three accounts (the external one too), two entries for each of 100 transactions.
    assert (rows["counters"], rows["history"]) == (3, 200)
    assert not report.truncated


def test_an_account_that_differs_from_its_last_entry(shard: Shard, watched: Watched) -> None:
    change_balance(shard, ALICE, credits_posted=499)
    report = watched.run()
    (account, group) = found(report, "counters")
    assert (account.severity, account.subject) == (Severity.ERROR, ALICE_ID)
    assert "last entry is number 50 and says (0, 500, 0, 0)" in account.message
    assert group.message == "its totals are (0, 1000, 0, 0), but its accounts make (0, 999, 0, 0)"
    assert "ledger verify" in account.advice


def test_totals_that_do_not_balance(shard: Shard, watched: Watched) -> None:
    tables = shard.store.shard(0)
    totals = tables.totals(0)
    totals.debits_posted += 5
    tables.save_totals(0, totals)
    shard.store.commit()
    (finding,) = found(watched.run(), "sums")
    assert (finding.severity, finding.ledger) == (Severity.ERROR, "main")
    assert finding.message == "posted debits exceed credits by 0.05 USD"


def test_an_entry_that_does_not_follow_from_the_one_before(shard: Shard, watched: Watched) -> None:
    change_entry(shard, 21, lambda row: replace(row, amount=row.amount + 1))
    (finding,) = found(watched.run(), "history")
    assert (finding.severity, finding.subject) == (Severity.ERROR, ALICE_ID)
    assert "(position 21, transaction 11)" in finding.message
    assert "it says (0, 110, 0, 0), but makes (0, 111, 0, 0)" in finding.message


def change_entry(shard: Shard, position: int, change: Callable[[EntryRow], EntryRow]) -> None:
    tables = shard.store.shard(0)
    first = position - (position - 1) % 2  # every transaction here is a log entry of two rows
    rows = bytearray(tables.entry_bytes(first))
    start = (position - first) * ENTRY_ROW_BYTES
    row = EntryRow.unpack(bytes(rows[start : start + ENTRY_ROW_BYTES]))
    rows[start : start + ENTRY_ROW_BYTES] = change(row).pack()
    tables.txn.put(first.to_bytes(8), bytes(rows), db=tables.databases.state[0]["entries"])
    shard.store.commit()


def spoil(shard: Shard, table: str, key: bytes) -> None:
    tables = shard.store.shard(0)
    database = tables.databases.state[0][table]
    value = tables.txn.get(key, db=database)
    tables.txn.put(key, value[:-1] + bytes([value[-1] ^ 1]), db=database)
    shard.store.commit()


def drop(shard: Shard, table: str, number: int) -> None:
    tables = shard.store.shard(0)
    tables.txn.delete(number.to_bytes(8), db=tables.databases.state[0][table])
    shard.store.commit()


@pytest.mark.parametrize("table", ["journal", "transactions"])
def test_a_number_that_is_missing(shard: Shard, watched: Watched, table: str) -> None:
    drop(shard, table, 30)
    assert [finding.subject for finding in found(watched.run(), "gaps")] == [table, f"{table} 30"]


def test_a_row_that_fails_its_checksum_is_found_and_the_rest_is_looked_at(
    shard: Shard, watched: Watched
) -> None:
    spoil(shard, "balances", (1).to_bytes(4))
    change_balance(shard, BOB, credits_posted=1)
    report = watched.run()
    subjects = [finding.subject for finding in found(report, "counters")]
    assert "account in slot 1" in subjects
    assert format_account_id(BOB) in subjects
    assert {finding.severity for finding in report.findings} == {Severity.ERROR}


def test_what_cannot_be_read_at_all_ends_the_pass_with_a_finding(
    shard: Shard, watched: Watched
) -> None:
    spoil(shard, "totals", (0).to_bytes(4))
    (finding,) = found(watched.run(), "sums")
    assert finding.message.startswith("the check cannot go on: the row 00000000 fails its checksum")


def test_money_that_is_reserved_for_more_than_7_days(shard: Shard, watched: Watched) -> None:
    old = shard.transaction(CreateTransaction(ALICE, -7, "", False, "old"))
    made_us = shard.time_us
    shard.time_us += 1_000
    shard.one(CreateTransaction(ALICE, -8, "", False, "young"))
    watched.now_us = made_us + 7 * DAY_US
    assert found(watched.run(), "ageing-holds") == []
    watched.now_us += 1
    (finding,) = found(watched.again(), "ageing-holds")
    assert (finding.severity, finding.since_us) == (Severity.WARNING, made_us)
    assert finding.subject == format_transaction_id(ALICE, old.number)
    assert finding.message == "pending for 7 days: 0.07 USD reserved, and it never expires"
    shard.one(SettleTransaction(ALICE, old.number, "settle"))
    assert found(watched.again(), "ageing-holds") == []


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def test_transfers_that_take_longer_than_30_s(world: World) -> None:
    command = world.create([world.entry(0, 0, -10), world.entry(1, 0, 10)], "slow")
    world.begin(command)
    world.apply(1, world.prepare_of(command))
    home, participant = Watched(world.shards[0]), Watched(world.shards[1])
    begun_us = world.shards[0].time_us
    home.now_us = begun_us + 30 * SECOND_US
    assert found(home.run(), "in-transit") == []
    # Time alone makes it a finding: it is looked for again, though nothing is applied.
    home.now_us += SECOND_US
    (finding,) = found(home.again(checks.PASS_PAUSE_S), "in-transit")
    assert finding.severity is Severity.WARNING
    assert finding.subject.startswith(format_account_id(command.account_id))
    assert finding.message == (
        "in flight for 31 s: shard 0 has still to hear from or to tell shards 1"
    )
    participant.now_us = world.shards[1].time_us + 60 * SECOND_US
    (finding,) = found(participant.run(), "in-transit")
    assert finding.message == "undecided for 60 s: shard 1 waits for the decision of shard 0"
    world.drive()
    assert found(home.again(), "in-transit") == []
    assert found(participant.again(), "in-transit") == []


def test_what_is_in_transit_is_reported_for_all_peers(world: World) -> None:
    world.begin(world.create([world.entry(0, 0, -10), world.entry(2, 0, 10)], "t"))
    (transit,) = Watched(world.shards[0]).run().transits or [None]
    assert transit is not None
    assert (transit.shard_id, transit.unfinished) == (0, 1)
    assert [(item.peer_shard_id, item.net, item.currency) for item in transit.accounts] == [
        (2, -10, "USD")
    ]


@pytest.mark.parametrize(
    "opening",
    [
        {"code": "2000.suspense"},
        {"code": "cards-Holding"},
        {"code": "unallocated"},
        {"metadata": {"expected_balance": "0"}},
    ],
)
def test_a_holding_account_that_is_not_at_zero(
    shard: Shard, watched: Watched, opening: Mapping[str, object]
) -> None:
    holding = derive_account_id("main", "holding")
    opened = CreateAccount(holding, "main", "holding", name="Cards")
    shard.one(msgspec.structs.replace(opened, **opening))
    assert found(watched.run(), "holding-accounts") == []
    shard.one(CreateTransaction(holding, 500, "", True, "in"))
    shard.one(CreateTransaction(holding, -500, "", True, "out"))
    shard.one(CreateTransaction(holding, 300, "", True, "in again"))
    since_us = shard.time_us
    shard.one(CreateTransaction(holding, 100, "", True, "and more"))
    watched.now_us = since_us + DAY_US
    (finding,) = found(watched.again(), "holding-accounts")
    assert (finding.severity, finding.since_us) == (Severity.INFO, since_us)
    assert "is to be at zero, but has 4.00 USD" in finding.message
    watched.now_us += 1
    (finding,) = found(watched.again(), "holding-accounts")
    assert finding.severity is Severity.WARNING
    shard.one(CreateTransaction(holding, -400, "", True, "out again"))
    assert found(watched.again(), "holding-accounts") == []


def test_an_account_that_only_sounds_alike_is_no_holding_account(
    shard: Shard, watched: Watched
) -> None:
    account = derive_account_id("main", "x")
    shard.one(CreateAccount(account, "main", "x", code="suspense.closed"))
    shard.one(CreateTransaction(account, 500, "", True, "in"))
    assert found(watched.run(), "holding-accounts") == []


def open_overdrawn(number: int) -> list[Command]:
    account = derive_account_id("main", f"free {number}")
    return [
        CreateAccount(account, "main", f"free {number}", limits=Limits(minimum=None)),
        CreateTransaction(account, -100, "", True, f"out {number}"),
    ]


def test_an_account_without_a_minimum_below_zero_is_told_of(shard: Shard, watched: Watched) -> None:
    shard.apply(*open_overdrawn(0))
    (finding,) = found(watched.run(), "negative-balances")
    assert (finding.severity, finding.message) == (
        Severity.INFO,
        "has -1.00 USD; it has no minimum",
    )


def test_an_account_below_its_minimum_is_an_error_unless_that_was_changed(
    shard: Shard, watched: Watched
) -> None:
    loan = derive_account_id("main", "loan")
    limits = Limits(minimum=-500)
    shard.one(CreateAccount(loan, "main", "loan", AccountType.LIABILITY, limits=limits))
    shard.one(CreateTransaction(loan, -400, "", True, "out"))
    assert found(watched.run(), "negative-balances") == []
    shard.one(UpdateAccount(loan, "less", 0, limits=Limits(minimum=-300)))
    (finding,) = found(watched.again(), "negative-balances")
    assert finding.severity is Severity.WARNING
    assert finding.message.endswith("below its minimum of -3.00 USD, which was changed")
    change_balance(shard, ALICE, credits_posted=0, debits_posted=1)
    worst = found(watched.again(), "negative-balances")[0]
    assert (worst.severity, worst.subject) == (Severity.ERROR, ALICE_ID)
    assert worst.message == "has -0.01 USD available, below its minimum of 0.00 USD"


def test_findings_are_bounded(shard: Shard, watched: Watched) -> None:
    for number in range(FINDINGS_MAX + 1):
        shard.apply(*open_overdrawn(number))
    report = watched.run()
    assert len(found(report, "negative-balances")) == FINDINGS_MAX
    assert report.truncated


# When, and at what cost


def test_it_rests_99_times_as_long_as_it_works(watched: Watched) -> None:
    watched.cpu_per_look = 0.1
    assert watched.slice() == pytest.approx(9.9)
    watched.cpu_per_look = 0.0
    assert watched.again() is not None


def test_a_slice_begins_nothing_after_its_time(watched: Watched) -> None:
    watched.step = checks.SLICE_S
    watched.slice()
    runs = watched.checker.report().runs
    assert sum(bool(run.finished_us) for run in runs) <= 1
    # And yet all come to their end, in turn.
    watched.step = checks.SLICE_S / 2
    assert all(run.finished_us for run in watched.run().runs)


def test_where_nothing_was_applied_it_looks_again_after_10_minutes(watched: Watched) -> None:
    first_us = watched.run().runs[0].finished_us
    watched.now_us += 1
    report = watched.again(checks.IDLE_PASS_PAUSE_S - 1)
    assert {run.finished_us for run in report.runs} == {first_us}
    report = watched.again(1)
    assert {run.finished_us for run in report.runs} == {watched.now_us}


def test_where_something_was_applied_it_looks_again_after_a_pause(
    shard: Shard, watched: Watched
) -> None:
    first_us = watched.run().runs[0].finished_us
    shard.one(CreateTransaction(ALICE, 1, "", True, "one more"))
    watched.now_us += 1
    report = watched.again(checks.PASS_PAUSE_S - 1)
    assert {run.finished_us for run in report.runs} == {first_us}
    report = watched.again(1)
    assert {run.finished_us for run in report.runs} == {watched.now_us}


def test_findings_are_of_led_shards_only(shard: Shard, watched: Watched) -> None:
    change_balance(shard, ALICE, credits_posted=499)
    assert watched.run().findings
    watched.led = {}
    report = watched.run()
    assert (report.findings, report.runs, report.transits) == ([], [], [])
    watched.led = {0: 1}
    assert watched.run().findings


def test_a_finding_is_told_before_the_pass_is_over(shard: Shard, watched: Watched) -> None:
    change_entry(shard, 1, lambda row: replace(row, amount=1))
    watched.step = checks.SLICE_S
    for _ in range(len(CHECKS)):
        watched.slice()
    report = watched.checker.report()
    assert found(report, "history")
    assert [run.finished_us for run in report.runs if run.check == "history"] == [0]


def test_a_snapshot_that_is_installed_begins_the_passes_anew(
    shard: Shard, watched: Watched
) -> None:
    watched.step = checks.SLICE_S
    for _ in range(2 * len(CHECKS)):
        watched.slice()
    copy_to_spare(shard)
    watched.step = 0.0
    report = watched.run()
    assert report.findings == []
    assert {run.check: run.rows for run in report.runs}["history"] == 200


def copy_to_spare(shard: Shard) -> None:
    """Use a copy of the state tables from now on, and empty the others, as a snapshot does."""
    assert GENERATIONS == 2
    tables = shard.store.shard(0)
    used, spare = tables.databases.state
    for table in STATE_TABLES:
        for key, value in tables.txn.cursor(used[table]):
            tables.txn.put(key, value, db=spare[table])
        tables.txn.drop(used[table], delete=False)
    tables.switch_generation()
    shard.store.commit()


async def test_it_runs_beside_the_event_loop_and_stops(shard: Shard) -> None:
    change_balance(shard, ALICE, credits_posted=499)
    checker = Checker(shard.store, lambda: {0: 1}, [0])
    await run_until(checker, lambda report: bool(report.findings))


async def run_until(checker: Checker, done: Callable[[Report], bool]) -> None:
    running = asyncio.create_task(checker.run())
    for _ in range(1_000):
        if done(await asyncio.to_thread(checker.report)):
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("the checker does not get there")
    checker.stop()
    await asyncio.wait_for(running, 60)


async def test_a_fault_of_a_check_does_not_end_it(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def led() -> dict[int, int]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("broken")
        return {0: 1}

    monkeypatch.setattr(checks, "LOOK_S", 0.0)
    await run_until(Checker(shard.store, led, [0]), lambda report: bool(report.runs))

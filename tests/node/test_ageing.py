"""Ages of balances, against queues of what came in; and what is pending, against all records."""

from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from ledger_core.accounts import AccountType, Direction, EntryKind, TimeBasis, TransactionStatus
from ledger_core.commands import CreateAccount, CreateTransaction, Limits, SettleTransaction
from ledger_core.durations import duration_bucket
from ledger_core.ids import derive_account_id, is_system_account_id
from ledger_core.queries import GetSettlements, ListAgeing
from ledger_core.results import AgeingPage, AgeingView, BookSettlementsView, SettlementsView
from ledger_node import ageing, settlement_reads
from tests.node.histories import Facts, Histories, facts
from tests.node.shard import Shard

R, E = TimeBasis.RECORDED, TimeBasis.EFFECTIVE
S = TransactionStatus
BOUNDS = [1_000_000, 200_000_000, 1_000_000_000]
DAY_US = 86_400_000_000


@pytest.fixture(scope="module", params=[1, 2])
def histories(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Histories]:
    """Histories that the tests only read."""
    histories = Histories(tmp_path_factory.mktemp("histories"), request.param)
    histories.run(700)
    yield histories
    histories.close()


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    shard = Shard(tmp_path / "shard")
    yield shard
    shard.close()


# Ages


def aged(shard: Shard, query: ListAgeing) -> list[AgeingView]:
    """All pages, one after the other."""
    shown: list[AgeingView] = []
    after_slot = query.after_slot
    while True:
        page = shard.ask(
            ListAgeing(
                query.ledger,
                query.page_size,
                query.bounds_us,
                query.as_of_us,
                query.basis,
                after_slot,
                query.code_prefix,
                query.type,
                query.now_us,
            )
        )
        assert isinstance(page, AgeingPage), page
        assert len(page.accounts) <= query.page_size
        shown += page.accounts
        after_slot = page.last_slot
        if after_slot == -1:
            return shown


def queued(
    known: Facts, account_id: int, as_of_us: int | None, now_us: int, basis: TimeBasis
) -> list[int]:
    """What is left of all that came in, when the oldest goes out first; by age."""
    normal_side = known.balances[account_id].type.normal_side
    moved = sorted(
        (known.counted_us(row, basis), row.amount if row.direction is normal_side else -row.amount)
        for row in known.entries_of(account_id)
        if row.kind in (EntryKind.POSTED, EntryKind.SETTLED)
    )
    moment = now_us if as_of_us is None else as_of_us
    queue: deque[list[int]] = deque()
    owed = 0
    for time_us, amount in moved:
        if as_of_us is not None and time_us > as_of_us:
            continue
        if amount > 0:
            queue.append([time_us, amount])
        else:
            owed -= amount
        while owed and queue:
            part = min(owed, queue[0][1])
            owed -= part
            queue[0][1] -= part
            if queue[0][1] == 0:
                queue.popleft()
    amounts = [-owed] + [0] * len(BOUNDS)
    for time_us, amount in queue:
        amounts[bisect_right(BOUNDS, moment - time_us)] += amount
    return amounts


@pytest.mark.parametrize("basis", [R, E])
def test_balances_are_split_as_queues_of_money_would_be(
    histories: Histories, basis: TimeBasis
) -> None:
    random = Random(0)
    for shard in histories.shards:
        with facts(shard) as known:
            moments = known.moments()
            now_us = known.meta.time_us + 7_000_000
            for as_of_us in [None, *random.sample(moments, 12)]:
                for ledger in ("main", "other"):
                    query = ListAgeing(
                        ledger, random.choice([1, 3, 50]), BOUNDS, as_of_us, basis, now_us=now_us
                    )
                    expected = {
                        account_id: amounts
                        for account_id, row in known.balances.items()
                        if known.meta.books[row.book].ledger == ledger
                        and not is_system_account_id(known.meta.lower_bound, account_id)
                        and any(amounts := queued(known, account_id, as_of_us, now_us, basis))
                    }
                    shown = aged(shard, query)
                    assert {view.account_id: view.amounts for view in shown} == expected
                    assert len(shown) == len(expected)
                    assert all(sum(view.amounts) == view.settled_balance for view in shown)


def test_an_age_is_counted_from_the_clock_that_is_brought(shard: Shard) -> None:
    account_id = derive_account_id("main", "a")
    shard.apply(CreateAccount(account_id, "main", "a"), time_us=2_000_000)
    shard.apply(CreateTransaction(account_id, 5, "", True, "t"), time_us=2_000_000)
    for now_us, amounts in (
        (0, [5, 0]),
        (2_000_000 + 99, [5, 0]),
        (2_000_000 + 100, [0, 5]),
        (9_000_000, [0, 5]),
    ):
        (view,) = aged(shard, ListAgeing("main", 5, [100], now_us=now_us))
        assert view.amounts == amounts


def test_a_negative_balance_has_no_age(shard: Shard) -> None:
    account_id = derive_account_id("main", "a")
    shard.one(CreateAccount(account_id, "main", "a", limits=Limits(None)))
    shard.apply(CreateTransaction(account_id, 5, "", True, "t1"), time_us=2_000_000)
    shard.apply(CreateTransaction(account_id, -8, "", True, "t2"), time_us=3_000_000)
    (view,) = aged(shard, ListAgeing("main", 5, [100, 200], as_of_us=9_000_000))
    assert (view.settled_balance, view.amounts) == (-3, [-3, 0, 0])


def test_accounts_are_chosen_by_type_and_code(histories: Histories) -> None:
    shard = histories.shards[0]
    for type_, prefix in ((AccountType.ASSET, ""), (None, "10"), (AccountType.INCOME, "40")):
        shown = aged(shard, ListAgeing("main", 50, BOUNDS, type=type_, code_prefix=prefix))
        assert shown
        assert all(view.code.startswith(prefix) and type_ in (None, view.type) for view in shown)
    assert aged(shard, ListAgeing("nothing", 50, BOUNDS)) == []


def test_a_page_looks_at_a_bounded_number_of_accounts(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(30):
        account_id = derive_account_id("main", str(i))
        shard.one(CreateAccount(account_id, "main", str(i)))
        if i % 3 == 2:
            shard.one(CreateTransaction(account_id, 1 + i, "", True, "t"))
    expected = [1 + i for i in range(2, 30, 3)]
    now = aged(shard, ListAgeing("main", 5, [1]))
    assert [view.settled_balance for view in now] == expected
    for accounts, lookups in ((1, 50), (4, 2), (50, 3)):
        monkeypatch.setattr(ageing, "ACCOUNTS_PER_PAGE_MAX", accounts)
        monkeypatch.setattr(ageing, "LOOKUPS_PER_PAGE_MAX", lookups)
        for as_of_us in (None, shard.time_us):
            page = shard.ask(ListAgeing("main", 5, [1], as_of_us))
            assert isinstance(page, AgeingPage)
            assert len(page.accounts) <= min(accounts, lookups)
            bounded = aged(shard, ListAgeing("main", 5, [1], as_of_us))
            assert [view.settled_balance for view in bounded] == expected


@pytest.mark.parametrize("after_slot", [50, 2**32 - 1, 2**70])
def test_there_are_no_accounts_behind_the_last_one(shard: Shard, after_slot: int) -> None:
    page = shard.ask(ListAgeing("main", 5, [1], after_slot=after_slot))
    assert page == AgeingPage([], -1)


# Settlements


def settlements(shard: Shard, query: GetSettlements) -> dict[str, BookSettlementsView]:
    view = shard.ask(query)
    assert isinstance(view, SettlementsView), view
    return {book.currency: book for book in view.books}


def test_settlements_are_those_of_all_records(histories: Histories) -> None:
    for shard in histories.shards:
        with facts(shard) as known:
            now_us = known.meta.time_us + 12_345
            for ledger in ("main", "other"):
                own = [
                    (number, record)
                    for number, record in known.transactions.items()
                    if record.home_shard_id is None
                    and known.meta.books[record.book].ledger == ledger
                ]
                found = settlements(shard, GetSettlements(ledger, 0, 2**64 - 1, BOUNDS, now_us))
                for currency, view in found.items():
                    ended: Counter[TransactionStatus] = Counter()
                    durations: Counter[int] = Counter()
                    ages: Counter[int] = Counter()
                    debits = 0
                    pending = []
                    for number, record in own:
                        if record.status is S.PENDING:
                            debits += sum(
                                entry.amount
                                for entry in record.entries
                                if entry.currency == currency and entry.direction is Direction.DEBIT
                            )
                        if known.meta.books[record.book].currency != currency:
                            continue
                        created = record.states[0].time_us
                        if record.status is S.PENDING:
                            pending.append((created, record.account_id, number))
                            ages[bisect_right(BOUNDS, now_us - created)] += 1
                        if S.PENDING in [state.status for state in record.states[:-1]]:
                            ended[record.status] += 1
                            if record.status is S.SETTLED:
                                bucket = duration_bucket(record.states[-1].time_us - created)
                                durations[bucket] += 1
                    assert (view.settled, view.cancelled, view.expired) == (
                        ended[S.SETTLED],
                        ended[S.CANCELLED],
                        ended[S.EXPIRED],
                    )
                    assert view.durations == durations
                    assert view.pending == len(pending)
                    assert view.pending_by_age == [ages[i] for i in range(len(BOUNDS) + 1)]
                    assert view.pending_debits == debits
                    assert (view.oldest_us, view.oldest_account_id, view.oldest_number) == min(
                        pending, default=(0, 0, 0)
                    )
                    assert not view.truncated


def test_what_ended_is_told_by_day(shard: Shard) -> None:
    account_id = derive_account_id("main", "a")
    shard.one(CreateAccount(account_id, "main", "a"))
    for day in range(1, 5):
        created = shard.apply(
            CreateTransaction(account_id, 5, "", False, f"t{day}"), time_us=day * DAY_US
        )
        shard.apply(SettleTransaction(account_id, day, f"s{day}"), time_us=day * DAY_US + 1_000)
        assert created
    for first, end in ((0, 9), (1, 2), (2, 4), (4, 4), (5, 1), (2**64 - 1, 2**64 - 1)):
        found = settlements(shard, GetSettlements("main", first, end, BOUNDS))["USD"]
        count = len(range(max(first, 1), min(end, 5)))
        assert found.settled == count
        assert found.durations == ({duration_bucket(1_000): count} if count else {})


@pytest.mark.parametrize(
    ("age_us", "by_age"), [(0, [1, 0, 0]), (99, [1, 0, 0]), (100, [0, 1, 0]), (200, [0, 0, 1])]
)
def test_an_age_of_just_a_bound_is_in_the_older_bucket(
    shard: Shard, age_us: int, by_age: list[int]
) -> None:
    account_id = derive_account_id("main", "a")
    shard.apply(CreateAccount(account_id, "main", "a"), time_us=2_000_000)
    shard.apply(CreateTransaction(account_id, 5, "", False, "t"), time_us=2_000_000)
    query = GetSettlements("main", 0, 9, [100, 200], now_us=2_000_000 + age_us)
    assert settlements(shard, query)["USD"].pending_by_age == by_age


def test_a_read_looks_at_a_bounded_number_of_pending_transactions(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    account_id = derive_account_id("main", "a")
    shard.one(CreateAccount(account_id, "main", "a"))
    for i in range(6):
        shard.one(CreateTransaction(account_id, 5, "", False, f"t{i}"))
    for most, pending, truncated in ((5, 5, True), (6, 6, False)):
        monkeypatch.setattr(settlement_reads, "PENDING_LOOKS_MAX", most)
        found = settlements(shard, GetSettlements("main", 0, 9, BOUNDS))["USD"]
        assert (found.pending, found.truncated, found.oldest_number) == (pending, truncated, 1)

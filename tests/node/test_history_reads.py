"""Balances as of any moment, entries and statements, against all entries added up anew."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from ledger_core.accounts import (
    AccountEventKind,
    EntryKind,
    TimeBasis,
    TransactionStatus,
)
from ledger_core.commands import (
    CancelTransaction,
    CreateAccount,
    CreateTransaction,
    FreezeAccount,
    SettleTransaction,
    Source,
    UpdateAccount,
)
from ledger_core.errors import Reason
from ledger_core.ids import derive_account_id
from ledger_core.queries import (
    GetAccount,
    GetBalance,
    GetStatement,
    GetTransactionStates,
    ListAccountEvents,
    ListEntries,
    Query,
)
from ledger_core.results import (
    AccountEventPage,
    AccountEventView,
    AccountView,
    BalanceView,
    CountersView,
    EntryPage,
    Failure,
    StatementEntryView,
    StatementView,
    TransactionStatesView,
)
from ledger_node import pages
from ledger_node.reads import READS
from tests.node.histories import Facts, Histories, facts, sample
from tests.node.shard import Shard

ACCOUNT = derive_account_id("main", "open")
R, E = TimeBasis.RECORDED, TimeBasis.EFFECTIVE


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    shard = Shard(tmp_path / "shard")
    shard.one(CreateAccount(ACCOUNT, "main", "open"))
    yield shard
    shard.close()


@pytest.fixture(scope="module", params=[1, 2])
def histories(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Histories]:
    """Histories that the tests only read."""
    histories = Histories(tmp_path_factory.mktemp("histories"), request.param)
    histories.run(900)
    yield histories
    histories.close()


def put(amount: int, request_id: str, **fields: object) -> CreateTransaction:
    return CreateTransaction(ACCOUNT, amount, "", True, request_id, **fields)  # type: ignore[arg-type]


def balance(shard: Shard, account_id: int, as_of_us: int | None, basis: TimeBasis) -> BalanceView:
    view = shard.ask(GetBalance(account_id, as_of_us, basis))
    assert isinstance(view, BalanceView), view
    return view


def entry_page(shard: Shard, query: ListEntries) -> EntryPage:
    page = shard.ask(query)
    assert isinstance(page, EntryPage), page
    return page


def test_every_query_has_its_read() -> None:
    assert {*READS} | {_dry_run()} == set(Query.__args__)


def _dry_run() -> type:
    (rest,) = set(Query.__args__) - {*READS}
    assert rest.__name__ == "DryRun"
    return rest


# Balances


def test_a_balance_as_of_a_moment_is_the_sum_of_all_that_counts_by_then(
    histories: Histories,
) -> None:
    random = Random(0)
    for shard in histories.shards:
        with facts(shard) as known:
            for account_id in known.balances:
                own = known.entries_of(account_id)
                for moment in sample(random, known.moments(account_id), 25):
                    for basis in TimeBasis:
                        view = balance(shard, account_id, moment, basis)
                        assert view.counters == known.counters({account_id}, moment, basis)
                        newest = [row for row in own if row.time_us <= moment][-1:]
                        expected = [(row.sequence, row.time_us) for row in newest] or [(0, 0)]
                        assert [(view.version, view.time_us)] == expected


def test_now_is_what_the_account_has(histories: Histories) -> None:
    for shard in histories.shards:
        with facts(shard) as known:
            for account_id in known.balances:
                account = shard.ask(GetAccount(account_id))
                assert isinstance(account, AccountView)
                for basis in TimeBasis:
                    view = balance(shard, account_id, None, basis)
                    assert view.counters == CountersView(
                        account.debits_posted,
                        account.credits_posted,
                        account.debits_pending,
                        account.credits_pending,
                    )
                    assert view.settled_balance == account.settled_balance
                    assert view.available_balance == account.available_balance
                    assert (view.version, view.ledger, view.currency) == (
                        account.version,
                        account.ledger,
                        account.currency,
                    )


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 127, 128, 129, 200])
def test_the_edges_of_marks_are_no_edges_of_histories(shard: Shard, count: int) -> None:
    for i in range(count):
        # Three entries each share their time.
        shard.apply(put(1, f"t{i}"), time_us=2_000_000 + i // 3 * 10)
    for moment in range(2_000_000 - 1, 2_000_000 + count * 4 + 15):
        expected = min(count, max(0, (moment - 2_000_000 + 10) // 10 * 3))
        view = balance(shard, ACCOUNT, moment, R)
        assert (view.version, view.settled_balance) == (expected, expected)
        assert balance(shard, ACCOUNT, moment, E).settled_balance == expected


def test_a_dated_transaction_counts_then_also_when_it_is_settled_later(shard: Shard) -> None:
    shard.apply(put(100, "t1"), time_us=2_000_000)
    shard.apply(
        CreateTransaction(ACCOUNT, -30, "", False, "t2", effective_time_us=500_000),
        time_us=3_000_000,
    )
    shard.apply(SettleTransaction(ACCOUNT, 2, "s"), time_us=4_000_000)
    by_effective = [
        balance(shard, ACCOUNT, t, E).settled_balance for t in (499_999, 500_000, 2_000_000)
    ]
    assert by_effective == [0, -30, 70]
    by_recorded = [balance(shard, ACCOUNT, t, R).available_balance for t in (2_000_000, 3_000_000)]
    assert by_recorded == [100, 70]


def test_a_date_in_the_future_counts_then_and_now(shard: Shard) -> None:
    shard.apply(put(100, "t1", effective_time_us=9_000_000), time_us=2_000_000)
    assert balance(shard, ACCOUNT, 8_999_999, E).settled_balance == 0
    assert balance(shard, ACCOUNT, 9_000_000, E).settled_balance == 100
    assert balance(shard, ACCOUNT, None, E).settled_balance == 100


def test_many_dates_close_together_and_far_apart_are_summed_alike(shard: Shard) -> None:
    random = Random(3)
    dates = [random.randrange(1, 1 << random.choice([9, 11, 21, 31, 41, 50])) for _ in range(300)]
    for i in range(0, 300, 10):
        shard.apply(
            *(put(1, f"t{j}", effective_time_us=dates[j]) for j in range(i, i + 10)),
            time_us=2_000_000,
        )
    for moment in {max(0, date + shift) for date in dates for shift in (-1, 0, 1)}:
        expected = sum(date <= moment for date in dates)
        assert balance(shard, ACCOUNT, moment, E).settled_balance == expected


# Entries and statements


def listed(shard: Shard, query: ListEntries) -> list[StatementEntryView]:
    """All pages, one after the other."""
    shown: list[StatementEntryView] = []
    sequence = 0
    while True:
        page = entry_page(
            shard,
            ListEntries(
                query.account_id,
                query.page_size,
                query.newest_first,
                query.start_us,
                query.end_us,
                sequence,
            ),
        )
        assert len(page.entries) <= query.page_size
        shown += page.entries
        sequence = page.next_sequence
        if not sequence:
            return shown
        assert len(page.entries) == query.page_size


def test_pages_show_the_entries_of_a_range_in_both_orders(histories: Histories) -> None:
    random = Random(1)
    for shard in histories.shards:
        with facts(shard) as known:
            for account_id in known.balances:
                moments = known.moments(account_id)
                for _ in range(6):
                    start, end = random.choice(moments), random.choice([0, *moments])
                    expected = [
                        row.sequence
                        for row in known.entries_of(account_id)
                        if start <= row.time_us and (not end or row.time_us < end)
                    ]
                    size = random.choice([1, 7, 50, 64, 1_000])
                    oldest = listed(shard, ListEntries(account_id, size, False, start, end))
                    newest = listed(shard, ListEntries(account_id, size, True, start, end))
                    assert [entry.sequence for entry in oldest] == expected
                    assert newest == oldest[::-1]


def test_an_entry_tells_of_its_transaction_as_it_is_now(histories: Histories) -> None:
    unknown = 0
    for shard in histories.shards:
        with facts(shard) as known:
            for account_id in known.balances:
                rows = known.entries_of(account_id)
                for row, shown in zip(
                    rows, listed(shard, ListEntries(account_id, 50, False)), strict=True
                ):
                    record = known.transactions[row.transaction]
                    at_home = record.home_shard_id is None
                    number = row.transaction if at_home else record.home_number
                    unknown += number == 0
                    assert (shown.kind, shown.direction, shown.amount, shown.time_us) == (
                        row.kind,
                        row.direction,
                        row.amount,
                        row.time_us,
                    )
                    assert (shown.home_account_id, shown.number, shown.status) == (
                        record.account_id,
                        number,
                        record.status,
                    )
                    assert (shown.description, shown.reversal_of) == (
                        record.description,
                        record.reversal_of,
                    )
                    assert shown.effective_time_us == record.effective_time_us
                    assert shown.request_id == record.states[0].request_id
    assert unknown > 0, "some transactions are on their way"


def test_opening_balance_and_entries_make_the_closing_balance(histories: Histories) -> None:
    random = Random(2)
    for shard in histories.shards:
        with facts(shard) as known:
            for account_id in known.balances:
                moments = known.moments(account_id)
                for _ in range(5):
                    start, end = random.choice([0, *moments]), random.choice([0, *moments])
                    check_statement(shard, known, account_id, (start, end), random.randint(1, 40))


def check_statement(
    shard: Shard, known: Facts, account_id: int, period: tuple[int, int], size: int
) -> None:
    sequence, running = 0, None
    before = account_id
    while True:
        statement = shard.ask(GetStatement(ListEntries(account_id, size, False, *period, sequence)))
        assert isinstance(statement, StatementView), statement
        if running is None:
            running = statement.opening
            expected = CountersView()
            if period[0]:
                expected = known.counters({before}, period[0] - 1)
            assert running.counters == expected
        counters = running if isinstance(running, CountersView) else running.counters
        for entry in statement.page.entries:
            counters = after(counters, entry)
            assert entry.after == counters
        running = counters
        sequence = statement.page.next_sequence
        if not sequence:
            break
    assert statement.closing.counters == counters


def after(counters: CountersView, entry: StatementEntryView) -> CountersView:
    """What an entry makes of counters."""
    one = EntryKind
    posted = entry.amount if entry.kind in (one.POSTED, one.SETTLED) else 0
    pending = entry.amount if entry.kind is one.PENDING else -entry.amount
    if entry.kind in (one.POSTED, one.REFUSED):
        pending = 0
    debits, credits_ = counters.debits_posted, counters.credits_posted
    reserved, coming = counters.debits_pending, counters.credits_pending
    if entry.direction.name == "DEBIT":
        return CountersView(debits + posted, credits_, reserved + pending, coming)
    return CountersView(debits, credits_ + posted, reserved, coming + pending)


@pytest.mark.parametrize("newest_first", [True, False])
def test_pages_stay_stable_while_entries_arrive(shard: Shard, newest_first: bool) -> None:
    for i in range(100):
        shard.one(put(1, f"t{i}"))
    end_us = shard.time_us + 1
    seen: list[int] = []
    sequence = 0
    while True:
        page = entry_page(shard, ListEntries(ACCOUNT, 9, newest_first, 0, end_us, sequence))
        seen += [entry.sequence for entry in page.entries]
        shard.one(put(1, f"while listing {len(seen)}"))
        sequence = page.next_sequence
        if not sequence:
            break
    assert sorted(seen) == list(range(1, 101))


def test_a_period_that_ends_before_it_starts_is_empty(shard: Shard) -> None:
    shard.apply(put(5, "t1"), time_us=2_000_000)
    shard.apply(put(5, "t2"), time_us=3_000_000)
    statement = shard.ask(GetStatement(ListEntries(ACCOUNT, 5, False, 2_500_000, 1_500_000)))
    assert isinstance(statement, StatementView)
    assert statement.page.entries == []
    assert statement.opening == statement.closing
    assert statement.opening.settled_balance == 5


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("sequence", [1, 2, 9, 10, 2**64 - 1])
def test_a_cursor_outside_of_the_range_is_refused(
    shard: Shard, sequence: int, newest_first: bool
) -> None:
    for i in range(10):
        shard.apply(put(1, f"t{i}"), time_us=2_000_000 + i)
    query = ListEntries(ACCOUNT, 5, newest_first, 2_000_002, 2_000_008, sequence)
    for asked in (query, GetStatement(query)):
        failure = shard.ask(asked)
        assert isinstance(failure, Failure)
        assert (failure.reason, failure.field) == (Reason.INVALID_FIELDS, "page_token")


def test_a_large_page_ends_early_and_the_next_one_goes_on(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE_BYTES_MAX", 3_000)
    for i in range(9):
        shard.one(CreateTransaction(ACCOUNT, 1, "x" * 1_000, True, f"t{i}"))
    for newest_first in (True, False):
        seen: list[int] = []
        sequence = 0
        while True:
            page = entry_page(shard, ListEntries(ACCOUNT, 50, newest_first, sequence=sequence))
            assert 1 <= len(page.entries) <= 3
            seen += [entry.sequence for entry in page.entries]
            sequence = page.next_sequence
            if not sequence:
                break
        assert sorted(seen) == list(range(1, 10))


@pytest.mark.parametrize(
    "query",
    [
        GetBalance(5),
        GetBalance(5, 1, E),
        ListEntries(5, 1),
        GetStatement(ListEntries(5, 1)),
        ListAccountEvents(5, 1),
    ],
)
def test_an_account_that_does_not_exist_has_no_history(shard: Shard, query: Query) -> None:
    failure = shard.ask(query)
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.ACCOUNT_NOT_FOUND


# Lives


def test_the_life_of_a_transaction_names_who_and_from_where(shard: Shard) -> None:
    shard.one(
        CreateTransaction(
            ACCOUNT, 5, "", False, "t", actor="ann", source=Source("work 1", "10.0.0.1:9")
        )
    )
    shard.one(
        CancelTransaction(ACCOUNT, 1, "c", actor="bob", source=Source("work 2", "10.0.0.2:9"))
    )
    life = shard.ask(GetTransactionStates(ACCOUNT, 1))
    assert isinstance(life, TransactionStatesView)
    assert life.transaction.status is TransactionStatus.CANCELLED
    told = [
        (state.status.name, state.request_id, state.actor, state.correlation_id, state.peer)
        for state in life.states
    ]
    assert told == [
        ("PENDING", "t", "ann", "work 1", "10.0.0.1:9"),
        ("CANCELLED", "c", "bob", "work 2", "10.0.0.2:9"),
    ]
    assert life.states[0].time_us < life.states[1].time_us


@pytest.mark.parametrize(("account_id", "number"), [(ACCOUNT, 9), (ACCOUNT + 1, 1)])
def test_a_transaction_that_is_not_there_has_no_life(
    shard: Shard, account_id: int, number: int
) -> None:
    shard.one(put(1, "t"))
    failure = shard.ask(GetTransactionStates(account_id, number))
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.TRANSACTION_NOT_FOUND


def test_the_life_of_an_account_has_what_was_refused(shard: Shard) -> None:
    source = Source("work", "10.0.0.1:9")
    shard.one(UpdateAccount(ACCOUNT, "u", 0, "till", actor="ann", source=source))
    shard.one(UpdateAccount(ACCOUNT, "late", 0, "other"))
    shard.one(put(-7, "too much"))
    shard.one(FreezeAccount(ACCOUNT, "f"))
    for size in (1, 2, 5, 50):
        events = account_events(shard, size)
        assert [event.kind for event in events] == [
            AccountEventKind.FROZEN,
            AccountEventKind.TRANSACTION_REFUSED,
            AccountEventKind.CHANGE_REFUSED,
            AccountEventKind.UPDATED,
            AccountEventKind.OPENED,
        ]
    _, transaction, change, updated, _ = events
    assert (transaction.home_account_id, transaction.number) == (ACCOUNT, 1)
    assert transaction.reason == "INSUFFICIENT_FUNDS"
    assert (change.reason, change.request_id) == ("REVISION_MISMATCH", "late")
    assert (updated.actor, updated.correlation_id, updated.peer) == ("ann", *source_fields(source))
    assert updated.changes["name"] == ('""', '"till"')


def source_fields(source: Source) -> tuple[str, str]:
    return source.correlation_id, source.peer


def account_events(shard: Shard, page_size: int) -> list[AccountEventView]:
    events: list[AccountEventView] = []
    before = 0, 0
    while True:
        page = shard.ask(ListAccountEvents(ACCOUNT, page_size, *before))
        assert isinstance(page, AccountEventPage)
        assert len(page.events) <= page_size
        events += page.events
        before = page.next_journal_number, page.next_ordinal
        if before == (0, 0):
            return events

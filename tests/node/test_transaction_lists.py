"""Lists of transactions with filters, against all records looked through anew."""

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from random import Random

import pytest

from ledger_core.accounts import Direction, TransactionStatus
from ledger_core.commands import (
    CreateAccount,
    CreateTransaction,
    Entry,
    Limits,
    SettleTransaction,
)
from ledger_core.errors import Reason
from ledger_core.ids import derive_account_id
from ledger_core.ledgers import USD
from ledger_core.queries import ListLedgerTransactions, ListTransactions, TransactionFilter
from ledger_core.results import (
    Failure,
    LedgerTransactionPage,
    TransactionPage,
    TransactionView,
)
from ledger_node import transaction_lists
from ledger_node.records import TransactionRecord
from tests.node.histories import Facts, Histories, facts
from tests.node.shard import Shard

S = TransactionStatus
ACCOUNT = derive_account_id("main", "open")

LOOKS = [1_000, 60]


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
    shard.one(CreateAccount(ACCOUNT, "main", "open"))
    yield shard
    shard.close()


def put(request_id: str, **fields: object) -> CreateTransaction:
    return CreateTransaction(ACCOUNT, 1, "", True, request_id, **fields)  # type: ignore[arg-type]


def filters(random: Random, known: Facts) -> list[TransactionFilter]:
    """Every status, reference and key, with and without bounds of time."""
    times = sorted({record.states[0].time_us for record in known.transactions.values()})
    found = []
    for status, reference, key in product(
        (None, *S), ("", "invoice 7", "nothing"), ("", "order", "batch")
    ):
        start, end = sorted(random.sample(times, 2))
        found.append(TransactionFilter(status, 0, 0, reference, key))
        bounds = random.choice(
            [(start, 0), (0, end), (start, end), (start, start + 1), (end, start)]
        )
        found.append(TransactionFilter(status, *bounds, reference, key))
    return found


def fits(record: TransactionRecord, wanted: TransactionFilter) -> bool:
    created = record.states[0].time_us
    return (
        wanted.status in (None, record.status)
        and wanted.start_us <= created
        and (not wanted.end_us or created < wanted.end_us)
        and wanted.external_reference in ("", record.external_reference)
        and (not wanted.metadata_key or wanted.metadata_key in record.metadata)
    )


# Of an account


def of_account(
    shard: Shard, account_id: int, page_size: int, wanted: TransactionFilter
) -> list[TransactionView]:
    shown: list[TransactionView] = []
    cursor = 0, 0
    while True:
        page = shard.ask(ListTransactions(account_id, page_size, *cursor, wanted))
        assert isinstance(page, TransactionPage), page
        assert len(page.transactions) <= page_size
        shown += page.transactions
        cursor = page.next_sequence, page.next_position
        if cursor == (0, 0):
            return shown


@pytest.mark.parametrize("looks", LOOKS)
def test_an_account_lists_what_fits_newest_first(
    histories: Histories, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short histories are walked, long ones (more than 60 entries here) are found by index."""
    monkeypatch.setattr(transaction_lists, "ENTRIES_LOOKED_MAX", looks)
    monkeypatch.setattr(transaction_lists, "RECORDS_LOOKED_MAX", looks)
    random = Random(0)
    for shard in histories.shards:
        with facts(shard) as known:
            for account_id in known.balances:
                mine = {row.transaction for row in known.entries_of(account_id)}
                for wanted in random.sample(filters(random, known), 40):
                    expected = [
                        record.states[0].request_id
                        for number, record in sorted(known.transactions.items(), reverse=True)
                        if number in mine and fits(record, wanted)
                    ]
                    shown = of_account(shard, account_id, random.choice([1, 5, 50]), wanted)
                    assert [view.request_id for view in shown] == expected, wanted


def test_a_transaction_with_several_entries_on_an_account_is_listed_once(shard: Shard) -> None:
    shard.one(CreateTransaction(ACCOUNT, 100, "", True, "funds"))
    other = derive_account_id("main", "other")
    shard.one(CreateAccount(other, "main", "other", limits=Limits(None)))
    for i in range(5):
        entries = [
            Entry(ACCOUNT, Direction.CREDIT, 2, USD, 0),
            Entry(ACCOUNT, Direction.DEBIT, 1, USD, 0),
            Entry(other, Direction.DEBIT, 1, USD, 0),
            Entry(ACCOUNT, Direction.DEBIT, 1, USD, 0),
            Entry(other, Direction.CREDIT, 1, USD, 0),
        ]
        created = shard.transaction(CreateTransaction(ACCOUNT, 0, "", False, f"t{i}", entries))
        shard.one(SettleTransaction(ACCOUNT, created.number, "s"))
    for page_size in (1, 2, 3, 50):
        for wanted in (TransactionFilter(), TransactionFilter(S.SETTLED)):
            shown = of_account(shard, ACCOUNT, page_size, wanted)
            assert [view.number for view in shown] == [6, 5, 4, 3, 2, 1]


def test_a_narrow_range_in_a_long_history_is_found_at_once(shard: Shard) -> None:
    for i in range(0, 6_000, 500):
        shard.apply(*(put(f"t{j}") for j in range(i, i + 500)), time_us=2_000_000 + i)
    wanted = TransactionFilter(start_us=2_000_500, end_us=2_000_501)
    page = shard.ask(ListTransactions(ACCOUNT, 1_000, filter=wanted))
    assert isinstance(page, TransactionPage)
    assert [view.number for view in page.transactions] == list(range(1_000, 500, -1))
    assert (page.next_sequence, page.next_position) == (0, 0)


def test_an_index_finds_one_of_a_long_history_on_the_first_page(shard: Shard) -> None:
    shard.one(put("first", external_reference="it", metadata={"key": "1"}))
    for i in range(0, 2_000, 500):
        shard.apply(*(put(f"t{j}") for j in range(i, i + 500)))
    for wanted in (
        TransactionFilter(external_reference="it"),
        TransactionFilter(metadata_key="key"),
        TransactionFilter(external_reference="it", metadata_key="key"),
    ):
        page = shard.ask(ListTransactions(ACCOUNT, 50, filter=wanted))
        assert isinstance(page, TransactionPage)
        assert [view.number for view in page.transactions] == [1]
        assert (page.next_sequence, page.next_position) == (0, 0)


def test_a_page_looks_at_a_bounded_number_of_entries(shard: Shard) -> None:
    for i in range(0, 3_000, 500):
        shard.apply(*(put(f"t{j}") for j in range(i, i + 500)))
    page = shard.ask(ListTransactions(ACCOUNT, 50, filter=TransactionFilter(S.REJECTED)))
    assert isinstance(page, TransactionPage)
    assert page.transactions == []
    assert page.next_sequence == 3_000 - transaction_lists.ENTRIES_LOOKED_MAX


@pytest.mark.parametrize("cursor", [(1, 10_000), (5, 1), (2, 2), (2**64 - 1, 1)])
def test_a_cursor_of_another_account_is_refused(shard: Shard, cursor: tuple[int, int]) -> None:
    shard.one(put("t1"))
    failure = shard.ask(ListTransactions(ACCOUNT, 3, *cursor, TransactionFilter(S.SETTLED)))
    assert isinstance(failure, Failure)
    assert (failure.reason, failure.field) == (Reason.INVALID_FIELDS, "page_token")


# Of a ledger


def of_ledger(
    shard: Shard,
    ledger: str,
    page_size: int,
    wanted: TransactionFilter,
    *,
    meanwhile: Callable[[], object] = lambda: None,
) -> list[TransactionView]:
    shown: list[TransactionView] = []
    cursor = 0, 0
    while True:
        page = shard.ask(ListLedgerTransactions(ledger, page_size, wanted, *cursor))
        assert isinstance(page, LedgerTransactionPage), page
        assert len(page.transactions) <= page_size
        shown += page.transactions
        cursor = page.next_us, page.next_number
        if page.exhausted:
            return shown
        meanwhile()


@pytest.mark.parametrize("looks", LOOKS)
def test_a_ledger_lists_what_has_its_home_here(
    histories: Histories, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction_lists, "ENTRIES_LOOKED_MAX", looks)
    monkeypatch.setattr(transaction_lists, "RECORDS_LOOKED_MAX", looks)
    random = Random(0)
    for shard in histories.shards:
        with facts(shard) as known:
            for ledger in ("main", "other", "nothing"):
                for wanted in filters(random, known):
                    expected = [
                        number
                        for number, record in sorted(known.transactions.items(), reverse=True)
                        if record.home_shard_id is None
                        and known.meta.books[record.book].ledger == ledger
                        and fits(record, wanted)
                    ]
                    shown = of_ledger(shard, ledger, random.choice([1, 5, 50]), wanted)
                    assert [view.number for view in shown] == expected, wanted


def test_any_moment_and_number_can_be_a_cursor(histories: Histories) -> None:
    """Shards are merged by time: each one is asked to go on where another one stopped."""
    random = Random(0)
    for shard in histories.shards:
        with facts(shard) as known:
            own = [
                (record.states[0].time_us, number)
                for number, record in sorted(known.transactions.items(), reverse=True)
                if record.home_shard_id is None and known.meta.books[record.book].ledger == "main"
            ]
            for _ in range(150):
                time_us, number = random.choice(own)
                cursor = (
                    time_us + random.choice([-1, 0, 0, 1]),
                    random.choice([0, number - 1, number, number + 1, 2**64 - 1]),
                )
                page = shard.ask(ListLedgerTransactions("main", 9, TransactionFilter(), *cursor))
                assert isinstance(page, LedgerTransactionPage)
                expected = [number for at, number in own if (at, number) < cursor]
                assert [view.number for view in page.transactions] == expected[:9]


@pytest.mark.parametrize("seed", [1, 2])
def test_pages_of_a_ledger_stay_stable_while_transactions_arrive(tmp_path: Path, seed: int) -> None:
    histories = Histories(tmp_path, seed)
    histories.run(700)
    shard = histories.shards[0]
    before = of_ledger(shard, "main", 50, TransactionFilter())
    meanwhile = of_ledger(shard, "main", 7, TransactionFilter(), meanwhile=lambda: histories.run(2))
    assert [view.number for view in meanwhile] == [view.number for view in before]
    histories.close()


def test_numbers_that_are_missing_are_stepped_over(shard: Shard) -> None:
    """After the import of a ledger the numbers of other ledgers are missing."""
    for i in range(5):
        tables = shard.store.shard(0)
        meta = tables.meta()
        meta.next_transaction += 1_000 * i
        tables.save_meta(meta)
        shard.apply(put(f"a{i}"), put(f"b{i}"), time_us=2_000_000 + 10 * i)
    for start, end in product(range(1_999_995, 2_000_050, 5), repeat=2):
        wanted = TransactionFilter(start_us=start, end_us=end)
        expected = [
            f"{letter}{i}"
            for i in reversed(range(5))
            for letter in "ba"
            if start <= 2_000_000 + 10 * i < end
        ]
        assert [v.request_id for v in of_ledger(shard, "main", 3, wanted)] == expected


def test_a_page_of_a_ledger_looks_at_a_bounded_number_of_records(shard: Shard) -> None:
    for i in range(0, 3_000, 500):
        shard.apply(*(put(f"t{j}") for j in range(i, i + 500)))
    page = shard.ask(ListLedgerTransactions("main", 50, TransactionFilter(S.REJECTED)))
    assert isinstance(page, LedgerTransactionPage)
    assert page.transactions == []
    assert not page.exhausted
    assert page.next_number == 3_000 - transaction_lists.RECORDS_LOOKED_MAX + 1

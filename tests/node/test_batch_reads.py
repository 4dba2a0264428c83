"""Many accounts read at once are what single reads say, from one state."""

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger_core.accounts import AccountType
from ledger_core.commands import CreateAccount, CreateTransaction
from ledger_core.ids import derive_account_id, system_account_id
from ledger_core.queries import (
    ACCOUNTS_PER_QUERY_MAX,
    BALANCES_PER_QUERY_MAX,
    GetAccount,
    GetAccounts,
    GetBalance,
    GetBalances,
    decode_query,
    encode_query,
)
from ledger_core.results import (
    AccountsView,
    BalancesView,
    BalanceView,
    CountersView,
    Failure,
    decode_result,
    encode_result,
)
from ledger_node.store_files import StoreCorruptError
from tests.node.histories import Histories
from tests.node.shard import Shard

NOBODY = 999_999
NEVER_USED = derive_account_id("main", "never used")


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shard]:
    """The first of three shards, after a history in which all that can happen to accounts did."""
    histories = Histories(tmp_path_factory.mktemp("shards"), seed=3)
    histories.run(400)
    histories.shards[0].one(CreateAccount(NEVER_USED, "main", "never used"))
    yield histories.shards[0]
    histories.close()


def known_ids(shard: Shard) -> list[int]:
    with shard.store.read() as view:
        return [row.account_id for _, row in view.shard(shard.shard.id).balances()]


def ids_of(shard: Shard, places: list[int]) -> list[int]:
    some = [*known_ids(shard), NOBODY, 0, 2**64 - 1]
    return [some[place % len(some)] for place in places]


def singles_of(view: BalancesView, account_ids: list[int]) -> list[BalanceView | Failure]:
    """Return what the columns say, account by account."""
    columns = [
        np.frombuffer(column, "<i8").tolist()
        for column in (
            view.debits_posted,
            view.credits_posted,
            view.debits_pending,
            view.credits_pending,
            view.versions,
            view.times_us,
        )
    ]
    places = np.frombuffer(view.book_places, "<u2").tolist()
    found: list[BalanceView | Failure] = []
    for index, account_id in enumerate(account_ids):
        numbers = [column[index] for column in columns]
        if index in view.missing:
            assert (view.types[index], places[index], *numbers) == (0,) * 8
            found.append(view.missing[index])
            continue
        type_, book = AccountType(view.types[index]), view.books[places[index]]
        debits_posted, credits_posted, debits_pending, credits_pending, version, time_us = numbers
        credit = type_ in (AccountType.LIABILITY, AccountType.EQUITY, AccountType.INCOME)
        net, out = credits_posted - debits_posted, debits_pending
        settled, out = (net, out) if credit else (-net, credits_pending)
        found.append(
            BalanceView(
                account_id,
                book.ledger,
                type_,
                book.currency,
                book.currency_exponent,
                CountersView(debits_posted, credits_posted, debits_pending, credits_pending),
                settled,
                settled - out,
                version,
                time_us,
            )
        )
    return found


def test_the_history_has_everything(shard: Shard) -> None:
    """Books, types, accounts without entries, pending money, and the shard's own accounts."""
    views = [shard.ask(GetBalance(account_id)) for account_id in known_ids(shard)]
    balances = [view for view in views if isinstance(view, BalanceView)]
    assert len({(view.ledger, view.currency) for view in balances}) >= 3
    assert len({view.type for view in balances}) >= 4
    assert any(view.version == 0 for view in balances)
    assert any(view.settled_balance != view.available_balance for view in balances)
    assert system_account_id(shard.shard.lower_bound, 0) in known_ids(shard)


@settings(max_examples=150, deadline=None)
@given(places=st.lists(st.integers(0, 10_000), min_size=1, max_size=60))
def test_columns_say_what_single_reads_say(shard: Shard, places: list[int]) -> None:
    ids = ids_of(shard, places)
    query = decode_query(encode_query(GetBalances(ids)))
    view = decode_result(encode_result(shard.ask(query)))
    assert isinstance(view, BalancesView)
    assert singles_of(view, ids) == [shard.ask(GetBalance(one)) for one in ids]
    assert len(set(view.books)) == len(view.books)


@settings(max_examples=50, deadline=None)
@given(places=st.lists(st.integers(0, 10_000), min_size=1, max_size=30))
def test_accounts_are_those_of_single_reads(shard: Shard, places: list[int]) -> None:
    ids = ids_of(shard, places)
    view = decode_result(encode_result(shard.ask(GetAccounts(ids))))
    assert view == AccountsView([shard.ask(GetAccount(one)) for one in ids])  # type: ignore[misc]


@pytest.mark.parametrize(
    ("kind", "most"), [(GetBalances, BALANCES_PER_QUERY_MAX), (GetAccounts, ACCOUNTS_PER_QUERY_MAX)]
)
def test_how_many_a_query_may_ask_for(
    kind: type[GetBalances] | type[GetAccounts], most: int
) -> None:
    for ids in ([1], [2**64 - 1] * most):
        assert decode_query(encode_query(kind(ids))) == kind(ids)
    for wrong in ([], [1] * (most + 1), [-1]):
        with pytest.raises(msgspec.ValidationError):
            decode_query(encode_query(kind(wrong)))


def test_entries_of_many_log_entries_and_of_one(shard: Shard) -> None:
    """Times of entries that lie in one value of the store, and in many, first and last of them."""
    with shard.store.read() as view:
        tables = view.shard(shard.shard.id)
        last = tables.meta().next_position - 1
        everything = list(range(1, last + 1))
        times_us = [tables.entry(position).time_us for position in everything]
        assert tables.entry_times_us(everything) == times_us
        assert tables.entry_times_us(everything[::7]) == times_us[::7]
        assert tables.entry_times_us([last]) == times_us[-1:]
        assert tables.entry_times_us([]) == []
        with pytest.raises(StoreCorruptError):
            tables.entry_times_us([last + 1])


def test_large_balances_and_accounts_that_never_moved(shard: Shard) -> None:
    account_id = derive_account_id("main", "rich")
    shard.one(CreateAccount(account_id, "main", "rich"))
    shard.transaction(CreateTransaction(account_id, 2**62, "", True, "a lot"))
    ids = [account_id, system_account_id(shard.shard.lower_bound, 0), NEVER_USED]
    view = shard.ask(GetBalances(ids))
    assert isinstance(view, BalancesView)
    assert singles_of(view, ids) == [shard.ask(GetBalance(one)) for one in ids]

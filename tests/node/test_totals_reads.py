"""Sums of groups, now and as of any moment, against all entries of their accounts added up anew."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from ledger_core.accounts import AccountType, GroupRole, TimeBasis
from ledger_core.commands import CreateAccount, CreateTransaction
from ledger_core.ids import derive_account_id, is_system_account_id
from ledger_core.queries import GetTotals
from ledger_core.results import CountersView, GroupTotalsView, TotalsView
from tests.node.histories import Facts, Histories, facts, sample
from tests.node.shard import Shard

Group = tuple[str, AccountType, str, GroupRole]

R, E = TimeBasis.RECORDED, TimeBasis.EFFECTIVE
LEDGERS = ("main", "other")


@pytest.fixture(params=[1, 2])
def histories(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Histories]:
    histories = Histories(tmp_path, request.param)
    yield histories
    histories.close()


def totals(
    shard: Shard, ledger: str, moments: list[int] | None = None, basis: TimeBasis = R
) -> dict[Group, GroupTotalsView]:
    view = shard.ask(GetTotals(ledger, moments or [], basis))
    assert isinstance(view, TotalsView), view
    with facts(shard) as known:
        assert view.time_us == known.meta.time_us
    found = {(g.currency, g.type, g.code, g.role): g for g in view.groups}
    assert len(found) == len(view.groups)
    return found


def members(known: Facts, ledger: str) -> dict[Group, set[int]]:
    """The accounts of every group, from their records alone."""
    found: defaultdict[Group, set[int]] = defaultdict(set)
    for slot, record in known.tables.accounts_after(-1):
        balance = known.tables.balance(slot)
        book = known.meta.books[balance.book]
        role = GroupRole.ACCOUNT
        if is_system_account_id(known.meta.lower_bound, record.account_id):
            role = GroupRole.EXTERNAL if slot == book.external_slot else GroupRole.IN_TRANSIT
        if book.ledger == ledger:
            found[book.currency, balance.type, record.code, role].add(record.account_id)
    return found


def check_balanced(found: dict[Group, GroupTotalsView]) -> None:
    """For every currency and moment debits are credits."""
    sides: defaultdict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
    for (currency, *_), group in found.items():
        for at, sums in enumerate(group.sums):
            sides[currency, at][0] += sums.debits_posted - sums.credits_posted
            sides[currency, at][1] += sums.debits_pending - sums.credits_pending
    assert set(map(tuple, sides.values())) <= {(0, 0)}


def test_sums_are_those_of_the_accounts_at_every_moment(histories: Histories) -> None:
    histories.run(900)
    random = Random(0)
    for shard in histories.shards:
        with facts(shard) as known:
            assert known.meta.next_position > 512, "several blocks of entries"
            moments = list(sample(random, known.moments(), 40))
            random.shuffle(moments)
            for ledger in LEDGERS:
                groups = members(known, ledger)
                now = totals(shard, ledger)
                assert now.keys() == groups.keys()
                for group, accounts in groups.items():
                    assert now[group].accounts == len(accounts)
                    assert now[group].sums == [known.counters(accounts, 2**62)]
                for basis in TimeBasis:
                    found = totals(shard, ledger, moments, basis)
                    for group, accounts in groups.items():
                        expected = [known.counters(accounts, moment, basis) for moment in moments]
                        assert found[group].sums == expected


def test_books_balance_at_every_moment_while_money_is_on_its_way(histories: Histories) -> None:
    in_transit = 0
    for _ in range(10):
        histories.run(60)
        moments = list(
            sample(histories.random, list(range(1_000_000, histories.shards[0].time_us, 997)), 5)
        )
        for shard in histories.shards:
            for ledger in LEDGERS:
                check_balanced(totals(shard, ledger))
                for basis in TimeBasis:
                    check_balanced(totals(shard, ledger, moments, basis))
            for (_, _, _, role), group in totals(shard, "main").items():
                in_transit += role is GroupRole.IN_TRANSIT and group.sums != [CountersView()]
    assert in_transit > 0


def test_a_block_may_begin_anywhere_in_a_log_entry(tmp_path: Path) -> None:
    """Log entries of many sizes that share their times; every moment between them."""
    shard = Shard(tmp_path / "shard")
    accounts = [derive_account_id("main", name) for name in ("a", "b", "c")]
    for code, account_id in zip("123", accounts, strict=True):
        shard.one(CreateAccount(account_id, "main", "abc"[int(code) - 1], code=code))
    random = Random(5)
    count = 0
    for _ in range(60):
        if random.random() < 0.6:
            shard.time_us += 10
        commands = []
        for _ in range(random.choice([1, 1, 2, 5, 40, 130, 300])):
            count += 1
            home = accounts[min(random.randrange(6), 2)]
            commands.append(CreateTransaction(home, 1, "", True, f"t{count}"))
        shard.apply(*commands, time_us=shard.time_us)
    with facts(shard) as known:
        moments = known.moments()
        groups = members(known, "main")
        for some in (moments[i : i + 64] for i in range(0, len(moments), 64)):
            found = totals(shard, "main", some)
            check_balanced(found)
            for group, group_accounts in groups.items():
                assert found[group].sums == [known.counters(group_accounts, at) for at in some]
    shard.close()


def test_a_group_that_came_later_was_nothing_before(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "shard")
    first, second = derive_account_id("main", "1"), derive_account_id("main", "2")
    shard.apply(CreateAccount(first, "main", "1", code="1000"), time_us=2_000_000)
    for i in range(200):
        shard.apply(CreateTransaction(first, 1, "", True, f"t{i}"), time_us=3_000_000 + i)
    shard.apply(CreateAccount(second, "main", "2", code="2000"), time_us=4_000_000)
    shard.apply(CreateTransaction(second, 7, "", True, "u"), time_us=5_000_000)
    found = totals(shard, "main", [1_000_000, 3_000_099, 4_000_000, 5_000_000])
    by_code = {code: group.sums for (_, _, code, role), group in found.items() if not role}
    assert [sums.credits_posted for sums in by_code["1000"]] == [0, 100, 200, 200]
    assert [sums.credits_posted for sums in by_code["2000"]] == [0, 0, 0, 7]
    shard.close()


def test_a_ledger_without_accounts_here_has_no_groups(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "shard")
    assert totals(shard, "nothing", [5]) == {}
    shard.close()

"""Rows that are read and written many at a time are those that are read and written one by one."""

import random
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger_core.commands import CreateAccount
from ledger_core.ids import is_system_account_id, system_account_id
from ledger_core.ledgers import USD, Currency
from ledger_node.records import AccountRecord, BalanceRow, RequestRow, TransactionRecord
from ledger_node.store import ShardTables, StoreCorruptError
from ledger_node.store_columns import are_own, place_books, place_slots
from tests.node.shard import Shard, open_store

# Ids that have their lowest bits in common share a cell among the places that are remembered.
IDS = [low + (high << 17) for low in (0, 1, 2, 77) for high in range(1, 6)]
EXTERNAL = system_account_id(0, 1)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    """A shard on which half of the ids are accounts, some of them in another currency."""
    shard = Shard(tmp_path_factory.mktemp("columns"))
    for number, account in enumerate(IDS[::2]):
        currency = Currency("EUR", 2) if number % 3 else USD
        shard.one(CreateAccount(account, "main", f"r{account}", currency=currency))
    return shard


def place_of(tables: ShardTables, account: int) -> tuple[int, int, bool]:
    slot = tables.find_slot(account)
    if slot is None:
        return -1, 0, False
    return slot, tables.balance(slot).book, is_system_account_id(0, account)


def transaction(number: int) -> TransactionRecord:
    return TransactionRecord(number, 5, "", True, 0, [], [], 0)


@given(data=st.lists(st.lists(st.sampled_from([0, EXTERNAL, *IDS]), min_size=1), max_size=8))
def test_places_are_the_same_however_often_and_together_with_whatever_they_are_looked_up(
    shard: Shard, data: list[list[int]]
) -> None:
    tables = shard.store.shard(0)
    for accounts in data:
        places = tables.places(np.array(accounts, np.uint64))
        found = zip(
            place_slots(places).tolist(),
            place_books(places).tolist(),
            are_own(places).tolist(),
            strict=True,
        )
        assert list(found) == [place_of(tables, account) for account in accounts]


def test_places_are_forgotten_with_the_tables_they_are_of(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    ids = np.array([1, 2], np.uint64)
    tables = shard.store.shard(0)

    def open_and_fail() -> None:
        with tables.attempt() as attempt:
            attempt.add_account(0, AccountRecord(1, "", 0), BalanceRow(account_id=1))
            assert attempt.places(ids).astype(bool).tolist() == [True, False]
            raise RuntimeError

    with pytest.raises(RuntimeError):
        open_and_fail()
    assert not tables.places(ids).any()
    shard.one(CreateAccount(1, "main", "r1"))
    assert tables.places(ids).astype(bool).tolist() == [True, False]
    tables.switch_generation()
    assert not tables.places(ids).any()
    shard.close()


def test_balances_are_read_and_written_together_as_one_by_one(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    rng = random.Random(1)
    for account in range(1, 40):
        shard.one(CreateAccount(account, "main", f"r{account}"))
    tables = shard.store.shard(0)
    slots = np.array(sorted(rng.sample(range(40), 17)))
    rows = tables.balance_rows(slots)
    rows["credits_posted"] += np.arange(17)
    before = [tables.balance(slot) for slot in slots.tolist()]
    tables.save_balance_rows(slots, rows)
    for number, (slot, row) in enumerate(zip(slots.tolist(), before, strict=True)):
        row.credits_posted += number
        assert tables.balance(slot) == row
        assert rows[number].tobytes()[:-4] == row.pack()
    assert len(tables.balance_rows(slots[:0])) == 0
    shard.close()


@pytest.mark.parametrize("damaged", [[3], [0], [3, 9]])
@pytest.mark.parametrize("byte", [0, 40, 70])
def test_a_damaged_balance_among_many_is_found_and_named(
    tmp_path: Path, damaged: list[int], byte: int
) -> None:
    shard = Shard(tmp_path)
    for account in range(1, 20):
        shard.one(CreateAccount(account, "main", f"r{account}"))
    shard.close()
    with lmdb.open(str(tmp_path / "store" / "state"), max_dbs=200) as env:
        table = env.open_db(b"00000.balances")
        with env.begin(write=True) as txn:
            for slot in damaged:
                key = slot.to_bytes(4)
                row = bytearray(txn.get(key, db=table))
                row[byte] ^= 1
                txn.put(key, bytes(row), db=table)
    store = open_store(tmp_path)
    tables = store.shard(0)
    assert len(tables.balance_rows(np.array([1, 2, 4, 5]))) == 4
    with pytest.raises(StoreCorruptError, match=f"row {damaged[0]:08x} fails its checksum"):
        tables.balance_rows(np.arange(12))
    store.close()


def test_a_balance_that_is_missing_is_named(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    shard.one(CreateAccount(1, "main", "r1"))
    with pytest.raises(StoreCorruptError, match="row 00000007 is missing"):
        shard.store.shard(0).balance_rows(np.array([0, 7]))
    shard.close()


@given(known=st.sets(st.integers(0, 7)), asked=st.lists(st.integers(0, 7), min_size=1, unique=True))
def test_requests_are_claimed_all_together_or_not_at_all(
    shard: Shard, known: set[int], asked: list[int]
) -> None:
    tables = shard.store.shard(0)
    keys = [bytes([place]) * 25 for place in range(8)]
    rows = {keys[place]: RequestRow(bytes(16), 100 + place, 0) for place in sorted(known)}
    for key, row in rows.items():
        tables.add_request(key, row)
    wanted = [keys[place] for place in asked]
    found = tables.claim_requests(wanted, 108)
    assert found == {key for key in wanted if key in rows}
    if not found:
        rows |= {key: RequestRow(bytes(16), 108 + at, 0) for at, key in enumerate(wanted)}
    assert [tables.find_request(key) for key in keys] == [rows.get(key) for key in keys]
    tables.drop_requests(keys)
    assert not tables._find_rows(tables._requests, keys)


def test_transactions_are_kept_whether_or_not_they_are_behind_all_others(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    tables = store.shard(0)
    rows = {number: transaction(number).encoded() for number in range(1, 9)}
    for numbers in ([2, 5], [1, 3, 4], [6], [7, 8]):
        tables.add_transaction_rows(
            [number.to_bytes(8) for number in numbers], [rows[number] for number in numbers]
        )
    for number in rows:
        assert tables.find_transaction(number) == transaction(number)
    store.close()


@pytest.mark.parametrize("numbers", [(3, 2), (2, 2), (4, 6, 5)])
def test_new_transactions_in_disorder_are_an_error(
    tmp_path: Path, numbers: tuple[int, ...]
) -> None:
    store = open_store(tmp_path)
    tables = store.shard(0)
    keys = [number.to_bytes(8) for number in numbers]
    with pytest.raises(AssertionError, match="do not rise"):
        tables.add_transaction_rows(keys, [b"row"] * len(keys))
    store.close()


def test_what_is_appended_before_its_end_is_an_error(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    tables = store.shard(0)
    tables.append_entries(7, [b"row"])
    for position in (6, 7):
        with pytest.raises(AssertionError, match="not behind all others"):
            tables.append_entries(position, [b"other"])
    store.close()

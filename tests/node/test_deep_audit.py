"""The deep audit: whole stores pass; a changed row of any kind is found, and named."""

import re
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import pytest

from ledger_core.commands import (
    CancelTransaction,
    CloseAccount,
    CreateAccount,
    CreateLedger,
    CreateTransaction,
    FreezeAccount,
    Limits,
    Prepare,
    ReverseTransaction,
    SettleTransaction,
    UnfreezeAccount,
    UpdateAccount,
)
from ledger_core.ids import derive_account_id, format_account_id
from ledger_core.ledgers import USD
from ledger_core.results import AccountView
from ledger_node.deep_audit import DeepAudit, deep_audit
from ledger_node.deep_audit_process import deep_audits
from ledger_node.records import (
    ENTRY_ROW_BYTES,
    AccountRecord,
    BalanceRow,
    EntryRow,
    InFlightRecord,
    JournalRecord,
    NameRecord,
    SettlementRecord,
    TotalsRow,
    TransactionRecord,
    pack_sums,
    unpack_sums,
)
from ledger_node.store_files import log_file, state_file
from ledger_node.store_rows import seal, unseal
from ledger_node.store_scan import scanned_store
from ledger_node.store_tables import STATE_TABLES
from tests.node.several_shards import World
from tests.node.shard import Shard

ALICE, BOB, CAROL = (derive_account_id("main", name) for name in ("alice", "bob", "carol"))
# What only blocks write: `test_deep_audit_blocks`.
OF_BLOCKS = ("in_flight_bits", "undecided_bits")
TABLES = (*(table for table in STATE_TABLES if table not in OF_BLOCKS), "log")


def fill(shard: Shard) -> None:
    """Make rows of every kind, but those of transactions across shards."""
    shard.one(CreateLedger("books", "ledger", "", [USD]))
    for account_id, name in ((ALICE, "alice"), (BOB, "bob")):
        opened = shard.one(CreateAccount(account_id, "main", name, code="2000", name=name))
        assert isinstance(opened, AccountView)
    # Refused before, and after, its other account exists; at the time of its opening, too.
    shard.one(CreateTransaction(ALICE, -5, "", True, "refused"))
    shard.apply(
        CreateTransaction(CAROL, -5, "", True, "too early"),
        CreateAccount(CAROL, "main", "carol"),
        CreateTransaction(CAROL, -5, "", True, "too poor"),
    )
    for number in range(300):
        shard.one(
            CreateTransaction(
                ALICE,
                10,
                "",
                True,
                f"t{number}",
                external_reference=f"reference {number % 3}",
                effective_time_us=500_000 + number % 5 * 100_000,
                metadata={"purpose": "test"},
            )
        )
    for number in range(6):
        made = shard.transaction(
            CreateTransaction(
                BOB, 50, "", False, f"p{number}", expire_time_us=shard.time_us + 3_600_000_000
            )
        )
        if number == 0:
            shard.one(SettleTransaction(BOB, made.number, "whole"))
        if number == 1:
            shard.one(SettleTransaction(BOB, made.number, "part", amount=20))
        if number == 2:
            shard.one(CancelTransaction(BOB, made.number, "cancel"))
    expiring = CreateTransaction(BOB, 5, "", False, "x", expire_time_us=shard.time_us + 10)
    shard.one(expiring)
    shard.time_us += 100
    made = shard.transaction(CreateTransaction(BOB, 9, "", True, "wrong"))
    shard.one(ReverseTransaction(BOB, made.number, "reversal"))
    shard.one(FreezeAccount(BOB, "freeze"))
    shard.one(UnfreezeAccount(BOB, "unfreeze"))
    shard.one(UpdateAccount(BOB, "limits", 2, limits=Limits(minimum=1_000)))
    shard.one(CloseAccount(CAROL, "close"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a shard that has seen everything, with its log."""
    world = World(tmp_path_factory.mktemp("worlds"))
    shard = world.shards[0]
    fill_across(world)
    fill(shard)
    tables = shard.store.shard(0)
    tables.save_name("main", "alice", NameRecord(ALICE, "alice"))
    log = shard.store.log(0)
    log.save_hard_state(3, "n2")
    for index, payload in shard.log:
        log.append(index, 3, payload)
    shard.store.commit()
    world.close()
    return shard.path


def fill_across(world: World) -> None:
    """Leave transactions across shards in every state, as seen by shard 0."""
    for number, (home, other, amount, settled) in enumerate(
        [
            (0, 1, 10, True),
            (1, 0, 10, True),
            (0, 1, 10, False),
            (0, 2, 999, True),
            (1, 0, 999, True),
        ]
    ):
        entries = [world.entry(home, 0, -amount), world.entry(other, 0, amount)]
        if number == 4:
            entries = [world.entry(home, 0, amount), world.entry(other, 0, -amount)]
        world.begin(world.create(entries, f"across {number}", settled=settled))
        world.drive()
    begun = [world.entry(0, 1, -7), world.entry(2, 1, 7)]
    world.begin(world.create(begun, "begun", expire_time_us=10**15))
    prepared = world.create([world.entry(1, 1, -7), world.entry(0, 1, 7)], "prepared")
    world.begin(prepared)
    world.apply(0, world.prepare_of(prepared))


def audited(path: Path, shard_id: int = 0) -> DeepAudit:
    with scanned_store(path / "store") as scanned:
        return deep_audit(scanned.shard(shard_id))


@contextmanager
def changing(path: Path, table: str) -> Iterator[tuple[lmdb.Transaction, Any]]:
    """Write to a table behind the back of the store."""
    file = log_file if table == "log" else state_file
    env = lmdb.open(str(file(path / "store").parent), max_dbs=200)
    try:
        database = env.open_db(f"00000.{table}".encode(), create=False)
        with env.begin(write=True) as txn:
            yield txn, database
    finally:
        env.close()


def rows_of(txn: lmdb.Transaction, database: Any) -> list[tuple[bytes, bytes]]:
    return [(bytes(key), bytes(value)) for key, value in txn.cursor(database)]


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    copy = tmp_path / "data"
    shutil.copytree(whole, copy)
    return copy


def test_a_whole_store_passes(whole: Path) -> None:
    found = audited(whole)
    assert (found.faults, found.finished, found.orphaned_holds) == ([], True, 0)
    assert found.rows_done == found.rows_estimated
    with scanned_store(whole / "store") as scanned:
        shard = scanned.shard(0)
        assert tuple(table for table in STATE_TABLES if not shard.count(table)) == OF_BLOCKS
        meta = shard.tables.meta()
    assert found.journal_entries == meta.next_journal - 1
    assert found.entries == meta.next_position - 1
    assert (found.accounts, found.transactions) == (meta.next_slot, meta.next_transaction - 1)
    assert found.link == meta.chain_hash.hex()


def test_an_empty_store_passes(tmp_path: Path) -> None:
    Shard(tmp_path).close()
    assert audited(tmp_path).faults == []


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_flipped_bit_in_a_row_of_any_kind_is_named(path: Path, table: str, place: str) -> None:
    with changing(path, table) as (txn, database):
        key, value = rows_of(txn, database)[0 if place == "first" else -1]
        if value:
            middle = len(value) // 2
            flipped = value[:middle] + bytes([value[middle] ^ 4]) + value[middle + 1 :]
            txn.put(key, flipped, db=database)
        else:
            txn.delete(key, db=database)
            txn.put(key[:-1] + bytes([key[-1] ^ 1]), b"", db=database)
    faults = audited(path).faults
    assert any(fault.startswith(f"table {table}, ") for fault in faults), faults


@pytest.mark.parametrize(
    "table", [table for table in TABLES if table not in ("requests", "names", "ledgers")]
)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_row_that_was_removed_is_missed(path: Path, table: str, place: str) -> None:
    with changing(path, table) as (txn, database):
        rows = rows_of(txn, database)
        key, _ = rows[{"first": 0, "middle": len(rows) // 2, "last": -1}[place]]
        txn.delete(key, db=database)
    # The Raft log is dropped from its beginning as a matter of course.
    if table == "log" and place == "first":
        assert audited(path).faults == []
        return
    faults = audited(path).faults
    assert any(f"table {table}" in fault for fault in faults), faults


def change(path: Path, table: str, decode: Any, pick: Any, alter: Any) -> bytes:
    """Change the first row that is picked, and give it a right checksum; return its key."""
    with changing(path, table) as (txn, database):
        for key, value in rows_of(txn, database):
            row = decode(unseal(key, value))
            if not pick(row):
                continue
            altered = alter(row)
            data = altered.pack() if hasattr(altered, "pack") else altered
            if isinstance(altered, msgspec.Struct):
                data = msgspec.msgpack.encode(altered)
            txn.put(key, seal(key, data), db=database)
            return key
    raise AssertionError("no row was picked")


def change_entry(path: Path, account_id: int, sequence: int, /, **changes: Any) -> None:
    """Change an entry, and give it a right checksum."""
    with changing(path, "entries") as (txn, database):
        for key, value in rows_of(txn, database):
            for offset in range(0, len(value), ENTRY_ROW_BYTES):
                row = EntryRow.unpack(value[offset : offset + ENTRY_ROW_BYTES])
                if (row.account_id, row.sequence) == (account_id, sequence):
                    packed = replace(row, **changes).pack()
                    changed = value[:offset] + packed + value[offset + ENTRY_ROW_BYTES :]
                    txn.put(key, changed, db=database)
                    return
    raise AssertionError("there is no such entry")


def decoder(kind: type[Any]) -> Any:
    return msgspec.msgpack.Decoder(kind).decode


def altered(**changes: Any) -> Any:
    """Return what changes fields of a row."""

    def alter(row: Any) -> Any:
        if isinstance(row, msgspec.Struct):
            return msgspec.structs.replace(row, **changes)
        return replace(row, **changes)

    return alter


def is_alice(row: Any) -> bool:
    return bool(row.account_id == ALICE)


def more_sums(data: bytes) -> bytes:
    sums = unpack_sums(data)
    sums.debits_posted += 1
    return pack_sums(sums)


ALICE_ID, BOB_ID = format_account_id(ALICE), format_account_id(BOB)

# What is changed, with a right checksum; and what is said of it.
CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "the amount of an entry": (
        lambda path: change_entry(path, ALICE, 7, amount=11),
        rf"table entries, position \d+ \(account {ALICE_ID}, sequence 7, transaction \d+ "
        rf"\({ALICE_ID}\w+\)\): a CREDIT of 11, POSTED, after .* makes .* but the row says",
    ),
    "the sequence of an entry": (
        lambda path: change_entry(path, ALICE, 7, sequence=8),
        rf"account {ALICE_ID}, sequence 8, .*the account's entry before it has the sequence 6",
    ),
    "the link of an entry to the one before": (
        lambda path: change_entry(path, ALICE, 7, previous=1),
        rf"account {ALICE_ID}, sequence 7, .*before it is at position 1, but that is at",
    ),
    "the time of an entry": (
        lambda path: change_entry(path, ALICE, 7, time_us=5),
        rf"account {ALICE_ID}, sequence 7, .*its time is 5, but its journal entry says",
    ),
    "the transaction of an entry": (
        lambda path: change_entry(path, ALICE, 7, transaction=1),
        r"table transactions, transaction 1 .*its entries .* are not those of its record",
    ),
    "the account of an entry": (
        lambda path: change_entry(path, ALICE, 7, account_id=99),
        "account 0000000000000063, .*there is no such account",
    ),
    "what a journal entry was asked": (
        lambda path: change(
            path,
            "journal",
            decoder(JournalRecord),
            lambda row: row.index == 9,
            lambda row: msgspec.structs.replace(
                row, items=[msgspec.structs.replace(row.items[0], command=b"x"), *row.items[1:]]
            ),
        ),
        "table journal, number 9: its link does not follow",
    ),
    "the time of a journal entry": (
        lambda path: change(
            path,
            "journal",
            decoder(JournalRecord),
            lambda row: row.index == 9,
            altered(time_us=1),
        ),
        "table journal, number 9: its time 1 is before",
    ),
    "a balance": (
        lambda path: change(
            path, "balances", BalanceRow.unpack, is_alice, altered(credits_posted=1)
        ),
        rf"table balances, slot \d+, account {ALICE_ID}: has 0 debits and 1 credits posted, .* but "
        rf"its entries make",
    ),
    "the sequence of a balance": (
        lambda path: change(path, "balances", BalanceRow.unpack, is_alice, altered(sequence=1)),
        rf"table balances, slot \d+, account {ALICE_ID}: says that its last entry is number 1 ",
    ),
    "money reserved for nobody": (
        lambda path: change(
            path, "balances", BalanceRow.unpack, is_alice, altered(debits_pending=7)
        ),
        rf"account {ALICE_ID}: .*has 7 debits and 0 credits reserved, but .* reserved 0 and 0",
    ),
    "how many transactions are pending": (
        lambda path: change(
            path, "balances", BalanceRow.unpack, is_alice, altered(pending_transactions=7)
        ),
        rf"account {ALICE_ID}: says that 7 entries of transactions are pending, but 0 are",
    ),
    "the group of an account": (
        lambda path: change(path, "balances", BalanceRow.unpack, is_alice, altered(group=0)),
        rf"account {ALICE_ID}: .*it does not belong to group 0",
    ),
    "limits that were never changed": (
        lambda path: change(
            path,
            "account_info",
            decoder(AccountRecord),
            is_alice,
            altered(limits=Limits(maximum=5)),
        ),
        rf"account {ALICE_ID}: its balance with what comes in, 3000, is above its maximum 5",
    ),
    "the revision of an account": (
        lambda path: change(
            path, "account_info", decoder(AccountRecord), is_alice, altered(revision=3)
        ),
        rf"table account_info, slot \d+, account {ALICE_ID}: is at revision 3, .* has 0 changes",
    ),
    "the total of a group": (
        lambda path: change(
            path,
            "totals",
            TotalsRow.unpack,
            lambda row: row.credits_posted > 3_000,
            altered(credits_posted=1),
        ),
        r"table totals, group \d+ \(main, USD, LIABILITY, 2000\): has 0 debits and 1 credits|"
        r"table totals, group \d+ .*1 credits posted",
    ),
    "a mark of an account's history": (
        lambda path: change(
            path, "entry_marks", bytes, lambda _row: True, lambda _row: struct.pack("<Qq", 1, 1)
        ),
        r"its row of table entry_marks, slot \d+, mark 1, says position 1, time 1",
    ),
    "a mark of totals": (
        lambda path: change(
            path,
            "total_marks",
            bytes,
            any,
            more_sums,
        ),
        r"the row of table total_marks, group \d+, block \d+, says",
    ),
    "a sum by effective time": (
        lambda path: change(path, "effective_sums", bytes, lambda _row: True, more_sums),
        r"table effective_sums, subject \d+, level 0",
    ),
    "the newest sums of dated entries": (
        lambda path: change(path, "effective_log", bytes, lambda _row: True, more_sums),
        r"table effective_log, subject \d+, time \d+: says",
    ),
    "how transactions ended on a day": (
        lambda path: change(
            path, "settlements", decoder(SettlementRecord), lambda _row: True, altered(expired=9)
        ),
        r"table settlements, book 0, day 0: counts 2 settled, 1 cancelled, 9 expired",
    ),
    "the status of a transaction": (
        lambda path: change(
            path,
            "transactions",
            decoder(TransactionRecord),
            lambda row: row.external_reference == "reference 1",
            lambda row: msgspec.structs.replace(
                row, states=[msgspec.structs.replace(row.states[0], status=1)]
            ),
        ),
        r"table transactions, transaction \d+ .* are not those of its record \(PENDING\)",
    ),
    "the amount of a transaction's entry": (
        lambda path: change(
            path,
            "transactions",
            decoder(TransactionRecord),
            lambda row: row.external_reference == "reference 1",
            lambda row: msgspec.structs.replace(
                row, entries=[msgspec.structs.replace(row.entries[0], amount=3), row.entries[1]]
            ),
        ),
        r"table transactions, transaction \d+ .*: debits of its entries exceed credits by",
    ),
    "the reference of a transaction": (
        lambda path: change(
            path,
            "transactions",
            decoder(TransactionRecord),
            lambda row: row.external_reference == "reference 1",
            altered(external_reference="another"),
        ),
        r"table references, key \w+: must not be there: transaction \d+",
    ),
    "the step that is in flight": (
        lambda path: change(
            path,
            "in_flight",
            decoder(InFlightRecord),
            lambda _row: True,
            altered(state=7),
        ),
        r"table in_flight, transaction \d+ \(\w+\): its transaction has no state 7 to tell",
    ),
    "what was prepared": (
        lambda path: change(
            path, "undecided", decoder(Prepare), lambda _row: True, altered(origin=bytes(20))
        ),
        r"table undecided, transaction \d+ .*: it was prepared for another transaction",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_wrong_row_with_a_right_checksum_is_found_and_named(path: Path, name: str) -> None:
    damage, said = CHANGES[name]
    damage(path)
    found = audited(path)
    assert any(re.search(said, fault) for fault in found.faults), found.faults
    assert found.finished


def test_money_reserved_for_nobody_is_counted(path: Path) -> None:
    CHANGES["money reserved for nobody"][0](path)
    assert audited(path).orphaned_holds == 1


def test_an_entry_that_was_removed_is_missed(path: Path) -> None:
    with changing(path, "entries") as (txn, database):
        key, value = next(
            (key, value)
            for key, value in rows_of(txn, database)
            if EntryRow.unpack(value[:ENTRY_ROW_BYTES]).sequence == 50
        )
        txn.put(key, value[ENTRY_ROW_BYTES:], db=database)
    faults = audited(path).faults
    assert any("wrote 2 rows, not 1" in fault for fault in faults), faults
    assert any("the account's entry before it has the sequence 49" in fault for fault in faults)


def test_faults_are_bounded(path: Path) -> None:
    with changing(path, "transactions") as (txn, database):
        for key, _ in rows_of(txn, database):
            txn.put(key, b"nonsense", db=database)
    found = audited(path)
    assert len(found.faults) == 100
    assert found.faults[0] == (
        "table transactions, transaction 1: fails its checksum: the disk or memory changed it"
    )


def test_an_audit_ends_when_its_time_is_over(whole: Path) -> None:
    with scanned_store(whole / "store") as scanned:
        found = deep_audit(scanned.shard(0), seconds_max=0)
    assert (found.finished, found.message) == (False, "not all was read within 0 s")


async def test_it_runs_in_a_process_beside_the_one_that_has_the_store(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    fill(shard)
    told = [audit async for audit in deep_audits(shard.store.files, 0)]
    assert (told[-1].finished, told[-1].faults) == (True, [])
    assert told[-1].link == shard.store.shard(0).meta().chain_hash.hex()
    shard.close()


async def test_a_process_that_crashes_is_a_fault_of_the_store(path: Path) -> None:
    file = state_file(path / "store")
    with file.open("r+b") as stream:
        stream.truncate(3 * 4096)
    told = [audit async for audit in deep_audits(path / "store", 0)]
    assert told[-1].faults[-1].startswith("reading the store ended with ")

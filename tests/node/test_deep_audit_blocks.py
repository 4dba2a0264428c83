"""The deep audit of what blocks of transfers between shards have written, on both sides."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from ledger_core.accounts import TransactionStatus
from ledger_core.commands import FreezeAccount, TransferText
from ledger_core.results import TransfersView, TransferVotesView
from ledger_node.records import StateRecord, TransactionRecord
from ledger_node.store_tables import STATE_TABLES
from tests.node.leg_blocks import (
    apply_block,
    commit_block,
    delivered_block,
    prepare_block,
    transfer_id,
)
from tests.node.several_shards import World
from tests.node.test_deep_audit import audited, change, changing, decoder, rows_of

S = TransactionStatus
Rows = dict[str, dict[bytes, bytes]]

# What the steps of blocks write to, beyond what every log entry does.
WRITTEN = (
    *("transactions", "requests", "entries", "journal", "balances", "totals", "references"),
    *("in_flight_bits", "undecided_bits", "meta"),
)


def run_blocks(world: World) -> None:
    """Leave transfers between shards 0 and 1 after every round, as seen by both."""
    world.shards[1].one(FreezeAccount(world.accounts[1][1], "freeze"))
    number = 0
    for home, other in ((0, 1), (1, 0)):
        for last in range(1, 5):
            items = []
            # The last but one is refused at home, the last one by shard 1, on whatever side.
            for amount in (3, 5, 4_000, 6):
                number += 1
                frozen = amount == 6
                entries = [
                    world.entry(home, int(frozen and home == 1), -amount),
                    world.entry(other, int(frozen and other == 1), amount),
                ]
                items.append(world.create(entries, transfer_id(number)))
            _rounds(world, items, last)


def _rounds(world: World, items: list, last: int) -> None:
    home, other = items[0].entries[0].shard_id, items[0].entries[1].shard_id
    texts = {0: TransferText("a text", f"reference {home}", {"key": "value"})}
    votes = world.apply(other, msgspec.structs.replace(prepare_block(items), texts=texts))
    assert isinstance(votes, TransferVotesView)
    if last == 1:
        return
    commit = msgspec.structs.replace(commit_block(items, votes.refused), texts=texts)
    view = world.apply(home, commit)
    assert isinstance(view, TransfersView)
    assert [S(status) for status in view.statuses] == [
        *(S.SETTLED, S.SETTLED, S.INSUFFICIENT_FUNDS, S.REJECTED)
    ]
    numbers = list(range(view.first_number, view.first_number + 4))
    if last >= 3:
        refused = {place: world.record(home, numbers[place]).refusal for place in (2, 3)}
        statuses = [S(status) for status in view.statuses]
        world.apply(other, apply_block(items, numbers, statuses, refused))  # type: ignore[arg-type]
    if last == 4:
        world.apply(home, delivered_block(items[:2], numbers[:2]))


def all_rows(path: Path) -> Rows:
    found: Rows = {}
    for table in STATE_TABLES:
        with changing(path, table) as (txn, database):
            found[table] = dict(rows_of(txn, database))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """The data directory of shard 0, and the rows of it that blocks have made or changed."""
    world = World(tmp_path_factory.mktemp("worlds"))
    path = world.shards[0].path
    copy = tmp_path_factory.mktemp("before")
    shutil.copytree(path, copy, dirs_exist_ok=True)
    before = all_rows(copy)
    run_blocks(world)
    world.close()
    assert audited(path).faults == []
    made: Rows = {}
    for table, rows in all_rows(path).items():
        known = before[table]
        made[table] = {key: row for key, row in rows.items() if known.get(key) != row}
    return path, made


@pytest.fixture
def path(whole: tuple[Path, Rows], tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    copy = tmp_path / "data"
    shutil.copytree(whole[0], copy)
    return copy


def test_a_whole_store_passes(whole: tuple[Path, Rows]) -> None:
    found = audited(whole[0])
    assert (found.faults, found.finished, found.orphaned_holds) == ([], True, 0)
    made = whole[1]
    assert {table for table in WRITTEN if table in made and not made[table]} == set()
    assert made["in_flight_bits"]
    assert made["undecided_bits"]


@pytest.mark.parametrize("table", [table for table in WRITTEN if table in STATE_TABLES])
def test_a_flipped_bit_in_what_blocks_wrote_is_named(
    path: Path, whole: tuple[Path, Rows], table: str
) -> None:
    rows = sorted(whole[1][table].items())
    for key, value in (rows[0], rows[len(rows) // 2], rows[-1]):
        with changing(path, table) as (txn, database):
            if value:
                middle = len(value) // 2
                flipped = value[:middle] + bytes([value[middle] ^ 4]) + value[middle + 1 :]
                txn.put(key, flipped, db=database)
            else:
                txn.delete(key, db=database)
                txn.put(bytes([key[0] ^ 1]) + key[1:], b"", db=database)
        faults = audited(path).faults
        assert any(fault.startswith(f"table {table}, ") for fault in faults), faults
        with changing(path, table) as (txn, database):
            txn.put(key, value, db=database)
            if not value:
                txn.delete(bytes([key[0] ^ 1]) + key[1:], db=database)
    assert audited(path).faults == []


def _committed(row: TransactionRecord) -> bool:
    """The home's record of a transfer that was settled at once."""
    return bool(row.participants) and row.states[0].status is S.SETTLED


def _applied(row: TransactionRecord) -> bool:
    """The participant's."""
    return row.home_shard_id is not None and row.status is S.SETTLED


def _other_amount(row: TransactionRecord) -> TransactionRecord:
    entries = [msgspec.structs.replace(entry, amount=entry.amount + 1) for entry in row.entries]
    clearing = [msgspec.structs.replace(entry, amount=entry.amount + 1) for entry in row.clearing]
    return msgspec.structs.replace(row, entries=entries, clearing=clearing)


def _undecided_first(row: TransactionRecord) -> TransactionRecord:
    first = StateRecord(S.UNDECIDED, row.states[0].time_us, row.states[0].request_id)
    return msgspec.structs.replace(row, states=[first, *row.states])


def _change_record(
    pick: Callable[[TransactionRecord], bool],
    alter: Callable[[TransactionRecord], TransactionRecord],
) -> Callable[[Path], object]:
    return lambda path: change(path, "transactions", decoder(TransactionRecord), pick, alter)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "the amount of a transfer at its home": (
        _change_record(_committed, _other_amount),
        r"table transactions, transaction \d+ .*its entries in the histories are not those of its "
        r"record \(SETTLED\)",
    ),
    "the amount of a transfer at its participant": (
        _change_record(_applied, _other_amount),
        r"table transactions, transaction \d+ .*its entries .* record \(UNDECIDED, SETTLED\)",
    ),
    "a transfer that was settled at once has been undecided": (
        _change_record(_committed, _undecided_first),
        r"table transactions, transaction \d+ .*its entries .* record \(UNDECIDED, SETTLED\)",
    ),
    "a transfer that was settled at its participant is undecided": (
        _change_record(_applied, lambda row: msgspec.structs.replace(row, states=row.states[:1])),
        r"table undecided, transaction \d+: the row of transaction \d+ .* is missing",
    ),
    "the clearing entry of a transfer": (
        _change_record(_committed, lambda row: msgspec.structs.replace(row, clearing=[])),
        r"table transactions, transaction \d+ .*: debits of those booked here exceed credits by",
    ),
    "a transfer that nobody is to be told of is in flight": (
        lambda path: change(path, "in_flight_bits", bytes, bool, lambda row: b"\xff" * len(row)),
        r"table in_flight_bits, transaction \d+ \(\w+\): there is nothing to tell of it",
    ),
    "a transfer that is not there is in flight": (
        lambda path: change(path, "in_flight_bits", bytes, bool, lambda row: row[:-1] + b"\x80"),
        r"table in_flight_bits, transaction 1023: there is nothing to tell of it",
    ),
    "a transfer that is decided is undecided": (
        lambda path: change(path, "undecided_bits", bytes, bool, lambda row: b"\xff" * len(row)),
        r"table undecided, transaction \d+: must not be there: transaction \d+ .* is SETTLED",
    ),
    "a transfer that is undecided waits for nothing": (
        lambda path: change(path, "undecided_bits", bytes, bool, lambda row: bytes(len(row))),
        r"table undecided, transaction \d+: the row of transaction \d+ .* is missing",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_wrong_row_with_a_right_checksum_is_found_and_named(path: Path, name: str) -> None:
    damage, said = CHANGES[name]
    damage(path)
    found = audited(path)
    assert any(re.search(said, fault) for fault in found.faults), found.faults

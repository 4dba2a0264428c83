"""The journal: what was asked, what came of it, and the chain that makes changes show."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ledger_core.accounts import Direction
from ledger_core.commands import (
    CancelTransaction,
    ClaimName,
    CreateAccount,
    CreateLedger,
    CreateTransaction,
    FreezeAccount,
    SettleTransaction,
    Source,
    encode_command,
)
from ledger_core.errors import Reason
from ledger_core.ids import derive_account_id
from ledger_core.journal import FIRST_LINK, item_digest, next_link
from ledger_core.ledgers import USD
from ledger_node.records import JournalItem, JournalRecord, StateRecord
from tests.node.several_shards import World
from tests.node.shard import Shard

ACCOUNT = derive_account_id("main", "alice")


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    shard = Shard(tmp_path / "shard")
    shard.one(CreateAccount(ACCOUNT, "main", "alice"))
    yield shard
    shard.close()


def journal(shard: Shard) -> list[JournalRecord]:
    with shard.store.read() as view:
        return [record for _, record in view.shard(shard.shard.id).journal_after(0)]


def outcomes(record: JournalRecord) -> list[object]:
    return [msgspec.msgpack.decode(item.outcome) for item in record.items]


def states(shard: Shard, number: int) -> list[StateRecord]:
    with shard.store.read() as view:
        record = view.shard(shard.shard.id).find_transaction(number)
    assert record is not None
    return record.states


def put(amount: int, request_id: str, **options: object) -> CreateTransaction:
    return CreateTransaction(ACCOUNT, amount, "", True, request_id, **options)  # type: ignore[arg-type]


def test_a_command_is_kept_byte_by_byte_with_what_it_did(shard: Shard) -> None:
    commands = [put(5, "t1"), put(6, "t2")]
    shard.apply(*commands)
    (_, record) = journal(shard)
    assert [item.command for item in record.items] == [encode_command(c) for c in commands]
    assert outcomes(record) == [[1, 0], [2, 0]]
    assert [(item.number, item.entries) for item in record.items] == [(1, 2), (2, 2)]
    assert (record.index, record.time_us, record.first_position) == (2, shard.time_us, 1)


def test_an_outcome_is_a_reason_a_place_or_done(shard: Shard) -> None:
    shard.apply(
        put(5, "t1"),
        put(5, "t1"),
        put(9, "t1"),
        FreezeAccount(ACCOUNT, "f"),
        ClaimName("main", "till", ACCOUNT, "c"),
        SettleTransaction(ACCOUNT, 1, "s"),
        CreateLedger("shop", "l", "", [USD]),
    )
    record = journal(shard)[-1]
    assert outcomes(record) == [
        [1, 0],
        [1, 0],
        Reason.REQUEST_ID_REUSED,
        "done",
        "done",
        Reason.TRANSACTION_NOT_PENDING,
        [0, 0],
    ]
    assert [(item.number, item.entries) for item in record.items] == [(1, 2)] + [(0, 0)] * 6


def test_what_expires_comes_first_without_a_command(shard: Shard) -> None:
    pending = CreateTransaction(ACCOUNT, 5, "", False, "p", expire_time_us=shard.time_us + 1_000)
    number = shard.transaction(pending).number
    shard.apply(put(5, "t"), time_us=shard.time_us + 2_000)
    record = journal(shard)[-1]
    assert [item.command for item in record.items] == [b"", encode_command(put(5, "t"))]
    assert outcomes(record) == [[number, 1], [number + 1, 0]]
    assert [(item.number, item.entries) for item in record.items] == [(0, 2), (number + 1, 2)]


def test_a_log_entry_that_does_nothing_leaves_no_trace_but_its_index(shard: Shard) -> None:
    before = shard.audit()
    assert shard.apply() == []
    after = shard.audit()
    assert (after.applied_index, after.chain_hash) == (before.applied_index + 1, before.chain_hash)
    assert len(journal(shard)) == 1


def test_a_log_entry_that_only_expires_something_is_journaled(shard: Shard) -> None:
    shard.one(CreateTransaction(ACCOUNT, 5, "", False, "p", expire_time_us=shard.time_us + 1_000))
    shard.apply(time_us=shard.time_us + 2_000)
    record = journal(shard)[-1]
    assert [item.command for item in record.items] == [b""]


def test_the_chain_is_computed_as_published(shard: Shard) -> None:
    """From the journal and the stored rows alone, in the layout of `ledger_core.journal`."""
    shard.apply(put(5, "t1"), put(-50, "t2"), put(7, "t3"))
    shard.apply(FreezeAccount(ACCOUNT, "f"), put(1, "t4"))
    link = FIRST_LINK
    with shard.store.read() as view:
        tables = view.shard(0)
        for number, record in tables.journal_after(0):
            rows = sum(item.entries for item in record.items)
            stored = tables.entry_bytes(record.first_position) if rows else b""
            digests = []
            for item in record.items:
                mine, stored = stored[: 88 * item.entries], stored[88 * item.entries :]
                digests.append(item_digest(item.command, item.outcome, item.number, mine))
            assert stored == b""
            link = next_link(link, number, record.time_us, digests)
            assert record.link == link
    assert shard.audit().chain_hash == link


@pytest.mark.parametrize(
    "change",
    [
        {"command": b"other"},
        {"outcome": msgspec.msgpack.encode((1, 1))},
        {"number": 2},
    ],
)
def test_whatever_changes_in_an_item_changes_its_digest(change: dict[str, object]) -> None:
    item = JournalItem(b"command", msgspec.msgpack.encode((1, 0)), 1, 1)
    other = msgspec.structs.replace(item, **change)
    digests = {item_digest(i.command, i.outcome, i.number, b"rows") for i in (item, other)}
    digests.add(item_digest(item.command, item.outcome, item.number, b"other rows"))
    assert len(digests) == 3


def test_a_number_is_the_first_that_an_item_took(tmp_path: Path) -> None:
    """Across shards a participant's record has a number of its own, taken by Prepare."""
    world = World(tmp_path)
    command = world.create([world.entry(0, 0, -5), world.entry(1, 0, 5)], "t")
    world.begin(command)
    world.drive()
    home, participant = (
        [
            (item.number, msgspec.msgpack.decode(item.outcome))
            for record in journal(world.shards[i])
            for item in record.items
        ]
        for i in (0, 1)
    )
    # Two accounts were opened and funded; then Begin, Decide, Delivered; Prepare, ApplyDecision.
    assert home[4:] == [(3, [3, 0]), (0, "done"), (0, "done")]
    assert participant[4:] == [(3, "done"), (0, "done")]
    world.close()


def test_states_say_where_the_request_came_from(shard: Shard) -> None:
    def source(number: int) -> Source:
        return Source(f"work {number}", f"10.0.0.{number}")

    made = shard.transaction(
        CreateTransaction(ACCOUNT, 5, "", False, "p", actor="alice", source=source(1))
    )
    shard.one(SettleTransaction(ACCOUNT, made.number, "s", actor="bob", source=source(2)))
    other = shard.transaction(CreateTransaction(ACCOUNT, 5, "", False, "q"))
    shard.one(CancelTransaction(ACCOUNT, other.number, "c", source=source(3)))
    assert [
        (state.request_id, state.actor, state.correlation_id, state.peer)
        for number in (made.number, other.number)
        for state in states(shard, number)
    ] == [
        ("p", "alice", "work 1", "10.0.0.1"),
        ("s", "bob", "work 2", "10.0.0.2"),
        ("q", "", "", ""),
        ("c", "", "work 3", "10.0.0.3"),
    ]


def test_a_repeat_from_elsewhere_is_a_repeat(shard: Shard) -> None:
    """Where a request comes from is no part of what a repeat must repeat."""
    first = shard.transaction(put(5, "t", source=Source("a", "10.0.0.1")))
    again = shard.transaction(put(5, "t", source=Source("b", "10.0.0.2")))
    assert again == first
    assert [state.peer for state in states(shard, first.number)] == ["10.0.0.1"]


def test_the_states_of_a_transaction_across_shards_say_who_asked(tmp_path: Path) -> None:
    world = World(tmp_path)
    entries = [world.entry(0, 0, -5), world.entry(1, 0, 5)]
    command = msgspec.structs.replace(
        world.create(entries, "t"), actor="alice", source=Source("work", "10.0.0.1")
    )
    world.begin(command)
    world.drive()
    home, participant = (states(world.shards[i], 3) for i in (0, 1))
    who = ("t", "alice", "work", "10.0.0.1")
    found = [(s.request_id, s.actor, s.correlation_id, s.peer) for s in (*home, participant[0])]
    assert found == [who, who, who]
    assert entries[0].direction is Direction.DEBIT
    world.close()

"""JournalService: what the shards are asked, and what may not reach them."""

from typing import Any

import grpc
import pytest
from error_details import decode
from fake_shards import Call, FakeShards

from ledger.v1 import journal_pb2, journal_pb2_grpc
from ledger_cluster.channels import REPLAY_BYTES_MAX
from ledger_core import commands, queries
from ledger_core.errors import Reason
from ledger_core.ids import shard_key, system_account_id
from ledger_core.results import (
    Failure,
    JournalItemView,
    JournalPage,
    JournalView,
    Replayed,
    Result,
)
from ledger_gateway.server import REQUEST_BYTES_MAX

QUARTER = 2**30
# An account that routes to shard 2 of the four.
ACCOUNT_ID = system_account_id(2 * QUARTER, 77)
COMMAND = commands.encode_command(commands.FreezeAccount(ACCOUNT_ID, "r-1"))
DONE = b"\xa4done"


@pytest.fixture
def journal(channel: grpc.aio.Channel) -> journal_pb2_grpc.JournalServiceStub:
    return journal_pb2_grpc.JournalServiceStub(channel)


def entry(number: int, command: bytes = COMMAND, **fields: Any) -> journal_pb2.JournalEntry:
    item = journal_pb2.JournalItem(command=command, outcome=DONE, number=fields.pop("item", 0))
    return journal_pb2.JournalEntry(**{"number": number, "time_us": 5, "items": [item], **fields})


def replaying(shards: FakeShards) -> None:
    def answer(call: Call) -> Result:
        number = getattr(call.message, "number", 99)
        return Replayed(number, number.to_bytes(32))

    shards.answer = answer


async def violations(call: Any) -> dict[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = decode(caught.value)
    assert error.code == "INVALID_ARGUMENT"
    return dict(error.violations)


async def test_shards_tell_their_ranges_and_how_far_they_are(
    journal: Any, shards: FakeShards
) -> None:
    shards.answer = lambda call: JournalPage([], 10 + call.shard_id, call.shard_id)
    response = await journal.ListShards(journal_pb2.ListShardsRequest())
    assert [shard.shard_id for shard in response.shards] == [0, 1, 2, 3]
    assert response.shards[3] == journal_pb2.JournalShard(
        shard_id=3,
        lower_bound=3 * QUARTER,
        upper_bound=2**32 - 1,
        last_number=13,
        replayed_number=3,
    )
    for call in shards.calls:
        assert isinstance(call.message, queries.ListJournal)
        assert call.message.after_number == 2**63 - 1
        assert not call.stale


async def test_a_page_of_a_journal(journal: Any, shards: FakeShards) -> None:
    items = [
        JournalItemView(b"d" * 32, False, COMMAND, DONE, 4, b"r" * 88),
        JournalItemView(b"h" * 32, True),
    ]
    shards.result = JournalPage([JournalView(7, 70, 700, items, b"l" * 32)], 9, 0)
    response = await journal.ListJournal(
        journal_pb2.ListJournalRequest(shard_id=1, after_number=6, page_size=2)
    )
    assert response.last_number == 9
    assert response.entries == [
        journal_pb2.JournalEntry(
            number=7,
            log_index=70,
            time_us=700,
            items=[
                journal_pb2.JournalItem(
                    digest=b"d" * 32, command=COMMAND, outcome=DONE, number=4, rows=b"r" * 88
                ),
                journal_pb2.JournalItem(digest=b"h" * 32, hidden=True),
            ],
            link=b"l" * 32,
        )
    ]
    (call,) = shards.calls
    assert (call.shard_id, call.message) == (1, queries.ListJournal(6, 2))


async def test_a_page_has_100_entries_where_nothing_is_said(
    journal: Any, shards: FakeShards
) -> None:
    shards.result = JournalPage([], 0, 0)
    await journal.ListJournal(journal_pb2.ListJournalRequest(shard_id=0))
    assert shards.messages == [queries.ListJournal(0, 100)]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (journal_pb2.ListJournalRequest(shard_id=4), "shard_id"),
        (journal_pb2.ListJournalRequest(page_size=1_001), "page_size"),
        (journal_pb2.ListJournalRequest(page_size=-1), "page_size"),
        (journal_pb2.ListJournalRequest(after_number=2**63), "after_number"),
        (journal_pb2.ListJournalRequest(ledger="No Such"), "ledger"),
    ],
)
async def test_wrong_fields_of_a_page_are_named(
    journal: Any, shards: FakeShards, request_: journal_pb2.ListJournalRequest, field: str
) -> None:
    assert list(await violations(journal.ListJournal(request_))) == [field]
    assert shards.calls == []


async def test_entries_are_replayed_in_order_each_with_the_one_before_it(
    journal: Any, shards: FakeShards
) -> None:
    replaying(shards)
    response = await journal.ReplayJournal(
        journal_pb2.ReplayJournalRequest(
            shard_id=2, entries=[entry(5, item=8), entry(6), entry(9)], after_number=3
        )
    )
    assert (response.last_number, response.link) == (9, (9).to_bytes(32))
    route = system_account_id(2 * QUARTER, 0)
    assert shard_key(route) == 2 * QUARTER
    assert shards.messages == [
        commands.Replay(route, 5, 5, [commands.ReplayedItem(COMMAND, DONE, 8)], 3),
        commands.Replay(route, 6, 5, [commands.ReplayedItem(COMMAND, DONE, 0)], 5),
        commands.Replay(route, 9, 5, [commands.ReplayedItem(COMMAND, DONE, 0)], 6),
    ]


async def test_an_import_ends_after_its_last_entries(journal: Any, shards: FakeShards) -> None:
    replaying(shards)
    request = journal_pb2.ReplayJournalRequest(shard_id=2, entries=[entry(1)], ends=True)
    assert (await journal.ReplayJournal(request)).last_number == 99
    assert shards.messages[1:] == [commands.EndReplay(system_account_id(2 * QUARTER, 0))]
    await journal.ReplayJournal(journal_pb2.ReplayJournalRequest(shard_id=2, ends=True))
    assert shards.messages[2:] == [commands.EndReplay(system_account_id(2 * QUARTER, 0))]


async def test_entries_that_overtook_each_other_are_sent_one_by_one(
    journal: Any, shards: FakeShards
) -> None:
    done = 0

    def answer(call: Call) -> Result:
        nonlocal done
        message = call.message
        assert isinstance(message, commands.Replay)
        overtaken = len(shards.calls) == 2  # the second one arrives before the first one is done
        if overtaken or message.previous > done:
            return Failure(Reason.JOURNAL_GAP, "one is missing")
        done = message.number
        return Replayed(done, b"")

    shards.answer = answer
    request = journal_pb2.ReplayJournalRequest(shard_id=2, entries=[entry(1), entry(2), entry(3)])
    assert (await journal.ReplayJournal(request)).last_number == 3
    assert [call.message.number for call in shards.calls] == [1, 2, 3, 1, 2, 3]  # type: ignore[union-attr]


async def test_a_gap_before_the_first_entry_is_told(journal: Any, shards: FakeShards) -> None:
    shards.result = Failure(Reason.JOURNAL_GAP, "entry 2 is missing")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await journal.ReplayJournal(
            journal_pb2.ReplayJournalRequest(shard_id=2, entries=[entry(3)])
        )
    error = decode(caught.value)
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "JOURNAL_GAP")


FOREIGN = commands.encode_command(commands.FreezeAccount(system_account_id(0, 1), "r"))
NESTED = commands.encode_command(
    commands.Replay(ACCOUNT_ID, 1, 1, [commands.ReplayedItem(COMMAND, DONE, 0)])
)


@pytest.mark.parametrize(
    ("entries", "field"),
    [
        ([], "entries"),
        ([entry(n) for n in range(1, 1_002)], "entries"),
        ([entry(0)], "entries[0].number"),
        ([entry(2), entry(2)], "entries[1].number"),
        ([entry(1, time_us=-1)], "entries[0].time_us"),
        ([entry(1), entry(2, items=[])], "entries[1].items"),
        ([entry(1, b"\xc1")], "entries[0].items[0].command"),
        ([entry(1, FOREIGN)], "entries[0].items[0].command"),
        ([entry(1, NESTED)], "entries[0].items[0].command"),
        (
            [
                entry(
                    1,
                    items=[
                        journal_pb2.JournalItem(command=COMMAND, outcome=DONE),
                        journal_pb2.JournalItem(command=COMMAND),
                    ],
                )
            ],
            "entries[0].items[1].outcome",
        ),
        (
            [entry(1, items=[journal_pb2.JournalItem(digest=b"d", hidden=True)])],
            "entries[0].items[0].hidden",
        ),
    ],
)
async def test_wrong_fields_of_a_replay_are_named(
    journal: Any, shards: FakeShards, entries: list[journal_pb2.JournalEntry], field: str
) -> None:
    request = journal_pb2.ReplayJournalRequest(shard_id=2, entries=entries)
    assert list(await violations(journal.ReplayJournal(request))) == [field]
    assert shards.calls == []


async def test_an_entry_as_large_as_a_log_entry_is_taken_and_no_larger_one(
    journal: Any, shards: FakeShards
) -> None:
    replaying(shards)
    many = COMMAND * ((REPLAY_BYTES_MAX - 2_000) // len(COMMAND))
    request = journal_pb2.ReplayJournalRequest(shard_id=2, entries=[entry(1, many)])
    # Its bytes arrive and are looked at: they are not one command.
    assert list(await violations(journal.ReplayJournal(request))) == ["entries[0].items[0].command"]
    request.entries[0].items[0].command = b"\0" * REPLAY_BYTES_MAX
    assert "entries[0].items" in await violations(journal.ReplayJournal(request))


async def test_other_calls_are_not_allowed_so_much(journal: Any, shards: FakeShards) -> None:
    request = journal_pb2.ListJournalRequest(ledger="l" * REQUEST_BYTES_MAX)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await journal.ListJournal(request)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "at most 262,144" in str(caught.value.details())
    assert shards.calls == []

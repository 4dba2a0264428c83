"""Bulk calls: what is refused, what goes in blocks, and answers like those of single calls."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import grpc
import numpy as np
import pytest
from bulk_shards import (
    ACCOUNTS,
    CREDIT,
    DEBIT,
    IN,
    OUT,
    SETTLED,
    TIME_US,
    BulkShards,
    Item,
    bulk,
    bytes_of,
    on_shards,
    request_ids,
    transfers,
)
from error_details import decode
from fake_shards import TRANSACTION_VIEW, Call, until
from google.protobuf.timestamp_pb2 import Timestamp
from world_shards import WorldShards

from ledger.v1 import ledger_pb2, ledger_pb2_grpc
from ledger_cluster.channels import EXECUTE_BYTES_MAX
from ledger_cluster.shards import Shards
from ledger_core import transfers as columns
from ledger_core.accounts import Direction
from ledger_core.commands import NO_SOURCE, Entry, Source, TransferText
from ledger_core.errors import (
    LedgerError,
    OutcomeUnknownError,
    OverloadedError,
    Reason,
    ShardUnavailableError,
)
from ledger_core.ids import format_transaction_id
from ledger_core.ledgers import USD, Currency
from ledger_core.queries import GetLedger
from ledger_core.results import (
    Failure,
    LedgerView,
    RefusalView,
    Result,
    TransfersView,
    VoteView,
)
from ledger_gateway import transfer_columns
from ledger_gateway.block_kinds import CREATE
from ledger_gateway.block_lanes import ONCE_BYTES
from ledger_gateway.bulk_work import BulkWork, Room
from ledger_gateway.server import GatewayServer
from ledger_gateway.shard_calls import Deadline, ShardCalls
from ledger_gateway.standalone import StandaloneShards
from ledger_gateway.transfer_columns import Terms
from ledger_gateway.transfer_pieces import PlacedTransfers, Transfers
from tests.node.several_shards import World

A, B, C = ACCOUNTS[0][:3]
ELSEWHERE = ACCOUNTS[1][0]
ONE: list[Item] = [(DEBIT, A, B, 5)]
Request = ledger_pb2.CreateTransactionsRequest
Single = ledger_pb2.CreateTransactionRequest


@pytest.fixture
def shards() -> BulkShards:
    return BulkShards()


async def refused(stub: Any, request: Request) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CreateTransactions(request)
    return decode(caught.value)


def hex_id(account_id: int) -> str:
    return f"{account_id:016x}"


def transfer(first: int, second: int, amount: int = 5, **changes: Any) -> Single:
    """A general transaction that is no more than a transfer."""
    entries = [
        ledger_pb2.Entry(account_id=hex_id(first), direction="DIRECTION_DEBIT", amount=amount),
        ledger_pb2.Entry(account_id=hex_id(second), direction="DIRECTION_CREDIT", amount=amount),
    ]
    return Single(**{"entries": entries, "settled": True} | changes)


def change(request: Single, **of_first_entry: Any) -> Single:
    for name, value in of_first_entry.items():
        setattr(request.entries[0], name, value)
    return request


# Wrong requests


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"second_account_ids": []}, "second_account_ids", "must be as many as first_account_ids"),
        ({"second_account_ids": [B, B]}, "second_account_ids", "which has 1; there are 2"),
        ({"amounts": []}, "amounts", "there are 0"),
        ({"forms": b""}, "forms", "or one; there are 0"),
        ({"forms": b"\1\1"}, "forms", "or one; there are 2"),
        ({"request_ids": b"x" * 15}, "request_ids", "16 bytes for each of 1; it has 15 bytes"),
        ({"forms": b"\0"}, "forms[0]", "must be 1 (DEBIT), 2 (CREDIT), 3 (IN) or 4 (OUT)"),
        ({"forms": b"\5"}, "forms[0]", "must be 1 (DEBIT)"),
        ({"first_account_ids": [0]}, "first_account_ids[0]", "is required"),
        ({"second_account_ids": [0]}, "second_account_ids[0]", "is required in this form"),
        ({"forms": b"\3"}, "second_account_ids[0]", "must be 0 in the one-account form"),
        ({"forms": b"\4"}, "second_account_ids[0]", "must be 0 in the one-account form"),
        ({"second_account_ids": [A]}, "second_account_ids[0]", "not be the first account itself"),
        ({"amounts": [0]}, "amounts[0]", "must be greater than 0"),
        ({"amounts": [-1]}, "amounts[0]", "must be greater than 0"),
        ({"amounts": [-(2**63)]}, "amounts[0]", "must be greater than 0"),
        ({"texts": {1: {"description": "x"}}}, "texts[1]", "is of no transfer: there are 1"),
        ({"texts": {0: {"description": "x" * 1_001}}}, "texts[0].description", "at most 1,000"),
        (
            {"texts": {0: {"external_reference": "x\n"}}},
            "texts[0].external_reference",
            "control characters",
        ),
        ({"texts": {0: {"metadata": {"": "x"}}}}, "texts[0].metadata", "an empty key"),
        ({"actor": "a" * 129}, "actor", "at most 128 characters"),
        ({"ledger": "Books"}, "ledger", "the first one a letter"),
        ({"currency": "usd"}, "currency", "3 to 12 characters of A-Z"),
    ],
)
async def test_a_wrong_column_is_named_and_nothing_is_done(
    stub: Any, shards: BulkShards, changes: dict[str, Any], field: str, said: str
) -> None:
    error = await refused(stub, bulk(ONE, **changes))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELDS")
    assert [name for name, _ in error.violations] == [f"transfers.{field}"]
    assert said in error.violations[0][1]
    assert shards.calls == []


async def test_one_wrong_item_fails_the_whole_call_with_its_index(
    stub: Any, shards: BulkShards
) -> None:
    items = on_shards(100, 0, 1)
    items[17] = (*items[17][:3], 0)
    error = await refused(stub, bulk(items))
    assert [name for name, _ in error.violations] == ["transfers.amounts[17]"]
    assert shards.calls == []


def test_of_many_wrong_ones_some_are_listed() -> None:
    wrong = transfers([(DEBIT, A, B, 0)] * 100, actor="two\nlines")
    found = transfer_columns.violations(wrong)
    assert len(found) == 20
    assert [item.field for item in found[:2]] == ["transfers.actor", "transfers.amounts[0]"]


@pytest.mark.parametrize(
    ("request_", "field", "count"),
    [
        (Request(), "transactions", "0"),
        (Request(transfers=ledger_pb2.Transfers()), "transactions", "0"),
        (bulk(ONE * 8_193, request_ids=b""), "transfers", "8,193"),
        (Request(transactions=[Single()], transfers=transfers(ONE * 8_192)), "transfers", "8,193"),
        (Request(transactions=[Single()] * 8_193), "transactions", "8,193"),
    ],
)
async def test_a_call_has_1_to_8192_items(
    stub: Any, shards: BulkShards, request_: Request, field: str, count: str
) -> None:
    error = await refused(stub, request_)
    assert [name for name, _ in error.violations] == [field]
    assert f"1 to 8,192, transactions and transfers together; there are {count}" in error.message
    assert shards.calls == []


async def test_a_call_has_at_most_2_mib(stub: Any, shards: BulkShards) -> None:
    texts = {index: {"description": "x" * 1_000} for index in range(2_200)}
    error = await refused(stub, bulk(ONE * 2_200, texts=texts))
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert "at most 2,097,152 are taken" in error.message
    assert shards.calls == []


def no_ledger(call: Call) -> Result | None:
    if isinstance(call.message, GetLedger):
        if call.message.name == "fx":
            return LedgerView("fx", "", [Currency("EUR", 3)], [], 0, 1, 1)
        return Failure(Reason.LEDGER_NOT_FOUND, "there is no such ledger", "ledger")
    return None


async def test_the_ledger_must_have_the_currency(stub: Any, shards: BulkShards) -> None:
    shards.answer = no_ledger
    error = await refused(stub, bulk(ONE, ledger="fx", currency="GBP"))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "CURRENCY_NOT_IN_LEDGER")
    assert [name for name, _ in error.violations] == ["transfers.currency"]
    error = await refused(stub, bulk(ONE, ledger="gone"))
    assert (error.code, error.reason) == ("NOT_FOUND", "LEDGER_NOT_FOUND")
    assert shards.blocks() == {}
    await stub.CreateTransactions(bulk(ONE, ledger="fx"))
    ((block,),) = shards.blocks().values()
    assert (block.ledger, block.currency) == ("fx", Currency("EUR", 3))


# Ways


async def test_blocks_are_of_one_shard_and_keep_the_order(stub: Any, shards: BulkShards) -> None:
    items = on_shards(8_192, 0, 0, 1, 2, 2, 2)
    response = await stub.CreateTransactions(bulk(items))
    assert sum(len(blocks) for blocks in shards.blocks().values()) == 3 + 2 + 4
    for shard_id in range(4):
        mine = [item[3] for item in items if shards.shard_id_of(item[1]) == shard_id]
        assert shards.amounts(shard_id) == mine
    assert len(response.transfers.numbers) == len(items)
    assert response.transfers.statuses == bytes([SETTLED]) * len(items)
    assert set(response.transfers.create_times_us) == {TIME_US}
    assert (len(response.transfers.others), len(response.transfers.refusals)) == (0, 0)
    # Each item has the number that its shard gave it: they count up in the order of the items.
    counts = dict.fromkeys(range(4), 0)
    for item, number in zip(items, response.transfers.numbers, strict=True):
        shard_id = shards.shard_id_of(item[1])
        counts[shard_id] += 1
        assert number == counts[shard_id]


async def test_a_block_says_what_the_columns_say(stub: Any, shards: BulkShards) -> None:
    items: list[Item] = [(CREDIT, A, B, 7), (IN, A, 0, 8), (OUT, C, 0, 2**51 - 1)]
    texts = {
        1: {"description": "two", "external_reference": "r", "metadata": {"b": "1", "a": "2"}},
        2: {},
    }
    await stub.CreateTransactions(bulk(items, texts=texts, actor="desk"))
    ((block,),) = shards.blocks().values()
    assert block.forms == bytes([CREDIT, IN, OUT])
    assert columns.first_accounts(block).tolist() == [A, A, C]
    assert columns.second_accounts(block).tolist() == [B, 0, 0]
    assert columns.amounts(block).tolist() == [7, 8, 2**51 - 1]
    assert [columns.request_id(block, index) for index in range(3)] == list(
        map(str, request_ids(3))
    )
    assert block.texts == {1: TransferText("two", "r", {"a": "2", "b": "1"})}
    assert list(block.texts[1].metadata) == ["a", "b"]
    assert (block.ledger, block.currency, block.actor) == ("main", USD, "desk")
    assert block.routing_id == A


async def test_one_form_may_go_for_all_and_request_ids_are_made(
    stub: Any, shards: BulkShards
) -> None:
    await stub.CreateTransactions(bulk([(CREDIT, A, B, 1)] * 500, forms=b"\2", request_ids=b""))
    ((block,),) = shards.blocks().values()
    assert block.forms == b"\2" * 500
    made = [uuid.UUID(columns.request_id(block, index)) for index in range(500)]
    assert len(set(made)) == 500
    assert {(item.version, item.variant) for item in made} == {(7, uuid.RFC_4122)}


async def test_blocks_of_a_shard_wait_for_each_other_and_shards_do_not(
    stub: Any, shards: BulkShards
) -> None:
    shards.gates = {shard_id: asyncio.Event() for shard_id in range(4)}
    call = asyncio.ensure_future(stub.CreateTransactions(bulk(on_shards(8_192, 0, 1, 2, 3))))
    await until(lambda: shards.at_work[-1] == 4)
    assert [shards.at_work[shard_id] for shard_id in range(4)] == [1, 1, 1, 1]
    shards.gates[2].set()
    await until(lambda: len(shards.blocks()[2]) == 2)
    await until(lambda: shards.at_work[2] == 0)
    assert [len(shards.blocks()[shard_id]) for shard_id in range(4)] == [1, 1, 2, 1]
    for gate in shards.gates.values():
        gate.set()
    await call
    assert max(shards.at_work_most[shard_id] for shard_id in range(4)) == 1


async def test_long_texts_make_blocks_smaller_and_keep_the_order(
    stub: Any, shards: BulkShards
) -> None:
    rng = Random(3)
    items = on_shards(1_500, 0, 3)
    texts = {index: {"description": "☕" * rng.randint(0, 900)} for index in range(0, 1_500, 2)}
    await stub.CreateTransactions(bulk(items, texts=texts))
    for shard_id in (0, 3):
        mine = [item[3] for item in items if shards.shard_id_of(item[1]) == shard_id]
        assert shards.amounts(shard_id) == mine
    assert all(
        bytes_of(block) <= EXECUTE_BYTES_MAX
        for blocks in shards.blocks().values()
        for block in blocks
    )
    assert len(shards.blocks()[0]) > 3
    assert len(shards.blocks()[3]) == 1
    said = [
        block.texts[index].description if index in block.texts else ""
        for block in shards.blocks()[0]
        for index in range(len(block.forms))
    ]
    assert said == [texts[index]["description"] for index in range(0, 1_500, 2)]


LONGEST = ledger_pb2.TransferText(
    description="𝄞" * 1_000,
    external_reference="𝄞" * 256,
    metadata={f"{number:02}" + "𝄞" * 62: "𝄞" * 256 for number in range(32)},
)


@pytest.mark.parametrize(
    ("text", "texts", "count"),
    [
        (LONGEST, 30, 30),
        (ledger_pb2.TransferText(description="x" * 400), 900, 900),
        (LONGEST, 5, 1_000),
    ],
)
def test_no_text_makes_a_block_too_large_and_blocks_are_filled(
    text: ledger_pb2.TransferText, texts: int, count: int
) -> None:
    asked = transfers(ONE * count, actor="𝄞" * 128, ledger="l" * 63)
    for index in range(texts):
        asked.texts[index].CopyFrom(text)
    assert transfer_columns.violations(asked) == []
    source = Source("𝄞" * 128, "𝄞" * 128)
    terms = Terms("l" * 63, Currency("C" * 12, 8), "𝄞" * 128)
    found = Transfers(transfer_columns.columns(asked), terms)
    placed = PlacedTransfers(ShardCalls(BulkShards()), found, source)
    ((shard_id, cut),) = placed.parts("home", np.arange(count))
    assert shard_id == 0
    assert np.concatenate([part.items for part in cut]).tolist() == list(range(count))
    pieces = [placed.piece(part) for part in cut]
    blocks = [CREATE.join(placed.block_terms, [piece], piece.rows) for piece in pieces]
    sizes = [bytes_of(block) for block in blocks]
    assert all(size <= piece.size + ONCE_BYTES for size, piece in zip(sizes, pieces, strict=True))
    assert max(sizes) <= EXECUTE_BYTES_MAX
    assert all(size > EXECUTE_BYTES_MAX * 0.8 for size in sizes[:-1])


async def test_vast_amounts_go_alone(stub: Any, shards: BulkShards) -> None:
    items: list[Item] = [
        (DEBIT, A, ELSEWHERE, 2**51),
        (CREDIT, A, B, 2**51),
        (IN, A, 0, 2**63 - 1),
        (OUT, B, 0, 2**51),
        (DEBIT, A, B, 6),
    ]
    texts = {0: {"description": "d", "external_reference": "r", "metadata": {"k": "v"}}}
    response = await stub.CreateTransactions(bulk(items, texts=texts, actor="desk"))
    assert shards.amounts(0) == [6]
    across, vast, into, out = shards.singles()
    assert across.entries == [
        Entry(A, Direction.DEBIT, 2**51, USD, 0),
        Entry(ELSEWHERE, Direction.CREDIT, 2**51, USD, 1),
    ]
    assert (across.account_id, across.amount, across.settled, across.ledger) == (A, 0, True, "main")
    assert (across.description, across.external_reference) == ("d", "r")
    assert (across.metadata, across.actor) == ({"k": "v"}, "desk")
    assert across.request_id == str(request_ids(5)[0])
    assert [entry.direction for entry in vast.entries] == [Direction.CREDIT, Direction.DEBIT]
    assert (into.entries, into.amount, out.entries, out.amount) == ([], 2**63 - 1, [], -(2**51))
    results = response.transfers
    assert results.statuses == bytes([0, 0, 0, 0, SETTLED])
    assert [bool(number) for number in results.numbers] == [False] * 4 + [True]
    assert sorted(results.others) == [0, 1, 2, 3]
    assert results.others[0].transaction.request_id == str(request_ids(5)[0])


async def test_of_one_call_at_most_256_commands_are_on_their_way(
    stub: Any, shards: BulkShards
) -> None:
    items: list[Item] = [(DEBIT, A, B, 2**51 + number) for number in range(1_000)]
    shards.hold = asyncio.Event()
    call = asyncio.ensure_future(stub.CreateTransactions(bulk(items)))
    await until(lambda: shards.at_work[-1] == 256)
    shards.hold.set()
    response = await call
    assert shards.at_work_most[-1] == 256
    assert sorted(response.transfers.others) == list(range(1_000))
    assert [command.entries[0].amount for command in shards.singles()] == [
        item[3] for item in items
    ]


async def test_every_command_carries_its_source(stub: Any, shards: BulkShards) -> None:
    request = Request(
        transfers=transfers([*ONE, (DEBIT, A, B, 2**51)]),
        transactions=[transfer(A, B), transfer(A, B, settled=False)],
    )
    await stub.CreateTransactions(request, metadata=[("x-correlation-id", "order 4711")])
    assert len(shards.calls) == 3  # two transfers went in one block
    for call in shards.calls:
        assert call.source.correlation_id == "order 4711"
        assert call.source.peer.startswith("ipv4:127.0.0.1:")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CreateTransactions(
            bulk(ONE, actor="\n"), metadata=[("x-correlation-id", "c" * 129)]
        )
    fields = [name for name, _ in decode(caught.value).violations]
    assert fields == ["transfers.actor", "x-correlation-id"]


# Answers


async def test_results_say_where_transfers_were_booked(stub: Any, shards: BulkShards) -> None:
    shards.answer = no_ledger
    there, there_too = ACCOUNTS[2][:2]
    items: list[Item] = [
        (DEBIT, A, B, 1),
        (IN, A, 0, 2),
        (CREDIT, there, there_too, 3),
        (OUT, there, 0, 4),
        (DEBIT, A, B, 2**51),
        (IN, B, 0, 6),
    ]
    results = (await stub.CreateTransactions(bulk(items, ledger="fx"))).transfers
    booked = [results.books[index] for index in results.book_indexes]
    entries = ledger_pb2.TransferBook(ledger="fx", currency="EUR", currency_exponent=3)
    found = [(book.ledger, book.external_account_id) for book in booked]
    assert len(results.books) == 3
    assert (booked[0], booked[2]) == (entries, entries)
    assert (found[1], found[3], found[5]) == (("main", 1_000), ("main", 1_002), ("main", 1_000))
    assert results.first_directions == bytes([1, 2, 2, 2, 0, 2])
    assert results.book_indexes[4] == 0


async def test_refusals_and_others_come_by_index(stub: Any, shards: BulkShards) -> None:
    refusal = RefusalView("INSUFFICIENT_FUNDS", 0, A, 5, 3, "too little")
    failure = Failure(
        Reason.ACCOUNT_NOT_FOUND, "no such account", "account_id", {"account_id": "x"}
    )

    def answer(call: Call) -> Result | None:
        if call.shard_id == 1:
            return TransfersView(
                TIME_US, 41, bytes([2, 0, 5, 0, 2]), {2: refusal}, {1: failure, 3: TRANSACTION_VIEW}
            )
        return None

    shards.answer = answer
    results = (await stub.CreateTransactions(bulk(on_shards(10, 0, 1)))).transfers
    assert list(results.numbers) == [1, 41, 2, 0, 3, 42, 4, 0, 5, 43]
    assert results.statuses == bytes([2, 2, 2, 0, 2, 5, 2, 0, 2, 2])
    assert [bool(time_us) for time_us in results.create_times_us] == [
        bool(status) for status in results.statuses
    ]
    assert dict(results.refusals) == {
        5: ledger_pb2.Refusal(
            reason="INSUFFICIENT_FUNDS",
            account_id=hex_id(A),
            required_amount=5,
            available_amount=3,
            message="too little",
        )
    }
    assert sorted(results.others) == [3, 7]
    assert results.others[7].transaction.request_id == "request-1"
    assert results.others[3].error == ledger_pb2.CallError(
        code=grpc.StatusCode.NOT_FOUND.value[0],
        reason="ACCOUNT_NOT_FOUND",
        message="no such account",
        violations=[ledger_pb2.FieldViolation(field="account_id", description="no such account")],
        metadata={"account_id": "x"},
    )


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (OutcomeUnknownError("who knows"), grpc.StatusCode.DEADLINE_EXCEEDED, "OUTCOME_UNKNOWN"),
        (ShardUnavailableError("gone"), grpc.StatusCode.UNAVAILABLE, "SHARD_UNAVAILABLE"),
        (OverloadedError("full"), grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
    ],
)
async def test_a_block_without_a_result_fails_its_items_alone(
    stub: Any, shards: BulkShards, error: LedgerError, code: grpc.StatusCode, reason: str
) -> None:
    """What comes after it on its shard is not sent: it would overtake."""

    def answer(call: Call) -> Result | LedgerError | None:
        second_block = call.shard_id == 1 and len(shards.blocks()[1]) == 2
        return error if second_block or call.message in shards.singles() else None

    shards.answer = answer
    items = [*on_shards(8_000, 0, 1), (DEBIT, A, B, 2**51)]
    results = (await stub.CreateTransactions(bulk(items))).transfers
    assert (len(shards.blocks()[0]), len(shards.blocks()[1])) == (4, 2)
    of_shard_1 = [index for index in range(8_000) if index % 2]
    failed, held_back = of_shard_1[1_024:2_048], of_shard_1[2_048:]
    assert sorted(results.others) == [*failed, *held_back, 8_000]
    for index in (*failed, 8_000):
        found = results.others[index].error
        assert (found.code, found.reason) == (code.value[0], reason)
        assert found.message == error.message
        assert found.retry_delay_ms == round((error.retry_delay_s or 0) * 1_000)
    for index in held_back:
        found = results.others[index].error
        assert found.reason == "SHARD_UNAVAILABLE"
        assert "nothing was done" in found.message
    assert all(
        bool(number) == bool(status) == (index not in results.others)
        for index, (number, status) in enumerate(
            zip(results.numbers, results.statuses, strict=True)
        )
    )


async def test_an_answer_that_makes_no_sense_is_an_incident(stub: Any, shards: BulkShards) -> None:
    shards.answer = lambda call: TRANSACTION_VIEW
    error = await refused(stub, bulk(ONE))
    assert (error.code, error.reason) == ("INTERNAL", "INTERNAL")
    assert "incident" in error.message


async def test_what_has_no_time_left_is_not_sent(shards: BulkShards) -> None:
    class Over:
        def time_remaining(self) -> float:
            return 0.0

    asked = transfers([*ONE, (DEBIT, A, ELSEWHERE, 1), (DEBIT, A, B, 2**51)])
    found = Transfers(transfer_columns.columns(asked), Terms("main", USD, ""))
    await BulkWork(ShardCalls(shards)).carry_out(found, NO_SOURCE, Deadline(Over()))
    assert shards.calls == []
    of_blocks = [outcome for _, outcome in found.outcomes.blocks]
    assert (len(of_blocks), list(found.outcomes.singles)) == (2, [2])
    for error in (*of_blocks, *found.outcomes.singles.values()):
        assert isinstance(error, ShardUnavailableError)
        assert "time was over; nothing was done" in error.message


def test_a_call_shares_one_deadline_however_many_commands_it_has() -> None:
    class Given:
        def __init__(self, remaining_s: float | None) -> None:
            self.time_remaining = lambda: remaining_s

    assert 9 < Deadline(Given(None)).time_remaining() <= 10
    assert 2 < Deadline(Given(3.0)).time_remaining() <= 3
    assert 59 < Deadline(Given(1e6)).time_remaining() <= 60


async def test_bulk_calls_in_work_are_bounded_by_their_bytes(
    stub: Any, gateway: GatewayServer, shards: BulkShards
) -> None:
    request = bulk(ONE * 10)
    gateway._ledger_service._work.room = Room(request.ByteSize() * 2 - 1)
    shards.hold = asyncio.Event()
    call = asyncio.ensure_future(stub.CreateTransactions(request))
    await until(lambda: shards.at_work[-1] == 1)
    error = await refused(stub, request)
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert error.retry_delay_s == 0.5
    shards.hold.set()
    await call
    await stub.CreateTransactions(request)
    # One that is alone is taken, however large it is.
    await stub.CreateTransactions(bulk(ONE * 8_192))


# General transactions


LOWER = str(uuid.UUID(int=7 << 64))


@pytest.mark.parametrize(
    ("request_", "in_block"),
    [
        (transfer(A, B), True),
        (transfer(A, B, request_id=LOWER), True),
        (change(transfer(A, B), currency="USD"), True),
        (transfer(A, B, description="d", external_reference="e", metadata={"k": "v"}), True),
        (Single(account_id=hex_id(A), amount=5, settled=True), True),
        (Single(account_id=hex_id(A), amount=-5, settled=True, request_id=LOWER), True),
        (transfer(A, B, settled=False), False),
        (transfer(A, B, request_id="order 7"), False),
        (transfer(A, B, request_id=LOWER.replace("7", "A")), False),
        (transfer(A, B, effective_time=Timestamp(seconds=1)), False),
        (transfer(A, B, settled=False, expire_time=Timestamp(seconds=4_000_000_000)), False),
        (transfer(A, B, 2**51), False),
        (transfer(A, 0), False),
        (change(transfer(A, B), expected_version=0), False),
        (change(transfer(A, B), minimum_balance=0), False),
        (change(transfer(A, B), maximum_balance=0), False),
        (Single(entries=[*transfer(A, B).entries, *transfer(A, C).entries], settled=True), False),
        (Single(account_id=hex_id(A), amount=5), False),
    ],
)
async def test_what_is_no_more_than_a_transfer_goes_in_a_block(
    stub: Any, shards: BulkShards, request_: Single, in_block: bool
) -> None:
    response = await stub.CreateTransactions(Request(transactions=[request_]))
    assert len(response.results) == 1
    assert response.results[0].WhichOneof("result") == "transaction"
    assert not response.HasField("transfers")
    assert (len(shards.blocks()), len(shards.singles())) == ((1, 0) if in_block else (0, 1))


async def test_a_dry_run_keeps_nothing(stub: Any, shards: BulkShards) -> None:
    shards.answer = lambda call: VoteView() if not hasattr(call.message, "request_id") else None
    request = Request(transactions=[transfer(A, B, dry_run=True)])
    (result,) = (await stub.CreateTransactions(request)).results
    assert (result.transaction.id, result.transaction.status) == ("", SETTLED)
    assert (shards.blocks(), shards.singles()) == ({}, [])


async def test_a_wrong_transaction_fails_alone_with_the_words_of_a_single_call(
    stub: Any, shards: BulkShards
) -> None:
    shards.answer = no_ledger
    wrong = [
        Single(account_id="x", actor="\n"),
        change(transfer(A, B), amount=6),
        change(transfer(A, B), currency="EUR"),
        transfer(A, B, ledger="gone"),
    ]
    request = Request(transactions=[transfer(A, B), *wrong, transfer(A, B)])
    response = await stub.CreateTransactions(request)
    kinds = [result.WhichOneof("result") for result in response.results]
    assert kinds == ["transaction", *["error"] * 4, "transaction"]
    for single, result in zip(wrong, response.results[1:5], strict=True):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CreateTransaction(single)
        error = decode(caught.value)
        found = result.error
        assert caught.value.code().value[0] == found.code
        assert (error.reason, error.message) == (found.reason, found.message)
        assert error.metadata == dict(found.metadata)
        assert error.violations == [(item.field, item.description) for item in found.violations]


async def test_blocks_are_of_one_ledger_and_currency(stub: Any, shards: BulkShards) -> None:
    """The one-account form goes with what its actor does around it, in its order.

    Who asked for an item is said for each.
    """

    shards.answer = no_ledger
    request = Request(
        transactions=[
            Single(account_id=hex_id(A), amount=1, settled=True, actor="x"),
            transfer(A, B, 2, actor="x", ledger="fx"),
            transfer(A, B, 3, actor="y"),
            Single(account_id=hex_id(A), amount=4, settled=True, actor="x"),
            change(transfer(A, B, 5, actor="y"), currency="USD"),
            transfer(A, B, 6, actor="x"),
            Single(account_id=hex_id(A), amount=7, settled=True, actor="x"),
            Single(account_id=hex_id(A), amount=8, settled=True, actor="z"),
        ]
    )
    await stub.CreateTransactions(request)
    found = {
        (block.ledger, block.currency.code): (
            columns.amounts(block).tolist(),
            [(part.count, part.actor) for part in block.parts] or block.actor,
        )
        for block in shards.blocks()[0]
    }
    assert found == {
        ("fx", "EUR"): ([1, 2, 4], "x"),
        ("main", "USD"): ([3, 5, 6, 7, 8], [(2, "y"), (2, "x"), (1, "z")]),
    }


# The same as single calls, on real books


@asynccontextmanager
async def serving(shards: Shards) -> AsyncIterator[Any]:
    server = GatewayServer(shards)
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield ledger_pb2_grpc.LedgerServiceStub(channel)
    await server.stop(0)
    await shards.close()


def general(world: World, seed: int) -> list[Single]:
    """Transactions of all kinds, none of which depends on the funds that another one leaves."""
    rng = Random(seed)
    ids = [item for of_shard in world.accounts for item in of_shard]
    found = [transfer(*world.accounts[0], 1, request_id=str(uuid.UUID(int=seed)))]
    for number in range(120):
        first, second = rng.sample(ids, 2)
        amount = rng.choice((1, 1, 1, 10**9))
        more: dict[str, Any] = {}
        if rng.random() < 0.3:
            more = {
                "description": f"☕ {number}",
                "external_reference": f"ref {number}",
                "metadata": {"b": "2", "a": str(number)},
                "actor": "desk",
            }
        more["request_id"] = str(uuid.UUID(int=rng.getrandbits(128)))
        more["settled"] = rng.random() < 0.9
        kind = rng.random()
        if kind < 0.25:
            out = -1 if rng.random() < 0.5 else 1
            more |= {"account_id": hex_id(first), "amount": out * amount if out < 0 else 1}
            found.append(Single(**more))
        elif kind < 0.3:
            found.append(transfer(first, 4711, amount, **more))
        elif kind < 0.35:
            found.append(Single(account_id=hex_id(4711), amount=1, **more))
        elif kind < 0.4:
            found.append(
                transfer(first, second, amount, **more | {"request_id": f"order {number}"})
            )
        else:
            found.append(transfer(first, second, amount, **more))
    # A repeat of one of this call, and one whose request id was used for something else.
    changed = Single()
    changed.CopyFrom(found[0])
    changed.description = "something else"
    return [*found, found[3], changed]


def timeless(result: ledger_pb2.Transaction) -> ledger_pb2.Transaction:
    """Without what differs between two histories: when it was, and the running number."""
    found = ledger_pb2.Transaction()
    found.CopyFrom(result)
    assert found.create_time == found.effective_time
    for name in ("create_time", "update_time", "effective_time"):
        found.ClearField(name)
    found.id = found.id[:16]
    return found


@pytest.mark.parametrize("seed", range(3))
async def test_general_transactions_are_answered_as_by_single_calls(
    tmp_path: Path, seed: int
) -> None:
    ours, theirs = World(tmp_path / "bulk", 10_000), World(tmp_path / "single", 10_000)
    asked = general(ours, seed)
    async with serving(WorldShards(ours)) as bulk_stub, serving(WorldShards(theirs)) as single_stub:
        response = await bulk_stub.CreateTransactions(Request(transactions=asked))
        kinds = set()
        for single, result in zip(asked, response.results, strict=True):
            if result.WhichOneof("result") == "error":
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await single_stub.CreateTransaction(single)
                failed = decode(caught.value)
                assert caught.value.code().value[0] == result.error.code
                assert (failed.reason, failed.message) == (
                    result.error.reason,
                    result.error.message,
                )
                kinds.add(failed.reason)
                continue
            expected = (await single_stub.CreateTransaction(single)).transaction
            made = result.transaction
            if made.status == ledger_pb2.TRANSACTION_STATUS_INSUFFICIENT_FUNDS:
                assert made.refusal.required_amount == expected.refusal.required_amount
                for refusal in (made.refusal, expected.refusal):
                    # How much there was depends on the order across the two ways.
                    refusal.available_amount = 0
                    refusal.message = ""
            assert timeless(made) == timeless(expected)
            kinds.add(str(made.status))
        assert kinds >= {"ACCOUNT_NOT_FOUND", "REQUEST_ID_REUSED", "1", "2", "4", "6"}
        # What is stored is what was answered, and a repeat of the call is answered the same.
        again = await bulk_stub.CreateTransactions(Request(transactions=asked))
        for before, now in zip(response.results, again.results, strict=True):
            if before.WhichOneof("result") == "transaction":
                assert now.transaction.id == before.transaction.id
                assert timeless(now.transaction).entries == timeless(before.transaction).entries
        assert ours.balances() == theirs.balances()
        ours.check_every_shard_balances()
        ours.check_nothing_is_in_flight()


async def standalone_accounts(stub: Any, count: int) -> list[int]:
    made = [await stub.CreateAccount(ledger_pb2.CreateAccountRequest()) for _ in range(count)]
    return [int(item.account.id, 16) for item in made]


async def test_every_answer_is_the_transaction_that_is_stored(tmp_path: Path) -> None:
    """On the standalone gateway, in both forms: of what was taken, refused and repeated."""
    async with serving(StandaloneShards.open(tmp_path / "data")) as stub:
        first, second, third = await standalone_accounts(stub, 3)
        asked = Request(
            transactions=[
                Single(account_id=hex_id(first), amount=100, settled=True),
                transfer(first, second, 60, description="d", metadata={"k": "v"}),
                transfer(first, second, 60),
                Single(account_id=hex_id(second), amount=-61, settled=True, actor="desk"),
                Single(account_id=hex_id(second), amount=-60, settled=True),
                transfer(third, 4711),
            ]
        )
        response = await stub.CreateTransactions(asked)
        statuses = [result.transaction.status for result in response.results]
        assert statuses == [2, 2, 4, 4, 2, 6]
        for result in response.results:
            got = await stub.GetTransaction(
                ledger_pb2.GetTransactionRequest(transaction_id=result.transaction.id)
            )
            assert got.transaction == result.transaction
        items: list[Item] = [(IN, third, 0, 5), (DEBIT, third, first, 3), (DEBIT, third, first, 3)]
        columns_ = (await stub.CreateTransactions(bulk(items))).transfers
        assert list(columns_.statuses) == [2, 2, 4]
        for index, number in enumerate(columns_.numbers):
            got = await stub.GetTransaction(
                ledger_pb2.GetTransactionRequest(
                    transaction_id=format_transaction_id(items[index][1], number)
                )
            )
            made = got.transaction
            assert made.status == columns_.statuses[index]
            assert made.create_time.ToMicroseconds() == columns_.create_times_us[index]
            assert made.request_id == str(request_ids(3)[index])
            book = columns_.books[columns_.book_indexes[index]]
            assert (made.ledger, made.currency) == (book.ledger, book.currency)
            assert made.currency_exponent == book.currency_exponent
            assert made.entries[0].direction == columns_.first_directions[index]
            other = items[index][2] or book.external_account_id
            assert made.entries[1].account_id == hex_id(other)
            if index in columns_.refusals:
                assert made.refusal == columns_.refusals[index]
        assert list(columns_.refusals) == [2]
        # The same call again does nothing, and has the first results.
        again = (await stub.CreateTransactions(bulk(items))).transfers
        assert again.statuses == bytes(3)
        assert [again.others[index].transaction.id[16:] for index in range(3)] == [
            f"{number:016x}" for number in columns_.numbers
        ]


async def test_a_request_id_that_comes_twice_in_a_call_counts_once(tmp_path: Path) -> None:
    async with serving(StandaloneShards.open(tmp_path / "data")) as stub:
        first, second = await standalone_accounts(stub, 2)
        same = uuid.UUID(int=9).bytes
        items: list[Item] = [
            (IN, first, 0, 5),
            (DEBIT, first, second, 1),
            (DEBIT, first, second, 1),
            (DEBIT, first, second, 2),
            (IN, second, 0, 7),
        ]
        ids = uuid.UUID(int=8).bytes + same * 3 + uuid.UUID(int=10).bytes
        results = (await stub.CreateTransactions(bulk(items, request_ids=ids))).transfers
        assert results.statuses == bytes([2, 2, 0, 0, 2])
        assert list(results.numbers) == [1, 2, 0, 0, 3]
        assert results.others[2].transaction.id == format_transaction_id(first, 2)
        assert results.others[3].error.reason == "REQUEST_ID_REUSED"
        # Without a difference between the general form and columns.
        request = Request(
            transactions=[transfer(first, second, 1, request_id=str(uuid.UUID(bytes=same)))]
        )
        (result,) = (await stub.CreateTransactions(request)).results
        assert result.transaction.id == format_transaction_id(first, 2)


async def test_columns_across_shards_do_what_single_calls_do(tmp_path: Path) -> None:
    ours, theirs = World(tmp_path / "bulk", 1_000), World(tmp_path / "single", 1_000)
    ids = [item for of_shard in ours.accounts for item in of_shard]
    rng = Random(9)
    items: list[Item] = []
    for _ in range(200):
        first, second = rng.sample(ids, 2)
        items.append((DEBIT, first, second, rng.choice((1, 2, 3, 10**6))))
    async with serving(WorldShards(ours)) as bulk_stub, serving(WorldShards(theirs)) as single_stub:
        results = (await bulk_stub.CreateTransactions(bulk(items))).transfers
        for index, (_, first, second, amount) in enumerate(items):
            request_id = str(request_ids(200)[index])
            single = transfer(first, second, amount, request_id=request_id)
            expected = (await single_stub.CreateTransaction(single)).transaction
            assert results.statuses[index] == expected.status
            if index in results.refusals:
                # How much there was depends on the order across the two ways.
                assert results.refusals[index].account_id == expected.refusal.account_id
        assert set(results.statuses) == {2, 4}
        assert ours.balances() == theirs.balances()
        ours.check_every_shard_balances()
        ours.check_nothing_is_in_flight()


async def test_transfers_that_go_alone_are_bounded_over_all_calls(
    stub: Any, gateway: GatewayServer, shards: BulkShards
) -> None:
    """Shards that get thousands at once would refuse those on which they cannot vote in time."""
    gateway._ledger_service._work.room.alone = asyncio.Semaphore(10)
    shards.hold = asyncio.Event()
    request = bulk([(DEBIT, A, B, 2**51)] * 8)
    calls = [asyncio.ensure_future(stub.CreateTransactions(request)) for _ in range(3)]
    await until(lambda: shards.at_work[-1] == 10)
    shards.hold.set()
    for call in calls:
        assert len((await call).transfers.others) == 8
    assert shards.at_work_most[-1] == 10

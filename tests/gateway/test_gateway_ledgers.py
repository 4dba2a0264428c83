"""Ledgers: what their shard is asked, and lists that are merged from all shards."""

from typing import Any

import grpc
import pytest
from error_details import decode
from fake_shards import Call, FakeShards
from google.protobuf.timestamp_pb2 import Timestamp

from ledger.v1 import ledger_pb2
from ledger_core import commands, queries
from ledger_core.accounts import AccountType
from ledger_core.errors import Reason
from ledger_core.ledgers import USD, ChartCode, Currency, ledger_key
from ledger_core.results import Failure, LedgerPage, LedgerView, Result

CHART = [
    ChartCode("1", "Assets", AccountType.ASSET),
    ChartCode("11", "Cash", AccountType.ASSET, "1"),
]
VIEW = LedgerView("books", "Ours", [USD, Currency("JPY", 0)], CHART, 3, 1_000_000, 2_000_000)
PROTO = ledger_pb2.Ledger(
    name="books",
    description="Ours",
    currencies=[
        ledger_pb2.Currency(code="USD", exponent=2),
        ledger_pb2.Currency(code="JPY", exponent=0),
    ],
    chart=[
        ledger_pb2.ChartLine(code="1", name="Assets", type=ledger_pb2.ACCOUNT_TYPE_ASSET),
        ledger_pb2.ChartLine(
            code="11", name="Cash", type=ledger_pb2.ACCOUNT_TYPE_ASSET, parent="1"
        ),
    ],
    revision=3,
    create_time=Timestamp(seconds=1),
    update_time=Timestamp(seconds=2),
)


async def test_create(stub: Any, shards: FakeShards) -> None:
    shards.result = VIEW
    response = await stub.CreateLedger(
        ledger_pb2.CreateLedgerRequest(
            name="books",
            description="Ours",
            currencies=PROTO.currencies,
            chart=PROTO.chart,
            request_id="r",
        )
    )
    assert response.ledger == PROTO
    (call,) = shards.calls
    assert call.account_id == ledger_key("books")
    assert call.message == commands.CreateLedger("books", "r", "Ours", VIEW.currencies, CHART)


async def test_get_asks_every_time(stub: Any, shards: FakeShards) -> None:
    shards.result = VIEW
    for _ in range(2):
        response = await stub.GetLedger(ledger_pb2.GetLedgerRequest(ledger="books"))
        assert response.ledger == PROTO
    assert shards.messages == [queries.GetLedger("books")] * 2
    await stub.GetLedger(ledger_pb2.GetLedgerRequest(consistency=2))
    assert shards.calls[-1].message == queries.GetLedger("main")
    assert shards.calls[-1].stale


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, commands.ExtendLedger("books", "r", 3)),
        ({"description": ""}, commands.ExtendLedger("books", "r", 3, "")),
        (
            {"currencies": [{"code": "JPY", "exponent": 0}]},
            commands.ExtendLedger("books", "r", 3, None, [Currency("JPY", 0)]),
        ),
        (
            {"chart": [{"code": "1", "name": "Assets", "type": 1}]},
            commands.ExtendLedger("books", "r", 3, chart=CHART[:1]),
        ),
    ],
)
async def test_only_what_is_set_is_updated(
    stub: Any, shards: FakeShards, changes: dict[str, Any], expected: commands.ExtendLedger
) -> None:
    shards.result = VIEW
    request = ledger_pb2.UpdateLedgerRequest(ledger="books", revision=3, request_id="r", **changes)
    assert (await stub.UpdateLedger(request)).ledger == PROTO
    assert shards.messages == [expected]


async def test_what_was_added_here_is_known_here_at_once(stub: Any, shards: FakeShards) -> None:
    shards.result = VIEW
    await stub.UpdateLedger(ledger_pb2.UpdateLedgerRequest(ledger="books", revision=2))
    shards.calls.clear()
    with pytest.raises(grpc.aio.AioRpcError):  # the fake has no account to answer with
        await stub.CreateAccount(ledger_pb2.CreateAccountRequest(ledger="books", currency="JPY"))
    (command,) = shards.messages
    assert isinstance(command, commands.CreateAccount)
    assert command.currency == Currency("JPY", 0)


def spread(shards: FakeShards, names: list[str]) -> None:
    """Keep ledgers on the shards of their keys; main, never extended, is listed by none."""

    def answer(call: Call) -> Result | Exception | None:
        match call.message:
            case queries.GetLedger(name="main"):
                return LedgerView("main", "", [USD], [], 0, 0, 0)
            case queries.ListLedgers() as query:
                mine = [name for name in sorted(names) if sum(name.encode()) % 4 == call.shard_id]
                after = [name for name in mine if name > query.after][: query.page_size]
                return LedgerPage([LedgerView(name, "", [USD], CHART, 0, 1, 1) for name in after])
        return Failure(Reason.INTERNAL, "not asked here")

    shards.answer = answer


@pytest.mark.parametrize("page_size", [1, 2, 3, 7, 100])
async def test_pages_are_merged_by_name(stub: Any, shards: FakeShards, page_size: int) -> None:
    names = [f"ledger-{number:02}" for number in range(11)] + ["zoo", "a", "mail", "maine"]
    spread(shards, names)
    found: list[str] = []
    request = ledger_pb2.ListLedgersRequest(page_size=page_size)
    while True:
        page = await stub.ListLedgers(request)
        assert len(page.ledgers) <= page_size
        assert {item.shard_id for item in page.read_points} == {0, 1, 2, 3}
        assert not any(item.chart for item in page.ledgers)
        found += [item.name for item in page.ledgers]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert found == sorted([*names, "main"])


async def test_main_is_listed_once_when_its_shard_lists_it(stub: Any, shards: FakeShards) -> None:
    spread(shards, ["main"])
    page = await stub.ListLedgers(ledger_pb2.ListLedgersRequest())
    assert [item.name for item in page.ledgers] == ["main"]


async def test_a_shard_that_is_away_fails_the_list(stub: Any, shards: FakeShards) -> None:
    shards.answer = lambda call: Failure(Reason.SHARD_UNAVAILABLE, "away")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListLedgers(ledger_pb2.ListLedgersRequest())
    assert decode(caught.value).code == "UNAVAILABLE"

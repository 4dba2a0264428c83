"""History through the SDK, the gateway and the node's state machine, on three shards."""

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from node_shards import NodeShards

from ledger.v1 import ledger_pb2
from ledger_client import (
    AsyncLedgerClient,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from ledger_gateway.pagination import (
    ACCOUNT_EVENTS,
    ENTRIES,
    LEDGER_TRANSACTIONS,
    STATEMENT,
    EntryCursor,
    EventCursor,
    LedgerCursor,
    StatementCursor,
)
from ledger_gateway.server import GatewayServer

SECOND = 1_000_000
EFFECTIVE = ledger_pb2.TIME_BASIS_EFFECTIVE
Kind = ledger_pb2.AccountEventKind


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeShards]:
    shards = NodeShards(tmp_path, 3)
    yield shards
    await shards.close()


@pytest.fixture
async def client(node: NodeShards) -> AsyncIterator[AsyncLedgerClient]:
    server = GatewayServer(node)
    await server.start()
    async with AsyncLedgerClient(server.address, correlation_id="batch 7") as client:
        yield client
    await server.stop(0)


def moment(time_us: int) -> datetime:
    return datetime.fromtimestamp(time_us // SECOND, UTC) + timedelta(microseconds=time_us % SECOND)


def when(value: Timestamp) -> datetime:
    return value.ToDatetime(tzinfo=UTC)


async def wallet(client: AsyncLedgerClient, request_id: str, **options: Any) -> str:
    return (await client.create_account(request_id=request_id, **options)).id


async def test_the_balance_as_of_every_entry_is_the_one_after_it(
    client: AsyncLedgerClient, node: NodeShards
) -> None:
    """More entries than the node marks at a time, some of them at equal times."""
    account = await wallet(client, "a")
    before = moment(node.time_us - 1)
    for number in range(150):
        node.time_us += number % 3
        await client.create_transaction(account, 100 - number % 7, "", settled=number % 5 > 0)
    entries = [item async for item in client.entries(account, oldest_first=True, page_size=40)]
    assert [item.sequence for item in entries] == list(range(1, 151))
    for item in entries:
        as_of = await client.get_balance(account, when(item.create_time))
        assert as_of.version >= item.sequence
        last = entries[as_of.version - 1]
        assert last.create_time == item.create_time == as_of.update_time
        for field in ("settled_balance", "available_balance", "credits_posted", "credits_pending"):
            assert getattr(as_of, field) == getattr(last, field)
    assert (await client.get_balance(account, before)).version == 0
    now = await client.get_balance(account)
    shown = await client.get_account(account)
    assert (now.settled_balance, now.version) == (shown.settled_balance, 150)
    newest = [item.sequence async for item in client.entries(account, page_size=7)]
    assert newest == list(range(150, 0, -1))


async def test_a_statement_leads_from_opening_to_closing(
    client: AsyncLedgerClient, node: NodeShards
) -> None:
    account = await wallet(client, "a")
    for _ in range(30):
        node.time_us += SECOND
        await client.create_transaction(account, 100, "", settled=True)
    start, end = moment(node.time_us - 20 * SECOND), moment(node.time_us - 5 * SECOND)
    statement = await client.statement(account, start, end, page_size=4)
    entries = [item async for item in statement.entries]
    assert (statement.opening.settled_balance, statement.closing.settled_balance) == (900, 2_400)
    assert [item.settled_balance for item in entries] == list(range(1_000, 2_401, 100))
    assert all(start <= when(item.create_time) < end for item in entries)
    whole = await client.statement(account)
    assert (whole.opening.version, whole.closing.settled_balance) == (0, 3_000)
    nothing = await client.statement(account, moment(node.time_us + 1))
    assert nothing.opening == nothing.closing == await client.get_balance(account)
    assert [item async for item in nothing.entries] == []


@pytest.mark.parametrize("step", [0, 1, SECOND])
async def test_a_statement_stays_as_it_was_begun(
    client: AsyncLedgerClient, node: NodeShards, step: int
) -> None:
    """What is recorded between its pages is not in it: not even at the same microsecond."""
    account = await wallet(client, "a")
    for _ in range(10):
        await client.create_transaction(account, 100, "", settled=True)
    page = await client.statement_page(account, page_size=3)
    closing, shown = page.closing_balance, list(page.entries)
    while page.next_page_token:
        node.time_us += step
        await client.create_transaction(account, 1, "since", settled=True)
        page = await client.statement_page(account, page_size=3, page_token=page.next_page_token)
        assert page.closing_balance == closing
        shown += page.entries
    assert [item.sequence for item in shown] == list(range(1, 11))
    assert shown[-1].settled_balance == closing.settled_balance == 1_000


async def test_what_was_booked_late_counts_when_it_took_effect(
    client: AsyncLedgerClient, node: NodeShards
) -> None:
    account = await wallet(client, "a")
    month_end = moment(node.time_us)
    node.time_us += 5 * SECOND
    await client.create_transaction(
        account, 70, "late", settled=True, effective_time=month_end - timedelta(days=2)
    )
    await client.create_transaction(
        account, 5, "early", settled=True, effective_time=month_end + timedelta(days=9)
    )
    at = {"as_of": month_end}
    assert (await client.get_balance(account, **at)).settled_balance == 0
    assert (await client.get_balance(account, basis=EFFECTIVE, **at)).settled_balance == 70
    now = moment(node.time_us)
    assert (await client.get_balance(account, now)).settled_balance == 75
    assert (await client.get_balance(account, now, basis=EFFECTIVE)).settled_balance == 70


async def test_who_did_that(client: AsyncLedgerClient, node: NodeShards) -> None:
    account = await wallet(client, "open", actor="branch 12")
    hold = await client.create_transaction(
        account, 50, "wire", settled=False, actor="till", request_id="hold"
    )
    await client.settle_transaction(hold.id, actor="clearing", correlation_id="night run")
    states = await client.transaction_states(hold.id)
    assert [(item.actor, item.correlation_id) for item in states] == [
        ("till", "batch 7"),
        ("clearing", "night run"),
    ]
    assert states[0].request_id == "hold"
    assert all(item.peer.startswith("ipv4:127.0.0.1:") for item in states)
    assert [item.status for item in states] == [
        ledger_pb2.TRANSACTION_STATUS_PENDING,
        ledger_pb2.TRANSACTION_STATUS_SETTLED,
    ]

    shown = await client.get_account(account)
    await client.update_account(account, shown.revision, name="alice", actor="support")
    with pytest.raises(FailedPreconditionError):
        await client.update_account(account, shown.revision, name="bob", actor="too late")
    refused = await client.create_transaction(account, -60, "too much", settled=True, actor="till")
    await client.freeze_account(account, actor="risk", correlation_id="case 9")
    events = [item async for item in client.account_events(account, page_size=2)]
    assert [(item.kind, item.actor) for item in events] == [
        (Kind.ACCOUNT_EVENT_KIND_FROZEN, "risk"),
        (Kind.ACCOUNT_EVENT_KIND_TRANSACTION_REFUSED, "till"),
        (Kind.ACCOUNT_EVENT_KIND_CHANGE_REFUSED, "too late"),
        (Kind.ACCOUNT_EVENT_KIND_UPDATED, "support"),
        (Kind.ACCOUNT_EVENT_KIND_OPENED, "branch 12"),
    ]
    assert events[0].correlation_id == "case 9"
    assert (events[1].transaction_id, events[1].reason) == (refused.id, "INSUFFICIENT_FUNDS")
    assert events[2].reason == "REVISION_MISMATCH"
    changes = {item.field: (item.before, item.after) for item in events[3].changes}
    assert changes["name"][1] == '"alice"'


async def listed(client: AsyncLedgerClient, **filters: Any) -> list[ledger_pb2.Transaction]:
    return [item async for item in client.list_transactions(**filters)]


@pytest.mark.parametrize("page_size", [1, 7, 1_000])
async def test_the_transactions_of_a_ledger_in_one_order(
    client: AsyncLedgerClient, node: NodeShards, page_size: int
) -> None:
    """Three shards whose transactions share their times by the dozen."""
    choice = random.Random(5)
    await client.create_ledger("books", [ledger_pb2.Currency(code="USD", exponent=2)])
    accounts = [await wallet(client, f"account {number}", ledger="books") for number in range(9)]
    other = await wallet(client, "other")
    assert {node.shard_id_of(int(item, 16)) for item in accounts} == {0, 1, 2}
    made = []
    for number in range(120):
        node.time_us += choice.choice((0, 0, 0, 0, 1))
        account = choice.choice(accounts)
        made.append(
            await client.create_transaction(
                account,
                choice.choice((10, -3)),
                "",
                settled=choice.random() < 0.7,
                external_reference=f"order {number % 10}",
                metadata={f"key {number % 4}": "v"},
            )
        )
        await client.create_transaction(other, 1, "of another ledger", settled=True)

    def order(item: ledger_pb2.Transaction) -> tuple[int, int, int]:
        shard_id = node.shard_id_of(int(item.account_id, 16))
        return -item.create_time.ToNanoseconds(), shard_id, -int(item.id[16:], 16)

    expected = sorted(made, key=order)
    ids = [item.id for item in expected]
    found = await listed(client, ledger="books", page_size=page_size)
    assert [item.id for item in found] == ids
    middle = when(expected[60].create_time)
    for filters, wanted in (
        ({"status": ledger_pb2.TRANSACTION_STATUS_PENDING}, lambda item: item.status == 1),
        ({"status": ledger_pb2.TRANSACTION_STATUS_SETTLED}, lambda item: item.status == 2),
        ({"external_reference": "order 3"}, lambda item: item.external_reference == "order 3"),
        ({"metadata_key": "key 2"}, lambda item: "key 2" in item.metadata),
        ({"start": middle}, lambda item: when(item.create_time) >= middle),
        ({"end": middle}, lambda item: when(item.create_time) < middle),
        (
            {"end": middle, "metadata_key": "key 1"},
            lambda item: "key 1" in item.metadata and when(item.create_time) < middle,
        ),
    ):
        found = await listed(client, ledger="books", page_size=page_size, **filters)
        assert [item.id for item in found] == [item.id for item in expected if wanted(item)]
    mine = [item.id for item in expected if item.account_id == accounts[0]]
    found = await listed(client, account_id=accounts[0], page_size=page_size)
    assert [item.id for item in found] == mine
    assert len(await listed(client, page_size=page_size)) == 120  # those of "main"


async def test_an_account_or_ledger_that_is_not_there(client: AsyncLedgerClient) -> None:
    nobody = "0" * 16
    for call in (
        client.get_balance(nobody),
        client.entries_page(nobody),
        client.statement(nobody),
        client.account_events_page(nobody),
        client.list_transactions_page(nobody),
    ):
        with pytest.raises(NotFoundError) as caught:
            await call
        assert caught.value.reason == "ACCOUNT_NOT_FOUND"
    with pytest.raises(NotFoundError) as caught:
        await client.transaction_states(nobody * 2)
    assert caught.value.reason == "TRANSACTION_NOT_FOUND"
    with pytest.raises(NotFoundError) as caught:
        await client.list_transactions_page(ledger="nothing")
    assert caught.value.reason == "LEDGER_NOT_FOUND"


async def test_forged_page_tokens_lead_nowhere(client: AsyncLedgerClient, node: NodeShards) -> None:
    """They are refused, or show what the list has there."""
    account = await wallet(client, "a")
    for _ in range(5):
        await client.create_transaction(account, 1, "", settled=True)
    entries = ledger_pb2.ListEntriesRequest(account_id=account)
    statement = ledger_pb2.GetStatementRequest(account_id=account)
    for sequence in (6, 2**63, 2**64 - 1):
        token = ENTRIES.encode(entries, EntryCursor(sequence))
        with pytest.raises(InvalidArgumentError, match="page token"):
            await client.entries_page(account, page_token=token)
        forged = StatementCursor(sequence, node.time_us + 1, 5)
        with pytest.raises(InvalidArgumentError, match="page token"):
            await client.statement_page(account, page_token=STATEMENT.encode(statement, forged))
    events = ledger_pb2.ListAccountEventsRequest(account_id=account)
    token = ACCOUNT_EVENTS.encode(events, EventCursor(2**64 - 1, 65_535))
    assert len((await client.account_events_page(account, page_token=token)).events) == 1
    listed = ledger_pb2.ListTransactionsRequest(ledger="main")
    for cursor, count in ((LedgerCursor(2**63 - 1, 0, 2**64 - 1), 5), (LedgerCursor(1, 0, 0), 0)):
        token = LEDGER_TRANSACTIONS.encode(listed, cursor)
        page = await client.list_transactions_page(ledger="main", page_token=token)
        assert len(page.transactions) == count

"""Single calls in blocks: the same answers and books as if each were a command of its own."""

import asyncio
import itertools
import random
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from bulk_shards import ACCOUNTS, SETTLED, BulkShards, bulk, on_shards
from fake_shards import Call, until
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from node_shards import NodeShards

from ledger.v1 import ledger_pb2, ledger_pb2_grpc
from ledger_core.commands import CreateAccount, FreezeAccount, Limits, Source
from ledger_core.errors import (
    LedgerError,
    OutcomeUnknownError,
    OverloadedError,
    ShardUnavailableError,
)
from ledger_core.ledgers import USD, Currency
from ledger_gateway import single_transfers
from ledger_gateway.block_kinds import CREATE
from ledger_gateway.errors import to_status
from ledger_gateway.ledger_service import LedgerService
from ledger_gateway.server import GatewayServer
from ledger_gateway.single_transfers import CallsUnderWay

Request = ledger_pb2.CreateTransactionRequest
A, B, C = (f"{account_id:016x}" for account_id in ACCOUNTS[0][:3])
ELSEWHERE = f"{ACCOUNTS[1][0]:016x}"
EUR = Currency("EUR", 2)


class Caller:
    """The context of a call."""

    def __init__(self, name: str = "me", seconds: float | None = None) -> None:
        self._name, self._seconds = name, seconds

    def time_remaining(self) -> float | None:
        return self._seconds

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        return (("x-correlation-id", f"work of {self._name}"),)

    def peer(self) -> str:
        return f"ipv4:{self._name}"


def many(shards: Any) -> LedgerService:
    """A gateway that takes any number of calls for many."""
    service = LedgerService(shards)
    service._singles._few = -1
    return service


async def ask(service: LedgerService, request: Request, caller: Any = None) -> Any:
    """Return a transaction, or the status of an error."""
    try:
        context: Any = caller or Caller()
        return (await service.CreateTransaction(request, context)).transaction
    except LedgerError as error:
        return to_status(error)


def begin(service: LedgerService, request: Request, caller: Any = None) -> "asyncio.Task[Any]":
    return asyncio.create_task(ask(service, request, caller))


def transfer(first: str, second: str, amount: int = 5, **changes: Any) -> Request:
    entries = [
        ledger_pb2.Entry(account_id=first, direction="DIRECTION_DEBIT", amount=amount),
        ledger_pb2.Entry(account_id=second, direction="DIRECTION_CREDIT", amount=amount),
    ]
    return Request(**{"entries": entries, "settled": True} | changes)


@pytest.fixture
def shards() -> BulkShards:
    return BulkShards()


# The same as commands


class TwoWays:
    """The same shards twice: behind a gateway that sends commands, and one that sends blocks."""

    def __init__(self, folder: Path, exits: ExitStack) -> None:
        shards = self._shards = [NodeShards(folder / way, 2) for way in ("alone", "together")]
        for one in shards:
            exits.callback(one.close_stores)
        self.alone, self.together = (LedgerService(one) for one in shards)
        self.alone._singles._few, self.together._singles._few = 2**40, -1

    async def open_accounts(self) -> list[list[str]]:
        """Accounts by shard: two that may owe, two that may not, one frozen, two in EUR, none."""
        for service in (self.alone, self.together):
            request = ledger_pb2.CreateLedgerRequest(name="fx", request_id="fx")
            request.currencies.add(code="EUR", exponent=2)
            await service.CreateLedger(request, Caller())  # type: ignore[arg-type]
        found: list[list[int]] = [[], []]
        rng = random.Random(4)
        while min(map(len, found)) < 8:
            account_id = rng.getrandbits(64)
            found[self._shards[0].shard_id_of(account_id)].append(account_id)
        for shards, ids in itertools.product(self._shards, found):
            for place, account_id in enumerate(ids[:7]):
                ledger, currency = ("fx", EUR) if place >= 5 else ("main", USD)
                limits = Limits(None if place < 2 else 0)
                command = CreateAccount(
                    account_id, ledger, f"{account_id}", currency=currency, limits=limits
                )
                await shards.execute(account_id, command, 1.0)
            await shards.execute(ids[4], FreezeAccount(ids[4], "freeze"), 1.0)
        return [[f"{account_id:016x}" for account_id in ids[:8]] for ids in found]


def drawn_wave(rng: random.Random) -> list[dict[str, Any]]:
    """Draw what makes some requests. With entries they are of the same ledger."""
    places, currency, ledger = rng.choice(((range(8), "", ""), ((0, 5, 6, 7), "EUR", "fx")))
    return [
        {
            "shard": rng.choice((0, 0, 1)),
            "form": rng.choice(">><+-"),
            "accounts": rng.sample(places, 2) if rng.random() < 0.95 else (0, 0),
            "amount": rng.choice((*range(1, 9), 2**51 - 1, 2**51)),
            "request": rng.choice((rng.getrandbits(100), rng.randrange(9))),
            "text": rng.choice(("", "rent ☕")),
            "caller": rng.choice("ab"),
            "settled": rng.random() < 0.95,
            "currency": currency,
            "ledger": ledger,
        }
        for _ in range(rng.randint(1, 20))
    ]


def request_of(drawn: dict[str, Any], accounts: list[list[str]]) -> Request:
    first, second = (accounts[drawn["shard"]][place] for place in drawn["accounts"])
    request = Request(
        settled=drawn["settled"],
        request_id=str(uuid.UUID(int=drawn["request"])),
        description=drawn["text"],
        external_reference=drawn["text"],
        actor=drawn["caller"],
        metadata={"about": drawn["text"]} if drawn["text"] else {},
    )
    if drawn["form"] in "+-":
        request.account_id = first
        request.amount = drawn["amount"] if drawn["form"] == "+" else -drawn["amount"]
        return request
    request.ledger = drawn["ledger"]
    for account_id, debits in ((first, drawn["form"] == ">"), (second, drawn["form"] == "<")):
        request.entries.add(
            account_id=account_id,
            direction=1 if debits else 2,
            amount=drawn["amount"],
            currency=drawn["currency"],
        )
    return request


@given(seed=st.integers(0, 2**32))
@settings(max_examples=5, deadline=None)
def test_answers_and_books_are_those_of_single_commands(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    with ExitStack() as exits:
        ways = TwoWays(tmp_path_factory.mktemp("ways"), exits)
        asyncio.run(_compare(ways, random.Random(seed)))


async def _compare(ways: TwoWays, rng: random.Random) -> None:
    accounts = await ways.open_accounts()
    past: list[dict[str, Any]] = []
    for _ in range(8):
        wave = drawn_wave(rng)
        past += wave
        # Commands overtake blocks, and blocks of one ledger those of another: each has its turn.
        for _, group in itertools.groupby(sorted([*wave, *rng.sample(past, 1)], key=_way), _way):
            asked = [(request_of(drawn, accounts), Caller(drawn["caller"])) for drawn in group]
            one_by_one = [await ask(ways.alone, *one) for one in asked]
            at_once = await asyncio.gather(*(ask(ways.together, *one) for one in asked))
            assert at_once == one_by_one
            for found, wanted in zip(at_once, one_by_one, strict=True):
                data = {one.SerializeToString(deterministic=True) for one in (found, wanted)}
                assert len(data) == 1
    for account_id in itertools.chain(*accounts):
        assert await _told(ways.together, account_id) == await _told(ways.alone, account_id)


def _way(drawn: dict[str, Any]) -> Any:
    first, second = drawn["accounts"]
    has_entries = drawn["form"] in "><"
    if not drawn["settled"] or drawn["amount"] >= 2**51 or (has_entries and first == second):
        return "alone"
    return drawn["ledger"] if has_entries else ""


async def _told(service: LedgerService, account_id: str) -> list[Any]:
    """All that is told of an account and of its transactions; of who asked for them, too."""
    context: Any = Caller()
    told: list[Any] = []
    with suppress(LedgerError):  # of the account that is not there
        wanted = ledger_pb2.GetAccountRequest(account_id=account_id)
        told.append((await service.GetAccount(wanted, context)).account)
        listing = ledger_pb2.ListTransactionsRequest(account_id=account_id)
        told += (await service.ListTransactions(listing, context)).transactions
        for made in told[1:]:
            states = ledger_pb2.ListTransactionStatesRequest(transaction_id=made.id)
            told += (await service.ListTransactionStates(states, context)).states
    return told


# Which way


@pytest.mark.parametrize(
    ("request_", "in_block"),
    [
        (transfer(A, B), True),
        (transfer(A, B, description="d", external_reference="e", metadata={"k": "v"}), True),
        (Request(account_id=A, amount=-5, settled=True), True),
        (transfer(A, B, 2**51 - 1), True),
        (transfer(A, B, 2**51), False),
        (Request(account_id=A, amount=-(2**51), settled=True), False),
        (transfer(A, B, settled=False), False),
        (transfer(A, B, request_id="order 7"), False),
        (transfer(A, B, effective_time=Timestamp(seconds=1)), False),
        (transfer(A, ELSEWHERE), False),
        (transfer(A, A), False),
        (Request(entries=[*transfer(A, B).entries, *transfer(A, C).entries], settled=True), False),
    ],
)
async def test_of_many_calls_those_that_a_block_can_hold_go_in_one(
    shards: BulkShards, request_: Request, in_block: bool
) -> None:
    made = await ask(many(shards), request_)
    assert made.status == SETTLED
    assert (len(shards.blocks()), len(shards.singles())) == ((1, 0) if in_block else (0, 1))


async def test_no_more_than_three_calls_for_two_shards_go_as_commands(
    shards: BulkShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_000.0]
    monkeypatch.setattr(single_transfers.time, "monotonic", lambda: now[0])
    service = LedgerService(shards)
    for at_once, blocks in ((6, 0), (7, 1)):
        for _ in range(3):
            shards.calls.clear()
            await asyncio.gather(*(ask(service, transfer(A, B)) for _ in range(at_once)))
            now[0] += 0.1
        assert len(shards.blocks()) == blocks
        assert len(shards.singles()) == (0 if blocks else at_once)
    assert service._singles.under_way._now == 0


def test_calls_are_as_many_as_they_were_for_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr(single_transfers.time, "monotonic", lambda: now[0])
    calls = CallsUnderWay()

    def usual(at_once: int, later_s: float = 0.1) -> int:
        now[0] += later_s
        with ExitStack() as stack:
            for _ in range(at_once):
                stack.enter_context(calls)
            return calls.usual

    assert [usual(count) for count in (9, 9, 1, 9, 9, 8, 8)] == [0, 0, 9, 1, 1, 9, 8]
    assert usual(1, later_s=0.02) == 8
    assert usual(1, later_s=0.11) == 0


def test_calls_that_wait_for_long_are_still_there(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr(single_transfers.time, "monotonic", lambda: now[0])
    calls = CallsUnderWay()
    with ExitStack() as stack:
        for _ in range(3):
            for _ in range(2):
                stack.enter_context(calls)
            now[0] += 5
        assert calls.usual == 2


async def test_calls_share_a_block_with_items_of_bulk_calls(shards: BulkShards) -> None:
    service = many(shards)
    shards.hold = asyncio.Event()
    first = begin(service, transfer(A, B, 1))
    await until(lambda: shards.at_work[-1] == 1)
    context: Any = Caller("bulk")
    in_bulk = asyncio.create_task(
        service.CreateTransactions(bulk(on_shards(3, 0), actor="bulk"), context)
    )
    single = begin(service, transfer(A, B, 7, actor="single"), Caller("single"))
    await until(lambda: service._work.lanes.lane(CREATE, 0)._waiting_items == 4)
    shards.hold.set()
    made = await single
    assert (await in_bulk).transfers.numbers == [2, 3, 4]
    assert (made.id, made.actor, made.entries[0].amount) == (f"{A}{5:016x}", "single", 7)
    assert (await first).id == f"{A}{1:016x}"
    _, block = shards.blocks()[0]
    assert [(part.count, part.actor, part.source) for part in block.parts] == [
        (3, "bulk", Source("work of bulk", "ipv4:bulk")),
        (1, "single", Source("work of single", "ipv4:single")),
    ]


async def test_many_calls_at_once_over_grpc(tmp_path: Path) -> None:
    shards = NodeShards(tmp_path, 2)
    server = GatewayServer(shards)
    server._ledger_service._singles._few = -1
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub: Any = ledger_pb2_grpc.LedgerServiceStub(channel)
        opened = await stub.CreateAccount(ledger_pb2.CreateAccountRequest())
        account_id = opened.account.id
        asked = [Request(account_id=account_id, amount=n + 1, settled=True) for n in range(20)]
        made = await asyncio.gather(*(stub.CreateTransaction(one) for one in asked))
        assert [one.transaction.amount for one in made] == list(range(1, 21))
        assert len({one.transaction.id for one in made}) == 20
        found = await stub.GetAccount(ledger_pb2.GetAccountRequest(account_id=account_id))
        assert found.account.settled_balance == 210
    await server.stop(0)
    await shards.close()


# Without a result


@pytest.mark.parametrize(
    "error",
    [OutcomeUnknownError("who knows"), ShardUnavailableError("gone"), OverloadedError("full")],
)
async def test_a_block_that_fails_fails_each_call_in_it(
    shards: BulkShards, error: LedgerError
) -> None:
    shards.answer = lambda _: error
    service = many(shards)
    answers = await asyncio.gather(*(ask(service, transfer(A, B)) for _ in range(3)))
    assert answers == [to_status(error)] * 3
    assert len(shards.calls) == 1


async def in_line(service: LedgerService, shards: BulkShards, caller: Any) -> list[Any]:
    """A call on its way, and two that wait for the next block: the second one is the caller's."""
    shards.hold = asyncio.Event()
    calls = [begin(service, transfer(A, B, 1))]
    await until(lambda: shards.at_work[-1] == 1)
    calls += [begin(service, transfer(A, B, 2), caller), begin(service, transfer(A, B, 3))]
    await asyncio.sleep(0)
    return calls


async def test_a_call_that_is_cancelled_in_line_is_not_sent(shards: BulkShards) -> None:
    calls = await in_line(many(shards), shards, Caller())
    calls[1].cancel()
    await asyncio.wait(calls[1:2])
    shards.hold.set()
    await asyncio.gather(calls[0], calls[2])
    assert calls[1].cancelled()
    assert shards.amounts(0) == [1, 3]


async def test_the_time_of_a_call_in_line_is_over(shards: BulkShards) -> None:
    calls = await in_line(many(shards), shards, Caller(seconds=0.1))
    status = await calls[1]
    assert status.code == grpc.StatusCode.UNAVAILABLE.value[0]
    assert "nothing was done, try again" in status.message
    shards.hold.set()
    await asyncio.gather(*calls)
    assert shards.amounts(0) == [1, 3]


async def on_the_way(service: LedgerService, shards: BulkShards, caller: Any) -> list[Any]:
    """Two calls whose block has been sent; the first one is the caller's."""
    shards.hold = asyncio.Event()
    calls = [begin(service, transfer(A, B, 1), caller), begin(service, transfer(A, B, 2))]
    await until(lambda: shards.at_work[-1] == 1)
    return calls


async def test_a_call_that_is_cancelled_on_its_way_leaves_the_others_alone(
    shards: BulkShards,
) -> None:
    calls = await on_the_way(many(shards), shards, Caller())
    calls[0].cancel()
    await asyncio.wait(calls[:1])
    shards.hold.set()
    assert (await calls[1]).entries[0].amount == 2
    assert (calls[0].cancelled(), shards.amounts(0)) == (True, [1, 2])


async def test_the_time_of_a_call_on_its_way_is_over(shards: BulkShards) -> None:
    calls = await on_the_way(many(shards), shards, Caller(seconds=0.1))
    status = await calls[0]
    assert status.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert "the write may have happened" in status.message
    shards.hold.set()
    assert (await calls[1]).entries[0].amount == 2


async def test_of_a_call_that_reached_no_node_in_time_nothing_was_done(shards: BulkShards) -> None:
    shards.reached_node = False
    calls = await on_the_way(many(shards), shards, Caller(seconds=0.1))
    status = await calls[0]
    assert status.code == grpc.StatusCode.UNAVAILABLE.value[0]
    assert "nothing was done, try again" in status.message
    shards.hold.set()
    assert (await calls[1]).entries[0].amount == 2
    assert shards.amounts(0) == [1, 2, 2]  # it goes on in another block


async def test_the_last_call_of_a_block_takes_it_along(shards: BulkShards) -> None:
    calls = await on_the_way(many(shards), shards, Caller())
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    assert shards.cancelled


async def test_a_call_that_is_cancelled_as_its_answer_comes_sends_nothing_again(
    shards: BulkShards,
) -> None:
    shards.reached_node = False
    calls = await on_the_way(many(shards), shards, Caller())

    async def leave(_: Call) -> None:
        calls[0].cancel()

    shards.before = leave
    shards.hold.set()
    assert (await calls[1]).entries[0].amount == 2
    await asyncio.wait(calls)
    assert (calls[0].cancelled(), len(shards.calls)) == (True, 1)

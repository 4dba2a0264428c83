"""Shards that number transfers, and remember which commands they were sent and when."""

import asyncio
import itertools
import random
import uuid
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from fake_shards import TRANSACTION_VIEW, Call, FakeShards

from ledger.v1 import ledger_pb2
from ledger_core import transfers as columns
from ledger_core.accounts import Direction, TransactionStatus
from ledger_core.commands import (
    ApplyTransfers,
    CommitTransfers,
    CreateTransaction,
    CreateTransfers,
    DeliveredTransfers,
    PrepareTransfers,
    TransfersBetweenShards,
    encode_command,
)
from ledger_core.ids import shard_key
from ledger_core.queries import GetLedger
from ledger_core.results import BookView, Done, Result, TransfersView, TransferVotesView
from ledger_node.command_check import command_fault

SHARDS = 4
SETTLED = int(TransactionStatus.SETTLED)
TIME_US = 1_700_000_000_000_001
DEBIT, CREDIT, IN, OUT = 1, 2, 3, 4


def accounts_by_shard(count: int) -> list[list[int]]:
    """The same accounts in every run: ``count`` of them on each shard."""
    found: list[list[int]] = [[] for _ in range(SHARDS)]
    rng = random.Random(5)
    while any(len(ids) < count for ids in found):
        account_id = rng.getrandbits(64)
        of_shard = found[shard_key(account_id) * SHARDS >> 32]
        if len(of_shard) < count:
            of_shard.append(account_id)
    return found


ACCOUNTS = accounts_by_shard(20)
Item = tuple[int, int, int, int]
"""Form, first account, second account, amount."""


def request_ids(count: int, seed: int = 0) -> list[uuid.UUID]:
    rng = random.Random(seed)
    return [uuid.UUID(int=rng.getrandbits(128)) for _ in range(count)]


def transfers(items: Iterable[Item], **changes: Any) -> ledger_pb2.Transfers:
    items = list(items)
    values: dict[str, Any] = {
        "forms": bytes(item[0] for item in items),
        "first_account_ids": [item[1] for item in items],
        "second_account_ids": [item[2] for item in items],
        "amounts": [item[3] for item in items],
        "request_ids": b"".join(item.bytes for item in request_ids(len(items))),
    }
    return ledger_pb2.Transfers(**(values | changes))


def bulk(items: Iterable[Item], **changes: Any) -> ledger_pb2.CreateTransactionsRequest:
    return ledger_pb2.CreateTransactionsRequest(transfers=transfers(items, **changes))


def on_shards(count: int, *shard_ids: int, seed: int = 1) -> list[Item]:
    """Transfers on these shards in turn, each with an amount of its own: 1, 2, 3, …"""
    rng = random.Random(seed)
    found = []
    for number, shard_id in zip(range(count), itertools.cycle(shard_ids), strict=False):
        first, second = rng.sample(ACCOUNTS[shard_id], 2)
        found.append((rng.choice((DEBIT, CREDIT)), first, second, number + 1))
    return found


def external_book(shard_id: int) -> BookView:
    """Where a shard books the one-account form."""
    return BookView("main", "USD", 2, 1_000 + shard_id)


@dataclass
class BulkShards(FakeShards):
    """Takes every transfer. Places are those of real shards, and commands are checked as there."""

    shard_count: int = SHARDS
    numbers: Counter[int] = field(default_factory=Counter)
    at_work: Counter[int] = field(default_factory=Counter)
    at_work_most: Counter[int] = field(default_factory=Counter)
    """By shard; -1 counts all of them together."""
    gates: dict[int, asyncio.Event] = field(default_factory=dict)
    """By shard: its commands wait for it."""
    before: Callable[[Call], Awaitable[None]] | None = None
    """What a command waits for before it is answered."""

    def shard_id_of(self, account_id: int) -> int:
        return shard_key(account_id) * self.shard_count >> 32

    async def _result(self, call: Call) -> Result:
        message = call.message
        if isinstance(message, CreateTransaction | CreateTransfers | TransfersBetweenShards):
            fault = command_fault(message, call.shard_id, *self.shard_bounds(call.shard_id))
            assert fault is None
        for key in (call.shard_id, -1):
            self.at_work[key] += 1
            self.at_work_most[key] = max(self.at_work_most[key], self.at_work[key])
        try:
            self.calls.append(call)
            if gate := self.gates.get(call.shard_id):
                await gate.wait()
            elif self.hold is not None:
                await self.hold.wait()
            else:
                await asyncio.sleep(0)
            if self.before is not None:
                await self.before(call)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        finally:
            for key in (call.shard_id, -1):
                self.at_work[key] -= 1
        result = (self.answer(call) if self.answer else None) or self.taken(call)
        if isinstance(result, Exception):
            raise result
        return result

    def taken(self, call: Call) -> Result:
        """All that a command asks for is settled."""
        message = call.message
        assert not isinstance(message, GetLedger)
        first = self.numbers[call.shard_id] + 1
        if isinstance(message, PrepareTransfers):
            return TransferVotesView({})
        if isinstance(message, ApplyTransfers | DeliveredTransfers):
            return Done()
        if isinstance(message, CreateTransfers | CommitTransfers):
            count = len(message.forms)
            self.numbers[call.shard_id] += count
            one = [form >= IN for form in message.forms]
            return TransfersView(
                TIME_US,
                first,
                bytes([SETTLED]) * count,
                {},
                {},
                [external_book(call.shard_id)] if any(one) else [],
                bytes(2 * count) if any(one) else b"",
                bytes(Direction.CREDIT if item else 0 for item in one) if any(one) else b"",
            )
        assert isinstance(message, CreateTransaction)
        self.numbers[call.shard_id] += 1
        return msgspec.structs.replace(
            TRANSACTION_VIEW,
            account_id=message.account_id,
            number=first,
            status=TransactionStatus.SETTLED,
            request_id=message.request_id,
        )

    def blocks(self) -> dict[int, list[CreateTransfers]]:
        """The blocks of every shard, in the order in which they came."""
        found = defaultdict(list)
        for call in self.calls:
            if isinstance(call.message, CreateTransfers):
                found[call.shard_id].append(call.message)
        return dict(found)

    def steps(self) -> list[tuple[str, int]]:
        """The commands of transfers between shards, by name, and the shards that they were for."""
        kinds = (PrepareTransfers, CommitTransfers, ApplyTransfers, DeliveredTransfers)
        return [
            (type(call.message).__name__, call.shard_id)
            for call in self.calls
            if isinstance(call.message, kinds)
        ]

    def singles(self) -> list[CreateTransaction]:
        return [call.message for call in self.calls if isinstance(call.message, CreateTransaction)]

    def amounts(self, shard_id: int) -> list[int]:
        """Amounts of a shard's transfers in blocks: they tell the items, and their order."""
        found: list[int] = []
        for block in self.blocks().get(shard_id, []):
            found += columns.amounts(block).tolist()
        return found


def bytes_of(block: CreateTransfers) -> int:
    return len(encode_command(block))

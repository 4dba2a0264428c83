"""Random histories on three shards, and what reads of them must say, worked out the simplest way.

Money moves within and across shards, in two ledgers and three currencies; some of it is pending,
dated, settled in part, expired, refused or on its way between shards; many log entries share their
time with the one before. `Facts` adds up all entries of a shard anew for every question.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import NamedTuple

from ledger_core.accounts import (
    AccountType,
    Counters,
    Direction,
    EntryKind,
    TimeBasis,
    TransactionStatus,
)
from ledger_core.commands import (
    CancelTransaction,
    CreateAccount,
    CreateTransaction,
    Entry,
    Limits,
    ReverseTransaction,
    SettleTransaction,
    Source,
)
from ledger_core.ids import derive_account_id
from ledger_core.ledgers import USD, Currency
from ledger_core.results import CountersView
from ledger_node.records import BalanceRow, EntryRow, ShardMeta, TransactionRecord
from ledger_node.store import ShardTables
from tests.node.leg_blocks import send_blocks, transfer_id
from tests.node.several_shards import SHARDS, World
from tests.node.shard import Shard

EUR = Currency("EUR", 2)
GBP = Currency("GBP", 2)
REFERENCES = ["", "", "invoice 7", "invoice 8"]
METADATA = [{}, {}, {"order": "1"}, {"order": "2", "batch": "b"}]


@dataclass(frozen=True)
class Member:
    """An account that takes part."""

    account_id: int
    shard_id: int
    ledger: str
    currency: Currency
    type: AccountType
    code: str


class Histories(World):
    """Three shards whose accounts move money at random, always the same for the same seed."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder, funds=500)
        self.random = Random(seed)
        self.count = 0
        self.sent_in_blocks: list[CreateTransaction] = []
        self.members = [
            Member(account_id, shard_id, "main", USD, AccountType.LIABILITY, "")
            for shard_id in range(SHARDS)
            for account_id in self.accounts[shard_id]
        ]
        for shard_id in range(SHARDS):
            self.open(shard_id, "main", USD, AccountType.ASSET, "1000")
            self.open(shard_id, "main", USD, AccountType.INCOME, "4000")
        for shard_id in range(2):
            self.open(shard_id, "main", EUR, AccountType.ASSET, "1000")
            self.open(shard_id, "other", GBP, AccountType.LIABILITY, "1000")
            self.open(shard_id, "other", GBP, AccountType.EXPENSE, "")

    def open(
        self, shard_id: int, ledger: str, currency: Currency, type_: AccountType, code: str
    ) -> Member:
        name = f"{shard_id} {ledger} {currency.code} {type_} {code}"
        member = Member(derive_account_id(ledger, name), shard_id, ledger, currency, type_, code)
        self.shards[shard_id].one(
            CreateAccount(
                member.account_id,
                ledger,
                name,
                type_,
                currency,
                code,
                name,
                Limits(None),
                actor="opener",
            )
        )
        self.members.append(member)
        return member

    def request_id(self) -> str:
        self.count += 1
        return f"r{self.count}"

    # Steps

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        actions: list[Callable[[], object]] = [
            self.transfer,
            self.transfer,
            self.transfer,
            self.transfer,
            self.one_account_form,
            self.end,
            self.end,
            self.reverse,
            self.prepare,
            self.prepare,
            self.blocks,
            lambda: self.drive_home(self.random.randrange(SHARDS)),
            lambda: self.drive_participant(self.random.randrange(SHARDS)),
        ]
        # `Shard.apply` adds 1: with -1 the clock stands still.
        pace = self.random.choice([-1, -1, 0, 1, 1_000, 50_000_000])
        for shard in self.shards:
            shard.time_us += pace
        self.random.choice(actions)()

    def effective_time_us(self) -> int:
        now = self.shards[0].time_us
        return self.random.choice(
            [0, 0, 777_000, max(1, now - self.random.randrange(200_000_000)), now + 10_000_000]
        )

    def transfer(self) -> None:
        pick = self.random
        first = pick.choice(self.members)
        others = [
            m for m in self.members if (m.ledger, m.currency) == (first.ledger, first.currency)
        ]
        parts = [(pick.choice(others), pick.randint(1, 40)) for _ in range(pick.choice([1, 1, 2]))]
        direction = pick.choice(list(Direction))
        whole = sum(amount for _, amount in parts)
        entries = [
            Entry(first.account_id, direction, whole, first.currency, first.shard_id),
            *(
                Entry(m.account_id, direction.opposite, amount, m.currency, m.shard_id)
                for m, amount in parts
            ),
        ]
        now = self.shards[first.shard_id].time_us
        settled = pick.random() < 0.6
        command = CreateTransaction(
            first.account_id,
            0,
            pick.choice(["rent", "food"]),
            settled,
            self.request_id(),
            entries,
            ledger=first.ledger,
            external_reference=pick.choice(REFERENCES),
            effective_time_us=self.effective_time_us(),
            expire_time_us=0 if settled else pick.choice([0, 0, now + 30_000_000]),
            metadata=pick.choice(METADATA),
            actor="someone",
            source=Source("correlation", "peer"),
        )
        self.begin(command)

    def blocks(self) -> None:
        """Transfers between two shards each, together; their gateway may be gone after any round.

        Some of them were sent before, alone or together.
        """
        pick = self.random
        first = pick.choice(self.members)
        group = [
            m for m in self.members if (m.ledger, m.currency) == (first.ledger, first.currency)
        ]
        fresh = []
        for _ in range(pick.randint(1, 3)):
            payer, payee = pick.choice(group), pick.choice(group)
            if payer.shard_id == payee.shard_id:
                continue
            side, amount = pick.choice(list(Direction)), pick.choice([1, 7, 30, 400])
            entries = [
                Entry(payer.account_id, side, amount, payer.currency, payer.shard_id),
                Entry(payee.account_id, side.opposite, amount, payee.currency, payee.shard_id),
            ]
            self.count += 1
            fresh.append(
                CreateTransaction(
                    payer.account_id,
                    0,
                    "",
                    True,
                    transfer_id(self.count),
                    entries,
                    ledger=first.ledger,
                    actor=pick.choice(["", "someone"]),
                )
            )
        again = [c for c in self.sent_in_blocks[-9:] if c.ledger == first.ledger]
        again = [c for c in again if c.entries[0].currency == first.currency]
        items = fresh + (pick.sample(again, 1) if again and pick.random() < 0.5 else [])
        self.sent_in_blocks += fresh
        if items and pick.random() < 0.2:
            self.begin(items[0])
        if items:
            send_blocks(self, items, pick.randint(1, 4))

    def one_account_form(self) -> None:
        member = self.random.choice(self.members)
        amount = self.random.choice([-60, -5, 20, 50])
        self.shards[member.shard_id].one(
            CreateTransaction(
                member.account_id, amount, "cash", self.random.random() < 0.7, self.request_id()
            )
        )

    def prepare(self) -> None:
        """Bring transactions across shards half of their way."""
        shard_id = self.random.randrange(SHARDS)
        for number, in_flight in self.in_flight(shard_id).items():
            record = self.record(shard_id, number)
            if in_flight.prepare is not None and record.status is TransactionStatus.UNDECIDED:
                self.votes(in_flight.prepare, [record.participants[0].shard_id])

    def _own(self, status: TransactionStatus) -> tuple[Shard, int, TransactionRecord] | None:
        shard = self.random.choice(self.shards)
        with facts(shard) as known:
            own = [
                (number, record)
                for number, record in known.transactions.items()
                if record.home_shard_id is None and record.status is status
            ]
        return (shard, *self.random.choice(own)) if own else None

    def end(self) -> None:
        if (found := self._own(TransactionStatus.PENDING)) is None:
            return
        shard, number, record = found
        if self.random.random() < 0.3:
            shard.one(CancelTransaction(record.account_id, number, self.request_id()))
            return
        in_part = len(record.entries) == 2 and self.random.random() < 0.4
        amount = self.random.randint(1, record.entries[0].amount) if in_part else 0
        shard.one(SettleTransaction(record.account_id, number, self.request_id(), amount))

    def reverse(self) -> None:
        if (found := self._own(TransactionStatus.SETTLED)) is not None:
            shard, number, record = found
            shard.one(ReverseTransaction(record.account_id, number, self.request_id()))


# What must be


class Effect(NamedTuple):
    posted: int
    pending: int


_EFFECTS = {
    EntryKind.POSTED: Effect(1, 0),
    EntryKind.PENDING: Effect(0, 1),
    EntryKind.SETTLED: Effect(1, -1),
    EntryKind.CANCELLED: Effect(0, -1),
    EntryKind.EXPIRED: Effect(0, -1),
    EntryKind.REFUSED: Effect(0, 0),
}


class facts:  # noqa: N801  (read as a function: `with facts(shard) as known`)
    """All rows of a shard as they are now."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    def __enter__(self) -> "Facts":
        self._view = self._shard.store.read()
        return Facts(self._view.__enter__().shard(self._shard.shard.id))

    def __exit__(self, *exception: object) -> None:
        self._view.__exit__(None, None, None)


class Facts:
    """Everything that a shard has recorded, and sums of it."""

    def __init__(self, tables: ShardTables) -> None:
        self.tables = tables
        self.meta: ShardMeta = tables.meta()
        self.entries: list[EntryRow] = [row for _, rows in tables.blocks_from(0) for row in rows]
        self.balances: dict[int, BalanceRow] = {row.account_id: row for _, row in tables.balances()}

    @cached_property
    def transactions(self) -> dict[int, TransactionRecord]:
        found = {n: self.tables.find_transaction(n) for n in range(1, self.meta.next_transaction)}
        return {number: record for number, record in found.items() if record is not None}

    def entries_of(self, account_id: int) -> list[EntryRow]:
        return [row for row in self.entries if row.account_id == account_id]

    def counted_us(self, row: EntryRow, basis: TimeBasis) -> int:
        """When an entry counts."""
        record = self.transactions[row.transaction]
        dated = record.effective_time_us != record.states[0].time_us
        if basis is TimeBasis.EFFECTIVE and dated:
            return record.effective_time_us
        return row.time_us

    def counters(
        self, account_ids: set[int], time_us: int, basis: TimeBasis = TimeBasis.RECORDED
    ) -> CountersView:
        """Add up the effects of all entries of some accounts up to a moment."""
        total = Counters()
        for row in self.entries:
            if row.account_id not in account_ids or self.counted_us(row, basis) > time_us:
                continue
            posted, pending = _EFFECTS[row.kind]
            if row.direction is Direction.DEBIT:
                total.debits_posted += posted * row.amount
                total.debits_pending += pending * row.amount
            else:
                total.credits_posted += posted * row.amount
                total.credits_pending += pending * row.amount
        return CountersView(
            total.debits_posted, total.credits_posted, total.debits_pending, total.credits_pending
        )

    def moments(self, account_id: int | None = None) -> list[int]:
        """Times at, just before and just after all entries, and all effective times."""
        rows = self.entries if account_id is None else self.entries_of(account_id)
        times = {row.time_us for row in rows}
        times |= {self.counted_us(row, TimeBasis.EFFECTIVE) for row in rows}
        around = {time + shift for time in times for shift in (-1, 0, 1)}
        return sorted(time for time in around | {0, self.meta.time_us + 1} if time >= 0)


def sample(random: Random, items: list[int], count: int) -> Iterator[int]:
    """The first and the last one, and some between, in order."""
    picked = {items[0], items[-1], *random.sample(items, min(count, len(items)))}
    return iter(sorted(picked))

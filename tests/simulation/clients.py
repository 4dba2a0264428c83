"""Concurrent callers, and the record of what they asked and were told."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec

from ledger_cluster.config import ClusterConfig
from ledger_cluster.shard_map import ShardMap
from ledger_core.accounts import Direction, TransactionStatus
from ledger_core.commands import (
    CancelTransaction,
    CreateAccount,
    CreateTransaction,
    Entry,
    ReverseTransaction,
    SettleTransaction,
    encode_command,
)
from ledger_core.errors import Reason
from ledger_core.ids import derive_account_id
from ledger_core.ledgers import USD, Currency
from ledger_core.queries import GetAccount, encode_query
from ledger_core.results import AccountView, Failure, Result, TransactionView
from tests.node.leg_blocks import is_leg, transfer_id
from tests.simulation.blocks import Blocks, Item, Rounds
from tests.simulation.engine import Engine, require
from tests.simulation.gateway import Answer, End, Gateway, Kind
from tests.simulation.host import WALL_START_US
from tests.simulation.model import Sent
from tests.simulation.plan import Plan

LEDGER = "main"
EUR = Currency("EUR", 2)

# How a write may fail that was sent with a reason to succeed: something else came first.
_EXPECTED = (Reason.TRANSACTION_NOT_PENDING, Reason.REVERSAL_EXCEEDS)


@dataclass(slots=True, eq=False)
class Request:
    """A write under one request id, with all its repeats taken as one call."""

    command: Sent
    shard_id: int
    start_s: float
    end_s: float | None = None
    result: Result | None = None
    index: int = 0
    """Log index of the entry whose result was told first."""
    under_way: int = 0
    maybe_done: bool = False
    """Whether any of its calls ended without the promise that nothing was done."""

    @property
    def acknowledged(self) -> bool:
        """Whether a caller was told that the write was done."""
        return self.result is not None and not isinstance(self.result, Failure)


@dataclass(frozen=True, slots=True)
class Read:
    """A read that was answered."""

    account_id: int
    shard_id: int
    start_s: float
    end_s: float
    result: Result
    index: int
    stale: bool


@dataclass(slots=True)
class History:
    """Everything callers asked and were told."""

    requests: list[Request] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)


class Clients:
    """A few callers that each do one thing after the other."""

    def __init__(
        self, engine: Engine, plan: Plan, config: ClusterConfig, gateways: list[Gateway]
    ) -> None:
        self._engine = engine
        self._plan = plan
        self._gateways = gateways
        self._rng = random.Random(f"clients {plan.seed}")
        self.history = History()
        self.calls_open = 0
        self.stopped = False
        self._map = ShardMap(config)
        self.accounts = self._place_accounts(config)
        self._pending: list[TransactionView] = []
        self._settled: list[TransactionView] = []
        self._sent = 0
        # What a caller does next, with the weights of the plan's workload.
        self._choices: list[Callable[[Callable[[], None]], None]] = [
            self._create_account,
            self._pay,
            self._reserve,
            self._end_pending,
            self._read,
            self._read_stale,
            self._repeat,
            self._transfer,
            self._hold,
            self._reverse,
            self._transfer_block,
        ]

    def _place_accounts(self, config: ClusterConfig) -> list[Request]:
        """Choose request ids whose accounts lie on every shard alike."""
        accounts: list[Request] = []
        wanted = {shard.id: self._plan.accounts for shard in config.shards}
        number = 0
        while any(wanted.values()):
            request_id = f"account {self._plan.seed} {number}"
            number += 1
            account_id = derive_account_id(LEDGER, request_id)
            shard_id = self._map.shard_of(account_id).id
            if wanted[shard_id]:
                wanted[shard_id] -= 1
                # Where a shard has several accounts, one of them is in another currency.
                is_last = self._plan.accounts > 2 and not wanted[shard_id]
                currency = EUR if is_last else USD
                command = CreateAccount(account_id, LEDGER, request_id, currency=currency)
                accounts.append(Request(command, shard_id, 0.0))
        return accounts

    def start(self) -> None:
        """Let the callers begin."""
        for account in self.accounts:
            account.start_s = self._engine.now
            self.history.requests.append(account)
            self._send(account, partial(self._fund, account))
        for _ in range(self._plan.clients):
            self._engine.after(self._rng.random() * 0.2, self._next)

    def _fund(self, account: Request) -> None:
        """Give most accounts something to spend."""
        if account.acknowledged and self._rng.random() < 0.8:
            command = CreateTransaction(
                account.command.account_id, 400, "", True, self._request_id()
            )
            self.submit(command, account.shard_id, lambda: None)

    def _next(self) -> None:
        if self.stopped:
            return
        choices = self._choices[: len(self._plan.workload)]
        (choice,) = self._rng.choices(choices, self._plan.workload)
        choice(self._think)

    def _think(self) -> None:
        self._engine.after(self._rng.expovariate(1 / self._plan.think_s), self._next)

    # What callers do. Each calls `then` once, when it is through.

    def _account(self) -> Request:
        # The first accounts of a shard see most of the traffic.
        return self.accounts[int(len(self.accounts) * self._rng.random() ** 2)]

    def _create_account(self, then: Callable[[], None]) -> None:
        self._send(self._account(), then)

    def _pay(self, then: Callable[[], None]) -> None:
        self._create_transaction(then, settled=True)

    def _reserve(self, then: Callable[[], None]) -> None:
        self._create_transaction(then, settled=False)

    def _create_transaction(self, then: Callable[[], None], *, settled: bool) -> None:
        account = self._account()
        if not account.acknowledged:
            self._send(account, then)
            return
        amount = self._rng.choice((1, 5, 40, 100, -1, -7, -30, -60, -200))
        account_id = account.command.account_id
        self.submit(
            CreateTransaction(account_id, amount, "", settled, self._request_id()),
            account.shard_id,
            then,
        )

    def _end_pending(self, then: Callable[[], None]) -> None:
        if not self._pending:
            self._reserve(then)
            return
        transaction = self._rng.choice(self._pending)
        account_id, number = transaction.account_id, transaction.number
        command: Sent
        if self._rng.random() < 0.5:
            command = CancelTransaction(account_id, number, self._request_id())
        else:
            amount = 0
            # Parts of the one-account form are left to others: the search knows none.
            if not transaction.amount and len(transaction.entries) == 2:
                whole = transaction.entries[0].amount
                amount = self._rng.choice((0, whole, self._rng.randint(1, whole)))
            command = SettleTransaction(account_id, number, self._request_id(), amount)
        self.submit(command, self._map.shard_of(account_id).id, then)

    def _transfer(self, then: Callable[[], None]) -> None:
        self._create_entries(then, settled=True)

    def _hold(self, then: Callable[[], None]) -> None:
        self._create_entries(then, settled=False)

    def _create_entries(self, then: Callable[[], None], *, settled: bool) -> None:
        """Move money between accounts of any shards: one pays several, or several pay one."""
        rng = self._rng
        entries = self._entries_in(USD, rng.choice((2, 2, 2, 3, 4, 5)))
        if rng.random() < 0.3:
            entries = self._entries_in(USD, 2) + self._entries_in(EUR, 2)
            rng.shuffle(entries)
        if len(entries) < 2:
            self._pay(then)
            return
        expire_time_us = 0
        if not settled and rng.random() < 0.4:
            in_s = self._engine.now + rng.random() * self._plan.expire_s
            expire_time_us = WALL_START_US + round(in_s * 1e6)
        home = entries[0]
        command = CreateTransaction(
            home.account_id,
            0,
            "",
            settled,
            self._request_id(),
            entries,
            expire_time_us=expire_time_us,
        )
        self.submit(command, home.shard_id, self._then_read(entries, then))

    def _transfer_block(self, then: Callable[[], None]) -> None:
        """Move money between accounts of two shards each, many transfers at a time."""
        requests: list[Request] = []
        for _ in range(self._rng.randint(1, 8)):
            entries = self._entries_in(USD, 2)
            if not entries or entries[0].shard_id == entries[1].shard_id:
                continue
            home = entries[0]
            command = CreateTransaction(
                home.account_id, 0, "", True, self._request_id(), entries, ledger=LEDGER
            )
            requests.append(Request(command, home.shard_id, self._engine.now))
        if not requests:
            self._pay(then)
            return
        self.history.requests += requests
        left = len(requests)

        def one_ended() -> None:
            nonlocal left
            left -= 1
            if not left:
                then()

        self._send_block(requests, one_ended, self._plan.call_s)

    def _entries_in(self, currency: Currency, count: int) -> list[Entry]:
        """Draw entries that balance, in any order; none where there are too few accounts."""
        rng = self._rng
        accounts = [
            account
            for account in self.accounts
            if isinstance(account.command, CreateAccount) and account.command.currency == currency
        ]
        if len(accounts) < 2:
            return []
        single, *others = rng.sample(accounts, min(count, len(accounts)))
        amounts = [rng.choice((1, 3, 10, 25, 80)) for _ in others]
        pays = rng.random() < 0.5
        one = Direction.DEBIT if pays else Direction.CREDIT
        sides = [(single, one, sum(amounts))]
        sides += [(o, one.opposite, amount) for o, amount in zip(others, amounts, strict=True)]
        rng.shuffle(sides)
        return [
            Entry(account.command.account_id, direction, amount, currency, account.shard_id)
            for account, direction, amount in sides
        ]

    def _then_read(self, entries: list[Entry], then: Callable[[], None]) -> Callable[[], None]:
        """Often look at one of the accounts as soon as there is an answer."""
        if self._rng.random() < 0.5:
            return then
        entry = self._rng.choice(entries)
        return lambda: self._look(entry.account_id, entry.shard_id, then, stale=False)

    def _reverse(self, then: Callable[[], None]) -> None:
        """Take back a transaction with entries, or a part of it, maybe more than is left."""
        if not self._settled:
            self._transfer(then)
            return
        transaction = self._rng.choice(self._settled)
        amounts: list[int] = []
        if len(transaction.entries) == 2 and self._rng.random() < 0.6:
            amounts = [self._rng.randint(1, transaction.entries[0].amount)] * 2
        account_id = transaction.account_id
        command = ReverseTransaction(account_id, transaction.number, self._request_id(), amounts)
        self.submit(command, self._map.shard_of(account_id).id, then)

    def _read(self, then: Callable[[], None]) -> None:
        self._ask(then, stale=False)

    def _read_stale(self, then: Callable[[], None]) -> None:
        self._ask(then, stale=True)

    def _repeat(self, then: Callable[[], None]) -> None:
        """Send a request again that was acknowledged, or whose outcome is unknown."""
        recent = [r for r in self.history.requests[-20:] if not isinstance(r.result, Failure)]
        if recent:
            self._send(self._rng.choice(recent), then)
        else:
            then()

    def _request_id(self) -> str:
        self._sent += 1
        return transfer_id(self._sent)

    def submit(self, command: Sent, shard_id: int, then: Callable[[], None]) -> None:
        """Send a new request; ``then`` is called at its end, whatever that is."""
        request = Request(command, shard_id, self._engine.now)
        self.history.requests.append(request)
        self._send(request, then)

    def send_again(self, request: Request, timeout_s: float) -> None:
        """Repeat a request: the answer must be the first one."""
        self._send(request, lambda: None, timeout_s)

    def _send(
        self, request: Request, then: Callable[[], None], timeout_s: float | None = None
    ) -> None:
        timeout_s = timeout_s or self._plan.call_s
        if is_leg(request.command) and self._rng.random() < 0.4:
            self._send_block([request], then, timeout_s)
            return
        gateway = self._rng.choice(self._gateways)
        data = encode_command(request.command)
        gateway.execute(request.shard_id, data, timeout_s, self._waiting_for(request, then))

    def _send_block(
        self, requests: list[Request], then: Callable[[], None], timeout_s: float
    ) -> None:
        """Send transfers as a block; each is a request of its own, and may be repeated alone."""
        dies = Rounds.ALL
        if not self.stopped and self._rng.random() < self._plan.gateway_dies:
            dies = self._rng.choice((Rounds.PREPARED, Rounds.COMMITTED, Rounds.APPLIED))
        items = []
        for request in requests:
            assert isinstance(request.command, CreateTransaction)
            items.append(Item(request.command, self._waiting_for(request, then)))
        gateway = self._rng.choice(self._gateways)
        Blocks(self._engine, gateway, self._rng, items, timeout_s, dies).start()

    def _waiting_for(self, request: Request, then: Callable[[], None]) -> Callable[[Answer], None]:
        """Return what takes the answer to a request that is sent now."""
        self.calls_open += 1
        request.under_way += 1

        def done(answer: Answer) -> None:
            self.calls_open -= 1
            request.under_way -= 1
            self._engine.counts[f"writes {answer.end.value}"] += 1
            if answer.end is End.UNKNOWN:
                request.maybe_done = True
            elif answer.end is End.OK:
                self._told(request, answer)
            then()

        return done

    def _told(self, request: Request, answer: Answer) -> None:
        result = answer.result
        if isinstance(result, Failure):
            require(result.reason in _EXPECTED, f"unexpected: {result.reason} {result.message}")
        if isinstance(result, TransactionView):
            require(
                result.status is not TransactionStatus.UNDECIDED, "answered before it was decided"
            )
            # What repeats may show as it is now.
            result = msgspec.structs.replace(result, in_flight=None, reversed_amounts=[])
        if request.result is not None and not self._may_differ(request.result, result):
            require(result == request.result, f"a repeat was answered differently: {result}")
            return
        request.result, request.end_s, request.index = result, self._engine.now, answer.index
        if not isinstance(result, TransactionView):
            return
        self._engine.counts[f"told {result.status.name}"] += 1
        if result.status is TransactionStatus.PENDING:
            self._pending.append(result)
            del self._pending[:-12]
        elif result.status is TransactionStatus.SETTLED and not result.amount:
            self._settled.append(result)
            del self._settled[:-12]

    @staticmethod
    def _may_differ(first: Result, now: Result | None) -> bool:
        """Failures are not kept: what another reversal had taken may have been given back."""
        return any(
            isinstance(result, Failure) and result.reason is Reason.REVERSAL_EXCEEDS
            for result in (first, now)
        ) and isinstance(first, Failure)

    def _ask(self, then: Callable[[], None], *, stale: bool) -> None:
        account = self._account()
        self._look(account.command.account_id, account.shard_id, then, stale=stale)

    def _look(
        self, account_id: int, shard_id: int, then: Callable[[], None], *, stale: bool
    ) -> None:
        start_s = self._engine.now
        self.calls_open += 1

        def done(answer: Answer) -> None:
            self.calls_open -= 1
            self._engine.counts[f"{'stale ' if stale else ''}reads {answer.end.value}"] += 1
            if answer.end is End.OK:
                assert answer.result is not None
                require(
                    isinstance(answer.result, AccountView)
                    or answer.result.reason is Reason.ACCOUNT_NOT_FOUND,  # type: ignore[union-attr]
                    f"unexpected: {answer.result}",
                )
                self.history.reads.append(
                    Read(
                        account_id,
                        shard_id,
                        start_s,
                        self._engine.now,
                        answer.result,
                        answer.index,
                        stale,
                    )
                )
            then()

        kind = Kind.STALE_QUERY if stale else Kind.QUERY
        gateway = self._rng.choice(self._gateways)
        data = encode_query(GetAccount(account_id))
        gateway.call(shard_id, kind, data, self._plan.call_s, done)

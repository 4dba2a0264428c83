"""A shard's books across shards, in a few dictionaries: what applying its log must lead to.

It shares nothing with the product but the commands. Accounts are liabilities without overdraft, so
money is a signed number: in is positive. ``positions`` of a transaction says where in the log it
got into each of its states.
"""

import struct
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ledger_core.accounts import Direction, TransactionStatus
from ledger_core.commands import (
    ApplyDecision,
    ApplyTransfers,
    Batch,
    CancelTransaction,
    Command,
    CommitTransfers,
    CreateAccount,
    CreateTransaction,
    Decide,
    Delivered,
    DeliveredTransfers,
    Entry,
    Prepare,
    PrepareTransfers,
    Refused,
    Resolve,
    ReverseTransaction,
    SettleTransaction,
)
from ledger_core.errors import RefusalReason
from ledger_core.ids import request_key, transaction_request_key
from tests.simulation.engine import require

S = TransactionStatus
Sent = (
    CreateAccount | CreateTransaction | SettleTransaction | CancelTransaction | ReverseTransaction
)
"""What callers send."""
# Log index, place in the entry.
Position = tuple[int, float]


@dataclass(slots=True)
class Part:
    """A transaction as one shard knows it, as its home or as a participant."""

    number: int
    entries: list[Entry]
    money: list[tuple[int, int]]
    """(account, amount) of what is on this shard."""
    settled: bool
    states: list[TransactionStatus]
    positions: list[Position]
    participants: list[int]
    expire_us: int = 0
    settled_amount: int = 0
    reversed: list[int] = field(default_factory=list)
    reversal_of: int = 0
    reversal_amounts: list[int] = field(default_factory=list)
    home_shard_id: int | None = None
    abandoned: bool = False
    """Refused for good by a home that had never heard of it, when a participant asked."""

    @property
    def status(self) -> TransactionStatus:
        """The status now."""
        return self.states[-1]

    @property
    def decided_at(self) -> Position | None:
        """Where it got out of UNDECIDED."""
        return next(
            (p for s, p in zip(self.states, self.positions, strict=True) if s is not S.UNDECIDED),
            None,
        )


Outcome = tuple[int, int] | None
"""(number, state) of what a request did; None where it failed and nothing is kept."""


def key_of(command: Sent) -> bytes:
    """Return the key under which a request's first result is kept; across shards, its origin."""
    match command:
        case CreateTransaction():
            return transaction_request_key(command.account_id, command.request_id)
        case SettleTransaction() | CancelTransaction() | ReverseTransaction():
            place = command.account_id.to_bytes(8) + command.number.to_bytes(8)
            return request_key(command.request_id) + b"t" + place
        case CreateAccount():
            return request_key(command.request_id) + b"l" + command.ledger.encode()


def signed(entry: Entry) -> int:
    """Return what an entry brings to a liability."""
    return entry.amount if entry.direction is Direction.CREDIT else -entry.amount


class ShardModel:
    """One shard."""

    def __init__(self, shard_id: int) -> None:
        self.shard_id = shard_id
        self.settled: Counter[int] = Counter()
        self.reserved: Counter[int] = Counter()
        self.accounts: set[int] = set()
        self.parts: list[Part] = []
        """All transactions; their number is their place + 1."""
        self.outcomes: dict[bytes, tuple[int, int]] = {}
        self.places: dict[bytes, Position] = {}
        """Where a request took effect, or began to."""
        self.prepared: dict[bytes, Part | None] = {}
        """By origin; None where the decision came first."""
        self.committed: list[tuple[bytes, Part]] = []
        """What this shard, as home, decided to do."""
        self.told: list[tuple[bytes, TransactionStatus, int]] = []
        """Decisions that this shard, as participant, was told."""
        self.origins: dict[int, bytes] = {}
        """Of transactions across shards whose home is here, by number."""
        self._time_us = 0

    def balances(self, account_id: int) -> tuple[int, int] | None:
        """Return (settled, available), or None where there is no such account."""
        if account_id not in self.accounts:
            return None
        settled = self.settled[account_id]
        return settled, settled - self.reserved[account_id]

    def apply(self, index: int, batch: Batch) -> None:
        """Apply one log entry."""
        self._time_us = max(self._time_us, batch.time_us)
        for part in self.parts:
            expires = part.home_shard_id is None and 0 < part.expire_us <= self._time_us
            if expires and part.status is S.PENDING:
                self._become(part, S.EXPIRED, (index, -1))
        for place, command in enumerate(batch.commands):
            self._execute(command, (index, place))

    def _execute(self, command: Command, at: Position) -> None:
        match command:
            case Prepare():
                self._prepare(command, at)
            case Decide():
                self._decide(command, at)
            case ApplyDecision():
                self._apply_decision(command, at)
            case PrepareTransfers() | CommitTransfers() | ApplyTransfers():
                self._execute_block(command, at)
            case Delivered() | DeliveredTransfers():
                pass
            case Resolve():
                self._resolve(command, at)
            case (
                CreateAccount()
                | CreateTransaction()
                | SettleTransaction()
                | CancelTransaction()
                | ReverseTransaction()
            ):
                key = key_of(command)
                if key not in self.outcomes and (outcome := self._request(command, at)) is not None:
                    self.outcomes[key] = outcome
                    self.places[key] = at
            case _:
                raise AssertionError(f"a command that nobody sends: {command}")

    def _request(self, command: Sent, at: Position) -> Outcome:
        match command:
            case CreateAccount():
                self.accounts.add(command.account_id)
                return 0, 0
            case CreateTransaction():
                if not command.entries and command.account_id not in self.accounts:
                    return None
                return self._create(command, key_of(command), at).number, 0
            case SettleTransaction() | CancelTransaction():
                return self._end(command, at)
            case ReverseTransaction():
                return self._reverse(command, at)

    # Transactions

    def _part(self, number: int) -> Part:
        require(0 < number <= len(self.parts), f"there is no transaction {number}")
        return self.parts[number - 1]

    def _create(self, command: CreateTransaction, origin: bytes, at: Position) -> Part:
        shards = sorted({entry.shard_id for entry in command.entries} - {self.shard_id})
        part = self._new(command, command.settled and not shards, at)
        part.participants, part.expire_us = shards, command.expire_time_us
        self.origins[part.number] = origin
        return part

    def _new(self, command: CreateTransaction, settles: bool, at: Position) -> Part:
        """Record a transaction with the money that is on this shard."""
        money = [
            (entry.account_id, signed(entry))
            for entry in command.entries
            if entry.shard_id == self.shard_id
        ] or [(command.account_id, command.amount)]
        across = any(entry.shard_id != self.shard_id for entry in command.entries)
        status = self._refusal(money, nets=settles)
        if status is None:
            status = S.UNDECIDED if across else S.SETTLED if settles else S.PENDING
            for account_id, amount in money:
                if status is S.SETTLED:
                    self.settled[account_id] += amount
                else:
                    self.reserved[account_id] += max(-amount, 0)
        part = Part(
            len(self.parts) + 1, command.entries, money, command.settled, [status], [at], []
        )
        self.parts.append(part)
        self._check_floors(part, at)
        return part

    def _refusal(self, money: Iterable[tuple[int, int]], *, nets: bool) -> TransactionStatus | None:
        out: Counter[int] = Counter()
        into: Counter[int] = Counter()
        for account_id, amount in money:
            if account_id not in self.accounts:
                return S.REJECTED
            (into if amount > 0 else out)[account_id] += abs(amount)
        for account_id, amount in out.items():
            paid = max(amount - into[account_id], 0) if nets else amount
            if paid and self.settled[account_id] - self.reserved[account_id] < paid:
                return S.INSUFFICIENT_FUNDS
        return None

    def _become(
        self, part: Part, status: TransactionStatus, at: Position, settled_amount: int = 0
    ) -> None:
        part.states.append(status)
        part.positions.append(at)
        part.settled_amount = settled_amount
        if status is S.PENDING:
            return
        for account_id, amount in part.money:
            self.reserved[account_id] -= max(-amount, 0)
            if status is S.SETTLED:
                whole = settled_amount or abs(amount)
                self.settled[account_id] += whole if amount > 0 else -whole
        self._check_floors(part, at)

    def _check_floors(self, part: Part, at: Position) -> None:
        for account_id, amount in part.money:
            available = self.settled[account_id] - self.reserved[account_id]
            require(amount > 0 or available >= 0, f"the model overdraws at {at}")
            require(self.reserved[account_id] >= 0, f"the model frees too much at {at}")

    def _end(self, command: SettleTransaction | CancelTransaction, at: Position) -> Outcome:
        part = self._part(command.number)
        if part.status is not S.PENDING:
            return None
        if isinstance(command, CancelTransaction):
            self._become(part, S.CANCELLED, at)
        else:
            whole = part.entries[0].amount if part.entries else 0
            self._become(part, S.SETTLED, at, 0 if command.amount == whole else command.amount)
        return command.number, len(part.states) - 1

    def _reverse(self, command: ReverseTransaction, at: Position) -> Outcome:
        original = self._part(command.number)
        if original.status is not S.SETTLED:
            return None
        before = original.reversed or [0] * len(original.entries)
        left = [
            (original.settled_amount or entry.amount) - done
            for entry, done in zip(original.entries, before, strict=True)
        ]
        amounts = command.amounts or left
        if not any(amounts) or any(a > b for a, b in zip(amounts, left, strict=True)):
            return None
        mirror = [
            Entry(e.account_id, e.direction.opposite, amount, e.currency, e.shard_id)
            for e, amount in zip(original.entries, amounts, strict=True)
            if amount
        ]
        draft = CreateTransaction(command.account_id, 0, "", True, command.request_id, mirror)
        part = self._create(draft, key_of(command), at)
        if not part.status.is_refusal:
            part.reversal_of, part.reversal_amounts = command.number, amounts
            original.reversed = [a + b for a, b in zip(before, amounts, strict=True)]
        return part.number, 0

    # Between shards

    def _prepare(self, command: Prepare, at: Position) -> None:
        if command.origin in self.prepared:
            return
        part = self._new(command.transaction, False, at)
        part.home_shard_id = command.home_shard_id
        self.prepared[command.origin] = part

    def _execute_block(
        self, block: PrepareTransfers | CommitTransfers | ApplyTransfers, at: Position
    ) -> None:
        """Do a step of many transfers, one after the other."""
        if isinstance(block, ApplyTransfers):
            homes, numbers = _numbers(block.first_accounts), _numbers(block.numbers)
            for place, (home, number, status) in enumerate(
                zip(homes, numbers, block.statuses, strict=True)
            ):
                origin = block.request_ids[16 * place : 16 * place + 16] + b"a" + home.to_bytes(8)
                self._apply_decision(ApplyDecision(0, origin, number, S(status), ""), at)
            return
        for place, (command, peer) in enumerate(_transfers(block, self.shard_id)):
            origin = key_of(command)
            if isinstance(block, PrepareTransfers):
                self._prepare(Prepare(0, origin, b"", peer, command), at)
            elif origin not in self.outcomes:
                number = self._commit(command, peer, block.refused.get(place), at)
                self.outcomes[origin], self.places[origin] = (number, 0), at

    def _commit(
        self, command: CreateTransaction, peer: int, vote: Refused | None, at: Position
    ) -> int:
        """Begin and decide in one: what the home itself refuses comes first."""
        money = [(command.account_id, signed(command.entries[0]))]
        status = self._refusal(money, nets=True) or _refusal_by(vote) or S.SETTLED
        if status is S.SETTLED:
            self.settled[command.account_id] += money[0][1]
        part = Part(len(self.parts) + 1, command.entries, money, True, [status], [at], [peer])
        self.parts.append(part)
        self.origins[part.number] = key_of(command)
        if status is S.SETTLED:
            self.committed.append((key_of(command), part))
            self._check_floors(part, at)
        return part.number

    def _decide(self, command: Decide, at: Position) -> None:
        part = self._part(command.number)
        if part.status is not S.UNDECIDED:
            return
        votes = {vote.shard_id: vote.refused for vote in command.votes}
        refusals: list[tuple[int, TransactionStatus]] = []
        shards = [entry.shard_id for entry in part.entries]
        for shard_id in part.participants:
            if shard_id not in votes:
                refusals.append((shards.index(shard_id), S.REJECTED))
            elif (status := _refusal_by(votes[shard_id])) is not None:
                refused = votes[shard_id]
                assert refused is not None
                refusals.append((refused.entry_index, status))
        if not refusals:
            self.committed.append((self.origins[part.number], part))
            self._become(part, S.SETTLED if part.settled else S.PENDING, at)
            return
        self._become(part, min(refusals)[1], at)
        if part.reversal_of:
            original = self._part(part.reversal_of)
            pairs = zip(original.reversed, part.reversal_amounts, strict=True)
            original.reversed = [done - amount for done, amount in pairs]

    def _apply_decision(self, command: ApplyDecision, at: Position) -> None:
        self.told.append((command.origin, command.status, command.settled_amount))
        part = self.prepared.setdefault(command.origin, None)
        if part is None:
            require(command.status.is_refusal, f"{command.status.name} without a vote at {at}")
        elif part.status is S.UNDECIDED or (
            part.status is S.PENDING and command.status is not S.PENDING
        ):
            self._become(part, command.status, at, command.settled_amount)

    def _resolve(self, command: Resolve, at: Position) -> None:
        prepared = command.prepared
        if prepared.origin in self.outcomes:
            return
        entries = prepared.transaction.entries
        part = Part(
            len(self.parts) + 1, entries, [], prepared.transaction.settled, [S.REJECTED], [at], []
        )
        part.participants = sorted({entry.shard_id for entry in entries} - {self.shard_id})
        part.abandoned = True
        self.parts.append(part)
        self.origins[part.number] = prepared.origin
        self.outcomes[prepared.origin] = (part.number, 0)
        self.places[prepared.origin] = at


# Columns of blocks, little-endian


def _numbers(column: bytes) -> list[int]:
    return [number for (number,) in struct.iter_unpack("<Q", column)]


def _transfers(
    block: PrepareTransfers | CommitTransfers, shard_id: int
) -> Iterator[tuple[CreateTransaction, int]]:
    """Yield what was asked at home, and the other shard."""
    is_home = isinstance(block, CommitTransfers)
    peers = block.participant_shards if isinstance(block, CommitTransfers) else block.home_shards
    columns = zip(
        block.forms,
        _numbers(block.first_accounts),
        _numbers(block.second_accounts),
        _numbers(block.amounts),
        [peer for (peer,) in struct.iter_unpack("<H", peers)],
        strict=True,
    )
    for place, (form, first, second, amount, peer) in enumerate(columns):
        side = Direction(form)
        home, other = (shard_id, peer) if is_home else (peer, shard_id)
        request_id = str(uuid.UUID(bytes=block.request_ids[16 * place : 16 * place + 16]))
        entries = [
            Entry(first, side, amount, block.currency, home),
            Entry(second, side.opposite, amount, block.currency, other),
        ]
        yield CreateTransaction(first, 0, "", True, request_id, entries), peer


def _refusal_by(vote: Refused | None) -> TransactionStatus | None:
    if vote is None:
        return None
    of_funds = vote.reason is RefusalReason.INSUFFICIENT_FUNDS
    return S.INSUFFICIENT_FUNDS if of_funds else S.REJECTED

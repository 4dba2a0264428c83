"""The coordinator of a node: carries transactions across shards to their end. Sans-I/O.

It keeps nothing that matters. What is to be done stands in the shards' tables (`in_flight` at the
home, `undecided` at a participant), so whoever leads a shard next goes on where the last one
stopped. Every step may be done twice. The steps and why they are safe: `commit_rules`.

At the home of a transaction it asks the participants to prepare (as soon as the command comes in,
while the home's own Begin is still on its way through Raft: one round for both), decides once all
have voted or their time is over, tells them, and notes that they were told. At a participant that
hears nothing it asks the home.

Blocks of transfers are driven by their gateway. What it has not brought to its end after some time
is taken up here, as is all that a new leader finds: a bounded number at a time (`backlog`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from ledger_core.accounts import TransactionStatus
from ledger_core.commands import (
    ApplyDecision,
    Command,
    CreateTransaction,
    Decide,
    Delivered,
    Prepare,
    Resolve,
    Vote,
    body_hash,
)
from ledger_core.ids import transaction_request_key
from ledger_core.results import Done, Result, TransactionView, VoteView, refused_by
from ledger_node.backlog import Backlog
from ledger_node.prepared import find_prepared
from ledger_node.records import ParticipantRecord, TransactionRecord
from ledger_node.store import ShardTables
from ledger_node.transaction_rules import routing_ids

# A participant that cannot be asked for so long counts as a no.
VOTE_S_MAX = 4.0
# A participant asks the home after so long without a decision.
ASK_AFTER_S = 2.0
RETRY_S_MIN, RETRY_S_MAX = 0.1, 1.0
# A gateway has so long for the transfers of a block before leaders take them up. It is more than a
# busy cluster takes: who asks too early makes a home refuse what is about to be committed.
GATEWAY_S_MAX = 5.0
# So many transactions are taken up at a time, at homes and at participants, and in one go.
TAKEN_UP_MAX = 500
TAKEN_UP_AT_ONCE = 250
# Votes that came before their Begin was applied are kept for so long, and so many of them.
EARLY_S_MAX = 10.0
EARLY_MAX = 10_000

Reply = Callable[[Result | None], None]
"""Takes the result of a command, or None where it is unknown whether it was done."""


@dataclass(frozen=True, slots=True)
class ShardCall:
    """A command for another shard. The host sends it, and calls ``done`` before a later turn."""

    shard_id: int
    command: Command
    done: Reply


@dataclass(slots=True)
class _Errand:
    """Something that a participant has to be asked or told, until it has answered."""

    under_way: bool = False
    retry_at: float = 0.0
    retry_s: float = RETRY_S_MIN


@dataclass(slots=True)
class _Early:
    """Votes of participants that were asked before the Begin was applied."""

    since: float
    votes: dict[int, Vote | None]
    """None while a participant has yet to answer."""


@dataclass(slots=True)
class _Homed:
    """A transaction whose home is led here."""

    since: float
    origin: bytes = b""
    state: int = -1
    errands: dict[int, _Errand] = field(default_factory=dict)
    votes: dict[int, Vote] = field(default_factory=dict)
    told: set[int] = field(default_factory=set)
    deciding: bool = False
    closing: bool = False
    waiting: list[Callable[[bool], None]] = field(default_factory=list)
    taken_up: bool = False
    """Whether it is of the backlog, of which a bounded number is carried on at a time."""

    def waits(self, now: float) -> bool:
        """Whether only an answer can bring it on, or more time."""
        if self.deciding or self.closing:
            return True
        if self.state < 0 and now - self.since > VOTE_S_MAX:
            return False
        errands = self.errands.values()
        return bool(errands) and all(one.under_way or now < one.retry_at for one in errands)


@dataclass(slots=True)
class _Prepared:
    """A transaction that a shard led here has prepared, and whose decision has not come."""

    ask_at: float
    asking: bool = False
    taken_up: bool = False


@dataclass(slots=True)
class _Led:
    """What is to be taken up on a shard that is led here."""

    in_flight: Backlog = field(default_factory=Backlog)
    undecided: Backlog = field(default_factory=Backlog)

    @property
    def idle(self) -> bool:
        return self.in_flight.idle and self.undecided.idle


class Coordinator:
    """Carries on the transactions across shards of the shards that this node leads.

    ``propose`` puts a command into the log of a shard that is led here. ``tables`` gives the
    committed tables of a shard. Both are used within a turn only.
    """

    def __init__(
        self,
        propose: Callable[[int, Command, Reply], None],
        tables: Callable[[int], ShardTables],
    ) -> None:
        self._propose = propose
        self._tables = tables
        self._now = 0.0
        self._calls: list[ShardCall] = []
        self._led: dict[int, _Led] = {}
        self._homed: dict[tuple[int, int], _Homed] = {}
        self._prepared: dict[tuple[int, int], _Prepared] = {}
        self._early: dict[bytes, _Early] = {}
        self._by_origin: dict[bytes, tuple[int, int]] = {}
        # How many of them are taken up from the backlog.
        self._taken_up_homed = 0
        self._taken_up_prepared = 0

    def take_calls(self) -> list[ShardCall]:
        """Return the commands for other shards that are to be sent now."""
        calls, self._calls = self._calls, []
        return calls

    @property
    def idle(self) -> bool:
        """Whether there is nothing that time could change."""
        return not (self._homed or self._prepared or self._early) and all(
            led.idle for led in self._led.values()
        )

    # Events

    def lead(self, shard_id: int, now: float) -> None:
        """This node leads a shard from now on: take up all that its tables say is unfinished.

        Not while a journal is being imported: `StateMachine.take_unfinished` tells when that ends.
        """
        self._now = now
        led = self._led[shard_id] = _Led()
        meta = self._tables(shard_id).meta()
        if meta.importing:
            return
        led.in_flight.add(1, meta.next_transaction - 1, now, 0.0)
        led.undecided.add(1, meta.next_transaction - 1, now, GATEWAY_S_MAX)
        self._take_up(shard_id, led)

    def lose(self, shard_id: int) -> None:
        """Another node leads a shard, or will: forget it, and send away who waits."""
        if self._led.pop(shard_id, None) is None:
            return
        for key in [key for key in self._homed if key[0] == shard_id]:
            self._forget(*key, led=False)
        for key in [key for key in self._prepared if key[0] == shard_id]:
            self._forget_prepared(key)

    def begin(self, home_shard_id: int, command: CreateTransaction, now: float) -> None:
        """Ask the participants of a transaction that is about to be proposed at its home."""
        if home_shard_id not in self._led or len(self._early) >= EARLY_MAX:
            # Not led any more: nobody may be asked for what will not be proposed. Not yet, or too
            # many: they are asked once the Begin is applied.
            return
        origin = transaction_request_key(command.account_id, command.request_id)
        if origin in self._early:
            return
        prepare = Prepare(0, origin, body_hash(command), home_shard_id, command)
        self._early[origin] = early = _Early(now, {})
        for shard_id, routing_id in routing_ids(command.entries).items():
            if shard_id == home_shard_id:
                continue
            early.votes[shard_id] = None

            def done(result: Result | None, shard_id: int = shard_id) -> None:
                if isinstance(result, VoteView):
                    early.votes[shard_id] = Vote(shard_id, result.refused)
                else:
                    early.votes.pop(shard_id, None)
                self._drive_origin(origin)

            self._call(shard_id, msgspec.structs.replace(prepare, routing_id=routing_id), done)

    def unfinished(
        self, shard_id: int, in_flight: list[int], undecided: list[int], now: float
    ) -> None:
        """Take up what log entries have left open on a shard that is led here."""
        self._now = now
        for number in in_flight:
            self._homed.setdefault((shard_id, number), _Homed(now))
            self._drive(shard_id, number)
        for number in undecided:
            self._prepared.setdefault((shard_id, number), _Prepared(now + ASK_AFTER_S))

    def unfinished_later(
        self, shard_id: int, in_flight: Sequence[int], undecided: Sequence[int], now: float
    ) -> None:
        """Note what a gateway is about to finish on a shard that is led here."""
        led = self._led[shard_id]
        for numbers, backlog in ((in_flight, led.in_flight), (undecided, led.undecided)):
            if numbers:
                backlog.add(min(numbers), max(numbers), now, GATEWAY_S_MAX)

    def await_delivery(self, shard_id: int, number: int, done: Callable[[bool], None]) -> None:
        """Call ``done(True)`` once all participants have applied what is in flight.

        ``done(False)``: this node does not lead the shard, or leads it no more.
        """
        if shard_id not in self._led:
            done(False)
            return
        tables = self._tables(shard_id)
        homed = self._homed.get((shard_id, number))
        if tables.find_in_flight(number) is None or (homed is None and tables.meta().importing):
            done(True)
        elif homed is not None:
            homed.waiting.append(done)
        else:
            # Its gateway may still be at it, but here is someone who waits.
            self._homed[shard_id, number] = _Homed(self._now, waiting=[done])
            self._drive(shard_id, number)

    def tick(self, now: float) -> None:
        """Let time pass: try again, give up on votes, ask homes."""
        self._now = now
        for shard_id, led in self._led.items():
            self._take_up(shard_id, led)
        for (shard_id, number), homed in list(self._homed.items()):
            if not homed.waits(now):
                self._drive(shard_id, number)
        for key, prepared in list(self._prepared.items()):
            if not prepared.asking and now >= prepared.ask_at:
                self._ask_home(*key, prepared)
        for origin in [o for o, early in self._early.items() if now - early.since > EARLY_S_MAX]:
            del self._early[origin]

    # The backlog

    def _take_up(self, shard_id: int, led: _Led) -> None:
        """Take up some of what is due, as far as there is room."""
        tables = self._tables(shard_id)
        for key in _some_of(led.in_flight, tables.in_flight_numbers, self._now, self._room_homed):
            if (shard_id, key) not in self._homed:
                self._homed[shard_id, key] = _Homed(self._now, taken_up=True)
                self._taken_up_homed += 1
                self._drive(shard_id, key)
        for key in _some_of(
            led.undecided, tables.undecided_numbers, self._now, self._room_prepared
        ):
            if (shard_id, key) not in self._prepared:
                self._prepared[shard_id, key] = _Prepared(self._now, taken_up=True)
                self._taken_up_prepared += 1

    @property
    def _room_homed(self) -> int:
        return TAKEN_UP_MAX - self._taken_up_homed

    @property
    def _room_prepared(self) -> int:
        return TAKEN_UP_MAX - self._taken_up_prepared

    def _put_back(self, shard_id: int, number: int, homed: _Homed) -> bool:
        """Let go of one whose participant cannot be reached, if others wait for their turn."""
        led = self._led.get(shard_id)
        if led is None or self._room_homed > 0 or not homed.taken_up or homed.waiting:
            return False
        if homed.state < 0:
            return False  # it is decided when the time for its votes is over
        self._forget(shard_id, number, led=True)
        led.in_flight.add_again(self._now + RETRY_S_MAX)
        return True

    # At the home

    def _drive_origin(self, origin: bytes) -> None:
        """A vote came in: go on with its transaction, if its Begin is applied."""
        if (key := self._by_origin.get(origin)) is not None:
            self._drive(*key)

    def _drive(self, shard_id: int, number: int) -> None:
        """Do what is to be done next for a transaction, as its home's tables say."""
        homed = self._homed.get((shard_id, number))
        if homed is None or shard_id not in self._led:
            return
        tables = self._tables(shard_id)
        record = tables.find_transaction(number)
        assert record is not None, "what is in flight is recorded"
        in_flight = tables.find_in_flight(number)
        if in_flight is None:
            if record.status.is_refusal:
                self._call_off(number, record)
            self._forget(shard_id, number, led=True)
        elif in_flight.prepare is not None:
            homed.origin = in_flight.prepare.origin
            self._by_origin[homed.origin] = (shard_id, number)
            self._collect_votes(shard_id, number, homed, record, in_flight.prepare)
        else:
            if homed.state != in_flight.state:
                homed.state, homed.errands, homed.told = in_flight.state, {}, set()
                homed.closing = False
            self._tell(shard_id, number, homed, record)

    def _collect_votes(
        self,
        shard_id: int,
        number: int,
        homed: _Homed,
        record: TransactionRecord,
        prepare: Prepare,
    ) -> None:
        early = self._early.get(prepare.origin)
        if early is not None:
            homed.votes |= {v.shard_id: v for v in early.votes.values() if v is not None}
        for participant in record.participants:
            if participant.shard_id in homed.votes:
                continue
            if early is not None and participant.shard_id in early.votes:
                continue  # asked already, the answer is on its way

            def done(result: Result | None, participant: ParticipantRecord = participant) -> None:
                if isinstance(result, VoteView):
                    vote = Vote(participant.shard_id, result.refused)
                    homed.votes[participant.shard_id] = vote
                self._answered(shard_id, number, participant.shard_id, result)

            asked = msgspec.structs.replace(prepare, routing_id=participant.routing_id)
            self._send(homed, participant.shard_id, asked, done)
        complete = all(p.shard_id in homed.votes for p in record.participants)
        refused = any(vote.refused is not None for vote in homed.votes.values())
        if (complete or refused or self._now - homed.since > VOTE_S_MAX) and not homed.deciding:
            homed.deciding = True
            command = Decide(record.account_id, number, list(homed.votes.values()))

            def decided(result: Result | None) -> None:
                homed.deciding = False
                if result is not None:  # else the next tick tries again
                    self._early.pop(prepare.origin, None)
                    self._drive(shard_id, number)

            self._propose(shard_id, command, decided)

    def _tell(self, shard_id: int, number: int, homed: _Homed, record: TransactionRecord) -> None:
        decision = ApplyDecision(
            0,
            record.origin,
            number,
            record.status,
            record.states[-1].request_id,
            record.settled_amount,
            record.refusal,
        )
        for participant in record.participants:
            if participant.shard_id in homed.told:
                continue

            def done(
                result: Result | None, place: int = participant.shard_id, state: int = homed.state
            ) -> None:
                if isinstance(result, Done) and homed.state == state:
                    homed.told.add(place)
                self._answered(shard_id, number, place, result)

            told = msgspec.structs.replace(decision, routing_id=participant.routing_id)
            self._send(homed, participant.shard_id, told, done)
        if len(homed.told) == len(record.participants) and not homed.closing:
            homed.closing = True
            for waiting in homed.waiting:
                waiting(True)
            homed.waiting.clear()
            command = Delivered(record.account_id, number, homed.state)

            def closed(result: Result | None) -> None:
                homed.closing = False
                if result is not None:  # else the next tick tries again
                    self._drive(shard_id, number)

            self._propose(shard_id, command, closed)

    def _call_off(self, number: int, record: TransactionRecord) -> None:
        """Tell participants that were asked early of a refusal by the home itself.

        Once and without regard to success: who misses it will ask.
        """
        if self._early.pop(record.origin, None) is None:
            return
        for participant in record.participants:
            command = ApplyDecision(
                participant.routing_id,
                record.origin,
                number,
                record.status,
                record.states[-1].request_id,
                0,
                record.refusal,
            )
            self._call(participant.shard_id, command, lambda _result: None)

    def _forget(self, shard_id: int, number: int, *, led: bool) -> None:
        """Let go of a transaction, and of who waits for it."""
        homed = self._homed.pop((shard_id, number), None)
        if homed is not None:
            self._taken_up_homed -= homed.taken_up
            self._by_origin.pop(homed.origin, None)
            for waiting in homed.waiting:
                waiting(led)

    # At a participant

    def _ask_home(self, shard_id: int, number: int, prepared: _Prepared) -> None:
        prepare = find_prepared(self._tables(shard_id), shard_id, number)
        if prepare is None:
            self._forget_prepared((shard_id, number))
            return
        prepared.asking = True

        def done(result: Result | None) -> None:
            prepared.asking = False
            prepared.ask_at = self._now + RETRY_S_MAX
            if shard_id not in self._led:
                return
            if not isinstance(result, TransactionView):
                if prepared.taken_up and self._room_prepared <= 0:
                    # Others wait for their turn, and their homes may answer.
                    self._forget_prepared((shard_id, number))
                    self._led[shard_id].undecided.add_again(prepared.ask_at)
            elif result.status is not TransactionStatus.UNDECIDED:
                decision = ApplyDecision(
                    prepare.routing_id or prepare.transaction.account_id,
                    prepare.origin,
                    result.number,
                    result.status,
                    result.request_id,
                    result.settled_amount,
                    refused_by(result.refusal) if result.refusal else None,
                )
                self._propose(shard_id, decision, lambda _result: None)

        self._call(prepare.home_shard_id, Resolve(prepare), done)

    def _forget_prepared(self, key: tuple[int, int]) -> None:
        prepared = self._prepared.pop(key, None)
        if prepared is not None:
            self._taken_up_prepared -= prepared.taken_up

    # Errands

    def _send(self, homed: _Homed, shard_id: int, command: Command, done: Reply) -> None:
        """Send a command to a participant, unless one is under way or was sent just now."""
        errand = homed.errands.setdefault(shard_id, _Errand())
        if errand.under_way or self._now < errand.retry_at:
            return
        errand.under_way = True
        self._call(shard_id, command, done)

    def _answered(self, shard_id: int, number: int, place: int, result: Result | None) -> None:
        homed = self._homed.get((shard_id, number))
        if homed is None:
            return
        errand = homed.errands.get(place)
        if errand is not None:
            errand.under_way = False
            if result is None:
                errand.retry_at = self._now + errand.retry_s
                errand.retry_s = min(2 * errand.retry_s, RETRY_S_MAX)
                if self._put_back(shard_id, number, homed):
                    return
        self._drive(shard_id, number)

    def _call(self, shard_id: int, command: Command, done: Reply) -> None:
        self._calls.append(ShardCall(shard_id, command, done))


def _some_of(
    backlog: Backlog, numbers: Callable[[int, int, int], list[int]], now: float, room: int
) -> list[int]:
    """Return the next numbers of a backlog that stand in its table."""
    limit = min(room, TAKEN_UP_AT_ONCE)
    due = backlog.due(now)
    if due is None or limit <= 0:
        return []
    found = numbers(*due, limit)
    backlog.looked_at(found[-1] if len(found) == limit else due[1])
    return found

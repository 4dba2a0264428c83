"""Where the journals of all shards can be cut so that the parts belong together.

Shards journal each for itself. If an export took each one as far as it happened to be, it could
have a decision without the votes that it rests on, or an account without its ledger. So it takes no
entry whose cause it does not take: a *consistent cut* (Chandy and Lamport: Distributed Snapshots,
1985).

The cut is found from three looks at how far the shards are. What has happened by the second look
was caused by what had happened when that one ended, so the third look knows all of it; and only
what came after the first look can lack a cause in the second one. So only the entries between the
first look and the third are looked at, and those shortly before, which tell what is begun. The cut
never lies before the first look, if each thing is said to rest on nothing but its true causes:
else one thing that is left out drags ever more with it. Where that happens, looks are taken anew.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count

import msgspec

from ledger.v1 import journal_pb2
from ledger_cli.export_check import shard_key
from ledger_client.journal import JournalClient
from ledger_core import commands
from ledger_core.accounts import TransactionStatus
from ledger_core.ids import request_key, transaction_request_key
from ledger_core.transfer_legs import u16_column, u64_column

# So many entries of each shard before the first look are looked at, too.
LOOK_BACK = 200
ATTEMPTS = 10

Token = tuple[Hashable, ...]
"""Something that happened on one shard, and that what happens on another one may rest on."""

_ONCE = ("decided", "ended", "prepared", "applied", "applied the end")
_DECIDED_ONLY = (
    TransactionStatus.PENDING,
    TransactionStatus.INSUFFICIENT_FUNDS,
    TransactionStatus.REJECTED,
)


@dataclass(frozen=True)
class Event:
    """A journal entry: what others may rest on, and what it rests on itself."""

    number: int
    produces: frozenset[Token]
    requires: frozenset[Token]


class NoCutError(Exception):
    """The shards could not be caught at a moment that belongs together."""


def consistent_cut(client: JournalClient, ledger: str = "") -> list[journal_pb2.JournalShard]:
    """Return the shards, each with the number of the last entry that is to be exported."""
    for _ in range(ATTEMPTS):
        if shards := _try_to_cut(client, ledger):
            return shards
    raise NoCutError(
        f"{ATTEMPTS} times no cut was found at which the journals of all shards belong together; "
        f"export again when less is being written"
    )


def _try_to_cut(client: JournalClient, ledger: str) -> list[journal_pb2.JournalShard]:
    """Return the shards with the numbers of a cut, or nothing where none was found."""
    first, second, third = (client.list_shards() for _ in range(3))
    reached = {shard.shard_id: shard.last_number for shard in second}
    if second != third:
        window: dict[int, list[journal_pb2.JournalEntry]] = {
            before.shard_id: list(
                client.list_journal(
                    before.shard_id,
                    max(0, before.last_number - LOOK_BACK),
                    after.last_number,
                    ledger,
                )
            )
            for before, after in zip(first, third, strict=True)
        }
        reached = close(events(window, Ranges(second)), reached)
    if any(reached[shard.shard_id] < shard.last_number for shard in first):
        return []
    for shard in second:
        shard.last_number = reached[shard.shard_id]
    return second


def close(journals: Mapping[int, list[Event]], reached: Mapping[int, int]) -> dict[int, int]:
    """Take entries off the ends of the journals until none rests on what is not taken."""
    cut = dict(reached)
    while True:
        outside: dict[Token, set[int]] = {}
        for shard_id, journal in journals.items():
            for event in journal:
                if event.number > cut[shard_id]:
                    for token in event.produces:
                        outside.setdefault(token, set()).add(shard_id)
        shorter = dict(cut)
        for shard_id, journal in journals.items():
            for event in journal:
                if event.number > cut[shard_id]:
                    break
                # What a shard does rests on its own past in any case.
                if any(outside.get(token, set()) - {shard_id} for token in event.requires):
                    shorter[shard_id] = event.number - 1
                    break
        if shorter == cut:
            return cut
        cut = shorter


class Ranges:
    """Finds the shard of an account."""

    def __init__(self, shards: Iterable[journal_pb2.JournalShard]) -> None:
        self._shards = list(shards)

    def shard_of(self, account_id: int) -> int:
        """Return the shard of an account; -1 if there is none."""
        key = shard_key(account_id)
        for shard in self._shards:
            if shard.lower_bound <= key <= shard.upper_bound:
                return shard.shard_id
        return -1


def events(
    journals: Mapping[int, Iterable[journal_pb2.JournalEntry]], ranges: Ranges
) -> dict[int, list[Event]]:
    """Say of journal entries what they rest on. Hidden items of other ledgers say nothing."""
    shown = {
        shard_id: [
            (entry.number, [item for item in entry.items if not item.hidden]) for entry in journal
        ]
        for shard_id, journal in journals.items()
    }
    known = _Known(ranges)
    for shard_id, journal in shown.items():
        for item in chain.from_iterable(items for _, items in journal):
            known.note(shard_id, item)
    found: dict[int, list[Event]] = {}
    for shard_id, journal in shown.items():
        found[shard_id] = []
        before: set[Token] = set()
        for number, items in journal:
            steps = [_Step(shard_id, item, known) for item in items]
            produced = {token for step in steps for token in step.produces()}
            # What is done again when its answer was lost is no cause of anything.
            repeated = {token for token in produced & before if token[0] in _ONCE}
            before |= produced
            found[shard_id].append(
                Event(
                    number,
                    frozenset(produced - repeated),
                    frozenset(token for step in steps for token in step.requires()),
                )
            )
    return found


class _Known:
    """What items tell about others: how transactions were begun."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges
        self._origins: dict[tuple[int, int], bytes] = {}
        self._at_once: dict[bytes, bool] = {}

    def note(self, shard_id: int, item: journal_pb2.JournalItem) -> None:
        """Take in an item."""
        if not item.number:
            return
        if (origin := _begun(item)) is not None:
            self._origins[shard_id, item.number] = origin
        command = _decode(item)
        if isinstance(command, commands.Prepare):
            self._at_once[command.origin] = command.transaction.settled
        if isinstance(command, commands.PrepareTransfers):
            self._at_once.update(dict.fromkeys(_origins(command), True))

    def origin(self, shard_id: int, number: int) -> bytes | None:
        """Return what other shards know a transaction by, if it was begun lately."""
        return self._origins.get((shard_id, number))

    def home_of(self, origin: bytes) -> int:
        """Return the home's shard: the account id stands behind the request and one letter."""
        return self._ranges.shard_of(int.from_bytes(origin[17:25]))

    def is_first(self, decision: commands.ApplyDecision) -> bool:
        """Whether a decision is that of the vote, not a later end of a pending transaction."""
        if decision.status is not TransactionStatus.SETTLED:
            return decision.status in _DECIDED_ONLY
        by_request = request_key(decision.request_id) == decision.origin[:16]
        return self._at_once.get(decision.origin, by_request)


def _begun(item: journal_pb2.JournalItem) -> bytes | None:
    """Return the origin of a transaction that an item records: what other shards know it by."""
    command = _decode(item)
    match command:
        case commands.CreateTransaction():
            return transaction_request_key(command.account_id, command.request_id)
        case commands.ReverseTransaction():
            home = command.account_id.to_bytes(8) + command.number.to_bytes(8)
            return request_key(command.request_id) + b"t" + home
        case commands.Resolve():
            return command.prepared.origin
    return None


def _origins(
    block: commands.PrepareTransfers | commands.CommitTransfers | commands.ApplyTransfers,
) -> list[bytes]:
    """Return by what other shards know the transfers of a block."""
    raw, homes = block.request_ids, u64_column(block.first_accounts).tolist()
    return [
        raw[16 * place : 16 * place + 16] + b"a" + home.to_bytes(8)
        for place, home in enumerate(homes)
    ]


def _taken(first_number: int, statuses: bytes) -> Iterator[tuple[int, int]]:
    """Yield (place, number) of the transfers of a block that became transactions."""
    places = [place for place, status in enumerate(statuses) if status]
    return zip(places, count(first_number), strict=False)


def _decode(item: journal_pb2.JournalItem) -> commands.Command | None:
    return commands.decode_command(item.command) if item.command else None


class _Step:
    """An item of a journal: what it is the cause of elsewhere, and its causes elsewhere."""

    def __init__(
        self,
        shard_id: int,
        item: journal_pb2.JournalItem,
        known: _Known,
    ) -> None:
        self._shard_id = shard_id
        self._item = item
        self._known = known
        self._command = _decode(item)
        self._outcome = msgspec.msgpack.decode(item.outcome)
        self._done = self._outcome == "done" or isinstance(self._outcome, list)

    def produces(self) -> Iterator[Token]:
        """Yield what other shards may go on from."""
        command, item, shard_id = self._command, self._item, self._shard_id
        match command:
            case None:
                yield "ended", shard_id, self._outcome[0]
            case commands.CreateTransaction() | commands.ReverseTransaction() | commands.Resolve():
                if item.number:
                    yield "decided", shard_id, item.number
            case commands.Decide():
                yield "decided", shard_id, command.number
            case commands.SettleTransaction() | commands.CancelTransaction():
                if item.rows:
                    yield "ended", shard_id, command.number
            case commands.Prepare():
                if item.number:
                    yield "prepared", shard_id, command.origin
                    yield "prepared for", shard_id, command.transaction.account_id
            case commands.ApplyDecision():
                what = "applied" if self._known.is_first(command) else "applied the end"
                yield what, self._known.home_of(command.origin), command.number
            case (
                commands.PrepareTransfers() | commands.CommitTransfers() | commands.ApplyTransfers()
            ):
                yield from self._made_by_block(command)
            case _ if self._done:
                yield from _made(command)

    def _made_by_block(
        self,
        block: commands.PrepareTransfers | commands.CommitTransfers | commands.ApplyTransfers,
    ) -> Iterator[Token]:
        match block:
            case commands.PrepareTransfers() if self._item.number:
                for origin in _origins(block):
                    yield "prepared", self._shard_id, origin
            case commands.CommitTransfers():
                for _, number in _taken(*self._outcome):
                    yield "decided", self._shard_id, number
            case commands.ApplyTransfers():
                for origin, number in zip(_origins(block), self._numbers(block), strict=True):
                    yield "applied", self._known.home_of(origin), number

    def _needed_by_block(
        self,
        block: commands.CommitTransfers | commands.ApplyTransfers | commands.DeliveredTransfers,
    ) -> Iterator[Token]:
        match block:
            case commands.CommitTransfers():
                origins, shards = _origins(block), u16_column(block.participant_shards).tolist()
                for place, _ in _taken(*self._outcome):
                    if place not in block.refused:
                        yield "prepared", shards[place], origins[place]
            case commands.ApplyTransfers():
                for origin, number in zip(_origins(block), self._numbers(block), strict=True):
                    yield "decided", self._known.home_of(origin), number
            case commands.DeliveredTransfers():
                for number in self._numbers(block):
                    yield "applied", self._shard_id, number

    @staticmethod
    def _numbers(block: commands.ApplyTransfers | commands.DeliveredTransfers) -> list[int]:
        numbers: list[int] = u64_column(block.numbers).tolist()
        return numbers

    def requires(self) -> Iterator[Token]:
        """Yield what other shards must have done before."""
        command = self._command
        match command:
            case commands.CreateTransaction():
                for entry in command.entries:
                    yield "account", entry.account_id
            case commands.Decide():
                origin = self._known.origin(self._shard_id, command.number)
                for vote in command.votes:
                    if vote.refused is None and origin is not None:
                        yield "prepared", vote.shard_id, origin
                    elif vote.refused is None:
                        # It was begun long ago: any transaction of the account may be this one.
                        yield "prepared for", vote.shard_id, command.account_id
            case commands.ApplyDecision():
                what = "decided" if self._known.is_first(command) else "ended"
                yield what, self._known.home_of(command.origin), command.number
            case commands.Delivered():
                what = "applied" if command.state <= 1 else "applied the end"
                yield what, self._shard_id, command.number
            case (
                commands.CommitTransfers()
                | commands.ApplyTransfers()
                | commands.DeliveredTransfers()
            ):
                yield from self._needed_by_block(command)
            case _:
                yield from _needed(command)


def _made(command: commands.Command | None) -> Iterator[Token]:
    match command:
        case commands.CreateAccount():
            yield "account", command.account_id
        case commands.UpdateAccount() if command.name is not None:
            yield "renamed", command.account_id
        case commands.ClaimName():
            yield "name", command.name, command.account_id
        case commands.CreateLedger() | commands.ExtendLedger():
            if isinstance(command, commands.CreateLedger):
                yield "ledger", command.name
            for currency in command.currencies:
                yield "currency", command.name, currency.code
            for line in command.chart:
                yield "line", command.name, line.code


def _needed(command: commands.Command | None) -> Iterator[Token]:
    match command:
        case commands.CreateAccount():
            yield "ledger", command.ledger
            yield "currency", command.ledger, command.currency.code
            for end in range(1, len(command.code) + 1):
                yield "line", command.ledger, command.code[:end]
            yield "name", command.name, command.account_id
        case commands.UpdateAccount():
            yield "name", command.name, command.account_id
        case commands.ReleaseName():
            yield "renamed", command.account_id

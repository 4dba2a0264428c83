"""How a gateway takes transfers between two shards to their end: rounds of blocks, and its death.

A round is one command for every shard concerned; the next one begins when all have answered or the
time is over. A gateway may die after any round: then leaders finish what it has begun, and callers
do not know.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from ledger_core.accounts import TransactionStatus
from ledger_core.commands import Command, CreateTransaction, Refused, encode_command
from ledger_core.errors import RefusalReason
from ledger_core.results import (
    Done,
    EntryView,
    Failure,
    RefusalView,
    TransactionView,
    TransfersView,
    TransferVotesView,
)
from ledger_core.transfer_legs import u64_column
from tests.node.leg_blocks import (
    apply_block,
    commit_block,
    delivered_block,
    home_of,
    participant_of,
    prepare_block,
)
from tests.simulation.engine import Engine, require
from tests.simulation.gateway import Answer, End, Gateway, Kind

S = TransactionStatus


class Rounds(Enum):
    """After which round the gateway dies."""

    PREPARED = "prepared"
    COMMITTED = "committed"
    APPLIED = "applied"
    ALL = "all"


@dataclass(slots=True, eq=False)
class Item:
    """A transfer, and who waits for it."""

    command: CreateTransaction
    done: Callable[[Answer], None]
    refused: Refused | None = None
    prepared: int = 0
    """The number at its participant, where the vote told it."""
    view: TransactionView | None = None
    index: int = 0
    ended: bool = False

    def end(self, answer: Answer) -> None:
        """Answer the caller, once."""
        if not self.ended:
            self.ended = True
            self.done(answer)


class Blocks:
    """Transfers that share their rounds."""

    def __init__(
        self,
        engine: Engine,
        gateway: Gateway,
        rng: random.Random,
        items: Sequence[Item],
        timeout_s: float,
        dies: Rounds = Rounds.ALL,
    ) -> None:
        self._engine = engine
        self._gateway = gateway
        self._rng = rng
        self._items = list(items)
        self._deadline = engine.now + timeout_s
        self._dies = dies

    def start(self) -> None:
        """Ask the participants."""
        self._round(self._items, participant_of, prepare_block, self._voted, self._commit)

    def _voted(self, items: Sequence[Item], answer: Answer) -> None:
        votes = answer.result
        if answer.end is not End.OK:
            # A gateway may leave it at that, or tell the homes that this is a no.
            gives_up = self._may()
            for item in items:
                item.refused = Refused(1, reason=RefusalReason.SHARD_UNREACHABLE)
                if gives_up:
                    item.end(Answer(answer.end))
            return
        assert isinstance(votes, TransferVotesView), votes
        numbers = u64_column(votes.numbers).tolist() or [0] * len(items)
        for place, item in enumerate(items):
            item.refused = votes.refused.get(place)
            item.prepared = numbers[place]

    def _commit(self) -> None:
        if self._dead(Rounds.PREPARED):
            return

        def block(commands: Sequence[CreateTransaction]) -> Command:
            of = {item.command.request_id: item.refused for item in self._items}
            refusals = [of[command.request_id] for command in commands]
            refused = {place: why for place, why in enumerate(refusals) if why is not None}
            return commit_block(commands, refused)

        self._round(self._open(), home_of, block, self._decided, self._apply)

    def _decided(self, items: Sequence[Item], answer: Answer) -> None:
        if answer.end is not End.OK:
            for item in items:
                item.end(Answer(answer.end))
            return
        views = answer.result
        assert isinstance(views, TransfersView), views
        number = views.first_number
        for place, item in enumerate(items):
            item.index = answer.index
            if views.statuses[place]:
                status = S(views.statuses[place])
                refusal = views.refusals.get(place)
                item.view = _view(item.command, number, status, views.time_us, refusal)
                number += 1
                continue
            first = views.others[place]
            if isinstance(first, Failure):
                item.end(Answer(End.OK, first, answer.index))
            elif first.in_flight is not None and first.status is S.SETTLED and self._may():
                item.view = first  # its first gateway may be gone: go on in its place
            elif first.in_flight is not None:
                self._await(item, first, answer)
            else:
                item.end(Answer(End.OK, first, answer.index))

    def _await(self, item: Item, first: TransactionView, answer: Answer) -> None:
        """It came before under its request id, and is in flight: wait as a single call does."""
        told = Answer(End.OK, first, answer.index)
        item.ended = True
        self._gateway.await_delivery(home_of(item.command), told, self._deadline, item.done)

    def _apply(self) -> None:
        if self._dead(Rounds.COMMITTED):
            return

        def block(commands: Sequence[CreateTransaction]) -> Command:
            of = {item.command.request_id: item for item in self._items}
            views = [of[command.request_id].view for command in commands]
            known = [view for view in views if view is not None]
            assert len(known) == len(views)
            refused = {
                place: _refused(view.refusal)
                for place, view in enumerate(known)
                if view.refusal is not None
            }
            return apply_block(
                commands,
                [view.number for view in known],
                [view.status for view in known],
                refused,
                [of[command.request_id].prepared for command in commands],
            )

        self._round(self._open(), participant_of, block, self._applied, self._deliver)

    def _applied(self, items: Sequence[Item], answer: Answer) -> None:
        for item in items:
            if answer.end is End.OK:
                assert isinstance(answer.result, Done), answer.result
                item.end(Answer(End.OK, item.view, item.index))
            else:
                item.end(Answer(End.UNKNOWN))
                item.view = None

    def _deliver(self) -> None:
        if self._dead(Rounds.APPLIED):
            return
        settled = [item for item in self._items if item.view and item.view.status is S.SETTLED]

        def block(commands: Sequence[CreateTransaction]) -> Command:
            of = {item.command.request_id: item.view for item in settled}
            return delivered_block(commands, [of[c.request_id].number for c in commands])  # type: ignore[union-attr]

        self._round(settled, home_of, block, lambda _items, _answer: None, lambda: None)

    # Rounds

    def _may(self) -> bool:
        """Choose: gateways may do one or the other."""
        return self._rng.random() < 0.5

    def _open(self) -> list[Item]:
        return [item for item in self._items if not item.ended]

    def _dead(self, after: Rounds) -> bool:
        """Whether the gateway is gone by now: whoever waits does not know."""
        if self._dies is not after:
            return False
        self._engine.counts[f"gateway died: {after.value}"] += 1
        for item in self._open():
            item.end(Answer(End.UNKNOWN))
        return True

    def _round(
        self,
        items: Sequence[Item],
        shard_of: Callable[[CreateTransaction], int],
        block: Callable[[Sequence[CreateTransaction]], Command],
        done: Callable[[Sequence[Item], Answer], None],
        then: Callable[[], None],
    ) -> None:
        """Send every shard its block; go on once all have answered."""
        by_shard: dict[int, list[Item]] = {}
        for item in items:
            by_shard.setdefault(shard_of(item.command), []).append(item)
        left = len(by_shard)
        if not left:
            then()
            return

        def answered(some: Sequence[Item], answer: Answer) -> None:
            nonlocal left
            left -= 1
            done(some, answer)
            if not left:
                then()

        timeout_s = max(self._deadline - self._engine.now, 0.001)
        for shard_id, some in sorted(by_shard.items()):
            command = block([item.command for item in some])
            self._engine.counts[f"blocks: {type(command).__name__}"] += 1
            self._gateway.call(
                shard_id,
                Kind.EXECUTE,
                encode_command(command),
                timeout_s,
                lambda answer, some=some: answered(some, answer),
            )


def _view(
    command: CreateTransaction,
    number: int,
    status: TransactionStatus,
    time_us: int,
    refusal: RefusalView | None,
) -> TransactionView:
    """Show a new transfer as a single call would."""
    require(status in (S.SETTLED, S.INSUFFICIENT_FUNDS, S.REJECTED), f"committed as {status}")
    currency = command.entries[0].currency
    return TransactionView(
        account_id=command.account_id,
        number=number,
        amount=0,
        description=command.description,
        status=status,
        ledger=command.ledger,
        currency=currency.code,
        currency_exponent=currency.exponent,
        entries=[
            EntryView(e.account_id, e.direction, e.amount, e.currency.code, e.currency.exponent)
            for e in command.entries
        ],
        refusal=refusal,
        request_id=command.request_id,
        create_time_us=time_us,
        update_time_us=time_us,
        effective_time_us=time_us,
        external_reference=command.external_reference,
        metadata=command.metadata,
        actor=command.actor,
    )


def _refused(view: RefusalView) -> Refused:
    return Refused(
        view.entry_index,
        view.required_amount,
        view.available_amount,
        view.reserved_amount,
        RefusalReason(view.reason),
    )

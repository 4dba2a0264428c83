"""Transfers between two shards, many at once: the steps of the commit protocol as blocks.

1. `PrepareTransfers` at the participants, the shards of the second accounts: they reserve and vote;
2. `CommitTransfers` at the homes, the shards of the first accounts, with the votes: **the commit
   point**;
3. `ApplyTransfers` at the participants: what the transfers have become. Then the caller is
   answered, so that its next read of any of the accounts sees the result;
4. `DeliveredTransfers` at the homes, for which nobody waits.

Every step is one round for all items of a call, in lanes that it shares with other calls. Items
whose shards are quick do not wait for those whose shards are not: they go on in a wave of their
own. Participants hold money from their vote on and ask the home when they hear nothing, so what was
prepared goes on soon, and what was committed goes on though its caller may be gone. If this process
ends, the shards' leaders bring all of it to an end.
"""

import asyncio
import time
from collections import deque
from collections.abc import Coroutine, Iterator
from functools import partial

import numpy as np

from ledger_core.accounts import TransactionStatus
from ledger_core.commands import Refused
from ledger_core.errors import LedgerError, OutcomeUnknownError, ShardUnavailableError
from ledger_core.results import TransactionView, TransfersView, TransferVotesView, refused_by
from ledger_core.transfer_legs import u64_column
from ledger_core.transfers import TRANSFERS_PER_BLOCK_MAX
from ledger_gateway.block_kinds import (
    APPLY,
    COMMIT,
    DECIDED,
    DELIVERED,
    PREPARE,
    numbers_of,
    split_transfers,
)
from ledger_gateway.block_lanes import Answer, Lanes, Piece, Round, Rows, join_rows
from ledger_gateway.shard_calls import Deadline, ShardCalls
from ledger_gateway.transfer_columns import IndexArray
from ledger_gateway.transfer_pieces import PlacedTransfers, by_shard

WAVE_S = 0.25
"""Items go on to their next step without those that have taken so much longer. Well below the time
after which a participant asks the home."""

IN_WORK_ITEMS_MAX = 16_384
"""Of all calls together. With more at once, what is prepared would wait too long for its commit;
so others wait before that, while nothing is held for them."""

# What follows a vote, and has no part in what is asked: the bytes of an item, and of its refusal.
_DECIDED_BYTES = 33 + 64

_SETTLED, _UNDECIDED = TransactionStatus.SETTLED, TransactionStatus.UNDECIDED
_UNFINISHED = OutcomeUnknownError(
    "the transaction is decided and has not reached all its shards in time: repeat it with the "
    "same request id to know"
)

Committed = tuple[IndexArray, TransfersView]
"""Items of a call, and what their home made of them."""


class TransfersAcross:
    """The way of transfers between two shards."""

    def __init__(self, shards: ShardCalls, lanes: Lanes) -> None:
        self._shards = shards
        self._lanes = lanes
        self._places = _Places(IN_WORK_ITEMS_MAX)
        self._going_on: set[asyncio.Task[None]] = set()

    async def run(self, placed: PlacedTransfers, items: IndexArray, deadline: Deadline) -> None:
        """Do these items of a call; their outcomes are filled in."""
        taken = await self._places.take(len(items), deadline)
        try:
            await _Call(self, placed, deadline).prepare(items)
        finally:
            self._places.give_back(taken)

    async def end(self) -> None:
        """Wait until what was committed has reached its participants, within bounds."""
        while self._going_on:
            await asyncio.wait(self._going_on)
        await self._lanes.end()

    @property
    def shards(self) -> ShardCalls:
        """The shards, for what goes alone."""
        return self._shards

    @property
    def lanes(self) -> Lanes:
        """Where blocks wait."""
        return self._lanes

    def go_on(self, step: Coroutine[object, object, None]) -> "asyncio.Task[None]":
        """Do something to its end, whoever waits for it."""
        task = asyncio.create_task(step)
        self._going_on.add(task)
        task.add_done_callback(self._going_on.discard)
        return task


class _Places:
    """Bounds how many items are in work: calls wait for places in the order in which they came."""

    def __init__(self, places: int) -> None:
        self._all = self._free = places
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, count: int, deadline: Deadline) -> int:
        """Wait for so many places, or all there are; return how many were had: 0 out of time."""
        count = min(count, self._all)
        if not self._waiting and count <= self._free:
            self._free -= count
            return count
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, waiter))
        try:
            await asyncio.wait([waiter], timeout=max(deadline.time_remaining(), 0.0))
        except asyncio.CancelledError:
            if waiter.done():
                self.give_back(count)
            raise
        finally:
            waiter.cancel()
        return 0 if waiter.cancelled() else count

    def give_back(self, count: int) -> None:
        """Let go of places, and let in who comes next."""
        self._free += count
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self._free):
            wanted, waiter = self._waiting.popleft()
            if not waiter.done():
                self._free -= wanted
                waiter.set_result(None)


class _Call:
    """The transfers of one call between shards."""

    def __init__(self, way: TransfersAcross, placed: PlacedTransfers, deadline: Deadline) -> None:
        self._way = way
        self._placed = placed
        self._terms = placed.block_terms
        self._lane = way.lanes.lane
        self._deadline = deadline
        self._refused: dict[int, Refused] = {}
        # What the transfers are to their participants, as far as the votes told it.
        self._prepared = np.zeros(len(placed.rows), np.uint64)

    async def prepare(self, items: IndexArray) -> None:
        """Step 1. Let what has its vote go on in a wave, as soon as most of it has."""
        prepare, voted = Round(self._deadline), list[IndexArray]()
        for shard_id, parts in self._placed.parts("other", items):
            for part in parts:
                piece = self._placed.piece(part)
                answered = partial(self._voted, part.items, voted)
                prepare.put(self._lane(PREPARE, shard_id), self._terms, piece, answered)
        waves, complete = [], False
        while not complete:
            complete = await prepare.wait(WAVE_S)
            if voted:
                # In the order of the request, as its home is to book them.
                wave = np.sort(np.concatenate(voted))
                voted.clear()
                waves.append(self._way.go_on(self._commit(wave)))
        if waves:
            await asyncio.shield(asyncio.gather(*waves))

    def _voted(self, part: IndexArray, voted: list[IndexArray], answer: Answer) -> None:
        if isinstance(answer, LedgerError):
            if isinstance(answer, OutcomeUnknownError):
                answer = ShardUnavailableError(
                    "a shard of the transfer could not be asked in time; nothing was done, try "
                    "again with the same request id"
                )
            self._placed.outcomes.add_block(part, answer)
            return
        assert isinstance(answer, TransferVotesView)
        self._refused |= {int(part[place]): refused for place, refused in answer.refused.items()}
        if answer.numbers:
            self._prepared[part] = u64_column(answer.numbers)
        voted.append(part)

    async def _commit(self, items: IndexArray) -> None:
        """Step 2, for a wave."""
        commit, committed = Round(self._deadline), list[Committed]()
        for shard_id, parts in self._placed.parts("home", items):
            for part in parts:
                piece = self._placed.piece(part, self._refused)
                piece.late = partial(self._committed_late, part.items)
                answered = partial(self._committed, part.items, committed)
                commit.put(self._lane(COMMIT, shard_id), self._terms, piece, answered)
        waves, complete = [], False
        while not complete:
            complete = await commit.wait(WAVE_S)
            if committed:
                waves.append(self._way.go_on(self._apply(list(committed))))
                committed.clear()
        if waves:
            await asyncio.gather(*waves)

    def _committed(self, part: IndexArray, committed: list[Committed], answer: Answer) -> None:
        if isinstance(answer, LedgerError):
            self._placed.outcomes.add_block(part, answer)
        else:
            assert isinstance(answer, TransfersView)
            committed.append((part, answer))

    def _committed_late(self, part: IndexArray, answer: Answer) -> None:
        """The caller was told that it is unknown. What was committed goes on all the same."""
        if isinstance(answer, TransfersView):
            self._way.go_on(self._apply([(part, answer)], reported=False))

    async def _apply(self, committed: list[Committed], *, reported: bool = True) -> None:
        """Step 3, and what follows; ``reported``: the caller waits for it."""
        refused: dict[int, Refused] = {}
        decided = join_rows([self._decided(*of_home, refused) for of_home in committed])
        applied, missed = list[Rows](), set[int]()
        apply = Round(self._deadline, goes_on=True)
        for shard_id, rows in _by_shard(decided, "other"):
            against = {}
            if refused:
                of_places = enumerate(rows["item"].tolist())
                against = {place: refused[item] for place, item in of_places if item in refused}
            piece = Piece(rows, _DECIDED_BYTES * len(rows), refused=against)
            piece.late = partial(self._applied_late, rows)
            answered = partial(self._applied, rows, applied, missed)
            apply.put(self._lane(APPLY, shard_id), self._terms, piece, answered)
        await apply.wait()
        if applied:
            self._deliver(join_rows(applied))
        if reported:
            for items, view in committed:
                self._report(items, view, missed)
                await self._await_undecided(items, view)

    def _decided(self, items: IndexArray, view: TransfersView, refused: dict[int, Refused]) -> Rows:
        """Return what became of items at their home, those that were known already included.

        Those that led to nothing are left out; why others were refused is added to ``refused``.
        """
        rows = np.empty(len(items), DECIDED)
        asked = self._placed.rows.take(items)
        for name in ("first", "second", "request_id", "home", "other"):
            rows[name] = asked[name]
        rows["item"], rows["number"] = items, numbers_of(view)
        rows["prepared"] = self._prepared[items]
        rows["status"] = np.frombuffer(view.statuses, np.uint8)
        refusals = dict(view.refusals)
        for place, other in view.others.items():
            if isinstance(other, TransactionView) and other.status is not _UNDECIDED:
                rows["number"][place], rows["status"][place] = other.number, other.status
                if other.refusal is not None:
                    refusals[place] = other.refusal
        refused |= {int(items[place]): refused_by(refusal) for place, refusal in refusals.items()}
        return rows.take(np.flatnonzero(rows["status"]))

    async def _await_undecided(self, items: IndexArray, view: TransfersView) -> None:
        """See to repeats of what was begun as a single call and is still on its way."""
        for place in _undecided(view):
            await self._placed.send_alone(self._way.shards, int(items[place]), self._deadline)

    def _applied(self, rows: Rows, applied: list[Rows], missed: set[int], answer: Answer) -> None:
        if isinstance(answer, Exception):
            missed.update(rows["item"].tolist())
        else:
            applied.append(rows)

    def _applied_late(self, rows: Rows, answer: Answer) -> None:
        if not isinstance(answer, Exception):
            self._deliver(rows)

    def _report(self, items: IndexArray, view: TransfersView, missed: set[int]) -> None:
        """Say what became of items, but for those that are undecided.

        Those that have not reached their participant may have happened, or not.
        """
        undecided = {int(items[place]) for place in _undecided(view)}
        if missed.isdisjoint(items.tolist()) and not undecided:
            self._placed.outcomes.add_block(items, view)
            return
        kinds = np.isin(items, list(missed)) + 2 * np.isin(items, list(undecided))
        ends = np.flatnonzero(np.diff(kinds)) + 1
        runs = np.split(items, ends)
        views = split_transfers(view, [len(run) for run in runs])
        for run, of_run in zip(runs, views, strict=True):
            if int(run[0]) not in undecided:
                outcome = _UNFINISHED if int(run[0]) in missed else of_run
                self._placed.outcomes.add_block(run, outcome)

    def _deliver(self, rows: Rows) -> None:
        """Step 4. What gets lost here, the leader of the home does by itself."""
        for shard_id, of_home in _by_shard(rows[rows["status"] == _SETTLED], "home"):
            piece = Piece(of_home, 8 * len(of_home), until=time.monotonic())
            self._lane(DELIVERED, shard_id).put(self._terms, piece)


def _undecided(view: TransfersView) -> list[int]:
    """Return the places of repeats that are on their way still."""
    return [
        place
        for place, other in view.others.items()
        if isinstance(other, TransactionView) and other.status is _UNDECIDED
    ]


def _by_shard(rows: Rows, column: str) -> Iterator[tuple[int, Rows]]:
    """Cut decided transfers by the shards in a column, and into what fits into a block."""
    order, shards = by_shard(rows[column])
    ordered = rows.take(order)
    for shard_id, start, end in shards:
        of_shard = ordered[start:end]
        for begin in range(0, len(of_shard), TRANSFERS_PER_BLOCK_MAX):
            yield shard_id, of_shard[begin : begin + TRANSFERS_PER_BLOCK_MAX]

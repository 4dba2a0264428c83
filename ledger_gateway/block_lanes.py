"""Lanes in which items of many calls wait for a shard and then travel together, as one block.

There is a lane for each shard and kind of block. What comes in while blocks are on their way waits
for the next one, with what came in from other calls: the more is asked for, the larger blocks get.
A call puts in *pieces*: items of one shard that stay together. Each piece gets its own answer, an
error included; a call that waits no longer takes nothing from the others in its block.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ledger_cluster.channels import EXECUTE_BYTES_MAX
from ledger_cluster.shards import Attempts
from ledger_core.commands import NO_SOURCE, Command, Refused, Source, TransferText
from ledger_core.errors import (
    LedgerError,
    OutcomeUnknownError,
    OverloadedError,
    ShardUnavailableError,
)
from ledger_core.results import Result
from ledger_core.transfers import TRANSFERS_PER_BLOCK_MAX
from ledger_gateway.beats import Beats, Departure
from ledger_gateway.shard_calls import Deadline, ShardCalls, timeout_s

BLOCKS_IN_FLIGHT_MAX = 2
"""Of a lane."""
SECOND_BLOCK_ITEMS_MIN = 64
"""While a block is on its way, another one is sent only if it has so many items: each block costs
the shard's replicas as much as some fifty items do."""
LARGE_BLOCK_ITEMS_MIN = 256
"""A lane with so much in line sends when it can; others wait for the beat (`beats`)."""
WAITING_ITEMS_MAX = 1 << 17
"""Of a lane."""
# Of a block: room for all that it has but once.
ONCE_BYTES = 4_096
# What follows a step that cannot be taken back may take so much longer than its caller waits.
OVERTIME_S = 5.0

_LOOK_S = 0.01

Rows = NDArray[np.void]
Answer = object | Exception
"""What a kind makes of a result for a piece, or what went wrong."""


def join_rows(rows: Sequence[Rows]) -> Rows:
    """Join rows of the same kind. Numpy's own way copies structured ones field by field."""
    if len(rows) == 1:
        return rows[0]
    return np.frombuffer(b"".join([some.tobytes() for some in rows]), rows[0].dtype)


def _nobody(answer: Answer) -> None:
    """Take the answer to a piece for which nobody waits."""


@dataclass(slots=True, eq=False)
class Piece:
    """Items of one shard, at most as many as fit into a block, and who waits for their answer.

    ``texts`` and ``refused`` are by place in ``rows``. ``size`` is how many bytes they take in a
    block at most. ``answer`` is called once; ``late``, if there is one, where the answer comes
    after the piece was given up.
    """

    rows: Rows
    size: int
    texts: dict[int, TransferText] = field(default_factory=dict)
    refused: dict[int, Refused] = field(default_factory=dict)
    actor: str = ""
    source: Source = NO_SOURCE
    answer: Callable[[Answer], None] = _nobody
    late: Callable[[Answer], None] | None = None
    until: float = 0.0
    block: "_Block | None" = None

    def __len__(self) -> int:
        return len(self.rows)

    def be_answered(self, found: Answer) -> None:
        """Give the answer, and forget who and what there was: no cycle is left to be collected."""
        answer, self.answer, self.block = self.answer, _nobody, None
        answer(found)


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """A kind of block: how pieces become a command, and what its result says to each of them.

    ``join`` gets the terms that the pieces share, and their rows joined. ``split`` gets how many
    items each piece has; it raises what all of them fail with. What ``may_be_given_up`` is not sent
    once its caller waits no longer; all else goes on, for ``overtime_s`` at most. ``linger_s``: how
    long pieces wait for others although nothing is on its way.
    """

    join: Callable[[Any, Sequence[Piece], Rows], Command]
    split: Callable[[Result, Sequence[int]], Sequence[Answer]]
    may_be_given_up: bool = True
    overtime_s: float = 0.0
    linger_s: float = 0.0


@dataclass(slots=True, eq=False)
class _Block:
    """Pieces on their way."""

    terms: Hashable
    pieces: list[Piece]
    items: int = 0
    """How many they had when they were taken."""
    attempts: Attempts = field(default_factory=Attempts)
    task: "asyncio.Task[None] | None" = None
    departure: Departure | None = None


class Lane:
    """The pieces for one shard that wait, and those that are on their way, of one kind.

    Lives on the event loop that makes it.
    """

    def __init__(
        self,
        shards: ShardCalls,
        shard_id: int,
        kind: Kind,
        in_flight_max: int = BLOCKS_IN_FLIGHT_MAX,
        beats: Beats | None = None,
    ) -> None:
        # Kept: to ask for it costs a system call.
        self._loop = asyncio.get_running_loop()
        self._shards = shards
        self._shard_id = shard_id
        self._kind = kind
        self._in_flight_max = in_flight_max
        self._beats = beats or Beats()
        self._waiting: dict[Hashable, deque[Piece]] = {}
        self._waiting_items = 0
        self._blocks: set[_Block] = set()
        self._flushing: asyncio.Handle | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing waits, and nothing is on its way."""
        return not self._waiting and not self._blocks

    def put(self, terms: Hashable, piece: Piece) -> None:
        """Put a piece in line. It is answered when its block is, but never before this returns."""
        items = len(piece.rows)
        if self._waiting_items + items > WAITING_ITEMS_MAX:
            error = OverloadedError(
                f"{self._waiting_items} items wait for shard {self._shard_id} already; slow down"
            )
            self._loop.call_soon(piece.be_answered, error)
            return
        line = self._waiting.get(terms)
        if line is None:
            line = self._waiting[terms] = deque()
        line.append(piece)
        self._waiting_items += items
        if self._flushing is None or self._kind.linger_s:
            self._schedule()

    def give_up(self, piece: Piece) -> LedgerError:
        """Stop waiting for a piece, and say what that means: was nothing done, or is it unknown?"""
        piece.answer = piece.late or _nobody
        block = piece.block
        ahead = next(iter(self._blocks)) if block is None and self._blocks else block
        failure = ahead.attempts.last_failure if ahead else "nothing was sent yet"
        what = f"shard {self._shard_id} gave no result in time ({failure})"
        if self._kind.may_be_given_up and (block is None or not block.attempts.reached_node):
            if block is None:
                self._drop(piece)
            else:
                # Nothing of it has arrived, nor will it: the others go on in another block.
                block.pieces.remove(piece)
                self._call_off(block)
            return ShardUnavailableError(f"{what}; nothing was done, try again")
        if block is not None and all(other.answer is _nobody for other in block.pieces):
            block.pieces.clear()
            self._call_off(block)
        return OutcomeUnknownError(
            f"{what}; the write may have happened: repeat it with the same request id to know"
        )

    def _drop(self, piece: Piece) -> None:
        for terms, line in self._waiting.items():
            if piece in line:
                line.remove(piece)
                self._waiting_items -= len(piece)
                if not line:
                    del self._waiting[terms]
                return

    def _call_off(self, block: _Block) -> None:
        """Send a block no more. Its pieces are the next ones to be sent, in another block."""
        assert block.task is not None
        block.task.cancel()
        # Here as well: a task that is cancelled before its first step never runs at all.
        self._arrived(block)
        self._blocks.discard(block)
        for piece in block.pieces:
            piece.block = None
            self._waiting_items += len(piece)
        if block.pieces:
            line = self._waiting.setdefault(block.terms, deque())
            line.extendleft(reversed(block.pieces))
        if self._waiting:
            self._schedule()

    def _schedule(self) -> None:
        """Send at the end of this pass of the event loop: what comes in together goes together."""
        if not self._may_send():
            self._beats.note_waiting(self._send_waiting, self._waiting_items)
            return
        linger_s = self._kind.linger_s
        if not linger_s or self._waiting_items >= TRANSFERS_PER_BLOCK_MAX:
            if self._flushing is not None and linger_s:
                self._flushing.cancel()
                self._flushing = None
            if self._flushing is None:
                self._flushing = self._loop.call_soon(self._flush)
        elif self._flushing is None:
            self._flushing = self._loop.call_later(linger_s, self._flush)

    def _may_send(self) -> bool:
        """Whether another block is worth its cost now, or has to wait for those on their way."""
        if not self._blocks:
            return True
        in_flight, waiting = len(self._blocks), self._waiting_items
        return in_flight < self._in_flight_max and waiting >= SECOND_BLOCK_ITEMS_MIN

    def _flush(self) -> None:
        self._flushing = None
        while self._waiting and self._may_send():
            departure = None
            if self._waiting_items < LARGE_BLOCK_ITEMS_MIN:
                departure = self._beats.leave(self._send_waiting, self._waiting_items)
                if departure is None:
                    return
            block = self._take()
            if departure is not None:
                departure.join(block.items)
                block.departure = departure
            self._blocks.add(block)
            block.task = self._loop.create_task(self._carry(block))

    def _send_waiting(self) -> None:
        if self._flushing is None:
            self._flush()

    def _take(self) -> _Block:
        """Take what fits into a block, of the terms that have waited longest."""
        terms, line = next(iter(self._waiting.items()))
        block = _Block(terms, [])
        items, room = 0, EXECUTE_BYTES_MAX - ONCE_BYTES
        while line:
            piece = line[0]
            items, room = items + len(piece.rows), room - piece.size
            if block.pieces and (items > TRANSFERS_PER_BLOCK_MAX or room < 0):
                break
            block.pieces.append(line.popleft())
            block.items = items
            piece.block = block
        self._waiting_items -= block.items
        del self._waiting[terms]
        if line:
            self._waiting[terms] = line  # behind the others
        return block

    async def _carry(self, block: _Block) -> None:
        try:
            answers = await self._answers(block)
        finally:
            self._arrived(block)
        self._blocks.discard(block)
        for piece, answer in zip(block.pieces, answers, strict=True):
            piece.be_answered(answer)
        if self._waiting:
            self._schedule()

    def _arrived(self, block: _Block) -> None:
        """Tell the beat that it need not wait for a block, once."""
        departure, block.departure = block.departure, None
        if departure is not None:
            self._beats.arrived(departure, block.items)

    async def _answers(self, block: _Block) -> Sequence[Answer]:
        """Send a block, for as long as any of its pieces is waited for."""
        pieces = block.pieces
        try:
            until = max([piece.until for piece in pieces]) + self._kind.overtime_s
            given_s = max(until - time.monotonic(), 0.001)
            rows = join_rows([piece.rows for piece in pieces])
            command = self._kind.join(block.terms, pieces, rows)
            result = await self._shards.execute_within(command, given_s, block.attempts)
            answers = self._kind.split(result, [len(piece.rows) for piece in pieces])
            assert len(answers) == len(pieces), "each piece has its answer"
        except Exception as error:
            return [error] * len(pieces)
        return answers


class Lanes:
    """All lanes of a gateway."""

    def __init__(self, shards: ShardCalls) -> None:
        self._shards = shards
        self._lanes: dict[tuple[Kind, int], Lane] = {}
        self._beats: dict[Kind, Beats] = {}

    def lane(self, kind: Kind, shard_id: int) -> Lane:
        """Return the lane of a kind for a shard."""
        lane = self._lanes.get((kind, shard_id))
        if lane is None:
            beats = self._beats.setdefault(kind, Beats())
            lane = Lane(self._shards, shard_id, kind, beats=beats)
            self._lanes[kind, shard_id] = lane
        return lane

    async def end(self) -> None:
        """Wait until nothing waits and nothing is on its way."""
        while not all(lane.idle for lane in self._lanes.values()):  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(_LOOK_S)


class Round:
    """Pieces that one call has put in line, and the wait for their answers.

    Whoever is cancelled here, or whose time is over, waits no longer for any of them. Where that
    must not stop them, ``goes_on``, they may also be put in line when the time is over.
    """

    def __init__(self, deadline: Deadline, *, goes_on: bool = False) -> None:
        self._deadline = deadline
        self._goes_on = goes_on
        self._until = time.monotonic() + timeout_s(deadline)
        self._open: dict[Piece, tuple[Lane, Callable[[Answer], None]]] = {}
        self._changed: asyncio.Future[None] | None = None
        self._fault: Exception | None = None

    def put(
        self, lane: Lane, terms: Hashable, piece: Piece, answered: Callable[[Answer], None]
    ) -> None:
        """Put a piece in line; ``answered`` gets its answer, or a LedgerError."""
        try:
            if not self._goes_on:
                require_time(self._deadline)
        except ShardUnavailableError as error:
            answered(error)
            return
        piece.until = max(self._until, time.monotonic())
        self._open[piece] = (lane, answered)
        piece.answer = partial(self._answered, piece)
        lane.put(terms, piece)

    async def wait(self, at_most_s: float = float("inf")) -> bool:
        """Wait until all pieces are answered, or so long; tell whether all are.

        When the time of the call is over, they are given up. Raises what is no error of a ledger.
        """
        loop = asyncio.get_running_loop()
        end = time.monotonic() + at_most_s
        try:
            while self._open and self._fault is None:
                now = time.monotonic()
                if now >= self._until:
                    self._give_up()
                elif now >= end:
                    return False
                else:
                    self._changed = loop.create_future()
                    timer = loop.call_later(min(end, self._until) - now, _resolve, self._changed)
                    try:
                        await self._changed
                    finally:
                        timer.cancel()
        except asyncio.CancelledError:
            self._leave()
            raise
        if self._fault is not None:
            self._leave()
            raise self._fault
        return True

    def _give_up(self) -> None:
        for piece, (lane, _) in list(self._open.items()):
            self._answered(piece, lane.give_up(piece))

    def _leave(self) -> None:
        for piece, (lane, _) in self._open.items():
            lane.give_up(piece)
        self._open.clear()

    def _answered(self, piece: Piece, found: Answer) -> None:
        _, answered = self._open.pop(piece, (None, None))
        if answered is None:
            return  # nobody waits for it any more
        if isinstance(found, Exception) and not isinstance(found, LedgerError):
            self._fault = found
        else:
            answered(found)
        if (not self._open or self._fault) and self._changed is not None:
            _resolve(self._changed)


def require_time(deadline: Deadline) -> None:
    """Raise ShardUnavailableError where the call's time is over: what is sent now may get lost."""
    if deadline.time_remaining() <= 0:
        raise ShardUnavailableError("the call's time was over; nothing was done, try again")


def _resolve(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)

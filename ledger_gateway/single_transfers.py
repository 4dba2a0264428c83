"""Single calls that are no more than a transfer on one shard: many of them travel together.

They are items of the lanes of bulk calls (`block_lanes`): those for a shard share a block, with
each other and with items of bulk calls. Each caller gets what a command of its own would lead to.

That pays where calls do share blocks: a block of two costs three replicas 0.30 ms to apply instead
of 0.45, one of four 0.32 instead of 0.82. A block of one costs as much as a single command, but its
leader, for which the caller waits, takes 0.22 ms instead of 0.09. So a call goes as a command of
its own while there are no more than three calls for two shards: then most have their shard to
themselves. Up to 16 at once do not wait for each other then, either, as they would in lanes.
"""

import asyncio
import struct
import time

import numpy as np

from ledger.v1 import ledger_pb2
from ledger_core.commands import Source
from ledger_core.ids import new_request_id, request_key
from ledger_core.ledgers import MAIN_NAME, USD
from ledger_core.results import TransactionView, TransfersView
from ledger_gateway.block_kinds import ASKED, CREATE, BlockTerms, block_terms
from ledger_gateway.block_lanes import Answer, Lane, Lanes, Piece
from ledger_gateway.errors import unwrap
from ledger_gateway.ledger_directory import LedgerDirectory
from ledger_gateway.plain_transfers import NO_TEXT, may_be_plain, moved, text_of
from ledger_gateway.shard_calls import ShardCalls, Timed, timeout_s
from ledger_gateway.transfer_columns import BLOCK_AMOUNT_END, text_bytes
from ledger_gateway.transfer_pieces import ITEM_BYTES, part_bytes
from ledger_gateway.transfer_views import Transfer, transaction_view

_PERIOD_S = 0.1
_ROW = struct.Struct("<QQq16sHHB")
assert _ROW.size == ASKED.itemsize, "a row of ASKED"


class CallsUnderWay:
    """Counts calls that are under way, and tells how many there usually are at once.

    Callers that were answered together come back one by one, and are still as many. Where a hiccup
    made calls gather, they are many only for a moment.
    """

    def __init__(self) -> None:
        self._now = 0
        self._most = 0
        self._before = (0, 0)
        self._ends_at = 0.0
        self._left_at = 0.0

    def __enter__(self) -> None:
        now = time.monotonic()
        if not self._now and now > self._left_at + _PERIOD_S:
            self._most, self._before = 0, (0, 0)
        self._now += 1
        if now >= self._ends_at:
            self._before = (self._before[1], self._most)
            self._most, self._ends_at = self._now, now + _PERIOD_S
        elif self._now > self._most:
            self._most = self._now

    def __exit__(self, *_: object) -> None:
        self._now -= 1
        self._left_at = time.monotonic()

    @property
    def usual(self) -> int:
        """How many were under way at once, in each of the last two periods of 0.1 s."""
        return min(self._before)


class SingleTransfers:
    """The way of single calls that travel with others, for all calls of a gateway."""

    def __init__(self, shards: ShardCalls, directory: LedgerDirectory, lanes: Lanes) -> None:
        self._shards = shards
        self._directory = directory
        self._lanes = lanes
        self._few = len(shards.shard_ids()) * 3 // 2
        self.under_way = CallsUnderWay()

    def transfer(self, request: ledger_pb2.CreateTransactionRequest) -> Transfer | None:
        """Return what a valid request asks for if it is to travel with others now, else None."""
        if self.under_way.usual <= self._few or not may_be_plain(request):
            return None
        ledger, currency = MAIN_NAME, USD
        if request.entries:
            ledger = request.ledger or MAIN_NAME
            first, second = request.entries
            known = self._directory.known_currency(ledger, first.currency)
            if known is None or known != self._directory.known_currency(ledger, second.currency):
                return None
            currency = known
        form, home, other, amount = moved(request)
        if amount >= BLOCK_AMOUNT_END:
            return None
        if other and self._shards.shard_id_of(home) != self._shards.shard_id_of(other):
            return None
        return Transfer(
            form=form,
            home=home,
            other=other,
            amount=amount,
            request_id=request.request_id or new_request_id(),
            text=text_of(request),
            actor=request.actor,
            ledger=ledger,
            currency=currency,
        )

    async def create(self, asked: Transfer, source: Source, context: Timed) -> TransactionView:
        """Return the transaction that a transfer has made, now or when it was first asked for.

        Raises LedgerError, as the command of a transaction would.
        """
        shard_id = self._shards.shard_id_of(asked.home)
        lane = self._lanes.lane(CREATE, shard_id)
        terms = block_terms(asked.ledger, asked.currency)
        piece = _piece(asked, shard_id, source)
        answer = await _answer(lane, terms, piece, timeout_s(context))
        if isinstance(answer, Exception):
            # All callers of a block raise the same error: each without the frames of the others.
            raise answer.with_traceback(None)
        assert isinstance(answer, TransfersView)
        if not answer.statuses[0]:
            return unwrap(answer.others[0], TransactionView)
        return transaction_view(asked, answer, 0, answer.first_number)


async def _answer(lane: Lane, terms: BlockTerms, piece: Piece, given_s: float) -> Answer:
    """Put a piece in line and return its answer, within ``given_s``; as `Round`, for one piece."""
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    answers: list[Answer] = []

    def answered(answer: Answer) -> None:
        answers.append(answer)
        if not waiter.done():
            waiter.set_result(None)

    def give_up() -> None:
        if not answers:
            answered(lane.give_up(piece))

    piece.until = time.monotonic() + given_s
    piece.answer = answered
    lane.put(terms, piece)
    timer = loop.call_later(given_s, give_up)
    try:
        await waiter
    except asyncio.CancelledError:
        if not answers:
            lane.give_up(piece)
        raise
    finally:
        timer.cancel()
    return answers[0]


def _piece(asked: Transfer, shard_id: int, source: Source) -> Piece:
    request_id = request_key(asked.request_id)
    row = _ROW.pack(
        asked.home, asked.other, asked.amount, request_id, shard_id, shard_id, asked.form
    )
    size = ITEM_BYTES + part_bytes(asked.actor, source)
    texts = {}
    if asked.text != NO_TEXT:
        texts[0] = asked.text
        size += text_bytes(asked.text)
    return Piece(np.frombuffer(row, ASKED), size, texts, actor=asked.actor, source=source)

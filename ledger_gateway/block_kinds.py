"""The kinds of blocks: how pieces of several calls are joined, and what a result says to each.

`CREATE` has transfers whose accounts are all on one shard. The others are the steps of transfers
between two shards, in their order: `PREPARE` at the participants, `COMMIT` at the homes, `APPLY` at
the participants, and `DELIVERED` at the homes. Pure: who sends what and when is in `block_lanes`
and `transfers_across`.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ledger_core.commands import (
    ApplyTransfers,
    CommitTransfers,
    CreateTransfers,
    DeliveredTransfers,
    PrepareTransfers,
    TransferPart,
)
from ledger_core.ledgers import Currency
from ledger_core.results import Done, Result, TransfersView, TransferVotesView
from ledger_gateway.block_lanes import OVERTIME_S, Answer, Kind, Piece, Rows
from ledger_gateway.errors import unwrap

ASKED = np.dtype(
    [
        ("first", "<u8"),
        ("second", "<u8"),
        ("amount", "<i8"),
        ("request_id", "V16"),
        ("home", "<u2"),
        ("other", "<u2"),
        ("form", "u1"),
    ]
)
"""A transfer that is asked for, and the shards of its accounts."""

DECIDED = np.dtype(
    [
        ("first", "<u8"),
        ("second", "<u8"),
        ("request_id", "V16"),
        ("number", "<u8"),
        ("prepared", "<u8"),
        ("home", "<u2"),
        ("other", "<u2"),
        ("status", "u1"),
        ("item", "<u4"),
    ]
)
"""A transfer between two shards that has become something at its home, and its place in a call.

``number`` is that at its home, ``prepared`` that at its participant, where the vote told it.
"""

DELIVERED_LINGER_S = 0.05
_TERMS_MAX = 1_024

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True, eq=False)
class BlockTerms:
    """What all items of a block share. The same ones are the same object: see `block_terms`."""

    ledger: str
    currency: Currency


@lru_cache(_TERMS_MAX)
def block_terms(ledger: str, currency: Currency) -> BlockTerms:
    """Return the terms of blocks. One that was forgotten meanwhile is shared no more, that is all.

    Looking them up once for a call is cheaper than comparing them for every piece of it.
    """
    return BlockTerms(ledger, currency)


def _create(terms: BlockTerms, pieces: Sequence[Piece], rows: Rows) -> CreateTransfers:
    parts = _parts(pieces)
    one = parts[0] if len(parts) == 1 else TransferPart(0)
    return CreateTransfers(
        routing_id=int(rows["first"][0]),
        ledger=terms.ledger,
        currency=terms.currency,
        forms=_column(rows, "form"),
        first_accounts=_column(rows, "first"),
        second_accounts=_column(rows, "second"),
        amounts=_column(rows, "amount"),
        request_ids=_column(rows, "request_id"),
        texts=_joined(pieces, [piece.texts for piece in pieces]),
        actor=one.actor,
        source=one.source,
        parts=parts if len(parts) > 1 else [],
    )


def _prepare(terms: BlockTerms, pieces: Sequence[Piece], rows: Rows) -> PrepareTransfers:
    return PrepareTransfers(
        routing_id=int(rows["second"][0]),
        ledger=terms.ledger,
        currency=terms.currency,
        forms=_column(rows, "form"),
        first_accounts=_column(rows, "first"),
        second_accounts=_column(rows, "second"),
        amounts=_column(rows, "amount"),
        request_ids=_column(rows, "request_id"),
        home_shards=_column(rows, "home"),
        texts=_joined(pieces, [piece.texts for piece in pieces]),
        parts=_parts(pieces),
    )


def _commit(terms: BlockTerms, pieces: Sequence[Piece], rows: Rows) -> CommitTransfers:
    return CommitTransfers(
        routing_id=int(rows["first"][0]),
        ledger=terms.ledger,
        currency=terms.currency,
        forms=_column(rows, "form"),
        first_accounts=_column(rows, "first"),
        second_accounts=_column(rows, "second"),
        amounts=_column(rows, "amount"),
        request_ids=_column(rows, "request_id"),
        participant_shards=_column(rows, "other"),
        refused=_joined(pieces, [piece.refused for piece in pieces]),
        texts=_joined(pieces, [piece.texts for piece in pieces]),
        parts=_parts(pieces),
    )


def _apply(terms: BlockTerms, pieces: Sequence[Piece], rows: Rows) -> ApplyTransfers:
    return ApplyTransfers(
        routing_id=int(rows["second"][0]),
        ledger=terms.ledger,
        first_accounts=_column(rows, "first"),
        request_ids=_column(rows, "request_id"),
        numbers=_column(rows, "number"),
        statuses=_column(rows, "status"),
        refused=_joined(pieces, [piece.refused for piece in pieces]),
        prepared=_column(rows, "prepared"),
    )


def _delivered(terms: BlockTerms, pieces: Sequence[Piece], rows: Rows) -> DeliveredTransfers:  # noqa: ARG001
    return DeliveredTransfers(
        routing_id=int(rows["first"][0]), ledger=terms.ledger, numbers=_column(rows, "number")
    )


def split_transfers(result: Result, counts: Sequence[int]) -> list[TransfersView]:
    """Cut what became of transfers into so many items each, in their order."""
    view = unwrap(result, TransfersView)
    if len(view.statuses) != sum(counts):
        raise TypeError(f"{len(view.statuses)} results for {sum(counts)} transfers")
    if len(counts) == 1:
        return [view]
    refusals, others = _cut(view.refusals, counts), _cut(view.others, counts)
    found, start, number = [], 0, view.first_number
    for place, count in enumerate(counts):
        end = start + count
        statuses = view.statuses[start:end]
        of_piece = TransfersView(
            view.time_us,
            number,
            statuses,
            refusals[place],
            others[place],
            view.books,
            view.book_places[2 * start : 2 * end],
            view.sides[start:end],
        )
        found.append(of_piece)
        start, number = end, number + count - statuses.count(0)
    return found


def numbers_of(view: TransfersView) -> NDArray[np.uint64]:
    """Return the number of each transfer; that of one which was not taken means nothing."""
    taken = np.frombuffer(view.statuses, np.uint8) != 0
    numbers: NDArray[np.uint64] = (np.cumsum(taken) + (view.first_number - 1)).astype(np.uint64)
    return numbers


def _split_votes(result: Result, counts: Sequence[int]) -> Sequence[Answer]:
    votes = unwrap(result, TransferVotesView)
    if len(counts) == 1:
        return [votes]
    ends = [*accumulate(counts)]
    return [
        TransferVotesView(refused, votes.numbers[8 * (end - count) : 8 * end])
        for refused, count, end in zip(_cut(votes.refused, counts), counts, ends, strict=True)
    ]


def _split_done(result: Result, counts: Sequence[int]) -> Sequence[Answer]:
    return [unwrap(result, Done)] * len(counts)


def _column(rows: Rows, name: str) -> bytes:
    column: NDArray[np.generic] = rows[name]
    return column.tobytes()


def _parts(pieces: Sequence[Piece]) -> list[TransferPart]:
    """Return who asks for which items; neighbours of the same origin are one part."""
    found = [TransferPart(len(pieces[0]), pieces[0].actor, pieces[0].source)]
    for piece in pieces[1:]:
        last = found[-1]
        if (piece.actor, piece.source) == (last.actor, last.source):
            found[-1] = TransferPart(last.count + len(piece), last.actor, last.source)
        else:
            found.append(TransferPart(len(piece), piece.actor, piece.source))
    return found


def _joined(pieces: Sequence[Piece], values: Sequence[dict[int, ValueT]]) -> dict[int, ValueT]:
    """Return values by place in the pieces as values by place in all of them together."""
    if not any(values):
        return {}
    starts = accumulate((len(piece) for piece in pieces), initial=0)
    return {
        start + place: value
        for start, of_piece in zip(starts, values, strict=False)
        for place, value in of_piece.items()
    }


def _cut(values: dict[int, ValueT], counts: Sequence[int]) -> list[dict[int, ValueT]]:
    """Do the reverse of `_joined`."""
    found: list[dict[int, ValueT]] = [{} for _ in counts]
    if not values:
        return found
    starts = list(accumulate(counts, initial=0))
    for place, value in values.items():
        piece = bisect_right(starts, place) - 1
        found[piece][place - starts[piece]] = value
    return found


CREATE = Kind(_create, split_transfers)
PREPARE = Kind(_prepare, _split_votes)
COMMIT = Kind(_commit, split_transfers, overtime_s=OVERTIME_S)
APPLY = Kind(_apply, _split_done, may_be_given_up=False, overtime_s=OVERTIME_S)
DELIVERED = Kind(
    _delivered,
    _split_done,
    may_be_given_up=False,
    overtime_s=OVERTIME_S,
    linger_s=DELIVERED_LINGER_S,
)

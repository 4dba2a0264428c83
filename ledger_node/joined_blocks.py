"""Blocks of transfers of several commands and log entries, applied as one block with seams.

Most of what a small block costs does not depend on how many transfers it has. So those of log
entries that are applied in one go are joined: their columns follow each other, their accounts are
read, judged and stored once. What each command and each log entry has of its own is added segment
by segment (`Booking.append`): numbers, entries, totals, and its place in the journal.

Every row is the same as if the log entries were applied one after the other. Blocks are not joined
if they need more than booking item after item: if a request is repeated, if something expires
between two of them, or if the items of one would be executed as commands (`transfer_rules`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, count

import numpy as np

from ledger_core.commands import CreateTransfers, RawBatch
from ledger_core.ledgers import Currency
from ledger_core.results import Result, TransfersView
from ledger_core.transfers import (
    AMOUNTS_SUM_MAX,
    TRANSFERS_PER_BLOCK_MAX,
    amounts,
    block_parts,
    request_keys,
    split_rows,
)
from ledger_node.books import Books
from ledger_node.store import ShardTables
from ledger_node.transfer_blocks import read_accounts
from ledger_node.transfer_booking import Booking, Segment
from ledger_node.transfer_rules import ALL, judge_block, mixes_ledgers, one_account_books


@dataclass(slots=True)
class LogEntry:
    """A log entry: its index, and its batch of commands.

    If these are all blocks of transfers, and of one ledger and currency, ``blocks`` has them.
    """

    index: int
    batch: RawBatch
    blocks: list[CreateTransfers]

    @staticmethod
    def of(index: int, batch: RawBatch) -> "LogEntry":
        """Return a log entry, and look for its blocks."""
        blocks = [command for _, command in batch.commands if isinstance(command, CreateTransfers)]
        if len(blocks) < len(batch.commands) or (
            len(blocks) > 1 and len(set(map(_kind, blocks))) > 1
        ):
            blocks = []
        return LogEntry(index, batch, blocks)


def _kind(block: CreateTransfers) -> tuple[str, Currency]:
    return block.ledger, block.currency


def stretches(entries: Iterable[LogEntry]) -> Iterator[list[LogEntry]]:
    """Cut a run of log entries where entries have to be apart; what stays together may be joined.

    These have blocks of one ledger and currency, and no more transfers than one block may have.
    """
    stretch: list[LogEntry] = []
    items = 0
    for entry in entries:
        more = sum(len(block.forms) for block in entry.blocks)
        if stretch and not (
            entry.blocks
            and stretch[0].blocks
            and _kind(entry.blocks[0]) == _kind(stretch[0].blocks[0])
            and items + more <= TRANSFERS_PER_BLOCK_MAX
        ):
            yield stretch
            stretch, items = [], 0
        stretch.append(entry)
        items += more
    if stretch:
        yield stretch


def apply_joined(
    tables: ShardTables, shard_id: int, stretch: list[LogEntry], *, wanted: bool
) -> list[list[Result]] | None:
    """Apply log entries together; None, and nothing done, where they have to be applied alone.

    Returns the results of each; no results where they are not ``wanted``.
    """
    blocks = [block for entry in stretch for block in entry.blocks]
    if len(blocks) < 2:
        return None
    meta = tables.meta()
    segments = _segments(stretch, meta.time_us)
    if segments[-1].end > TRANSFERS_PER_BLOCK_MAX:
        return None
    if meta.importing or next(tables.expirations_until(segments[-1].time_us), None) is not None:
        return None
    books = Books(tables, meta, shard_id)
    booking = _book(books, _joined(blocks), segments)
    if booking is None:
        return None
    results: list[list[Result]] = []
    places = count()
    for entry in stretch:
        books.next_log_entry(entry.index, entry.batch.time_us)
        views = [
            _end_item(booking, next(places), block, raw, wanted=wanted)
            for block, (raw, _) in zip(entry.blocks, entry.batch.commands, strict=True)
        ]
        results.append([view for view in views if view is not None])
    books.finish()
    return results


def _segments(stretch: list[LogEntry], time_us: int) -> list[Segment]:
    """Return the segments of the joined block; times never go back behind the last one before."""
    segments: list[Segment] = []
    start = 0
    for entry in stretch:
        time_us = max(time_us, entry.batch.time_us)
        for block in entry.blocks:
            end = start + len(block.forms)
            segments.append(Segment(start, end, time_us))
            start = end
    return segments


def _joined(blocks: list[CreateTransfers]) -> CreateTransfers:
    """Return the block that has the items of all, in their order."""
    starts = accumulate((len(block.forms) for block in blocks), initial=0)
    return CreateTransfers(
        routing_id=blocks[0].routing_id,
        ledger=blocks[0].ledger,
        currency=blocks[0].currency,
        forms=b"".join(block.forms for block in blocks),
        first_accounts=b"".join(block.first_accounts for block in blocks),
        second_accounts=b"".join(block.second_accounts for block in blocks),
        amounts=b"".join(block.amounts for block in blocks),
        request_ids=b"".join(block.request_ids for block in blocks),
        texts={
            start + item: text
            for start, block in zip(starts, blocks, strict=False)
            for item, text in block.texts.items()
        },
        parts=[part for block in blocks for part in block_parts(block)],
    )


def _book(books: Books, block: CreateTransfers, segments: list[Segment]) -> Booking | None:
    """Judge and book a joined block; None, and nothing done, where its segments may not share it.

    They may if each of its items makes a transaction, as `create_transfers` does it.
    """
    book = books.find_book(block.ledger, block.currency)
    if book is None or float(amounts(block).astype(np.float64).sum()) >= AMOUNTS_SUM_MAX:
        return None
    keys = split_rows(request_keys(block))
    if len(set(keys)) < len(keys):
        return None
    accounts, sides = read_accounts(books, block)
    if mixes_ledgers(books, block, accounts, sides):
        return None
    if books.tables.claim_requests(keys, books.meta.next_transaction):
        return None
    todo = ALL[: len(keys)]
    booking = judge_block(books, block, accounts, sides, todo=todo, book=book, segments=segments)
    if booking is None or not booking.statuses.all():
        books.tables.drop_requests(keys)
        return None
    booking.book(keys, claimed=True)
    return booking


def _end_item(
    booking: Booking, place: int, block: CreateTransfers, raw: bytes, *, wanted: bool
) -> TransfersView | None:
    """Finish a segment, an item of the journal; return what became of its transfers if wanted."""
    books, segment = booking.books, booking.segments[place]
    first_number, refusals = booking.append(place)
    statuses = booking.statuses[segment.start : segment.end].tobytes()
    books.end_item(raw, (first_number, statuses))
    if not wanted:
        return None
    sides = slice(2 * segment.start, 2 * segment.end)
    account, debits = booking.sides.account[sides], booking.sides.debits[sides]
    return TransfersView(
        books.meta.time_us,
        first_number,
        statuses,
        refusals,
        {},
        *one_account_books(books, block, booking.accounts, account, debits),
    )

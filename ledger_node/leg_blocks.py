"""Transfers between two shards, prepared and committed as arrays: the same as item by item.

What an item does depends on those before it in one way only: they change what its account on this
shard has. So only items on accounts that could refuse one of the block's are judged one after the
other (`leg_judge`); all others are taken, unless their accounts take nothing of the kind, which the
rules of single transactions explain. Then all are booked together (`leg_booking`).

Whatever is not as usual (a request twice in a block, a counter that might overflow, the first money
between two shards) makes the block be done item by item (`leg_rules`).
`tests/node/test_leg_blocks.py` holds every row and every answer against that.
"""

import numpy as np

from ledger_core.accounts import Direction, EntryKind, TransactionStatus
from ledger_core.commands import CommitTransfers, PrepareTransfers, Refused
from ledger_core.results import TransfersView, TransferVotesView
from ledger_core.transfer_legs import leg_command, prepare_of
from ledger_node.books import Books
from ledger_node.commit_rules import PARTICIPANT_MARK, prepare, prepared_record
from ledger_node.leg_booking import begin
from ledger_node.leg_records import home_template, participant_template
from ledger_node.leg_rules import (
    commit_each,
    committed_record,
    first_result,
    prepare_each,
    transfers_view,
)
from ledger_node.records import EntryRecord, TransactionRecord
from ledger_node.refusal_rules import refused_status
from ledger_node.transaction_rules import clearing_entries
from ledger_node.transfer_rules import Execute


def prepare_transfers(books: Books, block: PrepareTransfers) -> TransferVotesView:
    """At the participant: reserve and vote on each, once; the votes stand."""
    work = begin(books, block, PARTICIPANT_MARK)
    if work is None:
        return prepare_each(books, block)
    work.judge({}, 1, reserves=True)
    work.book(EntryKind.PENDING)

    def record_of(item: int, why: Refused | None) -> TransactionRecord:
        prepared = prepare_of(block, item, books.shard_id)
        clearing: list[EntryRecord] = []
        if why is None:
            clearing = clearing_entries(
                books,
                prepared.transaction,
                books.shard_id,
                prepared.home_shard_id,
                Direction.CREDIT,
            )
        return prepared_record(books, prepared, why, clearing)

    work.record(participant_template(work.book_number, block.currency), record_of)
    numbers = work.numbers[work.taken]
    books.tables.put_undecided(numbers)
    # Whoever sent the block finishes it, unless he is gone.
    books.undecided_later += numbers.tolist()
    refused = work.refused
    for item in (~work.todo).nonzero()[0].tolist():
        vote = prepare(books, prepare_of(block, item, books.shard_id))
        if vote.refused is not None:
            refused[item] = vote.refused
    return TransferVotesView(dict(sorted(refused.items())), work.numbers.astype("<u8").tobytes())


def commit_transfers(
    books: Books, block: CommitTransfers, execute: Execute
) -> tuple[TransfersView, object]:
    """At the home: decide on each, by the vote and its own rules; return the outcome, too.

    A request that is known here, be it as one that was abandoned, gives its first result.
    """
    work = begin(books, block)
    if work is None:
        return commit_each(books, block, execute)
    work.judge(block.refused, 0, reserves=False)
    work.book(EntryKind.POSTED)

    def record_of(item: int, why: Refused | None) -> TransactionRecord:
        command = leg_command(block, item, books.shard_id)
        clearing: list[EntryRecord] = []
        if why is None:
            peer = command.entries[1].shard_id
            clearing = clearing_entries(books, command, peer, peer, Direction.DEBIT)
        return committed_record(books, command, why, clearing)

    refusals = work.record(home_template(work.book_number, block.currency), record_of)
    numbers = work.numbers[work.taken]
    books.tables.put_in_flight(numbers)
    books.in_flight_later += numbers.tolist()
    statuses = np.where(work.taken, np.uint8(TransactionStatus.SETTLED), np.uint8(0))
    for item, why in work.refused.items():
        statuses[item] = refused_status(why)
    others = {
        item: first_result(books, leg_command(block, item, books.shard_id), execute)
        for item in (~work.todo).nonzero()[0].tolist()
    }
    return transfers_view(books, work.first_number, statuses.tobytes(), refusals, others)

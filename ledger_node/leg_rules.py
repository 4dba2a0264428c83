"""The rules of transfers between two shards that come as blocks, item by item.

The steps are those of `commit_rules`, but the home begins and decides in one: it is told the votes
with the request. So nothing is ever undecided at a home, and what it settles it posts at once.
`ledger_core.transfer_legs` says what an item stands for.

`leg_blocks` and `leg_decisions` do whole blocks at once, to the same effect; what they cannot do at
once is done here.
"""

import numpy as np

from ledger_core.accounts import Direction, EntryKind, TransactionStatus
from ledger_core.commands import (
    NO_HASH,
    ApplyTransfers,
    CommitTransfers,
    CreateTransaction,
    DeliveredTransfers,
    PrepareTransfers,
    Refused,
)
from ledger_core.ids import transaction_request_key
from ledger_core.results import (
    Done,
    Failure,
    RefusalView,
    TransactionView,
    TransfersView,
    TransferVotesView,
)
from ledger_core.transfer_legs import (
    decision_of,
    delivered_of,
    leg_command,
    prepare_of,
    u64_column,
)
from ledger_node.books import Books, InvariantError
from ledger_node.commit_rules import apply_decision, delivered, prepare
from ledger_node.records import (
    EntryRecord,
    ParticipantRecord,
    RequestRow,
    TransactionRecord,
)
from ledger_node.refusal_rules import refusal, refused_status
from ledger_node.transaction_rules import (
    add_references,
    book_new,
    clearing_entries,
    clearing_overflow,
    new_record,
)
from ledger_node.transfer_rules import Execute
from ledger_node.views import refusal_view


def prepare_each(books: Books, block: PrepareTransfers) -> TransferVotesView:
    """At the participant: reserve and vote on each, once; the votes stand."""
    refused, numbers = {}, []
    before = len(books.undecided)
    for index in range(len(block.forms)):
        number = books.meta.next_transaction
        vote = prepare(books, prepare_of(block, index, books.shard_id), of_block=True)
        numbers.append(number if books.meta.next_transaction > number else 0)
        if vote.refused is not None:
            refused[index] = vote.refused
    # Whoever sent the block finishes it, unless he is gone.
    books.undecided_later += books.undecided[before:]
    del books.undecided[before:]
    return TransferVotesView(refused, np.array(numbers, "<u8").tobytes())


def commit_each(
    books: Books, block: CommitTransfers, execute: Execute
) -> tuple[TransfersView, object]:
    """At the home: decide on each, by the vote and its own rules; return the outcome, too.

    A request that is known here, be it as one that was abandoned, gives its first result.
    """
    first_number = 0
    statuses = bytearray(len(block.forms))
    refusals: dict[int, RefusalView] = {}
    others: dict[int, TransactionView | Failure] = {}
    for index in range(len(block.forms)):
        command = leg_command(block, index, books.shard_id)
        origin = transaction_request_key(command.account_id, command.request_id)
        if books.tables.find_request(origin) is not None:
            others[index] = first_result(books, command, execute)
            continue
        number = commit_transfer(books, command, block.refused.get(index))
        first_number = first_number or number
        record = books.find_transaction(number)
        assert record is not None, "it was recorded just now"
        statuses[index] = record.status
        why = refusal_view(record, books.meta.books[record.book])
        if why is not None:
            refusals[index] = why
    return transfers_view(books, first_number, bytes(statuses), refusals, others)


def transfers_view(
    books: Books,
    first_number: int,
    statuses: bytes,
    refusals: dict[int, RefusalView],
    others: dict[int, TransactionView | Failure],
) -> tuple[TransfersView, object]:
    """Return what became of a block at its home, and the outcome as the journal has it."""
    view = TransfersView(books.meta.time_us, first_number, statuses, refusals, others)
    return view, (first_number, statuses)


def first_result(
    books: Books, command: CreateTransaction, execute: Execute
) -> TransactionView | Failure:
    """Return the first result of a request that is known, or why it is another one."""
    result = execute(books, command)
    if not isinstance(result, TransactionView | Failure):
        raise InvariantError(f"a transfer led to {result}")
    return result


def commit_transfer(books: Books, command: CreateTransaction, vote: Refused | None) -> int:
    """At the home: record a settled transfer as it is decided, and return its number.

    ``vote`` is that of the participant: None is a yes. The commit point. What is settled is posted
    here; the participant has to be told. What is refused is final, too; a participant that voted
    yes and is not told asks.
    """
    refused = first_refusal(refusal(books, command), vote)
    clearing: list[EntryRecord] = []
    peer = command.entries[1].shard_id
    if refused is None:
        clearing = clearing_entries(books, command, peer, peer, Direction.DEBIT)
        refused = clearing_overflow(books, clearing)
    number = books.next_transaction_number()
    record = committed_record(books, command, refused, clearing)
    books.save_transaction(number, record)
    add_references(books, number, record)
    book_new(books, number, record, EntryKind.POSTED if refused is None else EntryKind.REFUSED)
    books.tables.add_request(record.origin, RequestRow(NO_HASH, number, 0))
    if refused is None:
        books.tables.put_in_flight(np.array([number]))
        books.in_flight_later.append(number)
    return number


def committed_record(
    books: Books, command: CreateTransaction, refused: Refused | None, clearing: list[EntryRecord]
) -> TransactionRecord:
    """Return what a home records of a transfer that it decides on."""
    status = TransactionStatus.SETTLED if refused is None else refused_status(refused)
    record = new_record(books, command, status, refused)
    if refused is None:
        record.clearing = clearing
    record.origin = transaction_request_key(command.account_id, command.request_id)
    other = command.entries[1]
    record.participants = [ParticipantRecord(other.shard_id, other.account_id)]
    return record


def first_refusal(own: Refused | None, vote: Refused | None) -> Refused | None:
    """Return the refusal of the lowest entry; the home's own entry is the first one."""
    if own is None or vote is None:
        return own or vote
    return vote if vote.entry_index < own.entry_index else own


def apply_each(books: Books, block: ApplyTransfers) -> Done:
    """At the participant: do what the homes decided, unless that is done, or overtaken."""
    for index in range(len(block.statuses)):
        apply_decision(books, decision_of(block, index))
    return Done()


def deliver_each(books: Books, block: DeliveredTransfers) -> Done:
    """At the home: the participants have these; nothing is left to tell."""
    for index in range(len(u64_column(block.numbers))):
        delivered(books, delivered_of(block, index))
    return Done()

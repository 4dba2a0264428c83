"""The rules of the commit across shards: two-phase commit of replicated steps.

The home begins (`transaction_rules`); every participant prepares: it checks and reserves its
entries, books what they are out of balance by to a clearing account for the home, remembers the
home, and votes. The home decides: **that log entry is the commit point**. Participants apply the
decision; then the home notes that it was delivered. Settling, cancelling and expiry of a pending
transaction are later decisions of the home, spread in the same way.

Every step may be repeated, late, or out of order: steps that were done are not done again, and a
decision that overtakes its Prepare leaves a mark that makes the late Prepare a refusal. No step
waits for another transaction and nothing is locked, so there is no deadlock. After a participant
said yes, nothing (freeze, close, limits, expiry) can make the decision fail there.
(Gray and Reuter: Transaction Processing, section 10; presumed abort: Mohan, Lindsay, Obermarck,
Transaction Management in the R* Distributed Database Management System, 1986.)
"""

import msgspec
import numpy as np

from ledger_core.accounts import Direction, EntryKind, TransactionStatus
from ledger_core.commands import (
    ApplyDecision,
    Decide,
    Delivered,
    Prepare,
    Refused,
    Resolve,
)
from ledger_core.errors import RefusalReason
from ledger_core.results import Done, TransactionView, VoteView
from ledger_node.account_events import note_refused_transaction
from ledger_node.books import Books, InvariantError
from ledger_node.records import (
    EntryRecord,
    InFlightRecord,
    RequestRow,
    StateRecord,
    TransactionRecord,
)
from ledger_node.refusal_rules import refusal, refused_status
from ledger_node.request_bodies import is_same
from ledger_node.transaction_rules import (
    add_references,
    book_end,
    book_new,
    clearing_entries,
    clearing_overflow,
    new_record,
)
from ledger_node.views import transaction_view

# The number in a participant's request row where a decision came before its Prepare.
_NEVER_PREPARED = 0

PARTICIPANT_MARK = b"p"
"""Before the origin in the key of a participant's request row."""

_UNDECIDED = TransactionStatus.UNDECIDED


def prepare(books: Books, command: Prepare, *, of_block: bool = False) -> VoteView:
    """At a participant: reserve and vote, once; the vote stands.

    ``of_block``: the transaction's record will tell all that is asked, so nothing else is kept.
    """
    key = participant_key(command.origin)
    known = books.tables.find_request(key)
    if known is not None:
        return VoteView(_vote(books, known, command))
    transaction = command.transaction
    refused = refusal(books, transaction, own_accounts=bool(command.reversal_of))
    clearing: list[EntryRecord] = []
    if refused is None:
        clearing = clearing_entries(
            books, transaction, books.shard_id, command.home_shard_id, Direction.CREDIT
        )
        refused = clearing_overflow(books, clearing)
    number = books.next_transaction_number()
    record = prepared_record(books, command, refused, clearing)
    kind = EntryKind.PENDING if refused is None else EntryKind.REFUSED
    books.save_transaction(number, record)
    add_references(books, number, record)
    book_new(books, number, record, kind)
    books.tables.add_request(key, RequestRow(command.body_hash, number, 0))
    if refused is None:
        if of_block:
            books.tables.put_undecided(np.array([number]))
        else:
            books.tables.save_undecided(number, command)
        books.undecided.append(number)
    return VoteView(refused)


def prepared_record(
    books: Books, command: Prepare, refused: Refused | None, clearing: list[EntryRecord]
) -> TransactionRecord:
    """Return what a participant records of a transaction that it votes on."""
    status = _UNDECIDED if refused is None else refused_status(refused)
    record = new_record(books, command.transaction, status, refused)
    record.origin, record.home_shard_id = command.origin, command.home_shard_id
    # Like the number, that of the home: so its accounts show of what this is the reversal.
    record.reversal_of = command.reversal_of
    if refused is None:
        record.clearing = clearing
    return record


def _vote(books: Books, known: RequestRow, command: Prepare) -> Refused | None:
    """Return the vote that stands. What was prepared under the request id of another is a no."""
    if known.number == _NEVER_PREPARED or not is_same(
        books, known, command.body_hash, command.transaction
    ):
        return Refused(0, reason=RefusalReason.ABANDONED)
    record = _find(books, known.number)
    # A yes that was decided to be a no is a no: this Prepare is late, or a repeat.
    return record.refusal


def decide(books: Books, command: Decide) -> TransactionView:
    """At the home: the commit point. A transaction that was decided stays so."""
    record = _find(books, command.number)
    if record.status is _UNDECIDED:
        refused = _first_refusal(record, command)
        if refused is None:
            _become(books, command.number, record, _decided_status(record))
        else:
            record.refusal = refused
            _become(books, command.number, record, refused_status(refused))
            note_refused_transaction(books, command.number, record)
            _give_back_reversal(books, record)
            if record.expire_time_us:
                books.tables.drop_expiration(record.expire_time_us, command.number)
        books.tables.save_in_flight(command.number, InFlightRecord(len(record.states) - 1))
        books.in_flight.append(command.number)
    return show(books, command.number, record)


def _first_refusal(record: TransactionRecord, command: Decide) -> Refused | None:
    """Return the refusal of the lowest entry; a vote that is missing is one, too."""
    votes = {vote.shard_id: vote.refused for vote in command.votes}
    refusals = []
    for participant in record.participants:
        if participant.shard_id not in votes:
            shards = [entry.shard_id for entry in record.entries]
            index = shards.index(participant.shard_id)
            refusals.append(Refused(index, reason=RefusalReason.SHARD_UNREACHABLE))
        elif (refused := votes[participant.shard_id]) is not None:
            refusals.append(refused)
    return min(refusals, key=lambda refused: refused.entry_index, default=None)


def _decided_status(record: TransactionRecord) -> TransactionStatus:
    return TransactionStatus.SETTLED if record.settled else TransactionStatus.PENDING


def _become(
    books: Books, number: int, record: TransactionRecord, status: TransactionStatus
) -> None:
    """Bring a record into a state, with what that means for what it has reserved here."""
    first = record.states[0]
    record.states.append(msgspec.structs.replace(first, status=status, time_us=books.meta.time_us))
    books.save_transaction(number, record)
    if status is not TransactionStatus.PENDING:
        book_end(books, number, record, status)


def _give_back_reversal(books: Books, record: TransactionRecord) -> None:
    """A reversal that is refused leaves the whole amount to be reversed."""
    if not record.reversal_of:
        return
    original = _find(books, record.reversal_of)
    original.reversed_amounts = [
        done - part
        for done, part in zip(original.reversed_amounts, record.reversal_amounts, strict=True)
    ]
    books.save_transaction(record.reversal_of, original)


def apply_decision(books: Books, command: ApplyDecision) -> Done:
    """At a participant: do what the home decided, unless that is done, or overtaken."""
    key = participant_key(command.origin)
    known = books.tables.find_request(key)
    if known is None:
        if not command.status.is_refusal:
            raise InvariantError(f"{command.status.name} was decided without this shard's vote")
        books.tables.add_request(key, RequestRow(bytes(16), _NEVER_PREPARED, 0))
        return Done()
    if known.number == _NEVER_PREPARED:
        return Done()
    record = _find(books, known.number)
    if learn_decision(books, known.number, record, command):
        book_end(books, known.number, record, command.status)
    return Done()


def learn_decision(
    books: Books, number: int, record: TransactionRecord, command: ApplyDecision
) -> bool:
    """Let a record be what the home decided; return whether that ends what it has reserved here.

    The caller is to book the end.
    """
    record.home_number = record.home_number or command.number
    ends = False
    if record.status is _UNDECIDED or (
        record.status is TransactionStatus.PENDING and command.status is not record.status
    ):
        if record.status is TransactionStatus.PENDING and command.status.is_refusal:
            raise InvariantError("a transaction that was committed is refused")
        if record.status is _UNDECIDED:
            books.tables.drop_undecided(number)
        record.settled_amount = command.settled_amount
        record.refusal = command.refused
        record.states.append(StateRecord(command.status, books.meta.time_us, command.request_id))
        ends = command.status is not TransactionStatus.PENDING
        if not ends:
            books.tables.add_pending(number)
        if command.status.is_refusal:
            note_refused_transaction(books, number, record)
    elif command.refused is not None and record.refusal not in (None, command.refused):
        # This shard said no, and so did another: all histories show the reason that the home gives.
        record.refusal = command.refused
        record.states.append(StateRecord(command.status, books.meta.time_us, command.request_id))
    books.save_transaction(number, record)
    return ends


def delivered(books: Books, command: Delivered) -> Done:
    """At the home: all participants have this state; nothing is left to tell, if it is the last."""
    in_flight = books.tables.find_in_flight(command.number)
    if in_flight is not None and in_flight.state == command.state and in_flight.prepare is None:
        books.tables.drop_in_flight(command.number)
    return Done()


def resolve(books: Books, command: Resolve) -> TransactionView:
    """At the home, asked by a participant: what became of the transaction?

    What was never begun here is refused, for good, before that is said: a Begin that is still on
    its way will find the refusal under its request id. Where another body has taken the request
    id, this one is refused, too, and has no number here.
    """
    prepared = command.prepared
    known = books.tables.find_request(prepared.origin)
    if known is not None and is_same(books, known, prepared.body_hash, prepared.transaction):
        record = _find(books, known.number)
        return show(books, known.number, record)
    refused = Refused(0, reason=RefusalReason.ABANDONED)
    record = new_record(books, prepared.transaction, refused_status(refused), refused)
    if known is not None:
        return show(books, 0, record)
    number = books.next_transaction_number()
    record.origin, record.reversal_of = prepared.origin, prepared.reversal_of
    books.save_transaction(number, record)
    add_references(books, number, record)
    book_new(books, number, record, EntryKind.REFUSED)
    books.tables.add_request(prepared.origin, RequestRow(prepared.body_hash, number, 0))
    return show(books, number, record)


def show(books: Books, number: int, record: TransactionRecord) -> TransactionView:
    """Show a transaction as it is now."""
    return transaction_view(number, record, books.meta.books[record.book])


def _find(books: Books, number: int) -> TransactionRecord:
    record = books.find_transaction(number)
    if record is None:
        raise InvariantError(f"transaction {number} is missing")
    return record


def participant_key(origin: bytes) -> bytes:
    """Return the key of the request row by which a participant knows a transaction."""
    return PARTICIPANT_MARK + origin

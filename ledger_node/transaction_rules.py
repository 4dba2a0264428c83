"""The rules of transactions: how they begin, what is refused and why, how they end.

A transaction whose accounts are all on this shard is done in one step. One across shards begins
here, at its home: its own entries are reserved (PENDING), and a clearing entry per other shard and
currency makes the reserved money balance ("due to", "due from"). How it goes on is in
`commit_rules`.
"""

from collections.abc import Iterable

import msgspec

from ledger_core.accounts import Direction, EntryKind, TransactionStatus
from ledger_core.commands import (
    CancelTransaction,
    CreateTransaction,
    Entry,
    Prepare,
    Refused,
    ReverseTransaction,
    SettleTransaction,
    unbalanced_currencies,
)
from ledger_core.errors import Reason, RefusalReason
from ledger_core.ids import (
    format_account_id,
    format_transaction_id,
    is_system_account_id,
)
from ledger_core.ledgers import Currency
from ledger_core.money import format_amount
from ledger_core.results import Failure, VoteView
from ledger_node.account_events import note_refused_transaction
from ledger_node.books import Books, InvariantError
from ledger_node.records import (
    EntryRecord,
    InFlightRecord,
    ParticipantRecord,
    StateRecord,
    TransactionRecord,
)
from ledger_node.refusal_rules import check_floors, refusal, refused_amounts, refused_status
from ledger_node.views import account_failure, account_not_found, transaction_not_found

# How many pending transactions one log entry expires, if they have no more entries together than
# a log entry may book; the next one goes on.
EXPIRED_PER_BATCH_MAX = 1_000


# Of a reversal that asks for too much: what is left of so many entries is told.
_LEFT_SHOWN_MAX = 16

# Beginning


def create_transaction(
    books: Books, command: CreateTransaction, origin: bytes, body_hash: bytes
) -> int | Failure:
    """Record a transaction, begun or refused; return its number, or why nothing was recorded."""
    if not command.entries:
        expanded = expand(books, command)
        if isinstance(expanded, Failure):
            return expanded
        refused = refusal(books, expanded, own_accounts=True)
        if refused is not None and refused.reason is RefusalReason.BALANCE_OVERFLOW:
            return _overflow_failure(expanded.entries[refused.entry_index], refused)
        return record_transaction(
            books, command, expanded, refused, origin=origin, body_hash=body_hash
        )
    refused = refusal(books, command)
    return record_transaction(books, command, command, refused, origin=origin, body_hash=body_hash)


def dry_run(books: Books, command: CreateTransaction) -> VoteView | Failure:
    """Say whether the accounts on this shard would take a transaction now. Nothing is kept."""
    if not command.entries:
        expanded = expand(books, command)
        if isinstance(expanded, Failure):
            return expanded
        return VoteView(refusal(books, expanded, own_accounts=True))
    return VoteView(refusal(books, command))


def expand(books: Books, command: CreateTransaction) -> CreateTransaction | Failure:
    """Return the one-account form as entries: the account against its external account."""
    account_id = command.account_id
    slot = books.find_slot(account_id)
    if slot is None:
        return account_not_found(account_id)
    if is_system_account_id(books.meta.lower_bound, account_id):
        return account_failure(
            Reason.SYSTEM_ACCOUNT,
            account_id,
            "belongs to the ledger itself and moves only as the other side of a customer's "
            "transaction",
        )
    balance = books.balance(slot)
    book = books.meta.books[balance.book]
    normal_side = balance.type.normal_side
    direction = normal_side if command.amount > 0 else normal_side.opposite
    amount, currency = abs(command.amount), Currency(book.currency, book.currency_exponent)
    external = books.balance(book.external_slot)
    entries = [
        Entry(account_id, direction, amount, currency, books.shard_id),
        Entry(external.account_id, direction.opposite, amount, currency, books.shard_id),
    ]
    return msgspec.structs.replace(command, entries=entries, ledger=book.ledger)


def reverse_transaction(
    books: Books, command: ReverseTransaction, origin: bytes, body_hash: bytes
) -> int | Failure:
    """Record the mirror of a settled transaction, or of parts of it; return its number."""
    record = books.find_transaction(command.number)
    if record is None or record.account_id != command.account_id:
        return transaction_not_found(command.account_id, command.number)
    transaction_id = format_transaction_id(command.account_id, command.number)
    if record.status is not TransactionStatus.SETTLED:
        return Failure(
            Reason.TRANSACTION_NOT_SETTLED,
            f"transaction {transaction_id} is {record.status.name}; only SETTLED transactions can "
            f"be reversed",
            field="transaction_id",
            metadata={"transaction_id": transaction_id, "status": record.status.name},
        )
    before = record.reversed_amounts or [0] * len(record.entries)
    left = [
        (record.settled_amount or entry.amount) - reversed_
        for entry, reversed_ in zip(record.entries, before, strict=True)
    ]
    amounts = command.amounts or left
    if (
        len(amounts) != len(left)
        or not any(amounts)
        or any(amount > rest for amount, rest in zip(amounts, left, strict=False))
    ):
        return _reversal_exceeds(transaction_id, amounts, left)
    book = books.meta.books[record.book]
    mirror = [
        Entry(
            entry.account_id,
            entry.direction.opposite,
            amount,
            Currency(entry.currency or book.currency, entry.currency_exponent),
            books.shard_id if entry.shard_id is None else entry.shard_id,
        )
        for entry, amount in zip(record.entries, amounts, strict=True)
        if amount
    ]
    if differences := unbalanced_currencies(mirror):
        return Failure(
            Reason.INVALID_FIELDS,
            f"amounts do not balance: debits exceed credits by {differences}",
            field="amounts",
        )
    draft = CreateTransaction(
        account_id=record.account_id,
        amount=amounts[0] if record.amount < 0 else -amounts[0] if record.amount else 0,
        description=command.description,
        settled=True,
        request_id=command.request_id,
        entries=mirror,
        ledger=book.ledger,
        actor=command.actor,
        source=command.source,
    )
    refused = refusal(books, draft, own_accounts=True)
    number = record_transaction(
        books,
        draft,
        draft,
        refused,
        origin=origin,
        body_hash=body_hash,
        reversal_of=command.number,
    )
    reversal = books.find_transaction(number)
    if reversal is not None and not reversal.status.is_refusal:
        reversal.reversal_amounts = amounts
        record.reversed_amounts = [a + b for a, b in zip(before, amounts, strict=True)]
        books.save_transaction(command.number, record)
    return number


def _reversal_exceeds(transaction_id: str, amounts: list[int], left: list[int]) -> Failure:
    """Say what is left: of every entry, if there are few, else of the first that has too little."""
    if len(left) <= _LEFT_SHOWN_MAX:
        what, shown = f"{', '.join(map(str, left))} are left", ",".join(map(str, left))
    elif len(amounts) != len(left):
        what, shown = f"there are {len(left):,}, and {len(amounts):,} amounts", ""
    else:
        pairs = enumerate(zip(amounts, left, strict=True))
        over = next((index for index, (amount, rest) in pairs if amount > rest), 0)
        what, shown = f"entry {over} has {left[over]} left, not {amounts[over]},", str(left[over])
    return Failure(
        Reason.REVERSAL_EXCEEDS,
        f"of the entries of transaction {transaction_id}, {what} to be reversed",
        field="amounts",
        metadata={"transaction_id": transaction_id, "left": shown},
    )


def record_transaction(
    books: Books,
    asked: CreateTransaction,
    expanded: CreateTransaction,
    refused: Refused | None,
    *,
    origin: bytes,
    body_hash: bytes,
    reversal_of: int = 0,
) -> int:
    """Record a transaction at its home and book it, or begin it if other shards take part.

    ``expanded`` is ``asked`` with its entries and ledger filled in.
    """
    participants = [
        ParticipantRecord(shard_id, routing_id)
        for shard_id, routing_id in sorted(routing_ids(expanded.entries).items())
        if shard_id != books.shard_id
    ]
    clearing = []
    if refused is None and participants:
        parts = _by_shard(expanded.entries)
        for peer in (participant.shard_id for participant in participants):
            part = msgspec.structs.replace(expanded, entries=parts[peer])
            clearing += clearing_entries(books, part, peer, peer, Direction.DEBIT)
        refused = clearing_overflow(books, clearing)
    if refused is not None:
        status, kind, clearing = refused_status(refused), EntryKind.REFUSED, []
    elif participants:
        status, kind = TransactionStatus.UNDECIDED, EntryKind.PENDING
    elif expanded.settled:
        status, kind = TransactionStatus.SETTLED, EntryKind.POSTED
    else:
        status, kind = TransactionStatus.PENDING, EntryKind.PENDING
    number = books.next_transaction_number()
    record = new_record(books, expanded, status, refused)
    record.amount = asked.amount
    record.reversal_of, record.clearing = reversal_of, clearing
    if participants:
        record.origin, record.participants = origin, participants
        if refused is None:
            prepare = Prepare(0, origin, body_hash, books.shard_id, expanded, reversal_of)
            books.tables.save_in_flight(number, InFlightRecord(0, prepare))
        books.in_flight.append(number)
    books.save_transaction(number, record)
    add_references(books, number, record)
    book_new(books, number, record, kind)
    if expanded.expire_time_us and status in (
        TransactionStatus.PENDING,
        TransactionStatus.UNDECIDED,
    ):
        books.tables.add_expiration(expanded.expire_time_us, number)
    return number


def routing_ids(entries: Iterable[Entry]) -> dict[int, int]:
    """Return the shards of entries, each with the first account on it."""
    found: dict[int, int] = {}
    for entry in entries:
        found.setdefault(entry.shard_id, entry.account_id)
    return found


def _by_shard(entries: Iterable[Entry]) -> dict[int, list[Entry]]:
    found: dict[int, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.shard_id, []).append(entry)
    return found


def new_record(
    books: Books, command: CreateTransaction, status: TransactionStatus, refused: Refused | None
) -> TransactionRecord:
    """Return the record of a transaction with entries, as it is on this shard."""
    time_us = books.meta.time_us
    return TransactionRecord(
        account_id=command.account_id,
        amount=command.amount,
        description=command.description,
        settled=command.settled,
        book=books.book(command.ledger, command.entries[0].currency),
        entries=[
            EntryRecord(
                entry.account_id,
                entry.direction,
                entry.amount,
                entry.currency.code,
                entry.currency.exponent,
                None if entry.shard_id == books.shard_id else entry.shard_id,
            )
            for entry in command.entries
        ],
        states=[state_of(books, command, status)],
        effective_time_us=command.effective_time_us or time_us,
        refusal=refused,
        external_reference=command.external_reference,
        metadata=command.metadata,
        expire_time_us=command.expire_time_us,
    )


def state_of(
    books: Books,
    command: CreateTransaction | SettleTransaction | CancelTransaction,
    status: TransactionStatus,
) -> StateRecord:
    """Return the state that a command leads to, with who asked for it."""
    return StateRecord(
        status,
        books.meta.time_us,
        command.request_id,
        command.actor,
        command.source.correlation_id,
        command.source.peer,
    )


def add_references(books: Books, number: int, record: TransactionRecord) -> None:
    """Make a new transaction be found by its external reference and metadata keys."""
    for digest in record.reference_digests(books.meta.books[record.book].ledger):
        books.tables.add_reference(digest, number)


def clearing_entries(
    books: Books, command: CreateTransaction, of_shard: int, peer: int, debit_side: Direction
) -> list[EntryRecord]:
    """Return what a shard's part of the entries is out of balance by, against a peer's account.

    ``debit_side`` is the side on which surplus debits are booked: DEBIT at the home, which stands
    in for the participant, CREDIT at the participant, whose own books it balances.
    """
    part = [entry for entry in command.entries if entry.shard_id == of_shard]
    currencies = {entry.currency.code: entry.currency for entry in part}
    return [
        EntryRecord(
            books.in_transit_account(command.ledger, currencies[code], peer),
            debit_side if difference > 0 else debit_side.opposite,
            abs(difference),
            code,
            currencies[code].exponent,
        )
        for code, difference in sorted(unbalanced_currencies(part).items())
    ]


def clearing_overflow(books: Books, clearing: Iterable[EntryRecord]) -> Refused | None:
    """Return a refusal if a clearing account has no room left: it is int64 like any other."""
    for entry in clearing:
        room = books.balance(books.slot(entry.account_id)).room(entry.direction)
        if entry.amount > room:
            return refused_amounts(0, entry.amount, room, reason=RefusalReason.BALANCE_OVERFLOW)
    return None


def book_new(books: Books, number: int, record: TransactionRecord, kind: EntryKind) -> None:
    """Book a new transaction on this shard; a refused one only shows in the histories."""
    if kind is EntryKind.REFUSED:
        known = [e for e in record.booked if books.find_slot(e.account_id) is not None]
        books.book_entries(number, known, kind)
        note_refused_transaction(books, number, record)
        return
    if kind is EntryKind.PENDING and not record.awaits_home:
        books.tables.add_pending(number)
    books.book_entries(number, record.booked, kind, effective_us=_own_effective_us(record))
    check_floors(books, record.booked, nets=kind is EntryKind.POSTED)


def _own_effective_us(record: TransactionRecord) -> int:
    """Return the effective time if it is another than the time of recording, else 0."""
    effective_us = record.effective_time_us
    return 0 if effective_us == record.states[0].time_us else effective_us


def _overflow_failure(entry: Entry, refused: Refused) -> Failure:
    """Say of the one-account form, which is not recorded then, that a counter is full."""
    account_id = format_account_id(entry.account_id)
    room = format_amount(refused.available_amount, entry.currency.code, entry.currency.exponent)
    return Failure(
        Reason.BALANCE_OVERFLOW,
        f"the {entry.direction.name.lower()}s of account {account_id} would pass 2**63 - 1; there "
        f"is room for {room}",
        field="amount",
        metadata={"account_id": account_id, "room": str(refused.available_amount)},
    )


# Ending


def end_transaction(
    books: Books, command: SettleTransaction | CancelTransaction
) -> TransactionRecord | Failure:
    """Settle or cancel a pending transaction, whatever has become of its accounts meanwhile."""
    record = books.find_transaction(command.number)
    if record is None or record.account_id != command.account_id:
        return transaction_not_found(command.account_id, command.number)
    transaction_id = format_transaction_id(command.account_id, command.number)
    if record.status is not TransactionStatus.PENDING:
        return Failure(
            Reason.TRANSACTION_NOT_PENDING,
            f"transaction {transaction_id} is {record.status.name}; only PENDING transactions "
            f"can be settled or cancelled",
            field="transaction_id",
            metadata={"transaction_id": transaction_id, "status": record.status.name},
        )
    status, amount = TransactionStatus.CANCELLED, 0
    if isinstance(command, SettleTransaction):
        status, amount = TransactionStatus.SETTLED, command.amount
        whole = record.entries[0].amount
        if amount and (len(record.entries) != 2 or amount > whole):
            return Failure(
                Reason.SETTLE_AMOUNT,
                f"transaction {transaction_id} has {len(record.entries)} entries, the first of "
                f"{whole}: only two-entry transactions can be settled in part, up to the whole",
                field="amount",
                metadata={"transaction_id": transaction_id, "maximum": str(whole)},
            )
        amount = 0 if amount == whole else amount
    _end(books, command.number, record, state_of(books, command, status), amount)
    return record


def expire_transactions(books: Books) -> None:
    """End the pending transactions whose time is over, before anything else is looked at.

    Each is an item of the journal, like a command.
    """
    due = []
    for expire_us, number in books.tables.expirations_until(books.meta.time_us):
        due.append((expire_us, number))
        if len(due) == EXPIRED_PER_BATCH_MAX:
            break
    for expire_us, number in due:
        if books.is_full:
            break
        record = books.find_transaction(number)
        if record is None:
            raise InvariantError(f"transaction {number} is to expire, but is missing")
        # Until it is decided nothing can make it fail; it expires once it is PENDING.
        if record.status is TransactionStatus.PENDING:
            outcome = expire_transaction(books, number, record)
            books.end_item(b"", outcome)
        elif record.status is not TransactionStatus.UNDECIDED:
            books.tables.drop_expiration(expire_us, number)


def expire_transaction(books: Books, number: int, record: TransactionRecord) -> tuple[int, int]:
    """End a pending transaction because its time is over; return its number and state."""
    state = StateRecord(TransactionStatus.EXPIRED, books.meta.time_us, "")
    _end(books, number, record, state, 0)
    return number, len(record.states) - 1


def _end(
    books: Books,
    number: int,
    record: TransactionRecord,
    state: StateRecord,
    settled_amount: int,
) -> None:
    """End a pending transaction at its home; participants are to be told."""
    record.states.append(state)
    record.settled_amount = settled_amount
    books.save_transaction(number, record)
    books.count_end(record)
    book_end(books, number, record, state.status)
    if record.expire_time_us:
        books.tables.drop_expiration(record.expire_time_us, number)
    if record.participants:
        books.tables.save_in_flight(number, InFlightRecord(len(record.states) - 1))
        books.in_flight.append(number)


_END_KINDS = {
    TransactionStatus.SETTLED: EntryKind.SETTLED,
    TransactionStatus.CANCELLED: EntryKind.CANCELLED,
    TransactionStatus.EXPIRED: EntryKind.EXPIRED,
    TransactionStatus.INSUFFICIENT_FUNDS: EntryKind.CANCELLED,
    TransactionStatus.REJECTED: EntryKind.CANCELLED,
}


def book_end(
    books: Books, number: int, record: TransactionRecord, status: TransactionStatus
) -> None:
    """Turn what is reserved on this shard into posted money, or release it, or some of each."""
    books.tables.drop_pending(number)
    effective_us = _own_effective_us(record)
    if not record.settled_amount:
        books.book_entries(number, record.booked, _END_KINDS[status], effective_us=effective_us)
        return
    for amount_of, kind, ends in (
        (lambda _entry: record.settled_amount, EntryKind.SETTLED, True),
        (lambda entry: entry.amount - record.settled_amount, EntryKind.CANCELLED, False),
    ):
        parts = [msgspec.structs.replace(e, amount=amount_of(e)) for e in record.booked]
        books.book_entries(number, parts, kind, ends=ends, effective_us=effective_us)

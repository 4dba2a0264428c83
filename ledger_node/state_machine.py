"""The state machine of a shard: every accounting rule, and nothing else.

`StateMachine.apply` is a pure function of the tables and the log entry: the same entries in the
same order give the same tables on every replica. It asks no clock, draws no random number and
knows no network. Refusals are values. What must never happen raises InvariantError, which ends the
process before anything of the turn is stored or sent.

Double entry: every transaction is a list of entries whose debits equal its credits, and every log
entry is checked to have left the shard's books balanced, posted and pending.
"""

import hashlib
import struct
from collections import defaultdict

import msgspec

from ledger_core.accounts import AccountType, Direction, EntryKind, TransactionStatus
from ledger_core.commands import (
    CancelTransaction,
    Command,
    CreateAccount,
    CreateTransaction,
    SettleTransaction,
    command_body,
    decode_batch,
)
from ledger_core.errors import Reason
from ledger_core.ids import (
    format_account_id,
    format_transaction_id,
    is_system_account_id,
    request_key,
    system_account_id,
)
from ledger_core.ledgers import LEDGERS, Ledger
from ledger_core.money import format_amount
from ledger_core.results import Failure, Result
from ledger_node.records import (
    AccountRecord,
    BalanceRow,
    Book,
    EntryRecord,
    EntryRow,
    RefusalRecord,
    RequestRow,
    ShardMeta,
    StateRecord,
    TransactionRecord,
)
from ledger_node.store import ENTRIES_PER_MARK, ShardTables
from ledger_node.views import (
    account_failure,
    account_not_found,
    account_view,
    transaction_not_found,
    transaction_view,
)

_encode = msgspec.msgpack.Encoder().encode

# What an entry of each kind adds to the posted and the pending counter of its side.
_EFFECT = {
    EntryKind.POSTED: (1, 0),
    EntryKind.PENDING: (0, 1),
    EntryKind.SETTLED: (1, -1),
    EntryKind.CANCELLED: (0, -1),
    EntryKind.REFUSED: (0, 0),
}


class InvariantError(Exception):
    """The books or the log are not what they must be. Never caught: the process ends."""


class StateMachine:
    """Applies log entries to the tables of one shard."""

    def __init__(self, tables: ShardTables) -> None:
        self._tables = tables

    def apply(self, index: int, payload: bytes) -> list[Result]:
        """Apply the batch of commands of log entry ``index``; one result per command.

        Indexes rise. Everything is written through the tables, into the caller's transaction,
        together with ``index`` as the applied index: no entry is ever applied twice.
        """
        batch = decode_batch(payload)
        meta = self._tables.meta()
        if index <= meta.applied_index:
            raise InvariantError(f"log entry {index} is applied already")
        meta.applied_index = index
        meta.time_us = max(meta.time_us, batch.time_us)
        run = _Run(self._tables, meta)
        results = [run.execute(command) for command in batch.commands]
        run.finish(payload)
        return results


def chain_hash(
    previous: bytes, index: int, payload: bytes, outcomes: list[object], rows: list[bytes]
) -> bytes:
    """Return the shard's hash chain after a log entry.

    BLAKE2b-256 over the previous hash, the index, the payload, the outcome of every command
    (a reason, or the transaction's number and state) and the entry rows written.
    """
    encoded = _encode(outcomes)
    digest = hashlib.blake2b(previous, digest_size=32)
    digest.update(struct.pack("<QQQ", index, len(payload), len(encoded)))
    digest.update(payload)
    digest.update(encoded)
    for row in rows:
        digest.update(row)
    return digest.digest()


class _Run:
    """The application of one log entry: rows read so far, and what is to be written."""

    def __init__(self, tables: ShardTables, meta: ShardMeta) -> None:
        self._tables = tables
        self._meta = meta
        self._first_position = meta.next_position
        self._slots: dict[int, int] = {}
        self._balances: dict[int, BalanceRow] = {}
        self._transactions: dict[int, TransactionRecord] = {}
        self._entries: list[bytes] = []
        self._outcomes: list[object] = []
        # Debits minus credits booked by this log entry, by book: posted and pending.
        self._posted_imbalance: defaultdict[int, int] = defaultdict(int)
        self._pending_imbalance: defaultdict[int, int] = defaultdict(int)

    def execute(self, command: Command) -> Result:
        """Execute a command, or find the first result of an earlier one with its request id."""
        key = request_key(command.request_id) + _scope(command)
        body_hash = hashlib.blake2b(command_body(command), digest_size=16).digest()
        first = self._tables.find_request(key)
        outcome: RequestRow | Failure
        if first is None:
            outcome = self._dispatch(command, body_hash)
            if isinstance(outcome, RequestRow):
                self._tables.add_request(key, outcome)
        elif first.body_hash != body_hash:
            outcome = self._reused_request_id(command, first)
        else:
            outcome = first
        if isinstance(outcome, Failure):
            self._outcomes.append(outcome.reason)
            return outcome
        self._outcomes.append((outcome.number, outcome.state))
        return self._first_result(command, outcome)

    def finish(self, payload: bytes) -> None:
        """Check the books, then write what was gathered."""
        if any(self._posted_imbalance.values()) or any(self._pending_imbalance.values()):
            raise InvariantError(
                f"log entry {self._meta.applied_index} leaves the books unbalanced: "
                f"posted {dict(self._posted_imbalance)}, pending {dict(self._pending_imbalance)}"
            )
        for slot in sorted(self._balances):
            self._tables.save_balance(slot, self._balances[slot])
        for number in sorted(self._transactions):
            self._tables.save_transaction(number, self._transactions[number])
        if self._entries:
            self._tables.append_entries(self._first_position, self._entries)
        meta = self._meta
        meta.chain_hash = chain_hash(
            meta.chain_hash, meta.applied_index, payload, self._outcomes, self._entries
        )
        self._tables.save_meta(meta)

    # Commands. Each returns what to remember of the request, or a Failure that changed nothing.

    def _dispatch(self, command: Command, body_hash: bytes) -> RequestRow | Failure:
        match command:
            case CreateTransaction():
                return self._create_transaction(command, body_hash)
            case SettleTransaction():
                return self._end_transaction(
                    command, body_hash, TransactionStatus.SETTLED, EntryKind.SETTLED
                )
            case CancelTransaction():
                return self._end_transaction(
                    command, body_hash, TransactionStatus.CANCELLED, EntryKind.CANCELLED
                )
            case CreateAccount():
                return self._create_account(command, body_hash)

    def _create_account(self, command: CreateAccount, body_hash: bytes) -> RequestRow | Failure:
        ledger = LEDGERS.get(command.ledger)
        if ledger is None:
            return Failure(
                Reason.LEDGER_NOT_FOUND,
                f"there is no ledger {command.ledger!r}; the ledgers are: {', '.join(LEDGERS)}",
                field="ledger",
                metadata={"ledger": command.ledger},
            )
        account_id = command.account_id
        if self._find_slot(account_id) is not None or is_system_account_id(
            self._meta.lower_bound, account_id
        ):
            return Failure(
                Reason.ACCOUNT_ID_TAKEN,
                f"the account id {format_account_id(account_id)}, which follows from the request "
                f"id, belongs to another account; use another request id",
                field="request_id",
                metadata={"account_id": format_account_id(account_id)},
            )
        book = self._book(ledger)
        slot = self._add_account(
            AccountRecord(account_id, command.request_id, self._meta.time_us),
            BalanceRow(account_id=account_id, book=book, type=AccountType.LIABILITY),
        )
        return RequestRow(body_hash, slot, 0)

    def _create_transaction(
        self, command: CreateTransaction, body_hash: bytes
    ) -> RequestRow | Failure:
        account_id = command.account_id
        slot = self._find_slot(account_id)
        if slot is None:
            return account_not_found(account_id)
        if is_system_account_id(self._meta.lower_bound, account_id):
            return account_failure(
                Reason.SYSTEM_ACCOUNT,
                account_id,
                "belongs to the ledger itself and moves only as the other side of a customer's "
                "transaction",
            )
        balance = self._balance(slot)
        normal_side = balance.type.normal_side
        direction = normal_side if command.amount > 0 else normal_side.opposite
        amount = abs(command.amount)
        external = self._balance(self._meta.books[balance.book].external_slot)
        entries = [
            EntryRecord(account_id, direction, amount),
            EntryRecord(external.account_id, direction.opposite, amount),
        ]
        refusal = self._insufficient_funds(entries)
        if refusal is None and (failure := self._overflow(entries)):
            return failure
        if refusal is not None:
            status, kind = TransactionStatus.INSUFFICIENT_FUNDS, EntryKind.REFUSED
        elif command.settled:
            status, kind = TransactionStatus.SETTLED, EntryKind.POSTED
        else:
            status, kind = TransactionStatus.PENDING, EntryKind.PENDING
        number = self._meta.next_transaction
        self._meta.next_transaction += 1
        record = TransactionRecord(
            account_id=account_id,
            amount=command.amount,
            description=command.description,
            settled=command.settled,
            book=balance.book,
            entries=entries,
            states=[StateRecord(status, self._meta.time_us, command.request_id)],
            effective_time_us=self._meta.time_us,
            refusal=refusal,
        )
        self._transactions[number] = record
        self._book_entries(number, record, kind)
        return RequestRow(body_hash, number, 0)

    def _end_transaction(
        self,
        command: SettleTransaction | CancelTransaction,
        body_hash: bytes,
        status: TransactionStatus,
        kind: EntryKind,
    ) -> RequestRow | Failure:
        record = self._find_transaction(command.number)
        if record is None or record.account_id != command.account_id:
            return transaction_not_found(command.account_id, command.number)
        if record.status is not TransactionStatus.PENDING:
            transaction_id = format_transaction_id(command.account_id, command.number)
            return Failure(
                Reason.TRANSACTION_NOT_PENDING,
                f"transaction {transaction_id} is {record.status.name}; only PENDING transactions "
                f"can be settled or cancelled",
                field="transaction_id",
                metadata={"transaction_id": transaction_id, "status": record.status.name},
            )
        record.states.append(StateRecord(status, self._meta.time_us, command.request_id))
        self._transactions[command.number] = record
        self._book_entries(command.number, record, kind)
        return RequestRow(body_hash, command.number, len(record.states) - 1)

    # Rules

    def _insufficient_funds(self, entries: list[EntryRecord]) -> RefusalRecord | None:
        """Return why the transaction would overdraw an account, or None.

        The check is on the state after the whole transaction. Only outflows are checked: an inflow
        is accepted whatever the balance.
        """
        outflows: defaultdict[int, int] = defaultdict(int)
        for entry in entries:
            slot = self._must_find_slot(entry.account_id)
            is_inflow = entry.direction is self._balance(slot).type.normal_side
            outflows[slot] += -entry.amount if is_inflow else entry.amount
        for entry_index, entry in enumerate(entries):
            slot = self._must_find_slot(entry.account_id)
            balance = self._balance(slot)
            normal_side = balance.type.normal_side
            available = balance.available_balance(normal_side)
            if balance.floored and outflows[slot] > max(available, 0):
                return RefusalRecord(
                    entry_index=entry_index,
                    required_amount=outflows[slot],
                    available_amount=available,
                    reserved_amount=balance.settled_balance(normal_side) - available,
                )
        return None

    def _overflow(self, entries: list[EntryRecord]) -> Failure | None:
        """Return a failure if booking the entries would take a counter beyond int64."""
        for entry in entries:
            balance = self._balance(self._must_find_slot(entry.account_id))
            room = balance.room(entry.direction)
            if entry.amount > room:
                book = self._meta.books[balance.book]
                account_id = format_account_id(entry.account_id)
                return Failure(
                    Reason.BALANCE_OVERFLOW,
                    f"the {entry.direction.name.lower()}s of account {account_id} would pass "
                    f"2**63 - 1; there is room for "
                    f"{format_amount(room, book.currency, book.currency_exponent)}",
                    field="amount",
                    metadata={"account_id": account_id, "room": str(room)},
                )
        return None

    def _book_entries(self, number: int, record: TransactionRecord, kind: EntryKind) -> None:
        """Change the counters of all accounts of a transaction, and append to their histories."""
        posted, pending = _EFFECT[kind]
        for entry in record.entries:
            slot = self._must_find_slot(entry.account_id)
            balance = self._balance(slot)
            sign = 1 if entry.direction is Direction.DEBIT else -1
            if entry.direction is Direction.DEBIT:
                balance.debits_posted += posted * entry.amount
                balance.debits_pending += pending * entry.amount
            else:
                balance.credits_posted += posted * entry.amount
                balance.credits_pending += pending * entry.amount
            balance.pending_transactions += pending
            self._posted_imbalance[balance.book] += sign * posted * entry.amount
            self._pending_imbalance[balance.book] += sign * pending * entry.amount
            self._append_entry(slot, balance, number, entry, kind)
            self._check_floor(balance, entry, kind)

    def _append_entry(
        self, slot: int, balance: BalanceRow, number: int, entry: EntryRecord, kind: EntryKind
    ) -> None:
        meta = self._meta
        position = meta.next_position
        meta.next_position += 1
        balance.sequence += 1
        row = EntryRow(
            account_id=entry.account_id,
            transaction=number,
            amount=entry.amount,
            time_us=meta.time_us,
            sequence=balance.sequence,
            previous=balance.last_position,
            after=balance,
            direction=entry.direction,
            kind=kind,
        )
        self._entries.append(row.pack())
        balance.last_position = position
        if balance.sequence % ENTRIES_PER_MARK == 0:
            self._tables.add_entry_mark(slot, balance.sequence, position, meta.time_us)

    def _check_floor(self, balance: BalanceRow, entry: EntryRecord, kind: EntryKind) -> None:
        """Assert what `_insufficient_funds` promised: no outflow overdraws a floored account."""
        normal_side = balance.type.normal_side
        if (
            balance.floored
            and kind in (EntryKind.POSTED, EntryKind.PENDING)
            and entry.direction is not normal_side
            and balance.available_balance(normal_side) < 0
        ):
            raise InvariantError(f"account {format_account_id(balance.account_id)} is overdrawn")

    # Results

    def _first_result(self, command: Command, first: RequestRow) -> Result:
        """Show what the request did, as it was right after it."""
        if isinstance(command, CreateAccount):
            record = self._tables.account_info(first.number)
            balance = self._balance(first.number)
            book = self._meta.books[balance.book]
            at_first = BalanceRow(
                account_id=record.account_id, book=balance.book, type=balance.type
            )
            return account_view(record, at_first, book, record.create_time_us)
        transaction = self._find_transaction(first.number)
        if transaction is None:
            raise InvariantError(f"transaction {first.number} of a request is missing")
        return transaction_view(
            first.number, transaction, self._meta.books[transaction.book], first.state
        )

    def _reused_request_id(self, command: Command, first: RequestRow) -> Failure:
        """Say what differs from the request that came first."""
        differing = ["method"]
        transaction = self._find_transaction(first.number)
        if isinstance(command, CreateTransaction) and transaction is not None:
            differing = [
                field
                for field in ("amount", "description", "settled")
                if getattr(command, field) != getattr(transaction, field)
            ]
        return Failure(
            Reason.REQUEST_ID_REUSED,
            f"request id {command.request_id!r} was used before, for a request with another "
            f"{' and '.join(differing)}; use a new request id for a new request",
            field="request_id",
            metadata={"differing_fields": ",".join(differing)},
        )

    # Rows

    def _book(self, ledger: Ledger) -> int:
        """Return the index of a ledger's book on this shard; make it, and its external account."""
        meta = self._meta
        for index, book in enumerate(meta.books):
            if (book.ledger, book.currency) == (ledger.name, ledger.currency):
                return index
        index = len(meta.books)
        external_id = system_account_id(meta.lower_bound, index)
        external_slot = self._add_account(
            AccountRecord(external_id, "", meta.time_us),
            BalanceRow(account_id=external_id, book=index, type=AccountType.ASSET, floored=False),
        )
        meta.books = [
            *meta.books,
            Book(ledger.name, ledger.currency, ledger.currency_exponent, external_slot),
        ]
        return index

    def _add_account(self, record: AccountRecord, balance: BalanceRow) -> int:
        slot = self._meta.next_slot
        self._meta.next_slot += 1
        self._tables.add_account(slot, record, balance)
        return slot

    def _find_slot(self, account_id: int) -> int | None:
        slot = self._slots.get(account_id)
        if slot is None:
            slot = self._tables.find_slot(account_id)
            if slot is not None:
                self._slots[account_id] = slot
        return slot

    def _must_find_slot(self, account_id: int) -> int:
        slot = self._find_slot(account_id)
        if slot is None:
            raise InvariantError(f"account {format_account_id(account_id)} is missing")
        return slot

    def _balance(self, slot: int) -> BalanceRow:
        balance = self._balances.get(slot)
        if balance is None:
            balance = self._balances[slot] = self._tables.balance(slot)
        return balance

    def _find_transaction(self, number: int) -> TransactionRecord | None:
        return self._transactions.get(number) or self._tables.find_transaction(number)


def _scope(command: Command) -> bytes:
    """Return what a request id is unique in: the account, the transaction, or the ledger."""
    match command:
        case CreateTransaction():
            return b"a" + command.account_id.to_bytes(8)
        case SettleTransaction() | CancelTransaction():
            return b"t" + command.account_id.to_bytes(8) + command.number.to_bytes(8)
        case CreateAccount():
            return b"l" + command.ledger.encode()

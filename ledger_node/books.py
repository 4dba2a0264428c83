"""What one log entry does to the books of a shard: rows read so far, and what is to be written.

The rules read and change rows here; `Books.finish` checks that debits equal credits and writes.
Until then nothing but requests and new accounts has reached the tables.
"""

import hashlib
import struct
from collections import defaultdict
from collections.abc import Iterable

import msgspec

from ledger_core.accounts import AccountType, Direction, EntryKind
from ledger_core.ids import format_account_id, system_account_id
from ledger_core.ledgers import Currency
from ledger_node.records import (
    ENTRY_EFFECT,
    AccountRecord,
    BalanceRow,
    Book,
    EntryRecord,
    EntryRow,
    ShardMeta,
    TransactionRecord,
)
from ledger_node.store import ENTRIES_PER_MARK, ShardTables

_encode = msgspec.msgpack.Encoder().encode


# The books of a shard are numbered below this many bits; see `Books.in_transit_account`.
_BOOK_BITS = 10


class InvariantError(Exception):
    """The books or the log are not what they must be. Never caught: the process ends."""


class Books:
    """The rows of a shard during the application of one log entry."""

    def __init__(self, tables: ShardTables, meta: ShardMeta, shard_id: int) -> None:
        self.tables = tables
        self.meta = meta
        self.shard_id = shard_id
        self.in_flight: list[int] = []
        """Transactions whose participants have something to be told by this log entry."""
        self.outcomes: list[object] = []
        """Of every command: the reason of its failure, or the number and state it led to."""
        self.undecided: list[int] = []
        """Transactions that this log entry prepared here: their home has to decide."""
        self._first_position = meta.next_position
        self._slots: dict[int, int] = {}
        self._balances: dict[int, BalanceRow] = {}
        self._infos: dict[int, AccountRecord] = {}
        self._transactions: dict[int, TransactionRecord] = {}
        self._entries: list[bytes] = []
        # Debits minus credits booked by this log entry, by book: posted and pending.
        self._posted_imbalance: defaultdict[int, int] = defaultdict(int)
        self._pending_imbalance: defaultdict[int, int] = defaultdict(int)

    # Rows

    def find_slot(self, account_id: int) -> int | None:
        """Return the slot of an account."""
        slot = self._slots.get(account_id)
        if slot is None:
            slot = self.tables.find_slot(account_id)
            if slot is not None:
                self._slots[account_id] = slot
        return slot

    def slot(self, account_id: int) -> int:
        """Return the slot of an account that exists."""
        slot = self.find_slot(account_id)
        if slot is None:
            raise InvariantError(f"account {format_account_id(account_id)} is missing")
        return slot

    def balance(self, slot: int) -> BalanceRow:
        """Return the hot row of a slot; whoever changes it changes the books."""
        balance = self._balances.get(slot)
        if balance is None:
            balance = self._balances[slot] = self.tables.balance(slot)
        return balance

    def book_of(self, account_id: int) -> Book:
        """Return the book of an account that exists."""
        return self.meta.books[self.balance(self.slot(account_id)).book]

    def info(self, slot: int) -> AccountRecord:
        """Return what seldom changes of the account in a slot."""
        return self._infos.get(slot) or self.tables.account_info(slot)

    def save_info(self, slot: int, record: AccountRecord) -> None:
        """Change what seldom changes of the account in a slot."""
        self._infos[slot] = record

    def find_transaction(self, number: int) -> TransactionRecord | None:
        """Return a transaction."""
        return self._transactions.get(number) or self.tables.find_transaction(number)

    def save_transaction(self, number: int, record: TransactionRecord) -> None:
        """Store a transaction, new or changed."""
        self._transactions[number] = record

    def next_transaction_number(self) -> int:
        """Take the next running number."""
        number = self.meta.next_transaction
        self.meta.next_transaction += 1
        return number

    def add_account(self, record: AccountRecord, balance: BalanceRow) -> int:
        """Store a new account and return its slot."""
        slot = self.meta.next_slot
        self.meta.next_slot += 1
        self.tables.add_account(slot, record, balance)
        return slot

    def book(self, ledger: str, currency: Currency) -> int:
        """Return the index of a ledger's currency here; make it, and its external account."""
        meta = self.meta
        for index, book in enumerate(meta.books):
            if (book.ledger, book.currency) == (ledger, currency.code):
                return index
        index = len(meta.books)
        if index >> _BOOK_BITS:
            raise InvariantError("a shard has 1,024 ledgers and currencies at most")
        external_id = system_account_id(meta.lower_bound, index)
        external_slot = self.add_account(
            AccountRecord(external_id, "", meta.time_us),
            BalanceRow(account_id=external_id, book=index, type=AccountType.ASSET, floored=False),
        )
        meta.books = [
            *meta.books,
            Book(ledger, currency.code, currency.exponent, external_slot),
        ]
        return index

    # Booking

    def in_transit_account(self, ledger: str, currency: Currency, peer_shard_id: int) -> int:
        """Return the id of the account for money due to or from another shard; make it first."""
        book = self.book(ledger, currency)
        ordinal = (peer_shard_id + 1) << _BOOK_BITS | book
        account_id = system_account_id(self.meta.lower_bound, ordinal)
        if self.find_slot(account_id) is None:
            self.add_account(
                AccountRecord(account_id, "", self.meta.time_us),
                BalanceRow(account_id=account_id, book=book, type=AccountType.ASSET, floored=False),
            )
        return account_id

    def book_entries(
        self, number: int, entries: Iterable[EntryRecord], kind: EntryKind, *, ends: bool = True
    ) -> None:
        """Change the counters of accounts of this shard, and append to their histories.

        ``ends=False``: pending money goes, but the transaction's end is counted elsewhere.
        """
        posted, pending = ENTRY_EFFECT[kind]
        for entry in entries:
            slot = self.slot(entry.account_id)
            balance = self.balance(slot)
            sign = 1 if entry.direction is Direction.DEBIT else -1
            if entry.direction is Direction.DEBIT:
                balance.debits_posted += posted * entry.amount
                balance.debits_pending += pending * entry.amount
            else:
                balance.credits_posted += posted * entry.amount
                balance.credits_pending += pending * entry.amount
            if ends:
                balance.pending_transactions += pending
            self._posted_imbalance[balance.book] += sign * posted * entry.amount
            self._pending_imbalance[balance.book] += sign * pending * entry.amount
            self._append_entry(slot, balance, number, entry, kind)

    def _append_entry(
        self, slot: int, balance: BalanceRow, number: int, entry: EntryRecord, kind: EntryKind
    ) -> None:
        meta = self.meta
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
            self.tables.add_entry_mark(slot, balance.sequence, position, meta.time_us)

    # The end of the log entry

    def finish(self, payload: bytes) -> None:
        """Check that the books balance, then write what was gathered."""
        if any(self._posted_imbalance.values()) or any(self._pending_imbalance.values()):
            raise InvariantError(
                f"log entry {self.meta.applied_index} leaves the books unbalanced: "
                f"posted {dict(self._posted_imbalance)}, pending {dict(self._pending_imbalance)}"
            )
        for slot in sorted(self._balances):
            self.tables.save_balance(slot, self._balances[slot])
        for slot in sorted(self._infos):
            self.tables.save_account_info(slot, self._infos[slot])
        for number in sorted(self._transactions):
            self.tables.save_transaction(number, self._transactions[number])
        if self._entries:
            self.tables.append_entries(self._first_position, self._entries)
        meta = self.meta
        meta.chain_hash = chain_hash(
            meta.chain_hash, meta.applied_index, payload, self.outcomes, self._entries
        )
        self.tables.save_meta(meta)


def chain_hash(
    previous: bytes, index: int, payload: bytes, outcomes: list[object], rows: list[bytes]
) -> bytes:
    """Return the shard's hash chain after a log entry.

    BLAKE2b-256 over the previous hash, the index, the payload, the outcome of every command
    (a reason, or the number and state it led to) and the entry rows written.
    """
    encoded = _encode(outcomes)
    digest = hashlib.blake2b(previous, digest_size=32)
    digest.update(struct.pack("<QQQ", index, len(payload), len(encoded)))
    digest.update(payload)
    digest.update(encoded)
    for row in rows:
        digest.update(row)
    return digest.digest()

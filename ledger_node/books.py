"""What one log entry does to the books of a shard: rows read so far, and what is to be written.

The rules read and change rows here; `Books.finish` checks that debits equal credits, adds to the
sums by group and by effective time (`Sums`), and writes the entry of the journal. Until then only
rows that nothing sums have reached the tables. Several log entries share all this where their
blocks of transfers are joined (`Books.next_log_entry`).
"""

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from ledger_core.accounts import (
    AccountType,
    Direction,
    EntryKind,
    GroupRole,
    TransactionStatus,
)
from ledger_core.durations import duration_bucket
from ledger_core.ids import format_account_id, system_account_id
from ledger_core.journal import item_digest, next_link
from ledger_core.ledgers import Currency
from ledger_node.records import (
    ENTRY_EFFECT,
    AccountEventRecord,
    AccountRecord,
    BalanceRow,
    Book,
    EntryRecord,
    EntryRow,
    GroupRecord,
    JournalItem,
    JournalRecord,
    SettlementRecord,
    ShardMeta,
    TotalsRow,
    TransactionRecord,
)
from ledger_node.store import ENTRIES_PER_MARK, ShardTables
from ledger_node.sums import Sums, add_effect

_encode = msgspec.msgpack.Encoder().encode

DAY_US = 24 * 60 * 60 * 1_000_000

ENTRIES_PER_LOG_ENTRY_MAX = 65_536
"""Once a log entry has booked so many, it takes up nothing more that asks for many in a few bytes:
to end or reverse transactions. So a turn stays short, and a journal entry fits into a message."""

# The books of a shard are numbered below this many bits; see `Books.in_transit_account`.
BOOK_BITS = 10


class InvariantError(Exception):
    """The books or the log are not what they must be. The process ends.

    Only what is imported from elsewhere is refused instead, and leaves no trace.
    """


class Books:
    """The rows of a shard during the application of a log entry, or of several in one go."""

    def __init__(self, tables: ShardTables, meta: ShardMeta, shard_id: int) -> None:
        self.tables = tables
        self.meta = meta
        self.shard_id = shard_id
        self.in_flight: list[int] = []
        """Transactions whose participants have something to be told by this log entry."""
        self.undecided: list[int] = []
        """Transactions that this log entry prepared here: their home has to decide."""
        self.in_flight_later: list[int] = []
        """As ``in_flight``, but a gateway is about to tell them: nobody else need, for now."""
        self.undecided_later: list[int] = []
        """As ``undecided``, but a gateway is about to bring the decision."""
        self._first_position = meta.next_position
        self._sums = Sums(tables, meta.next_position)
        self._slots: dict[int, int] = {}
        self._balances: dict[int, BalanceRow] = {}
        self._infos: dict[int, AccountRecord] = {}
        self._transactions: dict[int, TransactionRecord] = {}
        self._settlements: dict[tuple[int, int], SettlementRecord] = {}
        # Packed entry rows, one or many to a piece.
        self._entries: list[bytes] = []
        self._events = 0
        # The journal: finished items with their digests; where the current one began.
        self._items: list[JournalItem] = []
        self._digests: list[bytes] = []
        self._item_entries = 0
        self._item_position = meta.next_position
        self._item_number = 0
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
        return self.take_transaction_numbers(1)

    def take_transaction_numbers(self, count: int) -> int:
        """Take the next running numbers, and return the first one."""
        number = self.meta.next_transaction
        self.meta.next_transaction += count
        self._item_number = self._item_number or number
        return number

    def write_rows(self) -> None:
        """Write the rows that were changed, and forget them: then the tables say all there is."""
        if not (self._balances or self._infos or self._transactions):
            return
        tables = self.tables
        for slot in sorted(self._balances):
            tables.save_balance(slot, self._balances[slot])
        for slot in sorted(self._infos):
            tables.save_account_info(slot, self._infos[slot])
        for number in sorted(self._transactions):
            tables.save_transaction(number, self._transactions[number])
        self._balances, self._infos, self._transactions = {}, {}, {}

    def add_account(
        self, record: AccountRecord, balance: BalanceRow, role: GroupRole = GroupRole.ACCOUNT
    ) -> int:
        """Store a new account and return its slot; it becomes part of its group."""
        slot = self.meta.next_slot
        self.meta.next_slot += 1
        group = GroupRecord(balance.book, balance.type, record.code, role)
        balance.group = self._sums.add_account(group, self.meta)
        self.tables.add_account(slot, record, balance)
        return slot

    def find_book(self, ledger: str, currency: Currency) -> int | None:
        """Return the index of a ledger's currency here; None: it has none yet."""
        for index, book in enumerate(self.meta.books):
            if (book.ledger, book.currency) == (ledger, currency.code):
                return index
        return None

    def book(self, ledger: str, currency: Currency) -> int:
        """Return the index of a ledger's currency here; make it, and its external account."""
        meta, found = self.meta, self.find_book(ledger, currency)
        if found is not None:
            return found
        index = len(meta.books)
        if index >> BOOK_BITS:
            raise InvariantError("a shard has 1,024 ledgers and currencies at most")
        external_id = system_account_id(meta.lower_bound, index)
        external_slot = self.add_account(
            AccountRecord(external_id, "", meta.time_us),
            BalanceRow(account_id=external_id, book=index, type=AccountType.ASSET, floored=False),
            GroupRole.EXTERNAL,
        )
        meta.books = [
            *meta.books,
            Book(ledger, currency.code, currency.exponent, external_slot),
        ]
        return index

    def add_event(self, slot: int, event: AccountEventRecord) -> None:
        """Append to the life of an account, as part of this log entry."""
        self.tables.add_account_event(slot, self.meta.next_journal, self._events, event)
        self._events += 1

    # Booking

    @property
    def is_full(self) -> bool:
        """Whether this log entry has booked as much as one may."""
        return self.meta.next_position - self._first_position >= ENTRIES_PER_LOG_ENTRY_MAX

    def in_transit_account(self, ledger: str, currency: Currency, peer_shard_id: int) -> int:
        """Return the id of the account for money due to or from another shard; make it first."""
        book = self.book(ledger, currency)
        ordinal = (peer_shard_id + 1) << BOOK_BITS | book
        account_id = system_account_id(self.meta.lower_bound, ordinal)
        if self.find_slot(account_id) is None:
            self.add_account(
                AccountRecord(account_id, "", self.meta.time_us),
                BalanceRow(account_id=account_id, book=book, type=AccountType.ASSET, floored=False),
                GroupRole.IN_TRANSIT,
            )
        return account_id

    def book_entries(
        self,
        number: int,
        entries: Iterable[EntryRecord],
        kind: EntryKind,
        *,
        ends: bool = True,
        effective_us: int = 0,
    ) -> None:
        """Change the counters of accounts of this shard, and append to their histories.

        ``ends=False``: pending money goes, but the transaction's end is counted elsewhere.
        ``effective_us``: the transaction's effective time, if it has one of its own.
        """
        posted, pending = ENTRY_EFFECT[kind]
        for entry in entries:
            slot = self.slot(entry.account_id)
            balance = self.balance(slot)
            direction, amount = entry.direction, entry.amount
            if kind is not EntryKind.REFUSED:
                add_effect(balance, direction, posted * amount, pending * amount)
                totals = self._sums.totals(balance.group)
                add_effect(totals, direction, posted * amount, pending * amount)
                sign = 1 if direction is Direction.DEBIT else -1
                self._posted_imbalance[balance.book] += sign * posted * amount
                self._pending_imbalance[balance.book] += sign * pending * amount
                if effective_us:
                    for effects in self._sums.dated(slot, balance.group, effective_us):
                        add_effect(effects, direction, posted * amount, pending * amount)
            if ends:
                balance.pending_transactions += pending
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

    def append_rows(self, rows: bytes, count: int) -> None:
        """Append packed entry rows whose accounts' rows are stored already."""
        self.meta.next_position += count
        self._entries.append(rows)

    def totals(self, group: int) -> TotalsRow:
        """Return the counters of a group, about to be changed."""
        return self._sums.totals(group)

    def count_end(self, record: TransactionRecord) -> None:
        """Count, at its home, how a transaction that was pending has just ended."""
        end = record.states[-1]
        key = record.book, end.time_us // DAY_US
        counts = self._settlements.get(key)
        if counts is None:
            counts = self.tables.find_settlements(*key) or SettlementRecord()
            self._settlements[key] = counts
        match end.status:
            case TransactionStatus.SETTLED:
                counts.settled += 1
                bucket = duration_bucket(end.time_us - record.states[0].time_us)
                counts.durations[bucket] = counts.durations.get(bucket, 0) + 1
            case TransactionStatus.CANCELLED:
                counts.cancelled += 1
            case TransactionStatus.EXPIRED:
                counts.expired += 1

    # The journal

    def end_item(self, command: bytes, outcome: object) -> JournalItem:
        """Note what a command of this log entry did since the last one; empty: an expiry."""
        encoded, number = _encode(outcome), self._item_number
        position = self.meta.next_position
        item = JournalItem(command, encoded, position - self._item_position, number)
        rows = b"".join(self._entries[self._item_entries :])
        self._items.append(item)
        self._digests.append(item_digest(command, encoded, number, rows))
        self._item_entries, self._item_position = len(self._entries), position
        self._item_number = 0
        return item

    # The end of the log entry

    def next_log_entry(self, index: int, time_us: int) -> None:
        """Go on with another log entry, which is recorded at ``time_us``, or at the last one's.

        What was done up to here belongs to the log entries before it; nothing, to begin with.
        """
        self._end_log_entry()
        meta = self.meta
        if index <= meta.applied_index:
            raise InvariantError(f"log entry {index} is applied already")
        meta.applied_index = index
        meta.time_us = max(meta.time_us, time_us)
        self._first_position = self._item_position = meta.next_position
        self._sums.next_log_entry(meta.next_position)
        self._entries, self._items, self._digests = [], [], []
        self._item_entries = self._events = 0

    def finish(self, imported: int = 0) -> None:
        """Check that the books balance, then write what was gathered.

        ``imported`` is the number, where it comes from, of an entry of another journal.
        """
        self._end_log_entry(imported)
        self.write_rows()
        for key in sorted(self._settlements):
            self.tables.save_settlements(*key, self._settlements[key])
        self._sums.write(self.meta.time_us)
        self.tables.save_meta(self.meta)

    def _end_log_entry(self, imported: int = 0) -> None:
        """Write what is a log entry's own: its entries, and its entry of the journal."""
        if any(self._posted_imbalance.values()) or any(self._pending_imbalance.values()):
            raise InvariantError(
                f"log entry {self.meta.applied_index} leaves the books unbalanced: "
                f"posted {dict(self._posted_imbalance)}, pending {dict(self._pending_imbalance)}"
            )
        if self._entries:
            self.tables.append_entries(self._first_position, self._entries)
        if self._items:
            self._append_journal(imported)

    def _append_journal(self, imported: int) -> None:
        """Write the entry of the journal: the chain's next link covers all that it says."""
        meta = self.meta
        meta.importing = imported > 0
        if imported:
            meta.replayed = imported
        else:
            meta.has_own = True
        number = meta.next_journal
        meta.next_journal += 1
        meta.chain_hash = next_link(meta.chain_hash, number, meta.time_us, self._digests)
        self.tables.add_journal(
            number,
            JournalRecord(
                meta.applied_index,
                meta.time_us,
                self._first_position,
                self._items,
                meta.chain_hash,
            ),
        )

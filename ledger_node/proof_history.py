"""The journal and the entries, from the first one on: each follows from those before it.

Every digest and link of the journal is computed anew. Every entry must lie where the journal says,
and bring its account from the counters before to the counters after it. What is kept so that the
past can be read at once (marks, sums by effective time) is held against the same walk.
"""

from array import array
from collections import defaultdict
from dataclasses import dataclass, field

import msgspec

from ledger_core.accounts import Direction, EntryKind
from ledger_core.ids import format_account_id
from ledger_core.journal import FIRST_LINK, item_digest, next_link
from ledger_node.proof import NO_GROUP, UNREADABLE, Proof, counters_of, plain, show
from ledger_node.proof_transactions import Transactions, entry_hash
from ledger_node.records import (
    ENTRY_EFFECT,
    ENTRY_ROW_BYTES,
    EntryRow,
    JournalRecord,
    unpack_sums,
)
from ledger_node.store_files import StoreCorruptError
from ledger_node.store_scan import key_numbers, row_name
from ledger_node.store_tables import (
    EFFECTIVE_SHIFTS,
    ENTRIES_PER_BLOCK,
    ENTRIES_PER_MARK,
    GROUP_SUBJECT,
)

_decode = msgspec.msgpack.Decoder(JournalRecord).decode

_Sums = list[int]


class HistoryProof:
    """The walk through journal and entries. It needs the accounts and transactions read before."""

    def __init__(self, proof: Proof, transactions: Transactions) -> None:
        self._proof = proof
        self._transactions = transactions
        self._blocks = proof.raw("entries")
        self._block: tuple[int, bytes] | None = None
        self._position = 1
        self._time_us = 0
        self._link: bytes | None = FIRST_LINK
        self._number = 0
        self.entries = 0
        self._index = 0
        # By group: the sums so far, and the blocks that have to have a mark of them.
        self._groups: defaultdict[int, _Sums] = defaultdict(lambda: [0, 0, 0, 0])
        self._marked: defaultdict[int, array[int]] = defaultdict(lambda: array("Q"))
        self.newest_marks: dict[int, int] = {}
        """By group: the block of its newest mark in the table."""
        # By subject: the sums so far of entries with an effective time of their own.
        self._effective: defaultdict[int, _Sums] = defaultdict(lambda: [0, 0, 0, 0])
        self._dated_now: set[int] = set()
        self._dated_rows = 0
        # Subjects and groups whose sums were found wrong: all that follow are.
        self._wrong: set[tuple[str, int]] = set()

    def run(self) -> None:
        """Walk from the first entry to the last, then check that nothing is left over."""
        self._next_block()
        for key, record in self._proof.rows("journal", lambda _key, row: _decode(row)):
            self._journal_entry(key_numbers("journal", key)[0], record)
        while self._block is not None:
            self._stray_block()
        self._log_dated()
        meta = self._proof.meta
        if self._number != meta.next_journal - 1:
            self._journal_fault(
                self._number, f"is the last one, but there were {meta.next_journal - 1}"
            )
        elif self._link is not None and self._link != meta.chain_hash:
            self._journal_fault(
                self._number,
                f"its link is {self._link.hex()}, but the shard's is {meta.chain_hash.hex()}",
            )
        if self._position != meta.next_position:
            self._proof.fault(
                "entries",
                "",
                f"ends before position {self._position}, but should end before "
                f"{meta.next_position}",
            )
        self._prove_entry_marks()
        self._prove_total_marks()
        self._prove_effective()

    # The journal

    def _journal_fault(self, number: int, what: str) -> None:
        self._proof.fault("journal", f"number {number}", what)

    def _journal_entry(self, number: int, record: JournalRecord) -> None:
        if number != self._number + 1:
            first, last = self._number + 1, number - 1
            missing = f"{first} is" if first == last else f"{first} to {last} are"
            self._journal_fault(number, f"follows number {self._number}: {missing} not there")
            self._link = None
        what = []
        if record.time_us < self._time_us:
            what.append(f"its time {record.time_us} is before that of the entry before it")
        if record.time_us != self._time_us:
            self._log_dated()
        if not self._index <= record.index <= self._proof.meta.applied_index:
            what.append(f"its log index {record.index} is out of order")
        self._index, self._time_us = record.index, max(self._time_us, record.time_us)
        count = sum(item.entries for item in record.items)
        rows = self._rows_of(record, count, f"journal number {number}", what)
        digests, offset = [], 0
        for item in record.items:
            end = offset + item.entries * ENTRY_ROW_BYTES
            digests.append(item_digest(item.command, item.outcome, item.number, rows[offset:end]))
            offset = end
        if self._link is not None and record.link != next_link(
            self._link, number, record.time_us, digests
        ):
            what.append("its link does not follow from what it says and the link before it")
        if what:
            self._journal_fault(number, "; ".join(what))
        self._number, self._link = number, record.link

    def _rows_of(self, record: JournalRecord, count: int, whose: str, what: list[str]) -> bytes:
        """Return the rows of a journal entry as they are stored, after walking through them."""
        while self._block is not None and self._block[0] < record.first_position:
            self._stray_block()
        if record.first_position != self._position and self._link is not None:
            what.append(f"its rows begin at position {record.first_position}, not {self._position}")
        rows = b""
        if count:
            place = f"position {record.first_position}"
            if self._block is None or self._block[0] != record.first_position:
                self._proof.fault("entries", place, f"{count} rows are missing that {whose} wrote")
            else:
                _, rows = self._block
                if len(rows) != count * ENTRY_ROW_BYTES:
                    found = f"{len(rows) / ENTRY_ROW_BYTES:g}"
                    self._proof.fault("entries", place, f"{whose} wrote {count} rows, not {found}")
                self._walk(record.first_position, rows, record.time_us)
                self._next_block()
        self._position = record.first_position + count
        return rows

    def _next_block(self) -> None:
        found = next(self._blocks, None)
        self._block = None if found is None else (int.from_bytes(found[0]), found[1])

    def _stray_block(self) -> None:
        """Walk through entries that the journal does not account for."""
        assert self._block is not None, "there is one"
        first, rows = self._block
        count = len(rows) // ENTRY_ROW_BYTES
        self._proof.fault(
            "entries",
            f"position {first}",
            f"no journal entry says that these {count} rows were written",
        )
        self._walk(first, rows, None)
        self._position = first + count
        self._next_block()

    # The entries

    def _walk(self, first: int, rows: bytes, time_us: int | None) -> None:
        """Check the rows of one journal entry, in order."""
        block = first // ENTRIES_PER_BLOCK
        for place in range(len(rows) // ENTRY_ROW_BYTES):
            position, offset = first + place, place * ENTRY_ROW_BYTES
            if place:
                self._proof.advance()
            try:
                row = EntryRow.unpack(rows[offset : offset + ENTRY_ROW_BYTES])
            except UNREADABLE as error:
                self._proof.fault("entries", f"position {position}", plain(error))
                continue
            self.entries += 1
            what = self._entry(position, row, time_us, block)
            if what:
                self._proof.fault(
                    "entries",
                    f"position {position} (account {format_account_id(row.account_id)}, sequence "
                    f"{row.sequence}, {self._proof.transaction(row.transaction)})",
                    "; ".join(what),
                )

    def _entry(self, position: int, row: EntryRow, time_us: int | None, block: int) -> list[str]:
        """Check one entry against its account so far, and bring the account after it."""
        accounts = self._proof.accounts
        what = []
        if time_us is not None and row.time_us != time_us:
            what.append(f"its time is {row.time_us}, but its journal entry says {time_us}")
        elif row.time_us < self._time_us:
            what.append("its time is before that of an entry before it")
        if 0 < row.transaction <= self._transactions.count:
            self._transactions.take(
                row.transaction, entry_hash(row.account_id, row.direction, row.kind, row.amount)
            )
            if not self._proof.shard.has("transactions", row.transaction.to_bytes(8)):
                what.append("its transaction is missing")
        else:
            what.append("there is no transaction of this number")
        slot = accounts.slots.get(row.account_id)
        if slot is None:
            return [*what, "there is no such account"]
        sequence, previous = accounts.sequences[slot], accounts.positions[slot]
        if row.sequence != sequence + 1:
            what.append(f"the account's entry before it has the sequence {sequence}")
        if row.previous != previous:
            what.append(
                f"it says that the account's entry before it is at position {row.previous}, but "
                f"that is at {previous}"
            )
        effects = _effects(row)
        after = counters_of(row.after)
        before = accounts.counters(slot)
        expected = (
            before[0] + effects[0],
            before[1] + effects[1],
            before[2] + effects[2],
            before[3] + effects[3],
        )
        if after != expected:
            what.append(
                f"a {row.direction.name} of {row.amount}, {row.kind.name}, after {show(before)}, "
                f"makes {show(expected)}, but the row says {show(after)}"
            )
        accounts.debits_posted[slot], accounts.credits_posted[slot] = after[0], after[1]
        accounts.debits_pending[slot], accounts.credits_pending[slot] = after[2], after[3]
        accounts.sequences[slot], accounts.positions[slot] = row.sequence, position
        if row.sequence % ENTRIES_PER_MARK == 0:
            what += self._entry_mark(slot, row, position)
        return what + self._sum(slot, row, block, effects)

    def _entry_mark(self, slot: int, row: EntryRow, position: int) -> list[str]:
        number = row.sequence // ENTRIES_PER_MARK
        try:
            mark = self._proof.tables.find_entry_mark(slot, number)
        except StoreCorruptError:
            return []  # the pass over that table tells
        if mark == (position, row.time_us):
            return []
        shown = "is missing" if mark is None else f"says position {mark[0]}, time {mark[1]}"
        return [f"its row of table entry_marks, slot {slot}, mark {number}, {shown}"]

    def _sum(self, slot: int, row: EntryRow, block: int, effects: _Sums) -> list[str]:
        """Add an entry to the sums of its group, and to those by effective time."""
        group = self._proof.accounts.groups[slot]
        if group == NO_GROUP or row.kind is EntryKind.REFUSED:
            return []
        what = []
        sums = self._groups[group]
        blocks = self._marked[group]
        if not blocks or blocks[-1] != block:
            blocks.append(block)
            what = self._total_mark(group, block, sums)
        _add(sums, effects)
        if (
            row.transaction <= self._transactions.count
            and (self._transactions.effective_us[row.transaction])
        ):
            for subject in (slot, GROUP_SUBJECT | group):
                _add(self._effective[subject], effects)
                self._dated_now.add(subject)
        return what

    def _total_mark(self, group: int, block: int, before: _Sums) -> list[str]:
        key = group.to_bytes(4) + block.to_bytes(8)
        if not self._proof.shard.has("total_marks", key):
            return [f"the row of table total_marks, group {group}, block {block}, is missing"]
        try:
            mark = self._proof.tables.total_mark_from(group, block)
        except UNREADABLE:
            return []  # the pass over that table tells
        if mark is None or [*counters_of(mark)] == before:
            return []
        if not self._is_first("total_marks", group):
            return []
        return [
            f"the row of table total_marks, group {group}, block {block}, says "
            f"{show(counters_of(mark))} before this, but that was {_shown(before)}"
        ]

    def _log_dated(self) -> None:
        """Check what was noted of effective times when the time of recording goes on."""
        for subject in self._dated_now:
            self._dated_rows += 1
            key = subject.to_bytes(4) + self._time_us.to_bytes(8)
            name = row_name("effective_log", key)
            if not self._proof.shard.has("effective_log", key):
                self._proof.fault("effective_log", name, "the row is missing")
                continue
            try:
                found = counters_of(self._proof.tables.effective_log(subject, self._time_us))
            except UNREADABLE:
                continue  # the pass over that table tells
            if [*found] != self._effective[subject] and self._is_first("effective_log", subject):
                self._proof.fault(
                    "effective_log",
                    name,
                    f"says {show(found)}, but entries make {_shown(self._effective[subject])}",
                )
        self._dated_now.clear()

    def _is_first(self, table: str, number: int) -> bool:
        """Whether the sums of a group or subject are found wrong for the first time."""
        known = (table, number) in self._wrong
        self._wrong.add((table, number))
        return not known

    # What is kept for reads of the past, once everything was walked through

    def _prove_entry_marks(self) -> None:
        """Check that no row of entry_marks is left that no entry asks for."""
        accounts = self._proof.accounts
        for key, _mark in self._proof.rows("entry_marks", lambda _key, row: row):
            slot, mark = key_numbers("entry_marks", key)
            if slot >= len(accounts.ids) or not (
                0 < mark * ENTRIES_PER_MARK <= accounts.sequences[slot]
            ):
                self._proof.fault(
                    "entry_marks", row_name("entry_marks", key), "the account has no such entry"
                )

    def _prove_total_marks(self) -> None:
        """Check that every row of total_marks is of a block in which its group changed.

        The first one of a group may be of the block in which it was founded.
        """
        expected = {group: iter(blocks) for group, blocks in self._marked.items()}
        for key, sums in self._proof.rows("total_marks", lambda _key, row: unpack_sums(row)):
            group, block = key_numbers("total_marks", key)
            is_first = group not in self.newest_marks
            self.newest_marks[group] = block
            blocks = self._marked.get(group)
            if is_first and not any(counters_of(sums)) and (not blocks or block < blocks[0]):
                continue
            if (
                block != next(expected.get(group, iter(())), None)
                and blocks is not None
                and (block not in blocks)
            ):
                self._proof.fault(
                    "total_marks",
                    row_name("total_marks", key),
                    "the group did not change in this block",
                )

    def _prove_effective(self) -> None:
        """Check the sums by effective time: level by level, and against the entries."""
        if self._proof.shard.count("effective_log") != self._dated_rows:
            self._proof.fault(
                "effective_log",
                "",
                f"has {self._proof.shard.count('effective_log')} rows, not {self._dated_rows}",
            )
        for _ in self._proof.rows("effective_log", lambda _key, row: unpack_sums(row)):
            pass
        found: set[int] = set()
        level: _Level | None = None
        for key, row in self._proof.rows("effective_sums", lambda _key, row: unpack_sums(row)):
            subject, number, bucket = key_numbers("effective_sums", key)
            if level is None or (level.subject, level.number) != (subject, number):
                above = self._end_level(level)
                if above is not None and above.subject != subject:
                    above = None
                if number != (0 if above is None else above.number + 1):
                    self._proof.fault(
                        "effective_sums", row_name("effective_sums", key), "a level is missing"
                    )
                    above = None
                level = _Level(subject, number, above)
                found.add(subject)
            if level.parent != level.parent_of(bucket):
                self._end_bucket(level)
                level.parent = level.parent_of(bucket)
            level.buckets += 1
            _add(level.total, [*counters_of(row)])
            _add(level.within, [*counters_of(row)])
        self._end_level(level)
        for subject in self._effective.keys() - found:
            self._proof.fault("effective_sums", f"subject {subject}", "has no rows")

    def _end_level(self, level: "_Level | None") -> "_Level | None":
        """Check the sum of a level that was read, and that it fills the buckets above it."""
        if level is None:
            return None
        self._end_bucket(level)
        place = f"subject {level.subject}, level {level.number}"
        expected = self._effective.get(level.subject, [0, 0, 0, 0])
        if level.total != expected:
            self._proof.fault(
                "effective_sums",
                place,
                f"its buckets make {_shown(level.total)}, but entries with an effective time make "
                f"{_shown(expected)}",
            )
        if level.above is not None and level.above.buckets != level.parents:
            self._proof.fault(
                "effective_sums",
                f"subject {level.subject}, level {level.number - 1}",
                f"has {level.above.buckets} buckets, but those within them are of {level.parents}",
            )
        return level

    def _end_bucket(self, level: "_Level") -> None:
        """Check that the buckets of a level that lie in one of the level above add up to it."""
        within, level.within = level.within, [0, 0, 0, 0]
        if level.parent is None or level.above is None:
            return
        level.parents += 1
        subject, number = level.subject, level.number - 1
        try:
            row = self._proof.tables.effective_sum(subject, number, level.parent)
        except UNREADABLE:
            return  # told when it was read
        if [*counters_of(row)] != within:
            self._proof.fault(
                "effective_sums",
                f"subject {subject}, level {number}, bucket {level.parent}",
                f"says {show(counters_of(row))}, but the buckets within it make {_shown(within)}",
            )


@dataclass
class _Level:
    """What was read of a level of a subject's sums by effective time."""

    subject: int
    number: int
    above: "_Level | None"
    buckets: int = 0
    total: _Sums = field(default_factory=lambda: [0, 0, 0, 0])
    # The bucket of the level above whose part is being read, what that part makes, and how many
    # such buckets there were.
    parent: int | None = None
    within: _Sums = field(default_factory=lambda: [0, 0, 0, 0])
    parents: int = 0

    def parent_of(self, bucket: int) -> int | None:
        """Return the bucket of the level above in which a bucket lies."""
        if self.above is None or not 0 < self.number < len(EFFECTIVE_SHIFTS):
            return None
        return bucket >> (EFFECTIVE_SHIFTS[self.number - 1] - EFFECTIVE_SHIFTS[self.number])


def _effects(row: EntryRow) -> _Sums:
    """Return what an entry adds to the counters: posted debits, credits, then pending ones."""
    posted, pending = ENTRY_EFFECT[row.kind]
    if row.direction is Direction.DEBIT:
        return [posted * row.amount, 0, pending * row.amount, 0]
    return [0, posted * row.amount, 0, pending * row.amount]


def _add(sums: _Sums, effects: _Sums) -> None:
    for place in range(4):
        sums[place] += effects[place]


def _shown(sums: _Sums) -> str:
    return show((sums[0], sums[1], sums[2], sums[3]))

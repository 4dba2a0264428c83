"""All that a shard keeps for reads of the past, worked out anew from entries and records alone."""

from collections import defaultdict
from collections.abc import Iterable
from random import Random

import msgspec

from ledger_core.accounts import Counters, Direction, EntryKind, TransactionStatus
from ledger_core.durations import duration_bucket
from ledger_core.ids import metadata_key_digest, reference_digest
from ledger_core.journal import FIRST_LINK, item_digest, next_link
from ledger_node.records import (
    ENTRY_ROW_BYTES,
    BalanceRow,
    EntryRow,
    SettlementRecord,
    TransactionRecord,
)
from ledger_node.store import EFFECTIVE_SHIFTS, ENTRIES_PER_BLOCK, GROUP_SUBJECT, ShardTables

S = TransactionStatus
Four = tuple[int, int, int, int]

_POSTED = {EntryKind.POSTED: 1, EntryKind.SETTLED: 1}
_PENDING = {
    EntryKind.PENDING: 1,
    EntryKind.SETTLED: -1,
    EntryKind.CANCELLED: -1,
    EntryKind.EXPIRED: -1,
}


def four(counters: Counters) -> Four:
    return (
        counters.debits_posted,
        counters.credits_posted,
        counters.debits_pending,
        counters.credits_pending,
    )


def effect(row: EntryRow) -> Four:
    posted = _POSTED.get(row.kind, 0) * row.amount
    pending = _PENDING.get(row.kind, 0) * row.amount
    if row.direction is Direction.DEBIT:
        return posted, 0, pending, 0
    return 0, posted, 0, pending


def added(effects: Iterable[Four]) -> Four:
    total = [0, 0, 0, 0]
    for one in effects:
        total = [a + b for a, b in zip(total, one, strict=True)]
    return total[0], total[1], total[2], total[3]


class HistoryModel:
    """A shard's entries and records, and what follows from them."""

    def __init__(self, tables: ShardTables, entries_per_block: int = ENTRIES_PER_BLOCK) -> None:
        self.tables = tables
        self.entries_per_block = entries_per_block
        self.meta = tables.meta()
        self.blocks = list(tables.blocks_from(0))
        self.rows = [row for _, rows in self.blocks for row in rows]
        self.balances: dict[int, BalanceRow] = dict(tables.balances())
        self.slots = {row.account_id: slot for slot, row in self.balances.items()}
        self.records: dict[int, TransactionRecord] = {}
        for number in range(1, self.meta.next_transaction):
            record = tables.find_transaction(number)
            if record is not None:
                self.records[number] = record

    def check(self, random: Random) -> None:
        """Hold everything that is kept against what it must be."""
        self.check_balances()
        self.check_totals()
        self.check_marks()
        self.check_effective(random)
        self.check_indexes()
        self.check_settlements()
        self.check_journal()

    def _group_of(self, row: EntryRow) -> int:
        return self.balances[self.slots[row.account_id]].group

    def check_balances(self) -> None:
        """Counters and sequences of every account follow from its entries."""
        by_account: dict[int, list[EntryRow]] = defaultdict(list)
        for row in self.rows:
            by_account[row.account_id].append(row)
        for balance in self.balances.values():
            own = by_account[balance.account_id]
            assert four(balance) == added(effect(row) for row in own)
            assert [row.sequence for row in own] == list(range(1, balance.sequence + 1))

    def check_totals(self) -> None:
        """The totals of a group are the sums over its accounts; every group has accounts."""
        groups = dict(self.tables.groups())
        assert sorted(groups) == list(range(self.meta.next_group))
        for number, group in groups.items():
            accounts = [row for row in self.balances.values() if row.group == number]
            totals = self.tables.totals(number)
            assert accounts
            assert totals.accounts == len(accounts)
            assert four(totals) == added(four(row) for row in accounts)
            assert {(row.book, row.type) for row in accounts} == {(group.book, group.type)}

    def check_marks(self) -> None:
        """What a group was at the start of every block of entries is found by its marks."""
        last = self.meta.next_position // self.entries_per_block + 1
        for group in range(self.meta.next_group):
            for block in range(last + 1):
                marked = self.tables.total_mark_from(group, block)
                found = four(self.tables.totals(group) if marked is None else marked)
                assert found == added(
                    effect(row)
                    for first, rows in self.blocks
                    if first // self.entries_per_block < block
                    for row in rows
                    if self._group_of(row) == group
                )

    def _effective_us(self, row: EntryRow) -> int | None:
        record = self.records[row.transaction]
        if record.effective_time_us == record.states[0].time_us:
            return None
        return record.effective_time_us

    def effective_up_to(self, subject: int, time_us: int) -> Four:
        """Sum the buckets of effective time up to and with a moment."""
        found = []
        parent_first = 0
        for level, shift in enumerate(EFFECTIVE_SHIFTS):
            bucket = time_us >> shift
            end = bucket + (level == len(EFFECTIVE_SHIFTS) - 1)
            found += [
                four(row)
                for _, row in self.tables.effective_sums(subject, level, parent_first, end)
            ]
            if level + 1 < len(EFFECTIVE_SHIFTS):
                parent_first = bucket << (shift - EFFECTIVE_SHIFTS[level + 1])
        return added(found)

    def check_effective(self, random: Random) -> None:
        """Effects by effective time, and as of when they were recorded, at random moments."""
        dated = [(row, us) for row in self.rows if (us := self._effective_us(row)) is not None]
        times = {us for _, us in dated} | {row.time_us for row, _ in dated} | {0, self.meta.time_us}
        moments = [time + shift for time in sorted(times) for shift in (-1, 0, 1)]
        subjects = [*self.balances, *(GROUP_SUBJECT | n for n in range(self.meta.next_group))]
        for subject in subjects:
            mine = [(row, us) for row, us in dated if subject in self._subjects(row)]
            for moment in random.sample(moments, min(4, len(moments))):
                time_us = max(0, moment)
                by_effect = added(effect(row) for row, us in mine if us <= time_us)
                assert self.effective_up_to(subject, time_us) == by_effect
                by_record = added(effect(row) for row, _ in mine if row.time_us <= time_us)
                assert four(self.tables.effective_log(subject, time_us)) == by_record

    def _subjects(self, row: EntryRow) -> tuple[int, int]:
        return self.slots[row.account_id], GROUP_SUBJECT | self._group_of(row)

    def check_indexes(self) -> None:
        """Pending transactions are listed, and transactions are found by what they are given."""
        assert list(self.tables.pending_after(0)) == [
            number for number, record in self.records.items() if record.is_pending
        ]
        expected: dict[bytes, list[int]] = defaultdict(list)
        for number, record in self.records.items():
            ledger = self.meta.books[record.book].ledger
            if record.external_reference:
                expected[reference_digest(ledger, record.external_reference)].append(number)
            for key in record.metadata:
                expected[metadata_key_digest(ledger, key)].append(number)
        for digest, numbers in expected.items():
            found = list(self.tables.referenced_before(digest, self.meta.next_transaction))
            assert found == numbers[::-1]

    def check_settlements(self) -> None:
        """How pending transactions ended is counted by day, at their home."""
        expected: dict[tuple[int, int], SettlementRecord] = defaultdict(SettlementRecord)
        for record in self.records.values():
            statuses = [state.status for state in record.states]
            if record.home_shard_id is not None or S.PENDING not in statuses[:-1]:
                continue
            first, last = record.states[0], record.states[-1]
            counts = expected[record.book, last.time_us // 86_400_000_000]
            counts.cancelled += last.status is S.CANCELLED
            counts.expired += last.status is S.EXPIRED
            if last.status is S.SETTLED:
                counts.settled += 1
                bucket = duration_bucket(last.time_us - first.time_us)
                counts.durations[bucket] = counts.durations.get(bucket, 0) + 1
        found = {
            (book, day): record
            for book in range(len(self.meta.books))
            for day, record in self.tables.settlements(book, 0, 2**32 - 1)
        }
        assert found == expected

    def check_journal(self) -> None:
        """The chain follows from the journal and the entries; together they have no gaps."""
        link, position = FIRST_LINK, 1
        journal = list(self.tables.journal_after(0))
        assert [number for number, _ in journal] == list(range(1, self.meta.next_journal))
        for number, record in journal:
            count = sum(item.entries for item in record.items)
            assert record.first_position == position
            stored = self.tables.entry_bytes(position) if count else b""
            assert len(stored) == count * ENTRY_ROW_BYTES
            digests, start = [], 0
            for item in record.items:
                end = start + item.entries * ENTRY_ROW_BYTES
                digests.append(
                    item_digest(item.command, item.outcome, item.number, stored[start:end])
                )
                start = end
                msgspec.msgpack.decode(item.outcome)
            link = next_link(link, number, record.time_us, digests)
            assert record.link == link
            position += count
        assert position == self.meta.next_position
        assert self.meta.chain_hash == link

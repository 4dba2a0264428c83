"""Sums that are kept as entries are booked, so that reports never add up a history.

By group of accounts (`GroupRecord`): the totals now, and a mark of what they were at the start of
every block of entries in which they changed. By effective time, for transactions that were given
one: the effects in buckets, and how much of them had been recorded at what time.
"""

from ledger_core.accounts import Counters, Direction
from ledger_node.records import GroupRecord, ShardMeta, TotalsRow
from ledger_node.store import EFFECTIVE_SHIFTS, ENTRIES_PER_BLOCK, GROUP_SUBJECT, ShardTables


class Sums:
    """The sums that a log entry changes; its entries begin at ``first_position``."""

    def __init__(self, tables: ShardTables, first_position: int) -> None:
        self._tables = tables
        self._block = first_position // ENTRIES_PER_BLOCK
        self._groups: dict[GroupRecord, int] = {}
        self._totals: dict[int, TotalsRow] = {}
        self._dated: dict[tuple[int, int], Counters] = {}

    def next_log_entry(self, first_position: int) -> None:
        """Go on with the sums that another log entry changes, from what they are now."""
        assert not self._dated, "effects by effective time are logged by their log entry's time"
        self._block = first_position // ENTRIES_PER_BLOCK

    def add_account(self, group: GroupRecord, meta: ShardMeta) -> int:
        """Count a new account; return the number of its group, which may be new itself."""
        number = self._groups.get(group)
        if number is None:
            number = self._tables.find_group(group)
            if number is None:
                number = meta.next_group
                meta.next_group += 1
                # With this mark, what a group was before its first entry is found like all else.
                self._tables.add_group(number, group)
                self._tables.add_total_mark(number, self._block, Counters())
                self._totals[number] = TotalsRow(last_block=self._block)
            self._groups[group] = number
        self._row(number).accounts += 1
        return number

    def totals(self, group: int) -> TotalsRow:
        """Return the counters of a group, about to be changed."""
        row = self._row(group)
        if row.last_block < self._block:
            self._tables.add_total_mark(group, self._block, row)
            row.last_block = self._block
        return row

    def _row(self, group: int) -> TotalsRow:
        row = self._totals.get(group)
        if row is None:
            row = self._totals[group] = self._tables.totals(group)
        return row

    def dated(self, slot: int, group: int, effective_us: int) -> tuple[Counters, Counters]:
        """Return the effects at an effective time of an account and of its group, to be added to.

        For entries of transactions that have an effective time of their own.
        """
        return (
            self._dated.setdefault((slot, effective_us), Counters()),
            self._dated.setdefault((GROUP_SUBJECT | group, effective_us), Counters()),
        )

    def write(self, time_us: int) -> None:
        """Write what has changed; ``time_us`` is when the log entry is recorded."""
        for group in sorted(self._totals):
            self._tables.save_totals(group, self._totals[group])
        if self._dated:
            self._write_dated(time_us)

    def _write_dated(self, time_us: int) -> None:
        tables = self._tables
        logged: dict[int, Counters] = {}
        for subject, effective_us in sorted(self._dated):
            effects = self._dated[subject, effective_us]
            for level, shift in enumerate(EFFECTIVE_SHIFTS):
                bucket = effective_us >> shift
                total = tables.effective_sum(subject, level, bucket)
                tables.save_effective_sum(subject, level, bucket, _added(total, effects))
            so_far = logged.get(subject) or tables.effective_log(subject, time_us)
            logged[subject] = _added(so_far, effects)
        for subject, effects in logged.items():
            tables.save_effective_log(subject, time_us, effects)


def add_effect(counters: Counters, direction: Direction, posted: int, pending: int) -> None:
    """Add what an entry does to the counters of its side."""
    if direction is Direction.DEBIT:
        counters.debits_posted += posted
        counters.debits_pending += pending
    else:
        counters.credits_posted += posted
        counters.credits_pending += pending


def _added(one: Counters, other: Counters) -> Counters:
    return Counters(
        one.debits_posted + other.debits_posted,
        one.credits_posted + other.credits_posted,
        one.debits_pending + other.debits_pending,
        one.credits_pending + other.credits_pending,
    )

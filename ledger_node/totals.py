"""The sums of a ledger's accounts by group, now or just after a moment.

Every log entry that changes a group changes its sums, and leaves a mark if it is the first to do so
in its block of entries (`ENTRIES_PER_BLOCK`). As of a moment, a group has what it had at the start
of the block in which the next log entry began, and what had been booked since: a read looks at one
block per moment, however long the history is.
"""

from collections.abc import Iterable, Sequence

from ledger_core.accounts import Counters, TimeBasis
from ledger_core.queries import GetTotals
from ledger_core.results import CountersView, GroupTotalsView, TotalsView
from ledger_node.history_reads import counters_view
from ledger_node.moments import copy_counters, make_effective
from ledger_node.records import ENTRY_EFFECT, ShardMeta
from ledger_node.store_tables import ENTRIES_PER_BLOCK, GROUP_SUBJECT, ShardTables
from ledger_node.sums import add_effect


def get_totals(tables: ShardTables, query: GetTotals) -> TotalsView:
    """Sum a ledger's accounts on this shard by currency, code and type."""
    meta = tables.meta()
    groups = {
        number: record
        for index, book in enumerate(meta.books)
        if book.ledger == query.ledger
        for number, record in tables.groups_of(index)
    }
    sums: dict[int, list[CountersView]] = {number: [] for number in groups}
    reader = _Totals(tables, meta, groups)
    moments: Sequence[int | None] = query.as_of_us or [None]
    for time_us in moments:
        for number, counters in reader.as_of(time_us, query.basis).items():
            sums[number].append(counters_view(counters))
    return TotalsView(
        [
            GroupTotalsView(
                currency=meta.books[record.book].currency,
                currency_exponent=meta.books[record.book].currency_exponent,
                type=record.type,
                code=record.code,
                role=record.role,
                accounts=reader.accounts(number),
                sums=sums[number],
            )
            for number, record in groups.items()
        ],
        meta.time_us,
    )


class _Totals:
    """Sums of groups at several moments, from one state of the tables."""

    def __init__(self, tables: ShardTables, meta: ShardMeta, groups: Iterable[int]) -> None:
        self._tables = tables
        self._meta = meta
        self._rows = {number: tables.totals(number) for number in groups}
        self._group_of: dict[int, int] = {}

    def accounts(self, group: int) -> int:
        """Return how many accounts a group has now."""
        return self._rows[group].accounts

    def as_of(self, time_us: int | None, basis: TimeBasis) -> dict[int, Counters]:
        """Return the sums just after a moment, or now (None)."""
        if time_us is None:
            return self._now()
        sums = self._now() if time_us >= self._meta.time_us else self._recorded(time_us)
        if basis is TimeBasis.EFFECTIVE:
            for number, counters in sums.items():
                make_effective(self._tables, GROUP_SUBJECT | number, time_us, counters)
        return sums

    def _now(self) -> dict[int, Counters]:
        return {number: copy_counters(row) for number, row in self._rows.items()}

    def _recorded(self, time_us: int) -> dict[int, Counters]:
        """Return what log entries up to a moment have made of the sums."""
        # The first log entry behind the moment begins in this block. Of those before it, only the
        # ones that begin in it as well are in no mark: fewer entries than a block has.
        end = self._end_position(time_us)
        block = end // ENTRIES_PER_BLOCK
        sums = {number: self._at_block(number, block) for number in self._rows}
        for _, rows in self._tables.blocks_from(block * ENTRIES_PER_BLOCK, end):
            for row in rows:
                counters = sums.get(self._group(row.account_id))
                if counters is not None:
                    posted, pending = ENTRY_EFFECT[row.kind]
                    add_effect(counters, row.direction, posted * row.amount, pending * row.amount)
        return sums

    def _end_position(self, time_us: int) -> int:
        """Return the position behind the last entry recorded at or before a moment."""
        low, high = 1, self._meta.next_position
        while low < high:
            middle = (low + high) // 2
            if self._tables.entry(middle).time_us <= time_us:
                low = middle + 1
            else:
                high = middle
        return low

    def _at_block(self, group: int, block: int) -> Counters:
        """Return what a group had before the first log entry that began in a block."""
        row = self._rows[group]
        marked = None
        if row.last_block >= block:
            marked = self._tables.total_mark_from(group, block)
        return copy_counters(row) if marked is None else marked

    def _group(self, account_id: int) -> int:
        group = self._group_of.get(account_id)
        if group is None:
            slot = self._tables.find_slot(account_id)
            assert slot is not None, "every entry has its account"
            group = self._group_of[account_id] = self._tables.balance(slot).group
        return group

"""The history of one account by time: which entry was its newest at a moment, what it had then.

Every 64th entry of an account has a mark (position, time). The entry at a moment is found by
bisection over the marks, then by at most 64 steps back: what that costs does not depend on how long
the history is.
"""

from collections.abc import Iterator
from itertools import islice

from ledger_core.accounts import Counters, TimeBasis
from ledger_node.records import BalanceRow, EntryRow
from ledger_node.store import StoreCorruptError
from ledger_node.store_tables import EFFECTIVE_SHIFTS, ENTRIES_PER_MARK, ShardTables


def add_counters(total: Counters, part: Counters, sign: int = 1) -> None:
    """Add ``part`` to ``total``, or take it away (sign -1)."""
    total.debits_posted += sign * part.debits_posted
    total.credits_posted += sign * part.credits_posted
    total.debits_pending += sign * part.debits_pending
    total.credits_pending += sign * part.credits_pending


def copy_counters(counters: Counters) -> Counters:
    """Return the four counters alone, to be changed freely."""
    return Counters(
        counters.debits_posted,
        counters.credits_posted,
        counters.debits_pending,
        counters.credits_pending,
    )


# Entries


def entry_as_of(
    tables: ShardTables, slot: int, balance: BalanceRow, time_us: int
) -> tuple[int, EntryRow] | None:
    """Return (position, row) of the newest entry recorded at or before a moment; None: none was."""
    marks = balance.sequence // ENTRIES_PER_MARK
    # Mark `low` is at or before the moment, mark `high` is behind it or is not there yet.
    low, high = 0, marks + 1
    while high - low > 1:
        middle = (low + high) // 2
        if _mark(tables, slot, middle)[1] <= time_us:
            low = middle
        else:
            high = middle
    start = _mark(tables, slot, high)[0] if high <= marks else balance.last_position
    for position, row in tables.entries_back(start):
        if row.time_us <= time_us:
            return position, row
    return None


def sequence_as_of(tables: ShardTables, slot: int, balance: BalanceRow, time_us: int) -> int:
    """Return how many entries of an account were recorded at or before a moment."""
    found = entry_as_of(tables, slot, balance, time_us)
    return found[1].sequence if found else 0


def entries_back(
    tables: ShardTables, slot: int, balance: BalanceRow, sequence: int
) -> Iterator[tuple[int, EntryRow]]:
    """Yield (position, row) of an account's entry number ``sequence`` and of those before it."""
    mark = -(-sequence // ENTRIES_PER_MARK)
    start, position = balance.sequence, balance.last_position
    if mark * ENTRIES_PER_MARK < start:
        start, position = mark * ENTRIES_PER_MARK, _mark(tables, slot, mark)[0]
    return islice(tables.entries_back(position), start - sequence, None)


def _mark(tables: ShardTables, slot: int, mark: int) -> tuple[int, int]:
    found = tables.find_entry_mark(slot, mark)
    if found is None:
        raise StoreCorruptError(f"mark {mark} of the account in slot {slot} is missing")
    return found


# Counters


def counters_as_of(
    tables: ShardTables, slot: int, balance: BalanceRow, time_us: int, basis: TimeBasis
) -> Counters:
    """Return an account's counters just after a moment, by time of recording or effective time."""
    found = entry_as_of(tables, slot, balance, time_us)
    counters = copy_counters(found[1].after) if found else Counters()
    if basis is TimeBasis.EFFECTIVE:
        make_effective(tables, slot, time_us, counters)
    return counters


def make_effective(tables: ShardTables, subject: int, time_us: int, counters: Counters) -> None:
    """Turn counters as of a moment of recording into those as of the moment by effective time.

    What has an effective time of its own counts then, whenever it was recorded.
    """
    add_counters(counters, tables.effective_log(subject, max(0, time_us)), -1)
    _add_effective(tables, subject, time_us, counters)


def _add_effective(tables: ShardTables, subject: int, time_us: int, counters: Counters) -> None:
    """Add the effects of what has an effective time of its own, up to a moment.

    On every level these are the buckets beside, and before, the one that the next level divides.
    Of these siblings the fewer are read: those before it, or those behind it.
    """
    if time_us < 0:
        return
    first, shift_above = 0, EFFECTIVE_SHIFTS[0]
    for level, shift in enumerate(EFFECTIVE_SHIFTS):
        first <<= shift_above - shift
        siblings = 1 << (shift_above - shift)
        end = (time_us >> shift) + (shift == 0)
        if level and end - first > siblings // 2:
            parent = first >> (shift_above - shift)
            add_counters(counters, tables.effective_sum(subject, level - 1, parent))
            for _, part in tables.effective_sums(subject, level, end, first + siblings):
                add_counters(counters, part, -1)
        else:
            for _, part in tables.effective_sums(subject, level, first, end):
                add_counters(counters, part)
        first, shift_above = time_us >> shift, shift

"""What a background check sees and says.

A check is a generator. Between two yields it does a small unit of work (`ROWS_PER_UNIT`), from the
tables that its context has then: each unit may see a later state of the shard than the one before.
So nothing that a unit has read is compared with what another one reads, unless nothing was applied
in between. `docs/CHECKS.md` tells people what to do about findings.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

import msgspec

from ledger_core.accounts import Counters
from ledger_core.ids import format_transaction_id
from ledger_node.records import AccountRecord, BalanceRow, TransactionRecord
from ledger_node.store import ShardTables
from ledger_node.store_files import StoreCorruptError

ROWS_PER_UNIT: Final = 20
FINDINGS_MAX: Final = 200
"""Of one check, on one node."""
SECOND_US: Final = 1_000_000
DAY_US: Final = 24 * 3600 * SECOND_US

# What reading a row can raise that is not what was written.
DAMAGED: Final = (StoreCorruptError, msgspec.MsgspecError, ValueError, AssertionError, LookupError)

VERIFY_ADVICE: Final = (
    "Run `ledger verify`: it names what is wrong on which replica. If one replica differs from the "
    "others, stop its node, move its data directory away and start it empty."
)


class Severity(IntEnum):
    """How much a finding matters; the numbers are those of the protocol."""

    INFO = 1
    WARNING = 2
    ERROR = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that someone should know of. ``since_us``: since when, 0 if that is not known."""

    check: str
    severity: Severity
    shard_id: int
    subject: str
    message: str
    advice: str
    since_us: int = 0
    ledger: str = ""


@dataclass(slots=True)
class Context:
    """What a check sees: the tables now, and the time. Collects what it finds in one pass."""

    check: str
    shard_id: int
    tables: ShardTables
    now_us: int
    found: dict[tuple[str, str], Finding] = field(default_factory=dict)
    rows: int = 0
    truncated: bool = False
    restless: bool = False
    """What was found hangs on the time alone: look again soon, though nothing is applied."""

    def find(
        self,
        severity: Severity,
        subject: str,
        message: str,
        advice: str,
        *,
        since_us: int = 0,
        ledger: str = "",
    ) -> None:
        """Note a finding, unless there are many."""
        if len(self.found) >= FINDINGS_MAX:
            self.truncated = True
            return
        finding = Finding(
            self.check, severity, self.shard_id, subject, message, advice, since_us, ledger
        )
        self.found.setdefault((subject, message), finding)

    def damaged(self, subject: str, error: Exception) -> None:
        """Note that something cannot be read."""
        what = str(error) or type(error).__name__
        self.find(Severity.ERROR, subject, f"cannot be read: {what}", VERIFY_ADVICE)

    def transaction_id(self, number: int, record: TransactionRecord) -> str:
        """Return the id by which people know a transaction."""
        home_number = number if record.home_shard_id is None else record.home_number
        return format_transaction_id(record.account_id, home_number)


Check = Callable[[Context], Iterator[None]]


def accounts(context: Context) -> Iterator[list[tuple[int, BalanceRow]]]:
    """Yield (slot, row) of every account, a unit at a time; those that cannot be read are found."""
    first = 0
    while first < (end := context.tables.meta().next_slot):
        unit = []
        for slot in range(first, min(first + ROWS_PER_UNIT, end)):
            context.rows += 1
            try:
                unit.append((slot, context.tables.balance(slot)))
            except DAMAGED as error:
                context.damaged(f"account in slot {slot}", error)
        yield unit
        first += ROWS_PER_UNIT


def account_info(context: Context, slot: int) -> AccountRecord | None:
    """Return what seldom changes of an account; None, and a finding, if it cannot be read."""
    try:
        return context.tables.account_info(slot)
    except DAMAGED as error:
        context.damaged(f"account in slot {slot}", error)
        return None


def add(sums: Counters, row: Counters) -> None:
    """Add the counters of a row to sums."""
    sums.debits_posted += row.debits_posted
    sums.credits_posted += row.credits_posted
    sums.debits_pending += row.debits_pending
    sums.credits_pending += row.credits_pending


def counters(row: Counters) -> tuple[int, int, int, int]:
    """Return the counters of a row: posted debits and credits, then pending ones."""
    return row.debits_posted, row.credits_posted, row.debits_pending, row.credits_pending

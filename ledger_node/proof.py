"""What the parts of a deep audit share: the shard, its accounts, what is wrong, and how far it is.

The parts are `proof_accounts`, `proof_transactions`, `proof_history` and `proof_indexes`;
`deep_audit` puts them together.
"""

import struct
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import msgspec

from ledger_core.accounts import Counters
from ledger_core.ids import format_account_id, format_transaction_id
from ledger_node.records import GroupRecord, ShardMeta
from ledger_node.store_bits import numbers_of_row
from ledger_node.store_files import DAMAGE_ADVICE, StoreCorruptError
from ledger_node.store_scan import ScannedShard, row_name

FAULTS_MAX: Final = 100
# After so many rows the clock is looked at, and progress is told.
_ROWS_PER_LOOK: Final = 4_096
NO_GROUP: Final = 2**64 - 1
"""The group of an account of which that cannot be known, because a row of it is wrong."""

# What decoding a row can raise whose bytes are not what was written.
UNREADABLE: Final = (StoreCorruptError, msgspec.MsgspecError, struct.error, ValueError)

Row = TypeVar("Row")


class TooLongError(Exception):
    """The audit has taken all the time that it was given."""


class Accounts:
    """What is remembered of every account, by slot: about 200 bytes each.

    ``ids``, ``groups`` and ``created_us`` are as stored. The others are as the entries that were
    read so far say: counters after the newest, its sequence and position. ``holds`` has what
    transactions have reserved where they have reserved something: (count, debits, credits).
    """

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}
        self.ids = array("Q")
        self.groups = array("Q")
        self.created_us = array("q")
        self.debits_posted = array("q")
        self.credits_posted = array("q")
        self.debits_pending = array("q")
        self.credits_pending = array("q")
        self.sequences = array("Q")
        self.positions = array("Q")
        self.holds: dict[int, tuple[int, int, int]] = {}

    def add(self, account_id: int, group: int, created_us: int) -> None:
        """Take in the account of the next slot."""
        self.slots[account_id] = len(self.ids)
        self.ids.append(account_id)
        self.groups.append(group)
        self.created_us.append(created_us)
        for numbers in (
            self.debits_posted,
            self.credits_posted,
            self.debits_pending,
            self.credits_pending,
            self.sequences,
            self.positions,
        ):
            numbers.append(0)

    def counters(self, slot: int) -> tuple[int, int, int, int]:
        """Return the counters after the entries that were read so far."""
        return (
            self.debits_posted[slot],
            self.credits_posted[slot],
            self.debits_pending[slot],
            self.credits_pending[slot],
        )

    def name(self, slot: int) -> str:
        """Name the account in a slot."""
        return f"account {format_account_id(self.ids[slot])}"


class Proof:
    """A deep audit under way. ``tell`` is called now and then with the number of rows done."""

    def __init__(self, shard: ScannedShard, tell: Callable[[int], None], deadline: float) -> None:
        self.shard = shard
        self.tables = shard.tables
        self.meta: ShardMeta = shard.tables.meta()
        self.accounts = Accounts()
        self.faults: list[str] = []
        self.groups: dict[int, GroupRecord] = {}
        self.orphaned_holds = 0
        self.undecided_at_home: list[int] = []
        self.rows_done = 0
        self._tell = tell
        self._deadline = deadline

    def fault(self, table: str, row: str, what: str) -> None:
        """Note that a row is not what it must be, unless enough are known."""
        if len(self.faults) < FAULTS_MAX:
            place = f"table {table}, {row}" if row else f"table {table}"
            self.faults.append(f"{place}: {what}")

    def advance(self) -> None:
        """Count a row that was read; TooLongError once the time is over."""
        self.rows_done += 1
        if self.rows_done % _ROWS_PER_LOOK == 1:
            self._tell(self.rows_done)
            if time.monotonic() > self._deadline:
                raise TooLongError

    def raw(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, row) as stored; a table that cannot be read to its end is a fault."""
        try:
            for key, value in self.shard.raw(table):
                self.advance()
                yield key, value
        except StoreCorruptError as error:
            self.fault(table, "", plain(error))

    def rows(
        self, table: str, decode: Callable[[bytes, bytes], Row]
    ) -> Iterator[tuple[bytes, Row]]:
        """Yield (key, ``decode(key, row)``) of the rows that are good; the others are faults."""
        for key, value in self.raw(table):
            try:
                decoded = decode(key, self.shard.row(table, key, value))
            except UNREADABLE as error:
                self.fault(table, row_name(table, key), plain(error))
                continue
            yield key, decoded

    def numbers_of_bits(self, table: str) -> Iterator[int]:
        """Yield the numbers in a table of `store_bits`."""
        for _, numbers in self.rows(table, lambda key, row: [*numbers_of_row(key, row)]):
            yield from numbers

    def account(self, account_id: int) -> str:
        """Name an account."""
        return f"account {format_account_id(account_id)}"

    def transaction(self, number: int) -> str:
        """Name a transaction by its number, and by its id where its record can be read."""
        try:
            record = self.tables.find_transaction(number)
        except UNREADABLE:
            record = None
        if record is None:
            return f"transaction {number}"
        home_number = number if record.home_shard_id is None else record.home_number
        return f"transaction {number} ({format_transaction_id(record.account_id, home_number)})"


def plain(error: Exception) -> str:
    """Say what is wrong with a row, without advice for the store as a whole."""
    text = str(error).removesuffix(DAMAGE_ADVICE).rstrip(" .")
    if "fails its checksum" in text:
        return "fails its checksum: the disk or memory changed it"
    return f"cannot be read: {text}" if text else type(error).__name__


def counters_of(row: Counters) -> tuple[int, int, int, int]:
    """Return posted debits and credits, then pending ones."""
    return row.debits_posted, row.credits_posted, row.debits_pending, row.credits_pending


def show(counters: tuple[int, int, int, int]) -> str:
    """Show counters to people, in minor units."""
    debits, credits_, reserved, coming = counters
    return f"{debits} debits and {credits_} credits posted, {reserved} and {coming} pending"

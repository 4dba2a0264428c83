"""What reads in pages have in common: how large a page may be, and cursors that lead nowhere."""

import msgspec

from ledger_core.errors import Reason
from ledger_core.results import Failure
from ledger_node.records import TransactionRecord
from ledger_node.store_tables import ShardTables

# A page ends early when it has so many bytes: messages have their limit, and carry several answers.
PAGE_BYTES_MAX = 3_500_000

# A page ends early when the transactions that it has read have so many entries: a node answers
# nothing else meanwhile.
ENTRIES_READ_MAX = 131_072

_encode = msgspec.msgpack.Encoder().encode


class RecordReader:
    """Reads the transactions of a page's rows; of rows that follow each other, one's but once."""

    def __init__(self, tables: ShardTables) -> None:
        self._tables = tables
        self._number = 0
        self._record: TransactionRecord | None = None
        self._entries = 0

    def read(self, number: int) -> TransactionRecord:
        """Return a transaction that is recorded."""
        if self._record is None or self._number != number:
            self._number, self._record = number, self._tables.find_transaction(number)
            assert self._record is not None, "every row has its transaction"
            self._entries += len(self._record.entries)
        return self._record

    @property
    def spent(self) -> bool:
        """Whether the page has to end, since it has read enough."""
        return self._entries > ENTRIES_READ_MAX


class PageRoom:
    """How much more a page of at most ``items_max`` items may hold."""

    def __init__(self, items_max: int) -> None:
        self._items = items_max
        self._bytes = PAGE_BYTES_MAX

    def take(self, item: msgspec.Struct) -> bool:
        """Make room for an item. False: it does not fit any more; the first one always does."""
        size = len(_encode(item))
        if self.full or (size > self._bytes and self._bytes < PAGE_BYTES_MAX):
            return False
        self._items -= 1
        self._bytes -= size
        return True

    @property
    def full(self) -> bool:
        """Whether not even a small item would fit."""
        return self._items == 0 or self._bytes <= 0


def page_token_failure(points_to: str) -> Failure:
    """Say that a cursor was made for something else, or by somebody else."""
    return Failure(
        Reason.INVALID_FIELDS,
        f"the page token points to {points_to}; start again without a token",
        field="page_token",
    )

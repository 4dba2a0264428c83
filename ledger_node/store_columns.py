"""Many rows of a table at once: what blocks of transfers read and write.

LMDB's own loops (`getmulti`, `putmulti`) find and store them. Keys come sorted, so that neighbours
share the pages that are walked.
"""

import zlib
from collections.abc import Iterable, Sequence
from typing import Final, cast

import lmdb
import numpy as np
from numpy.typing import NDArray

from ledger_core.ids import SYSTEM_ACCOUNTS_MAX
from ledger_core.transfers import I64Array, U64Array, mixed_ids
from ledger_node.checksums import set_checksums
from ledger_node.records import (
    BALANCE_ROW_BYTES,
    CRC,
    ENTRY_ROW_BYTES,
    REQUEST_ROW_BYTES,
    EntryRow,
    ShardMeta,
)
from ledger_node.store_files import StoreCorruptError
from ledger_node.store_rows import RowTables, unseal

# Signed where it can be: numpy makes floats of what is signed and unsigned together.
BALANCES: Final = np.dtype(
    [
        ("debits_posted", "<i8"),
        ("credits_posted", "<i8"),
        ("debits_pending", "<i8"),
        ("credits_pending", "<i8"),
        ("account_id", "<u8"),
        ("sequence", "<i8"),
        ("last_position", "<i8"),
        ("pending_transactions", "<u4"),
        ("group", "<u4"),
        ("book", "<u2"),
        ("type", "u1"),
        ("flags", "u1"),
        ("crc", "<u4"),
    ]
)
"""A `BalanceRow` with its checksum."""
assert BALANCES.itemsize == BALANCE_ROW_BYTES + CRC.size

# As numbers of 8 bytes each: their places in a row.
ROW_POSTED: Final = slice(2)
ROW_COUNTERS: Final = slice(4)
ROW_ACCOUNT: Final = 4
ROW_SEQUENCE: Final = 5
ROW_POSITION: Final = 6

BalanceRows = NDArray[np.void]
"""Rows of `BALANCES`."""

_SLOT_BYTES: Final = 4
# A `RequestRow` with its checksum.
_REQUESTS: Final = np.dtype(
    [("hash", "V16"), ("number", "<i8"), ("state", "<u4"), ("pad", "V4"), ("crc", "<u4")]
)
assert _REQUESTS.itemsize == REQUEST_ROW_BYTES + CRC.size
RESIDUE: Final = 0x2144DF1C
"""CRC-32 of anything that is followed by its CRC-32."""
# How many accounts' places are remembered at most.
_CELLS: Final = 1 << 17
_LAST_CELL: Final = np.array(_CELLS - 1, np.uint64)
# A place, from its lowest bits on: slot + 1, book, and whether it is the shard's own.
_SLOT_BITS: Final = 32
_BOOK_BITS: Final = 16
_SLOT_MASK, _SLOT_ONE = np.array((1 << _SLOT_BITS) - 1), np.array(1)


class ColumnTables(RowTables):
    """The part of `ShardTables` that reads and writes many rows at a time."""

    _accounts: lmdb._Database
    _entries: lmdb._Database
    _requests: lmdb._Database
    _transactions: lmdb._Database
    _known_places: "_KnownPlaces | None"

    def meta(self) -> ShardMeta:
        """Return the shard's running numbers."""
        raise NotImplementedError

    def balance_rows(self, slots: I64Array) -> BalanceRows:
        """Return the rows of slots, all of which exist. Reading is fastest where they rise."""
        raise NotImplementedError

    def places(self, account_ids: U64Array) -> I64Array:
        """Return where accounts are: `place`, which never changes. 0: they do not exist."""
        if self._known_places is None:
            self._known_places = _KnownPlaces()
        places, missing = self._known_places.find(account_ids)
        if missing is not None:
            ids = account_ids[missing]
            found = self._find_places(ids.tolist())
            places[missing] = [found.get(account_id, 0) for account_id in ids.tolist()]
            self._known_places.add(ids, places[missing])
        return places

    def _find_places(self, account_ids: Iterable[int]) -> dict[int, int]:
        keys = [account_id.to_bytes(8) for account_id in sorted(set(account_ids))]
        found = self._find_rows(self._accounts, keys)
        slots = np.array([int.from_bytes(row[:_SLOT_BYTES]) for _, row in found], np.int64)
        slots.sort()
        rows = self.balance_rows(slots)
        ids = rows["account_id"]
        own = mixed_ids(ids) - np.uint64(self.meta().lower_bound << 32) < SYSTEM_ACCOUNTS_MAX
        places = place(slots, rows["book"].astype(np.int64), own=own)
        return dict(zip(ids.tolist(), places.tolist(), strict=True))

    def slot_rows(self, keys: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Return (account ids, slots), both big-endian, of the accounts that exist, in order."""
        found = self._find_rows(self._accounts, keys)
        return [key for key, _ in found], [slot[:4] for _, slot in found]

    def entry_times_us(self, positions: Sequence[int]) -> list[int]:
        """Return when the entries at these positions, which rise, were recorded."""
        found: list[int] = []
        first, block = 0, b""
        crc32, from_bytes = zlib.crc32, int.from_bytes
        with self._source.txn.cursor(self._entries) as cursor:
            for position in positions:
                offset = (position - first) * ENTRY_ROW_BYTES
                if offset >= len(block):
                    # The entries of a log entry are one value, under the position of the first.
                    key = position.to_bytes(8)
                    behind = cursor.set_range(key)
                    if not (behind and cursor.key() == key):
                        _ = cursor.prev() if behind else cursor.last()
                    first, block = from_bytes(cursor.key()), bytes(cursor.value())
                    offset = (position - first) * ENTRY_ROW_BYTES
                row = block[offset : offset + ENTRY_ROW_BYTES]
                if len(row) != ENTRY_ROW_BYTES:
                    raise StoreCorruptError(f"there is no entry at position {position}")
                if crc32(row[:-4]) != from_bytes(row[-4:], "little"):
                    EntryRow.unpack(row)  # Raises, and says what to do.
                found.append(from_bytes(row[24:32], "little"))
        return found

    def claim_requests(self, keys: Sequence[bytes], first_number: int) -> set[bytes]:
        """Store requests of new transactions, numbered from ``first_number`` on, if none is known.

        Returns the keys of those that are known; if there are any, nothing is stored. One walk to
        each row both looks it up and stores it.
        """
        rows = _request_rows(np.arange(first_number, first_number + len(keys)))
        if self._put_sealed(self._requests, keys, rows, overwrite=False) == len(keys):
            return set()
        # All that were there before have lower numbers.
        found = self._find_rows(self._requests, keys)
        numbers = np.frombuffer(b"".join(row for _, row in found), _REQUESTS)["number"]
        known = {
            key
            for (key, _), number in zip(found, numbers.tolist(), strict=True)
            if number < first_number
        }
        self.drop_requests([key for key in keys if key not in known])
        return known

    def drop_requests(self, keys: Sequence[bytes]) -> None:
        """Take back requests that were claimed in vain."""
        txn = self._source.txn
        for key in keys:
            txn.delete(key, db=self._requests)

    def add_request_rows(self, keys: Sequence[bytes], numbers: I64Array) -> None:
        """Store which transactions requests that were not known have led to: their first states."""
        self._put_sealed(self._requests, keys, _request_rows(numbers))

    def add_transaction_rows(self, numbers: Sequence[bytes], rows: Sequence[bytes]) -> None:
        """Store the encoded `TransactionRecord`s of new transactions, whose numbers rise."""
        with self._source.txn.cursor(self._transactions) as cursor:
            # Not of a second book: some of its numbers are among those of the first one.
            append = not cursor.last() or bytes(cursor.key()) < numbers[0]
            _, added = cursor.putmulti(_sealed(numbers, rows), append=append)
        # What is not above all others is left out when appending.
        if added != len(numbers):
            raise AssertionError("the numbers of new transactions do not rise")

    def _find_rows(self, table: lmdb._Database, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        """Return (key, row with its checksum) of those that exist, in order."""
        found = self._get_many(table, keys)
        crc32 = zlib.crc32
        for key, sealed in found:
            if crc32(sealed, crc32(key)) != RESIDUE:
                unseal(key, sealed)  # Raises, and says what to do.
        return found

    def _get_many(self, table: lmdb._Database, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        with self._source.txn.cursor(table) as cursor:
            # bytes: the environment is not opened for memoryviews (buffers=True).
            return cast("list[tuple[bytes, bytes]]", cursor.getmulti(keys))

    def _put_rows(
        self, table: lmdb._Database, keys: Sequence[bytes], rows: Sequence[bytes]
    ) -> None:
        with self._source.txn.cursor(table) as cursor:
            cursor.putmulti(_sealed(keys, rows))

    def _put_sealed(
        self,
        table: lmdb._Database,
        keys: Sequence[bytes],
        rows: NDArray[np.void],
        *,
        overwrite: bool = True,
    ) -> int:
        """Store rows of one length whose last four bytes are for their checksum.

        Returns how many were stored: without ``overwrite``, those whose keys were not there.
        """
        set_checksums(rows, keys)
        items = list(zip(keys, _bytes_of(rows), strict=True))
        with self._source.txn.cursor(table) as cursor:
            stored: int = cursor.putmulti(items, overwrite=overwrite)[1]
        return stored


def _request_rows(numbers: I64Array) -> NDArray[np.void]:
    """Return `RequestRow`s of transactions, in their first states.

    They have no hashes of the requests' bodies: the transactions tell those.
    """
    rows = np.zeros(len(numbers), _REQUESTS)
    rows["number"] = numbers
    return rows


def _sealed(keys: Sequence[bytes], rows: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Return keys and rows with their checksums, as `seal` makes them."""
    pack, crc32 = CRC.pack, zlib.crc32
    return [(key, row + pack(crc32(row, crc32(key)))) for key, row in zip(keys, rows, strict=True)]


def _bytes_of(rows: NDArray[np.void]) -> list[bytes]:
    # Void values become bytes, far faster than slices are cut.
    split: list[bytes] = rows.view(f"V{rows.dtype.itemsize}").tolist()
    return split


def place(slots: I64Array, books: I64Array, *, own: NDArray[np.bool_] | bool) -> I64Array:
    """Return the places of accounts, above 0; ``own``: whether they are the shard's own."""
    return (np.asarray(own, np.int64) << _BOOK_BITS | books) << _SLOT_BITS | slots + 1


def place_slots(places: I64Array) -> I64Array:
    """Return the slots of places; -1 where there is none."""
    slots: I64Array = places & _SLOT_MASK
    slots -= _SLOT_ONE
    return slots


def place_books(places: I64Array) -> I64Array:
    """Return the books of places."""
    return places >> _SLOT_BITS & (1 << _BOOK_BITS) - 1


def are_own(places: I64Array) -> NDArray[np.bool_]:
    """Whether places are those of the shard's own accounts."""
    own: NDArray[np.bool_] = places >= 1 << _SLOT_BITS + _BOOK_BITS
    return own


def customers_book(places: I64Array) -> int | None:
    """Return the book of places, which rise, if all are those of its customers' accounts."""
    first, last = int(places[0]), int(places[-1])
    # What is no place has no slot; the shard's own ones are behind those of any book.
    book = last >> _SLOT_BITS
    return book if first and first >> _SLOT_BITS == book and not book >> _BOOK_BITS else None


class _KnownPlaces:
    """Places that were looked up before: bounded, the newest of those that share a cell.

    Ids are random numbers: their lowest bits spread them over the cells.
    """

    def __init__(self) -> None:
        # The id of each cell's place. Cell 0 alone could have that of 0: elsewhere that is none.
        self._ids = np.zeros(_CELLS, np.uint64)
        self._ids[0] = 1
        self._places = np.zeros(_CELLS, np.int64)

    def find(self, account_ids: U64Array) -> tuple[I64Array, I64Array | None]:
        """Return places, and where accounts are not among these; None: nowhere."""
        cells = self._cells(account_ids)
        places, ids = self._places.take(cells), self._ids.take(cells)
        if ids.tobytes() == account_ids.tobytes():
            return places, None
        return places, (ids != account_ids).nonzero()[0]

    def add(self, account_ids: U64Array, places: I64Array) -> None:
        """Remember places; 0 is none."""
        exist = places != 0
        cells = self._cells(account_ids[exist])
        # Where several share a cell, the last one has it: in both arrays.
        self._ids[cells] = account_ids[exist]
        self._places[cells] = places[exist]

    @staticmethod
    def _cells(account_ids: U64Array) -> I64Array:
        return (account_ids & _LAST_CELL).view(np.int64)

"""The balances of a shard's accounts: rows in the store, the hot ones of them in memory.

Only the tables that are written have rows in memory (`BalanceCache`), and the views of the newest
state, which share them. Whoever goes round these tables to the store's own sees dirty rows as they
were: `write_back` comes first then. The store does it before every checkpoint.
"""

import struct
import zlib
from collections.abc import Iterator
from itertools import chain
from typing import Final

import lmdb
import numpy as np

from ledger_core.transfers import I64Array
from ledger_node.balance_cache import BalanceCache
from ledger_node.records import BalanceRow
from ledger_node.store_columns import BALANCES, RESIDUE, BalanceRows, ColumnTables
from ledger_node.store_rows import unseal

_U32: Final = struct.Struct(">I")
_SLOT_BYTES: Final = 4
_KEYED: Final = np.dtype([("slot", f"V{_SLOT_BYTES}"), ("row", f"V{BALANCES.itemsize}")])


class BalanceTables(ColumnTables):
    """The part of `ShardTables` that reads and writes balances."""

    _balances: lmdb._Database
    _balance_cache: BalanceCache | None

    def balance(self, slot: int) -> BalanceRow:
        """Return the hot row of the account in a slot."""
        cache = self._balance_cache
        row = None if cache is None else cache.find_row(slot)
        if row is None:
            row = self._must_row(self._balances, _U32.pack(slot))
            if cache is not None:
                cache.add_row(slot, row)
        return BalanceRow.unpack(row)

    def save_balance(self, slot: int, row: BalanceRow) -> None:
        """Store the hot row of the account in a slot."""
        packed, cache = row.pack(), self._balance_cache
        if cache is None or not self._begin_writing(cache).put_row(slot, packed):
            self._put_row(self._balances, _U32.pack(slot), packed)

    def add_balance(self, slot: int, row: BalanceRow) -> None:
        """Store the hot row of a new account.

        It is in the store at once: so this has the rows of all slots, if older ones of some.
        """
        self._put_row(self._balances, _U32.pack(slot), row.pack())

    def balances(self) -> Iterator[tuple[int, BalanceRow]]:
        """Yield (slot, row) of every account."""
        return self.balances_after(-1)

    def balances_after(self, slot: int) -> Iterator[tuple[int, BalanceRow]]:
        """Yield (slot, row) of the accounts behind a slot, in the order of their opening."""
        cache = self._balance_cache
        with self._source.txn.cursor(self._balances) as cursor:
            if not cursor.set_range(_U32.pack(slot + 1)):
                return
            for key, value in cursor:
                found = _U32.unpack(key)[0]
                row = None if cache is None else cache.find_dirty_row(found)
                yield found, BalanceRow.unpack(unseal(key, value) if row is None else row)

    def balance_rows(self, slots: I64Array) -> BalanceRows:
        """Return the rows of slots, all of which exist. Reading is fastest where they rise."""
        cache = self._balance_cache
        if cache is None:
            return self._stored_rows(slots)
        rows, missing = cache.find(slots)
        if missing is None:
            return rows
        if len(missing) == len(slots):
            rows = self._stored_rows(slots)
            cache.add(slots, rows)
            return rows
        slots = slots.take(missing)
        stored = self._stored_rows(slots)
        cache.add(slots, stored)
        void = f"V{BALANCES.itemsize}"
        rows.view(void).put(missing, stored.view(void))
        return rows

    def save_balance_rows(self, slots: I64Array, rows: BalanceRows) -> None:
        """Store the rows of slots, each of them once."""
        cache = self._balance_cache
        if cache is not None:
            left = self._begin_writing(cache).put(slots, rows)
            if left is None:
                return
            slots, rows = slots.take(left), rows.take(left)
        self._put_sealed(self._balances, _slot_keys(slots), rows)

    def write_back(self) -> None:
        """Store the rows that are newer in memory."""
        cache = self._balance_cache
        if cache is not None and cache.is_dirty:
            slots, rows = cache.take_dirty()
            self._put_sealed(self._balances, _slot_keys(slots), rows)

    def _begin_writing(self, cache: BalanceCache) -> BalanceCache:
        if not cache.is_dirty:
            # Dirty rows are written at a checkpoint, and that is for what a transaction has.
            _ = self._source.txn
        return cache

    def _stored_rows(self, slots: I64Array) -> BalanceRows:
        """Return rows as the store has them; StoreCorruptError if one is missing or damaged."""
        keys = _slot_keys(slots)
        found = self._get_many(self._balances, keys)
        joined = b"".join(chain.from_iterable(found))
        if len(found) < len(keys) or zlib.crc32(joined) != _residue_of(len(keys)):
            for key in keys:
                self._must_row(self._balances, key)  # Raises, and says what to do.
            raise AssertionError("rows that are sound one by one are so together")
        rows: BalanceRows = np.frombuffer(joined, _KEYED)["row"].copy().view(BALANCES)
        return rows


def _slot_keys(slots: I64Array) -> list[bytes]:
    keys: list[bytes] = slots.astype(">u4").view(f"V{_SLOT_BYTES}").tolist()
    return keys


_residues = [0]


def _residue_of(count: int) -> int:
    """Return the CRC-32 of so many sound rows of balances, each with its key before it, joined.

    What CRC-32 is after a sound row depends on what it was before and on the row's length alone:
    so one pass over many rows finds a damaged one as surely as a pass over each.
    """
    zeros = bytes(_KEYED.itemsize)
    while len(_residues) <= count:
        _residues.append(RESIDUE ^ zlib.crc32(zeros, _residues[-1]) ^ zlib.crc32(zeros))
    return _residues[count]

"""Balance rows of a shard in memory, written behind: blocks read and write arrays, not the store.

A row is in the cell that the lowest bits of its slot say. Slots are dense, so that a shard with no
more accounts than cells has all of them here, and uses no more memory than these take. With more
accounts, some share a cell. A row that is *dirty*, so not in the store as it is here, keeps its
cell until it is written; what else is to be written meanwhile goes to the store at once, and what
else is read stays there. So nothing here has to give way in the middle of a turn.

What is clean can be forgotten at any time: the store has it.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ledger_core.transfers import I64Array
from ledger_node.records import BALANCE_ROW_BYTES
from ledger_node.store_columns import BALANCES, BalanceRows

CELLS: Final = 1 << 16
"""Cells per shard: rows of 72 bytes. Pages of memory that no slot leads to are never touched."""

_SEALED_BYTES: Final = BALANCES.itemsize
# As bytes of one length, rows are copied far faster than field by field.
_VOID: Final = np.dtype(f"V{_SEALED_BYTES}")


class BalanceCache:
    """Up to ``cells`` (a power of two) rows of `BALANCES`. Their checksums here mean nothing."""

    def __init__(self, cells: int = CELLS) -> None:
        assert cells & cells - 1 == 0, "the lowest bits of a slot are its cell"
        self._cells = cells
        self._last_cell = cells - 1
        # For many slots at a time: numpy takes it faster so.
        self._last_cells = np.array(self._last_cell)
        self._rows: BalanceRows = np.zeros(cells, BALANCES)
        self._voids = self._rows.view(_VOID)
        self._bytes = self._rows.view(np.uint8).data
        self.forget()

    def forget(self) -> None:
        """Forget all rows, dirty ones too."""
        self.is_dirty = False
        """Whether there are dirty rows."""
        # The slot of each cell's row. Cell 0 alone could have that of 0: elsewhere that is none.
        self._slots: I64Array = np.zeros(self._cells, np.int64)
        self._slots[0] = -1
        self._dirty: NDArray[np.bool_] = np.zeros(self._cells, np.bool_)
        # Single items are read far faster so.
        self._slot_in = self._slots.data
        self._dirty_in = self._dirty.data

    # One row

    def find_row(self, slot: int) -> bytes | None:
        """Return the packed row of a slot, if it is here."""
        cell = slot & self._last_cell
        if self._slot_in[cell] != slot:
            return None
        start = cell * _SEALED_BYTES
        return bytes(self._bytes[start : start + BALANCE_ROW_BYTES])

    def find_dirty_row(self, slot: int) -> bytes | None:
        """Return the packed row of a slot, if the store has an older one."""
        return self.find_row(slot) if self._dirty_in[slot & self._last_cell] else None

    def add_row(self, slot: int, row: bytes) -> None:
        """Keep a packed row as the store has it, unless there is no room."""
        cell = slot & self._last_cell
        if not self._dirty_in[cell]:
            self._set_row(cell, slot, row)

    def put_row(self, slot: int, row: bytes) -> bool:
        """Keep a packed row that the store does not have; False where there is no room."""
        cell = slot & self._last_cell
        if self._dirty_in[cell] and self._slot_in[cell] != slot:
            return False
        self._set_row(cell, slot, row)
        self._dirty_in[cell] = self.is_dirty = True
        return True

    def _set_row(self, cell: int, slot: int, row: bytes) -> None:
        start = cell * _SEALED_BYTES
        self._bytes[start : start + BALANCE_ROW_BYTES] = row
        self._slot_in[cell] = slot

    # Many rows

    def find(self, slots: I64Array) -> tuple[BalanceRows, I64Array | None]:
        """Return the rows of slots, and at which places they are not here; None: at no place."""
        cells = slots & self._last_cells
        rows: BalanceRows = self._rows.take(cells)
        here = self._slots.take(cells)
        if here.tobytes() == slots.tobytes():
            return rows, None
        return rows, (here != slots).nonzero()[0]

    def add(self, slots: I64Array, rows: BalanceRows) -> None:
        """Keep rows as the store has them, as far as there is room."""
        cells = slots & self._last_cells
        clean = (~self._dirty.take(cells)).nonzero()[0]
        cells = cells.take(clean)
        # Where several share a cell, the last one has it: in both arrays.
        self._slots.put(cells, slots.take(clean))
        self._voids.put(cells, rows.view(_VOID).take(clean))

    def put(self, slots: I64Array, rows: BalanceRows) -> I64Array | None:
        """Keep rows that the store does not have, each slot once.

        Returns the places of those for which there is no room: the caller stores them. None: there
        are none.
        """
        cells = slots & self._last_cells
        left: I64Array | None = None
        if self._slots.take(cells).tobytes() != slots.tobytes():
            clean = (~self._dirty.take(cells)).nonzero()[0]
            # Whoever loses its cell to another one of these is stored by the caller as well.
            self._slots.put(cells.take(clean), slots.take(clean))
            is_here = self._slots.take(cells) == slots
            if not is_here.all():
                left, here = (~is_here).nonzero()[0], is_here.nonzero()[0]
                cells, rows = cells.take(here), rows.take(here)
        self._voids.put(cells, rows.view(_VOID))
        self._dirty[cells] = True
        self.is_dirty = True
        return left

    def take_dirty(self) -> tuple[I64Array, BalanceRows]:
        """Return the slots, which rise, and the rows that are dirty: from now on they are clean."""
        cells = self._dirty.nonzero()[0]
        slots = self._slots.take(cells)
        if self._cells <= slots.max(initial=0):
            order = slots.argsort()
            cells, slots = cells.take(order), slots.take(order)
        self._dirty[cells] = False
        self.is_dirty = False
        rows: BalanceRows = self._rows.take(cells)
        return slots, rows

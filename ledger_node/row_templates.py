"""Encodings that differ in a few values of fixed length only: made, and recognised, as arrays.

A value is encoded once, with marks in the place of what differs; columns are then laid over copies
of that. The marks are as long as any value, so numbers take 8 bytes however small they are: to a
reader of msgpack that is the same.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
"""Rows of one length, one below the other."""

U64_MARKS: Final = tuple((0x70 + i) << 56 | 0x0123456789ABCD for i in range(8))
"""Numbers whose encoding has 8 bytes, and is found nowhere else."""


class RowTemplate:
    """An encoding, and where columns lie in it. A column may lie in several places."""

    def __init__(self, encoded: bytes, columns: Mapping[str, tuple[int, list[int]]]) -> None:
        """Take the places of columns: the bytes of a value, and where it starts."""
        self.size = len(encoded)
        self._bytes = np.frombuffer(encoded, np.uint8)
        self._columns = columns
        self._fixed = np.ones(self.size, bool)
        for size, places in columns.values():
            for at in places:
                self._fixed[at : at + size] = False

    def lay(self, count: int, columns: Mapping[str, Bytes]) -> Bytes:
        """Return so many rows, with all columns of the template."""
        rows = np.empty((count, self.size), np.uint8)
        rows[:] = self._bytes
        for name, (size, places) in self._columns.items():
            for at in places:
                rows[:, at : at + size] = columns[name]
        return rows

    def matches(self, rows: Bytes) -> NDArray[np.bool_]:
        """Tell which rows of the template's length are of it, whatever their columns are."""
        differs = rows != self._bytes
        differs &= self._fixed
        return all_true(~differs)

    def place(self, name: str) -> tuple[int, list[int]]:
        """Return how long the values of a column are, and where they start."""
        return self._columns[name]

    def column(self, rows: Bytes, name: str, place: int = 0) -> Bytes:
        """Return a column of rows that match."""
        size, places = self._columns[name]
        return rows[:, places[place] : places[place] + size]

    def put(self, rows: Bytes, name: str, column: Bytes) -> None:
        """Change a column of rows that match."""
        size, places = self._columns[name]
        for at in places:
            rows[:, at : at + size] = column


def all_true(matrix: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell which rows are all true. Nearly always all of them are: that is told much faster."""
    found: NDArray[np.bool_] = np.ones(len(matrix), bool)
    if not matrix.all():
        np.logical_and.reduce(matrix, axis=1, out=found)
    return found


def places_of(encoded: bytes, mark: bytes) -> tuple[int, list[int]]:
    """Return the length of a mark, and everywhere that it is."""
    places, at = [], encoded.find(mark)
    while at >= 0:
        places.append(at)
        at = encoded.find(mark, at + 1)
    return len(mark), places

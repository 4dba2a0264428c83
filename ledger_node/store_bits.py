"""Sets of numbers in a table: a bit for each, `NUMBERS_PER_ROW` in a row.

Blocks of transfers put in and take out many numbers that follow one another: that changes a row or
two. What holds no number has no row.
"""

import struct
from collections.abc import Iterator
from typing import Final

import lmdb
import numpy as np
from numpy.typing import NDArray

from ledger_node.store_rows import RowTables, unseal

NUMBERS_PER_ROW: Final = 1_024
_ROW_BYTES: Final = NUMBERS_PER_ROW // 8
_SHIFT: Final = NUMBERS_PER_ROW.bit_length() - 1
_LAST_BIT: Final = NUMBERS_PER_ROW - 1
# So many are told one by one: an array is made faster of more.
_FEW: Final = 24

_U64 = struct.Struct(">Q")


class BitTables(RowTables):
    """Tables of bits inside the transaction of ``source``."""

    def _has_bit(self, table: lmdb._Database, number: int) -> bool:
        return bool(self._bits(table, number >> _SHIFT) >> (number & _LAST_BIT) & 1)

    def _set_bits(self, table: lmdb._Database, numbers: NDArray[np.integer]) -> None:
        """Put numbers in."""
        for place, bits in _rows_of(numbers):
            self._put_bits(table, place, self._bits(table, place) | bits)

    def _clear_bits(self, table: lmdb._Database, numbers: NDArray[np.integer]) -> None:
        """Take numbers out; some may not be in."""
        for place, bits in _rows_of(numbers):
            before = self._bits(table, place)
            if before & bits:
                self._put_bits(table, place, before & ~bits)

    def _numbers_of_bits(self, table: lmdb._Database, first: int, last: int) -> Iterator[int]:
        """Yield the numbers that are in, from ``first`` to ``last``, as they rise."""
        with self._source.txn.cursor(table) as cursor:
            more = cursor.set_range(_U64.pack(first >> _SHIFT))
            while more:
                key = bytes(cursor.key())
                for number in numbers_of_row(key, unseal(key, cursor.value())):
                    if number > last:
                        return
                    if number >= first:
                        yield number
                more = cursor.next()

    def _bits(self, table: lmdb._Database, place: int) -> int:
        row = self._get_row(table, _U64.pack(place))
        return 0 if row is None else int.from_bytes(row, "little")

    def _put_bits(self, table: lmdb._Database, place: int, bits: int) -> None:
        if bits:
            self._put_row(table, _U64.pack(place), bits.to_bytes(_ROW_BYTES, "little"))
        else:
            self._source.txn.delete(_U64.pack(place), db=table)


def numbers_of_row(key: bytes, row: bytes) -> Iterator[int]:
    """Yield the numbers in a row, as they rise."""
    (place,) = _U64.unpack(key)
    bits = int.from_bytes(row, "little")
    while bits:
        lowest = bits & -bits
        yield (place << _SHIFT) + lowest.bit_length() - 1
        bits ^= lowest


def _rows_of(numbers: NDArray[np.integer]) -> Iterator[tuple[int, int]]:
    """Yield (place of a row, its bits) of numbers."""
    if len(numbers) <= _FEW:
        found: dict[int, int] = {}
        for number in numbers.tolist():
            place = number >> _SHIFT
            found[place] = found.get(place, 0) | 1 << (number & _LAST_BIT)
        yield from sorted(found.items())
        return
    first, last = int(numbers.min()), int(numbers.max())
    if last - first > 64 * NUMBERS_PER_ROW:
        # Far from each other: better by row than in one array.
        places = numbers >> numbers.dtype.type(_SHIFT)
        for place in np.unique(places).tolist():
            yield from _near(numbers[places == place], place << _SHIFT)
    else:
        yield from _near(numbers, first >> _SHIFT << _SHIFT)


def _near(numbers: NDArray[np.integer], base: int) -> Iterator[tuple[int, int]]:
    offsets = (numbers - numbers.dtype.type(base)).astype(np.int64)
    size = (int(offsets.max()) >> _SHIFT) + 1
    marked = np.zeros(size << _SHIFT, bool)
    marked[offsets] = True
    packed = np.packbits(marked, bitorder="little").tobytes()
    for place in range(size):
        bits = int.from_bytes(packed[_ROW_BYTES * place : _ROW_BYTES * (place + 1)], "little")
        if bits:
            yield (base >> _SHIFT) + place, bits

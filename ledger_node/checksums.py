"""CRC-32 of many rows at once, the same as zlib's.

CRC-32 is linear: of rows of one length, each byte changes the checksum by an amount that depends
only on its value and on how many bytes follow it. So tables say what each byte adds, and only the
bytes that differ between the rows are looked up: most rows of a block have most bytes in common.
"""

import functools
import zlib
from collections.abc import Sequence
from itertools import repeat
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ledger_node.records import CRC

# Fewer rows are faster one by one.
_ROWS_MIN: Final = 192
# Rows that are longer, with their keys, have no tables.
_LENGTH_MAX: Final = 512
# So many rows at a time: what is looked up for them stays in the processor's cache.
_CHUNK: Final = 256

ByteRows = NDArray[np.uint8]
"""Rows of bytes, all of one length."""


def set_checksums(rows: NDArray[np.void], keys: Sequence[bytes] = ()) -> None:
    """Make the last four bytes of rows the CRC-32 of their keys, if they have any, and the rest."""
    length = rows.dtype.itemsize - CRC.size
    parts = rows.view(_parts(length))
    key_rows = None if len(rows) < _ROWS_MIN else _as_rows(keys, len(rows))
    if key_rows is not None and key_rows.shape[1] + length <= _LENGTH_MAX:
        row_bytes = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
        parts["checksum"] = checksums(key_rows, row_bytes[:, :length])
    else:
        before = map(zlib.crc32, keys) if keys else repeat(0)
        parts["checksum"] = list(map(zlib.crc32, parts["row"].tolist(), before))


def checksums(keys: ByteRows, rows: ByteRows) -> NDArray[np.uint32]:
    """Return the CRC-32 of each key followed by its row. There is at least one; keys may be empty.

    Both together have at least one byte, and at most 512.
    """
    whole = _side_by_side(keys, rows)
    # Those of a column together, and as numbers of eight bytes: so they are compared fast.
    words = np.ascontiguousarray(whole.view(np.uint64).T)
    differ = np.bitwise_or.reduce(words, 1) ^ np.bitwise_and.reduce(words, 1)
    columns = differ.view(np.uint8).nonzero()[0]
    common = whole[0].copy()
    common[columns] = 0
    sums = np.full(len(rows), zlib.crc32(common[-keys.shape[1] - rows.shape[1] :]), np.uint32)
    tables = (whole.shape[1] - 1 - columns)[:, np.newaxis] << 8
    by_column = words.view(np.uint8).reshape(*words.shape, 8)
    word, byte = columns >> 3, columns & 7
    for start in range(0, len(sums), _CHUNK):
        end = start + _CHUNK
        places = tables + by_column[word, start:end, byte]
        sums[start:end] ^= np.bitwise_xor.reduce(_BYTE_CHANGES.take(places), 0)
    return sums


@functools.lru_cache(maxsize=256)
def _parts(length: int) -> np.dtype[np.void]:
    """Return the type of rows of so many bytes, with their checksums."""
    return np.dtype([("row", f"V{length}"), ("checksum", "<u4")])


def _as_rows(keys: Sequence[bytes], count: int) -> ByteRows | None:
    """Return keys as rows, of no bytes if there are none; None where they differ in length."""
    lengths = set(map(len, keys)) or {0}
    if len(lengths) > 1:
        return None
    return np.frombuffer(b"".join(keys), np.uint8).reshape(count, lengths.pop())


def _side_by_side(keys: ByteRows, rows: ByteRows) -> ByteRows:
    """Return rows behind their keys, and behind zeros that make them whole words."""
    size = keys.shape[1] + rows.shape[1]
    padding = -size % 8
    whole = np.zeros((len(rows), padding + size), np.uint8)
    whole[:, padding : padding + keys.shape[1]] = keys
    whole[:, padding + keys.shape[1] :] = rows
    return whole


def _byte_changes() -> NDArray[np.uint32]:
    """Return how a byte changes a CRC-32, by how many bytes follow it and by its value."""
    zero = zlib.crc32(b"\0")
    last = np.array([zlib.crc32(bytes([value])) ^ zero for value in range(256)], np.uint32)
    changes = np.empty((_LENGTH_MAX, 256), np.uint32)
    changes[0] = last
    for after in range(1, _LENGTH_MAX):
        before = changes[after - 1]
        # Another byte behind it shifts the sum by 8 bits, and folds in those that leave it.
        changes[after] = before >> 8 ^ last[before & 0xFF]
    return changes.reshape(-1)


_BYTE_CHANGES: Final = _byte_changes()

"""Frames of messages that are encoded already: the bytes that protobuf makes of all together.

Protobuf copies each message twice on its way into a frame, and takes the memory for large frames
anew each time.
"""

import functools
from collections.abc import Iterable

_LENGTH_DELIMITED = 2


def encoded_frame(field: int, messages: Iterable[bytes]) -> bytes:
    """Return the encoding of a message that has others in one repeated field, and no more."""
    parts: list[bytes] = []
    for message in messages:
        parts.append(_head(field, len(message)))
        parts.append(message)
    return b"".join(parts)


@functools.lru_cache(maxsize=4_096)
def _head(field: int, size: int) -> bytes:
    """Return what comes before a message of a field: the field's tag and the size, as varints."""
    return _varint(field << 3 | _LENGTH_DELIMITED) + _varint(size)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)

"""Request ids of many calls at once: made, and written out, a byte of all of them at a time."""

import os
import time

KEY_BYTES = 16
_TEXT_BYTES = 36
# A UUID has its version in the upper bits of one byte, its variant in those of another.
_VERSION_BYTE, _VERSION = 6, bytes(0x70 | value & 0x0F for value in range(256))
_VARIANT_BYTE, _VARIANT = 8, bytes(0x80 | value & 0x3F for value in range(256))
_DASHES = (8, 13, 18, 23)
_DIGITS = [place for place in range(_TEXT_BYTES) if place not in _DASHES]


def new_keys(count: int) -> bytes:
    """Return the bytes of fresh UUIDs version 7, as `ledger_core.ids.new_request_id` makes them."""
    keys = bytearray(KEY_BYTES * count)
    milliseconds = (time.time_ns() // 1_000_000).to_bytes(_VERSION_BYTE)
    for place, value in enumerate(milliseconds):
        keys[place::KEY_BYTES] = bytes([value]) * count
    random = os.urandom((KEY_BYTES - _VERSION_BYTE) * count)
    for place in range(_VERSION_BYTE, KEY_BYTES):
        start = (place - _VERSION_BYTE) * count
        keys[place::KEY_BYTES] = random[start : start + count]
    for place, values in ((_VERSION_BYTE, _VERSION), (_VARIANT_BYTE, _VARIANT)):
        keys[place::KEY_BYTES] = keys[place::KEY_BYTES].translate(values)
    return bytes(keys)


def key_texts(keys: bytes) -> list[bytes]:
    """Return UUIDs as they are written."""
    digits = keys.hex().encode()
    joined = bytearray(b"-") * (_TEXT_BYTES * len(keys) // KEY_BYTES)
    for index, place in enumerate(_DIGITS):
        joined[place::_TEXT_BYTES] = digits[index :: len(_DIGITS)]
    texts = bytes(joined)
    return [texts[start : start + _TEXT_BYTES] for start in range(0, len(texts), _TEXT_BYTES)]

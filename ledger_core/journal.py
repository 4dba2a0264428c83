"""The hash chain of a shard's journal. `docs/AUDIT.md` publishes it; it never changes.

All integers are little-endian. With H = BLAKE2b of 32 bytes, unkeyed:

    digest of an item = H(u32 bytes of command, u32 bytes of outcome, u64 number,
                          command, outcome, rows)
    link of an entry  = H(link of the entry before, u64 number, i64 time_us, u32 count of items,
                          digests of the items)

The link before the first entry is 32 zero bytes.
"""

import hashlib
import struct
from collections.abc import Sequence

FIRST_LINK = bytes(32)

_ITEM = struct.Struct("<IIQ")
_ENTRY = struct.Struct("<QqI")


def item_digest(command: bytes, outcome: bytes, number: int, rows: bytes) -> bytes:
    """Return the digest of a journal item: what was asked, what came of it, what it wrote."""
    digest = hashlib.blake2b(_ITEM.pack(len(command), len(outcome), number), digest_size=32)
    digest.update(command)
    digest.update(outcome)
    digest.update(rows)
    return digest.digest()


def next_link(previous: bytes, number: int, time_us: int, digests: Sequence[bytes]) -> bytes:
    """Return the chain's hash after journal entry ``number``."""
    digest = hashlib.blake2b(previous, digest_size=32)
    digest.update(_ENTRY.pack(number, time_us, len(digests)))
    for item in digests:
        digest.update(item)
    return digest.digest()

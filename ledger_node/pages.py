"""What reads in pages have in common: how large a page may be, and cursors that lead nowhere."""

import msgspec

from ledger_core.errors import Reason
from ledger_core.results import Failure

# A page ends early when it has so many bytes: messages have their limit, and carry several answers.
PAGE_BYTES_MAX = 3_500_000

_encode = msgspec.msgpack.Encoder().encode


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

"""What waits to be sent on a connection: it leaves in as few frames as size allows."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from ledger_cluster.framed_connection import FramedConnection

FRAME_BYTES = 2 << 20
"""A frame holds no more, unless a single item is larger."""


T = TypeVar("T")


class Outbox(Generic[T]):
    """Items in their order. What is put in one pass of the event loop shares a frame."""

    def __init__(self, connection: FramedConnection, send: Callable[[list[T]], None]) -> None:
        """``send`` makes a frame of some items, and sends it on the connection."""
        self._connection = connection
        self._send = send
        self._items: deque[tuple[T, int]] = deque()
        self._scheduled = False
        self.bytes = 0
        """The size of all items."""

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T, size: int) -> None:
        """Queue an item of so many bytes."""
        self._items.append((item, size))
        self.bytes += size
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._end_of_pass)

    def flush(self) -> None:
        """Send now, as far as the connection takes it; `LinkEnd.writable` must call this."""
        while self._items and not self._connection.full:
            self._send(self._next_frame())

    def _end_of_pass(self) -> None:
        self._scheduled = False
        self.flush()

    def _next_frame(self) -> list[T]:
        """Take as many items as fit into one frame."""
        first, frame_bytes = self._items.popleft()
        frame = [first]
        while self._items and frame_bytes + self._items[0][1] <= FRAME_BYTES:
            item, size = self._items.popleft()
            frame.append(item)
            frame_bytes += size
        self.bytes -= frame_bytes
        return frame

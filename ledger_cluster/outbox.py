"""What waits to be written to a stream: it leaves in as few messages as size allows."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

FRAME_BYTES = 2 << 20
"""A frame holds no more, unless a single item is larger."""


T = TypeVar("T")


class Outbox(Generic[T]):
    """Items in their order, for one writer. Lives on one event loop."""

    def __init__(self) -> None:
        self._items: deque[tuple[T, int]] = deque()
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T, size: int) -> None:
        """Queue an item of so many bytes."""
        self._items.append((item, size))
        self._filled.set()

    async def next_frame(self) -> list[T]:
        """Wait for items, and take as many as fit into one frame."""
        await self._filled.wait()
        items = self._items
        first, size = items.popleft()
        frame = [first]
        while items and (size := size + items[0][1]) <= FRAME_BYTES:
            frame.append(items.popleft()[0])
        if not items:
            self._filled.clear()
        return frame

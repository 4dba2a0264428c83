"""What waits to be written to a stream: it leaves in as few messages as size allows."""

import asyncio
from collections import deque
from typing import Generic, Protocol, TypeVar

FRAME_BYTES = 2 << 20
"""A frame holds no more, unless a single item is larger."""


class Sized(Protocol):
    """A protobuf message."""

    def ByteSize(self) -> int:  # noqa: N802  (protobuf's name)
        """Return its size when encoded."""
        ...


T = TypeVar("T", bound=Sized)


class Outbox(Generic[T]):
    """Items in their order, for one writer. Lives on one event loop."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Queue an item."""
        self._items.append(item)
        self._filled.set()

    async def next_frame(self) -> list[T]:
        """Wait for items, and take as many as fit into one frame."""
        await self._filled.wait()
        items = self._items
        frame = [items.popleft()]
        size = frame[0].ByteSize()
        while items and (size := size + items[0].ByteSize()) <= FRAME_BYTES:
            frame.append(items.popleft())
        if not items:
            self._filled.clear()
        return frame

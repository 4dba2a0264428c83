"""When writes set out: those for all shards together, in beats.

A call has pieces for many shards. If every lane sent as soon as it could, calls would drift apart,
and most blocks would hold the piece of one call, at the cost of a full one. In a beat all that
waits is sent. The next beat begins when this one is answered and as much waits as was on its way or
waited meanwhile: then all callers are back. For those that do not come back it waits only a little,
but a little longer while others still come. With nothing on its way a beat begins at once.
"""

import asyncio
import time
from collections.abc import Callable

# A shard that does not answer holds up the others for some times as long as beats usually take, but
# within these bounds.
BEAT_S_MIN, BEAT_S_MAX = 0.02, 0.25
_BEATS_WAITED = 2.0
# The pause between two beats, as a part of what the last one took, and at most.
_PAUSE_SHARE, PAUSE_S_MAX = 0.5, 0.010
# Single calls that were answered together come back one after the other. With no more than the gap
# between them the pause goes on, but no longer than the last beat took, and this. Where many came
# while that beat was under way they do not come because they were answered: nobody waits for them.
GAP_S, LONG_PAUSE_S_MAX = 0.003, 0.030
# Timers may go off so much too early.
_EARLY_S = 0.001

FEW_COMMANDS = 16
"""With no more than these on their way, single commands wait for no beat: most of them would have
their shard to themselves, and so cost as much. (Many that are no more than a transfer go another
way: see `single_transfers`.)"""


class Departure:
    """What sets out in a beat, in items.

    ``most`` is how much was on its way, or waited for the next beat meanwhile, at once; ``left`` is
    how much set out.
    """

    __slots__ = ("left", "left_at", "most", "under_way")

    def __init__(self) -> None:
        self.left_at = 0.0
        self.left = 0
        self.under_way = 0
        self.most = 0

    def join(self, items: int = 1) -> None:
        """Note that so much sets out now."""
        self.left_at = time.monotonic()
        self.left += items
        self.under_way += items
        self.note_waiting(0)

    def note_waiting(self, items: int) -> None:
        """Note how much waits for the next beat, if this one is not answered yet."""
        if self.under_way:
            self.most = max(self.most, self.under_way + items)


class Beats:
    """Says when lanes may send. Lives on one event loop."""

    def __init__(self) -> None:
        self._current = Departure()
        self._ended_at = 0.0
        self._took_s = 0.0
        self._open = False
        self._came_at = 0.0
        self._come_back = False
        """Whether most callers come because they were answered."""
        self._waiting: dict[Callable[[], None], int] = {}
        self._waiting_items = 0
        self._timer: asyncio.Handle | None = None

    def leave(self, send: Callable[[], None], items: int = 1) -> Departure | None:
        """Return the beat with which something may set out now, to `Departure.join` it.

        Or return None, and call ``send`` at the next beat. ``items``: how many wait.
        """
        if not self._may_join():
            self.note_waiting(send, items)
            delay_s = self._begins_at() - time.monotonic()
            if delay_s > 0 or len(self._waiting) > 1:
                if self._timer is None or delay_s <= 0:
                    self._set_timer(delay_s)
                return None
            self._wait_no_more(send)
            self._drop_timer()
            self._begin()
        return self._current

    def arrived(self, departure: Departure, items: int = 1) -> None:
        """Note that so much has been answered."""
        departure.under_way -= items
        if departure is self._current and not departure.under_way:
            self._ended_at = time.monotonic()
            self._took_s = self._ended_at - departure.left_at
            self._come_back = 2 * self._waiting_items <= departure.left
            if self._timer is not None:
                self._set_timer(max(self._begins_at() - self._ended_at, 0.0))

    def _may_join(self) -> bool:
        """Whether what sets out now belongs to this beat."""
        return self._open

    def _begins_at(self) -> float:
        if self._current.under_way:
            waits_s = min(max(_BEATS_WAITED * self._took_s, BEAT_S_MIN), BEAT_S_MAX)
            return self._current.left_at + waits_s
        if self._waiting_items >= self._current.most:
            return self._ended_at
        pause_s = min(_PAUSE_SHARE * self._took_s, PAUSE_S_MAX)
        if not self._come_back:
            return self._ended_at + pause_s
        coming_s = self._came_at + GAP_S - self._ended_at
        return self._ended_at + max(pause_s, min(coming_s, self._took_s, LONG_PAUSE_S_MAX))

    def note_waiting(self, send: Callable[[], None], items: int) -> None:
        """Note how many items wait, also where they could not set out in a beat of now."""
        self._came_at = time.monotonic()
        self._waiting_items += items - self._waiting.get(send, 0)
        self._waiting[send] = items
        self._current.note_waiting(self._waiting_items)

    def _wait_no_more(self, send: Callable[[], None]) -> None:
        self._waiting_items -= self._waiting.pop(send, 0)

    def _begin(self) -> None:
        """Begin a beat: it is open to all who send in this pass of the event loop."""
        self._current, self._open = Departure(), True
        asyncio.get_running_loop().call_soon(self._close)

    def _close(self) -> None:
        self._open = False

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self, delay_s: float) -> None:
        self._drop_timer()
        self._timer = asyncio.get_running_loop().call_later(max(delay_s, 0.0), self._send_waiting)

    def _send_waiting(self) -> None:
        self._timer = None
        delay_s = self._begins_at() - time.monotonic()
        if delay_s > _EARLY_S and self._waiting:
            self._set_timer(delay_s)  # more have come since it was set
            return
        waiting, self._waiting, self._waiting_items = self._waiting, {}, 0
        if not waiting:
            return  # they were cancelled: what is on its way goes on being waited for
        self._begin()
        for send in waiting:
            send()


class CommandBeats(Beats):
    """Beats of single commands, of which each has a caller. A few are not held up."""

    async def departure(self) -> Departure:
        """Wait until a command may set out; call `arrived` when it is answered."""
        waiter: asyncio.Future[Departure] = asyncio.get_running_loop().create_future()

        def send() -> None:
            if waiter.done():
                return
            departure = self.leave(send)
            assert departure is not None, "a beat is open when it calls"
            departure.join()
            waiter.set_result(departure)

        departure = self.leave(send)
        if departure is not None:
            departure.join()
            return departure
        try:
            return await waiter
        except asyncio.CancelledError:
            # Its beat may have come in the same pass of the event loop.
            if waiter.cancelled():
                self._wait_no_more(send)
            else:
                self.arrived(waiter.result())
            raise

    def _may_join(self) -> bool:
        departure = self._current
        return self._open or (departure.under_way > 0 and departure.most < FEW_COMMANDS)

    def _begins_at(self) -> float:
        departure = self._current
        if not departure.under_way and departure.most < FEW_COMMANDS:
            return self._ended_at
        return super()._begins_at()

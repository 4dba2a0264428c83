"""When blocks set out: those of all shards together, in beats.

A call has pieces for many shards. If every lane sent as soon as it could, calls would drift apart,
and most blocks would hold the piece of one call, at the cost of a full one. In a beat all lanes
send what waits; the next beat begins when the blocks of this one are answered, and a little later,
so that calls which these have ended can be followed by others of the same callers. With nothing on
its way a beat begins at once.
"""

import asyncio
import time
from collections.abc import Callable

# A shard that does not answer holds up the others for some times as long as beats usually take, but
# within these bounds.
BEAT_S_MIN, BEAT_S_MAX = 0.02, 0.25
_BEATS_WAITED = 2.0
# The pause between two beats, as a part of what the last one took, and at most.
_PAUSE_SHARE, PAUSE_S_MAX = 0.2, 0.010


class Departure:
    """The blocks that set out in a beat."""

    __slots__ = ("began_at", "under_way")

    def __init__(self, began_at: float) -> None:
        self.began_at = began_at
        self.under_way = 0


class Beats:
    """Says when lanes may send. Lives on one event loop."""

    def __init__(self) -> None:
        self._current = Departure(0.0)
        self._ended_at = 0.0
        self._took_s = 0.0
        self._open = False
        self._waiting: dict[Callable[[], None], None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def leave(self, send: Callable[[], None]) -> Departure | None:
        """Let a block set out now; or return None, and call ``send`` at the next beat."""
        if not self._open:
            now, begins_at = time.monotonic(), self._begins_at()
            if begins_at > now:
                self._waiting[send] = None
                if self._timer is None:
                    self._set_timer(begins_at - now)
                return None
            self._begin(now)
        self._current.under_way += 1
        return self._current

    def arrived(self, departure: Departure) -> None:
        """Note that a block has been answered."""
        departure.under_way -= 1
        if departure is self._current and not departure.under_way:
            self._ended_at = time.monotonic()
            self._took_s = self._ended_at - departure.began_at
            if self._timer is not None:
                self._timer.cancel()
                self._set_timer(max(self._begins_at() - self._ended_at, 0.0))

    def _begins_at(self) -> float:
        if self._current.under_way:
            waits_s = min(max(_BEATS_WAITED * self._took_s, BEAT_S_MIN), BEAT_S_MAX)
            return self._current.began_at + waits_s
        return self._ended_at + min(_PAUSE_SHARE * self._took_s, PAUSE_S_MAX)

    def _begin(self, now: float) -> None:
        """Begin a beat: it is open to all who send in this pass of the event loop."""
        self._current, self._open = Departure(now), True
        asyncio.get_running_loop().call_soon(self._close)

    def _close(self) -> None:
        self._open = False

    def _set_timer(self, delay_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._send_waiting)

    def _send_waiting(self) -> None:
        self._timer = None
        waiting, self._waiting = self._waiting, {}
        self._begin(time.monotonic())
        for send in waiting:
            send()

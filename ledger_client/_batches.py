"""What waits to be sent with others, what is under way, what is sent when. No threads, no network.

A call goes out at once while nothing is under way. While something is, the others gather, until as
many wait as are under way, or an answer comes: so there is no delay by a timer, and the more
callers there are, the larger are the calls. A bulk call that takes long (a shard may be electing a
leader) no longer holds the others back.

A shard that is away must not slow down those that are well. So the first attempt of a call has
little time: the gateway then tells which items got no result. These rest for as long as `Attempts`
says, and go out aside, in calls that have more time. So does all that is new for accounts near
theirs, until one of these has a result again. A shard has a range of the accounts' keys; the calls
aside have each a part of all keys, so that those of a shard that is away wait among themselves.
"""

import heapq
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ledger_client._retries import Attempts, attempt_timeout_s, may_retry
from ledger_client._waiting import Call, Kind, Waiting
from ledger_client.errors import (
    DeadlineExceededError,
    LedgerError,
    ResourceExhaustedError,
    ServerCancelledError,
    again,
)
from ledger_core.ids import shard_key

Item = Waiting[Any]

WAITING_MAX = 65_536
"""Items that may wait, on one client."""
ITEMS_MAX = 8_192
"""Items of one call."""
BYTES_MAX = 2 * 1024 * 1024
"""About the size of one call."""
CALLS_MAX = 4
"""Calls under way that others wait for."""
PARTS_ITEMS_MIN = 128
"""A call with so many items is answered in parts, where there is a method for it: what its first
callers do until the last ones wake is then worth more than a stream costs."""

# With those that take long.
_ALL_CALLS_MAX = 32
# How long others wait for a call; the more of them are slow already, the longer.
_PATIENCE_S = 0.1
# How long a first attempt may take: this and a bit for each item, or so many times what calls took
# of late.
_FIRST_ATTEMPT_S = 0.5
_FIRST_ATTEMPT_ITEM_S = 0.0005
_FIRST_ATTEMPT_TIMES = 8.0
# How much of what is usual the last call makes up.
_USUAL_SHARE = 0.125
# Of a shard key, which has 32 bits: accounts are near each other if it is the same but for so many
# bits, and go in one call aside if it is the same but for so many more.
_NEAR_BITS = 24
_LANE_BITS = 4
# How long a gateway that has no bulk calls is asked for none.
_WITHOUT_BULK_S = 60.0


class Batches:
    """The items of one kind of a client. Not thread-safe.

    ``wake`` is called once for every item that has got its outcome, if anyone waits for it.
    """

    def __init__(
        self,
        kind: Kind,
        wake: Callable[[Item], None],
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._kind = kind
        self._items_max = min(ITEMS_MAX, kind.items_max)
        self._wake = wake
        self._clock = clock
        self._jitter = jitter
        self._queue: deque[Item] = deque()
        self._again: dict[int, deque[Item]] = {}
        self._resting: list[tuple[float, int, Item]] = []
        self._rested = 0
        self._under_way: set[Call] = set()
        self._aside: dict[Call, int] = {}
        self._away: set[int] = set()
        self._usual_s = 0.0
        self._slow = 0
        self._items_ahead = 0
        self._without_bulk_until = 0.0
        self._without_parts_until = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether a call may go out at once, by itself."""
        return not self._queue and len(self._under_way) == self._slow

    @property
    def has_bulk(self) -> bool:
        """Whether the gateway has bulk calls, for all we know."""
        return not self._without_bulk_until or self._clock() >= self._without_bulk_until

    def __len__(self) -> int:
        aside = sum(map(len, self._again.values())) if self._again else 0
        return len(self._queue) + aside + len(self._resting)

    def add(self, item: Item) -> None:
        """Let an item wait for its turn; ResourceExhaustedError if too many do already."""
        if len(self) >= WAITING_MAX:
            raise ResourceExhaustedError(
                "RESOURCE_EXHAUSTED",
                f"{WAITING_MAX:,} {self._kind.what} of this client are waiting to be sent already; "
                "nothing was done",
            )
        if self._away and _place(item) in self._away:
            self._put_aside(item)
        else:
            self._queue.append(item)

    def begin_single(self) -> Call:
        """Count a single call that its caller sends: others gather meanwhile. `end` it."""
        call = Call()
        self._begin(call, 1)
        return call

    def take(self) -> list[Call]:
        """Return the calls that are to be sent now. Each of them is to be ended by `end`."""
        now = self._clock()
        while self._resting and self._resting[0][0] <= now:
            self._put_aside(heapq.heappop(self._resting)[2])
        for call in self._under_way:
            if not call.slow and call.patience_until <= now:
                self._let_pass(call)
        taken = self._take_aside() if self._again else []
        while (
            self._queue
            and (free := self._free_calls()) > 0
            and len(self._queue) >= min(self._items_ahead, self._items_max)
        ):
            for call in self._calls(self._queue, free):
                self._begin(call, len(call))
                taken.append(call)
        return taken

    def wake_at(self) -> float | None:
        """Return when to `take` again even if nothing happens; None: not before something does."""
        times = [self._resting[0][0]] if self._resting else []
        if self._queue:
            times += [call.patience_until for call in self._under_way if not call.slow]
        return min(times, default=None)

    def timeout_s(self, call: Call) -> float:
        """Return how long an attempt of a call may take."""
        most_s = attempt_timeout_s(max(call.deadline() - self._clock(), 0.0))
        if call in self._aside:
            return most_s
        first_s = _FIRST_ATTEMPT_S + _FIRST_ATTEMPT_ITEM_S * len(call)
        return min(most_s, max(first_s, _FIRST_ATTEMPT_TIMES * self._usual_s))

    def ask_in_parts(self, call: Call) -> bool:
        """Decide whether the answer to a call comes in parts."""
        call.in_parts = len(call) >= PARTS_ITEMS_MIN and (
            not self._without_parts_until or self._clock() >= self._without_parts_until
        )
        return call.in_parts

    def has_no_parts(self, call: Call, error: LedgerError) -> bool:
        """Whether a call failed for its answer was to come in parts: make it again, without."""
        if not call.in_parts or error.status != "UNIMPLEMENTED":
            return False
        self._without_parts_until = self._clock() + _WITHOUT_BULK_S
        call.in_parts = False
        return True

    def end(self, call: Call) -> None:
        """A call is no longer under way, if it was."""
        if call in self._aside:
            del self._aside[call]
        if call not in self._under_way:
            return
        self._under_way.remove(call)
        if call.slow:
            self._slow -= 1
        else:
            self._items_ahead -= max(len(call), 1)

    def answer(self, call: Call, response: Any) -> None:
        """Give every item its result; let those rest that are to be tried again."""
        self._answer(call, call.results, response)

    def answer_part(self, call: Call, response: Any) -> bool:
        """Do so with the items of a part of the answer; tell whether all have been in one."""
        self._answer(call, call.part, response)
        # A call that gets on is waited for: those who have their answers are to go with the others.
        call.patience_until = self._patience_until()
        return len(call.told) == len(call)

    def end_of_parts(self, call: Call) -> None:
        """No more parts come. What was in none of them is told by single calls."""
        for item in call.items():
            if not item.done:
                self._finish(item, None)

    def fail(self, call: Call, error: LedgerError) -> None:
        """No item of a call got a result.

        What is certain for the call is not certain for each of its items: it may be about one of
        them. These are sent as single calls.
        """
        if error.status == "UNIMPLEMENTED":
            self._without_bulk_until = self._clock() + _WITHOUT_BULK_S
        if error.status == "DEADLINE_EXCEEDED":
            # It may be that calls take longer than they used to; or a shard is away, and which one
            # it is shows aside.
            self._took(call)
            self._away.update(map(_place, call.items()))
        jitter = self._jitter()
        again = may_retry(error)
        for item in call.items():
            if item.done:
                continue
            if again:
                self._try_again(item, error, jitter)
            else:
                self._finish(item, None)

    def give_up(self, item: Item) -> LedgerError:
        """Return why an item has no result at its deadline, and forget it."""
        item.done = True
        if item.attempts is not None and item.error is not None:
            return again(item.attempts.verdict(item.error))
        if not item.sent:
            fate = "it waited for its turn until its deadline; nothing was done"
        elif self._kind.changes:
            fate = "no answer in time: the transaction may or may not have happened"
        else:
            fate = "no answer in time"
        return DeadlineExceededError("DEADLINE_EXCEEDED", fate)

    def expire(self) -> float | None:
        """Give up all items whose deadline has come; return the next deadline, if there is one.

        It looks at every item: once per deadline of a client is often enough.
        """
        now, next_one = self._clock(), None
        for item in self._all():
            if item.done:
                continue
            if item.deadline <= now:
                self._finish(item, self.give_up(item))
            elif next_one is None or item.deadline < next_one:
                next_one = item.deadline
        return next_one

    def close(self) -> None:
        """Give up all items: the client is closed."""
        for item in self._all():
            if not item.done:
                self._finish(item, self._closed(item))
        self._queue.clear()
        self._again.clear()
        self._resting.clear()

    def _answer(
        self, call: Call, read: Callable[[Any], Iterable[tuple[Item, Any]]], response: Any
    ) -> None:
        try:
            results = read(response)
        except LedgerError:
            # Not an answer to what was asked: single calls tell what became of the items.
            self.end_of_parts(call)
            return
        jitter = self._jitter()
        for item, result in results:
            if isinstance(result, LedgerError):
                if result.status != "RESOURCE_EXHAUSTED" and may_retry(result):
                    call.again = True
                    self._away.add(_place(item))
                if not item.done:
                    self._try_again(item, result, jitter)
                continue
            if self._away:
                self._away.discard(_place(item))
            if not item.done:
                self._finish(item, result)
        if not call.again and len(call.told) in (0, len(call)):
            self._took(call)

    def _all(self) -> Iterator[Item]:
        yield from self._queue
        for queue in self._again.values():
            yield from queue
        for _, _, item in self._resting:
            yield item
        for call in (*self._under_way, *self._aside):
            yield from call.items()

    def _free_calls(self) -> int:
        fresh = len(self._under_way) - self._slow
        return min(CALLS_MAX - fresh, _ALL_CALLS_MAX - len(self._under_way))

    def _closed(self, item: Item) -> LedgerError:
        fate = "it may or may not have happened" if item.sent else "nothing was done"
        if not self._kind.changes:
            fate = "it was not read"
        error = ServerCancelledError("CANCELLED", f"the client was closed: {fate}")
        return item.attempts.verdict(error) if item.attempts is not None else error

    def _calls(self, queue: deque[Item], calls_max: int) -> Sequence[Call]:
        items = _pop(queue, self._items_max)
        return self._kind.calls(items, calls_max) if items else ()

    def _put_aside(self, item: Item) -> None:
        self._again.setdefault(_place(item) >> _LANE_BITS, deque()).append(item)

    def _take_aside(self) -> list[Call]:
        """Return the calls to send aside: one at a time for each part of the keys."""
        busy = set(self._aside.values())
        taken: list[Call] = []
        for lane in [lane for lane in self._again if lane not in busy]:
            queue = self._again[lane]
            for call in self._calls(queue, 1):
                self._aside[call] = lane
                taken.append(call)
            if not queue:
                del self._again[lane]
        return taken

    def _begin(self, call: Call, count: int) -> None:
        call.began = self._clock()
        call.patience_until = self._patience_until()
        self._under_way.add(call)
        self._items_ahead += count

    def _patience_until(self) -> float:
        return self._clock() + _PATIENCE_S * (1 + self._slow)

    def _let_pass(self, call: Call) -> None:
        call.slow = True
        self._slow += 1
        self._items_ahead -= max(len(call), 1)

    def _took(self, call: Call) -> None:
        if call in self._under_way:
            took_s = self._clock() - call.began
            self._usual_s += (took_s - self._usual_s) * _USUAL_SHARE

    def _try_again(self, item: Item, error: LedgerError, jitter: float) -> None:
        if item.attempts is None:
            left_s = item.deadline - self._clock()
            item.attempts = Attempts(left_s, self._clock)
        item.error = error
        try:
            pause_s = item.attempts.pause_s(error, jitter)
        except LedgerError as last:
            self._finish(item, last)
            return
        self._rested += 1
        heapq.heappush(self._resting, (self._clock() + pause_s, self._rested, item))

    def _finish(self, item: Item, outcome: Any) -> None:
        # Errors are of many items, but raised by each: every one has a traceback of its own.
        item.outcome = again(outcome) if isinstance(outcome, LedgerError) else outcome
        item.done = True
        self._wake(item)


def _place(item: Item) -> int:
    """Return where an item is at home: the same for accounts near each other."""
    return shard_key(item.home()) >> _NEAR_BITS


def _pop(queue: deque[Item], items_max: int) -> list[Item]:
    """Take as many items as fit into a call, but those that nobody waits for."""
    items: list[Item] = []
    size = 0
    while queue and len(items) < items_max:
        item = queue[0]
        if not item.done:
            size += item.size
            if size > BYTES_MAX and items:
                break
            item.sent = True
            items.append(item)
        queue.popleft()
    return items

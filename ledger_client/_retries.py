"""When a call is tried again, shared by the sync and the asyncio client."""

import random
import time
from collections.abc import Callable

from ledger_client.errors import LedgerError

_BACKOFF_FIRST_S = 0.05
_BACKOFF_MAX_S = 2.0
# An attempt gets at most half of the time left, so that an answer that got lost leaves time for
# another attempt; but no attempt is cut below this.
_ATTEMPT_MIN_S = 2.0

# The outcome may be unknown: repeating the call is safe, since it carries the same request id.
_UNCERTAIN = {"DEADLINE_EXCEEDED", "UNKNOWN", "CANCELLED"}


def may_retry(error: LedgerError) -> bool:
    """Whether another attempt may bring another result, or at least tell it."""
    return (
        error.status in _UNCERTAIN
        or error.status == "UNAVAILABLE"
        or error.retry_delay_s is not None
    )


def leaves_open(error: LedgerError) -> bool:
    """Whether the attempt may have had its effect all the same."""
    # UNAVAILABLE that is not from the ledger: the connection was lost, perhaps after the request
    # arrived.
    return error.status in _UNCERTAIN or (error.status == "UNAVAILABLE" and not error.reason)


def attempt_timeout_s(left_s: float) -> float:
    """Return how long an attempt may take when this much time is left."""
    return min(left_s, max(left_s / 2, _ATTEMPT_MIN_S))


class Attempts:
    """One call: its attempts within its deadline.

    Tried again are UNAVAILABLE, what ended without a known outcome, and whatever the server sends a
    retry delay with. Pauses grow exponentially, with jitter, and are never below that delay.
    """

    def __init__(
        self,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._deadline = clock() + timeout_s
        self._failures = 0
        self._uncertain: LedgerError | None = None

    def timeout_s(self) -> float:
        """Return how long the next attempt may take."""
        return attempt_timeout_s(max(self._deadline - self._clock(), 0.0))

    def verdict(self, error: LedgerError) -> LedgerError:
        """Return what to raise once there are no more attempts, ``error`` being that of the last.

        An earlier one may have had its effect: then that counts, since "unavailable, nothing was
        done" would be wrong for the whole.
        """
        return self._uncertain or error

    def pause_s(self, error: LedgerError, jitter: float | None = None) -> float:
        """Return how long to wait before the next attempt; raise where there shall be none.

        Calls that failed together and are given the same ``jitter`` (0 to 1) wait together.

        What is raised is the error of this attempt where that is certain, else the `verdict`.
        """
        if not may_retry(error):
            raise error
        if error.status in _UNCERTAIN or (self._uncertain is None and leaves_open(error)):
            self._uncertain = error
        backoff_s = min(_BACKOFF_FIRST_S * 2.0**self._failures, _BACKOFF_MAX_S)
        self._failures += 1
        pause_s = backoff_s * (0.5 + (self._jitter() if jitter is None else jitter) / 2)
        if error.retry_delay_s is not None:
            pause_s += error.retry_delay_s
        if self._clock() + pause_s >= self._deadline:
            raise self.verdict(error)
        return pause_s

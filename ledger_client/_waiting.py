"""What travels together: one caller's part of a call (`Waiting`), the call, and its kind."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from ledger_client._retries import Attempts
from ledger_client.errors import LedgerError

AnswerT_co = TypeVar("AnswerT_co", covariant=True)


class Waiting(Generic[AnswerT_co]):
    """What one caller asks for, and what became of it."""

    __slots__ = ("attempts", "deadline", "done", "error", "outcome", "sent", "size", "waiter")

    deadline: float
    """On the monotonic clock, in seconds."""
    waiter: Any
    """What its caller waits for."""
    outcome: Any
    """A LedgerError, or what `answer` makes the answer of. None: it shall be sent as a single call,
    which tells more."""

    def __init__(self, size: int) -> None:
        self.size = size
        """About how many bytes it adds to a call."""
        self.attempts: Attempts | None = None
        """Once one has failed."""
        self.error: LedgerError | None = None
        """Of the last attempt."""
        self.outcome = None
        self.sent = False
        self.done = False
        """Nobody waits any longer: it has its outcome, or its caller is gone."""

    @property
    def may_travel(self) -> bool:
        """Whether it may go with others; if not, its single call says what is wrong with it."""
        return True

    def home(self) -> int:
        """Return the account whose shard it needs, as a number; 0: not known."""
        raise NotImplementedError

    def single(self) -> Any:
        """Return the request of its single call."""
        raise NotImplementedError

    def of_single(self, response: Any) -> AnswerT_co:
        """Return the answer that is in the response to its single call."""
        raise NotImplementedError

    def answer(self) -> AnswerT_co | None:
        """Return the answer that its outcome stands for; raise it if it is an error."""
        if isinstance(self.outcome, LedgerError):
            raise self.outcome
        found: AnswerT_co | None = self.outcome
        return found

    def attempts_left(self) -> Attempts | None:
        """Return the attempts that a single call has after others; None if there were none."""
        if self.attempts is None and self.sent:
            self.attempts = Attempts(self.deadline - time.monotonic())
        return self.attempts


class Call:
    """A call with the parts of many callers; without any it stands for a single call."""

    __slots__ = ("again", "began", "in_parts", "patience_until", "slow", "told")

    def __init__(self) -> None:
        self.slow = False
        self.in_parts = False
        """Whether its answer comes in parts."""
        self.told: set[Any] = set()
        """The items that were in a part of it."""
        self.again = False
        """Whether an item is to be tried again, since its shard is away."""
        self.began = 0.0
        self.patience_until = 0.0

    def __len__(self) -> int:
        return 0

    def items(self) -> Iterable[Any]:
        """Return all that travel in it, without those that were in a part of its answer."""
        return ()

    def deadline(self) -> float:
        """Return the latest of their deadlines."""
        latest: float = max(item.deadline for item in self.items())
        return latest

    def request(self) -> Message:
        """Make the request."""
        raise NotImplementedError

    def results(self, response: Any) -> Iterable[tuple[Any, Any]]:
        """Return what became of each; UnknownError if that is not what was asked.

        That is a LedgerError, or the outcome that it is to have.
        """
        raise NotImplementedError

    def part(self, response: Any) -> Iterable[tuple[Any, Any]]:
        """Return what is in a part of the answer, as `results` does; those items are `told`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Kind:
    """What can travel together, and how."""

    what: str
    """Its name, for messages."""
    changes: bool
    """Whether something may have happened where there was no answer."""
    items_max: int
    """In one call."""
    calls: Callable[[list[Any], int], Sequence[Call]]
    """Makes calls of items, at least one: one, or at most so many."""

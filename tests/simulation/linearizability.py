"""Is a history of concurrent calls on accounts linearizable? Wing and Gong's search, Lowe's cache.

A history is linearizable if every call can be given one moment, between its start and its end, at
which it took effect, such that the results are those of the calls run one after the other. Calls
on different accounts are independent, so every account is checked by itself (Herlihy and Wing:
linearizability is local).

A call whose outcome is unknown (``end_s`` is None) may have taken effect at any time after its
start, or never. Calls that are known to have done nothing do not belong into a history.

The records are plain: the simulation makes them, and so can tests of real processes.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

STEPS_MAX = 200_000

Status = Literal["pending", "settled", "insufficient funds"]


@dataclass(frozen=True, slots=True)
class CreateAccount:
    """Open the account. Result: None."""


@dataclass(frozen=True, slots=True)
class CreateTransaction:
    """Money in (``amount`` > 0) or out. Result: (transaction id, status)."""

    amount: int
    settled: bool


@dataclass(frozen=True, slots=True)
class EndTransaction:
    """Settle or cancel a transaction. Result: whether it was pending until then."""

    transaction_id: object
    settle: bool


@dataclass(frozen=True, slots=True)
class GetBalances:
    """Result: (settled balance, available balance), or None where there is no such account."""


Operation = CreateAccount | CreateTransaction | EndTransaction | GetBalances


@dataclass(frozen=True, slots=True)
class Call:
    """One call: who saw what, and when, on one clock."""

    account: object
    start_s: float
    end_s: float | None
    operation: Operation
    result: object = None


class Undecided(Exception):  # noqa: N818  (not an error: the search was given up)
    """The search took too long."""


@dataclass(frozen=True, slots=True)
class _State:
    """An account. ``pending``: transaction id -> amount, as sorted by insertion."""

    exists: bool = False
    settled: int = 0
    reserved: int = 0
    pending: frozenset[tuple[object, int]] = field(default_factory=frozenset)


def check(calls: Iterable[Call]) -> object | None:
    """Return an account whose history is not linearizable, or None. May raise Undecided."""
    by_account: defaultdict[object, list[Call]] = defaultdict(list)
    for call in calls:
        by_account[call.account].append(call)
    for account, history in by_account.items():
        if not is_linearizable(history):
            return account
    return None


def is_linearizable(history: list[Call]) -> bool:
    """Whether the calls on one account can be put in order. May raise Undecided."""
    return _Search(history).run()


class _Search:
    """Depth first: take any call that may be next, try what it gives, and go back if stuck.

    A call may be next if no call that is not taken yet ended before it started. Which calls are
    taken (a bit set) and the state they led to is remembered: the same again is a dead end again.
    """

    def __init__(self, history: list[Call]) -> None:
        known = [call for call in history if call.end_s is not None]
        # An unknown call without effect cannot contradict anything.
        unknown = [
            call
            for call in history
            if call.end_s is None and not isinstance(call.operation, GetBalances)
        ]
        self._calls = sorted([*known, *unknown], key=lambda call: call.start_s)
        self._must = sum(1 << i for i, c in enumerate(self._calls) if c.end_s is not None)
        self._steps = 0

    def run(self) -> bool:
        start = (0, _State())
        seen = {start}
        stack = [start]
        while stack:
            taken, state = stack.pop()
            if taken & self._must == self._must:
                return True
            # Last in, first out: the earliest call is tried first, unknown ones last.
            following = []
            for i in self._candidates(taken):
                self._steps += 1
                after = _apply(state, self._calls[i], i)
                if after is None:
                    continue
                step = (taken | 1 << i, after)
                if step not in seen:
                    seen.add(step)
                    following.append((self._calls[i].end_s is None, i, step))
            if self._steps > STEPS_MAX:
                raise Undecided
            stack.extend(item[2] for item in sorted(following, key=_order, reverse=True))
        return False

    def _candidates(self, taken: int) -> list[int]:
        """Return the calls that no other one, not taken yet, ended before."""
        first_end = min(
            (
                call.end_s
                for i, call in enumerate(self._calls)
                if call.end_s is not None and not taken >> i & 1
            ),
            default=float("inf"),
        )
        candidates = []
        for i, call in enumerate(self._calls):
            if call.start_s > first_end:
                break
            if not taken >> i & 1:
                candidates.append(i)
        return candidates


def _order(item: tuple[bool, int, object]) -> tuple[bool, int]:
    return item[:2]


def _apply(state: _State, call: Call, place: int) -> _State | None:
    """Return the state after a call, or None where its result cannot be."""
    known = call.end_s is not None
    match call.operation:
        case CreateAccount():
            return _State(exists=True) if not state.exists else None
        case GetBalances():
            seen = (state.settled, state.settled - state.reserved) if state.exists else None
            return state if call.result == seen else None
        case CreateTransaction(amount, settled):
            return _create(state, amount, settled, call.result if known else place, known)
        case EndTransaction(transaction_id, settle):
            return _end(state, transaction_id, settle, call.result if known else None)


def _create(
    state: _State, amount: int, settled: bool, result: object, known: bool
) -> _State | None:
    if not state.exists:
        return None
    status: Status = "settled" if settled else "pending"
    if amount < 0 and state.settled - state.reserved < -amount:
        status = "insufficient funds"
    if known:
        assert isinstance(result, tuple)
        transaction_id, seen = result
        if seen != status:
            return None
    else:
        transaction_id = ("unknown", result)
    if status == "settled":
        return _State(True, state.settled + amount, state.reserved, state.pending)
    if status == "pending":
        pending = state.pending | {(transaction_id, amount)}
        return _State(True, state.settled, state.reserved + max(-amount, 0), pending)
    return state


def _end(
    state: _State, transaction_id: object, settle: bool, result: object
) -> _State | None:
    item = next((item for item in state.pending if item[0] == transaction_id), None)
    if result is not None and result != (item is not None):
        return None
    if item is None:
        return state
    amount = item[1]
    return _State(
        True,
        state.settled + (amount if settle else 0),
        state.reserved - max(-amount, 0),
        state.pending - {item},
    )

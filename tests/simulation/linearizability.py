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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

STEPS_MAX = 500_000
_NEVER = float("inf")

Status = Literal["pending", "settled", "insufficient funds"]


@dataclass(frozen=True, slots=True)
class CreateAccount:
    """Open the account. Result: None."""


@dataclass(frozen=True, slots=True)
class CreateTransaction:
    """Money in (``amount`` > 0) or out.

    Result: (transaction id, status), or None where there is no such account.
    """

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
    hint: Any = None
    """Where it is believed to have taken effect, among all calls on the account, as anything that
    can be compared. It guides the search and proves nothing."""


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

    A call may be next if no call that is not taken yet ended before it started: those are the
    starts in front of the first end in the list of all starts and ends, from which calls that are
    taken are lifted out. Which calls are taken (a bit set) and the state they led to is
    remembered: the same again is a dead end again. A call whose result fits and that leaves the
    state as it is, is taken without looking at others: that can never be wrong.
    """

    def __init__(self, history: list[Call]) -> None:
        # An unknown call without effect cannot contradict anything.
        self._calls = [
            call
            for call in history
            if call.end_s is not None or not isinstance(call.operation, GetBalances)
        ]
        hinted = all(call.hint is not None for call in self._calls)
        self._guess = [
            call.hint if hinted else call.end_s if call.end_s is not None else _NEVER
            for call in self._calls
        ]
        self._make_list()
        self._steps = 0

    def _make_list(self) -> None:
        """Link all starts and ends in the order of time; at equal times starts come first.

        Call ``i`` has its start in node 2 * i + 1 and its end in node 2 * i + 2; node 0 is the
        head. The ends of unknown calls are left out.
        """
        events: list[tuple[float, bool, int]] = []
        for i, call in enumerate(self._calls):
            events.append((call.start_s, False, 2 * i + 1))
            if call.end_s is not None:
                events.append((call.end_s, True, 2 * i + 2))
        events.sort()
        self._next = [-1] * (2 * len(self._calls) + 1)
        self._before = self._next.copy()
        at = 0
        for _, _, node in events:
            self._next[at], self._before[node] = node, at
            at = node

    def run(self) -> bool:
        bits, state = 0, _State()
        left = sum(call.end_s is not None for call in self._calls)
        seen: set[tuple[int, _State]] = set()
        path: list[tuple[int, _State]] = []
        levels = [self._candidates(state)]
        while left:
            for i, after in levels[-1]:
                taken = bits | 1 << i
                if (taken, after) not in seen:
                    seen.add((taken, after))
                    break
            else:
                levels.pop()
                if not path:
                    return False
                i, state = path.pop()
                bits ^= 1 << i
                left += self._put_back(i)
                continue
            path.append((i, state))
            bits, state = taken, after
            left -= self._lift(i)
            levels.append(self._candidates(state))
        return True

    def _candidates(self, state: _State) -> Iterator[tuple[int, _State]]:
        """Return what may be next, with the states after it, the best guess first."""
        candidates: list[tuple[Any, int, _State]] = []
        at = self._next[0]
        while at > 0 and at % 2:
            i = at // 2
            after = _apply(state, self._calls[i], i)
            if after is state and self._calls[i].end_s is not None:
                return iter([(i, state)])
            if after is not None and after is not state:
                candidates.append((self._guess[i], i, after))
            at = self._next[at]
            self._steps += 1
        if self._steps > STEPS_MAX:
            raise Undecided
        candidates.sort(key=lambda item: item[:2])
        return iter([item[1:] for item in candidates])

    def _lift(self, i: int) -> bool:
        """Take a call out of the list; return whether its outcome is known."""
        known = self._calls[i].end_s is not None
        for node in (2 * i + 1, 2 * i + 2) if known else (2 * i + 1,):
            before, after = self._before[node], self._next[node]
            self._next[before] = after
            if after > 0:
                self._before[after] = before
        return known

    def _put_back(self, i: int) -> bool:
        """Undo the last `_lift` that is not undone."""
        known = self._calls[i].end_s is not None
        for node in (2 * i + 2, 2 * i + 1) if known else (2 * i + 1,):
            before, after = self._before[node], self._next[node]
            self._next[before] = node
            if after > 0:
                self._before[after] = node
        return known


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
    if not state.exists or (known and result is None):
        return state if known and result is None and not state.exists else None
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


def _end(state: _State, transaction_id: object, settle: bool, result: object) -> _State | None:
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

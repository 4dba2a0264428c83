"""What must hold of a whole run: the log, replayed on an independent model, explains every answer.

Two checks that share nothing: the order of the log indexes against real time, with every result
held against the model; and the search for a linearization, which knows no log.
"""

from collections import defaultdict
from dataclasses import dataclass

from ledger_core.accounts import TransactionStatus
from ledger_core.commands import (
    CancelTransaction,
    Command,
    CreateAccount,
    CreateTransaction,
    SettleTransaction,
    decode_batch,
)
from ledger_core.results import AccountView, Failure, Result, TransactionView
from ledger_node.raft.library import Kind
from tests.node.model import Model
from tests.simulation import linearizability as lin
from tests.simulation.clients import History, Read, Request
from tests.simulation.engine import Engine, require

# Where a write took effect, or what a read saw the end of: log index, place in the entry.
Position = tuple[int, float]
_NOWHERE: Position = (0, 0)
_NEVER: Position = (1 << 62, 0)
Effects = dict[tuple[object, ...], Position]


@dataclass(frozen=True, slots=True)
class _Timed:
    start_s: float
    end_s: float | None
    position: Position
    floor: bool
    """Whether later calls must not fall behind it, nor it behind earlier ones."""


def check_history(engine: Engine, history: History, payloads: dict[int, list[bytes]]) -> None:
    """Check the answers of a run against the committed log of every shard, and each other."""
    effects: Effects = {}
    for shard_id, shard_payloads in payloads.items():
        requests = [r for r in history.requests if r.shard_id == shard_id]
        reads = [r for r in history.reads if r.shard_id == shard_id]
        replay = _Replay(requests, reads)
        replay.run(shard_payloads)
        effects |= replay.effects
    check_linearizable(engine, history, effects)


class _Replay:
    """The committed log of a shard, applied to the model, with every answer looked up in it."""

    def __init__(self, requests: list[Request], reads: list[Read]) -> None:
        self._requests = {_key(request.command): request for request in requests}
        self._reads = sorted(reads, key=lambda read: read.index)
        self._model = Model()
        self.effects: Effects = {}
        self._balances: dict[int, tuple[int, int]] = {}

    def run(self, payloads: list[bytes]) -> None:
        read_at = 0
        for index, payload in enumerate(payloads, start=1):
            read_at = self._check_reads(read_at, before=index)
            if payload[0] == Kind.REGULAR:
                for place, command in enumerate(decode_batch(payload[1:]).commands):
                    self._apply(command, (index, place))
        self._check_reads(read_at, before=len(payloads) + 1)
        self._check_effects()
        self._check_order()

    def _apply(self, command: Command, position: Position) -> None:
        key = _key(command)
        require(key in self._requests, f"a command that nobody sent: {command}")
        if key in self.effects:
            return
        request, model = self._requests[key], self._model
        account_id = command.account_id
        outcome: object
        if isinstance(command, CreateAccount):
            model.accounts.add(account_id)
            outcome = account_id
        elif isinstance(command, CreateTransaction):
            outcome = model.create_transaction(command)
        else:
            outcome = model.end_transaction(command)
        if isinstance(outcome, tuple) or isinstance(command, CreateAccount):
            # From here on every repeat finds this result.
            self.effects[key] = position
        if request.acknowledged and key in self.effects:
            told = _outcome(request.result)
            require(told == outcome, f"{command}: told {told}, but it was {outcome}")
            require(position[0] <= request.index, f"{command}: told before it was done")
        self._balances[account_id] = (model.settled(account_id), model.available(account_id))
        require(self._balances[account_id][1] >= 0, f"the model overdraws at {position}")

    def _check_reads(self, read_at: int, before: int) -> int:
        while read_at < len(self._reads) and self._reads[read_at].index < before:
            read = self._reads[read_at]
            seen = _balances(read.result)
            was = self._balances.get(read.account_id)
            require(seen == was, f"a read at index {read.index} saw {seen}, but it was {was}")
            read_at += 1
        return read_at

    def _check_effects(self) -> None:
        for key, request in self._requests.items():
            if request.acknowledged:
                require(key in self.effects, f"an acknowledged write is lost: {request.command}")
            elif request.result is None and not request.maybe_done and not request.under_way:
                require(
                    key not in self.effects,
                    f"a write happened of which the caller heard that it did not: "
                    f"{request.command}",
                )

    def _check_order(self) -> None:
        """What ended before something else began, comes before it in the log."""
        timed = [
            _Timed(
                request.start_s,
                request.end_s if request.acknowledged else None,
                self.effects[key],
                floor=True,
            )
            for key, request in self._requests.items()
            if key in self.effects
        ]
        timed += [
            _Timed(read.start_s, read.end_s, (read.index, float("inf")), floor=not read.stale)
            for read in self._reads
        ]
        ends = sorted((t for t in timed if t.end_s is not None), key=lambda t: t.end_s or 0.0)
        latest, ended = _NOWHERE, 0
        for one in sorted(timed, key=lambda t: t.start_s):
            while ended < len(ends) and (ends[ended].end_s or 0.0) < one.start_s:
                if ends[ended].floor:
                    latest = max(latest, ends[ended].position)
                ended += 1
            if one.floor:
                is_read = one.position[1] == float("inf")
                behind = one.position < latest if is_read else one.position <= latest
                if latest[1] == float("inf") and is_read:
                    behind = one.position[0] < latest[0]
                require(not behind, f"order: {one} began after something at {latest} had ended")


def _key(command: Command) -> tuple[object, ...]:
    if isinstance(command, SettleTransaction | CancelTransaction):
        return (command.account_id, command.request_id, command.number)
    return (command.account_id, command.request_id)


def _outcome(result: Result | None) -> object:
    match result:
        case TransactionView():
            return result.number, result.status
        case AccountView():
            return result.account_id
    return result


def _balances(result: Result) -> tuple[int, int] | None:
    if isinstance(result, AccountView):
        return result.settled_balance, result.available_balance
    return None


# The search that knows no log.


def check_linearizable(engine: Engine, history: History, effects: Effects) -> None:
    """Search for a linearization of every account's history."""
    by_account: defaultdict[object, list[lin.Call]] = defaultdict(list)
    for call in plain_calls(history, effects):
        by_account[call.account].append(call)
    for account, calls in by_account.items():
        try:
            require(lin.is_linearizable(calls), f"account {account:x} is not linearizable")
            engine.counts["accounts linearizable"] += 1
        except lin.Undecided:
            engine.counts["accounts undecided"] += 1


def plain_calls(history: History, effects: Effects) -> list[lin.Call]:
    """Return the history as the plain records of the search; ``effects`` only guide it."""
    calls = [
        lin.Call(
            read.account_id,
            read.start_s,
            read.end_s,
            lin.GetBalances(),
            _balances(read.result),
            (read.index, float("inf")),
        )
        for read in history.reads
        if not read.stale
    ]
    for request in history.requests:
        if request.result is None and not (request.maybe_done or request.under_way):
            continue
        calls.append(
            lin.Call(
                request.command.account_id,
                request.start_s,
                request.end_s,
                _operation(request.command),
                _plain_result(request.command, request.result),
                effects.get(_key(request.command), (request.index, 0) if request.index else _NEVER),
            )
        )
    return calls


def _operation(command: Command) -> lin.Operation:
    match command:
        case CreateAccount():
            return lin.CreateAccount()
        case CreateTransaction():
            return lin.CreateTransaction(command.amount, command.settled)
        case SettleTransaction():
            return lin.EndTransaction(command.number, settle=True)
        case CancelTransaction():
            return lin.EndTransaction(command.number, settle=False)


_STATUS = {
    TransactionStatus.PENDING: "pending",
    TransactionStatus.SETTLED: "settled",
    TransactionStatus.INSUFFICIENT_FUNDS: "insufficient funds",
}


def _plain_result(command: Command, result: Result | None) -> object:
    if isinstance(command, CreateTransaction) and isinstance(result, TransactionView):
        return result.number, _STATUS[result.status]
    if isinstance(command, SettleTransaction | CancelTransaction):
        return not isinstance(result, Failure)
    return None

"""What must hold of a whole run: the log, replayed on an independent model, explains every answer.

Checks that share nothing: the order of the log indexes against real time, with every result held
against the model; bounds of what a read may have seen, and the search for a linearization, which
know no log. What must hold between shards in the end is in `across`.
"""

from collections import defaultdict
from dataclasses import dataclass

from ledger_core.accounts import TransactionStatus
from ledger_core.commands import (
    CancelTransaction,
    CreateAccount,
    CreateTransaction,
    ReverseTransaction,
    SettleTransaction,
    decode_batch,
)
from ledger_core.results import AccountView, Failure, Result, TransactionView
from ledger_node.raft.library import Kind
from tests.simulation import linearizability as lin
from tests.simulation.clients import History, Read, Request
from tests.simulation.engine import Engine, require
from tests.simulation.model import Position, Sent, ShardModel, key_of

_NOWHERE: Position = (0, 0)
_NEVER: Position = (1 << 62, 0)
Effects = dict[bytes, Position]
Models = dict[int, ShardModel]


@dataclass(frozen=True, slots=True)
class _Timed:
    """Something that took effect on a shard, from one position to another."""

    start_s: float
    end_s: float | None
    first: Position
    last: Position
    floor: bool
    """Whether later calls must not fall behind it, nor it behind earlier ones."""


def check_history(engine: Engine, history: History, payloads: dict[int, list[bytes]]) -> Models:
    """Check the answers of a run against the committed log of every shard, and each other."""
    models: Models = {}
    effects: Effects = {}
    for shard_id, shard_payloads in payloads.items():
        models[shard_id] = ShardModel(shard_id)
        reads = [read for read in history.reads if read.shard_id == shard_id]
        _replay(models[shard_id], shard_payloads, reads)
        effects |= models[shard_id].places
    sent = {key_of(request.command) for request in history.requests}
    require(effects.keys() <= sent, "a command that nobody sent")
    _check_answers(history, models)
    for shard_id in models:
        _check_order(_timed(history, models, shard_id))
    check_linearizable(engine, history, effects)
    return models


def _replay(model: ShardModel, payloads: list[bytes], reads: list[Read]) -> None:
    """Apply a log to the model, and look every read up in it."""
    reads = sorted(reads, key=lambda read: read.index, reverse=True)

    def check_reads(before: int) -> None:
        while reads and reads[-1].index < before:
            read = reads.pop()
            seen, was = _balances(read.result), model.balances(read.account_id)
            require(seen == was, f"a read at index {read.index} saw {seen}, but it was {was}")

    for index, payload in enumerate(payloads, start=1):
        check_reads(index)
        if payload[0] == Kind.REGULAR:
            model.apply(index, decode_batch(payload[1:]))
    check_reads(len(payloads) + 1)


def _check_answers(history: History, models: Models) -> None:
    """What callers were told is what happened, and what was promised not to happen did not."""
    for request in history.requests:
        command, key, model = request.command, key_of(request.command), models[request.shard_id]
        if request.acknowledged:
            require(key in model.outcomes, f"an acknowledged write is lost: {command}")
            require(model.places[key][0] <= request.index, f"{command}: told before it was done")
            told = _told(request.result)
            number, state = model.outcomes[key]
            if number:
                states = model.parts[number - 1].states
                state += states[state] is TransactionStatus.UNDECIDED
                was = number, states[state]
                require(told == was, f"{command}: told {told}, but it was {was}")
        elif request.result is None and not request.maybe_done and not request.under_way:
            # Participants may have been asked, and the home may have put that right: no effect.
            number, _ = model.outcomes.get(key, (0, 0))
            abandoned = number > 0 and model.parts[number - 1].abandoned
            require(
                key not in model.outcomes or abandoned,
                f"a write happened of which the caller heard that it did not: {command}",
            )


def _timed(history: History, models: Models, shard_id: int) -> list[_Timed]:
    """Return when and where all that callers did took effect on a shard."""
    model = models[shard_id]
    timed = [
        _Timed(read.start_s, read.end_s, _end_of(read.index), _end_of(read.index), not read.stale)
        for read in history.reads
        if read.shard_id == shard_id
    ]
    for request in history.requests:
        home = models[request.shard_id]
        outcome = home.outcomes.get(key_of(request.command))
        if outcome is None:
            continue
        end_s = request.end_s if request.acknowledged else None
        if request.shard_id != shard_id:
            if (one := _at_participant(request, end_s, home, model, outcome)) is not None:
                timed.append(one)
            continue
        first = last = home.places[key_of(request.command)]
        if outcome[0] and isinstance(request.command, CreateTransaction | ReverseTransaction):
            last = home.parts[outcome[0] - 1].decided_at or first
        timed.append(_Timed(request.start_s, end_s, first, last, floor=True))
    return timed


def _at_participant(
    request: Request,
    end_s: float | None,
    home: ShardModel,
    model: ShardModel,
    outcome: tuple[int, int],
) -> _Timed | None:
    """A transaction's answer is given when its participants have applied it."""
    number, _ = outcome
    if not number:
        return None
    whole = home.parts[number - 1]
    part = model.prepared.get(home.origins[number])
    if model.shard_id not in whole.participants or part is None:
        return None
    begins = isinstance(request.command, CreateTransaction | ReverseTransaction)
    if begins and whole.status.is_refusal:
        # Whoever was asked is called off, but nobody waits for it; and it frees money only.
        end_s = None if whole.states[0].is_refusal else end_s
    reached = [
        position
        for status, position in zip(part.states, part.positions, strict=True)
        if status is not TransactionStatus.UNDECIDED
        and (begins or status is not TransactionStatus.PENDING)
    ]
    if not reached:
        require(end_s is None, f"told before shard {model.shard_id} had it: {request.command}")
        return None
    first = part.positions[0] if begins else reached[0]
    return _Timed(request.start_s, end_s, first, reached[0], floor=True)


def _end_of(index: int) -> Position:
    return index, float("inf")


def _check_order(timed: list[_Timed]) -> None:
    """What ended before something else began, comes before it in the log."""
    ends = sorted((t for t in timed if t.end_s is not None), key=lambda t: t.end_s or 0.0)
    latest, ended = _NOWHERE, 0
    for one in sorted(timed, key=lambda t: t.start_s):
        while ended < len(ends) and (ends[ended].end_s or 0.0) < one.start_s:
            if ends[ended].floor:
                latest = max(latest, ends[ended].last)
            ended += 1
        if one.floor:
            is_read = one.first[1] == float("inf")
            behind = one.first < latest if is_read else one.first <= latest
            require(not behind, f"order: {one} began after something at {latest} had ended")


def _told(result: Result | None) -> object:
    return (result.number, result.status) if isinstance(result, TransactionView) else None


def _balances(result: Result) -> tuple[int, int] | None:
    if isinstance(result, AccountView):
        return result.settled_balance, result.available_balance
    return None


# The search that knows no log.


def check_linearizable(engine: Engine, history: History, effects: Effects) -> None:
    """Search for a linearization of the history of every account without shared transactions."""
    shared = {
        entry.account_id
        for request in history.requests
        if isinstance(request.command, CreateTransaction)
        for entry in request.command.entries
    }
    by_account: defaultdict[object, list[lin.Call]] = defaultdict(list)
    for call in plain_calls(history, effects):
        by_account[call.account].append(call)
    for account, calls in by_account.items():
        if account in shared:
            continue
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
        command = request.command
        if request.result is None and not (request.maybe_done or request.under_way):
            continue
        if isinstance(command, ReverseTransaction) or (
            isinstance(command, CreateTransaction) and command.entries
        ):
            continue
        calls.append(
            lin.Call(
                command.account_id,
                request.start_s,
                request.end_s,
                _operation(command),
                _plain_result(command, request.result),
                effects.get(key_of(command), (request.index, 0) if request.index else _NEVER),
            )
        )
    return calls


def _operation(command: Sent) -> lin.Operation:
    match command:
        case CreateAccount():
            return lin.CreateAccount()
        case CreateTransaction():
            return lin.CreateTransaction(command.amount, command.settled)
        case SettleTransaction():
            return lin.EndTransaction(command.number, settle=True)
        case CancelTransaction():
            return lin.EndTransaction(command.number, settle=False)
        case ReverseTransaction():
            raise AssertionError("accounts with reversals are not searched")


_STATUS = {
    TransactionStatus.PENDING: "pending",
    TransactionStatus.SETTLED: "settled",
    TransactionStatus.INSUFFICIENT_FUNDS: "insufficient funds",
}


def _plain_result(command: Sent, result: Result | None) -> object:
    if isinstance(command, CreateTransaction) and isinstance(result, TransactionView):
        return result.number, _STATUS[result.status]
    if isinstance(command, SettleTransaction | CancelTransaction):
        return not isinstance(result, Failure)
    return None

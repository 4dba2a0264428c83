"""Deliberate breakages of the product. A simulation that does not see them sees nothing.

Each is a patch that takes one protection away, as a careless change might. `find` runs seeds until
a run fails. Without the ``strict`` checks, which look into disks and logs, only what the cluster
does to its callers, its books and its own alarms are left.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest import mock

import msgspec

from ledger.internal.v1 import peer_pb2
from ledger_core import commands
from ledger_node import refusal_rules, state_machine, transaction_rules
from ledger_node.node import Node
from ledger_node.raft import Role
from ledger_node.raft.admission import Admission
from ledger_node.raft.elections import Voter
from ledger_node.raft.group import RaftGroup
from ledger_node.raft.hardening import HardenedSyncObj
from ledger_node.raft.journal import GroupJournal
from ledger_node.raft.library import SyncObj
from ledger_node.raft.progress import Progress
from ledger_node.raft.replica import Replica
from ledger_node.state_machine import StateMachine
from ledger_node.store import ShardTables, StoredRaftLog
from ledger_node.store_balances import BalanceTables
from ledger_node.store_log import LogTables
from tests.simulation.disk import DiskError, SimulatedStore
from tests.simulation.plan import (
    LEADERS_FROM,
    Bounds,
    Fault,
    FaultKind,
    Hold,
    NetworkPlan,
    Plan,
    Timing,
    draw_plan,
)
from tests.simulation.runner import RunFailed, run_plan

Patch = tuple[Any, str, Any]
_Mutator = TypeVar("_Mutator", bound=Callable[[], list[Patch]])


@dataclass(frozen=True, slots=True)
class Mutant:
    """A breakage: what is patched, and in which words."""

    name: str
    patches: Callable[[], list[Patch]]

    def __str__(self) -> str:
        return self.name


MUTANTS: list[Mutant] = []


def find(mutant: Mutant, plans: Iterable[Plan], *, strict: bool = True) -> tuple[int, str] | None:
    """Return how many plans it took until a run failed, and how; None if none did."""
    with ExitStack() as stack:
        for owner, name, value in mutant.patches():
            stack.enter_context(mock.patch.object(owner, name, value))
        for count, plan in enumerate(plans, start=1):
            try:
                run_plan(plan, strict=strict)
            except RunFailed as failure:
                return count, str(failure).split(" (at ", maxsplit=1)[0]
    return None


def mutant(name: str) -> Callable[[_Mutator], _Mutator]:
    def register(patches: _Mutator) -> _Mutator:
        MUTANTS.append(Mutant(name, patches))
        return patches

    return register


# Votes and terms.


@mutant("the vote is not stored")
def _forget_vote() -> list[Patch]:
    def set_term(self: GroupJournal, term: int, vote: str | None) -> None:
        self.term, self.voted_for = term, vote
        self._log.save_hard_state(term, None)

    return [(GroupJournal, "setCurrentTerm", set_term)]


@mutant("the term is not stored")
def _forget_term() -> list[Patch]:
    def set_term(self: GroupJournal, term: int, vote: str | None) -> None:
        self.term, self.voted_for = term, vote

    return [(GroupJournal, "setCurrentTerm", set_term)]


@mutant("votes for everyone in a term")
def _vote_for_all() -> list[Patch]:
    def on_request_vote(self: Any, now: float, peer: Progress, message: Any) -> None:
        ok = self._log_is_current(message)
        self._reply(peer, peer_pb2.RAFT_MESSAGE_TYPE_REQUEST_VOTE_REPLY, message.term, ok)

    return [(Replica, "_on_request_vote", on_request_vote)]


@mutant("votes for candidates with older logs")
def _vote_for_old_logs() -> list[Patch]:
    return [(Replica, "_log_is_current", lambda _self, _message: True)]


@mutant("votes are counted, not tracked")
def _count_votes() -> list[Patch]:
    serial = itertools.count()

    def on_reply(self: Any, _now: float, _peer: Progress, message: Any) -> None:
        if self._SyncObj__raftState == Role.CANDIDATE and message.ok:
            self._voters |= {str(next(serial))}
            if len(self._voters) >= self._majority:
                self._SyncObj__onBecomeLeader()

    return [(Replica, "_on_request_vote_reply", on_reply)]


# The turn.


@mutant("messages and replies leave before the commit of their turn")
def _persist_after_send() -> list[Patch]:
    turn, follow = Node.turn, Node.follow

    def late(self: Any, send_early: Any = None) -> Any:
        store = self._store
        store.commit_log()  # what the last turn wrote
        store.end_turn(self._clock)
        store.commit_log = lambda: None
        try:
            return turn(self, send_early)
        finally:
            del store.commit_log

    def later(self: Any) -> None:
        store = self._store
        store.end_turn = lambda _clock: None
        try:
            follow(self)
        finally:
            del store.end_turn

    return [(Node, "turn", late), (Node, "follow", later)]


def _before_commit(early: Callable[[Any], None]) -> list[Patch]:
    """Let nodes do something right before the log of a turn is committed."""
    turn = Node.turn

    def hasty(self: Any, send_early: Any = None) -> Any:
        store, commit_log = self._store, self._store.commit_log

        def commit() -> None:
            early(self)
            commit_log()

        store.commit_log = commit
        try:
            return turn(self, send_early)
        finally:
            del store.commit_log

    return [(Node, "turn", hasty)]


@mutant("replies leave before the commit of their turn")
def _acknowledge_before_commit() -> list[Patch]:
    def acknowledge(node: Any) -> None:
        for replica in node._replicas.values():
            replica.group.apply(node._clock())
            for complete in replica.group.take_completions():
                complete()

    return _before_commit(acknowledge)


@mutant("votes and confirmations leave before the commit of their turn")
def _send_all_early() -> list[Patch]:
    def take_appends(self: Any) -> Any:
        replica = self._replica
        messages = replica.outbox + replica.appends
        replica.outbox, replica.appends = [], []
        return messages

    return [(RaftGroup, "take_appends", take_appends)]


@mutant("a failed commit is ignored")
def _ignore_failed_commit() -> list[Patch]:
    commit = SimulatedStore.commit_log

    def forgiving(self: SimulatedStore) -> None:
        try:
            commit(self)
        except DiskError:
            self._log.abort()
            self._written.clear()
            self.fail_next_commit = False

    return [(SimulatedStore, "commit_log", forgiving)]


@mutant("an entry is applied again after a restart")
def _apply_twice() -> list[Patch]:
    apply = StateMachine.apply

    def unchecked(self: Any, index: int, payload: bytes) -> Any:
        meta = self._tables.meta()
        if index <= meta.applied_index:
            meta.applied_index = index - 1
            self._tables.save_meta(meta)
        return apply(self, index, payload)

    def behind(self: StoredRaftLog) -> int:
        return max(0, self._tables.meta().applied_index - 1)

    return [
        (StateMachine, "apply", unchecked),
        (StoredRaftLog, "applied_index", behind),
        (StoredRaftLog, "load_applied", lambda _self: None),
    ]


# The state behind the log.


@mutant("a checkpoint tells less than the state includes")
def _forget_applied() -> list[Patch]:
    save_meta = ShardTables.save_meta

    def behind(self: ShardTables, meta: Any) -> None:
        applied_index = max(0, meta.applied_index - 1)
        save_meta(self, msgspec.structs.replace(meta, applied_index=applied_index))

    def save_applied(self: Any, index: int, _term: int) -> None:
        self._durable = self.durable_index()
        self._applied, self._applied_at = index, self._store.checkpoints

    return [(ShardTables, "save_meta", behind), (StoredRaftLog, "save_applied", save_applied)]


@mutant("the log is cut where the state is not durable")
def _cut_early() -> list[Patch]:
    return [(StoredRaftLog, "durable_index", lambda self: self._applied)]


@mutant("the state is durable before the log that led to it")
def _state_first() -> list[Patch]:
    def hasty(node: Any) -> None:
        for replica in node._replicas.values():
            replica.group.apply(node._clock())
        node._store._write_back()
        node._store._state.commit()

    return _before_commit(hasty)


@mutant("a checkpoint is made without the balances in memory")
def _balances_left_out() -> list[Patch]:
    def forgetful(self: BalanceTables) -> None:
        if self._balance_cache is not None:
            self._balance_cache.take_dirty()

    return [(BalanceTables, "write_back", forgetful)]


@mutant("an install does not note its last step")
def _install_without_note() -> list[Patch]:
    return [(LogTables, "save_installing", lambda _self, _index, _term: None)]


@mutant("an install ends with its log, and its state follows")
def _log_first_at_install() -> list[Patch]:
    finish = StoredRaftLog.finish_install

    def lazy(self: Any, index: int, term: int) -> None:
        store = self._store
        store.checkpoint = store.commit_log = lambda: None
        try:
            finish(self, index, term)
        finally:
            del store.checkpoint, store.commit_log

    return [(StoredRaftLog, "finish_install", lazy)]


# The log.


@mutant("a confirmation of an earlier term is counted")
def _old_confirmations() -> list[Patch]:
    handle = Replica.handle

    def lenient(self: Any, now: float, peer_id: str, message: Any) -> None:
        old = message.term < self._SyncObj__raftCurrentTerm
        if old and message.type == peer_pb2.RAFT_MESSAGE_TYPE_APPEND_ENTRIES_REPLY:
            self._on_append_entries_reply(now, self._peers[peer_id], message)
        else:
            handle(self, now, peer_id, message)

    return [(Replica, "handle", lenient)]


@mutant("entries that match are truncated")
def _truncate_matching() -> list[Patch]:
    append = Replica._append

    def eager(self: Any, message: Any) -> int:
        first = message.log_index + 1
        commit = self._SyncObj__raftCommitIndex
        if message.entries and commit < first <= self._journal.last_index:
            self._journal.truncate_from(first)
        return append(self, message)

    return [(Replica, "_append", eager)]


@mutant("the commit index is believed beyond what was verified")
def _commit_unverified() -> list[Patch]:
    append = Replica._append

    def trusting(self: Any, message: Any) -> int:
        index = append(self, message)
        known = min(message.commit_index, self._journal.last_index)
        self._SyncObj__raftCommitIndex = max(self._SyncObj__raftCommitIndex, known)
        return index

    return [(Replica, "_append", trusting)]


@mutant("what was sent counts as stored")
def _count_sent() -> list[Patch]:
    propose = Replica.propose

    def hasty(self: Any, payload: bytes, done: Any) -> None:
        propose(self, payload, done)
        if self._SyncObj__raftState == Role.LEADER:
            for peer in self._peers.values():
                self._SyncObj__raftMatchIndex[peer.node] = self._journal.last_index

    return [(Replica, "propose", hasty)]


@mutant("entries of earlier terms are committed by counting")
def _commit_old_terms() -> list[Patch]:
    tick = SyncObj.doTick

    def counting(self: Any, time_to_wait: float = 0.0) -> None:
        if self._SyncObj__raftState == Role.LEADER:
            matches = [peer.match_index for peer in self._peers.values()]
            matches = sorted([*matches, self._journal.last_index])
            stored = matches[-self._majority]
            self._SyncObj__raftCommitIndex = max(self._SyncObj__raftCommitIndex, stored)
        tick(self, time_to_wait)

    return [(HardenedSyncObj, "doTick", counting)]


@mutant("a follower that refuses is asked the same again")
def _ask_the_same() -> list[Patch]:
    return [(Progress, "refused", lambda _self, *_arguments: False)]


class _AnyTerm(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


@mutant("a proposal is answered by whatever is applied at its index")
def _answer_by_index() -> list[Patch]:
    propose, abandon = Replica.propose, Replica._abandon_leadership

    def forgetful(self: Any, payload: bytes, done: Any) -> None:
        propose(self, payload, done)
        if self._SyncObj__raftState == Role.LEADER:
            self._waiting[self._journal.last_index] = (_AnyTerm(), done)

    def keep_waiting(self: Any) -> None:
        waiting, self._waiting = self._waiting, {}
        abandon(self)
        self._waiting = waiting

    return [(Replica, "propose", forgetful), (Replica, "_abandon_leadership", keep_waiting)]


# Reads.


@mutant("a read asks nobody whether this node still leads")
def _read_without_round() -> list[Patch]:
    read_index = Replica.read_index

    def at_once(self: Any, done: Any) -> None:
        read_index(self, done)
        if self._reads and self._reads[-1][2] is done:
            self._reads[-1] = (0, *self._reads[-1][1:])

    return [(Replica, "read_index", at_once)]


@mutant("a read does not wait for the first commit of its leader's term")
def _read_before_no_op() -> list[Patch]:
    read_index = Replica.read_index

    def hasty(self: Any, done: Any) -> None:
        read_index(self, done)
        if self._reads and self._reads[-1][2] is done:
            round_needed, _index, _done = self._reads[-1]
            self._reads[-1] = (round_needed, self._SyncObj__raftCommitIndex, done)

    return [(Replica, "read_index", hasty)]


# The state machine.


@mutant("request ids are not looked up")
def _skip_request_ids() -> list[Patch]:
    def add(self: Any, key: bytes, row: Any) -> None:
        self._put_row(self._requests, key, row.pack())

    return [
        (ShardTables, "find_request", lambda _self, _key: None),
        (ShardTables, "add_request", add),
    ]


@mutant("funds are not checked")
def _skip_funds() -> list[Patch]:
    return [
        (refusal_rules, "_overdraft", lambda *_arguments, **_named: None),
        (transaction_rules, "check_floors", lambda *_arguments, **_named: None),
    ]


@mutant("reserved money can be spent")
def _spend_reserved() -> list[Patch]:
    overdraft = refusal_rules._overdraft

    def generous(*arguments: Any, **named: Any) -> Any:
        refused = overdraft(*arguments, **named)
        if refused and refused.required_amount <= (
            refused.available_amount + refused.reserved_amount
        ):
            return None
        return refused

    return [
        (refusal_rules, "_overdraft", generous),
        (transaction_rules, "check_floors", lambda *_arguments, **_named: None),
    ]


@mutant("replicas book with times of their own")
def _own_time() -> list[Patch]:
    serial, decode = itertools.count(), commands.decode_raw_batch

    def decoded(payload: bytes) -> Any:
        batch = decode(payload)
        return type(batch)(batch.time_us + next(serial), batch.commands)

    return [(state_machine, "decode_raw_batch", decoded)]


# Plans for what the general mix finds too seldom: the same machinery, with the faults that matter.


# Stores that may have forgotten.


@mutant("a store without a past takes part and votes at once")
def _no_admission() -> list[Patch]:
    return [
        (Admission, "may_vote", property(lambda _self: True)),
        (Admission, "informed", property(lambda _self: True)),
    ]


@mutant("a founded group takes a younger store into its roster")
def _found_again() -> list[Patch]:
    real = Voter._on_ask

    def lenient(self: Any, now: float, peer: Progress, message: Any) -> None:
        real(self, now, peer, message)
        if peer.connected:
            for store in self.outbox[-1][1].roster:
                if store.node_id == peer.node.id:
                    store.incarnation = message.incarnation

    return [(Voter, "_on_ask", lenient)]


def often(kinds: Iterable[tuple[FaultKind, int]], every_s: float, seed: int) -> tuple[Fault, ...]:
    """Repeat faults (kind, target) in turn, with amounts that vary."""
    cycle, count = itertools.cycle(kinds), int(5.5 / every_s)
    return tuple(
        Fault(0.5 + every_s * number, kind, target, (seed * 7 + number * 3) % 10 / 10)
        for number, (kind, target) in zip(range(count), cycle, strict=False)
    )


FAST = Timing(0.04, 0.15, 0.25)
LEADER = LEADERS_FROM


def _unaware_leaders(seed: int) -> Plan:
    """Leaders are replaced and do not notice, while callers read from old and new ones."""
    return Plan(
        seed=seed,
        pre_vote=False,
        timing=FAST,
        gateways=2,
        clients=6,
        accounts=1,
        shards=1,
        think_s=0.004,
        call_s=0.5,
        attempt_s=0.03,
        workload=(0, 4, 0, 0, 12, 0, 0),
        faults=often([(FaultKind.USURP, LEADER)], 0.8, seed),
    )


def _new_leaders(seed: int) -> Plan:
    """Leaders are replaced while some followers lag, and the new ones are read from at once."""
    return msgspec.structs.replace(
        _unaware_leaders(seed),
        clients=4,
        workload=(0, 10, 0, 0, 10, 0, 0),
        bounds=Bounds(message_entries=1, flush_messages=1, window_entries=1),
        network=NetworkPlan(harsh=True, delay_s=0.002, jitter=2.0, loss=0.35),
        faults=often([(FaultKind.USURP, LEADER)], 0.5, seed),
    )


def _late_messages(seed: int) -> Plan:
    """A follower's confirmations reach a leader that was deposed, overwritten and elected again.

    The first two of five hosts are on their own when the first one leads: what it appends then is
    overwritten by a leader of the others. Meanwhile the second one still has it, and the
    confirmation is under way.
    """
    faults: list[Fault] = []
    holds: list[Hold] = []
    for cycle in range(7):
        start = 0.4 + 0.75 * cycle
        # Several times each: one in the turn of a leader's heartbeat comes to nothing.
        campaigns = {0: (0.0, 0.013, 0.026, 0.039, 0.34, 0.36, 0.38), 2: (0.15, 0.17)}
        faults += [
            Fault(start + at_s, FaultKind.CAMPAIGN, node)
            for node, times in campaigns.items()
            for at_s in times
        ]
        for other in (2, 3, 4):
            for alone, for_s in ((0, 0.2), (1, 0.5)):
                holds += [
                    Hold(start + 0.1, alone, other, for_s),
                    Hold(start + 0.1, other, alone, for_s),
                ]
        holds += [Hold(start + 0.1, 1, 0, 0.4), Hold(start + 0.14, 0, 1, 0.46)]
    return Plan(
        seed=seed,
        nodes=5,
        replicas=5,
        pre_vote=False,
        # Long ones: nobody campaigns by itself, and held connections last.
        timing=Timing(0.04, 0.6, 1.0),
        network=NetworkPlan(delay_s=0.001),
        clients=3,
        gateways=2,
        accounts=1,
        shards=1,
        think_s=0.015,
        call_s=0.5,
        attempt_s=0.03,
        workload=(0, 8, 0, 0, 0, 0, 0),
        faults=tuple(faults),
        holds=tuple(holds),
    )


def _lost_disks(seed: int) -> Plan:
    """Entries have bare majorities when one of the disks is lost, and the leader with it."""
    others = [(FaultKind.PARTITION, LEADER), (FaultKind.WIPE, seed % 3), (FaultKind.CRASH, LEADER)]
    return Plan(
        seed=seed,
        pre_vote=False,
        timing=FAST,
        network=NetworkPlan(harsh=True, delay_s=0.001, loss=0.2),
        clients=6,
        gateways=2,
        accounts=1,
        shards=1,
        think_s=0.004,
        call_s=0.5,
        attempt_s=0.03,
        workload=(0, 8, 0, 0, 4, 0, 0),
        faults=often(others, 0.2, seed),
    )


def _installs(seed: int) -> Plan:
    """Disks are lost behind short logs, so snapshots are installed, and cut short by a crash."""
    victim = seed % 3
    kinds = [(FaultKind.WIPE, victim), (FaultKind.INTERRUPT_INSTALL, victim)]
    return Plan(
        seed=seed,
        timing=FAST,
        bounds=Bounds(keep_entries=2, compact_entries=1, checkpoint_s=0.3),
        clients=4,
        accounts=2,
        shards=1,
        think_s=0.004,
        call_s=0.5,
        attempt_s=0.1,
        workload=(0, 8, 0, 0, 4, 0, 0),
        faults=often(kinds, 0.25, seed),
    )


DIRECTED: dict[str, Callable[[int], Plan]] = {
    "an install does not note its last step": _installs,
    "an install ends with its log, and its state follows": _installs,
    "a read asks nobody whether this node still leads": _unaware_leaders,
    "a read does not wait for the first commit of its leader's term": _new_leaders,
    "a confirmation of an earlier term is counted": _late_messages,
    "a store without a past takes part and votes at once": _lost_disks,
    "a founded group takes a younger store into its roster": _lost_disks,
}


def plans_for(mutant: Mutant) -> Iterator[Plan]:
    """Yield the plans that may find a mutant, endlessly."""
    yield from map(DIRECTED.get(mutant.name, draw_plan), itertools.count())

"""Deliberate breakages of the commit across shards; see `mutants`."""

from typing import Any

import msgspec

from ledger_core.accounts import EntryKind, TransactionStatus
from ledger_core.commands import ApplyDecision, Decide, Prepare, Refused, Resolve
from ledger_core.errors import RefusalReason
from ledger_core.results import Done, VoteView
from ledger_node import commit_rules, refusal_rules, state_machine, transaction_rules
from ledger_node.coordinator import Coordinator, _Led
from ledger_node.store import ShardTables
from tests.simulation.mutants import DIRECTED, FAST, LEADER, Patch, mutant, often
from tests.simulation.plan import Bounds, FaultKind, NetworkPlan, Plan


@mutant("a home decides without all votes")
def _decide_early() -> list[Patch]:
    first_refusal = commit_rules._first_refusal

    def lenient(record: Any, command: Decide) -> Any:
        voted = {vote.shard_id for vote in command.votes}
        some = msgspec.structs.replace(
            record, participants=[p for p in record.participants if p.shard_id in voted]
        )
        return first_refusal(some, command)

    return [(commit_rules, "_first_refusal", lenient)]


@mutant("a participant does not record its yes")
def _forget_yes() -> list[Patch]:
    prepare = commit_rules.prepare

    def forgetful(books: Any, command: Prepare) -> VoteView:
        if books.tables.find_request(commit_rules.participant_key(command.origin)) is not None:
            return prepare(books, command)
        refused = refusal_rules.refusal(books, command.transaction)
        return prepare(books, command) if refused else VoteView(None)

    return [(state_machine, "prepare", forgetful)]


@mutant("a participant does not remember that it waits for a decision")
def _forget_to_ask() -> list[Patch]:
    return [(ShardTables, "save_undecided", lambda _self, _number, _prepare: None)]


@mutant("a decision is applied twice")
def _apply_twice() -> list[Patch]:
    apply_decision = commit_rules.apply_decision

    def again(books: Any, command: ApplyDecision) -> Done:
        known = books.tables.find_request(commit_rules.participant_key(command.origin))
        record = books.find_transaction(known.number) if known and known.number else None
        repeated = record is not None and record.status is TransactionStatus.SETTLED
        if record is not None and repeated and command.status is record.status:
            books.book_entries(known.number, record.booked, EntryKind.POSTED)
        return apply_decision(books, command)

    return [(state_machine, "apply_decision", again)]


@mutant("a late Prepare reserves again")
def _reserve_again() -> list[Patch]:
    prepare, add = commit_rules.prepare, ShardTables.add_request

    def eager(books: Any, command: Prepare) -> VoteView:
        known = books.tables.find_request(commit_rules.participant_key(command.origin))
        record = books.find_transaction(known.number) if known and known.number else None
        if known is None or (record is not None and record.status is TransactionStatus.UNDECIDED):
            return prepare(books, command)
        find = books.tables.find_request
        books.tables.find_request = lambda _key: None
        try:
            return prepare(books, command)
        finally:
            books.tables.find_request = find

    def overwrite(self: Any, key: bytes, row: Any) -> None:
        if key[:1] == b"p":
            self._put_row(self._requests, key, row.pack())
        else:
            add(self, key, row)

    return [(state_machine, "prepare", eager), (ShardTables, "add_request", overwrite)]


@mutant("a home forgets whom it told that it never heard of a transaction")
def _no_presumed_abort() -> list[Patch]:
    resolve = commit_rules.resolve

    def forgetful(books: Any, command: Resolve) -> Any:
        prepared = command.prepared
        if books.tables.find_request(prepared.origin) is not None:
            return resolve(books, command)
        refused = Refused(0, reason=RefusalReason.ABANDONED)
        status = refusal_rules.refused_status(refused)
        record = transaction_rules.new_record(books, prepared.transaction, status, refused)
        return commit_rules.show(books, 0, record)

    return [(state_machine, "resolve", forgetful)]


@mutant("a caller is answered before the participants have applied the decision")
def _answer_early() -> list[Patch]:
    drive = Coordinator._drive

    def await_delivery(self: Any, shard_id: int, number: int, done: Any) -> None:
        homed = self._homed.get((shard_id, number))
        if shard_id not in self._led:
            done(False)
        elif homed is None or self._tables(shard_id).find_transaction(number).states[1:]:
            done(True)
        else:
            homed.waiting.append(done)

    def hasty(self: Any, shard_id: int, number: int) -> None:
        homed = self._homed.get((shard_id, number))
        if homed is not None and self._tables(shard_id).find_transaction(number).states[1:]:
            waiting, homed.waiting = homed.waiting, []
            for done in waiting:
                done(True)
        drive(self, shard_id, number)

    return [(Coordinator, "await_delivery", await_delivery), (Coordinator, "_drive", hasty)]


@mutant("a new leader does not take up what is in flight")
def _lose_in_flight() -> list[Patch]:
    def lead(self: Any, shard_id: int, _now: float) -> None:
        self._led[shard_id] = _Led()

    return [(Coordinator, "lead", lead)]


@mutant("a clearing entry is missing where there are two currencies")
def _one_currency() -> list[Patch]:
    clearing = transaction_rules.clearing_entries

    def short(*arguments: Any) -> Any:
        return clearing(*arguments)[:1]

    return [
        (transaction_rules, "clearing_entries", short),
        (commit_rules, "clearing_entries", short),
    ]


@mutant("a home commits whatever the votes say")
def _commit_anyway() -> list[Patch]:
    return [(commit_rules, "_first_refusal", lambda _record, _command: None)]


def _slow_calls(seed: int) -> Plan:
    """Calls between shards are lost or come late, and leaders change."""
    return Plan(
        seed=seed,
        shards=3,
        timing=FAST,
        pre_vote=False,
        network=NetworkPlan(delay_s=0.001, spike=0.1, spike_s=0.4, rpc_loss=0.1),
        bounds=Bounds(vote_s=0.3, ask_after_s=0.05, retry_s=0.1),
        shard_call_s=0.5,
        clients=6,
        accounts=2,
        think_s=0.01,
        call_s=0.6,
        attempt_s=0.1,
        workload=(0, 4, 0, 2, 4, 0, 1, 10, 4, 1),
        faults=often([(FaultKind.CAMPAIGN, seed % 3), (FaultKind.TRANSFER, LEADER)], 0.5, seed),
    )


for _name in (
    "a home decides without all votes",
    "a late Prepare reserves again",
    "a home forgets whom it told that it never heard of a transaction",
):
    DIRECTED[_name] = _slow_calls

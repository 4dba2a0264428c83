"""A few shards and the steps between them, one log entry at a time, in any order.

`World.drive` is the coordinator in its simplest form: it looks only at what the shards have
stored, and does what is left to do. So whatever happened before, it must bring all to an end.
"""

from pathlib import Path
from random import Random

import msgspec

from ledger_core.accounts import AccountType, Direction, TransactionStatus
from ledger_core.commands import (
    ApplyDecision,
    Command,
    CreateAccount,
    CreateTransaction,
    Decide,
    Delivered,
    Entry,
    Prepare,
    Refused,
    Resolve,
    Vote,
    body_hash,
)
from ledger_core.errors import RefusalReason
from ledger_core.ids import derive_account_id, shard_key, system_account_id, transaction_request_key
from ledger_core.ledgers import USD
from ledger_core.queries import GetAccount
from ledger_core.results import AccountView, Failure, TransactionView, VoteView
from ledger_node.prepared import find_prepared
from ledger_node.records import InFlightRecord, TransactionRecord
from ledger_node.store import ShardRange
from tests.node.history_model import HistoryModel
from tests.node.shard import Shard

SHARDS = 3
_WIDTH = 2**32 // SHARDS + 1


class World:
    """Three shards with two accounts on each."""

    def __init__(self, folder: Path, funds: int = 100) -> None:
        bounds = [(i * _WIDTH, min((i + 1) * _WIDTH, 2**32) - 1) for i in range(SHARDS)]
        self.shards = [
            Shard(folder / f"s{i}", ShardRange(i, *bound)) for i, bound in enumerate(bounds)
        ]
        self.accounts: list[list[int]] = [[] for _ in range(SHARDS)]
        candidate = 0
        while any(len(ids) < 2 for ids in self.accounts):
            request_id = f"account {candidate}"
            account_id = derive_account_id("main", request_id)
            place = shard_key(account_id) // _WIDTH
            candidate += 1
            if len(self.accounts[place]) < 2:
                self.accounts[place].append(account_id)
                shard = self.shards[place]
                opened = shard.one(CreateAccount(account_id, "main", request_id))
                assert isinstance(opened, AccountView)
                if funds:
                    shard.one(CreateTransaction(account_id, funds, "", True, f"fund {request_id}"))

    # Requests

    def entry(self, shard_id: int, which: int, amount: int) -> Entry:
        """Money into (> 0) or out of (< 0) an account; they are liabilities."""
        direction = Direction.CREDIT if amount > 0 else Direction.DEBIT
        account_id = self.accounts[shard_id][which]
        return Entry(account_id, direction, abs(amount), USD, shard_id)

    @staticmethod
    def create(
        entries: list[Entry], request_id: str, *, settled: bool = True, expire_time_us: int = 0
    ) -> CreateTransaction:
        return CreateTransaction(
            entries[0].account_id,
            0,
            "",
            settled,
            request_id,
            entries,
            expire_time_us=expire_time_us,
        )

    def begin(self, command: CreateTransaction) -> TransactionView | Failure:
        result = self.shards[command.entries[0].shard_id].one(command)
        assert isinstance(result, TransactionView | Failure)
        return result

    # Steps

    def apply(self, shard_id: int, command: Command) -> object:
        shard = self.shards[shard_id]
        if isinstance(command, Prepare | ApplyDecision):
            # Any account of the shard's.
            routing_id = system_account_id(shard.shard.lower_bound, 0)
            command = msgspec.structs.replace(command, routing_id=routing_id)
        return shard.one(command)

    @staticmethod
    def prepare_of(command: CreateTransaction) -> Prepare:
        """What a leader sends while its own Begin is still under way."""
        origin = transaction_request_key(command.account_id, command.request_id)
        home = command.entries[0].shard_id
        return Prepare(0, origin, body_hash(command), home, command)

    def in_flight(self, shard_id: int) -> dict[int, InFlightRecord]:
        with self.shards[shard_id].store.read() as view:
            tables = view.shard(shard_id)
            found = {n: tables.find_in_flight(n) for n in tables.in_flight_numbers()}
        return {n: record for n, record in found.items() if record is not None}

    def undecided(self, shard_id: int) -> dict[int, Prepare]:
        with self.shards[shard_id].store.read() as view:
            tables = view.shard(shard_id)
            found = {n: find_prepared(tables, shard_id, n) for n in tables.undecided_numbers()}
        return {n: prepare for n, prepare in found.items() if prepare is not None}

    def record(self, shard_id: int, number: int) -> TransactionRecord:
        with self.shards[shard_id].store.read() as view:
            record = view.shard(shard_id).find_transaction(number)
        assert record is not None
        return record

    def decision(self, shard_id: int, number: int) -> ApplyDecision:
        """What a home tells its participants of a transaction as it is now."""
        record = self.record(shard_id, number)
        return ApplyDecision(
            0,
            record.origin,
            number,
            record.status,
            record.states[-1].request_id or "expired",
            record.settled_amount,
            record.refusal,
        )

    def votes(self, prepare: Prepare, shard_ids: list[int]) -> list[Vote]:
        votes = []
        for shard_id in shard_ids:
            vote = self.apply(shard_id, prepare)
            assert isinstance(vote, VoteView)
            votes.append(Vote(shard_id, vote.refused))
        return votes

    def drive_home(self, shard_id: int) -> None:
        for number, in_flight in self.in_flight(shard_id).items():
            record = self.record(shard_id, number)
            others = [participant.shard_id for participant in record.participants]
            if in_flight.prepare is not None and record.status is TransactionStatus.UNDECIDED:
                votes = self.votes(in_flight.prepare, others)
                self.apply(shard_id, Decide(record.account_id, number, votes))
            decision = self.decision(shard_id, number)
            for other in others:
                self.apply(other, decision)
            state = len(self.record(shard_id, number).states) - 1
            self.apply(shard_id, Delivered(record.account_id, number, state))

    def drive_participant(self, shard_id: int) -> None:
        for prepare in self.undecided(shard_id).values():
            view = self.apply(prepare.home_shard_id, Resolve(prepare))
            assert isinstance(view, TransactionView)
            if view.status is not TransactionStatus.UNDECIDED:
                decision = ApplyDecision(
                    0,
                    prepare.origin,
                    view.number,
                    view.status,
                    view.request_id or "expired",
                    view.settled_amount,
                    _refused(view),
                )
                self.apply(shard_id, decision)

    def drive(self) -> None:
        """Bring everything to an end, from what is stored alone."""
        for shard_id in range(SHARDS):
            self.drive_home(shard_id)
        for shard_id in range(SHARDS):
            self.drive_participant(shard_id)

    # What must hold

    def check_every_shard_balances(self) -> None:
        for shard in self.shards:
            assert shard.audit().faults == []

    def check_histories(self) -> None:
        """What is kept for reads of the past follows from entries and records."""
        for shard in self.shards:
            with shard.store.read() as view:
                HistoryModel(view.shard(shard.shard.id)).check(Random(shard.shard.id))

    def balance(self, shard_id: int, which: int) -> AccountView:
        view = self.shards[shard_id].ask(GetAccount(self.accounts[shard_id][which]))
        assert isinstance(view, AccountView)
        return view

    def balances(self) -> list[tuple[int, int]]:
        return [
            (self.balance(s, w).settled_balance, self.balance(s, w).available_balance)
            for s in range(SHARDS)
            for w in range(2)
        ]

    def in_transit(self) -> dict[tuple[int, int], int]:
        """(shard, peer) -> debits minus credits of what the one is due from the other."""
        found: dict[tuple[int, int], int] = {}
        for shard in self.shards:
            with shard.store.read() as view:
                tables = view.shard(shard.shard.id)
                for peer in range(SHARDS):
                    slot = tables.find_slot(_in_transit_id(shard.shard.lower_bound, peer))
                    if slot is not None:
                        row = tables.balance(slot)
                        assert row.type is AccountType.ASSET
                        found[shard.shard.id, peer] = (
                            row.debits_posted
                            + row.debits_pending
                            - row.credits_posted
                            - row.credits_pending
                        )
        return found

    def check_nothing_is_in_flight(self) -> None:
        """Nobody waits for anybody, and what one shard is due another one owes."""
        for shard_id in range(SHARDS):
            assert self.in_flight(shard_id) == {}
            assert self.undecided(shard_id) == {}
        in_transit = self.in_transit()
        for (shard_id, peer), amount in in_transit.items():
            assert in_transit.get((peer, shard_id), 0) == -amount

    def close(self) -> None:
        for shard in self.shards:
            shard.close()


def _refused(view: TransactionView) -> Refused | None:
    refusal = view.refusal
    if refusal is None:
        return None
    return Refused(
        refusal.entry_index,
        refusal.required_amount,
        refusal.available_amount,
        refusal.reserved_amount,
        RefusalReason(refusal.reason),
    )


def _in_transit_id(lower_bound: int, peer: int) -> int:
    return system_account_id(lower_bound, (peer + 1) << 10)

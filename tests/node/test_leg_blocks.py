"""Blocks of transfers between shards do what their items do one by one: every row and answer."""

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from random import Random
from unittest.mock import patch

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger_core.accounts import AccountType, TransactionStatus
from ledger_core.commands import (
    NO_OVERDRAFT,
    ApplyTransfers,
    CloseAccount,
    Command,
    CommitTransfers,
    CreateAccount,
    CreateTransaction,
    DeliveredTransfers,
    FreezeAccount,
    Limits,
    Prepare,
    PrepareTransfers,
    Refused,
    Source,
    TransferPart,
    TransfersBetweenShards,
    TransferText,
    UnfreezeAccount,
)
from ledger_core.errors import RefusalReason
from ledger_core.ids import shard_key, system_account_id
from ledger_core.ledgers import USD, Currency
from ledger_core.results import Result, TransfersView
from ledger_core.transfer_legs import leg_command, legs_fault, prepare_of
from ledger_node import leg_rules, state_machine
from ledger_node.records import TransactionRecord
from ledger_node.store import ShardRange
from ledger_node.store_tables import STATE_TABLES
from tests.node.shard import Shard

S = TransactionStatus
EUR = Currency("EUR", 2)
HERE = ShardRange(1, 1 << 30, (1 << 31) - 1)
PEERS = (0, 2, 300)


def ids(*, here: bool) -> Iterator[int]:
    number = 0
    while True:
        number += 1
        if (HERE.lower_bound <= shard_key(number) <= HERE.upper_bound) == here:
            yield number


_here, _away = ids(here=True), ids(here=False)
OWN = [next(_here) for _ in range(10)]
NOBODY = next(_here)
AWAY = [next(_away) for _ in range(6)]


class Twins:
    """Two shards with the same log; one does blocks as arrays, the other item by item."""

    def __init__(self, path: Path, rng: Random) -> None:
        self.rng = rng
        self.arrays, self.items = Shard(path / "arrays", HERE), Shard(path / "items", HERE)
        self.requests = [uuid.UUID(int=rng.getrandbits(128)) for _ in range(40)]
        self.prepared: list[tuple[int, uuid.UUID]] = []
        """Homes and requests that this shard may be told of."""
        self.numbers = [1]
        self.decided: dict[tuple[int, uuid.UUID], tuple[S, Refused | None]] = {}

    def both(self, *commands: Command) -> list[Result]:
        results = self.arrays.apply(*commands)
        with (
            patch.object(state_machine, "prepare_transfers", leg_rules.prepare_each),
            patch.object(state_machine, "commit_transfers", leg_rules.commit_each),
            patch.object(state_machine, "apply_transfers", leg_rules.apply_each),
            patch.object(state_machine, "delivered_transfers", leg_rules.deliver_each),
        ):
            assert self.items.apply(*commands) == results
        self.compare()
        return results

    def compare(self) -> None:
        """All rows are the same; the journal's chain covers commands, outcomes and entries."""
        one, other = self.arrays.store.shard(1), self.items.store.shard(1)
        assert one.meta() == other.meta()
        for name in STATE_TABLES:
            assert rows_of(one, name) == rows_of(other, name), name

    def open_accounts(self) -> None:
        kinds = [NO_OVERDRAFT, NO_OVERDRAFT, Limits(None, None), Limits(-50, 300)]
        opened: list[Command] = [
            CreateAccount(
                account,
                "other" if place == 9 else "main",
                f"open {account}",
                type=AccountType(1 + place % 5),
                currency=EUR if place == 8 else USD,
                code=str(place % 2),
                limits=kinds[place % 4],
            )
            for place, account in enumerate(OWN)
        ]
        funds = [
            CreateTransaction(account, 200, "", True, f"fund {account}") for account in OWN[:6]
        ]
        ends = [FreezeAccount(OWN[6], "freeze"), CloseAccount(OWN[7], "close")]
        hold = CreateTransaction(OWN[1], -150, "", False, "hold")
        self.both(*opened, *funds, *ends, hold)

    # Steps

    def columns(self, count: int) -> dict[str, object]:
        """Columns with accounts of this shard first; a few of them take nothing."""
        rng = self.rng
        own = [rng.choice(OWN[:6]) for _ in range(count)]
        if rng.random() < 0.4:
            own[rng.randrange(count)] = rng.choice((*OWN[6:], NOBODY))
        if rng.random() < 0.1:
            own[rng.randrange(count)] = system_account_id(HERE.lower_bound, 0)
        amounts = [rng.choice((1, 5, rng.randint(1, 60), rng.randint(1, 300))) for _ in own]
        if rng.random() < 0.05:
            amounts[0] = 2**61
        requests = rng.sample(self.requests, min(count, len(self.requests)))
        if rng.random() < 0.1:
            requests[-1] = requests[0]
        count = len(requests)
        one_of = [TransferText("note", "order 7", {"k": "v"}), TransferText("other")]
        ends = sorted({rng.randint(1, count) for _ in range(rng.choice((1, 3)))} | {count})
        parts = [
            TransferPart(
                end - start, rng.choice(("", "alice", "bob" * 40)), Source(rng.choice(("", "job")))
            )
            for start, end in zip([0, *ends], ends, strict=False)
        ]
        return {
            "own": b"".join(a.to_bytes(8, "little") for a in own[:count]),
            "away": b"".join(rng.choice(AWAY).to_bytes(8, "little") for _ in requests),
            "peers": b"".join(rng.choice(PEERS).to_bytes(2, "little") for _ in requests),
            "amounts": b"".join(a.to_bytes(8, "little") for a in amounts[:count]),
            "request_ids": b"".join(r.bytes for r in requests),
            "forms": bytes(rng.choice((1, 2)) for _ in requests),
            "texts": {i: rng.choice(one_of) for i in range(count) if rng.random() < 0.1},
            "parts": parts if rng.random() < 0.5 else [],
        }

    def prepare(self) -> PrepareTransfers:
        c = self.columns(self.rng.choice((1, 3, 12, 40)))
        block = PrepareTransfers(
            OWN[0],
            "main",
            self.rng.choice((USD, USD, USD, EUR)),
            c["forms"],  # type: ignore[arg-type]
            c["away"],  # type: ignore[arg-type]
            c["own"],  # type: ignore[arg-type]
            c["amounts"],  # type: ignore[arg-type]
            c["request_ids"],  # type: ignore[arg-type]
            c["peers"],  # type: ignore[arg-type]
            c["texts"],  # type: ignore[arg-type]
            c["parts"],  # type: ignore[arg-type]
        )
        for index in range(len(block.forms)):
            home = int.from_bytes(block.first_accounts[8 * index : 8 * index + 8], "little")
            request = uuid.UUID(bytes=block.request_ids[16 * index : 16 * index + 16])
            self.prepared.append((home, request))
        return block

    def commit(self) -> CommitTransfers:
        c = self.columns(self.rng.choice((1, 3, 12, 40)))
        count = len(c["forms"])  # type: ignore[arg-type]
        votes = [
            Refused(1, 7, 3),
            Refused(1, reason=RefusalReason.ACCOUNT_FROZEN),
            Refused(0, reason=RefusalReason.ABANDONED),
        ]
        return CommitTransfers(
            OWN[0],
            "main",
            self.rng.choice((USD, USD, USD, EUR)),
            c["forms"],  # type: ignore[arg-type]
            c["own"],  # type: ignore[arg-type]
            c["away"],  # type: ignore[arg-type]
            c["amounts"],  # type: ignore[arg-type]
            c["request_ids"],  # type: ignore[arg-type]
            c["peers"],  # type: ignore[arg-type]
            {i: self.rng.choice(votes) for i in range(count) if self.rng.random() < 0.15},
            c["texts"],  # type: ignore[arg-type]
            c["parts"],  # type: ignore[arg-type]
        )

    def status_here(self, home: int, request: uuid.UUID) -> S | None:
        tables = self.items.store.shard(1)
        row = tables.find_request(b"p" + request.bytes + b"a" + home.to_bytes(8))
        if row is None or not row.number:
            return None
        record = tables.find_transaction(row.number)
        assert record is not None
        return record.status

    def decide(self) -> ApplyTransfers | None:
        """Decisions on what was prepared in earlier log entries, some of them repeats."""
        rng = self.rng
        known = [*dict.fromkeys(self.prepared)]
        if not known:
            return None
        chosen = rng.sample(known, rng.randint(1, len(known)))
        if rng.random() < 0.1:
            chosen.append(chosen[0])
        refusals = [Refused(0, 9, 4, 1), Refused(1, reason=RefusalReason.ABANDONED)]
        decisions = []
        for key in chosen:
            if key not in self.decided:
                yes = self.status_here(*key) is S.UNDECIDED and rng.random() < 0.8
                why = None if yes else rng.choice(refusals)
                status = S.SETTLED
                if why is not None:
                    status = S.REJECTED if why.entry_index else S.INSUFFICIENT_FUNDS
                self.decided[key] = status, why
            decisions.append(self.decided[key])
        return ApplyTransfers(
            OWN[0],
            "main",
            b"".join(home.to_bytes(8, "little") for home, _ in chosen),
            b"".join(request.bytes for _, request in chosen),
            b"".join(rng.choice((5, 2**50)).to_bytes(8, "little") for _ in chosen),
            bytes(status for status, _ in decisions),
            {i: why for i, (_, why) in enumerate(decisions) if why is not None},
        )

    def deliver(self) -> DeliveredTransfers:
        chosen = [self.rng.choice(self.numbers) for _ in range(self.rng.choice((1, 20)))]
        column = b"".join(number.to_bytes(8, "little") for number in chosen)
        return DeliveredTransfers(OWN[0], "main", column)

    def single(self) -> Command:
        """Something else that meets the same accounts and requests."""
        rng, block = self.rng, self.prepare()
        prepared = prepare_of(block, 0, 1)
        match rng.randrange(5):
            case 0:
                return prepared
            case 1:
                entry = prepared.transaction.entries
                pending = msgspec.structs.replace(
                    prepared.transaction, entries=[*entry, *entry], settled=False
                )
                return Prepare(OWN[0], prepared.origin, b"x" * 16, 0, pending)
            case 2:
                return leg_command(self.commit(), 0, 1)
            case 3:
                return CreateTransaction(rng.choice(OWN[:6]), 50, "", True, str(rng.random()))
            case _:
                return rng.choice((FreezeAccount, UnfreezeAccount))(OWN[4], str(rng.random()))

    def step(self) -> list[Command]:
        makers = (self.prepare, self.prepare, self.commit, self.commit, self.deliver, self.single)
        chosen = [self.rng.choice(makers)() for _ in range(self.rng.choice((1, 1, 2, 3)))]
        # What no gateway sends is not for these rules.
        return [
            command
            for command in chosen
            if not isinstance(command, TransfersBetweenShards) or legs_fault(command, 1) is None
        ]


def rows_of(tables: object, name: str) -> dict[bytes, object]:
    """The rows of a table, decoded where two encodings may mean the same."""
    database = tables.databases.state[tables.generation][name]  # type: ignore[attr-defined]
    found: dict[bytes, object] = {}
    with tables.txn.cursor(database) as cursor:  # type: ignore[attr-defined]
        for key, value in cursor:
            row: object = bytes(value)
            if name == "transactions":
                row = TransactionRecord.decoded(value[:-4])
            elif name == "undecided":
                row = msgspec.msgpack.decode(value[:-4], type=Prepare)
            found[bytes(key)] = row
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_any_blocks_do_what_their_items_do(seed: int) -> None:
    rng = Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        twins = Twins(Path(folder), rng)
        twins.open_accounts()
        for _ in range(rng.choice((2, 6, 10))):
            for result in twins.both(*twins.step()):
                if isinstance(result, TransfersView) and result.first_number:
                    count = len(result.statuses) - result.statuses.count(0)
                    twins.numbers += range(result.first_number, result.first_number + count)
            if (decided := twins.decide()) is not None and rng.random() < 0.7:
                twins.both(decided)
        for shard in (twins.arrays, twins.items):
            assert shard.audit().faults == []
            shard.close()

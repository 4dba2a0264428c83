"""Blocks of transfers between shards do what their items do one by one: every row and answer."""

import contextlib
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from unittest.mock import patch

import msgspec
import numpy as np
import pytest
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
from ledger_core.results import Result, TransfersView, TransferVotesView
from ledger_core.transfer_legs import leg_command, legs_fault, prepare_of
from ledger_node import leg_blocks, leg_decisions, leg_rules, state_machine
from ledger_node.leg_records import find_undecided, participant_template
from ledger_node.records import EntryRecord, TransactionRecord
from ledger_node.store import ShardRange
from ledger_node.store_tables import STATE_TABLES
from tests.node.shard import Shard
from tests.node.test_deep_audit import audited
from tests.node.test_replay import fresh, replay_all, replays, rows

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


@contextlib.contextmanager
def one_by_one() -> Iterator[None]:
    """Blocks are done item by item."""
    with (
        patch.object(state_machine, "prepare_transfers", leg_rules.prepare_each),
        patch.object(state_machine, "commit_transfers", leg_rules.commit_each),
        patch.object(state_machine, "apply_transfers", leg_rules.apply_each),
        patch.object(state_machine, "delivered_transfers", leg_rules.deliver_each),
    ):
        yield


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
        with one_by_one():
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
        count = len(requests)
        away = [rng.choice(AWAY) for _ in requests]
        if rng.random() < 0.2:
            # The same request twice, asking for the same or not.
            requests[-1], own[count - 1], away[-1] = requests[0], own[0], away[0]
            amounts[count - 1] = rng.choice((amounts[0], amounts[count - 1]))
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
            "away": b"".join(a.to_bytes(8, "little") for a in away),
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

    def number_here(self, home: int, request: uuid.UUID) -> int:
        tables = self.items.store.shard(1)
        row = tables.find_request(b"p" + request.bytes + b"a" + home.to_bytes(8))
        return 0 if row is None else row.number

    def status_here(self, home: int, request: uuid.UUID) -> S | None:
        number = self.number_here(home, request)
        if not number:
            return None
        record = self.items.store.shard(1).find_transaction(number)
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
        # Where the votes said that they are: right, or a lie, or not at all.
        numbers = [self.number_here(*key) for key in chosen]
        if rng.random() < 0.3:
            numbers[rng.randrange(len(numbers))] = rng.choice((*numbers, *self.numbers, 0, 2**63))
        return ApplyTransfers(
            OWN[0],
            "main",
            b"".join(home.to_bytes(8, "little") for home, _ in chosen),
            b"".join(request.bytes for _, request in chosen),
            b"".join(rng.choice((5, 2**50)).to_bytes(8, "little") for _ in chosen),
            bytes(status for status, _ in decisions),
            {i: why for i, (_, why) in enumerate(decisions) if why is not None},
            b"".join(n.to_bytes(8, "little") for n in numbers) if rng.random() < 0.8 else b"",
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
                entries = prepared.transaction.entries
                other = msgspec.structs.replace(
                    prepared.transaction,
                    entries=[*entries, *entries] if rng.random() < 0.5 else entries,
                    settled=rng.random() < 0.5,
                    effective_time_us=rng.choice((0, 5)),
                )
                return Prepare(OWN[0], prepared.origin, b"x" * 16, 0, other)
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
                row = value[:-4] and msgspec.msgpack.decode(value[:-4], type=Prepare)
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
        if seed % 4 == 0:
            target = fresh(twins.arrays, Path(folder))
            replay_all(target, replays(twins.arrays), rng)
            assert rows(target) == rows(twins.arrays)
            target.close()
        for shard in (twins.arrays, twins.items):
            assert shard.audit().faults == []
            shard.close()
        assert audited(twins.arrays.path, 1).faults == []


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[Twins]:
    twins = Twins(tmp_path, Random(1))
    twins.open_accounts()
    yield twins
    twins.arrays.close()
    twins.items.close()


def plain_prepare(requests: list[uuid.UUID], parts: list[TransferPart]) -> PrepareTransfers:
    count = len(requests)
    return PrepareTransfers(
        OWN[0],
        "main",
        USD,
        bytes([1, 2] * count)[:count],
        AWAY[0].to_bytes(8, "little") * count,
        OWN[2].to_bytes(8, "little") * count,
        (3).to_bytes(8, "little") * count,
        b"".join(request.bytes for request in requests),
        (0).to_bytes(2, "little") * count,
        parts=parts,
    )


def settled(prepared: PrepareTransfers) -> ApplyTransfers:
    count = len(prepared.forms)
    return ApplyTransfers(
        OWN[0],
        "main",
        prepared.first_accounts,
        prepared.request_ids,
        b"".join((7 + i).to_bytes(8, "little") for i in range(count)),
        bytes([S.SETTLED]) * count,
    )


def test_a_counter_that_might_overflow_is_judged_item_by_item(twins: Twins) -> None:
    """Of an account without a floor, whose credits or debits come near 2**63."""
    large = (2**61).to_bytes(8, "little")
    found = []
    for place in range(10):
        (request,) = twins.requests[place : place + 1]
        prepared = msgspec.structs.replace(plain_prepare([request], []), amounts=large)
        if place % 2:
            committed = CommitTransfers(
                OWN[0],
                "main",
                USD,
                b"\2",
                OWN[2].to_bytes(8, "little"),
                prepared.first_accounts,
                large,
                prepared.request_ids,
                prepared.home_shards,
            )
            (view,) = twins.both(committed)
            assert isinstance(view, TransfersView)
            found.append(view.statuses == bytes([S.SETTLED]))
        else:
            (votes,) = twins.both(prepared)
            assert isinstance(votes, TransferVotesView)
            found.append(not votes.refused)
    assert found == [True] * 3 + [False] * 7


def test_what_is_where_the_votes_said_is_not_searched_for(twins: Twins) -> None:
    """Whoever asked. Where a block names others than it means, all of it is searched for."""
    first, second, third = (plain_prepare(twins.requests[i : i + 6], PARTS) for i in (0, 6, 12))
    twins.both(first)
    told = []
    for block in (second, third):
        (votes,) = twins.both(block)
        assert isinstance(votes, TransferVotesView)
        told.append(msgspec.structs.replace(settled(block), prepared=votes.numbers))
        assert twins.both(block) == [TransferVotesView({}, bytes(48))]
    with patch.object(leg_decisions, "_read_requested", side_effect=AssertionError):
        twins.arrays.apply(told[0])
    with one_by_one():
        twins.items.apply(told[0])
    twins.compare()
    for lies in (told[0].prepared, first.first_accounts, told[1].prepared[:40] + bytes(8)):
        twins.both(msgspec.structs.replace(told[1], prepared=lies))
    # What the lies named is as it was, and what the block meant is settled: only the first are not.
    left = twins.arrays.store.shard(1).undecided_numbers()
    assert left == [number - 6 for number in np.frombuffer(told[0].prepared, "<u8").tolist()]


PARTS = [TransferPart(2, "alice", Source("job", "10.0.0.1")), TransferPart(3), TransferPart(1, "x")]


def test_plain_blocks_are_not_done_item_by_item(twins: Twins) -> None:
    """Once there was money between the two shards; whoever asked, and however many did."""
    first, second, third = (twins.requests[i : i + 6] for i in (0, 6, 12))
    twins.both(plain_prepare(first, []))
    prepared = plain_prepare(second, PARTS)
    committed = CommitTransfers(
        OWN[0],
        "main",
        USD,
        prepared.forms,
        prepared.second_accounts,
        prepared.first_accounts,
        prepared.amounts,
        b"".join(request.bytes for request in third),
        prepared.home_shards,
        parts=PARTS,
    )
    with (
        patch.object(leg_blocks, "prepare_each", side_effect=AssertionError),
        patch.object(leg_blocks, "commit_each", side_effect=AssertionError),
        patch.object(leg_decisions, "apply_each", side_effect=AssertionError),
        patch.object(leg_decisions, "learn_decision", side_effect=AssertionError),
    ):
        twins.arrays.apply(prepared)
        (view,) = twins.arrays.apply(committed)
        twins.arrays.apply(settled(prepared))
    assert isinstance(view, TransfersView)
    assert view.statuses == bytes([S.SETTLED]) * 6
    with one_by_one():
        twins.items.apply(prepared)
        twins.items.apply(committed)
        twins.items.apply(settled(prepared))
    twins.compare()


@pytest.mark.parametrize(
    "change",
    [
        lambda record: setattr(record, "effective_time_us", 5),
        lambda record: setattr(record, "home_number", 3),
        lambda record: setattr(record, "description", "x"),
        lambda record: setattr(record, "settled", False),
        lambda record: setattr(record, "settled_amount", 1),
        lambda record: setattr(record, "metadata", {"k": "v"}),
        lambda record: setattr(record, "reversal_of", 1),
        lambda record: record.states.append(record.states[0]),
        lambda record: record.entries.append(record.entries[1]),
        lambda record: record.clearing.append(record.clearing[0]),
        lambda record: record.states.__setitem__(
            0, msgspec.structs.replace(record.states[0], status=S.PENDING)
        ),
        lambda record: record.entries.__setitem__(
            1, msgspec.structs.replace(record.entries[1], shard_id=0xFFFF)
        ),
    ],
)
def test_only_plain_records_are_recognised(
    twins: Twins, change: Callable[[TransactionRecord], None]
) -> None:
    """Another value in a plain row makes it be decoded, even where no length differs."""
    for requests in (twins.requests[:3], twins.requests[3:6]):
        twins.both(plain_prepare(requests, []))
    tables = twins.arrays.store.shard(1)
    number = tables.meta().next_transaction - 1
    ((_, sealed),) = tables.find_transactions([number.to_bytes(8)])
    row = np.frombuffer(sealed[:-4], np.uint8).reshape(1, -1)
    template = participant_template(0, USD)
    record = TransactionRecord.decoded(sealed[:-4])
    origin = np.frombuffer(record.origin, np.uint8).reshape(1, -1)
    assert find_undecided(template, row, origin) is not None
    assert find_undecided(template, row, origin ^ 1) is None
    # As wide as plain rows are, where numbers are, and everything else as it is changed.
    change(record)
    wide = np.frombuffer(widened(record), np.uint8).reshape(1, -1)
    assert find_undecided(template, wide, origin) is None


def widened(record: TransactionRecord) -> bytes:
    """Encode a record with its numbers as long as in a plain row."""
    marks: dict[bytes, bytes] = {}

    def wide(value: int, size: int) -> int:
        mark = (0x7F5A_0000_0000_0000 if size == 8 else 0x6B00) | len(marks)
        marks[mark.to_bytes(size)] = value.to_bytes(size)
        return mark

    amounts = {entry.amount for entry in (*record.entries, *record.clearing)}
    amount = {value: wide(value, 8) for value in amounts}
    times = {record.effective_time_us, *(state.time_us for state in record.states)}
    time = {value: wide(value, 8) for value in times}
    replace = msgspec.structs.replace

    def entry(old: EntryRecord) -> EntryRecord:
        shard_id = None if old.shard_id is None else wide(old.shard_id, 2)
        account_id = wide(old.account_id, 8)
        return replace(old, account_id=account_id, amount=amount[old.amount], shard_id=shard_id)

    encoded = replace(
        record,
        account_id=wide(record.account_id, 8),
        entries=[entry(old) for old in record.entries],
        clearing=[entry(old) for old in record.clearing],
        states=[replace(state, time_us=time[state.time_us]) for state in record.states],
        effective_time_us=time[record.effective_time_us],
        home_shard_id=wide(record.home_shard_id or 0, 2),
        home_number=wide(record.home_number, 8),
    ).encoded()
    for mark, value in marks.items():
        encoded = encoded.replace(mark, value)
    assert TransactionRecord.decoded(encoded) == record
    return encoded


def test_a_record_that_is_only_encoded_wider_is_recognised(twins: Twins) -> None:
    """Else the test above would find nothing."""
    twins.both(plain_prepare(twins.requests[:3], []))
    tables = twins.items.store.shard(1)
    record = tables.find_transaction(tables.meta().next_transaction - 1)
    assert record is not None
    row = np.frombuffer(widened(record), np.uint8).reshape(1, -1)
    origin = np.frombuffer(record.origin, np.uint8).reshape(1, -1)
    assert find_undecided(participant_template(0, USD), row, origin) is not None

"""A journal that is replayed leads to the same books, or to nothing at all."""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from random import Random

import msgspec
import pytest

from ledger_core.accounts import AccountType, TransactionStatus
from ledger_core.commands import (
    ApplyDecision,
    CancelTransaction,
    ClaimName,
    CloseAccount,
    Command,
    CreateAccount,
    CreateLedger,
    CreateTransaction,
    CreateTransfers,
    EndReplay,
    FreezeAccount,
    Limits,
    ReleaseName,
    Replay,
    ReplayedItem,
    SettleTransaction,
    Source,
    UnfreezeAccount,
    UpdateAccount,
    decode_command,
    encode_batch,
    encode_command,
    routing_id,
)
from ledger_core.errors import Reason
from ledger_core.ids import derive_account_id, shard_key, system_account_id
from ledger_core.ledgers import USD, Currency
from ledger_core.queries import GetAccount
from ledger_core.results import AccountView, Failure, Replayed, Result
from ledger_node.records import JournalRecord, ShardMeta, TransactionRecord
from ledger_node.state_machine import StateMachine
from ledger_node.store_check import refuse_damaged
from ledger_node.store_tables import STATE_TABLES
from tests.node.histories import Histories, Member, facts
from tests.node.history_model import HistoryModel
from tests.node.shard import Shard

S = TransactionStatus
Of = Callable[[JournalRecord, int], bool]


class Busy(Histories):
    """Accounts, ledgers and names change as well, some of it in vain; all where they route to."""

    def open(
        self, shard_id: int, ledger: str, currency: Currency, type_: AccountType, code: str
    ) -> Member:
        for attempt in count():
            request_id = f"{shard_id} {ledger} {currency.code} {type_} {code} {attempt}"
            account_id = derive_account_id(ledger, request_id)
            if self.shard_of(account_id) is self.shards[shard_id]:
                break
        opened = CreateAccount(
            account_id, ledger, request_id, type_, currency, code, request_id, Limits(None)
        )
        self.shards[shard_id].one(opened)
        self.members.append(Member(account_id, shard_id, ledger, currency, type_, code))
        return self.members[-1]

    def shard_of(self, routing: int) -> Shard:
        key = shard_key(routing)
        (found,) = (
            shard
            for shard in self.shards
            if shard.shard.lower_bound <= key <= shard.shard.upper_bound
        )
        return found

    def step(self) -> None:
        if self.random.random() < 0.75:
            super().step()
            return
        member, request_id = self.random.choice(self.members), self.request_id()
        account_id = member.account_id
        commands: list[Command] = [
            FreezeAccount(account_id, request_id, "boss", Source("c", "p")),
            UnfreezeAccount(account_id, request_id),
            UnfreezeAccount(account_id, request_id),
            UpdateAccount(account_id, request_id, 0, limits=Limits(-100, 500)),
            UpdateAccount(account_id, request_id, 1, metadata={"a": request_id}),
            FreezeAccount(account_id, "always the same"),
            CloseAccount(account_id, request_id),
            CreateLedger(f"ledger {self.random.randrange(3)}", request_id, "", [USD]),
            ClaimName("main", f"name {self.random.randrange(3)}", account_id, request_id),
            ReleaseName("main", f"name {self.random.randrange(3)}", account_id, request_id),
            CreateTransaction(account_id, 5, "", True, "always the same"),
            CreateTransaction(account_id, self.random.randrange(1, 9), "", True, "same"),
        ]
        command = self.random.choice(commands)
        self.shard_of(routing_id(command)).one(command)


def journal(shard: Shard) -> list[tuple[int, JournalRecord]]:
    with shard.store.read() as view:
        return list(view.shard(shard.shard.id).journal_after(0))


def meta(shard: Shard) -> ShardMeta:
    with shard.store.read() as view:
        return view.shard(shard.shard.id).meta()


def replays(shard: Shard, keep: Of = lambda _record, _place: True) -> list[Replay]:
    """What an importer sends of a shard's journal."""
    found: list[Replay] = []
    routing = system_account_id(shard.shard.lower_bound, 0)
    for number, record in journal(shard):
        items = [
            ReplayedItem(item.command, item.outcome, item.number)
            for place, item in enumerate(record.items)
            if keep(record, place)
        ]
        if items:
            previous = found[-1].number if found else 0
            found.append(Replay(routing, number, record.time_us, items, previous))
    return found


def fresh(shard: Shard, folder: Path) -> Shard:
    return Shard(folder / f"fresh {shard.shard.id}", shard.shard)


def replay_all(target: Shard, commands: Sequence[Replay], random: Random) -> None:
    """In batches, some of which come twice, as when an answer was lost."""
    place = 0
    while place < len(commands):
        batch = commands[place : place + random.randint(1, 5)]
        place += len(batch)
        for _ in range(random.choice([1, 1, 1, 2])):
            results = target.apply(*batch, time_us=2**50)
            assert [type(result) for result in results] == [Replayed] * len(batch), results
            # A leader looks whether something is to expire.
            target.apply(time_us=2**50)


def rows(shard: Shard) -> dict[str, list[tuple[bytes, object]]]:
    """All rows of state; journal entries without the index of the log entry."""
    found: dict[str, list[tuple[bytes, object]]] = {}
    with shard.store.read() as view:
        tables = view.shard(shard.shard.id)
        state = tables.databases.state[tables.generation]
        for name in STATE_TABLES:
            with tables.txn.cursor(state[name]) as cursor:
                found[name] = [(bytes(key), bytes(value)) for key, value in cursor]
        found["journal"] = [
            (number.to_bytes(8), msgspec.structs.replace(record, index=0))
            for number, record in tables.journal_after(0)
        ]
    return found


@pytest.fixture(params=range(3))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Busy]:
    world = Busy(tmp_path / "world", request.param)
    world.run(220)
    if request.param:
        # Else transactions are left on their way.
        world.drive()
    yield world
    world.close()


def test_a_whole_journal_leads_to_the_same_rows_and_links(world: Busy, tmp_path: Path) -> None:
    for shard in world.shards:
        target = fresh(shard, tmp_path)
        replay_all(target, replays(shard), Random(1))
        assert rows(target) == rows(shard)
        ours, theirs = meta(target), meta(shard)
        assert ours.chain_hash == theirs.chain_hash
        assert (ours.replayed, ours.importing, ours.has_own) == (
            theirs.next_journal - 1,
            True,
            False,
        )
        theirs.applied_index, theirs.has_own = ours.applied_index, ours.has_own
        theirs.replayed, theirs.importing = ours.replayed, ours.importing
        theirs.time_us = ours.time_us
        assert ours == theirs
        target.close()


def of_these(records: dict[int, TransactionRecord], account_ids: set[int]) -> Of:
    """Keep the items that are of some accounts and transactions."""
    origins = {record.origin for record in records.values()}

    def keep(record: JournalRecord, place: int) -> bool:
        item = record.items[place]
        if not item.command or item.number:
            return (item.number or msgspec.msgpack.decode(item.outcome)[0]) in records
        command = decode_command(item.command)
        if isinstance(command, ApplyDecision):
            return command.origin in origins
        is_name = isinstance(command, ClaimName | ReleaseName)
        return not is_name and routing_id(command) in account_ids

    return keep


def test_one_ledger_alone_has_the_same_ids_times_and_balances(world: Busy, tmp_path: Path) -> None:
    """Everything else is skipped, numbers are not: transaction ids are made of them."""
    for shard in world.shards:
        with facts(shard) as known:
            books = known.meta.books
            records = {
                n: r for n, r in known.transactions.items() if books[r.book].ledger == "other"
            }
        ids = {m.account_id for m in world.members if m.ledger == "other"}

        target = fresh(shard, tmp_path)
        replay_all(target, replays(shard, of_these(records, ids)), Random(2))
        for account_id in ids:
            ours, theirs = (s.ask(GetAccount(account_id)) for s in (target, shard))
            assert ours == theirs
        with facts(target) as imported:
            assert imported.transactions.keys() == records.keys()
            for number, record in records.items():
                assert imported.transactions[number].states == record.states
                assert imported.transactions[number].effective_time_us == record.effective_time_us
            HistoryModel(imported.tables).check(Random(3))
            last = imported.meta.next_transaction - 1
            assert imported.meta.skipped_transactions == last - len(records)
        refuse_damaged(target.path)
        target.close()


# What differs


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Shard]:
    """Opens an account, funds it, reserves, settles; something expires; something fails."""
    shard = Shard(tmp_path / "source")
    account_id = ALICE
    shard.one(CreateAccount(account_id, "main", "alice"))
    shard.apply(
        CreateTransaction(account_id, 50, "", True, "a"),
        CreateTransaction(account_id, -20, "", False, "b"),
    )
    expires = shard.time_us + 10_000
    shard.one(CreateTransaction(account_id, -9, "", False, "c", expire_time_us=expires))
    shard.one(SettleTransaction(account_id, 2, "s"))
    shard.apply(CancelTransaction(account_id, 2, "x"), time_us=expires)
    yield shard
    shard.close()


ALICE = derive_account_id("main", "alice")


def failure(target: Shard, command: Replay) -> Failure:
    """Apply what is refused: nothing but the applied index may change."""
    before, before_meta = rows(target), meta(target)
    result = target.one(command)
    assert isinstance(result, Failure)
    assert rows(target) == before
    before_meta.applied_index += 1
    assert meta(target) == before_meta
    return result


def encoded(outcome: object) -> bytes:
    return msgspec.msgpack.encode(outcome)


TAMPERED: list[tuple[str, int, int, dict[str, object]]] = [
    # (what is said, journal entry, item, what is different)
    (r"not to \[7,0\]", 2, 0, {"outcome": encoded((7, 0))}),
    (r"not to \"ACCOUNT_CLOSED\"", 2, 1, {"outcome": encoded("ACCOUNT_CLOSED")}),
    (r"not to \"done\"", 4, 0, {"outcome": encoded("done")}),
    ("not to c1", 4, 0, {"outcome": b"\xc1"}),
    ("took transaction number 2, not 0", 2, 1, {"number": 0}),
    (r"led to \[3,0\], not to \[2,0\]", 2, 1, {"number": 3}),
    ("the next one here is 2", 2, 1, {"number": 1}),
    ("took transaction number 0, not 9", 4, 0, {"number": 9}),
    ("is no transaction number", 2, 0, {"number": 2**63}),
    ("cannot be applied here", 2, 1, {"command": b"nonsense"}),
    ("cannot be applied here", 2, 1, {"command": encode_command(EndReplay(0)) + b"!"}),
    ("is a step of an import", 2, 1, {"command": encode_command(EndReplay(ALICE))}),
    (
        "is no transaction: it amount is 0",
        2,
        1,
        {"command": encode_command(CreateTransaction(ALICE, 0, "", True, "b"))},
    ),
    (
        "is no block of transfers: it columns differ in length",
        2,
        1,
        {"command": encode_command(CreateTransfers(ALICE, "main", USD, b"\1", b"", b"", b"", b""))},
    ),
    (
        r"led to \"TRANSACTION_NOT_FOUND\"",
        4,
        0,
        {"command": encode_command(SettleTransaction(ALICE, 77, "s"))},
    ),
    ("transaction 2 is not pending", 5, 0, {"outcome": encoded((2, 1))}),
    ("transaction 99 is not pending", 5, 0, {"outcome": encoded((99, 1))}),
    (r"led to \[3,1\], not to \[3,2\]", 5, 0, {"outcome": encoded((3, 2))}),
    ("cannot be applied here", 5, 0, {"outcome": encoded("x")}),
]


@pytest.mark.parametrize(("text", "number", "place", "change"), TAMPERED)
def test_what_leads_to_something_else_leaves_no_trace(
    source: Shard, tmp_path: Path, text: str, number: int, place: int, change: dict[str, object]
) -> None:
    commands = replays(source)
    items = list(commands[number - 1].items)
    items[place] = msgspec.structs.replace(items[place], **change)
    target = fresh(source, tmp_path)
    replay_all(target, commands[: number - 1], Random(1))
    refused = failure(target, msgspec.structs.replace(commands[number - 1], items=items))
    assert refused.reason is Reason.REPLAY_DIFFERS
    assert f"entry {number} of the journal, item {place}: " in refused.message
    assert re.search(text, refused.message), refused.message
    # The true one still goes.
    replay_all(target, commands[number - 1 :], Random(1))
    assert meta(target).chain_hash == meta(source).chain_hash
    target.close()


def test_another_order_is_noticed(source: Shard, tmp_path: Path) -> None:
    commands = replays(source)
    target = fresh(source, tmp_path)
    replay_all(target, commands[:2], Random(1))
    assert failure(target, commands[3]).reason is Reason.JOURNAL_GAP
    early = msgspec.structs.replace(commands[2], time_us=1)
    assert failure(target, early).reason is Reason.REPLAY_DIFFERS
    target.close()


def test_an_entry_that_was_replayed_is_done(source: Shard, tmp_path: Path) -> None:
    commands = replays(source)
    target = fresh(source, tmp_path)
    replay_all(target, commands, Random(1))
    link = meta(target).chain_hash
    assert target.one(commands[1]) == Replayed(2, link)
    assert meta(target).chain_hash == link
    target.close()


def test_what_is_of_another_shard_is_not_applied(world: Busy, tmp_path: Path) -> None:
    target = fresh(world.shards[0], tmp_path)
    (first, *_) = replays(world.shards[1])
    refused = failure(target, first)
    assert (refused.reason, "is not of shard 0" in refused.message) == (Reason.REPLAY_DIFFERS, True)
    target.close()


def test_a_shard_that_has_done_something_itself_takes_no_journal(
    source: Shard, tmp_path: Path
) -> None:
    commands = replays(source)
    target = fresh(source, tmp_path)
    replay_all(target, commands[:2], Random(1))
    target.one(CreateTransaction(ALICE, 1, "", True, "own"))
    refused = failure(target, commands[2])
    assert refused.reason is Reason.JOURNAL_NOT_EMPTY
    assert isinstance(target.one(commands[0]), Replayed)
    target.close()


def test_a_log_entry_may_mix_them(source: Shard, tmp_path: Path) -> None:
    """Each replayed entry is an entry of the journal, a run of others is one."""
    first, second, *_ = replays(source)
    target = fresh(source, tmp_path)
    own = [CreateTransaction(ALICE, n, "", True, f"own {n}") for n in (1, 2)]
    results = target.apply(first, second, *own, first, time_us=5_000_000)
    assert [type(result).__name__ for result in results] == [
        "Replayed",
        "Replayed",
        "TransactionView",
        "TransactionView",
        "Replayed",
    ]
    assert [len(record.items) for _, record in journal(target)] == [1, 2, 2]
    assert [record.time_us for _, record in journal(target)] == [
        first.time_us,
        second.time_us,
        5_000_000,
    ]
    with target.store.read() as view:
        HistoryModel(view.shard(0)).check(Random(1))
    target.close()


# While an import is under way, and at its end


def apply(target: Shard, *commands: Replay | EndReplay) -> tuple[list[Result], StateMachine]:
    tables = target.store.shard(target.shard.id)
    machine = StateMachine(tables, target.shard.id)
    payload = encode_batch(2**50, [encode_command(command) for command in commands])
    results = machine.apply(tables.meta().applied_index + 1, payload)
    target.store.commit()
    return results, machine


def test_nothing_goes_on_by_itself_before_the_import_ends(world: Busy, tmp_path: Path) -> None:
    """Neither what expires nor what is on its way between shards; then all of it does."""
    for shard in world.shards:
        target = fresh(shard, tmp_path)
        for command in replays(shard):
            _, machine = apply(target, command)
            assert machine.take_unfinished() == ([], [])
            count = meta(target).next_journal
            apply(target)
            assert meta(target).next_journal == count
        with target.store.read() as view:
            tables = view.shard(shard.shard.id)
            unfinished = tables.in_flight_numbers(), tables.undecided_numbers()
            numbers = [number for _, number in tables.expirations_until(2**50)]
            due = any(
                (record := tables.find_transaction(number)) and record.status is S.PENDING
                for number in numbers
            )
        (result,), machine = apply(target, EndReplay(system_account_id(shard.shard.lower_bound, 0)))
        ended = meta(target)
        assert result == Replayed(ended.replayed, ended.chain_hash)
        assert machine.take_unfinished() == unfinished
        assert not ended.importing
        apply(target)
        assert meta(target).next_journal == ended.next_journal + due
        target.close()


def test_a_command_of_its_own_ends_an_import_too(source: Shard, tmp_path: Path) -> None:
    target = fresh(source, tmp_path)
    replay_all(target, replays(source)[:3], Random(1))
    assert meta(target).importing
    target.one(CreateTransaction(ALICE, 1, "", True, "own"))
    assert not meta(target).importing
    target.close()


def test_the_end_of_no_import_is_nothing(source: Shard) -> None:
    before = meta(source)
    result = source.one(EndReplay(ALICE))
    assert result == Replayed(0, before.chain_hash)
    before.applied_index += 1
    assert meta(source) == before


def test_an_imported_account_lives_on(source: Shard, tmp_path: Path) -> None:
    """Repeats of requests from before the import are known, too."""
    target = fresh(source, tmp_path)
    replay_all(target, replays(source), Random(1))
    target.one(EndReplay(ALICE))
    opened = target.one(CreateAccount(ALICE, "main", "alice"))
    assert isinstance(opened, AccountView)
    repeated = target.transaction(CreateTransaction(ALICE, 50, "", True, "a"))
    assert (repeated.number, repeated.status) == (1, S.SETTLED)
    new = target.transaction(CreateTransaction(ALICE, 50, "", True, "new"))
    assert new.number == meta(source).next_transaction
    target.close()

"""The life of an account: who did what, what changed, and what was refused."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ledger_core.accounts import AccountEventKind, Direction
from ledger_core.commands import (
    CloseAccount,
    CreateAccount,
    CreateTransaction,
    Decide,
    Entry,
    FreezeAccount,
    Limits,
    Source,
    UnfreezeAccount,
    UpdateAccount,
)
from ledger_core.errors import Reason, RefusalReason
from ledger_core.ids import derive_account_id, system_account_id
from ledger_core.ledgers import USD
from ledger_core.results import Failure
from ledger_node.records import AccountEventRecord
from tests.node.several_shards import World
from tests.node.shard import Shard

ACCOUNT, OTHER = derive_account_id("main", "alice"), derive_account_id("main", "bob")
SOURCE = Source("work 1", "10.0.0.1")
OPEN = CreateAccount(ACCOUNT, "main", "alice", actor="opener", source=SOURCE)

K = AccountEventKind


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    shard = Shard(tmp_path / "shard")
    shard.one(OPEN)
    shard.one(CreateAccount(OTHER, "main", "bob"))
    yield shard
    shard.close()


def events(shard: Shard, account_id: int = ACCOUNT) -> list[AccountEventRecord]:
    """Oldest first."""
    with shard.store.read() as view:
        tables = view.shard(shard.shard.id)
        slot = tables.find_slot(account_id)
        assert slot is not None
        found = [event for _, _, event in tables.account_events_before(slot, 2**60, 0)]
    return found[::-1]


def newest(shard: Shard, account_id: int = ACCOUNT) -> AccountEventRecord:
    return events(shard, account_id)[-1]


def kinds(shard: Shard, account_id: int = ACCOUNT) -> list[AccountEventKind]:
    return [event.kind for event in events(shard, account_id)]


def who(event: AccountEventRecord) -> tuple[str, str, str, str]:
    return event.request_id, event.actor, event.correlation_id, event.peer


def test_an_account_is_opened_by_someone(shard: Shard) -> None:
    (event,) = events(shard)
    assert event.kind is K.OPENED
    assert who(event) == ("alice", "opener", "work 1", "10.0.0.1")
    assert event.time_us == shard.time_us - 1


def test_every_change_says_what_was_before_and_after(shard: Shard) -> None:
    shard.one(
        UpdateAccount(
            ACCOUNT, "u", 0, "till", {"b": "2", "a": "1"}, Limits(None, 2**60), "boss", SOURCE
        )
    )
    event = newest(shard)
    assert (event.kind, who(event)) == (K.UPDATED, ("u", "boss", "work 1", "10.0.0.1"))
    assert event.changes == {
        "name": ('""', '"till"'),
        "metadata": ("{}", '{"a":"1","b":"2"}'),
        "limits": (
            '{"maximum":null,"minimum":"0"}',
            '{"maximum":"1152921504606846976","minimum":null}',
        ),
    }
    # What stays as it is, is no change.
    shard.one(UpdateAccount(ACCOUNT, "u2", 1, "till", {"c": "3"}))
    assert newest(shard).changes == {"metadata": ('{"a":"1","b":"2"}', '{"c":"3"}')}


def test_states_are_changes(shard: Shard) -> None:
    for kind, command in (
        (K.FROZEN, FreezeAccount(ACCOUNT, "f", "boss")),
        (K.UNFROZEN, UnfreezeAccount(ACCOUNT, "uf", "boss")),
        (K.CLOSED, CloseAccount(ACCOUNT, "c", "boss")),
    ):
        before = newest(shard).changes.get("state", ("", '"OPEN"'))[1]
        shard.one(command)
        event = newest(shard)
        assert (event.kind, event.actor, event.reason) == (kind, "boss", "")
        assert event.changes["state"][0] == before
    assert newest(shard).changes == {"state": ('"OPEN"', '"CLOSED"')}


@pytest.mark.parametrize(
    ("command", "changes"),
    [
        (UnfreezeAccount(ACCOUNT, "r", "thief", SOURCE), {"state": ('"OPEN"', '"OPEN"')}),
        (
            UpdateAccount(ACCOUNT, "r", 7, "mine", actor="thief", source=SOURCE),
            {"name": ('""', '"mine"')},
        ),
    ],
)
def test_a_change_that_is_refused_is_noted_with_what_was_asked_and_why(
    shard: Shard, command: UpdateAccount | UnfreezeAccount, changes: object
) -> None:
    failure = shard.failure(command)
    event = newest(shard)
    assert (event.kind, who(event)) == (K.CHANGE_REFUSED, ("r", "thief", "work 1", "10.0.0.1"))
    assert (event.reason, event.message) == (failure.reason, failure.message)
    assert event.changes == changes


def test_a_repeat_adds_nothing(shard: Shard) -> None:
    for command in (OPEN, FreezeAccount(ACCOUNT, "f")):
        shard.apply(command, command)
        shard.one(command)
    assert kinds(shard) == [K.OPENED, K.FROZEN]


def test_each_attempt_that_fails_is_noted(shard: Shard) -> None:
    """Failures are not remembered: each is an attempt of its own."""
    for _ in range(3):
        shard.failure(UnfreezeAccount(ACCOUNT, "u"))
    assert kinds(shard) == [K.OPENED, *[K.CHANGE_REFUSED] * 3]


def test_a_request_id_that_is_used_again_is_an_attempt(shard: Shard) -> None:
    shard.one(FreezeAccount(ACCOUNT, "f"))
    assert shard.failure(CloseAccount(ACCOUNT, "f")).reason is Reason.REQUEST_ID_REUSED
    assert newest(shard).reason == Reason.REQUEST_ID_REUSED
    assert newest(shard).changes == {"state": ('"FROZEN"', '"CLOSED"')}
    assert shard.failure(msgspec.structs.replace(OPEN, code="9")).field == "request_id"
    assert (newest(shard).kind, newest(shard).actor) == (K.CHANGE_REFUSED, "opener")
    # A transaction is no change of an account.
    for amount in (5, 6):
        shard.one(CreateTransaction(OTHER, amount, "", True, "t"))
    assert kinds(shard, OTHER) == [K.OPENED]


def test_attempts_on_accounts_of_the_ledger_are_noted_those_on_none_are_not(shard: Shard) -> None:
    external = system_account_id(0, 0)
    assert isinstance(shard.one(FreezeAccount(external, "f")), Failure)
    assert newest(shard, external).reason == Reason.SYSTEM_ACCOUNT
    nobody = derive_account_id("main", "nobody")
    assert shard.failure(FreezeAccount(nobody, "f")).reason is Reason.ACCOUNT_NOT_FOUND


def test_a_transaction_is_refused_because_of_an_account(shard: Shard) -> None:
    entries = [
        Entry(ACCOUNT, Direction.CREDIT, 5, USD, 0),
        Entry(OTHER, Direction.DEBIT, 5, USD, 0),
    ]
    made = shard.transaction(
        CreateTransaction(ACCOUNT, 0, "", True, "t", entries, actor="payer", source=SOURCE)
    )
    assert made.refusal is not None
    event = newest(shard, OTHER)
    assert (event.kind, who(event)) == (
        K.TRANSACTION_REFUSED,
        ("t", "payer", "work 1", "10.0.0.1"),
    )
    assert (event.reason, event.message, event.transaction) == (
        RefusalReason.INSUFFICIENT_FUNDS,
        made.refusal.message,
        made.number,
    )
    assert kinds(shard) == [K.OPENED]


def test_a_refusal_because_of_nobody_is_noted_nowhere(shard: Shard) -> None:
    nobody = derive_account_id("main", "nobody")
    entries = [
        Entry(ACCOUNT, Direction.CREDIT, 5, USD, 0),
        Entry(nobody, Direction.DEBIT, 5, USD, 0),
    ]
    shard.transaction(CreateTransaction(ACCOUNT, 0, "", True, "t", entries))
    assert kinds(shard) == [K.OPENED]


def test_events_of_one_log_entry_keep_their_order(shard: Shard) -> None:
    shard.apply(
        FreezeAccount(ACCOUNT, "1"),
        FreezeAccount(OTHER, "1"),
        FreezeAccount(ACCOUNT, "2"),
        UnfreezeAccount(ACCOUNT, "3"),
    )
    assert kinds(shard) == [K.OPENED, K.FROZEN, K.CHANGE_REFUSED, K.UNFROZEN]


def test_across_shards_the_account_that_refuses_has_the_event(tmp_path: Path) -> None:
    """The home's account, whose transaction it was, had nothing against it."""
    world = World(tmp_path)
    payer, payee = world.entry(0, 0, 500), world.entry(1, 0, -500)
    world.begin(world.create([payer, payee], "t"))
    world.drive()
    event = newest(world.shards[1], payee.account_id)
    assert (event.kind, event.reason, event.request_id) == (
        K.TRANSACTION_REFUSED,
        RefusalReason.INSUFFICIENT_FUNDS,
        "t",
    )
    assert kinds(world.shards[0], payer.account_id) == [K.OPENED]
    world.close()


def test_an_account_whose_shard_could_not_be_asked_learns_why(tmp_path: Path) -> None:
    """It had said yes, but its vote did not reach the home in time."""
    world = World(tmp_path)
    command = world.create([world.entry(0, 0, -5), world.entry(1, 0, 5)], "t")
    world.begin(command)
    world.apply(1, world.prepare_of(command))
    world.apply(0, Decide(command.account_id, 3, []))
    world.drive()
    event = newest(world.shards[1], command.entries[1].account_id)
    assert (event.kind, event.reason) == (
        K.TRANSACTION_REFUSED,
        RefusalReason.SHARD_UNREACHABLE,
    )
    world.close()

"""Transactions of many entries, up to the limit, and with amounts up to what 64 bits hold."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import msgspec
import pytest

from ledger_cluster.channels import EXECUTE_BYTES_MAX
from ledger_core.accounts import AccountType, Direction, TransactionStatus
from ledger_core.commands import (
    DESCRIPTION_CHARACTERS_MAX,
    ENTRIES_MAX,
    METADATA_KEYS_MAX,
    NO_OVERDRAFT,
    CancelTransaction,
    CreateAccount,
    CreateTransaction,
    CreateTransfers,
    Entry,
    Limits,
    Prepare,
    ReverseTransaction,
    SettleTransaction,
    Source,
    UpdateAccount,
    decode_command,
    encode_command,
)
from ledger_core.errors import Reason, RefusalReason
from ledger_core.ids import U64_MAX, derive_account_id, shard_key
from ledger_core.ledgers import USD, Currency
from ledger_core.money import INT64_MAX
from ledger_core.queries import (
    GetAccount,
    GetTransaction,
    ListEntries,
    ListLedgerTransactions,
    ListTransactions,
    TransactionFilter,
)
from ledger_core.results import (
    EntryPage,
    Failure,
    LedgerTransactionPage,
    RefusalView,
    TransactionPage,
    TransactionView,
    TransfersView,
)
from ledger_core.transfers import TransferForm
from ledger_node import books, node, pages, transaction_lists
from tests.node.hosts import Hosts, results
from tests.node.several_shards import World
from tests.node.shard import Shard
from tests.node.test_deep_audit import audited
from tests.node.test_replay import fresh, replay_all, replays, rows

D, C = Direction.DEBIT, Direction.CREDIT
HALF = 2**62


def account(name: str) -> int:
    return derive_account_id("main", name)


def entry(name: str, direction: Direction, amount: int) -> Entry:
    return Entry(account(name), direction, amount, USD, 0)


def create(*entries: Entry, request_id: str = "t", settled: bool = True) -> CreateTransaction:
    return CreateTransaction(entries[0].account_id, 0, "", settled, request_id, list(entries))


def open_account(
    shard: Shard,
    name: str,
    type_: AccountType = AccountType.LIABILITY,
    limits: Limits = NO_OVERDRAFT,
) -> None:
    shard.one(CreateAccount(account(name), "main", name, type_, limits=limits))


def refused(shard: Shard, command: CreateTransaction) -> RefusalView:
    before = shard.audit()
    view = shard.transaction(command)
    after = shard.audit()
    assert (after.sums, after.faults) == (before.sums, [])
    assert view.status.is_refusal
    assert view.refusal is not None
    return view.refusal


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    shard = Shard(tmp_path)
    for name in ("a", "b", "c"):
        open_account(shard, name)
    for name in ("cash", "bank", "till"):
        open_account(shard, name, AccountType.ASSET)
    yield shard
    assert shard.audit().faults == []
    shard.close()
    assert audited(shard.path).faults == []


# Amounts


@pytest.mark.parametrize("settled", [True, False])
def test_entries_on_one_side_of_an_account_overflow_it_together(
    shard: Shard, settled: bool
) -> None:
    """Each of them alone would fit."""
    found = refused(
        shard,
        create(
            entry("cash", D, HALF),
            entry("a", C, HALF),
            entry("bank", D, HALF),
            entry("a", C, HALF),
            settled=settled,
        ),
    )
    assert (found.reason, found.entry_index) == (RefusalReason.BALANCE_OVERFLOW, 3)
    assert (found.required_amount, found.available_amount) == (INT64_MAX, INT64_MAX)
    fits = create(
        entry("cash", D, HALF),
        entry("a", C, HALF),
        entry("bank", D, HALF - 1),
        entry("a", C, HALF - 1),
        request_id="fits",
    )
    assert shard.transaction(fits).status is TransactionStatus.SETTLED


def test_an_outflow_may_be_larger_than_what_can_be_said(shard: Shard) -> None:
    found = refused(
        shard,
        create(
            entry("a", D, INT64_MAX),
            entry("b", C, INT64_MAX),
            entry("a", D, INT64_MAX),
            entry("c", C, INT64_MAX),
            entry("a", D, INT64_MAX),
            entry("cash", C, INT64_MAX),
        ),
    )
    assert (found.reason, found.entry_index) == (RefusalReason.INSUFFICIENT_FUNDS, 0)
    assert (found.required_amount, found.available_amount) == (INT64_MAX, 0)


def test_an_inflow_may_be_larger_than_what_can_be_said(shard: Shard) -> None:
    open_account(shard, "small", limits=Limits(maximum=10))
    entries = []
    for name in ("cash", "bank", "till"):
        entries += [entry(name, D, INT64_MAX), entry("small", C, INT64_MAX)]
    found = refused(shard, create(*entries))
    assert (found.reason, found.entry_index) == (RefusalReason.LIMIT_EXCEEDED, 1)
    assert (found.required_amount, found.available_amount) == (INT64_MAX, 10)


def test_what_is_available_may_be_more_than_what_can_be_said(shard: Shard) -> None:
    open_account(shard, "rich", limits=Limits(minimum=-INT64_MAX))
    shard.transaction(CreateTransaction(account("rich"), INT64_MAX, "", True, "f"))
    entries = []
    for name in ("a", "b", "c"):
        entries += [entry("rich", D, INT64_MAX), entry(name, C, INT64_MAX)]
    found = refused(shard, create(*entries))
    assert (found.reason, found.entry_index) == (RefusalReason.INSUFFICIENT_FUNDS, 0)
    assert (found.required_amount, found.available_amount) == (INT64_MAX, INT64_MAX)


@pytest.mark.parametrize("in_a_block", [False, True])
def test_what_is_missing_may_be_more_than_what_can_be_said(shard: Shard, in_a_block: bool) -> None:
    open_account(shard, "poor", limits=Limits(minimum=None))
    shard.transaction(CreateTransaction(account("poor"), -INT64_MAX, "", True, "f"))
    shard.one(UpdateAccount(account("poor"), "u", 0, limits=Limits(minimum=INT64_MAX)))
    if in_a_block:
        view = shard.one(
            CreateTransfers(
                routing_id=account("poor"),
                ledger="main",
                currency=USD,
                forms=bytes([TransferForm.DEBIT]),
                first_accounts=account("poor").to_bytes(8, "little"),
                second_accounts=account("a").to_bytes(8, "little"),
                amounts=(1).to_bytes(8, "little"),
                request_ids=bytes(16),
            )
        )
        assert isinstance(view, TransfersView)
        found = view.refusals[0]
    else:
        found = refused(shard, create(entry("poor", D, 1), entry("a", C, 1)))
    assert (found.reason, found.available_amount) == ("INSUFFICIENT_FUNDS", -INT64_MAX)


def test_what_a_shard_is_due_may_be_larger_than_what_can_be_said(tmp_path: Path) -> None:
    """Its accounts have room for it, but the account between the shards has not."""
    world = World(tmp_path, funds=0)
    names = iter(range(1_000))
    entries: list[Entry] = []
    for shard_id, side in ((0, D), (1, C)):
        found = 0
        while found < 3:
            name = f"more {next(names)}"
            bounds = world.shards[shard_id].shard
            if bounds.lower_bound <= shard_key(account(name)) <= bounds.upper_bound:
                kind = AccountType.ASSET if side is D else AccountType.LIABILITY
                world.apply(shard_id, CreateAccount(account(name), "main", name, kind))
                entries.append(Entry(account(name), side, INT64_MAX, USD, shard_id))
                found += 1
    view = world.begin(world.create(entries, "t"))
    assert isinstance(view, TransactionView)
    world.drive()
    record = world.record(0, view.number)
    assert record.status is TransactionStatus.REJECTED
    assert record.refusal is not None
    assert record.refusal.reason is RefusalReason.BALANCE_OVERFLOW
    assert record.refusal.required_amount == INT64_MAX
    world.check_nothing_is_in_flight()
    world.check_every_shard_balances()
    world.close()


# Sizes


def largest(shard_id: int = 0, count: int = ENTRIES_MAX) -> CreateTransaction:
    """All that a transaction may have, as long as it may be."""
    dear = Currency("A" * 12, 8)
    bounds = {"expected_version": U64_MAX, "minimum_balance": -INT64_MAX, "maximum_balance": 2**62}
    entries = [
        Entry(U64_MAX - number, D, INT64_MAX, dear, shard_id, **bounds) for number in range(count)
    ]
    return CreateTransaction(
        U64_MAX,
        0,
        "€" * DESCRIPTION_CHARACTERS_MAX,
        True,
        "€" * 128,
        entries,
        "l" * 64,
        "€" * 256,
        2**60,
        2**60,
        {f"{number:064}": "😀" * 256 for number in range(METADATA_KEYS_MAX)},
        "€" * 128,
        Source("€" * 128, "€" * 128),
    )


def test_the_largest_transaction_fits_into_a_call_to_a_node() -> None:
    command = largest(shard_id=65_535)
    assert decode_command(encode_command(command)) == command
    prepare = Prepare(U64_MAX, bytes(64), bytes(16), 65_535, command, U64_MAX)
    assert len(encode_command(prepare)) <= EXECUTE_BYTES_MAX
    with pytest.raises(msgspec.ValidationError):
        decode_command(encode_command(largest(count=ENTRIES_MAX + 1)))


def many(shard: Shard, count: int) -> list[Entry]:
    """Entries on accounts that are there, and there again."""
    assert shard.audit().accounts
    return [
        *(entry(("cash", "bank")[number % 2], D, number + 1) for number in range(count // 2)),
        *(entry("abc"[number % 3], C, number + 1) for number in range(count // 2)),
    ]


def test_transactions_of_as_many_entries_as_there_may_be(shard: Shard, tmp_path: Path) -> None:
    """Posted, reserved and settled, refused and reversed; proven, and replayed elsewhere."""
    posted = shard.transaction(create(*many(shard, ENTRIES_MAX)))
    assert posted.status is TransactionStatus.SETTLED
    held = create(*many(shard, ENTRIES_MAX), request_id="held", settled=False)
    settle = SettleTransaction(held.account_id, shard.transaction(held).number, "s")
    assert shard.transaction(settle).status is TransactionStatus.SETTLED
    asked = create(
        entry("a", D, 2**50),
        entry("cash", C, 2**50),
        *many(shard, ENTRIES_MAX - 2),
        request_id="no",
    )
    assert refused(shard, asked).reason == RefusalReason.INSUFFICIENT_FUNDS
    parts = [item.amount for item in posted.entries]
    parts[0] = parts[ENTRIES_MAX // 2] = 0
    reverse = ReverseTransaction(posted.account_id, posted.number, "r", parts)
    assert len(shard.transaction(reverse).entries) == ENTRIES_MAX - 2
    again = shard.failure(msgspec.structs.replace(reverse, request_id="r2"))
    assert again.reason is Reason.REVERSAL_EXCEEDS
    assert "entry 1 has 0 left, not 2" in again.message
    copy = fresh(shard, tmp_path)
    replay_all(copy, replays(shard), Random(1))
    assert rows(copy) == rows(shard)
    copy.close()


def held_ones(shard: Shard, count: int, **options: int) -> list[CreateTransaction]:
    found = []
    for number in range(count):
        one = create(*many(shard, 6), request_id=f"held {number}", settled=False)
        found.append(msgspec.structs.replace(one, **options))
    return found


def test_a_log_entry_ends_transactions_up_to_its_bound_and_refuses_the_rest_for_now(
    shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is refused so leaves no trace: a repeat is the first one."""
    held = [shard.transaction(one) for one in held_ones(shard, 5)]
    monkeypatch.setattr(books, "ENTRIES_PER_LOG_ENTRY_MAX", 10)
    ends = [
        *(SettleTransaction(one.account_id, one.number, "s") for one in held[:3]),
        *(CancelTransaction(one.account_id, one.number, "c") for one in held[3:]),
    ]
    left, rounds = list(ends), 0
    while left:
        told = shard.apply(*left)
        full = [isinstance(result, Failure) for result in told]
        assert full == [False, False, True, True, True][: len(left)]
        assert all(one.reason is Reason.OVERLOADED for one in told if isinstance(one, Failure))
        left, rounds = left[2:], rounds + 1
    assert rounds == 3
    reverse = ReverseTransaction(held[0].account_id, held[0].number, "r")
    # What brings its own entries is never refused so.
    new = create(*many(shard, 12), request_id="new")
    another = msgspec.structs.replace(new, request_id="another")
    kinds = [type(result) for result in shard.apply(new, reverse, another)]
    assert kinds == [TransactionView, Failure, TransactionView]
    monkeypatch.undo()
    copy = fresh(shard, tmp_path)
    replay_all(copy, replays(shard), Random(1))
    assert rows(copy) == rows(shard)
    copy.close()


def test_a_log_entry_lets_expire_up_to_its_bound(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in held_ones(shard, 5, expire_time_us=2**40):
        shard.transaction(one)
    monkeypatch.setattr(books, "ENTRIES_PER_LOG_ENTRY_MAX", 10)
    left = []
    for _ in range(3):
        shard.apply(time_us=2**41)
        with shard.store.read() as view:
            left.append(len(list(view.shard(0).expirations_until(2**41))))
    assert left == [3, 1, 0]


def test_a_commit_goes_on_where_a_log_entry_was_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinators of real nodes ask again, and all is decided."""
    hosts = Hosts(tmp_path, 1, 2, 1)
    monkeypatch.setattr(books, "ENTRIES_PER_LOG_ENTRY_MAX", 4)
    leader = hosts.leader()
    ids: list[list[int]] = [[], []]
    for number in range(12):
        name = f"account {number}"
        shard_id = shard_key(account(name)) >> 31
        ids[shard_id].append(account(name))
        kind = AccountType.LIABILITY if shard_id else AccountType.ASSET
        command = CreateAccount(account(name), "main", name, kind)
        results(hosts.settle(hosts.execute(leader, command, shard_id=shard_id)))
    commands = [
        CreateTransaction(
            ids[0][0],
            0,
            "",
            True,
            f"t{number}",
            [
                entry_
                for home, other in zip(ids[0][:3], ids[1][:3], strict=True)
                for entry_ in (Entry(home, D, 5, USD, 0), Entry(other, C, 5, USD, 1))
            ],
        )
        for number in range(6)
    ]
    replies = hosts.execute(leader, *commands)
    begun = results(hosts.settle(replies))
    hosts.run(5.0)
    for view in begun:
        assert isinstance(view, TransactionView)
        query = GetTransaction(view.account_id, view.number)
        (now,) = results(hosts.settle(hosts.query(leader, query)))
        assert isinstance(now, TransactionView)
        assert (now.status, now.in_flight) == (TransactionStatus.SETTLED, None)
    hosts.close()


# Reads


def test_pages_end_where_they_have_read_many_entries(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And go on there: nothing is left out, whatever is listed."""
    made = [shard.transaction(one) for one in held_ones(shard, 6)]
    for module in (pages, transaction_lists):
        monkeypatch.setattr(module, "ENTRIES_READ_MAX", 9)
    wanted = TransactionFilter(status=TransactionStatus.PENDING)
    ledger, before = [], (0, 0)
    for _ in range(3):
        page = shard.ask(ListLedgerTransactions("main", 50, wanted, *before))
        assert isinstance(page, LedgerTransactionPage)
        assert len(page.transactions) == 2
        ledger += page.transactions
        before = page.next_us, page.next_number
    assert [view.number for view in ledger] == [view.number for view in reversed(made)]
    listed, cursor = [], (0, 0)
    while True:
        of_account = shard.ask(ListTransactions(account("a"), 50, *cursor))
        assert isinstance(of_account, TransactionPage)
        assert len(of_account.transactions) <= 2
        listed += of_account.transactions
        cursor = of_account.next_sequence, of_account.next_position
        if not cursor[1]:
            break
    assert listed == ledger
    sequences, start = [], 0
    while True:
        entries = shard.ask(ListEntries(account("a"), 50, sequence=start))
        assert isinstance(entries, EntryPage)
        assert len(entries.entries) <= 2
        sequences += [item.sequence for item in entries.entries]
        start = entries.next_sequence
        if not start:
            break
    assert sequences == list(range(6, 0, -1))


def test_results_that_do_not_fit_into_a_message_are_left_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = Hosts(tmp_path, 1, 1, 1)
    leader = hosts.leader()
    opened = CreateAccount(account("a"), "main", "a")
    (whole,) = hosts.settle(hosts.execute(leader, opened)).results
    monkeypatch.setattr(node, "RESULTS_BYTES_MAX", 2 * len(whole))
    reply = hosts.settle(hosts.execute(leader, *[opened] * 4))
    assert reply.results == [whole, whole, b"", b""]
    query = GetAccount(account("a"))
    asked = hosts.settle(hosts.query(leader, query, query, query, query))
    assert [bool(result) for result in asked.results] == [True, True, False, False]
    # A single one may be larger than all are to be.
    monkeypatch.setattr(node, "RESULTS_BYTES_MAX", 1)
    assert hosts.settle(hosts.execute(leader, opened)).results == [whole]
    hosts.close()

"""A block of transfers does what its items do one after the other: every row and every answer."""

import random
import uuid
from pathlib import Path

import pytest

from ledger_core.accounts import AccountType, Direction
from ledger_core.commands import (
    NO_OVERDRAFT,
    CancelTransaction,
    CloseAccount,
    Command,
    CreateAccount,
    CreateTransaction,
    CreateTransfers,
    FreezeAccount,
    Limits,
    ReverseTransaction,
    Source,
    TransferPart,
    TransferText,
)
from ledger_core.ids import system_account_id
from ledger_core.ledgers import USD, Currency
from ledger_core.results import Failure, Result, TransactionView, TransfersView
from ledger_core.transfers import TransferForm, transfer_command, transfer_fault
from ledger_node.records import RequestRow, TransactionRecord
from ledger_node.store_tables import STATE_TABLES
from tests.node.shard import Shard
from tests.node.test_deep_audit import audited
from tests.node.test_replay import fresh, replay_all, replays, rows

EUR = Currency("EUR", 2)
ACCOUNTS = 14
NOBODY = 999_999
# Ids that differ by this look alike to what remembers accounts; most of these do not exist.
ALIKE = 1 << 20

Item = tuple[TransferForm, int, int, int, str]


def block_of(
    items: list[Item],
    texts: dict[int, TransferText] | None = None,
    parts: list[TransferPart] | None = None,
) -> CreateTransfers:
    return CreateTransfers(
        routing_id=1,
        ledger="main",
        currency=USD,
        forms=bytes(form for form, *_ in items),
        first_accounts=b"".join(item[1].to_bytes(8, "little") for item in items),
        second_accounts=b"".join(item[2].to_bytes(8, "little") for item in items),
        amounts=b"".join(item[3].to_bytes(8, "little") for item in items),
        request_ids=b"".join(uuid.UUID(item[4]).bytes for item in items),
        texts=texts or {},
        actor="" if parts else "someone",
        parts=parts or [],
    )


def parts_of(rng: random.Random, count: int) -> list[TransferPart]:
    """Cut a block into parts of random lengths, some of them with the same caller."""
    ends = sorted({rng.randint(1, count) for _ in range(rng.choice((1, 3, 64)))} | {count})
    return [
        TransferPart(
            end - start,
            rng.choice(("", "alice", "bob" * 40)),
            Source(rng.choice(("", "job 7")), rng.choice(("", "10.0.0.1"))),
        )
        for start, end in zip([0, *ends], ends, strict=False)
    ]


def request_id(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128)))


class Twins:
    """Two shards with the same history; one takes blocks, the other their items."""

    def __init__(self, path: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.blocks, self.singles = Shard(path / "blocks"), Shard(path / "singles")
        self.used: list[str] = []

    def both(self, *commands: Command) -> list[Result]:
        results = self.blocks.apply(*commands)
        assert self.singles.apply(*commands) == results
        return results

    def send(
        self,
        items: list[Item],
        texts: dict[int, TransferText] | None = None,
        *before: Command,
        parts: list[TransferPart] | None = None,
    ) -> TransfersView:
        """Apply a block here and its items there; all answers are the same."""
        block = block_of(items, texts, parts)
        assert transfer_fault(block) is None
        first = self.blocks.store.shard(0).meta().next_transaction
        *_, view = self.blocks.apply(*before, block)
        commands = [transfer_command(block, index, 0) for index in range(len(items))]
        answers = self.singles.apply(*before, *commands)[len(before) :]
        assert isinstance(view, TransfersView)
        taken = 0
        for index, answer in enumerate(answers):
            if view.statuses[index] == 0:
                assert view.others[index] == answer
                continue
            assert isinstance(answer, TransactionView)
            if view.first_number:
                assert answer.number == view.first_number + taken
            taken += 1
            assert answer.status == view.statuses[index]
            assert answer.refusal == view.refusals.get(index)
            assert answer.create_time_us == view.time_us
            if items[index][0].is_one_account:
                compare_book(view, index, answer)
        assert view.first_number in (0, first + len(before) - 0, first) or before
        self.used += [item[4] for item in items]
        self.compare()
        return view

    def compare(self) -> None:
        """All rows are the same, but for what says how it was asked."""
        one, other = self.blocks.store.shard(0), self.singles.store.shard(0)
        ours, theirs = one.meta(), other.meta()
        ours.chain_hash = theirs.chain_hash = b""
        assert ours == theirs
        for name in STATE_TABLES:
            if name in ("journal",):
                continue
            left, right = rows_of(one, name), rows_of(other, name)
            assert left.keys() == right.keys(), name
            for key in left:
                assert left[key] == right[key], (name, key.hex())

    def item(self) -> Item:
        rng = self.rng
        form = TransferForm(rng.choice((1, 1, 1, 2, 2, 3, 4)))
        first, second = rng.sample(range(1, ACCOUNTS + 1), 2)
        if rng.random() < 0.1:
            first += ALIKE
        if rng.random() < 0.03:
            first = rng.choice((NOBODY, system_account_id(0, 0)))
        elif rng.random() < 0.03:
            second = rng.choice((NOBODY, system_account_id(0, 0)))
        amount = rng.choice((1, 5, rng.randint(1, 60), rng.randint(1, 400)))
        used = self.used[-50:]
        request = rng.choice(used) if used and rng.random() < 0.05 else request_id(rng)
        return form, first, 0 if form.is_one_account else second, amount, request


def compare_book(view: TransfersView, index: int, answer: TransactionView) -> None:
    """Of the one-account form the view says what only the account knew."""
    book = view.books[int.from_bytes(view.book_places[2 * index : 2 * index + 2], "little")]
    first, second = answer.entries
    assert (answer.ledger, answer.currency) == (book.ledger, book.currency)
    assert (answer.currency_exponent, second.account_id) == (
        book.currency_exponent,
        book.external_account_id,
    )
    assert view.sides[index] == first.direction


def rows_of(tables: object, name: str) -> dict[bytes, object]:
    """The rows of a table, decoded where two encodings may mean the same."""
    database = tables.databases.state[tables.generation][name]  # type: ignore[attr-defined]
    found: dict[bytes, object] = {}
    with tables.txn.cursor(database) as cursor:  # type: ignore[attr-defined]
        for key, value in cursor:
            row: object = value
            if name == "transactions":
                row = TransactionRecord.decoded(value[:-4])
            elif name == "requests":
                # A transfer of a block is remembered without a hash.
                row = RequestRow.unpack(value[:-4]).number
            found[bytes(key)] = row
    return found


def opened(twins: Twins) -> None:
    """Accounts of all kinds: some without a floor, some with limits, some frozen or closed."""
    types = list(AccountType)
    kinds = [NO_OVERDRAFT, NO_OVERDRAFT, NO_OVERDRAFT, Limits(None, None), Limits(-50, 300)]
    for account in [*range(1, ACCOUNTS + 1), 1 + ALIKE, 2 + ALIKE]:
        twins.both(
            CreateAccount(
                account,
                "main",
                f"open {account}",
                type=types[account % 5] if account > 4 else AccountType.LIABILITY,
                currency=EUR if account == 13 else USD,
                code=str(account % 3),
                limits=kinds[account % 5],
            )
        )
    for account in range(1, 9):
        twins.both(CreateTransaction(account, 200, "", True, request_id(twins.rng)))
    twins.both(FreezeAccount(9, "freeze"))
    twins.both(CloseAccount(10, "close"))
    # Something reserved.
    twins.both(CreateTransaction(2, -150, "", False, request_id(twins.rng)))


@pytest.mark.parametrize("seed", range(25))
def test_random_blocks_do_what_their_items_do_and_are_proven_and_replayed(
    tmp_path: Path, seed: int
) -> None:
    twins = Twins(tmp_path, seed)
    opened(twins)
    rng = twins.rng
    for _ in range(8):
        items = [twins.item() for _ in range(rng.choice((1, 2, 7, 40, 120)))]
        texts = {
            index: TransferText("note", rng.choice(("", "order 7")), {"k": "v"})
            for index in range(len(items))
            if rng.random() < 0.1
        }
        before = []
        if rng.random() < 0.3:
            # The same log entry changes balances before the block.
            before = [CreateTransaction(3, rng.randint(1, 50), "", True, request_id(rng))]
        shared = rng.random() < 0.5
        twins.send(items, texts, *before, parts=parts_of(rng, len(items)) if shared else None)
    target = fresh(twins.blocks, tmp_path)
    replay_all(target, replays(twins.blocks), random.Random(1))
    assert rows(target) == rows(twins.blocks)
    target.close()
    twins.blocks.close()
    assert audited(tmp_path / "blocks").faults == []


def test_money_that_comes_in_earlier_in_a_block_can_be_spent_later_in_it(tmp_path: Path) -> None:
    twins = Twins(tmp_path, 1)
    opened(twins)
    debit = TransferForm.DEBIT
    view = twins.send(
        [
            (debit, 1, 2, 200, request_id(twins.rng)),
            (debit, 1, 2, 1, request_id(twins.rng)),
            (TransferForm.CREDIT, 1, 2, 50, request_id(twins.rng)),
            (debit, 1, 2, 50, request_id(twins.rng)),
            (debit, 1, 2, 1, request_id(twins.rng)),
        ]
    )
    assert list(view.statuses) == [2, 4, 2, 2, 4]


def test_a_request_of_a_block_is_repeated_by_a_block_or_alone(tmp_path: Path) -> None:
    twins = Twins(tmp_path, 2)
    opened(twins)
    items = [twins.item() for _ in range(60)]
    items = [item for item in items if item[1] != NOBODY]
    twins.send(items)
    again = twins.send(items)
    assert set(again.statuses) == {0}
    block = block_of(items)
    for index in range(len(items)):
        command = transfer_command(block, index, 0)
        (result,) = twins.both(command)
        assert result == again.others[index]
        other = CreateTransaction(
            command.account_id, 7, "other", True, command.request_id, actor="someone"
        )
        (result,) = twins.both(other)
        assert isinstance(result, Failure)


def test_a_request_that_is_twice_in_a_block_happens_once(tmp_path: Path) -> None:
    twins = Twins(tmp_path, 3)
    opened(twins)
    item = (TransferForm.DEBIT, 1, 2, 10, request_id(twins.rng))
    view = twins.send([item, twins.item(), item, (*item[:3], 11, item[4])])
    assert view.statuses[0] == 2
    assert view.statuses[2] == view.statuses[3] == 0
    assert isinstance(view.others[2], TransactionView)
    assert isinstance(view.others[3], Failure)


def test_a_counter_that_might_overflow_is_judged_item_by_item(tmp_path: Path) -> None:
    twins = Twins(tmp_path, 4)
    opened(twins)
    large = 2**61
    forms = [TransferForm.CREDIT] * 3 + [TransferForm.IN] * 2
    for form in forms:
        second = 0 if form.is_one_account else 4
        items: list[Item] = [(form, 3, second, large, request_id(twins.rng))]
        twins.send([*items, twins.item()])


def test_a_transfer_of_a_block_is_reversed_like_any_other(tmp_path: Path) -> None:
    twins = Twins(tmp_path, 5)
    opened(twins)
    view = twins.send([(TransferForm.DEBIT, 1, 2, 10, request_id(twins.rng))])
    twins.both(CancelTransaction(1, view.first_number, "too late"))
    (result,) = twins.both(ReverseTransaction(1, view.first_number, "reverse"))
    assert isinstance(result, TransactionView)
    twins.compare()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"forms": b""}, "has 0 transfers"),
        ({"forms": b"\1\1"}, "differ in length"),
        ({"forms": b"\5"}, "unknown form"),
        ({"amounts": bytes(8)}, "not above 0"),
        ({"amounts": (1 << 62).to_bytes(8, "little")}, "too large together"),
        ({"second_accounts": (1).to_bytes(8, "little")}, "to itself"),
        ({"forms": b"\3"}, "second account"),
        ({"request_ids": b"x"}, "differ in length"),
        ({"texts": {1: TransferText("x")}}, "texts of no transfer"),
        ({"parts": [TransferPart(2)]}, "parts that are not its transfers"),
        ({"parts": [TransferPart(0), TransferPart(1)]}, "parts that are not its transfers"),
        ({"parts": [TransferPart(1)]}, "an actor or a source besides"),
        ({"parts": [TransferPart(1)], "actor": "", "source": Source("x")}, "besides"),
    ],
)
def test_a_block_that_no_gateway_sends_has_a_fault(change: dict[str, object], fault: str) -> None:
    block = block_of([(TransferForm.DEBIT, 1, 2, 10, str(uuid.UUID(int=1)))])
    values = {name: getattr(block, name) for name in block.__struct_fields__} | change
    found = transfer_fault(CreateTransfers(**values))  # type: ignore[arg-type]
    assert found is not None
    assert fault in found


def test_a_transfer_is_recorded_with_the_actor_and_the_source_of_its_part(tmp_path: Path) -> None:
    twins = Twins(tmp_path, 8)
    opened(twins)
    items = [(TransferForm.DEBIT, 1, 2, 1, request_id(twins.rng)) for _ in range(4)]
    # The last one has texts, and the first one cannot be paid.
    items[0] = (*items[0][:3], 10_000, items[0][4])
    parts = [TransferPart(2, "alice", Source("a", "10.0.0.1")), TransferPart(2, "bob")]
    view = twins.send(items, {3: TransferText("note")}, parts=parts)
    assert list(view.statuses) == [4, 2, 2, 2]
    tables = twins.blocks.store.shard(0)
    found = []
    for number in range(view.first_number, view.first_number + 4):
        record = tables.find_transaction(number)
        assert record is not None
        state = record.states[0]
        found.append((state.actor, state.correlation_id, state.peer))
    assert found == [("alice", "a", "10.0.0.1")] * 2 + [("bob", "", "")] * 2


def test_transfers_of_accounts_that_do_not_exist_are_refused_on_an_empty_shard(
    tmp_path: Path,
) -> None:
    twins = Twins(tmp_path, 9)
    money_in = (TransferForm.IN, 1, 0, 5, request_id(twins.rng))
    assert list(twins.send([money_in]).statuses) == [0]
    moved = (TransferForm.DEBIT, 1, 2, 5, request_id(twins.rng))
    view = twins.send([(*money_in[:4], request_id(twins.rng)), moved])
    assert list(view.statuses) == [0, 6]
    twins.blocks.close()
    assert audited(tmp_path / "blocks").faults == []


def test_request_ids_are_shown_as_they_were_sent(tmp_path: Path) -> None:
    twins = Twins(tmp_path, 6)
    opened(twins)
    sent = request_id(twins.rng)
    view = twins.send([(TransferForm.DEBIT, 1, 2, 10, sent)])
    record = twins.blocks.store.shard(0).find_transaction(view.first_number)
    assert record is not None
    assert record.states[0].request_id == sent
    assert record.entries[0].direction is Direction.DEBIT


def test_a_block_whose_accounts_are_of_several_ledgers_is_journaled_transfer_by_transfer(
    tmp_path: Path,
) -> None:
    """An item of the journal is of one ledger: else no ledger could be exported by itself."""
    twins = Twins(tmp_path, 7)
    opened(twins)
    twins.both(CreateAccount(77, "other", "open 77", currency=USD))
    items: list[Item] = [
        (TransferForm.IN, account, 0, 5, request_id(twins.rng)) for account in (1, 77, 2, 77)
    ]
    view = twins.send([*items, items[0]])
    assert list(view.statuses) == [2, 2, 2, 2, 0]
    ours, theirs = (
        [item.command for _, entry in shard.store.shard(0).journal_after(0) for item in entry.items]
        for shard in (twins.blocks, twins.singles)
    )
    assert ours == theirs
    alone = twins.send([(*item[:4], request_id(twins.rng)) for item in items if item[1] == 77])
    assert list(alone.statuses) == [2, 2]

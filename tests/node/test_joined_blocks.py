"""Log entries applied in one go leave the very rows that they leave one after the other."""

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger_core.accounts import AccountType
from ledger_core.commands import (
    NO_OVERDRAFT,
    Command,
    CreateAccount,
    CreateTransaction,
    CreateTransfers,
    FreezeAccount,
    Limits,
    TransferText,
    decode_raw_batch,
    encode_batch,
    encode_command,
)
from ledger_core.ledgers import USD, Currency
from ledger_core.results import Result
from ledger_core.transfers import TransferForm
from ledger_node.books import InvariantError
from ledger_node.joined_blocks import LogEntry, apply_joined, stretches
from ledger_node.state_machine import StateMachine
from ledger_node.store import ENTRIES_PER_BLOCK, ShardTables
from ledger_node.store_tables import STATE_TABLES
from tests.node.shard import Shard
from tests.node.test_deep_audit import audited
from tests.node.test_replay import fresh, replay_all, replays, rows
from tests.node.test_transfer_blocks import NOBODY, Item, block_of, parts_of, request_id

EUR = Currency("EUR", 2)
RICH, POOR, LIMITED, EURO, FROZEN = (1, 2, 3, 4), (5, 6), 7, (8, 9), 10
OTHER_LEDGER = 11
WILD = (*RICH, *POOR, LIMITED, FROZEN, EURO[0], NOBODY, NOBODY + 1, OTHER_LEDGER)
HOUR_US = 3_600_000_000

Entry = tuple[int, list[Command]]
"""The time of a log entry, and its commands."""
Dump = dict[str, list[tuple[bytes, bytes]]]


class _DropError(Exception):
    """Ends an attempt of which nothing is kept."""


class Bench:
    """A shard on which the same log entries are tried in several ways, none of which is kept."""

    def __init__(self, path: Path) -> None:
        self.shard = Shard(path / "shard")
        # No number, as the seeds of examples are: these must not repeat its requests.
        self.rng = random.Random("bench")
        unlimited = Limits(None, None)
        limits = dict.fromkeys((*RICH, *EURO, FROZEN, OTHER_LEDGER), unlimited)
        limits |= dict.fromkeys(POOR, NO_OVERDRAFT) | {LIMITED: Limits(-50, 300)}
        for account, limit in limits.items():
            self.shard.one(
                CreateAccount(
                    account,
                    "other" if account == OTHER_LEDGER else "main",
                    f"open {account}",
                    type=AccountType.ASSET if account == 2 else AccountType.LIABILITY,
                    currency=EUR if account in EURO else USD,
                    code=str(account % 3),
                    limits=limit,
                )
            )
        for account in POOR:
            self.shard.one(CreateTransaction(account, 200, "", True, self.request()))
        self.shard.one(FreezeAccount(FROZEN, "freeze"))
        # Close to where accounts and totals get a mark.
        self.shard.apply(block_of([self.item(RICH) for _ in range(100)]))
        self.now_us = self.shard.time_us

    def request(self) -> str:
        return request_id(self.rng)

    def item(self, accounts: tuple[int, ...], amount: int = 1) -> Item:
        first, second = self.rng.sample(accounts, 2)
        return (TransferForm(self.rng.choice((1, 2))), first, second, amount, self.request())

    def block(self, count: int = 3, accounts: tuple[int, ...] = RICH) -> CreateTransfers:
        return block_of([self.item(accounts) for _ in range(count)])

    @contextlib.contextmanager
    def attempt(self) -> Iterator[ShardTables]:
        with (
            contextlib.suppress(_DropError),
            self.shard.store.shard(0).attempt() as tables,
        ):
            yield tables
            raise _DropError

    def log(self, tables: ShardTables, entries: list[Entry]) -> list[tuple[int, bytes]]:
        """Encode log entries; some indexes are those of entries that are none of ours."""
        first = tables.meta().applied_index + 1
        return [
            (first + 2 * place, encode_batch(time_us, [encode_command(c) for c in commands]))
            for place, (time_us, commands) in enumerate(entries)
        ]

    def alone(self, entries: list[Entry]) -> tuple[Dump, list[list[Result]]]:
        with self.attempt() as tables:
            machine = StateMachine(tables, 0)
            results = [machine.apply(*entry) for entry in self.log(tables, entries)]
            return dump(tables), results

    def together(
        self, entries: list[Entry], cuts: list[int], *, wanted: bool
    ) -> tuple[Dump, list[list[Result]]]:
        with self.attempt() as tables:
            machine = StateMachine(tables, 0)
            log = self.log(tables, entries)
            results: list[list[Result]] = []
            for start, end in zip([0, *cuts], [*cuts, len(log)], strict=True):
                results += machine.apply_run(log[start:end], wanted=wanted)
            return dump(tables), results

    def same(self, entries: list[Entry], cuts: list[int] | None = None) -> None:
        """Assert that log entries do the same however they are applied."""
        rows, results = self.alone(entries)
        for wanted in (False, True):
            joined_rows, joined_results = self.together(entries, cuts or [], wanted=wanted)
            for name, table in rows.items():
                assert joined_rows[name] == table, name
            assert joined_results == (results if wanted else [])

    def joins(self, entries: list[Entry], before: list[Entry] | None = None) -> bool:
        """Whether log entries are applied together, those ``before`` being applied already.

        If not, no row has been touched.
        """
        with self.attempt() as tables:
            machine = StateMachine(tables, 0)
            for entry in self.log(tables, before or []):
                machine.apply(*entry)
            untouched = dump(tables)
            log = [
                LogEntry.of(index, decode_raw_batch(payload))
                for index, payload in self.log(tables, entries)
            ]
            if apply_joined(tables, 0, log, wanted=False) is not None:
                return True
            assert dump(tables) == untouched
        return False


def dump(tables: ShardTables) -> Dump:
    """Every row, as it is stored."""
    state = tables.databases.state[tables.generation]
    found: Dump = {"meta": [(b"state", repr(tables.meta()).encode())]}
    for name in STATE_TABLES:
        with tables.txn.cursor(state[name]) as cursor:
            found[name] = [(bytes(key), bytes(value)) for key, value in cursor]
    return found


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("joined"))
    yield made
    made.shard.close()


def wild_item(bench: Bench, used: list[str]) -> Item:
    """Any item: one that may be refused, fail, or repeat another one."""
    rng = bench.rng
    form = TransferForm(rng.choice((1, 1, 2, 2, 3, 4)))
    first, second = rng.sample(WILD, 2)
    again = used and rng.random() < 0.03
    return (
        form,
        first,
        0 if form.is_one_account else second,
        rng.choice((1, 5, rng.randint(1, 200))),
        rng.choice(used) if again else bench.request(),
    )


def one_account_item(bench: Bench, _used: list[str]) -> Item:
    form = TransferForm(bench.rng.choice((3, 4)))
    return form, bench.rng.choice((*RICH, LIMITED, EURO[0])), 0, 30, bench.request()


def poor_item(bench: Bench, _used: list[str]) -> Item:
    return bench.item((*RICH[:2], *POOR, LIMITED), bench.rng.choice((3, 70)))


def plain_item(bench: Bench, _used: list[str]) -> Item:
    return bench.item(RICH, bench.rng.randint(1, 9))


def commands_of(bench: Bench, kind: str, used: list[str], now_us: int) -> list[Command]:
    """The commands of a log entry of some kind."""
    rng = bench.rng
    item = {"wild": wild_item, "one account": one_account_item, "poor": poor_item}.get(
        kind, plain_item
    )
    match kind:
        case "nothing":
            return []
        case "another":
            pending = CreateTransaction(1, -2, "", False, bench.request())
            soon = CreateTransaction(
                1, -2, "", False, bench.request(), expire_time_us=now_us + rng.randint(1, 40)
            )
            return rng.choice(([pending], [soon], [soon, bench.block()], [bench.block(), pending]))
        case "euro":
            items = [bench.item(EURO) for _ in range(rng.randint(1, 5))]
            block = block_of(items)
            return [CreateTransfers(block.routing_id, "main", EUR, *_columns(block))]
    blocks: list[Command] = []
    for _ in range(rng.choice((1, 1, 1, 3))):
        items = [item(bench, used) for _ in range(rng.choice((1, 4, 16, 60)))]
        texts = {0: TransferText("note", "order 7", {"k": "v"})} if rng.random() < 0.2 else {}
        parts = parts_of(rng, len(items)) if rng.random() < 0.5 else None
        blocks.append(block_of(items, texts, parts))
        used += [request for *_, request in items]
    return blocks


def _columns(block: CreateTransfers) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    return (
        block.forms,
        block.first_accounts,
        block.second_accounts,
        block.amounts,
        block.request_ids,
    )


KINDS = ("plain", "plain", "poor", "one account", "wild", "another", "euro", "nothing")


@settings(max_examples=40)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=2, max_size=12),
    cuts=st.sets(st.integers(1, 11), max_size=3),
    seed=st.integers(0, 2**32),
)
def test_any_log_entries_do_the_same_in_one_go(
    bench: Bench, kinds: list[str], cuts: set[int], seed: int
) -> None:
    bench.rng = random.Random(seed)
    entries: list[Entry] = []
    used: list[str] = []
    now_us = bench.now_us
    for kind in kinds:
        # Clocks of leaders differ: the next one may be behind.
        now_us += bench.rng.choice((-5, 0, 1, 10))
        entries.append((now_us, commands_of(bench, kind, used, now_us)))
    bench.same(entries, sorted(cut for cut in cuts if cut < len(entries)))


def after(bench: Bench, *entries: Command | list[Command]) -> list[Entry]:
    """Log entries, a microsecond apart."""
    return [
        (bench.now_us + place, commands if isinstance(commands, list) else [commands])
        for place, commands in enumerate(entries, 1)
    ]


def test_blocks_of_several_commands_and_log_entries_are_joined(bench: Bench) -> None:
    """With marks of accounts and of totals between them, texts, and times that go back."""
    text = block_of([bench.item(RICH)], {0: TransferText("note", "order 7", {"k": "v"})})
    entries = after(bench, bench.block(60), [bench.block(70), text, bench.block(1)], bench.block(9))
    entries.append((bench.now_us - 5, [bench.block(200)]))
    positions = 2 * sum(len(b.forms) for _, blocks in entries for b in blocks)  # type: ignore[union-attr]
    assert positions > 2 * ENTRIES_PER_BLOCK
    assert bench.joins(entries)
    bench.same(entries)


def test_what_is_refused_is_refused_in_a_joined_block_for_the_same_reason(bench: Bench) -> None:
    """By a floor that an earlier log entry brought close, by a limit, and whatever the balance."""
    debit = TransferForm.DEBIT
    rich, poor = RICH[0], POOR[0]
    for second, amount in ((poor, 150), (LIMITED, 200), (FROZEN, 1), (NOBODY, 1)):
        out = [(debit, second, rich, amount, bench.request()) for _ in range(4)]
        into = [(TransferForm.CREDIT, second, rich, amount, bench.request()) for _ in range(4)]
        entries = after(bench, *[block_of([item]) for item in [*out, *into]], bench.block())
        assert bench.joins(entries)
        bench.same(entries)


def test_a_joined_block_between_accounts_that_do_not_exist_books_nothing(bench: Bench) -> None:
    """Its transactions are refused, and no account has an entry: the log entry has none either."""
    nobody = (NOBODY, NOBODY + 1)
    entries = after(bench, bench.block(1, nobody), bench.block(2, nobody), bench.block())
    for some in (entries, entries[1:], entries[:2], [*entries[2:], *entries[:1]]):
        assert bench.joins(some)
        bench.same(some)


def test_the_one_account_form_is_joined(bench: Bench) -> None:
    items = [one_account_item(bench, []) for _ in range(12)]
    entries = after(bench, block_of(items[:4]), block_of(items[4:]), bench.block())
    assert bench.joins(entries)
    bench.same(entries)


def a_request_is_known(bench: Bench) -> tuple[list[Entry], list[Entry]]:
    block = bench.block()
    return after(bench, block), after(bench, bench.block(), block)


def a_request_comes_twice(bench: Bench) -> tuple[list[Entry], list[Entry]]:
    block = bench.block()
    return [], after(bench, block, bench.block(), block)


def something_expires_between_them(bench: Bench) -> tuple[list[Entry], list[Entry]]:
    pending = CreateTransaction(
        POOR[0], -50, "", False, bench.request(), expire_time_us=bench.now_us + HOUR_US
    )
    blocks = after(bench, bench.block(), bench.block())
    return after(bench, pending), [*blocks, (bench.now_us + HOUR_US, [bench.block()])]


def the_ledger_has_no_book_yet(bench: Bench) -> tuple[list[Entry], list[Entry]]:
    blocks = [bench.block(accounts=(NOBODY, NOBODY + 1)) for _ in range(2)]
    return [], after(bench, *[CreateTransfers(1, "new", USD, *_columns(block)) for block in blocks])


def an_item_fails(bench: Bench) -> tuple[list[Entry], list[Entry]]:
    failing = block_of([(TransferForm.IN, NOBODY, 0, 1, bench.request())])
    return [], after(bench, bench.block(), failing)


def the_accounts_are_of_several_ledgers(bench: Bench) -> tuple[list[Entry], list[Entry]]:
    other = block_of([(TransferForm.IN, OTHER_LEDGER, 0, 1, bench.request())])
    return [], after(bench, bench.block(), other)


def a_counter_may_overflow_at_the_second(bench: Bench) -> tuple[list[Entry], list[Entry]]:
    """At the first there is still room."""
    before = CreateTransaction(RICH[0], 2**61 - 1 - 1_000, "", True, bench.request())
    blocks = [
        block_of([(TransferForm.CREDIT, *RICH[:2], 2_000, bench.request())]) for _ in range(2)
    ]
    return after(bench, before), after(bench, *blocks)


def the_amounts_are_too_large_together(bench: Bench) -> tuple[list[Entry], list[Entry]]:
    blocks = [block_of([bench.item(RICH[1:], 2**60)]) for _ in range(5)]
    return [], after(bench, *blocks)


REASONS = (
    a_request_is_known,
    a_request_comes_twice,
    something_expires_between_them,
    the_ledger_has_no_book_yet,
    an_item_fails,
    the_accounts_are_of_several_ledgers,
    a_counter_may_overflow_at_the_second,
    the_amounts_are_too_large_together,
)


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.__name__)
def test_blocks_are_not_joined_if(
    bench: Bench, reason: Callable[[Bench], tuple[list[Entry], list[Entry]]]
) -> None:
    before, entries = reason(bench)
    assert not bench.joins(entries, before)
    bench.same([*before, *entries], [len(before)] if before else None)


def test_blocks_are_not_joined_while_a_shard_is_imported(bench: Bench) -> None:
    entries = after(bench, bench.block(), bench.block())
    found = []
    for wanted in (None, False):
        with bench.attempt() as tables:
            meta = tables.meta()
            meta.importing = True
            tables.save_meta(meta)
            log = bench.log(tables, entries)
            run = [LogEntry.of(index, decode_raw_batch(payload)) for index, payload in log]
            assert apply_joined(tables, 0, run, wanted=False) is None
            machine = StateMachine(tables, 0)
            if wanted is None:
                for entry in log:
                    machine.apply(*entry)
            else:
                machine.apply_run(log, wanted=wanted)
            found.append(dump(tables))
    assert found[0] == found[1]


def test_a_run_is_cut_where_log_entries_have_to_be_apart(bench: Bench) -> None:
    euro = CreateTransfers(1, "main", EUR, *_columns(bench.block(accounts=EURO)))
    another = CreateTransaction(1, 5, "", True, bench.request())
    small, large = bench.block(), bench.block(600)
    run: list[list[Command]] = [
        [small, small], [small], [another], [small, another], [], [small], [small],
        [euro], [euro], [small, euro], [large], [small], [large], [large, large], [small],
    ]  # fmt: skip
    entries = [
        LogEntry.of(index, decode_raw_batch(encode_batch(1, [encode_command(c) for c in commands])))
        for index, commands in enumerate(run)
    ]
    found = [[entry.index for entry in stretch] for stretch in stretches(entries)]
    assert found == [[0, 1], [2], [3], [4], [5, 6], [7, 8], [9], [10, 11], [12], [13], [14]]
    bench.same(after(bench, [bench.block(600), bench.block(600)], bench.block()))


def test_a_log_entry_is_never_applied_twice(bench: Bench) -> None:
    with bench.attempt() as tables:
        log = bench.log(tables, after(bench, bench.block(), bench.block()))
        with pytest.raises(InvariantError, match="applied already"):
            StateMachine(tables, 0).apply_run([log[1], log[0]], wanted=False)
        index = tables.meta().applied_index
        with pytest.raises(InvariantError, match="applied already"):
            StateMachine(tables, 0).apply_run([(index, log[0][1]), log[1]], wanted=False)


def test_what_was_joined_is_proven_and_replayed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    shard, tables = bench.shard, bench.shard.store.shard(0)
    text = TransferText("note", "order 7", {"k": "v"})
    entries = after(
        bench,
        bench.block(150),
        [bench.block(40), block_of([poor_item(bench, []) for _ in range(60)], {1: text})],
        *[bench.block(5) for _ in range(9)],
        block_of([one_account_item(bench, []) for _ in range(20)]),
    )
    assert bench.joins(entries)
    StateMachine(tables, 0).apply_run(bench.log(tables, entries), wanted=False)
    shard.store.commit()
    assert shard.audit().faults == []
    target = fresh(shard, tmp_path)
    replay_all(target, replays(shard), random.Random(1))
    assert rows(target) == rows(shard)
    target.close()
    shard.close()
    assert audited(shard.path).faults == []

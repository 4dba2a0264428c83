"""The full ledger on one shard against the model: entries, limits, states, parts, time."""

import random
import shutil
import tempfile
from pathlib import Path
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ledger_core.accounts import AccountType, Direction
from ledger_core.commands import (
    CancelTransaction,
    CloseAccount,
    Command,
    CreateAccount,
    CreateTransaction,
    Entry,
    FreezeAccount,
    Limits,
    ReverseTransaction,
    SettleTransaction,
    UnfreezeAccount,
    UpdateAccount,
)
from ledger_core.errors import RefusalReason
from ledger_core.ids import derive_account_id
from ledger_core.ledgers import USD
from ledger_core.queries import GetAccount
from ledger_core.results import AccountView, Failure, Result, TransactionView
from tests.node.books_model import BooksModel, ModelAccount, Outcome
from tests.node.history_model import HistoryModel
from tests.node.shard import Shard

# So few that groups have marks.
ENTRIES_PER_BLOCK = 4

NAMES = ["cash", "alice", "bob", "fees"]
TYPES = [AccountType.ASSET, AccountType.LIABILITY, AccountType.LIABILITY, AccountType.INCOME]
LIMITS = [Limits(None), Limits(), Limits(-50, 200), Limits(0, 120)]
IDS = [derive_account_id("main", name) for name in NAMES]
NOBODY = derive_account_id("main", "nobody")

accounts = st.sampled_from(IDS)
numbers = st.integers(1, 12)


@st.composite
def entries(draw: st.DrawFn) -> list[Entry]:
    """2 to 4 entries that balance: one account against one or several others."""
    one = draw(st.sampled_from([*IDS, IDS[0], IDS[1], NOBODY]))
    direction = draw(st.sampled_from(Direction))
    parts = draw(st.lists(st.tuples(accounts, st.integers(1, 90)), min_size=1, max_size=3))
    bounds = st.one_of(st.none(), st.none(), st.none(), st.integers(-60, 150))
    whole = sum(amount for _, amount in parts)
    return [
        Entry(one, direction, whole, USD, 0, None, draw(bounds), draw(bounds)),
        *(Entry(account, direction.opposite, amount, USD, 0) for account, amount in parts),
    ]


class BooksAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = patch("ledger_node.sums.ENTRIES_PER_BLOCK", ENTRIES_PER_BLOCK)
        self.patch.start()

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.shard = Shard(self.folder / "shard")
        self.model = BooksModel()
        self.count = 0
        for name, account_id, type_, limits in zip(NAMES, IDS, TYPES, LIMITS, strict=True):
            opened = self.shard.one(
                CreateAccount(account_id, "main", name, type_, USD, "", name, limits)
            )
            assert isinstance(opened, AccountView)
            self.model.accounts[account_id] = ModelAccount(type_, limits)

    def teardown(self) -> None:
        self.patch.stop()
        if hasattr(self, "shard"):
            self.shard.close()
            shutil.rmtree(self.folder)

    def request_id(self) -> str:
        self.count += 1
        return f"r{self.count}"

    def do(self, command: Command) -> Result:
        """Apply at the next moment; both clocks move before the command is looked at."""
        self.model.advance(self.shard.time_us + 1)
        return self.shard.one(command)

    def compare(self, command: Command, expected: Outcome) -> None:
        result = self.shard.one(command)
        if isinstance(result, Failure):
            assert result.reason == expected
            return
        assert isinstance(result, TransactionView)
        reason = RefusalReason(result.refusal.reason) if result.refusal else None
        assert (result.number, result.status, reason) == expected

    def tick(self) -> None:
        self.model.advance(self.shard.time_us + 1)

    @rule(
        entries=entries(),
        settled=st.booleans(),
        lives=st.integers(0, 6),
        effective_us=st.one_of(st.just(0), st.integers(1, 2**45), st.integers(1, 100)),
        reference=st.sampled_from(["", "invoice 1", "invoice 2"]),
    )
    def create(
        self, entries: list[Entry], settled: bool, lives: int, effective_us: int, reference: str
    ) -> None:
        expire = self.shard.time_us + 2 + lives if lives and not settled else 0
        command = CreateTransaction(
            entries[0].account_id,
            0,
            "",
            settled,
            self.request_id(),
            entries,
            expire_time_us=expire,
            effective_time_us=effective_us,
            external_reference=reference,
            metadata={reference: "yes"} if reference else {},
        )
        self.tick()
        self.compare(command, self.model.create(command))

    @rule(home=accounts, number=numbers, amount=st.sampled_from([0, 0, 1, 30, 90, 200]))
    def settle(self, home: int, number: int, amount: int) -> None:
        self.tick()
        command = SettleTransaction(home, number, self.request_id(), amount)
        self.compare(command, self.model.settle(home, number, amount))

    @rule(home=accounts, number=numbers)
    def cancel(self, home: int, number: int) -> None:
        self.tick()
        command = CancelTransaction(home, number, self.request_id())
        self.compare(command, self.model.cancel(home, number))

    @rule(
        home=accounts,
        number=numbers,
        amounts=st.one_of(
            st.just([]),
            st.integers(0, 60).map(lambda a: [a, a]),
            st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda p: [sum(p), *p]),
            st.lists(st.integers(0, 20), min_size=1, max_size=4),
        ),
    )
    def reverse(self, home: int, number: int, amounts: list[int]) -> None:
        self.tick()
        command = ReverseTransaction(home, number, self.request_id(), amounts)
        self.compare(command, self.model.reverse(home, number, amounts))

    @rule(account_id=accounts, change=st.sampled_from(["freeze", "unfreeze", "unfreeze", "close"]))
    def change_state(self, account_id: int, change: str) -> None:
        self.tick()
        kind: dict[str, type[FreezeAccount | UnfreezeAccount | CloseAccount]]
        kind = {"freeze": FreezeAccount, "unfreeze": UnfreezeAccount, "close": CloseAccount}
        expected = getattr(self.model, change)(account_id)
        result = self.shard.one(kind[change](account_id, self.request_id()))
        assert (result.reason if isinstance(result, Failure) else None) == expected

    @rule(account_id=accounts, limits=st.sampled_from(LIMITS))
    def change_limits(self, account_id: int, limits: Limits) -> None:
        self.tick()
        view = self.shard.ask(GetAccount(account_id))
        assert isinstance(view, AccountView)
        result = self.shard.one(
            UpdateAccount(account_id, self.request_id(), view.revision, limits=limits)
        )
        if not isinstance(result, Failure):
            self.model.accounts[account_id].limits = limits

    @rule()
    def restart(self) -> None:
        self.shard.reopen()

    @invariant()
    def balances_are_those_of_the_model(self) -> None:
        if not hasattr(self, "shard"):
            return
        for account_id in IDS:
            view = self.shard.ask(GetAccount(account_id))
            assert isinstance(view, AccountView)
            assert view.settled_balance == self.model.settled(account_id)
            assert view.available_balance == self.model.available(account_id)
            assert view.state.name == self.model.accounts[account_id].state
        assert self.shard.audit().faults == []

    @invariant()
    def what_is_kept_for_history_follows_from_entries_and_records(self) -> None:
        if hasattr(self, "shard"):
            with self.shard.store.read() as view:
                HistoryModel(view.shard(0), ENTRIES_PER_BLOCK).check(random.Random(self.count))


TestBooksAgainstModel = BooksAgainstModel.TestCase
TestBooksAgainstModel.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)

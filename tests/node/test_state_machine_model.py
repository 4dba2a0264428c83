"""The state machine against the model: any commands, in any order, in any batches."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ledger_core.commands import (
    CancelTransaction,
    Command,
    CreateAccount,
    CreateTransaction,
    SettleTransaction,
)
from ledger_core.ids import derive_account_id, system_account_id
from ledger_core.money import INT64_MAX
from ledger_core.queries import GetAccount, ListTransactions
from ledger_core.results import AccountView, Failure, Result, TransactionPage, TransactionView
from tests.node.model import Model
from tests.node.shard import Shard

NAMES = ["alice", "bob", "carol"]
ACCOUNTS = {name: derive_account_id("main", name) for name in NAMES}

amounts = st.one_of(
    st.integers(-500, 500).filter(bool),
    st.sampled_from([1, -1, INT64_MAX, -INT64_MAX, INT64_MAX - 400, 2**62]),
)
request_ids = st.sampled_from([f"r{i}" for i in range(12)])
account_ids = st.sampled_from(list(ACCOUNTS.values()))
numbers = st.integers(0, 15)

creates = st.builds(
    CreateTransaction,
    account_ids,
    amounts,
    st.sampled_from(["", "coffee"]),
    st.booleans(),
    request_ids,
)
ends = st.one_of(
    st.builds(SettleTransaction, account_ids, numbers, request_ids),
    st.builds(CancelTransaction, account_ids, numbers, request_ids),
)


def outcome(result: Result) -> object:
    if isinstance(result, Failure):
        return result.reason
    assert isinstance(result, TransactionView)
    return (result.number, result.status)


class StateMachineAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.shard = Shard(self.folder / "shard")
        self.model = Model()

    def teardown(self) -> None:
        self.shard.close()
        shutil.rmtree(self.folder)

    @rule(name=st.sampled_from(NAMES))
    def create_account(self, name: str) -> None:
        result = self.shard.one(CreateAccount(ACCOUNTS[name], "main", name))
        assert isinstance(result, AccountView)
        assert (result.settled_balance, result.available_balance) == (0, 0)
        self.model.accounts.add(ACCOUNTS[name])

    @rule(commands=st.lists(st.one_of(creates, ends), min_size=1, max_size=6))
    def batch(self, commands: list[Command]) -> None:
        expected = [
            self.model.create_transaction(command)
            if isinstance(command, CreateTransaction)
            else self.model.end_transaction(command)  # type: ignore[arg-type]
            for command in commands
        ]
        assert [outcome(result) for result in self.shard.apply(*commands)] == expected

    @rule()
    def restart(self) -> None:
        self.shard.reopen()

    @invariant()
    def balances_are_those_of_the_model(self) -> None:
        for account_id in ACCOUNTS.values():
            view = self.shard.ask(GetAccount(account_id))
            if account_id not in self.model.accounts:
                assert isinstance(view, Failure)
                continue
            assert isinstance(view, AccountView)
            assert view.settled_balance == self.model.settled(account_id)
            assert view.available_balance == self.model.available(account_id)

    @invariant()
    def the_books_balance(self) -> None:
        audit = self.shard.audit()
        assert audit.faults == []
        external = self.shard.ask(GetAccount(system_account_id(0, 0)))
        if isinstance(external, AccountView):
            total = sum(self.model.settled(account_id) for account_id in ACCOUNTS.values())
            assert external.settled_balance == total

    @invariant()
    def histories_list_every_transaction_once_newest_first(self) -> None:
        for account_id in self.model.accounts:
            page = self.shard.ask(ListTransactions(account_id, 1000))
            assert isinstance(page, TransactionPage)
            assert [(t.number, t.status) for t in page.transactions] == [
                (number, transaction.status)
                for number, transaction in reversed(list(enumerate(self.model.transactions, 1)))
                if transaction.account_id == account_id
            ]


TestStateMachineAgainstModel = StateMachineAgainstModel.TestCase
TestStateMachineAgainstModel.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None
)

"""Whole nodes with an account on each of three shards, for tests of transactions across them."""

from ledger_cluster.shard_map import ShardMap
from ledger_core.accounts import Direction
from ledger_core.commands import Command, CreateAccount, CreateTransaction, Entry
from ledger_core.ids import derive_account_id
from ledger_core.ledgers import USD
from ledger_core.queries import GetAccount
from ledger_core.results import AccountView, TransactionView
from ledger_node.audit import audit
from tests.node.hosts import Hosts, results

SHARDS = 3


class Bank:
    """An account with 100 on each of three shards."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.accounts: dict[int, int] = {}
        shard_map = ShardMap(hosts.config)
        for candidate in range(1000):
            account_id = derive_account_id("main", f"a{candidate}")
            shard_id = shard_map.shard_of(account_id).id
            if shard_id not in self.accounts:
                self.accounts[shard_id] = account_id
                self.write(shard_id, CreateAccount(account_id, "main", f"a{candidate}"))
                self.write(shard_id, CreateTransaction(account_id, 100, "", True, "fund"))
        assert len(self.accounts) == SHARDS

    def write(self, shard_id: int, command: Command) -> object:
        leader = self.hosts.leader(shard_id)
        replies = self.hosts.execute(leader, command, shard_id=shard_id)
        return results(self.hosts.settle(replies))[0]

    def transfer(
        self, amounts: dict[int, int], request_id: str = "t", *, settled: bool = True
    ) -> CreateTransaction:
        """Amounts by shard; the first one is the home."""
        entries = [
            Entry(
                self.accounts[shard_id],
                Direction.CREDIT if amount > 0 else Direction.DEBIT,
                abs(amount),
                USD,
                shard_id,
            )
            for shard_id, amount in amounts.items()
        ]
        return CreateTransaction(entries[0].account_id, 0, "", settled, request_id, entries)

    def submit(self, command: CreateTransaction) -> TransactionView:
        """Send it to the home's leader; the first answer, whatever is still in flight."""
        view = self.write(command.entries[0].shard_id, command)
        assert isinstance(view, TransactionView)
        return view

    def finish(self, command: CreateTransaction, number: int, state: int = 1) -> TransactionView:
        """Wait as a gateway does, at whoever leads the home."""
        home = command.entries[0].shard_id
        for _ in range(100):
            replies: list = []
            leader = self.hosts.leader(home)
            self.hosts.nodes[leader].await_transaction(home, number, state, replies.append)
            reply = self.hosts.settle(replies)
            if reply.results:
                (view,) = results(reply)
                assert isinstance(view, TransactionView)
                return view
        raise AssertionError("not finished")

    def open_rows(self, shard_id: int) -> tuple[list[int], list[int]]:
        """What is in flight and what is undecided, as the leader has it."""
        with self.hosts.stores[self.hosts.leader(shard_id)].read_newest() as view:
            tables = view.shard(shard_id)
            return tables.in_flight_numbers(), tables.undecided_numbers()

    def balances(self) -> list[tuple[int, int]]:
        found = []
        for shard_id in sorted(self.accounts):
            leader = self.hosts.leader(shard_id)
            query = GetAccount(self.accounts[shard_id])
            replies = self.hosts.query(leader, query, shard_id=shard_id)
            (view,) = results(self.hosts.settle(replies))
            assert isinstance(view, AccountView)
            found.append((view.settled_balance, view.available_balance))
        return found

    def check_books(self) -> None:
        for store in self.hosts.stores.values():
            with store.read_newest() as view:
                for shard_id in self.accounts:
                    assert audit(view.shard(shard_id)).faults == []

    def check_nothing_is_open(self) -> None:
        for store in self.hosts.stores.values():
            with store.read_newest() as view:
                for shard_id in self.accounts:
                    assert view.shard(shard_id).in_flight_numbers() == []
                    assert view.shard(shard_id).undecided_numbers() == []
                    assert audit(view.shard(shard_id)).unfinished_since_us == 0

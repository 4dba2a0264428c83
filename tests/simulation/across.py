"""What must hold between the shards: all entries of a transaction or none, and no money lost.

At the end the stores are held against the models of their logs, shards against each other, and
reads against what callers were told, without a log.
"""

from collections import Counter
from dataclasses import dataclass

from ledger_core.accounts import Direction, TransactionStatus
from ledger_core.commands import (
    CreateTransaction,
    Entry,
    ReverseTransaction,
    SettleTransaction,
)
from ledger_core.ids import SYSTEM_ACCOUNTS_MAX, is_system_account_id, splitmix64
from ledger_core.results import AccountView, TransactionView
from ledger_node.store import ShardTables
from tests.simulation.clients import History
from tests.simulation.engine import require
from tests.simulation.history import Models
from tests.simulation.model import Part, ShardModel, signed

S = TransactionStatus


def is_idle(tables: ShardTables) -> bool:
    """Whether a shard has nothing to tell, and waits for no decision."""
    return not tables.in_flight_numbers() and not tables.undecided_numbers()


def check_shards_agree(models: Models) -> None:
    """Home and participants have a transaction in the same final state: all entries, or none."""
    for shard_id, model in models.items():
        for origin, whole in model.committed:
            for participant in whole.participants:
                part = models[participant].prepared.get(origin)
                require(
                    part is not None and part.states[0] is S.UNDECIDED,
                    f"shard {shard_id} committed what shard {participant} did not vote for",
                )
        for origin, part in model.prepared.items():
            if part is not None:
                assert part.home_shard_id is not None
                _check_part(origin, part, shard_id, models[part.home_shard_id])
        for number, origin in model.origins.items():
            whole = model.parts[number - 1]
            require(whole.status is not S.UNDECIDED, f"transaction {number} is undecided")
            for participant in whole.participants:
                part = models[participant].prepared.get(origin)
                require(
                    part is not None or whole.status.is_refusal,
                    f"shard {participant} lacks {number} of shard {shard_id}",
                )


def _check_part(origin: bytes, part: Part, shard_id: int, home: ShardModel) -> None:
    if origin not in home.outcomes:
        # Asked early, it refused, so that it has nothing to ask; and the Begin was lost.
        require(part.states[0].is_refusal, f"shard {shard_id} prepared what never began")
        return
    whole = home.parts[home.outcomes[origin][0] - 1]
    same = (part.status, part.settled_amount) == (whole.status, whole.settled_amount)
    require(
        same or (part.status.is_refusal and whole.status.is_refusal),
        f"shard {shard_id} has {part.states} of what shard {home.shard_id} has {whole.states}",
    )
    decided = [status for status in whole.states if status is not S.UNDECIDED]
    known = [status for status in part.states if status is not S.UNDECIDED]
    require(
        part.status.is_refusal or set(known) <= set(decided), "a participant was told otherwise"
    )


def check_store(model: ShardModel, tables: ShardTables) -> None:
    """What a shard has stored is what its log says, transaction by transaction."""
    meta = tables.meta()
    require(meta.next_transaction - 1 == len(model.parts), "transactions appeared or vanished")
    for part in model.parts:
        record = tables.find_transaction(part.number)
        require(record is not None, f"transaction {part.number} is lost")
        assert record is not None
        states = [state.status for state in record.states]
        same = states == part.states
        if part.home_shard_id is not None and part.status.is_refusal:
            # Of several refusals the home chooses the one that all histories show.
            last = len(part.states) - 1
            same = states[:last] == part.states[:last] and all(s.is_refusal for s in states[last:])
        require(same, f"transaction {part.number}: {states}, should be {part.states}")
        require(record.settled_amount == part.settled_amount, "another amount was settled")
    for _slot, row in tables.balances():
        if is_system_account_id(meta.lower_bound, row.account_id):
            continue
        normal_side = row.type.normal_side
        seen = row.settled_balance(normal_side), row.available_balance(normal_side)
        was = model.balances(row.account_id)
        require(seen == was, f"account {row.account_id:x} has {seen}, should have {was}")


class Bank:
    """Sums over all shards, at a moment at which nothing is in flight."""

    def __init__(self) -> None:
        self.customers: Counter[tuple[str, str]] = Counter()
        self.external: Counter[tuple[str, str]] = Counter()
        self.due: Counter[tuple[tuple[str, str], int, int]] = Counter()
        """(book, shard, peer) -> debits minus credits, posted."""
        self.due_pending: Counter[tuple[tuple[str, str], int, int]] = Counter()

    def add(self, shard_id: int, tables: ShardTables) -> None:
        """Add a shard."""
        meta = tables.meta()
        for _slot, row in tables.balances():
            book = (meta.books[row.book].ledger, meta.books[row.book].currency)
            posted = row.debits_posted - row.credits_posted
            pending = row.debits_pending - row.credits_pending
            ordinal = splitmix64(row.account_id) - (meta.lower_bound << 32)
            if ordinal not in range(SYSTEM_ACCOUNTS_MAX):
                self.customers[book] -= posted
            elif ordinal < 1 << 10:
                self.external[book] += posted
            else:
                peer = (ordinal >> 10) - 1
                self.due[book, shard_id, peer] += posted
                self.due_pending[book, shard_id, peer] += pending

    def check(self) -> None:
        """No money appeared or vanished, and what one shard is due another one owes."""
        require(self.customers == self.external, "money appeared or vanished")
        for due in (self.due, self.due_pending):
            for (book, shard_id, peer), amount in due.items():
                require(
                    due[book, peer, shard_id] == -amount,
                    f"shard {peer} does not owe what shard {shard_id} is due in {book}",
                )


# Reads against answers. Knows no log.


@dataclass(frozen=True, slots=True)
class _Change:
    """Something that changed an account's settled balance at some time in between."""

    start_s: float
    end_s: float
    amount: int


def check_reads_after_replies(history: History) -> None:
    """A read sees all that was answered before it began, and nothing that began after its end."""
    changes = _changes(history)
    for read in history.reads:
        if read.stale or not isinstance(read.result, AccountView):
            continue
        low = high = 0
        for change in changes.get(read.account_id, []):
            if change.end_s < read.start_s:
                low, high = low + change.amount, high + change.amount
            elif change.start_s <= read.end_s:
                low, high = low + min(change.amount, 0), high + max(change.amount, 0)
        seen = read.result.settled_balance
        require(
            low <= seen <= high,
            f"a read of {read.account_id:x} saw {seen}; by the answers before it, it should have "
            f"seen {low} to {high}",
        )


def _changes(history: History) -> dict[int, list[_Change]]:
    """Return what changed settled balances, by account. Every call has its answer by now."""
    changes: dict[int, list[_Change]] = {}
    begun: dict[tuple[int, int], CreateTransaction] = {}
    answered = [r for r in history.requests if isinstance(r.result, TransactionView)]
    for request in answered:
        assert isinstance(request.result, TransactionView)
        if isinstance(request.command, CreateTransaction):
            begun[request.result.account_id, request.result.number] = request.command
    for request in answered:
        view, command = request.result, request.command
        assert isinstance(view, TransactionView)
        assert request.end_s is not None
        if view.status is not S.SETTLED:
            continue
        if isinstance(command, ReverseTransaction):
            money = [
                (e.account_id, e.amount if e.direction is Direction.CREDIT else -e.amount)
                for e in view.entries
            ]
        elif isinstance(command, CreateTransaction):
            money = _money(command, 0)
        else:
            assert isinstance(command, SettleTransaction)
            original = begun.get((command.account_id, command.number))
            money = [] if original is None else _money(original, command.amount)
        for account_id, amount in money:
            change = _Change(request.start_s, request.end_s, amount)
            changes.setdefault(account_id, []).append(change)
    return changes


def _money(command: CreateTransaction, settled_amount: int) -> list[tuple[int, int]]:
    if not command.entries:
        return [(command.account_id, command.amount)]

    def amount(entry: Entry) -> int:
        whole = signed(entry)
        return whole if not settled_amount else settled_amount if whole > 0 else -settled_amount

    return [(entry.account_id, amount(entry)) for entry in command.entries]

"""What must hold of transfers once all is healed: all entries or none, and no money made or lost.

`differences` is pure: it holds what the clients have recorded against everything that the ledger
shows of every account.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from google.protobuf import text_format

from ledger.v1 import ledger_pb2
from ledger_client import AsyncLedgerClient, LedgerError
from tests.torture.report import Violation
from tests.torture.transfers import Bank, Step
from tests.torture.workload import CANCELLED, PENDING, SETTLED

AT_ONCE = 24
PAGE_SIZE = 1_000
DEBIT = ledger_pb2.DIRECTION_DEBIT
EXPIRED = ledger_pb2.TRANSACTION_STATUS_EXPIRED
REFUSALS = {
    ledger_pb2.TRANSACTION_STATUS_INSUFFICIENT_FUNDS,
    ledger_pb2.TRANSACTION_STATUS_REJECTED,
}

Key = tuple[str, str]
"""A transaction by its home account and request id: refused ones may have no id elsewhere."""


@dataclass
class Books:
    """What the ledger shows: every account, and its history."""

    accounts: dict[str, ledger_pb2.Account] = field(default_factory=dict)
    histories: dict[str, list[ledger_pb2.Transaction]] = field(default_factory=dict)


async def check_transfers(
    client: AsyncLedgerClient, bank: Bank, checks: Counter[str], ask: Callable[[], bool]
) -> list[Violation]:
    """Check a bank that has stopped; ``ask`` chooses the writes whose outcome is asked for again.

    What these checks find, and what the bank itself has found, is returned.
    """
    await bank.resolve()
    slots = asyncio.Semaphore(AT_ONCE)
    books = Books()
    found: list[str] = []

    async def read(account_id: str) -> None:
        async with slots:
            listing = client.list_transactions(account_id, page_size=PAGE_SIZE)
            books.histories[account_id] = [item async for item in listing]
            books.accounts[account_id] = await client.get_account(account_id)

    try:
        await asyncio.gather(*map(read, bank.wallets))
    except LedgerError as error:
        return [Violation(f"transfers: cannot be read when all is healed: {error}")]
    by_id = {item.id: item for listed in books.histories.values() for item in listed}

    async def ask_for(step: Step) -> None:
        async with slots:
            try:
                await bank.ask_again(step)
                if not step.creates:
                    return
                shown = await client.get_transaction(step.answer.id)
                if step.kind != "reverse":
                    again = await client.get_transaction(
                        account_id=step.account_id, request_id=step.request_id
                    )
                    if again != shown:
                        found.append(f"by its request {line(again)}, by its id {line(shown)}")
            except LedgerError as error:
                found.append(f"the outcome of {step.request_id}: {error}")
                return
            there = by_id.get(step.answer.id)
            if there is None or _plain(shown) != _plain(there):
                found.append(f"GetTransaction shows {line(shown)}, a list {line(there)}")
        checks["transfers asked for by id and by request, and repeated: as answered"] += 1

    await asyncio.gather(*(ask_for(step) for step in bank.steps if step.answer and ask()))
    found += differences(bank.steps, books)
    checks["transfers checked: all entries or none, in the histories of all accounts"] += sum(
        step.kind in ("transfer", "reverse") and step.answer not in (None, False)
        for step in bank.steps
    )
    bank.total = sum(account.settled_balance for account in books.accounts.values())
    checks["checkpoints with all accounts together as topped up"] += 1
    return [Violation(f"transfers: {text}") for text in found] + bank.violations


def differences(steps: Iterable[Step], books: Books) -> list[str]:
    """Hold what the ledger shows against what was acknowledged; return what differs."""
    seen: defaultdict[Key, dict[str, ledger_pb2.Transaction]] = defaultdict(dict)
    found = []
    for account_id, listed in books.histories.items():
        for item in listed:
            there = seen[item.account_id, item.request_id]
            if account_id in there:
                found.append(f"{account_id} has {item.request_id} twice")
            there[account_id] = item
    ends: defaultdict[str, list[Step]] = defaultdict(list)
    brought_in = 0
    reversed_by: defaultdict[str, int] = defaultdict(int)
    steps = list(steps)
    for step in steps:
        if step.kind in ("settle", "cancel") and step.answer:
            ends[step.transaction_id].append(step)
    for step in steps:
        if not step.creates:
            continue
        there = seen.pop((step.account_id, step.request_id), {})
        if step.answer is None or step.answer is False:
            if step.refused or step.answer is False:
                found += [
                    f"{step.request_id} was refused, but {account_id} shows {line(item)}"
                    for account_id, item in there.items()
                    if item.status not in REFUSALS
                ]
            continue
        final = _final_status(step, ends[step.answer.id], there.get(step.account_id))
        found += _faults(step, final, there)
        if step.kind == "move" and final == SETTLED:
            brought_in += step.amount
        if step.kind == "reverse" and final == SETTLED:
            reversed_by[step.transaction_id] += sum(entry.amount for entry in step.answer.entries)
    found += [
        f"request {key} was never made, but there is {list(map(line, item.values()))}"
        for key, item in seen.items()
    ]
    for account_id, listed in books.histories.items():
        for item in listed:
            # The home keeps how much was reversed; accounts of other shards do not show it.
            kept = reversed_by[item.id]
            shown = sum(item.reversed_amounts)
            if shown != kept and (shown or item.account_id == account_id):
                found.append(f"{line(item)} was reversed by {kept}")
    found += _wrong_balances(books)
    total = sum(account.settled_balance for account in books.accounts.values())
    if total != brought_in:
        found.append(f"all accounts have {total}, but {brought_in} was brought in")
    return found


def _final_status(step: Step, ends: list[Step], at_home: ledger_pb2.Transaction | None) -> int:
    """Return what must have become of a transaction."""
    if step.answer.status != PENDING:
        return int(step.answer.status)
    if ends:
        return SETTLED if ends[0].kind == "settle" else CANCELLED
    if step.expire_time is not None and at_home is not None and at_home.status == EXPIRED:
        return EXPIRED
    return PENDING


def _faults(step: Step, final: int, there: dict[str, ledger_pb2.Transaction]) -> list[str]:
    """Hold one transaction against how every account shows it."""
    answer, shown = step.answer, line(step.answer)
    parties = {entry.account_id for entry in answer.entries} & (
        {step.account_id} if step.kind == "move" else {entry.account_id for entry in answer.entries}
    )
    found = []
    if step.kind == "reverse" and step.account_id not in parties:
        found.append(f"the reversal {shown} is at another home")
    if final in REFUSALS:
        # A participant that was never asked, or only told not to, has nothing of it.
        parties = {step.account_id}
        found += [
            f"{shown} was refused, but {account_id} shows {line(item)}"
            for account_id, item in there.items()
            if item.status not in REFUSALS
        ]
    if missing := parties - there.keys():
        found.append(f"{shown} is not in the histories of {sorted(missing)}")
    if final in REFUSALS:
        return found
    for account_id, item in there.items():
        if (item.id, item.status) != (answer.id, final) or item.entries != answer.entries:
            found.append(f"{shown} (now {final}) is shown by {account_id} as {line(item)}")
    if len({item.settled_amount for item in there.values()}) > 1:
        found.append(f"{shown} was settled in different parts: {list(map(line, there.values()))}")
    return found


def _wrong_balances(books: Books) -> list[str]:
    """Hold every balance against the history that leads to it."""
    found = []
    for account_id, state in books.accounts.items():
        settled = held = pending = 0
        for item in books.histories[account_id]:
            if item.status not in (SETTLED, PENDING):
                continue
            pending += item.status == PENDING
            for entry in item.entries:
                if entry.account_id != account_id:
                    continue
                amount = item.settled_amount or entry.amount
                if item.status == PENDING:
                    held += amount if entry.direction == DEBIT else 0
                else:
                    settled += -amount if entry.direction == DEBIT else amount
        if (state.settled_balance, state.available_balance) != (settled, settled - held):
            found.append(
                f"{account_id} has {state.settled_balance} and {state.available_balance}, but its "
                f"transactions make {settled} and {settled - held}"
            )
        if state.pending_transactions != pending:
            found.append(f"{account_id} says {state.pending_transactions} pending, not {pending}")
        if state.available_balance < 0:
            found.append(f"{account_id} is overdrawn: {state.available_balance}")
    return found


def line(transaction: ledger_pb2.Transaction | None) -> str:
    """Write a transaction in a line."""
    return text_format.MessageToString(transaction, as_one_line=True) if transaction else "nothing"


def _plain(transaction: ledger_pb2.Transaction) -> tuple[object, ...]:
    """Return what the home and every participant must show alike.

    A participant that said no may know its own reason only: a home that refuses by itself tells
    the others once, and does not see to it that they hear.
    """
    refused = transaction.status in REFUSALS
    return (
        transaction.id,
        refused or transaction.status,
        list(transaction.entries),
        transaction.settled_amount,
        transaction.request_id,
        transaction.reversal_of,
    )

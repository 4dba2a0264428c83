"""Every reason for which a transaction with entries is refused, and how to provoke it.

The order is that of precedence. `docs/REFUSALS.md` is made of it: `python -m tests.node.refusals`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ledger_core.accounts import Direction
from ledger_core.commands import (
    CloseAccount,
    CreateAccount,
    CreateTransaction,
    Entry,
    FreezeAccount,
    Limits,
)
from ledger_core.errors import Reason, RefusalReason
from ledger_core.ids import derive_account_id, system_account_id
from ledger_core.ledgers import USD, Currency
from ledger_core.money import INT64_MAX
from tests.node.shard import Shard

DOCUMENT = Path(__file__).parents[2] / "docs" / "REFUSALS.md"

NAMES = ["payer", "first", "second", "third"]
IDS = {name: derive_account_id("main", name) for name in NAMES}


def prepare(shard: Shard) -> CreateTransaction:
    """A payer with 10,000 pays 10 to each of three others."""
    for name, account_id in IDS.items():
        shard.one(CreateAccount(account_id, "main", name))
    shard.one(CreateTransaction(IDS["payer"], 10_000, "", True, "fund"))
    entries = [
        Entry(IDS["payer"], Direction.DEBIT, 30, USD, 0),
        *(Entry(IDS[name], Direction.CREDIT, 10, USD, 0) for name in NAMES[1:]),
    ]
    return CreateTransaction(IDS["payer"], 0, "", True, "t", entries)


Provoke = Callable[[Shard, CreateTransaction, int], CreateTransaction]
"""Makes the transaction one that is to be refused for its entry of the given index."""


def _change(command: CreateTransaction, index: int, **changes: object) -> CreateTransaction:
    entries = list(command.entries)
    entries[index] = msgspec.structs.replace(entries[index], **changes)
    return msgspec.structs.replace(command, entries=entries)


def _missing(_shard: Shard, command: CreateTransaction, index: int) -> CreateTransaction:
    return _change(command, index, account_id=derive_account_id("main", f"nobody {index}"))


def _own(_shard: Shard, command: CreateTransaction, index: int) -> CreateTransaction:
    return _change(command, index, account_id=system_account_id(0, 0))


def _ledger(shard: Shard, command: CreateTransaction, index: int) -> CreateTransaction:
    account_id = derive_account_id("other", f"elsewhere {index}")
    shard.one(CreateAccount(account_id, "other", f"elsewhere {index}"))
    return _change(command, index, account_id=account_id)


def _currency(shard: Shard, command: CreateTransaction, index: int) -> CreateTransaction:
    account_id = derive_account_id("main", f"euros {index}")
    shard.one(CreateAccount(account_id, "main", f"euros {index}", currency=Currency("EUR", 2)))
    return _change(command, index, account_id=account_id)


def _closed(shard: Shard, command: CreateTransaction, index: int) -> CreateTransaction:
    shard.one(CloseAccount(command.entries[index].account_id, f"close {index}"))
    return command


def _frozen(shard: Shard, command: CreateTransaction, index: int) -> CreateTransaction:
    shard.one(FreezeAccount(command.entries[index].account_id, f"freeze {index}"))
    return command


def _version(_shard: Shard, command: CreateTransaction, index: int) -> CreateTransaction:
    return _change(command, index, expected_version=99)


def _below(_shard: Shard, command: CreateTransaction, index: int) -> CreateTransaction:
    return _change(command, index, minimum_balance=1_000_000)


def _above(_shard: Shard, command: CreateTransaction, index: int) -> CreateTransaction:
    return _change(command, index, maximum_balance=-1)


def _limited(shard: Shard, command: CreateTransaction, index: int, limits: Limits) -> int:
    name = f"limited {index} {limits}"
    account_id = derive_account_id("main", name)
    shard.one(CreateAccount(account_id, "main", name, limits=limits))
    return account_id


def _funds(shard: Shard, command: CreateTransaction, index: int) -> CreateTransaction:
    """The entry pays, instead of being paid, and the one before it gets more for that."""
    poor = _limited(shard, command, index, Limits())
    entry, before = command.entries[index], command.entries[index - 1]
    command = _change(command, index, account_id=poor, direction=Direction.DEBIT)
    amount = before.amount + (2 if before.direction is Direction.CREDIT else -2) * entry.amount
    return _change(command, index - 1, amount=amount)


def _limit(shard: Shard, command: CreateTransaction, index: int) -> CreateTransaction:
    return _change(command, index, account_id=_limited(shard, command, index, Limits(0, 9)))


def _overflow(shard: Shard, command: CreateTransaction, index: int) -> CreateTransaction:
    """Money that went in and out again leaves the counters full."""
    account_id = _limited(shard, command, index, Limits(None))
    other = _limited(shard, command, index, Limits(None, INT64_MAX))
    for number, (debit, credit) in enumerate(((other, account_id), (account_id, other))):
        full = [
            Entry(debit, Direction.DEBIT, INT64_MAX - 5, USD, 0),
            Entry(credit, Direction.CREDIT, INT64_MAX - 5, USD, 0),
        ]
        shard.one(CreateTransaction(debit, 0, "", True, f"fill {index} {number}", full))
    return _change(command, index, account_id=account_id)


@dataclass(frozen=True)
class Refusal:
    reason: RefusalReason
    meaning: str
    provoke: Provoke


REFUSALS = [
    Refusal(RefusalReason.ACCOUNT_NOT_FOUND, "there is no such account", _missing),
    Refusal(
        RefusalReason.SYSTEM_ACCOUNT,
        "the account is the shard's own (external, in transit); it moves by itself",
        _own,
    ),
    Refusal(RefusalReason.LEDGER_MISMATCH, "the account is of another ledger", _ledger),
    Refusal(RefusalReason.CURRENCY_MISMATCH, "the account has another currency", _currency),
    Refusal(RefusalReason.ACCOUNT_CLOSED, "the account is closed, for good", _closed),
    Refusal(RefusalReason.ACCOUNT_FROZEN, "the account is frozen; unfreeze it first", _frozen),
    Refusal(
        RefusalReason.VERSION_MISMATCH,
        "the account is not at `expected_version`: something happened since it was read",
        _version,
    ),
    Refusal(
        RefusalReason.BALANCE_BELOW_MINIMUM,
        "the settled balance would be below the entry's `minimum_balance`",
        _below,
    ),
    Refusal(
        RefusalReason.BALANCE_ABOVE_MAXIMUM,
        "the settled balance would be above the entry's `maximum_balance`",
        _above,
    ),
    Refusal(
        RefusalReason.INSUFFICIENT_FUNDS,
        "the available balance would be below the account's minimum (0, if it has no other)",
        _funds,
    ),
    Refusal(
        RefusalReason.LIMIT_EXCEEDED,
        "the settled balance and what is on its way would be above the account's maximum",
        _limit,
    ),
    Refusal(
        RefusalReason.BALANCE_OVERFLOW,
        "a counter of the account would pass 2^63 - 1",
        _overflow,
    ),
]

# Refusals that only transactions across shards know; the tests of the commit rules provoke them.
ACROSS_SHARDS = {
    RefusalReason.SHARD_UNREACHABLE: "a shard could not be asked in time; try again",
    RefusalReason.ABANDONED: "the transaction was given up before it was begun; try again",
}


def render() -> str:
    """The document."""
    lines = [
        "# Refusals",
        "",
        "Made from the tests by `python -m tests.node.refusals`; a test holds it to what runs.",
        "",
        "## Transactions with entries",
        "",
        "Refused transactions are recorded, with the reason, the entry, and the amounts in",
        "question. The call succeeds (gRPC status OK), nothing moves, and the answer to a repeat",
        "stays the same. Where several reasons hold, the first of this table is given, for the",
        "first entry that it holds for; across shards, that of the lowest entry.",
        "",
        "| | reason | status of the transaction | meaning |",
        "|---|---|---|---|",
    ]
    for place, refusal in enumerate(REFUSALS, 1):
        status = _status(refusal.reason)
        lines.append(f"| {place} | `{refusal.reason}` | {status} | {refusal.meaning} |")
    lines += [
        f"| | `{reason}` | REJECTED | {meaning} |" for reason, meaning in ACROSS_SHARDS.items()
    ]
    lines += [
        "",
        "In the one-account form an unknown account, an account of the ledger's own and an",
        "overflow are errors of the call, and not recorded.",
        "",
        "## Errors of calls",
        "",
        "Nothing was changed. The reason is that of the `google.rpc.ErrorInfo`, domain `ledger`.",
        "",
        "| reason | gRPC status |",
        "|---|---|",
        *(f"| `{reason}` | {reason.status} |" for reason in Reason),
        "",
        "`OUTCOME_UNKNOWN` is the exception: the write may have happened; the same request id",
        "tells.",
        "",
    ]
    return "\n".join(lines)


def _status(reason: RefusalReason) -> str:
    return reason if reason is RefusalReason.INSUFFICIENT_FUNDS else "REJECTED"


if __name__ == "__main__":
    DOCUMENT.write_text(render())

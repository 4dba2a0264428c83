"""Bulk calls that happen as a whole: their items are the entries of one transaction.

Transfers that happen together or not at all *are* one transaction in double entry. So an atomic
call goes the way of a single CreateTransaction with many entries, and needs no machinery of its
own: on one shard it is one command, across shards a two-phase commit, and its request id makes it
happen once. What is done here: items are checked, joined, and named where something is wrong.
"""

import re
from collections.abc import Awaitable, Callable, Iterator

from ledger.v1 import ledger_pb2
from ledger_core.commands import ENTRIES_MAX
from ledger_core.errors import (
    FieldViolation,
    LedgerError,
)
from ledger_core.ids import format_account_id
from ledger_core.ledgers import MAIN_NAME
from ledger_core.transfers import TransferForm
from ledger_gateway import validation
from ledger_gateway.fields import Violations, wrong
from ledger_gateway.ledger_directory import LedgerDirectory
from ledger_gateway.shard_calls import Deadline
from ledger_gateway.transactions import imbalance
from ledger_gateway.transfer_columns import VIOLATIONS_MAX, count_of

Request = ledger_pb2.CreateTransactionsRequest
Single = ledger_pb2.CreateTransactionRequest
Create = Callable[[Single], Awaitable[ledger_pb2.Transaction]]
"""Runs a single transaction; raises LedgerError."""

# What only the whole can have: the field of an item, and what it is there.
_OF_THE_WHOLE = (
    "request_id",
    "description",
    "external_reference",
    "metadata",
    "effective_time",
    "actor",
)
_FORMS = {
    TransferForm.DEBIT: (ledger_pb2.DIRECTION_DEBIT, ledger_pb2.DIRECTION_CREDIT),
    TransferForm.CREDIT: (ledger_pb2.DIRECTION_CREDIT, ledger_pb2.DIRECTION_DEBIT),
}
_ONE_ACCOUNT = (
    "the one-account form cannot be part of an atomic call: its other side is another account on "
    "every shard; name both accounts, with an account of yours for the world outside"
)
_ENTRY = re.compile(r"entries\[(\d+)\](.*)", re.DOTALL)


async def create(request: Request, run: Create) -> ledger_pb2.Transaction:
    """Run a request that is right; raises LedgerError."""
    try:
        made = await run(_whole(request))
    except LedgerError as error:
        error.violations = _renamed(request, error.violations)
        raise
    if made.HasField("refusal"):
        made.refusal.item = _item_of(request, made.refusal.entry_index)[0]
    return made


async def require_balance(request: Request, directory: LedgerDirectory, deadline: Deadline) -> None:
    """Raise LedgerError unless the ledger has all currencies, and each item balances."""
    codes = {
        f"transactions[{index}].entries[{place}].currency": entry.currency
        for index, one in enumerate(request.transactions)
        for place, entry in enumerate(one.entries)
    }
    if count_of(request.transfers):
        codes["transfers.currency"] = request.transfers.currency
    currencies = await directory.currencies(_ledger(request), codes, deadline)
    found = iter(currencies.values())
    violations: Violations = []
    for index, one in enumerate(request.transactions):
        differences: dict[str, int] = {}
        by_code = {}
        for entry, currency in zip(one.entries, found, strict=False):
            sign = 1 if entry.direction == ledger_pb2.DIRECTION_DEBIT else -1
            by_code[currency.code] = currency
            before = differences.get(currency.code, 0)
            differences[currency.code] = before + sign * entry.amount
        for code, difference in differences.items():
            if difference:
                text = f"{imbalance(by_code[code], difference)}: each item balances by itself"
                violations += wrong(f"transactions[{index}].entries", text)
    validation.require(violations[:VIOLATIONS_MAX])


def violations(request: Request) -> Violations:
    """Check an atomic request whose columns are right by themselves.

    Currencies and balance are checked with the ledger.
    """
    found: Violations = []
    for faults in _item_faults(request):
        found += faults
        if len(found) >= VIOLATIONS_MAX:
            return found[:VIOLATIONS_MAX]
    count = sum(len(one.entries) for one in request.transactions) + 2 * count_of(request.transfers)
    if count > ENTRIES_MAX:
        found += wrong(
            "atomic",
            f"is one transaction, of at most {ENTRIES_MAX:,} entries; these items have {count:,}, "
            f"two for each transfer: send fewer items, or leave atomic out",
        )
    if found:
        return found
    return _renamed(request, validation.create_transaction(_whole(request)))[:VIOLATIONS_MAX]


def _item_faults(request: Request) -> Iterator[Violations]:
    """Yield what items may not be or have within a whole, item by item."""
    ledger = _ledger(request)
    for index, one in enumerate(request.transactions):
        yield _transaction_faults(f"transactions[{index}]", one, ledger)
    transfers = request.transfers
    if not count_of(transfers):
        return
    if (transfers.ledger or MAIN_NAME) != ledger:
        yield _other_ledger("transfers.ledger", ledger)
    for index, form in enumerate(transfers.forms):
        if form not in _FORMS:
            yield wrong(f"transfers.forms[{index}]", _ONE_ACCOUNT)
    if transfers.request_ids:
        yield _of_the_whole("transfers.request_ids", "atomic.request_id")
    if transfers.texts:
        whole = "atomic.description, external_reference and metadata"
        yield _of_the_whole("transfers.texts", whole)
    if transfers.actor:
        yield _of_the_whole("transfers.actor", "atomic.actor")


def _transaction_faults(path: str, one: Single, ledger: str) -> Violations:
    if one.account_id or one.amount:
        return wrong(f"{path}.account_id" if one.account_id else f"{path}.amount", _ONE_ACCOUNT)
    found: Violations = []
    if len(one.entries) < 2:
        found += wrong(
            f"{path}.entries", f"must be 2 or more, not {len(one.entries)}: each item balances"
        )
    if (one.ledger or MAIN_NAME) != ledger:
        found += _other_ledger(f"{path}.ledger", ledger)
    present = {field.name for field, _ in one.ListFields()}
    for name in _OF_THE_WHOLE:
        if name in present:
            found += _of_the_whole(f"{path}.{name}", f"atomic.{name}")
    if not one.settled:
        found += wrong(
            f"{path}.settled", "must be true: an atomic call moves all money at once, or none"
        )
    if "expire_time" in present:
        found += wrong(f"{path}.expire_time", "goes with pending transactions only")
    if one.dry_run:
        found += wrong(
            f"{path}.dry_run",
            "cannot be part of an atomic call; CreateTransaction with all entries and dry_run "
            "tells what would become of them",
        )
    return found


def _of_the_whole(field: str, whole: str) -> Violations:
    return wrong(field, f"must be empty: an atomic call is one transaction; use {whole}")


def _other_ledger(field: str, ledger: str) -> Violations:
    return wrong(
        field, f"must be {ledger!r}, as that of the first item: an atomic call is of one ledger"
    )


def _ledger(request: Request) -> str:
    """Return the ledger of the first item."""
    first = request.transactions[0].ledger if request.transactions else request.transfers.ledger
    return first or MAIN_NAME


def _whole(request: Request) -> Single:
    """Return the one transaction that the items make."""
    asked = request.atomic
    whole = Single(
        description=asked.description,
        settled=True,
        request_id=asked.request_id,
        ledger=_ledger(request),
        external_reference=asked.external_reference,
        effective_time=asked.effective_time if asked.HasField("effective_time") else None,
        metadata=asked.metadata,
        actor=asked.actor,
    )
    for one in request.transactions:
        whole.entries.extend(one.entries)
    transfers = request.transfers
    count = count_of(transfers)
    forms = transfers.forms * count if len(transfers.forms) == 1 else transfers.forms
    columns = (forms, transfers.first_account_ids, transfers.second_account_ids, transfers.amounts)
    for form, first, second, amount in zip(*columns, strict=True):
        sides = _FORMS[TransferForm(form)]
        for account_id, direction in zip((first, second), sides, strict=True):
            whole.entries.add(
                account_id=format_account_id(account_id),
                direction=direction,
                amount=amount,
                currency=transfers.currency,
            )
    return whole


def _item_of(request: Request, entry_index: int) -> tuple[str, str]:
    """Return the item that an entry belongs to, and which of a transaction's entries it is."""
    place = entry_index
    for index, one in enumerate(request.transactions):
        if place < len(one.entries):
            return f"transactions[{index}]", f".entries[{place}]"
        place -= len(one.entries)
    return f"transfers[{place // 2}]", ""


def _renamed(request: Request, violations: Violations) -> Violations:
    """Name fields of the whole as they are named in the request; each fault is told once."""
    found: dict[FieldViolation, None] = {}
    for violation in violations:
        field = violation.field
        if match := _ENTRY.fullmatch(field):
            item, entry = _item_of(request, int(match[1]))
            field = f"{item}{entry}{match[2]}" if entry else f"transfers{match[2]}"
        elif field == "ledger":
            field = "transactions[0].ledger" if request.transactions else "transfers.ledger"
        else:
            field = f"atomic.{field}"
        found[FieldViolation(field, violation.description)] = None
    return list(found)

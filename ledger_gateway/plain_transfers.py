"""Single transactions that are no more than a transfer: those of which columns can say all."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from ledger.v1 import ledger_pb2
from ledger_core.commands import TransferText
from ledger_core.ids import parse_account_id, request_key
from ledger_core.ledgers import MAIN_NAME, USD, Currency
from ledger_core.transfers import TransferForm
from ledger_gateway import conversion, transfer_columns
from ledger_gateway.transfer_columns import Columns, Terms
from ledger_gateway.transfer_pieces import Transfers

_CANONICAL_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\Z")
_NO_ACCOUNT = "0" * 16
NO_TEXT = TransferText()

Currencies = dict[tuple[str, str], Currency]
"""By ledger and code, as requests name them."""


@dataclass(slots=True)
class Sorted:
    """General transactions by the way they go; ``indexes`` are those of each group's items."""

    alone: list[int]
    groups: list[Transfers] = field(default_factory=list)
    indexes: list[list[int]] = field(default_factory=list)


def may_be_plain(request: ledger_pb2.CreateTransactionRequest) -> bool:
    """Whether columns can say all of a valid request, if its entries have the same currency."""
    if not request.settled or request.dry_run or request.HasField("effective_time"):
        return False
    if request.request_id and not _CANONICAL_UUID.match(request.request_id):
        return False
    if not request.entries:
        return request.account_id != _NO_ACCOUNT
    if len(request.entries) != 2:
        return False
    first, second = request.entries
    return (
        first.amount == second.amount
        and first.direction != second.direction
        and first.account_id != second.account_id
        and _NO_ACCOUNT not in (first.account_id, second.account_id)
        and not any(
            entry.HasField(name)
            for entry in request.entries
            for name in ("expected_version", "minimum_balance", "maximum_balance")
        )
    )


def sort_plain(
    items: Iterable[tuple[int, ledger_pb2.CreateTransactionRequest]],
    currencies: Currencies,
    alone: list[int],
) -> Sorted:
    """Put transfers into groups of the same terms, in their order; add the others to ``alone``."""
    wanted: list[tuple[int, ledger_pb2.CreateTransactionRequest, Terms | None]] = []
    first_of: dict[str, Terms] = {}
    for index, one in items:
        terms = None
        if one.entries:
            ledger = one.ledger or MAIN_NAME
            known = {currencies.get((ledger, entry.currency)) for entry in one.entries}
            currency = known.pop()
            if known or currency is None:
                alone.append(index)
                continue
            terms = Terms(ledger, currency, one.actor)
            first_of.setdefault(one.actor, terms)
        wanted.append((index, one, terms))
    # The one-account form goes with whatever its actor does before it, or after: in their order.
    latest = dict(first_of)
    groups: dict[Terms, list[tuple[int, ledger_pb2.CreateTransactionRequest]]] = {}
    for index, one, own in wanted:
        terms = own or latest.get(one.actor) or Terms(MAIN_NAME, USD, one.actor)
        latest[one.actor] = terms
        groups.setdefault(terms, []).append((index, one))
    found = Sorted(alone)
    for terms, members in groups.items():
        found.groups.append(Transfers(columns_of([one for _, one in members]), terms))
        found.indexes.append([index for index, _ in members])
    return found


def moved(request: ledger_pb2.CreateTransactionRequest) -> tuple[TransferForm, int, int, int]:
    """Return the form, the accounts and the amount of what is no more than a transfer."""
    if not request.entries:
        form = TransferForm.IN if request.amount > 0 else TransferForm.OUT
        return form, parse_account_id(request.account_id), 0, abs(request.amount)
    first, second = request.entries
    debits = first.direction == ledger_pb2.DIRECTION_DEBIT
    form = TransferForm.DEBIT if debits else TransferForm.CREDIT
    home, other = parse_account_id(first.account_id), parse_account_id(second.account_id)
    return form, home, other, first.amount


def text_of(request: ledger_pb2.CreateTransactionRequest) -> TransferText:
    """Return what it has in words."""
    metadata = conversion.metadata(request.metadata)
    return TransferText(request.description, request.external_reference, metadata)


def columns_of(requests: list[ledger_pb2.CreateTransactionRequest]) -> Columns:
    """Return transactions that are no more than transfers as columns."""
    forms, first, second, amounts, request_ids = [], [], [], [], []
    texts = {}
    for place, one in enumerate(requests):
        form, home, other, amount = moved(one)
        forms.append(form)
        first.append(home)
        second.append(other)
        amounts.append(amount)
        request_ids.append(request_key(one.request_id) if one.request_id else b"")
        if (text := text_of(one)) != NO_TEXT:
            texts[place] = text
    return transfer_columns.join(
        forms=forms,
        first=first,
        second=second,
        amounts=amounts,
        request_ids=request_ids,
        texts=texts,
    )

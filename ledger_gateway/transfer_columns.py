"""Transfers as columns, on their way from a request into blocks: checked, and cut up by shards.

Everything here works on whole columns. A loop over items would cost more than all the rest.
"""

import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from ledger.v1 import ledger_pb2
from ledger_core.accounts import Direction
from ledger_core.commands import (
    ACTOR_CHARACTERS_MAX,
    DESCRIPTION_CHARACTERS_MAX,
    REFERENCE_CHARACTERS_MAX,
    CreateTransaction,
    Entry,
    Source,
    TransferText,
)
from ledger_core.ledgers import MAIN_NAME, Currency
from ledger_core.transfers import I64Array, TransferForm, U64Array
from ledger_gateway import conversion, fields
from ledger_gateway.fields import Violations, wrong

VIOLATIONS_MAX = 20
BLOCK_AMOUNT_END = 1 << 51
"""Amounts from here on go alone, so that the sum of a block's amounts always fits."""

# Of an item's text: its index, and what says how long it is.
_TEXT_KEY_BYTES = 12

IndexArray = NDArray[np.intp]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Terms:
    """What all transfers of a block share: ledger and currency of the entries, and the actor."""

    ledger: str
    currency: Currency
    actor: str


@dataclass(frozen=True, slots=True)
class Columns:
    """Transfers, checked. ``request_ids`` has a row of 16 bytes for each."""

    forms: NDArray[np.uint8]
    first: U64Array
    second: U64Array
    amounts: I64Array
    request_ids: NDArray[np.uint8]
    texts: dict[int, TransferText] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.forms)

    def single(
        self, item: int, shard_ids: tuple[int, int], terms: Terms, source: Source
    ) -> CreateTransaction:
        """Return the command for one that goes alone; ``shard_ids`` are those of its accounts."""
        form = TransferForm(int(self.forms[item]))
        home, amount = int(self.first[item]), int(self.amounts[item])
        signed, entries = 0, []
        if form.is_one_account:
            signed = amount if form is TransferForm.IN else -amount
        else:
            side = Direction.DEBIT if form is TransferForm.DEBIT else Direction.CREDIT
            entries = [
                Entry(home, side, amount, terms.currency, shard_ids[0]),
                Entry(int(self.second[item]), side.opposite, amount, terms.currency, shard_ids[1]),
            ]
        text = self.texts.get(item, TransferText())
        return CreateTransaction(
            account_id=home,
            amount=signed,
            description=text.description,
            settled=True,
            request_id=self.request_id(item),
            entries=entries,
            ledger=terms.ledger if entries else MAIN_NAME,
            external_reference=text.external_reference,
            metadata=text.metadata,
            actor=terms.actor,
            source=source,
        )

    def request_id(self, item: int) -> str:
        """Return a request id as text."""
        return str(uuid.UUID(bytes=self.request_ids[item].tobytes()))


def text_bytes(text: TransferText | None) -> int:
    """Return how many bytes a text takes in a block at most; it always fits into one."""
    return len(_encode(text)) + _TEXT_KEY_BYTES if text else 0


def new_request_ids(count: int) -> NDArray[np.uint8]:
    """Return fresh UUIDs version 7, a row of 16 bytes each: `ledger_core.ids.new_request_id`."""
    found = np.empty((count, 16), np.uint8)
    found[:, :6] = np.frombuffer((time.time_ns() // 1_000_000).to_bytes(6), np.uint8)
    found[:, 6:] = np.frombuffer(os.urandom(10 * count), np.uint8).reshape(count, 10)
    found[:, 6] = found[:, 6] & 0x0F | 0x70
    found[:, 8] = found[:, 8] & 0x3F | 0x80
    return found


def count_of(transfers: ledger_pb2.Transfers) -> int:
    """Return how many transfers a request has, if its columns are as long as they must be."""
    return len(transfers.first_account_ids)


def violations(transfers: ledger_pb2.Transfers) -> Violations:
    """Check columns: at most ``VIOLATIONS_MAX`` are listed, by column and index.

    Whether the ledger has the currency is not asked here.
    """
    found = [
        *fields.ledger(transfers.ledger, "transfers.ledger"),
        *fields.currency_code("transfers.currency", transfers.currency),
        *fields.line("transfers.actor", transfers.actor, ACTOR_CHARACTERS_MAX),
    ]
    if lengths := _lengths(transfers):
        return found + lengths
    found += _numbers(transfers, VIOLATIONS_MAX - len(found))
    for index in sorted(transfers.texts):
        if len(found) >= VIOLATIONS_MAX:
            break
        found += _text(index, transfers.texts[index], count_of(transfers))
    return found[:VIOLATIONS_MAX]


def columns(transfers: ledger_pb2.Transfers) -> Columns:
    """Return columns in which nothing was found wrong; makes request ids where there are none."""
    count = count_of(transfers)
    texts = {}
    for index, text in transfers.texts.items():
        made = TransferText(
            text.description, text.external_reference, conversion.metadata(text.metadata)
        )
        if made != _NO_TEXT:
            texts[index] = made
    request_ids = np.frombuffer(transfers.request_ids, np.uint8).reshape(-1, 16)
    return Columns(
        forms=_forms(transfers),
        first=np.array(transfers.first_account_ids, np.uint64),
        second=np.array(transfers.second_account_ids, np.uint64),
        amounts=np.array(transfers.amounts, np.int64),
        request_ids=request_ids if len(request_ids) else new_request_ids(count),
        texts=texts,
    )


def join(
    *,
    forms: Sequence[int],
    first: Sequence[int],
    second: Sequence[int],
    amounts: Sequence[int],
    request_ids: Sequence[bytes],
    texts: dict[int, TransferText],
) -> Columns:
    """Return transfers that were checked one by one as columns; an empty request id is made."""
    made = iter(new_request_ids(sum(not request_id for request_id in request_ids)))
    joined = b"".join(request_id or next(made).tobytes() for request_id in request_ids)
    return Columns(
        np.array(forms, np.uint8),
        np.array(first, np.uint64),
        np.array(second, np.uint64),
        np.array(amounts, np.int64),
        np.frombuffer(joined, np.uint8).reshape(-1, 16),
        texts,
    )


_NO_TEXT = TransferText()
_FORMS = bytes(TransferForm)
# As a plain number, which numpy compares far faster than a member of an enum.
_IN = int(TransferForm.IN)
_encode = msgspec.msgpack.Encoder().encode


def _forms(transfers: ledger_pb2.Transfers) -> NDArray[np.uint8]:
    forms, count = np.frombuffer(transfers.forms, np.uint8), count_of(transfers)
    return np.full(count, forms[0]) if len(forms) == 1 else forms


def _lengths(transfers: ledger_pb2.Transfers) -> Violations:
    count = count_of(transfers)
    has = f"must be as many as first_account_ids, which has {count:,}"
    found: Violations = []
    for name, length in (
        ("second_account_ids", len(transfers.second_account_ids)),
        ("amounts", len(transfers.amounts)),
    ):
        if length != count:
            found += wrong(f"transfers.{name}", f"{has}; there are {length:,}")
    if len(transfers.forms) not in ({1, count} if count else {0}):
        found += wrong("transfers.forms", f"{has}, or one; there are {len(transfers.forms):,}")
    if len(transfers.request_ids) not in (0, 16 * count):
        found += wrong(
            "transfers.request_ids",
            f"must be empty, or have 16 bytes for each of {count:,}; it has "
            f"{len(transfers.request_ids):,} bytes",
        )
    return found


def _numbers(transfers: ledger_pb2.Transfers, found_max: int) -> Violations:
    raw = np.frombuffer(transfers.forms, np.uint8)
    first = np.array(transfers.first_account_ids, np.uint64)
    second = np.array(transfers.second_account_ids, np.uint64)
    amounts = np.array(transfers.amounts, np.int64)
    wrong_ones = (first == 0) | (first == second) | (amounts <= 0) | ((second == 0) != (raw >= _IN))
    if not wrong_ones.any() and not transfers.forms.translate(None, _FORMS):
        return []
    forms = _forms(transfers)
    one = forms >= _IN
    known = (forms >= TransferForm.DEBIT) & (forms <= TransferForm.OUT)
    faults: list[tuple[str, BoolArray, str]] = [
        (
            "forms",
            (raw < TransferForm.DEBIT) | (raw > TransferForm.OUT),
            "must be 1 (DEBIT), 2 (CREDIT), 3 (IN) or 4 (OUT)",
        ),
        ("first_account_ids", first == 0, "is required"),
        ("second_account_ids", known & ~one & (second == 0), "is required in this form"),
        ("second_account_ids", known & one & (second != 0), "must be 0 in the one-account form"),
        (
            "second_account_ids",
            (first == second) & (first != 0),
            "must not be the first account itself",
        ),
        ("amounts", amounts <= 0, "must be greater than 0: the form has the direction"),
    ]
    found: Violations = []
    for name, mask, description in faults:
        for index in np.flatnonzero(mask)[: max(0, found_max - len(found))].tolist():
            found += wrong(f"transfers.{name}[{index}]", description)
    return found


def _text(index: int, text: ledger_pb2.TransferText, count: int) -> Violations:
    path = f"transfers.texts[{index}]"
    if index >= count:
        return wrong(path, f"is of no transfer: there are {count:,}")
    return [
        *fields.text(f"{path}.description", text.description, DESCRIPTION_CHARACTERS_MAX),
        *fields.line(
            f"{path}.external_reference", text.external_reference, REFERENCE_CHARACTERS_MAX
        ),
        *fields.metadata(f"{path}.metadata", text.metadata),
    ]

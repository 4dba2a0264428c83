"""Transactions on their way into bulk calls.

Most transactions are plain transfers: settled, of two entries, without conditions. These travel as
columns (`Transfers`), and no message is made of them on their way out. All others travel as the
messages of their single calls.
"""

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from ledger.v1 import ledger_pb2
from ledger_client import _requests
from ledger_client._waiting import Waiting
from ledger_client.errors import LedgerError
from ledger_core.commands import (
    ACTOR_CHARACTERS_MAX,
    DESCRIPTION_CHARACTERS_MAX,
    METADATA_KEY_CHARACTERS_MAX,
    METADATA_KEYS_MAX,
    METADATA_VALUE_CHARACTERS_MAX,
    REFERENCE_CHARACTERS_MAX,
)
from ledger_core.ledgers import CURRENCY_CODE, LEDGER_NAME

Group = tuple[str, str, str]
"""What all transfers of a bulk call share: ledger, currency, actor."""

FORM_DEBIT = ledger_pb2.TRANSFER_FORM_DEBIT
FORM_CREDIT = ledger_pb2.TRANSFER_FORM_CREDIT
FORM_IN = ledger_pb2.TRANSFER_FORM_IN
FORM_OUT = ledger_pb2.TRANSFER_FORM_OUT

_DEBIT = ledger_pb2.DIRECTION_DEBIT
_CREDIT = ledger_pb2.DIRECTION_CREDIT

_MAIN: Group = ("", "", "")

# Together, the amounts of a bulk call stay far from what 64 bits hold.
_AMOUNT_MAX = 1 << 48
# Of a transfer without texts, if it goes as a message after all. As columns it has 45.
_TRANSFER_BYTES = 160
# What it takes to say whose text it is.
_TEXT_BYTES = 16

# All but 0, which is no account.
_ACCOUNT_ID = re.compile(r"(?!0{16})[0-9a-f]{16}\Z").match
# As UUIDs are written, so that the ledger shows the id as the caller wrote it.
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z").match

_VERSION_BITS = 0x7 << 76
_VARIANT_BITS = 0x2 << 62
_RANDOM_BITS = ((1 << 80) - 1) & ~(0xF << 76) & ~(0x3 << 62)


class Placed:
    """A transfer that the ledger recorded: what its columns say."""

    __slots__ = ("base", "number", "refusal", "sides")

    def __init__(
        self,
        base: ledger_pb2.Transaction,
        number: int,
        external_account_id: int,
        first_direction: int,
        refusal: ledger_pb2.Refusal | None,
    ) -> None:
        self.base = base
        self.number = number
        self.sides = (external_account_id, first_direction)
        self.refusal = refusal


class Item(Waiting[ledger_pb2.Transaction]):
    """A transaction that is to be created, and what became of it.

    ``request`` is its message; None for a transfer, which has columns instead.
    """

    __slots__ = (
        "amount",
        "first",
        "form",
        "group",
        "key",
        "request",
        "second",
        "text",
    )

    request: ledger_pb2.CreateTransactionRequest | None
    # Of a transfer:
    group: Group
    form: int
    first: int
    second: int
    amount: int
    key: bytes
    text: ledger_pb2.TransferText | None

    def __init__(self, request: ledger_pb2.CreateTransactionRequest | None = None) -> None:
        super().__init__(0 if request is None else request.ByteSize() + 8)
        self.request = request

    def single(self) -> ledger_pb2.CreateTransactionRequest:
        """Return the request of its single call."""
        if self.request is None:
            self.request = self._message()
        return self.request

    def home(self) -> int:
        """Return the home account as a number; 0 if the request has none."""
        if self.request is None:
            return self.first
        entries = self.request.entries
        account_id = entries[0].account_id if entries else self.request.account_id
        return int(account_id, 16) if _ACCOUNT_ID(account_id) else 0

    def of_single(self, response: ledger_pb2.CreateTransactionResponse) -> ledger_pb2.Transaction:
        """Return the transaction."""
        return response.transaction

    def answer(self) -> ledger_pb2.Transaction | None:
        """Return the transaction that it became; raise why there is none."""
        outcome = self.outcome
        return self.transaction(outcome) if type(outcome) is Placed else super().answer()

    def transaction(self, placed: Placed) -> ledger_pb2.Transaction:
        """Return the whole transaction that a transfer became."""
        base = placed.base
        made = ledger_pb2.Transaction()
        made.CopyFrom(base)
        first = f"{self.first:016x}"
        made.id = f"{first}{placed.number:016x}"
        made.account_id = first
        made.request_id = _uuid_text(self.key)
        second, direction = self.second, int(_DEBIT)
        if self.form > FORM_CREDIT:
            made.amount = self.amount if self.form == FORM_IN else -self.amount
            second, direction = placed.sides
        elif self.form == FORM_CREDIT:
            direction = _CREDIT
        add, currency, exponent = made.entries.add, base.currency, base.currency_exponent
        add(
            account_id=first,
            direction=direction,
            amount=self.amount,
            currency=currency,
            currency_exponent=exponent,
        )
        add(
            account_id=f"{second:016x}",
            direction=_CREDIT if direction == _DEBIT else _DEBIT,
            amount=self.amount,
            currency=currency,
            currency_exponent=exponent,
        )
        if self.text is not None:
            text = self.text
            made.description = text.description
            made.external_reference = text.external_reference
            if text.metadata:
                made.metadata.update(text.metadata)
        if placed.refusal is not None:
            made.refusal.CopyFrom(placed.refusal)
        return made

    def _message(self) -> ledger_pb2.CreateTransactionRequest:
        ledger, currency, actor = self.group
        request = ledger_pb2.CreateTransactionRequest(
            settled=True, request_id=_uuid_text(self.key), ledger=ledger, actor=actor
        )
        first = f"{self.first:016x}"
        if self.form > FORM_CREDIT:
            request.account_id = first
            request.amount = self.amount if self.form == FORM_IN else -self.amount
        else:
            sides = (_DEBIT, _CREDIT) if self.form == FORM_DEBIT else (_CREDIT, _DEBIT)
            for account_id, side in zip((first, f"{self.second:016x}"), sides, strict=True):
                request.entries.add(
                    account_id=account_id, direction=side, amount=self.amount, currency=currency
                )
        if self.text is not None:
            request.description = self.text.description
            request.external_reference = self.text.external_reference
            request.metadata.update(self.text.metadata)
        return request


def item(
    account_id: str,
    amount: int,
    description: str,
    settled: bool,
    entries: Sequence[ledger_pb2.Entry],
    *,
    ledger: str,
    external_reference: str,
    effective_time: datetime | None,
    expire_time: datetime | None,
    metadata: Mapping[str, str] | None,
    actor: str,
    dry_run: bool,
    request_id: str | None,
) -> Item:
    """Return what the arguments of `create_transaction` ask for.

    InvalidArgumentError names all that no message can hold.
    """
    if effective_time is None and expire_time is None:
        transfer = _transfer(
            account_id,
            amount,
            description,
            settled,
            entries,
            ledger=ledger,
            external_reference=external_reference,
            metadata=metadata,
            actor=actor,
            dry_run=dry_run,
            request_id=request_id,
        )
        if transfer is not None:
            return transfer
    return Item(
        _requests.create_transaction(
            account_id=account_id,
            amount=amount,
            description=description,
            settled=settled,
            entries=entries,
            ledger=ledger,
            external_reference=external_reference,
            effective_time=effective_time,
            expire_time=expire_time,
            metadata=metadata,
            actor=actor,
            dry_run=dry_run,
            request_id=request_id,
        )
    )


def item_of(request: ledger_pb2.CreateTransactionRequest) -> Item:
    """Return what a request asks for. It is copied; without a request id, it is given one."""
    if not (request.HasField("effective_time") or request.HasField("expire_time")):
        transfer = _transfer(
            request.account_id,
            request.amount,
            request.description,
            request.settled,
            request.entries,
            ledger=request.ledger,
            external_reference=request.external_reference,
            metadata=request.metadata,
            actor=request.actor,
            dry_run=request.dry_run,
            request_id=request.request_id,
        )
        if transfer is not None:
            return transfer
    copy = ledger_pb2.CreateTransactionRequest()
    copy.CopyFrom(request)
    copy.request_id = request.request_id or _uuid_text(new_key())
    return Item(copy)


def items(
    transactions: Iterable[ledger_pb2.CreateTransactionRequest | Mapping[str, Any]],
) -> list[Item | LedgerError]:
    """Return what requests, or arguments of `create_transaction`, ask for; or why they cannot be.

    Raises TypeError for arguments that `create_transaction` does not have.
    """
    found: list[Item | LedgerError] = []
    for transaction in transactions:
        try:
            if isinstance(transaction, ledger_pb2.CreateTransactionRequest):
                found.append(item_of(transaction))
            else:
                found.append(_item_from(**transaction))
        except LedgerError as error:
            found.append(error)
    return found


def _item_from(
    account_id: str = "",
    amount: int = 0,
    description: str = "",
    *,
    settled: bool,
    entries: Sequence[ledger_pb2.Entry] = (),
    ledger: str = "",
    external_reference: str = "",
    effective_time: datetime | None = None,
    expire_time: datetime | None = None,
    metadata: Mapping[str, str] | None = None,
    actor: str = "",
    dry_run: bool = False,
    request_id: str | None = None,
) -> Item:
    return item(
        account_id,
        amount,
        description,
        settled,
        entries,
        ledger=ledger,
        external_reference=external_reference,
        effective_time=effective_time,
        expire_time=expire_time,
        metadata=metadata,
        actor=actor,
        dry_run=dry_run,
        request_id=request_id,
    )


def new_key() -> bytes:
    """Return the 16 bytes of a fresh UUID version 7, as `ledger_core.ids.new_request_id` makes."""
    value = time.time_ns() // 1_000_000 << 80 | _VERSION_BITS | _VARIANT_BITS
    return (value | int.from_bytes(os.urandom(10)) & _RANDOM_BITS).to_bytes(16)


def moment(time_us: int) -> Timestamp:
    """Return microseconds since the Unix epoch as a message, exactly."""
    seconds, micros = divmod(time_us, 1_000_000)
    return Timestamp(seconds=seconds, nanos=micros * 1_000)


def _transfer(
    account_id: str,
    amount: int,
    description: str,
    settled: bool,
    entries: Sequence[ledger_pb2.Entry],
    *,
    ledger: str,
    external_reference: str,
    metadata: Mapping[str, str] | None,
    actor: str,
    dry_run: bool,
    request_id: str | None,
) -> Item | None:
    """Return a transfer; None if that is not what the arguments ask for, or if they are wrong."""
    if settled is not True or dry_run is not False:
        return None
    if type(ledger) is not str or type(actor) is not str:
        return None
    made, currency = None, ""
    if account_id == "":
        if amount == 0:
            made = _between_two(entries)
            currency = entries[0].currency if made is not None else ""
    elif not entries and not ledger:
        made = _one_account(account_id, amount)
    if made is None or not _identified(made, request_id):
        return None
    group = _group(ledger, currency, actor)
    if group is None or not _described(made, description, external_reference, metadata):
        return None
    made.group = group
    if group is not _MAIN:
        made.size += 4 * len(actor) + len(ledger) + 2 * len(currency)
    return made


def _between_two(entries: Sequence[ledger_pb2.Entry]) -> Item | None:
    """Return two entries that make a transfer; None for anything else."""
    try:
        one, two = entries
        amount = one.amount
        first, second = one.account_id, two.account_id
        side, other_side = one.direction, two.direction
        if (
            two.amount != amount
            or not 0 < amount <= _AMOUNT_MAX
            or side + other_side != _DEBIT + _CREDIT
            or not _DEBIT <= side <= _CREDIT
            or two.currency != one.currency
            or first == second
            or one.HasField("expected_version")
            or one.HasField("minimum_balance")
            or one.HasField("maximum_balance")
            or two.HasField("expected_version")
            or two.HasField("minimum_balance")
            or two.HasField("maximum_balance")
            or not _ACCOUNT_ID(first)
            or not _ACCOUNT_ID(second)
        ):
            return None
    except (TypeError, ValueError, AttributeError):
        return None
    made = Item()
    made.form = FORM_DEBIT if side == _DEBIT else FORM_CREDIT
    made.first = int(first, 16)
    made.second = int(second, 16)
    made.amount = amount
    return made


def _one_account(account_id: str, amount: int) -> Item | None:
    if (
        type(account_id) is not str
        or type(amount) is not int
        or not 0 < abs(amount) <= _AMOUNT_MAX
        or not _ACCOUNT_ID(account_id)
    ):
        return None
    made = Item()
    made.form = FORM_IN if amount > 0 else FORM_OUT
    made.first = int(account_id, 16)
    made.second = 0
    made.amount = abs(amount)
    return made


def _identified(made: Item, request_id: str | None) -> bool:
    """Give a transfer its request id, made here unless given; False if it is no UUID."""
    if not request_id:
        made.key = new_key()
        return True
    if type(request_id) is str and _UUID(request_id):
        made.key = bytes.fromhex(request_id.replace("-", ""))
        return True
    return False


def _described(
    made: Item, description: str, external_reference: str, metadata: Mapping[str, str] | None
) -> bool:
    """Give a transfer its texts; False if they are wrong: one would fail all of a bulk call."""
    made.size = _TRANSFER_BYTES
    made.text = None
    if description == "" and external_reference == "" and not metadata:
        return True
    try:
        if (
            len(description) > DESCRIPTION_CHARACTERS_MAX
            or len(external_reference) > REFERENCE_CHARACTERS_MAX
            or not external_reference.isprintable()
            or (metadata and not _is_right(metadata))
        ):
            return False
        made.text = ledger_pb2.TransferText(
            description=description, external_reference=external_reference, metadata=metadata
        )
    except (TypeError, ValueError, AttributeError):
        return False
    made.size += made.text.ByteSize() + _TEXT_BYTES
    return True


def _is_right(metadata: Mapping[str, str]) -> bool:
    return len(metadata) <= METADATA_KEYS_MAX and all(
        0 < len(key) <= METADATA_KEY_CHARACTERS_MAX
        and key.isprintable()
        and len(value) <= METADATA_VALUE_CHARACTERS_MAX
        for key, value in metadata.items()
    )


def _group(ledger: str, currency: str, actor: str) -> Group | None:
    """Return what a transfer shares with others; None if it is wrong."""
    if not (ledger or currency or actor):
        return _MAIN
    if (
        (ledger and not LEDGER_NAME.match(ledger))
        or (currency and not CURRENCY_CODE.match(currency))
        or len(actor) > ACTOR_CHARACTERS_MAX
        or not actor.isprintable()
    ):
        return None
    return ledger, currency, actor


def _uuid_text(key: bytes) -> str:
    digits = key.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

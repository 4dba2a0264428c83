"""Transactions on their way into bulk calls.

Most transactions are plain transfers: settled, of two entries, without conditions. These travel as
columns (`Transfers`), and no message is made of them on their way out. All others travel as the
messages of their single calls.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from ledger.v1 import ledger_pb2
from ledger_client import _requests
from ledger_client._keys import KEY_BYTES, key_texts, new_keys
from ledger_client._placed import Entries, Place
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
from ledger_core.ids import new_request_id
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
_NO_ACCOUNT = b"0" * 16
# Two entries as protobuf writes them: plain ones, of the same amount and currency. The groups: an
# entry without its currency, account, direction, amount; currency; the other entry, account,
# direction.
_TWO_ENTRIES = re.compile(
    rb"""
    (\n\x10 ((?!0{16})[0-9a-f]{16}) \x10([\x01\x02]) (\x18[\x80-\xff]*[\x01-\x7f]) )
    ("[\x03-\x0c] [A-Z][A-Z0-9_]{2,11})?
    (\n\x10 ((?!0{16})[0-9a-f]{16}) \x10([\x01\x02]) \4 )
    (?(5)\5)
    \Z
    """,
    re.VERBOSE,
).match
_DEBIT_BYTE = bytes([_DEBIT])
# As UUIDs are written, so that the ledger shows the id as the caller wrote it.
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z").match


class Item(Waiting[ledger_pb2.Transaction]):
    """A transaction that is to be created, and what became of it.

    ``request`` is its message; None for a transfer, which has columns instead.
    """

    __slots__ = (
        "_key",
        "_key_text",
        "amount",
        "entries",
        "first_id",
        "form",
        "group",
        "request",
        "second_id",
        "text",
    )

    # Of a transfer:
    form: int
    first_id: bytes
    second_id: bytes
    """As they are written: 16 hex digits."""
    amount: int
    entries: Entries | None
    """As they were asked for; None: of one account alone, whose ledger knows the other one."""

    def __init__(self, request: ledger_pb2.CreateTransactionRequest | None = None) -> None:
        super().__init__(_TRANSFER_BYTES if request is None else request.ByteSize() + 8)
        self.request = request
        self.group = _MAIN
        self.text: ledger_pb2.TransferText | None = None
        # A transfer's request id, in both forms: made when it is sent, with those of others.
        self._key = self._key_text = b""

    @property
    def key(self) -> bytes:
        """The request id of a transfer, 16 bytes; made here if it has none yet."""
        return self._key or keys_of([self])

    @property
    def key_text(self) -> bytes:
        """The same as it is written."""
        if not self._key:
            keys_of([self])
        return self._key_text

    @property
    def first(self) -> int:
        """The first account of a transfer, as a number."""
        return int(self.first_id, 16)

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

    def transaction(
        self, place: Place, number: bytes, first_direction: int
    ) -> ledger_pb2.Transaction:
        """Return the whole transaction that a transfer became; ``number`` as hex digits."""
        entries = self.entries or self._entries(place.external_account_id, first_direction)
        made = place.transaction(self.first_id, number, self.key_text, entries)
        if self.form > FORM_CREDIT:
            made.amount = self.amount if self.form == FORM_IN else -self.amount
        if self.text is not None:
            text = self.text
            made.description = text.description
            made.external_reference = text.external_reference
            if text.metadata:
                made.metadata.update(text.metadata)
        return made

    def _entries(self, external_account_id: int, first_direction: int) -> Entries:
        """Return those of a transfer into or out of one account."""
        first = ledger_pb2.Entry(
            account_id=self.first_id.decode(),
            direction=ledger_pb2.Direction.ValueType(first_direction),
            amount=self.amount,
        )
        second = ledger_pb2.Entry(
            account_id=f"{external_account_id:016x}",
            direction=_CREDIT if first_direction == _DEBIT else _DEBIT,
            amount=self.amount,
        )
        return first.SerializeToString(), second.SerializeToString()

    def _message(self) -> ledger_pb2.CreateTransactionRequest:
        ledger, currency, actor = self.group
        request = ledger_pb2.CreateTransactionRequest(
            settled=True,
            request_id=self.key_text.decode(),
            ledger=ledger,
            actor=actor,
        )
        if self.entries is None:
            request.account_id = self.first_id.decode()
            request.amount = self.amount if self.form == FORM_IN else -self.amount
        else:
            for entry in self.entries:
                request.entries.add(currency=currency).MergeFromString(entry)
        if self.text is not None:
            request.description = self.text.description
            request.external_reference = self.text.external_reference
            request.metadata.update(self.text.metadata)
        return request


def keys_of(transfers: Sequence[Item]) -> bytes:
    """Return the request ids of transfers, one after the other; those get one that have none."""
    without = [item for item in transfers if not item._key]
    if without:
        made = new_keys(len(without))
        for index, (item, text) in enumerate(zip(without, key_texts(made), strict=True)):
            item._key = made[KEY_BYTES * index : KEY_BYTES * (index + 1)]
            item._key_text = text
    return b"".join([item._key for item in transfers])


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
    copy.request_id = request.request_id or new_request_id()
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
    if made is None:
        return None
    if request_id and not _identified(made, request_id):
        return None
    if ledger or currency or actor:
        if not _is_group(ledger, currency, actor):
            return None
        made.group = ledger, currency, actor
        made.size += 4 * len(actor) + len(ledger) + 2 * len(currency)
    has_texts = description != "" or external_reference != "" or metadata
    if has_texts and not _described(made, description, external_reference, metadata):
        return None
    return made


def _between_two(entries: Sequence[ledger_pb2.Entry]) -> Item | None:
    """Return two entries that make a transfer; None for anything else."""
    try:
        one, two = entries
        found = _TWO_ENTRIES(one.SerializeToString() + two.SerializeToString())
        amount = one.amount
        if found is None or not 0 < amount <= _AMOUNT_MAX:
            return None
        currency = found.group(5)
        # The tags of the conditions that may follow are letters of a currency, too.
        if currency is not None and len(currency) != currency[1] + 2:
            return None
    except (TypeError, ValueError, AttributeError):
        return None
    first, first_id, side, other, second_id, other_side = found.group(1, 2, 3, 6, 7, 8)
    if side == other_side or first_id == second_id:
        return None
    made = Item()
    made.form = FORM_DEBIT if side == _DEBIT_BYTE else FORM_CREDIT
    made.first_id = first_id
    made.second_id = second_id
    made.amount = amount
    made.entries = first, other
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
    made.first_id = account_id.encode()
    made.second_id = _NO_ACCOUNT
    made.amount = abs(amount)
    made.entries = None
    return made


def _identified(made: Item, request_id: str) -> bool:
    """Give a transfer the request id that it is to have; False if it is no UUID."""
    if type(request_id) is str and _UUID(request_id):
        made._key = bytes.fromhex(request_id.replace("-", ""))
        made._key_text = request_id.encode()
        return True
    return False


def _described(
    made: Item, description: str, external_reference: str, metadata: Mapping[str, str] | None
) -> bool:
    """Give a transfer its texts; False if they are wrong: one would fail all of a bulk call."""
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


def _is_group(ledger: str, currency: str, actor: str) -> bool:
    """Whether transfers may share this; if not, it would fail all of a bulk call."""
    return not (
        (ledger and not LEDGER_NAME.match(ledger))
        or (currency and not CURRENCY_CODE.match(currency))
        or len(actor) > ACTOR_CHARACTERS_MAX
        or not actor.isprintable()
    )

"""Transfers as columns: many settled transactions of two entries on one shard, in a few arrays.

A block of transfers means the same as its items one after the other, each as a `CreateTransaction`.
What the columns cannot say (pending transactions, more entries, preconditions, other shards) is no
transfer and goes as a command of its own.
"""

import functools
import uuid
from collections.abc import Sequence
from enum import IntEnum

import msgspec
import numpy as np
from numpy.typing import NDArray

from ledger_core.accounts import Direction
from ledger_core.commands import (
    NO_SOURCE,
    CreateTransaction,
    CreateTransfers,
    Entry,
    Source,
    TransferPart,
)
from ledger_core.ledgers import MAIN_NAME

TRANSFERS_PER_BLOCK_MAX = 1_024

U64Array = NDArray[np.uint64]
I64Array = NDArray[np.int64]

AMOUNTS_SUM_MAX = 1 << 62
# The amounts of a block are not too large together if none is above this.
_AMOUNT_SMALL = np.array(AMOUNTS_SUM_MAX // (2 * TRANSFERS_PER_BLOCK_MAX), np.uint64)


class TransferForm(IntEnum):
    """What the first account of a transfer does. The numbers are stored: they never change.

    DEBIT and CREDIT: the side of its entry; the second account has the other side. IN and OUT:
    money in or out of it against its shard's external account; there is no second account.
    """

    DEBIT = 1
    CREDIT = 2
    IN = 3
    OUT = 4

    @property
    def is_one_account(self) -> bool:
        """Whether the other side is the external account."""
        return self in (TransferForm.IN, TransferForm.OUT)


_FORMS = bytes(TransferForm)
_TWO_ACCOUNT_FORMS = bytes((TransferForm.DEBIT, TransferForm.CREDIT))
# As an array, it is taken faster than as a number.
_ONE = np.array(1, np.uint64)


def form_column(block: CreateTransfers) -> NDArray[np.uint8]:
    """The forms: `TransferForm`."""
    return np.frombuffer(block.forms, "u1")


def first_accounts(block: CreateTransfers) -> U64Array:
    """The home accounts."""
    return np.frombuffer(block.first_accounts, "<u8")


def second_accounts(block: CreateTransfers) -> U64Array:
    """The other accounts; 0 in the one-account form."""
    return np.frombuffer(block.second_accounts, "<u8")


def amounts(block: CreateTransfers) -> I64Array:
    """The amounts, > 0, in minor units."""
    return np.frombuffer(block.amounts, "<i8")


def request_id(block: CreateTransfers, index: int) -> str:
    """The request id of an item, as its caller knows it."""
    return str(uuid.UUID(bytes=block.request_ids[16 * index : 16 * index + 16]))


def request_keys(block: CreateTransfers) -> NDArray[np.uint8]:
    """The key of every item's request, a row each: `ledger_core.ids.transaction_request_key`."""
    count = len(block.forms)
    keys = np.empty((count, 25), np.uint8)
    keys[:, :16] = np.frombuffer(block.request_ids, np.uint8).reshape(count, 16)
    keys[:, 16] = ord("a")
    keys[:, 17:] = big_endian(first_accounts(block))
    return keys


def split_rows(rows: NDArray[np.uint8]) -> list[bytes]:
    """Return the rows of an array of bytes, each by itself."""
    # Void values become bytes, far faster than slices are cut.
    split: list[bytes] = rows.view(_void(rows.shape[1]))[:, 0].tolist()
    return split


@functools.lru_cache(maxsize=256)
def _void(size: int) -> np.dtype[np.void]:
    return np.dtype((np.void, size))


def big_endian(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return numbers as one row of bytes each, the highest first."""
    swapped = values.astype(values.dtype.newbyteorder(">"))
    return swapped.view(np.uint8).reshape(len(values), values.dtype.itemsize)


def transfer_fault(block: CreateTransfers) -> str | None:
    """Return what makes a block no block at all, which no gateway sends."""
    count = len(block.forms)
    if not 1 <= count <= TRANSFERS_PER_BLOCK_MAX:
        return f"has {count} transfers; 1 to {TRANSFERS_PER_BLOCK_MAX} are taken"
    for column in (block.first_accounts, block.second_accounts, block.amounts):
        if len(column) != 8 * count:
            return "columns differ in length"
    if len(block.request_ids) != 16 * count:
        return "columns differ in length"
    # Most blocks are small: what costs least for a few items comes first.
    if block.forms.translate(None, _FORMS):
        return "has an unknown form"
    second = second_accounts(block)
    if np.count_nonzero(first_accounts(block) == second):
        return "moves money from an account to itself"
    has_one_account_form = block.forms.translate(None, _TWO_ACCOUNT_FORMS)
    if has_one_account_form and second[form_column(block) >= TransferForm.IN].any():
        return "has a second account in the one-account form"
    if _are_amounts_wrong(amounts(block)):
        return "has an amount that is not above 0, or amounts that are too large together"
    if block.texts and any(not 0 <= index < count for index in block.texts):
        return "has texts of no transfer"
    return _parts_fault(block)


def _are_amounts_wrong(values: I64Array) -> bool:
    # Without a sign, what is not above 0 less 1 is larger than any amount.
    if not np.count_nonzero(values.view(np.uint64) - _ONE >= _AMOUNT_SMALL):
        return False
    return bool((values <= 0).any() or float(values.astype(np.float64).sum()) >= AMOUNTS_SUM_MAX)


def _parts_fault(block: CreateTransfers) -> str | None:
    if not block.parts:
        return None
    counts = [part.count for part in block.parts]
    if min(counts) < 1 or sum(counts) != len(block.forms):
        return "has parts that are not its transfers"
    if block.actor or block.source != NO_SOURCE:
        return "has parts, and an actor or a source besides"
    return None


def block_parts(block: CreateTransfers) -> list[TransferPart]:
    """Return who asked for which run of items, also where one call asked for all of them."""
    return block.parts or [TransferPart(len(block.forms), block.actor, block.source)]


def _asked_by(block: CreateTransfers, index: int) -> tuple[str, Source]:
    """Return the actor and the source of an item."""
    for part in block_parts(block):
        if index < part.count:
            return part.actor, part.source
        index -= part.count
    raise IndexError("a block has no such item")


def transfer_command(block: CreateTransfers, index: int, shard_id: int) -> CreateTransaction:
    """Return an item as the command that it stands for."""
    form = TransferForm(block.forms[index])
    home = int(first_accounts(block)[index])
    amount = int(amounts(block)[index])
    text = block.texts.get(index)
    actor, source = _asked_by(block, index)
    entries: Sequence[Entry] = ()
    signed = 0
    if form.is_one_account:
        signed = amount if form is TransferForm.IN else -amount
    else:
        side = Direction.DEBIT if form is TransferForm.DEBIT else Direction.CREDIT
        other = int(second_accounts(block)[index])
        entries = (
            Entry(home, side, amount, block.currency, shard_id),
            Entry(other, side.opposite, amount, block.currency, shard_id),
        )
    command = CreateTransaction(
        account_id=home,
        amount=signed,
        description=text.description if text else "",
        settled=True,
        request_id=request_id(block, index),
        entries=list(entries),
        # In the one-account form the account tells the ledger.
        ledger=MAIN_NAME if form.is_one_account else block.ledger,
        actor=actor,
        source=source,
    )
    if text is None:
        return command
    return msgspec.structs.replace(
        command, external_reference=text.external_reference, metadata=text.metadata
    )


def shard_keys(account_ids: U64Array) -> NDArray[np.uint32]:
    """Return the shard key of every account id, as `ledger_core.ids.shard_key` does."""
    return (mixed_ids(account_ids) >> np.uint64(32)).astype(np.uint32)


def mixed_ids(account_ids: U64Array) -> U64Array:
    """Return splitmix64 of every account id; arithmetic is modulo 2**64."""
    # Of arrays, unlike single numbers, numpy does not warn about overflow.
    z: U64Array = account_ids + _ADDEND
    for bits, factor in _MIXING:
        z ^= z >> bits
        z *= factor
    z ^= z >> _LAST_SHIFT
    return z


# As splitmix64 has them.
_ADDEND = np.uint64(0x9E3779B97F4A7C15)
_MIXING = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST_SHIFT = np.uint64(31)

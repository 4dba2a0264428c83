"""Transfers between two shards as columns: what the items of their blocks stand for.

A transfer has its first account at its home and its second one at its participant. The gateway
takes many through four steps together, each a block to every shard concerned:

1. `PrepareTransfers` at the participant: check and reserve, and vote;
2. `CommitTransfers` at the home, with the votes: begin and decide in one, the commit point;
3. `ApplyTransfers` at the participant: what they have become;
4. `DeliveredTransfers` at the home: the participant has applied them.

An item of a block means the same as the command that it stands for. Everything else that may
happen to a transaction across shards (a coordinator that is gone, late steps, repeats) happens to
these as to any other. All columns are little-endian.
"""

import uuid

import numpy as np
from numpy.typing import NDArray

from ledger_core.accounts import Direction, TransactionStatus
from ledger_core.commands import (
    NO_HASH,
    ApplyDecision,
    ApplyTransfers,
    CommitTransfers,
    CreateTransaction,
    Delivered,
    DeliveredTransfers,
    Entry,
    Prepare,
    PrepareTransfers,
    Refused,
    TransferPart,
    TransfersBetweenShards,
)
from ledger_core.ids import transaction_request_key
from ledger_core.transfers import TRANSFERS_PER_BLOCK_MAX, TransferForm, big_endian, split_rows

LegBlock = PrepareTransfers | CommitTransfers
"""The blocks that say what is asked; the others only name transfers."""

_SUM_MAX = 1 << 62
_ENTRIES = 2


def u16_column(column: bytes) -> NDArray[np.uint16]:
    """Read shard ids."""
    return np.frombuffer(column, "<u2")


def u64_column(column: bytes) -> NDArray[np.uint64]:
    """Read account ids or transaction numbers."""
    return np.frombuffer(column, "<u8")


def i64_column(column: bytes) -> NDArray[np.int64]:
    """Read amounts."""
    return np.frombuffer(column, "<i8")


def peer_shards(block: LegBlock) -> NDArray[np.uint16]:
    """The other shard of every item: its home, or its participant."""
    return u16_column(_peer_column(block))


def _peer_column(block: LegBlock) -> bytes:
    return block.participant_shards if isinstance(block, CommitTransfers) else block.home_shards


def own_accounts(block: LegBlock) -> NDArray[np.uint64]:
    """The account of every item that is on the shard which the block is for."""
    is_home = isinstance(block, CommitTransfers)
    return u64_column(block.first_accounts if is_home else block.second_accounts)


def other_accounts(block: LegBlock) -> NDArray[np.uint64]:
    """The account of every item that is on the other shard."""
    is_home = isinstance(block, CommitTransfers)
    return u64_column(block.second_accounts if is_home else block.first_accounts)


def own_debits(block: LegBlock) -> NDArray[np.bool_]:
    """Whether an item debits its account on the shard which the block is for."""
    forms = np.frombuffer(block.forms, "u1")
    is_home = isinstance(block, CommitTransfers)
    debits: NDArray[np.bool_] = forms == (TransferForm.DEBIT if is_home else TransferForm.CREDIT)
    return debits


def leg_parts(block: LegBlock) -> list[TransferPart]:
    """Return who asked for which run of items; nobody is named where the block does not say."""
    return block.parts or [TransferPart(len(block.forms))]


def part_places(block: LegBlock) -> NDArray[np.intp]:
    """Return for every item the place of its part in `leg_parts`."""
    parts = leg_parts(block)
    return np.repeat(np.arange(len(parts)), [part.count for part in parts])


def origin_rows(first_accounts: bytes, request_ids: bytes) -> NDArray[np.uint8]:
    """Return the origins of items, a row each: `ledger_core.ids.transaction_request_key`."""
    homes = u64_column(first_accounts)
    rows = np.empty((len(homes), 25), np.uint8)
    rows[:, :16] = np.frombuffer(request_ids, np.uint8).reshape(-1, 16)
    rows[:, 16] = ord("a")
    rows[:, 17:] = big_endian(homes)
    return rows


def origin_keys(origins: NDArray[np.uint8], mark: bytes = b"") -> list[bytes]:
    """Return origins as keys, each with a mark before it."""
    count, size = len(origins), len(mark) + origins.shape[1]
    rows = np.empty((count, size), np.uint8)
    rows[:, : len(mark)] = np.frombuffer(mark, np.uint8)
    rows[:, len(mark) :] = origins
    return split_rows(rows)


# Items as the commands that they stand for


def leg_command(block: LegBlock, index: int, shard_id: int) -> CreateTransaction:
    """Return what was asked at the home; ``shard_id`` is the shard that the block is for."""
    home_shard_id = participant_shard_id = shard_id
    if isinstance(block, CommitTransfers):
        participant_shard_id = int(u16_column(block.participant_shards)[index])
    else:
        home_shard_id = int(u16_column(block.home_shards)[index])
    side = Direction.DEBIT if block.forms[index] == TransferForm.DEBIT else Direction.CREDIT
    home = int(u64_column(block.first_accounts)[index])
    other = int(u64_column(block.second_accounts)[index])
    amount = int(i64_column(block.amounts)[index])
    part = leg_parts(block)[int(part_places(block)[index])]
    text = block.texts.get(index)
    return CreateTransaction(
        account_id=home,
        amount=0,
        description=text.description if text else "",
        settled=True,
        request_id=_request_id(block.request_ids, index),
        entries=[
            Entry(home, side, amount, block.currency, home_shard_id),
            Entry(other, side.opposite, amount, block.currency, participant_shard_id),
        ],
        ledger=block.ledger,
        external_reference=text.external_reference if text else "",
        metadata=text.metadata if text else {},
        actor=part.actor,
        source=part.source,
    )


def prepare_of(block: PrepareTransfers, index: int, shard_id: int) -> Prepare:
    """Return an item as a Prepare."""
    transaction = leg_command(block, index, shard_id)
    home_shard_id = transaction.entries[0].shard_id
    origin = transaction_request_key(transaction.account_id, transaction.request_id)
    return Prepare(block.routing_id, origin, NO_HASH, home_shard_id, transaction)


def decision_of(block: ApplyTransfers, index: int) -> ApplyDecision:
    """Return an item as an ApplyDecision."""
    home = int(u64_column(block.first_accounts)[index])
    request_id = _request_id(block.request_ids, index)
    return ApplyDecision(
        block.routing_id,
        transaction_request_key(home, request_id),
        int(u64_column(block.numbers)[index]),
        TransactionStatus(block.statuses[index]),
        request_id,
        refused=block.refused.get(index),
    )


def delivered_of(block: DeliveredTransfers, index: int) -> Delivered:
    """Return an item as a Delivered, of the first state: there are no others to deliver so."""
    return Delivered(block.routing_id, int(u64_column(block.numbers)[index]), 0)


def _request_id(column: bytes, index: int) -> str:
    return str(uuid.UUID(bytes=column[16 * index : 16 * index + 16]))


# What no gateway sends

_DECIDED = (
    TransactionStatus.SETTLED,
    TransactionStatus.INSUFFICIENT_FUNDS,
    TransactionStatus.REJECTED,
)


def legs_fault(block: TransfersBetweenShards, shard_id: int) -> str | None:
    """Return what makes a block no block at all; ``shard_id`` is the shard that it is for."""
    if isinstance(block, DeliveredTransfers):
        count = len(block.numbers) // 8
        columns = {8: [block.numbers]}
    elif isinstance(block, ApplyTransfers):
        count = len(block.statuses)
        columns = {8: [block.first_accounts, block.numbers], 16: [block.request_ids]}
        if block.prepared:
            columns[8].append(block.prepared)
    else:
        count = len(block.forms)
        columns = {
            2: [_peer_column(block)],
            8: [block.first_accounts, block.second_accounts, block.amounts],
            16: [block.request_ids],
        }
    if not 1 <= count <= TRANSFERS_PER_BLOCK_MAX:
        return f"has {count} transfers; 1 to {TRANSFERS_PER_BLOCK_MAX} are taken"
    if any(len(c) != size * count for size, sized in columns.items() for c in sized):
        return "columns differ in length"
    if isinstance(block, LegBlock):
        return _asked_fault(block, shard_id)
    return _decided_fault(block) if isinstance(block, ApplyTransfers) else None


def _asked_fault(block: LegBlock, shard_id: int) -> str | None:
    count = len(block.forms)
    if set(block.forms) - {TransferForm.DEBIT, TransferForm.CREDIT}:
        return "has an unknown form"
    if (peer_shards(block) == shard_id).any():
        return "has a transfer on one shard"
    values = i64_column(block.amounts)
    if (values <= 0).any() or float(values.astype(np.float64).sum()) >= _SUM_MAX:
        return "has an amount that is not above 0, or amounts that are too large together"
    if any(index >= count for index in block.texts):
        return "has texts of no transfer"
    counts = [part.count for part in block.parts]
    if counts and (min(counts) < 1 or sum(counts) != count):
        return "has parts that are not its transfers"
    if isinstance(block, CommitTransfers):
        return _refused_fault(block.refused, count)
    return None


def _decided_fault(block: ApplyTransfers) -> str | None:
    if not block.refused and block.statuses.count(TransactionStatus.SETTLED) == len(block.statuses):
        return None
    if set(block.statuses) - set(_DECIDED):
        return "has a status that is no decision"
    settled = [index for index, s in enumerate(block.statuses) if s == TransactionStatus.SETTLED]
    if block.refused.keys() & set(settled) or len(block.refused) + len(settled) != len(
        block.statuses
    ):
        return "has a refusal without a reason, or a reason without a refusal"
    return _refused_fault(block.refused, len(block.statuses))


def _refused_fault(refused: dict[int, Refused], count: int) -> str | None:
    if any(index >= count for index in refused):
        return "has a refusal of no transfer"
    if any(not 0 <= why.entry_index < _ENTRIES for why in refused.values()):
        return "has a refusal by an entry that there is none of"
    return None

"""What may enter the log: checked where commands arrive, and where a journal is imported.

Every replica applies what is in the log, and the rules rely on what is checked here. No gateway
sends anything else.
"""

import numpy as np
from numpy.typing import NDArray

from ledger_core.commands import (
    ApplyTransfers,
    Command,
    CreateTransaction,
    CreateTransfers,
    DeliveredTransfers,
    TransfersBetweenShards,
    routing_id,
    transaction_fault,
)
from ledger_core.ids import U32_MAX, shard_key
from ledger_core.transfer_legs import legs_fault, other_accounts, own_accounts, u64_column
from ledger_core.transfers import U64Array, first_accounts, mixed_ids, transfer_fault


def command_fault(
    command: Command, shard_id: int, lower_bound: int, upper_bound: int
) -> str | None:
    """Return why a command must not be applied by a shard; None where nothing speaks against it.

    The shard holds the shard keys from ``lower_bound`` to ``upper_bound``, both included.
    """
    routing = routing_id(command)
    if not lower_bound <= shard_key(routing) <= upper_bound:
        return f"{routing:016x} is not of shard {shard_id}"
    if isinstance(command, CreateTransaction):
        fault = transaction_fault(command, shard_id)
        return f"is no transaction: it {fault}" if fault else None
    if isinstance(command, CreateTransfers):
        if fault := transfer_fault(command):
            return f"is no block of transfers: it {fault}"
        named = u64_column(command.first_accounts + command.second_accounts)
        second = named[len(command.forms) :]
        if np.count_nonzero(second) < len(second):
            named = np.concatenate([first_accounts(command), second[second != 0]])
        return _stranger(named, shard_id, lower_bound, upper_bound)
    if isinstance(command, TransfersBetweenShards):
        if fault := legs_fault(command, shard_id):
            return f"is no block of transfers: it {fault}"
        return _misplaced(command, shard_id, lower_bound, upper_bound)
    return None


def _stranger(named: U64Array, shard_id: int, lower_bound: int, upper_bound: int) -> str | None:
    """Name the first one of accounts that are to be on the shard, and is not; 0 is no account."""
    elsewhere = _are_elsewhere(named, lower_bound, upper_bound)
    if not np.count_nonzero(elsewhere):
        return None
    return f"account {int(named[elsewhere.argmax()]):016x} is not of shard {shard_id}"


def _misplaced(
    block: TransfersBetweenShards, shard_id: int, lower_bound: int, upper_bound: int
) -> str | None:
    """Name an account of a block between shards that must be on the shard, or must not."""
    if isinstance(block, DeliveredTransfers):
        return None
    if isinstance(block, ApplyTransfers):
        away = u64_column(block.first_accounts)
    else:
        if fault := _stranger(own_accounts(block), shard_id, lower_bound, upper_bound):
            return fault
        away = other_accounts(block)
    elsewhere = _are_elsewhere(away, lower_bound, upper_bound)
    if np.count_nonzero(elsewhere) == len(away):
        return None
    return (
        f"account {int(away[elsewhere.argmin()]):016x} is of shard {shard_id}, "
        f"which is not its part"
    )


def _are_elsewhere(account_ids: U64Array, lower_bound: int, upper_bound: int) -> NDArray[np.bool_]:
    """Whether the shard keys of accounts are outside of a range."""
    # One comparison for both ends: without a sign, what is below the range is far above it.
    above = mixed_ids(account_ids) - np.uint64(lower_bound << 32)
    elsewhere: NDArray[np.bool_] = above > np.uint64((upper_bound - lower_bound << 32) + U32_MAX)
    return elsewhere

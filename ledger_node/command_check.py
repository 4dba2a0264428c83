"""What may enter the log: checked where commands arrive, and where a journal is imported.

Every replica applies what is in the log, and the rules rely on what is checked here. No gateway
sends anything else.
"""

import numpy as np

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
from ledger_core.ids import shard_key
from ledger_core.transfer_legs import legs_fault, other_accounts, own_accounts, u64_column
from ledger_core.transfers import (
    U64Array,
    first_accounts,
    second_accounts,
    shard_keys,
    transfer_fault,
)


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
        second = second_accounts(command)
        named = np.concatenate([first_accounts(command), second[second != 0]])
        return _stranger(named, shard_id, lower_bound, upper_bound)
    if isinstance(command, TransfersBetweenShards):
        if fault := legs_fault(command, shard_id):
            return f"is no block of transfers: it {fault}"
        return _misplaced(command, shard_id, lower_bound, upper_bound)
    return None


def _stranger(named: U64Array, shard_id: int, lower_bound: int, upper_bound: int) -> str | None:
    """Name the first one of accounts that are to be on the shard, and is not; 0 is no account."""
    keys = shard_keys(named)
    elsewhere = np.flatnonzero((keys < lower_bound) | (keys > upper_bound))
    if not len(elsewhere):
        return None
    return f"account {int(named[elsewhere[0]]):016x} is not of shard {shard_id}"


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
    keys = shard_keys(away)
    here = np.flatnonzero((keys >= lower_bound) & (keys <= upper_bound))
    if not len(here):
        return None
    return f"account {int(away[here[0]]):016x} is of shard {shard_id}, which is not its part"

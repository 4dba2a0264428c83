"""What may enter the log: checked where commands arrive, and where a journal is imported.

Every replica applies what is in the log, and the rules rely on what is checked here. No gateway
sends anything else.
"""

import numpy as np

from ledger_core.commands import (
    Command,
    CreateTransaction,
    CreateTransfers,
    routing_id,
    transaction_fault,
)
from ledger_core.ids import shard_key
from ledger_core.transfers import first_accounts, second_accounts, shard_keys, transfer_fault


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
        return _stranger(command, shard_id, lower_bound, upper_bound)
    return None


def _stranger(
    block: CreateTransfers, shard_id: int, lower_bound: int, upper_bound: int
) -> str | None:
    """Name the first account of a block that is not on the shard; 0 is no account."""
    second = second_accounts(block)
    named = np.concatenate([first_accounts(block), second[second != 0]])
    keys = shard_keys(named)
    elsewhere = np.flatnonzero((keys < lower_bound) | (keys > upper_bound))
    if not len(elsewhere):
        return None
    return f"account {int(named[elsewhere[0]]):016x} is not of shard {shard_id}"

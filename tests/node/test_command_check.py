"""What must not enter the log: every replica would apply it."""

import uuid
from typing import Any

import msgspec
import pytest

from ledger_cluster.config import ReplicaConfig, ShardConfig
from ledger_core.commands import Command, CreateTransaction, CreateTransfers, encode_command
from ledger_core.ids import shard_key
from ledger_core.ledgers import USD
from ledger_core.transfers import TransferForm
from ledger_node.command_check import command_fault
from ledger_node.shard_service import _check_commands

SHARD = ShardConfig(3, 1 << 30, (1 << 31) - 1, (ReplicaConfig("r", "n"),))
HERE = [
    number for number in range(1, 100) if SHARD.lower_bound <= shard_key(number) < SHARD.upper_bound
]
ELSEWHERE = next(number for number in range(1, 100) if number not in HERE)


def column(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in values)


BLOCK = CreateTransfers(
    routing_id=HERE[0],
    ledger="main",
    currency=USD,
    forms=bytes([TransferForm.DEBIT, TransferForm.IN]),
    first_accounts=column(HERE[0], HERE[1]),
    second_accounts=column(HERE[2], 0),
    amounts=column(5, 6),
    request_ids=uuid.uuid4().bytes + uuid.uuid4().bytes,
)


def fault(command: Command) -> str | None:
    return command_fault(command, SHARD.id, SHARD.lower_bound, SHARD.upper_bound)


def test_a_block_on_its_shard_may_enter() -> None:
    assert fault(BLOCK) is None
    assert _check_commands(SHARD, [encode_command(BLOCK)]) == [BLOCK]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"routing_id": ELSEWHERE}, f"{ELSEWHERE:016x} is not of shard 3"),
        ({"first_accounts": column(HERE[0], ELSEWHERE)}, f"account {ELSEWHERE:016x} is not of"),
        ({"second_accounts": column(ELSEWHERE, 0)}, f"account {ELSEWHERE:016x} is not of shard 3"),
        ({"first_accounts": column(0, HERE[1])}, "account 0000000000000000 is not of shard 3"),
        ({"amounts": column(5, 0)}, "is no block of transfers: it has an amount"),
        ({"second_accounts": column(HERE[2], HERE[3])}, "a second account in the one-account form"),
        ({"request_ids": b""}, "columns differ in length"),
    ],
)
def test_a_block_with_a_fault_must_not_enter(change: dict[str, Any], text: str) -> None:
    block = msgspec.structs.replace(BLOCK, **change)
    assert text in (fault(block) or "")
    with pytest.raises(ValueError, match=text):
        _check_commands(SHARD, [encode_command(BLOCK), encode_command(block)])


def test_single_transactions_are_checked_as_ever() -> None:
    good = CreateTransaction(HERE[0], 5, "", True, "r")
    assert fault(good) is None
    assert fault(msgspec.structs.replace(good, account_id=ELSEWHERE)) == (
        f"{ELSEWHERE:016x} is not of shard 3"
    )
    assert fault(msgspec.structs.replace(good, amount=0)) == ("is no transaction: it amount is 0")

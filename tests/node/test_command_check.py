"""What must not enter the log: every replica would apply it."""

import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger_cluster.config import ReplicaConfig, ShardConfig
from ledger_core.accounts import TransactionStatus
from ledger_core.commands import (
    ApplyTransfers,
    Command,
    CommitTransfers,
    CreateTransaction,
    CreateTransfers,
    DeliveredTransfers,
    PrepareTransfers,
    Refused,
    TransferPart,
    TransferText,
    encode_command,
)
from ledger_core.ids import U32_MAX, shard_key, unsplitmix64
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


AWAY = [number for number in range(1, 100) if number not in HERE]
REFUSED = Refused(1)
PREPARE = PrepareTransfers(
    routing_id=HERE[0],
    ledger="main",
    currency=USD,
    forms=bytes([TransferForm.DEBIT, TransferForm.CREDIT]),
    first_accounts=column(AWAY[0], AWAY[1]),
    second_accounts=column(HERE[0], HERE[1]),
    amounts=column(5, 6),
    request_ids=bytes(range(32)),
    home_shards=b"\0\0\1\0",
)
COMMIT = CommitTransfers(
    routing_id=HERE[0],
    ledger="main",
    currency=USD,
    forms=PREPARE.forms,
    first_accounts=PREPARE.second_accounts,
    second_accounts=PREPARE.first_accounts,
    amounts=PREPARE.amounts,
    request_ids=PREPARE.request_ids,
    participant_shards=PREPARE.home_shards,
    refused={1: REFUSED},
)
APPLY = ApplyTransfers(
    HERE[0],
    "main",
    PREPARE.first_accounts,
    PREPARE.request_ids,
    column(1, 2),
    bytes([TransactionStatus.SETTLED, TransactionStatus.INSUFFICIENT_FUNDS]),
    {1: REFUSED},
)
DELIVERED = DeliveredTransfers(HERE[0], "main", column(1, 2))


@pytest.mark.parametrize("block", [PREPARE, COMMIT, APPLY, DELIVERED])
def test_a_step_of_transfers_between_shards_may_enter(block: Command) -> None:
    assert fault(block) is None
    assert _check_commands(SHARD, [encode_command(block)]) == [block]


@pytest.mark.parametrize(
    ("block", "change", "text"),
    [
        (PREPARE, {"routing_id": ELSEWHERE}, f"{ELSEWHERE:016x} is not of shard 3"),
        (PREPARE, {"second_accounts": column(HERE[0], ELSEWHERE)}, "is not of shard 3"),
        (PREPARE, {"first_accounts": column(HERE[0], AWAY[0])}, "which is not its part"),
        (PREPARE, {"home_shards": b"\0\0\3\0"}, "has a transfer on one shard"),
        (PREPARE, {"home_shards": b"\0\0"}, "columns differ in length"),
        (PREPARE, {"amounts": column(5, 0)}, "has an amount that is not above 0"),
        (PREPARE, {"amounts": column(5, 1 << 62)}, "amounts that are too large together"),
        (PREPARE, {"forms": bytes([1, 3])}, "has an unknown form"),
        (PREPARE, {"forms": b""}, "has 0 transfers"),
        (PREPARE, {"texts": {2: TransferText("x")}}, "has texts of no transfer"),
        (PREPARE, {"parts": [TransferPart(1)]}, "has parts that are not its transfers"),
        (COMMIT, {"first_accounts": column(HERE[0], ELSEWHERE)}, "is not of shard 3"),
        (COMMIT, {"second_accounts": column(HERE[1], AWAY[0])}, "which is not its part"),
        (COMMIT, {"participant_shards": b"\3\0\0\0"}, "has a transfer on one shard"),
        (COMMIT, {"refused": {2: REFUSED}}, "has a refusal of no transfer"),
        (COMMIT, {"refused": {0: Refused(2)}}, "by an entry that there is none of"),
        (APPLY, {"first_accounts": column(HERE[0], AWAY[0])}, "which is not its part"),
        (APPLY, {"numbers": column(1)}, "columns differ in length"),
        (APPLY, {"statuses": bytes([2, 1])}, "has a status that is no decision"),
        (APPLY, {"statuses": bytes([2, 6]), "refused": {}}, "a refusal without a reason"),
        (APPLY, {"refused": {0: REFUSED, 1: REFUSED}}, "a reason without a refusal"),
        (APPLY, {"refused": {1: Refused(-1)}}, "by an entry that there is none of"),
        (DELIVERED, {"numbers": b""}, "has 0 transfers"),
        (DELIVERED, {"numbers": b"x" * 9}, "columns differ in length"),
    ],
)
def test_a_step_of_transfers_with_a_fault_must_not_enter(
    block: Command, change: dict[str, Any], text: str
) -> None:
    assert text in (fault(msgspec.structs.replace(block, **change)) or "")


def test_single_transactions_are_checked_as_ever() -> None:
    good = CreateTransaction(HERE[0], 5, "", True, "r")
    assert fault(good) is None
    assert fault(msgspec.structs.replace(good, account_id=ELSEWHERE)) == (
        f"{ELSEWHERE:016x} is not of shard 3"
    )
    assert fault(msgspec.structs.replace(good, amount=0)) == ("is no transaction: it amount is 0")


# Shard keys below the shard's range, in it at both ends, and above it.
ACCOUNTS = [
    0,
    *(
        unsplitmix64(key << 32 | low)
        for key in (0, SHARD.lower_bound - 1, SHARD.lower_bound, SHARD.upper_bound)
        for low in (0, U32_MAX)
    ),
    unsplitmix64(SHARD.upper_bound + 1 << 32),
    *HERE[:3],
]
AMOUNTS = [1, 5, (1 << 51) - 1, 1 << 51, (1 << 61) - 1, (1 << 61), (1 << 63) - 1, 0, -1, -(1 << 63)]


def slow_fault(items: list[tuple[int, int, int, int]]) -> str | None:
    forms, first, second, amounts = zip(*items, strict=True)
    if not set(forms) <= set(TransferForm):
        return "is no block of transfers: it has an unknown form"
    if any(one == other for one, other in zip(first, second, strict=True)):
        return "is no block of transfers: it moves money from an account to itself"
    if any(form >= TransferForm.IN and other for form, other in zip(forms, second, strict=True)):
        return "is no block of transfers: it has a second account in the one-account form"
    if min(amounts) < 1 or sum(map(float, amounts)) >= 1 << 62:
        return (
            "is no block of transfers: "
            "it has an amount that is not above 0, or amounts that are too large together"
        )
    for account in [*first, *filter(None, second)]:
        if not SHARD.lower_bound <= shard_key(account) <= SHARD.upper_bound:
            return f"account {account:016x} is not of shard {SHARD.id}"
    return None


@given(
    items=st.lists(
        st.tuples(
            st.sampled_from([1, 1, 2, 3, 4, 4, 0, 5]),
            st.sampled_from(ACCOUNTS),
            st.sampled_from([0, 0, *ACCOUNTS]),
            st.sampled_from(AMOUNTS),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_the_check_of_columns_finds_what_is_found_item_by_item(
    items: list[tuple[int, int, int, int]],
) -> None:
    forms, first, second, amounts = zip(*items, strict=True)
    block = msgspec.structs.replace(
        BLOCK,
        forms=bytes(forms),
        first_accounts=column(*first),
        second_accounts=column(*second),
        amounts=b"".join(amount.to_bytes(8, "little", signed=True) for amount in amounts),
        request_ids=bytes(16 * len(items)),
    )
    assert fault(block) == slow_fault(items)


@pytest.mark.parametrize("amount", [1 << 51, (1 << 52) - 512])
def test_many_amounts_that_are_large_are_taken_as_long_as_their_sum_is_not(amount: int) -> None:
    block = msgspec.structs.replace(
        BLOCK,
        forms=bytes([1]) * 1_024,
        first_accounts=column(HERE[0]) * 1_024,
        second_accounts=column(HERE[1]) * 1_024,
        amounts=column(amount) * 1_024,
        request_ids=bytes(16 * 1_024),
    )
    assert fault(block) is None
    too_large = msgspec.structs.replace(block, amounts=column(1 << 52) * 1_024)
    assert "too large together" in str(fault(too_large))

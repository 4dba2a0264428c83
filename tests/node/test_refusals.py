"""Every refusal, alone and against every other one: who comes first is a rule, too."""

from itertools import combinations
from pathlib import Path

import pytest

from ledger_core.accounts import TransactionStatus
from ledger_core.errors import RefusalReason
from tests.node.refusals import ACROSS_SHARDS, DOCUMENT, REFUSALS, Refusal, prepare, render
from tests.node.shard import Shard

BY_REASON = pytest.mark.parametrize("refusal", REFUSALS, ids=lambda r: r.reason)


@BY_REASON
@pytest.mark.parametrize("index", [1, 2, 3])
def test_a_reason_names_its_entry(tmp_path: Path, refusal: Refusal, index: int) -> None:
    shard = Shard(tmp_path)
    command = refusal.provoke(shard, prepare(shard), index)
    before = shard.audit()
    refused = shard.transaction(command)
    assert refused.refusal is not None
    assert (refused.refusal.reason, refused.refusal.entry_index) == (refusal.reason, index)
    assert refused.status is (
        TransactionStatus.INSUFFICIENT_FUNDS
        if refusal.reason is RefusalReason.INSUFFICIENT_FUNDS
        else TransactionStatus.REJECTED
    )
    after = shard.audit()
    assert (after.sums, after.faults) == (before.sums, [])
    assert shard.transaction(command) == refused
    shard.close()


@pytest.mark.parametrize(
    ("first", "second"),
    list(combinations(REFUSALS, 2)),
    ids=lambda r: r.reason,
)
def test_the_earlier_reason_wins_also_where_its_entry_comes_later(
    tmp_path: Path, first: Refusal, second: Refusal
) -> None:
    shard = Shard(tmp_path)
    command = second.provoke(shard, prepare(shard), 1)
    command = first.provoke(shard, command, 3)
    refused = shard.transaction(command)
    assert refused.refusal is not None
    assert (refused.refusal.reason, refused.refusal.entry_index) == (first.reason, 3)
    shard.close()


def test_the_table_is_complete_and_in_the_order_of_the_reasons() -> None:
    assert [r.reason for r in REFUSALS] + list(ACROSS_SHARDS) == list(RefusalReason)


def test_the_document_is_what_the_tests_prove() -> None:
    assert DOCUMENT.read_text() == render()

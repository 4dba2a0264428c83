"""Columns of bulk calls: what is done to all at once is what would be done one by one."""

import asyncio

import numpy as np
from bulk_shards import DEBIT, IN, TIME_US, transfers
from hypothesis import given
from hypothesis import strategies as st

from ledger_core.errors import Reason
from ledger_core.ledgers import USD
from ledger_core.results import BookView, Failure, TransactionView, TransfersView
from ledger_gateway import bulk_results, transfer_columns
from ledger_gateway.transfer_columns import Terms
from ledger_gateway.transfer_pieces import Outcomes, Transfers, by_shard

FORMS = st.integers(DEBIT, IN + 1)
BOOKS = [BookView("main", "USD", 2, 1), BookView("fx", "EUR", 3, 2)]
FAILURE = Failure(Reason.ACCOUNT_NOT_FOUND, "no such account")


@given(st.lists(st.tuples(st.integers(0, 5), *[st.integers(0, 2)] * 2, st.integers(-1, 1))))
def test_columns_are_right_if_each_item_is(items: list[tuple[int, int, int, int]]) -> None:
    right = [
        form in (1, 2, 3, 4)
        and first != 0
        and (second == 0 if form >= IN else second not in (0, first))
        and amount > 0
        for form, first, second, amount in items
    ]
    assert (transfer_columns.violations(transfers(items)) == []) is all(right)


@given(st.integers(1, 4), st.integers(0, 5))
def test_one_form_for_all_is_right_if_it_is_for_each(count: int, form: int) -> None:
    items = [(form, 7, 0 if form >= IN else 8, 5)] * count
    asked = transfers(items, forms=bytes([form]))
    assert (transfer_columns.violations(asked) == []) is (1 <= form <= 4)


@given(st.lists(st.integers(0, 3)))
def test_shards_have_their_items_in_their_order(shard_ids: list[int]) -> None:
    order, shards = by_shard(np.array(shard_ids, np.uint16))
    found = {shard_id: order[start:end].tolist() for shard_id, start, end in shards}
    assert found == {
        shard_id: [place for place, other in enumerate(shard_ids) if other == shard_id]
        for shard_id in set(shard_ids)
    }


@given(st.lists(st.tuples(FORMS, st.sampled_from((0, 2, 4)), st.integers(0, 1)), min_size=1))
def test_columns_say_of_each_item_what_its_transaction_would(
    items: list[tuple[int, int, int]],
) -> None:
    asked = [(form, 7, 0 if form >= IN else 8, 5) for form, _, _ in items]
    columns = transfer_columns.columns(transfers(asked))
    found = Transfers(columns, Terms("main", USD, ""), Outcomes())
    # Every third item is in the same block.
    for start in range(min(3, len(items))):
        block = items[start::3]
        view = TransfersView(
            TIME_US + start,
            10 * start + 1,
            bytes(status for _, status, _ in block),
            {},
            {place: FAILURE for place, item in enumerate(block) if not item[1]},
            BOOKS,
            b"".join(bytes([book, 0]) for _, _, book in block),
            bytes(1 + book if form >= IN else 0 for form, _, book in block),
        )
        found.outcomes.blocks.append((np.arange(start, len(items), 3), view))
    _, told = asyncio.run(bulk_results.transfer_results(found))
    for item, one in bulk_results.results_of(found):
        told_of_it = (
            told.numbers[item],
            told.statuses[item],
            told.create_times_us[item],
            told.first_directions[item],
        )
        if not isinstance(one, TransactionView):
            assert (told_of_it, item in told.others) == ((0, 0, 0, 0), True)
            continue
        first, second = one.entries
        assert told_of_it == (one.number, one.status, one.create_time_us, first.direction)
        book = told.books[told.book_indexes[item]]
        assert (book.ledger, book.currency) == (one.ledger, one.currency)
        if asked[item][0] >= IN:
            assert book.external_account_id == second.account_id

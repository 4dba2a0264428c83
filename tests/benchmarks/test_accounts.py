"""Accounts under load: those that are drawn are where they should be."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.book import AccountBook, account_texts
from benchmarks.fill import plan
from ledger_cluster.config import generate_cluster_config
from ledger_cluster.shard_map import ShardMap
from ledger_core.ids import format_account_id, parse_account_id

SHARD_MAP = ShardMap(generate_cluster_config(3, 4))


def _shard(account: str) -> int:
    return SHARD_MAP.shard_of(parse_account_id(account)).id


@given(st.integers(12, 60), st.integers())
def test_pairs(count: int, seed: int) -> None:
    book, rng = plan(SHARD_MAP, count), random.Random(seed)
    assert len(book) == count
    one, other = book.two_of_two_shards(rng)
    assert _shard(one) != _shard(other)
    hot, others = book.first_pair()
    if others:
        other = book.at(rng, others)
        assert hot != other
        assert _shard(hot) == _shard(other)


def test_every_account_is_drawn() -> None:
    book, rng = plan(SHARD_MAP, 30), random.Random(1)
    pairs = [book.two_of_two_shards(rng) for _ in range(2_000)]
    for place in range(2):
        assert len({pair[place] for pair in pairs}) == 30
    for draw in (book.pairs, book.pairs_of_a_shard):
        for ids in draw(2_000, np.random.default_rng(1)):
            assert len({*ids.tolist()}) == 30


def test_ids_are_written_as_everywhere() -> None:
    ids = np.array([0, 1, 2**64 - 1], np.uint64)
    assert account_texts(ids) == [format_account_id(int(item)) for item in ids]


@given(st.integers(40, 60), st.integers(0))
def test_many_pairs_at_once(count: int, seed: int) -> None:
    book, rng = plan(SHARD_MAP, count), np.random.default_rng(seed)
    shards = lambda ids: [SHARD_MAP.shard_of(int(item)).id for item in ids]  # noqa: E731
    draws = (
        book.pairs,
        book.pairs_of_a_shard,
        book.pairs_of_one_shard,
        book.pairs_of_first_shard,
    )
    for draw in draws:
        first, second = draw(500, rng)
        assert len(first) == len(second) == 500
        assert (first != second).all()
        if draw != book.pairs:
            assert shards(first) == shards(second)
        if draw == book.pairs_of_first_shard:
            assert {*shards(first)} == {min(book.by_shard)}
        elif draw == book.pairs_of_one_shard:
            assert len(set(shards(first))) == 1
        else:
            assert len({*first.tolist()}) > 0.8 * count
            assert len({*second.tolist()}) > 0.8 * count


def test_saved_and_loaded(tmp_path: Path) -> None:
    book = plan(SHARD_MAP, 30)
    book.save(tmp_path / "accounts")
    loaded = AccountBook.load(tmp_path / "accounts")
    assert loaded.by_shard == book.by_shard


def test_one_shard_has_no_pair_of_two() -> None:
    with pytest.raises(ValueError, match="two shards"):
        AccountBook({0: [1, 2]}).two_of_two_shards(random.Random(1))

"""Accounts under load: those that are drawn are where they should be."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.book import AccountBook
from benchmarks.fill import plan
from ledger_cluster.config import generate_cluster_config
from ledger_cluster.shard_map import ShardMap
from ledger_core.ids import parse_account_id

SHARD_MAP = ShardMap(generate_cluster_config(3, 4))


def _shard(account: str) -> int:
    return SHARD_MAP.shard_of(parse_account_id(account)).id


@given(st.integers(12, 60), st.integers())
def test_pairs(count: int, seed: int) -> None:
    book, rng = plan(SHARD_MAP, count), random.Random(seed)
    assert len(book) == count
    one, other = book.two_of_a_shard(rng)
    assert one != other
    assert _shard(one) == _shard(other)
    one, other = book.two_of_two_shards(rng)
    assert _shard(one) != _shard(other)
    one, other = book.two(rng)
    assert one != other
    first, shards = [], set(book.by_shard)
    if len(book.by_shard[min(shards)]) > 1:
        first = list(book.two_of_first_shard(rng))
    assert {_shard(item) for item in first} <= {min(shards)}
    hot, others = book.first_pair()
    if others:
        other = book.at(rng, others)
        assert hot != other
        assert _shard(hot) == _shard(other)


def test_every_account_is_drawn() -> None:
    book, rng = plan(SHARD_MAP, 30), random.Random(1)
    for draw in (book.two, book.two_of_a_shard, book.two_of_two_shards):
        pairs = [draw(rng) for _ in range(2_000)]
        for place in range(2):
            assert len({pair[place] for pair in pairs}) == 30


@given(st.integers(40, 60), st.integers(0))
def test_many_pairs_at_once(count: int, seed: int) -> None:
    book, rng = plan(SHARD_MAP, count), np.random.default_rng(seed)
    shards = lambda ids: [SHARD_MAP.shard_of(int(item)).id for item in ids]  # noqa: E731
    for draw in (book.pairs, book.pairs_of_a_shard, book.pairs_of_one_shard):
        first, second = draw(500, rng)
        assert len(first) == len(second) == 500
        assert (first != second).all()
        if draw != book.pairs:
            assert shards(first) == shards(second)
        if draw == book.pairs_of_one_shard:
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

"""Accounts under load: those that are drawn are where they should be."""

import random
from pathlib import Path

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


def test_saved_and_loaded(tmp_path: Path) -> None:
    book = plan(SHARD_MAP, 30)
    book.save(tmp_path / "accounts")
    loaded = AccountBook.load(tmp_path / "accounts")
    assert loaded.by_shard == book.by_shard


def test_one_shard_has_no_pair_of_two() -> None:
    with pytest.raises(ValueError, match="two shards"):
        AccountBook({0: [1, 2]}).two_of_two_shards(random.Random(1))

"""Where an account lives. The vectors here are pinned for good: stored data depends on them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger_cluster.config import generate_cluster_config
from ledger_cluster.shard_map import ShardMap
from ledger_core.ids import (
    derive_account_id,
    format_account_id,
    format_transaction_id,
    parse_account_id,
    parse_transaction_id,
    request_key,
    shard_key,
    splitmix64,
    system_account_id,
    unsplitmix64,
)

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(
    ("value", "mixed", "key", "shard_id"),
    [
        # The first outputs of the published generator seeded with 0: its state after each step.
        (0x0000000000000000, 0xE220A8397B1DCDAF, 0xE220A839, 14),
        (0x9E3779B97F4A7C15, 0x6E789E6AA1B965F4, 0x6E789E6A, 6),
        (0x3C6EF372FE94F82A, 0x06C45D188009454F, 0x06C45D18, 0),
        (0xDAA66D2C7DDF743F, 0xF88BB8A8724C81EC, 0xF88BB8A8, 15),
        (0x0000000000000001, 0x910A2DEC89025CC1, 0x910A2DEC, 9),
        (0x0123456789ABCDEF, 0x157A3807A48FAA9D, 0x157A3807, 1),
        (0xFFFFFFFFFFFFFFFF, 0xE4D971771B652C20, 0xE4D97177, 14),
    ],
)
def test_golden_shard_keys(value: int, mixed: int, key: int, shard_id: int) -> None:
    assert splitmix64(value) == mixed
    assert shard_key(value) == key
    assert ShardMap(generate_cluster_config()).shard_of(value).id == shard_id


def test_golden_account_ids() -> None:
    uuid = "018f3c2e-7b1a-7c3d-9e4f-0123456789ab"
    assert derive_account_id("main", uuid) == 0x92D8D9506F86EF3E
    assert derive_account_id("main", uuid.upper()) == 0x92D8D9506F86EF3E
    assert derive_account_id("main", "order-1") == 0x56EF4C87A11C473D
    assert derive_account_id("other", "order-1") == 0x2F4A09FA4D6DC07F
    assert derive_account_id("main", "größe") == 0xFD3A4D39B8EE397F


def test_golden_request_keys() -> None:
    uuid = "018f3c2e-7b1a-7c3d-9e4f-0123456789ab"
    assert request_key(uuid).hex() == "018f3c2e7b1a7c3d9e4f0123456789ab"
    assert request_key("order-1").hex() == "8db93358d2af17ff523bd5404d7d86f4"


@pytest.mark.parametrize(
    ("lower_bound", "ordinal", "account_id"),
    [
        (0x00000000, 0, 0x61C8864680B583EB),
        (0x00000000, 1, 0xF8364607E9C949BD),
        (0x10000000, 0, 0xCEB5F01A47E1476D),
        (0xF0000000, 0, 0xAF390A38606A2093),
        (0xFFFFFFFF, 0xFFFFFFFF, 0x31628AF67B2131AB),
    ],
)
def test_golden_system_accounts(lower_bound: int, ordinal: int, account_id: int) -> None:
    assert system_account_id(lower_bound, ordinal) == account_id


def test_golden_texts_of_ids() -> None:
    assert format_account_id(0xABC) == "0000000000000abc"
    assert format_transaction_id(0xABC, 17) == "0000000000000abc0000000000000011"


@given(u64, u64)
def test_ids_read_back(account_id: int, number: int) -> None:
    assert parse_account_id(format_account_id(account_id)) == account_id
    text = format_transaction_id(account_id, number)
    assert parse_transaction_id(text) == (account_id, number)
    assert text.startswith(format_account_id(account_id))


@pytest.mark.parametrize(
    "text", ["", "0" * 15, "0" * 17, "G" * 16, "A" * 16, "0" * 16 + "\n", "٣" * 16]
)
def test_other_texts_are_no_account_ids(text: str) -> None:
    with pytest.raises(ValueError, match="16 lower-case hex digits"):
        parse_account_id(text)


@given(u64)
def test_mixing_is_one_to_one(value: int) -> None:
    assert unsplitmix64(splitmix64(value)) == value


@given(u32, u32)
def test_a_system_account_lives_at_the_lower_bound(lower_bound: int, ordinal: int) -> None:
    assert shard_key(system_account_id(lower_bound, ordinal)) == lower_bound


@given(u32, st.integers(1, 100))
def test_every_key_is_in_exactly_one_shard(key: int, shards: int) -> None:
    config = generate_cluster_config(shards=shards)
    owners = [s for s in config.shards if s.lower_bound <= key <= s.upper_bound]
    assert owners == [ShardMap(config).shard_of_key(key)]


@given(st.integers(1, 100))
def test_bounds_belong_to_their_shard(shards: int) -> None:
    config = generate_cluster_config(shards=shards)
    shard_map = ShardMap(config)
    for shard in config.shards:
        assert shard_map.shard_of_key(shard.lower_bound) is shard
        assert shard_map.shard_of_key(shard.upper_bound) is shard
        assert shard_map.shard_of(system_account_id(shard.lower_bound, 0)) is shard

"""The check before a start: whole stores pass, damaged ones are refused with advice."""

import random
import shutil
from pathlib import Path

import pytest

from ledger_core.commands import CreateAccount, CreateTransaction, SettleTransaction
from ledger_core.ids import derive_account_id
from ledger_node.raft.library import Kind
from ledger_node.store import StoreCorruptError
from ledger_node.store_check import check, refuse_damaged
from tests.node.shard import Shard, open_store
from tests.torture.damage import WAYS, spoil

ACCOUNTS = [derive_account_id("main", f"customer {number}") for number in range(20)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with accounts, histories and a log, as a node leaves it."""
    shard = Shard(tmp_path_factory.mktemp("whole"))
    rng = random.Random(1)
    for number, account_id in enumerate(ACCOUNTS):
        shard.one(CreateAccount(account_id, "main", f"customer {number}"))
    for number in range(300):
        account_id, settled = rng.choice(ACCOUNTS), rng.random() < 0.7
        made = shard.transaction(
            CreateTransaction(
                account_id,
                rng.randint(1, 90),
                "x" * 30,
                settled,
                f"t{number}",
                external_reference=f"invoice {number // 3}",
                effective_time_us=rng.choice([0, rng.randrange(1_000_000)]),
                metadata={"channel": "web"},
            )
        )
        if not settled and number % 5:
            shard.one(SettleTransaction(account_id, made.number, f"s{number}"))
    log = shard.store.log(0)
    log.save_hard_state(3, "n2")
    for index, payload in shard.log:
        log.append(index, 3, bytes([Kind.REGULAR]) + payload)
        shard.store.commit()
    shard.close()
    return shard.path


def test_a_whole_store_passes(whole: Path) -> None:
    refuse_damaged(whole)
    assert list(check(whole / "store")) == []


def test_nothing_to_check(tmp_path: Path) -> None:
    refuse_damaged(tmp_path / "data")


def test_an_empty_store_passes(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    refuse_damaged(tmp_path)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("how", WAYS)
def test_damage_is_refused(whole: Path, tmp_path: Path, how: str, seed: int) -> None:
    path = tmp_path / "data"
    shutil.copytree(whole, path)
    spoil(path, random.Random(seed), how)
    with pytest.raises(StoreCorruptError, match=r"is damaged: .*start the node empty"):
        open_store(path, check=True)

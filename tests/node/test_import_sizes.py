"""An imported journal entry may be as large as the longest log entry, and has one of its own."""

from pathlib import Path

import pytest

from ledger_cluster.channels import EXECUTE_BYTES_MAX, REPLAY_BYTES_MAX
from ledger_cluster.config import generate_cluster_config
from ledger_core.accounts import AccountType
from ledger_core.commands import (
    CreateAccount,
    CreateLedger,
    CreateTransaction,
    EndReplay,
    Replay,
    ReplayedItem,
    encode_command,
)
from ledger_core.errors import Reason
from ledger_core.ids import derive_account_id, system_account_id
from ledger_core.ledgers import USD, ChartCode
from ledger_core.queries import ListJournal
from ledger_core.results import Failure, JournalPage, Replayed
from ledger_node.node import BATCH_BYTES_MAX
from ledger_node.shard_service import _check_commands
from tests.node.hosts import Hosts, results

ACCOUNT = derive_account_id("main", "r")
ROUTE = system_account_id(0, 0)


def pay(number: int) -> CreateTransaction:
    return CreateTransaction(ACCOUNT, 1, "€" * 1_000, False, f"r{number}")


def replay_of(*items: ReplayedItem, number: int = 1) -> Replay:
    return Replay(ROUTE, number, 5, list(items))


def large_replay(size: int) -> Replay:
    command = encode_command(pay(0))
    return replay_of(*[ReplayedItem(command, b"\xa4done", 0)] * (size // (len(command) + 20)))


def test_one_replay_may_be_larger_than_what_a_call_may_have() -> None:
    shard = generate_cluster_config(1, 1, 1).shards[0]
    large = encode_command(large_replay(REPLAY_BYTES_MAX))
    assert EXECUTE_BYTES_MAX < len(large) <= REPLAY_BYTES_MAX
    (decoded,) = _check_commands(shard, [large])
    assert isinstance(decoded, Replay)
    with pytest.raises(ValueError, match="at most"):
        _check_commands(shard, [large, encode_command(EndReplay(ROUTE))])
    with pytest.raises(ValueError, match="at most"):
        _check_commands(shard, [encode_command(large_replay(REPLAY_BYTES_MAX + 10_000))])


def test_no_other_command_may() -> None:
    shard = generate_cluster_config(1, 1, 1).shards[0]
    chart = [ChartCode(f"1{n}", "€" * 128, AccountType.ASSET) for n in range(1_500)]
    command = encode_command(CreateLedger("books", "r", "", [USD], chart))
    assert EXECUTE_BYTES_MAX < len(command) < REPLAY_BYTES_MAX
    with pytest.raises(ValueError, match="at most"):
        _check_commands(shard, [command])


def test_what_the_longest_log_entry_had_is_imported_in_one(tmp_path: Path) -> None:
    """Two full calls come on top of a batch that is almost full: that is as long as it gets."""
    source = Hosts(tmp_path / "source", 1, 1, 1)
    leader = source.leader()
    source.settle(source.execute(leader, CreateAccount(ACCOUNT, "main", "r")))
    per_call = EXECUTE_BYTES_MAX // len(encode_command(pay(100)))
    calls = [
        source.execute(leader, *[pay(n) for n in range(i * per_call, (i + 1) * per_call)])
        for i in range(4)
    ]
    for replies in calls:
        source.settle(replies)
    page = results(source.settle(source.query(leader, ListJournal(0, 100))))[0]
    assert isinstance(page, JournalPage)
    sizes = [sum(len(item.command) for item in entry.items) for entry in page.entries]
    assert max(sizes) > BATCH_BYTES_MAX

    target = Hosts(tmp_path / "target", 1, 1, 1)
    leader = target.leader()
    previous = 0
    waiting = []
    for entry in page.entries:
        items = [ReplayedItem(item.command, item.outcome, item.number) for item in entry.items]
        command = Replay(ROUTE, entry.number, entry.time_us, items, previous)
        previous = entry.number
        # All wait for one turn: they do not fit into one log entry.
        waiting.append((target.execute(leader, command), entry))
    for replies, entry in waiting:
        assert results(target.settle(replies)) == [Replayed(entry.number, entry.link)]
    source.close()
    target.close()


def test_a_gap_is_refused(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, 1, 1, 1)
    item = ReplayedItem(encode_command(CreateAccount(ACCOUNT, "main", "r")), b"\xa4done", 0)
    early = Replay(ROUTE, 9, 5, [item], 8)
    (failure,) = results(hosts.settle(hosts.execute(hosts.leader(), early)))
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.JOURNAL_GAP
    hosts.close()

"""The journal as it is shown: the chain can be checked, and a ledger sees its own items alone."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ledger_core.accounts import TransactionStatus
from ledger_core.commands import (
    ApplyDecision,
    CancelTransaction,
    ClaimName,
    Command,
    CreateAccount,
    CreateLedger,
    CreateTransaction,
    ExtendLedger,
    FreezeAccount,
    ReleaseName,
    ReverseTransaction,
    SettleTransaction,
    UpdateAccount,
    decode_command,
    encode_command,
)
from ledger_core.ids import derive_account_id, transaction_request_key
from ledger_core.journal import FIRST_LINK, item_digest, next_link
from ledger_core.ledgers import USD
from ledger_core.queries import ListJournal
from ledger_core.results import JournalItemView, JournalPage, JournalView
from ledger_node import journal_reads
from ledger_node.records import ENTRY_ROW_BYTES, EntryRow
from tests.node.histories import Histories, facts
from tests.node.shard import Shard

MAIN = derive_account_id("main", "a")
OTHER = derive_account_id("other", "a")


@pytest.fixture(scope="module", params=[1, 2])
def histories(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Histories]:
    """Histories that the tests only read."""
    histories = Histories(tmp_path_factory.mktemp("histories"), request.param)
    histories.run(500)
    yield histories
    histories.close()


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    shard = Shard(tmp_path / "shard")
    shard.one(CreateAccount(MAIN, "main", "a"))
    shard.one(CreateAccount(OTHER, "other", "a"))
    yield shard
    shard.close()


def page(shard: Shard, after: int, page_size: int, ledger: str = "") -> JournalPage:
    shown = shard.ask(ListJournal(after, page_size, ledger))
    assert isinstance(shown, JournalPage), shown
    return shown


def journal(shard: Shard, ledger: str = "", page_size: int = 50) -> list[JournalView]:
    """All pages, one after the other."""
    entries: list[JournalView] = []
    while True:
        shown = page(shard, entries[-1].number if entries else 0, page_size, ledger)
        assert 1 <= len(shown.entries) <= page_size
        entries += shown.entries
        if entries[-1].number == shown.last_number:
            return entries


@pytest.mark.parametrize("ledger", ["", "main", "other", "nothing"])
def test_the_chain_can_be_checked_with_and_without_the_items_of_others(
    histories: Histories, ledger: str
) -> None:
    for shard in histories.shards:
        link = FIRST_LINK
        entries = journal(shard, ledger, 37)
        assert [entry.number for entry in entries] == list(range(1, len(entries) + 1))
        for entry in entries:
            for item in entry.items:
                if not item.hidden:
                    digest = item_digest(item.command, item.outcome, item.number, item.rows)
                    assert item.digest == digest
            digests = [item.digest for item in entry.items]
            link = next_link(link, entry.number, entry.time_us, digests)
            assert entry.link == link
        with facts(shard) as known:
            assert link == known.meta.chain_hash


def test_items_have_the_rows_that_they_wrote(histories: Histories) -> None:
    for shard in histories.shards:
        rows = [
            EntryRow.unpack(item.rows[offset : offset + ENTRY_ROW_BYTES])
            for entry in journal(shard)
            for item in entry.items
            for offset in range(0, len(item.rows), ENTRY_ROW_BYTES)
        ]
        with facts(shard) as known:
            assert rows == known.entries


def test_every_item_belongs_to_one_ledger(histories: Histories) -> None:
    """Those of which entries were written belong to the ledger of the accounts."""
    for shard in histories.shards:
        shown = {ledger: journal(shard, ledger) for ledger in ("", "main", "other")}
        for everything, main, other in zip(*shown.values(), strict=True):
            for item, of_main, of_other in zip(
                everything.items, main.items, other.items, strict=True
            ):
                assert of_main.hidden != of_other.hidden or not item.rows
                assert item.digest == of_main.digest == of_other.digest
                for view, ledger in ((of_main, "main"), (of_other, "other")):
                    if view.hidden:
                        assert view == JournalItemView(item.digest, True)
                    else:
                        assert view == item
                        assert ledgers_of(shard, item) <= {ledger}


def ledgers_of(shard: Shard, item: JournalItemView) -> set[str]:
    with facts(shard) as known:
        return {
            known.meta.books[known.balances[row.account_id].book].ledger
            for offset in range(0, len(item.rows), ENTRY_ROW_BYTES)
            for row in [EntryRow.unpack(item.rows[offset : offset + ENTRY_ROW_BYTES])]
        }


def test_every_kind_of_command_shows_in_its_ledger_alone(shard: Shard) -> None:
    commands: list[Command] = [
        CreateTransaction(OTHER, 50, "", True, "t1"),
        CreateTransaction(OTHER, 50, "", False, "t2", expire_time_us=10**15),
        SettleTransaction(OTHER, 2, "s", 20),
        CreateTransaction(OTHER, 1, "", False, "t3"),
        CancelTransaction(OTHER, 3, "c"),
        ReverseTransaction(OTHER, 1, "r"),
        CreateTransaction(OTHER, -1_000, "", True, "refused"),
        SettleTransaction(OTHER, 999, "no such transaction"),
        UpdateAccount(OTHER, "u", 0, "name"),
        FreezeAccount(OTHER, "f"),
        FreezeAccount(OTHER, "frozen already"),
        ClaimName("other", "name", OTHER, "n"),
        ReleaseName("other", "name", OTHER, "n"),
        CreateLedger("other", "l", "", [USD]),
        ExtendLedger("other", "x", 0, "about"),
        CreateAccount(derive_account_id("other", "b"), "other", "b"),
    ]
    first = journal(shard)[-1].number + 1
    shard.apply(*commands)
    (everything,) = page(shard, first - 1, 1).entries
    (of_other,) = page(shard, first - 1, 1, "other").entries
    (of_main,) = page(shard, first - 1, 1, "main").entries
    assert of_other == everything
    assert [item.command for item in everything.items] == [encode_command(c) for c in commands]
    assert all(item.hidden for item in of_main.items)


def test_a_transaction_of_another_account_is_no_key_to_its_ledger(shard: Shard) -> None:
    """Number 1 belongs to another ledger: a request that confuses them stays with its account."""
    shard.one(CreateTransaction(MAIN, 50, "", True, "t1"))
    shard.one(SettleTransaction(OTHER, 1, "s"))
    assert [item.hidden for item in journal(shard, "other")[-1].items] == [False]
    assert [item.hidden for item in journal(shard, "main")[-1].items] == [True]


def test_an_expiry_is_an_item_of_its_ledger(shard: Shard) -> None:
    shard.apply(
        CreateTransaction(OTHER, 5, "", False, "t", expire_time_us=3_000_000), time_us=2_000_000
    )
    shard.apply(time_us=4_000_000)
    (item,) = journal(shard, "other")[-1].items
    assert (item.command, msgspec.msgpack.decode(item.outcome)) == (b"", [1, 1])
    assert len(item.rows) == 2 * ENTRY_ROW_BYTES
    assert journal(shard, "main")[-1].items[0].hidden


def test_what_names_nothing_that_exists_shows_in_no_ledger(shard: Shard) -> None:
    shard.one(FreezeAccount(5, "f"))
    shard.one(CreateTransaction(5, 1, "", True, "t"))
    for ledger in ("main", "other"):
        assert [item.hidden for entry in journal(shard, ledger)[-2:] for item in entry.items] == [
            True,
            True,
        ]


def test_a_refusal_that_overtook_its_prepare_shows_everywhere(shard: Shard) -> None:
    """Whoever replays the journal has to refuse the Prepare, too; nothing tells whose it is."""
    origin = transaction_request_key(7, "t")
    shard.one(ApplyDecision(0, origin, 4, TransactionStatus.REJECTED, "t"))
    for ledger in ("main", "other"):
        (item,) = journal(shard, ledger)[-1].items
        assert isinstance(decode_command(item.command), ApplyDecision)


def test_a_large_page_ends_early_and_the_next_one_goes_on(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_reads, "JOURNAL_BYTES_MAX", 3_000)
    for i in range(20):
        shard.apply(
            *(CreateTransaction(MAIN, 1, "x" * 900, True, f"t{i} {j}") for j in range(1 + i % 4))
        )
    last = journal(shard)[-1].number
    for ledger in ("main", "other"):
        shown = page(shard, 2, 50, ledger)
        assert 1 <= len(shown.entries) < 4, "what is hidden is read as well"
        assert [entry.number for entry in journal(shard, ledger)] == list(range(1, last + 1))


@pytest.mark.parametrize("after", [2, 3, 10**6, 2**64 - 1])
def test_there_is_nothing_behind_the_last_number(shard: Shard, after: int) -> None:
    shown = page(shard, after, 5)
    assert (shown.entries, shown.last_number, shown.replayed) == ([], 2, 0)

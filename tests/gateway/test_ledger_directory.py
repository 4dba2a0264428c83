"""What the gateway remembers of ledgers, and when it asks again."""

from dataclasses import dataclass

import msgspec
import pytest
from fake_shards import FakeShards

from ledger_core.accounts import AccountType
from ledger_core.errors import Reason, RefusedError
from ledger_core.ledgers import USD, ChartCode, Currency, ledger_key
from ledger_core.queries import GetLedger
from ledger_core.results import Failure, LedgerView
from ledger_gateway import ledger_directory
from ledger_gateway.ledger_directory import CHART_AGE_S_MAX, LedgerDirectory
from ledger_gateway.shard_calls import ShardCalls

EUR = Currency("EUR", 2)
ASSETS = ChartCode("1", "Assets", AccountType.ASSET)
BOOKS = LedgerView("books", "", [USD], [ASSETS], revision=0, create_time_us=1, update_time_us=1)
WITH_EUR = msgspec.structs.replace(BOOKS, currencies=[USD, EUR], revision=1)


class Context:
    def time_remaining(self) -> None:
        return None


CONTEXT: object = Context()


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory(shards: FakeShards, clock: Clock) -> LedgerDirectory:
    shards.result = BOOKS
    return LedgerDirectory(ShardCalls(shards), clock)


async def currency(directory: LedgerDirectory, code: str, ledger: str = "books") -> Currency:
    found = await directory.currencies(ledger, {"currency": code}, CONTEXT)  # type: ignore[arg-type]
    return found["currency"]


async def line(directory: LedgerDirectory, code: str) -> ChartCode | None:
    return await directory.chart_line("books", code, CONTEXT)  # type: ignore[arg-type]


async def test_a_ledger_is_asked_for_once(directory: LedgerDirectory, shards: FakeShards) -> None:
    assert await currency(directory, "USD") == USD
    assert await currency(directory, "") == USD
    (call,) = shards.calls
    assert (call.account_id, call.message) == (ledger_key("books"), GetLedger("books"))


async def test_currencies_never_grow_old(
    directory: LedgerDirectory, shards: FakeShards, clock: Clock
) -> None:
    await currency(directory, "USD")
    clock.now += 10**6
    assert await currency(directory, "USD") == USD
    assert len(shards.calls) == 1


async def test_a_currency_that_is_not_remembered_is_looked_up_again(
    directory: LedgerDirectory, shards: FakeShards
) -> None:
    await currency(directory, "USD")
    shards.result = WITH_EUR
    assert await currency(directory, "EUR") == EUR
    assert await currency(directory, "EUR") == EUR
    assert len(shards.calls) == 2


async def test_every_field_with_an_unknown_currency_is_named(directory: LedgerDirectory) -> None:
    fields = {"entries[0].currency": "", "entries[1].currency": "EUR", "entries[2].currency": "GBP"}
    with pytest.raises(RefusedError) as caught:
        await directory.currencies("books", fields, CONTEXT)  # type: ignore[arg-type]
    assert caught.value.reason is Reason.CURRENCY_NOT_IN_LEDGER
    assert [item.field for item in caught.value.violations] == list(fields)[1:]
    assert "has no currency EUR, GBP; it has USD" in caught.value.message


async def test_an_unknown_ledger_is_asked_for_every_time(
    directory: LedgerDirectory, shards: FakeShards
) -> None:
    shards.result = Failure(Reason.LEDGER_NOT_FOUND, "no such ledger", "ledger")
    for _ in range(2):
        with pytest.raises(RefusedError) as caught:
            await currency(directory, "USD")
        assert caught.value.reason is Reason.LEDGER_NOT_FOUND
    shards.result = BOOKS
    assert await currency(directory, "USD") == USD


async def test_main_and_its_dollars_are_known_without_asking(
    directory: LedgerDirectory, shards: FakeShards
) -> None:
    assert await currency(directory, "", "main") == USD
    await directory.require("main", CONTEXT)  # type: ignore[arg-type]
    assert shards.calls == []


async def test_charts_grow_old(
    directory: LedgerDirectory, shards: FakeShards, clock: Clock
) -> None:
    assert await line(directory, "10") == ASSETS
    assert await line(directory, "11") == ASSETS
    assert len(shards.calls) == 1
    contra = ChartCode("11", "Contra", AccountType.LIABILITY)
    shards.result = msgspec.structs.replace(BOOKS, chart=[ASSETS, contra], revision=1)
    clock.now += CHART_AGE_S_MAX + 1
    assert await line(directory, "11") == contra
    assert len(shards.calls) == 2


async def test_a_code_that_fits_nothing_is_looked_up_again_then_refused(
    directory: LedgerDirectory, shards: FakeShards
) -> None:
    await line(directory, "10")
    with pytest.raises(RefusedError) as caught:
        await line(directory, "2")
    assert caught.value.reason is Reason.CODE_NOT_IN_CHART
    assert [item.field for item in caught.value.violations] == ["code"]
    assert len(shards.calls) == 2


async def test_without_a_chart_any_code_goes(
    directory: LedgerDirectory, shards: FakeShards
) -> None:
    shards.result = msgspec.structs.replace(BOOKS, chart=[])
    assert await line(directory, "anything") is None


async def test_an_older_answer_does_not_replace_a_newer_one(directory: LedgerDirectory) -> None:
    assert directory.remember(WITH_EUR) == WITH_EUR
    assert directory.remember(BOOKS) == WITH_EUR
    assert await currency(directory, "EUR") == EUR


async def test_it_remembers_a_bounded_number(
    directory: LedgerDirectory, shards: FakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_directory, "LEDGERS_MAX", 2)
    for name in ("a", "b", "c"):
        directory.remember(msgspec.structs.replace(BOOKS, name=name))
    assert await currency(directory, "USD", "c") == USD
    assert shards.calls == []
    shards.result = msgspec.structs.replace(BOOKS, name="a")
    assert await currency(directory, "USD", "a") == USD
    assert len(shards.calls) == 1

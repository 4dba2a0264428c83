"""Accounts: types by the chart, names that are claimed and given back, and lists over shards."""

from typing import Any

import grpc
import msgspec
import pytest
from books_shards import BooksShards
from error_details import decode
from fake_shards import ACCOUNT, ACCOUNT_ID, ACCOUNT_VIEW, Call

from ledger.v1 import ledger_pb2
from ledger_core import commands, queries
from ledger_core.accounts import AccountState, AccountType
from ledger_core.commands import Limits
from ledger_core.errors import Reason
from ledger_core.ids import derive_account_id
from ledger_core.ledgers import USD, ChartCode, Currency
from ledger_core.results import AccountPage, Failure, LedgerView, Result

ALICE = derive_account_id("main", "alice-1")
CREATE_ALICE = ledger_pb2.CreateAccountRequest(request_id="alice-1", name="alice")

CHART = [
    ChartCode("1", "Assets", AccountType.ASSET),
    ChartCode("19", "Contra", AccountType.LIABILITY),
]
BOOKS = LedgerView("books", "", [USD, Currency("JPY", 0)], CHART, 3, 1, 1)


@pytest.fixture
def shards() -> BooksShards:
    return BooksShards()


async def error_of(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return decode(caught.value)


# What the ledger decides


def with_books(shards: BooksShards) -> None:
    run = shards.answer
    assert run is not None

    def answer(call: Call) -> Result | Exception | None:
        return BOOKS if isinstance(call.message, queries.GetLedger) else run(call)

    shards.answer = answer


@pytest.mark.parametrize(
    ("given", "account_type", "currency"),
    [
        ({}, AccountType.LIABILITY, USD),
        ({"type": 4}, AccountType.INCOME, USD),
        ({"code": "1000"}, AccountType.ASSET, USD),
        ({"code": "1000", "type": 1}, AccountType.ASSET, USD),
        ({"code": "1900"}, AccountType.LIABILITY, USD),
        ({"currency": "JPY"}, AccountType.LIABILITY, Currency("JPY", 0)),
    ],
)
async def test_type_and_currency_come_from_the_ledger(
    stub: Any,
    shards: BooksShards,
    given: dict[str, Any],
    account_type: AccountType,
    currency: Currency,
) -> None:
    with_books(shards)
    await stub.CreateAccount(
        ledger_pb2.CreateAccountRequest(ledger="books", request_id="r", **given)
    )
    command = shards.messages[-1]
    assert isinstance(command, commands.CreateAccount)
    assert (command.type, command.currency) == (account_type, currency)


@pytest.mark.parametrize(
    ("given", "reason", "field", "said"),
    [
        ({"currency": "EUR"}, "CURRENCY_NOT_IN_LEDGER", "currency", "it has JPY, USD"),
        ({"code": "2"}, "CODE_NOT_IN_CHART", "code", "no line of the chart"),
        ({"code": "1000", "type": 2}, "TYPE_NOT_IN_CHART", "type", "are ASSET, not LIABILITY"),
        ({"code": "1900", "type": 1}, "TYPE_NOT_IN_CHART", "type", "are LIABILITY, not ASSET"),
    ],
)
async def test_what_the_ledger_does_not_have_is_refused(
    stub: Any, shards: BooksShards, given: dict[str, Any], reason: str, field: str, said: str
) -> None:
    with_books(shards)
    error = await error_of(
        stub.CreateAccount(ledger_pb2.CreateAccountRequest(ledger="books", **given))
    )
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", reason)
    assert [name for name, _ in error.violations] == [field]
    assert said in error.message
    assert shards.writes == 0


async def test_limits_and_metadata(stub: Any, shards: BooksShards) -> None:
    for given, limits in [
        ({}, Limits(0, None)),
        ({"limits": {}}, Limits(None, None)),
        ({"limits": {"minimum": -5}}, Limits(-5, None)),
        ({"limits": {"minimum": 0, "maximum": 0}}, Limits(0, 0)),
    ]:
        request = ledger_pb2.CreateAccountRequest(metadata={"z": "1", "a": "2"}, **given)
        account = (await stub.CreateAccount(request)).account
        command = shards.messages[-1]
        assert isinstance(command, commands.CreateAccount)
        assert command.limits == limits
        assert account.limits.HasField("minimum") is (limits.minimum is not None)
        assert account.limits.HasField("maximum") is (limits.maximum is not None)
        # In one order, so that a repeat has the same bytes.
        assert list(command.metadata) == ["a", "z"]


# Names


async def test_a_name_is_claimed_before_the_account_opens(stub: Any, shards: BooksShards) -> None:
    account = (await stub.CreateAccount(CREATE_ALICE)).account
    assert account.name == "alice"
    assert [type(item) for item in shards.messages] == [
        queries.GetAccount,
        commands.ClaimName,
        commands.CreateAccount,
    ]
    assert shards.names == {("main", "alice"): ALICE}
    found = await stub.GetAccount(ledger_pb2.GetAccountRequest(name="alice"))
    assert found.account == account


async def test_a_taken_name_tells_who_has_it(stub: Any, shards: BooksShards) -> None:
    await stub.CreateAccount(CREATE_ALICE)
    error = await error_of(
        stub.CreateAccount(ledger_pb2.CreateAccountRequest(request_id="bob-1", name="alice"))
    )
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "NAME_TAKEN")
    assert error.metadata == {"account_id": f"{ALICE:016x}", "request_id": "?"}
    assert [name for name, _ in error.violations] == ["name"]
    assert list(shards.accounts) == [ALICE]


@pytest.mark.parametrize("when", ["fail_before", "fail_after"])
@pytest.mark.parametrize("write", [0, 1])
async def test_an_interrupted_opening_is_completed_by_its_repeat(
    stub: Any, shards: BooksShards, when: str, write: int
) -> None:
    setattr(shards, when, write)
    error = await error_of(stub.CreateAccount(CREATE_ALICE))
    assert error.reason == "OUTCOME_UNKNOWN"
    account = (await stub.CreateAccount(CREATE_ALICE)).account
    assert account.name == "alice"
    assert shards.names == {("main", "alice"): ALICE}
    assert list(shards.accounts) == [ALICE]


async def test_the_name_of_an_account_that_cannot_open_is_given_back(
    stub: Any, shards: BooksShards
) -> None:
    run = shards.answer
    assert run is not None

    def answer(call: Call) -> Result | Exception | None:
        if isinstance(call.message, commands.CreateAccount):
            return Failure(Reason.ACCOUNT_ID_TAKEN, "taken", "request_id")
        return run(call)

    shards.answer = answer
    error = await error_of(stub.CreateAccount(CREATE_ALICE))
    assert error.reason == "ACCOUNT_ID_TAKEN"
    assert shards.names == {}


async def test_a_repeat_does_not_claim_a_name_that_was_given_up(
    stub: Any, shards: BooksShards
) -> None:
    first = (await stub.CreateAccount(CREATE_ALICE)).account
    await stub.UpdateAccount(
        ledger_pb2.UpdateAccountRequest(account_id=first.id, name="alicia", request_id="u")
    )
    await stub.CreateAccount(ledger_pb2.CreateAccountRequest(request_id="bob-1", name="alice"))
    assert (await stub.CreateAccount(CREATE_ALICE)).account.id == first.id
    assert shards.names[("main", "alice")] == derive_account_id("main", "bob-1")


async def test_another_body_under_the_same_request_id_keeps_the_name(
    stub: Any, shards: BooksShards
) -> None:
    await stub.CreateAccount(CREATE_ALICE)
    shards.accounts[ALICE] = msgspec.structs.replace(shards.accounts[ALICE], code="1")
    error = await error_of(stub.CreateAccount(CREATE_ALICE))
    assert error.reason == "REQUEST_ID_REUSED"
    assert shards.names == {("main", "alice"): ALICE}


def rename(name: str, revision: int = 0, request_id: str = "u") -> ledger_pb2.UpdateAccountRequest:
    return ledger_pb2.UpdateAccountRequest(
        account_id=f"{ALICE:016x}", name=name, revision=revision, request_id=request_id
    )


async def test_a_new_name_is_claimed_and_the_old_one_given_back(
    stub: Any, shards: BooksShards
) -> None:
    await stub.CreateAccount(CREATE_ALICE)
    account = (await stub.UpdateAccount(rename("alicia"))).account
    assert (account.name, account.revision) == ("alicia", 1)
    assert shards.names == {("main", "alicia"): ALICE}
    assert (await stub.UpdateAccount(rename("", 1, "v"))).account.name == ""
    assert shards.names == {}


@pytest.mark.parametrize("when", ["fail_before", "fail_after"])
@pytest.mark.parametrize("write", [0, 1, 2])
async def test_an_interrupted_renaming_is_completed_by_its_repeat(
    stub: Any, shards: BooksShards, when: str, write: int
) -> None:
    await stub.CreateAccount(CREATE_ALICE)
    setattr(shards, when, shards.writes + write)
    assert (await error_of(stub.UpdateAccount(rename("alicia")))).reason == "OUTCOME_UNKNOWN"
    assert (await stub.UpdateAccount(rename("alicia"))).account.name == "alicia"
    assert shards.names == {("main", "alicia"): ALICE}


async def test_a_renaming_that_is_refused_leaves_the_names_alone(
    stub: Any, shards: BooksShards
) -> None:
    await stub.CreateAccount(CREATE_ALICE)
    error = await error_of(stub.UpdateAccount(rename("alicia", revision=9)))
    assert error.reason == "REVISION_MISMATCH"
    assert shards.names == {("main", "alice"): ALICE}


async def test_a_claim_alone_does_not_make_an_account_found(stub: Any, shards: BooksShards) -> None:
    shards.names[("main", "ghost")] = 5
    for name in ("ghost", "nobody"):
        error = await error_of(stub.GetAccount(ledger_pb2.GetAccountRequest(name=name)))
        assert (error.code, error.reason) == ("NOT_FOUND", "ACCOUNT_NOT_FOUND")
        assert [field for field, _ in error.violations] == ["name"]


async def test_only_what_is_set_is_updated(stub: Any, shards: BooksShards) -> None:
    shards.accounts[ACCOUNT_ID] = ACCOUNT_VIEW
    for changes, expected in [
        ({}, (None, None, None)),
        ({"metadata": {}}, (None, {}, None)),
        ({"metadata": {"values": {"k": "v"}}}, (None, {"k": "v"}, None)),
        ({"limits": {}}, (None, None, Limits(None, None))),
        ({"name": ""}, ("", None, None)),
    ]:
        request = ledger_pb2.UpdateAccountRequest(account_id=ACCOUNT, request_id="u", **changes)
        await stub.UpdateAccount(request)
        (command,) = [
            item for item in shards.messages[-3:] if isinstance(item, commands.UpdateAccount)
        ]
        assert (command.name, command.metadata, command.limits) == expected
        shards.calls.clear()


# Lists


def open_many(shards: BooksShards, count: int) -> list[str]:
    for number in range(count):
        view = msgspec.structs.replace(
            ACCOUNT_VIEW, account_id=number, code="7" if number % 9 == 0 else "1"
        )
        shards.accounts[number] = view
    return [f"{number:016x}" for number in range(count)]


@pytest.mark.parametrize("page_size", [1, 3, 7, 50, 1_000])
async def test_pages_show_the_accounts_of_all_shards_once(
    stub: Any, shards: BooksShards, page_size: int
) -> None:
    everyone = open_many(shards, 90)
    found: list[str] = []
    request = ledger_pb2.ListAccountsRequest(page_size=page_size)
    while True:
        page = await stub.ListAccounts(request)
        assert len(page.accounts) <= page_size
        found += [item.id for item in page.accounts]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert sorted(found) == everyone
    assert len(found) == len(everyone)
    # One shard after the other.
    assert [int(item, 16) % 4 for item in found] == sorted(int(item, 16) % 4 for item in found)


async def test_filters_reach_every_shard(stub: Any, shards: BooksShards) -> None:
    open_many(shards, 90)
    request = ledger_pb2.ListAccountsRequest(code_prefix="7", type=2, state=2, metadata_key="k")
    page = await stub.ListAccounts(request)
    assert len(page.accounts) == 10
    assert not page.next_page_token
    asked = [call for call in shards.calls if isinstance(call.message, queries.ListAccounts)]
    assert {call.shard_id for call in asked} == {0, 1, 2, 3}
    assert {item.shard_id for item in page.read_points} == {0, 1, 2, 3}
    assert asked[0].message == queries.ListAccounts(
        "main", 50, -1, "7", AccountType.LIABILITY, AccountState.FROZEN, "k"
    )


async def test_a_page_of_huge_accounts_ends_early(stub: Any, shards: BooksShards) -> None:
    metadata = {f"{number:064}": "🪙" * 256 for number in range(32)}
    huge = msgspec.structs.replace(ACCOUNT_VIEW, metadata=metadata)
    shards.answer = lambda call: AccountPage([huge] * call.message.page_size, 7)  # type: ignore[union-attr]
    page = await stub.ListAccounts(ledger_pb2.ListAccountsRequest(page_size=1_000))
    assert 0 < len(page.accounts) < 1_000
    assert page.next_page_token


async def test_an_empty_stretch_does_not_hold_a_page_for_ever(
    stub: Any, shards: BooksShards
) -> None:
    shards.answer = lambda call: AccountPage([], 7)
    page = await stub.ListAccounts(ledger_pb2.ListAccountsRequest())
    assert not page.accounts
    assert page.next_page_token
    assert len(shards.calls) == 64


async def test_a_token_is_for_its_own_filters(stub: Any, shards: BooksShards) -> None:
    open_many(shards, 30)
    token = (await stub.ListAccounts(ledger_pb2.ListAccountsRequest(page_size=3))).next_page_token
    error = await error_of(
        stub.ListAccounts(ledger_pb2.ListAccountsRequest(page_token=token, code_prefix="7"))
    )
    assert error.violations == [("page_token", "was made for another ledger or other filters")]

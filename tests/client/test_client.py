"""The SDK against a scripted gateway: requests, errors, retries; sync and asyncio alike."""

import asyncio
import inspect
import socket
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from scripted_gateway import Failing, info, retry_after, scripted_gateway

import ledger_client
from ledger.v1 import ledger_pb2
from ledger_client import (
    AlreadyExistsError,
    AsyncLedgerClient,
    DeadlineExceededError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    LedgerClient,
    LedgerError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    credit,
    debit,
    limits,
)

ACCOUNT = "0123456789abcdef"
TRANSACTION = ACCOUNT + "0" * 15 + "1"
CREATED = ledger_pb2.CreateTransactionResponse(transaction=ledger_pb2.Transaction(id=TRANSACTION))
FOUND = ledger_pb2.GetAccountResponse(account=ledger_pb2.Account(id=ACCOUNT))
UNAVAILABLE = Failing(grpc.StatusCode.UNAVAILABLE)

Call = Callable[[Any], Any]


def run_sync(target: str, call: Call, timeout_s: float) -> Any:
    with LedgerClient(target, timeout_s) as client:
        return call(client)


def run_async(target: str, call: Call, timeout_s: float) -> Any:
    async def run() -> Any:
        async with AsyncLedgerClient(target, timeout_s) as client:
            return await call(client)

    return asyncio.run(run())


@pytest.fixture(params=[run_sync, run_async])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Runs a call with either client, which must behave the same."""

    def run(target: str, call: Call, timeout_s: float = 5.0) -> Any:
        return request.param(target, call, timeout_s)

    return run


def create(client: Any) -> Any:
    return client.create_transaction(ACCOUNT, -5, "coffee", settled=True)


def get(client: Any) -> Any:
    return client.get_account(ACCOUNT)


def test_both_clients_have_the_same_methods() -> None:
    def surface(client: type) -> dict[str, list[str]]:
        return {
            name: [f"{item.name}{item.kind}{item.default}" for item in parameters.values()]
            for name, member in inspect.getmembers(client, inspect.isfunction)
            if not name.startswith("_")
            for parameters in [inspect.signature(member).parameters]
        }

    assert surface(LedgerClient) == surface(AsyncLedgerClient)


def test_exports() -> None:
    for name in ledger_client.__all__:
        assert hasattr(ledger_client, name)
    assert ledger_client.__all__ == sorted(ledger_client.__all__)


@pytest.mark.parametrize(
    ("call", "response", "request_"),
    [
        (
            lambda client: client.create_account(request_id="r", ledger="books"),
            ledger_pb2.CreateAccountResponse(account=ledger_pb2.Account(id=ACCOUNT)),
            ledger_pb2.CreateAccountRequest(request_id="r", ledger="books"),
        ),
        (
            get,
            FOUND,
            ledger_pb2.GetAccountRequest(account_id=ACCOUNT, consistency=1),
        ),
        (
            lambda client: client.get_account(ACCOUNT, stale=True),
            FOUND,
            ledger_pb2.GetAccountRequest(account_id=ACCOUNT, consistency=2),
        ),
        (
            lambda client: client.create_transaction(
                ACCOUNT, -5, "coffee", settled=True, request_id="r"
            ),
            CREATED,
            ledger_pb2.CreateTransactionRequest(
                account_id=ACCOUNT, amount=-5, description="coffee", settled=True, request_id="r"
            ),
        ),
        (
            lambda client: client.get_transaction(TRANSACTION),
            ledger_pb2.GetTransactionResponse(transaction=CREATED.transaction),
            ledger_pb2.GetTransactionRequest(transaction_id=TRANSACTION, consistency=1),
        ),
        (
            lambda client: client.settle_transaction(TRANSACTION, request_id="s"),
            ledger_pb2.SettleTransactionResponse(transaction=CREATED.transaction),
            ledger_pb2.SettleTransactionRequest(transaction_id=TRANSACTION, request_id="s"),
        ),
        (
            lambda client: client.cancel_transaction(TRANSACTION, request_id="c"),
            ledger_pb2.CancelTransactionResponse(transaction=CREATED.transaction),
            ledger_pb2.CancelTransactionRequest(transaction_id=TRANSACTION, request_id="c"),
        ),
        (
            lambda client: client.create_account(
                request_id="r",
                currency="EUR",
                code="10",
                account_type=ledger_pb2.ACCOUNT_TYPE_ASSET,
                name="cash",
                limits=limits(None, 500),
                metadata={"k": "v"},
            ),
            ledger_pb2.CreateAccountResponse(account=ledger_pb2.Account(id=ACCOUNT)),
            ledger_pb2.CreateAccountRequest(
                request_id="r",
                currency="EUR",
                code="10",
                type=ledger_pb2.ACCOUNT_TYPE_ASSET,
                name="cash",
                limits=ledger_pb2.Limits(maximum=500),
                metadata={"k": "v"},
            ),
        ),
        (
            lambda client: client.get_account(ledger="books", name="cash"),
            FOUND,
            ledger_pb2.GetAccountRequest(ledger="books", name="cash", consistency=1),
        ),
        (
            lambda client: client.update_account(
                ACCOUNT, 4, name="", metadata={}, limits=limits(), request_id="u"
            ),
            ledger_pb2.UpdateAccountResponse(account=FOUND.account),
            ledger_pb2.UpdateAccountRequest(
                account_id=ACCOUNT,
                revision=4,
                name="",
                metadata=ledger_pb2.Metadata(),
                limits=ledger_pb2.Limits(),
                request_id="u",
            ),
        ),
        (
            lambda client: client.update_account(ACCOUNT, 4, request_id="u"),
            ledger_pb2.UpdateAccountResponse(account=FOUND.account),
            ledger_pb2.UpdateAccountRequest(account_id=ACCOUNT, revision=4, request_id="u"),
        ),
        (
            lambda client: client.freeze_account(ACCOUNT, request_id="f"),
            ledger_pb2.FreezeAccountResponse(account=FOUND.account),
            ledger_pb2.FreezeAccountRequest(account_id=ACCOUNT, request_id="f"),
        ),
        (
            lambda client: client.unfreeze_account(ACCOUNT, request_id="f"),
            ledger_pb2.UnfreezeAccountResponse(account=FOUND.account),
            ledger_pb2.UnfreezeAccountRequest(account_id=ACCOUNT, request_id="f"),
        ),
        (
            lambda client: client.close_account(ACCOUNT, request_id="c"),
            ledger_pb2.CloseAccountResponse(account=FOUND.account),
            ledger_pb2.CloseAccountRequest(account_id=ACCOUNT, request_id="c"),
        ),
        (
            lambda client: client.create_transaction(
                entries=[
                    debit(ACCOUNT, 5, "USD", expected_version=0),
                    credit("b", 5, minimum_balance=0, maximum_balance=9),
                ],
                description="split",
                settled=False,
                ledger="books",
                external_reference="order",
                effective_time=datetime(2026, 1, 31, tzinfo=UTC),
                expire_time=datetime(2026, 2, 1, tzinfo=UTC),
                metadata={"k": "v"},
                actor="me",
                dry_run=True,
                request_id="r",
            ),
            CREATED,
            ledger_pb2.CreateTransactionRequest(
                entries=[
                    ledger_pb2.Entry(
                        account_id=ACCOUNT,
                        direction=ledger_pb2.DIRECTION_DEBIT,
                        amount=5,
                        currency="USD",
                        expected_version=0,
                    ),
                    ledger_pb2.Entry(
                        account_id="b",
                        direction=ledger_pb2.DIRECTION_CREDIT,
                        amount=5,
                        minimum_balance=0,
                        maximum_balance=9,
                    ),
                ],
                description="split",
                ledger="books",
                external_reference="order",
                effective_time=Timestamp(seconds=1_769_817_600),
                expire_time=Timestamp(seconds=1_769_904_000),
                metadata={"k": "v"},
                actor="me",
                dry_run=True,
                request_id="r",
            ),
        ),
        (
            lambda client: client.get_transaction(account_id=ACCOUNT, request_id="r"),
            ledger_pb2.GetTransactionResponse(transaction=CREATED.transaction),
            ledger_pb2.GetTransactionRequest(account_id=ACCOUNT, request_id="r", consistency=1),
        ),
        (
            lambda client: client.settle_transaction(
                TRANSACTION, amount=3, actor="me", request_id="s"
            ),
            ledger_pb2.SettleTransactionResponse(transaction=CREATED.transaction),
            ledger_pb2.SettleTransactionRequest(
                transaction_id=TRANSACTION, amount=3, actor="me", request_id="s"
            ),
        ),
        (
            lambda client: client.reverse_transaction(
                TRANSACTION, [1, 0, 1], "back", actor="me", request_id="v"
            ),
            ledger_pb2.ReverseTransactionResponse(transaction=CREATED.transaction),
            ledger_pb2.ReverseTransactionRequest(
                transaction_id=TRANSACTION,
                amounts=[1, 0, 1],
                description="back",
                actor="me",
                request_id="v",
            ),
        ),
    ],
)
def test_each_method_sends_its_request(
    run: Callable[..., Any], call: Call, response: Any, request_: Any
) -> None:
    with scripted_gateway(response) as gateway:
        assert run(gateway.target, call).id in (ACCOUNT, TRANSACTION)
        assert gateway.requests == [request_]


BOOKS = ledger_pb2.Ledger(name="books")


@pytest.mark.parametrize(
    ("call", "response", "request_"),
    [
        (
            lambda client: client.create_ledger(
                "books",
                [ledger_pb2.Currency(code="USD", exponent=2)],
                [ledger_pb2.ChartLine(code="1")],
                "Ours",
                request_id="r",
            ),
            ledger_pb2.CreateLedgerResponse(ledger=BOOKS),
            ledger_pb2.CreateLedgerRequest(
                name="books",
                currencies=[ledger_pb2.Currency(code="USD", exponent=2)],
                chart=[ledger_pb2.ChartLine(code="1")],
                description="Ours",
                request_id="r",
            ),
        ),
        (
            lambda client: client.get_ledger("books", stale=True),
            ledger_pb2.GetLedgerResponse(ledger=BOOKS),
            ledger_pb2.GetLedgerRequest(ledger="books", consistency=2),
        ),
        (
            lambda client: client.update_ledger("books", 3, description="", request_id="r"),
            ledger_pb2.UpdateLedgerResponse(ledger=BOOKS),
            ledger_pb2.UpdateLedgerRequest(
                ledger="books", revision=3, description="", request_id="r"
            ),
        ),
    ],
)
def test_each_method_of_ledgers_sends_its_request(
    run: Callable[..., Any], call: Call, response: Any, request_: Any
) -> None:
    with scripted_gateway(response) as gateway:
        assert run(gateway.target, call) == BOOKS
        assert gateway.requests == [request_]


def lists(client: Any) -> list[tuple[Any, str]]:
    return [(client.list_accounts("books", page_size=2), "id"), (client.list_ledgers(), "name")]


LISTED = [
    ledger_pb2.ListAccountsResponse(accounts=[ledger_pb2.Account(id="a")], next_page_token="t"),
    ledger_pb2.ListAccountsResponse(next_page_token="u"),
    ledger_pb2.ListAccountsResponse(accounts=[ledger_pb2.Account(id="b")]),
    ledger_pb2.ListLedgersResponse(ledgers=[ledger_pb2.Ledger(name="c")], next_page_token="v"),
    ledger_pb2.ListLedgersResponse(ledgers=[ledger_pb2.Ledger(name="d")]),
]


async def test_accounts_and_ledgers_page_by_page(run: Callable[..., Any]) -> None:
    with scripted_gateway(*LISTED) as gateway, LedgerClient(gateway.target) as client:
        found = [getattr(item, name) for items, name in lists(client) for item in items]
        requests = gateway.requests
    with scripted_gateway(*LISTED) as gateway:
        async with AsyncLedgerClient(gateway.target) as client:
            found += [getattr(item, name) for items, name in lists(client) async for item in items]
        assert gateway.requests == requests
    assert found == ["a", "b", "c", "d"] * 2
    assert [item.page_token for item in requests] == ["", "t", "u", "", "v"]
    assert requests[0] == ledger_pb2.ListAccountsRequest(ledger="books", page_size=2, consistency=1)


@pytest.mark.parametrize(
    ("make", "fields"),
    [
        (lambda: debit(5, "x", None), ["account_id", "amount", "currency"]),  # type: ignore[arg-type]
        (lambda: credit("a", 2**63), ["amount"]),
        (lambda: credit("a", 1, expected_version=-1), ["expected_version"]),
        (lambda: limits(2**63, "5"), ["minimum", "maximum"]),  # type: ignore[arg-type]
    ],
)
def test_parts_that_no_message_can_hold(make: Callable[[], Any], fields: list[str]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        make()
    assert [item.field for item in caught.value.violations] == fields


def test_all_pages_one_after_the_other() -> None:
    def page(ids: list[str], token: str) -> ledger_pb2.ListTransactionsResponse:
        return ledger_pb2.ListTransactionsResponse(
            transactions=[ledger_pb2.Transaction(id=item) for item in ids], next_page_token=token
        )

    # A page in the middle may be empty.
    steps = [page(["a", "b"], "t1"), page([], "t2"), page(["c"], "")]
    with scripted_gateway(*steps) as gateway, LedgerClient(gateway.target) as client:
        transactions = client.list_transactions(ACCOUNT, page_size=2)
        assert [item.id for item in transactions] == ["a", "b", "c"]
        assert [item.page_token for item in gateway.requests] == ["", "t1", "t2"]
        assert {item.page_size for item in gateway.requests} == {2}


async def test_all_pages_one_after_the_other_async() -> None:
    steps = [
        ledger_pb2.ListTransactionsResponse(
            transactions=[ledger_pb2.Transaction(id=str(index))], next_page_token=token
        )
        for index, token in enumerate(["t", ""])
    ]
    with scripted_gateway(*steps) as gateway:
        async with AsyncLedgerClient(gateway.target) as client:
            assert [item.id async for item in client.list_transactions(ACCOUNT)] == ["0", "1"]


@pytest.mark.parametrize(
    ("code", "error_class"),
    [
        ("INVALID_ARGUMENT", InvalidArgumentError),
        ("NOT_FOUND", NotFoundError),
        ("ALREADY_EXISTS", AlreadyExistsError),
        ("FAILED_PRECONDITION", ledger_client.FailedPreconditionError),
        ("RESOURCE_EXHAUSTED", ResourceExhaustedError),
        ("UNAUTHENTICATED", ledger_client.UnauthenticatedError),
        ("PERMISSION_DENIED", ledger_client.PermissionDeniedError),
        ("UNIMPLEMENTED", ledger_client.UnimplementedError),
        ("INTERNAL", InternalError),
        ("DATA_LOSS", LedgerError),
    ],
)
def test_each_status_has_its_error(
    run: Callable[..., Any], code: str, error_class: type[LedgerError]
) -> None:
    with scripted_gateway(Failing(grpc.StatusCode[code], "said")) as gateway:
        with pytest.raises(LedgerError) as caught:
            run(gateway.target, create)
        assert len(gateway.requests) == 1
    assert type(caught.value) is error_class
    assert (caught.value.status, caught.value.message) == (code, "said")
    assert (caught.value.reason, caught.value.metadata, caught.value.violations) == ("", {}, [])
    assert caught.value.retry_delay_s is None
    assert str(caught.value) == f"{code}: said"


def test_error_details(run: Callable[..., Any]) -> None:
    bad_request = error_details_pb2.BadRequest()
    bad_request.field_violations.add(field="amount", description="must not be 0")
    bad_request.field_violations.add(field="account_id", description="is required")
    failing = Failing(
        grpc.StatusCode.INVALID_ARGUMENT,
        "fields €",
        [info("INVALID_FIELDS", key="value"), bad_request, error_details_pb2.Help()],
    )
    with scripted_gateway(failing) as gateway, pytest.raises(InvalidArgumentError) as caught:
        run(gateway.target, create)
    error = caught.value
    assert (error.reason, error.metadata) == ("INVALID_FIELDS", {"key": "value"})
    assert error.violations == [
        FieldViolation("amount", "must not be 0"),
        FieldViolation("account_id", "is required"),
    ]
    assert str(error) == "INVALID_ARGUMENT (INVALID_FIELDS): fields €"
    assert isinstance(error.__cause__, grpc.RpcError)


def test_unreadable_details_do_not_hide_the_error(run: Callable[..., Any]) -> None:
    with (
        scripted_gateway(Failing(grpc.StatusCode.NOT_FOUND, "gone", raw=b"\xff")) as gateway,
        pytest.raises(NotFoundError, match="gone"),
    ):
        run(gateway.target, get)


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ({"amount": 2**63}, ["amount"]),
        ({"amount": -(2**63) - 1}, ["amount"]),
        ({"amount": 1.0}, ["amount"]),
        ({"amount": True}, ["amount"]),
        ({"amount": "1"}, ["amount"]),
        ({"amount": None}, ["amount"]),
        ({"description": "\ud800"}, ["description"]),
        ({"description": None}, ["description"]),
        ({"account_id": 1, "amount": 2**64, "description": 3}, 3 * [""]),
        ({"request_id": 5}, ["request_id"]),
        ({"metadata": {"k": 5}}, ["metadata"]),
        ({"entries": ["debit"]}, ["entries"]),
        ({"entries": [None]}, ["entries"]),
        ({"expire_time": datetime(2026, 1, 1)}, ["expire_time"]),
        ({"expire_time": 5}, ["expire_time"]),
    ],
)
def test_values_that_no_message_can_hold(
    run: Callable[..., Any], arguments: dict[str, Any], fields: list[str]
) -> None:
    def call(client: Any) -> Any:
        given = {"account_id": ACCOUNT, "amount": 1, "description": "d"} | arguments
        return client.create_transaction(**given, settled=True)

    with scripted_gateway(CREATED) as gateway:
        with pytest.raises(InvalidArgumentError) as caught:
            run(gateway.target, call)
        assert gateway.requests == []
    assert caught.value.reason == "INVALID_FIELDS"
    found = [item.field for item in caught.value.violations]
    assert found == (fields if any(fields) else ["account_id", "amount", "description"])


def test_retries_repeat_the_request_id(run: Callable[..., Any]) -> None:
    lost = Failing(grpc.StatusCode.UNKNOWN, "stream removed")
    unknown = Failing(grpc.StatusCode.DEADLINE_EXCEEDED, "who knows", [info("OUTCOME_UNKNOWN")])
    with scripted_gateway(UNAVAILABLE, lost, unknown, UNAVAILABLE, CREATED) as gateway:
        assert run(gateway.target, create).id == TRANSACTION
        assert len(gateway.requests) == 5
        (request_id,) = {item.request_id for item in gateway.requests}
        assert uuid.UUID(request_id).version == 7
        # Another call has another one.
        run(gateway.target, create)
        assert gateway.requests[-1].request_id != request_id


def test_the_servers_delay_is_honoured(run: Callable[..., Any]) -> None:
    full = Failing(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "full", [info("OVERLOADED"), retry_after(0.3)]
    )
    with scripted_gateway(full, CREATED) as gateway:
        start = time.monotonic()
        run(gateway.target, create)
        assert time.monotonic() - start >= 0.3


def test_the_deadline_bounds_all_attempts(run: Callable[..., Any]) -> None:
    with scripted_gateway(UNAVAILABLE) as gateway:
        start = time.monotonic()
        with pytest.raises(UnavailableError, match="scripted"):
            run(gateway.target, create, 0.5)
        assert time.monotonic() - start < 1.0
        assert 2 < len(gateway.requests) < 20
        assert max(gateway.times_left_s) < 0.51


def test_no_wait_that_would_end_after_the_deadline(run: Callable[..., Any]) -> None:
    away = Failing(
        grpc.StatusCode.UNAVAILABLE, "no leader", [info("SHARD_UNAVAILABLE"), retry_after(9.0)]
    )
    with scripted_gateway(away) as gateway:
        start = time.monotonic()
        with pytest.raises(UnavailableError) as caught:
            run(gateway.target, create, 2.0)
        assert time.monotonic() - start < 1.0
    assert caught.value.reason == "SHARD_UNAVAILABLE"
    assert caught.value.retry_delay_s == 9.0


def test_an_unknown_outcome_is_not_hidden_by_a_later_refusal(run: Callable[..., Any]) -> None:
    unknown = Failing(grpc.StatusCode.DEADLINE_EXCEEDED, "", [info("OUTCOME_UNKNOWN")])
    with (
        scripted_gateway(unknown, UNAVAILABLE) as gateway,
        pytest.raises(DeadlineExceededError) as caught,
    ):
        run(gateway.target, create, 0.4)
    assert caught.value.reason == "OUTCOME_UNKNOWN"


def test_a_gateway_that_hangs(run: Callable[..., Any]) -> None:
    def hang(_context: grpc.ServicerContext) -> ledger_pb2.CreateTransactionResponse:
        time.sleep(0.8)
        return CREATED

    with scripted_gateway(hang) as gateway:
        start = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            run(gateway.target, create, 0.3)
        assert time.monotonic() - start < 0.7


def test_a_call_survives_one_lost_answer(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger_client._retries._ATTEMPT_MIN_S", 0.1)

    def hang(_context: grpc.ServicerContext) -> ledger_pb2.CreateTransactionResponse:
        time.sleep(0.8)
        return CREATED

    with scripted_gateway(hang, CREATED) as gateway:
        assert run(gateway.target, create, 1.0).id == TRANSACTION
        assert len({item.request_id for item in gateway.requests}) == 1
        assert len(gateway.requests) == 2


def test_nobody_listens(run: Callable[..., Any]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UnavailableError) as caught:
            run(target, get, 3.0)
    assert caught.value.reason == ""


async def test_a_cancelled_task_ends_at_once() -> None:
    with scripted_gateway(UNAVAILABLE) as gateway:
        async with AsyncLedgerClient(gateway.target, timeout_s=30) as client:
            task = asyncio.create_task(client.get_account(ACCOUNT))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


def test_an_asyncio_client_may_be_made_without_a_loop() -> None:
    client = AsyncLedgerClient("127.0.0.1:1")
    asyncio.run(client.close())

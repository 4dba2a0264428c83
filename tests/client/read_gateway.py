"""A gateway in memory that answers reads, one by one or many at once, and remembers what was asked.

Every account has a balance, which tests set; those that are not there are not found.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import Message
from scripted_gateway import Failing, info

from ledger.v1 import ledger_pb2

TIME_US = 1_700_000_000_123_456
Asked = tuple[str, bool, tuple[str, ...]]
"""The RPC, whether it may be stale, and the accounts."""


@dataclass
class ReadGateway:
    """``before`` sees every call after its answer was made: it may wait, or return what fails it.

    ``item_error`` sees every account of a call for many, and may return what fails that one.
    """

    target: str = ""
    balances: dict[str, int] = field(default_factory=dict)
    before: Callable[[Message], Failing | None] = lambda _: None
    item_error: Callable[[str], ledger_pb2.CallError | None] = lambda _: None
    answered: Callable[[Any], None] = lambda _: None
    """Sees every answer to a call for many, and may change it."""
    asked: list[Asked] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def single_balance(self, request: Any, context: grpc.ServicerContext) -> Message:
        found = self._single(request, context)
        return ledger_pb2.GetBalanceResponse(balance=found and self.balance(request.account_id))

    def single_account(self, request: Any, context: grpc.ServicerContext) -> Message:
        found = self._single(request, context)
        return ledger_pb2.GetAccountResponse(account=found and self.account(request.account_id))

    def many_balances(self, request: Any, context: grpc.ServicerContext) -> Message:
        ids = self._begin(request, [f"{one:016x}" for one in request.account_ids])
        response = ledger_pb2.BatchGetBalancesResponse()
        response.books.add(ledger="main", currency="USD", currency_exponent=2)
        types = bytearray()
        for index, account_id in enumerate(ids):
            error = self._error(account_id)
            if error is not None:
                response.errors[index].CopyFrom(error)
            one = ledger_pb2.Balance() if error else self.balance(account_id)
            types.append(one.type)
            response.settled_balances.append(one.settled_balance)
            response.available_balances.append(one.available_balance)
            response.debits_posted.append(one.debits_posted)
            response.credits_posted.append(one.credits_posted)
            response.debits_pending.append(one.debits_pending)
            response.credits_pending.append(one.credits_pending)
            response.versions.append(one.version)
            response.update_times_us.append(0 if error else TIME_US)
            response.book_indexes.append(0)
        response.types = bytes(types)
        return self._end(request, response, context)

    def many_accounts(self, request: Any, context: grpc.ServicerContext) -> Message:
        ids = self._begin(request, [f"{one:016x}" for one in request.account_ids])
        response = ledger_pb2.BatchGetAccountsResponse()
        for account_id in ids:
            error = self._error(account_id)
            response.results.add(error=error, account=None if error else self.account(account_id))
        return self._end(request, response, context)

    def balance(self, account_id: str) -> ledger_pb2.Balance:
        amount = self.balances[account_id]
        made = ledger_pb2.Balance(
            account_id=account_id,
            ledger="main",
            type=ledger_pb2.ACCOUNT_TYPE_LIABILITY,
            currency="USD",
            currency_exponent=2,
            settled_balance=amount,
            available_balance=amount - 1,
            debits_posted=2,
            credits_posted=amount + 2,
            debits_pending=1,
            credits_pending=5,
            version=amount + 3,
        )
        made.update_time.FromMicroseconds(TIME_US)
        return made

    def account(self, account_id: str) -> ledger_pb2.Account:
        return ledger_pb2.Account(id=account_id, settled_balance=self.balances[account_id])

    def calls(self, name: str) -> list[Asked]:
        return [asked for asked in self.asked if asked[0] == name]

    def _single(self, request: Any, context: grpc.ServicerContext) -> bool:
        (account_id,) = self._begin(request, [request.account_id])
        failing = self.before(request)
        if failing is None and account_id not in self.balances:
            message = f"account {account_id} is not there"
            failing = Failing(
                grpc.StatusCode.NOT_FOUND, message, [info("ACCOUNT_NOT_FOUND", id=account_id)]
            )
        if failing is not None:
            failing.abort(context)
        return True

    def _begin(self, request: Any, account_ids: list[str]) -> list[str]:
        stale = request.consistency == ledger_pb2.READ_CONSISTENCY_STALE
        name = type(request).__name__.removesuffix("Request")
        with self.lock:
            self.asked.append((name, stale, tuple(account_ids)))
        return account_ids

    def _end(self, request: Any, response: Any, context: grpc.ServicerContext) -> Message:
        failing = self.before(request)
        if failing is not None:
            failing.abort(context)
        self.answered(response)
        made: Message = response
        return made

    def _error(self, account_id: str) -> ledger_pb2.CallError | None:
        if account_id in self.balances:
            return self.item_error(account_id)
        return ledger_pb2.CallError(
            code=grpc.StatusCode.NOT_FOUND.value[0],
            reason="ACCOUNT_NOT_FOUND",
            message=f"account {account_id} is not there",
            metadata={"id": account_id},
        )


@contextmanager
def read_gateway(*, has_batches: bool = True) -> Iterator[ReadGateway]:
    gateway = ReadGateway()
    methods: dict[str, tuple[Any, Any]] = {
        "GetBalance": (gateway.single_balance, ledger_pb2.GetBalanceRequest),
        "GetAccount": (gateway.single_account, ledger_pb2.GetAccountRequest),
    }
    if has_batches:
        methods["BatchGetBalances"] = gateway.many_balances, ledger_pb2.BatchGetBalancesRequest
        methods["BatchGetAccounts"] = gateway.many_accounts, ledger_pb2.BatchGetAccountsRequest
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(handle, kind.FromString, _serialize)
        for name, (handle, kind) in methods.items()
    }
    server = grpc.server(futures.ThreadPoolExecutor(32), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("ledger.v1.LedgerService", handlers),)
    )
    gateway.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield gateway
    finally:
        server.stop(0).wait()


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()

"""A gateway in memory: takes transactions one by one or in bulk, and does to calls what tests say.

It keeps no balances. What it answers is what a gateway answers, so that both ways can be compared.
"""

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from scripted_gateway import Failing

from ledger.v1 import ledger_pb2

EXTERNAL = 0xE0E0
TIME_US = 1_700_000_000_123_456

Single = ledger_pb2.CreateTransactionRequest
Bulk = ledger_pb2.CreateTransactionsRequest
Response = ledger_pb2.CreateTransactionsResponse
Part = ledger_pb2.StreamCreateTransactionsResponse


@dataclass
class BulkGateway:
    """``before`` sees every call: it may wait, or return what fails it.

    ``item_error`` sees every item by its request id, and may return what fails that one. Parts of
    answers have items of all places.
    """

    target: str = ""
    before: Callable[[Message], Failing | None] = lambda _: None
    item_error: Callable[[str], ledger_pb2.CallError | None] = lambda _: None
    has_parts: bool = True
    part_sizes: Callable[[int], Iterator[int]] = lambda _: itertools.repeat(3)
    """Of the answer to so many items."""
    before_part: Callable[[int], Failing | None] = lambda _: None
    """Sees how many items are in no part yet, before the next one, and before the end."""
    in_parts: list[Bulk] = field(default_factory=list)
    """Those that were to be answered in parts."""
    singles: list[Single] = field(default_factory=list)
    bulks: list[Bulk] = field(default_factory=list)
    correlation_ids: list[str] = field(default_factory=list)
    times_left_s: list[float] = field(default_factory=list)
    made: dict[str, ledger_pb2.Transaction] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def bulk_sizes(self) -> list[int]:
        return [len(bulk.transactions) + len(bulk.transfers.amounts) for bulk in self.bulks]

    def create_transaction(
        self, request: Single, context: grpc.ServicerContext
    ) -> ledger_pb2.CreateTransactionResponse:
        self._begin(request, context, self.singles)
        return ledger_pb2.CreateTransactionResponse(transaction=self._make(request))

    def create_transactions(
        self, request: Bulk, context: grpc.ServicerContext
    ) -> ledger_pb2.CreateTransactionsResponse:
        self._begin(request, context, self.bulks)
        response = ledger_pb2.CreateTransactionsResponse()
        for one in request.transactions:
            response.results.append(self._result(one))
        columns = response.transfers
        statuses, directions = bytearray(), bytearray()
        for index, one in enumerate(singles_of(request.transfers)):
            is_new = one.request_id not in self.made
            result = self._result(one)
            made = result.transaction
            is_told = is_new and result.HasField("transaction")
            columns.numbers.append(int(made.id[16:], 16) if is_told else 0)
            statuses.append(made.status if is_told else 0)
            directions.append(made.entries[0].direction if is_told else 0)
            columns.create_times_us.append(TIME_US if is_told else 0)
            columns.book_indexes.append(0)
            if not is_told:
                columns.others[index].CopyFrom(result)
            elif made.HasField("refusal"):
                columns.refusals[index].CopyFrom(made.refusal)
        columns.statuses, columns.first_directions = bytes(statuses), bytes(directions)
        if statuses:
            columns.books.add(
                ledger=request.transfers.ledger or "main",
                currency=request.transfers.currency or "USD",
                currency_exponent=2,
                external_account_id=EXTERNAL,
            )
        return response

    def create_transactions_in_parts(
        self, request: Bulk, context: grpc.ServicerContext
    ) -> Iterator[Part]:
        self.in_parts.append(request)
        if not self.has_parts:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        response = self.create_transactions(request, context)
        kinds = [len(response.results), len(response.transfers.statuses)]
        items = [(kind, index) for kind, count in enumerate(kinds) for index in range(count)]
        random.Random(len(items)).shuffle(items)
        sizes = self.part_sizes(len(items))
        while True:
            failing = self.before_part(len(items))
            if failing is not None:
                failing.abort(context)
            if not items:
                return
            some = [items.pop() for _ in range(min(next(sizes), len(items)))]
            yield part_of(response, *([i for kind, i in some if kind == of] for of in (0, 1)))

    def _begin(self, request: Any, context: grpc.ServicerContext, seen: list[Any]) -> None:
        metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
        with self.lock:
            seen.append(request)
            self.correlation_ids.append(metadata.get("x-correlation-id", ""))
            self.times_left_s.append(context.time_remaining() or 0.0)
        failing = self.before(request)
        if failing is not None:
            failing.abort(context)

    def _result(self, request: Single) -> ledger_pb2.TransactionResult:
        error = self.item_error(request.request_id)
        if error is not None:
            return ledger_pb2.TransactionResult(error=error)
        return ledger_pb2.TransactionResult(transaction=self._make(request))

    def _make(self, request: Single) -> ledger_pb2.Transaction:
        with self.lock:
            if request.request_id not in self.made:
                self.made[request.request_id] = transaction(request, len(self.made) + 1)
            return self.made[request.request_id]


def transaction(request: Single, number: int) -> ledger_pb2.Transaction:
    """What a request makes: over 1,000,000 there are no funds."""
    entries = list(request.entries)
    if not entries:
        sides = (2, 1) if request.amount > 0 else (1, 2)
        for account_id, side in zip((request.account_id, f"{EXTERNAL:016x}"), sides, strict=True):
            entries.append(
                ledger_pb2.Entry(
                    account_id=account_id,
                    direction=ledger_pb2.Direction.ValueType(side),
                    amount=abs(request.amount),
                )
            )
    home, time = entries[0].account_id, Timestamp()
    time.FromMicroseconds(TIME_US)
    made = ledger_pb2.Transaction(
        id=f"{home}{number:016x}",
        amount=request.amount,
        description=request.description,
        status=2 if request.settled else 1,
        create_time=time,
        update_time=time,
        account_id=home,
        ledger=request.ledger or "main",
        currency=entries[0].currency or "USD",
        currency_exponent=2,
        request_id=request.request_id,
        effective_time=time,
        external_reference=request.external_reference,
        metadata=request.metadata,
        actor=request.actor,
    )
    for entry in entries:
        made.entries.add(
            account_id=entry.account_id,
            direction=entry.direction,
            amount=entry.amount,
            currency=entry.currency or "USD",
            currency_exponent=2,
        )
    if entries[0].amount > 1_000_000:
        made.status = ledger_pb2.TRANSACTION_STATUS_INSUFFICIENT_FUNDS
        made.refusal.CopyFrom(ledger_pb2.Refusal(reason="INSUFFICIENT_FUNDS", account_id=home))
    return made


def part_of(whole: Response, transactions: list[int], transfers: list[int]) -> Part:
    """These items of an answer as a part."""
    part = Part(transaction_indexes=transactions, transfer_indexes=transfers)
    part.part.results.extend(whole.results[index] for index in transactions)
    columns, found = whole.transfers, part.part.transfers
    found.books.extend(columns.books)
    for name in ("numbers", "create_times_us", "book_indexes"):
        getattr(found, name).extend(getattr(columns, name)[index] for index in transfers)
    for name in ("statuses", "first_directions"):
        setattr(found, name, bytes(getattr(columns, name)[index] for index in transfers))
    for place, index in enumerate(transfers):
        for name in ("refusals", "others"):
            if index in getattr(columns, name):
                getattr(found, name)[place].CopyFrom(getattr(columns, name)[index])
    return part


def singles_of(transfers: ledger_pb2.Transfers) -> Iterator[Single]:
    """The requests that columns stand for."""
    forms = transfers.forms
    for index, amount in enumerate(transfers.amounts):
        form = forms[index if len(forms) > 1 else 0]
        first = f"{transfers.first_account_ids[index]:016x}"
        second = f"{transfers.second_account_ids[index]:016x}"
        key = transfers.request_ids[16 * index : 16 * index + 16]
        one = Single(settled=True, request_id=str(UUID(bytes=key)), actor=transfers.actor)
        if form >= ledger_pb2.TRANSFER_FORM_IN:
            one.account_id = first
            one.amount = amount if form == ledger_pb2.TRANSFER_FORM_IN else -amount
        else:
            one.ledger = transfers.ledger
            sides = (1, 2) if form == ledger_pb2.TRANSFER_FORM_DEBIT else (2, 1)
            for account_id, side in zip((first, second), sides, strict=True):
                one.entries.add(
                    account_id=account_id,
                    direction=ledger_pb2.Direction.ValueType(side),
                    amount=amount,
                    currency=transfers.currency,
                )
        if index in transfers.texts:
            text = transfers.texts[index]
            one.description, one.external_reference = text.description, text.external_reference
            one.metadata.update(text.metadata)
        yield one


@contextmanager
def bulk_gateway() -> Iterator[BulkGateway]:
    gateway = BulkGateway()
    handlers = {
        "CreateTransaction": grpc.unary_unary_rpc_method_handler(
            gateway.create_transaction, Single.FromString, _serialize
        ),
        "CreateTransactions": grpc.unary_unary_rpc_method_handler(
            gateway.create_transactions, Bulk.FromString, _serialize
        ),
        "StreamCreateTransactions": grpc.unary_stream_rpc_method_handler(
            gateway.create_transactions_in_parts, Bulk.FromString, _serialize
        ),
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

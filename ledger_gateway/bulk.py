"""The RPCs that take many transactions at once.

A request has columns of transfers, or general transactions, or both. General ones that are no more
than a transfer are put into columns too: then they go the same way. `bulk_work` is that way,
`transfer_columns` is what columns are checked for, `bulk_results` makes the answers.
"""
# ruff: noqa: N802 - gRPC names the methods

import asyncio
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from ledger.v1 import ledger_pb2
from ledger_core.commands import Source, TransferText
from ledger_core.errors import InvalidRequestError, LedgerError, ShardUnavailableError
from ledger_core.ids import parse_account_id
from ledger_core.ledgers import MAIN_NAME, USD, Currency
from ledger_core.transfers import TransferForm
from ledger_gateway import bulk_results, conversion, transfer_columns, validation
from ledger_gateway.bulk_work import BulkWork, Job, in_place, run
from ledger_gateway.errors import to_call_error
from ledger_gateway.fields import Violations, wrong
from ledger_gateway.shard_calls import Context, Deadline
from ledger_gateway.source import require_valid
from ledger_gateway.transactions import TransactionRpcs
from ledger_gateway.transfer_columns import Terms
from ledger_gateway.transfer_pieces import Transfers

ITEMS_MAX = 8_192
BULK_REQUEST_BYTES_MAX = 2 << 20
STREAM_IN_WORK_MAX = 8
STREAM_IDLE_S_MAX = 600.0
"""How long a stream may be without a request."""

_CANONICAL_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\Z")
_NO_ACCOUNT = "0" * 16
_NO_TEXT = TransferText()

Request = ledger_pb2.CreateTransactionsRequest
Response = ledger_pb2.CreateTransactionsResponse
Results = dict[int, ledger_pb2.TransactionResult]
Currencies = dict[tuple[str, str], Currency]


class BulkRpcs(TransactionRpcs):
    """Many transactions in one call, or in a stream of such calls."""

    _work: BulkWork
    _stopping: asyncio.Event

    async def CreateTransactions(self, request: Request, context: Context) -> Response:
        """Do what as many calls of CreateTransaction would do."""
        source = require_valid(_violations(request), context)
        size = request.ByteSize()
        self._work.room.require(size)
        self._work.room.take(size)
        try:
            return await self._do(request, source, Deadline(context))
        finally:
            self._work.room.release(size)

    async def StreamTransactions(
        self, request_iterator: AsyncIterator[Request], context: Context
    ) -> AsyncGenerator[Response, None]:
        """Do the same for a stream of requests, and answer in their order.

        A wrong request ends the stream after the answers to those before it, and so does the end of
        this process; what comes later is not begun.
        """
        source = require_valid([], context)
        in_work: asyncio.Queue[asyncio.Task[Response] | None] = asyncio.Queue()
        places = asyncio.Semaphore(STREAM_IN_WORK_MAX)
        tasks: set[asyncio.Task[Response]] = set()

        async def read() -> None:
            """Begin requests as long as there are places; raise what ends the stream."""
            try:
                while True:
                    await places.acquire()
                    if (request := await self._next(request_iterator)) is None:
                        return
                    validation.require(_violations(request))
                    task = await self._begin(request, source, context)
                    tasks.add(task)
                    in_work.put_nowait(task)
            finally:
                in_work.put_nowait(None)

        reading = asyncio.create_task(read())
        try:
            while (task := await in_work.get()) is not None:
                yield await task
                tasks.discard(task)
                places.release()
            await reading
        finally:
            for unfinished in (reading, *tasks):
                unfinished.cancel()
            await asyncio.gather(reading, *tasks, return_exceptions=True)

    async def _begin(
        self, request: Request, source: Source, context: Context
    ) -> asyncio.Task[Response]:
        """Begin a request of a stream as soon as there is room."""
        size = request.ByteSize()
        await self._work.room.wait(size)
        self._work.room.take(size)
        task = asyncio.create_task(self._do(request, source, Deadline(context)))
        task.add_done_callback(lambda _: self._work.room.release(size))
        return task

    async def _next(self, requests: AsyncIterator[Request]) -> Request | None:
        """Return the next request of a stream, None at its end.

        Raises ShardUnavailableError where the stream is to go on elsewhere, or was idle.
        """
        reading = asyncio.ensure_future(anext(requests, None))
        stopping = asyncio.ensure_future(self._stopping.wait())
        both = {reading, stopping}
        try:
            await asyncio.wait(both, timeout=STREAM_IDLE_S_MAX, return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.is_set():
                raise ShardUnavailableError(
                    "the gateway is stopping: of requests without an answer nothing was done; go "
                    "on with another gateway"
                )
            if not reading.done():
                raise ShardUnavailableError(
                    f"the stream had no request for {STREAM_IDLE_S_MAX:g} s; open another one"
                )
            return reading.result()
        finally:
            for task in both:
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task

    async def _do(self, request: Request, source: Source, deadline: Deadline) -> Response:
        """Do a request whose columns are right; what fails is told item by item."""
        columns = await self._columns(request, deadline)
        results: Results = {}
        sorted_ = await self._sort(request, results, deadline)
        jobs: list[Job] = []
        for transfers in (*([columns] if columns else []), *sorted_.groups):
            jobs.append(partial(self._work.carry_out, transfers, source, deadline))
        for index in sorted_.alone:
            one = request.transactions[index]
            alone = partial(self._do_alone, one, index, results, source, deadline)
            jobs.append(partial(in_place, self._work.room.alone, alone))
        await run(jobs)
        for transfers, indexes in zip(sorted_.groups, sorted_.indexes, strict=True):
            for place, result in bulk_results.transaction_results(transfers):
                results[indexes[place]] = result
                await bulk_results.give_way(place)
        return Response(
            results=[results[index] for index in range(len(request.transactions))],
            transfers=await bulk_results.transfer_results(columns) if columns else None,
        )

    async def _columns(self, request: Request, deadline: Deadline) -> Transfers | None:
        if not request.HasField("transfers"):
            return None
        asked = request.transfers
        ledger = asked.ledger or MAIN_NAME
        path = "transfers.currency"
        currencies = await self._directory.currencies(ledger, {path: asked.currency}, deadline)
        terms = Terms(ledger, currencies[path], asked.actor)
        return Transfers(transfer_columns.columns(asked), terms)

    async def _sort(self, request: Request, results: Results, deadline: Deadline) -> "_Sorted":
        """Tell general transactions apart: wrong ones get their result, the others their way."""
        plain, alone = [], []
        for index, one in enumerate(request.transactions):
            await bulk_results.give_way(index)
            if violations := validation.create_transaction(one):
                error = to_call_error(InvalidRequestError(violations))
                results[index] = ledger_pb2.TransactionResult(error=error)
            elif _may_be_plain(one):
                plain.append(index)
            else:
                alone.append(index)
        items = [(index, request.transactions[index]) for index in plain]
        currencies = await self._currencies((one for _, one in items), deadline)
        return _sort_plain(items, currencies, alone)

    async def _currencies(
        self, plain: Iterable[ledger_pb2.CreateTransactionRequest], deadline: Deadline
    ) -> Currencies:
        """Look up all that is asked for; what is not found is told to each that asks for it."""
        found: Currencies = {}

        async def look_up(ledger: str, code: str) -> None:
            with suppress(LedgerError):
                got = await self._directory.currencies(ledger, {"": code}, deadline)
                found[ledger, code] = got[""]

        wanted = {
            (one.ledger or MAIN_NAME, entry.currency) for one in plain for entry in one.entries
        }
        await run([partial(look_up, *pair) for pair in sorted(wanted)])
        return found

    async def _do_alone(
        self,
        request: ledger_pb2.CreateTransactionRequest,
        index: int,
        results: Results,
        source: Source,
        deadline: Deadline,
    ) -> None:
        """Do a transaction as a single call does."""
        try:
            made = await self._create_transaction(request, source, deadline)
            results[index] = ledger_pb2.TransactionResult(transaction=made)
        except LedgerError as error:
            results[index] = ledger_pb2.TransactionResult(error=to_call_error(error))


@dataclass(slots=True)
class _Sorted:
    """General transactions by the way they go; ``indexes`` are those of each group's items."""

    alone: list[int]
    groups: list[Transfers] = field(default_factory=list)
    indexes: list[list[int]] = field(default_factory=list)


def _violations(request: Request) -> Violations:
    """Check what fails a call as a whole."""
    count = transfer_columns.count_of(request.transfers)
    total = len(request.transactions) + count
    if not 1 <= total <= ITEMS_MAX:
        return wrong(
            "transfers" if count else "transactions",
            f"must be 1 to {ITEMS_MAX:,}, transactions and transfers together; there are {total:,}",
        )
    return transfer_columns.violations(request.transfers)


def _may_be_plain(request: ledger_pb2.CreateTransactionRequest) -> bool:
    """Whether columns can say all of a valid request, if its entries have the same currency."""
    if not request.settled or request.dry_run or request.HasField("effective_time"):
        return False
    if request.request_id and not _CANONICAL_UUID.match(request.request_id):
        return False
    if not request.entries:
        return request.account_id != _NO_ACCOUNT
    if len(request.entries) != 2:
        return False
    first, second = request.entries
    return (
        first.amount == second.amount
        and first.direction != second.direction
        and first.account_id != second.account_id
        and _NO_ACCOUNT not in (first.account_id, second.account_id)
        and not any(
            entry.HasField(name)
            for entry in request.entries
            for name in ("expected_version", "minimum_balance", "maximum_balance")
        )
    )


def _sort_plain(
    items: Iterable[tuple[int, ledger_pb2.CreateTransactionRequest]],
    currencies: Currencies,
    alone: list[int],
) -> _Sorted:
    """Put transfers into groups of the same terms, in their order; add the others to ``alone``."""
    wanted: list[tuple[int, ledger_pb2.CreateTransactionRequest, Terms | None]] = []
    first_of: dict[str, Terms] = {}
    for index, one in items:
        terms = None
        if one.entries:
            ledger = one.ledger or MAIN_NAME
            known = {currencies.get((ledger, entry.currency)) for entry in one.entries}
            currency = known.pop()
            if known or currency is None:
                alone.append(index)
                continue
            terms = Terms(ledger, currency, one.actor)
            first_of.setdefault(one.actor, terms)
        wanted.append((index, one, terms))
    # The one-account form goes with whatever its actor does before it, or after: in their order.
    latest = dict(first_of)
    groups: dict[Terms, list[tuple[int, ledger_pb2.CreateTransactionRequest]]] = {}
    for index, one, own in wanted:
        terms = own or latest.get(one.actor) or Terms(MAIN_NAME, USD, one.actor)
        latest[one.actor] = terms
        groups.setdefault(terms, []).append((index, one))
    found = _Sorted(alone)
    for terms, members in groups.items():
        found.groups.append(Transfers(_join([one for _, one in members]), terms))
        found.indexes.append([index for index, _ in members])
    return found


def _join(requests: list[ledger_pb2.CreateTransactionRequest]) -> transfer_columns.Columns:
    forms, first, second, amounts, request_ids = [], [], [], [], []
    texts = {}
    for place, one in enumerate(requests):
        if one.entries:
            home, other = one.entries
            debits = home.direction == ledger_pb2.DIRECTION_DEBIT
            forms.append(TransferForm.DEBIT if debits else TransferForm.CREDIT)
            first.append(parse_account_id(home.account_id))
            second.append(parse_account_id(other.account_id))
            amounts.append(home.amount)
        else:
            forms.append(TransferForm.IN if one.amount > 0 else TransferForm.OUT)
            first.append(parse_account_id(one.account_id))
            second.append(0)
            amounts.append(abs(one.amount))
        request_ids.append(uuid.UUID(one.request_id).bytes if one.request_id else b"")
        metadata = conversion.metadata(one.metadata)
        text = TransferText(one.description, one.external_reference, metadata)
        if text != _NO_TEXT:
            texts[place] = text
    return transfer_columns.join(
        forms=forms,
        first=first,
        second=second,
        amounts=amounts,
        request_ids=request_ids,
        texts=texts,
    )

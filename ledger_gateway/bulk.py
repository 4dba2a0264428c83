"""The RPCs that take many transactions at once.

A request has columns of transfers, or general transactions, or both. General ones that are no more
than a transfer are put into columns too: then they go the same way. `bulk_work` is that way,
`transfer_columns` is what columns are checked for, `bulk_call` makes the answer.
"""
# ruff: noqa: N802 - gRPC names the methods

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import aclosing, contextmanager, suppress
from functools import partial

from ledger.v1 import ledger_pb2
from ledger_core.commands import Source
from ledger_core.errors import InvalidRequestError, LedgerError, ShardUnavailableError
from ledger_core.ledgers import MAIN_NAME
from ledger_gateway import atomic, bulk_results, transfer_columns, validation
from ledger_gateway.bulk_call import BulkCall, Part
from ledger_gateway.bulk_work import BulkWork, Job, in_place, run
from ledger_gateway.errors import to_call_error
from ledger_gateway.fields import Violations, wrong
from ledger_gateway.plain_transfers import Currencies, Sorted, may_be_plain, sort_plain
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


Request = ledger_pb2.CreateTransactionsRequest
Response = ledger_pb2.CreateTransactionsResponse


class BulkRpcs(TransactionRpcs):
    """Many transactions in one call, or in a stream of such calls."""

    _work: BulkWork
    _stopping: asyncio.Event

    async def CreateTransactions(self, request: Request, context: Context) -> Response:
        """Do what as many calls of CreateTransaction would do."""
        source = require_valid(_violations(request), context)
        with self._room_for(request):
            return await self._do(request, source, Deadline(context))

    async def StreamCreateTransactions(
        self, request: Request, context: Context
    ) -> AsyncGenerator[Part, None]:
        """Do the same, and answer in parts, as shards answer."""
        source, deadline = require_valid(_violations(request), context), Deadline(context)
        if request.HasField("atomic"):
            with self._room_for(request):
                whole = await self._do(request, source, deadline)
            yield Part(part=whole)
            return
        self._work.room.require(request.ByteSize())
        call, jobs = await self._prepare(request, source, deadline)

        async def work() -> None:
            # Not for as long as the caller takes to read its answer.
            with self._room_for(request):
                await run(jobs)

        async with aclosing(call.parts(work())) as parts:
            async for part in parts:
                yield part

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

    @contextmanager
    def _room_for(self, request: Request) -> Iterator[None]:
        """Hold room for a request; OverloadedError where there is none."""
        size = request.ByteSize()
        self._work.room.require(size)
        self._work.room.take(size)
        try:
            yield
        finally:
            self._work.room.release(size)

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
        if request.HasField("atomic"):
            await atomic.require_balance(request, self._directory, deadline)
            create = partial(self._create_transaction, source=source, context=deadline)
            return Response(atomic=await atomic.create(request, create))
        call, jobs = await self._prepare(request, source, deadline)
        await run(jobs)
        return await call.response()

    async def _prepare(
        self, request: Request, source: Source, deadline: Deadline
    ) -> tuple[BulkCall, list[Job]]:
        """Return the call that a request asks for, and what there is to do."""
        columns = await self._columns(request, deadline)
        call = BulkCall(_count(request), columns)
        sorted_ = await self._sort(request, call, deadline)
        jobs: list[Job] = []
        for transfers in (*([columns] if columns else []), *sorted_.groups):
            jobs.append(partial(self._work.carry_out, transfers, source, deadline))
        for index in sorted_.alone:
            one = request.transactions[index]
            alone = partial(self._do_alone, one, index, call, source, deadline)
            jobs.append(partial(in_place, self._work.room.alone, alone))
        return call, jobs

    async def _columns(self, request: Request, deadline: Deadline) -> Transfers | None:
        if not request.HasField("transfers"):
            return None
        asked = request.transfers
        ledger = asked.ledger or MAIN_NAME
        path = "transfers.currency"
        currencies = await self._directory.currencies(ledger, {path: asked.currency}, deadline)
        terms = Terms(ledger, currencies[path], asked.actor)
        return Transfers(transfer_columns.columns(asked), terms)

    async def _sort(self, request: Request, call: BulkCall, deadline: Deadline) -> Sorted:
        """Tell general transactions apart: wrong ones get their result, the others their way."""
        plain, alone = [], []
        for index, one in enumerate(request.transactions):
            await bulk_results.give_way(index)
            if violations := validation.create_transaction(one):
                error = to_call_error(InvalidRequestError(violations))
                call.add(index, ledger_pb2.TransactionResult(error=error))
            elif may_be_plain(one):
                plain.append(index)
            else:
                alone.append(index)
        items = [(index, request.transactions[index]) for index in plain]
        currencies = await self._currencies((one for _, one in items), deadline)
        sorted_ = sort_plain(items, currencies, alone)
        call.sort(sorted_)
        return sorted_

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
        call: BulkCall,
        source: Source,
        deadline: Deadline,
    ) -> None:
        """Do a transaction as a single call does."""
        try:
            made = await self._create_transaction(request, source, deadline)
            call.add(index, ledger_pb2.TransactionResult(transaction=made))
        except LedgerError as error:
            call.add(index, ledger_pb2.TransactionResult(error=to_call_error(error)))


def _count(request: Request) -> int:
    return len(request.transactions) + transfer_columns.count_of(request.transfers)


def _violations(request: Request) -> Violations:
    """Check what fails a call as a whole."""
    count, total = transfer_columns.count_of(request.transfers), _count(request)
    if not 1 <= total <= ITEMS_MAX:
        return wrong(
            "transfers" if count else "transactions",
            f"must be 1 to {ITEMS_MAX:,}, transactions and transfers together; there are {total:,}",
        )
    found = transfer_columns.violations(request.transfers)
    if not found and request.HasField("atomic"):
        return atomic.violations(request)
    return found

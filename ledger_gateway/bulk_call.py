"""The answer to a bulk call, whole or in parts.

A part costs some 0.2 ms of each side, whatever is in it, so there are few of them: one is due when
it has half of the items that were in none before. What comes in the same pass of the event loop
goes together.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable

from ledger.v1 import ledger_pb2
from ledger_gateway import bulk_results
from ledger_gateway.plain_transfers import Sorted
from ledger_gateway.transfer_pieces import Transfers

PART_ITEMS_MIN = 64
"""Of all parts but the last one: less is not worth a message."""

Part = ledger_pb2.StreamCreateTransactionsResponse
Response = ledger_pb2.CreateTransactionsResponse
Results = dict[int, ledger_pb2.TransactionResult]


class BulkCall:
    """The items of a call, and what became of them.

    Of its transfers, ``columns`` are those that came as such, ``sorted_`` has the others. Their
    outcomes, and all that is given to `add`, are in its answer.
    """

    def __init__(self, count: int, columns: Transfers | None) -> None:
        self._open = count
        """Items that were in no part."""
        self._fresh = 0
        """Those of them that have come to their end."""
        self._columns = columns
        self._sorted = Sorted([])
        self._results: Results = {}
        self._due: asyncio.Future[None] | None = None
        if columns is not None:
            columns.outcomes.added = self._added

    def sort(self, sorted_: Sorted) -> None:
        """Set what general transactions go as transfers."""
        self._sorted = sorted_
        for transfers in sorted_.groups:
            transfers.outcomes.added = self._added

    def add(self, index: int, result: ledger_pb2.TransactionResult) -> None:
        """Add what became of a general transaction."""
        self._results[index] = result
        self._added(1)

    async def parts(self, work: Awaitable[None]) -> AsyncGenerator[Part, None]:
        """Do the work that the items are, and return its results as they come."""
        working = asyncio.ensure_future(work)
        working.add_done_callback(self._wake)
        try:
            while self._open:
                if not (self._is_due() or working.done()):
                    self._due = asyncio.get_running_loop().create_future()
                    await self._due
                if working.done():
                    await working
                    assert self._fresh == self._open, "all items have come to their end"
                yield await self._part()
            await working
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def response(self) -> Response:
        """Return what became of all items, which have come to their end."""
        _, _, found = await self._take()
        return found

    async def _part(self) -> Part:
        """Return what became of the items that have come to their end since the last part."""
        transactions, transfers, found = await self._take()
        return Part(transaction_indexes=transactions, transfer_indexes=transfers, part=found)

    async def _take(self) -> tuple[list[int], list[int], Response]:
        """Return which general transactions, and which transfers, these are, and their results."""
        # All at once: while messages are made, others may come to their end.
        results, self._results = self._results, {}
        groups = [group.take() for group in self._sorted.groups]
        columns = self._columns.take() if self._columns is not None else None
        self._open -= self._fresh
        self._fresh = 0
        for transfers, indexes in zip(groups, self._sorted.indexes, strict=True):
            for place, result in bulk_results.transaction_results(transfers):
                results[indexes[place]] = result
                await bulk_results.give_way(place)
        indexes = sorted(results)
        found = Response(results=[results[index] for index in indexes])
        if columns is None:
            return indexes, [], found
        there, of_transfers = await bulk_results.transfer_results(columns)
        found.transfers.CopyFrom(of_transfers)
        return indexes, there.tolist(), found

    def _added(self, count: int) -> None:
        self._fresh += count
        if self._due is not None and self._is_due():
            self._wake()

    def _wake(self, _: object = None) -> None:
        if self._due is not None and not self._due.done():
            self._due.set_result(None)

    def _is_due(self) -> bool:
        fresh, still_open = self._fresh, self._open
        return fresh == still_open or (fresh >= PART_ITEMS_MIN and 2 * fresh >= still_open)

"""The transactions of a ledger: the lists of all shards, merged into one, newest first.

The order is total: by the time of creation (newest first), then by shard (lowest id first), then by
number (highest first). So one place in it, that of the last transaction shown, tells every shard
where to go on, and nothing is shown twice or skipped, however many share a time.

Where filters fit few transactions, a shard stops after a bounded number of them and says how far it
got. Nothing behind that place is shown until it got further: what it has not looked at could be
newer.
"""

import asyncio
import heapq
from collections import deque

from ledger.v1 import ledger_pb2
from ledger_cluster.shards import Answer
from ledger_core.ledgers import MAIN_NAME
from ledger_core.money import INT64_MAX
from ledger_core.queries import ListLedgerTransactions
from ledger_core.results import LedgerTransactionPage, TransactionView
from ledger_gateway import conversion, fields
from ledger_gateway.errors import unwrap
from ledger_gateway.pagination import LEDGER_TRANSACTIONS, PAGE_BYTES_MAX, LedgerCursor
from ledger_gateway.shard_calls import Context, ShardCalls

# How often a page may ask the same shard: it ends early rather than looking on for long.
_ROUNDS_MAX = 8
# Accounts spread evenly over shards, and so do their transactions, but for chance.
_SHARE_MARGIN = 2
_PER_CALL_MIN = 10

Order = tuple[int, int, int]


async def ledger_transactions(
    shards: ShardCalls, request: ledger_pb2.ListTransactionsRequest, context: Context
) -> ledger_pb2.ListTransactionsResponse:
    """Return a page of a ledger's transactions. It may be short, and have a next one."""
    cursor = LEDGER_TRANSACTIONS.decode(request)
    merge = _Merge([_ShardList(shard_id, cursor) for shard_id in shards.shard_ids()], request)
    for _ in range(_ROUNDS_MAX):
        waiting = merge.waiting()
        size = _share(merge.missing(), len(waiting))
        await asyncio.gather(*(item.fetch(shards, request, size, context) for item in waiting))
        if merge.show():
            break
    token = merge.next_page_token(cursor)
    return ledger_pb2.ListTransactionsResponse(
        transactions=merge.shown,
        next_page_token=token,
        read_points=[conversion.read_point(item.first_answer) for item in merge.lists],
    )


class _ShardList:
    """The list of one shard: what it has brought that is not shown yet, and how far it got."""

    first_answer: Answer

    def __init__(self, shard_id: int, cursor: LedgerCursor | None) -> None:
        self.shard_id = shard_id
        self.found: deque[TransactionView] = deque()
        self._before_us, self._before_number = 0, 0
        self._exhausted = False
        self._asked = False
        if cursor is not None:
            self._before_us, self._before_number = _start(shard_id, cursor)

    @property
    def waits(self) -> bool:
        """Whether it has to be asked before anything behind `reached` may be shown."""
        return not self.found and not self._exhausted

    @property
    def reached(self) -> LedgerCursor:
        """The place behind which it has not looked."""
        return LedgerCursor(self._before_us, self.shard_id, self._before_number)

    @property
    def head(self) -> LedgerCursor:
        """The place of the next one to show."""
        return LedgerCursor(self.found[0].create_time_us, self.shard_id, self.found[0].number)

    async def fetch(
        self,
        shards: ShardCalls,
        request: ledger_pb2.ListTransactionsRequest,
        size: int,
        context: Context,
    ) -> None:
        """Ask for the next ones."""
        query = ListLedgerTransactions(
            request.ledger or MAIN_NAME,
            size,
            conversion.transaction_filter(request),
            self._before_us,
            self._before_number,
        )
        answer = await shards.query_shard(self.shard_id, query, context, request.consistency)
        page = unwrap(answer.result, LedgerTransactionPage)
        if not self._asked:
            self.first_answer, self._asked = answer, True
        self.found.extend(page.transactions)
        self._exhausted = page.exhausted
        self._before_us, self._before_number = page.next_us, page.next_number


class _Merge:
    """A page in the making."""

    def __init__(
        self, lists: list[_ShardList], request: ledger_pb2.ListTransactionsRequest
    ) -> None:
        self.lists = lists
        self.shown: list[ledger_pb2.Transaction] = []
        self._request = request
        self._page_size = request.page_size or fields.PAGE_SIZE_DEFAULT
        self._bytes = 0
        self._last: LedgerCursor | None = None
        self._full = False

    def missing(self) -> int:
        """How many the page may still take."""
        return self._page_size - len(self.shown)

    def waiting(self) -> list[_ShardList]:
        """The lists that have to be asked before the page can go on."""
        return [item for item in self.lists if item.waits]

    def show(self) -> bool:
        """Show what is certain to come next, and tell whether the page is done."""
        heads = [(_order(item.head), item) for item in self.lists if item.found]
        heapq.heapify(heads)
        limit = min((_order(item.reached) for item in self.waiting()), default=None)
        while heads and (limit is None or heads[0][0] <= limit):
            item = heads[0][1]
            if not self._add(item):
                return True
            if item.found:
                heapq.heapreplace(heads, (_order(item.head), item))
                continue
            heapq.heappop(heads)
            if item.waits:
                reached = _order(item.reached)
                limit = reached if limit is None else min(limit, reached)
        return not self.missing() or limit is None

    def next_page_token(self, cursor: LedgerCursor | None) -> str:
        """Return the token of what comes behind the page; "" if there is nothing."""
        waiting = self.waiting()
        if not waiting and not any(item.found for item in self.lists):
            return ""
        if self._full or not self.missing():
            then = self._last
        else:
            then = min((item.reached for item in waiting), key=_order)
        if then is None or (cursor is not None and _order(then) <= _order(cursor)):
            raise RuntimeError(f"a page that starts behind {cursor} got no further than {then}")
        return LEDGER_TRANSACTIONS.encode(self._request, then)

    def _add(self, item: _ShardList) -> bool:
        """Move the next one of a list into the page, unless the page is full."""
        shown = conversion.transaction(item.found[0])
        size = shown.ByteSize()
        self._full = not self.missing() or (
            bool(self.shown) and self._bytes + size > PAGE_BYTES_MAX
        )
        if self._full:
            return False
        self._last = item.head
        item.found.popleft()
        self.shown.append(shown)
        self._bytes += size
        return True


def _start(shard_id: int, cursor: LedgerCursor) -> tuple[int, int]:
    """Return the time and the number before which a shard goes on.

    Of those created just at the cursor's time, lower shards have shown all, higher ones nothing.
    """
    if shard_id == cursor.shard_id:
        return cursor.time_us, cursor.number
    later = shard_id > cursor.shard_id and cursor.time_us < INT64_MAX
    return cursor.time_us + later, 0


def _order(place: LedgerCursor) -> Order:
    return -place.time_us, place.shard_id, -place.number


def _share(missing: int, lists: int) -> int:
    """How many to ask each list for: enough to fill the page in one round more often than not."""
    share = -(-missing * _SHARE_MARGIN // max(lists, 1))
    return min(missing, max(share, _PER_CALL_MIN))

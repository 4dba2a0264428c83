"""`ledger.v1.JournalService`: the journals of all shards, out of a cluster and into another one."""
# ruff: noqa: N802 - gRPC names the methods

import asyncio
from collections.abc import Iterator, Sequence

import msgspec

from ledger.v1 import journal_pb2, journal_pb2_grpc
from ledger_cluster.channels import EXECUTE_BYTES_MAX, REPLAY_BYTES_MAX
from ledger_cluster.shards import Shards
from ledger_core import queries
from ledger_core.commands import (
    REPLAYED_ITEMS_MAX,
    EndReplay,
    Replay,
    ReplayedItem,
    decode_command,
    routing_id,
)
from ledger_core.errors import Reason
from ledger_core.ids import shard_key, system_account_id
from ledger_core.money import INT64_MAX
from ledger_core.results import Failure, JournalItemView, JournalPage, JournalView, Replayed, Result
from ledger_gateway import fields
from ledger_gateway.errors import unwrap
from ledger_gateway.fields import Violations, wrong
from ledger_gateway.ledger_directory import LedgerDirectory
from ledger_gateway.shard_calls import Context, ShardCalls
from ledger_gateway.validation import require

JOURNAL_SERVICE_NAME = journal_pb2.DESCRIPTOR.services_by_name["JournalService"].full_name
REPLAY_METHOD = f"/{JOURNAL_SERVICE_NAME}/ReplayJournal"
REPLAY_REQUEST_BYTES_MAX = REPLAY_BYTES_MAX + (100 << 10)

ENTRIES_MAX = 1_000
PAGE_SIZE_DEFAULT = 100
# No journal is so long: what comes behind it is nothing but how long the journal is.
_BEHIND_ALL = INT64_MAX
# What msgpack adds to a replayed item, and to the command around it.
_ITEM_OVERHEAD_BYTES = 32
# Entries that travel together; the shard takes them one by one.
_TOGETHER_MAX = 200
_TOGETHER_BYTES_MAX = EXECUTE_BYTES_MAX // 2


class JournalService(journal_pb2_grpc.JournalServiceServicer):
    """Journals on top of the shards. Keeps nothing but what it remembers of ledgers."""

    def __init__(self, shards: Shards) -> None:
        self._shards = ShardCalls(shards)
        self._directory = LedgerDirectory(self._shards)

    async def ListShards(
        self,
        request: journal_pb2.ListShardsRequest,  # noqa: ARG002  (it has no fields)
        context: Context,
    ) -> journal_pb2.ListShardsResponse:
        """Return all shards, and how far their journals reach."""
        query = queries.ListJournal(_BEHIND_ALL, 1)
        shard_ids = self._shards.shard_ids()
        answers = await asyncio.gather(
            *(self._shards.query_shard(shard_id, query, context) for shard_id in shard_ids)
        )
        return journal_pb2.ListShardsResponse(
            shards=[
                self._shard(shard_id, unwrap(answer.result, JournalPage))
                for shard_id, answer in zip(shard_ids, answers, strict=True)
            ]
        )

    def _shard(self, shard_id: int, page: JournalPage) -> journal_pb2.JournalShard:
        lower_bound, upper_bound = self._shards.shard_bounds(shard_id)
        return journal_pb2.JournalShard(
            shard_id=shard_id,
            lower_bound=lower_bound,
            upper_bound=upper_bound,
            last_number=page.last_number,
            replayed_number=page.replayed,
        )

    async def ListJournal(
        self, request: journal_pb2.ListJournalRequest, context: Context
    ) -> journal_pb2.ListJournalResponse:
        """Return a part of the journal of one shard."""
        require(
            self._known_shard(request.shard_id)
            + _after("after_number", request.after_number)
            + _page_size(request.page_size)
            + fields.ledger(request.ledger)
        )
        if request.ledger:
            await self._directory.require(request.ledger, context)
        query = queries.ListJournal(
            request.after_number, request.page_size or PAGE_SIZE_DEFAULT, request.ledger
        )
        answer = await self._shards.query_shard(request.shard_id, query, context)
        page = unwrap(answer.result, JournalPage)
        return journal_pb2.ListJournalResponse(
            entries=[_entry(view) for view in page.entries], last_number=page.last_number
        )

    async def ReplayJournal(
        self, request: journal_pb2.ReplayJournalRequest, context: Context
    ) -> journal_pb2.ReplayJournalResponse:
        """Apply journal entries of another cluster to a shard that has nothing else."""
        require(self._known_shard(request.shard_id) + _after("after_number", request.after_number))
        bounds = self._shards.shard_bounds(request.shard_id)
        require(_replayed(request, bounds))
        # The shard's own account: any of its ids routes there.
        route = system_account_id(bounds[0], 0)
        last = Replayed(0, b"")
        for together in _together(_commands(request, route)):
            last = await self._replay(together, context)
        if request.ends:
            last = unwrap(await self._shards.execute(EndReplay(route), context), Replayed)
        return journal_pb2.ReplayJournalResponse(last_number=last.number, link=last.link)

    async def _replay(self, commands: Sequence[Replay], context: Context) -> Replayed:
        """Send some entries at once; where they did not arrive in order, one after the other."""
        results: Sequence[Result] = await asyncio.gather(
            *(self._shards.execute(command, context) for command in commands)
        )
        if any(isinstance(r, Failure) and r.reason is Reason.JOURNAL_GAP for r in results[1:]):
            results = [await self._shards.execute(command, context) for command in commands]
        return [unwrap(result, Replayed) for result in results][-1]

    def _known_shard(self, shard_id: int) -> Violations:
        if shard_id not in self._shards.shard_ids():
            return wrong(
                "shard_id", f"there is no shard {shard_id}: ListShards shows those there are"
            )
        return []


def _entry(view: JournalView) -> journal_pb2.JournalEntry:
    return journal_pb2.JournalEntry(
        number=view.number,
        log_index=view.index,
        time_us=view.time_us,
        items=[_item(item) for item in view.items],
        link=view.link,
    )


def _item(view: JournalItemView) -> journal_pb2.JournalItem:
    return journal_pb2.JournalItem(
        digest=view.digest,
        hidden=view.hidden,
        command=view.command,
        outcome=view.outcome,
        number=view.number,
        rows=view.rows,
    )


# Requests


def _page_size(value: int) -> Violations:
    if not 0 <= value <= queries.PAGE_SIZE_MAX:
        return wrong(
            "page_size",
            f"must be between 0 and {queries.PAGE_SIZE_MAX:,}; 0 means {PAGE_SIZE_DEFAULT}",
        )
    return []


def _after(field: str, value: int) -> Violations:
    return wrong(field, f"must be at most {INT64_MAX}") if value > INT64_MAX else []


def _replayed(request: journal_pb2.ReplayJournalRequest, bounds: tuple[int, int]) -> Violations:
    """Check everything that can be seen without the shard."""
    count = len(request.entries)
    if count > ENTRIES_MAX or (not count and not request.ends):
        return wrong("entries", f"must be 1 to {ENTRIES_MAX:,}, are {count:,}")
    found: Violations = []
    previous = request.after_number
    for index, entry in enumerate(request.entries):
        field = f"entries[{index}]"
        if not previous < entry.number <= INT64_MAX:
            found += wrong(f"{field}.number", f"must be above {previous}, is {entry.number}")
        previous = max(previous, entry.number)
        if entry.time_us < 0:
            found += wrong(f"{field}.time_us", "must not be negative")
        if not 1 <= len(entry.items) <= REPLAYED_ITEMS_MAX:
            found += wrong(
                f"{field}.items",
                f"must be 1 to {REPLAYED_ITEMS_MAX:,}, are {len(entry.items):,}; an entry of which "
                f"everything is hidden is left out",
            )
        elif (size := _size(entry)) > REPLAY_BYTES_MAX:
            found += wrong(f"{field}.items", f"has {size:,} bytes, at most {REPLAY_BYTES_MAX:,}")
        for number, item in enumerate(entry.items):
            found += _replayed_item(f"{field}.items[{number}]", item, bounds)
    return found


def _replayed_item(
    field: str, item: journal_pb2.JournalItem, bounds: tuple[int, int]
) -> Violations:
    if item.hidden:
        return wrong(f"{field}.hidden", "a hidden item cannot be replayed: leave it out")
    if not item.outcome:
        return wrong(f"{field}.outcome", "is required")
    if not item.command:
        return []
    try:
        command = decode_command(item.command)
    except msgspec.MsgspecError as error:
        return wrong(f"{field}.command", f"is no command: {error}")
    if isinstance(command, Replay | EndReplay):
        return wrong(f"{field}.command", "is a step of an import, which is never in a journal")
    if not bounds[0] <= shard_key(routing_id(command)) <= bounds[1]:
        return wrong(f"{field}.command", "belongs to another shard")
    return []


def _size(entry: journal_pb2.JournalEntry) -> int:
    return sum(len(item.command) + len(item.outcome) + _ITEM_OVERHEAD_BYTES for item in entry.items)


def _commands(
    request: journal_pb2.ReplayJournalRequest, route: int
) -> Iterator[tuple[Replay, int]]:
    """Yield a command for each journal entry, and its size."""
    previous = request.after_number
    for entry in request.entries:
        items = [ReplayedItem(item.command, item.outcome, item.number) for item in entry.items]
        yield Replay(route, entry.number, entry.time_us, items, previous), _size(entry)
        previous = entry.number


def _together(commands: Iterator[tuple[Replay, int]]) -> Iterator[list[Replay]]:
    """Gather commands that fit into one call to a node; a large one goes alone."""
    batch: list[Replay] = []
    total = 0
    for command, size in commands:
        if batch and (total + size > _TOGETHER_BYTES_MAX or len(batch) == _TOGETHER_MAX):
            yield batch
            batch, total = [], 0
        batch.append(command)
        total += size
    if batch:
        yield batch

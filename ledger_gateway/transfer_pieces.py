"""The transfers of a call on their way to shards: where they belong, and pieces for lanes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ledger_cluster.channels import EXECUTE_BYTES_MAX
from ledger_core.commands import Refused, Source, TransferPart
from ledger_core.errors import LedgerError
from ledger_core.results import TransactionView, TransfersView
from ledger_core.transfers import TRANSFERS_PER_BLOCK_MAX
from ledger_gateway.block_kinds import ASKED, block_terms
from ledger_gateway.block_lanes import ONCE_BYTES, Piece, Rows, require_time
from ledger_gateway.errors import unwrap
from ledger_gateway.shard_calls import Deadline, ShardCalls
from ledger_gateway.transfer_columns import Columns, IndexArray, Terms, text_bytes

_REQUEST_ID = ASKED["request_id"]

# Of a block: what its columns have for an item, and what a vote against it may add.
ITEM_BYTES = 43 + 61

_encode = msgspec.msgpack.Encoder().encode


def _nobody(count: int) -> None:
    """Tell nobody."""


@dataclass(slots=True)
class Outcomes:
    """What became of transfers: of those in blocks, block by block, and of those that went alone.

    Blocks come with their items, as places in the columns. Each item comes once. ``added`` is told
    how many have come.
    """

    blocks: list[tuple[IndexArray, TransfersView | LedgerError]] = field(default_factory=list)
    singles: dict[int, TransactionView | LedgerError] = field(default_factory=dict)
    added: Callable[[int], None] = _nobody

    def count(self) -> int:
        """Return how many items these are."""
        return sum(len(items) for items, _ in self.blocks) + len(self.singles)

    def add_block(self, items: IndexArray, outcome: TransfersView | LedgerError) -> None:
        """Add what became of the items of a block."""
        self.blocks.append((items, outcome))
        self.added(len(items))

    def add_single(self, item: int, outcome: TransactionView | LedgerError) -> None:
        """Add what became of an item that went alone."""
        self.singles[item] = outcome
        self.added(1)


@dataclass(slots=True)
class Transfers:
    """Transfers with the same terms, and what became of them."""

    columns: Columns
    terms: Terms
    outcomes: Outcomes = field(default_factory=Outcomes)

    def take(self) -> "Transfers":
        """Return them with the outcomes that have come, and forget these."""
        outcomes = self.outcomes
        taken = Transfers(self.columns, self.terms, Outcomes(outcomes.blocks, outcomes.singles))
        outcomes.blocks, outcomes.singles = [], {}
        return taken


class Part(NamedTuple):
    """Items of a call for one shard that fit into a block: places in the columns, and rows."""

    items: IndexArray
    rows: Rows


def by_shard(shard_ids: NDArray[np.uint16]) -> tuple[IndexArray, list[tuple[int, int, int]]]:
    """Sort by shards: return the order, and in it each shard with its first place and its end.

    Those of the same shard stay in their order.
    """
    order = shard_ids.argsort(kind="stable")
    if not len(order):
        return order, []
    ordered = shard_ids.take(order)
    starts = [0, *((ordered[1:] != ordered[:-1]).nonzero()[0] + 1).tolist()]
    shards = ordered.take(starts).tolist()
    return order, list(zip(shards, starts, [*starts[1:], len(order)], strict=True))


def part_bytes(actor: str, source: Source) -> int:
    """Return how many bytes of a block say who asks for a piece, at most."""
    return len(_encode(TransferPart(TRANSFERS_PER_BLOCK_MAX, actor, source)))


class PlacedTransfers:
    """Transfers, the shards of their accounts, and who asks for them.

    ``rows`` has them as `ASKED`.
    """

    def __init__(self, shards: ShardCalls, transfers: Transfers, source: Source) -> None:
        columns, terms = transfers.columns, transfers.terms
        self.columns = columns
        self.outcomes = transfers.outcomes
        self.terms = terms
        self.source = source
        self.block_terms = block_terms(terms.ledger, terms.currency)
        self.rows = rows = np.empty(len(columns), ASKED)
        rows["first"], rows["second"] = columns.first, columns.second
        rows["amount"], rows["form"] = columns.amounts, columns.forms
        rows["request_id"] = np.ascontiguousarray(columns.request_ids).view(_REQUEST_ID)[:, 0]
        found = shards.shard_ids_of(np.concatenate((columns.first, columns.second)))
        rows["home"] = home = found[: len(columns)]
        rows["other"] = np.where(columns.second == 0, home, found[len(columns) :])
        self._part_bytes = part_bytes(terms.actor, source)

    def parts(self, column: str, items: IndexArray) -> Iterator[tuple[int, list[Part]]]:
        """Sort items by the shards in a column of the rows, and cut those of each, in their order.

        The rows are sorted once for all: those of a part are a view.
        """
        order, shards = by_shard(self.rows[column].take(items))
        items = items.take(order)
        rows = self.rows.take(items)
        for shard_id, start, end in shards:
            cuts = self._cuts(items, start, end)
            yield shard_id, [Part(items[begin:stop], rows[begin:stop]) for begin, stop in cuts]

    def piece(self, part: Part, refused: Mapping[int, Refused] | None = None) -> Piece:
        """Return the piece of a part, with the votes against its items."""
        texts, against = {}, {}
        size = ITEM_BYTES * len(part.items) + self._part_bytes
        if self.columns.texts or refused:
            for place, item in enumerate(part.items.tolist()):
                if item in self.columns.texts:
                    texts[place] = self.columns.texts[item]
                    size += text_bytes(texts[place])
                if refused and item in refused:
                    against[place] = refused[item]
        return Piece(part.rows, size, texts, against, self.terms.actor, self.source)

    async def send_alone(self, shards: ShardCalls, item: int, deadline: Deadline) -> None:
        """Send one item as a command of its own."""
        row = self.rows[item]
        shard_ids = int(row["home"]), int(row["other"])
        try:
            require_time(deadline)
            command = self.columns.single(item, shard_ids, self.terms, self.source)
            result = await shards.execute(command, deadline)
            self.outcomes.add_single(item, unwrap(result, TransactionView))
        except LedgerError as error:
            self.outcomes.add_single(item, error)

    def _cuts(self, items: IndexArray, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Cut these places of ``items`` into what fits into a block each."""
        texts = self.columns.texts
        if not texts:
            for begin in range(start, end, TRANSFERS_PER_BLOCK_MAX):
                yield begin, min(begin + TRANSFERS_PER_BLOCK_MAX, end)
            return
        sizes = [ITEM_BYTES + text_bytes(texts.get(item)) for item in items[start:end].tolist()]
        sums, begin = np.cumsum(sizes), 0
        while begin < len(sums):
            before = int(sums[begin - 1]) if begin else 0
            room = before + EXECUTE_BYTES_MAX - ONCE_BYTES
            stop = min(int(np.searchsorted(sums, room, "right")), begin + TRANSFERS_PER_BLOCK_MAX)
            yield start + begin, start + stop
            begin = stop

"""The transfers of a call on their way to shards: where they belong, and pieces for lanes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from ledger_cluster.channels import EXECUTE_BYTES_MAX
from ledger_core.commands import Refused, Source, TransferPart
from ledger_core.errors import LedgerError
from ledger_core.results import TransactionView, TransfersView
from ledger_core.transfers import TRANSFERS_PER_BLOCK_MAX
from ledger_gateway.block_kinds import ASKED, block_terms
from ledger_gateway.block_lanes import ONCE_BYTES, Piece, require_time
from ledger_gateway.errors import unwrap
from ledger_gateway.shard_calls import Deadline, ShardCalls
from ledger_gateway.transfer_columns import Columns, IndexArray, Terms, text_bytes

# Of a block: what its columns have for an item, and what a vote against it may add.
ITEM_BYTES = 43 + 61

_encode = msgspec.msgpack.Encoder().encode


@dataclass(slots=True)
class Outcomes:
    """What became of transfers: of those in blocks, block by block, and of those that went alone.

    Blocks come with their items, as places in the columns. Of an item that is in both, that of the
    single one counts.
    """

    blocks: list[tuple[IndexArray, TransfersView | LedgerError]] = field(default_factory=list)
    singles: dict[int, TransactionView | LedgerError] = field(default_factory=dict)


@dataclass(slots=True)
class Transfers:
    """Transfers with the same terms, and what became of them."""

    columns: Columns
    terms: Terms
    outcomes: Outcomes = field(default_factory=Outcomes)


def by_shard(shard_ids: NDArray[np.uint16]) -> Iterator[tuple[int, IndexArray]]:
    """Return the places of each shard, in their order."""
    if not len(shard_ids):
        return
    order = np.argsort(shard_ids, kind="stable")
    ends = [*(np.flatnonzero(np.diff(shard_ids[order])) + 1).tolist(), len(order)]
    start = 0
    for end in ends:
        yield int(shard_ids[order[start]]), order[start:end]
        start = end


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
        rows["request_id"] = np.ascontiguousarray(columns.request_ids).view("V16").reshape(-1)
        rows["home"] = home = shards.shard_ids_of(columns.first)
        rows["other"] = np.where(columns.second == 0, home, shards.shard_ids_of(columns.second))
        self._part_bytes = part_bytes(terms.actor, source)

    def pieces(
        self, shard_ids: NDArray[np.uint16], items: IndexArray
    ) -> Iterator[tuple[int, list[IndexArray]]]:
        """Sort items by these shards, and cut those of each, in their order, for a block each."""
        for shard_id, places in by_shard(shard_ids[items]):
            yield shard_id, list(self._cut(items[places]))

    def piece(self, items: IndexArray, refused: Mapping[int, Refused] | None = None) -> Piece:
        """Return a piece of some items, with the votes against them."""
        texts, against = {}, {}
        size = ITEM_BYTES * len(items) + self._part_bytes
        if self.columns.texts or refused:
            for place, item in enumerate(items.tolist()):
                if item in self.columns.texts:
                    texts[place] = self.columns.texts[item]
                    size += text_bytes(texts[place])
                if refused and item in refused:
                    against[place] = refused[item]
        return Piece(self.rows.take(items), size, texts, against, self.terms.actor, self.source)

    async def send_alone(self, shards: ShardCalls, item: int, deadline: Deadline) -> None:
        """Send one item as a command of its own."""
        row = self.rows[item]
        shard_ids = int(row["home"]), int(row["other"])
        try:
            require_time(deadline)
            command = self.columns.single(item, shard_ids, self.terms, self.source)
            result = await shards.execute(command, deadline)
            self.outcomes.singles[item] = unwrap(result, TransactionView)
        except LedgerError as error:
            self.outcomes.singles[item] = error

    def _cut(self, items: IndexArray) -> Iterator[IndexArray]:
        if not self.columns.texts:
            for start in range(0, len(items), TRANSFERS_PER_BLOCK_MAX):
                yield items[start : start + TRANSFERS_PER_BLOCK_MAX]
            return
        texts = self.columns.texts
        sizes = [ITEM_BYTES + text_bytes(texts.get(item)) for item in items.tolist()]
        ends = np.cumsum(sizes)
        start = 0
        while start < len(items):
            before = int(ends[start - 1]) if start else 0
            room = before + EXECUTE_BYTES_MAX - ONCE_BYTES
            end = min(int(np.searchsorted(ends, room, "right")), start + TRANSFERS_PER_BLOCK_MAX)
            yield items[start:end]
            start = end

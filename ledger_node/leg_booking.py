"""A block of transfers between shards on its way into the books: judged, booked and recorded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ledger_core.accounts import EntryKind
from ledger_core.commands import Refused, TransferPart
from ledger_core.results import RefusalView
from ledger_core.transfer_legs import (
    LegBlock,
    leg_command,
    leg_parts,
    origin_keys,
    origin_rows,
    part_places,
    peer_shards,
    u64_column,
)
from ledger_core.transfers import I64Array, big_endian
from ledger_node.account_events import note_refused_transaction
from ledger_node.books import Books, InvariantError
from ledger_node.entry_columns import BoolArray, EntryColumns, IndexArray, book_columns
from ledger_node.leg_judge import LegJudge, LegSides, read_sides
from ledger_node.leg_records import LegTemplate, joined, record_who, uuid_texts
from ledger_node.leg_rules import first_refusal
from ledger_node.records import TransactionRecord
from ledger_node.refusal_rules import refusal
from ledger_node.row_templates import Bytes
from ledger_node.store_leg_columns import KeptRows, number_keys
from ledger_node.transaction_rules import add_references
from ledger_node.views import refusal_view

_REFUSED: Final = np.uint8(EntryKind.REFUSED)


def begin(books: Books, block: LegBlock, mark: bytes = b"") -> "LegBooking | None":
    """Read what a block needs; None, and nothing done, where it is to be done item by item.

    ``mark`` goes before the origins in the keys of its requests.
    """
    origins = origin_rows(block.first_accounts, block.request_ids)
    keys = origin_keys(origins, mark)
    if len({*keys}) < len(keys):
        return None
    book = books.find_book(block.ledger, block.currency)
    if book is None:
        return None
    books.write_rows()
    sides = read_sides(books, block, book)
    if sides is None or sides.could_overflow():
        return None
    known = {key for key, _ in books.tables.find_requests(keys)}
    todo = np.array([key not in known for key in keys], bool) if known else np.ones(len(keys), bool)
    return LegBooking(books, block, book, sides, keys, origins, todo)


@dataclass(slots=True)
class LegBooking:
    """A block of which nothing is done yet: call `judge`, then `book`, then `record`.

    ``todo`` are the items whose requests are not known; those that are taken, once that is judged,
    are ``taken``. ``numbers`` are those of the transactions, 0 of items that are not to be done.
    """

    books: Books
    block: LegBlock
    book_number: int
    sides: LegSides
    keys: list[bytes]
    origins: Bytes
    todo: BoolArray
    taken: BoolArray = field(default_factory=lambda: np.zeros(0, bool))
    numbers: I64Array = field(default_factory=lambda: np.zeros(0, np.int64))
    refused: dict[int, Refused] = field(default_factory=dict)
    first_number: int = 0
    columns: dict[str, Bytes] | None = None

    def judge(self, votes: dict[int, Refused], entry_index: int, *, reserves: bool) -> None:
        """Find out which items are refused, here or by the votes, and number them all."""
        refused, sides, todo = self.refused, self.sides, self.todo
        # Only to read: what it has seen must not be written back.
        reader = Books(self.books.tables, self.books.meta, self.books.shard_id)
        for item in (todo & ~sides.takes).nonzero()[0].tolist():
            own = refusal(reader, leg_command(self.block, item, self.books.shard_id))
            if own is None:
                raise InvariantError(f"transfer {item} is refused for no reason")
            refused[item] = first_refusal(own, votes.get(item)) or own
        judge = LegJudge(self.books, sides, todo & sides.takes, entry_index, reserves=reserves)
        for item in judge.careful.nonzero()[0].tolist():
            why = first_refusal(judge.refuses(item), votes.get(item))
            if why is None:
                judge.take(item)
            else:
                refused[item] = why
        for item, vote in votes.items():
            if todo[item] and item not in refused:
                refused[item] = vote
        self.taken = todo.copy()
        self.taken[[*refused]] = False
        count = int(todo.sum())
        if count:
            self.first_number = self.books.take_transaction_numbers(count)
        self.numbers = np.where(todo, todo.cumsum() + (self.first_number - 1), 0)

    def book(self, kind: EntryKind) -> None:
        """Append the entries: two of every item that is taken, one of a refused one."""
        sides, taken = self.sides, self.taken
        count = len(taken)
        kept = np.stack([self.todo & sides.known, taken], axis=1).ravel()
        kinds = np.where(taken, np.uint8(kind), _REFUSED)
        entries = EntryColumns(
            np.stack([sides.own, sides.clearing], axis=1).ravel(),
            np.stack([sides.debits, ~sides.debits], axis=1).ravel(),
            sides.amount.repeat(2),
            kinds.repeat(2),
            self.numbers.repeat(2),
        )
        book_columns(
            self.books, sides.accounts, entries if kept.sum() == 2 * count else entries.only(kept)
        )
        sides.check_floors(taken)

    def record(
        self,
        template: LegTemplate,
        record_of: Callable[[int, Refused | None], TransactionRecord],
    ) -> dict[int, RefusalView]:
        """Write the transactions, and remember the requests; return why items are refused.

        ``record_of`` makes the record of an item that is refused, or has texts.
        """
        books, tables = self.books, self.books.tables
        items = self.todo.nonzero()[0]
        keys = self.keys
        if len(items) < len(keys):
            keys = [keys[item] for item in items.tolist()]
        tables.add_request_rows(keys, self.numbers[items])
        plain = self.plain_items()
        if len(plain):
            tables.put_transactions(
                number_keys(self.numbers[plain]), self.rows(template, plain, record_who)
            )
        refusals: dict[int, RefusalView] = {}
        for item in self.special_items():
            number = int(self.numbers[item])
            record = record_of(item, self.refused.get(item))
            books.save_transaction(number, record)
            add_references(books, number, record)
            if record.refusal is not None:
                note_refused_transaction(books, number, record)
                view = refusal_view(record, books.meta.books[record.book])
                assert view is not None, "it is refused"
                refusals[item] = view
        return refusals

    def plain_items(self) -> IndexArray:
        """Return the items that are taken, and have no texts."""
        if not self.block.texts:
            return self.taken.nonzero()[0]
        plain = self.taken.copy()
        plain[[*self.block.texts]] = False
        return plain.nonzero()[0]

    def special_items(self) -> list[int]:
        """Return the items to be done that are not plain, in their order."""
        special = {*self.refused, *self.block.texts}
        return sorted(item for item in special if self.todo[item])

    def rows(
        self, template: LegTemplate, items: IndexArray, who: Callable[[TransferPart], bytes]
    ) -> KeptRows:
        """Encode rows of plain items; ``who`` encodes who asked, as the rows have it."""
        count, columns = len(items), self._columns(items)
        heads, tails = template.head.lay(count, columns), template.tail.lay(count, columns)
        return joined(heads, self._middles(items, who), tails)

    def _columns(self, items: IndexArray) -> dict[str, Bytes]:
        """Return the columns of plain items, as rows of any template have them."""
        if self.columns is not None:
            return self.columns
        block, sides = self.block, self.sides
        forms = np.frombuffer(block.forms, np.uint8)[items].reshape(-1, 1)
        self.columns = {
            "home": big_endian(u64_column(block.first_accounts)[items]),
            "other": big_endian(u64_column(block.second_accounts)[items]),
            "clearing": big_endian(sides.clearing_ids[items]),
            "amount": big_endian(sides.amount[items]),
            "peer": big_endian(peer_shards(block)[items]),
            "time": big_endian(np.array([self.books.meta.time_us])),
            "number": np.zeros((1, 8), np.uint8),
            "origin": self.origins[items],
            "request_id": uuid_texts(self.origins[items, :16]),
            # As `Direction` has them, 1 and 2: the forms are named after the first entry's side.
            "side": forms,
            "other_side": 3 - forms,
            "clearing_side": 2 - (~sides.debits[items]).view(np.uint8).reshape(-1, 1),
        }
        return self.columns

    def _middles(
        self, items: IndexArray, who: Callable[[TransferPart], bytes]
    ) -> bytes | Sequence[bytes]:
        encoded = [who(part) for part in leg_parts(self.block)]
        if len({*encoded}) == 1:
            return encoded[0]
        return [encoded[place] for place in part_places(self.block)[items].tolist()]

"""Decisions on transfers between two shards, applied as arrays: the same as item by item.

At the participant most of a block is undecided and plain, made by `leg_booking` and settled now:
such records are recognised by their bytes and get their second state in place. Any other record is
decoded. Whatever has another shape than a transfer's makes the block be done item by item
(`leg_rules`). `tests/node/test_leg_blocks.py` holds every row against that.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ledger_core.accounts import Direction, EntryKind, TransactionStatus
from ledger_core.commands import ApplyTransfers, DeliveredTransfers
from ledger_core.ledgers import Currency
from ledger_core.results import Done
from ledger_core.transfer_legs import decision_of, origin_keys, origin_rows, u64_column
from ledger_core.transfers import (
    I64Array,
    U64Array,
)
from ledger_node.books import Books, InvariantError
from ledger_node.commit_rules import PARTICIPANT_MARK, apply_decision, learn_decision
from ledger_node.entry_columns import (
    BoolArray,
    EntryColumns,
    IndexArray,
    book_columns,
    distinct,
    read_balances,
)
from ledger_node.leg_records import find_undecided, participant_template, settled_rows, uuid_texts
from ledger_node.leg_rules import apply_each
from ledger_node.records import REQUEST_ROW_BYTES, TransactionRecord
from ledger_node.row_templates import Bytes
from ledger_node.store_columns import place_slots
from ledger_node.store_leg_columns import CHECKSUM_BYTES, number_keys

_SUM_MAX: Final = 1 << 62
# As `RequestRow` packs it.
_REQUEST: Final = np.dtype(
    [("hash", "V16"), ("number", "<i8"), ("state", "<u4"), ("pad", "V4"), ("checksum", "<u4")]
)
assert _REQUEST.itemsize == REQUEST_ROW_BYTES + CHECKSUM_BYTES
# numpy compares with plain numbers much faster.
_SETTLED: Final = int(TransactionStatus.SETTLED)
_END_KINDS: Final = np.uint8(EntryKind.SETTLED), np.uint8(EntryKind.CANCELLED)
_OPEN: Final = (TransactionStatus.UNDECIDED, TransactionStatus.PENDING)


def apply_transfers(books: Books, block: ApplyTransfers) -> Done:
    """At the participant: do what the homes decided, unless that is done, or overtaken."""
    work = _read(books, block)
    if work is None:
        return apply_each(books, block)
    ends = work.undecided
    for item, record in work.decoded.items():
        ended = learn_decision(books, int(work.numbers[item]), record, decision_of(block, item))
        if ended != ends[item]:
            raise InvariantError("a decision ends something else than was expected")
    for items, rows in work.settled:
        books.tables.put_transactions(number_keys(work.numbers[items]), rows)
    if ends.any():
        _book(books, block, work, ends.nonzero()[0])
        books.tables.drop_undecided_all(work.numbers[ends])
    for item in (work.numbers == 0).nonzero()[0].tolist():
        apply_decision(books, decision_of(block, item))
    return Done()


def delivered_transfers(books: Books, block: DeliveredTransfers) -> Done:
    """At the home: the participants have these; nothing is left to tell."""
    books.tables.drop_in_flight_all(u64_column(block.numbers))
    return Done()


class _Work:
    """What is to be done with the items of a block; nothing of it is done yet.

    ``numbers`` are those of the transactions here, 0 where there is none. ``settled`` has
    items whose records are plain, with their new rows; ``decoded`` has the other records as they
    are. Of items that are ``undecided``: what they have booked here on the own and on the clearing
    account.
    """

    def __init__(self, count: int) -> None:
        self.numbers: I64Array = np.zeros(count, np.int64)
        self.settled: list[tuple[IndexArray, Bytes]] = []
        self.decoded: dict[int, TransactionRecord] = {}
        self.undecided: BoolArray = np.zeros(count, bool)
        self.accounts: U64Array = np.zeros((count, 2), np.uint64)
        self.debits: BoolArray = np.zeros((count, 2), bool)
        self.amounts: I64Array = np.zeros((count, 2), np.int64)


def _read(books: Books, block: ApplyTransfers) -> _Work | None:
    """Look at all that a block names; None where it is to be done item by item."""
    books.write_rows()
    origins = origin_rows(block.first_accounts, block.request_ids)
    return _read_prepared(books, block, origins) or _read_requested(books, block, origins)


def _read_prepared(books: Books, block: ApplyTransfers, origins: Bytes) -> _Work | None:
    """Look where the block says that they are; None unless all are there, plain, and settle."""
    numbers, count = u64_column(block.prepared), len(block.statuses)
    keys = number_keys(numbers)
    if len(keys) < count or len({*keys}) < count or block.refused:
        return None
    found = books.tables.find_transactions(keys)
    if len(found) < count:
        return None
    work = _Work(count)
    work.numbers[:] = numbers
    _recognise(books, block, work, dict(enumerate([row for _, row in found])), origins)
    # What the origins do not fit is another transaction than the block means.
    if not work.undecided.all() or float(work.amounts.sum(dtype=np.float64)) >= _SUM_MAX:
        return None
    return work


def _read_requested(books: Books, block: ApplyTransfers, origins: Bytes) -> _Work | None:
    """Look for all by their requests; None where it is to be done item by item."""
    keys = origin_keys(origins, PARTICIPANT_MARK)
    if len({*keys}) < len(keys):
        return None
    work = _Work(len(keys))
    found = books.tables.find_requests(keys)
    packed = np.frombuffer(b"".join([sealed for _, sealed in found]), _REQUEST)
    if len(found) == len(keys):
        work.numbers[:] = packed["number"]
    else:
        place_of = {key: item for item, key in enumerate(keys)}
        work.numbers[[place_of[key] for key, _ in found]] = packed["number"]
    known = work.numbers.nonzero()[0]
    records = books.tables.find_transactions(number_keys(work.numbers[known]))
    if len(records) < len(known):
        raise InvariantError("a transaction of a request is missing")
    rows = {item: row for item, (_, row) in zip(known.tolist(), records, strict=True)}
    _recognise(books, block, work, rows, origins)
    plain = {item for items, _ in work.settled for item in items.tolist()}
    for item in sorted(rows.keys() - plain):
        row = rows[item]
        record = work.decoded[item] = TransactionRecord.decoded(row[:-CHECKSUM_BYTES])
        if record.status in _OPEN and not _take(work, item, record):
            return None
    if float(work.amounts.sum(dtype=np.float64)) >= _SUM_MAX:
        return None
    return work


def _recognise(
    books: Books, block: ApplyTransfers, work: _Work, rows: dict[int, bytes], origins: Bytes
) -> None:
    """Find the plain records of these origins that are to be settled, and settle them."""
    by_size: dict[int, list[int]] = {}
    sizes = {*map(len, rows.values())}
    if len(sizes) == 1 and block.statuses == bytes([_SETTLED]) * len(rows):
        by_size[sizes.pop()] = [*rows]
    else:
        for item, row in rows.items():
            if block.statuses[item] == _SETTLED:
                by_size.setdefault(len(row), []).append(item)
    for size, of_size in by_size.items():
        left = np.array(of_size)
        packed = b"".join([rows[item] for item in of_size])
        matrix = np.frombuffer(packed, np.uint8).reshape(-1, size)[:, :-CHECKSUM_BYTES]
        for number, book in enumerate(books.meta.books):
            if book.ledger != block.ledger or not len(left):
                continue
            currency = Currency(book.currency, book.currency_exponent)
            template = participant_template(number, currency)
            found = find_undecided(template, matrix, origins[left])
            if found is None:
                continue
            items = left[found.places]
            work.undecided[items] = True
            work.accounts[items] = found.accounts
            work.debits[items] = found.debits
            work.amounts[items] = found.amounts
            raw = np.frombuffer(block.request_ids, np.uint8).reshape(-1, 16)[items]
            new = settled_rows(
                template,
                found.rows,
                u64_column(block.numbers)[items],
                uuid_texts(raw),
                books.meta.time_us,
            )
            work.settled.append((items, new))
            others = np.ones(len(left), bool)
            others[found.places] = False
            left, matrix = left[others], matrix[others]


def _take(work: _Work, item: int, record: TransactionRecord) -> bool:
    """Note what an undecided transfer has booked here; False if it is none."""
    own = [entry for entry in record.entries if entry.shard_id is None]
    if (
        record.status is not TransactionStatus.UNDECIDED
        or (len(own), len(record.clearing)) != (1, 1)
        or record.settled_amount
        or record.effective_time_us != record.states[0].time_us
    ):
        return False
    work.undecided[item] = True
    for place, entry in enumerate((own[0], record.clearing[0])):
        work.accounts[item, place] = entry.account_id
        work.debits[item, place] = entry.direction is Direction.DEBIT
        work.amounts[item, place] = entry.amount
    return True


def _book(books: Books, block: ApplyTransfers, work: _Work, items: IndexArray) -> None:
    """Turn what items have reserved into posted money, or release it."""
    places = books.tables.places(work.accounts[items].ravel())
    if not places.all():
        raise InvariantError("an account of a transaction is missing")
    slots, account = distinct(place_slots(places))
    statuses: NDArray[np.uint8] = np.frombuffer(block.statuses, np.uint8)[items]
    kinds = np.where(statuses == _SETTLED, *_END_KINDS)
    entries = EntryColumns(
        account,
        work.debits[items].ravel(),
        work.amounts[items].ravel(),
        kinds.repeat(2),
        work.numbers[items].repeat(2),
    )
    book_columns(books, read_balances(books, slots), entries)

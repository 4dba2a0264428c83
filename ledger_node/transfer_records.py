"""The rows of transactions that a block makes and that differ in numbers, and in who asked.

A record is encoded once for each book, with numbers that are as long as any: the columns of the
block are laid over copies of it. What follows the request id is joined to it.
"""

import functools
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from ledger_core.accounts import Direction, TransactionStatus
from ledger_core.commands import TransferPart
from ledger_core.transfers import I64Array, U64Array, split_rows
from ledger_node.records import Book, EntryRecord, StateRecord, TransactionRecord

_encode = msgspec.msgpack.Encoder().encode

_ONE, _THREE = np.uint8(1), np.uint8(3)
_U64, _I64 = b"\xcf", b"\xd3"
"""What msgpack puts before a number of 8 bytes."""
_REQUEST_ID = "request-id-request-id-request-id-36-"
# The 32 digits of a UUID, and where they go: between dashes.
_DIGITS = np.dtype(
    [("low", "V8"), ("middle", "V4"), ("version", "V4"), ("clock", "V4"), ("node", "V12")]
)
_DIGITS_AT = dict(zip(_DIGITS.names or (), (0, 9, 14, 19, 24), strict=True))


@dataclass(frozen=True, slots=True)
class _Template:
    """A record up to and with its request id, and the columns in it by name."""

    head: NDArray[np.uint8]
    columns: np.dtype[np.void]


@functools.lru_cache(maxsize=1_024)
def _template(book_number: int, book: Book) -> _Template:
    """Encode a record with numbers that are as long as any, and find where they are."""
    names = ("home", "first", "second", "amount", "first_amount", "second_amount", "time")
    marks = {name: (0x70 + i) << 56 | 0x0123456789ABCD for i, name in enumerate(names)}
    entries = [
        EntryRecord(
            marks[name],
            Direction.DEBIT,
            marks[f"{name}_amount"],
            book.currency,
            book.currency_exponent,
        )
        for name in ("first", "second")
    ]
    state = StateRecord(TransactionStatus.SETTLED, marks["time"], _REQUEST_ID)
    record = TransactionRecord(
        marks["home"], marks["amount"], "", True, book_number, entries, [state], 0
    )
    row = record.encoded()
    places = {name: row.index(mark.to_bytes(8)) for name, mark in marks.items()}
    request_id = row.index(_REQUEST_ID.encode())
    head = bytearray(row[: request_id + len(_REQUEST_ID)])
    amount = places["amount"]
    head[amount - 1 : amount + 8] = _I64 + bytes(8)
    for dash in (8, 13, 18, 23):
        head[request_id + dash] = ord("-")
    sides = {f"{name}_side": places[name] + 8 for name in ("first", "second")}
    digits = {name: request_id + at for name, at in _DIGITS_AT.items()}
    columns = np.dtype(
        {
            "names": [*places, *sides, *digits],
            "formats": [">i8"] * len(places)
            + ["u1"] * len(sides)
            + [_DIGITS[name] for name in digits],
            "offsets": [*places.values(), *sides.values(), *digits.values()],
            "itemsize": len(head),
        }
    )
    return _Template(np.frombuffer(bytes(head), np.uint8), columns)


@dataclass(slots=True)
class PlainTransfers:
    """Settled transfers of one book: columns, and the 16 bytes of each request id, joined.

    ``amount`` is signed, and 0 in the form of two accounts; None: all are in that form.
    """

    first: U64Array
    second: U64Array
    amount: I64Array | None
    entry_amount: I64Array
    first_debits: NDArray[np.bool_]
    request_ids: bytes


def plain_rows(
    transfers: PlainTransfers, book_number: int, book: Book, times_us: I64Array
) -> list[bytes]:
    """Encode the records of transfers, each up to its request id: see `ends_of`.

    ``times_us`` says when each is recorded.
    """
    template = _template(book_number, book)
    count, size = len(transfers.first), len(template.head)
    rows = np.empty((count, size), np.uint8)
    rows[:] = template.head
    columns = rows.view(template.columns)[:, 0]
    columns["home"] = columns["first"] = transfers.first.view(np.int64)
    columns["second"] = transfers.second.view(np.int64)
    if transfers.amount is not None:
        columns["amount"] = transfers.amount
    columns["first_amount"] = columns["second_amount"] = transfers.entry_amount
    columns["time"] = times_us
    # As `Direction` has them: 1 and 2.
    columns["second_side"] = second_side = transfers.first_debits.view(np.uint8) + _ONE
    columns["first_side"] = second_side ^ _THREE
    digits = np.frombuffer(transfers.request_ids.hex().encode(), _DIGITS)
    for name in _DIGITS_AT:
        columns[name] = digits[name]
    return split_rows(rows)


def ends_of(parts: list[TransferPart], times_us: I64Array) -> list[bytes]:
    """Return what follows the request id in the records of all items of a block.

    ``times_us`` says when each is recorded; the items of a part, all at one time.
    """
    ends: list[bytes] = []
    for part in parts:
        who = _encode((part.actor, part.source.correlation_id, part.source.peer))[1:]
        end = who + _U64 + int(times_us[len(ends)]).to_bytes(8) + _DEFAULTS
        ends += [end] * part.count
    return ends


def _defaults() -> bytes:
    """Return what follows the effective time in a record that has no more than that."""
    mark = 0x70 << 56
    row = TransactionRecord(0, 0, "", True, 0, [], [], mark).encoded()
    return row[row.index(mark.to_bytes(8)) + 8 :]


_DEFAULTS = _defaults()

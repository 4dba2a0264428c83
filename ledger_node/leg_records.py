"""The rows of plain transfers between two shards: those that differ in numbers, and in who asked.

Each has a head up to its first request id, then who asked, then a tail. Heads and tails are made,
and recognised, by templates (`row_templates`).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from ledger_core.accounts import Direction, TransactionStatus
from ledger_core.commands import (
    TransferPart,
)
from ledger_core.ledgers import Currency
from ledger_core.transfers import I64Array, U64Array, big_endian, split_rows
from ledger_node.entry_columns import IndexArray
from ledger_node.records import EntryRecord, ParticipantRecord, StateRecord, TransactionRecord
from ledger_node.row_templates import U64_MARKS, Bytes, RowTemplate, all_true, places_of
from ledger_node.store_leg_columns import CHECKSUM_BYTES, KeptRows

_encode = msgspec.msgpack.Encoder().encode
_decode_who = msgspec.msgpack.Decoder(tuple[str, str, str]).decode

_HOME, _OTHER, _CLEARING, _AMOUNT, _TIME, _NUMBER = U64_MARKS[:6]
_PEER = 0x7EE7
# numpy compares with plain numbers much faster.
_DEBIT, _CREDIT = int(Direction.DEBIT), int(Direction.CREDIT)
_ORIGIN = b"origin-origin-origin-orig"
_REQUEST_ID = "request-id-request-id-request-id-36-"
_WHO = ("actor", "correlation", "peer")
# The digits of a UUID, and where they go: between dashes.
_DIGITS = ((0, 8, 0), (8, 12, 9), (12, 16, 14), (16, 20, 19), (20, 32, 24))
_THREE = b"\x93"
"""How msgpack begins a list of three."""
_U64_COLUMNS = {
    "home": _HOME,
    "other": _OTHER,
    "clearing": _CLEARING,
    "amount": _AMOUNT,
    "time": _TIME,
    "number": _NUMBER,
}


# By the number of amounts in a part of a row.
_SIDES = ((), ("clearing_side",), ("side", "other_side"))


@dataclass(frozen=True, slots=True)
class LegTemplate:
    """Templates of the head and of the tail of rows. Their columns:

    ``home``, ``other``, ``clearing`` accounts, ``amount``, ``time`` of recording, ``number`` and
    ``routing`` of 8 bytes, big-endian; ``peer`` shard of 2; ``origin`` of 25; ``request_id`` of 36;
    ``side`` of the first entry, ``other_side`` of the second one and ``clearing_side`` of 1.
    """

    head: RowTemplate
    tail: RowTemplate


def _template(encoded: bytes, who: bytes) -> LegTemplate:
    at = encoded.index(who)
    return LegTemplate(_part(encoded[:at]), _part(encoded[at + len(who) :]))


def _part(encoded: bytes) -> RowTemplate:
    columns = {name: places_of(encoded, mark.to_bytes(8)) for name, mark in _U64_COLUMNS.items()}
    columns["peer"] = places_of(encoded, _PEER.to_bytes(2))
    columns["origin"] = places_of(encoded, _ORIGIN)
    columns["request_id"] = places_of(encoded, _REQUEST_ID.encode())
    # Before an entry's amount are what tells its length, and the side.
    _, amounts = columns["amount"]
    for name, place in zip(_SIDES[len(amounts)], amounts, strict=True):
        columns[name] = 1, [place - 2]
    return RowTemplate(encoded, {name: found for name, found in columns.items() if found[1]})


def _record(book: int, currency: Currency, status: TransactionStatus) -> TransactionRecord:
    entries = [
        EntryRecord(account, Direction.DEBIT, _AMOUNT, currency.code, currency.exponent)
        for account in (_HOME, _OTHER, _CLEARING)
    ]
    return TransactionRecord(
        account_id=_HOME,
        amount=0,
        description="",
        settled=True,
        book=book,
        entries=entries[:2],
        states=[StateRecord(status, _TIME, _REQUEST_ID, *_WHO)],
        effective_time_us=_TIME,
        clearing=entries[2:],
        origin=_ORIGIN,
    )


@functools.lru_cache(maxsize=1_024)
def home_template(book: int, currency: Currency) -> LegTemplate:
    """Return the template of records of settled transfers at their home."""
    record = _record(book, currency, TransactionStatus.SETTLED)
    record.entries[1] = msgspec.structs.replace(record.entries[1], shard_id=_PEER)
    record.participants = [ParticipantRecord(_PEER, _OTHER)]
    return _template(record.encoded(), _encode(_WHO)[1:])


@functools.lru_cache(maxsize=1_024)
def participant_template(book: int, currency: Currency) -> LegTemplate:
    """Return the template of records of undecided transfers at their participant."""
    record = _record(book, currency, TransactionStatus.UNDECIDED)
    record.entries[0] = msgspec.structs.replace(record.entries[0], shard_id=_PEER)
    record.home_shard_id, record.home_number = _PEER, _NUMBER
    return _template(record.encoded(), _encode(_WHO)[1:])


# Records that are decided


@dataclass(frozen=True, slots=True)
class Undecided:
    """Undecided records of one length that are plain: their places among those looked at, and what
    they have booked here, on the own and on the clearing account.
    """

    places: IndexArray
    rows: Bytes
    accounts: U64Array
    debits: NDArray[np.bool_]
    amounts: I64Array


def find_undecided(template: LegTemplate, rows: Bytes, origins: Bytes) -> Undecided | None:
    """Recognise plain records of transfers at their participant, nothing else, by their bytes.

    ``origins`` are what those of the rows must be.
    """
    head, tail = template.head, template.tail
    if rows.shape[1] <= head.size + tail.size:
        return None
    heads, whos, tails = _cut(template, rows)
    found = head.matches(heads) & tail.matches(tails)
    found &= all_true(tail.column(tails, "origin") == origins)
    # Its own effective time, or a number at home, would make it another kind of record.
    found &= all_true(head.column(heads, "time") == tail.column(tails, "time"))
    found &= all_true(tail.column(tails, "number") == 0)
    own, clearing = head.column(heads, "other_side"), tail.column(tails, "clearing_side")
    sides = np.concatenate([own, clearing, head.column(heads, "side")], axis=1)
    found &= all_true((sides == _DEBIT) | (sides == _CREDIT))
    if not ((whos == whos[0]).all() and _is_who(whos[0].tobytes())):
        found &= np.array([_is_who(who) for who in split_rows(whos)], bool)
    places = found.nonzero()[0]
    if not len(places):
        return None
    if len(places) < len(rows):
        rows, sides = rows[places], sides[places]
        heads, whos, tails = _cut(template, rows)
    accounts = (head.column(heads, "other"), tail.column(tails, "clearing"))
    amounts = (head.column(heads, "amount", 1), tail.column(tails, "amount"))
    return Undecided(
        places,
        rows,
        _numbers(accounts),
        sides[:, :2] == _DEBIT,
        _numbers(amounts).view(np.int64),
    )


def settled_rows(
    template: LegTemplate, rows: Bytes, numbers: U64Array, request_ids: Bytes, time_us: int
) -> Bytes:
    """Return plain undecided records as they are once their homes have settled them.

    ``numbers`` are those at the homes; ``request_ids`` are those of the decisions, as text.
    Each has room for its checksum at the end.
    """
    count = len(rows)
    heads, whos, tails = _cut(template, rows)
    states = _settled_state().lay(
        count, {"time": big_endian(np.array([time_us])), "request_id": request_ids}
    )
    room = np.zeros((count, CHECKSUM_BYTES), np.uint8)
    settled = np.concatenate([heads, whos, states, tails, room], axis=1)
    _, (time_at, *_) = template.head.place("time")
    # Before the time come what tells its length, the status, and how long a state and the list are.
    settled[:, time_at - 4] = _TWO_STATES
    tails = settled[:, -CHECKSUM_BYTES - template.tail.size : -CHECKSUM_BYTES]
    template.tail.put(tails, "number", big_endian(numbers))
    return settled


_ONE_STATE, _TWO_STATES = 0x91, 0x92


@functools.cache
def _settled_state() -> RowTemplate:
    return _part(_encode(StateRecord(TransactionStatus.SETTLED, _TIME, _REQUEST_ID)))


def _cut(template: LegTemplate, rows: Bytes) -> tuple[Bytes, Bytes, Bytes]:
    """Return heads, who asked, and tails."""
    first, second = template.head.size, rows.shape[1] - template.tail.size
    return rows[:, :first], rows[:, first:second], rows[:, second:]


@functools.lru_cache(maxsize=1_024)
def _is_who(encoded: bytes) -> bool:
    """Whether bytes are three texts, as `record_who` has them."""
    try:
        _decode_who(_THREE + encoded)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return True


def _numbers(columns: tuple[Bytes, Bytes]) -> U64Array:
    """Return two columns of numbers, side by side."""
    found: U64Array = np.concatenate(columns, axis=1).view(">u8").astype(np.uint64)
    return found


def uuid_texts(raw: Bytes) -> Bytes:
    """Return UUIDs, 16 bytes each, as the codes of 36 characters."""
    count = len(raw)
    digits = np.frombuffer(raw.tobytes().hex().encode(), np.uint8).reshape(count, 32)
    texts = np.full((count, 36), ord("-"), np.uint8)
    for start, end, at in _DIGITS:
        texts[:, at : at + end - start] = digits[:, start:end]
    return texts


# Who asked


def record_who(part: TransferPart) -> bytes:
    """Return who asked, as a record has it."""
    return _encode((part.actor, part.source.correlation_id, part.source.peer))[1:]


def joined(heads: Bytes, middles: bytes | Sequence[bytes], tails: Bytes) -> KeptRows:
    """Return rows of heads, middles and tails; one middle is that of all."""
    if not isinstance(middles, bytes):
        parts = zip(split_rows(heads), middles, split_rows(tails), strict=True)
        return [*map(b"".join, parts)]
    first, second = heads.shape[1], heads.shape[1] + len(middles)
    end = second + tails.shape[1]
    rows = np.empty((len(heads), end + CHECKSUM_BYTES), np.uint8)
    rows[:, :first] = heads
    rows[:, first:second] = np.frombuffer(middles, np.uint8)
    rows[:, second:end] = tails
    return rows

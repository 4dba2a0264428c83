"""Checks an exported journal with nothing but this file and Python's standard library.

    python export_check.py FILE

It needs no cluster and nothing of the product: copy it, or write your own by `docs/AUDIT.md`, of
which it is a reading. `ledger verify --export FILE` runs the same code.

From top to bottom: msgpack; commands, outcomes and entry rows in words; the two file formats; the
chains and the accounts.
"""

import base64
import binascii
import csv
import hashlib
import json
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

FORMAT, VERSION = "ledger-export", 1
PROBLEMS_MAX = 20
LINE_BYTES_MAX = 64 << 20
"""A line is a log entry, of which the longest has about 1 MB; it triples in writing."""

_WORDS = ("what", "result", "entries")
CSV_COLUMNS = (
    *("record", "shard", "number", "log_index", "time_us", "time", "link", "item", "items"),
    *("digest", "hidden", "transaction", "command", "outcome", "rows"),
    *_WORDS,
)

FIRST_LINK = bytes(32)
_U32_MAX, _U64_MAX = 2**32 - 1, 2**64 - 1
_TIME_US_MAX = 253_402_300_799_999_999  # the end of the year 9999


class FaultError(ValueError):
    """Something in the file is not as it must be; the text says what."""


# msgpack (https://github.com/msgpack/msgpack/blob/master/spec.md)

_DEPTH_MAX = 32
_SIZES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_COUNTS = {0xDC: ">H", 0xDD: ">I", 0xDE: ">H", 0xDF: ">I"}
_NUMBERS = {
    **{0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"},
    **{0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"},
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def unpack(data: bytes) -> Any:
    """Read one msgpack value that is all of ``data``; FaultError if it is none."""
    value, end = _unpack(data, 0, 0)
    if end != len(data):
        raise FaultError("has bytes behind its end")
    return value


def _unpack(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if depth > _DEPTH_MAX:
        raise FaultError("is nested too deep")
    (head,) = _take(data, at, ">B")
    at += 1
    if head < 0x80:
        return head, at
    if head >= 0xE0:
        return head - 0x100, at
    if head in _CONSTANTS:
        return _CONSTANTS[head], at
    if head in _NUMBERS:
        (number,) = _take(data, at, _NUMBERS[head])
        return number, at + struct.calcsize(_NUMBERS[head])
    if head in _SIZES or 0xA0 <= head < 0xC0:
        size = head & 0x1F
        if head in _SIZES:
            (size,) = _take(data, at, _SIZES[head])
            at += struct.calcsize(_SIZES[head])
        if at + size > len(data):
            raise FaultError("ends too early")
        part = data[at : at + size]
        return (part if head in (0xC4, 0xC5, 0xC6) else part.decode()), at + size
    if head in _COUNTS or head < 0xA0:
        count = head & 0x0F
        if head in _COUNTS:
            (count,) = _take(data, at, _COUNTS[head])
            at += struct.calcsize(_COUNTS[head])
        is_map = head in (0xDE, 0xDF) or head < 0x90
        values = []
        for _ in range(count * 2 if is_map else count):
            value, at = _unpack(data, at, depth + 1)
            values.append(value)
        if is_map:
            return dict(zip(map(str, values[::2]), values[1::2], strict=True)), at
        return values, at
    raise FaultError(f"has a byte 0x{head:02x} that begins nothing")


def _take(data: bytes, at: int, code: str) -> tuple[Any, ...]:
    try:
        return struct.unpack_from(code, data, at)
    except struct.error:
        raise FaultError("ends too early") from None


# Commands in words: the fields by their place in the array, and how each is shown

Reader = Callable[[Any], Any]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return {"bytes": value.hex()} if isinstance(value, bytes) else value


def _shown(kind: type, show: Callable[[Any], Any]) -> Reader:
    """Show a value of the right kind in its own way, and any other as it is."""
    return lambda value: show(value) if type(value) is kind else _plain(value)


def _enum(*names: str) -> Reader:
    return _shown(int, lambda value: names[value - 1] if 1 <= value <= len(names) else value)


def _struct(fields: str) -> Reader:
    return _shown(list, lambda values: _named(fields, values))


def _named(fields: str, values: list[Any]) -> dict[str, Any]:
    """Name the fields that are there: writers of older versions knew fewer of them.

    ``fields`` are ``name`` or ``name:how``, where ``how*`` is a list, and ``how{}`` a map.
    """
    known = fields.split()
    shown = {}
    for place, value in enumerate(values):
        name, _, how = known[place].partition(":") if place < len(known) else (f"+{place}", "", "")
        if how.endswith("*"):
            read = _READERS[how[:-1]]
            is_list = isinstance(value, list)
            shown[name] = [read(item) for item in value] if is_list else _plain(value)
        elif how.endswith("{}"):
            read = _READERS[how[:-2]]
            is_map = isinstance(value, dict)
            shown[name] = {k: read(item) for k, item in value.items()} if is_map else _plain(value)
        else:
            shown[name] = _READERS[how](value)
    return shown


def _command(value: Any) -> Any:
    """Name a command and its fields: the first element of the array tells which one it is."""
    if not isinstance(value, list) or not value or value[0] not in COMMANDS:
        return {"kind": "unknown", "value": _plain(value)}
    kind, fields = COMMANDS[value[0]]
    return {"kind": kind, **_named(fields, value[1:])}


_CHANGE = "account_id:id request_id"
_WHO = "actor source:source"
_STEP = "account_id:id number request_id"
_ASKED = (
    "routing_id:id ledger currency:currency forms:hex first_accounts:hex second_accounts:hex "
    "amounts:hex request_ids:hex"
)

STRUCTS = {
    "source": "correlation_id peer",
    "currency": "code exponent",
    "limits": "minimum:money maximum:money",
    "line": "code name type:type parent",
    "entry": (
        "account_id:id direction:direction amount:money currency:currency shard_id "
        "expected_version minimum_balance:money maximum_balance:money"
    ),
    "refused": (
        "entry_index required_amount:money available_amount:money reserved_amount:money reason"
    ),
    "vote": "shard_id refused:refused",
    "part": "count actor source:source",
}

COMMANDS = {
    1: (
        "CreateAccount",
        "account_id:id ledger request_id type:type currency:currency code name limits:limits "
        f"metadata {_WHO}",
    ),
    2: (
        "CreateTransaction",
        "account_id:id amount:money description settled request_id entries:entry* ledger "
        f"external_reference effective_time_us expire_time_us metadata {_WHO}",
    ),
    3: ("SettleTransaction", f"{_STEP} amount:money {_WHO}"),
    4: ("CancelTransaction", f"{_STEP} {_WHO}"),
    5: ("UpdateAccount", f"{_CHANGE} revision name metadata limits:limits {_WHO}"),
    6: ("FreezeAccount", f"{_CHANGE} {_WHO}"),
    7: ("UnfreezeAccount", f"{_CHANGE} {_WHO}"),
    8: ("CloseAccount", f"{_CHANGE} {_WHO}"),
    9: (
        "CreateLedger",
        f"name request_id description currencies:currency* chart:line* {_WHO}",
    ),
    10: (
        "ExtendLedger",
        f"name request_id revision description currencies:currency* chart:line* {_WHO}",
    ),
    11: ("ClaimName", f"ledger name {_CHANGE}"),
    12: ("ReleaseName", f"ledger name {_CHANGE}"),
    13: ("ReverseTransaction", f"{_STEP} amounts:money* description {_WHO}"),
    14: (
        "Prepare",
        "routing_id:id origin:hex body_hash:hex home_shard_id transaction:command reversal_of",
    ),
    15: ("Decide", "account_id:id number votes:vote*"),
    16: (
        "ApplyDecision",
        "routing_id:id origin:hex number status:status request_id settled_amount:money "
        "refused:refused",
    ),
    17: ("Delivered", "account_id:id number state"),
    18: ("Resolve", "prepared:command"),
    21: ("CreateTransfers", f"{_ASKED} texts {_WHO} parts:part*"),
    22: ("PrepareTransfers", f"{_ASKED} home_shards:hex texts parts:part*"),
    23: (
        "CommitTransfers",
        f"{_ASKED} participant_shards:hex refused:refused{{}} texts parts:part*",
    ),
    24: (
        "ApplyTransfers",
        "routing_id:id ledger first_accounts:hex request_ids:hex numbers:hex statuses:hex "
        "refused:refused{} prepared:hex",
    ),
    25: ("DeliveredTransfers", "routing_id:id ledger numbers:hex"),
}

_READERS: dict[str, Reader] = {
    "": _plain,
    "id": _shown(int, lambda value: f"{value:016x}"),
    "money": _shown(int, str),
    "hex": _shown(bytes, bytes.hex),
    "direction": _enum("DEBIT", "CREDIT"),
    "type": _enum("ASSET", "LIABILITY", "EQUITY", "INCOME", "EXPENSE"),
    "status": _enum(
        *("PENDING", "SETTLED", "CANCELLED", "INSUFFICIENT_FUNDS"),
        *("EXPIRED", "REJECTED", "UNDECIDED"),
    ),
    "command": _command,
    **{name: _struct(fields) for name, fields in STRUCTS.items()},
}


def describe_command(command: bytes) -> Any:
    """Put a command into words; an empty one is a pending transaction that expired."""
    return _command(unpack(command)) if command else {"kind": "Expire"}


def describe_outcome(outcome: bytes) -> Any:
    """Put an outcome into words: what it led to, or the reason why nothing was changed."""
    value = unpack(outcome)
    if isinstance(value, list) and len(value) == 2:
        return {"number": _plain(value[0]), "state": _plain(value[1])}
    if isinstance(value, str):
        return value if value == "done" else {"refused": value}
    return _plain(value)


# Entry rows: 84 bytes and their CRC-32

ROW = struct.Struct("<QQqqQQqqqqBB2x")
ROW_BYTES = ROW.size + 4
KINDS = ("POSTED", "PENDING", "SETTLED", "CANCELLED", "REFUSED", "EXPIRED")
COUNTERS = ("debits_posted", "credits_posted", "debits_pending", "credits_pending")
# What an entry of each kind adds to the posted and to the pending counter of its side.
_EFFECTS = ((1, 0), (0, 1), (1, -1), (0, -1), (0, 0), (0, -1))


@dataclass(frozen=True)
class Row:
    """One change to one account. ``after`` are its four counters then."""

    account_id: int
    transaction: int
    amount: int
    time_us: int
    sequence: int
    previous: int
    after: tuple[int, int, int, int]
    direction: int
    kind: int

    @property
    def effect(self) -> tuple[int, int, int, int]:
        """What it adds to the four counters."""
        posted, pending = (part * self.amount for part in _EFFECTS[self.kind - 1])
        return (posted, 0, pending, 0) if self.direction == 1 else (0, posted, 0, pending)

    def in_words(self) -> dict[str, Any]:
        """Name its fields. The time is that of the journal entry."""
        return {
            "account_id": f"{self.account_id:016x}",
            "transaction": self.transaction,
            "direction": "DEBIT" if self.direction == 1 else "CREDIT",
            "amount": str(self.amount),
            "kind": KINDS[self.kind - 1],
            "sequence": self.sequence,
            "previous": self.previous,
            "after": dict(zip(COUNTERS, map(str, self.after), strict=True)),
        }


def unpack_rows(rows: bytes) -> list[Row]:
    """Read entry rows; FaultError names the first one that is none."""
    if len(rows) % ROW_BYTES:
        raise FaultError(f"its rows have {len(rows)} bytes, no multiple of {ROW_BYTES}")
    found = []
    for number, start in enumerate(range(0, len(rows), ROW_BYTES), 1):
        data = rows[start : start + ROW.size]
        account_id, transaction, amount, time_us, sequence, previous, *rest = ROW.unpack(data)
        row = f"row {number} (account {account_id:016x})"
        if zlib.crc32(data).to_bytes(4, "little") != rows[start + ROW.size : start + ROW_BYTES]:
            raise FaultError(f"{row} fails its CRC-32")
        direction, kind = rest[4:]
        if direction not in (1, 2) or not 1 <= kind <= len(KINDS) or data[-2:] != bytes(2):
            raise FaultError(f"{row} has direction {direction} and kind {kind}")
        if amount < 0 or min(rest[:4]) < 0:
            raise FaultError(f"{row} has a negative amount or counter")
        after = (rest[0], rest[1], rest[2], rest[3])
        found.append(
            Row(account_id, transaction, amount, time_us, sequence, previous, after, *rest[4:])
        )
    return found


def readable(command: bytes, outcome: bytes, rows: bytes) -> dict[str, Any]:
    """Return the readable part of an item: what was asked, what came of it, what it wrote."""
    return {
        "what": describe_command(command),
        "result": describe_outcome(outcome),
        "entries": [row.in_words() for row in unpack_rows(rows)],
    }


def iso_time(time_us: int) -> str:
    """Write microseconds since the Unix epoch as RFC 3339 in UTC."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)
    return moment.isoformat(timespec="microseconds")


def to_json(value: Any) -> str:
    """Write a value as all lines and columns have it: no spaces, all of it ASCII."""
    return json.dumps(value, separators=(",", ":"))


def item_digest(command: bytes, outcome: bytes, number: int, rows: bytes) -> bytes:
    """Return the digest of a journal item."""
    head = struct.pack("<IIQ", len(command), len(outcome), number)
    return hashlib.blake2b(head + command + outcome + rows, digest_size=32).digest()


def next_link(previous: bytes, number: int, time_us: int, digests: list[bytes]) -> bytes:
    """Return the hash chain after journal entry ``number``."""
    head = struct.pack("<QqI", number, time_us, len(digests))
    return hashlib.blake2b(previous + head + b"".join(digests), digest_size=32).digest()


def shard_key(account_id: int) -> int:
    """Return the upper 32 bits of splitmix64 of an account id: they place it on a shard."""
    z = (account_id + 0x9E3779B97F4A7C15) & _U64_MAX
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _U64_MAX
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _U64_MAX
    return (z ^ (z >> 31)) >> 32


# The file: lines of JSON or CSV, read one by one


@dataclass
class Item:
    """An item of the journal as the file has it; of a hidden one there is the digest only."""

    line: int
    digest: bytes
    hidden: bool = False
    transaction: int = 0
    command: bytes = b""
    outcome: bytes = b""
    rows: bytes = b""
    words: dict[str, Any] = field(default_factory=dict)


@dataclass
class Entry:
    """A journal entry as the file has it."""

    line: int
    shard: int
    number: int
    log_index: int
    time_us: int
    time: str
    link: bytes
    items: list[Item] = field(default_factory=list)
    declared_items: int = 0


@dataclass
class Header:
    """The first line: where the shards are, and how far the export reaches."""

    values: dict[str, Any]
    shards: dict[int, dict[str, Any]]

    @property
    def ledger(self) -> str:
        """The ledger whose items are shown; empty: all."""
        return str(self.values.get("ledger", ""))


@dataclass
class Footer:
    """The last line, what it must say, and where it is."""

    line: int
    values: Any
    blake2b: str


Part = Header | Entry | Footer | FaultError


def read_export(path: Path) -> Iterator[Part]:
    """Read a file part by part; what cannot be read comes as a FaultError with its line."""
    csv.field_size_limit(LINE_BYTES_MAX)
    with path.open("rb") as file:
        reader = _CsvLines() if file.peek(8).startswith(b"record,") else _JsonLines()
        hashed = hashlib.blake2b(digest_size=32)
        line, footer = 0, None
        while data := file.readline(LINE_BYTES_MAX):
            line += 1
            so_far = hashed.hexdigest()
            hashed.update(data)
            if footer is not None:
                yield FaultError(f"line {line}: there is something behind the footer")
                return
            try:
                text = data.decode()
                if not text.endswith("\n"):
                    raise FaultError("the line has no end: the file was cut")
                for part in reader.parts(line, text[:-1], so_far):
                    footer = part if isinstance(part, Footer) else None
                    yield part
            except _UNREADABLE as error:
                yield FaultError(f"line {line}: {_reason(error)}")
    if footer is None:
        yield FaultError(f"line {line + 1}: the footer is missing: the file was cut")


_UNREADABLE = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError),
    *(csv.Error, RecursionError, OverflowError),
)


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"field {error.args[0]!r} is missing"
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON: {error}"
    return str(error)


class _JsonLines:
    """JSON lines: header, one line per journal entry, footer."""

    def parts(self, line: int, text: str, so_far: str) -> Iterator[Part]:
        """Yield what the line is."""
        value = _json(text)
        if line == 1:
            yield _header(value)
        elif "footer" in value:
            yield Footer(line, value, so_far)
        else:
            items = [self._item(line, item) for item in _of(list, value.pop("items"))]
            yield _entry_of(line, value, items, len(items))

    @staticmethod
    def _item(line: int, value: dict[str, Any]) -> Item:
        words = {name: value.pop(name) for name in _WORDS if name in value}
        return _item_of(line, value, words)


class _CsvLines:
    """CSV: column names, header, one row per item, footer."""

    def __init__(self) -> None:
        self._entry: Entry | None = None

    def parts(self, line: int, text: str, so_far: str) -> Iterator[Part]:
        """Yield what the line completes: the last entry, and a header or a footer."""
        (cells,) = csv.reader([text], strict=True)
        if line == 1:
            if tuple(cells) != CSV_COLUMNS:
                raise FaultError(f"the columns are not {','.join(CSV_COLUMNS)}")
            return
        row = dict(zip(CSV_COLUMNS, cells, strict=True))
        record = row.pop("record")
        if record == "item":
            yield from self._add(line, row)
            return
        if self._entry is not None:
            yield self._entry
            self._entry = None
        value = _json(row.pop("what"))
        if any(row.values()) or record not in ("header", "footer"):
            raise FaultError(f"a {record or 'nameless'} row has more than it may")
        yield _header(value) if record == "header" else Footer(line, value, so_far)

    def _add(self, line: int, row: dict[str, str]) -> Iterator[Part]:
        place = [row.pop(name) for name in ("item", "items")]
        values: dict[str, Any] = dict(row)
        entry_values = {
            name: values.pop(name) if name in ("time", "link") else int(values.pop(name))
            for name in ("shard", "number", "log_index", "time_us", "time", "link")
        }
        words: dict[str, Any] = {name: _json(text) for name in _WORDS if (text := values.pop(name))}
        if values["hidden"] not in ("true", "false"):
            raise FaultError("hidden is neither true nor false")
        if values.pop("hidden") == "true":
            values["hidden"] = True
            values = {name: value for name, value in values.items() if value}
        else:
            values["transaction"] = int(values["transaction"])
        entry = _entry_of(line, entry_values, [], int(place[1]))
        last = self._entry
        if last is None or (last.shard, last.number) != (entry.shard, entry.number):
            if last is not None:
                yield last
            self._entry = last = entry
        elif (last.log_index, last.time_us, last.time, last.link, last.declared_items) != (
            *(entry.log_index, entry.time_us, entry.time, entry.link),
            entry.declared_items,
        ):
            raise FaultError("the rows of one journal entry differ in what they say of it")
        last.items.append(_item_of(line, values, words))
        if int(place[0]) != len(last.items):
            raise FaultError(f"{_place(last, len(last.items))}: the row is of item {place[0]}")


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise FaultError("an object has the same field twice")
    return found


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise FaultError(f"{value!r:.60} is no {kind.__name__}")
    return value


def _count(value: Any, maximum: int = _U64_MAX) -> int:
    number: int = _of(int, value)
    if not 0 <= number <= maximum:
        raise FaultError(f"{number} is out of range")
    return number


def _header(value: dict[str, Any]) -> Header:
    if (value["format"], value["version"]) != (FORMAT, VERSION):
        raise FaultError(f"the first line does not say {FORMAT}, version {VERSION}")
    shards = {_count(shard["shard_id"]): shard for shard in _of(list, value["shards"])}
    for shard in shards.values():
        _count(shard["lower_bound"], _U32_MAX)
        _count(shard["upper_bound"], _U32_MAX)
        _count(shard["last_number"])
    if len(shards) != len(value["shards"]) or not shards:
        raise FaultError("the header has no shards, or one of them twice")
    return Header(value, shards)


_ENTRY_FIELDS = {"shard", "number", "log_index", "time_us", "time", "link"}


def _entry_of(line: int, value: dict[str, Any], items: list[Item], declared: int) -> Entry:
    if set(value) != _ENTRY_FIELDS:
        raise FaultError(f"fields missing or unknown: {sorted(set(value) ^ _ENTRY_FIELDS)}")
    return Entry(
        line,
        _count(value["shard"]),
        _count(value["number"]),
        _count(value["log_index"]),
        _count(value["time_us"], _TIME_US_MAX),
        _of(str, value["time"]),
        _hash(value["link"]),
        items,
        declared,
    )


def _item_of(line: int, value: dict[str, Any], words: dict[str, Any]) -> Item:
    if value.get("hidden") is True:
        if set(value) != {"digest", "hidden"} or words:
            raise FaultError("a hidden item has more than its digest")
        return Item(line, _hash(value["digest"]), hidden=True)
    fields = {"digest", "transaction", "command", "outcome", "rows"}
    if set(value) != fields or set(words) != set(_WORDS):
        wrong = (set(value) | set(words)) ^ {*fields, *_WORDS}
        raise FaultError(f"fields missing or unknown: {sorted(wrong)}")
    return Item(
        line,
        _hash(value["digest"]),
        False,
        _count(value["transaction"]),
        _base64("command", value["command"]),
        _base64("outcome", value["outcome"]),
        _base64("rows", value["rows"]),
        words,
    )


def _hash(value: Any) -> bytes:
    text: str = _of(str, value)
    if len(text) != 64 or text.strip("0123456789abcdef"):
        raise FaultError(f"{text!r:.80} is no hash of 64 hex digits")
    return bytes.fromhex(text)


def _base64(name: str, value: Any) -> bytes:
    try:
        data = base64.b64decode(_of(str, value), validate=True)
    except binascii.Error:
        raise FaultError(f"{name} is no base64") from None
    if base64.b64encode(data).decode() != value:
        raise FaultError(f"{name} is no base64 in its one right form")
    return data


def _place(entry: Entry, item: int = 0) -> str:
    return f"shard {entry.shard}, entry {entry.number}" + (f", item {item}" if item else "")


# The check


@dataclass
class _Account:
    sequence: int = 0
    counters: tuple[int, ...] = (0, 0, 0, 0)
    position: int = 0


@dataclass
class Chain:
    """How far one shard's journal was read."""

    number: int = 0
    link: bytes = FIRST_LINK
    time_us: int = 0
    log_index: int = 0
    transaction: int = 0
    position: int = 1
    """Of the next entry row; unknown (0) behind something that is hidden or wrong."""
    items: int = 0
    hidden: int = 0
    rows: int = 0
    accounts: dict[int, _Account] = field(default_factory=dict)


@dataclass
class Report:
    """What was found: nothing, or at most 20 problems."""

    header: Header | None = None
    chains: dict[int, Chain] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    lines: int = 0

    def summary(self) -> list[str]:
        """Say in lines what is proven."""
        chains = sorted(self.chains.items())
        hidden = sum(chain.hidden for _, chain in chains)
        shown = f" ({hidden} of other ledgers are hidden)" if hidden else ""
        return [
            f"{self.lines} lines, {sum(chain.number for _, chain in chains)} journal entries with "
            f"{sum(chain.items for _, chain in chains)} items{shown}, "
            f"{sum(chain.rows for _, chain in chains)} entry rows of "
            f"{sum(len(chain.accounts) for _, chain in chains)} accounts",
            *(
                f"shard {shard}: {chain.number} journal entries, link {chain.link.hex()}"
                for shard, chain in chains
                if chain.number
            ),
        ]


class _Checker:
    def __init__(self) -> None:
        self.report = Report()

    def take(self, part: Part) -> None:
        match part:
            case FaultError():
                self._say(str(part))
            case Header() if self.report.header is not None:
                self._say("there is a second header")
            case Header():
                self.report.header = part
                self.report.chains = {shard: Chain() for shard in part.shards}
            case Footer():
                self._footer(part)
            case Entry():
                self._entry(part)

    @property
    def full(self) -> bool:
        return len(self.report.problems) >= PROBLEMS_MAX

    def _say(self, problem: str) -> None:
        if not self.full:
            self.report.problems.append(problem)

    def _entry(self, entry: Entry) -> None:
        chain = self.report.chains.get(entry.shard)
        where = f"line {entry.line}: {_place(entry)}"
        if chain is None:
            self._say(f"{where}: the header has no such shard")
            return
        follows = entry.number == chain.number + 1
        if not follows:
            self._say(f"{where}: entry {chain.number + 1} was to come here")
            chain.position = 0
        if entry.declared_items != len(entry.items) or not entry.items:
            self._say(f"{where}: has {len(entry.items)} items of {entry.declared_items}")
        if entry.time != iso_time(entry.time_us):
            self._say(f"{where}: time {entry.time} is not time_us {entry.time_us}")
        if follows and (entry.time_us < chain.time_us or entry.log_index <= chain.log_index):
            self._say(f"{where}: its time or log index is not behind that of the entry before")
        for number, item in enumerate(entry.items, 1):
            for problem in self._item(chain, entry, item):
                self._say(f"line {item.line}: {_place(entry, number)}: {problem}")
        digests = [item.digest for item in entry.items]
        link = next_link(chain.link, entry.number, entry.time_us, digests)
        if follows and link != entry.link:
            self._say(f"{where}: its link does not follow from the entry before and its items")
        chain.number, chain.link = entry.number, entry.link
        chain.time_us, chain.log_index = entry.time_us, entry.log_index

    def _item(self, chain: Chain, entry: Entry, item: Item) -> Iterator[str]:
        chain.items += 1
        if item.hidden:
            chain.hidden += 1
            chain.position = 0
            return
        if item_digest(item.command, item.outcome, item.transaction, item.rows) != item.digest:
            yield "its digest is not that of its command, outcome, transaction and rows"
        try:
            words = readable(item.command, item.outcome, item.rows)
        except (FaultError, UnicodeDecodeError) as error:
            yield str(error)
            chain.position = 0
            return
        yield from _differences(item.words, words)
        if item.transaction and item.transaction <= chain.transaction:
            yield f"transaction {item.transaction} comes after {chain.transaction}"
        chain.transaction = max(chain.transaction, item.transaction)
        rows = unpack_rows(item.rows)
        yield from self._rows(chain, entry, rows)
        debits = [sum(row.effect[side] for row in rows) for side in range(4)]
        if debits[0] != debits[1] or debits[2] != debits[3]:
            yield (
                f"its rows do not balance: posted {debits[0]} debit, {debits[1]} credit; pending "
                f"{debits[2]} debit, {debits[3]} credit"
            )

    def _rows(self, chain: Chain, entry: Entry, rows: list[Row]) -> Iterator[str]:
        assert self.report.header is not None, "there are chains"
        bounds = self.report.header.shards[entry.shard]
        for number, row in enumerate(rows, 1):
            chain.rows += 1
            where = f"row {number} (account {row.account_id:016x})"
            before = chain.accounts.get(row.account_id)
            if before is None:
                before = chain.accounts[row.account_id] = _Account()
                if not bounds["lower_bound"] <= shard_key(row.account_id) <= bounds["upper_bound"]:
                    yield f"{where}: the account is not one of this shard's"
            if row.sequence != before.sequence + 1:
                yield f"{where}: sequence {row.sequence} follows {before.sequence}"
            else:
                due = tuple(a + b for a, b in zip(before.counters, row.effect, strict=True))
                for name, expected, found in zip(COUNTERS, due, row.after, strict=True):
                    if expected != found:
                        yield f"{where}: {name} is {found}, but {expected} follows from its entries"
            if row.time_us != entry.time_us:
                yield f"{where}: its time is not that of the journal entry"
            # Where all rows of the shard are shown, each one's position is known.
            if chain.position and row.previous != before.position:
                yield (
                    f"{where}: previous is {row.previous}, but the account's row before is at "
                    f"position {before.position}"
                )
            before.sequence, before.counters = row.sequence, row.after
            before.position = chain.position
            chain.position += 1 if chain.position else 0

    def _footer(self, footer: Footer) -> None:
        where = f"line {footer.line}: the footer"
        shards = [
            {"shard_id": shard, "entries": chain.number, "link": chain.link.hex()}
            for shard, chain in self.report.chains.items()
        ]
        lines = footer.line - 1
        self.report.lines = footer.line
        due = footer_of(shards, lines, footer.blake2b)["footer"]
        found = footer.values.get("footer")
        if not isinstance(found, dict) or set(footer.values) != {"footer"}:
            self._say(f"{where} is not an object of its own")
            return
        names = {"shards": "final links", "lines": "number of lines", "blake2b": "hash of the file"}
        for name, value in due.items():
            if to_json(found.get(name)) != to_json(value):
                self._say(f"{where}: its {names[name]} ({name}) are not those of the lines before")
        if unknown := set(found) - set(due):
            self._say(f"{where} has unknown fields: {sorted(unknown)}")
        header = self.report.header
        for shard, chain in self.report.chains.items():
            last = header.shards[shard]["last_number"] if header else chain.number
            if last != chain.number:
                self._say(
                    f"{where}: shard {shard} ends with entry {chain.number}, the header says {last}"
                )


def footer_of(shards: list[dict[str, Any]], lines: int, blake2b: str) -> dict[str, Any]:
    """Return the last line of an export: how far each shard goes, and a hash of all before."""
    return {"footer": {"shards": shards, "lines": lines, "blake2b": blake2b}}


def _differences(found: dict[str, Any], due: dict[str, Any], path: str = "") -> Iterator[str]:
    """Name the readable fields that are not what the raw bytes say; at most a few."""
    for name in sorted(set(found) | set(due)):
        here = f"{path}{name}"
        a, b = found.get(name), due.get(name)
        if to_json(a) == to_json(b) and (name in found) == (name in due):
            continue
        pairs: list[tuple[Any, Any, str]] = [(a, b, here)]
        if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            pairs = [(x, y, f"{here}[{i}]") for i, (x, y) in enumerate(zip(a, b, strict=True))]
        for one, other, where in pairs:
            if isinstance(one, dict) and isinstance(other, dict):
                account = other.get("account_id")
                suffix = f" (account {account})" if account and path == "" else ""
                for text in _differences(one, other, f"{where}."):
                    yield text + suffix
            elif to_json(one) != to_json(other):
                yield f"{where} is {to_json(one):.80}, but the raw bytes say {to_json(other):.80}"


def check_export(path: Path | str) -> Report:
    """Check a whole file; OSError if it cannot be read."""
    checker = _Checker()
    for part in read_export(Path(path)):
        checker.take(part)
        if checker.full or (checker.report.header is None and checker.report.problems):
            break
    return checker.report


def verify_export(path: Path | str) -> list[str]:
    """Return what is wrong with an export, at most 20 problems; nothing: it is proven."""
    return check_export(path).problems


def main(arguments: list[str]) -> int:
    """Check the one file that is named; 0: it is as it was written."""
    if len(arguments) != 1:
        print("usage: python export_check.py FILE", file=sys.stderr)
        return 2
    try:
        report = check_export(arguments[0])
    except OSError as error:
        print(f"{arguments[0]}: {error.strerror}", file=sys.stderr)
        return 1
    for problem in report.problems:
        print(problem, file=sys.stderr)
    if report.problems:
        return 1
    print("\n".join(report.summary()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

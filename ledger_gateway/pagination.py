"""Pages of lists: tokens that say where the next page starts, and the size of a page.

Tokens are opaque to callers, bound to what is listed, and self-checking: a token that was cut,
changed or made for another list is refused here. The checksum guards against accidents, not against
forgery; a forged cursor can only point into its own list, and the shard checks that it does.
"""

import base64
import hashlib
import re
import struct
from collections.abc import Awaitable, Callable
from typing import Generic, NamedTuple, TypeVar

from google.protobuf.message import Message

from ledger.v1 import ledger_pb2, reports_pb2

PAGE_BYTES_MAX = 3_500_000
"""Clients refuse messages above 4 MiB by default."""

_VERSION = 2
_SCOPE_BYTES = 8
_ACCOUNTS = struct.Struct(">B8sIq")  # version, digest of the filters, shard position, slot
_CHECKSUM_BYTES = 5
_MALFORMED = "is not a page token: pass next_page_token of the previous page unchanged"
_OTHER_VERSION = "was made by another version of the service: start at the first page"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{8,120}\Z")

# What may change from one page to the next.
_NO_FILTERS = ("page_size", "page_token", "consistency")

CursorT = TypeVar("CursorT", bound=tuple[int, ...])
PageT = TypeVar("PageT", bound=Message)
ListRequest = (
    ledger_pb2.ListTransactionsRequest
    | ledger_pb2.ListEntriesRequest
    | ledger_pb2.GetStatementRequest
    | ledger_pb2.ListAccountEventsRequest
    | reports_pb2.ListAgeingRequest
)


class Cursor(NamedTuple):
    """The account's sequence number and the shard's position of the next entry to look at."""

    sequence: int
    position: int


class LedgerCursor(NamedTuple):
    """The last transaction of a ledger that was shown, or the last place that was looked at."""

    time_us: int
    shard_id: int
    number: int


class EntryCursor(NamedTuple):
    """The account's sequence number of the next entry to show."""

    sequence: int


class StatementCursor(NamedTuple):
    """The next entry to show, and what the first page has fixed: the end, and the last entry."""

    sequence: int
    end_us: int
    version: int


class EventCursor(NamedTuple):
    """The last event that was shown."""

    journal_number: int
    ordinal: int


class PageTokens(Generic[CursorT]):
    """Tokens of one kind of list. They hold for requests that ask for the same list.

    ``layout`` is that of the cursor, whose first ``positive`` numbers count from 1: a zero would
    start at the first page again.
    """

    def __init__(
        self, kind: bytes, cursor: Callable[..., CursorT], layout: str, *, positive: int, of: str
    ) -> None:
        self._kind = kind
        self._cursor = cursor
        self._body = struct.Struct(f">B{_SCOPE_BYTES}s{layout}")
        self._positive = positive
        self._other = f"was made for another {of}"

    def encode(self, request: ListRequest, cursor: CursorT) -> str:
        """Return the token of the page of the requested list that goes on at the cursor."""
        return _seal(self._body.pack(_VERSION, _scope(request), *cursor), self._kind)

    def decode(self, request: ListRequest) -> CursorT | None:
        """Read the token of a request, None for the first page; ValueError says what is wrong."""
        if not request.page_token:
            return None
        body = _unseal(request.page_token, self._kind, self._body.size)
        _, scope, *numbers = self._body.unpack(body)
        if any(number <= 0 for number in numbers[: self._positive]):
            raise ValueError(_MALFORMED)
        if scope != _scope(request):
            raise ValueError(self._other)
        return self._cursor(*numbers)


ACCOUNT_TRANSACTIONS = PageTokens(
    b"page token", Cursor, "QQ", positive=2, of="account or other filters"
)
LEDGER_TRANSACTIONS = PageTokens(
    b"ledger page", LedgerCursor, "qIQ", positive=1, of="ledger or other filters"
)
ENTRIES = PageTokens(b"entry token", EntryCursor, "Q", positive=1, of="account, range or order")
STATEMENT = PageTokens(
    b"statement token", StatementCursor, "QqQ", positive=3, of="account or period"
)
ACCOUNT_EVENTS = PageTokens(b"event token", EventCursor, "QH", positive=1, of="account")


class AccountCursor(NamedTuple):
    """Which of the shards, in their order, to go on with, and the last slot looked at there."""

    shard_position: int
    after_slot: int


FIRST_ACCOUNT = AccountCursor(0, -1)


def encode_account_token(cursor: AccountCursor, request: ledger_pb2.ListAccountsRequest) -> str:
    """Return the token of the page of accounts that goes on at the cursor."""
    return _seal(_ACCOUNTS.pack(_VERSION, _filters(request), *cursor), b"account token")


def decode_account_token(token: str, request: ledger_pb2.ListAccountsRequest) -> AccountCursor:
    """Read a token back, which must be of the same filters; ValueError says what is wrong."""
    if not token:
        return FIRST_ACCOUNT
    body = _unseal(token, b"account token", _ACCOUNTS.size)
    _, filters, shard_position, after_slot = _ACCOUNTS.unpack(body)
    if filters != _filters(request):
        raise ValueError("was made for another ledger or other filters")
    return AccountCursor(shard_position, after_slot)


def encode_ledger_token(last_name: str) -> str:
    """Return the token of the page of ledgers after the last one shown."""
    return _seal(bytes([_VERSION]) + last_name.encode(), b"ledger token")


def decode_ledger_token(token: str) -> str:
    """Read the name of the last ledger back, "" for the first page; ValueError if it is none."""
    return _unseal(token, b"ledger token")[1:].decode() if token else ""


async def fitting_page(page_size: int, ask: Callable[[int], Awaitable[tuple[PageT, int]]]) -> PageT:
    """Return a page that clients can take; ``ask`` returns one, and how many items it has.

    One that is too large is asked for anew with half the size: only pages full of the longest
    texts are.
    """
    while True:
        page, count = await ask(page_size)
        if count <= 1 or page.ByteSize() <= PAGE_BYTES_MAX:
            return page
        page_size = count // 2


def _scope(request: ListRequest) -> bytes:
    """Return the digest of what is listed: all fields but those that change from page to page."""
    scope = type(request)()
    scope.CopyFrom(request)  # type: ignore[arg-type]
    for field in _NO_FILTERS:
        scope.ClearField(field)  # type: ignore[arg-type]
    text = scope.SerializeToString(deterministic=True)
    return hashlib.blake2b(text, digest_size=_SCOPE_BYTES).digest()


def _filters(request: ledger_pb2.ListAccountsRequest) -> bytes:
    filters = (
        request.ledger,
        request.code_prefix,
        str(request.type),
        str(request.state),
        request.metadata_key,
    )
    return hashlib.blake2b("\0".join(filters).encode(), digest_size=8).digest()


def _seal(body: bytes, kind: bytes) -> str:
    return base64.urlsafe_b64encode(body + _checksum(body, kind)).decode().rstrip("=")


def _unseal(token: str, kind: bytes, size: int | None = None) -> bytes:
    if not _TOKEN.match(token) or len(token) % 4 == 1:
        raise ValueError(_MALFORMED)
    data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if not body or checksum != _checksum(body, kind) or _seal(body, kind) != token:
        raise ValueError(_MALFORMED)
    # Other versions may have other sizes.
    if body[0] != _VERSION:
        raise ValueError(_OTHER_VERSION)
    if size not in (None, len(body)):
        raise ValueError(_MALFORMED)
    return body


def _checksum(body: bytes, kind: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES, person=kind).digest()

"""Page tokens: where the next page of a list starts.

Opaque to callers, bound to what is listed, and self-checking: a token that was cut, changed or made
for another list is refused here. The checksum guards against accidents, not against forgery; a
forged cursor can only point into its own list, and the shard checks that it does.
"""

import base64
import hashlib
import re
import struct
from typing import NamedTuple

from ledger.v1 import ledger_pb2

_VERSION = 1
_TRANSACTIONS = struct.Struct(">BQQQ")  # version, account id, sequence, position
_ACCOUNTS = struct.Struct(">B8sIq")  # version, digest of the filters, shard position, slot
_CHECKSUM_BYTES = 5
_MALFORMED = "is not a page token: pass next_page_token of the previous page unchanged"
_OTHER_VERSION = "was made by another version of the service: start at the first page"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{8,120}\Z")


class Cursor(NamedTuple):
    """The account's sequence number and the shard's position of the next entry to look at."""

    sequence: int
    position: int


START = Cursor(0, 0)
"""The newest transaction; as the cursor after a page: there is no further one."""


class AccountCursor(NamedTuple):
    """Which of the shards, in their order, to go on with, and the last slot looked at there."""

    shard_position: int
    after_slot: int


FIRST_ACCOUNT = AccountCursor(0, -1)


def encode_page_token(account_id: int, cursor: Cursor) -> str:
    """Return the token of the page that starts at the cursor, empty where there is none."""
    if cursor == START:
        return ""
    return _seal(_TRANSACTIONS.pack(_VERSION, account_id, *cursor), b"page token")


def decode_page_token(token: str, account_id: int | None) -> Cursor:
    """Read a token back; ValueError says what is wrong.

    ``account_id`` None checks the token alone.
    """
    if not token:
        return START
    body = _unseal(token, b"page token", _TRANSACTIONS.size)
    _, token_account_id, sequence, position = _TRANSACTIONS.unpack(body)
    if not sequence or not position:
        # Both count from 1. A zero would start at the newest transaction again.
        raise ValueError(_MALFORMED)
    if account_id is not None and token_account_id != account_id:
        raise ValueError("was made for another account")
    return Cursor(sequence, position)


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
    canonical = checksum == _checksum(body, kind) and _seal(body, kind) == token
    if not canonical or size not in (None, len(body)):
        raise ValueError(_MALFORMED)
    if body[0] != _VERSION:
        raise ValueError(_OTHER_VERSION)
    return body


def _checksum(body: bytes, kind: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES, person=kind).digest()

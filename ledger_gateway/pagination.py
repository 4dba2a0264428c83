"""Page tokens: where the next page of an account's transactions starts.

Opaque to callers, bound to the account, and self-checking: a token that was cut, changed or made
for another account is refused here. The checksum guards against accidents, not against forgery;
a forged cursor can only point into its own account, and the shard checks that it does.
"""

import base64
import hashlib
import re
import struct
from typing import NamedTuple

_VERSION = 1
_BODY = struct.Struct(">BQQQ")  # version, account id, sequence, position
_CHECKSUM_BYTES = 5  # makes 30 bytes: 40 characters and no padding
_MALFORMED = "is not a page token: pass next_page_token of the previous page unchanged"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{40}\Z")


class Cursor(NamedTuple):
    """The account's sequence number and the shard's position of the next entry to look at."""

    sequence: int
    position: int


START = Cursor(0, 0)
"""The newest transaction; as the cursor after a page: there is no further one."""


def encode_page_token(account_id: int, cursor: Cursor) -> str:
    """Return the token of the page that starts at the cursor, empty where there is none."""
    if cursor == START:
        return ""
    body = _BODY.pack(_VERSION, account_id, *cursor)
    return base64.urlsafe_b64encode(body + _checksum(body)).decode()


def decode_page_token(token: str, account_id: int | None) -> Cursor:
    """Read a token back; ValueError says what is wrong.

    ``account_id`` None checks the token alone.
    """
    if not token:
        return START
    if not _TOKEN.match(token):
        raise ValueError(_MALFORMED)
    data = base64.urlsafe_b64decode(token)
    body, checksum = data[: _BODY.size], data[_BODY.size :]
    if checksum != _checksum(body):
        raise ValueError(_MALFORMED)
    version, token_account_id, sequence, position = _BODY.unpack(body)
    if version != _VERSION:
        raise ValueError("was made by another version of the service: start at the first page")
    if not sequence or not position:
        # Both count from 1. A zero would start at the newest transaction again.
        raise ValueError(_MALFORMED)
    if account_id is not None and token_account_id != account_id:
        raise ValueError("was made for another account")
    return Cursor(sequence, position)


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES, person=b"page token").digest()

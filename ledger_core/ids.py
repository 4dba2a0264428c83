"""Account ids, transaction ids and request ids: how they are made, written, and routed.

An account id is a u64, written as 16 hex digits. Its *shard key*, a u32, decides which shard holds
it. A transaction id is the id of its home account followed by the shard's running transaction
number, written as 32 hex digits, so that it routes by itself.
"""

import hashlib
import os
import re
import time
import uuid

U32_MAX = 2**32 - 1
U64_MAX = 2**64 - 1
SYSTEM_ACCOUNTS_MAX = 1 << 21

_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_UNMIX_1 = pow(_MIX_1, -1, 2**64)
_UNMIX_2 = pow(_MIX_2, -1, 2**64)

_ACCOUNT_ID = re.compile(r"[0-9a-f]{16}\Z")
_TRANSACTION_ID = re.compile(r"[0-9a-f]{32}\Z")
_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\Z")


def splitmix64(value: int) -> int:
    """Mix a u64 into a u64, one to one (Steele, Lea, Flood: Fast Splittable PRNGs, OOPSLA 2014)."""
    z = (value + _GAMMA) & U64_MAX
    z = ((z ^ (z >> 30)) * _MIX_1) & U64_MAX
    z = ((z ^ (z >> 27)) * _MIX_2) & U64_MAX
    return z ^ (z >> 31)


def unsplitmix64(mixed: int) -> int:
    """Return the value that splitmix64 maps to ``mixed``."""
    z = mixed ^ (mixed >> 31) ^ (mixed >> 62)
    z = (z * _UNMIX_2) & U64_MAX
    z ^= (z >> 27) ^ (z >> 54)
    z = (z * _UNMIX_1) & U64_MAX
    z ^= (z >> 30) ^ (z >> 60)
    return (z - _GAMMA) & U64_MAX


def shard_key(account_id: int) -> int:
    """Return the u32 that places an account on a shard. Golden vectors in the tests pin it."""
    return splitmix64(account_id) >> 32


def system_account_id(lower_bound: int, ordinal: int) -> int:
    """Return the id of a shard's own account number ``ordinal`` (external and in-transit ones).

    The id is chosen so that its shard key is ``lower_bound``, the first key of the shard's range:
    the account routes to its own shard like any other.
    """
    return unsplitmix64(lower_bound << 32 | ordinal)


def is_system_account_id(lower_bound: int, account_id: int) -> bool:
    """Whether an id is kept for the own accounts of the shard that starts at ``lower_bound``."""
    return splitmix64(account_id) - (lower_bound << 32) in range(SYSTEM_ACCOUNTS_MAX)


def format_account_id(account_id: int) -> str:
    """Write an account id as 16 hex digits."""
    return f"{account_id:016x}"


def parse_account_id(text: str) -> int:
    """Read 16 lower-case hex digits; ValueError says what is wrong."""
    if not _ACCOUNT_ID.match(text):
        raise ValueError("must be 16 lower-case hex digits")
    return int(text, 16)


def format_transaction_id(account_id: int, number: int) -> str:
    """Write a transaction id as 32 hex digits."""
    return f"{account_id:016x}{number:016x}"


def parse_transaction_id(text: str) -> tuple[int, int]:
    """Read 32 lower-case hex digits into (home account id, transaction number)."""
    if not _TRANSACTION_ID.match(text):
        raise ValueError("must be 32 lower-case hex digits")
    return int(text[:16], 16), int(text[16:], 16)


def derive_account_id(ledger: str, request_id: str) -> int:
    """Return the id of the account that CreateAccount makes for this ledger and request id."""
    digest = hashlib.blake2b(
        request_key(request_id) + ledger.encode(), digest_size=8, person=b"account id"
    )
    return int.from_bytes(digest.digest())


def request_key(request_id: str) -> bytes:
    """Return the 16 bytes under which a request id is stored.

    A UUID is kept as it is, so that the time-ordered ones (version 7) fall on neighbouring pages of
    the store. Any other string is hashed.
    """
    if _UUID.match(request_id):
        return bytes.fromhex(request_id.replace("-", ""))
    return hashlib.blake2b(request_id.encode(), digest_size=16, person=b"request id").digest()


def transaction_request_key(account_id: int, request_id: str) -> bytes:
    """Return the key of a CreateTransaction request: its request id within its home account.

    It is also the *origin* by which other shards know the transaction.
    """
    return request_key(request_id) + b"a" + account_id.to_bytes(8)


def reference_digest(ledger: str, external_reference: str) -> bytes:
    """Return the 16 bytes under which transactions with an external reference are found."""
    return _digest_in_ledger(ledger, external_reference, b"reference")


def metadata_key_digest(ledger: str, key: str) -> bytes:
    """Return the 16 bytes under which transactions that have a metadata key are found."""
    return _digest_in_ledger(ledger, key, b"metadata key")


def _digest_in_ledger(ledger: str, text: str, person: bytes) -> bytes:
    data = ledger.encode() + b"\0" + text.encode()
    return hashlib.blake2b(data, digest_size=16, person=person).digest()


def new_request_id() -> str:
    """Return a fresh UUID version 7 (RFC 9562, section 5.7): milliseconds, then 74 random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))

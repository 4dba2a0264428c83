"""Reads that a shard answers, encoded like commands."""

from typing import Annotated

import msgspec

from ledger_core.commands import U64

PAGE_SIZE_MAX = 1_000
PageSize = Annotated[int, msgspec.Meta(ge=1, le=PAGE_SIZE_MAX)]


class GetAccount(msgspec.Struct, tag=1, array_like=True, frozen=True):
    """The account with its balances."""

    account_id: U64


class GetTransaction(msgspec.Struct, tag=2, array_like=True, frozen=True):
    """The transaction as it is now."""

    account_id: U64
    number: U64


class ListTransactions(msgspec.Struct, tag=3, array_like=True, frozen=True):
    """Transactions of an account, newest first.

    ``sequence`` and ``position`` say where to go on: the account's sequence number and the shard's
    entry position of the next entry to look at. 0, 0 starts at the newest.
    """

    account_id: U64
    page_size: PageSize
    sequence: U64 = 0
    position: U64 = 0


Query = GetAccount | GetTransaction | ListTransactions

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Query] = msgspec.msgpack.Decoder(Query)


def encode_query(query: Query) -> bytes:
    """Encode a query."""
    return _encoder.encode(query)


def decode_query(data: bytes) -> Query:
    """Decode, or raise msgspec.DecodeError."""
    return _decoder.decode(data)

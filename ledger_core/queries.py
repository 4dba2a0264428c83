"""Reads that a shard answers, encoded like commands."""

import msgspec


class GetAccount(msgspec.Struct, tag=1, array_like=True, frozen=True):
    """The account with its balances."""

    account_id: int


class GetTransaction(msgspec.Struct, tag=2, array_like=True, frozen=True):
    """The transaction as it is now."""

    account_id: int
    number: int


class ListTransactions(msgspec.Struct, tag=3, array_like=True, frozen=True):
    """Transactions of an account, newest first.

    ``before_sequence`` and ``position`` say where the previous page ended: the account's sequence
    number and the shard's entry position of the next entry to look at. 0, 0 starts at the newest.
    """

    account_id: int
    page_size: int
    before_sequence: int = 0
    position: int = 0


Query = GetAccount | GetTransaction | ListTransactions

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Query] = msgspec.msgpack.Decoder(Query)


def encode_query(query: Query) -> bytes:
    """Encode a query."""
    return _encoder.encode(query)


def decode_query(data: bytes) -> Query:
    """Decode, or raise msgspec.DecodeError."""
    return _decoder.decode(data)

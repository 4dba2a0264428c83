"""Reads that a shard answers, encoded like commands."""

from typing import Annotated

import msgspec

from ledger_core.accounts import AccountState, AccountType
from ledger_core.commands import U64, CreateTransaction

PAGE_SIZE_MAX = 1_000
PageSize = Annotated[int, msgspec.Meta(ge=1, le=PAGE_SIZE_MAX)]


class GetAccount(msgspec.Struct, tag=1, tag_field="kind", array_like=True, frozen=True):
    """The account with its balances."""

    account_id: U64


class GetTransaction(msgspec.Struct, tag=2, tag_field="kind", array_like=True, frozen=True):
    """The transaction as it is now."""

    account_id: U64
    number: U64


class ListTransactions(msgspec.Struct, tag=3, tag_field="kind", array_like=True, frozen=True):
    """Transactions of an account, newest first.

    ``sequence`` and ``position`` say where to go on: the account's sequence number and the shard's
    entry position of the next entry to look at. 0, 0 starts at the newest.
    """

    account_id: U64
    page_size: PageSize
    sequence: U64 = 0
    position: U64 = 0


class ListAccounts(msgspec.Struct, tag=4, tag_field="kind", array_like=True, frozen=True):
    """Accounts of one shard in the order of their opening, those that fit all that is given.

    ``after_slot`` is the last slot that the previous page looked at; -1 starts at the first.
    """

    ledger: str
    page_size: PageSize
    after_slot: Annotated[int, msgspec.Meta(ge=-1)] = -1
    code_prefix: str = ""
    type: AccountType | None = None
    state: AccountState | None = None
    metadata_key: str = ""


class GetLedger(msgspec.Struct, tag=5, tag_field="kind", array_like=True, frozen=True):
    """A ledger with its currencies and its chart."""

    name: str


class ListLedgers(msgspec.Struct, tag=6, tag_field="kind", array_like=True, frozen=True):
    """Ledgers that one shard keeps, by name, after ``after``."""

    page_size: PageSize
    after: str = ""


class FindName(msgspec.Struct, tag=7, tag_field="kind", array_like=True, frozen=True):
    """The account that has claimed a name."""

    ledger: str
    name: str


class GetTransactionByRequest(
    msgspec.Struct, tag=8, tag_field="kind", array_like=True, frozen=True
):
    """The transaction that a CreateTransaction request made, as it is now."""

    account_id: U64
    request_id: str


class DryRun(msgspec.Struct, tag=9, tag_field="kind", array_like=True, frozen=True):
    """How the shard would vote on a transaction now, answered by a VoteView."""

    transaction: CreateTransaction


Query = (
    GetAccount
    | GetTransaction
    | ListTransactions
    | ListAccounts
    | GetLedger
    | ListLedgers
    | FindName
    | GetTransactionByRequest
    | DryRun
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Query] = msgspec.msgpack.Decoder(Query)


def encode_query(query: Query) -> bytes:
    """Encode a query."""
    return _encoder.encode(query)


def decode_query(data: bytes) -> Query:
    """Decode, or raise msgspec.DecodeError."""
    return _decoder.decode(data)

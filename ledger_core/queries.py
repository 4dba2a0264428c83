"""Reads that a shard answers, encoded like commands."""

from typing import Annotated

import msgspec

from ledger_core.accounts import AccountState, AccountType, TimeBasis, TransactionStatus
from ledger_core.commands import U64, CreateTransaction, TimeUs

PAGE_SIZE_MAX = 1_000
PageSize = Annotated[int, msgspec.Meta(ge=1, le=PAGE_SIZE_MAX)]

BALANCES_PER_QUERY_MAX = 8_192
ACCOUNTS_PER_QUERY_MAX = 256
"""With all the metadata they can have, accounts take 41 KB each."""


class TransactionFilter(msgspec.Struct, array_like=True, frozen=True):
    """What transactions must be like to be listed; an empty filter fits all.

    ``start_us`` (inclusive) and ``end_us`` (exclusive, 0: none) bound the time of creation. The
    external reference and the metadata key are found by an index.
    """

    status: TransactionStatus | None = None
    start_us: TimeUs = 0
    end_us: TimeUs = 0
    external_reference: str = ""
    metadata_key: str = ""


ALL_TRANSACTIONS = TransactionFilter()


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
    filter: TransactionFilter = ALL_TRANSACTIONS


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


class GetBalance(msgspec.Struct, tag=10, tag_field="kind", array_like=True, frozen=True):
    """The balances of an account now (``as_of_us`` None), or just after a moment.

    Everything that was recorded, or took effect, at or before the moment counts. Answered by a
    BalanceView.
    """

    account_id: U64
    as_of_us: TimeUs | None = None
    basis: TimeBasis = TimeBasis.RECORDED


class ListEntries(msgspec.Struct, tag=11, tag_field="kind", array_like=True, frozen=True):
    """Entries of an account, recorded from ``start_us`` up to, without, ``end_us`` (0: no end).

    ``sequence`` is the account's sequence number of the next entry to show; 0 starts at the newest
    or the oldest of the range. Answered by an EntryPage.
    """

    account_id: U64
    page_size: PageSize
    newest_first: bool = True
    start_us: TimeUs = 0
    end_us: TimeUs = 0
    sequence: U64 = 0


class GetStatement(msgspec.Struct, tag=12, tag_field="kind", array_like=True, frozen=True):
    """A page of entries with the balances before and after the whole range: a StatementView."""

    entries: ListEntries


class ListLedgerTransactions(
    msgspec.Struct, tag=13, tag_field="kind", array_like=True, frozen=True
):
    """Transactions of a ledger whose home is this shard, newest first: a LedgerTransactionPage.

    Shows those created before ``before_us``, and those created just then with numbers below
    ``before_number``; 0, 0 starts at the newest.
    """

    ledger: str
    page_size: PageSize
    filter: TransactionFilter = ALL_TRANSACTIONS
    before_us: TimeUs = 0
    before_number: U64 = 0


class GetTransactionStates(msgspec.Struct, tag=14, tag_field="kind", array_like=True, frozen=True):
    """The life of a transaction: a TransactionStatesView."""

    account_id: U64
    number: U64


class ListAccountEvents(msgspec.Struct, tag=15, tag_field="kind", array_like=True, frozen=True):
    """The life of an account, newest first, refused attempts included: an AccountEventPage.

    Starts before (``journal_number``, ``ordinal``); 0, 0 starts at the newest.
    """

    account_id: U64
    page_size: PageSize
    journal_number: U64 = 0
    ordinal: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0


class GetTotals(msgspec.Struct, tag=16, tag_field="kind", array_like=True, frozen=True):
    """The sums of a ledger's accounts on this shard by currency, code and type: a TotalsView.

    Now, or just after each of ``as_of_us``, all from one state of the shard.
    """

    ledger: str
    as_of_us: Annotated[list[TimeUs], msgspec.Meta(max_length=64)] = []
    basis: TimeBasis = TimeBasis.RECORDED


class ListAgeing(msgspec.Struct, tag=17, tag_field="kind", array_like=True, frozen=True):
    """How old the balances of a ledger's accounts are, those that are not 0: an AgeingPage.

    A balance is made of the newest money that came in (first in, first out). ``bounds_us`` are the
    ages at which buckets end, rising; the last bucket has no end. Ages are counted back from
    ``as_of_us``, or else from ``now_us`` (0: when the shard last applied anything).
    ``after_slot`` as in ListAccounts.
    """

    ledger: str
    page_size: PageSize
    bounds_us: Annotated[list[TimeUs], msgspec.Meta(min_length=1, max_length=12)]
    as_of_us: TimeUs | None = None
    basis: TimeBasis = TimeBasis.RECORDED
    after_slot: Annotated[int, msgspec.Meta(ge=-1)] = -1
    code_prefix: str = ""
    type: AccountType | None = None
    now_us: TimeUs = 0


class GetSettlements(msgspec.Struct, tag=18, tag_field="kind", array_like=True, frozen=True):
    """What is pending in a ledger, and how pending transactions ended: a SettlementsView.

    Those that ended on the days (UTC, since the Unix epoch) from ``first_day`` up to, without,
    ``end_day``. Pending ones are counted by age at ``now_us`` (0: when the shard last applied
    anything), in buckets that end at ``bounds_us``.
    """

    ledger: str
    first_day: U64
    end_day: U64
    bounds_us: Annotated[list[TimeUs], msgspec.Meta(min_length=1, max_length=12)]
    now_us: TimeUs = 0


class ListJournal(msgspec.Struct, tag=19, tag_field="kind", array_like=True, frozen=True):
    """The journal behind a number, in order: a JournalPage.

    Of items of other ledgers only the digests are shown; an empty ``ledger`` shows all.
    """

    after_number: U64
    page_size: PageSize
    ledger: str = ""


class GetBalances(msgspec.Struct, tag=20, tag_field="kind", array_like=True, frozen=True):
    """The balances that many accounts have now, from one state: a BalancesView."""

    account_ids: Annotated[list[U64], msgspec.Meta(min_length=1, max_length=BALANCES_PER_QUERY_MAX)]


class GetAccounts(msgspec.Struct, tag=21, tag_field="kind", array_like=True, frozen=True):
    """Many accounts with their balances, from one state: an AccountsView."""

    account_ids: Annotated[list[U64], msgspec.Meta(min_length=1, max_length=ACCOUNTS_PER_QUERY_MAX)]


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
    | GetBalance
    | ListEntries
    | GetStatement
    | ListLedgerTransactions
    | GetTransactionStates
    | ListAccountEvents
    | GetTotals
    | ListAgeing
    | GetSettlements
    | ListJournal
    | GetBalances
    | GetAccounts
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Query] = msgspec.msgpack.Decoder(Query)


def encode_query(query: Query) -> bytes:
    """Encode a query."""
    return _encoder.encode(query)


def decode_query(data: bytes) -> Query:
    """Decode, or raise msgspec.DecodeError."""
    return _decoder.decode(data)

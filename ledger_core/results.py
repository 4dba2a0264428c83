"""What commands and queries return: a view of the data, or a Failure.

A Failure is a value, not an exception: it says that nothing was changed and why. Refused
transactions (INSUFFICIENT_FUNDS, REJECTED) are no failures: they are recorded and returned as
transactions.
"""

import msgspec

from ledger_core.accounts import (
    AccountEventKind,
    AccountState,
    AccountType,
    Direction,
    EntryKind,
    GroupRole,
    TransactionStatus,
)
from ledger_core.commands import NO_OVERDRAFT, Limits, Refused
from ledger_core.errors import Reason, RefusalReason
from ledger_core.ledgers import ChartCode, Currency


class AccountView(msgspec.Struct, tag=1, tag_field="kind", array_like=True, frozen=True):
    """An account as the API shows it. Money in minor units, times in microseconds."""

    account_id: int
    ledger: str
    type: AccountType
    state: AccountState
    currency: str
    currency_exponent: int
    settled_balance: int
    available_balance: int
    debits_posted: int
    credits_posted: int
    debits_pending: int
    credits_pending: int
    pending_transactions: int
    version: int
    create_time_us: int
    update_time_us: int
    code: str = ""
    name: str = ""
    limits: Limits = NO_OVERDRAFT
    metadata: dict[str, str] = {}
    revision: int = 0
    previous_name: str = ""
    """The name before the last change of name, whose claim is then to be released."""


class EntryView(msgspec.Struct, array_like=True, frozen=True):
    """One side of a transaction."""

    account_id: int
    direction: Direction
    amount: int
    currency: str
    currency_exponent: int = 2


class RefusalView(msgspec.Struct, array_like=True, frozen=True):
    """Why a transaction was refused."""

    reason: str
    entry_index: int
    account_id: int
    required_amount: int
    available_amount: int
    message: str
    reserved_amount: int = 0


def refused_by(refusal: RefusalView) -> Refused:
    """Return a refusal as commands carry it between shards."""
    return Refused(
        refusal.entry_index,
        refusal.required_amount,
        refusal.available_amount,
        refusal.reserved_amount,
        RefusalReason(refusal.reason),
    )


class TransactionView(msgspec.Struct, tag=2, tag_field="kind", array_like=True, frozen=True):
    """A transaction as the API shows it. Money in minor units, times in microseconds."""

    account_id: int
    number: int
    amount: int
    description: str
    status: TransactionStatus
    ledger: str
    currency: str
    currency_exponent: int
    entries: list[EntryView]
    refusal: RefusalView | None
    request_id: str
    create_time_us: int
    update_time_us: int
    effective_time_us: int
    external_reference: str = ""
    metadata: dict[str, str] = {}
    actor: str = ""
    expire_time_us: int = 0
    settled_amount: int = 0
    """How much of a two-entry transaction was settled, where that is less than its amount."""
    reversal_of: int = 0
    """Number of the transaction (of the same account) that this one reverses; 0: none."""
    reversed_amounts: list[int] = []
    """How much of each entry has been reversed so far; empty: nothing."""
    in_flight: int | None = None
    """The state that participants have yet to apply; None: everyone has it."""


class VoteView(msgspec.Struct, tag=9, tag_field="kind", array_like=True, frozen=True):
    """A participant's vote: yes, unless refused."""

    refused: Refused | None = None


class Done(msgspec.Struct, tag=10, tag_field="kind", array_like=True, frozen=True):
    """Something between shards was done, or had been done already."""


class TransactionPage(msgspec.Struct, tag=3, tag_field="kind", array_like=True, frozen=True):
    """A page of transactions. The next one starts at (sequence, position); 0, 0 after the last."""

    transactions: list[TransactionView]
    next_sequence: int
    next_position: int


class Failure(msgspec.Struct, tag=4, tag_field="kind", array_like=True, frozen=True):
    """Nothing was changed, and why. ``field`` names the request field at fault, if there is one."""

    reason: Reason
    message: str
    field: str = ""
    metadata: dict[str, str] = {}


class AccountPage(msgspec.Struct, tag=5, tag_field="kind", array_like=True, frozen=True):
    """Accounts of one shard. The next page starts after ``last_slot``; -1 after the last."""

    accounts: list[AccountView]
    last_slot: int


class LedgerView(msgspec.Struct, tag=6, tag_field="kind", array_like=True, frozen=True):
    """A ledger as the API shows it."""

    name: str
    description: str
    currencies: list[Currency]
    chart: list[ChartCode]
    revision: int
    create_time_us: int
    update_time_us: int


class LedgerPage(msgspec.Struct, tag=7, tag_field="kind", array_like=True, frozen=True):
    """Ledgers of one shard, by name."""

    ledgers: list[LedgerView]


class NameView(msgspec.Struct, tag=8, tag_field="kind", array_like=True, frozen=True):
    """Who has a name. ``account_id`` is None where nobody has."""

    ledger: str
    name: str
    account_id: int | None


class CountersView(msgspec.Struct, array_like=True, frozen=True):
    """Four counters, or the sums of those of several accounts. Minor units."""

    debits_posted: int = 0
    credits_posted: int = 0
    debits_pending: int = 0
    credits_pending: int = 0


class BalanceView(msgspec.Struct, tag=11, tag_field="kind", array_like=True, frozen=True):
    """The balances of an account as of a moment.

    ``version`` is the sequence number of the newest entry that is counted, by time of recording;
    ``time_us`` is when it was recorded (0: there is none).
    """

    account_id: int
    ledger: str
    type: AccountType
    currency: str
    currency_exponent: int
    counters: CountersView
    settled_balance: int
    available_balance: int
    version: int
    time_us: int


class StatementEntryView(msgspec.Struct, array_like=True, frozen=True):
    """An entry of an account's history, with what it belongs to and the balances after it.

    ``home_account_id`` and ``number`` make the transaction's id.
    """

    sequence: int
    kind: EntryKind
    direction: Direction
    amount: int
    time_us: int
    effective_time_us: int
    home_account_id: int
    number: int
    description: str
    external_reference: str
    status: TransactionStatus
    after: CountersView
    settled_balance: int
    available_balance: int
    request_id: str = ""
    actor: str = ""
    reversal_of: int = 0


class EntryPage(msgspec.Struct, tag=12, tag_field="kind", array_like=True, frozen=True):
    """Entries of an account; the next page starts at ``next_sequence`` (0 after the last)."""

    account_id: int
    currency: str
    currency_exponent: int
    entries: list[StatementEntryView]
    next_sequence: int


class StatementView(msgspec.Struct, tag=13, tag_field="kind", array_like=True, frozen=True):
    """Opening and closing balances of a range, and a page of the entries in it."""

    opening: BalanceView
    closing: BalanceView
    page: EntryPage


class LedgerTransactionPage(msgspec.Struct, tag=14, tag_field="kind", array_like=True, frozen=True):
    """Transactions of one shard, newest first; where to go on, unless ``exhausted``."""

    transactions: list[TransactionView]
    next_us: int
    next_number: int
    exhausted: bool


class TransactionStateView(msgspec.Struct, array_like=True, frozen=True):
    """A step in the life of a transaction, and who made it. Steps of the ledger have no request."""

    status: TransactionStatus
    time_us: int
    request_id: str
    actor: str
    correlation_id: str
    peer: str


class TransactionStatesView(msgspec.Struct, tag=15, tag_field="kind", array_like=True, frozen=True):
    """A transaction as it is now, and every state that it has been in, oldest first."""

    transaction: TransactionView
    states: list[TransactionStateView]


class AccountEventView(msgspec.Struct, array_like=True, frozen=True):
    """Something that happened to an account. ``changes``: field → (before, after), as JSON."""

    kind: AccountEventKind
    time_us: int
    request_id: str
    actor: str
    correlation_id: str
    peer: str
    changes: dict[str, tuple[str, str]]
    reason: str
    message: str
    home_account_id: int = 0
    number: int = 0
    """Of a refused transaction: with ``home_account_id``, its id."""


class AccountEventPage(msgspec.Struct, tag=16, tag_field="kind", array_like=True, frozen=True):
    """Events, newest first. The next page starts before (number, ordinal); 0, 0 after the last."""

    events: list[AccountEventView]
    next_journal_number: int
    next_ordinal: int


class GroupTotalsView(msgspec.Struct, array_like=True, frozen=True):
    """The sums of the accounts of one code and type: one for each moment asked for, or for now."""

    currency: str
    currency_exponent: int
    type: AccountType
    code: str
    role: GroupRole
    accounts: int
    sums: list[CountersView]


class TotalsView(msgspec.Struct, tag=17, tag_field="kind", array_like=True, frozen=True):
    """The sums of a ledger's accounts on one shard; per currency and moment they balance."""

    groups: list[GroupTotalsView]
    time_us: int


class AgeingView(msgspec.Struct, array_like=True, frozen=True):
    """An account's settled balance by age: one amount per bucket, youngest first."""

    account_id: int
    code: str
    name: str
    type: AccountType
    currency: str
    currency_exponent: int
    settled_balance: int
    amounts: list[int]
    oldest_us: int = 0


class AgeingPage(msgspec.Struct, tag=18, tag_field="kind", array_like=True, frozen=True):
    """Accounts of one shard. The next page starts after ``last_slot``; -1 after the last."""

    accounts: list[AgeingView]
    last_slot: int


class BookSettlementsView(msgspec.Struct, array_like=True, frozen=True):
    """Pending transactions of a currency, and how they ended. Durations: bucket → number.

    ``pending_debits`` sums the debits of the pending transactions; ``oldest_us`` is when the oldest
    was created (0: there is none). ``truncated``: there are more pending ones than were looked at.
    """

    currency: str
    currency_exponent: int
    pending: int
    pending_debits: int
    pending_by_age: list[int]
    oldest_us: int
    oldest_account_id: int
    oldest_number: int
    truncated: bool
    settled: int
    cancelled: int
    expired: int
    durations: dict[int, int]


class SettlementsView(msgspec.Struct, tag=19, tag_field="kind", array_like=True, frozen=True):
    """Settlements of a ledger at the home shard of its transactions."""

    books: list[BookSettlementsView]


class JournalItemView(msgspec.Struct, array_like=True, frozen=True):
    """An item of the journal: its digest, and its content unless it is of another ledger.

    ``rows`` are the entry rows it wrote, as stored (88 bytes each).
    """

    digest: bytes
    hidden: bool
    command: bytes = b""
    outcome: bytes = b""
    number: int = 0
    rows: bytes = b""


class JournalView(msgspec.Struct, array_like=True, frozen=True):
    """An entry of the journal. Times in microseconds."""

    number: int
    index: int
    time_us: int
    items: list[JournalItemView]
    link: bytes


class JournalPage(msgspec.Struct, tag=20, tag_field="kind", array_like=True, frozen=True):
    """Entries of the journal, in order; ``last_number`` is that of the shard's last one now."""

    entries: list[JournalView]
    last_number: int
    replayed: int


class BookView(msgspec.Struct, array_like=True, frozen=True):
    """A currency of a ledger on one shard, and its external account there."""

    ledger: str
    currency: str
    currency_exponent: int
    external_account_id: int


class TransfersView(msgspec.Struct, tag=22, tag_field="kind", array_like=True, frozen=True):
    """What became of the transfers of a block, in their order.

    ``statuses`` has a byte for each: the status of the transaction that it made, which ``refusals``
    explains where it was refused; or 0 where ``others`` has a failure, or the first result of a
    repeated request. Transactions were numbered one after the other from ``first_number``.

    Of the one-account form the account decides what is booked: ``sides`` has the direction of the
    first entry of each such transfer, ``book_places`` (two bytes each, little-endian) the place of
    its book in ``books``. Both are 0 for other transfers, and empty where a block has no others.
    """

    time_us: int
    first_number: int
    statuses: bytes
    refusals: dict[int, RefusalView]
    others: dict[int, TransactionView | Failure]
    books: list[BookView] = []
    book_places: bytes = b""
    sides: bytes = b""


class TransferVotesView(msgspec.Struct, tag=23, tag_field="kind", array_like=True, frozen=True):
    """Votes on the items of `PrepareTransfers`: yes, but for those in ``refused``, by item.

    ``numbers`` (u64 each, little-endian) are those of the transactions at the participant; 0: it
    knew the item before.
    """

    refused: dict[int, Refused]
    numbers: bytes = b""


class BalanceBookView(msgspec.Struct, array_like=True, frozen=True):
    """A currency of a ledger."""

    ledger: str
    currency: str
    currency_exponent: int


class BalancesView(msgspec.Struct, tag=24, tag_field="kind", array_like=True, frozen=True):
    """The balances of many accounts, as columns in their order: little-endian.

    ``types`` has a byte for each account; ``book_places`` two bytes: its place in ``books``; all
    others 8 bytes. ``times_us``: when the newest entry was recorded; 0: there is none. ``missing``
    tells by index why there is no balance; all columns are 0 there.
    """

    types: bytes
    book_places: bytes
    debits_posted: bytes
    credits_posted: bytes
    debits_pending: bytes
    credits_pending: bytes
    versions: bytes
    times_us: bytes
    books: list[BalanceBookView]
    missing: dict[int, Failure]


class AccountsView(msgspec.Struct, tag=25, tag_field="kind", array_like=True, frozen=True):
    """Many accounts, or why there is none, in the order in which they were asked for."""

    accounts: list[AccountView | Failure]


class Replayed(msgspec.Struct, tag=21, tag_field="kind", array_like=True, frozen=True):
    """A journal entry was applied once more, or had been before; the chain's hash after it."""

    number: int
    link: bytes


Result = (
    AccountView
    | TransactionView
    | TransactionPage
    | Failure
    | AccountPage
    | LedgerView
    | LedgerPage
    | NameView
    | VoteView
    | Done
    | BalanceView
    | EntryPage
    | StatementView
    | LedgerTransactionPage
    | TransactionStatesView
    | AccountEventPage
    | TotalsView
    | AgeingPage
    | SettlementsView
    | JournalPage
    | Replayed
    | TransfersView
    | TransferVotesView
    | BalancesView
    | AccountsView
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Result] = msgspec.msgpack.Decoder(Result)


def encode_result(result: Result) -> bytes:
    """Encode a result."""
    return _encoder.encode(result)


def decode_result(data: bytes) -> Result:
    """Decode, or raise msgspec.DecodeError."""
    return _decoder.decode(data)

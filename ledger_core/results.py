"""What commands and queries return: a view of the data, or a Failure.

A Failure is a value, not an exception: it says that nothing was changed and why. Refused
transactions (INSUFFICIENT_FUNDS, REJECTED) are no failures: they are recorded and returned as
transactions.
"""

import msgspec

from ledger_core.accounts import AccountState, AccountType, Direction, TransactionStatus
from ledger_core.commands import NO_OVERDRAFT, Limits, Refused
from ledger_core.errors import Reason
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
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Result] = msgspec.msgpack.Decoder(Result)


def encode_result(result: Result) -> bytes:
    """Encode a result."""
    return _encoder.encode(result)


def decode_result(data: bytes) -> Result:
    """Decode, or raise msgspec.DecodeError."""
    return _decoder.decode(data)

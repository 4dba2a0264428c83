"""Requests: all wrong fields at once, by their names in the API, before anything is sent.

One function per request; each returns a list of field violations, empty for a valid request. What
only the shards can know (does the account exist?) is not asked here.
"""

from collections.abc import Iterable

from ledger.v1 import ledger_pb2
from ledger_core.commands import (
    ACTOR_CHARACTERS_MAX,
    DESCRIPTION_CHARACTERS_MAX,
    ENTRIES_MAX,
    METADATA_KEY_CHARACTERS_MAX,
    REFERENCE_CHARACTERS_MAX,
)
from ledger_core.errors import InvalidRequestError
from ledger_core.ledgers import (
    CHART_CODES_MAX,
    CURRENCIES_MAX,
    CURRENCY_EXPONENT_MAX,
    chart_faults,
)
from ledger_core.queries import PAGE_SIZE_MAX
from ledger_gateway import conversion, fields
from ledger_gateway.fields import Violations, wrong
from ledger_gateway.pagination import (
    ACCOUNT_EVENTS,
    ACCOUNT_TRANSACTIONS,
    ENTRIES,
    LEDGER_TRANSACTIONS,
    STATEMENT,
    decode_account_token,
    decode_ledger_token,
)

LEDGERS_PAGE_SIZE_MAX = 100

_DIRECTIONS = frozenset(ledger_pb2.Direction.values())

ChangeRequest = (
    ledger_pb2.FreezeAccountRequest
    | ledger_pb2.UnfreezeAccountRequest
    | ledger_pb2.CloseAccountRequest
)
PeriodRequest = (
    ledger_pb2.ListTransactionsRequest
    | ledger_pb2.ListEntriesRequest
    | ledger_pb2.GetStatementRequest
)


def require(violations: Violations) -> None:
    """Raise InvalidRequestError if there are any."""
    if violations:
        raise InvalidRequestError(violations)


# Ledgers


def create_ledger(request: ledger_pb2.CreateLedgerRequest) -> Violations:
    """Check CreateLedger."""
    return [
        *([] if request.name else wrong("name", "is required")),
        *fields.ledger(request.name, "name"),
        *fields.text("description", request.description, DESCRIPTION_CHARACTERS_MAX),
        *([] if request.currencies else wrong("currencies", "must have at least one")),
        *_currencies(request.currencies),
        *_chart(request.chart),
        *(_chart_faults(request.chart)),
        *fields.request_id(request.request_id),
        *_actor(request.actor),
    ]


def get_ledger(request: ledger_pb2.GetLedgerRequest) -> Violations:
    """Check GetLedger."""
    return [*fields.ledger(request.ledger), *fields.consistency(request.consistency)]


def list_ledgers(request: ledger_pb2.ListLedgersRequest) -> Violations:
    """Check ListLedgers."""
    return [
        *fields.page_size(request.page_size, LEDGERS_PAGE_SIZE_MAX),
        *fields.page_token(lambda: decode_ledger_token(request.page_token)),
        *fields.consistency(request.consistency),
    ]


def update_ledger(request: ledger_pb2.UpdateLedgerRequest) -> Violations:
    """Check UpdateLedger. Whether lines fit the chart that is there, its shard tells."""
    return [
        *fields.ledger(request.ledger),
        *fields.text("description", request.description, DESCRIPTION_CHARACTERS_MAX),
        *_currencies(request.currencies),
        *_chart(request.chart),
        *fields.request_id(request.request_id),
        *_actor(request.actor),
    ]


def _currencies(currencies: Iterable[ledger_pb2.Currency]) -> Violations:
    found: Violations = []
    seen: set[str] = set()
    for index, currency in enumerate(currencies):
        path = f"currencies[{index}]"
        if not currency.code:
            found += wrong(f"{path}.code", "is required")
        elif currency.code in seen:
            found += wrong(f"{path}.code", f"is there twice: {currency.code}")
        found += fields.currency_code(f"{path}.code", currency.code)
        seen.add(currency.code)
        if not currency.HasField("exponent"):
            found += wrong(f"{path}.exponent", "is required: 2 for USD, 0 for JPY")
        elif currency.exponent > CURRENCY_EXPONENT_MAX:
            found += wrong(f"{path}.exponent", f"must be at most {CURRENCY_EXPONENT_MAX}")
    if len(seen) > CURRENCIES_MAX:
        found += wrong("currencies", f"must be at most {CURRENCIES_MAX}")
    return found


def _chart(chart: Iterable[ledger_pb2.ChartLine]) -> Violations:
    found: Violations = []
    count = 0
    for index, line in enumerate(chart):
        path, count = f"chart[{index}]", index + 1
        found += [
            *([] if line.code else wrong(f"{path}.code", "is required")),
            *fields.chart_code(f"{path}.code", line.code),
            *fields.label(f"{path}.name", line.name),
            *_type(f"{path}.type", line.type, required=True),
            *fields.chart_code(f"{path}.parent", line.parent),
        ]
    if count > CHART_CODES_MAX:
        found += wrong("chart", f"must have at most {CHART_CODES_MAX:,} lines, has {count:,}")
    return found


def _chart_faults(chart: Iterable[ledger_pb2.ChartLine]) -> Violations:
    """Return what is wrong between the lines of a whole chart, once each of them is good."""
    if _chart(chart):
        return []
    lines = [conversion.chart_code(line) for line in chart]
    return [
        violation
        for index, fault in chart_faults([], lines)
        for violation in wrong(f"chart[{index}]", fault)
    ]


# Accounts


def create_account(request: ledger_pb2.CreateAccountRequest) -> Violations:
    """Check CreateAccount."""
    return [
        *fields.request_id(request.request_id),
        *fields.ledger(request.ledger),
        *fields.currency_code("currency", request.currency),
        *fields.chart_code("code", request.code),
        *_type("type", request.type),
        *fields.label("name", request.name),
        *fields.limits(request.limits),
        *fields.metadata("metadata", request.metadata),
        *_actor(request.actor),
    ]


def get_account(request: ledger_pb2.GetAccountRequest) -> Violations:
    """Check GetAccount: by id, or by name."""
    if request.name and not request.account_id:
        key = [*fields.ledger(request.ledger), *fields.label("name", request.name)]
    else:
        key = [
            *fields.account_id(request.account_id, required="is required, or a name"),
            *(wrong("name", "goes without account_id") if request.name else []),
            *(wrong("ledger", "goes with name") if request.ledger else []),
        ]
    return [*key, *fields.consistency(request.consistency)]


def list_accounts(request: ledger_pb2.ListAccountsRequest) -> Violations:
    """Check ListAccounts."""
    return [
        *fields.ledger(request.ledger),
        *fields.page_size(request.page_size, PAGE_SIZE_MAX),
        *fields.page_token(lambda: decode_account_token(request.page_token, request)),
        *fields.consistency(request.consistency),
        *fields.chart_code("code_prefix", request.code_prefix),
        *_type("type", request.type),
        *fields.enum("state", request.state, ledger_pb2.AccountState.values()),
        *fields.line("metadata_key", request.metadata_key, METADATA_KEY_CHARACTERS_MAX),
    ]


def update_account(request: ledger_pb2.UpdateAccountRequest) -> Violations:
    """Check UpdateAccount."""
    return [
        *fields.account_id(request.account_id),
        *fields.label("name", request.name),
        *fields.metadata("metadata.values", request.metadata.values),
        *fields.limits(request.limits),
        *fields.request_id(request.request_id),
        *_actor(request.actor),
    ]


def change_account(request: ChangeRequest) -> Violations:
    """Check FreezeAccount, UnfreezeAccount and CloseAccount."""
    return [
        *fields.account_id(request.account_id),
        *fields.request_id(request.request_id),
        *_actor(request.actor),
    ]


def _type(field: str, value: int, *, required: bool = False) -> Violations:
    if required and value == ledger_pb2.ACCOUNT_TYPE_UNSPECIFIED:
        return wrong(field, "is required")
    return fields.enum(field, value, ledger_pb2.AccountType.values())


# Transactions


def create_transaction(request: ledger_pb2.CreateTransactionRequest) -> Violations:
    """Check CreateTransaction, in either form. Sums per currency are checked with the ledger."""
    return [
        *(_entries_form(request) if request.entries else _one_account_form(request)),
        *fields.text("description", request.description, DESCRIPTION_CHARACTERS_MAX),
        *fields.request_id(request.request_id),
        *fields.line("external_reference", request.external_reference, REFERENCE_CHARACTERS_MAX),
        *fields.moment("effective_time", request.effective_time),
        *fields.moment("expire_time", request.expire_time),
        *(
            wrong("expire_time", "goes with pending transactions only, not with settled")
            if request.settled and request.HasField("expire_time")
            else []
        ),
        *fields.metadata("metadata", request.metadata),
        *_actor(request.actor),
    ]


def _one_account_form(request: ledger_pb2.CreateTransactionRequest) -> Violations:
    return [
        *fields.account_id(request.account_id, required="is required, or entries"),
        *(wrong("amount", "must not be 0") if request.amount == 0 else []),
        *fields.signed_amount("amount", request.amount),
        *(
            wrong("ledger", "goes with entries; here it is that of the account")
            if request.ledger
            else []
        ),
    ]


def _entries_form(request: ledger_pb2.CreateTransactionRequest) -> Violations:
    found: Violations = []
    if request.account_id:
        found += wrong("account_id", "goes without entries")
    if request.amount:
        found += wrong("amount", "goes without entries")
    if not 2 <= len(request.entries) <= ENTRIES_MAX:
        found += wrong("entries", f"must be 2 to {ENTRIES_MAX:,}, not {len(request.entries):,}")
    for index, entry in enumerate(request.entries[: ENTRIES_MAX + 1]):
        found += _entry(f"entries[{index}]", entry)
    return found + fields.ledger(request.ledger)


def _entry(path: str, entry: ledger_pb2.Entry) -> Violations:
    found = [
        *fields.account_id(entry.account_id, f"{path}.account_id"),
        *fields.enum(f"{path}.direction", entry.direction, _DIRECTIONS),
        *fields.currency_code(f"{path}.currency", entry.currency),
        *fields.signed_amount(f"{path}.minimum_balance", entry.minimum_balance),
        *fields.signed_amount(f"{path}.maximum_balance", entry.maximum_balance),
    ]
    if entry.direction == ledger_pb2.DIRECTION_UNSPECIFIED:
        found += wrong(f"{path}.direction", "is required")
    if entry.amount <= 0:
        found += wrong(f"{path}.amount", "must be greater than 0: the direction has the sign")
    both = entry.HasField("minimum_balance") and entry.HasField("maximum_balance")
    if both and entry.minimum_balance > entry.maximum_balance:
        found += wrong(f"{path}.minimum_balance", "must not be above maximum_balance")
    return found


def get_transaction(request: ledger_pb2.GetTransactionRequest) -> Violations:
    """Check GetTransaction: by id, or by the request that made it."""
    if request.transaction_id or not (request.account_id or request.request_id):
        key = [
            *fields.transaction_id(
                request.transaction_id, "is required, or account_id and request_id"
            ),
            *(wrong("account_id", "goes without transaction_id") if request.account_id else []),
            *(wrong("request_id", "goes without transaction_id") if request.request_id else []),
        ]
    else:
        key = [
            *fields.account_id(request.account_id, required="is required with request_id"),
            *([] if request.request_id else wrong("request_id", "is required with account_id")),
            *fields.request_id(request.request_id),
        ]
    return [*key, *fields.consistency(request.consistency)]


def settle_transaction(request: ledger_pb2.SettleTransactionRequest) -> Violations:
    """Check SettleTransaction."""
    return [
        *fields.transaction_id(request.transaction_id),
        *fields.request_id(request.request_id),
        *fields.part_amount("amount", request.amount),
        *_actor(request.actor),
    ]


def cancel_transaction(request: ledger_pb2.CancelTransactionRequest) -> Violations:
    """Check CancelTransaction."""
    return [
        *fields.transaction_id(request.transaction_id),
        *fields.request_id(request.request_id),
        *_actor(request.actor),
    ]


def reverse_transaction(request: ledger_pb2.ReverseTransactionRequest) -> Violations:
    """Check ReverseTransaction."""
    amounts = request.amounts
    found: Violations = []
    if len(amounts) > ENTRIES_MAX:
        found += wrong("amounts", f"must be at most {ENTRIES_MAX:,}, one for each entry")
    elif amounts and not any(amounts):
        found += wrong("amounts", "must not all be 0; leave them out to reverse everything")
    for index, amount in enumerate(amounts[:ENTRIES_MAX]):
        found += fields.part_amount(f"amounts[{index}]", amount)
    return [
        *fields.transaction_id(request.transaction_id),
        *fields.request_id(request.request_id),
        *found,
        *fields.text("description", request.description, DESCRIPTION_CHARACTERS_MAX),
        *_actor(request.actor),
    ]


def list_transactions(request: ledger_pb2.ListTransactionsRequest) -> Violations:
    """Check ListTransactions: of an account, or of a ledger."""
    if request.account_id:
        tokens = fields.page_token(lambda: ACCOUNT_TRANSACTIONS.decode(request))
        listed = [
            *fields.account_id(request.account_id),
            *(wrong("ledger", "goes without account_id") if request.ledger else []),
        ]
    else:
        tokens = fields.page_token(lambda: LEDGER_TRANSACTIONS.decode(request))
        listed = fields.ledger(request.ledger)
    return [
        *listed,
        *fields.page_size(request.page_size, PAGE_SIZE_MAX),
        *tokens,
        *fields.consistency(request.consistency),
        *fields.enum("status", request.status, ledger_pb2.TransactionStatus.values()),
        *_period(request),
        *fields.line("external_reference", request.external_reference, REFERENCE_CHARACTERS_MAX),
        *fields.line("metadata_key", request.metadata_key, METADATA_KEY_CHARACTERS_MAX),
    ]


# History


def get_balance(request: ledger_pb2.GetBalanceRequest) -> Violations:
    """Check GetBalance."""
    found = fields.enum("basis", request.basis, ledger_pb2.TimeBasis.values())
    if request.basis == ledger_pb2.TIME_BASIS_EFFECTIVE and not request.HasField("as_of_time"):
        found = wrong("basis", "goes with as_of_time: now, everything recorded counts")
    return [
        *fields.account_id(request.account_id),
        *fields.consistency(request.consistency),
        *fields.moment("as_of_time", request.as_of_time),
        *found,
    ]


def list_entries(request: ledger_pb2.ListEntriesRequest) -> Violations:
    """Check ListEntries."""
    return [
        *fields.account_id(request.account_id),
        *fields.page_size(request.page_size, PAGE_SIZE_MAX),
        *fields.page_token(lambda: ENTRIES.decode(request)),
        *fields.consistency(request.consistency),
        *_period(request),
    ]


def get_statement(request: ledger_pb2.GetStatementRequest) -> Violations:
    """Check GetStatement."""
    return [
        *fields.account_id(request.account_id),
        *_period(request),
        *fields.page_size(request.page_size, PAGE_SIZE_MAX),
        *fields.page_token(lambda: STATEMENT.decode(request)),
        *fields.consistency(request.consistency),
    ]


def list_transaction_states(request: ledger_pb2.ListTransactionStatesRequest) -> Violations:
    """Check ListTransactionStates."""
    return [
        *fields.transaction_id(request.transaction_id),
        *fields.consistency(request.consistency),
    ]


def list_account_events(request: ledger_pb2.ListAccountEventsRequest) -> Violations:
    """Check ListAccountEvents."""
    return [
        *fields.account_id(request.account_id),
        *fields.page_size(request.page_size, PAGE_SIZE_MAX),
        *fields.page_token(lambda: ACCOUNT_EVENTS.decode(request)),
        *fields.consistency(request.consistency),
    ]


def _period(request: PeriodRequest) -> Violations:
    """Check from when on (inclusive), and until when (exclusive)."""
    found = [
        *fields.moment("start_time", request.start_time),
        *fields.moment("end_time", request.end_time),
    ]
    if found or not request.HasField("end_time"):
        return found
    # Without a start_time from 1970 on, which is what an unset one says.
    if conversion.time_us_up(request.end_time) <= conversion.time_us_up(request.start_time):
        return wrong("end_time", "must be at least a microsecond after start_time (or 1970)")
    return []


def _actor(value: str) -> Violations:
    return fields.line("actor", value, ACTOR_CHARACTERS_MAX)

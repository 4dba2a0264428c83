"""Wrong input at every field of the requests of history, for `test_gateway_validation`."""

from typing import Any

from fake_shards import ACCOUNT, ACCOUNT_ID, TRANSACTION
from google.protobuf.timestamp_pb2 import Timestamp
from wrong_values import (
    ACCOUNT_ID_FAULTS,
    CONSISTENCY_FAULTS,
    CONTROL_FAULTS,
    KEY_FAULTS,
    PAGE_SIZE_FAULTS,
    TRANSACTION_ID_FAULTS,
    token_faults,
)

from ledger.v1 import ledger_pb2
from ledger_gateway.pagination import (
    ACCOUNT_EVENTS,
    ACCOUNT_TRANSACTIONS,
    ENTRIES,
    LEDGER_TRANSACTIONS,
    STATEMENT,
    Cursor,
    EntryCursor,
    EventCursor,
    LedgerCursor,
    StatementCursor,
)

OTHER = f"{ACCOUNT_ID + 1:016x}"
SOON = Timestamp(seconds=1)

Transactions = ledger_pb2.ListTransactionsRequest
Entries = ledger_pb2.ListEntriesRequest
Statement = ledger_pb2.GetStatementRequest
Events = ledger_pb2.ListAccountEventsRequest

HISTORY_RPCS: dict[str, tuple[dict[str, Any], dict[str, dict[Any, str]]]] = {
    "ListTransactions": (
        {"account_id": ACCOUNT},
        {
            "account_id": {key: said for key, said in ACCOUNT_ID_FAULTS.items() if key},
            "page_size": PAGE_SIZE_FAULTS,
            "page_token": token_faults(
                ACCOUNT_TRANSACTIONS,
                Cursor(5, 9),
                Transactions(account_id=ACCOUNT),
                Transactions(account_id=OTHER),
                Transactions(account_id=ACCOUNT, status=1),
                Transactions(account_id=ACCOUNT, start_time=SOON),
                Transactions(account_id=ACCOUNT, end_time=SOON),
                Transactions(account_id=ACCOUNT, external_reference="r"),
                Transactions(account_id=ACCOUNT, metadata_key="r"),
            ),
            "consistency": CONSISTENCY_FAULTS,
            "ledger": {"books": "goes without account_id", "Main": "goes without account_id"},
            "status": {8: "has no value 8", -1: "has no value -1"},
            "external_reference": {"r" * 257: "at most 256 characters"} | CONTROL_FAULTS,
            "metadata_key": KEY_FAULTS,
        },
    ),
    "GetBalance": (
        {"account_id": ACCOUNT, "as_of_time": SOON},
        {
            "account_id": ACCOUNT_ID_FAULTS,
            "consistency": CONSISTENCY_FAULTS,
            "basis": {3: "has no value 3", -1: "has no value -1"},
        },
    ),
    "ListEntries": (
        {"account_id": ACCOUNT},
        {
            "account_id": ACCOUNT_ID_FAULTS,
            "page_size": PAGE_SIZE_FAULTS,
            "page_token": token_faults(
                ENTRIES,
                EntryCursor(5),
                Entries(account_id=ACCOUNT),
                Entries(account_id=OTHER),
                Entries(account_id=ACCOUNT, start_time=SOON),
                Entries(account_id=ACCOUNT, end_time=SOON),
                Entries(account_id=ACCOUNT, oldest_first=True),
            ),
            "consistency": CONSISTENCY_FAULTS,
        },
    ),
    "GetStatement": (
        {"account_id": ACCOUNT},
        {
            "account_id": ACCOUNT_ID_FAULTS,
            "page_size": PAGE_SIZE_FAULTS,
            "page_token": token_faults(
                STATEMENT,
                StatementCursor(5, 6, 7),
                Statement(account_id=ACCOUNT),
                Statement(account_id=OTHER),
                Statement(account_id=ACCOUNT, start_time=SOON),
                Statement(account_id=ACCOUNT, end_time=SOON),
            ),
            "consistency": CONSISTENCY_FAULTS,
        },
    ),
    "ListTransactionStates": (
        {"transaction_id": TRANSACTION},
        {"transaction_id": TRANSACTION_ID_FAULTS, "consistency": CONSISTENCY_FAULTS},
    ),
    "ListAccountEvents": (
        {"account_id": ACCOUNT},
        {
            "account_id": ACCOUNT_ID_FAULTS,
            "page_size": PAGE_SIZE_FAULTS,
            "page_token": token_faults(
                ACCOUNT_EVENTS,
                EventCursor(5, 0),
                Events(account_id=ACCOUNT),
                Events(account_id=OTHER),
            ),
            "consistency": CONSISTENCY_FAULTS,
        },
    ),
}

HISTORY_PARTS: list[tuple[str, dict[str, Any], str, str]] = [
    ("GetBalance", {"as_of_time": {"seconds": -1}}, "as_of_time", "1970 and 9999"),
    ("GetBalance", {"as_of_time": {"nanos": 10**9}}, "as_of_time", "nanos between 0 and"),
    ("GetBalance", {"as_of_time": None, "basis": 2}, "basis", "goes with as_of_time"),
    ("ListTransactions", {"account_id": "", "ledger": "Main"}, "ledger", "at most 63"),
]
for _method in ("ListTransactions", "ListEntries", "GetStatement"):
    for _field in ("start_time", "end_time"):
        for _value, _said in (
            ({"seconds": -1}, "1970 and 9999"),
            ({"seconds": 253_402_300_800}, "1970 and 9999"),
            ({"seconds": 5, "nanos": -1}, "nanos between 0 and"),
        ):
            HISTORY_PARTS.append((_method, {_field: _value}, _field, _said))
    for _start, _end in (
        ({"seconds": 5}, {"seconds": 5}),
        ({"seconds": 5, "nanos": 1_000}, {"seconds": 5}),
        # Within one microsecond there is nothing.
        ({"seconds": 5, "nanos": 1}, {"seconds": 5, "nanos": 999}),
        (None, {}),
    ):
        HISTORY_PARTS.append(
            (_method, {"start_time": _start, "end_time": _end}, "end_time", "after start_time")
        )

# Tokens of a ledger's transactions, each for another list than that of ledger "books".
for _token, _said in token_faults(
    LEDGER_TRANSACTIONS,
    LedgerCursor(5, 0, 9),
    Transactions(ledger="books"),
    Transactions(),
    Transactions(ledger="fx"),
    Transactions(ledger="books", status=1),
).items():
    HISTORY_PARTS.append(
        (
            "ListTransactions",
            {"account_id": "", "ledger": "books", "page_token": _token},
            "page_token",
            _said,
        )
    )

"""Wrong values of fields that several requests have, and what is said about each."""

from fake_shards import ACCOUNT, TRANSACTION

from ledger.v1 import ledger_pb2
from ledger_gateway.pagination import (
    ENTRIES,
    AccountCursor,
    CursorT,
    EntryCursor,
    ListRequest,
    PageTokens,
    encode_account_token,
    encode_ledger_token,
)

ACCOUNT_ID_FAULTS = {
    "": "is required",
    "abc": "16 lower-case hex digits",
    ACCOUNT + "0": "16 lower-case hex digits",
    ACCOUNT.upper(): "16 lower-case hex digits",
    "0123456789abcdeg": "16 lower-case hex digits",
    " 123456789abcdef": "16 lower-case hex digits",
    ACCOUNT + "\n": "16 lower-case hex digits",
    "\uff10123456789abcdef": "16 lower-case hex digits",
    "0x23456789abcdef": "16 lower-case hex digits",
    TRANSACTION: "16 lower-case hex digits",
}
TRANSACTION_ID_FAULTS = {
    "": "is required",
    ACCOUNT: "32 lower-case hex digits",
    TRANSACTION.upper(): "32 lower-case hex digits",
    TRANSACTION + "0": "32 lower-case hex digits",
    TRANSACTION[:-1] + "-": "32 lower-case hex digits",
}
REQUEST_ID_FAULTS = {
    "r" * 129: "at most 128 characters, has 129",
    "é" * 129: "at most 128 characters, has 129",
    "line\nbreak": "control characters",
    "nul\x00": "control characters",
    "c1 control \x85": "control characters",
}
CONSISTENCY_FAULTS = {3: "has no value 3", -1: "has no value -1"}
LEDGER_FAULTS = {
    "Main": "the first one a letter",
    "9books": "the first one a letter",
    "my books": "the first one a letter",
    "a" * 64: "at most 63",
}
LABEL_FAULTS = {
    "n" * 129: "at most 128 characters, has 129",
    "tab\there": "control characters",
    " name": "begin or end with a space",
    "name ": "begin or end with a space",
}
CODE_FAULTS = {
    "-1": "the first one a letter or digit",
    "a b": "at most 32 characters of",
    "1" * 33: "at most 32 characters of",
}
CURRENCY_FAULTS = {
    "usd": "3 to 12 characters of A-Z",
    "US": "3 to 12 characters of A-Z",
    "1USD": "the first one a letter",
    "A" * 13: "3 to 12 characters of A-Z",
}
DESCRIPTION_FAULTS = {
    "d" * 1_001: "at most 1,000 characters, has 1,001",
    "☕" * 1_001: "at most 1,000 characters, has 1,001",
    "d" * 100_000: "at most 1,000 characters, has 100,000",
}
ACTOR_FAULTS = {"a" * 129: "at most 128 characters", "a\nb": "control characters"}
TYPE_FAULTS = {9: "has no value 9", -1: "has no value -1"}
PAGE_SIZE_FAULTS = {-1: "between 0 and 1,000", 1_001: "between 0 and 1,000"}
CONTROL_FAULTS = {"r\x00": "control characters"}
KEY_FAULTS = {"k" * 65: "at most 64 characters", "k\n": "control characters"}
ACCOUNTS_TOKEN = encode_account_token(AccountCursor(1, 7), ledger_pb2.ListAccountsRequest())
LEDGERS_TOKEN = encode_ledger_token("books")
ENTRIES_TOKEN = ENTRIES.encode(ledger_pb2.ListEntriesRequest(account_id=ACCOUNT), EntryCursor(5))


def token_faults(
    tokens: PageTokens[CursorT], cursor: CursorT, request: ListRequest, *others: ListRequest
) -> dict[str, str]:
    """What is no token of the request's list: no token at all, or one of another list."""
    good = tokens.encode(request, cursor)
    foreign = ACCOUNTS_TOKEN if tokens is ENTRIES else ENTRIES_TOKEN
    texts = ["x", "0", "A" * 40, good + "=", good[:-1], good.swapcase(), foreign]
    return {
        **dict.fromkeys(texts, "is not a page token"),
        **{tokens.encode(other, cursor): "was made for another" for other in others},
    }

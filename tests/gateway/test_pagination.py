"""Page tokens: what is made can be read back, and nothing else can."""

import base64
import hashlib
import struct
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from ledger.v1 import ledger_pb2
from ledger_gateway.pagination import (
    ACCOUNT_EVENTS,
    ACCOUNT_TRANSACTIONS,
    ENTRIES,
    LEDGER_TRANSACTIONS,
    STATEMENT,
    AccountCursor,
    Cursor,
    EntryCursor,
    EventCursor,
    LedgerCursor,
    PageTokens,
    StatementCursor,
    decode_account_token,
    decode_ledger_token,
    encode_account_token,
    encode_ledger_token,
)

u64 = st.integers(0, 2**64 - 1)
positive = st.integers(1, 2**64 - 1)
times = st.integers(1, 2**63 - 1)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

# Every kind of list: its tokens, and its cursors.
KINDS: dict[str, tuple[PageTokens[Any], Any, Any]] = {
    "transactions": (
        ACCOUNT_TRANSACTIONS,
        st.builds(Cursor, positive, positive),
        ledger_pb2.ListTransactionsRequest(account_id="a", status=1, metadata_key="k"),
    ),
    "ledger": (
        LEDGER_TRANSACTIONS,
        st.builds(LedgerCursor, times, st.integers(0, 2**16 - 1), u64),
        ledger_pb2.ListTransactionsRequest(ledger="books", external_reference="r"),
    ),
    "entries": (
        ENTRIES,
        st.builds(EntryCursor, positive),
        ledger_pb2.ListEntriesRequest(account_id="a", oldest_first=True),
    ),
    "statement": (
        STATEMENT,
        st.builds(StatementCursor, positive, times, positive),
        ledger_pb2.GetStatementRequest(account_id="a"),
    ),
    "events": (
        ACCOUNT_EVENTS,
        st.builds(EventCursor, positive, st.integers(0, 2**16 - 1)),
        ledger_pb2.ListAccountEventsRequest(account_id="a"),
    ),
}
EXAMPLES: dict[str, Any] = {
    "transactions": Cursor(1, 2),
    "ledger": LedgerCursor(1, 0, 0),
    "entries": EntryCursor(1),
    "statement": StatementCursor(1, 2, 3),
    "events": EventCursor(1, 0),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def ask(request: Any, token: str) -> Any:
    """The request for the next page, which may have another size."""
    asked = type(request)()
    asked.CopyFrom(request)
    asked.page_token, asked.page_size, asked.consistency = token, 7, 2
    return asked


@kinds
@given(data=st.data())
def test_roundtrip(kind: str, data: st.DataObject) -> None:
    tokens, cursors, request = KINDS[kind]
    cursor = data.draw(cursors)
    token = tokens.encode(request, cursor)
    assert tokens.decode(ask(request, token)) == cursor
    assert len(token) <= 120


@kinds
def test_no_token_is_the_start(kind: str) -> None:
    tokens, _, request = KINDS[kind]
    assert tokens.decode(request) is None


@kinds
@given(data=st.data())
def test_one_changed_character_is_refused(kind: str, data: st.DataObject) -> None:
    tokens, cursors, request = KINDS[kind]
    token = tokens.encode(request, data.draw(cursors))
    index = data.draw(st.integers(0, len(token) - 1))
    changed = token[:index] + data.draw(st.sampled_from(ALPHABET)) + token[index + 1 :]
    if changed != token:
        with pytest.raises(ValueError, match="is not a page token"):
            tokens.decode(ask(request, changed))


@kinds
def test_a_token_holds_for_one_value_of_every_field(kind: str) -> None:
    """Fields that a request gets later are bound as well, unless they are named as free."""
    tokens, _, request = KINDS[kind]
    others = {
        field.name: {8: True, 9: "other", 14: 2, 11: Timestamp(seconds=9)}[field.type]
        for field in request.DESCRIPTOR.fields
        if field.name not in ("page_size", "page_token", "consistency")
    }
    if request.DESCRIPTOR.name == "ListEntriesRequest":
        others["oldest_first"] = False
    for field, value in others.items():
        other = type(request)()
        other.CopyFrom(request)
        if isinstance(value, Timestamp):
            getattr(other, field).CopyFrom(value)
        else:
            setattr(other, field, value)
        token = tokens.encode(request, EXAMPLES[kind])
        with pytest.raises(ValueError, match="was made for another"):
            tokens.decode(ask(other, token))


@kinds
@given(text=st.text(min_size=1))
def test_any_other_text_is_refused(kind: str, text: str) -> None:
    tokens, _, request = KINDS[kind]
    with pytest.raises(ValueError, match="is not a page token"):
        tokens.decode(ask(request, text))


@kinds
def test_tokens_of_another_version_are_told_apart(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, _, request = KINDS[kind]
    monkeypatch.setattr("ledger_gateway.pagination._VERSION", 1)
    token = tokens.encode(request, EXAMPLES[kind])
    monkeypatch.undo()
    with pytest.raises(ValueError, match="another version"):
        tokens.decode(ask(request, token))


def test_tokens_from_before_filters_are_told_apart() -> None:
    """The first version had no digest of the filters: another size, but a version as well."""
    body = struct.pack(">BQQQ", 1, 5, 6, 7)
    checksum = hashlib.blake2b(body, digest_size=5, person=b"page token").digest()
    token = base64.urlsafe_b64encode(body + checksum).decode().rstrip("=")
    request = ledger_pb2.ListTransactionsRequest(page_token=token)
    with pytest.raises(ValueError, match="another version"):
        ACCOUNT_TRANSACTIONS.decode(request)


@pytest.mark.parametrize(
    ("kind", "cursor"),
    [
        ("transactions", Cursor(1, 0)),
        ("transactions", Cursor(0, 1)),
        ("ledger", LedgerCursor(0, 1, 1)),
        ("ledger", LedgerCursor(-1, 1, 1)),
        ("entries", EntryCursor(0)),
        ("statement", StatementCursor(0, 1, 1)),
        ("statement", StatementCursor(1, 0, 1)),
        ("statement", StatementCursor(1, 1, 0)),
        ("events", EventCursor(0, 1)),
    ],
)
def test_half_a_start_is_refused(kind: str, cursor: Any) -> None:
    tokens, _, request = KINDS[kind]
    with pytest.raises(ValueError, match="is not a page token"):
        tokens.decode(ask(request, tokens.encode(request, cursor)))


accounts = st.builds(AccountCursor, st.integers(0, 2**32 - 1), st.integers(-1, 2**63 - 1))
requests = st.builds(
    ledger_pb2.ListAccountsRequest,
    ledger=st.sampled_from(["", "main", "books"]),
    code_prefix=st.sampled_from(["", "1", "10"]),
    type=st.integers(0, 5),
    state=st.integers(0, 3),
    metadata_key=st.sampled_from(["", "a"]),
)


@given(accounts, requests, requests)
def test_account_tokens_are_for_their_filters(
    cursor: AccountCursor,
    request: ledger_pb2.ListAccountsRequest,
    other: ledger_pb2.ListAccountsRequest,
) -> None:
    token = encode_account_token(cursor, request)
    request.page_token, request.page_size = token, 7
    assert decode_account_token(token, request) == cursor
    if other != ledger_pb2.ListAccountsRequest(
        ledger=request.ledger,
        code_prefix=request.code_prefix,
        type=request.type,
        state=request.state,
        metadata_key=request.metadata_key,
    ):
        with pytest.raises(ValueError, match="other filters"):
            decode_account_token(token, other)


@given(st.from_regex(r"[a-z][a-z0-9_-]{0,62}", fullmatch=True))
def test_ledger_tokens(name: str) -> None:
    token = encode_ledger_token(name)
    assert decode_ledger_token(token) == name
    assert len(token) <= 120


@given(accounts, st.text(alphabet=ALPHABET, min_size=1, max_size=60))
def test_tokens_of_one_list_are_not_for_another(account: AccountCursor, text: str) -> None:
    request = ledger_pb2.ListAccountsRequest()
    account_token = encode_account_token(account, request)
    ledger_token = encode_ledger_token("books")
    made = {kind: KINDS[kind][0].encode(KINDS[kind][2], EXAMPLES[kind]) for kind in KINDS}
    for token in (*made.values(), ledger_token, text):
        with pytest.raises(ValueError, match="is not a page token"):
            decode_account_token(token, request)
    for token in (*made.values(), account_token, text):
        with pytest.raises(ValueError, match="is not a page token"):
            decode_ledger_token(token)
    for kind, (tokens, _, listed) in KINDS.items():
        others = [token for other, token in made.items() if other != kind]
        for token in (*others, account_token, ledger_token):
            with pytest.raises(ValueError, match="is not a page token"):
                tokens.decode(ask(listed, token))

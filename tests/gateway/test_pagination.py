"""Page tokens: what is made can be read back, and nothing else can."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.v1 import ledger_pb2
from ledger_gateway.pagination import (
    START,
    AccountCursor,
    Cursor,
    decode_account_token,
    decode_ledger_token,
    decode_page_token,
    encode_account_token,
    encode_ledger_token,
    encode_page_token,
)

u64 = st.integers(0, 2**64 - 1)
positive = st.integers(1, 2**64 - 1)
cursors = st.builds(Cursor, positive, positive)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@given(u64, cursors)
def test_roundtrip(account_id: int, cursor: Cursor) -> None:
    token = encode_page_token(account_id, cursor)
    assert decode_page_token(token, account_id) == cursor
    assert decode_page_token(token, None) == cursor


@given(u64)
def test_no_token_is_the_start(account_id: int) -> None:
    assert encode_page_token(account_id, START) == ""
    assert decode_page_token("", account_id) == START


@given(u64, cursors, st.integers(0, 39), st.sampled_from(ALPHABET))
def test_one_changed_character_is_refused(
    account_id: int, cursor: Cursor, index: int, char: str
) -> None:
    token = encode_page_token(account_id, cursor)
    changed = token[:index] + char + token[index + 1 :]
    if changed != token:
        with pytest.raises(ValueError, match="is not a page token"):
            decode_page_token(changed, account_id)


@given(u64, u64, cursors)
def test_another_account_is_refused(account_id: int, other: int, cursor: Cursor) -> None:
    if account_id != other:
        with pytest.raises(ValueError, match="was made for another account"):
            decode_page_token(encode_page_token(other, cursor), account_id)


@given(st.text(min_size=1))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a page token"):
        decode_page_token(text, None)


def test_tokens_of_another_version_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledger_gateway.pagination._VERSION", 2)
    token = encode_page_token(1, Cursor(2, 3))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="another version"):
        decode_page_token(token, 1)


@pytest.mark.parametrize("cursor", [Cursor(1, 0), Cursor(0, 1)])
def test_half_a_start_is_refused(cursor: Cursor) -> None:
    with pytest.raises(ValueError, match="is not a page token"):
        decode_page_token(encode_page_token(1, cursor), 1)


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


@given(accounts, cursors, u64, st.text(alphabet=ALPHABET, max_size=60))
def test_tokens_of_one_list_are_not_for_another(
    account: AccountCursor, cursor: Cursor, account_id: int, text: str
) -> None:
    request = ledger_pb2.ListAccountsRequest()
    account_token = encode_account_token(account, request)
    transaction_token = encode_page_token(account_id, cursor)
    ledger_token = encode_ledger_token("books")
    for token in (transaction_token, ledger_token, text):
        if token:
            with pytest.raises(ValueError, match="is not a page token"):
                decode_account_token(token, request)
    for token in (account_token, transaction_token, text):
        if token:
            with pytest.raises(ValueError, match="is not a page token"):
                decode_ledger_token(token)
    for token in (account_token, ledger_token):
        with pytest.raises(ValueError, match="is not a page token"):
            decode_page_token(token, None)

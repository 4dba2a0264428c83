"""What is made for many calls at once is what would be made for each."""

import uuid

from hypothesis import example, given
from hypothesis import strategies as st

from ledger.v1 import ledger_pb2
from ledger_client._items import Item, items
from ledger_client._keys import key_texts, new_keys
from ledger_client._placed import Place, moment, number_texts
from ledger_core.ids import format_transaction_id

U64 = st.integers(0, 2**64 - 1)
TEXTS = st.sampled_from(["", "USD", "é", "x" * 127, "x" * 20_000])


@given(st.integers(0, 40))
def test_request_ids_are_uuids_of_version_7(count: int) -> None:
    keys = [new_keys(count), new_keys(count)]
    ids = [uuid.UUID(text.decode()) for some in keys for text in key_texts(some)]
    assert b"".join(one.bytes for one in ids) == b"".join(keys)
    assert len(set(ids)) == 2 * count
    assert {(one.version, one.variant) for one in ids} <= {(7, uuid.RFC_4122)}


@given(U64, U64, st.integers(1, 2**48), st.integers(1, 2), TEXTS, TEXTS, st.integers(0, 2**40))
def test_a_transaction_has_the_fields_it_was_put_together_from(
    account: int, number: int, amount: int, side: int, text: str, actor: str, time_us: int
) -> None:
    book = ledger_pb2.TransferBook(ledger=text, currency=text, currency_exponent=number % 2**32)
    (request_id,) = key_texts(new_keys(1))
    sides = [(account, side), (number, 3 - side)]
    entries = [
        ledger_pb2.Entry(
            account_id=f"{one:016x}", direction=ledger_pb2.Direction.ValueType(way), amount=amount
        )
        for one, way in sides
    ]
    made = Place(book, actor, 2, time_us).transaction(
        f"{account:016x}".encode(),
        number_texts([number])[0],
        request_id,
        (entries[0].SerializeToString(), entries[1].SerializeToString()),
    )
    for entry in entries:
        entry.currency, entry.currency_exponent = text, number % 2**32
    assert made == ledger_pb2.Transaction(
        id=format_transaction_id(account, number),
        status=ledger_pb2.TRANSACTION_STATUS_SETTLED,
        create_time=moment(time_us),
        update_time=moment(time_us),
        effective_time=moment(time_us),
        account_id=f"{account:016x}",
        ledger=text,
        currency=text,
        currency_exponent=number % 2**32,
        entries=entries,
        request_id=request_id.decode(),
        actor=actor,
    )


ACCOUNTS = ["0123456789abcdef", "f" * 16]
CURRENCIES = ["", "USD", "ABCDEFGHIJKL"]
NO_ACCOUNTS = ["0" * 16, "F" * 16, "f" * 17, ""]
NO_CURRENCIES = ["usd", "US", "ABCDEFGHIJKLM"]
CONDITIONS = ("expected_version", "minimum_balance", "maximum_balance")


def rarely(usual: list[object], rare: list[object]) -> st.SearchStrategy[object]:
    return st.sampled_from(usual * 12 + rare)


ENTRIES = st.builds(
    ledger_pb2.Entry,
    account_id=rarely([*ACCOUNTS], [*NO_ACCOUNTS]),
    direction=rarely([1, 2], [0, 3]),
    amount=rarely([1, 128, 2**48], [0, -1, 2**48 + 1]),
    currency=rarely([*CURRENCIES], [*NO_CURRENCIES]),
    **{condition: rarely([None], [0, 1, 50, 65, 95]) for condition in CONDITIONS},
)


def entry(account_id: str, direction: int, **more: object) -> ledger_pb2.Entry:
    return ledger_pb2.Entry(
        account_id=account_id, direction=direction, amount=100, currency="USD", **more
    )


# Encoded, these conditions look like more letters of the currency.
@example(
    [entry(ACCOUNTS[0], 1, minimum_balance=50), entry(ACCOUNTS[1], 2, minimum_balance=50)], False
)
@example(
    [entry(ACCOUNTS[0], 1, expected_version=65), entry(ACCOUNTS[1], 2, expected_version=65)], False
)
@given(st.lists(ENTRIES, min_size=1, max_size=3), st.booleans())
def test_two_plain_entries_are_a_transfer_and_no_others(
    entries: list[ledger_pb2.Entry], alike: bool
) -> None:
    if alike:
        for other in entries[1:]:
            account_id, direction = other.account_id, other.direction
            other.CopyFrom(entries[0])
            other.account_id, other.direction = account_id, direction
    (made,) = items([{"entries": entries, "settled": True}])
    assert isinstance(made, Item)
    assert (made.request is None) == is_transfer(entries)
    assert list(made.single().entries) == entries


def is_transfer(entries: list[ledger_pb2.Entry]) -> bool:
    """Whether entries move one amount from an account to another, without conditions."""
    return (
        sorted(one.direction for one in entries) == [1, 2]
        and entries[0].account_id != entries[1].account_id
        and len({(one.amount, one.currency) for one in entries}) == 1
        and all(
            one.account_id in ACCOUNTS and 1 <= one.amount <= 2**48 and one.currency in CURRENCIES
            for one in entries
        )
        and not any(one.HasField(name) for one in entries for name in CONDITIONS)  # type: ignore[arg-type]
    )

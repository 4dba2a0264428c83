"""The life of an account: who opened it, who changed what, and what was refused.

Events are part of the shard's state, like entries, and are never changed. A repeat of a request
adds nothing.
"""

import msgspec

from ledger_core.accounts import AccountEventKind, AccountState
from ledger_core.commands import (
    AccountChange,
    CloseAccount,
    CreateAccount,
    FreezeAccount,
    Limits,
    UnfreezeAccount,
    UpdateAccount,
)
from ledger_core.ledgers import Currency
from ledger_core.refusals import refusal_message
from ledger_core.results import Failure
from ledger_node.books import Books, InvariantError
from ledger_node.records import AccountEventRecord, AccountRecord, BalanceRow, TransactionRecord

Changes = dict[str, tuple[str, str]]

_CHANGE_KINDS: dict[type[AccountChange], AccountEventKind] = {
    UpdateAccount: AccountEventKind.UPDATED,
    FreezeAccount: AccountEventKind.FROZEN,
    UnfreezeAccount: AccountEventKind.UNFROZEN,
    CloseAccount: AccountEventKind.CLOSED,
}
_STATES: dict[type[AccountChange], AccountState] = {
    FreezeAccount: AccountState.FROZEN,
    UnfreezeAccount: AccountState.OPEN,
    CloseAccount: AccountState.CLOSED,
}


def note_opened(books: Books, slot: int, command: CreateAccount) -> None:
    """Note that an account was opened."""
    books.add_event(slot, _event(books, command, AccountEventKind.OPENED))


def note_change(books: Books, slot: int, command: AccountChange, changes: Changes) -> None:
    """Note that an account was changed."""
    event = _event(books, command, _CHANGE_KINDS[type(command)])
    books.add_event(slot, msgspec.structs.replace(event, changes=changes))


def note_refused_change(
    books: Books, command: AccountChange | CreateAccount, failure: Failure
) -> None:
    """Note that someone tried to change an account, or to open it again, in vain."""
    slot = books.find_slot(command.account_id)
    if slot is None:
        return
    changes: Changes = {}
    if not isinstance(command, CreateAccount):
        changes = changes_of(command, books.balance(slot), books.info(slot))
    event = _event(books, command, AccountEventKind.CHANGE_REFUSED)
    books.add_event(
        slot,
        msgspec.structs.replace(
            event, changes=changes, reason=failure.reason, message=failure.message
        ),
    )


def note_refused_transaction(books: Books, number: int, record: TransactionRecord) -> None:
    """Note, with the account that a transaction was refused for, that it was, if it is ours."""
    refused = record.refusal
    if refused is None:
        raise InvariantError(f"transaction {number} is refused for no reason")
    entry = record.entries[refused.entry_index]
    slot = books.find_slot(entry.account_id) if entry.shard_id is None else None
    if slot is None:
        return
    book, first = books.meta.books[record.book], record.states[0]
    currency = Currency(book.currency, book.currency_exponent)
    books.add_event(
        slot,
        AccountEventRecord(
            AccountEventKind.TRANSACTION_REFUSED,
            books.meta.time_us,
            first.request_id,
            first.actor,
            first.correlation_id,
            first.peer,
            reason=refused.reason,
            message=refusal_message(refused, entry.account_id, currency),
            transaction=number,
        ),
    )


def changes_of(command: AccountChange, balance: BalanceRow, record: AccountRecord) -> Changes:
    """Return what a command asks to be different: field to (before, after), as JSON."""
    if not isinstance(command, UpdateAccount):
        state = _STATES[type(command)]
        return {"state": (_json(balance.state.name), _json(state.name))}
    found: Changes = {}
    for field in ("name", "metadata", "limits"):
        before, after = getattr(record, field), getattr(command, field)
        if after is not None and after != before:
            found[field] = _json(before), _json(after)
    return found


def _json(value: object) -> str:
    if isinstance(value, Limits):
        # Amounts are text: JSON numbers lose digits above 2**53.
        value = {
            "minimum": None if value.minimum is None else str(value.minimum),
            "maximum": None if value.maximum is None else str(value.maximum),
        }
    return msgspec.json.encode(value, order="sorted").decode()


def _event(
    books: Books, command: AccountChange | CreateAccount, kind: AccountEventKind
) -> AccountEventRecord:
    return AccountEventRecord(
        kind,
        books.meta.time_us,
        command.request_id,
        command.actor,
        command.source.correlation_id,
        command.source.peer,
    )

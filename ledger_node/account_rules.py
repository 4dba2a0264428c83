"""The rules of accounts: how they open, change, freeze and close, and who has which name."""

import msgspec

from ledger_core.accounts import AccountState
from ledger_core.commands import (
    NO_OVERDRAFT,
    AccountChange,
    ClaimName,
    CloseAccount,
    CreateAccount,
    FreezeAccount,
    Limits,
    ReleaseName,
    UnfreezeAccount,
    UpdateAccount,
)
from ledger_core.errors import Reason
from ledger_core.ids import format_account_id, is_system_account_id
from ledger_core.money import format_amount
from ledger_core.results import Failure, NameView
from ledger_node.account_events import (
    changes_of,
    note_change,
    note_opened,
    note_refused_change,
)
from ledger_node.books import Books
from ledger_node.records import AccountRecord, BalanceRow, NameRecord
from ledger_node.views import account_failure, account_not_found


def create_account(books: Books, command: CreateAccount) -> int | Failure:
    """Open an account and return its slot."""
    account_id = command.account_id
    if books.find_slot(account_id) is not None or is_system_account_id(
        books.meta.lower_bound, account_id
    ):
        failure = _account_id_taken(account_id)
        note_refused_change(books, command, failure)
        return failure
    balance = BalanceRow(
        account_id=account_id,
        book=books.book(command.ledger, command.currency),
        type=command.type,
    )
    _set_limits(balance, command.limits)
    record = AccountRecord(
        account_id=account_id,
        request_id=command.request_id,
        create_time_us=books.meta.time_us,
        code=command.code,
        name=command.name,
        limits=command.limits,
        metadata=command.metadata,
    )
    slot = books.add_account(record, balance)
    note_opened(books, slot, command)
    return slot


def _account_id_taken(account_id: int) -> Failure:
    text = format_account_id(account_id)
    return Failure(
        Reason.ACCOUNT_ID_TAKEN,
        f"the account id {text}, which follows from the request id, belongs to another "
        f"account; use another request id",
        field="request_id",
        metadata={"account_id": text},
    )


def change_account(books: Books, command: AccountChange) -> int | Failure:
    """Change an account, if its state allows, and return its slot; note it, or that it failed."""
    slot = books.find_slot(command.account_id)
    if slot is None:
        return account_not_found(command.account_id)
    changes = changes_of(command, books.balance(slot), books.info(slot))
    if failure := _change(books, slot, command):
        note_refused_change(books, command, failure)
        return failure
    note_change(books, slot, command, changes)
    return slot


def _change(books: Books, slot: int, command: AccountChange) -> Failure | None:
    account_id = command.account_id
    if is_system_account_id(books.meta.lower_bound, account_id):
        return account_failure(
            Reason.SYSTEM_ACCOUNT, account_id, "belongs to the ledger itself and never changes"
        )
    balance, record = books.balance(slot), books.info(slot)
    if balance.state is AccountState.CLOSED:
        return account_failure(Reason.ACCOUNT_CLOSED, account_id, "is closed, for good")
    changes: dict[str, object] = {}
    match command:
        case UpdateAccount():
            updated = _updated(record, command)
            if isinstance(updated, Failure):
                return updated
            changes = updated
            if command.limits is not None:
                _set_limits(balance, command.limits)
        case FreezeAccount():
            if balance.state is not AccountState.OPEN:
                return account_failure(Reason.ACCOUNT_NOT_OPEN, account_id, "is frozen already")
            balance.state = AccountState.FROZEN
        case UnfreezeAccount():
            if balance.state is not AccountState.FROZEN:
                return account_failure(Reason.ACCOUNT_NOT_FROZEN, account_id, "is not frozen")
            balance.state = AccountState.OPEN
        case CloseAccount():
            if failure := _not_empty(books, balance):
                return failure
            balance.state = AccountState.CLOSED
    books.save_info(
        slot,
        msgspec.structs.replace(
            record, revision=record.revision + 1, update_time_us=books.meta.time_us, **changes
        ),
    )
    return None


def _updated(record: AccountRecord, command: UpdateAccount) -> dict[str, object] | Failure:
    """Return the fields of the record that change."""
    if command.revision != record.revision:
        return Failure(
            Reason.REVISION_MISMATCH,
            f"account {format_account_id(record.account_id)} is at revision {record.revision}, "
            f"not {command.revision}: read it again, and decide again",
            field="revision",
            metadata={"revision": str(record.revision)},
        )
    changes = {
        field: value
        for field in ("name", "metadata", "limits")
        if (value := getattr(command, field)) is not None
    }
    if command.name not in (None, record.name):
        changes["previous_name"] = record.name
    return changes


def claim_name(books: Books, command: ClaimName) -> NameView | Failure:
    """Give a name to an account, if no other has it. Claiming it again changes nothing."""
    owner = books.tables.find_name(command.ledger, command.name)
    if owner is not None and owner.account_id != command.account_id:
        text = format_account_id(owner.account_id)
        return Failure(
            Reason.NAME_TAKEN,
            f"the name {command.name!r} in ledger {command.ledger!r} belongs to account {text}, "
            f"claimed by request {owner.request_id!r}",
            field="name",
            metadata={"account_id": text, "request_id": owner.request_id},
        )
    if owner is None:
        record = NameRecord(command.account_id, command.request_id)
        books.tables.save_name(command.ledger, command.name, record)
    return NameView(command.ledger, command.name, command.account_id)


def release_name(books: Books, command: ReleaseName) -> NameView:
    """Take a name from an account, if it has it."""
    owner = books.tables.find_name(command.ledger, command.name)
    if owner is not None and owner.account_id == command.account_id:
        books.tables.drop_name(command.ledger, command.name)
        owner = None
    return NameView(command.ledger, command.name, owner.account_id if owner else None)


def _set_limits(balance: BalanceRow, limits: Limits) -> None:
    """Note in the hot row whether the account's record has to be read for its limits."""
    balance.floored = limits.minimum is not None
    balance.limited = limits.maximum is not None or limits.minimum not in (
        None,
        NO_OVERDRAFT.minimum,
    )


def _not_empty(books: Books, balance: BalanceRow) -> Failure | None:
    settled = balance.settled_balance(balance.type.normal_side)
    if settled == 0 and balance.pending_transactions == 0:
        return None
    book = books.meta.books[balance.book]
    return account_failure(
        Reason.ACCOUNT_NOT_EMPTY,
        balance.account_id,
        f"has {format_amount(settled, book.currency, book.currency_exponent)} and "
        f"{balance.pending_transactions} pending transactions; it can be closed at zero, with "
        f"nothing pending",
    )

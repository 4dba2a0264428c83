"""The journal of a shard, as it is shown: all of it, or what belongs to one ledger.

Of items of other ledgers only the digests are shown: the hash chain can be checked all the same.
"""

from collections.abc import Callable

import msgspec

from ledger_core.accounts import TransactionStatus
from ledger_core.commands import (
    ApplyDecision,
    ApplyTransfers,
    CancelTransaction,
    ClaimName,
    CloseAccount,
    Command,
    CommitTransfers,
    CreateAccount,
    CreateLedger,
    CreateTransaction,
    CreateTransfers,
    Decide,
    Delivered,
    DeliveredTransfers,
    ExtendLedger,
    FreezeAccount,
    Prepare,
    PrepareTransfers,
    ReleaseName,
    Resolve,
    ReverseTransaction,
    SettleTransaction,
    UnfreezeAccount,
    UpdateAccount,
    decode_command,
)
from ledger_core.journal import item_digest
from ledger_core.queries import ListJournal
from ledger_core.results import JournalItemView, JournalPage, JournalView
from ledger_core.transfers import TransferForm, first_accounts
from ledger_node.commit_rules import participant_key
from ledger_node.records import ENTRY_ROW_BYTES, JournalItem, JournalRecord, ShardMeta
from ledger_node.store_tables import ShardTables

# A page ends early when what it has read, hidden or not, is so large. It has one entry at least.
JOURNAL_BYTES_MAX = 2_000_000

# What an item costs beyond its bytes.
_ITEM_BYTES = 100

_decode_expired = msgspec.msgpack.Decoder(tuple[int, int]).decode


def list_journal(tables: ShardTables, query: ListJournal) -> JournalPage:
    """Show a page of the journal."""
    meta = tables.meta()
    last_number = meta.next_journal - 1
    shown: list[JournalView] = []
    left = JOURNAL_BYTES_MAX
    shows = _Ownership(tables, meta, query.ledger).shows
    if query.after_number < last_number:
        for number, record in tables.journal_after(query.after_number):
            left -= _read_bytes(record)
            if shown and left < 0:
                break
            shown.append(_entry(tables, number, record, shows))
            if len(shown) == query.page_size:
                break
    return JournalPage(shown, last_number, meta.replayed)


def _read_bytes(record: JournalRecord) -> int:
    return sum(
        len(item.command) + len(item.outcome) + item.entries * ENTRY_ROW_BYTES + _ITEM_BYTES
        for item in record.items
    )


def _entry(
    tables: ShardTables, number: int, record: JournalRecord, shows: Callable[[JournalItem], bool]
) -> JournalView:
    rows, offset = b"", 0
    if any(item.entries for item in record.items):
        rows = tables.entry_bytes(record.first_position)
    items = []
    for item in record.items:
        end = offset + item.entries * ENTRY_ROW_BYTES
        written, offset = rows[offset:end], end
        digest = item_digest(item.command, item.outcome, item.number, written)
        if shows(item):
            items.append(
                JournalItemView(digest, False, item.command, item.outcome, item.number, written)
            )
        else:
            items.append(JournalItemView(digest, True))
    return JournalView(number, record.index, record.time_us, items, record.link)


class _Ownership:
    """To which ledger items of the journal belong."""

    def __init__(self, tables: ShardTables, meta: ShardMeta, ledger: str) -> None:
        self._tables = tables
        self._meta = meta
        self._ledger = ledger

    def shows(self, item: JournalItem) -> bool:
        """Whether an item is one of the ledger that was asked for."""
        if not self._ledger:
            return True
        if not item.command:
            return self._of_transaction(_decode_expired(item.outcome)[0]) == self._ledger
        command = decode_command(item.command)
        owner = self._of_command(command)
        if owner is None and isinstance(command, ApplyDecision):
            # A refusal that overtook its Prepare: nothing here tells of which ledger it is, and
            # whoever replays the journal needs it, so that the Prepare is refused there, too.
            return command.status in (
                TransactionStatus.REJECTED,
                TransactionStatus.INSUFFICIENT_FUNDS,
            )
        return owner == self._ledger

    def _of_command(self, command: Command) -> str | None:
        """Return the ledger of a command; None: it names what does not exist here."""
        match command:
            case (
                CreateAccount()
                | ClaimName()
                | ReleaseName()
                | PrepareTransfers()
                | CommitTransfers()
                | ApplyTransfers()
                | DeliveredTransfers()
            ):
                return command.ledger
            case CreateLedger() | ExtendLedger():
                return command.name
            case CreateTransaction():
                return command.ledger if command.entries else self._of_account(command.account_id)
            case CreateTransfers():
                # The whole block is of one ledger; in the one-account form its accounts tell.
                if min(command.forms) < TransferForm.IN:
                    return command.ledger
                homes = map(self._of_account, first_accounts(command).tolist())
                return next((ledger for ledger in homes if ledger), None)
            case Prepare():
                return command.transaction.ledger
            case Resolve():
                return command.prepared.transaction.ledger
            case SettleTransaction() | CancelTransaction() | ReverseTransaction():
                ours = self._of_transaction(command.number, command.account_id)
                return ours or self._of_account(command.account_id)
            case Decide() | Delivered():
                return self._of_transaction(command.number)
            case ApplyDecision():
                known = self._tables.find_request(participant_key(command.origin))
                return self._of_transaction(known.number) if known else None
            case UpdateAccount() | FreezeAccount() | UnfreezeAccount() | CloseAccount():
                return self._of_account(command.account_id)
            case _:
                return None

    def _of_account(self, account_id: int) -> str | None:
        slot = self._tables.find_slot(account_id)
        if slot is None:
            return None
        return self._meta.books[self._tables.balance(slot).book].ledger

    def _of_transaction(self, number: int, account_id: int | None = None) -> str | None:
        record = self._tables.find_transaction(number)
        if record is None or account_id not in (None, record.account_id):
            return None
        return self._meta.books[record.book].ledger

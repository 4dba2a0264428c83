"""Checks of what someone should look at: old holds, slow transfers, accounts not at zero.

Most findings of these are about the business, not about the store.
"""

from collections.abc import Generator, Iterator
from itertools import islice
from typing import Final

from ledger_core.accounts import AccountEventKind
from ledger_core.ids import format_account_id, is_system_account_id
from ledger_core.money import format_amount
from ledger_node.check_context import (
    DAMAGED,
    DAY_US,
    ROWS_PER_UNIT,
    SECOND_US,
    VERIFY_ADVICE,
    Context,
    Severity,
    account_info,
    accounts,
)
from ledger_node.records import AccountRecord, BalanceRow, ShardMeta, TransactionRecord
from ledger_node.store import ShardTables

OLD_HOLD_US: Final = 7 * DAY_US
SLOW_TRANSFER_US: Final = 30 * SECOND_US
OLD_HOLDING_US: Final = DAY_US

# How far back a holding account's history is read for the time since when it is not zero.
_STEPS_BACK_MAX: Final = 2_000
_HOLDING_WORDS: Final = ("suspense", "holding", "clearing", "unallocated")


def check_ageing_holds(context: Context) -> Iterator[None]:
    """No money is reserved for longer than 7 days. Only the home of a transaction tells."""
    after = 0
    while numbers := list(islice(context.tables.pending_after(after), ROWS_PER_UNIT)):
        for number in numbers:
            context.rows += 1
            try:
                record = context.tables.find_transaction(number)
            except DAMAGED as error:
                context.damaged(f"transaction {number}", error)
                continue
            if record is None:
                context.find(
                    Severity.ERROR,
                    f"transaction {number}",
                    "it is noted as pending, but is missing",
                    VERIFY_ADVICE,
                )
                continue
            since_us = record.states[0].time_us
            if context.now_us - since_us <= OLD_HOLD_US:
                return  # numbers are given in the order of time: all others are younger
            if record.home_shard_id is None:
                _find_old_hold(context, number, record)
        after = numbers[-1]
        yield


def _find_old_hold(context: Context, number: int, record: TransactionRecord) -> None:
    since_us = record.states[0].time_us
    book = context.tables.meta().books[record.book]
    amount = format_amount(record.entries[0].amount, book.currency, book.currency_exponent)
    expiry = "" if record.expire_time_us else ", and it never expires"
    context.find(
        Severity.WARNING,
        context.transaction_id(number, record),
        f"pending for {(context.now_us - since_us) // DAY_US} days: {amount} reserved{expiry}",
        "Settle or cancel it. Give transactions an expire_time, so that holds end by themselves.",
        since_us=since_us,
        ledger=book.ledger,
    )


def check_in_transit(context: Context) -> Iterator[None]:
    """No transaction across shards is on its way for longer than 30 s."""
    tables = context.tables
    undecided = tables.undecided_numbers()
    todo = [(number, "in flight") for number in tables.in_flight_numbers()]
    todo += [(number, "undecided") for number in undecided]
    context.restless = bool(todo)
    for first in range(0, len(todo), ROWS_PER_UNIT):
        for number, what in todo[first : first + ROWS_PER_UNIT]:
            context.rows += 1
            _check_transfer(context, number, what)
        yield


def _check_transfer(context: Context, number: int, what: str) -> None:
    tables = context.tables
    try:
        waits = (
            tables.find_in_flight(number) if what == "in flight" else tables.find_undecided(number)
        )
        record = tables.find_transaction(number)
    except DAMAGED as error:
        context.damaged(f"transaction {number}", error)
        return
    if waits is None or record is None:
        return
    since_us = record.states[-1].time_us
    waited_us = context.now_us - since_us
    if waited_us <= SLOW_TRANSFER_US:
        return
    if what == "in flight":
        peers = ", ".join(str(peer.shard_id) for peer in record.participants)
        whom = f"shard {context.shard_id} has still to hear from or to tell shards {peers}"
    else:
        whom = f"shard {context.shard_id} waits for the decision of shard {record.home_shard_id}"
    subject = context.transaction_id(number, record)
    if record.home_shard_id is not None and not record.home_number:
        # Until it learns the decision, a participant does not know the transaction's id.
        subject = f"transaction {number} of shard {context.shard_id}"
    context.find(
        Severity.WARNING,
        subject,
        f"{what} for {waited_us // SECOND_US} s: {whom}",
        "See with `ledger cluster status` whether these shards have leaders; it goes on by itself "
        "as soon as they can reach each other.",
        since_us=since_us,
        ledger=tables.meta().books[record.book].ledger,
    )


def check_holding_accounts(context: Context) -> Iterator[None]:
    """Accounts that only pass money on come back to zero within a day."""
    for unit in accounts(context):
        for slot, balance in unit:
            if not balance.settled_balance(balance.type.normal_side) or is_system_account_id(
                context.tables.meta().lower_bound, balance.account_id
            ):
                continue
            info = account_info(context, slot)
            if info is not None and is_holding_account(info):
                since_us = yield from _not_zero_since(context, balance)
                _find_holding(context, balance, info, since_us)
        yield


def _find_holding(
    context: Context, balance: BalanceRow, info: AccountRecord, since_us: int
) -> None:
    book = context.tables.meta().books[balance.book]
    settled = balance.settled_balance(balance.type.normal_side)
    amount = format_amount(settled, book.currency, book.currency_exponent)
    context.find(
        Severity.WARNING if context.now_us - since_us > OLD_HOLDING_US else Severity.INFO,
        format_account_id(balance.account_id),
        f"{info.name or 'an account'} (code {info.code or 'none'}) is to be at zero, but has "
        f"{amount}",
        "Find out with its statement whose money this is, and move it there.",
        since_us=since_us,
        ledger=book.ledger,
    )


def is_holding_account(info: AccountRecord) -> bool:
    """Whether an account says of itself that it only passes money on.

    By the metadata ``expected_balance=0``, or by the last word of its code.
    """
    if info.metadata.get("expected_balance") == "0":
        return True
    return info.code.lower().replace("-", ".").rpartition(".")[2] in _HOLDING_WORDS


def _not_zero_since(context: Context, balance: BalanceRow) -> Generator[None, None, int]:
    """Return since when an account is not at zero; a day or more back, or long ago, will do."""
    position, since_us, steps = balance.last_position, context.now_us, 0
    while position and steps < _STEPS_BACK_MAX:
        for _, row in islice(context.tables.entries_back(position), ROWS_PER_UNIT):
            if row.after.settled_balance(balance.type.normal_side) == 0:
                return since_us
            since_us, position = row.time_us, row.previous
            if context.now_us - since_us > OLD_HOLDING_US:
                return since_us
        steps += ROWS_PER_UNIT
        yield
    return since_us


def check_negative_balances(context: Context) -> Iterator[None]:
    """No account is below its minimum; those without one are told of when they are below zero."""
    for unit in accounts(context):
        meta = context.tables.meta()
        for slot, balance in unit:
            if is_system_account_id(meta.lower_bound, balance.account_id):
                continue
            if not balance.floored:
                _find_below_zero(context, balance, meta)
            elif balance.limited or balance.available_balance(balance.type.normal_side) < 0:
                _check_minimum(context, slot, balance, meta)
        yield


def _find_below_zero(context: Context, balance: BalanceRow, meta: ShardMeta) -> None:
    settled = balance.settled_balance(balance.type.normal_side)
    if settled >= 0:
        return
    book = meta.books[balance.book]
    context.find(
        Severity.INFO,
        format_account_id(balance.account_id),
        f"has {format_amount(settled, book.currency, book.currency_exponent)}; it has no minimum",
        "If that must not be, give it one: `ledger accounts update --minimum`.",
        ledger=book.ledger,
    )


def _check_minimum(context: Context, slot: int, balance: BalanceRow, meta: ShardMeta) -> None:
    info = account_info(context, slot)
    available = balance.available_balance(balance.type.normal_side)
    minimum = info.limits.minimum if info is not None else None
    # What an account has below a minimum above zero may have been paid in by and by.
    if info is None or minimum is None or available >= min(minimum, 0):
        return
    book = meta.books[balance.book]
    raised = _limits_were_changed(context.tables, slot, info)
    context.find(
        Severity.WARNING if raised else Severity.ERROR,
        format_account_id(balance.account_id),
        f"has {format_amount(available, book.currency, book.currency_exponent)} available, below "
        f"its minimum of {format_amount(minimum, book.currency, book.currency_exponent)}"
        + (", which was changed" if raised else ""),
        "Pay in what is missing, or lower the minimum." if raised else VERIFY_ADVICE,
        ledger=book.ledger,
    )


def _limits_were_changed(tables: ShardTables, slot: int, info: AccountRecord) -> bool:
    """Whether the limits of an account were ever changed; of long lives the newest part tells."""
    if info.revision == 0:
        return False
    events = islice(tables.account_events_before(slot, 2**64 - 1, 0), 10 * ROWS_PER_UNIT)
    seen = 0
    for _number, _ordinal, event in events:
        seen += 1
        if event.kind is AccountEventKind.UPDATED and "limits" in event.changes:
            return True
    return seen == 10 * ROWS_PER_UNIT

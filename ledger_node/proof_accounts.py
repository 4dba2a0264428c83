"""Accounts and their sums: what the rows of accounts, groups and totals must be.

The first pass reads who there is. The last one, when every entry was read, holds the rows against
what the entries and the transactions say.
"""

from collections import Counter, defaultdict

import msgspec

from ledger_core.accounts import AccountEventKind, AccountState, GroupRole
from ledger_core.ids import is_system_account_id
from ledger_node.proof import NO_GROUP, UNREADABLE, Proof, counters_of, show
from ledger_node.records import (
    AccountEventRecord,
    AccountRecord,
    BalanceRow,
    GroupRecord,
    TotalsRow,
)
from ledger_node.store_files import StoreCorruptError
from ledger_node.store_scan import key_numbers, row_name

_decode_account = msgspec.msgpack.Decoder(AccountRecord).decode
_decode_group = msgspec.msgpack.Decoder(GroupRecord).decode
_decode_event = msgspec.msgpack.Decoder(AccountEventRecord).decode

_CHANGES = (
    AccountEventKind.UPDATED,
    AccountEventKind.FROZEN,
    AccountEventKind.UNFROZEN,
    AccountEventKind.CLOSED,
)


def read_accounts(proof: Proof) -> None:
    """Read all accounts, and hold the rows of each against each other."""
    accounts, meta = proof.accounts, proof.meta
    proof.groups = _read_groups(proof)
    for key, balance in proof.rows("balances", lambda _key, row: BalanceRow.unpack(row)):
        (slot,) = key_numbers("balances", key)
        if not len(accounts.ids) <= slot < meta.next_slot:
            proof.fault("balances", row_name("balances", key), "no account has this slot")
            continue
        while len(accounts.ids) < slot:
            _add_unreadable(proof, len(accounts.ids))
        info = find_account_info(proof, slot)
        if info is not None and info.account_id != balance.account_id:
            proof.fault(
                "balances",
                row_name("balances", key),
                f"is of {proof.account(balance.account_id)}, but table account_info says "
                f"{proof.account(info.account_id)}",
            )
        what = _group_fault(proof, balance, info)
        if what:
            name = proof.account(balance.account_id)
            proof.fault("balances", f"{row_name('balances', key)}, {name}", what)
        group = NO_GROUP if what else balance.group
        accounts.add(balance.account_id, group, info.create_time_us if info else 0)
    while len(accounts.ids) < meta.next_slot:
        _add_unreadable(proof, len(accounts.ids))
    _read_slots(proof)


def _add_unreadable(proof: Proof, slot: int) -> None:
    """Take in an account whose balance row is missing or cannot be read, by its other row."""
    info = find_account_info(proof, slot)
    if not proof.shard.has("balances", slot.to_bytes(4)):
        name = f" of {proof.account(info.account_id)}" if info else ""
        proof.fault("balances", f"slot {slot}", f"the row{name} is missing")
    proof.accounts.add(info.account_id if info else 0, NO_GROUP, info.create_time_us if info else 0)


def _read_slots(proof: Proof) -> None:
    accounts = proof.accounts
    known = 0
    for key, slot in proof.rows("accounts", lambda _key, row: int.from_bytes(row)):
        known += 1
        if accounts.slots.get(int.from_bytes(key)) != slot:
            proof.fault("accounts", row_name("accounts", key), f"its slot is not {slot}")
    if known == len(accounts.ids) == proof.shard.count("account_info"):
        return
    for account_id, slot in accounts.slots.items():
        if not proof.shard.has("accounts", account_id.to_bytes(8)):
            proof.fault("accounts", proof.account(account_id), "the row is missing")
        if not proof.shard.has("account_info", slot.to_bytes(4)):
            proof.fault("account_info", f"slot {slot}", "the row is missing")


def find_account_info(proof: Proof, slot: int) -> AccountRecord | None:
    """Return a row of account_info; None where the pass over that table finds a fault."""
    try:
        return proof.tables.account_info(slot)
    except UNREADABLE:
        return None


def prove_accounts(proof: Proof, newest_marks: dict[int, int]) -> None:
    """Hold every account against its entries, and all of them against the sums of their groups.

    ``newest_marks``: the block of the newest mark of each group.
    """
    opened, changes, limits_changed = _read_events(proof)
    sums: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    for key, balance in proof.rows("balances", lambda _key, row: BalanceRow.unpack(row)):
        (slot,) = key_numbers("balances", key)
        if slot >= len(proof.accounts.ids):
            continue
        _add(sums[balance.group], balance)
        what = _differences(proof, slot, balance)
        info = find_account_info(proof, slot)
        if info is not None:
            what += _limit_faults(balance, info, changed=slot in limits_changed)
        if what:
            proof.fault("balances", f"slot {slot}, {proof.accounts.name(slot)}", "; ".join(what))
    for key, info in proof.rows("account_info", lambda _key, row: _decode_account(row)):
        (slot,) = key_numbers("account_info", key)
        if slot >= len(proof.accounts.ids):
            continue
        row = f"slot {slot}, {proof.accounts.name(slot)}"
        if info.revision != changes[slot]:
            proof.fault(
                "account_info",
                row,
                f"is at revision {info.revision}, but table account_events has {changes[slot]} "
                f"changes",
            )
        if (opened[slot] == 1) != bool(info.request_id):
            proof.fault("account_events", row, f"was opened {opened[slot]} times")
    _prove_totals(proof, sums, newest_marks)
    _prove_balance(proof, sums)


def _add(sums: list[int], balance: BalanceRow) -> None:
    for place, value in enumerate((*counters_of(balance), 1)):
        sums[place] += value


def _differences(proof: Proof, slot: int, balance: BalanceRow) -> list[str]:
    """Say in what a balance row differs from the entries, and from what is reserved."""
    accounts = proof.accounts
    what = []
    if counters_of(balance) != accounts.counters(slot):
        what.append(
            f"has {show(counters_of(balance))}, but its entries make "
            f"{show(accounts.counters(slot))}"
        )
    ours = (balance.sequence, balance.last_position)
    theirs = (accounts.sequences[slot], accounts.positions[slot])
    if ours != theirs:
        what.append(
            f"says that its last entry is number {ours[0]} at position {ours[1]}, but that is "
            f"number {theirs[0]} at position {theirs[1]}"
        )
    held, debits, credits_ = accounts.holds.get(slot, (0, 0, 0))
    if balance.pending_transactions != held:
        what.append(
            f"says that {balance.pending_transactions} entries of transactions are pending, but "
            f"{held} are"
        )
    if (balance.debits_pending, balance.credits_pending) != (debits, credits_):
        proof.orphaned_holds += 1
        what.append(
            f"has {balance.debits_pending} debits and {balance.credits_pending} credits reserved, "
            f"but the transactions that are pending have reserved {debits} and {credits_}"
        )
    return what


def _group_fault(proof: Proof, balance: BalanceRow, info: AccountRecord | None) -> str:
    """Say what is wrong with the group that an account belongs to."""
    if balance.book >= len(proof.meta.books):
        return f"there is no book {balance.book}"
    group = proof.groups.get(balance.group)
    if group is None:
        return f"there is no group {balance.group}"
    own = is_system_account_id(proof.meta.lower_bound, balance.account_id)
    if (group.book, group.type) != (balance.book, balance.type) or (
        (group.role is not GroupRole.ACCOUNT) != own
        or (info is not None and not own and group.code != info.code)
    ):
        return f"it does not belong to group {balance.group}"
    return ""


def _limit_faults(balance: BalanceRow, info: AccountRecord, *, changed: bool) -> list[str]:
    what = []
    settled = balance.settled_balance(balance.type.normal_side)
    minimum, maximum = info.limits.minimum, info.limits.maximum
    # Of the shard's own accounts the flag alone tells that they have no floor.
    if info.request_id and balance.floored != (minimum is not None):
        what.append("its flag does not say whether it has a minimum")
    if balance.floored and not changed and minimum is not None and minimum <= 0:
        available = balance.available_balance(balance.type.normal_side)
        if available < minimum:
            what.append(f"its available balance {available} is below its minimum {minimum}")
    if maximum is not None and maximum >= 0 and not changed:
        full = settled + balance.pending_inflow()
        if full > maximum:
            what.append(f"its balance with what comes in, {full}, is above its maximum {maximum}")
    if balance.state is AccountState.CLOSED and (settled or balance.pending_transactions):
        what.append(f"it is closed, but holds {settled}")
    return what


def _read_events(proof: Proof) -> tuple[bytearray, Counter[int], set[int]]:
    """Return how often each account was opened and changed, and whose limits were changed."""
    opened = bytearray(len(proof.accounts.ids))
    changes: Counter[int] = Counter()
    limits_changed: set[int] = set()
    for key, event in proof.rows("account_events", lambda _key, row: _decode_event(row)):
        slot, journal_number, _ordinal = key_numbers("account_events", key)
        if slot >= len(proof.accounts.ids):
            proof.fault("account_events", row_name("account_events", key), "it has no account")
            continue
        if not 0 < journal_number < proof.meta.next_journal:
            proof.fault(
                "account_events", row_name("account_events", key), "it has no journal entry"
            )
        if event.kind is AccountEventKind.OPENED:
            opened[slot] = min(opened[slot] + 1, 2)
        if event.kind in _CHANGES:
            changes[slot] += 1
            if event.kind is AccountEventKind.UPDATED and "limits" in event.changes:
                limits_changed.add(slot)
    return opened, changes, limits_changed


def _read_groups(proof: Proof) -> dict[int, GroupRecord]:
    """Read all groups, and hold them against the table by which they are found."""
    groups = {}
    for key, record in proof.rows("groups", lambda _key, row: _decode_group(row)):
        (number,) = key_numbers("groups", key)
        groups[number] = record
        try:
            found = proof.tables.find_group(record)
        except StoreCorruptError:
            continue  # the pass over that table tells
        if found != number:
            proof.fault("group_numbers", f"group {number}", f"the row says {found}")
    for key, number in proof.rows("group_numbers", lambda _key, row: int.from_bytes(row)):
        if number not in groups:
            proof.fault("group_numbers", row_name("group_numbers", key), f"no group {number}")
    if len(groups) != proof.meta.next_group:
        proof.fault("groups", "", f"has {len(groups)} rows, not {proof.meta.next_group}")
    return groups


def _prove_totals(
    proof: Proof,
    sums: dict[int, list[int]],
    newest_marks: dict[int, int],
) -> None:
    """Hold the totals of groups against the sums of their accounts."""
    complete = NO_GROUP not in proof.accounts.groups
    seen = set()
    for key, totals in proof.rows("totals", lambda _key, row: TotalsRow.unpack(row)):
        (number,) = key_numbers("totals", key)
        seen.add(number)
        expected = sums.get(number, [0, 0, 0, 0, 0])
        ours = [*counters_of(totals), totals.accounts]
        if number not in proof.groups:
            proof.fault("totals", f"group {number}", "there is no such group")
        elif ours != expected and complete:
            proof.fault(
                "totals",
                f"group {number} ({_group_name(proof, proof.groups[number])})",
                f"has {show(counters_of(totals))} in {totals.accounts} accounts, but its accounts "
                f"make {show((expected[0], expected[1], expected[2], expected[3]))} in "
                f"{expected[4]}",
            )
        if totals.last_block != newest_marks.get(number):
            proof.fault(
                "totals",
                f"group {number}",
                f"changed last in block {totals.last_block}, but its newest row of table "
                f"total_marks is of block {newest_marks.get(number)}",
            )
    for number in proof.groups.keys() - seen:
        if not proof.shard.has("totals", number.to_bytes(4)):
            proof.fault("totals", f"group {number}", "the row is missing")


def _group_name(proof: Proof, group: GroupRecord) -> str:
    book = proof.meta.books[group.book] if group.book < len(proof.meta.books) else None
    parts = [book.ledger, book.currency] if book else [f"book {group.book}"]
    return ", ".join([*parts, group.type.name, group.code or group.role.name])


def _prove_balance(proof: Proof, sums: dict[int, list[int]]) -> None:
    """Check that debits equal credits in every ledger and currency."""
    if NO_GROUP in proof.accounts.groups:
        return
    books: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    for number, of_group in sums.items():
        if number in proof.groups:
            of_book = books[proof.groups[number].book]
            for place, value in enumerate(of_group):
                of_book[place] += value
    for index, (debits, credits_, reserved, coming, _count) in sorted(books.items()):
        if index < len(proof.meta.books) and (debits != credits_ or reserved != coming):
            book = proof.meta.books[index]
            proof.fault(
                "balances",
                f"ledger {book.ledger} in {book.currency}",
                f"debits exceed credits by {debits - credits_} posted and {reserved - coming} "
                f"pending",
            )

"""Transactions: what each record says must have been booked, is reserved, and can be found by.

The first pass reads every record. Of the entries that each must have on this shard it keeps a sum
of hashes; the entries, when they are read, are taken off it, so that what is left is not zero where
they differ. The indexes of transactions are compared by such sums, too: only where they differ are
they read row by row.
"""

import itertools
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from ledger_core.accounts import Direction, EntryKind, TransactionStatus
from ledger_core.durations import duration_bucket
from ledger_node.proof import UNREADABLE, Proof
from ledger_node.records import (
    EntryRecord,
    SettlementRecord,
    TransactionRecord,
)
from ledger_node.store_scan import key_numbers, row_name

_decode = msgspec.msgpack.Decoder(TransactionRecord).decode
_decode_settlements = msgspec.msgpack.Decoder(SettlementRecord).decode

_MASK: Final = 2**64 - 1
_DAY_US: Final = 86_400_000_000
# Of a refused transaction: accounts of which it is not known whether they existed then.
_UNCERTAIN_MAX: Final = 8

_OPEN: Final = (TransactionStatus.PENDING, TransactionStatus.UNDECIDED)
_END_KINDS: Final = {
    TransactionStatus.SETTLED: EntryKind.SETTLED,
    TransactionStatus.CANCELLED: EntryKind.CANCELLED,
    TransactionStatus.EXPIRED: EntryKind.EXPIRED,
    TransactionStatus.INSUFFICIENT_FUNDS: EntryKind.CANCELLED,
    TransactionStatus.REJECTED: EntryKind.CANCELLED,
}


class Transactions:
    """What is remembered of every transaction, by number: 16 bytes each.

    ``unbooked`` is the sum of the hashes of the entries that its record asks for, less those that
    were read; ``effective_us`` its effective time where that counts for reports, else 0.
    """

    def __init__(self, count: int) -> None:
        self.unbooked = array("Q", bytes(8 * (count + 1)))
        self.effective_us = array("q", bytes(8 * (count + 1)))
        self.count = count
        self.uncertain: dict[int, list[int]] = {}
        """Of refused ones: hashes of entries that they have or do not have, each as a whole."""

    def add(self, number: int, hashed: int) -> None:
        """Note that a record asks for an entry."""
        self.unbooked[number] = (self.unbooked[number] + hashed) & _MASK

    def take(self, number: int, hashed: int) -> None:
        """Note that an entry was read."""
        self.unbooked[number] = (self.unbooked[number] - hashed) & _MASK


def entry_hash(account_id: int, direction: Direction, kind: EntryKind, amount: int) -> int:
    """Return the hash of an entry within its transaction."""
    return hash((account_id, int(direction), int(kind), amount)) & _MASK


def read_transactions(proof: Proof) -> Transactions:
    """Read all transactions; check each by itself, and note what it asks of other tables."""
    transactions = Transactions(proof.meta.next_transaction - 1)
    settlements: defaultdict[tuple[int, int], SettlementRecord] = defaultdict(SettlementRecord)
    expected = {table: _KeySum() for table in _KEYS}
    good = 0
    for key, record in proof.rows("transactions", lambda _key, row: _decode(row)):
        (number,) = key_numbers("transactions", key)
        if not 0 < number <= transactions.count:
            proof.fault("transactions", f"transaction {number}", "no transaction has this number")
            continue
        good += 1
        what = list(_faults(proof, record))
        if what:
            proof.fault("transactions", proof.transaction(number), "; ".join(what))
        if not record.states:
            continue
        _expect_entries(proof, transactions, number, record)
        _count_settlement(settlements, record)
        for table, keys_of in _KEYS.items():
            for needed in keys_of(proof, number, record):
                expected[table].add(needed)
    _prove_count(proof, transactions.count)
    # Where a record cannot be read, what the other tables must have is not known.
    if good == proof.shard.count("transactions"):
        for table, keys in expected.items():
            _prove_keys(proof, table, keys)
        _prove_settlements(proof, settlements)
    return transactions


def _prove_count(proof: Proof, count: int) -> None:
    """Check that numbers have no gaps but those that an import of one ledger left."""
    expected = count - proof.meta.skipped_transactions
    found = proof.shard.count("transactions")
    if found == expected:
        return
    proof.fault("transactions", "", f"has {found} rows, not {expected}")
    if not proof.meta.skipped_transactions:
        for number in range(1, count + 1):
            if not proof.shard.has("transactions", number.to_bytes(8)):
                proof.fault("transactions", f"transaction {number}", "the row is missing")


def _faults(proof: Proof, record: TransactionRecord) -> Iterator[str]:
    """Yield what is wrong with a record by itself."""
    if not record.states:
        yield "it has no state"
        return
    if record.book >= len(proof.meta.books):
        yield f"there is no book {record.book}"
    statuses = [state.status for state in record.states]
    for before, after in itertools.pairwise(statuses):
        if not _may_become(before, after):
            yield f"{before.name} cannot become {after.name}"
    times = [state.time_us for state in record.states]
    if times != sorted(times) or times[-1] > proof.meta.time_us:
        yield "the times of its states are not in order"
    refused = statuses[0].is_refusal
    for entries, whose in ((record.entries, "its entries"), (record.booked, "those booked here")):
        sums: Counter[str] = Counter()
        for entry in entries:
            sign = 1 if entry.direction is Direction.DEBIT else -1
            sums[entry.currency] += sign * entry.amount
        if any(sums.values()) and not (refused and whose != "its entries"):
            differences = {code: sum_ for code, sum_ in sums.items() if sum_}
            yield f"debits of {whose} exceed credits by {differences}"
    if statuses[0].is_refusal != (record.refusal is not None) and len(statuses) == 1:
        yield f"it is {statuses[0].name}, but its reason says otherwise"
    part, whole = record.settled_amount, max((e.amount for e in record.entries), default=0)
    if part and not 0 < part < whole:
        yield f"{part} of {whole} cannot have been settled as a part"
    for entry, done in zip(record.entries, record.reversed_amounts, strict=False):
        if not 0 <= done <= (part or entry.amount):
            yield f"{done} of {part or entry.amount} cannot have been reversed"


def _may_become(before: TransactionStatus, after: TransactionStatus) -> bool:
    if before is TransactionStatus.UNDECIDED:
        return after is not TransactionStatus.UNDECIDED
    if before is TransactionStatus.PENDING:
        return after in (
            TransactionStatus.SETTLED,
            TransactionStatus.CANCELLED,
            TransactionStatus.EXPIRED,
        )
    # A shard that refused learns the reason that all histories are to show.
    return before.is_refusal and after.is_refusal


def _expect_entries(
    proof: Proof, transactions: Transactions, number: int, record: TransactionRecord
) -> None:
    accounts = proof.accounts
    first = record.states[0]
    if first.status.is_refusal:
        _expect_refused_entries(proof, transactions, number, record)
    else:
        for entry, kind, amount in _entries_of(record):
            transactions.add(number, entry_hash(entry.account_id, entry.direction, kind, amount))
        if record.effective_time_us != first.time_us:
            transactions.effective_us[number] = record.effective_time_us
    if record.status is TransactionStatus.UNDECIDED and record.home_shard_id is None:
        proof.undecided_at_home.append(number)
    if record.status in _OPEN:
        for entry in record.booked:
            slot = accounts.slots.get(entry.account_id)
            if slot is not None:
                count, debits, credits_ = accounts.holds.get(slot, (0, 0, 0))
                is_debit = entry.direction is Direction.DEBIT
                accounts.holds[slot] = (
                    count + 1,
                    debits + (entry.amount if is_debit else 0),
                    credits_ + (0 if is_debit else entry.amount),
                )


def _entries_of(record: TransactionRecord) -> Iterator[tuple[EntryRecord, EntryKind, int]]:
    """Yield (entry, kind, amount) of what was booked here for a transaction that was not refused.

    Refused later, after its money was reserved, it had that released.
    """
    booked = record.booked
    if record.states[0].status is TransactionStatus.SETTLED:
        for entry in booked:
            yield entry, EntryKind.POSTED, entry.amount
        return
    for entry in booked:
        yield entry, EntryKind.PENDING, entry.amount
    if record.status in _OPEN:
        return
    part = record.settled_amount
    for entry in booked:
        if part:
            yield entry, EntryKind.SETTLED, part
            yield entry, EntryKind.CANCELLED, entry.amount - part
        else:
            yield entry, _END_KINDS[record.status], entry.amount


def _expect_refused_entries(
    proof: Proof, transactions: Transactions, number: int, record: TransactionRecord
) -> None:
    """Expect an entry on each account that existed when the transaction was refused.

    An account that was opened at the very time of the refusal may or may not have existed.
    """
    accounts, time_us = proof.accounts, record.states[0].time_us
    uncertain: Counter[int] = Counter()
    for entry in record.booked:
        slot = accounts.slots.get(entry.account_id)
        if slot is None or accounts.created_us[slot] > time_us:
            continue
        hashed = entry_hash(entry.account_id, entry.direction, EntryKind.REFUSED, entry.amount)
        if accounts.created_us[slot] == time_us:
            uncertain[entry.account_id] += hashed
        else:
            transactions.add(number, hashed)
    if uncertain:
        transactions.uncertain[number] = list(uncertain.values())


def prove_booked(proof: Proof, transactions: Transactions) -> None:
    """Check that every transaction has the entries that its record asks for, and no other."""
    for number, left in enumerate(transactions.unbooked):
        if left and not _explained(transactions.uncertain.get(number, []), left):
            if number == 0 or not proof.shard.has("transactions", number.to_bytes(8)):
                continue  # named where the entry was read
            try:
                record = proof.tables.find_transaction(number)
            except UNREADABLE:
                continue
            assert record is not None, "it is there"
            states = ", ".join(state.status.name for state in record.states)
            proof.fault(
                "transactions",
                proof.transaction(number),
                f"its entries in the histories are not those of its record ({states})",
            )


def _explained(uncertain: list[int], left: int) -> bool:
    if len(uncertain) > _UNCERTAIN_MAX:
        return True
    return any(
        -sum(chosen) & _MASK == left
        for size in range(len(uncertain) + 1)
        for chosen in itertools.combinations(uncertain, size)
    )


# What other tables must have


class _KeySum:
    """A set of keys, as their number and the sum of their hashes."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = 0

    def add(self, key: bytes) -> None:
        self.count += 1
        self.sum = (self.sum + hash(key)) & _MASK


def _pending_keys(_proof: Proof, number: int, record: TransactionRecord) -> Iterator[bytes]:
    if record.is_pending:
        yield number.to_bytes(8)


def _expiration_keys(_proof: Proof, number: int, record: TransactionRecord) -> Iterator[bytes]:
    if record.status in _OPEN and record.expire_time_us and record.home_shard_id is None:
        yield record.expire_time_us.to_bytes(8) + number.to_bytes(8)


def _undecided_keys(_proof: Proof, number: int, record: TransactionRecord) -> Iterator[bytes]:
    if record.awaits_home:
        yield number.to_bytes(8)


def _reference_keys(proof: Proof, number: int, record: TransactionRecord) -> Iterator[bytes]:
    if record.book < len(proof.meta.books):
        for digest in record.reference_digests(proof.meta.books[record.book].ledger):
            yield digest + number.to_bytes(8)


_KEYS: Final[dict[str, Callable[[Proof, int, TransactionRecord], Iterator[bytes]]]] = {
    "pending": _pending_keys,
    "expirations": _expiration_keys,
    "undecided": _undecided_keys,
    "references": _reference_keys,
}


def _prove_keys(proof: Proof, table: str, expected: _KeySum) -> None:
    """Check that a table has the keys that transactions ask for, and no others."""
    found = _KeySum()
    for key in _keys_found(proof, table):
        found.add(key)
    if (found.count, found.sum) == (expected.count, expected.sum):
        return
    keys_of = _KEYS[table]
    for key in _keys_found(proof, table):
        record = _record(proof, int.from_bytes(key[-8:]))
        number = int.from_bytes(key[-8:])
        if record is None or key not in keys_of(proof, number, record):
            name = proof.transaction(number)
            status = record.status.name if record else "missing"
            proof.fault(table, row_name(table, key), f"must not be there: {name} is {status}")
    listed = {*_keys_of_bits(proof, table)}
    for raw, _value in proof.raw("transactions"):
        number = int.from_bytes(raw)
        record = _record(proof, number)
        for key in keys_of(proof, number, record) if record else ():
            if key not in listed and not proof.shard.has(table, key):
                name = proof.transaction(number)
                proof.fault(table, row_name(table, key), f"the row of {name} is missing")


def _keys_found(proof: Proof, table: str) -> Iterator[bytes]:
    """Yield the keys of a table, and those that a table of bits stands for."""
    for key, _value in proof.raw(table):
        yield key
    for key in _keys_of_bits(proof, table):
        if proof.shard.has(table, key):
            proof.fault(table, row_name(table, key), "it is noted twice")
        yield key


def _keys_of_bits(proof: Proof, table: str) -> Iterator[bytes]:
    if table == "undecided":
        for number in proof.numbers_of_bits("undecided_bits"):
            yield number.to_bytes(8)


def _record(proof: Proof, number: int) -> TransactionRecord | None:
    try:
        return proof.tables.find_transaction(number)
    except UNREADABLE:
        return None


def _count_settlement(
    settlements: defaultdict[tuple[int, int], SettlementRecord], record: TransactionRecord
) -> None:
    """Count a transaction that was pending and has ended, at its home."""
    statuses = [state.status for state in record.states]
    ended = record.states[-1]
    if record.home_shard_id is not None or TransactionStatus.PENDING not in statuses[:-1]:
        return
    row = settlements[record.book, ended.time_us // _DAY_US]
    match ended.status:
        case TransactionStatus.SETTLED:
            row.settled += 1
            bucket = duration_bucket(ended.time_us - record.states[0].time_us)
            row.durations = {**row.durations, bucket: row.durations.get(bucket, 0) + 1}
        case TransactionStatus.CANCELLED:
            row.cancelled += 1
        case TransactionStatus.EXPIRED:
            row.expired += 1


def _prove_settlements(proof: Proof, expected: dict[tuple[int, int], SettlementRecord]) -> None:
    seen = set()
    for key, row in proof.rows("settlements", lambda _key, row: _decode_settlements(row)):
        book, day = key_numbers("settlements", key)
        seen.add((book, day))
        if row != expected.get((book, day)):
            proof.fault(
                "settlements",
                row_name("settlements", key),
                f"counts {row.settled} settled, {row.cancelled} cancelled, {row.expired} expired, "
                f"which is not what the transactions of that day say",
            )
    for book, day in expected.keys() - seen:
        if not proof.shard.has("settlements", book.to_bytes(2) + day.to_bytes(4)):
            proof.fault("settlements", f"book {book}, day {day}", "the row is missing")

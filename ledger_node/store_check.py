"""Is a store what was written? A bounded check before a node starts with it.

LMDB has no page checksums, and damaged pages can crash whoever reads them. So the check runs in a
process of its own: if that one dies, the store is damaged. It looks at the header pages and at
every shard: its log (checksums, terms, no gaps), its numbers, its accounts (their rows against each
other, against their newest entries and, summed, against the totals of their groups), the checksums
of rows, which cover their keys as well, then the histories, newest first (each entry follows from
the account's entry before, and is of its transaction), what is pending, and what transactions are
found by. All of it where that takes no more than about `BUDGET_S` of the processor for each; of
larger stores a part.

The journal and the sums as of past moments are held against the entries by the deep audit only.

What it does not reach is found when it is read, by its checksum. Only a row whose key was changed,
in a part of a large store that was not reached, would be missed in silence.
"""

import itertools
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lmdb
import msgspec

from ledger_core.accounts import Counters, Direction, TransactionStatus
from ledger_core.journal import FIRST_LINK
from ledger_node.records import ENTRY_EFFECT, ENTRY_ROW_BYTES, EntryRow, TotalsRow
from ledger_node.store_environments import read_only
from ledger_node.store_files import (
    DAMAGE_ADVICE,
    LOG_FOLDER,
    STATE_FOLDER,
    StoreCorruptError,
    log_file,
    state_file,
)
from ledger_node.store_log import LogDatabases, LogTables
from ledger_node.store_rows import unseal
from ledger_node.store_tables import STATE_TABLES, ShardDatabases, ShardTables

BUDGET_S: Final = 0.6
_SHOWN_MAX: Final = 3
_LOG_ENTRIES_MAX: Final = 2_000
_LOG_BYTES_MAX: Final = 8 << 20
_ACCOUNTS_PER_S: Final = 30_000
_ROWS_PER_LOOK: Final = 100
_SEALED_TABLES: Final = (
    "requests",
    "names",
    "ledgers",
    "in_flight",
    "in_flight_bits",
    "undecided",
    "undecided_bits",
    "transactions",
    "account_info",
    "accounts",
    "balances",
    "entry_marks",
    "groups",
    "group_numbers",
    "totals",
    "total_marks",
    "settlements",
    "account_events",
    "effective_sums",
    "effective_log",
    "journal",
)

# LMDB's header pages, the first two of the file: magic number, and what the newest commit left.
_MAGIC: Final = 0xBEEFC0DE
_MAGIC_AT: Final = 16
_LAST_PAGE: Final = struct.Struct("<QQ")
_LAST_PAGE_AT: Final = 136
_PAGE_BYTES_AT: Final = 40
_U32 = struct.Struct("<I")
_U64 = struct.Struct(">Q")


def refuse_damaged(path: Path) -> None:
    """Raise StoreCorruptError, with advice, if the store in a data directory is damaged."""
    store = path / "store"
    if not (state_file(store).exists() and log_file(store).exists()):
        # One without the other is refused when they are opened.
        return
    done = subprocess.run(  # noqa: S603  (our own module)
        [sys.executable, "-m", "ledger_node.store_check", str(store)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return
    found = done.stdout.strip().replace("\n", "; ")
    if done.returncode < 0:
        found = f"reading it ended with {signal.Signals(-done.returncode).name}"
    elif not found:
        found = done.stderr.strip().rpartition("\n")[2] or "the check of it failed"
    raise StoreCorruptError(f"the store in {path} is damaged: {found}. {DAMAGE_ADVICE}")


def check(store: Path, budget_s: float = BUDGET_S) -> Iterator[str]:
    """Yield what is wrong with the files of a store. Damage may also crash it."""
    log_header, header = _read_header(log_file(store)), _read_header(state_file(store))
    for folder, one in ((LOG_FOLDER, log_header), (STATE_FOLDER, header)):
        if one.fault:
            yield f"{folder}: {one.fault}"
    if log_header.fault or header.fault:
        return
    with (
        read_only(store, LOG_FOLDER) as log_env,
        read_only(store, STATE_FOLDER) as env,
        log_env.begin() as log_txn,
        env.begin() as txn,
    ):
        names = _names(env, txn, header)
        log_names = _names(log_env, log_txn, log_header)
        shard_names = [name.removesuffix(b".meta") for name in names if name.endswith(b".meta")]
        if not shard_names and header.commits:
            yield "it holds no shard"
        for name in shard_names:
            if name + b".log" not in log_names:
                yield f"shard {int(name)} has no log"
                return
        shards = [
            _ShardCheck(
                _open_log(log_env, log_txn, name),
                env,
                txn,
                name,
                has_spare=name + b".b.accounts" in names,
            )
            for name in shard_names
        ]
        for shard in shards:
            yield from shard.log_faults()
        accounts = sum(shard.accounts for shard in shards)
        step = 1 + int(accounts / (budget_s * _ACCOUNTS_PER_S))
        for shard in shards:
            yield from shard.account_faults(step)
        for part in (_ShardCheck.seal_faults, _ShardCheck.history_faults):
            deadline = time.process_time() + budget_s
            for place, shard in enumerate(shards):
                share_s = (deadline - time.process_time()) / (len(shards) - place)
                yield from part(shard, time.process_time() + share_s)


def _names(env: lmdb.Environment, txn: lmdb.Transaction, header: "_Header") -> list[bytes]:
    names = [bytes(key) for key, _ in txn.cursor()]
    if header.may_be_short:
        # Its last pages may be of no use, or the file was cut: reading everything tells.
        _read_everything(env, txn, names)
    return names


def _open_log(env: lmdb.Environment, txn: lmdb.Transaction, name: bytes) -> LogTables:
    raft, log = (
        env.open_db(name + suffix, txn=txn, create=False) for suffix in (b".raft", b".log")
    )
    return LogTables(_View(txn), LogDatabases(raft, log))


@dataclass(frozen=True, slots=True)
class _Header:
    """What the two header pages say. ``commits``: how many there were; ``fault``: or what is wrong.

    ``may_be_short``: pages that were handed out are not in the file. They may be of no use.
    """

    fault: str = ""
    commits: int = 0
    may_be_short: bool = False


def _read_header(file: Path) -> _Header:
    with file.open("rb") as stream:
        first = stream.read(_PAGE_BYTES_AT + _U32.size)
        if len(first) < _PAGE_BYTES_AT + _U32.size:
            return _Header("the file ends within its header")
        page_bytes = _U32.unpack_from(first, _PAGE_BYTES_AT)[0]
        if not 512 <= page_bytes <= 65_536:
            return _Header("its header has an impossible page size")
        stream.seek(0)
        pages = [stream.read(page_bytes) for _ in range(2)]
    if any(len(page) < page_bytes for page in pages):
        return _Header("the file ends within its header")
    if any(_U32.unpack_from(page, _MAGIC_AT)[0] != _MAGIC for page in pages):
        return _Header("its header has no magic number")
    (last_0, commit_0), (last_1, commit_1) = (
        _LAST_PAGE.unpack_from(page, _LAST_PAGE_AT) for page in pages
    )
    newest = max(commit_0, commit_1)
    # Commits write the two pages in turn, the even ones the first.
    if newest and (abs(commit_0 - commit_1) != 1 or commit_0 % 2 != 0 or commit_1 % 2 != 1):
        return _Header(f"its header pages are of commits {commit_0} and {commit_1}")
    last_page = last_0 if commit_0 > commit_1 else last_1
    return _Header("", newest, file.stat().st_size < (last_page + 1) * page_bytes)


def _read_everything(env: lmdb.Environment, txn: lmdb.Transaction, names: list[bytes]) -> None:
    for name in names:
        with txn.cursor(env.open_db(name, txn=txn, create=False)) as cursor:
            for _ in cursor:
                pass


@dataclass(frozen=True, slots=True)
class _View:
    txn: lmdb.Transaction


class _ShardCheck:
    """One shard of the store, at its last commit."""

    def __init__(
        self,
        log: LogTables,
        env: lmdb.Environment,
        txn: lmdb.Transaction,
        name: bytes,
        *,
        has_spare: bool,
    ) -> None:
        self._log = log
        self._txn = txn
        self._name = f"shard {int(name)}"

        def table(suffix: str) -> lmdb._Database:
            return env.open_db(name + suffix.encode(), txn=txn, create=False)

        self._databases = ShardDatabases(
            env,
            table(".meta"),
            tuple(
                {item: table(f"{generation}.{item}") for item in STATE_TABLES}
                for generation in (("", ".b") if has_spare else ("",))
            ),
        )
        self._tables = ShardTables(_View(txn), self._databases)
        self._meta = self._tables.meta()

    @property
    def accounts(self) -> int:
        """How many accounts the shard has."""
        return self._meta.next_slot

    def log_faults(self) -> Iterator[str]:
        """Check the newest entries of the log, and how many rows the tables have."""
        applied_index = self._meta.applied_index
        first, last = self._log.bounds()
        count = self._log.count()
        if count != last - first + 1:
            yield f"{self._name}: its log has {count} entries from {first} to {last}"
            return
        term_now, _vote = self._log.hard_state()
        # At the last step of an install, the log is still the one before it.
        if count and applied_index > last and self._log.installing() is None:
            yield f"{self._name}: its state is at {applied_index}, but its log ends at {last}"
        newer_term = term_now
        size = 0
        for index in range(last, max(first, last - _LOG_ENTRIES_MAX + 1) - 1, -1):
            if size > _LOG_BYTES_MAX:
                break
            term, payload = self._log.entry(index)
            size += len(payload)
            if term > newer_term:
                yield f"{self._name}: log entry {index} is of term {term}, after {newer_term}"
            newer_term = term
        yield from self._count_faults()

    def _count_faults(self) -> Iterator[str]:
        meta = self._meta
        state = self._databases.state[self._tables.generation]
        expected = {
            "accounts": meta.next_slot,
            "account_info": meta.next_slot,
            "balances": meta.next_slot,
            "transactions": meta.next_transaction - 1 - meta.skipped_transactions,
            "groups": meta.next_group,
            "group_numbers": meta.next_group,
            "totals": meta.next_group,
            "journal": meta.next_journal - 1,
        }
        for name, count in expected.items():
            if (found := self._txn.stat(state[name])["entries"]) != count:
                yield f"{self._name}: {found} rows of {name}, not {count}"
        if meta.next_position > 1 and self._tables.find_entry(meta.next_position - 1) is None:
            yield f"{self._name}: no entry at position {meta.next_position - 1}"
        newest = self._tables.find_journal(meta.next_journal - 1)
        if (FIRST_LINK if newest is None else newest.link) != meta.chain_hash:
            yield f"{self._name}: its hash chain does not end with its journal"

    def seal_faults(self, deadline: float) -> Iterator[str]:
        """Check the checksums of rows, while there is time; first of those nothing else covers."""
        state = self._databases.state[self._tables.generation]
        for name in _SEALED_TABLES:
            with self._txn.cursor(state[name]) as cursor:
                # The newest first: tables that are appended to grow at their end.
                for count, (key, sealed) in enumerate(cursor.iterprev()):
                    unseal(key, sealed)
                    if count % _ROWS_PER_LOOK == 0 and time.process_time() > deadline:
                        return
        yield from ()

    def history_faults(self, deadline: float) -> Iterator[str]:
        """Check that entries follow from those before, the newest first, while there is time."""
        tables, meta = self._tables, self._meta
        with self._txn.cursor(self._databases.state[tables.generation]["entries"]) as cursor:
            more = cursor.last()
            position = meta.next_position
            while more and time.process_time() < deadline:
                first, rows = _U64.unpack(cursor.key())[0], bytes(cursor.value())
                if first + len(rows) // ENTRY_ROW_BYTES != position or len(rows) % ENTRY_ROW_BYTES:
                    yield f"{self._name}: entries are missing before position {position}"
                    return
                position = first
                for offset in range(0, len(rows), ENTRY_ROW_BYTES):
                    row = EntryRow.unpack(rows[offset : offset + ENTRY_ROW_BYTES])
                    at = first + offset // ENTRY_ROW_BYTES
                    if not self._follows(at, row):
                        yield f"{self._name}: entry {at} does not follow from the one before"
                        return
                    if not self._has_transaction(row):
                        yield f"{self._name}: entry {at} is not of its transaction"
                        return
                more = cursor.prev()
        yield from self._pending_faults(deadline)

    def _follows(self, position: int, row: EntryRow) -> bool:
        ours = _counters(row.after)
        posted, pending = ENTRY_EFFECT[row.kind]
        side = 0 if row.direction is Direction.DEBIT else 1
        ours[side] -= posted * row.amount
        ours[side + 2] -= pending * row.amount
        if not row.previous:
            return row.sequence == 1 and not any(ours)
        before = self._tables.find_entry(row.previous) if row.previous < position else None
        return (
            before is not None
            and (before.account_id, before.sequence) == (row.account_id, row.sequence - 1)
            and ours == _counters(before.after)
        )

    def _has_transaction(self, row: EntryRow) -> bool:
        record = self._tables.find_transaction(row.transaction)
        return (
            record is not None
            and any(
                (entry.account_id, entry.direction) == (row.account_id, row.direction)
                and row.amount <= entry.amount
                for entry in record.booked
            )
            and any(state.time_us == row.time_us for state in record.states)
        )

    def account_faults(self, step: int) -> Iterator[str]:
        """Check every account, or one in ``step``: its rows against each other and its history."""
        tables = self._tables
        sums = [TotalsRow() for _ in range(self._meta.next_group)]
        for slot in range(0, self._meta.next_slot, step):
            balance = tables.balance(slot)
            account_id = balance.account_id
            if (
                tables.find_slot(account_id) != slot
                or tables.account_info(slot).account_id != account_id
                or not balance.book < len(self._meta.books)
                or not balance.group < len(sums)
            ):
                yield f"{self._name}: the rows of account {slot} contradict each other"
                return
            total = sums[balance.group]
            total.accounts += 1
            total.debits_posted += balance.debits_posted
            total.credits_posted += balance.credits_posted
            total.debits_pending += balance.debits_pending
            total.credits_pending += balance.credits_pending
            newest = tables.find_entry(balance.last_position) if balance.last_position else None
            ours = (account_id, balance.sequence, _counters(balance))
            told = (account_id, 0, [0, 0, 0, 0])
            if newest is not None:
                told = (newest.account_id, newest.sequence, _counters(newest.after))
            if ours != told or (newest is None) != (balance.last_position == 0):
                yield f"{self._name}: the account in slot {slot} differs from its newest entry"
        if step == 1:
            yield from self._group_faults(sums)

    def _group_faults(self, sums: list[TotalsRow]) -> Iterator[str]:
        """Hold the totals of groups against the sums over their accounts."""
        for group, summed in enumerate(sums):
            told = self._tables.totals(group)
            if (told.accounts, _counters(told)) != (summed.accounts, _counters(summed)):
                yield f"{self._name}: the totals of group {group} are not those of its accounts"

    def _pending_faults(self, deadline: float) -> Iterator[str]:
        """Count the pending transactions of every account anew, if there is the time.

        And look whether transactions are found by what they are indexed by.
        """
        pending: Counter[int] = Counter()
        listed = self._tables.pending_after(0)
        skipped = references = 0
        for number in range(1, self._meta.next_transaction):
            if time.process_time() > deadline:
                return
            record = self._tables.find_transaction(number)
            if record is None:
                # Only an import of one ledger leaves numbers out.
                skipped += 1
                if skipped > self._meta.skipped_transactions:
                    yield f"{self._name}: transaction {number} is missing"
                    return
                continue
            if record.status in (TransactionStatus.PENDING, TransactionStatus.UNDECIDED):
                pending.update(entry.account_id for entry in record.booked)
                if record.is_pending and next(listed, None) != number:
                    yield f"{self._name}: transaction {number} is not listed as pending"
                    return
            digests = record.reference_digests(self._meta.books[record.book].ledger)
            references += len(digests)
            if any(
                next(self._tables.referenced_before(digest, number + 1), None) != number
                for digest in digests
            ):
                yield f"{self._name}: transaction {number} is not found by its references"
                return
        if (number := next(listed, 0)) != 0:
            yield f"{self._name}: transaction {number} is listed as pending"
        state = self._databases.state[self._tables.generation]
        if (found := self._txn.stat(state["references"])["entries"]) != references:
            yield f"{self._name}: {found} rows of references, not {references}"
        for slot, balance in self._tables.balances():
            if balance.pending_transactions != pending[balance.account_id]:
                yield f"{self._name}: the account in slot {slot} miscounts what is pending"


def _counters(row: Counters) -> list[int]:
    return [row.debits_posted, row.credits_posted, row.debits_pending, row.credits_pending]


def main(store: str) -> int:
    """Print what is wrong with a store; return the exit code."""
    try:
        found = list(itertools.islice(check(Path(store)), _SHOWN_MAX))
    except (
        StoreCorruptError,
        lmdb.Error,
        msgspec.MsgspecError,
        struct.error,
        ArithmeticError,
        AssertionError,
        LookupError,
        ValueError,
    ) as error:
        # Whatever reading rows can raise: they are not what was written.
        found = [str(error).removesuffix(DAMAGE_ADVICE).rstrip(" .") or type(error).__name__]
    for fault in found:
        print(fault)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""Is a store what was written? A bounded check before a node starts with it.

LMDB has no page checksums, and damaged pages can crash whoever reads them. So the check runs in a
process of its own: if that one dies, the store is damaged. It looks at the header pages and at
every shard: its log (checksums, terms, no gaps), its numbers, its accounts (their counters against
their histories, the sum of each book), the newest entries of the histories (each follows from the
account's entry before, and has its transaction). All of it where that is done within `BUDGET_S`; of
larger stores the newest. What it cannot see: damage in rows that it does not reach, and in fields
that follow from nothing else, such as descriptions.
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
from typing import TYPE_CHECKING, Final

import lmdb
import msgspec

from ledger_core.accounts import Direction, EntryKind, TransactionStatus
from ledger_node.records import ENTRY_ROW_BYTES, EntryRow
from ledger_node.store_files import DAMAGE_ADVICE, StoreCorruptError
from ledger_node.store_tables import STATE_TABLES, ShardDatabases, ShardTables

if TYPE_CHECKING:
    from ledger_node.audit import Audit

BUDGET_S: Final = 0.5
_SHOWN_MAX: Final = 3
_LOG_ENTRIES_MAX: Final = 2_000
_LOG_ENTRIES_MIN: Final = 8
_NAMES_MAX: Final = 65_536
# An audit cannot be stopped half-way, so one that would take too long is not begun.
_AUDITED_PER_S: Final = 50_000

# LMDB's header pages, the first two of the file: magic number, and what the newest commit left.
_MAGIC: Final = 0xBEEFC0DE
_MAGIC_AT: Final = 16
_LAST_PAGE: Final = struct.Struct("<QQ")
_LAST_PAGE_AT: Final = 136
_PAGE_BYTES_AT: Final = 40
_U32 = struct.Struct("<I")
_U64 = struct.Struct(">Q")

# What an entry of each kind adds to the posted and the pending counter of its side.
_EFFECT = {
    EntryKind.POSTED: (1, 0),
    EntryKind.PENDING: (0, 1),
    EntryKind.SETTLED: (1, -1),
    EntryKind.CANCELLED: (0, -1),
    EntryKind.REFUSED: (0, 0),
}


def refuse_damaged(path: Path) -> None:
    """Raise StoreCorruptError, with advice, if the store in a data directory is damaged."""
    if not (path / "store" / "data.mdb").exists():
        return
    done = subprocess.run(  # noqa: S603  (our own module)
        [sys.executable, "-m", "ledger_node.store_check", str(path / "store")],
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
    header = _read_header(store / "data.mdb")
    if header.fault:
        yield header.fault
        return
    env = lmdb.open(str(store), max_dbs=_NAMES_MAX, readonly=True)
    try:
        with env.begin() as txn:
            names = [bytes(key) for key, _ in txn.cursor()]
            if header.may_be_short:
                # Its last pages may be of no use, or the file was cut: reading everything tells.
                _read_everything(env, txn, names)
            shard_names = [name.removesuffix(b".meta") for name in names if name.endswith(b".meta")]
            if not shard_names and header.commits:
                yield "it holds no shard"
            deadline = time.monotonic() + budget_s
            for place, name in enumerate(shard_names):
                share_s = (deadline - time.monotonic()) / (len(shard_names) - place)
                has_spare = name + b".b.accounts" in names
                checker = _ShardCheck(env, txn, name, has_spare, time.monotonic() + share_s)
                for fault in checker.faults():
                    yield f"shard {int(name)}: {fault}"
    finally:
        env.close()


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
        env: lmdb.Environment,
        txn: lmdb.Transaction,
        name: bytes,
        has_spare: bool,
        deadline: float,
    ) -> None:
        self._txn = txn
        self._deadline = deadline

        def table(suffix: str) -> lmdb._Database:
            return env.open_db(name + suffix.encode(), txn=txn, create=False)

        self._databases = ShardDatabases(
            env,
            table(".meta"),
            table(".log"),
            tuple(
                {item: table(f"{generation}.{item}") for item in STATE_TABLES}
                for generation in (("", ".b") if has_spare else ("",))
            ),
        )
        self._tables = ShardTables(_View(txn), self._databases)

    def faults(self) -> Iterator[str]:
        """Yield what is wrong, what is quick to check first."""
        meta = self._tables.meta()
        yield from self._log_faults(meta.applied_index)
        state = self._databases.state[self._tables.generation]
        counts = {name: self._txn.stat(table)["entries"] for name, table in state.items()}
        expected = {
            "accounts": meta.next_slot,
            "account_info": meta.next_slot,
            "balances": meta.next_slot,
            "transactions": meta.next_transaction - 1,
        }
        for name, count in expected.items():
            if counts[name] != count:
                yield f"{counts[name]} rows of {name}, not {count}"
        if meta.next_position > 1 and self._tables.find_entry(meta.next_position - 1) is None:
            yield f"no entry at position {meta.next_position - 1}"
        yield from self._history_faults()
        if meta.next_slot <= (self._deadline - time.monotonic()) * _AUDITED_PER_S:
            yield from self._audit().faults
        yield from self._account_faults()

    def _log_faults(self, applied_index: int) -> Iterator[str]:
        first, last = self._tables.log_bounds()
        count = self._txn.stat(self._databases.log)["entries"]
        if count != last - first + 1:
            yield f"its log has {count} entries from {first} to {last}"
            return
        term_now, _vote = self._tables.hard_state()
        if count and not applied_index <= last:
            yield f"its state is at log entry {applied_index}, but the log ends at {last}"
        newer_term = term_now
        for index in range(last, max(first, last - _LOG_ENTRIES_MAX + 1) - 1, -1):
            if index <= last - _LOG_ENTRIES_MIN and time.monotonic() > self._deadline:
                return
            term, _payload = self._tables.log_entry(index)
            if term > newer_term:
                yield f"log entry {index} is of term {term}, later than {newer_term}"
            newer_term = term

    def _history_faults(self) -> Iterator[str]:
        """Check that entries follow from the ones before, the newest first, while there is time."""
        tables = self._tables
        meta = tables.meta()
        with self._txn.cursor(self._databases.state[tables.generation]["entries"]) as cursor:
            more = cursor.last()
            position = meta.next_position
            while more and time.monotonic() < self._deadline:
                first, rows = _U64.unpack(cursor.key())[0], bytes(cursor.value())
                if first + len(rows) // ENTRY_ROW_BYTES != position or len(rows) % ENTRY_ROW_BYTES:
                    yield f"entries are missing before position {position}"
                    return
                position = first
                for offset in range(0, len(rows), ENTRY_ROW_BYTES):
                    row = EntryRow.unpack(rows[offset : offset + ENTRY_ROW_BYTES])
                    at = first + offset // ENTRY_ROW_BYTES
                    if not self._follows(at, row):
                        yield f"the entry at position {at} does not follow from the one before"
                        return
                    if not self._has_transaction(row):
                        yield f"the entry at position {at} is not of its transaction"
                        return
                more = cursor.prev()

    def _follows(self, position: int, row: EntryRow) -> bool:
        after = row.after
        ours = [
            after.debits_posted,
            after.credits_posted,
            after.debits_pending,
            after.credits_pending,
        ]
        posted, pending = _EFFECT[row.kind]
        side = 0 if row.direction is Direction.DEBIT else 1
        ours[side] -= posted * row.amount
        ours[side + 2] -= pending * row.amount
        if not row.previous:
            return row.sequence == 1 and not any(ours)
        before = self._tables.find_entry(row.previous) if row.previous < position else None
        return (
            before is not None
            and (before.account_id, before.sequence) == (row.account_id, row.sequence - 1)
            and ours
            == [
                before.after.debits_posted,
                before.after.credits_posted,
                before.after.debits_pending,
                before.after.credits_pending,
            ]
        )

    def _has_transaction(self, row: EntryRow) -> bool:
        record = self._tables.find_transaction(row.transaction)
        return (
            record is not None
            and any(
                (entry.account_id, entry.direction, entry.amount)
                == (row.account_id, row.direction, row.amount)
                for entry in record.entries
            )
            and any(state.time_us == row.time_us for state in record.states)
        )

    def _audit(self) -> "Audit":
        # Not at the top: that module imports the store, which imports this module.
        from ledger_node.audit import audit  # noqa: PLC0415

        return audit(self._tables)

    def _account_faults(self) -> Iterator[str]:
        """Check that the rows of an account name each other."""
        for slot, balance in self._tables.balances():
            if time.monotonic() > self._deadline:
                return
            account_id = balance.account_id
            if (
                self._tables.find_slot(account_id) != slot
                or self._tables.account_info(slot).account_id != account_id
            ):
                yield f"the account in slot {slot} has rows that name different accounts"
            if not balance.last_position:
                continue
            newest = self._tables.find_entry(balance.last_position)
            if newest is None or (newest.account_id, newest.sequence) != (
                account_id,
                balance.sequence,
            ):
                yield f"the account in slot {slot} does not end with its newest entry"
        yield from self._pending_faults()

    def _pending_faults(self) -> Iterator[str]:
        """Count the pending transactions of every account anew, if there is the time."""
        pending: Counter[int] = Counter()
        for number in range(1, self._tables.meta().next_transaction):
            if time.monotonic() > self._deadline:
                return
            record = self._tables.find_transaction(number)
            if record is None:
                yield f"transaction {number} is missing"
                return
            if record.status is TransactionStatus.PENDING:
                pending.update(entry.account_id for entry in record.entries)
        for slot, balance in self._tables.balances():
            if balance.pending_transactions != pending[balance.account_id]:
                yield f"the account in slot {slot} miscounts its pending transactions"


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

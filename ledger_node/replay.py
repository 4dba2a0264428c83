"""Applies the entries of another cluster's journal once more: how a journal is imported.

An entry is applied whole or not at all. What was asked must lead to what it led to there, else it
is refused: then the journal was changed, or is not of this shard, or comes in another order.
"""

import struct
from collections.abc import Callable

import msgspec

from ledger_core.accounts import TransactionStatus
from ledger_core.commands import (
    Command,
    EndReplay,
    Replay,
    ReplayedItem,
    decode_command,
)
from ledger_core.errors import Reason
from ledger_core.results import Failure, Replayed
from ledger_node.books import Books, InvariantError
from ledger_node.command_check import command_fault
from ledger_node.records import ShardMeta
from ledger_node.store import ShardTables
from ledger_node.transaction_rules import expire_transaction

Execute = Callable[[Books, Command], object]
"""Executes a command and returns its outcome."""

_decode_expired = msgspec.msgpack.Decoder(tuple[int, int]).decode


# So high numbers would leave none for what comes after the import.
_NUMBERS_END = 1 << 63


class _DiffersError(Exception):
    """An item does not lead to what it led to where it comes from."""


def replay(
    tables: ShardTables, shard_id: int, command: Replay, execute: Execute
) -> Replayed | Failure:
    """Apply an entry of a journal, unless that was done before; a Failure changes nothing."""
    meta = tables.meta()
    if command.number <= meta.replayed:
        return Replayed(command.number, meta.chain_hash)
    if meta.has_own:
        return Failure(
            Reason.JOURNAL_NOT_EMPTY,
            f"shard {shard_id} has journal entries that were not imported; a journal is imported "
            f"into a cluster in which nothing else has happened",
            metadata={"shard_id": str(shard_id), "replayed": str(meta.replayed)},
        )
    if command.previous != meta.replayed:
        return Failure(
            Reason.JOURNAL_GAP,
            f"entry {command.number} of the journal follows entry {command.previous}, but the last "
            f"one that was imported into shard {shard_id} is {meta.replayed}",
            metadata={"shard_id": str(shard_id), "replayed": str(meta.replayed)},
        )
    place = -1
    try:
        with tables.attempt() as attempt:
            books = _begin(attempt, shard_id, command)
            for item in command.items:
                place += 1
                _repeat(books, item, execute)
            books.finish(imported=command.number)
            return Replayed(command.number, books.meta.chain_hash)
    except _DiffersError as error:
        text = str(error)
    except (
        InvariantError,
        msgspec.MsgspecError,
        struct.error,
        ArithmeticError,
        AssertionError,
        LookupError,
        ValueError,
    ) as error:
        # What no gateway sends and no node would have journaled: the rules rely on neither.
        text = f"cannot be applied here ({type(error).__name__}: {error})"
    return Failure(
        Reason.REPLAY_DIFFERS,
        f"entry {command.number} of the journal, item {place}: {text}; nothing of it was applied",
        metadata={"number": str(command.number), "item": str(place)},
    )


def end_replay(tables: ShardTables) -> Replayed:
    """Let the shard go on by itself, with what was imported."""
    meta = tables.meta()
    meta.importing = False
    tables.save_meta(meta)
    return Replayed(meta.replayed, meta.chain_hash)


def _begin(tables: ShardTables, shard_id: int, command: Replay) -> Books:
    meta = tables.meta()
    if command.time_us < meta.time_us:
        raise _DiffersError(f"its time is {command.time_us}, but {meta.time_us} has been reached")
    meta.time_us = command.time_us
    return Books(tables, meta, shard_id)


def _repeat(books: Books, item: ReplayedItem, execute: Execute) -> None:
    """Do what an item did; raise if it comes to something else."""
    if item.number:
        _take_number(books.meta, item.number)
    outcome = execute(books, _decode(books, item)) if item.command else _expire(books, item)
    done = books.end_item(item.command, outcome)
    if done.outcome != item.outcome:
        raise _DiffersError(f"led to {_show(done.outcome)}, not to {_show(item.outcome)}")
    if done.number != item.number:
        raise _DiffersError(f"took transaction number {done.number}, not {item.number}")


def _take_number(meta: ShardMeta, number: int) -> None:
    """Go on at a transaction's number: those left out are of ledgers that are not imported."""
    if number >= _NUMBERS_END:
        raise _DiffersError(f"{number} is no transaction number")
    if number < meta.next_transaction:
        raise _DiffersError(
            f"took transaction number {number}, but the next one here is {meta.next_transaction}"
        )
    meta.skipped_transactions += number - meta.next_transaction
    meta.next_transaction = number


def _decode(books: Books, item: ReplayedItem) -> Command:
    """Return a command, checked like one that is to enter the log."""
    command = decode_command(item.command)
    meta = books.meta
    if isinstance(command, Replay | EndReplay):
        raise _DiffersError("is a step of an import itself")
    if fault := command_fault(command, books.shard_id, meta.lower_bound, meta.upper_bound):
        raise _DiffersError(fault)
    return command


def _expire(books: Books, item: ReplayedItem) -> tuple[int, int]:
    number, _state = _decode_expired(item.outcome)
    record = books.find_transaction(number)
    if record is None or record.status is not TransactionStatus.PENDING:
        raise _DiffersError(f"transaction {number} is not pending, so it cannot expire")
    if not 0 < record.expire_time_us <= books.meta.time_us or record.home_shard_id is not None:
        raise _DiffersError(f"transaction {number} does not expire then")
    return expire_transaction(books, number, record)


def _show(outcome: bytes) -> str:
    try:
        return msgspec.json.encode(msgspec.msgpack.decode(outcome)).decode()
    except (msgspec.MsgspecError, TypeError, ValueError):
        return outcome.hex()

"""The state machine of a shard: applies log entries, each command exactly once.

`StateMachine.apply` is a pure function of the tables and the log entry: the same entries in the
same order give the same tables on every replica. It asks no clock, draws no random number and
knows no network. Refusals are values. What must never happen raises InvariantError, which ends the
process before the state is stored or any reply of the turn is sent.

The rules are in `transaction_rules`, `commit_rules` (across shards), `transfer_rules` and
`leg_rules` (blocks of transfers), `account_rules` and `ledger_rules`; `books` holds the rows that a
log entry touches, checks at its end that debits equal credits, and journals it. `replay` applies
what another cluster has journaled.
"""

from collections.abc import Sequence
from itertools import groupby

from ledger_core.accounts import TransactionStatus
from ledger_core.commands import (
    AccountChange,
    ApplyDecision,
    ApplyTransfers,
    BetweenShards,
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
    EndReplay,
    ExtendLedger,
    FreezeAccount,
    Prepare,
    PrepareTransfers,
    RawBatch,
    ReleaseName,
    Replay,
    Request,
    Resolve,
    ReverseTransaction,
    SettleTransaction,
    TransfersBetweenShards,
    UnfreezeAccount,
    UpdateAccount,
    body_hash,
    decode_raw_batch,
    encode_command,
)
from ledger_core.errors import Reason
from ledger_core.ids import request_key, transaction_request_key
from ledger_core.results import AccountView, Failure, Result, TransactionView
from ledger_node.account_events import note_refused_change
from ledger_node.account_rules import change_account, claim_name, create_account, release_name
from ledger_node.books import Books, InvariantError
from ledger_node.commit_rules import apply_decision, decide, delivered, prepare, resolve
from ledger_node.joined_blocks import LogEntry, apply_joined, stretches
from ledger_node.ledger_rules import create_ledger, extend_ledger, find_ledger
from ledger_node.leg_blocks import commit_transfers, prepare_transfers
from ledger_node.leg_decisions import apply_transfers, delivered_transfers
from ledger_node.records import RequestRow, ShardMeta, TransactionRecord
from ledger_node.replay import end_replay, replay
from ledger_node.request_bodies import has_hash
from ledger_node.store import ShardTables
from ledger_node.transaction_rules import (
    create_transaction,
    end_transaction,
    expire_transactions,
    reverse_transaction,
)
from ledger_node.transfer_rules import create_transfers, one_by_one
from ledger_node.views import account_view, ledger_view, opened_account_view, transaction_view

_IMPORTS = (Replay, EndReplay)

# What books as many entries as another command did, and has a few bytes itself.
_MULTIPLYING = (SettleTransaction, CancelTransaction, ReverseTransaction, Decide, ApplyDecision)
_TOO_MUCH = Failure(
    Reason.OVERLOADED,
    "transactions with very many entries are settled, cancelled or reversed at the same time; "
    "nothing was done, try again",
)


class StateMachine:
    """Applies log entries to the tables of one shard."""

    def __init__(self, tables: ShardTables, shard_id: int) -> None:
        self._tables = tables
        self._shard_id = shard_id
        self._in_flight: list[int] = []
        self._undecided: list[int] = []
        self._in_flight_later: list[int] = []
        self._undecided_later: list[int] = []

    def apply(self, index: int, payload: bytes) -> list[Result]:
        """Apply the batch of commands of log entry ``index``; one result per command.

        Indexes rise. Everything is written through the tables, into the caller's transaction,
        together with ``index`` as the applied index: no entry is ever applied twice.
        """
        (results,) = self.apply_run([(index, payload)], wanted=True)
        return results

    def apply_run(
        self, entries: Sequence[tuple[int, bytes]], *, wanted: bool
    ) -> list[list[Result]]:
        """Apply consecutive log entries, (index, payload) each, as if one after the other.

        All rows are the same as if `apply` did it, but small blocks of transfers cost far less.
        Returns the results of each log entry; nothing if they are not ``wanted``.
        """
        run = [LogEntry.of(index, decode_raw_batch(payload)) for index, payload in entries]
        results: list[list[Result]] = []
        for stretch in stretches(run):
            done = apply_joined(self._tables, self._shard_id, stretch, wanted=wanted)
            if done is None:
                done = [self._apply_alone(entry.index, entry.batch) for entry in stretch]
            results += done
        return results if wanted else []

    def _apply_alone(self, index: int, batch: RawBatch) -> list[Result]:
        meta = self._tables.meta()
        if index <= meta.applied_index:
            raise InvariantError(f"log entry {index} is applied already")
        meta.applied_index = index
        if not any(isinstance(command, _IMPORTS) for _raw, command in batch.commands):
            return self._apply_all(meta, batch.time_us, batch.commands)
        results: list[Result] = []
        for _kind, run in groupby(batch.commands, lambda item: isinstance(item[1], _IMPORTS)):
            commands = list(run)
            if isinstance(commands[0][1], _IMPORTS):
                self._tables.save_meta(meta)
                results += [self._import(command) for _raw, command in commands]
            else:
                results += self._apply_all(meta, batch.time_us, commands)
            meta = self._tables.meta()
        return results

    def _import(self, command: Command) -> Result:
        """Do a step of an import: an entry of its own, which no result but this one tells of."""
        if isinstance(command, Replay):
            return replay(self._tables, self._shard_id, command, _outcome)
        if self._tables.meta().importing:
            self._take_up()
        return end_replay(self._tables)

    def _take_up(self) -> None:
        """What was imported while it was under way is carried on, now that the import is over."""
        self._in_flight += self._tables.in_flight_numbers()
        self._undecided += self._tables.undecided_numbers()

    def _apply_all(
        self, meta: ShardMeta, time_us: int, commands: list[tuple[bytes, Command]]
    ) -> list[Result]:
        """Apply commands one after the other, as one entry of the journal."""
        if meta.importing and not commands:
            self._tables.save_meta(meta)
            return []
        if meta.importing:
            self._take_up()
        meta.time_us = max(meta.time_us, time_us)
        books = Books(self._tables, meta, self._shard_id)
        expire_transactions(books)
        results: list[Result] = []
        for raw, command in commands:
            if books.is_full and isinstance(command, _MULTIPLYING):
                results.append(_TOO_MUCH)
                continue
            done = _execute(books, command)
            if done is None and isinstance(command, CreateTransfers):
                results.append(_transfers_one_by_one(books, command))
                continue
            if done is None:
                raise InvariantError("a command was not done")
            result, outcome = done
            books.end_item(raw, outcome)
            results.append(result)
        books.finish()
        self._in_flight += books.in_flight
        self._undecided += books.undecided
        self._in_flight_later += books.in_flight_later
        self._undecided_later += books.undecided_later
        return results

    def take_unfinished(self) -> tuple[list[int], list[int]]:
        """Return the transactions across shards that log entries applied since have left open.

        (those this shard is home of and has to tell its participants about, those it prepared and
        whose home has to decide). Whoever leads the shard carries them on.
        """
        unfinished = self._in_flight, self._undecided
        self._in_flight, self._undecided = [], []
        return unfinished

    def take_unfinished_later(self) -> tuple[list[int], list[int]]:
        """Return the same of blocks of transfers: their sender finishes most of them soon."""
        unfinished = self._in_flight_later, self._undecided_later
        self._in_flight_later, self._undecided_later = [], []
        return unfinished


def _outcome(books: Books, command: Command) -> object:
    done = _execute(books, command)
    if done is None:
        raise InvariantError("a block of transfers of several ledgers is no item of a journal")
    return done[1]


def _execute(books: Books, command: Command) -> tuple[Result, object] | None:
    """Execute a command; None, and nothing done, where its parts have to be items of their own.

    Returns the result, and the outcome as the journal has it: the reason of a failure, or the
    number and state of a transaction, or the revision of a ledger, or "done"; of a block of
    transfers the number of the first one, and the status of each.
    """
    if isinstance(command, CreateTransfers):
        return create_transfers(books, command, _execute_one)
    if isinstance(command, _IMPORTS):
        raise InvariantError("an import is none of the commands that are journaled")
    if isinstance(command, TransfersBetweenShards):
        return _execute_legs(books, command)
    return _execute_single(books, command)


def _execute_legs(books: Books, block: TransfersBetweenShards) -> tuple[Result, object]:
    """Execute a step of transfers between two shards."""
    match block:
        case PrepareTransfers():
            return prepare_transfers(books, block), "done"
        case CommitTransfers():
            return commit_transfers(books, block, _execute_one)
        case ApplyTransfers():
            return apply_transfers(books, block), "done"
        case DeliveredTransfers():
            return delivered_transfers(books, block), "done"


def _transfers_one_by_one(books: Books, block: CreateTransfers) -> Result:
    """Execute the transfers of a block as commands, each an item of the journal."""

    def execute(books: Books, transfer: CreateTransaction) -> Result:
        result, outcome = _execute_single(books, transfer)
        books.end_item(encode_command(transfer), outcome)
        return result

    return one_by_one(books, block, execute)[0]


def _execute_single(
    books: Books, command: Request | ClaimName | ReleaseName | BetweenShards
) -> tuple[Result, object]:
    """Execute a command, or find the first result of an earlier one with its request id."""
    if isinstance(command, ClaimName | ReleaseName | BetweenShards):
        # Steps of other requests; doing them again changes nothing, so they are not kept.
        result = _step(books, command)
        return result, result.reason if isinstance(result, Failure) else "done"
    key = _request_key(command)
    hashed = body_hash(command)
    first = books.tables.find_request(key)
    outcome: RequestRow | Failure
    if first is None:
        outcome = _dispatch(books, command, key, hashed)
        if isinstance(outcome, RequestRow):
            books.tables.add_request(key, outcome)
    elif not has_hash(books, first, hashed):
        outcome = _reused_request_id(books, command, first)
        if isinstance(command, AccountChange | CreateAccount):
            note_refused_change(books, command, outcome)
    else:
        outcome = first
    if isinstance(outcome, Failure):
        return outcome, outcome.reason
    result = _first_result(books, command, outcome)
    if isinstance(result, AccountView):
        # Its slot is no business of a journal's reader.
        return result, "done"
    return result, (outcome.number, outcome.state)


def _execute_one(books: Books, command: CreateTransaction) -> Result:
    return _execute_single(books, command)[0]


def _dispatch(books: Books, command: Request, key: bytes, hashed: bytes) -> RequestRow | Failure:
    """Execute a new command; return what to remember of it, or why nothing was changed."""
    done: int | Failure
    state = 0
    match command:
        case CreateTransaction():
            done = create_transaction(books, command, key, hashed)
        case ReverseTransaction():
            done = reverse_transaction(books, command, key, hashed)
        case SettleTransaction() | CancelTransaction():
            record = end_transaction(books, command)
            if isinstance(record, Failure):
                return record
            done, state = command.number, len(record.states) - 1
        case CreateAccount():
            done = create_account(books, command)
        case UpdateAccount() | FreezeAccount() | UnfreezeAccount() | CloseAccount():
            done = change_account(books, command)
        case CreateLedger():
            ledger = create_ledger(books, command)
            done = ledger if isinstance(ledger, Failure) else ledger.revision
        case ExtendLedger():
            ledger = extend_ledger(books, command)
            done = ledger if isinstance(ledger, Failure) else ledger.revision
    return done if isinstance(done, Failure) else RequestRow(hashed, done, state)


def _step(books: Books, command: ClaimName | ReleaseName | BetweenShards) -> Result:
    """Execute a step that names itself."""
    match command:
        case ClaimName():
            return claim_name(books, command)
        case ReleaseName():
            return release_name(books, command)
        case Prepare():
            return prepare(books, command)
        case Decide():
            return decide(books, command)
        case ApplyDecision():
            return apply_decision(books, command)
        case Delivered():
            return delivered(books, command)
        case Resolve():
            return resolve(books, command)


def _first_result(books: Books, command: Request, first: RequestRow) -> Result:
    """Show what the request did.

    Transactions and new accounts are shown as they were right after it. Of changes to accounts and
    ledgers a repeat shows what they have become: their older states are not kept.
    """
    match command:
        case CreateAccount():
            record = books.info(first.number)
            return opened_account_view(command, record.create_time_us)
        case UpdateAccount() | FreezeAccount() | UnfreezeAccount() | CloseAccount():
            balance = books.balance(first.number)
            return account_view(
                books.info(first.number),
                balance,
                books.meta.books[balance.book],
                books.meta.time_us,
            )
        case CreateLedger() | ExtendLedger():
            ledger = find_ledger(books.tables, command.name)
            if ledger is None:
                raise InvariantError(f"ledger {command.name!r} of a request is missing")
            return ledger_view(ledger)
        case _:
            transaction = books.find_transaction(first.number)
            if transaction is None:
                raise InvariantError(f"transaction {first.number} of a request is missing")
            return _first_state(books, first, transaction)


def _first_state(
    books: Books, first: RequestRow, transaction: TransactionRecord
) -> TransactionView:
    """Show the state that a request led to; across shards, the first one that was decided."""
    state = first.state
    if state == 0 and transaction.states[0].status is TransactionStatus.UNDECIDED:
        state = min(1, len(transaction.states) - 1)
    in_flight = books.tables.find_in_flight(first.number) if transaction.participants else None
    return transaction_view(
        first.number,
        transaction,
        books.meta.books[transaction.book],
        state,
        in_flight=None if in_flight is None else in_flight.state,
    )


def _reused_request_id(books: Books, command: Request, first: RequestRow) -> Failure:
    """Say what differs from the request that came first, as far as that is still known."""
    differing: list[str] = []
    match command:
        case CreateTransaction():
            transaction = books.find_transaction(first.number)
            fields = ("amount", "description", "settled", "external_reference", "metadata")
            differing = _differing(command, transaction, fields)
            if transaction is not None and command.entries and not differing:
                differing = ["entries"]
        case CreateAccount():
            record, balance = books.info(first.number), books.balance(first.number)
            differing = _differing(command, record, ("code",)) + _differing(
                command, balance, ("type",)
            )
            if command.currency.code != books.meta.books[balance.book].currency:
                differing.append("currency")
        case SettleTransaction() | CancelTransaction():
            differing = ["method"]
        case _:
            pass
    what = " and ".join(differing) or "content"
    return Failure(
        Reason.REQUEST_ID_REUSED,
        f"request id {command.request_id!r} was used before, for a request with another {what}; "
        f"use a new request id for a new request",
        field="request_id",
        metadata={"differing_fields": ",".join(differing)},
    )


def _differing(command: Request, first: object, fields: tuple[str, ...]) -> list[str]:
    return [field for field in fields if getattr(command, field) != getattr(first, field)]


def _request_key(command: Request) -> bytes:
    """Return the request id within what it is unique in: account, transaction or ledger."""
    key = request_key(command.request_id)
    match command:
        case CreateTransaction():
            return transaction_request_key(command.account_id, command.request_id)
        case SettleTransaction() | CancelTransaction() | ReverseTransaction():
            return key + b"t" + command.account_id.to_bytes(8) + command.number.to_bytes(8)
        case CreateAccount():
            return key + b"l" + command.ledger.encode()
        case UpdateAccount() | FreezeAccount() | UnfreezeAccount() | CloseAccount():
            return key + b"c" + command.account_id.to_bytes(8)
        case CreateLedger() | ExtendLedger():
            return key + b"b" + command.name.encode()

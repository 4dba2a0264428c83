"""The rules of ledgers: made once, and only ever extended."""

from ledger_core.commands import CreateLedger, ExtendLedger
from ledger_core.errors import Reason
from ledger_core.ledgers import MAIN_NAME, USD, chart_faults
from ledger_core.results import Failure
from ledger_node.books import Books
from ledger_node.records import LedgerRecord
from ledger_node.store import ShardTables

_MAIN = LedgerRecord(
    name=MAIN_NAME,
    description="The books that are there from the start",
    currencies=[USD],
    chart=[],
    revision=0,
    create_time_us=0,
    update_time_us=0,
    request_id="",
)


def find_ledger(tables: ShardTables, name: str) -> LedgerRecord | None:
    """Return a ledger; ``main`` exists on its shard before anyone extends it."""
    return tables.find_ledger(name) or (_MAIN if name == MAIN_NAME else None)


def create_ledger(books: Books, command: CreateLedger) -> LedgerRecord | Failure:
    """Make a ledger."""
    if find_ledger(books.tables, command.name) is not None:
        return Failure(
            Reason.LEDGER_EXISTS,
            f"there is a ledger {command.name!r} already",
            field="name",
            metadata={"ledger": command.name},
        )
    if faults := chart_faults([], command.chart):
        return _bad_chart(faults)
    time_us = books.meta.time_us
    record = LedgerRecord(
        name=command.name,
        description=command.description,
        currencies=command.currencies,
        chart=command.chart,
        revision=0,
        create_time_us=time_us,
        update_time_us=time_us,
        request_id=command.request_id,
    )
    books.tables.save_ledger(record)
    return record


def extend_ledger(books: Books, command: ExtendLedger) -> LedgerRecord | Failure:
    """Add to a ledger what is not there yet."""
    record = find_ledger(books.tables, command.name)
    if record is None:
        return ledger_not_found(command.name)
    if record.revision != command.revision:
        return Failure(
            Reason.REVISION_MISMATCH,
            f"ledger {command.name!r} is at revision {record.revision}, not {command.revision}: "
            f"read it again, and decide again",
            field="revision",
            metadata={"revision": str(record.revision)},
        )
    known = {currency.code for currency in record.currencies}
    for currency in command.currencies:
        if currency.code in known:
            return Failure(
                Reason.INVALID_FIELDS,
                f"currency {currency.code} is in ledger {command.name!r} already; currencies "
                f"never change",
                field="currencies",
            )
    if faults := chart_faults(record.chart, command.chart):
        return _bad_chart(faults)
    record = LedgerRecord(
        name=record.name,
        description=record.description if command.description is None else command.description,
        currencies=[*record.currencies, *command.currencies],
        chart=[*record.chart, *command.chart],
        revision=record.revision + 1,
        create_time_us=record.create_time_us,
        update_time_us=books.meta.time_us,
        request_id=record.request_id,
    )
    books.tables.save_ledger(record)
    return record


def ledger_not_found(name: str) -> Failure:
    """Say that there is no such ledger."""
    return Failure(
        Reason.LEDGER_NOT_FOUND,
        f"ledger {name!r} does not exist",
        field="ledger",
        metadata={"ledger": name},
    )


def _bad_chart(faults: list[tuple[int, str]]) -> Failure:
    return Failure(
        Reason.INVALID_FIELDS,
        "; ".join(f"chart[{index}]: {text}" for index, text in faults),
        field="chart",
    )

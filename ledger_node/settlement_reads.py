"""What is pending in a ledger and since when, and how pending transactions have ended."""

from bisect import bisect_right
from dataclasses import dataclass, field

from ledger_core.accounts import Direction, TransactionStatus
from ledger_core.ids import U32_MAX
from ledger_core.queries import GetSettlements
from ledger_core.results import BookSettlementsView, SettlementsView
from ledger_node.records import Book, SettlementRecord
from ledger_node.store_tables import ShardTables

# How many pending transactions one read looks at, oldest first.
PENDING_LOOKS_MAX = 10_000


@dataclass
class _Settlements:
    """What is known of one currency so far."""

    currency: str
    exponent: int
    by_age: list[int]
    pending: int = 0
    debits: int = 0
    oldest_us: int = 0
    oldest_account_id: int = 0
    oldest_number: int = 0
    ended: SettlementRecord = field(default_factory=SettlementRecord)


class _Currencies(dict[str, _Settlements]):
    """The currencies of a ledger, each once it is met: a debit may be on another shard."""

    def __init__(self, buckets: int) -> None:
        super().__init__()
        self._buckets = buckets

    def of(self, currency: str, exponent: int) -> _Settlements:
        if currency not in self:
            self[currency] = _Settlements(currency, exponent, [0] * self._buckets)
        return self[currency]


def get_settlements(tables: ShardTables, query: GetSettlements) -> SettlementsView:
    """Tell what is pending, and how transactions ended, at their home: this shard.

    A transaction counts for the currency of its first entry; every debit counts for its own.
    """
    meta = tables.meta()
    books = {index: book for index, book in enumerate(meta.books) if book.ledger == query.ledger}
    currencies = _Currencies(len(query.bounds_us) + 1)
    days = min(query.first_day, U32_MAX), min(query.end_day, U32_MAX)
    for index, book in books.items():
        ended = currencies.of(book.currency, book.currency_exponent).ended
        for _, record in tables.settlements(index, *days):
            ended.settled += record.settled
            ended.cancelled += record.cancelled
            ended.expired += record.expired
            for bucket, count in record.durations.items():
                ended.durations[bucket] = ended.durations.get(bucket, 0) + count
    truncated = _add_pending(tables, currencies, books, query, query.now_us or meta.time_us)
    return SettlementsView([_view(found, truncated) for found in currencies.values()])


def _add_pending(
    tables: ShardTables,
    currencies: _Currencies,
    books: dict[int, Book],
    query: GetSettlements,
    now_us: int,
) -> bool:
    """Count the pending transactions, oldest first; return whether there are more of them."""
    for looked, number in enumerate(tables.pending_after(0)):
        if looked == PENDING_LOOKS_MAX:
            return True
        record = tables.find_transaction(number)
        assert record is not None, "what is pending is recorded"
        book = books.get(record.book)
        if (
            book is None
            or record.home_shard_id is not None
            or record.status is not TransactionStatus.PENDING
        ):
            continue
        create_time_us = record.states[0].time_us
        found = currencies.of(book.currency, book.currency_exponent)
        found.pending += 1
        found.by_age[bisect_right(query.bounds_us, now_us - create_time_us)] += 1
        if not found.oldest_us:
            found.oldest_us = create_time_us
            found.oldest_account_id, found.oldest_number = record.account_id, number
        for entry in record.entries:
            if entry.direction is Direction.DEBIT:
                currency, exponent = entry.currency, entry.currency_exponent
                if not currency:
                    currency, exponent = book.currency, book.currency_exponent
                currencies.of(currency, exponent).debits += entry.amount
    return False


def _view(found: _Settlements, truncated: bool) -> BookSettlementsView:
    return BookSettlementsView(
        currency=found.currency,
        currency_exponent=found.exponent,
        pending=found.pending,
        pending_debits=found.debits,
        pending_by_age=found.by_age,
        oldest_us=found.oldest_us,
        oldest_account_id=found.oldest_account_id,
        oldest_number=found.oldest_number,
        truncated=truncated,
        settled=found.ended.settled,
        cancelled=found.ended.cancelled,
        expired=found.ended.expired,
        durations=found.ended.durations,
    )

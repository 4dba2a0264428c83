"""Whether two requests under one request id ask for the same.

A request is remembered with a hash of its body. Those of blocks of transfers have none (`NO_HASH`):
their transactions say what was asked.
"""

from ledger_core.commands import NO_HASH, CreateTransaction, body_hash
from ledger_node.books import Books, InvariantError
from ledger_node.records import RequestRow
from ledger_node.transfer_rules import command_of


def has_hash(books: Books, first: RequestRow, hashed: bytes) -> bool:
    """Whether the first request under an id has the body that ``hashed`` is the hash of."""
    if first.body_hash != NO_HASH:
        return first.body_hash == hashed
    record = books.find_transaction(first.number)
    if record is None:
        raise InvariantError(f"transaction {first.number} of a request is missing")
    return body_hash(command_of(record, books.meta.books[record.book], books.shard_id)) == hashed


def is_same(books: Books, first: RequestRow, hashed: bytes, transaction: CreateTransaction) -> bool:
    """Whether the first request under an id asked for a transaction; its hash may be `NO_HASH`."""
    return has_hash(books, first, body_hash(transaction) if hashed == NO_HASH else hashed)

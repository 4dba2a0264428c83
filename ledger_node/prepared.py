"""What a participant has prepared, while it waits for the decision of the home."""

import msgspec

from ledger_core.commands import NO_HASH, Prepare, Source
from ledger_node.store import ShardTables
from ledger_node.transfer_rules import command_of

_decode_prepare = msgspec.msgpack.Decoder(Prepare).decode


def find_prepared(tables: ShardTables, shard_id: int, number: int) -> Prepare | None:
    """Return what a shard prepared as transaction ``number``; None once that is decided.

    Of what came in a block nothing is kept that the record does not tell.
    """
    row = tables.find_undecided(number)
    if row is None:
        return None
    if row:
        return _decode_prepare(row)
    record = tables.find_transaction(number)
    assert record is not None, "what is undecided is recorded"
    assert record.home_shard_id is not None, "this shard is not its home"
    first = record.states[0]
    source = Source(first.correlation_id, first.peer)
    transaction = command_of(record, tables.meta().books[record.book], shard_id)
    return Prepare(
        # The second account of a transfer is the participant's.
        record.entries[1].account_id,
        record.origin,
        NO_HASH,
        record.home_shard_id,
        msgspec.structs.replace(transaction, source=source),
    )

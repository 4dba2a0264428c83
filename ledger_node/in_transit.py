"""What a shard is due from others, and owes them: its in-transit accounts.

Every shard's books balance by themselves, so money between two shards stands on an account of each.
When nothing is in flight between them, what the one is due is what the other owes. Only who has
asked all shards can tell.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ledger_core.ids import SYSTEM_ACCOUNTS_MAX, splitmix64, system_account_id
from ledger_node.books import BOOK_BITS
from ledger_node.records import BalanceRow, ShardMeta
from ledger_node.store import ShardTables


@dataclass(frozen=True, slots=True)
class InTransit:
    """What a shard is due from a peer in one currency of a ledger, in minor units.

    ``net`` has posted and pending money; it is negative where the shard owes.
    """

    peer_shard_id: int
    ledger: str
    currency: str
    currency_exponent: int
    net: int


def in_transit(
    tables: ShardTables, meta: ShardMeta, peer_shard_ids: Iterable[int]
) -> list[InTransit]:
    """Return what a shard has in transit with its peers; one look for each peer and book."""
    found = []
    for peer_shard_id in peer_shard_ids:
        for index in range(len(meta.books)):
            ordinal = (peer_shard_id + 1) << BOOK_BITS | index
            slot = tables.find_slot(system_account_id(meta.lower_bound, ordinal))
            if slot is not None:
                found.append(_of(meta, peer_shard_id, tables.balance(slot)))
    return found


def of_account(meta: ShardMeta, balance: BalanceRow) -> InTransit | None:
    """Return what an account says is in transit; None if it is no in-transit account."""
    ordinal = splitmix64(balance.account_id) - (meta.lower_bound << 32)
    if not 1 << BOOK_BITS <= ordinal < SYSTEM_ACCOUNTS_MAX:
        return None
    return _of(meta, (ordinal >> BOOK_BITS) - 1, balance)


def _of(meta: ShardMeta, peer_shard_id: int, balance: BalanceRow) -> InTransit:
    book = meta.books[balance.book]
    net = (
        balance.debits_posted
        + balance.debits_pending
        - balance.credits_posted
        - balance.credits_pending
    )
    return InTransit(peer_shard_id, book.ledger, book.currency, book.currency_exponent, net)

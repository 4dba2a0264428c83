"""Nets what shards have in transit: what one is due, the other must owe.

Shards are asked one after the other, so a transaction may pass between the questions. Two shards
are only compared in states in which both were at one moment: each was asked twice, and was at the
same index both times.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ledger.internal.v1 import shard_pb2
from ledger_core.money import format_amount

ROUNDS_MAX = 10
PAUSE_S = 0.3


@dataclass(frozen=True)
class ShardTransit:
    """What a shard has in transit at an index, and how many transactions are on their way there."""

    shard_id: int
    applied_index: int
    unfinished: int
    accounts: Sequence[shard_pb2.InTransit]


@dataclass(frozen=True)
class TransitFault:
    """Money that one shard is due and the other does not owe, though nothing is on its way."""

    shard_id: int
    peer_shard_id: int
    ledger: str
    currency: str
    currency_exponent: int
    net: int

    def __str__(self) -> str:
        amount = format_amount(self.net, self.currency, self.currency_exponent)
        return (
            f"shards {self.shard_id} and {self.peer_shard_id}: what is in transit between them in "
            f"ledger {self.ledger} does not net to zero, but to {amount}, and nothing is in flight"
        )


Transits = Mapping[int, ShardTransit]


def transit_faults(
    first: Transits, ask: Callable[[list[int]], dict[int, ShardTransit]]
) -> list[TransitFault]:
    """Return what does not net to zero; ``ask`` is called again for the shards in question."""
    before, suspects = first, _unequal(first)
    for _ in range(ROUNDS_MAX):
        if not suspects:
            return []
        shard_ids = sorted({s for fault in suspects for s in (fault.shard_id, fault.peer_shard_id)})
        time.sleep(PAUSE_S)
        now = ask(shard_ids)
        suspects = _unequal(now)
        proven = [fault for fault in suspects if _stood_still(before, now, fault)]
        if suspects and len(proven) == len(suspects):
            return proven
        before = now
    return []


def _unequal(transits: Transits) -> list[TransitFault]:
    """Return what does not net to zero between shards that have nothing in flight."""
    nets: defaultdict[tuple[int, int, str, str, int], int] = defaultdict(int)
    quiet = {shard_id for shard_id, transit in transits.items() if not transit.unfinished}
    for shard_id in quiet:
        for account in transits[shard_id].accounts:
            if account.peer_shard_id in quiet:
                low, high = sorted((shard_id, account.peer_shard_id))
                unit = (account.ledger, account.currency, account.currency_exponent)
                nets[low, high, *unit] += int(account.net)
    return [TransitFault(*pair, net) for pair, net in sorted(nets.items()) if net]


def _stood_still(before: Transits, now: Transits, fault: TransitFault) -> bool:
    """Whether both shards were in the state of ``now`` at one moment between the two rounds."""
    return all(
        shard_id in before
        and not before[shard_id].unfinished
        and before[shard_id].applied_index == now[shard_id].applied_index
        for shard_id in (fault.shard_id, fault.peer_shard_id)
    )

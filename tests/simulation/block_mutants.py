"""Deliberate breakages of blocks of transfers between shards; see `mutants`."""

from typing import Any

import msgspec

from ledger_core.accounts import TransactionStatus
from ledger_core.commands import ApplyTransfers, CommitTransfers, PrepareTransfers
from ledger_core.results import TransferVotesView
from ledger_node import state_machine
from ledger_node.backlog import Backlog
from ledger_node.coordinator import Coordinator
from tests.simulation.mutants import DIRECTED, FAST, LEADER, Patch, mutant, often
from tests.simulation.plan import Bounds, FaultKind, NetworkPlan, Plan


@mutant("a home commits a block whatever the votes say")
def _commit_without_votes() -> list[Patch]:
    commit = state_machine.commit_transfers

    def credulous(books: Any, block: CommitTransfers, *rest: Any) -> Any:
        return commit(books, msgspec.structs.replace(block, refused={}), *rest)

    return [(state_machine, "commit_transfers", credulous)]


@mutant("votes on a block are told of the item before")
def _shift_votes() -> list[Patch]:
    prepare = state_machine.prepare_transfers

    def shifted(books: Any, block: PrepareTransfers, *rest: Any) -> Any:
        refused = prepare(books, block, *rest).refused
        return TransferVotesView({max(place - 1, 0): why for place, why in refused.items()})

    return [(state_machine, "prepare_transfers", shifted)]


@mutant("a participant settles a block whatever was decided")
def _settle_anyway() -> list[Patch]:
    apply = state_machine.apply_transfers

    def eager(books: Any, block: ApplyTransfers, *rest: Any) -> Any:
        settled = bytes([TransactionStatus.SETTLED]) * len(block.statuses)
        return apply(books, msgspec.structs.replace(block, statuses=settled, refused={}), *rest)

    return [(state_machine, "apply_transfers", eager)]


@mutant("a participant forgets the last decision of a block")
def _forget_last() -> list[Patch]:
    apply = state_machine.apply_transfers

    def short(books: Any, block: ApplyTransfers, *rest: Any) -> Any:
        if len(block.statuses) < 2:
            return apply(books, block, *rest)
        last = len(block.statuses) - 1
        fewer = msgspec.structs.replace(
            block,
            first_accounts=block.first_accounts[:-8],
            request_ids=block.request_ids[:-16],
            numbers=block.numbers[:-8],
            statuses=block.statuses[:-1],
            refused={place: why for place, why in block.refused.items() if place != last},
        )
        return apply(books, fewer, *rest)

    return [(state_machine, "apply_transfers", short)]


@mutant("a block books what its home has under the request id before")
def _book_repeats() -> list[Patch]:
    commit = state_machine.commit_transfers

    def forgetful(books: Any, block: CommitTransfers, *rest: Any) -> Any:
        tables = books.tables
        tables.find_request = lambda _key: None
        tables.add_request = lambda key, row: tables._put_row(tables._requests, key, row.pack())
        tables.add_request_rows = lambda keys, rows: [
            tables._put_row(tables._requests, key.tobytes(), row.tobytes())
            for key, row in zip(keys, rows, strict=True)
        ]
        try:
            return commit(books, block, *rest)
        finally:
            for name in ("find_request", "add_request", "add_request_rows"):
                delattr(tables, name)

    return [(state_machine, "commit_transfers", forgetful)]


@mutant("leaders leave to gateways what gateways have left")
def _wait_for_ever() -> list[Patch]:
    return [(Coordinator, "unfinished_later", lambda *_arguments: None)]


@mutant("what nobody has taken up counts as delivered")
def _delivered_by_nobody() -> list[Patch]:
    await_delivery = Coordinator.await_delivery

    def hasty(self: Any, shard_id: int, number: int, done: Any) -> None:
        if shard_id in self._led and (shard_id, number) not in self._homed:
            done(True)
        else:
            await_delivery(self, shard_id, number, done)

    return [(Coordinator, "await_delivery", hasty)]


@mutant("what cannot be told now is dropped, when others wait for their turn")
def _put_nothing_back() -> list[Patch]:
    return [(Backlog, "add_again", lambda *_arguments: None)]


def _dying_gateways(seed: int) -> Plan:
    """Gateways die between rounds, and their callers repeat at once, through another one."""
    return Plan(
        seed=seed,
        shards=3,
        timing=FAST,
        network=NetworkPlan(delay_s=0.001, spike=0.05, spike_s=0.2, rpc_loss=0.05),
        bounds=Bounds(gateway_s=1.0, ask_after_s=0.3, retry_s=0.1, taken_up=2),
        shard_call_s=0.3,
        clients=6,
        gateways=2,
        accounts=2,
        think_s=0.01,
        call_s=0.5,
        attempt_s=0.1,
        workload=(0, 4, 0, 0, 6, 0, 8, 2, 0, 0, 12),
        gateway_dies=0.5,
        faults=often([(FaultKind.PARTITION, LEADER), (FaultKind.TRANSFER, LEADER)], 0.6, seed),
    )


for _name in (
    "what nobody has taken up counts as delivered",
    "what cannot be told now is dropped, when others wait for their turn",
):
    DIRECTED[_name] = _dying_gateways

"""What must hold once all is healed: of every record of the clients, and of every replica."""

import asyncio
from collections import Counter
from collections.abc import Callable

from ledger.v1 import ledger_pb2
from ledger_cli.node_probe import NodeProbe
from ledger_cli.verify import prove
from ledger_client import AsyncLedgerClient, LedgerError
from ledger_cluster.config import ClusterConfig
from tests.simulation import linearizability as lin
from tests.torture.report import Violation
from tests.torture.workload import (
    CANCELLED,
    INSUFFICIENT_FUNDS,
    PENDING,
    SETTLED,
    Account,
    Operation,
    Workload,
)

AT_ONCE = 24
AUDIT_S_MAX = 60.0

_STATUS: dict[int, lin.Status] = {
    PENDING: "pending",
    SETTLED: "settled",
    INSUFFICIENT_FUNDS: "insufficient funds",
}


class Checker:
    """Holds accounts against what their clients have recorded."""

    def __init__(self, client: AsyncLedgerClient, workload: Workload, checks: Counter[str]) -> None:
        self._client = client
        self._workload = workload
        self._checks = checks

    async def check_all(
        self, accounts: list[Account], repeat: Callable[[Operation], bool], *, again: bool = False
    ) -> list[Violation]:
        """Check accounts that nobody uses any more; ``repeat`` chooses the writes to ask again.

        ``again``: they were checked before, and must still be as they were.
        """
        slots = asyncio.Semaphore(AT_ONCE)
        found: list[Violation] = []

        async def check(account: Account) -> None:
            async with slots:
                found.extend(await self._check(account, repeat, again))

        await asyncio.gather(*map(check, accounts))
        return found

    async def _check(
        self, account: Account, repeat: Callable[[Operation], bool], again: bool
    ) -> list[Violation]:
        await self._workload.resolve(account)
        for operation in account.operations:
            answered = operation.end_s is not None and operation.answer not in (None, False)
            if operation.is_write and answered and repeat(operation):
                await self._workload.repeat(account, operation)
                self._checks["acknowledged writes repeated: the same answer"] += 1
        if not account.operations or account.operations[0].end_s is None:
            return []
        try:
            listed = [item async for item in self._client.list_transactions(account.id)]
            state = await self._client.get_account(account.id)
            if listed:
                one = listed[len(account.operations) % len(listed)]
                if await self._client.get_transaction(one.id) != one:
                    return [
                        _violation(account, f"GetTransaction of {one.id} differs from the list")
                    ]
        except LedgerError as error:
            return [_violation(account, f"cannot be read when all is healed: {error}")]
        found = [_violation(account, text) for text in differences(account, listed, state)]
        if again:
            self._checks["accounts read back once more at the end"] += 1
            return found
        self._checks["accounts read back: each write once, balances the sum of them"] += 1
        try:
            if not lin.is_linearizable(plain_calls(account)):
                found.append(_violation(account, "its history is not linearizable"))
            self._checks["accounts with a linearizable history"] += 1
        except lin.Undecided:
            self._checks["accounts whose linearizability was not decided"] += 1
        await asyncio.sleep(0)
        return found


def differences(
    account: Account, listed: list[ledger_pb2.Transaction], state: ledger_pb2.Account
) -> list[str]:
    """Hold what the ledger has of an account against its records; return what differs."""
    found = []
    by_request = {item.request_id: item for item in listed}
    if len(by_request) != len(listed):
        found.append("a request is there twice")
    ends = {
        item.transaction_id: SETTLED if item.kind == "settle" else CANCELLED
        for item in account.operations
        if item.kind in ("settle", "cancel") and item.end_s is not None and item.answer is not False
    }
    creates = [item for item in account.operations if item.kind == "create"]
    for operation in creates:
        there = by_request.pop(operation.request_id, None)
        if operation.refused:
            if there is not None:
                found.append(f"{operation.request_id} was refused, but it happened: {there.id}")
            continue
        if operation.end_s is None:
            continue  # said already: nobody answers
        if there is None:
            found.append(f"{operation.request_id} was acknowledged and is missing")
            continue
        answer = operation.answer
        status = ends.get(answer.id, answer.status)
        if (there.id, there.amount, there.status) != (answer.id, operation.amount, status):
            others = [str(o) for o in account.operations if o.transaction_id == answer.id]
            found.append(
                f"acknowledged as {answer} (now {status}), but there is {there}\nafter {others}"
            )
        if there.create_time != answer.create_time or there.entries != answer.entries:
            found.append(f"transaction {there.id} has changed since it was acknowledged")
    found += [f"{request_id} was never asked for" for request_id in by_request]
    settled = sum(item.amount for item in listed if item.status == SETTLED)
    held = sum(-item.amount for item in listed if item.status == PENDING and item.amount < 0)
    if (state.settled_balance, state.available_balance) != (settled, settled - held):
        found.append(
            f"balances {state.settled_balance} and {state.available_balance}, but its "
            f"transactions make {settled} and {settled - held}"
        )
    if state.pending_transactions != sum(item.status == PENDING for item in listed):
        found.append(f"{state.pending_transactions} transactions pending, the list has others")
    return found


def plain_calls(account: Account) -> list[lin.Call]:
    """Return an account's history as the checker wants it."""
    calls = []
    for item in account.operations:
        if item.refused:
            continue
        known = item.end_s is not None
        operation: lin.Operation
        result: object = None
        match item.kind:
            case "open":
                operation = lin.CreateAccount()
            case "create":
                operation = lin.CreateTransaction(item.amount, item.settled)
                if known:
                    # As it was right after: a repeat shows it so too.
                    result = item.answer.id, _STATUS[item.answer.status]
            case "settle" | "cancel":
                operation = lin.EndTransaction(item.transaction_id, item.kind == "settle")
                result = item.answer is not False if known else None
            case "read" if known:
                operation = lin.GetBalances()
                result = item.answer.settled_balance, item.answer.available_balance
            case _:
                continue
        calls.append(lin.Call(account.id, item.start_s, item.end_s, operation, result))
    return calls


def check_replicas(config: ClusterConfig, checks: Counter[str]) -> list[Violation]:
    """Prove that every shard's books balance and that its replicas are equal."""
    with NodeProbe(config) as probe:
        proofs = prove(config, lambda shard_ids: probe.audits(shard_ids, AUDIT_S_MAX))
    found = [Violation(problem) for proof in proofs for problem in proof.problems()]
    for proof in proofs:
        missing = set(proof.shard.node_ids) - proof.compared
        if missing:
            found.append(Violation(f"shard {proof.shard.id}: not compared: {missing}"))
        else:
            checks["shards whose books balance and whose replicas are equal"] += 1
    return found


def _violation(account: Account, what: str) -> Violation:
    return Violation(f"account {account.id} (shard {account.shard_id}): {what}")

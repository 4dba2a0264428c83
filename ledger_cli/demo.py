"""`ledger dev demo`: a cluster that loses a node under load and keeps every promise.

It runs beside any other cluster: on free ports and in a temporary directory. Whatever happens,
Ctrl-C included, it ends what it started and removes what it wrote.
"""

import asyncio
import random
import signal
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import click

from ledger.v1 import ledger_pb2
from ledger_cli.context import CliError
from ledger_cli.local_cluster import LocalCluster, LocalClusterError, free_cluster_ports
from ledger_cli.node_probe import NodeProbe, serving_leader
from ledger_cli.scenarios import ACCOUNT_SCENARIOS, SCENARIOS
from ledger_cli.story import ClaimError, Story
from ledger_cli.traffic import AccountsByShard, Traffic, open_accounts
from ledger_cli.verify import ShardProof, prove
from ledger_client import AsyncLedgerClient, credit, debit
from ledger_cluster.config import ClusterConfig, generate_cluster_config
from ledger_cluster.shard_map import ShardMap
from ledger_core.ledgers import MAIN_NAME, USD
from ledger_core.money import format_amount

NODES, SHARDS, REPLICAS = 3, 16, 3
ACCOUNTS = 100
VICTIM_SHARD = 3
TRANSFERS, TRANSFER = 100, 20_00
STEADY_S = 3.0
# What the product promises for the loss of a node.
RESUME_S_MAX = 3.0
# How long the demo waits for anything before it says that it does not happen.
PATIENCE_S = 30.0
POLL_S = 0.05
LOG_LINES = 8

T = TypeVar("T")


@click.command()
def demo() -> None:
    """Start a cluster, use it, kill a node under load, and prove that nothing was lost.

    Takes 15 to 25 seconds, disturbs no other cluster and leaves nothing behind. Exits with 1 if
    anything that it claims does not hold.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ledger-demo-") as scratch:
        base_port, gateway_port = free_cluster_ports(NODES)
        config = generate_cluster_config(
            NODES, SHARDS, REPLICAS, cluster_id="demo", base_port=base_port
        )
        cluster = LocalCluster(config, Path(scratch) / "data", gateway_port)
        signal_number = 0
        try:
            signal_number = asyncio.run(_Demo(cluster).run())
        except (ClaimError, LocalClusterError) as error:
            raise CliError(f"\n{_log_ends(cluster)}\n\n✗ {error}") from None
    if signal_number:
        click.echo("Stopped before the end; nothing is left running.", err=True)
        raise click.exceptions.Exit(128 + signal_number)
    click.echo(f"\nNothing is left running; all of it took {time.monotonic() - began:.0f} s.")
    for line in (
        "  ledger dev cluster       run such a cluster yourself, gateway on 127.0.0.1:8000;",
        "                           with it: ledger accounts create, ledger dev scenario-1,",
        "                           ledger dev kill leader --shard 3, ledger verify",
        "  scripts/test             run the tests",
        "  README.md                your first transaction, and the way of a request in the code",
    ):
        click.echo(line)


class _Demo:
    """One run. The cluster has a thread of its own, so that waiting for it delays no client."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._config: ClusterConfig = cluster.config
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cluster")
        self._act = 0
        self._summary: list[str] = []

    async def run(self) -> int:
        """Run; return 0, or the number of the signal that ended it early."""
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(self._run_and_clean_up())
        received: list[int] = []

        def stop(number: int) -> None:
            received.append(number)
            if len(received) == 1:  # a second Ctrl-C must not end the cleaning up
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop, number)
        with suppress(asyncio.CancelledError):
            await task
        return received[0] if received else 0

    async def _run_and_clean_up(self) -> None:
        try:
            await self._run()
        finally:
            killed = await self._in_thread(self._cluster.stop)
            self._thread.shutdown()
        if killed:
            raise ClaimError(f"these did not stop when asked and were killed: {', '.join(killed)}")

    async def _run(self) -> None:
        await self._start()
        async with AsyncLedgerClient(self._cluster.gateway_address) as client:
            accounts = await self._seed(client)
            await self._scenarios(client)
            traffic = Traffic(client, accounts)
            await self._lose_a_node(traffic)
            await self._check_acknowledged(traffic, accounts)
            await self._transfer(client, accounts)
        await self._prove()
        click.echo("")
        for line in self._summary:
            click.secho(line, bold=True)

    async def _start(self) -> None:
        self._title(f"A cluster: {NODES} nodes, {SHARDS} shards, {REPLICAS} replicas of each")
        began = time.monotonic()
        await self._in_thread(self._cluster.start)
        for node in self._config.nodes:
            click.echo(f"  {node.id:8} {node.address}")
        click.echo(f"  gateway  {self._cluster.gateway_address}")
        await self._until(lambda: not self._cluster.not_serving(), "all shards have a leader")
        self._holds(f"every shard has a leader {time.monotonic() - began:.1f} s after the start")

    async def _seed(self, client: AsyncLedgerClient) -> AccountsByShard:
        self._title("Accounts")
        began = time.monotonic()
        shard_ids = [shard.id for shard in self._config.shards]
        accounts = await open_accounts(client, ShardMap(self._config), shard_ids, ACCOUNTS)
        counts = [len(account_ids) for account_ids in accounts.values()]
        self._holds(
            f"{sum(counts)} accounts opened in {time.monotonic() - began:.1f} s, "
            f"{min(counts)} to {max(counts)} on each shard"
        )
        return accounts

    async def _scenarios(self, client: AsyncLedgerClient) -> None:
        for name, scenario in SCENARIOS.items():
            self._title(f"{name}: {(scenario.__doc__ or '').strip().rstrip('.')}")
            account_id = ""
            if name in ACCOUNT_SCENARIOS:
                account_id = (await client.create_account()).id
            await scenario(Story(client, account_id, lambda line: click.echo(f"  {line}")))

    async def _lose_a_node(self, traffic: Traffic) -> None:
        self._title("Losing a node under load")
        cluster = self._cluster
        async with traffic:
            began = time.monotonic()
            await asyncio.sleep(STEADY_S)
            every = [shard.id for shard in self._config.shards]
            click.echo(
                f"  {traffic.clients} clients write to all shards, {traffic.rate:.0f} writes/s; "
                f"no pause of more than {_longest(traffic, every, began):.2f} s on any shard"
            )
            victim, led = await self._in_thread(self._leader_and_its_shards)
            named = ", ".join(str(item) for item in led if item != VICTIM_SHARD)
            click.echo(
                f"  kill -9 {victim}, which leads shard {VICTIM_SHARD}"
                + (f" (and shards {named})" if named else "")
            )
            killed_at = time.monotonic()
            await self._in_thread(lambda: cluster.kill(victim))
            await self._until_written(traffic, time.monotonic(), "every shard is written again")
            await asyncio.sleep(STEADY_S)
            self._tell_pauses(traffic, led, [item for item in every if item not in led], killed_at)

            restarted_at = time.monotonic()
            committed = await self._in_thread(cluster.commit_indexes)
            await self._in_thread(lambda: cluster.restart(victim))
            await self._until(
                lambda: cluster.has_applied(victim, committed), f"{victim} catches up"
            )
            seconds = time.monotonic() - restarted_at
            self._holds(f"{victim} is back and has all it missed, {seconds:.1f} s after its start")
            await asyncio.sleep(STEADY_S / 2)
            await self._until_written(traffic, restarted_at, "every shard is written on")
            longest = _longest(traffic, every, restarted_at)
            click.echo(f"  its return: no pause of more than {longest:.2f} s on any shard")
        await self._in_thread(self._check_exits)

    def _leader_and_its_shards(self) -> tuple[str, list[int]]:
        answers = self._cluster.statuses()
        leaders = {shard.id: serving_leader(shard, answers) for shard in self._config.shards}
        victim = leaders[VICTIM_SHARD]
        if victim is None:
            raise ClaimError(f"shard {VICTIM_SHARD} has lost its leader, though no node was lost")
        return victim, [shard_id for shard_id, leader in leaders.items() if leader == victim]

    def _tell_pauses(
        self, traffic: Traffic, led: list[int], others: list[int], killed_at: float
    ) -> None:
        now = time.monotonic()
        pauses = {item: traffic.longest_pause_s(item, killed_at, now) for item in led}
        click.echo("  without an acknowledged write:")
        for shard_id, pause_s in pauses.items():
            click.echo(f"    shard {shard_id:<3} {pause_s:5.2f} s")
        longest = max(pauses.values())
        self._claim(
            longest < RESUME_S_MAX,
            f"the shards of the lost node are written again within {RESUME_S_MAX:g} s",
            f"{longest:.2f} s",
        )
        if others:
            pause_s = _longest(traffic, others, killed_at)
            click.echo(f"  all other shards went on: no pause of more than {pause_s:.2f} s")
        self._summary.append(
            f"A node was killed under load: shard {VICTIM_SHARD} had no acknowledged write for "
            f"{pauses[VICTIM_SHARD]:.2f} s."
        )

    async def _check_acknowledged(self, traffic: Traffic, accounts: AccountsByShard) -> None:
        self._title("What was acknowledged is there, once")
        unanswered = [write for write in traffic.writes if not write.answer]
        failed = sum(bool(write.failures) for write in traffic.writes)
        faults = await traffic.faults()
        number = f"{len(traffic.acknowledged):,}"
        if failed:
            click.echo(
                f"  {failed} writes had no answer at first and were repeated with the same "
                f"request id; {len(unanswered)} of them only now"
            )
        else:
            click.echo(
                "  every write was answered, some late: the gateway waits for the new leader"
            )
        self._claim(
            not faults,
            f"all {number} acknowledged transactions were read back: each once, as answered",
            "; ".join(faults[:3]),
        )
        opened = sum(map(len, accounts.values()))
        total = sum(write.effect for write in traffic.acknowledged)
        amount = format_amount(total, USD.code, USD.exponent)
        self._holds(f"the balances of {opened} accounts are what they sum to: {amount} in all")
        self._summary.append(
            f"Of {number} acknowledged transactions none is missing and none is there twice."
        )

    async def _transfer(self, client: AsyncLedgerClient, accounts: AccountsByShard) -> None:
        self._title(f"{TRANSFERS} transfers at once between random accounts")
        account_ids = [item for items in accounts.values() for item in items]
        shard_of = {item: shard_id for shard_id, items in accounts.items() for item in items}
        pairs = [random.sample(account_ids, 2) for _ in range(TRANSFERS)]

        async def balances() -> dict[str, int]:
            found = await asyncio.gather(*map(client.get_account, account_ids))
            return {account.id: account.settled_balance for account in found}

        before = await balances()
        began = time.monotonic()
        answers = await asyncio.gather(
            *(
                client.create_transaction(
                    entries=[debit(payer, TRANSFER), credit(payee, TRANSFER)], settled=True
                )
                for payer, payee in pairs
            )
        )
        seconds = time.monotonic() - began
        expected = dict(before)
        settled = 0
        for (payer, payee), answer in zip(pairs, answers, strict=True):
            if answer.status == ledger_pb2.TRANSACTION_STATUS_SETTLED:
                expected[payer] -= TRANSFER
                expected[payee] += TRANSFER
                settled += 1
        after = await balances()
        apart = sum(shard_of[payer] != shard_of[payee] for payer, payee in pairs)
        click.echo(
            f"  all answered after {seconds:.2f} s: {settled} settled, {TRANSFERS - settled} "
            f"refused for lack of money; {apart} between different shards"
        )
        total = format_amount(sum(before.values()), USD.code, USD.exponent)
        self._claim(
            sum(after.values()) == sum(before.values()),
            f"the {len(account_ids)} accounts have what they had together: {total}",
            format_amount(sum(after.values()), USD.code, USD.exponent),
        )
        wrong = sorted(item for item in after if after[item] != expected[item])
        self._claim(
            not wrong,
            "each transfer moved its money on both sides or on none",
            f"other balances of {', '.join(wrong[:3])}",
        )
        lowest = min(after.values())
        self._claim(lowest >= 0, "no balance is below zero", str(lowest))

    async def _prove(self) -> None:
        self._title("The books")

        def run() -> list[ShardProof]:
            with NodeProbe(self._config) as probe:
                return prove(self._config, lambda shard_ids: probe.audits(shard_ids, PATIENCE_S))

        proofs = await self._in_thread(run)
        problems = [problem for proof in proofs for problem in proof.problems()]
        debits = sum(
            int(sums.debits_posted)
            for proof in proofs
            for sums in (proof.latest.sums if proof.latest else ())
            if (sums.ledger, sums.currency) == (MAIN_NAME, USD.code)
        )
        moved = format_amount(debits, USD.code, USD.exponent)
        entries = sum(proof.latest.entries for proof in proofs if proof.latest)
        self._claim(
            not problems,
            f"sum of all balances = 0 on every one of {len(proofs)} shards "
            f"({entries:,} entries; in {MAIN_NAME}, debits = credits = {moved})",
            "; ".join(problems[:3]),
        )
        replicas = sum(len(proof.shard.replicas) for proof in proofs)
        self._holds(f"all {replicas} replicas are equal to those of their shard, by hash chain")
        self._summary.append("Every shard balances to zero, and all replicas are equal.")

    def _check_exits(self) -> None:
        """Claim that no process ended but those that were killed on purpose."""
        if exits := self._cluster.take_exits():
            raise ClaimError("; ".join(f"{item.name} {item.cause}" for item in exits))

    async def _until(self, done: Callable[[], bool], what: str) -> None:
        """Wait for a state of the cluster; ClaimError if it does not come or a process ends."""
        deadline = time.monotonic() + PATIENCE_S
        while not await self._in_thread(done):
            await self._in_thread(self._check_exits)
            if time.monotonic() > deadline:
                raise ClaimError(f"not within {PATIENCE_S:g} s: {what}")
            await asyncio.sleep(POLL_S)

    async def _until_written(self, traffic: Traffic, since: float, what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not traffic.has_answers_since(since):
            if time.monotonic() > deadline:
                raise ClaimError(f"not within {PATIENCE_S:g} s: {what}")
            await asyncio.sleep(POLL_S)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _title(self, text: str) -> None:
        self._act += 1
        click.secho(f"\n{self._act}. {text}", bold=True)

    def _holds(self, text: str) -> None:
        click.echo(f"  ✓ {text}")

    def _claim(self, holds: bool, text: str, otherwise: str) -> None:
        if not holds:
            raise ClaimError(f"this does not hold: {text} (found: {otherwise})")
        self._holds(text)


def _longest(traffic: Traffic, shard_ids: list[int], since: float) -> float:
    now = time.monotonic()
    return max(traffic.longest_pause_s(shard_id, since, now) for shard_id in shard_ids)


def _log_ends(cluster: LocalCluster) -> str:
    """Return the last lines of every process: its log is about to be removed."""
    lines = []
    for name in cluster.names:
        with suppress(OSError):
            log = (cluster.data_dir / f"{name}.log").read_text(errors="replace")
            lines += [f"{name} | {line}" for line in log.splitlines()[-LOG_LINES:]]
    return "\n".join(lines)

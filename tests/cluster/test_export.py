"""A cluster's journals are exported while transfers run, and are a whole in another cluster."""

import asyncio
import json
import random
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from breaking import PATIENCE_S, off_loop, until
from test_transfers import balances, funded, nothing_unfinished

from ledger_cli import export_check
from ledger_cli.local_cluster import LocalCluster, free_cluster_ports
from ledger_client import AsyncLedgerClient, LedgerError, credit, debit
from ledger_cluster.config import generate_cluster_config

pytestmark = pytest.mark.cluster


def ledger(*args: str, expected: int = 0) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(
        [sys.executable, "-m", "ledger_cli.main", *args],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == expected, ran.stdout + ran.stderr
    return ran


async def test_an_export_under_transfers_is_a_whole_elsewhere(
    cluster: LocalCluster, gateway: str, tmp_path: Path
) -> None:
    file = tmp_path / "all.jsonl"
    async with AsyncLedgerClient(gateway) as client:
        accounts = await funded(client, cluster)
        account_ids = [item for items in accounts.values() for item in items]
        done, rng = asyncio.Event(), random.Random(5)

        async def pay() -> None:
            while not done.is_set():
                payer, payee = rng.sample(account_ids, 2)
                amount = rng.randrange(1, 30)
                settled = rng.random() < 0.7
                with suppress(LedgerError):
                    made = await client.create_transaction(
                        entries=[debit(payer, amount), credit(payee, amount)], settled=settled
                    )
                    if not settled:
                        await client.settle_transaction(made.id)

        payers = [asyncio.create_task(pay()) for _ in range(24)]
        await asyncio.sleep(0.5)
        for _ in range(3):  # the cut is made three times, the last one stays
            await off_loop(
                partial(
                    ledger,
                    *("export", "--gateway", gateway, "--force"),
                    *("--output-file", str(file)),
                )
            )
        done.set()
        await asyncio.gather(*payers)

    report = export_check.check_export(file)
    assert report.problems == []
    assert sorted(report.chains) == [shard.id for shard in cluster.config.shards]

    shards = len(cluster.config.shards)
    base_port, gateway_port = free_cluster_ports(1)
    config = generate_cluster_config(1, shards, 1, cluster_id="copy", base_port=base_port)
    with LocalCluster(config, tmp_path / "copy", gateway_port) as copy:
        copy.wait_until_serving(PATIENCE_S)
        to = ("--gateway", copy.gateway_address)
        imported = await off_loop(partial(ledger, "import", *to, str(file), "--timeout", "60"))
        assert f"The hash chains of {shards} shards equal those of the export." in imported.stdout
        # What was on its way is carried on: it ends as it would have.
        await until(lambda: nothing_unfinished(copy), "all transfers end")
        (tmp_path / "copy.json").write_text(config.dump())
        proven = await off_loop(
            partial(ledger, "verify", "--cluster-config", str(tmp_path / "copy.json"), "-o", "json")
        )
        assert json.loads(proven.stdout)["ok"]
        async with AsyncLedgerClient(copy.gateway_address) as client:
            # Money went from one account to another: none was made, none was lost.
            assert sum((await balances(client, accounts)).values()) == len(account_ids) * 10_000
            await client.create_account()
        assert copy.take_exits() == []

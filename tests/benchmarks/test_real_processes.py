"""The smallest measurements there can be: that all of it works, not how fast it is."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.bench import Bench
from benchmarks.figures import Figures
from benchmarks.growth_step import GrowthStep
from benchmarks.kill_step import KillStep
from benchmarks.postgres import binaries
from benchmarks.postgres.pgbench import pgbench
from benchmarks.postgres.server import PostgresError, Server
from benchmarks.postgres.step import PostgresStep
from benchmarks.progress import Progress
from benchmarks.scenario import Scenario
from benchmarks.stage import Size

pytestmark = pytest.mark.cluster


def measured(step: Scenario | KillStep, bench: Bench) -> list[Figures]:
    """Run a step, and again for longer where the machine was too busy for anything to be done."""
    found = step.run(bench)
    if all(item.done and item.more.get("again /s", 1) for item in found):
        return found
    return replace(step, seconds=3 * step.seconds + 5).run(bench)


def test_a_scenario_on_a_cluster(tmp_path: Path) -> None:
    size = Size(shards=2, accounts=40)
    with Progress() as progress, Bench(tmp_path, progress) as bench:
        for operation in ("grpc/two_shards", "sdk/get_account"):
            scenario = Scenario("part", operation, operation, size, 4, 0.3, 0.1)
            closed, opened = measured(scenario, bench)
            assert (closed.loop, opened.loop) == ("closed", "open")
            for figures in (closed, opened):
                assert figures.done > 0
                assert figures.failed == {}
                assert set(figures.cpu_us) == {"gateway", "nodes", "load"}
                assert figures.lag is not None
        for operation in (
            "bulk/one_shard",
            "stream/random_accounts",
            "sdk_bulk/same_shard",
            "sdk_many/get_balances",
        ):
            scenario = Scenario(
                "part", operation, operation, size, 4, 0.3, 0.1, per_call=7, connections=2
            )
            closed, opened = measured(scenario, bench)
            for figures in (closed, opened):
                assert figures.done > 0
                assert figures.failed == {}
                assert figures.per_call == 7
        bench.prove()
    # The cluster is gone, and so is its folder.
    assert list(tmp_path.iterdir()) == []


def test_a_kill_and_growing_stores(tmp_path: Path) -> None:
    size = Size(shards=2, accounts=40)
    with Progress() as progress, Bench(tmp_path, progress) as bench:
        (figures,) = measured(KillStep(size, 6.0, 0.2), bench)
        assert figures.done > 0
        assert figures.failed == {}
        assert 0 < figures.more["pause s"] < figures.seconds
        assert figures.more["again /s"] > 0
        bench.prove()
        found = GrowthStep(size, 0.5, 0.1, 10_000, None).run(bench)
        assert found[-1].more["transfers"] >= 10_000
        assert found[0].more["of first"] == 1
        bench.prove()


@pytest.fixture
def programs() -> Path:
    if (programs := binaries.find()) is None:
        pytest.skip("PostgreSQL is not installed")
    return programs


@pytest.mark.usefixtures("programs")
def test_a_step_on_postgres() -> None:
    with Progress() as progress, Bench(None, progress) as bench:
        (figures,) = PostgresStep(2, 3, 10, 1.0, 0.0).run(bench)
    assert figures.done > 0
    assert figures.failed == {}
    assert figures.latency.count * 3 == figures.done


def test_transfers_on_postgres(programs: Path) -> None:
    with Server(programs, None) as server:
        server.load_schema(accounts=3, funds=5)
        request = "'11111111-1111-1111-1111-111111111111'"
        # Once for each request id.
        assert server.ask(f"SELECT transfer(1, 2, 4, {request})") == "1"
        assert server.ask(f"SELECT transfer(1, 2, 4, {request})") == "1"
        # Never below the floor.
        with pytest.raises(PostgresError, match="accounts_check"):
            server.ask("SELECT transfer(1, 3, 2, gen_random_uuid())")
        assert server.ask("SELECT balance FROM accounts ORDER BY id").split() == ["1", "9", "5"]
        assert server.ask("SELECT account_id, amount FROM entries").split() == ["1|-4", "2|4"]
        assert server.ask("SHOW fsync") == server.ask("SHOW synchronous_commit") == "on"
        server.ask("UPDATE accounts SET balance = 1000000")
        calls = pgbench(
            server, clients=2, per_call=1, accounts=3, seconds=1, passed=lambda _: None
        ).calls
        assert server.ask("SELECT count(*) FROM transactions") == str(calls + 1)
        assert server.ask("SELECT sum(balance) FROM accounts") == "3000000"
    assert not server.folder.exists()

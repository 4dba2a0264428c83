"""`ledger dev`: a local cluster, accounts to play with, and scenarios that prove the promises."""

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ledger.v1 import ledger_pb2
from ledger_cli import cluster_state
from ledger_cli.context import (
    CliError,
    Session,
    cluster_config_option,
    gateway_options,
    output_option,
    pass_session,
)
from ledger_cli.demo import demo
from ledger_cli.local_cluster import GATEWAY, LocalCluster, LocalClusterError
from ledger_cli.node_probe import NodeProbe, serving_leader
from ledger_cli.output import account_record, console
from ledger_cli.scenarios import ACCOUNT_SCENARIOS, SCENARIOS
from ledger_cli.story import ClaimError, Story
from ledger_cli.supervisor import Supervisor
from ledger_cluster.config import load_cluster_config

CONTROL_TIMEOUT_S = 25.0
RESTART_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 15.0

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("data"),
    show_default=True,
    help="Where the cluster keeps its data.",
)


@click.group()
def dev() -> None:
    """Run a local cluster, and see it keep its promises."""


@dev.command("seed-accounts")
@click.option("--count", type=click.IntRange(min=1), default=100, show_default=True)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1024),
    default=32,
    show_default=True,
    help="Calls at once.",
)
@output_option
@gateway_options
@pass_session
def seed_accounts(session: Session, count: int, concurrency: int) -> None:
    """Open accounts through the gateway, many at once, and print their ids."""
    asyncio.run(_seed(session, count, concurrency))


async def _seed(session: Session, count: int, concurrency: int) -> None:
    made: list[ledger_pb2.Account] = []
    todo = iter(range(count))
    progress = Progress(
        TextColumn("opening accounts"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console(stderr=True),
        transient=True,
    )
    async with session.async_client() as client:

        async def worker() -> None:
            for _ in todo:
                account = await client.create_account()
                made.append(account)
                progress.advance(bar)
                if session.output_format == "table":
                    click.echo(account.id)

        with progress:
            bar = progress.add_task("", total=count)
            workers = [asyncio.create_task(worker()) for _ in range(min(concurrency, count))]
            try:
                await asyncio.gather(*workers)
            finally:
                for task in workers:
                    task.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
                if session.output_format != "table":
                    session.output.records([account_record(account) for account in made])
                if len(made) < count:
                    click.echo(f"{len(made)} of {count} accounts were opened.", err=True)


def _scenario(name: str) -> click.Command:
    @output_option
    @gateway_options
    @pass_session
    def run(session: Session, account_id: str | None = None) -> None:
        asyncio.run(_tell(session, name, account_id))

    if name in ACCOUNT_SCENARIOS:
        run = click.option("--account-id", help="The account to use (default: a new one).")(run)
    return click.command(name, help=SCENARIOS[name].__doc__)(run)


for _name in SCENARIOS:
    dev.add_command(_scenario(_name))
dev.add_command(demo)


async def _tell(session: Session, name: str, account_id: str | None) -> None:
    talk = session.output_format == "table"

    def tell(line: str) -> None:
        if talk:
            click.echo(line)

    failure = ""
    async with session.async_client() as client:
        if name not in ACCOUNT_SCENARIOS:
            tell(f"{name} with accounts of its own")
        elif account_id is None:
            account_id = (await client.create_account()).id
            tell(f"{name} with the new account {account_id}")
        else:
            tell(f"{name} with account {account_id}")
        story = Story(client, account_id or "", tell)
        try:
            await SCENARIOS[name](story)
        except ClaimError as error:
            failure = str(error)
    if talk:
        tell(f"{name} holds: {len(story.claims)} claims checked" if not failure else "")
    else:
        session.output.record(
            {
                "scenario": name,
                "account_id": account_id,
                "ok": not failure,
                "failure": failure,
                "claims": story.claims if session.output_format == "json" else len(story.claims),
            }
        )
    if failure:
        raise CliError(f"✗ {name}: {failure}")


@dev.command("cluster")
@cluster_config_option
@data_dir_option
@click.option("--gateway-port", type=click.IntRange(1, 65_535), default=8000, show_default=True)
def run_cluster(cluster_config: str, data_dir: Path, gateway_port: int) -> None:
    """Run a whole cluster here until Ctrl-C: every node, and a gateway."""
    config = load_cluster_config(cluster_config)
    hint = "ledger dev restart"
    if data_dir != Path("data"):
        hint += f" --data-dir {data_dir}"
    supervisor = Supervisor((*(node.id for node in config.nodes), GATEWAY), hint)
    cluster = LocalCluster(
        config, data_dir, gateway_port, config_path=cluster_config, on_line=supervisor.show_line
    )
    try:
        supervisor.run(cluster)
    except LocalClusterError as error:
        raise CliError(str(error)) from None


@dev.command()
@click.argument("name")
@click.option("--shard", type=int, help="Of which shard, when NAME is leader.")
@cluster_config_option
@data_dir_option
def kill(name: str, shard: int | None, cluster_config: str, data_dir: Path) -> None:
    """Kill a process of the local cluster as kill -9 does.

    NAME is a node, "gateway", or "leader" with --shard: the node that leads that shard.
    """
    if (name == "leader") != (shard is not None):
        raise click.UsageError("`kill leader` and --shard go together.")
    if shard is not None:
        name = _leader(cluster_config, shard)
        click.echo(f"shard {shard} is led by {name}")
    click.echo(_ask(data_dir, "kill", name))


@dev.command()
@click.argument("name")
@cluster_config_option
@data_dir_option
def restart(name: str, cluster_config: str, data_dir: Path) -> None:
    """Start a process of the local cluster again; one that runs is stopped first.

    NAME is a node or "gateway".
    """
    config = load_cluster_config(cluster_config)
    click.echo(_ask(data_dir, "restart", name))
    if name == GATEWAY:
        return
    with NodeProbe(config) as probe:

        def answers_or_ended() -> bool:
            state = cluster_state.read_state(data_dir)
            ended = state is not None and name not in state.processes
            return ended or probe.node_statuses()[name].status is not None

        if not _wait(answers_or_ended, RESTART_TIMEOUT_S):
            raise CliError(f"{name} runs, but does not answer after {RESTART_TIMEOUT_S:g} s.")
    state = cluster_state.read_state(data_dir)
    if state is None or name not in state.processes:
        raise CliError(f"{name} ended again at once; the cluster's log says why.")
    click.echo(f"{name} answers")


@dev.command()
@data_dir_option
def stop(data_dir: Path) -> None:
    """Stop the local cluster, also what an earlier one has left running."""
    state = cluster_state.read_state(data_dir)
    if state and (left_over := state.left_over):
        _end(left_over)
        cluster_state.remove_state(data_dir)
        click.echo(f"stopped what an earlier cluster had left running: {', '.join(left_over)}")
        return
    supervisor = _supervisor(data_dir)
    _ask(data_dir, "stop", "")
    # The state file goes when everything has ended.
    if not _wait(
        lambda: not supervisor.alive or cluster_state.read_state(data_dir) is None, STOP_TIMEOUT_S
    ):
        raise CliError(f"The supervisor (pid {supervisor.pid}) is still stopping the cluster.")
    click.echo("stopped")


def _supervisor(data_dir: Path) -> cluster_state.ProcessMark:
    state = cluster_state.read_state(data_dir)
    if state is None or not state.supervisor.alive:
        raise CliError(
            f"No local cluster runs in {data_dir}. `ledger dev cluster` starts one; "
            "--data-dir names another directory."
        )
    return state.supervisor


def _ask(data_dir: Path, action: str, name: str) -> str:
    supervisor = _supervisor(data_dir)
    try:
        return cluster_state.request(data_dir, supervisor, action, name, CONTROL_TIMEOUT_S)
    except (RuntimeError, TimeoutError) as error:
        raise CliError(f"Cannot {action} {name}: {error}.".replace(" :", ":")) from None


def _leader(cluster_config: str, shard_id: int) -> str:
    config = load_cluster_config(cluster_config)
    shard = config.shard(shard_id)
    with NodeProbe(config) as probe:
        leader = serving_leader(shard, probe.node_statuses())
    if leader is None:
        raise CliError(
            f"Shard {shard_id} has no leader that serves now; `ledger cluster status` shows more."
        )
    return leader


def _end(processes: dict[str, cluster_state.ProcessMark]) -> None:
    """End processes that are not ours to hold: only while id *and* start time are theirs."""
    for number, patience_s in ((signal.SIGTERM, STOP_TIMEOUT_S), (signal.SIGKILL, 5.0)):
        for mark in processes.values():
            mark.send(number)
        if _wait(lambda: not any(mark.alive for mark in processes.values()), patience_s):
            return
    raise CliError("Some processes do not end even when killed; see data/cluster.json.")


def _wait(done: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True

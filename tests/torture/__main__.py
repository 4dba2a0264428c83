"""The command behind ``scripts/torture``."""

import asyncio
import secrets
import signal
import sys

import click

from tests.torture.campaign import DECK, Campaign


@click.command(context_settings={"show_default": True})
@click.option(
    "--minutes", type=click.FloatRange(min=0.01), default=1.0, help="How long to torture."
)
@click.option("--seed", type=int, help="What to draw faults from (default: a new one).")
@click.option("--shards", type=click.IntRange(1), default=16, help="Shards of the cluster.")
@click.option(
    "--only",
    type=click.Choice(list(DECK)),
    multiple=True,
    show_default=False,
    help="Inject this kind of fault only; may be given several times.",
)
@click.option(
    "--transfers-only",
    is_flag=True,
    show_default=False,
    help="Only transfers: 64 clients move money between 100 accounts on all shards.",
)
def main(
    minutes: float, seed: int | None, shards: int, only: tuple[str, ...], transfers_only: bool
) -> None:
    """Break a cluster of real processes on purpose while clients move money, and check it all.

    Exits with 1 if any promise did not hold; data and logs are kept then.
    """
    seed = secrets.randbelow(2**32) if seed is None else seed
    campaign = Campaign(
        minutes * 60,
        seed,
        click.echo,
        shards=shards,
        kinds=list(only) or None,
        transfers_only=transfers_only,
    )
    click.echo(f"seed {seed}; 3 nodes, {shards} shards with 3 replicas each; {campaign.directory}")
    interrupted = asyncio.run(_run(campaign))
    click.echo(campaign.table)
    if campaign.violations:
        click.secho(f"\n{len(campaign.violations)} violations (seed {seed})", fg="red", bold=True)
        for violation in campaign.violations[:20]:
            click.echo(f"  {violation}")
        click.echo(f"Data and logs are kept in {campaign.directory}")
        sys.exit(1)
    if interrupted:
        click.echo("Stopped before the end; nothing is left running.")
        sys.exit(130)
    click.secho(
        "\nNothing lost, nothing doubled, nothing overdrawn, nothing half done.",
        fg="green",
        bold=True,
    )


async def _run(campaign: Campaign) -> bool:
    """Run; return whether a signal ended it."""
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(campaign.run())
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        if len(received) == 1:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if not received:
            raise
    return bool(received)


if __name__ == "__main__":
    main()

"""`ledger ledgers`: sets of books with their currencies and charts of accounts."""

from collections.abc import Sequence

import click

from ledger.v1 import ledger_pb2
from ledger_cli.context import (
    Session,
    actor_option,
    gateway_options,
    output_option,
    paging_options,
    pass_session,
    request_id_option,
    shown,
    stale_option,
)
from ledger_cli.options import currency_and_chart_options

_PAGE_SIZE_MAX = 100


@click.group()
def ledgers() -> None:
    """Make ledgers, extend them and look at them."""


@ledgers.command()
@click.argument("name")
@click.option("--description", default="", help="At most 1,000 characters.")
@currency_and_chart_options
@actor_option
@request_id_option
@output_option
@gateway_options
@pass_session
def create(
    session: Session,
    *,
    name: str,
    description: str,
    currencies: Sequence[ledger_pb2.Currency],
    chart: Sequence[ledger_pb2.ChartLine],
    actor: str,
    request_id: str | None,
) -> None:
    """Make a ledger with at least one currency.

    Without a chart, its accounts may have any code and any type.
    """
    request_id = session.remember_request(request_id)
    with session.client() as client:
        ledger = client.create_ledger(
            name,
            currencies,
            chart,
            description,
            actor=actor,
            request_id=request_id,
            correlation_id=session.correlation_id,
        )
    session.output.ledger(ledger)


@ledgers.command()
@click.argument("name", default="main")
@stale_option
@output_option
@gateway_options
@pass_session
def get(session: Session, name: str, stale: bool) -> None:
    """Show a ledger with its chart (default: main)."""
    with session.client() as client:
        session.output.ledger(client.get_ledger(name, stale=stale))


@ledgers.command("list")
@paging_options
@stale_option
@output_option
@gateway_options
@pass_session
def list_(session: Session, limit: int, everything: bool, stale: bool) -> None:
    """List all ledgers by name."""
    with session.client() as client:
        found = client.list_ledgers(page_size=_PAGE_SIZE_MAX, stale=stale)
        session.output.ledgers(shown(found, limit, everything))


@ledgers.command()
@click.argument("name")
@click.option("--description", help="At most 1,000 characters (default: as it is).")
@currency_and_chart_options
@click.option(
    "--revision",
    type=click.IntRange(min=0),
    help="Do it only if the ledger is at this revision (default: the one it is at now).",
)
@actor_option
@request_id_option
@output_option
@gateway_options
@pass_session
def update(
    session: Session,
    *,
    name: str,
    description: str | None,
    currencies: Sequence[ledger_pb2.Currency],
    chart: Sequence[ledger_pb2.ChartLine],
    revision: int | None,
    actor: str,
    request_id: str | None,
) -> None:
    """Add currencies and lines of the chart to a ledger, or change its description.

    What is there never changes.
    """
    request_id = session.remember_request(request_id)
    with session.client() as client:
        if revision is None:
            revision = client.get_ledger(name).revision
        session.remember_option("--revision", revision)
        ledger = client.update_ledger(
            name,
            revision,
            description=description,
            currencies=currencies,
            chart=chart,
            actor=actor,
            request_id=request_id,
            correlation_id=session.correlation_id,
        )
    session.output.ledger(ledger)

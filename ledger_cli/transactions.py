"""`ledger transactions`: move money, settle, cancel, and look at what happened."""

from itertools import islice

import click

from ledger_cli.context import (
    Session,
    gateway_options,
    output_option,
    pass_session,
    request_id_option,
    stale_option,
)
from ledger_core.money import INT64_MAX

PAGE_SIZE_MAX = 1_000


def _one_of_both(ctx: click.Context, param: click.Parameter, value: bool | None) -> bool:
    """Require a choice: a default here would move or hold money that nobody meant to."""
    if value is None:
        raise click.MissingParameter(ctx=ctx, param=param)
    return value


@click.group()
def transactions() -> None:
    """Move money, settle, cancel, and look at what happened."""


@transactions.command()
@click.option("--account-id", required=True, help="16 hex digits.")
@click.option(
    "--amount",
    required=True,
    type=click.IntRange(-INT64_MAX, INT64_MAX),
    metavar="MINOR_UNITS",
    help="In minor units (cents): 500 is money in, -500 is money out.",
)
@click.option("--description", default="", help="At most 1,000 characters.")
@click.option(
    "--settled/--pending",
    default=None,
    callback=_one_of_both,
    help="Move the money at once, or reserve it until settled or cancelled.",
)
@request_id_option
@output_option
@gateway_options
@pass_session
def create(
    session: Session,
    *,
    account_id: str,
    amount: int,
    description: str,
    settled: bool,
    request_id: str | None,
) -> None:
    """Move money into or out of an account.

    Money out beyond the available balance is recorded as INSUFFICIENT_FUNDS and moves nothing.
    """
    request_id = session.remember_request(request_id)
    with session.client() as client:
        transaction = client.create_transaction(
            account_id, amount, description, settled=settled, request_id=request_id
        )
    session.output.transaction(transaction)


@transactions.command()
@click.argument("transaction_id")
@stale_option
@output_option
@gateway_options
@pass_session
def get(session: Session, transaction_id: str, stale: bool) -> None:
    """Show a transaction."""
    with session.client() as client:
        session.output.transaction(client.get_transaction(transaction_id, stale=stale))


@transactions.command()
@click.argument("transaction_id")
@request_id_option
@output_option
@gateway_options
@pass_session
def settle(session: Session, transaction_id: str, request_id: str | None) -> None:
    """Settle a pending transaction: its money moves for good."""
    request_id = session.remember_request(request_id)
    with session.client() as client:
        session.output.transaction(client.settle_transaction(transaction_id, request_id=request_id))


@transactions.command()
@click.argument("transaction_id")
@request_id_option
@output_option
@gateway_options
@pass_session
def cancel(session: Session, transaction_id: str, request_id: str | None) -> None:
    """Cancel a pending transaction: what it reserved is free again."""
    request_id = session.remember_request(request_id)
    with session.client() as client:
        session.output.transaction(client.cancel_transaction(transaction_id, request_id=request_id))


@transactions.command("list")
@click.option("--account-id", required=True, help="16 hex digits.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Show this many."
)
@click.option("--all", "everything", is_flag=True, help="Show all, however many.")
@stale_option
@output_option
@gateway_options
@pass_session
def list_(session: Session, account_id: str, limit: int, everything: bool, stale: bool) -> None:
    """List the transactions of an account, newest first, refused ones included."""
    page_size = PAGE_SIZE_MAX if everything else min(limit + 1, PAGE_SIZE_MAX)
    with session.client() as client:
        found = client.list_transactions(account_id, page_size=page_size, stale=stale)
        # One more than asked for tells whether there are more.
        shown = list(found) if everything else list(islice(found, limit + 1))
    more = not everything and len(shown) > limit
    session.output.transactions(shown[:limit] if more else shown)
    if more:
        click.echo(f"The newest {limit} are shown; --all shows every one.", err=True)

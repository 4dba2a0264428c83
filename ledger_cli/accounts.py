"""`ledger accounts`: open accounts and look at them."""

import click

from ledger_cli.context import (
    Session,
    gateway_options,
    output_option,
    pass_session,
    request_id_option,
    stale_option,
)


@click.group()
def accounts() -> None:
    """Open accounts and look at them."""


@accounts.command()
@click.option("--ledger", default="", help="The ledger to open it in (default: main).")
@request_id_option
@output_option
@gateway_options
@pass_session
def create(session: Session, ledger: str, request_id: str | None) -> None:
    """Open an account."""
    request_id = session.remember_request(request_id)
    with session.client() as client:
        session.output.account(client.create_account(request_id=request_id, ledger=ledger))


@accounts.command()
@click.argument("account_id")
@stale_option
@output_option
@gateway_options
@pass_session
def get(session: Session, account_id: str, stale: bool) -> None:
    """Show an account with its balances."""
    with session.client() as client:
        session.output.account(client.get_account(account_id, stale=stale))

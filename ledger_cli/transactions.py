"""`ledger transactions`: move money, settle, cancel, reverse, and look at what happened."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import click

from ledger.v1 import ledger_pb2
from ledger_cli.context import (
    Session,
    actor_option,
    gateway_options,
    output_option,
    page_size,
    paging_options,
    pass_session,
    request_id_option,
    shown,
    stale_option,
)
from ledger_cli.history import show_states
from ledger_cli.moments import check_range, range_options
from ledger_cli.options import DURATION_S, ENTRY, TIME, metadata_option
from ledger_cli.output import status_name
from ledger_core.money import INT64_MAX

STATUSES = tuple(status_name(value) for value in ledger_pb2.TransactionStatus.values() if value)


def _one_of_both(ctx: click.Context, param: click.Parameter, value: bool | None) -> bool:
    """Require a choice: a default here would move or hold money that nobody meant to."""
    if value is None:
        raise click.MissingParameter(ctx=ctx, param=param)
    return value


def transaction_status(name: str | None) -> ledger_pb2.TransactionStatus.ValueType:
    """Return the status of this name; unspecified for None."""
    return ledger_pb2.TransactionStatus.Value(f"TRANSACTION_STATUS_{name or 'UNSPECIFIED'}")


@click.group()
def transactions() -> None:
    """Move money, settle, cancel, reverse, and look at what happened."""


@transactions.command()
@click.option("--account-id", help="16 hex digits; with --amount.")
@click.option(
    "--amount",
    type=click.IntRange(-INT64_MAX, INT64_MAX),
    metavar="MINOR_UNITS",
    help="In minor units (cents): 500 is money in, -500 is money out.",
)
@click.option(
    "--entry",
    "entries",
    type=ENTRY,
    multiple=True,
    metavar="debit|credit:ACCOUNT:AMOUNT[:CURRENCY]",
    help="One side of the transaction, in minor units; given 2 to 1,024 times, and balanced.",
)
@click.option("--ledger", default="", help="That of the entries (default: main).")
@click.option("--description", default="", help="At most 1,000 characters.")
@click.option(
    "--settled/--pending",
    default=None,
    callback=_one_of_both,
    help="Move the money at once, or reserve it until settled or cancelled.",
)
@click.option("--reference", default="", help="Your own name for it, such as an order number.")
@metadata_option
@actor_option
@click.option("--effective-time", type=TIME, metavar="TIME", help="Business date (default: now).")
@click.option(
    "--expire-in",
    "expire_in_s",
    type=DURATION_S,
    metavar="DURATION",
    help="A pending transaction ends by itself after this time, such as 30m or 7d.",
)
@click.option("--expire-time", type=TIME, metavar="TIME", help="The same, as a moment.")
@click.option("--dry-run", is_flag=True, help="Say what would become of it, and do nothing.")
@request_id_option
@output_option
@gateway_options
@pass_session
def create(
    session: Session,
    *,
    account_id: str | None,
    amount: int | None,
    entries: Sequence[ledger_pb2.Entry],
    ledger: str,
    description: str,
    settled: bool,
    reference: str,
    metadata: Sequence[tuple[str, str]],
    actor: str,
    effective_time: datetime | None,
    expire_in_s: int | None,
    expire_time: datetime | None,
    dry_run: bool,
    request_id: str | None,
) -> None:
    """Move money between accounts (--entry), or into or out of one (--account-id, --amount).

    Money out beyond the available balance is recorded as INSUFFICIENT_FUNDS and moves nothing.
    TIME is like 2026-01-31T12:00:00+00:00.
    """
    one_account = account_id is not None and amount is not None
    if entries and (account_id is not None or amount is not None):
        raise click.UsageError("--entry excludes --account-id and --amount.")
    if not entries and not one_account:
        raise click.UsageError("Give --account-id and --amount, or --entry at least twice.")
    if expire_in_s is not None and expire_time is not None:
        raise click.UsageError("--expire-in and --expire-time exclude each other.")
    request_id = session.remember_request(request_id)
    if expire_in_s is not None:
        now = datetime.now(UTC).replace(microsecond=0)
        expire_time = now + timedelta(seconds=expire_in_s)
        session.remember_option("(in place of --expire-in) --expire-time", expire_time.isoformat())
    with session.client() as client:
        transaction = client.create_transaction(
            account_id or "",
            amount or 0,
            description,
            settled=settled,
            entries=entries,
            ledger=ledger,
            external_reference=reference,
            effective_time=effective_time,
            expire_time=expire_time,
            metadata=dict(metadata),
            actor=actor,
            dry_run=dry_run,
            request_id=request_id,
            correlation_id=session.correlation_id,
        )
    session.output.transaction(transaction)


@transactions.command()
@click.argument("transaction_id", default="")
@click.option("--account-id", default="", help="The home account; with --request-id.")
@click.option("--request-id", default="", help="Find the transaction that this request created.")
@stale_option
@output_option
@gateway_options
@pass_session
def get(
    session: Session, *, transaction_id: str, account_id: str, request_id: str, stale: bool
) -> None:
    """Show a transaction, by its id or by the request that created it."""
    if bool(transaction_id) == bool(account_id and request_id):
        raise click.UsageError(
            "Missing argument 'TRANSACTION_ID', or --account-id and --request-id (one of both)."
        )
    with session.client() as client:
        session.output.transaction(
            client.get_transaction(
                transaction_id, account_id=account_id, request_id=request_id, stale=stale
            )
        )


@transactions.command()
@click.argument("transaction_id")
@click.option(
    "--amount",
    type=click.IntRange(1, INT64_MAX),
    default=None,
    metavar="MINOR_UNITS",
    help="Settle only this much of a transaction of two entries, and release the rest.",
)
@actor_option
@request_id_option
@output_option
@gateway_options
@pass_session
def settle(
    session: Session,
    *,
    transaction_id: str,
    amount: int | None,
    actor: str,
    request_id: str | None,
) -> None:
    """Settle a pending transaction: its money moves for good."""
    request_id = session.remember_request(request_id)
    with session.client() as client:
        transaction = client.settle_transaction(
            transaction_id,
            amount=amount or 0,
            actor=actor,
            request_id=request_id,
            correlation_id=session.correlation_id,
        )
    session.output.transaction(transaction)


@transactions.command()
@click.argument("transaction_id")
@actor_option
@request_id_option
@output_option
@gateway_options
@pass_session
def cancel(session: Session, transaction_id: str, actor: str, request_id: str | None) -> None:
    """Cancel a pending transaction: what it reserved is free again."""
    request_id = session.remember_request(request_id)
    with session.client() as client:
        transaction = client.cancel_transaction(
            transaction_id,
            actor=actor,
            request_id=request_id,
            correlation_id=session.correlation_id,
        )
    session.output.transaction(transaction)


@transactions.command()
@click.argument("transaction_id")
@click.option(
    "--amount",
    "amounts",
    type=click.IntRange(0, INT64_MAX),
    multiple=True,
    metavar="MINOR_UNITS",
    help="How much of each entry, given once for each in their order (default: all that is left).",
)
@click.option("--description", default="", help="At most 1,000 characters.")
@actor_option
@request_id_option
@output_option
@gateway_options
@pass_session
def reverse(
    session: Session,
    *,
    transaction_id: str,
    amounts: Sequence[int],
    description: str,
    actor: str,
    request_id: str | None,
) -> None:
    """Move the money of a settled transaction back, as a new transaction."""
    request_id = session.remember_request(request_id)
    with session.client() as client:
        transaction = client.reverse_transaction(
            transaction_id,
            amounts,
            description,
            actor=actor,
            request_id=request_id,
            correlation_id=session.correlation_id,
        )
    session.output.transaction(transaction)


@transactions.command("list")
@click.argument("account", default="")
@click.option("--account-id", default="", help="The same as ACCOUNT.")
@click.option("--ledger", default="", help="All of this ledger (default: main, without ACCOUNT).")
@click.option("--status", type=click.Choice(STATUSES), help="Those that have this status now.")
@range_options
@click.option("--reference", default="", help="Those with this reference of your own.")
@click.option("--metadata-key", default="", help="Those that have this key in their metadata.")
@paging_options
@stale_option
@output_option
@gateway_options
@pass_session
def list_(
    session: Session,
    *,
    account: str,
    account_id: str,
    ledger: str,
    status: str | None,
    start: datetime | None,
    end: datetime | None,
    reference: str,
    metadata_key: str,
    limit: int,
    everything: bool,
    stale: bool,
) -> None:
    """List the transactions of an ACCOUNT or of a ledger, newest first, refused ones included.

    Those that fit all that is given are shown.
    """
    if account and account_id and account != account_id:
        raise click.UsageError("ACCOUNT and --account-id are the same; give one of them.")
    account_id = account or account_id
    if account_id and ledger:
        raise click.UsageError("--ledger and an account exclude each other.")
    check_range(start, end)
    with session.client() as client:
        found = client.list_transactions(
            account_id,
            ledger=ledger,
            status=transaction_status(status),
            start=start,
            end=end,
            external_reference=reference,
            metadata_key=metadata_key,
            page_size=page_size(limit, everything),
            stale=stale,
        )
        session.output.transactions(shown(found, limit, everything))


@transactions.command()
@click.argument("transaction_id")
@stale_option
@output_option
@gateway_options
@pass_session
def states(session: Session, transaction_id: str, stale: bool) -> None:
    """Show the life of a transaction: every state it has been in, and who brought it there."""
    with session.client() as client:
        transaction = client.get_transaction(transaction_id, stale=stale)
        life = client.transaction_states(transaction_id, stale=stale)
    show_states(session.output, transaction, life)

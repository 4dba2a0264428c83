"""`ledger accounts`: open accounts, change them and look at them."""

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from itertools import chain, islice

import click

from ledger.v1 import ledger_pb2
from ledger_cli.context import (
    PAGE_SIZE_MAX,
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
from ledger_cli.history import (
    Statement,
    pages,
    show_balance,
    show_entries,
    show_events,
    show_statement,
)
from ledger_cli.moments import (
    as_of_options,
    check_basis,
    check_range,
    range_options,
    time_basis,
)
from ledger_cli.options import (
    ACCOUNT_STATES,
    ACCOUNT_TYPES,
    Bound,
    account_state,
    account_type,
    limit_options,
    metadata_option,
)
from ledger_client import limits


@click.group()
def accounts() -> None:
    """Open accounts, change them and look at them."""


@accounts.command()
@click.option("--ledger", default="", help="The ledger to open it in (default: main).")
@click.option("--currency", default="", help="Such as USD (default: the ledger's first one).")
@click.option("--code", default="", help="Place in the ledger's chart of accounts.")
@click.option(
    "--type",
    "kind",
    type=click.Choice(ACCOUNT_TYPES),
    help="Default: that of the code in the chart, or LIABILITY, a customer's wallet.",
)
@click.option("--name", default="", help="Unique in the ledger.")
@limit_options
@metadata_option
@actor_option
@request_id_option
@output_option
@gateway_options
@pass_session
def create(
    session: Session,
    *,
    ledger: str,
    currency: str,
    code: str,
    kind: str | None,
    name: str,
    minimum: Bound | None,
    maximum: Bound | None,
    metadata: Sequence[tuple[str, str]],
    actor: str,
    request_id: str | None,
) -> None:
    """Open an account."""
    request_id = session.remember_request(request_id)
    given = None
    if minimum or maximum:
        given = _merged(ledger_pb2.Limits(minimum=0), minimum, maximum)
    with session.client() as client:
        account = client.create_account(
            ledger=ledger,
            currency=currency,
            code=code,
            account_type=account_type(kind),
            name=name,
            limits=given,
            metadata=dict(metadata),
            actor=actor,
            request_id=request_id,
            correlation_id=session.correlation_id,
        )
    session.output.account(account)


@accounts.command()
@click.argument("account_id", default="")
@click.option("--ledger", default="", help="Where to look for the name (default: main).")
@click.option("--name", default="", help="Find the account by its name.")
@stale_option
@output_option
@gateway_options
@pass_session
def get(session: Session, *, account_id: str, ledger: str, name: str, stale: bool) -> None:
    """Show an account with its balances, by its id or by its name."""
    if bool(account_id) == bool(name):
        raise click.UsageError("Missing argument 'ACCOUNT_ID', or --name (one of them).")
    if ledger and not name:
        raise click.UsageError("--ledger goes with --name.")
    with session.client() as client:
        session.output.account(
            client.get_account(account_id, ledger=ledger, name=name, stale=stale)
        )


@accounts.command("list")
@click.option("--ledger", default="", help="The accounts of this ledger (default: main).")
@click.option("--code-prefix", default="", help="Those whose code begins so.")
@click.option("--type", "kind", type=click.Choice(ACCOUNT_TYPES), help="Those of this type.")
@click.option("--state", type=click.Choice(ACCOUNT_STATES), help="Those in this state.")
@click.option("--metadata-key", default="", help="Those that have this key in their metadata.")
@paging_options
@stale_option
@output_option
@gateway_options
@pass_session
def list_(
    session: Session,
    *,
    ledger: str,
    code_prefix: str,
    kind: str | None,
    state: str | None,
    metadata_key: str,
    limit: int,
    everything: bool,
    stale: bool,
) -> None:
    """List the accounts of a ledger, one shard after the other."""
    with session.client() as client:
        found = client.list_accounts(
            ledger,
            code_prefix=code_prefix,
            account_type=account_type(kind),
            state=account_state(state),
            metadata_key=metadata_key,
            page_size=page_size(limit, everything),
            stale=stale,
        )
        session.output.accounts(shown(found, limit, everything))


@accounts.command()
@click.argument("account_id")
@click.option("--name", help='Unique in the ledger; "" takes the name away.')
@limit_options
@metadata_option
@click.option("--no-metadata", is_flag=True, help="Take all metadata away.")
@click.option(
    "--revision",
    type=click.IntRange(min=0),
    help="Do it only if the account is at this revision (default: the one it is at now).",
)
@actor_option
@request_id_option
@output_option
@gateway_options
@pass_session
def update(
    session: Session,
    *,
    account_id: str,
    name: str | None,
    minimum: Bound | None,
    maximum: Bound | None,
    metadata: Sequence[tuple[str, str]],
    no_metadata: bool,
    revision: int | None,
    actor: str,
    request_id: str | None,
) -> None:
    """Change the name, the limits or the metadata of an account.

    What is not given stays as it is; --metadata replaces all metadata.
    """
    if no_metadata and metadata:
        raise click.UsageError("--metadata and --no-metadata exclude each other.")
    request_id = session.remember_request(request_id)
    with session.client() as client:
        before = client.get_account(account_id)
        revision = before.revision if revision is None else revision
        session.remember_option("--revision", revision)
        account = client.update_account(
            account_id,
            revision,
            name=name,
            metadata=dict(metadata) if metadata or no_metadata else None,
            limits=_merged(before.limits, minimum, maximum) if minimum or maximum else None,
            actor=actor,
            request_id=request_id,
            correlation_id=session.correlation_id,
        )
    session.output.account(account)


@accounts.command()
@click.argument("account_id")
@actor_option
@request_id_option
@output_option
@gateway_options
@pass_session
def freeze(session: Session, account_id: str, actor: str, request_id: str | None) -> None:
    """Let an account take no new transactions; pending ones can still end."""
    request_id = session.remember_request(request_id)
    with session.client() as client:
        account = client.freeze_account(
            account_id,
            actor=actor,
            request_id=request_id,
            correlation_id=session.correlation_id,
        )
    session.output.account(account)


@accounts.command()
@click.argument("account_id")
@actor_option
@request_id_option
@output_option
@gateway_options
@pass_session
def unfreeze(session: Session, account_id: str, actor: str, request_id: str | None) -> None:
    """Let a frozen account take new transactions again."""
    request_id = session.remember_request(request_id)
    with session.client() as client:
        account = client.unfreeze_account(
            account_id,
            actor=actor,
            request_id=request_id,
            correlation_id=session.correlation_id,
        )
    session.output.account(account)


@accounts.command()
@click.argument("account_id")
@actor_option
@request_id_option
@output_option
@gateway_options
@pass_session
def close(session: Session, account_id: str, actor: str, request_id: str | None) -> None:
    """Close an account for good: only at zero, with nothing pending."""
    request_id = session.remember_request(request_id)
    with session.client() as client:
        account = client.close_account(
            account_id,
            actor=actor,
            request_id=request_id,
            correlation_id=session.correlation_id,
        )
    session.output.account(account)


@accounts.command()
@click.argument("account_id")
@as_of_options
@stale_option
@output_option
@gateway_options
@pass_session
def balance(
    session: Session, account_id: str, as_of: datetime | None, basis: str | None, stale: bool
) -> None:
    """Show the balances of an account, now or as they were at a moment.

    What happened just then counts.
    """
    check_basis(as_of, basis)
    with session.client() as client:
        found = client.get_balance(account_id, as_of, basis=time_basis(basis), stale=stale)
    show_balance(session.output, found, as_of)


@accounts.command()
@click.argument("account_id")
@range_options
@paging_options
@stale_option
@output_option
@gateway_options
@pass_session
def statement(
    session: Session,
    *,
    account_id: str,
    start: datetime | None,
    end: datetime | None,
    limit: int,
    everything: bool,
    stale: bool,
) -> None:
    """Show an account's statement: opening balance, entries, closing balance.

    Entries come oldest first. What moved no money for good (pending, cancelled, refused) is shown
    as well, and leaves the balance as it is.
    """
    check_range(start, end)
    with session.client() as client:
        found = client.statement(
            account_id,
            start,
            end,
            page_size=PAGE_SIZE_MAX if everything else min(limit, PAGE_SIZE_MAX),
            stale=stale,
        )
        listed = list(islice(found.entries, None if everything else limit))
    wanted = Statement(found.opening, found.closing, listed, start, end)
    show_statement(session.output, wanted)
    if wanted.left_out:
        click.echo(f"Only {limit} are shown; --all shows every one.", err=True)


@accounts.command()
@click.argument("account_id")
@click.option(
    "--newest-first/--oldest-first", default=True, show_default=True, help="The order of entries."
)
@range_options
@paging_options
@stale_option
@output_option
@gateway_options
@pass_session
def entries(
    session: Session,
    *,
    account_id: str,
    newest_first: bool,
    start: datetime | None,
    end: datetime | None,
    limit: int,
    everything: bool,
    stale: bool,
) -> None:
    """List the entries of an account, with the balance after each."""
    check_range(start, end)
    with session.client() as client:
        listed = pages(
            partial(
                client.entries_page,
                account_id,
                start=start,
                end=end,
                oldest_first=not newest_first,
                page_size=page_size(limit, everything),
                stale=stale,
            )
        )
        first = next(listed)
        found = chain(first.entries, (entry for page in listed for entry in page.entries))
        wanted = shown(found, limit, everything)
    show_entries(session.output, wanted, first.currency, first.currency_exponent)


@accounts.command()
@click.argument("account_id")
@paging_options
@stale_option
@output_option
@gateway_options
@pass_session
def events(session: Session, account_id: str, limit: int, everything: bool, stale: bool) -> None:
    """List what happened to an account other than entries, newest first.

    That is its opening, changes of its name, limits, metadata and state, and refused attempts.
    """
    with session.client() as client:
        found = client.account_events(
            account_id, page_size=page_size(limit, everything), stale=stale
        )
        show_events(session.output, shown(found, limit, everything))


def _merged(
    before: ledger_pb2.Limits, minimum: Bound | None, maximum: Bound | None
) -> ledger_pb2.Limits:
    """Return limits with what was given in place of what was there."""
    old_minimum = before.minimum if before.HasField("minimum") else None
    old_maximum = before.maximum if before.HasField("maximum") else None
    return limits(
        minimum.value if minimum else old_minimum, maximum.value if maximum else old_maximum
    )

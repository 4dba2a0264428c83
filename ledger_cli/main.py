"""The `ledger` command."""

import sys
from importlib.metadata import version

import click

from ledger_cli.accounts import accounts
from ledger_cli.checks import checks
from ledger_cli.cluster import cluster
from ledger_cli.context import CleanErrors, gateway_options, output_option
from ledger_cli.dev import dev
from ledger_cli.export import export
from ledger_cli.import_ import import_
from ledger_cli.ledgers import ledgers
from ledger_cli.report import report
from ledger_cli.transactions import transactions
from ledger_cli.verify import verify


@click.group(
    cls=CleanErrors,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@gateway_options
@output_option
@click.version_option(version("ledger-service"), prog_name="ledger")
def cli() -> None:
    """Accounts, transactions, ledgers and the cluster that keeps them.

    Amounts are in minor units: 500 is 5.00 USD.
    """


for command in (
    accounts,
    transactions,
    ledgers,
    report,
    dev,
    cluster,
    verify,
    checks,
    export,
    import_,
):
    cli.add_command(command)


def main() -> None:
    """Run the command."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets a "?" instead of a traceback.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    cli(prog_name="ledger")


if __name__ == "__main__":
    main()

"""`ledger verify --export FILE`: the offline verifier, with the output formats of the command."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.text import Text

from ledger_cli.context import Session
from ledger_cli.export_check import check_export
from ledger_cli.output import console, printable

Command = TypeVar("Command", bound=Callable[..., Any])


def export_option(command: Command) -> Command:
    """Add --export."""
    return click.option(
        "--export",
        "export_file",
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Check a file of `ledger export` instead: no cluster is asked.",
    )(command)


def print_export_check(session: Session, file: Path) -> None:
    """Check a file and print what is proven, or what is wrong; exit with 1 then."""
    report = check_export(file)
    shards = [
        {
            "shard_id": shard_id,
            "journal_entries": chain.number,
            "items": chain.items,
            "hidden_items": chain.hidden,
            "entries": chain.rows,
            "accounts": len(chain.accounts),
            "link": chain.link.hex(),
        }
        for shard_id, chain in sorted(report.chains.items())
    ]
    if session.output_format == "json":
        problems = report.problems
        session.output.record({"ok": not problems, "problems": problems, "shards": shards})
    elif session.output_format == "csv":
        session.output.records(shards)
    elif not report.problems:
        lines = report.summary()
        console().print("\n".join(lines))
        console().print(Text("✓ the file is as it was written", style="bold green"))
    for problem in report.problems:
        click.echo(printable(problem), err=True)
    if report.problems:
        raise click.exceptions.Exit(1)

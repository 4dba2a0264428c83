"""`ledger export`: the journal of a ledger, or of all, in a file that proves itself."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ledger_cli.context import CliError, Session, gateway_options, pass_session
from ledger_cli.export_cut import NoCutError, consistent_cut
from ledger_cli.export_file import FORMATS, new_writer
from ledger_cli.output import console
from ledger_client.journal import JournalClient

# A progress bar that moves more often than this is only work.
_STEP_ENTRIES = 100


@click.command(short_help="Write the journal of a ledger to a file.")
@click.option("--ledger", default="", help="Show this ledger only: of others there are the hashes.")
@click.option("--all", "everything", is_flag=True, help="All ledgers (the default).")
@click.option(
    "--output-file",
    metavar="FILE",
    default="-",
    show_default=True,
    help="Where to write; - is the standard output. The file appears when it is complete.",
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(FORMATS),
    default="jsonl",
    show_default=True,
    help="JSON lines, or CSV with one row per request.",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@gateway_options
@pass_session
def export(
    session: Session,
    *,
    ledger: str,
    everything: bool,
    output_file: str,
    file_format: str,
    force: bool,
) -> None:
    """Write everything that was ever asked and what came of it, with the hash chains.

    `ledger verify --export FILE` checks the file, `ledger import FILE` loads it into an empty
    cluster. Both need nothing of this cluster. docs/AUDIT.md has the format.
    """
    if ledger and everything:
        raise click.UsageError("Give --ledger or --all, not both.")
    target = None if output_file == "-" else Path(output_file)
    if target is not None and target.exists() and not force:
        raise CliError(f"{target} is there already; --force replaces it.")
    session.check_gateway()
    if ledger:
        with session.client() as accounts:
            accounts.get_ledger(ledger)
    with JournalClient(session.gateway, session.timeout_s) as client:
        if target is None:
            count = _export(client, sys.stdout.buffer, file_format, ledger)
            sys.stdout.buffer.flush()
        else:
            with complete_file(target, force=force) as file:
                count = _export(client, file, file_format, ledger)
    click.echo(f"{count} journal entries exported.", err=True)


def _export(client: JournalClient, file: BinaryIO, file_format: str, ledger: str) -> int:
    """Write the file; return the number of journal entries in it."""
    try:
        shards = consistent_cut(client, ledger)
    except NoCutError as error:
        raise CliError(str(error)) from None
    total = sum(shard.last_number for shard in shards)
    created_us = time.time_ns() // 1_000
    writer = new_writer(file, file_format, shards, ledger=ledger, created_us=created_us)
    count = 0
    with progress("exporting", total) as advance:
        for shard in shards:
            for entry in client.list_journal(shard.shard_id, 0, shard.last_number, ledger):
                writer.entry(shard.shard_id, entry)
                count += 1
                if count % _STEP_ENTRIES == 0:
                    advance(_STEP_ENTRIES)
    writer.finish()
    return count


class Advance:
    """Moves a progress bar, if there is one."""

    def __init__(self, bar: Progress | None, total: int, what: str) -> None:
        self._bar = bar
        self._task = None if bar is None else bar.add_task(what, total=total)

    def __call__(self, count: int) -> None:
        """Note that so many more are done."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, count)


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Show progress on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        yield Advance(None, total, what)
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        transient=True,
    )
    with bar:
        yield Advance(bar, total, what)


@contextmanager
def complete_file(target: Path, *, force: bool) -> Iterator[BinaryIO]:
    """Open a file that gets its name once it is complete and on disk; else nothing is left."""
    scratch = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with scratch.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not force and target.exists():
            raise CliError(f"{target} has appeared meanwhile; --force replaces it.")
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)

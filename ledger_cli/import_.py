"""`ledger import`: an export, once more, in a cluster that has nothing else."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import click

from ledger.v1 import journal_pb2
from ledger_cli.context import CliError, Session, gateway_options, pass_session
from ledger_cli.export import progress
from ledger_cli.export_check import Entry, Header, Report, check_export, read_export
from ledger_client import LedgerError
from ledger_client.journal import JournalClient

_BATCH_ENTRIES = 500
# Below what a gateway takes in one request; a single entry may be larger.
_BATCH_BYTES = 500 << 10
_ITEM_BYTES = 40

_EMPTY_ADVICE = (
    "An import needs a cluster in which nothing else has happened, and nobody else may write to it "
    "meanwhile. Start one with an empty data directory, or go on with an import of this same file."
)


@click.command("import", short_help="Load an export into an empty cluster.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@gateway_options
@pass_session
def import_(session: Session, file: Path) -> None:
    """Load an export into an empty cluster: with the same ids, times, balances and hashes.

    First the file is checked, as by `ledger verify --export`. The cluster must have the same shards
    as the one that was exported. An import that was interrupted goes on where it stopped when it
    is started again. Of an export of one ledger, only that one is there afterwards.
    """
    report = check_export(file)
    if report.problems or report.header is None:
        lines = "\n".join(report.problems)
        raise CliError(f"{file} is not as it was written; nothing was imported.\n{lines}")
    session.check_gateway()
    with JournalClient(session.gateway, session.timeout_s) as client:
        done = _Import(client, report, report.header)
        try:
            done.run(file)
        except LedgerError as error:
            _explain(error)
        except KeyboardInterrupt:
            raise CliError("Stopped. The same command goes on where this one was.") from None
    click.echo("\n".join(done.summary()))


def _explain(error: LedgerError) -> NoReturn:
    if error.reason == "JOURNAL_NOT_EMPTY":
        raise CliError(f"{error}\n{_EMPTY_ADVICE}")
    if error.reason == "JOURNAL_GAP":
        raise CliError(
            f"{error}\nAnother import is running. Let it end, then start this one again."
        )
    raise error


@dataclass
class _Batch:
    """Entries of one shard that are to be sent."""

    replayed: int
    entries: list[journal_pb2.JournalEntry] = field(default_factory=list)
    size: int = 0


class _Import:
    """One run of the import of a file that was checked."""

    def __init__(self, client: JournalClient, report: Report, header: Header) -> None:
        self._client = client
        self._header = header
        self._chains = report.chains
        self._batches: dict[int, _Batch] = {}
        self._sent = 0
        self._there = 0
        self._links = 0

    def run(self, file: Path) -> None:
        """Send what is not there yet, prove that it came to the same, and let the shards live."""
        shards = self._client.list_shards()
        _require_same_shards(self._header, shards)
        self._batches = {shard.shard_id: _Batch(shard.replayed_number) for shard in shards}
        total = sum(chain.number for chain in self._chains.values())
        with progress("importing", total) as advance:
            for part in read_export(file):
                if isinstance(part, Entry):
                    self._take(part)
                    advance(1)
            for shard_id in self._batches:
                self._send(shard_id)
        self._compare_links()
        for shard_id, batch in self._batches.items():
            if batch.replayed:
                self._client.replay_journal(shard_id, [], batch.replayed, ends=True)

    def summary(self) -> list[str]:
        """Say what was done."""
        there = f", {self._there} were there already" if self._there else ""
        lines = [f"{self._sent} journal entries imported{there}."]
        if self._links:
            lines.append(f"The hash chains of {self._links} shards equal those of the export.")
        else:
            lines.append("Other ledgers were left out, so hash chains differ from the export's.")
        return lines

    def _take(self, entry: Entry) -> None:
        """Put an entry into the next batch of its shard, unless that has it already."""
        batch = self._batches[entry.shard]
        shown = [item for item in entry.items if not item.hidden]
        if not shown:
            return
        if entry.number <= batch.replayed:
            self._there += 1
            if entry.number == batch.replayed and self._comparable:
                # Before anything is added: is it this file's journal that is there?
                self._require_link(entry.shard, entry.number, entry.link)
            return
        size = sum(len(item.command) + len(item.outcome) + _ITEM_BYTES for item in shown)
        if batch.entries and (
            len(batch.entries) == _BATCH_ENTRIES or batch.size + size > _BATCH_BYTES
        ):
            self._send(entry.shard)
        batch.size += size
        batch.entries.append(
            journal_pb2.JournalEntry(
                number=entry.number,
                time_us=entry.time_us,
                items=[
                    journal_pb2.JournalItem(
                        command=item.command, outcome=item.outcome, number=item.transaction
                    )
                    for item in shown
                ],
            )
        )

    def _send(self, shard_id: int) -> None:
        batch = self._batches[shard_id]
        if not batch.entries:
            return
        self._client.replay_journal(shard_id, batch.entries, batch.replayed)
        self._sent += len(batch.entries)
        batch.replayed = batch.entries[-1].number
        batch.entries, batch.size = [], 0

    def _compare_links(self) -> None:
        """Compare the hash chains; they differ anyway where other ledgers were left out."""
        if not self._comparable:
            return
        for shard_id, chain in self._chains.items():
            if chain.number:
                self._require_link(shard_id, chain.number, chain.link)
        self._links = len(self._chains)

    @property
    def _comparable(self) -> bool:
        return not any(chain.hidden for chain in self._chains.values())

    def _require_link(self, shard_id: int, number: int, link: bytes) -> None:
        found = [entry.link for entry in self._client.list_journal(shard_id, number - 1, number)]
        if found != [link]:
            shown = ", ".join(other.hex() for other in found) or "none"
            raise CliError(
                f"Shard {shard_id} has link {shown} at journal entry {number}, the export has "
                f"{link.hex()}: another file was imported, or something else was written to the "
                f"cluster. Start again with an empty one."
            )


def _require_same_shards(header: Header, shards: Iterable[journal_pb2.JournalShard]) -> None:
    here = {shard.shard_id: (shard.lower_bound, shard.upper_bound) for shard in shards}
    there = {
        shard_id: (shard["lower_bound"], shard["upper_bound"])
        for shard_id, shard in header.shards.items()
    }
    if here != there:
        raise CliError(
            f"The export is of a cluster with {_shards(len(there))}, this one has "
            f"{_shards(len(here))}"
            + (", of other ranges" if len(here) == len(there) else "")
            + ". Every account belongs to a shard, so the shards must be the same: import into a "
            f"cluster that `ledger cluster generate --shards {len(there)}` configures"
            + (", or into a standalone gateway." if len(there) == 1 else ".")
        )


def _shards(count: int) -> str:
    return f"{count} shard" if count == 1 else f"{count} shards"

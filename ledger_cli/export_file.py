"""Writes an export: header, journal entries, footer. `docs/AUDIT.md` publishes the two formats."""

import base64
import csv
import hashlib
import io
from collections.abc import Sequence
from typing import Any, BinaryIO, Protocol

from ledger.v1 import journal_pb2
from ledger_cli.export_check import (
    CSV_COLUMNS,
    FIRST_LINK,
    FORMAT,
    VERSION,
    footer_of,
    iso_time,
    readable,
    to_json,
)

FORMATS = ("jsonl", "csv")


class ExportWriter(Protocol):
    """Writes one export, line by line; entries of a shard come in their order."""

    def entry(self, shard_id: int, entry: journal_pb2.JournalEntry) -> None:
        """Write a journal entry."""
        ...

    def finish(self) -> None:
        """Write the footer."""
        ...


def new_writer(
    file: BinaryIO,
    file_format: str,
    shards: Sequence[journal_pb2.JournalShard],
    *,
    ledger: str,
    created_us: int,
) -> ExportWriter:
    """Write the header; return what writes the rest."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "ledger": ledger,
        "created": iso_time(created_us),
        "shards": [
            {
                "shard_id": shard.shard_id,
                "lower_bound": shard.lower_bound,
                "upper_bound": shard.upper_bound,
                "last_number": shard.last_number,
            }
            for shard in shards
        ],
    }
    lines = _Lines(file, [shard.shard_id for shard in shards])
    return _CsvWriter(lines, header) if file_format == "csv" else _JsonWriter(lines, header)


class _Lines:
    """Counts and hashes what is written, for the footer."""

    def __init__(self, file: BinaryIO, shard_ids: Sequence[int]) -> None:
        self._file = file
        self._hash = hashlib.blake2b(digest_size=32)
        self._count = 0
        self._ends = dict.fromkeys(shard_ids, (0, FIRST_LINK))

    def add(self, line: str) -> None:
        data = line.encode() + b"\n"
        self._file.write(data)
        self._hash.update(data)
        self._count += 1

    def reached(self, shard_id: int, entry: journal_pb2.JournalEntry) -> None:
        self._ends[shard_id] = (entry.number, entry.link)

    def footer(self) -> dict[str, Any]:
        shards = [
            {"shard_id": shard_id, "entries": number, "link": link.hex()}
            for shard_id, (number, link) in self._ends.items()
        ]
        return footer_of(shards, self._count, self._hash.hexdigest())


class _JsonWriter:
    def __init__(self, lines: _Lines, header: dict[str, Any]) -> None:
        self._lines = lines
        lines.add(to_json(header))

    def entry(self, shard_id: int, entry: journal_pb2.JournalEntry) -> None:
        items = [_item(item) for item in entry.items]
        self._lines.add(to_json({**_entry(shard_id, entry), "items": items}))
        self._lines.reached(shard_id, entry)

    def finish(self) -> None:
        self._lines.add(to_json(self._lines.footer()))


class _CsvWriter:
    def __init__(self, lines: _Lines, header: dict[str, Any]) -> None:
        self._lines = lines
        self._row(dict(zip(CSV_COLUMNS, CSV_COLUMNS, strict=True)))
        self._row({"record": "header", "what": to_json(header)})

    def entry(self, shard_id: int, entry: journal_pb2.JournalEntry) -> None:
        fields = _entry(shard_id, entry)
        for number, item in enumerate(entry.items, 1):
            values = _item(item)
            words: dict[str, Any] = {
                name: to_json(values.pop(name))
                for name in ("what", "result", "entries")
                if name in values
            }
            values["hidden"] = "true" if item.hidden else "false"
            place = {"record": "item", "item": number, "items": len(entry.items)}
            self._row({**place, **fields, **values, **words})
        self._lines.reached(shard_id, entry)

    def finish(self) -> None:
        self._row({"record": "footer", "what": to_json(self._lines.footer())})

    def _row(self, values: dict[str, Any]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(
            [values.get(column, "") for column in CSV_COLUMNS]
        )
        self._lines.add(text.getvalue())


def _entry(shard_id: int, entry: journal_pb2.JournalEntry) -> dict[str, Any]:
    return {
        "shard": shard_id,
        "number": entry.number,
        "log_index": entry.log_index,
        "time_us": entry.time_us,
        "time": iso_time(entry.time_us),
        "link": entry.link.hex(),
    }


def _item(item: journal_pb2.JournalItem) -> dict[str, Any]:
    if item.hidden:
        return {"digest": item.digest.hex(), "hidden": True}
    return {
        "digest": item.digest.hex(),
        "transaction": item.number,
        "command": base64.b64encode(item.command).decode(),
        "outcome": base64.b64encode(item.outcome).decode(),
        "rows": base64.b64encode(item.rows).decode(),
        **readable(item.command, item.outcome, item.rows),
    }

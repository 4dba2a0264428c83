"""Export, offline verification and import: what is in a file is proven by the file alone."""

import base64
import binascii
import csv
import hashlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import Result

from ledger.v1 import ledger_pb2, ledger_pb2_grpc
from ledger_cli import export_check, import_
from ledger_client import LedgerClient, LedgerError, credit, debit
from ledger_client.journal import JournalClient
from ledger_client.testing import StandaloneLedger, standalone_ledger

Run = Callable[..., Result]
Lines = list[str]

EUR = ledger_pb2.Currency(code="EUR", exponent=2)
CHART = [
    ledger_pb2.ChartLine(code="1", name="Assets", type=ledger_pb2.ACCOUNT_TYPE_ASSET),
    ledger_pb2.ChartLine(code="4", name="Income", type=ledger_pb2.ACCOUNT_TYPE_INCOME),
]


def write_history(client: LedgerClient) -> None:
    """Everything that can become of requests, in two ledgers."""
    alice = client.create_account(name="alice", metadata={"team": "red"}, actor="ops").id
    bob = client.create_account(request_id="bob").id
    client.create_transaction(alice, 100_00, "top-up ☕", settled=True, external_reference="wire 1")
    client.create_transaction(
        entries=[debit(alice, 40_00), credit(bob, 40_00)],
        settled=True,
        request_id="lunch",
        effective_time=datetime(2026, 1, 31, tzinfo=UTC),
    )
    for _ in range(2):  # a repeat has no effect, but is in the journal
        client.create_transaction(bob, -1, settled=True, request_id="fee")
    parts = client.create_transaction(
        entries=[debit(alice, 30_00), credit(bob, 30_00)], settled=False
    )
    client.settle_transaction(parts.id, amount=10_00)
    void = client.create_transaction(alice, 5_00, settled=False)
    client.cancel_transaction(void.id, actor="bob")
    soon = datetime.now(UTC) + timedelta(seconds=1)
    expires = client.create_transaction(alice, -1_00, settled=False, expire_time=soon)
    client.create_transaction(bob, -1_000_00, "too much", settled=True)
    lunch = client.get_transaction(account_id=alice, request_id="lunch")
    client.reverse_transaction(lunch.id, [15_00, 15_00], "half of it back")
    client.freeze_account(bob, actor="ops")
    client.unfreeze_account(bob)
    with pytest.raises(LedgerError):
        client.unfreeze_account(bob)
    with pytest.raises(LedgerError):
        client.create_account(request_id="bob", code="7")
    client.close_account(client.create_account().id)
    client.update_account(alice, client.get_account(alice).revision, name="alice b")
    client.update_ledger("main", 0, currencies=[EUR], description="the main one")

    client.create_ledger("shop", [EUR, ledger_pb2.Currency(code="USD", exponent=2)], CHART)
    till = client.create_account(ledger="shop", code="10").id
    sales = client.create_account(ledger="shop", code="40", currency="EUR").id
    dollars = client.create_account(ledger="shop", code="11", currency="USD").id
    other = client.create_account(ledger="shop", code="41", currency="USD").id
    client.create_transaction(
        ledger="shop",
        entries=[
            *(debit(till, 7_00, "EUR"), credit(sales, 7_00, "EUR")),
            *(debit(dollars, 8_00, "USD"), credit(other, 8_00, "USD")),
        ],
        settled=True,
        metadata={"order": "17"},
    )
    client.create_transaction(
        ledger="shop", entries=[debit(till, 1), credit(sales, 1)], settled=False
    )
    deadline = time.monotonic() + 30
    while client.get_transaction(expires.id).status != ledger_pb2.TRANSACTION_STATUS_EXPIRED:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@dataclass
class Source:
    """A ledger with a history, and its exports."""

    ledger: StandaloneLedger
    folder: Path
    accounts: list[str] = field(default_factory=list)

    @property
    def jsonl(self) -> Path:
        return self.folder / "all.jsonl"

    @property
    def csv(self) -> Path:
        return self.folder / "all.csv"


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    folder = tmp_path_factory.mktemp("export")
    with standalone_ledger() as running:
        with LedgerClient(running.target) as client:
            write_history(client)
            accounts = [
                account.id
                for ledger in ("main", "shop")
                for account in client.list_accounts(ledger=ledger)
            ]
        made = Source(running, folder, accounts)
        for path in (made.jsonl, made.csv):
            subprocess.run(
                [
                    *(sys.executable, "-m", "ledger_cli.main", "export", "--all"),
                    *("--gateway", running.target),
                    *("--output-file", str(path), "--format", path.suffix[1:]),
                ],
                check=True,
                capture_output=True,
            )
        yield made


@pytest.fixture
def empty() -> Iterator[StandaloneLedger]:
    with standalone_ledger() as running:
        yield running


def picture(target: str, accounts: list[str], ledgers: tuple[str, ...]) -> dict[str, Any]:
    """Everything that a ledger shows of its accounts."""
    shown: dict[str, Any] = {}
    with grpc.insecure_channel(target) as channel, LedgerClient(target) as client:
        stub = ledger_pb2_grpc.LedgerServiceStub(channel)
        for ledger in ledgers:
            shown[ledger] = client.get_ledger(ledger)
        for account_id in accounts:
            shown[account_id] = client.get_account(account_id)
            transactions = list(client.list_transactions(account_id))
            shown[f"transactions of {account_id}"] = transactions
            for item in transactions:
                states = stub.ListTransactionStates(
                    ledger_pb2.ListTransactionStatesRequest(transaction_id=item.id)
                )
                shown[f"states of {item.id}"] = list(states.states)
            entries = stub.ListEntries(
                ledger_pb2.ListEntriesRequest(account_id=account_id, page_size=100)
            )
            shown[f"entries of {account_id}"] = list(entries.entries)
            events = stub.ListAccountEvents(
                ledger_pb2.ListAccountEventsRequest(account_id=account_id, page_size=100)
            )
            shown[f"events of {account_id}"] = list(events.events)
    return shown


def links(target: str) -> list[tuple[int, bytes]]:
    with JournalClient(target) as client:
        return [
            (entry.number, entry.link)
            for shard in client.list_shards()
            for entry in client.list_journal(shard.shard_id, 0, shard.last_number)
        ]


def problems(tmp_path: Path, lines: Lines, suffix: str = "jsonl") -> list[str]:
    path = tmp_path / f"changed.{suffix}"
    path.write_text("".join(lines))
    return export_check.verify_export(path)


def read(path: Path) -> Lines:
    return path.read_text().splitlines(keepends=True)


# What is right is proven


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_an_export_is_proven_by_a_copy_of_the_verifier_alone(
    source: Source, tmp_path: Path, suffix: str
) -> None:
    copy = tmp_path / "check.py"
    copy.write_bytes(Path(export_check.__file__).read_bytes())
    ran = subprocess.run(
        [sys.executable, "-I", "-S", str(copy), str(source.folder / f"all.{suffix}")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    number, link = links(source.ledger.target)[-1]
    assert f"shard 0: {number} journal entries, link {link.hex()}" in ran.stdout


def test_verify_export_in_all_output_formats(run: Run, source: Source) -> None:
    to = ("verify", "--export", str(source.jsonl))
    assert "the file is as it was written" in run(*to).stdout
    record = json.loads(run(*to, "-o", "json").stdout)
    assert (record["ok"], record["problems"]) == (True, [])
    (row,) = csv.DictReader(io.StringIO(run(*to, "-o", "csv").stdout))
    assert row["link"] == record["shards"][0]["link"]
    assert int(row["journal_entries"]) == record["shards"][0]["journal_entries"] > 20


def test_all_kinds_of_requests_are_in_words(source: Source) -> None:
    entries = [json.loads(line) for line in read(source.jsonl)[1:-1]]
    items = [item for entry in entries for item in entry["items"]]
    kinds = {item["what"]["kind"] for item in items}
    assert kinds >= {
        *("CreateAccount", "CreateTransaction", "SettleTransaction", "CancelTransaction"),
        *("ReverseTransaction", "Expire", "FreezeAccount", "UnfreezeAccount", "CloseAccount"),
        *("UpdateAccount", "CreateLedger", "ExtendLedger", "ClaimName", "ReleaseName"),
    }
    rows = [row for item in items for row in item["entries"]]
    assert {row["kind"] for row in rows} == set(export_check.KINDS)
    assert {"refused": "ACCOUNT_NOT_FROZEN"} in [item["result"] for item in items]


def test_csv_says_the_same_as_json_lines(source: Source) -> None:
    rows = list(csv.DictReader(io.StringIO(source.csv.read_text())))
    assert [rows[0]["record"], rows[-1]["record"]] == ["header", "footer"]
    from_json = [
        (entry["number"], item["command"], item["what"])
        for entry in map(json.loads, read(source.jsonl)[1:-1])
        for item in entry["items"]
    ]
    assert from_json == [
        (int(row["number"]), row["command"], json.loads(row["what"])) for row in rows[1:-1]
    ]


# What is wrong is found and named


def edited(line: str, change: Callable[[dict[str, Any]], None]) -> str:
    value = json.loads(line)
    change(value)
    return export_check.to_json(value) + "\n"


def line_of(lines: Lines, kind: str, rows: int = 0) -> int:
    """Return the index of the first line whose first item is of a kind and has so many rows."""
    for index, line in enumerate(lines[1:-1], 1):
        item = json.loads(line)["items"][0]
        if item["what"]["kind"] == kind and len(item["entries"]) >= rows:
            return index
    raise AssertionError(kind)


def flip(item: dict[str, Any], name: str, place: int) -> None:
    data = bytearray(base64.b64decode(item[name]))
    data[place] ^= 1
    item[name] = base64.b64encode(data).decode()


def test_a_byte_of_a_command(source: Source, tmp_path: Path) -> None:
    lines = read(source.jsonl)
    at = line_of(lines, "CreateTransaction")
    number = json.loads(lines[at])["number"]
    lines[at] = edited(lines[at], lambda value: flip(value["items"][0], "command", -1))
    found = problems(tmp_path, lines)
    assert found[0] == (
        f"line {at + 1}: shard 0, entry {number}, item 1: its digest is not that of its command, "
        f"outcome, transaction and rows"
    )


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("what", "amount"), "10001", "what.amount"),
        (("what", "actor"), "mallory", "what.actor"),
        (("entries", 0, "amount"), "10001", "entries[0].amount"),
        (("entries", 1, "after", "debits_posted"), "1", "entries[1].after.debits_posted"),
        (("result", "number"), 9, "result.number"),
        (("what", "settled"), 1, "what.settled"),
    ],
)
def test_a_readable_part(
    source: Source, tmp_path: Path, path: tuple[Any, ...], value: object, named: str
) -> None:
    lines = read(source.jsonl)
    at = line_of(lines, "CreateTransaction", rows=2)
    account = json.loads(lines[at])["items"][0]["entries"][path[1] if path[0] == "entries" else 0]

    def change(entry: dict[str, Any]) -> None:
        place = entry["items"][0]
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    lines[at] = edited(lines[at], change)
    first = problems(tmp_path, lines)[0]
    assert first.startswith(f"line {at + 1}: shard 0, entry ")
    assert f", item 1: {named} is {json.dumps(value)}, but the raw bytes say " in first
    assert (account["account_id"] in first) == (path[0] != "result")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("number", 999, "was to come here"),
        ("shard", 7, "the header has no such shard"),
        ("log_index", 0, "log index is not behind"),
        ("time", "2020-01-01T00:00:00.000000+00:00", "time 2020-01-01"),
        ("time_us", 5, "is not time_us 5"),
        ("link", "0" * 64, "its link does not follow"),
        ("link", "0" * 63, "is no hash of 64 hex digits"),
        ("comment", "hello", "unknown: ['comment']"),
        ("number", "3", "'3' is no int"),
        ("number", -1, "-1 is out of range"),
        ("items", [], "has 0 items"),
    ],
)
def test_a_field_of_a_journal_entry(
    source: Source, tmp_path: Path, name: str, value: object, expected: str
) -> None:
    lines = read(source.jsonl)
    lines[9] = edited(lines[9], lambda entry: entry.update({name: value}))
    first = problems(tmp_path, lines)[0]
    assert first.startswith("line 10: ")
    assert expected in first


def test_a_line_that_is_missing(source: Source, tmp_path: Path) -> None:
    lines = read(source.jsonl)
    del lines[9]
    found = problems(tmp_path, lines)
    assert found[0] == "line 10: shard 0, entry 10: entry 9 was to come here"
    assert any("the footer" in problem for problem in found)


def test_the_last_line_before_the_footer_is_missing(source: Source, tmp_path: Path) -> None:
    lines = read(source.jsonl)
    del lines[-2]
    last = len(lines) - 2
    found = problems(tmp_path, lines)
    assert f"line {last + 2}: the footer: its number of lines (lines) are not those" in found[1]
    assert f"shard 0 ends with entry {last}, the header says {last + 1}" in found[-1]


def test_two_lines_that_were_swapped(source: Source, tmp_path: Path) -> None:
    lines = read(source.jsonl)
    lines[9], lines[10] = lines[10], lines[9]
    found = problems(tmp_path, lines)
    assert found[0] == "line 10: shard 0, entry 10: entry 9 was to come here"
    assert any(problem.startswith("line 11: shard 0, entry 9: ") for problem in found)


@pytest.mark.parametrize("name", ["lines", "blake2b", "shards"])
def test_a_changed_footer(source: Source, tmp_path: Path, name: str) -> None:
    lines = read(source.jsonl)
    lines[-1] = edited(lines[-1], lambda value: value["footer"].update({name: 0}))
    (found,) = problems(tmp_path, lines)
    assert found.startswith(f"line {len(lines)}: the footer: ")
    assert f"({name})" in found


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_file_that_was_cut(source: Source, tmp_path: Path, suffix: str, cut: int) -> None:
    lines = read(source.folder / f"all.{suffix}")
    for kept in (lines[:-cut], [*lines[:-cut], lines[-cut][:-9]]):
        found = problems(tmp_path, kept, suffix)
        assert any("cut" in problem for problem in found), found


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nonsense\n", "no JSON"),
        ("[]\n", "line 10: "),
        ("7\n", "line 10: "),
        ('"text"\n', "line 10: "),
        ('{"number":1,"number":2}\n', "the same field twice"),
        ("[" * 100_000 + "\n", "line 10: "),
        ('{"footer":1}\n', "the footer is not an object"),
        ("\n", "no JSON"),
    ],
)
def test_lines_that_are_none(source: Source, tmp_path: Path, line: str, expected: str) -> None:
    lines = read(source.jsonl)
    lines[9] = line
    assert expected in problems(tmp_path, lines)[0]


def test_bytes_that_are_no_text(source: Source, tmp_path: Path) -> None:
    path = tmp_path / "changed.jsonl"
    data = bytearray(source.jsonl.read_bytes())
    data[data.index(b"\n") + 5] = 0xFF
    path.write_bytes(data)
    assert export_check.verify_export(path)[0].startswith("line 2: ")


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"{}\n", b"record,\n", b"\0" * 100, b'{"footer":{}}\n']
)
def test_files_that_are_no_export(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(data)
    assert export_check.verify_export(path)


def test_every_single_byte_of_a_file_counts(source: Source, tmp_path: Path) -> None:
    """A change that changes no meaning is found by the hash in the footer at the least."""
    path = tmp_path / "changed"
    for original in (source.jsonl, source.csv):
        data = original.read_bytes()
        for at in range(0, len(data), 997):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            assert export_check.verify_export(path), f"byte {at} of {original.name}"


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("command", "command is no base64"),
        ("what", "no JSON"),
        ("item", "the row is of item"),
        ("items", "has 1 items of"),
        ("link", "is no hash"),
        ("hidden", "hidden is neither"),
    ],
)
def test_a_cell_of_a_csv_file(source: Source, tmp_path: Path, column: str, expected: str) -> None:
    rows = list(csv.reader(io.StringIO(source.csv.read_text())))
    at = export_check.CSV_COLUMNS.index(column)
    rows[9][at] = "7" if column in ("item", "items") else "~"
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    first = problems(tmp_path, text.getvalue().splitlines(keepends=True), "csv")[0]
    assert first.startswith("line 10: ")
    assert expected in first


# A forger who makes all hashes anew


def forge(lines: Lines, change: Callable[[int, bytearray], None]) -> Lines:
    """Change entry rows, and make digests, links, readable parts and the footer fit them."""
    made, link, count = [lines[0]], export_check.FIRST_LINK, 0
    for line in lines[1:-1]:
        entry = json.loads(line)
        for item in entry["items"]:
            rows = bytearray(base64.b64decode(item["rows"]))
            for start in range(0, len(rows), export_check.ROW_BYTES):
                row = rows[start : start + export_check.ROW.size]
                change(count, row)
                count += 1
                rows[start : start + len(row) + 4] = row + binascii.crc32(row).to_bytes(4, "little")
            parts = [base64.b64decode(item[name]) for name in ("command", "outcome")]
            digest = export_check.item_digest(*parts, item["transaction"], bytes(rows))
            item["rows"] = base64.b64encode(rows).decode()
            item["digest"] = digest.hex()
            item.update(export_check.readable(*parts, bytes(rows)))
        digests = [bytes.fromhex(item["digest"]) for item in entry["items"]]
        link = export_check.next_link(link, entry["number"], entry["time_us"], digests)
        entry["link"] = link.hex()
        made.append(export_check.to_json(entry) + "\n")
    shards = [{"shard_id": 0, "entries": len(made) - 1, "link": link.hex()}]
    hashed = hashlib.blake2b("".join(made).encode(), digest_size=32).hexdigest()
    return [*made, export_check.to_json(export_check.footer_of(shards, len(made), hashed)) + "\n"]


def put(at: int, code: str, value: int) -> Callable[[int, bytearray], None]:
    """Return a change of the sixth row."""
    size = 1 if code == "b" else 8

    def change(count: int, row: bytearray) -> None:
        if count == 5:
            row[at : at + size] = value.to_bytes(size, "little")

    return change


def test_a_forgery_that_changes_nothing_is_the_file(source: Source) -> None:
    lines = read(source.jsonl)
    assert forge(lines, lambda _count, _row: None) == lines


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put(16, "q", 77), "follows from its entries"),
        (put(16, "q", 77), "its rows do not balance"),
        (put(24, "q", 5), "its time is not that of the journal entry"),
        (put(32, "q", 99), "sequence 99 follows"),
        (put(40, "q", 1), "previous is 1, but"),
        (put(48, "q", 1), "debits_posted is 1, but"),
        (put(0, "q", 7), "sequence"),
    ],
)
def test_what_a_forger_has_hashed_anew_contradicts_other_rows(
    source: Source, tmp_path: Path, change: Callable[[int, bytearray], None], expected: str
) -> None:
    found = problems(tmp_path, forge(read(source.jsonl), change))
    assert any(expected in problem for problem in found), found
    assert "(account " in found[0]
    assert len(found) <= export_check.PROBLEMS_MAX


def test_rows_that_are_none(source: Source, tmp_path: Path) -> None:
    lines = read(source.jsonl)
    at = line_of(lines, "CreateTransaction", rows=2)
    for place, expected in ((3, "fails its CRC-32"), (-1, "row 2 (account ")):
        changed = [*lines]
        changed[at] = edited(changed[at], lambda value, p=place: flip(value["items"][0], "rows", p))
        assert any(expected in problem for problem in problems(tmp_path, changed))


def test_at_most_twenty_problems_are_listed(source: Source, tmp_path: Path) -> None:
    lines = read(source.jsonl)
    for at in range(1, 25):
        lines[at] = edited(lines[at], lambda value: flip(value["items"][0], "command", -1))
    assert len(problems(tmp_path, lines)) == 20


def test_verify_export_names_problems_and_fails(run: Run, source: Source, tmp_path: Path) -> None:
    lines = read(source.jsonl)
    del lines[9]
    path = tmp_path / "changed.jsonl"
    path.write_text("".join(lines))
    result = run("verify", "--export", str(path), "-o", "json")
    assert result.exit_code == 1
    assert not json.loads(result.stdout)["ok"]
    assert "entry 9 was to come here" in result.stderr
    assert run("verify", "--export", str(tmp_path / "none")).exit_code == 2


# The command


def test_a_file_that_is_there_is_kept(run: Run, source: Source, tmp_path: Path) -> None:
    path = tmp_path / "there"
    path.write_text("precious")
    to = ("export", "--gateway", source.ledger.target, "--output-file", str(path))
    refused = run(*to)
    assert refused.exit_code == 1
    assert "--force replaces it" in refused.stderr
    assert path.read_text() == "precious"
    assert run(*to, "--force").exit_code == 0
    assert export_check.verify_export(path) == []


def test_an_export_that_fails_leaves_nothing(run: Run, tmp_path: Path) -> None:
    result = run(
        *("export", "--gateway", "127.0.0.1:1", "--timeout", "0.2"),
        *("--output-file", str(tmp_path / "x")),
    )
    assert result.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_an_export_to_the_standard_output(run: Run, source: Source) -> None:
    result = run("export", "--gateway", source.ledger.target)
    lines = read(source.jsonl)
    assert result.stdout.splitlines(keepends=True)[1:-1] == lines[1:-1]
    assert "journal entries exported" in result.stderr


def test_a_ledger_that_is_none(run: Run, source: Source, tmp_path: Path) -> None:
    path = tmp_path / "x"
    result = run(
        *("export", "--gateway", source.ledger.target, "--ledger", "nope"),
        *("--output-file", str(path)),
    )
    assert result.exit_code == 1
    assert "LEDGER_NOT_FOUND" in result.stderr
    assert not path.exists()
    assert run("export", "--ledger", "main", "--all").exit_code == 2


# Import


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_an_import_brings_everything_back(
    run: Run, source: Source, empty: StandaloneLedger, suffix: str
) -> None:
    to = ("import", "--gateway", empty.target, str(source.folder / f"all.{suffix}"))
    result = run(*to)
    assert result.exit_code == 0, result.output
    assert "The hash chains of 1 shards equal those of the export." in result.stdout
    ledgers = ("main", "shop")
    there = picture(source.ledger.target, source.accounts, ledgers)
    assert picture(empty.target, source.accounts, ledgers) == there
    assert links(empty.target) == links(source.ledger.target)
    again = run(*to)
    assert again.exit_code == 0
    assert "0 journal entries imported" in again.stdout


def test_an_import_that_was_interrupted_goes_on(
    run: Run, source: Source, empty: StandaloneLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = ("import", "--gateway", empty.target, str(source.jsonl))
    monkeypatch.setattr(import_, "_BATCH_ENTRIES", 4)
    replay, sent = JournalClient.replay_journal, 0

    def interrupted(self: JournalClient, *args: Any, **options: Any) -> Any:
        nonlocal sent
        sent += 1
        if sent == 3:
            raise KeyboardInterrupt
        return replay(self, *args, **options)

    monkeypatch.setattr(JournalClient, "replay_journal", interrupted)
    stopped = run(*to)
    assert stopped.exit_code == 1
    assert "The same command goes on" in stopped.stderr
    with JournalClient(empty.target) as client:
        (shard,) = client.list_shards()
    assert (shard.last_number, shard.replayed_number) == (8, 8)

    # Meanwhile nothing expires: time stands still until all is there.
    result = run(*to)
    assert result.exit_code == 0, result.output
    assert "8 were there already" in result.stdout
    assert links(empty.target) == links(source.ledger.target)


def test_a_file_that_is_not_as_it_was_written_is_refused(
    run: Run, source: Source, empty: StandaloneLedger, tmp_path: Path
) -> None:
    lines = read(source.jsonl)
    lines[-1] = edited(lines[-1], lambda value: value["footer"].update(lines=1))
    path = tmp_path / "changed.jsonl"
    path.write_text("".join(lines))
    result = run("import", "--gateway", empty.target, str(path))
    assert result.exit_code == 1
    assert "nothing was imported" in result.stderr
    assert "number of lines" in result.stderr
    assert links(empty.target) == []


def test_a_forged_history_is_refused_by_the_rules(
    run: Run, source: Source, empty: StandaloneLedger, tmp_path: Path
) -> None:
    """A file that proves itself, but says that something else came of a request."""
    lines, changed = read(source.jsonl), []
    for line in lines[1:-1]:
        entry = json.loads(line)
        for item in entry["items"]:
            if item["result"] == {"refused": "ACCOUNT_NOT_FROZEN"}:
                item["outcome"] = base64.b64encode(b"\xa4done").decode()
        changed.append(export_check.to_json(entry) + "\n")
    path = tmp_path / "forged.jsonl"
    path.write_text("".join(forge([lines[0], *changed, lines[-1]], lambda _count, _row: None)))
    assert export_check.verify_export(path) == []
    result = run("import", "--gateway", empty.target, str(path))
    assert result.exit_code == 1
    assert "REPLAY_DIFFERS" in result.stderr


def test_other_shards_are_refused(
    run: Run, source: Source, empty: StandaloneLedger, tmp_path: Path
) -> None:
    header = json.loads(read(source.jsonl)[0])
    (shard,) = header["shards"]
    header["shards"] = [{**shard, "shard_id": number, "last_number": 0} for number in (0, 1)]
    lines = [export_check.to_json(header) + "\n"]
    hashed = hashlib.blake2b("".join(lines).encode(), digest_size=32).hexdigest()
    shards = [{"shard_id": number, "entries": 0, "link": "0" * 64} for number in (0, 1)]
    lines.append(export_check.to_json(export_check.footer_of(shards, 1, hashed)) + "\n")
    path = tmp_path / "two.jsonl"
    path.write_text("".join(lines))
    assert export_check.verify_export(path) == []
    result = run("import", "--gateway", empty.target, str(path))
    assert result.exit_code == 1
    assert "a cluster with 2 shards, this one has 1 shard" in result.stderr
    assert "ledger cluster generate --shards 2" in result.stderr


def test_a_cluster_that_is_not_empty_is_refused(
    run: Run, source: Source, empty: StandaloneLedger
) -> None:
    with LedgerClient(empty.target) as client:
        client.create_account()
    before = links(empty.target)
    result = run("import", "--gateway", empty.target, str(source.jsonl))
    assert result.exit_code == 1
    assert "JOURNAL_NOT_EMPTY" in result.stderr
    assert "Start one with an empty data directory" in result.stderr
    assert links(empty.target) == before


def test_someone_who_writes_during_an_import_ends_it(
    run: Run, source: Source, empty: StandaloneLedger
) -> None:
    with JournalClient(empty.target) as client, JournalClient(source.ledger.target) as there:
        entries = list(there.list_journal(0, 0, 3))
        client.replay_journal(0, entries, 0)
    with LedgerClient(empty.target) as writer:
        writer.create_account()
    result = run("import", "--gateway", empty.target, str(source.jsonl))
    assert result.exit_code == 1
    assert "JOURNAL_NOT_EMPTY" in result.stderr


def test_another_file_is_not_mixed_in(
    run: Run, source: Source, empty: StandaloneLedger, tmp_path: Path
) -> None:
    with standalone_ledger() as other:
        with LedgerClient(other.target) as client:
            client.create_account()
        path = tmp_path / "other.jsonl"
        assert run("export", "--gateway", other.target, "--output-file", str(path)).exit_code == 0
    assert run("import", "--gateway", empty.target, str(path)).exit_code == 0
    result = run("import", "--gateway", empty.target, str(source.jsonl))
    assert result.exit_code == 1
    assert "another file was imported" in result.stderr


def test_one_ledger_alone(
    run: Run, source: Source, empty: StandaloneLedger, tmp_path: Path
) -> None:
    path = tmp_path / "shop.jsonl"
    to = ("export", "--gateway", source.ledger.target, "--ledger", "shop")
    assert run(*to, "--output-file", str(path)).exit_code == 0
    report = export_check.check_export(path)
    assert report.problems == []
    assert report.chains[0].link == links(source.ledger.target)[-1][1]
    assert 0 < report.chains[0].hidden < report.chains[0].items
    text = path.read_text()
    assert "alice" not in text
    result = run("import", "--gateway", empty.target, str(path))
    assert result.exit_code == 0, result.output
    assert "Other ledgers were left out" in result.stdout
    with LedgerClient(empty.target) as client:
        assert [ledger.name for ledger in client.list_ledgers()] == ["main", "shop"]
        accounts = [account.id for account in client.list_accounts(ledger="shop")]
        assert list(client.list_accounts(ledger="main")) == []
    assert set(accounts) < set(source.accounts)
    assert picture(empty.target, accounts, ("shop",)) == picture(
        source.ledger.target, accounts, ("shop",)
    )
    assert run("import", "--gateway", empty.target, str(path)).exit_code == 0


def test_a_transaction_of_as_many_entries_as_there_may_be_is_exported_and_imported(
    tmp_path: Path, empty: StandaloneLedger, run: Run
) -> None:
    path = str(tmp_path / "large.jsonl")
    with standalone_ledger() as running:
        with LedgerClient(running.target) as client:
            payer, *payees = [client.create_account().id for _ in range(9)]
            client.create_transaction(payer, 10**6, settled=True)
            to = payees * 64
            paid = client.create_atomic_transfers([payer] * 512, to, range(1, 513))
            client.reverse_transaction(paid.id)
            shown = client.get_transaction(paid.id)
        exported = run("--gateway", running.target, "export", "--all", "--output-file", path)
    assert exported.exit_code == 0, exported.output
    assert export_check.verify_export(Path(path)) == []
    imported = run("--gateway", empty.target, "import", path)
    assert imported.exit_code == 0, imported.output
    with LedgerClient(empty.target) as client:
        assert client.get_transaction(paid.id) == shown
        assert client.get_account(payer).settled_balance == 10**6
    listed = run("--gateway", empty.target, "transactions", "get", paid.id)
    assert listed.exit_code == 0, listed.output
    assert listed.output.count(payees[0]) == 64

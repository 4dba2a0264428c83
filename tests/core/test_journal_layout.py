"""The layout that docs/AUDIT.md publishes: what is written once is read for good."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import msgspec
import pytest

from ledger_cli import export_check
from ledger_core import accounts, commands, journal, ledgers
from ledger_core.accounts import Counters, Direction, EntryKind
from ledger_core.ids import shard_key
from ledger_node.records import ENTRY_EFFECT, ENTRY_ROW_BYTES, EntryRow

ROW = EntryRow(
    account_id=0x0123456789ABCDEF,
    transaction=7,
    amount=1_250,
    time_us=1_700_000_000_000_001,
    sequence=3,
    previous=41,
    after=Counters(1_250, 9_000, 50, 25),
    direction=Direction.DEBIT,
    kind=EntryKind.POSTED,
)
ROW_HEX = (
    "efcdab8967452301"  # account id
    "0700000000000000"  # transaction number
    "e204000000000000"  # amount
    "01401e18240a0600"  # time
    "0300000000000000"  # sequence
    "2900000000000000"  # previous
    "e204000000000000"  # debits posted
    "2823000000000000"  # credits posted
    "3200000000000000"  # debits pending
    "1900000000000000"  # credits pending
    "01010000"  # direction, kind, nothing
)
FREEZE = commands.FreezeAccount(0x0123456789ABCDEF, "r-1", "alice", commands.Source("c", "p"))
COMMAND = bytes.fromhex("9506cf0123456789abcdefa3722d31a5616c69636592a163a170")
DONE = bytes.fromhex("a4646f6e65")
DIGEST = "3bb8b790e4aee0ecdf57189d9ae7f3e7da2157d51cb3c99b4df01e3292096f94"
LINK = "a24e61711aacfaefbb5e2aff5d6693a78374bf8469f2b80e9fb3022dba1a10e3"


def test_a_row_is_84_bytes_and_their_crc_32() -> None:
    row = bytes.fromhex(ROW_HEX)
    assert (len(row), ENTRY_ROW_BYTES, export_check.ROW_BYTES) == (84, 88, 88)
    assert ROW.pack() == row + struct.pack("<I", zlib.crc32(row))
    assert export_check.unpack_rows(ROW.pack()) == [
        export_check.Row(
            ROW.account_id,
            7,
            1_250,
            1_700_000_000_000_001,
            3,
            41,
            (1_250, 9_000, 50, 25),
            1,
            1,
        )
    ]


def test_a_command_is_an_array_that_begins_with_its_number() -> None:
    assert commands.encode_command(FREEZE) == COMMAND
    assert export_check.describe_command(COMMAND) == {
        "kind": "FreezeAccount",
        "account_id": "0123456789abcdef",
        "request_id": "r-1",
        "actor": "alice",
        "source": {"correlation_id": "c", "peer": "p"},
    }


def test_digests_and_links_are_what_they_were() -> None:
    digest = journal.item_digest(COMMAND, DONE, 7, ROW.pack())
    assert digest.hex() == DIGEST
    link = journal.next_link(journal.FIRST_LINK, 1, 1_700_000_000_000_001, [digest, bytes(32)])
    assert link.hex() == LINK
    assert export_check.item_digest(COMMAND, DONE, 7, ROW.pack()) == digest
    assert link == export_check.next_link(bytes(32), 1, 1_700_000_000_000_001, [digest, bytes(32)])
    assert export_check.FIRST_LINK == journal.FIRST_LINK


STRUCTS = {
    "source": commands.Source,
    "currency": ledgers.Currency,
    "limits": commands.Limits,
    "line": ledgers.ChartCode,
    "entry": commands.Entry,
    "refused": commands.Refused,
    "vote": commands.Vote,
    "part": commands.TransferPart,
}


def fields(text: str) -> list[str]:
    return [field.partition(":")[0] for field in text.split()]


@pytest.mark.parametrize("name", STRUCTS)
def test_the_verifier_knows_the_parts_of_commands(name: str) -> None:
    assert tuple(fields(export_check.STRUCTS[name])) == STRUCTS[name].__struct_fields__
    assert set(STRUCTS) == set(export_check.STRUCTS)


def test_the_verifier_knows_all_commands_that_a_journal_can_have() -> None:
    known = {
        kind.__struct_config__.tag: (kind.__name__, list(kind.__struct_fields__))
        for kind in commands.Command.__args__
        if kind not in (commands.Replay, commands.EndReplay)
    }
    assert known == {
        tag: (name, fields(text)) for tag, (name, text) in export_check.COMMANDS.items()
    }


def test_the_verifier_knows_all_kinds_of_entries() -> None:
    assert tuple(kind.name for kind in EntryKind) == export_check.KINDS
    for kind, effect in ENTRY_EFFECT.items():
        row = export_check.Row(1, 1, 10, 1, 1, 0, (0, 0, 0, 0), 2, kind)
        assert row.effect == (0, 10 * effect[0], 0, 10 * effect[1])


@pytest.mark.parametrize(
    ("how", "enumeration"),
    [
        ("direction", Direction),
        ("type", accounts.AccountType),
        ("status", accounts.TransactionStatus),
    ],
)
def test_the_verifier_knows_the_enumerations(how: str, enumeration: type) -> None:
    reader = export_check._READERS[how]
    assert [reader(int(value)) for value in enumeration] == [value.name for value in enumeration]
    assert reader(len(list(enumeration)) + 1) == len(list(enumeration)) + 1


@pytest.mark.parametrize("account_id", [0, 1, 0x0123456789ABCDEF, 2**64 - 1])
def test_the_verifier_places_accounts_on_shards(account_id: int) -> None:
    assert export_check.shard_key(account_id) == shard_key(account_id)


VALUES = [
    *(None, True, False, 0, 127, 128, 255, 256, 65_535, 65_536, 2**32, 2**64 - 1),
    *(-1, -32, -33, -128, -129, -32_769, -(2**31) - 1, -(2**63), 0.5),
    *("", "é" * 15, "x" * 31, "x" * 32, "x" * 256, "x" * 70_000),
    *(b"", b"\xff" * 255, b"\xff" * 256, b"\xff" * 70_000),
    *([], [1] * 15, [1] * 16, [1] * 70_000, {}, {"a": [1, {"b": None}]}),
    {str(number): number for number in range(16)},
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_the_verifier_reads_msgpack(value: object) -> None:
    data = msgspec.msgpack.encode(value)
    assert export_check.unpack(data) == value
    for wrong in (data[:-1], data + b"\0"):
        with pytest.raises(export_check.FaultError):
            export_check.unpack(wrong)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\xd4\x00\x00", b"\x91" * 100 + b"\x00"])
def test_what_is_no_msgpack_is_told(data: bytes) -> None:
    with pytest.raises(export_check.FaultError):
        export_check.unpack(data)


def test_the_verifier_needs_the_standard_library_only(tmp_path: Path) -> None:
    copy = tmp_path / "export_check.py"
    copy.write_bytes(Path(export_check.__file__).read_bytes())
    ran = subprocess.run(  # -I -S: no site-packages, no PYTHONPATH, no folder of this repository
        [sys.executable, "-I", "-S", str(copy), str(tmp_path / "none.jsonl")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr.strip()) == (
        1,
        f"{tmp_path / 'none.jsonl'}: No such file or directory",
    )


def test_the_page_says_what_is_written() -> None:
    page = (Path(__file__).parents[2] / "docs" / "AUDIT.md").read_text()
    for number, (name, text) in export_check.COMMANDS.items():
        assert f"| {number} | {name} | `{text}` |" in page
    for name, text in export_check.STRUCTS.items():
        assert f"| {name} | `{text}` |" in page
    assert ",".join(export_check.CSV_COLUMNS) in page
    for kind in EntryKind:
        signs = [("", "+ ", "\N{MINUS SIGN} ")[effect] for effect in ENTRY_EFFECT[kind]]
        assert f"| {int(kind)} {kind.name} | {signs[0]}| {signs[1]}|" in page
    row = ROW.pack().hex()
    assert all(row[at : at + 64] in page for at in range(0, len(row), 64))
    assert all(text in page for text in (COMMAND.hex(), DONE.hex(), DIGEST, LINK))

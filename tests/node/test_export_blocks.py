"""Exports of blocks of transfers between shards: proven by the file, and imported again."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledger_cli.export_check import verify_export
from ledger_cli.export_file import new_writer
from ledger_core.commands import (
    ApplyTransfers,
    CommitTransfers,
    DeliveredTransfers,
    PrepareTransfers,
)
from tests.node.several_shards import SHARDS, World
from tests.node.test_deep_audit_blocks import run_blocks
from tests.node.test_export_cut import imported, journal, shards_of

KINDS = [
    kind.__name__
    for kind in (PrepareTransfers, CommitTransfers, ApplyTransfers, DeliveredTransfers)
]
Lines = list[str]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Three shards; two of them have sent each other blocks, some through all rounds."""
    world = World(tmp_path_factory.mktemp("world"))
    run_blocks(world)
    return world


@pytest.fixture(scope="module")
def lines(world: World, tmp_path_factory: pytest.TempPathFactory) -> Lines:
    """An export, line by line."""
    path = tmp_path_factory.mktemp("export") / "books.jsonl"
    numbers = {shard.shard.id: len(journal(shard)) for shard in world.shards}
    with path.open("wb") as file:
        writer = new_writer(file, "jsonl", shards_of(world, numbers), ledger="", created_us=0)
        for shard in world.shards:
            for entry in journal(shard):
                writer.entry(shard.shard.id, entry)
        writer.finish()
    assert verify_export(path) == []
    return path.read_text().splitlines(keepends=True)


def items_of(lines: Lines, kind: str) -> list[int]:
    """Where the items of a kind of command are; each is alone in its line."""
    return [place for place, line in enumerate(lines) if f'"what":{{"kind":"{kind}"' in line]


def problems(lines: Lines, folder: Path) -> list[str]:
    path = folder / "changed.jsonl"
    path.write_text("".join(lines))
    return verify_export(path)


def changed(lines: Lines, place: int, change: Callable[[dict[str, Any]], None]) -> Lines:
    value = json.loads(lines[place])
    change(value["items"][0])
    line = json.dumps(value, separators=(",", ":")) + "\n"
    return [*lines[:place], line, *lines[place + 1 :]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["command", "outcome", "rows"])
def test_a_bit_that_is_changed_in_a_block_is_named(
    lines: Lines, tmp_path: Path, kind: str, name: str
) -> None:
    for place in items_of(lines, kind)[:: 1 if kind == "CommitTransfers" else 2]:
        size = len(base64.b64decode(json.loads(lines[place])["items"][0][name]))
        for at in {0, size // 3, size // 2, size - 1} if size else ():

            def flip(item: dict[str, Any], at: int = at) -> None:
                data = bytearray(base64.b64decode(item[name]))
                data[at] ^= 1
                item[name] = base64.b64encode(data).decode()

            found = problems(changed(lines, place, flip), tmp_path)
            where = f"line {place + 1}: "
            assert any(
                problem.startswith(where) and "digest is not that of its" in problem
                for problem in found
            ), found


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("PrepareTransfers", "home_shards"),
        ("CommitTransfers", "amounts"),
        ("CommitTransfers", "participant_shards"),
        ("ApplyTransfers", "statuses"),
        ("DeliveredTransfers", "numbers"),
    ],
)
def test_a_column_that_says_something_else_is_named(
    lines: Lines, tmp_path: Path, kind: str, field: str
) -> None:
    place = items_of(lines, kind)[0]

    def change(item: dict[str, Any]) -> None:
        item["what"][field] = "77" + item["what"][field][2:]

    found = problems(changed(lines, place, change), tmp_path)
    assert any(f"what.{field} is " in problem for problem in found), found


def test_votes_and_reasons_are_in_words(lines: Lines) -> None:
    (first, *_) = items_of(lines, "CommitTransfers")
    item = json.loads(lines[first])["items"][0]
    assert item["what"]["refused"] == {
        "3": {
            "entry_index": 1,
            "required_amount": "0",
            "available_amount": "0",
            "reserved_amount": "0",
            "reason": "ACCOUNT_FROZEN",
        }
    }
    assert item["what"]["parts"][0] == {
        "count": 1,
        "actor": "",
        "source": {"correlation_id": "", "peer": ""},
    }
    assert item["what"]["texts"] == {"0": ["a text", "reference 0", {"key": "value"}]}
    # The first number, and what became of each.
    assert item["result"]["state"] == {"bytes": "02020406"}
    assert [row["kind"] for row in item["entries"]] == ["POSTED"] * 4 + ["REFUSED"] * 2


def test_an_import_comes_to_the_same_links_and_goes_on(world: World, tmp_path: Path) -> None:
    """What their gateway had left is taken up where the exported cluster was."""
    copy = imported(world, dict.fromkeys(range(SHARDS), 10**6), tmp_path)
    assert copy.in_flight(0).keys() == world.in_flight(0).keys() != set()
    assert copy.undecided(1).keys() == world.undecided(1).keys() != set()
    copy.check_every_shard_balances()
    copy.drive()
    copy.check_nothing_is_in_flight()
    copy.check_every_shard_balances()
    copy.check_histories()
    copy.close()

"""Spoils the store of a node that is down, in places that the node depends on."""

import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import lmdb

PAGE_BYTES = 4096
_COMMIT_AT = 144
_MAGIC_AT = 16
_U64 = struct.Struct("<Q")
_ROW_BYTES_MIN = 16


def save(node_dir: Path, aside: Path) -> None:
    """Keep a copy of a node's store."""
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(node_dir / "store", aside)


def restore(node_dir: Path, aside: Path) -> None:
    """Put the copy back."""
    shutil.rmtree(node_dir / "store", ignore_errors=True)
    shutil.copytree(aside, node_dir / "store")
    shutil.rmtree(aside)


def spoil(node_dir: Path, rng: random.Random, how: str = "") -> str:
    """Damage the store, ``how`` or as drawn; return what was done, in words."""
    how = how or rng.choice(sorted(WAYS))
    of_log = how in WAYS_OF_LOG or (how in WAYS_OF_BOTH and rng.random() < 0.5)
    folder = "log" if of_log else "state"
    done = WAYS[how](node_dir / "store" / folder / "data.mdb", rng)
    return f"{folder}: {done}"


def _truncate(file: Path, rng: random.Random) -> str:
    pages = file.stat().st_size // PAGE_BYTES
    kept = rng.randint(2, max(2, pages * 3 // 4))
    with file.open("r+b") as stream:
        stream.truncate(kept * PAGE_BYTES)
    return f"truncated to {kept} of {pages} pages"


def _flip_header(offset: int, bits: int, name: str) -> Callable[[Path, random.Random], str]:
    def flip(file: Path, rng: random.Random) -> str:
        data = file.read_bytes()
        newest = max((0, 1), key=lambda page: _U64.unpack_from(data, _at(page, _COMMIT_AT))[0])
        _flip(file, [_at(newest, offset) * 8 + rng.randrange(bits)])
        return f"bit flip in the {name} of the newest header page"

    return flip


def _flip_row(
    table: str, name: str, *, newest: bool, bytes_max: int | None = None
) -> Callable[[Path, random.Random], str]:
    """Flip a bit of a row, within its first ``bytes_max`` bytes."""

    def flip(file: Path, rng: random.Random) -> str:
        row = _row(file, rng, table, newest)
        bit = rng.randrange(len(row[:bytes_max]) * 8)
        data = file.read_bytes()
        # Pages are copied when they change: old copies of the row are spoiled with it.
        places = []
        at = data.find(row)
        while at >= 0:
            places.append(at * 8 + bit)
            at = data.find(row, at + 1)
        assert places, "the row is somewhere in the file"
        _flip(file, places)
        return f"bit flip in {name} ({len(row)} bytes)"

    return flip


def _row(file: Path, rng: random.Random, table: str, newest: bool) -> bytes:
    """Return a row of a table of some shard, as it is stored."""
    env = lmdb.open(str(file.parent), max_dbs=2_048, readonly=True, lock=False)
    try:
        with env.begin() as txn:
            names = [bytes(key) for key, _ in txn.cursor() if key.endswith(table.encode())]
            rng.shuffle(names)
            for name in names:
                with txn.cursor(env.open_db(name, txn=txn, create=False)) as cursor:
                    rows = [bytes(value) for value in cursor.iternext(keys=False, values=True)]
                rows = [row for row in rows if len(row) >= _ROW_BYTES_MIN and any(row)]
                if rows:
                    return rows[-1] if newest else rng.choice(rows[-50:])
    finally:
        env.close()
    raise LookupError(f"no rows in any table {table}")


def _flip(file: Path, bits: list[int]) -> None:
    with file.open("r+b") as stream:
        for bit in bits:
            stream.seek(bit // 8)
            byte = stream.read(1)[0]
            stream.seek(bit // 8)
            stream.write(bytes([byte ^ 1 << bit % 8]))


def _at(page: int, offset: int) -> int:
    return page * PAGE_BYTES + offset


WAYS: dict[str, Callable[[Path, random.Random], str]] = {
    "truncated": _truncate,
    "magic": _flip_header(_MAGIC_AT, 32, "magic number"),
    "log entry": _flip_row(".log", "a log entry", newest=False),
    "newest log entry": _flip_row(".log", "the newest log entry", newest=True),
    # Not in flags and fillings, which nothing else could confirm.
    "balance": _flip_row(".balances", "a balance", newest=False, bytes_max=60),
    "history": _flip_row(".entries", "an account's history", newest=False, bytes_max=82),
}

WAYS_OF_LOG = {"log entry", "newest log entry"}
WAYS_OF_BOTH = {"truncated", "magic"}

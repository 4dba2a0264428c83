"""How a node says why it cannot go on: one clear line for what operators can mend."""

import errno
import os
import subprocess
import sys

import lmdb
import pytest

from ledger_node.store import StoreCorruptError, plain_reason
from ledger_node.store_files import DAMAGE_ADVICE

PROGRAM = """
import lmdb
from ledger_node.fatal import die
from ledger_node.store import StoreCorruptError
try:
    raise {error}
except Exception as error:
    die("the node stops", error)
"""


def die(error: str) -> tuple[int, list[str]]:
    program = PROGRAM.replace("{error}", error)
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def test_damage_ends_in_one_line_with_advice() -> None:
    code, lines = die("StoreCorruptError('log entry 7 fails its checksum')")
    assert code == 70
    assert len(lines) == 1
    assert "the node stops: the store is damaged: log entry 7 fails its checksum." in lines[0]
    assert DAMAGE_ADVICE in lines[0]


def test_a_bug_ends_with_its_traceback() -> None:
    code, lines = die("RuntimeError('a bug')")
    assert code == 70
    assert lines[1].startswith("Traceback")
    assert lines[-1] == "RuntimeError: a bug"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StoreCorruptError("the row 00 is missing"), "is damaged: the row 00 is missing. Move"),
        (lmdb.CorruptedError("mdb_get: MDB_CORRUPTED"), "is damaged"),
        (lmdb.PageNotFoundError("mdb_get: MDB_PAGE_NOTFOUND"), "is damaged"),
        (
            lmdb.MapFullError("mdb_put: MDB_MAP_FULL"),
            "start the node with a larger --store-max-mib",
        ),
        (lmdb.DiskError(f"mdb_txn_commit: {os.strerror(errno.ENOSPC)}"), "the disk is full"),
        (lmdb.Error(f"mdb_txn_commit: {os.strerror(errno.EIO)}"), "the disk failed"),
        (lmdb.BadTxnError("mdb_put: MDB_BAD_TXN"), None),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), None),
    ],
    ids=str,
)
def test_reasons_in_words(error: Exception, reason: str | None) -> None:
    told = plain_reason(error)
    assert told is None if reason is None else told is not None and reason in told

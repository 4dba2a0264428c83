"""What makes a data directory belong to one node of one cluster, one format and one process."""

import errno
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FORMAT_VERSION: Final = 5

# The folders of a store's two files, each named data.mdb.
LOG_FOLDER: Final = "log"
STATE_FOLDER: Final = "state"
DAMAGE_ADVICE: Final = (
    "Move the data directory away and start the node empty: the other replicas hold the data."
)


def state_file(store: Path) -> Path:
    """Return the file with the state, given the folder of a store."""
    return store / STATE_FOLDER / "data.mdb"


def log_file(store: Path) -> Path:
    """Return the file with the log, given the folder of a store."""
    return store / LOG_FOLDER / "data.mdb"


class StoreError(Exception):
    """The store cannot be opened or trusted. The text says what to do."""


class StoreCorruptError(StoreError):
    """Stored bytes are not what was written."""


@dataclass(frozen=True, slots=True)
class StoreIdentity:
    """To whom a data directory belongs."""

    cluster_id: str
    node_id: str


def lock_directory(path: Path) -> int:
    """Take the directory for this process, until the descriptor is closed or the process ends."""
    fd = os.open(path / "LOCK", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise StoreError(
            f"the data directory {path} is in use by process {holder}. Stop that process, or give "
            f"this one another directory."
        ) from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def check_identity(path: Path, identity: StoreIdentity, lmdb_version: str) -> None:
    """Write the directory's identity the first time, and hold it against ours ever after."""
    file = path / "identity.json"
    ours = {
        "cluster_id": identity.cluster_id,
        "node_id": identity.node_id,
        "format_version": FORMAT_VERSION,
        "lmdb_version": lmdb_version,
    }
    if not file.exists():
        if (path / "store").exists():
            raise StoreCorruptError(
                f"{path} holds a store but no identity.json: it was not made by this program, or "
                f"part of it was deleted. Restore the file, or start with an empty directory."
            )
        _write_durably(file, json.dumps(ours, indent=2) + "\n")
        return
    try:
        theirs = json.loads(file.read_text())
    except ValueError as error:
        raise StoreCorruptError(f"{file} is not JSON: {error}") from error
    advice = {
        "cluster_id": "It belongs to another cluster: check --cluster-config and --data-dir.",
        "node_id": "It belongs to another node: check --node-id and --data-dir.",
        "format_version": "It was written by another version of this program: run that version.",
        "lmdb_version": "It was written by another LMDB release: install the lmdb package it had.",
    }
    for key, value in ours.items():
        found = theirs.get(key) if isinstance(theirs, dict) else None
        if found != value:
            raise StoreError(
                f"the data directory {path} has {key} {found!r}, but this process has {value!r}. "
                f"{advice[key]}"
            )


def _write_durably(file: Path, text: str) -> None:
    temporary = file.with_suffix(".tmp")
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(file)
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)

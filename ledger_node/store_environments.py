"""The two LMDB environments of a store: its log and its state, each a file of its own.

The log is committed with every turn, the state behind it, in *checkpoints*: a turn's few rows lie
in many pages of the state, and turns that share a checkpoint share the writing of these pages.

Both carry the store's id, a random number, so that the log of one store is never taken for that of
another one.
"""

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lmdb

from ledger_node.store_files import (
    DAMAGE_ADVICE,
    LOG_FOLDER,
    STATE_FOLDER,
    StoreCorruptError,
)

# The table that both environments have, beside those of their shards: the store's id.
_STORE_TABLE: Final = b"store"
_ID: Final = b"id"
_WHOLE: Final = b"whole"
TABLES_OF_STORE: Final = 1


class WriteTransaction:
    """The write transaction of an environment: begun at its first use, open until its commit."""

    def __init__(self, env: lmdb.Environment) -> None:
        self.env = env
        self._txn: lmdb.Transaction | None = None

    @property
    def is_open(self) -> bool:
        """Whether it was used since the last commit."""
        return self._txn is not None

    @property
    def txn(self) -> lmdb.Transaction:
        """The transaction."""
        if self._txn is None:
            self._txn = self.env.begin(write=True)
        return self._txn

    def commit(self) -> None:
        """Make everything written durable."""
        txn, self._txn = self._txn, None
        if txn is not None:
            txn.commit()

    def abort(self) -> None:
        """Drop everything written since the last commit."""
        txn, self._txn = self._txn, None
        if txn is not None:
            txn.abort()


@dataclass(frozen=True, slots=True)
class Environments:
    """The log and the state of a store, open."""

    log: WriteTransaction
    state: WriteTransaction

    def close(self) -> None:
        """Drop what is not committed, and close both."""
        for one in (self.log, self.state):
            one.abort()
            one.env.close()


def open_environments(
    folder: Path, *, map_bytes: int, log_tables: int, state_tables: int, sync: bool
) -> Environments:
    """Open or create both files in ``folder``; StoreCorruptError where they are not a pair."""
    opened: list[lmdb.Environment] = []
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, tables in ((LOG_FOLDER, log_tables), (STATE_FOLDER, state_tables)):
            try:
                opened.append(
                    lmdb.open(
                        str(folder / name),
                        map_size=map_bytes,
                        max_dbs=TABLES_OF_STORE + tables,
                        sync=sync,
                        metasync=sync,
                        lock=True,
                        max_readers=16,
                    )
                )
            except lmdb.Error as error:
                raise StoreCorruptError(
                    f"the store in {folder} cannot be opened: {name}: {error}. If its files are "
                    f"damaged: {DAMAGE_ADVICE}"
                ) from error
        _hold_together(folder, opened[0], opened[1])
    except BaseException:
        for env in opened:
            env.close()
        raise
    return Environments(*map(WriteTransaction, opened))


def _hold_together(folder: Path, log: lmdb.Environment, state: lmdb.Environment) -> None:
    """Give both files of a new store the same id; refuse files that are not of one store.

    The state says that the store is whole once both have it. Before that nothing was ever written
    to either, so a creation that was cut short is gone on with.
    """
    log_id, state_id = _row(log, _ID), _row(state, _ID)
    if state_id is None:
        if log_id is not None:
            raise _not_a_pair(folder, f"there is {LOG_FOLDER}, but no {STATE_FOLDER}")
        state_id = secrets.token_bytes(16)
        _save(state, _ID, state_id)
    if _row(state, _WHOLE) is None:
        _save(log, _ID, state_id)
        _save(state, _WHOLE, b"1")
    elif log_id is None:
        raise _not_a_pair(folder, f"there is {STATE_FOLDER}, but no {LOG_FOLDER}")
    elif log_id != state_id:
        raise _not_a_pair(folder, f"{LOG_FOLDER} and {STATE_FOLDER} are of two stores")


def _not_a_pair(folder: Path, what: str) -> StoreCorruptError:
    return StoreCorruptError(
        f"the files of the store in {folder} do not belong together: {what}. Put back both as they "
        f"were, from the same moment. If that cannot be: {DAMAGE_ADVICE}"
    )


def _row(env: lmdb.Environment, key: bytes) -> bytes | None:
    try:
        table = env.open_db(_STORE_TABLE, create=False)
    except lmdb.NotFoundError:
        return None
    with env.begin() as txn:
        found = txn.get(key, db=table)
    return None if found is None else bytes(found)


def _save(env: lmdb.Environment, key: bytes, row: bytes) -> None:
    with env.begin(write=True) as txn:
        txn.put(key, row, db=env.open_db(_STORE_TABLE, txn=txn))


@contextlib.contextmanager
def read_only(folder: Path, name: str) -> Iterator[lmdb.Environment]:
    """Open one of the files beside the node that has the store, or without one."""
    # A map size of 0: that of the node, so that the file may grow meanwhile.
    env = lmdb.open(str(folder / name), max_dbs=65_536, readonly=True, create=False, map_size=0)
    try:
        yield env
    finally:
        env.close()

"""pysyncobj, pinned and cut off from sockets, files, threads and the real clock.

This is the only module that patches the library. It does so for the whole process, which
is safe since nothing else in the product uses pysyncobj.
"""

import importlib.metadata
from typing import Any

import pysyncobj.syncobj
from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.journal import Journal
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from ledger_node.raft.contract import FatalRaftError, Role, require

__all__ = ["PINNED_VERSION", "Journal", "Kind", "Node", "SyncObj", "SyncObjConf", "Transport"]

PINNED_VERSION = "0.3.17"

_installed = importlib.metadata.version("pysyncobj")
if _installed != PINNED_VERSION:
    raise FatalRaftError(
        f"pysyncobj {_installed} is installed, but private members of {PINNED_VERSION} are "
        "overridden here: install that version"
    )


class Kind:
    """First byte of a log entry's payload. pysyncobj knows more kinds; we refuse them."""

    REGULAR = int(pysyncobj.syncobj._COMMAND_TYPE.REGULAR)
    NO_OP = int(pysyncobj.syncobj._COMMAND_TYPE.NO_OP)


class Clock:
    """The time the library sees: set from `now` at every entry point of a group."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        """Return the time of the current call."""
        return self.now


clock = Clock()


class _NoPoller:
    """Stands where the library would poll sockets."""

    def poll(self, timeout: float) -> None:
        """Do nothing: the host does all input and output."""


def _given_journal(journal: Any) -> Journal:
    require(isinstance(journal, Journal), "a group needs a journal of its own")
    return journal


pysyncobj.syncobj.monotonicTime = clock.read
pysyncobj.syncobj.createJournal = _given_journal
pysyncobj.syncobj.createPoller = lambda _kind: _NoPoller()

_STATES = pysyncobj.syncobj._RAFT_STATE
require(
    (_STATES.FOLLOWER, _STATES.CANDIDATE, _STATES.LEADER)
    == (Role.FOLLOWER, Role.CANDIDATE, Role.LEADER),
    "pysyncobj numbers its roles differently",
)

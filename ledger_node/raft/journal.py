"""The journal pysyncobj works on, kept in a RaftLog."""

from typing import overload

from ledger_node.raft.contract import FatalRaftError, RaftLog, SnapshotReader, require
from ledger_node.raft.library import Journal, Kind

TAIL_ENTRIES_MAX = 512
TAIL_BYTES_MAX = 1 << 20
SLICE_ENTRIES_MAX = 1024

# An entry as pysyncobj wants it: payload, index, term.
Entry = tuple[bytes, int, int]

_NO_OP = bytes([Kind.NO_OP])


class GroupJournal(Journal):  # type: ignore[misc]  # pysyncobj is untyped
    """Indexing by place as pysyncobj does it, and by log index as the rest of this package.

    Holds the first and the last entry and a bounded tail of the log in memory; everything
    else is read from the RaftLog when asked for.

    Never empty: the first entry is the compaction *marker*. It is applied, so nobody needs its
    payload; its index and term tell whether a follower's log ends where ours begins. At first it
    is entry 1, a no-op of term 0 on every replica; later the newest entry that was dropped in all
    but name; after the install of a snapshot a no-op in place of the last entry included.
    """

    def __init__(self, log: RaftLog) -> None:
        self._log = log
        self._tail: dict[int, Entry] = {}
        self._tail_bytes = 0
        if (installed := log.unfinished_install()) is not None:
            log.restart_at(*installed, _NO_OP)
        self.term, self.voted_for = log.load_hard_state()
        stored_index = log.applied_index()
        applied = log.load_applied()
        self.was_empty = log.last_index() == 0
        if self.was_empty:
            require(
                self.term == 0
                and self.voted_for is None
                and stored_index == 0
                and applied is None
                and log.load_standing() is None,
                "the log is gone: there is a term, a vote or applied state, but no entry",
            )
            log.append(1, 0, _NO_OP)
        self.first_index = log.first_index()
        self.last_index = log.last_index()
        require(1 <= self.first_index <= self.last_index, "log: first index after the last")
        self._first = self._read(self.first_index)
        self._last = self._read(self.last_index)
        require(self._first[2] <= self._last[2], "log: terms fall")
        require(self._last[2] <= self.term, "log: last entry is newer than the stored term")
        # A store of an earlier version knows the last command applied only, not the last entry.
        self.applied_index = max(1, stored_index if applied is None else applied[0])
        require(
            max(stored_index, self.first_index) <= self.applied_index <= self.last_index,
            f"state is at entry {max(stored_index, self.applied_index)}, but the log holds "
            f"{self.first_index} to {self.last_index}",
        )
        require(
            applied is None or self.term_at(applied[0]) == applied[1],
            f"the entry applied last, {self.applied_index}, is not the one in the log",
        )

    # By log index.

    @property
    def last_term(self) -> int:
        """Term of the newest entry."""
        return self._last[2]

    def entry(self, index: int) -> Entry:
        """Return the entry at `index`, which must be in the log."""
        entry = self._tail.get(index)
        return self._read(index) if entry is None else entry

    def term_at(self, index: int) -> int | None:
        """Return the term of the entry at `index`; None after the end of the log.

        The entry must not lie before the first.
        """
        if index == self.last_index:
            return self._last[2]
        return None if index > self.last_index else self.entry(index)[2]

    def truncate_from(self, index: int) -> None:
        """Remove the entry at `index` and all after it."""
        require(self.first_index < index <= self.last_index, "truncation outside the log")
        self._log.truncate_from(index)
        for dropped in range(index, self.last_index + 1):
            entry = self._tail.pop(dropped, None)
            if entry is not None:
                self._tail_bytes -= len(entry[0])
        self.last_index = index - 1
        self._last = self.entry(self.last_index)

    def save_applied(self, index: int, term: int) -> None:
        """Note how far the state machine is."""
        self.applied_index = index
        self._log.save_applied(index, term)

    @property
    def durable_index(self) -> int:
        """How far the state machine is on disk: entries up to here may be dropped."""
        return max(1, self._log.durable_index())

    def size_bytes(self) -> int:
        """Return about how much space the log takes."""
        return self._log.size_bytes()

    def drop_before(self, index: int) -> None:
        """Drop the entries before the one at `index`, which becomes the marker."""
        require(self.first_index < index <= self.durable_index, "compaction of what is needed")
        self._first = self.entry(index)
        self._log.drop_before(index)
        for dropped in range(self.first_index, index):
            entry = self._tail.pop(dropped, None)
            if entry is not None:
                self._tail_bytes -= len(entry[0])
        self.first_index = index

    # Snapshots.

    def open_snapshot(self) -> SnapshotReader:
        """Return the state as it is on disk."""
        return self._log.open_snapshot()

    def begin_install(self) -> bool:
        """Prepare to stage another state; False: not yet."""
        return self._log.begin_install()

    def stage(self, rows: bytes) -> None:
        """Add to the staged state."""
        self._log.stage(rows)

    def abandon_install(self) -> None:
        """Give up the staged state."""
        self._log.abandon_install()

    def finish_install(self, index: int, term: int) -> None:
        """Change over to the staged state, and to a log that starts after it."""
        require(index > self.applied_index, "a snapshot must not take state back")
        require(term <= self.term, "a snapshot of a later term than ours")
        self._log.finish_install(index, term)
        self._log.restart_at(index, term, _NO_OP)
        self._tail.clear()
        self._tail_bytes = 0
        self.first_index = self.last_index = self.applied_index = index
        self._first = self._last = (_NO_OP, index, term)

    def tidy(self) -> None:
        """Remove a bounded part of staged or former state that is of no use any more."""
        self._log.tidy()

    def _read(self, index: int) -> Entry:
        require(
            self.first_index <= index <= self.last_index,
            f"entry {index} is outside the log, {self.first_index} to {self.last_index}",
        )
        term, payload = self._log.read(index)
        require(len(payload) > 0, f"entry {index} has no kind")
        return payload, index, term

    # What pysyncobj calls.

    def add(self, command: bytes, idx: int, term: int) -> None:
        """Append one entry."""
        require(idx == self.last_index + 1, "append leaves a gap in the log")
        require(self._last[2] <= term <= self.term, "append with a term out of order")
        self._log.append(idx, term, command)
        self._last = (command, idx, term)
        self.last_index = idx
        self._tail[idx] = self._last
        self._tail_bytes += len(command)
        while len(self._tail) > TAIL_ENTRIES_MAX or self._tail_bytes > TAIL_BYTES_MAX:
            oldest = next(iter(self._tail))
            self._tail_bytes -= len(self._tail.pop(oldest)[0])

    def __len__(self) -> int:
        return self.last_index - self.first_index + 1

    @overload
    def __getitem__(self, place: int) -> Entry: ...
    @overload
    def __getitem__(self, place: slice) -> list[Entry]: ...
    def __getitem__(self, place: int | slice) -> Entry | list[Entry]:
        if isinstance(place, int):
            if place == 0:
                return self._first
            if place == -1:
                return self._last
            require(0 < place < len(self), "place outside the log")
            return self.entry(self.first_index + place)
        start, stop = place.start, place.stop
        require(
            isinstance(start, int)
            and isinstance(stop, int)
            and place.step is None
            and 0 <= start <= stop <= start + SLICE_ENTRIES_MAX,
            "the log is read in bounded slices only",
        )
        first = self.first_index
        return [self.entry(i) for i in range(first + start, min(first + stop, self.last_index + 1))]

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802, N803
        """Store term and vote."""
        self.term, self.voted_for = term, votedForNodeId
        self._log.save_hard_state(term, votedForNodeId)

    def getCurrentTerm(self) -> int:  # noqa: N802
        """Return the stored term."""
        return self.term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        """Return the stored vote."""
        return self.voted_for

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803
        """Do nothing: the commit index is volatile in Raft and restarts at the applied index."""

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        """Return where the commit index starts: what is applied was committed."""
        return self.applied_index

    def deleteEntriesFrom(self, entryFrom: int) -> None:  # noqa: ARG002, N802, N803
        """Refuse: the library truncates without looking; we use truncate_from."""
        raise FatalRaftError("the library tried to truncate the log")

    def deleteEntriesTo(self, entryTo: int) -> None:  # noqa: ARG002, N802, N803
        """Refuse: the library compacts without looking; we use drop_before."""
        raise FatalRaftError("the library tried to compact the log")

    def clear(self) -> None:
        """Refuse."""
        raise FatalRaftError("the library tried to erase the log")

    def _destroy(self) -> None:
        """Do nothing: the host owns the store."""

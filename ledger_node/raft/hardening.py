# ruff: noqa: N802, N803  the library's private names, in its own spelling
"""pysyncobj with its unsafe ways closed.

`_SyncObj__name` is how Python spells the library's private member `__name` from outside. What
is overridden here and in `replica` replaces the library's own; a test names all such members.
"""

from collections.abc import Callable, Sequence
from typing import Any

from ledger_node.raft.contract import FatalRaftError, RaftTiming, require
from ledger_node.raft.journal import GroupJournal
from ledger_node.raft.library import Node, SyncObj, SyncObjConf, Transport


class _CampaignTransport(Transport):  # type: ignore[misc]  # pysyncobj is untyped
    """Takes the two messages that library code we kept still sends: votes and TimeoutNow."""

    def __init__(self, deliver: Callable[[Node, dict[str, Any]], None]) -> None:
        super().__init__(None, None, None)
        self._deliver = deliver

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        """Hand the library's message on for translation."""
        self._deliver(node, message)
        return True

    def setOnUtilityMessageCallback(self, message: str, callback: Any) -> None:  # noqa: ARG002
        """Register nothing: there are no remote administration messages."""
        super().setOnUtilityMessageCallback(message, None)


class HardenedSyncObj(SyncObj):  # type: ignore[misc]  # pysyncobj is untyped
    """A SyncObj without sockets, dumps, pickles, queues and members that change.

    Every change of term and vote is checked and stored, and votes are a set of voters.
    """

    # State of the library that is read or written here and in `replica`.
    _SyncObj__lastResponseTime: dict[Node, float]
    _SyncObj__leaderCommitIndex: int | None
    _SyncObj__needLoadDumpFile: bool
    _SyncObj__newAppendEntriesTime: float
    _SyncObj__noopIDx: int | None
    _SyncObj__raftCommitIndex: int
    _SyncObj__raftCurrentTerm: int
    _SyncObj__raftElectionDeadline: float
    _SyncObj__raftLastApplied: int
    _SyncObj__raftLeader: Node | None
    _SyncObj__raftMatchIndex: dict[Node, int]
    _SyncObj__raftState: int
    _SyncObj__transferInProgress: bool
    _SyncObj__votedForNodeId: str | None

    # The library's constructor looks at all attributes, so this one must exist before it runs.
    _voters: frozenset[str] = frozenset()

    def __init__(
        self, self_id: str, peers: Sequence[Node], journal: GroupJournal, timing: RaftTiming
    ) -> None:
        self._self_id = self_id
        self._journal = journal
        self._transport = _CampaignTransport(self._send_for_library)
        conf = SyncObjConf(
            autoTick=False,
            journalFile=journal,
            appendEntriesUseBatch=True,
            commandsWaitLeader=False,
            dynamicMembershipChange=False,
            useFork=False,
            appendEntriesPeriod=timing.heartbeat_s,
            raftMinTimeout=timing.election_min_s,
            raftMaxTimeout=timing.election_max_s,
            leaderFallbackTimeout=timing.election_min_s,
            connectionTimeout=timing.election_max_s,
        )
        super().__init__(Node(self_id), peers, conf=conf, nodeClass=Node, transport=self._transport)
        self._SyncObj__needLoadDumpFile = False
        # Where the state machine is, this replica is; what was applied was committed.
        self._SyncObj__raftLastApplied = journal.applied_index
        require(self._SyncObj__raftCommitIndex == journal.applied_index, "commit index at start")

    def _SyncObj__setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        current = self._SyncObj__raftCurrentTerm
        require(term >= current, "the term must not fall")
        if term == current:
            voted_for = self._SyncObj__votedForNodeId
            require(votedForNodeId is not None, "a vote must not be withdrawn")
            require(voted_for in (None, votedForNodeId), "the vote must not change in a term")
            if voted_for == votedForNodeId:
                return
        super()._SyncObj__setCurrentTerm(term, votedForNodeId)

    @property
    def _SyncObj__votesCount(self) -> int:
        """The library's counter of votes is the size of a set of voters."""
        return len(self._voters)

    @_SyncObj__votesCount.setter
    def _SyncObj__votesCount(self, count: int) -> None:
        # 0 in the constructor, 1 (our own vote) when a campaign starts.
        require(count in (0, 1), "votes are tracked, not counted")
        self._voters = frozenset([self._self_id] if count else [])

    def _send_for_library(self, node: Node, message: dict[str, Any]) -> None:
        raise NotImplementedError

    # Switched off.

    def _checkCommandsToApply(self) -> None:
        """Do nothing: proposals go into the log at once, not through a queue."""

    def _SyncObj__tryLogCompaction(self) -> None:
        """Do nothing: the store is the snapshot."""

    def _SyncObj__onMessageReceived(self, _node: Node, _message: Any) -> None:
        raise FatalRaftError("a message took the library's way in")

    def _SyncObj__loadDumpFile(self, clearJournal: bool) -> None:  # noqa: ARG002
        raise FatalRaftError("there are no dump files")

    def _SyncObj__doApplyCommand(self, _command: Any) -> None:
        raise FatalRaftError("the library would unpickle a command")

    def _SyncObj__doChangeCluster(self, _request: Any, reverse: bool = False) -> None:  # noqa: ARG002
        raise FatalRaftError("the members of a group are fixed")

    def _SyncObj__updateClusterConfiguration(self, _nodes: Any) -> None:
        raise FatalRaftError("the members of a group are fixed")

    def _SyncObj__sendNextNodeIdx(self, *_args: Any, **_kwargs: Any) -> None:
        raise FatalRaftError("the library would confirm without a term")

    def _SyncObj__deleteEntriesFrom(self, _index: int) -> None:
        raise FatalRaftError("the library would truncate the log")

    def _applyCommand(self, *_args: Any, **_kwargs: Any) -> None:
        raise FatalRaftError("commands are proposed, not queued")

"""A cluster of Raft groups in memory: simulated time, disks that forget, links that lose.

Every replica lives in a host that works in turns as a node does: feed, tick, flush, commit,
release messages, and then apply, release completions. A crash loses what the last commit did not
cover.
"""

import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ledger.internal.v1.peer_pb2 import RaftMessage
from ledger_node.raft import (
    LogLimits,
    ProposalOutcome,
    RaftGroup,
    RaftTiming,
    Role,
    Standing,
    StreamSlots,
)

# Elections only when a test says so.
CALM = RaftTiming(heartbeat_s=0.15, election_min_s=10_000.0, election_max_s=20_000.0)

Work = Callable[[RaftGroup[int], float], object]


@dataclass
class Image:
    """What a disk holds: hard state, log, and the state machine with its applied index."""

    term: int = 0
    voted_for: str | None = None
    entries: list[tuple[int, bytes]] = field(default_factory=list)
    first: int = 1
    state: dict[int, bytes] = field(default_factory=dict)
    applied: int = 0
    raft_applied: tuple[int, int] | None = None
    standing: Standing | None = None
    spare: dict[int, bytes] | None = None
    # For checks only: what was in the log, and is in the state.
    dropped: dict[int, tuple[int, bytes]] = field(default_factory=dict)

    @property
    def last(self) -> int:
        return self.first + len(self.entries) - 1

    def entry(self, index: int) -> tuple[int, bytes] | None:
        return self.entries[index - self.first] if self.first <= index <= self.last else None

    def known(self, index: int) -> tuple[int, bytes] | None:
        """What is or was in the log. The marker does not count: it may stand for another entry."""
        return self.entry(index) if index > self.first else self.dropped.get(index)

    def holds(self, index: int, entry: tuple[int, bytes]) -> bool:
        """Whether this has an entry that is committed: in its log, or in its state."""
        if index > self.first or index in self.dropped:
            return self.known(index) == entry
        return entry[1][0] != 0 or self.state.get(index) == entry[1][1:]

    def save_hard_state(self, term: int, voted_for: str | None) -> None:
        self.term, self.voted_for = term, voted_for

    def save_standing(self, standing: Standing) -> None:
        self.standing = standing

    def save_applied(self, index: int, term: int) -> None:
        assert self.raft_applied is None or index > self.raft_applied[0]
        self.raft_applied = (index, term)

    def append(self, index: int, term: int, payload: bytes) -> None:
        assert index == self.last + 1
        self.entries.append((term, payload))

    def truncate_from(self, index: int) -> None:
        assert self.first < index <= self.last
        assert self.raft_applied is None or index > self.raft_applied[0]
        del self.entries[index - self.first :]

    def drop_before(self, index: int) -> None:
        assert self.first < index <= self.last
        assert self.raft_applied is not None
        assert index <= self.raft_applied[0]
        for below in range(self.first + 1, index + 1):
            self.dropped[below] = self.entries[below - self.first]
        del self.entries[: index - self.first]
        self.first = index

    def apply(self, index: int, payload: bytes) -> None:
        assert index > self.applied, "applied twice"
        self.state[index] = payload
        self.applied = index

    def begin_install(self) -> None:
        assert self.spare is None
        self.spare = {}

    def stage(self, rows: bytes) -> None:
        assert self.spare is not None
        for row in rows.splitlines():
            index, _, payload = row.partition(b"=")
            assert int(index) > max(self.spare, default=0), "rows in disorder"
            self.spare[int(index)] = payload

    def finish_install(self, index: int, term: int) -> None:
        assert self.spare is not None
        assert index >= max(self.spare, default=0)
        self.state, self.spare = self.spare, self.state
        self.applied = max(self.state, default=0)
        self.save_applied(index, term)

    def restart_at(self, index: int, term: int, payload: bytes) -> None:
        self.entries, self.first = [(term, payload)], index
        self.dropped = {}

    def clear_spare(self) -> None:
        self.spare = None

    def copy(self) -> "Image":
        return replace(
            self,
            entries=list(self.entries),
            state=dict(self.state),
            dropped=dict(self.dropped),
            spare=None if self.spare is None else dict(self.spare),
        )


class MemoryReader:
    """A state held still: rows of a byte or two, as many as are asked for."""

    def __init__(self, image: Image) -> None:
        self.index, self.term = image.raft_applied or (0, 0)
        self._rows = [b"%d=%s\n" % item for item in sorted(image.state.items())]
        self.closed = False

    def read(self, bytes_max: int) -> bytes:
        assert not self.closed
        part = b""
        while self._rows and len(part) < bytes_max:
            part += self._rows.pop(0)
        return part

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class MemoryStore:
    """A RaftLog and a state machine in one store, with one open transaction."""

    def __init__(self, *, proven: bool = True) -> None:
        self.disk = Image()
        if proven:
            # As of an earlier version: a log, and so nothing to prove.
            self.disk.entries = [(0, b"\x01")]
        self.view = self.disk.copy()
        self.readers: list[MemoryReader] = []
        self._writes: list[Callable[[Image], None]] = []
        self._staging = False
        self._installs = 0
        self.log_writes = 0
        self.runs: list[int] = []
        """How many entries were applied in one go, each time."""

    def take_installs(self) -> int:
        installs, self._installs = self._installs, 0
        return installs

    def _write(self, write: Callable[[Image], None]) -> None:
        write(self.view)
        self._writes.append(write)

    def commit(self) -> None:
        for write in self._writes:
            write(self.disk)
        self._writes.clear()

    def crash(self) -> None:
        self._writes.clear()
        self.view = self.disk.copy()
        self.readers.clear()
        self._staging = False

    def load_hard_state(self) -> tuple[int, str | None]:
        return self.view.term, self.view.voted_for

    def save_hard_state(self, term: int, voted_for: str | None) -> None:
        self._write_log(lambda image: image.save_hard_state(term, voted_for))

    def load_standing(self) -> Standing | None:
        return self.view.standing

    def save_standing(self, standing: Standing) -> None:
        self._write_log(lambda image: image.save_standing(standing))

    def applied_index(self) -> int:
        return self.view.applied

    def load_applied(self) -> tuple[int, int] | None:
        return self.view.raft_applied

    def save_applied(self, index: int, term: int) -> None:
        self._write(lambda image: image.save_applied(index, term))

    def durable_index(self) -> int:
        return 0 if self.view.raft_applied is None else self.view.raft_applied[0]

    def unfinished_install(self) -> tuple[int, int] | None:
        return None

    def first_index(self) -> int:
        return self.view.first if self.view.entries else 1

    def last_index(self) -> int:
        return self.view.last if self.view.entries else 0

    def size_bytes(self) -> int:
        return sum(len(payload) for _, payload in self.view.entries)

    def read(self, index: int) -> tuple[int, bytes]:
        entry = self.view.entry(index)
        assert entry is not None
        return entry

    def append(self, index: int, term: int, payload: bytes) -> None:
        self._write_log(lambda image: image.append(index, term, payload))

    def truncate_from(self, index: int) -> None:
        self._write_log(lambda image: image.truncate_from(index))

    def drop_before(self, index: int) -> None:
        self._write_log(lambda image: image.drop_before(index))

    def open_snapshot(self) -> MemoryReader:
        self.readers.append(MemoryReader(self.disk))
        return self.readers[-1]

    def begin_install(self) -> bool:
        assert not self._staging
        if self.view.spare is not None:
            return False
        self._staging = True
        self._write(Image.begin_install)
        return True

    def stage(self, rows: bytes) -> None:
        assert self._staging
        self._write(lambda image: image.stage(rows))

    def abandon_install(self) -> None:
        assert self._staging
        self._staging = False

    def finish_install(self, index: int, term: int) -> None:
        assert self._staging
        self._staging = False
        self._installs += 1
        self._write(lambda image: image.finish_install(index, term))

    def restart_at(self, index: int, term: int, payload: bytes) -> None:
        self._write_log(lambda image: image.restart_at(index, term, payload))

    def tidy(self) -> None:
        if self.view.spare is not None and not self._staging:
            self._write(Image.clear_spare)

    def _write_log(self, write: Callable[[Image], None]) -> None:
        self.log_writes += 1
        self._write(write)

    def apply(self, entries: Sequence[tuple[int, bytes]], wanted: bool) -> Sequence[int]:
        for index, payload in entries:
            self._write(partial(Image.apply, index=index, payload=payload))
        self.runs.append(len(entries))
        return [index for index, _payload in entries] if wanted else ()


class Host:
    """A process with one replica."""

    def __init__(
        self,
        name: str,
        peers: Sequence[str],
        store: MemoryStore,
        *,
        now: float,
        timing: RaftTiming,
        rng: random.Random,
        pre_vote: bool = True,
        preferred_leader: bool = False,
        connect: bool = True,
        log_limits: LogLimits | None = None,
        slots: StreamSlots | None = None,
    ) -> None:
        self.name = name
        self.store = store
        self.group: RaftGroup[int] = RaftGroup(
            shard_id=7,
            self_id=name,
            peer_ids=peers,
            log=store,
            apply=store.apply,
            timing=timing,
            rng=rng,
            now=now,
            preferred_leader=preferred_leader,
            pre_vote=pre_vote,
            log_limits=log_limits,
            slots=slots,
        )
        store.commit()
        if connect:
            for peer in peers:
                self.group.peer_connected(peer)

    def turn(
        self,
        now: float,
        inbound: Iterable[tuple[str, RaftMessage]] = (),
        work: Iterable[Work] = (),
        die: bool = False,
        may_gather: bool = False,
    ) -> tuple[list[tuple[str, RaftMessage]], list[Callable[[], None]]] | None:
        """One turn; None if the process died before its commit."""
        messages = self.begin(now, inbound, work, die)
        return None if messages is None else (messages, self.apply(now, may_gather))

    def begin(
        self,
        now: float,
        inbound: Iterable[tuple[str, RaftMessage]] = (),
        work: Iterable[Work] = (),
        die: bool = False,
    ) -> list[tuple[str, RaftMessage]] | None:
        """The first half of a turn: what it sends; None if the process died before its commit."""
        group = self.group
        for peer, message in inbound:
            group.receive(now, peer, message)
        for item in work:
            item(group, now)
        group.tick(now)
        group.flush(now)
        if die:
            return None
        self.store.commit()
        return group.take_messages()

    def apply(self, now: float, may_gather: bool = False) -> list[Callable[[], None]]:
        """The second half of a turn: what it completes."""
        written = self.store.log_writes
        self.group.apply(now, may_gather=may_gather)
        assert self.store.log_writes == written, "the second half wrote to the log"
        self.store.commit()
        return self.group.take_completions()


class Cluster:
    """Hosts, and a FIFO queue of encoded messages per directed link; the test moves both."""

    def __init__(
        self,
        names: str | Sequence[str],
        *,
        timing: RaftTiming = CALM,
        pre_vote: bool = False,
        seed: int = 1,
        preferred_leader: str | None = None,
        connect: bool = True,
        log_limits: LogLimits | None = None,
        proven: bool = True,
    ) -> None:
        self.now = 1000.0
        self.names = list(names)
        self.timing = timing
        self.pre_vote = pre_vote
        self.preferred_leader = preferred_leader
        self.rng = random.Random(seed)
        self.links: dict[tuple[str, str], deque[bytes]] = defaultdict(deque)
        self.cut: set[tuple[str, str]] = set()
        self.log_limits = log_limits
        self.stores = {name: MemoryStore(proven=proven) for name in self.names}
        self.hosts: dict[str, Host] = {}
        self.acks: dict[bytes, tuple[ProposalOutcome, int, int | None]] = {}
        self.reads: dict[str, tuple[bool, int]] = {}
        self.connect = connect
        for name in self.names:
            self.boot(name)

    def boot(self, name: str) -> None:
        """(Re)start a process: what was not committed is gone, links are empty."""
        self.stores[name].crash()
        for src, dst in list(self.links):
            if name in (src, dst):
                self.links[src, dst].clear()
        self.hosts[name] = Host(
            name,
            [n for n in self.names if n != name],
            self.stores[name],
            now=self.now,
            timing=self.timing,
            rng=random.Random(self.rng.random()),
            pre_vote=self.pre_vote,
            preferred_leader=name == self.preferred_leader,
            connect=self.connect,
            log_limits=self.log_limits,
        )

    def wipe(self, name: str) -> None:
        """Restart a process without its data directory."""
        self.stores[name] = MemoryStore(proven=False)
        self.boot(name)

    def group(self, name: str) -> RaftGroup[int]:
        return self.hosts[name].group

    def turn(
        self,
        name: str,
        inbound: Iterable[tuple[str, RaftMessage]] = (),
        work: Iterable[Work] = (),
    ) -> None:
        released = self.hosts[name].turn(self.now, inbound, work)
        assert released is not None
        for peer, message in released[0]:
            if (name, peer) not in self.cut:
                self.links[name, peer].append(message.SerializeToString())
        for completion in released[1]:
            completion()

    def campaign(self, name: str) -> None:
        """Let the election timer of `name` run out."""
        self.group(name)._replica._SyncObj__raftElectionDeadline = float("-inf")
        self.turn(name)

    def deliver(self, src: str, dst: str, count: int | None = None, keep: bool = False) -> int:
        """Deliver the first `count` (or all) messages of a link, one per turn."""
        queue = self.links[src, dst]
        todo = len(queue) if count is None else min(count, len(queue))
        for place in range(todo):
            encoded = queue[place] if keep else queue.popleft()
            self.turn(dst, [(src, RaftMessage.FromString(encoded))])
        return todo

    def take(self, src: str, dst: str) -> list[RaftMessage]:
        """Remove and return what is on a link."""
        queue = self.links[src, dst]
        messages = [RaftMessage.FromString(encoded) for encoded in queue]
        queue.clear()
        return messages

    def drop(self, src: str, dst: str = "") -> None:
        """Lose what is on a link, or on all links of a node."""
        for link in list(self.links):
            if link == (src, dst) or (not dst and src in link):
                self.links[link].clear()

    def isolate(self, name: str, others: Iterable[str]) -> None:
        """Cut links in both directions; what is under way is lost."""
        for other in others:
            if other != name:
                self.cut |= {(name, other), (other, name)}
                self.links[name, other].clear()
                self.links[other, name].clear()

    def heal(self) -> None:
        self.cut.clear()

    def elect(self, name: str, voters: Iterable[str]) -> None:
        """Make `name` leader by the votes of `voters`; its first appends stay on the links."""
        self.campaign(name)
        for voter in voters:
            self.deliver(name, voter)
            self.deliver(voter, name)
        assert self.group(name).role is Role.LEADER

    def heartbeat(self, name: str) -> None:
        self.now += self.timing.heartbeat_s
        self.turn(name)

    def sync(self, leader: str, followers: Iterable[str], rounds: int = 3) -> None:
        """A few heartbeats of `leader`, delivered and answered."""
        for _ in range(rounds):
            self.heartbeat(leader)
            for follower in followers:
                self.deliver(leader, follower)
                self.deliver(follower, leader)

    def settle(self, turns: int = 20) -> None:
        """All nodes tick every heartbeat, and the network works."""
        for _ in range(turns):
            self.now += self.timing.heartbeat_s
            for name in self.names:
                self.turn(name)
            self.quiesce()

    def quiesce(self, rounds: int = 50) -> None:
        """Deliver until nothing is under way."""
        for _ in range(rounds):
            moved = 0
            for src, dst in sorted(self.links):
                moved += self.deliver(src, dst)
            if not moved:
                return

    def propose(self, name: str, *payloads: bytes) -> None:
        def work_for(payload: bytes) -> Work:
            def done(outcome: ProposalOutcome, index: int, result: int | None) -> None:
                assert payload not in self.acks, "completed twice"
                self.acks[payload] = (outcome, index, result)

            return lambda group, now: group.propose(now, payload, done)

        self.turn(name, work=[work_for(payload) for payload in payloads])

    def read(self, name: str, key: str) -> None:
        def done(ok: bool, applied: int) -> None:
            assert key not in self.reads, "completed twice"
            self.reads[key] = (ok, applied)

        self.turn(name, work=[lambda group, now: group.read_index(now, done)])

    def outcome(self, payload: bytes) -> ProposalOutcome | None:
        return self.acks[payload][0] if payload in self.acks else None

    def terms(self, name: str) -> list[int]:
        return [term for term, _ in self.stores[name].view.entries]

    def state(self, name: str) -> list[bytes]:
        return list(self.stores[name].view.state.values())

    def leaders(self) -> list[str]:
        return [name for name in self.names if self.group(name).role is Role.LEADER]

"""Random schedules with faults. Every run draws its own mix of them (swarm testing).

After every turn the safety properties of the Raft paper's figure 3 are checked on what the
disks hold; at the end all faults are healed and the cluster has to make progress.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

import pytest
from raft_harness import Host, Image, MemoryStore, Work

from ledger.internal.v1.peer_pb2 import RAFT_MESSAGE_TYPE_REQUEST_VOTE_REPLY, RaftMessage
from ledger_node.raft import (
    LogLimits,
    ProposalOutcome,
    RaftTiming,
    Role,
    StreamSlots,
    applying,
    journal,
    progress,
    replica,
    snapshots,
)

TIMINGS = [RaftTiming(0.1, 0.5, 1.0), RaftTiming(0.03, 0.12, 0.2), RaftTiming(0.015, 0.06, 0.09)]


def draw_bounds(rnd: random.Random, patch: pytest.MonkeyPatch) -> None:
    """Make the bounds small enough to matter in a short run."""
    patch.setattr(replica, "MESSAGE_ENTRIES_MAX", rnd.choice([1, 2, 5, 512]))
    patch.setattr(replica, "MESSAGE_BYTES_MAX", rnd.choice([12, 40, 1 << 20]))
    patch.setattr(replica, "FLUSH_MESSAGES_MAX", rnd.choice([1, 2, 4]))
    patch.setattr(applying, "APPLY_ENTRIES_MAX", rnd.choice([1, 3, 64]))
    patch.setattr(replica, "HINT_STEPS_MAX", rnd.choice([1, 3, 1024]))
    patch.setattr(progress, "WINDOW_BYTES_MAX", rnd.choice([12, 60, 4 << 20]))
    patch.setattr(progress, "WINDOW_ENTRIES_MAX", rnd.choice([1, 4, 2048]))
    patch.setattr(journal, "TAIL_ENTRIES_MAX", rnd.choice([0, 1, 4, 512]))
    patch.setattr(replica, "COMPACT_ENTRIES_MAX", rnd.choice([1, 3, 256]))
    patch.setattr(replica, "PINNED_MAX", rnd.choice([1, 4]))
    patch.setattr(snapshots, "CHUNK_BYTES", rnd.choice([1, 30, 1 << 20]))
    patch.setattr(snapshots, "WINDOW_CHUNKS", rnd.choice([1, 2, 4]))
    patch.setattr(snapshots, "RESEND_S", rnd.choice([0.02, 0.1, 0.2]))
    patch.setattr(snapshots, "IDLE_S_MAX", rnd.choice([1.5, 10.0]))
    patch.setattr(applying, "GATHER_ENTRIES_MAX", rnd.choice([1, 4, 16]))


def group_gathers(host: Host) -> bool:
    group = host.group
    return group.applied_index < group.commit_index and not group.has_pending_work


def is_vote(encoded: bytes) -> bool:
    return RaftMessage.FromString(encoded).type == RAFT_MESSAGE_TYPE_REQUEST_VOTE_REPLY


class Fuzz:
    """One run. `checked` counts what happened, so that a test can see that enough did."""

    def __init__(self, seed: int, size: int) -> None:
        rnd = self.rnd = random.Random(seed)
        self.names = [f"n{i}" for i in range(size)]
        is_new = rnd.random() < 0.3
        self.stores = {name: MemoryStore(proven=not is_new) for name in self.names}
        # What replicas held when their stores were wiped.
        self.wiped: dict[str, list[Image]] = {name: [] for name in self.names}
        self.hosts: dict[str, Host] = {}
        self.links: dict[tuple[str, str], list[bytes]] = defaultdict(list)
        self.cut: set[tuple[str, str]] = set()
        self.clock = dict.fromkeys(self.names, 1000.0)
        self.rate = dict.fromkeys(self.names, 1.0)
        self.counts: Counter[str] = Counter()
        # What every replica must agree on.
        self.leader_of_term: dict[int, str] = {}
        self.committed: dict[int, tuple[int, bytes]] = {}
        self.commit_term: dict[int, int] = {}
        self.acked: dict[int, bytes] = {}
        self.acked_max = 0
        self.checked_to = dict.fromkeys(self.names, 0)
        self.applied_to = dict.fromkeys(self.names, 0)
        self.term_seen = dict.fromkeys(self.names, 0)
        self.proposals = 0

        self.log_limits = LogLimits(
            keep_entries=rnd.choice([1, 2, 5, 20, 10_000]),
            keep_bytes=rnd.choice([1, 30, 1 << 20, 1 << 20]),
        )
        self.slots = rnd.choice([1, 2])
        self.timing = rnd.choice(TIMINGS)
        self.pre_vote = rnd.choice([True, False, False])
        self.fifo = rnd.choice([True, False])
        self.reorder = 1 if self.fifo else rnd.choice([3, 20, 1000])
        self.duplicate = 0.0 if self.fifo else rnd.choice([0.0, 0.1, 0.4])
        self.keep_links = not self.fifo and rnd.choice([True, False])
        self.die = rnd.choice([0.0, 0.0, 0.002, 0.01, 0.05])
        self.gathers = rnd.choice([0.0, 0.7, 0.95])
        events: dict[Callable[[], None], float] = {
            self.deliver_some: rnd.choice([40, 80, 160]),
            self.pass_time: rnd.choice([5, 15, 40]),
            self.propose: rnd.choice([2, 8, 20]),
            self.read: rnd.choice([1, 4]),
            self.lose: rnd.choice([0, 1, 5]),
            self.partition: rnd.choice([0, 0.2, 1]),
            self.heal: rnd.choice([0.3, 1, 2]),
            self.crash_one: rnd.choice([0, 0.2, 1]),
            self.crash_all: rnd.choice([0, 0.05, 0.3]),
            self.start_one: rnd.choice([1, 5]),
            self.change_rate: rnd.choice([0, 0.2, 1]),
            self.time_out: rnd.choice([0, 0.2, 1, 5]),
            self.reconnect: rnd.choice([0, 0.5, 2]),
            self.transfer: rnd.choice([0, 0.3]),
            self.wipe: rnd.choice([0, 0.1, 0.5]),
        }
        self.events, self.weights = list(events), list(events.values())
        for name in self.names:
            self.start(name)

    def run(self, steps: int) -> None:
        for event in self.rnd.choices(self.events, self.weights, k=steps):
            event()
        self.recover()

    # Processes.

    def start(self, name: str) -> None:
        self.hosts[name] = Host(
            name,
            [n for n in self.names if n != name],
            self.stores[name],
            now=self.clock[name],
            timing=self.timing,
            rng=random.Random(self.rnd.random()),
            pre_vote=self.pre_vote,
            preferred_leader=self.rnd.random() < 0.2,
            log_limits=self.log_limits,
            slots=StreamSlots(self.slots),
        )
        self.checked_to[name] = self.applied_to[name] = 0

    def crash(self, name: str) -> None:
        self.stores[name].crash()
        del self.hosts[name]
        for link in self.links:
            if name in link and not self.keep_links:
                self.links[link].clear()
        self.counts["crashes"] += 1

    def turn(
        self,
        name: str,
        inbound: Iterable[tuple[str, RaftMessage]] = (),
        work: Iterable[Work] = (),
    ) -> None:
        host, now = self.hosts[name], self.clock[name]
        messages = host.begin(now, inbound, work, die=self.rnd.random() < self.die / 2)
        if messages is None:
            self.crash(name)
            return
        self.check(name)
        self.counts["installs"] += self.stores[name].take_installs()
        for peer, message in messages:
            if (name, peer) not in self.cut:
                self.links[name, peer].append(message.SerializeToString())
        if self.rnd.random() < self.die / 2:
            self.counts["crashes between halves"] += 1
            self.crash(name)
            return
        completions = host.apply(now, may_gather=self.rnd.random() < self.gathers)
        self.counts["gathered"] += group_gathers(host)
        self.check_applied(name)
        for completion in completions:
            completion()

    # Checks.

    def check(self, name: str) -> None:
        group, image = self.hosts[name].group, self.stores[name].disk
        assert group.term >= self.term_seen[name], "a term fell"
        self.term_seen[name] = group.term
        if group.role is Role.LEADER and self.leader_of_term.get(group.term) != name:
            assert group.term not in self.leader_of_term, "two leaders in one term"
            self.leader_of_term[group.term] = name
            self.counts["leaders"] += 1
            # Not of later terms: late votes may still elect a leader of an earlier term.
            for index, entry in self.committed.items():
                if self.commit_term[index] < group.term:
                    assert image.holds(index, entry), "a leader lacks a commit"
        assert self.checked_to[name] <= group.commit_index, "the commit index fell"
        assert group.applied_index <= group.commit_index <= image.last
        assert image.first == group.first_index <= max(1, group.applied_index)
        for index in range(self.checked_to[name] + 1, group.commit_index + 1):
            entry = image.known(index)
            if entry is None:
                # Of a snapshot, which is made of what is committed; or entry 1.
                assert index == 1 or image.holds(index, self.committed[index]), "a snapshot lies"
                continue
            if index not in self.committed:
                holders = sum(
                    any(disk.holds(index, entry) for disk in (store.disk, *self.wiped[holder]))
                    for holder, store in self.stores.items()
                )
                assert holders * 2 > len(self.names), "committed without a majority"
                self.committed[index] = entry
                self.commit_term[index] = group.term
            assert self.committed[index] == entry, "two commits at one index"
        self.checked_to[name] = group.commit_index

    def check_applied(self, name: str) -> None:
        group, image = self.hosts[name].group, self.stores[name].disk
        assert group.applied_index <= group.commit_index
        for index in range(self.applied_to[name] + 1, group.applied_index + 1):
            known = self.committed.get(index)
            if known is not None and known[1][0] == 0:
                assert image.state[index] == known[1][1:], "applied something else"
        self.applied_to[name] = group.applied_index

    def done(self, payload: bytes) -> Callable[[ProposalOutcome, int, int | None], None]:
        calls: list[ProposalOutcome] = []

        def done(outcome: ProposalOutcome, index: int, result: int | None) -> None:
            assert not calls, "completed twice"
            calls.append(outcome)
            self.counts[outcome.value] += 1
            if outcome is ProposalOutcome.APPLIED:
                assert result == index
                assert self.committed[index][1] == b"\x00" + payload
                self.acked[index] = payload
                self.acked_max = max(self.acked_max, index)

        return done

    # Events.

    def live(self) -> list[str]:
        return sorted(self.hosts)

    def one(self) -> str | None:
        return self.rnd.choice(self.live()) if self.hosts else None

    def deliver_some(self) -> None:
        busy = [link for link in sorted(self.links) if self.links[link]]
        if busy:
            self.deliver(self.rnd.choice(busy))

    def deliver(self, link: tuple[str, str]) -> None:
        queue = self.links[link]
        place = self.rnd.randrange(min(len(queue), self.reorder))
        encoded = queue[place]
        if self.rnd.random() >= self.duplicate:
            del queue[place]
        if link[1] in self.hosts and link not in self.cut:
            self.turn(link[1], [(link[0], RaftMessage.FromString(encoded))])

    def pass_time(self) -> None:
        step = self.rnd.random() * self.timing.heartbeat_s
        for name in self.names:
            self.clock[name] += step * self.rate[name]
        for name in self.live():
            if self.rnd.random() < 0.7:
                self.turn(name)

    def leader_or_any(self) -> str | None:
        leaders = [n for n in self.live() if self.hosts[n].group.role is Role.LEADER]
        return self.rnd.choice(leaders) if leaders and self.rnd.random() < 0.9 else self.one()

    def propose(self) -> None:
        name = self.leader_or_any()
        work: list[Work] = []
        for _ in range(self.rnd.choice([1, 1, 1, 6])):
            self.proposals += 1
            payload = b"v%d" % self.proposals

            def item(group: object, now: float, payload: bytes = payload) -> None:
                assert name is not None
                self.hosts[name].group.propose(now, payload, self.done(payload))

            work.append(item)
        if name:
            self.turn(name, work=work)

    def read(self) -> None:
        name = self.leader_or_any()
        if name is None:
            return
        floor, host = self.acked_max, self.hosts[name]

        def done(ok: bool, applied: int) -> None:
            if ok:
                self.counts["reads"] += 1
                # A no-op may be applied without the store knowing: it has no effect.
                assert applied >= floor, "a read misses an acknowledged write"
                assert applied >= host.store.view.applied

        self.turn(name, work=[lambda group, now: group.read_index(now, done)])

    def lose(self) -> None:
        busy = [link for link in sorted(self.links) if self.links[link]]
        if busy:
            queue = self.links[self.rnd.choice(busy)]
            del queue[self.rnd.randrange(len(queue))]

    def partition(self) -> None:
        if self.rnd.random() < 0.5:
            side = set(self.rnd.sample(self.names, self.rnd.randrange(1, len(self.names))))
            self.cut |= {
                (a, b) for a in self.names for b in self.names if (a in side) != (b in side)
            }
        else:
            a, b = self.rnd.sample(self.names, 2)
            self.cut.add((a, b))

    def heal(self) -> None:
        self.cut.clear()

    def crash_one(self) -> None:
        name = self.one()
        if name:
            self.crash(name)

    def crash_all(self) -> None:
        for name in self.live():
            self.crash(name)
        for name in self.names:
            self.start(name)

    def wipe(self) -> None:
        """Lose a store: of one replica at a time, and only while the others can vote."""
        name = self.rnd.choice(self.names)
        for other in self.names:
            standing = self.stores[other].disk.standing
            if other != name and (standing is None or not standing.proven):
                return
        if name in self.hosts:
            self.crash(name)
        self.wiped[name].append(self.stores[name].disk)
        self.stores[name] = MemoryStore(proven=False)
        self.term_seen[name] = 0
        if len(self.names) == 5:
            # The one gap that is known: see `ledger_node.raft.admission`.
            for link in self.links:
                if link[0] == name:
                    self.links[link] = [m for m in self.links[link] if not is_vote(m)]
        self.counts["wipes"] += 1

    def start_one(self) -> None:
        down = [name for name in self.names if name not in self.hosts]
        if down:
            self.start(self.rnd.choice(down))

    def change_rate(self) -> None:
        self.rate[self.rnd.choice(self.names)] = self.rnd.choice([0.0, 0.5, 1.0, 1.0, 2.0])

    def time_out(self) -> None:
        name = self.one()
        if name and self.hosts[name].group.role is not Role.LEADER:
            self.hosts[name].group._replica._SyncObj__raftElectionDeadline = float("-inf")
            self.turn(name)

    def reconnect(self) -> None:
        name = self.one()
        if name:
            peer = self.rnd.choice([n for n in self.names if n != name])
            self.links[name, peer].clear()
            self.hosts[name].group.peer_disconnected(peer)
            if self.rnd.random() < 0.7:
                self.hosts[name].group.peer_connected(peer)

    def transfer(self) -> None:
        name = self.leader_or_any()
        if name:

            def work(group: object, now: float) -> None:
                self.hosts[name].group.transfer_leadership(now)

            self.turn(name, work=[work])

    # The end.

    def recover(self) -> None:
        """Heal everything: a new write must be applied everywhere, and nothing be lost."""
        self.cut.clear()
        self.die = self.duplicate = self.gathers = 0.0
        for name in self.names:
            if name not in self.hosts:
                self.start(name)
            self.rate[name] = 1.0
            for peer in self.names:
                if peer != name:
                    self.hosts[name].group.peer_connected(peer)
        last: list[int] = []

        def done(outcome: ProposalOutcome, index: int, _result: int | None) -> None:
            if outcome is ProposalOutcome.APPLIED:
                last.append(index)

        proposed_by: tuple[str, int] | None = None
        for _ in range(int(60 / self.timing.heartbeat_s)):
            for name in self.names:
                self.clock[name] += self.timing.heartbeat_s
                self.turn(name)
            for _ in range(50):
                busy = [link for link in sorted(self.links) if self.links[link]]
                for link in busy:
                    while self.links[link]:
                        self.deliver(link)
                if not busy:
                    break
            for name in self.names:
                for _ in range(5):
                    self.turn(name)
            leaders = [n for n in self.names if self.hosts[n].group.serving]
            if not last and leaders:
                leader = max(leaders, key=lambda n: self.hosts[n].group.term)
                key = (leader, self.hosts[leader].group.term)
                if key != proposed_by:
                    proposed_by = key
                    self.turn(leader, work=[lambda group, now: group.propose(now, b"z", done)])
            if last and all(
                self.hosts[n].group.applied_index >= last[0] and not self.hosts[n].group.unproven
                for n in self.names
            ):
                break
        else:
            raise AssertionError("no progress after all faults were healed")
        states = [
            {i: p for i, p in store.disk.state.items() if i <= last[0]}
            for store in self.stores.values()
        ]
        assert all(state == states[0] for state in states), "state machines differ"
        for index, payload in self.acked.items():
            assert states[0][index] == payload, "an acknowledged write is lost"

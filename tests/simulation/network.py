"""The network: links between hosts, and the way from gateways to hosts and back.

A link has two sides that learn at different times that it came up or broke. As the real peer links
have it, the served side may see a new connection without having seen the old one break, and what
is sent over a connection that is gone is lost.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

from ledger.internal.v1.peer_pb2 import RaftMessage
from tests.simulation.engine import Engine
from tests.simulation.plan import Plan

if TYPE_CHECKING:
    from tests.simulation.host import Host, Outbox

DIAL_S_MIN, DIAL_S_MAX = 0.01, 0.3


class _Link:
    """The connection between two hosts; ``epoch`` counts the connections there have been."""

    def __init__(self) -> None:
        self.up = False
        self.dialling = False
        self.epoch = 0


class Network:
    """Carries frames between hosts, and calls from gateways."""

    def __init__(self, engine: Engine, plan: Plan, hosts: "dict[str, Host]") -> None:
        self._engine = engine
        self._hosts = hosts
        self._plan = plan.network
        self._timing = plan.timing
        self._links = {frozenset(pair): _Link() for pair in combinations(sorted(hosts), 2)}
        # What each side believes: the connection it sends on.
        self._side: dict[tuple[str, str], int] = {}
        self._last_arrival: dict[tuple[str, str], float] = defaultdict(float)
        self._held: dict[tuple[str, str], list[tuple[int, list[RaftMessage]]]] = defaultdict(list)
        self.blocked: Counter[tuple[str, str]] = Counter()
        self.calm = False

    # Connections.

    def started(self, host: "Host") -> None:
        """A process came up: it dials, and is dialled."""
        for peer_id in sorted(self._hosts):
            if peer_id != host.id and self._hosts[peer_id].alive:
                self._dial(host.id, peer_id)

    def crashed(self, host: "Host") -> None:
        """A process is gone, and its connections with it."""
        for peer_id in sorted(self._hosts):
            if peer_id != host.id:
                self._side.pop((host.id, peer_id), None)
                self.disconnect(host.id, peer_id)

    def disconnect(self, a: str, b: str) -> None:
        """Break the connection of two hosts."""
        link = self._links[frozenset((a, b))]
        if link.up:
            link.up = False
            link.epoch += 1
            for me, other in ((a, b), (b, a)):
                self._held.pop((me, other), None)
                self._engine.after(self._delay(), partial(self._lost, me, other))
        self._dial(a, b)

    def _lost(self, me: str, other: str) -> None:
        """One side notices that its connection broke, unless a newer one took its place."""
        link = self._links[frozenset((me, other))]
        if self._side.get((me, other), link.epoch) < link.epoch:
            del self._side[me, other]
            self._hosts[me].peer_disconnected(other)

    def _dial(self, a: str, b: str) -> None:
        link = self._links[frozenset((a, b))]
        if link.dialling or link.up:
            return
        link.dialling = True

        def connect() -> None:
            link.dialling = False
            if link.up or not (self._hosts[a].alive and self._hosts[b].alive):
                return
            if self.blocked[a, b] or self.blocked[b, a]:
                self._dial(a, b)
                return
            link.up = True
            link.epoch += 1
            for me, other in ((a, b), (b, a)):
                self._engine.after(self._delay(), partial(self._found, me, other, link.epoch))

        self._engine.after(self._engine.rng.uniform(DIAL_S_MIN, DIAL_S_MAX), connect)

    def _found(self, me: str, other: str, epoch: int) -> None:
        link = self._links[frozenset((me, other))]
        if link.up and link.epoch == epoch and self._hosts[me].alive:
            self._side[me, other] = epoch
            self._hosts[me].peer_connected(other)

    # Partitions.

    def block(self, pairs: Iterable[tuple[str, str]], duration_s: float) -> None:
        """Let nothing through, from the first of each pair to the second, for some time."""
        pairs = list(pairs)
        for pair in pairs:
            self.blocked[pair] += 1
            if frozenset(pair) in self._links:
                self._notice_later(*pair)
        self._engine.after(duration_s, lambda: self._unblock(pairs))

    def _notice_later(self, a: str, b: str) -> None:
        """Break a connection through which nothing comes, after a while (keepalive)."""
        link = self._links[frozenset((a, b))]
        epoch = link.epoch

        def notice() -> None:
            if link.up and link.epoch == epoch and self.blocked[a, b]:
                self.disconnect(a, b)

        wait_s = self._timing.election_max_s * self._engine.rng.uniform(0.2, 3.0)
        self._engine.after(wait_s, notice)

    def _unblock(self, pairs: list[tuple[str, str]]) -> None:
        for pair in pairs:
            if not self.blocked[pair]:
                continue
            self.blocked[pair] -= 1
            if not self.blocked[pair]:
                # What a TCP connection kept arrives now, all at once.
                for epoch, messages in self._held.pop(pair, []):
                    self._arrive(*pair, epoch, messages)

    def heal(self) -> None:
        """No more faults: everything travels, quickly."""
        self.calm = True
        self._unblock([pair for pair, count in sorted(self.blocked.items()) for _ in range(count)])

    # Messages between hosts.

    def send(self, host: "Host", outbox: "Outbox") -> None:
        """Carry what a turn released."""
        for peer_id in sorted(outbox):
            epoch = self._side.get((host.id, peer_id))
            if epoch is None:
                self._engine.counts["messages without a link"] += len(outbox[peer_id])
            elif self._plan.harsh and not self.calm:
                for message in outbox[peer_id]:
                    self._send_harshly(host.id, peer_id, message)
            else:
                self._send_in_order(host.id, peer_id, epoch, outbox[peer_id])

    def _send_in_order(self, src: str, dst: str, epoch: int, messages: list[RaftMessage]) -> None:
        engine = self._engine
        time_s = max(self._last_arrival[src, dst], engine.now + self._delay())
        self._last_arrival[src, dst] = time_s
        engine.at(time_s, lambda: self._arrive(src, dst, epoch, messages))

    def _arrive(self, src: str, dst: str, epoch: int, messages: list[RaftMessage]) -> None:
        link = self._links[frozenset((src, dst))]
        if not link.up or link.epoch != epoch:
            self._engine.counts["messages lost"] += len(messages)
        elif self.blocked[src, dst]:
            self._held[src, dst].append((epoch, messages))
        else:
            self._deliver(src, dst, messages)

    def _send_harshly(self, src: str, dst: str, message: RaftMessage) -> None:
        rng, counts = self._engine.rng, self._engine.counts
        if rng.random() < self._plan.loss:
            counts["messages lost"] += 1
            return
        copies = 1
        if rng.random() < self._plan.duplicate:
            copies = 2
            counts["messages doubled"] += 1
        for _ in range(copies):
            self._engine.after(self._delay(), lambda: self._arrive_harshly(src, dst, message))

    def _arrive_harshly(self, src: str, dst: str, message: RaftMessage) -> None:
        """Deliver whatever connection or life it was sent in."""
        if self.blocked[src, dst]:
            self._engine.counts["messages lost"] += 1
        else:
            self._deliver(src, dst, [message])

    def _deliver(self, src: str, dst: str, messages: list[RaftMessage]) -> None:
        self._engine.counts["messages"] += len(messages)
        self._hosts[dst].receive(src, messages)

    # Calls from gateways.

    def carry(self, src: str, dst: str, action: Callable[[], None]) -> bool:
        """Do something at the other end, after the way there; False if it will be lost."""
        if self.blocked[src, dst]:
            return False
        if not self.calm and self._engine.rng.random() < self._plan.rpc_loss:
            self._engine.counts["calls lost"] += 1
            return False
        self._engine.after(self._delay(), action)
        return True

    def _delay(self) -> float:
        rng, plan = self._engine.rng, self._plan
        if self.calm:
            return rng.uniform(0.2, 1.0) * self._timing.heartbeat_s * 0.05
        if plan.spike and rng.random() < plan.spike:
            return rng.uniform(0.0, plan.spike_s)
        return plan.delay_s * (1 + plan.jitter * rng.random())

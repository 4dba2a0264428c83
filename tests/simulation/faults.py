"""What each kind of fault does to the cluster.

To add one: a member of `FaultKind`, a weight beside it, and a method here. Log compaction needs no
fault: plans draw how few entries a replica keeps.
"""

from collections.abc import Callable
from functools import partial

from ledger_node.raft import Role
from tests.simulation.disk import CrashPoint
from tests.simulation.engine import Engine
from tests.simulation.host import Host
from tests.simulation.network import Network
from tests.simulation.plan import LEADERS_FROM, Fault, FaultKind, Plan


class Faults:
    """Injects the faults of a plan into a cluster."""

    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        hosts: dict[str, Host],
        network: Network,
        gateway_ids: list[str],
    ) -> None:
        self._engine = engine
        self._plan = plan
        self._hosts = hosts
        self._network = network
        self._gateway_ids = gateway_ids
        self._down_s = plan.timing.election_max_s
        self._over = False
        self._kinds: dict[FaultKind, Callable[[Host, float], None]] = {
            FaultKind.CRASH: self._crash,
            FaultKind.CRASH_IN_TURN: self._crash_in_turn,
            FaultKind.CRASH_AFTER_COMMIT: self._crash_after_commit,
            FaultKind.CRASH_ALL: self._crash_all,
            FaultKind.FAIL_COMMIT: self._fail_commit,
            FaultKind.PARTITION: self._partition,
            FaultKind.BLOCK: self._block,
            FaultKind.RECONNECT: self._reconnect,
            FaultKind.SLOW_DISK: self._slow_disk,
            FaultKind.CLOCK_JUMP: self._clock_jump,
            FaultKind.CLOCK_RATE: self._clock_rate,
            FaultKind.WALL_JUMP: self._wall_jump,
            FaultKind.DRAIN: self._drain,
            FaultKind.TRANSFER: self._transfer,
            FaultKind.CAMPAIGN: self._campaign,
            FaultKind.USURP: self._usurp,
            FaultKind.WIPE: self._wipe,
            FaultKind.INTERRUPT_INSTALL: self._interrupt_install,
            FaultKind.FILL: self._fill,
        }
        assert set(self._kinds) == set(FaultKind)
        for fault in plan.faults:
            engine.at(fault.at_s, partial(self._inject, fault))
        names = list(hosts)
        for hold in plan.holds:
            pair = (names[hold.source], names[hold.target])
            engine.at(hold.at_s, partial(network.block, [pair], hold.for_s))

    def crashed(self, host: Host) -> None:
        """Have someone start a process that died, after a while."""
        if self._over:
            self._engine.after(0.05, host.start)
            return
        # Often soon, sometimes much later.
        self._engine.after(
            self._down_s * self._engine.rng.choice((0.02, 0.3, 1.0, 4.0)), host.start
        )

    def heal(self) -> None:
        """Repair everything: from now on nothing fails."""
        self._over = True
        self._network.heal()
        for host in self._hosts.values():
            host.disk_slow_until = 0.0
            host.disk.is_full = False
            host.set_rate(1.0)
            if host.store is not None:
                host.store.fuse = None
                host.store.fail_next_commit = host.store.crash_after_commit = False
                host.store.fail_next_checkpoint = host.store.crash_after_checkpoint = False
                host.store.crash_between_halves = False
                host.store.crash_at = None
            host.start()

    def _inject(self, fault: Fault) -> None:
        if self._over:
            return
        self._engine.note(f"fault: {fault.kind}")
        self._engine.counts[f"fault: {fault.kind}"] += 1
        self._kinds[fault.kind](self._target(fault.target), fault.amount)

    def _target(self, target: int) -> Host:
        hosts = list(self._hosts.values())
        if target >= LEADERS_FROM:
            shard_id = (target - LEADERS_FROM) % self._plan.shards
            leaders = [host for host in hosts if host.leads(shard_id)]
            if leaders:
                return leaders[0]
        return hosts[target % len(hosts)]

    # Processes.

    def _crash(self, host: Host, _amount: float) -> None:
        host.crash("crashed")

    def _crash_in_turn(self, host: Host, amount: float) -> None:
        """Crash between two accesses to the store, or right before a commit."""
        if host.store is not None:
            host.store.fuse = round(amount**2 * 60)

    def _crash_after_commit(self, host: Host, amount: float) -> None:
        """Crash once a turn's log is on disk, before anything of the turn is released.

        Or when its messages are sent, and nothing of it is applied. Or once the state is on disk,
        too, at the next checkpoint.
        """
        if host.store is not None and amount < 0.35:
            host.store.crash_after_commit = True
        elif host.store is not None and amount < 0.7:
            host.store.crash_between_halves = True
        elif host.store is not None:
            host.store.crash_after_checkpoint = True

    def _crash_all(self, _host: Host, _amount: float) -> None:
        for host in self._hosts.values():
            host.crash("crashed")

    def _fail_commit(self, host: Host, amount: float) -> None:
        if host.store is not None and amount < 0.5:
            host.store.fail_next_commit = True
        elif host.store is not None:
            host.store.fail_next_checkpoint = True

    def _drain(self, host: Host, _amount: float) -> None:
        host.drain()

    def _slow_disk(self, host: Host, amount: float) -> None:
        """Let every turn take long, for a while: the node is deaf meanwhile."""
        host.disk_slow_s = amount**2 * 2 * self._plan.timing.election_max_s
        host.disk_slow_until = self._engine.now + amount * 3 * self._plan.timing.election_max_s

    # Network.

    def _partition(self, host: Host, amount: float) -> None:
        """Part the hosts and gateways in two; nothing passes between the parts."""
        rng = self._engine.rng
        side = {host.id} | {name for name in self._endpoints() if rng.random() < 0.35}
        pairs = [
            (a, b)
            for a in self._endpoints()
            for b in self._endpoints()
            if (a in side) != (b in side)
        ]
        self._network.block(pairs, self._block_s(amount))

    def _block(self, host: Host, amount: float) -> None:
        """Let messages pass one way only, between a host and some others."""
        rng = self._engine.rng
        others = [name for name in self._endpoints() if name != host.id and rng.random() < 0.6]
        inbound = rng.random() < 0.5
        pairs = [(name, host.id) if inbound else (host.id, name) for name in others]
        self._network.block(pairs, self._block_s(amount))

    def _reconnect(self, host: Host, _amount: float) -> None:
        for peer_id in self._hosts:
            if peer_id != host.id and self._engine.rng.random() < 0.5:
                self._network.disconnect(host.id, peer_id)

    def _endpoints(self) -> list[str]:
        return [*self._hosts, *self._gateway_ids]

    def _block_s(self, amount: float) -> float:
        return amount * 5 * self._plan.timing.election_max_s

    # Clocks.

    def _clock_jump(self, host: Host, amount: float) -> None:
        host.jump(amount**2 * 4 * self._plan.timing.election_max_s)

    def _clock_rate(self, host: Host, amount: float) -> None:
        host.set_rate(0.4 + 1.6 * amount)

    def _wall_jump(self, host: Host, amount: float) -> None:
        host.wall_offset_us += round((amount - 0.5) * 2 * 3_600_000_000)

    # Elections.

    def _transfer(self, host: Host, _amount: float) -> None:
        """Have every leader on a host ask another replica to take over."""
        if host.node is None:
            return
        for shard_id in host.node._replicas:
            if host.leads(shard_id):
                host.group(shard_id).transfer_leadership(host.clock())
                host.node._touched.add(shard_id)
        host.wake()

    def _campaign(self, host: Host, _amount: float) -> None:
        """Let the election timers of a host run out."""
        if host.node is None:
            return
        for shard_id in host.node._replicas:
            group = host.group(shard_id)
            if group.role is not Role.LEADER:
                group._replica._SyncObj__raftElectionDeadline = float("-inf")
                host.node._touched.add(shard_id)
        host.wake()

    def _usurp(self, host: Host, amount: float) -> None:
        """Replace a leader that does not notice: it still hears callers, and no other host.

        Its clock may be slow at that, so that it believes for long that it leads.
        """
        others = [name for name in self._hosts if name != host.id]
        cut_off = [name for name in self._gateway_ids[1:] if self._engine.rng.random() < 0.7]
        pairs = [(host.id, name) for name in others + cut_off]
        self._network.block(
            [*pairs, *((b, a) for a, b in pairs)], self._plan.timing.election_max_s * 4 * amount
        )
        if self._engine.rng.random() < 0.5:
            host.set_rate(0.2)
            life_s = self._plan.timing.election_max_s * 5
            self._engine.after(life_s, lambda: host.set_rate(1.0))
        self._campaign(self._hosts[self._engine.rng.choice(others)], amount)

    # Disks and snapshots.

    def _wipe(self, host: Host, _amount: float) -> None:
        """Empty a disk, unless one that was emptied has not been admitted to voting again."""
        disks = [other.disk for other in self._hosts.values()]
        if any(shadow.wiped for disk in disks for shadow in disk.shadows.values()):
            return
        if not host.disk.path.exists():  # Its host has not started yet.
            return
        host.crash("wiped")
        host.disk.wipe()
        host.events.wiped(host)

    def _fill(self, host: Host, amount: float) -> None:
        """Leave a disk no room for new writes, for a while."""
        host.disk.is_full = True
        life_s = amount * 6 * self._plan.timing.election_max_s

        def make_room() -> None:
            host.disk.is_full = False

        self._engine.after(life_s, make_room)

    def _crash_at_commit(self, host: Host, amount: float) -> None:
        """Crash at one of the next commits, of the log or of the state: before it, or after it."""
        if host.store is not None:
            commits, points = divmod(int(amount * 12), 3)
            host.store.crash_at = (1 + commits, list(CrashPoint)[points])

    def _interrupt_install(self, _host: Host, amount: float) -> None:
        """Wait for the next install of a snapshot, and crash one end of it or cut the link."""
        engine, deadline = self._engine, self._engine.now + 5 * self._plan.timing.election_max_s

        def watch() -> None:
            if self._over or engine.now > deadline:
                return
            for receiver in self._hosts.values():
                for shard_id in receiver.node._replicas if receiver.node is not None else ():
                    if receiver.group(shard_id).installing_bytes:
                        self._interrupt(receiver, shard_id, amount)
                        return
            engine.after(self._plan.timing.heartbeat_s * 0.2, watch)

        watch()

    def _interrupt(self, receiver: Host, shard_id: int, amount: float) -> None:
        self._engine.counts["installs interrupted"] += 1
        leader_id = receiver.group(shard_id).leader_id
        if amount < 0.2:
            self._crash_in_turn(receiver, 2 * amount)
        elif amount < 0.5:
            self._crash_at_commit(receiver, (amount - 0.2) / 0.3)
        elif amount < 0.75 and leader_id:
            self._hosts[leader_id].crash("crashed")
        elif leader_id:
            self._network.disconnect(receiver.id, leader_id)

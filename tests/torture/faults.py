"""What is done to the cluster. Every fault injects itself, lasts for a while, and heals itself."""

import asyncio
import random
import signal
import subprocess
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from ledger_cli.local_cluster import GATEWAY
from ledger_node.store_raft import StoredRaftLog
from tests.torture import damage
from tests.torture.cluster import TorturedCluster
from tests.torture.network import Cut, Network
from tests.torture.report import Violation
from tests.torture.workload import CALL_TIMEOUT_S, Workload

MIB = 2**20
PATIENCE_S = 60.0
_FATAL = 70

T = TypeVar("T")


@dataclass
class Arena:
    """All that faults act on. The cluster has one thread, in which `run` runs calls."""

    cluster: TorturedCluster
    network: Network
    workload: Workload
    rng: random.Random
    small_disk: str | None
    """The node whose data is on a file system that can be made small, if there is one."""
    thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="cluster")
    )
    violations: list[Violation] = field(default_factory=list)

    async def run(self, call: Callable[[], T]) -> T:
        """Run what blocks in the cluster's thread."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, call)

    async def until(self, done: Callable[[], bool], what: str) -> None:
        """Wait for a state of the cluster; it must come."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await self.run(done):  # noqa: ASYNC110  (it is other processes' state)
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise Violation(f"not within {PATIENCE_S:g} s: {what}") from None

    async def whole(self) -> None:
        """Wait until every shard is served and every node has applied all that is committed."""
        await self.until(lambda: not self.cluster.not_serving(), "every shard is served")
        for node in self.cluster.config.nodes:
            committed = await self.run(self.cluster.commit_indexes)
            applied = partial(self.cluster.has_applied, node.id, committed)
            await self.until(applied, f"{node.id} catches up")
        await self.until(self.cluster.all_proven, "every replica may vote")

    def report(self, what: str) -> None:
        """Note what must not be."""
        self.violations.append(Violation(what))


Fault = Callable[[Arena, str], Awaitable[str]]


async def kill(arena: Arena, victim: str) -> str:
    """``kill -9``, and a start a while later."""
    await arena.run(partial(arena.cluster.kill, victim))
    down_s = arena.rng.choice((0.0, arena.rng.uniform(0.1, 1.5), arena.rng.uniform(1.5, 4.0)))
    await asyncio.sleep(down_s)
    await arena.run(partial(arena.cluster.restart, victim))
    return f"kill -9 {victim}, down for {down_s:.1f} s"


async def freeze(arena: Arena, victim: str, seconds: tuple[float, float] = (1.0, 5.0)) -> str:
    """SIGSTOP, and SIGCONT a while later: a node that does not know how late it is."""
    await arena.run(partial(arena.cluster.freeze, victim))
    frozen_s = arena.rng.uniform(*seconds)
    try:
        await asyncio.sleep(frozen_s)
    finally:
        await arena.run(partial(arena.cluster.thaw, victim))
    return f"SIGSTOP {victim} for {frozen_s:.1f} s"


async def restart(arena: Arena, victim: str) -> str:
    """SIGTERM and a start at once, as for a new version."""
    code = await arena.run(partial(arena.cluster.terminate, victim))
    # A process that has only just been started may not listen to the signal yet, and ends at once.
    if code not in (0, -signal.SIGTERM):
        arena.report(f"{victim} ended with {code} after SIGTERM")
    await arena.run(partial(arena.cluster.restart, victim))
    return f"restart of {victim}"


async def cut(arena: Arena, victim: str) -> str:
    """Cut links of a node: all of them or one, both ways or one, in one of several manners."""
    rng, network = arena.rng, arena.network
    nodes = [pair for pair in network.pairs if victim in pair and GATEWAY not in pair]
    gateway = [(GATEWAY, victim)]
    what, pairs = rng.choice(
        (
            (f"{victim} from all others", nodes + gateway),
            (f"{victim} from the other nodes", nodes),
            ("the link {0}-{1}", [rng.choice(nodes)]),
            (f"the gateway from {victim}", gateway),
        )
    )
    what = what.format(*pairs[0])
    how = rng.choice(list(Cut))
    there, back = rng.choice(((True, True), (True, True), (True, False), (False, True)))
    cut_s = rng.uniform(1.0, 5.0)
    network.cut(pairs, how, there=there, back=back)
    try:
        await asyncio.sleep(cut_s)
    finally:
        network.heal(pairs)
    ways = "both ways" if there == back or how is Cut.RESET else "one way"
    return f"cut {what}, {ways}, bytes {how.value}, for {cut_s:.1f} s"


async def slow(arena: Arena, victim: str) -> str:
    """Delay all that goes to and from a node."""
    pairs = [pair for pair in arena.network.pairs if victim in pair]
    delay_s, for_s = arena.rng.uniform(0.01, 0.2), arena.rng.uniform(2.0, 5.0)
    arena.network.delay(pairs, delay_s)
    try:
        await asyncio.sleep(for_s)
    finally:
        arena.network.heal(pairs)
    return f"{delay_s * 1000:.0f} ms of delay to and from {victim} for {for_s:.1f} s"


async def kill_gateway(arena: Arena, _victim: str) -> str:
    """``kill -9`` of the gateway, and a start at once."""
    if await arena.run(partial(arena.cluster.running, GATEWAY)):
        await arena.run(partial(arena.cluster.kill, GATEWAY))
        await arena.run(partial(arena.cluster.restart, GATEWAY))
    return "kill -9 of the gateway"


async def kill_all(arena: Arena, _victim: str) -> str:
    """``kill -9`` of all nodes at once, and a start of all."""
    names = [node.id for node in arena.cluster.config.nodes]
    await arena.run(partial(arena.cluster.kill_nodes, names))
    down_s = arena.rng.choice((0.0, arena.rng.uniform(0.2, 2.0)))
    await asyncio.sleep(down_s)
    arena.rng.shuffle(names)
    for name in names:
        await arena.run(partial(arena.cluster.restart, name))
    return f"kill -9 of all nodes at once, down for {down_s:.1f} s"


async def nearly_full_disk(arena: Arena, _victim: str) -> str:
    """Too little room for new writes: a leader must refuse them, or let another node lead."""
    name = arena.small_disk
    assert name is not None
    directory = arena.cluster.node_dir(name)
    before = arena.workload.refusals["RESOURCE_EXHAUSTED"]
    reads = arena.workload.counts["acknowledged"]
    leads = await arena.run(partial(_led_by, arena.cluster, name))
    lasts_s = CALL_TIMEOUT_S + 2.0
    shrink_disk(directory, 24 * MIB)
    try:
        # Long enough for clients to give up trying again.
        await asyncio.sleep(lasts_s)
        keeps = await arena.run(partial(_led_by, arena.cluster, name))
    finally:
        grow_disk(directory)
    refused = arena.workload.refusals["RESOURCE_EXHAUSTED"] - before
    if keeps and not refused:
        arena.report(f"{name} still leads {keeps} shards on a full disk and refused nothing")
    if arena.workload.counts["acknowledged"] == reads:
        arena.report(f"nothing at all was answered while the disk of {name} was nearly full")
    return (
        f"disk of {name} nearly full for {lasts_s:.0f} s, leading {leads} shards, then {keeps}: "
        f"{refused} writes refused"
    )


async def full_disk(arena: Arena, _victim: str) -> str:
    """No room at all: a write to disk fails, and the node must stop with a clear message."""
    name = arena.small_disk
    assert name is not None
    directory = arena.cluster.node_dir(name)
    size = await arena.run(partial(arena.cluster.log_size, name))
    shrink_disk(directory, 0)
    try:
        code = await arena.run(partial(arena.cluster.wait_for_end, name, 10.0))
    finally:
        grow_disk(directory)
    said = await arena.run(partial(arena.cluster.printed_since, name, size))
    if code is not None and (code != _FATAL or "disk" not in said or "Traceback" in said):
        arena.report(f"{name} ended with {code} on a full disk and said: {said[-2000:]}")
    await arena.run(partial(arena.cluster.restart, name))
    how = f"it stopped with code {code}" if code is not None else "it needed no room for 10 s"
    return f"disk of {name} full: {how}"


async def damaged_store(arena: Arena, victim: str) -> str:
    """A spoiled store file: the node must refuse to start with it, and say what to do."""
    cluster, directory = arena.cluster, arena.cluster.node_dir(victim)
    await arena.whole()
    await arena.run(partial(cluster.kill, victim))
    aside = cluster.data_dir / f"{victim}.store-kept"
    damage.save(directory, aside)
    what = damage.spoil(directory, arena.rng)
    code, said = await arena.run(partial(cluster.start_refused, victim))
    if code in (None, 0) or "start the node empty" not in said or "Traceback" in said:
        arena.report(f"{victim} with a store {what}: ended with {code} and said: {said[-2000:]}")
    if wiping_is_safe() and arena.rng.random() < 0.5:
        damage.restore(directory, aside)
        cluster.wipe(victim)
        then = "wiped and started empty"
    else:
        damage.restore(directory, aside)
        then = "repaired"
    await arena.run(partial(cluster.restart, victim))
    return f"store of {victim} {what}: refused with code {code}, then {then}"


async def wiped(arena: Arena, victim: str) -> str:
    """A node that has lost everything: it rejoins, by snapshots where logs do not reach back."""
    await arena.whole()
    await arena.run(partial(arena.cluster.kill, victim))
    arena.cluster.wipe(victim)
    await arena.run(partial(arena.cluster.restart, victim))
    return f"data of {victim} wiped"


def wiping_is_safe() -> bool:
    """Whether nodes can start empty beside others that are not."""
    return hasattr(StoredRaftLog, "load_standing")


def shrink_disk(directory: Path, free_bytes: int) -> None:
    """Leave so much room on a node's file system."""
    stat = subprocess.run(
        ["df", "--output=used", "-B1", str(directory)], check=True, capture_output=True, text=True
    )
    used = int(stat.stdout.split()[-1])
    # A size of 0 would mean no limit at all.
    _remount(directory, max(used + free_bytes, 4096))


def grow_disk(directory: Path) -> None:
    """Give a node's file system plenty of room."""
    _remount(directory, 2048 * MIB)


def _remount(directory: Path, size: int) -> None:
    command = ["mount", "-o", f"remount,size={size}", str(directory)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")


def _led_by(cluster: TorturedCluster, name: str) -> int:
    status = cluster.statuses()[name].status
    return sum(replica.serving for replica in status.replicas) if status else 0


PROCESS_FAULTS: dict[str, Fault] = {"kill -9": kill, "freeze": freeze, "restart": restart}
COMBINED_FAULTS: dict[str, Fault] = {
    "cut": cut,
    "delay": slow,
    "gateway kill -9": kill_gateway,
}
LONE_FAULTS: dict[str, Fault] = {
    "kill -9 of all": kill_all,
    "nearly full disk": nearly_full_disk,
    "full disk": full_disk,
    "damaged store": damaged_store,
    "wiped node": wiped,
}

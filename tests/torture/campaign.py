"""A whole run: faults in rounds, checks in between, all of it drawn from one seed."""

import asyncio
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ledger_cli.local_cluster import LocalClusterError
from ledger_client import AsyncLedgerClient
from ledger_cluster.shard_map import ShardMap
from tests.torture.checks import Checker, check_replicas
from tests.torture.cluster import TorturedCluster, links_of, make_config
from tests.torture.faults import (
    COMBINED_FAULTS,
    LONE_FAULTS,
    PATIENCE_S,
    PROCESS_FAULTS,
    Arena,
    Fault,
    freeze,
    grow_disk,
    wiping_is_safe,
)
from tests.torture.network import Network
from tests.torture.progress import Progress
from tests.torture.report import FaultRecord, Report, Violation
from tests.torture.sampler import Sampler
from tests.torture.transfer_checks import check_transfers
from tests.torture.transfers import CLIENTS, Bank
from tests.torture.workload import CALL_TIMEOUT_S, HASTY_TIMEOUT_S, Account, Workload

CHECKPOINT_S = 90.0
REPEATS_PER_CHECKPOINT = 8_000
TRANSFERS_ASKED_MAX = 2_000
# How many clients make transfers beside those that each use one account only.
TRANSFER_CLIENTS = 16
# A bank with more writes is given up at the next checkpoint, for new accounts: to check all of it
# would take too long.
BANK_WRITES_MAX = 60_000

# How often each kind comes in a deck of them.
DECK = {
    "kill -9": 4,
    "freeze": 3,
    "restart": 2,
    "gateway kill -9": 1,
    "cut": 5,
    "delay": 2,
    "kill -9 of all": 1,
    "nearly full disk": 1,
    "full disk": 1,
    "damaged store": 2,
    "wiped node": 1,
}
_FAULTS: dict[str, Fault] = PROCESS_FAULTS | COMBINED_FAULTS | LONE_FAULTS

Say = Callable[[str], None]


class Campaign:
    """One run. After `run`, ``violations`` is what was found, and ``directory`` what is left."""

    def __init__(
        self,
        seconds: float,
        seed: int,
        say: Say,
        *,
        nodes: int = 3,
        shards: int = 16,
        kinds: list[str] | None = None,
        transfers_only: bool = False,
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ledger-torture-"))
        self.violations: list[Violation] = []
        self.report = Report()
        self.table = ""
        self._seconds = seconds
        self._say = say
        self._rng = random.Random(seed)
        self._nodes, self._shards = nodes, shards
        self._kinds = kinds or list(DECK)
        self._transfers_only = transfers_only
        self._progress = Progress(list(range(shards)))
        self._deck: list[str] = []
        self._mounted: list[Path] = []
        self._checked: list[Account] = []
        self._bank: Bank
        self._sampler: Sampler
        self._tortured_s = 0.0
        self._part_began = 0.0

    async def run(self) -> None:
        """Run it all; clean up whatever happens. The directory stays if there are violations."""
        config, gateway_port = make_config(self._nodes, self._shards)
        data_dir = self.directory / "data"
        try:
            with Network(links_of(config)) as network:
                cluster = TorturedCluster(config, data_dir, gateway_port, network)
                arena_thread = None
                try:
                    small_disk = self._mount(data_dir, config.nodes[-1].id)
                    async with (
                        AsyncLedgerClient(cluster.gateway_address, CALL_TIMEOUT_S) as client,
                        AsyncLedgerClient(cluster.gateway_address, HASTY_TIMEOUT_S) as hasty,
                    ):
                        shard_ids = [shard.id for shard in config.shards]
                        shard_map = ShardMap(config)
                        seeds = [self._rng.randrange(2**32) for _ in range(3)]
                        workload = Workload(
                            client,
                            hasty,
                            shard_map,
                            [] if self._transfers_only else shard_ids,
                            seeds[0],
                            self._progress,
                        )
                        bank = Bank(
                            client,
                            hasty,
                            shard_map,
                            shard_ids,
                            seeds[1],
                            self._progress,
                            clients=CLIENTS if self._transfers_only else TRANSFER_CLIENTS,
                        )
                        sampler = Sampler(config, seeds[2], self.report.checks)
                        self._bank, self._sampler = bank, sampler
                        arena = Arena(cluster, network, workload, self._rng, small_disk)
                        arena_thread = arena.thread
                        await arena.run(cluster.start)
                        self._skip_impossible(small_disk)
                        try:
                            await self._torture(
                                arena, client, Checker(client, workload, self.report.checks)
                            )
                        except (Violation, LocalClusterError) as error:
                            self.violations.append(Violation(str(error)))
                            self.violations += await self._exits(arena)
                        except Exception as error:
                            self.violations.append(Violation(f"the run itself failed: {error!r}"))
                            raise
                        finally:
                            await workload.abort()
                            await bank.abort()
                            await sampler.stop()
                        found = arena.violations + self._found_by_clients(workload)
                        self.violations += [item for item in found if item not in self.violations]
                        if self._part_began:
                            self._tortured_s += time.monotonic() - self._part_began
                        self.table = self.report.table(
                            workload.counts, workload.refusals, bank.counts, self._tortured_s
                        )
                        await arena.run(partial(cluster.stop, 10.0))
                finally:
                    cluster.stop(2.0)
                    if arena_thread is not None:
                        arena_thread.shutdown()
        finally:
            self._clean_up()

    async def _torture(self, arena: Arena, client: AsyncLedgerClient, checker: Checker) -> None:
        workload, bank = arena.workload, self._bank
        await arena.until(lambda: not arena.cluster.not_serving(), "every shard is served")
        await bank.open()
        self._sampler.start()
        left_s = self._seconds
        while left_s > 0:
            began = self._part_began = time.monotonic()
            part_s = min(left_s, CHECKPOINT_S)
            workload.start()
            bank.start()
            await self._written(arena, began)
            await asyncio.sleep(1.0)
            while time.monotonic() - began < part_s:
                await self._round(arena)
                self._look(arena)
            left_s -= time.monotonic() - began
            self._tortured_s += time.monotonic() - began
            self._part_began = 0.0
            await arena.whole()
            await workload.stop()
            await bank.stop()
            await self._check(arena, checker, last=left_s <= 0)
            await self._check_bank(client)
            if len(bank.steps) > BANK_WRITES_MAX:
                await bank.open()

    async def _round(self, arena: Arena) -> None:
        """Inject what is drawn, all of it at once, and wait until the cluster is well again."""
        rng = self._rng
        names = [node.id for node in arena.cluster.config.nodes]
        drawn = [self._draw() for _ in range(rng.choice((1, 1, 2, 2, 3)))]
        lone = next((kind for kind in drawn if kind in LONE_FAULTS), None)
        process = next((kind for kind in drawn if kind in PROCESS_FAULTS), None)
        kinds = [lone] if lone else [kind for kind in drawn if kind in COMBINED_FAULTS]
        if process and not lone:
            kinds.append(process)
        self._deck += [kind for kind in drawn if kind not in kinds]
        victim = rng.choice(names)
        began = time.monotonic()
        work = [_FAULTS[kind](arena, victim) for kind in kinds]
        if not lone and rng.random() < 0.15:
            # A majority in trouble, but not for long.
            other = rng.choice([name for name in names if name != victim])
            kinds.append("freeze")
            work.append(freeze(arena, other, (0.3, 1.2)))
        done = await asyncio.gather(*work, return_exceptions=True)
        for result in done:
            if isinstance(result, BaseException):
                raise result
        if rng.random() < 0.75 or lone:
            await self._written(arena, time.monotonic())
        if rng.random() < 0.6:
            await arena.whole()
            await asyncio.sleep(rng.uniform(0.2, 2.0))
        pause_s, shard_id = self._progress.longest_pause(began, time.monotonic())
        at_s = self._tortured_s + time.monotonic() - self._part_began
        together = "  (together with others)" if len(kinds) > 1 else ""
        for kind, what in zip(kinds, map(str, done), strict=True):
            self.report.add(FaultRecord(kind, what, pause_s, shard_id, combined=len(kinds) > 1))
            self._say(
                f"{at_s:7.1f}  {what}: no acknowledged write for {pause_s:.2f} s at most "
                f"(shard {shard_id}){together}"
            )

    async def _exits(self, arena: Arena) -> list[Violation]:
        """Return the processes that ended without having been asked to."""
        exits = await arena.run(arena.cluster.take_exits)
        return [Violation(f"{item.name} {item.cause}") for item in exits]

    def _draw(self) -> str:
        if not self._deck:
            self._deck = [kind for kind in self._kinds for _ in range(DECK[kind])]
            self._rng.shuffle(self._deck)
        return self._deck.pop()

    async def _written(self, arena: Arena, since: float) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while silent := self._progress.silent_since(since):
            self._look(arena)
            if time.monotonic() > deadline:
                raise Violation(f"not within {PATIENCE_S:g} s: shards {silent} are written again")
            await asyncio.sleep(0.02)

    def _look(self, arena: Arena) -> None:
        """Raise what was found meanwhile."""
        for clients in (arena.workload, self._bank):
            if (error := clients.failed_task()) is not None:
                raise error
        if found := arena.violations + self._found_by_clients(arena.workload):
            raise found[0]

    def _found_by_clients(self, workload: Workload) -> list[Violation]:
        return workload.violations + self._bank.violations + self._sampler.violations

    async def _check(self, arena: Arena, checker: Checker, *, last: bool) -> None:
        """Check everything written since the last time, and all replicas."""
        self.violations += await self._exits(arena)
        accounts = arena.workload.take_accounts()
        writes = sum(item.is_write for account in accounts for item in account.operations)
        share = min(1.0, REPEATS_PER_CHECKPOINT / max(writes, 1))
        began = time.monotonic()
        self.violations += await checker.check_all(
            accounts, lambda _operation: self._rng.random() < share
        )
        self._checked += accounts
        if last:
            # What was checked once must still be so.
            some = self._rng.sample(self._checked, min(len(self._checked), 500))
            self.violations += await checker.check_all(some, lambda _operation: False, again=True)
        self.violations += await arena.run(
            partial(check_replicas, arena.cluster.config, self.report.checks)
        )
        self._say(
            f"         checked {writes:,} writes to {len(accounts):,} accounts and all replicas in "
            f"{time.monotonic() - began:.1f} s: "
            + ("all as it must be" if not self.violations else f"{len(self.violations)} violations")
        )
        if self.violations:
            raise Violation("stopped at the first checkpoint that does not hold")

    async def _check_bank(self, client: AsyncLedgerClient) -> None:
        """Check all transfers between the accounts of the bank."""
        began = time.monotonic()
        steps = self._bank.steps
        share = min(1.0, TRANSFERS_ASKED_MAX / max(len(steps), 1))
        finished_s = await self._sampler.finished()
        # What expires while it is checked would be seen both ways.
        await self._bank.outlive()
        await self._sampler.finished()
        self.violations += await check_transfers(
            client, self._bank, self.report.checks, lambda: self._rng.random() < share
        )
        # Repeats may have begun what had never arrived.
        await self._sampler.finished()
        self.violations += self._sampler.violations
        self._say(
            f"         checked {len(steps):,} writes of transfers in "
            f"{time.monotonic() - began:.1f} s; nothing undecided or in flight {finished_s:.1f} s "
            f"after the last (at most {self._sampler.unfinished_max} at once on a shard before); "
            f"together the accounts have {self._bank.total:,}: "
            + ("all as it must be" if not self.violations else f"{len(self.violations)} violations")
        )
        if self.violations:
            raise Violation("stopped at the first checkpoint that does not hold")

    def _skip_impossible(self, small_disk: str | None) -> None:
        if small_disk is None:
            for kind in ("nearly full disk", "full disk"):
                self._skip(kind, "needs the right to mount a small file system")
        if self._transfers_only:
            self._skip("nearly full disk", "counts the refusals of clients of single accounts")
        if not wiping_is_safe():
            self._skip("wiped node", "this version cannot start a node empty beside others")

    def _skip(self, kind: str, why: str) -> None:
        if kind in self._kinds:
            self._kinds.remove(kind)
            self.report.skipped[kind] = why

    def _mount(self, data_dir: Path, name: str) -> str | None:
        """Give a node a file system of its own that can be made small; None if that is refused."""
        if not {"full disk", "nearly full disk"} & set(self._kinds):
            return None
        directory = data_dir / name
        directory.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", "size=2048m", "tmpfs", str(directory)]
        try:
            done = subprocess.run(command, check=False, capture_output=True)
        except OSError:
            return None
        if done.returncode:
            return None
        self._mounted.append(directory)
        grow_disk(directory)
        return name

    def _clean_up(self) -> None:
        for directory in self._mounted:
            if self.violations:
                shutil.copytree(directory, f"{directory}-kept", dirs_exist_ok=True)
            subprocess.run(["umount", str(directory)], check=False, capture_output=True)
        if not self.violations:
            shutil.rmtree(self.directory, ignore_errors=True)

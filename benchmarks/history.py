"""How long do reads take on an account of a million entries? Does a trial balance always balance?

Starts a cluster of three nodes, and shows two things on it.

1. Accounts of 1,000 to 1,000,000 entries, one in ten of which has a business date of its own. Reads
   of all of them are made in turns, one at a time, at the gateway. What they must show is known
   here, and checked. Page 10,000 is asked for by a token that is made here as the gateway makes it:
   the way there has 9,999 other pages. Where there is no such page, it is the last one.
2. Many accounts on all shards, and clients that move money between them, at once and pending. Trial
   balances are taken meanwhile, now and as of past moments: see `history_reports`.

Times are judged in the table; the exit code is 1 if anything that was shown was wrong.

    python benchmarks/history.py [--entries 1000000] [--accounts 100000] [--samples 1000]
    python benchmarks/history.py --entries 2000 --accounts 200 --samples 20 --calls 20    # a look
"""

import argparse
import asyncio
import bisect
import itertools
import os
import random
import sys
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from benchmarks import history_reports
from benchmarks.feeding import BATCH, Feeder, median_ms, p99_ms, progress_bar
from ledger.v1 import ledger_pb2, ledger_pb2_grpc
from ledger_cli.local_cluster import LocalCluster, free_cluster_ports
from ledger_cli.node_probe import NodeProbe
from ledger_cli.output import console, new_table
from ledger_cli.verify import prove
from ledger_client import LedgerError
from ledger_cluster.config import generate_cluster_config
from ledger_cluster.shard_map import ShardMap
from ledger_core.commands import Command, CreateAccount, CreateTransaction
from ledger_core.ids import derive_account_id, new_request_id
from ledger_gateway import pagination

NODES, SHARDS, REPLICAS = 3, 16, 3
SIZES = (1_000, 10_000, 100_000, 1_000_000)
PAGE, DEEP_PAGE = 50, 10_000
MEDIAN_MS_MAX, GROWTH_MAX = 10.0, 2.0
DAY_US = 86_400_000_000
DATED_DAYS = 30
OPENING = 10**9
CALL_S_MAX = 10.0
FAULTS_SHOWN = 10

T = TypeVar("T")
RequestT = TypeVar("RequestT")


@dataclass
class History:
    """An account with a long history, and what is known of it."""

    account_id: int
    began_us: int
    rng: random.Random
    after: "array[int]" = field(default_factory=lambda: array("q", [0]))
    """The balance after each entry, by sequence number; before the first one it is 0."""
    dated_after: "array[int]" = field(default_factory=lambda: array("q", [0]))
    """How much of it has a business date of its own; all of these are before the first entry."""
    dated: list[tuple[int, int]] = field(default_factory=list)
    """Business dates and amounts, sorted."""
    first_us: int = 0
    last_us: int = 0

    @property
    def id(self) -> str:
        return f"{self.account_id:016x}"

    @property
    def entries(self) -> int:
        return len(self.after) - 1

    def commands(self, count: int, until: float) -> Iterator[Command]:
        """Make transactions until there are ``count``, or it is late (`time.monotonic`)."""
        while self.entries < count:
            if self.entries % 1_000 == 0 and time.monotonic() > until:
                return
            amount = self.rng.randint(100, 10_000) if self.rng.random() < 0.7 else -100
            amount, effective_us = (amount if self.entries else OPENING), 0
            if self.entries % 10 == 5:
                effective_us = self.began_us - self.rng.randint(DAY_US, DATED_DAYS * DAY_US)
                self.dated.append((effective_us, amount))
            yield CreateTransaction(
                self.account_id,
                amount,
                f"payment {self.entries}",
                True,
                new_request_id(),
                effective_time_us=effective_us,
            )
            self.after.append(self.after[-1] + amount)
            self.dated_after.append(self.dated_after[-1] + (amount if effective_us else 0))

    def effective(self, moment_us: int, version: int) -> int:
        """Return the balance as of an effective moment by which ``version`` was recorded."""
        count = bisect.bisect_right(self.dated, (moment_us, OPENING))
        undated = self.after[version] - self.dated_after[version]
        return undated + sum(amount for _, amount in self.dated[:count])


async def make_histories(
    cluster: LocalCluster, sizes: Sequence[int], seed: int, budget_s: float
) -> list[History]:
    """Open an account for each size, on shards that one node leads, and fill them."""
    shard_map = ShardMap(cluster.config)
    until = time.monotonic() + budget_s
    histories = []
    async with Feeder(cluster) as feeder:
        node = Counter(feeder.leaders.values()).most_common(1)[0][0]
        shards = sorted(feeder.leaders, key=lambda shard_id: feeder.leaders[shard_id] != node)
        for size, shard_id in zip(sizes, shards, strict=False):
            names = (f"h{seed}-{size}-{number}" for number in itertools.count())
            ids = ((name, derive_account_id("main", name)) for name in names)
            name, account_id = next(
                item for item in ids if shard_map.shard_of(item[1]).id == shard_id
            )
            history = History(account_id, time.time_ns() // 1_000, random.Random(seed + size))
            began = time.monotonic()
            await feeder.send(shard_id, [CreateAccount(account_id, "main", name)])
            with progress_bar(f"{size:>9,} entries", size) as sent:
                # All entries of a batch have one time: short histories need many times as well.
                batch_size = max(5, min(BATCH, size // 200))
                await feeder.send(shard_id, history.commands(size, until), sent, batch_size)
            seconds = time.monotonic() - began
            print(f"filled: {history.entries:9,} entries in {seconds:.1f} s", flush=True)
            if history.entries < 2 * PAGE:
                break
            history.dated.sort()
            histories.append(history)
            if history.entries < size:
                print(f"the time for filling is over: {size:,} were asked for")
                break
    if not histories:
        raise SystemExit("--fill-seconds leaves no time for filling")
    return histories


class Reads:
    """The reads that are measured; each checks what it is shown, and says what is wrong."""

    def __init__(self, channel: grpc.Channel, seed: int) -> None:
        self._stub = ledger_pb2_grpc.LedgerServiceStub(channel)
        self._rng = random.Random(seed)
        self._tokens: dict[tuple[str, str], str] = {}
        self._took_s = 0.0
        self.times: dict[tuple[str, int], list[float]] = {}
        self.faults: list[str] = []
        self.kinds: dict[str, Callable[[History], str]] = {
            "balance now": self._balance_now,
            "balance as of a recorded moment": self._balance_recorded,
            "balance as of an effective moment": self._balance_effective,
            "statement, page 1": self._first_page,
            "statement, page 10,000": self._deep_page,
            "statement of a short time": self._short_time,
            "entries, page 1": self._newest,
            "entries, page 10,000": self._deep_entries,
        }

    def prepare(self, histories: list[History]) -> None:
        """Learn when the histories were recorded, and make the tokens of their deep pages."""
        for item in histories:
            newest = self._entry(item, oldest_first=False)
            item.first_us = _us(self._entry(item, oldest_first=True).create_time)
            item.last_us = _us(newest.create_time)
            if newest.sequence != item.entries:
                self.faults.append(f"{item.id}: {newest.sequence} entries, not {item.entries}")
            self._tokens["entries", item.id] = pagination.ENTRIES.encode(
                ledger_pb2.ListEntriesRequest(account_id=item.id),
                pagination.EntryCursor(item.entries - _skipped(item)),
            )
            # What the first page fixes for those behind it is taken from its token.
            statement = ledger_pb2.GetStatementRequest(account_id=item.id)
            statement.page_token = self._stub.GetStatement(
                statement, timeout=CALL_S_MAX
            ).next_page_token
            cursor = pagination.STATEMENT.decode(statement)
            assert cursor is not None, "there are more pages"
            self._tokens["statement", item.id] = pagination.STATEMENT.encode(
                statement, cursor._replace(sequence=_skipped(item) + 1)
            )

    def measure(self, histories: list[History], calls: int) -> None:
        """Make every read of every account so many times, in turns, in another order each time."""
        todo = list(itertools.product(self.kinds, histories))
        self.times = {(name, item.entries): [] for name, item in todo}
        with progress_bar("reads", (calls + 1) * len(todo)) as done:
            for call in range(calls + 1):
                self._rng.shuffle(todo)
                for name, item in todo:
                    if fault := self.kinds[name](item):
                        self.faults.append(f"{name} of {item.entries:,} entries: {fault}")
                    if call:  # the first one warms up
                        self.times[name, item.entries].append(self._took_s)
                    done(1)

    def _timed(self, method: Callable[..., T], request: object) -> T:
        began = time.perf_counter()
        answer = method(request, timeout=CALL_S_MAX)
        self._took_s = time.perf_counter() - began
        return answer

    def _entry(
        self, item: History, *, oldest_first: bool, sequence: int = 0
    ) -> ledger_pb2.AccountEntry:
        """Return an entry by its number (0: the first in this order), without a clock."""
        request = ledger_pb2.ListEntriesRequest(
            account_id=item.id, oldest_first=oldest_first, page_size=1
        )
        if sequence:
            request.page_token = pagination.ENTRIES.encode(
                request, pagination.EntryCursor(sequence)
            )
        return self._stub.ListEntries(request, timeout=CALL_S_MAX).entries[0]

    def _balance(
        self,
        item: History,
        moment_us: int,
        basis: ledger_pb2.TimeBasis.ValueType = ledger_pb2.TIME_BASIS_RECORDED,
    ) -> ledger_pb2.Balance:
        request = ledger_pb2.GetBalanceRequest(
            account_id=item.id, as_of_time=_timestamp(moment_us), basis=basis
        )
        return self._timed(self._stub.GetBalance, request).balance

    def _balance_now(self, item: History) -> str:
        request = ledger_pb2.GetBalanceRequest(account_id=item.id)
        found = self._timed(self._stub.GetBalance, request).balance
        return _differs(found.settled_balance, item.after[-1])

    def _balance_recorded(self, item: History) -> str:
        sequence = self._rng.randint(1, item.entries)
        moment_us = _us(self._entry(item, oldest_first=True, sequence=sequence).create_time)
        found = self._balance(item, moment_us)
        if found.version < sequence:
            return f"entry {sequence} was recorded just then, but {found.version} is the newest"
        return _differs(found.settled_balance, item.after[found.version])

    def _balance_effective(self, item: History) -> str:
        """A moment among the business dates, or one among the times of recording."""
        moment_us = item.began_us - self._rng.randint(0, DATED_DAYS * DAY_US)
        version = 0
        if self._rng.random() < 0.5:
            moment_us = self._rng.randint(item.first_us, item.last_us)
            version = self._balance(item, moment_us).version
        found = self._balance(item, moment_us, ledger_pb2.TIME_BASIS_EFFECTIVE)
        return _differs(found.settled_balance, item.effective(moment_us, version))

    def _first_page(self, item: History) -> str:
        request = ledger_pb2.GetStatementRequest(account_id=item.id, page_size=PAGE)
        found = self._timed(self._stub.GetStatement, request)
        wrong = _differs(found.closing_balance.settled_balance, item.after[-1])
        return wrong or _wrong_page(item, found.entries, 1, 1)

    def _deep_page(self, item: History) -> str:
        request = ledger_pb2.GetStatementRequest(
            account_id=item.id, page_size=PAGE, page_token=self._tokens["statement", item.id]
        )
        found = self._timed(self._stub.GetStatement, request)
        return _wrong_page(item, found.entries, _skipped(item) + 1, 1)

    def _short_time(self, item: History) -> str:
        """The time that some 50 entries took to record; all of one time are in it or are not."""
        sequence = self._rng.randint(1, item.entries - PAGE + 1)
        first = self._entry(item, oldest_first=True, sequence=sequence)
        last = self._entry(item, oldest_first=True, sequence=sequence + PAGE - 1)
        request = ledger_pb2.GetStatementRequest(
            account_id=item.id,
            page_size=PAGE,
            start_time=first.create_time,
            end_time=_timestamp(_us(last.create_time) + 1),
        )
        found = self._timed(self._stub.GetStatement, request)
        opening, closing = found.opening_balance, found.closing_balance
        if not opening.version < sequence <= closing.version - PAGE + 1:
            return f"entry {sequence} and the next are not in {opening.version}…{closing.version}"
        balances = (opening.settled_balance, closing.settled_balance)
        wrong = _differs(balances, (item.after[opening.version], item.after[closing.version]))
        return wrong or _wrong_page(item, found.entries, opening.version + 1, 1)

    def _newest(self, item: History) -> str:
        request = ledger_pb2.ListEntriesRequest(account_id=item.id, page_size=PAGE)
        found = self._timed(self._stub.ListEntries, request)
        return _wrong_page(item, found.entries, item.entries, -1)

    def _deep_entries(self, item: History) -> str:
        request = ledger_pb2.ListEntriesRequest(
            account_id=item.id, page_size=PAGE, page_token=self._tokens["entries", item.id]
        )
        found = self._timed(self._stub.ListEntries, request)
        return _wrong_page(item, found.entries, item.entries - _skipped(item), -1)


def print_times(reads: Reads, histories: list[History]) -> None:
    """Print medians and 99th percentiles, and judge them."""
    smallest, largest = histories[0].entries, histories[-1].entries
    sizes = [item.entries for item in histories]
    columns = [f"{size:,}" for size in sizes]
    judged = (f"median < {MEDIAN_MS_MAX:g} ms", "growth", f"< {GROWTH_MAX:g}")
    table = new_table("median / p99 in ms", *columns, *judged, right=(*columns, "growth"))
    for name in reads.kinds:
        times = [reads.times[name, size] for size in sizes]
        medians = [median_ms(item) for item in times]
        growth = medians[-1] / medians[0]
        table.add_row(
            name,
            *(
                f"{median:.2f} / {p99_ms(item):.2f}"
                for median, item in zip(medians, times, strict=True)
            ),
            "ok" if max(medians) < MEDIAN_MS_MAX else "OVER",
            f"{growth:.2f}",
            "ok" if growth < GROWTH_MAX else "OVER",
        )
    print(f"\nreads at the gateway, one at a time; growth from {smallest:,} to {largest:,} entries")
    console().print(table)


def _wrong_page(
    item: History, entries: Sequence[ledger_pb2.AccountEntry], first: int, step: int
) -> str:
    """Say what is wrong with a page of 50 entries that begins with the number ``first``."""
    numbers = list(range(first, first + step * PAGE, step))
    if wrong := _differs([entry.sequence for entry in entries], numbers):
        return wrong
    return _differs([entry.settled_balance for entry in entries], [item.after[n] for n in numbers])


def _skipped(item: History) -> int:
    """Return how many entries come before page 10,000, or before the last whole page."""
    return min((DEEP_PAGE - 1) * PAGE, item.entries - PAGE)


def _differs(found: object, expected: object) -> str:
    return "" if found == expected else f"{found} in place of {expected}"


def _us(timestamp: Timestamp) -> int:
    return timestamp.ToMicroseconds()


def _timestamp(microseconds: int) -> Timestamp:
    moment = Timestamp()
    moment.FromMicroseconds(microseconds)
    return moment


def read_histories(cluster: LocalCluster, options: argparse.Namespace) -> list[str]:
    """Do part 1; return what was wrong."""
    sizes = sorted({size for size in SIZES if size < options.entries} | {options.entries})
    histories = asyncio.run(make_histories(cluster, sizes, options.seed, options.fill_seconds))
    with grpc.insecure_channel(
        cluster.gateway_address, options=[("grpc.enable_http_proxy", 0)]
    ) as channel:
        reads = Reads(channel, options.seed)
        reads.prepare(histories)
        reads.measure(histories, options.calls)
    print_times(reads, histories)
    return reads.faults


def main() -> int:
    """Run in a folder that is deleted at the end; return 1 if anything shown was wrong."""
    parser = argparse.ArgumentParser(description="Measure reads of history, and prove reports.")
    parser.add_argument("--entries", type=int, default=SIZES[-1], help="of the longest history")
    parser.add_argument("--calls", type=int, default=200, help="of each read of each history")
    parser.add_argument("--fill-seconds", type=float, default=1_200, help="no longer than this")
    parser.add_argument("--accounts", type=int, default=100_000, help="in the trial balance")
    parser.add_argument("--samples", type=int, default=1_000, help="of the trial balance")
    parser.add_argument("--clients", type=int, default=8, help="that move money meanwhile")
    parser.add_argument("--only", choices=("reads", "reports"), help="do this part alone")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if (
        options.entries < 2 * PAGE
        or options.accounts < 2
        or min(options.calls, options.samples, options.clients) < 1
    ):
        parser.error(f"at least {2 * PAGE} entries, 2 accounts, 1 call, 1 sample and 1 client")
    base_port, gateway_port = free_cluster_ports(NODES)
    config = generate_cluster_config(
        NODES, SHARDS, REPLICAS, cluster_id="history", base_port=base_port
    )
    print(f"load of this machine: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores", flush=True)
    faults: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="ledger-history-") as scratch,
        LocalCluster(config, Path(scratch) / "data", gateway_port) as cluster,
    ):
        cluster.wait_until_serving(60)
        try:
            if options.only != "reports":
                faults += read_histories(cluster, options)
            if options.only != "reads":
                faults += asyncio.run(history_reports.run(cluster, options))
        except (LedgerError, grpc.RpcError) as error:
            faults.append(f"a call failed: {error}")
            faults += [f"{item.name} {item.cause}" for item in cluster.take_exits()]
        with NodeProbe(config) as probe:
            proofs = prove(config, lambda shard_ids: probe.audits(shard_ids, 300.0))
    faults += [problem for proof in proofs for problem in proof.problems()]
    for fault in faults[:FAULTS_SHOWN]:
        print(f"wrong: {fault}")
    entries = sum(proof.latest.entries for proof in proofs if proof.latest)
    print(
        f"\nproven: {entries:,} entries, all replicas equal"
        if not faults
        else f"\n{len(faults)} faults"
    )
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())

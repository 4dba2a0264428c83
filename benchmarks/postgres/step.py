"""A step on PostgreSQL: a new database, a warm-up, and a measurement."""

from dataclasses import dataclass

from benchmarks.bench import Bench
from benchmarks.figures import Figures
from benchmarks.postgres.binaries import find_or_install
from benchmarks.postgres.pgbench import PgbenchResult, pgbench
from benchmarks.postgres.server import PostgresError, Server
from benchmarks.procfs import Snapshot, Usage, tree_usage

PART = "postgres"
FUNDS = 10**9


@dataclass(frozen=True)
class PostgresStep:
    """Transfers between any two accounts."""

    clients: int
    per_call: int
    accounts: int
    seconds: float
    warmup_s: float

    @property
    def title(self) -> str:
        """The name with its part."""
        return f"{PART}: {self._name}"

    @property
    def _name(self) -> str:
        clients = "1 client" if self.clients == 1 else f"{self.clients} clients"
        return f"{clients}, {self.per_call} per transaction"

    def run(self, bench: Bench) -> list[Figures]:
        """Do it."""
        programs = find_or_install()
        bench.clear()
        with Server(programs, bench.scratch) as server:
            server.load_schema(self.accounts, FUNDS)
            bench.versions["postgresql"] = server.version
            if self.warmup_s:
                bench.progress.expect(self.warmup_s, "warm-up")
                self._pgbench(server, bench, self.warmup_s)
            stored = _stored_bytes(server)
            before = _snapshot(server)
            bench.progress.expect(self.seconds, "PostgreSQL")
            result = self._pgbench(server, bench, self.seconds)
            after = _snapshot(server)
            stored = _stored_bytes(server) - stored
            self._check(server)
        done = result.calls * self.per_call
        each = 1 / max(done, 1)
        seconds = result.calls / result.calls_per_s if result.calls else self.seconds
        used = after.since(before)["server"]
        load = Usage(result.cpu_s)
        disk_bytes = after.disk_bytes_since(before)
        busy_s = after.busy_s - before.busy_s - used.cpu_s - load.cpu_s
        return [
            Figures(
                part=PART,
                name=self._name,
                loop="closed",
                in_flight=self.clients,
                accounts=self.accounts,
                per_call=self.per_call,
                seconds=round(seconds, 2),
                done=done,
                per_s=round(result.calls_per_s * self.per_call, 1),
                failed={"failed": result.failed} if result.failed else {},
                latency=result.latencies.summary(),
                histogram=result.latencies.buckets(),
                cpu_us={
                    "server": round(used.cpu_s * each * 1e6, 1),
                    "load": round(load.cpu_s * each * 1e6, 1),
                },
                written_bytes={"server": round(used.written_bytes * each)},
                disk_bytes=None if disk_bytes is None else round(disk_bytes * each),
                stored_bytes=round(stored * each, 1),
                other_cores=round(max(0.0, busy_s) / seconds, 2),
            )
        ]

    def _pgbench(self, server: Server, bench: Bench, seconds: float) -> PgbenchResult:
        return pgbench(
            server,
            clients=self.clients,
            per_call=self.per_call,
            accounts=self.accounts,
            seconds=seconds,
            passed=lambda passed_s: bench.progress.passed(passed_s, ""),
        )

    def _check(self, server: Server) -> None:
        """See that no money has come or gone, and that it is where the entries say."""
        wrong = server.ask(
            "SELECT count(*) FROM accounts LEFT JOIN "
            "(SELECT account_id, sum(amount) AS moved FROM entries GROUP BY 1) AS sums "
            f"ON id = account_id WHERE balance <> {FUNDS} + coalesce(moved, 0)"
        )
        total = server.ask("SELECT coalesce(sum(amount), 0) FROM entries")
        if (wrong, total) != ("0", "0"):
            raise PostgresError(f"{wrong} wrong balances, entries sum to {total}")


def _snapshot(server: Server) -> Snapshot:
    return Snapshot.take({"server": tree_usage(server.pid)}, server.folder)


def _stored_bytes(server: Server) -> int:
    return int(server.ask("SELECT pg_database_size(current_database())"))

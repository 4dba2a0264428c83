"""Runs a plan: faults for some time, then everything is healed and must come right."""

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from ledger_cluster.config import ClusterConfig, generate_cluster_config
from ledger_node import coordinator, node_replicas
from ledger_node import node as node_module
from ledger_node import store as store_module
from ledger_node.books import InvariantError
from ledger_node.raft import FatalRaftError, applying, journal, progress, replica, snapshots
from ledger_node.store import ShardTables, StoreCorruptError
from tests.simulation import across
from tests.simulation.checks import Checks
from tests.simulation.clients import Clients
from tests.simulation.disk import Disk
from tests.simulation.engine import Engine, Violation, require
from tests.simulation.faults import Faults
from tests.simulation.gateway import Gateway
from tests.simulation.history import Models, check_history, check_linearizable
from tests.simulation.host import Host, Outbox
from tests.simulation.network import Network
from tests.simulation.plan import Bounds, Plan, draw_plan, encode_plan

# How long after healing, in longest election timeouts, until all is well.
# After so many times of that, a snapshot is not coming any more.
INSTALLS_MAX = 5
ELECTED_WITHIN = 12
# Below this number of transactions at a time, what is left open takes longer.
TAKEN_UP_FEW = 10
CONVERGED_WITHIN = 200

# How the product says, of itself, that it is broken. Anything else is a bug all the same.
PRODUCT_ALARMS = (FatalRaftError, InvariantError, StoreCorruptError, AssertionError)


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did."""

    plan: Plan
    steps: int
    simulated_s: float
    counts: Counter[str]
    trace_hash: str


class RunFailed(AssertionError):  # noqa: N818  (it is a finding)
    """A run broke a promise; the text says how to run it again."""


def run_plan(
    plan: Plan, log: Callable[[str], None] | None = None, *, strict: bool = True
) -> Report:
    """Run a plan; raise RunFailed where anything of it is wrong.

    Without ``strict`` checks nobody looks into disks during the run, or into logs after it.
    """
    folder = Path("/dev/shm")
    parent = folder if folder.is_dir() else None
    path = Path(tempfile.mkdtemp(prefix="ledger-simulation-", dir=parent))
    cluster = None
    try:
        with bounds_of(plan.bounds):
            cluster = Cluster(plan, path, log, strict=strict)
            try:
                return cluster.run()
            except (Exception, FatalRaftError) as error:
                raise RunFailed(_how_to_repeat(plan, cluster, error)) from error
    finally:
        if cluster is not None:
            cluster.close()
        shutil.rmtree(path, ignore_errors=True)


def _how_to_repeat(plan: Plan, cluster: "Cluster", error: BaseException) -> str:
    kind = "" if isinstance(error, Violation) else f"{type(error).__name__}: "
    own = plan == draw_plan(plan.seed)
    which = f"--seed {plan.seed}" if own else f"--plan '{encode_plan(plan)}'"
    return (
        f"{kind}{error} (at {cluster.engine.now:.4f} s of simulated time). Run it again:\n"
        f"python -m tests.simulation {which}"
    )


@contextlib.contextmanager
def bounds_of(bounds: Bounds) -> Iterator[None]:
    """Put a plan's bounds in the place of the product's."""
    with contextlib.ExitStack() as stack:
        for module, name, value in (
            (replica, "MESSAGE_ENTRIES_MAX", bounds.message_entries),
            (replica, "MESSAGE_BYTES_MAX", bounds.message_bytes),
            (replica, "FLUSH_MESSAGES_MAX", bounds.flush_messages),
            (applying, "APPLY_ENTRIES_MAX", bounds.apply_entries),
            (applying, "GATHER_ENTRIES_MAX", bounds.gather_entries),
            (replica, "HINT_STEPS_MAX", bounds.hint_steps),
            (progress, "WINDOW_BYTES_MAX", bounds.window_bytes),
            (progress, "WINDOW_ENTRIES_MAX", bounds.window_entries),
            (replica, "COMPACT_ENTRIES_MAX", bounds.compact_entries),
            (replica, "PINNED_MAX", bounds.pinned),
            (snapshots, "CHUNK_BYTES", bounds.chunk_bytes),
            (snapshots, "WINDOW_CHUNKS", bounds.window_chunks),
            (snapshots, "RESEND_S", bounds.resend_s),
            (snapshots, "IDLE_S_MAX", bounds.idle_s),
            (journal, "TAIL_ENTRIES_MAX", bounds.tail_entries),
            (coordinator, "VOTE_S_MAX", bounds.vote_s),
            (coordinator, "ASK_AFTER_S", bounds.ask_after_s),
            (coordinator, "RETRY_S_MAX", bounds.retry_s),
            (coordinator, "EARLY_S_MAX", bounds.early_s),
            (coordinator, "EARLY_MAX", bounds.early),
            (coordinator, "GATEWAY_S_MAX", bounds.gateway_s),
            (coordinator, "TAKEN_UP_MAX", bounds.taken_up),
            (store_module, "CHECKPOINT_S", bounds.checkpoint_s),
            (node_module, "BATCH_COMMANDS_MAX", bounds.batch_commands),
            (node_replicas, "UNCOMMITTED_ENTRIES_MAX", bounds.uncommitted_entries),
            (node_module, "MESSAGES_PER_TURN_MAX", bounds.messages_per_turn),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        yield


class Cluster:
    """Everything that takes part in a run, wired together."""

    def __init__(
        self,
        plan: Plan,
        path: Path,
        log: Callable[[str], None] | None = None,
        *,
        strict: bool = True,
    ) -> None:
        self.plan = plan
        self._strict = strict
        self.config: ClusterConfig = generate_cluster_config(
            plan.nodes, plan.shards, plan.replicas, cluster_id="simulation"
        )
        self.engine = engine = Engine(plan.seed)
        engine.log = log
        self.hosts = {
            node.id: Host(
                engine, plan, self.config, node.id, Disk(path / node.id, self.config, node.id)
            )
            for node in self.config.nodes
        }
        self.checks = Checks(engine, self.config, self.hosts, strict=strict)
        self.network = Network(engine, plan, self.hosts)
        gateway_ids = [f"g{number + 1}" for number in range(plan.gateways)]
        gateways = [self._new_gateway(gateway_id) for gateway_id in gateway_ids]
        self.clients = Clients(engine, plan, self.config, gateways)
        self.faults = Faults(engine, plan, self.hosts, self.network, gateway_ids)
        for host in self.hosts.values():
            host.events = self
            host.strict = strict
            host.new_client = self._new_gateway

    def _new_gateway(self, gateway_id: str) -> Gateway:
        return Gateway(self.engine, self.plan, self.config, self.network, self.hosts, gateway_id)

    # What hosts tell.

    def started(self, host: Host) -> None:
        """Pass on."""
        self.network.started(host)

    def crashed(self, host: Host) -> None:
        """Pass on."""
        self.network.crashed(host)
        self.faults.crashed(host)

    def wiped(self, host: Host) -> None:
        """Pass on."""
        self.checks.wiped(host)

    def turned(self, host: Host) -> None:
        """Check what a half of a turn has done."""
        self.checks.turned(host)

    def released(self, host: Host, outbox: Outbox) -> None:
        """Check, add to the trace, and pass on."""
        for peer_id in sorted(outbox):
            data = b"".join(m.SerializeToString() for m in outbox[peer_id])
            self.engine.note(f"{host.id} to {peer_id}", data)
        self.checks.released(host, outbox)
        self.network.send(host, outbox)

    # The run.

    def run(self) -> Report:
        """Run with faults, heal, and demand that all comes right."""
        plan, engine = self.plan, self.engine
        for host in self.hosts.values():
            engine.after(engine.rng.uniform(0, 0.1), host.start)
        engine.after(0.05, self.clients.start)
        engine.run_until(plan.run_s)
        return self.finish()

    def finish(self) -> Report:
        """Heal, and demand that all comes right."""
        plan, engine, history = self.plan, self.engine, self.clients.history
        self._recover()
        self._compare_replicas()
        across.check_reads_after_replies(history)
        self._check_bank()
        if self._strict:
            payloads = {shard_id: facts.payloads for shard_id, facts in self.checks.shards.items()}
            models = check_history(engine, history, payloads)
            across.check_shards_agree(models)
            self._compare_with(models)
        else:
            check_linearizable(engine, history, {})
        return Report(plan, engine.steps, engine.now, engine.counts, engine.trace_hash)

    def _recover(self) -> None:
        engine, unit_s = self.engine, self.plan.timing.election_max_s
        engine.note("heal")
        self.faults.heal()
        self.clients.stopped = True
        elected = engine.run_until(engine.now + ELECTED_WITHIN * unit_s, self._all_serve)
        for _ in range(INSTALLS_MAX):
            # A leader whose followers all need its snapshot serves when one has it: plans have
            # chunks of a few hundred bytes.
            if elected or not self._installing():
                break
            elected = engine.run_until(engine.now + ELECTED_WITHIN * unit_s, self._all_serve)
        require(elected, f"no leader {ELECTED_WITHIN * unit_s:.1f} s after healing")
        # Callers have deadlines, so every call ends; a read may follow a write.
        ended = engine.run_until(
            engine.now + 2 * self.plan.call_s + 1.0, lambda: not self.clients.calls_open
        )
        require(ended, "a call did not end")
        # Nothing outlives healing undecided, or untold, by more than asking and telling takes.
        bounds = self.plan.bounds
        within_s = (
            bounds.vote_s
            + max(bounds.ask_after_s, bounds.gateway_s)
            + 3 * (self.plan.shard_call_s + bounds.retry_s + unit_s)
        )
        if bounds.taken_up < TAKEN_UP_FEW:
            within_s *= 3  # one after the other
        idle_at = engine.now + within_s
        while not self._idle() and engine.now < idle_at:
            engine.run_until(engine.now + unit_s / 4)
        require(self._idle(), f"something is in flight {within_s:.1f} s after healing")
        # Every acknowledged write is repeated, and unknown ones as well: each gets its answer.
        history = self.clients.history
        for request in history.requests:
            if request.acknowledged or (request.result is None and request.maybe_done):
                self.clients.send_again(request, CONVERGED_WITHIN * unit_s)
        converged = engine.run_until(engine.now + CONVERGED_WITHIN * unit_s, self._converged)
        require(converged, "the replicas do not converge")
        idle_at = engine.now + within_s
        while not (self._idle() and self._converged()) and engine.now < idle_at:
            engine.run_until(engine.now + unit_s / 4)
        require(self._idle() and self._converged(), "the cluster does not come to rest")
        # Readers beside the nodes see the last checkpoint: it has everything soon after, though
        # another election may come in between.
        within_s = 3 * (bounds.checkpoint_s + unit_s)
        durable = engine.run_until(
            engine.now + within_s, lambda: self._checkpointed() and self._converged()
        )
        require(durable, "a node at rest does not make its state durable")
        for request in history.requests:
            told = request.result is not None or not request.maybe_done
            require(told, f"a write got no answer after healing: {request.command}")

    def _all_serve(self) -> bool:
        return all(
            any(
                host.node is not None
                and shard.id in host.node._replicas
                and host.group(shard.id).serving
                for host in self.hosts.values()
            )
            for shard in self.config.shards
        )

    def _installing(self) -> bool:
        """Whether a snapshot is on its way to anyone."""
        return any(
            replica.group.installing_bytes
            for host in self.hosts.values()
            if host.node is not None
            for replica in host.node._replicas.values()
        )

    def _idle(self) -> bool:
        """Whether no leader has anything to tell other shards, or waits for them."""
        for shard in self.config.shards:
            for name in shard.node_ids:
                host = self.hosts[name]
                if host.store is None or not host.leads(shard.id):
                    continue
                with host.store.read_newest() as view:
                    if not across.is_idle(view.shard(shard.id)):
                        return False
        return True

    def _checkpointed(self) -> bool:
        """Whether all that was applied is on disk."""
        return all(
            self.hosts[name].group(shard.id).durable_index
            == self.hosts[name].group(shard.id).applied_index
            for shard in self.config.shards
            for name in shard.node_ids
        )

    def _converged(self) -> bool:
        if self.clients.calls_open or not all(host.alive for host in self.hosts.values()):
            return False
        for shard in self.config.shards:
            groups = [self.hosts[name].group(shard.id) for name in shard.node_ids]
            if any(group.unproven for group in groups):
                return False
            places = {(g.applied_index, g.commit_index, g.last_index) for g in groups}
            if len(places) != 1 or len(set(*places)) != 1:
                return False
        return True

    def _compare_replicas(self) -> None:
        for shard in self.config.shards:
            hashes = set()
            for name in shard.node_ids:
                host = self.hosts[name]
                assert host.store is not None
                with host.store.read() as view:
                    meta = view.shard(shard.id).meta()
                hashes.add((meta.applied_index, meta.chain_hash))
                self.checks.audit(host, [shard.id])
            require(len(hashes) == 1, f"the replicas of shard {shard.id} differ at the end")

    def _check_bank(self) -> None:
        """Hold the shards against each other, now that nothing is in flight."""
        bank = across.Bank()
        for shard_id, tables in self._final_tables():
            require(across.is_idle(tables), f"shard {shard_id} has not come to an end")
            bank.add(shard_id, tables)
        bank.check()

    def _compare_with(self, models: Models) -> None:
        """Hold what is stored against the models of the logs."""
        for shard_id, tables in self._final_tables():
            across.check_store(models[shard_id], tables)

    def _final_tables(self) -> Iterator[tuple[int, ShardTables]]:
        """Yield one replica of every shard: all others are the same."""
        for shard in self.config.shards:
            store = self.hosts[shard.node_ids[0]].store
            assert store is not None
            with store.read() as view:
                yield shard.id, view.shard(shard.id)

    def close(self) -> None:
        """Close what a failed run left open."""
        for host in self.hosts.values():
            if host.store is not None:
                with contextlib.suppress(Exception):
                    host.store.close()

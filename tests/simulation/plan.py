"""What a run is made of. Everything random about its shape is drawn here, before it starts.

A plan is a value: two runs of equal plans are equal, event by event. `draw_plan` gives every seed
its own mix of faults and rates (swarm testing): a mix that has everything at once hides bugs that
need calm in one place. The schedule of faults is a plain list, so that it can be shrunk.
"""

import random
from enum import StrEnum

import msgspec


class FaultKind(StrEnum):
    """What may happen to a cluster. `faults` says what each one does.

    Further kinds go here, into `faults`, and with a weight into `_WEIGHTS`.
    """

    CRASH = "crash"
    CRASH_IN_TURN = "crash in a turn"
    CRASH_AFTER_COMMIT = "crash after a commit"
    CRASH_ALL = "crash all"
    FAIL_COMMIT = "fail a commit"
    PARTITION = "partition"
    BLOCK = "block one way"
    RECONNECT = "reconnect"
    SLOW_DISK = "slow disk"
    CLOCK_JUMP = "clock jump"
    CLOCK_RATE = "clock rate"
    WALL_JUMP = "wall clock jump"
    DRAIN = "drain"
    TRANSFER = "transfer leadership"
    CAMPAIGN = "campaign"
    USURP = "usurp"
    WIPE = "wipe a disk"
    INTERRUPT_INSTALL = "interrupt an install"
    FILL = "fill a disk"


# How often a kind is drawn, against the others, where a mix has it.
_WEIGHTS = {
    FaultKind.CRASH: 4,
    FaultKind.CRASH_IN_TURN: 6,
    FaultKind.CRASH_AFTER_COMMIT: 3,
    FaultKind.CRASH_ALL: 1,
    FaultKind.FAIL_COMMIT: 1,
    FaultKind.PARTITION: 3,
    FaultKind.BLOCK: 3,
    FaultKind.RECONNECT: 3,
    FaultKind.SLOW_DISK: 3,
    FaultKind.CLOCK_JUMP: 2,
    FaultKind.CLOCK_RATE: 2,
    FaultKind.WALL_JUMP: 1,
    FaultKind.DRAIN: 1,
    FaultKind.TRANSFER: 2,
    FaultKind.CAMPAIGN: 3,
    FaultKind.USURP: 3,
    FaultKind.WIPE: 2,
    FaultKind.INTERRUPT_INSTALL: 3,
    FaultKind.FILL: 2,
}

# Targets from here on mean "whoever leads shard target - LEADERS_FROM".
LEADERS_FROM = 8
TARGETS = 16


class Hold(msgspec.Struct, frozen=True):
    """What one host (by its place) sends to another waits for a while: for schedules by hand."""

    at_s: float
    source: int
    target: int
    for_s: float


class Fault(msgspec.Struct, frozen=True):
    """One fault: when, what, to whom, and how much of it (0 to 1, scaled by the kind)."""

    at_s: float
    kind: FaultKind
    target: int = 0
    amount: float = 0.5


class NetworkPlan(msgspec.Struct, frozen=True):
    """How messages travel.

    A link that is not ``harsh`` behaves as a TCP connection: in order, and lost only from some
    moment on, with the connection. A harsh one loses, doubles and reorders single messages, and
    may deliver what was sent before the last reconnect, or to the life before.
    """

    harsh: bool = False
    delay_s: float = 0.001
    jitter: float = 0.5
    spike: float = 0.0
    spike_s: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    rpc_loss: float = 0.0


class Bounds(msgspec.Struct, frozen=True):
    """Bounds of the product, made small enough to matter in a short run."""

    message_entries: int = 512
    message_bytes: int = 1 << 20
    flush_messages: int = 2
    apply_entries: int = 64
    gather_entries: int = 16
    hint_steps: int = 1024
    window_bytes: int = 2 << 20
    window_entries: int = 2048
    tail_entries: int = 512
    keep_entries: int = 10_000
    compact_entries: int = 256
    pinned: int = 4
    chunk_bytes: int = 256 << 10
    window_chunks: int = 4
    resend_s: float = 0.5
    idle_s: float = 10.0
    batch_commands: int = 2_000
    uncommitted_entries: int = 64
    messages_per_turn: int = 2_000
    vote_s: float = 4.0
    ask_after_s: float = 2.0
    retry_s: float = 1.0
    early_s: float = 10.0
    early: int = 10_000
    gateway_s: float = 5.0
    taken_up: int = 500
    checkpoint_s: float = 0.15


class Timing(msgspec.Struct, frozen=True):
    """Durations of Raft, in seconds."""

    heartbeat_s: float = 0.15
    election_min_s: float = 0.7
    election_max_s: float = 1.4


class Plan(msgspec.Struct, frozen=True):
    """One run: the cluster, its callers, its network and its faults."""

    seed: int = 0
    nodes: int = 3
    replicas: int = 3
    shards: int = 2
    pre_vote: bool = True
    timing: Timing = Timing()
    bounds: Bounds = Bounds()
    network: NetworkPlan = NetworkPlan()
    turn_s: float = 0.001
    run_s: float = 6.0
    gateways: int = 1
    clients: int = 3
    accounts: int = 3
    think_s: float = 0.05
    call_s: float = 2.0
    attempt_s: float = 1.5
    shard_call_s: float = 2.0
    """How long a call of a coordinator may take."""
    expire_s: float = 1.0
    """Within how long pending transactions expire, those that do."""
    # Weights of what clients do, in the order of `clients.Clients.choices`.
    workload: tuple[int, ...] = (1, 8, 4, 3, 2, 3, 1, 8, 4, 2, 6)
    gateway_dies: float = 0.2
    """How often a gateway dies between the rounds of its blocks."""
    faults: tuple[Fault, ...] = ()
    holds: tuple[Hold, ...] = ()


_TIMINGS = (
    Timing(),
    Timing(0.1, 0.35, 0.6),
    Timing(0.04, 0.15, 0.25),
    Timing(0.04, 0.15, 0.25),
)


def encode_plan(plan: Plan) -> str:
    """Write a plan as JSON."""
    return msgspec.json.encode(plan).decode()


def decode_plan(text: str) -> Plan:
    """Read what `encode_plan` wrote."""
    return msgspec.json.decode(text, type=Plan)


def draw_plan(seed: int, *, length: float = 1.0) -> Plan:
    """Draw the plan of a seed. ``length`` scales its duration: the same mix, for longer."""
    rng = random.Random(f"plan {seed}")
    nodes = rng.choice((3, 3, 5))
    timing = rng.choice(_TIMINGS)
    run_s = rng.uniform(6, 24) * timing.election_max_s * length
    return Plan(
        seed=seed,
        nodes=nodes,
        replicas=3 if nodes == 3 else rng.choice((3, 5, 5)),
        shards=rng.choice((2, 2, 3, 4)),
        pre_vote=rng.random() < 1 / 3,
        timing=timing,
        bounds=_draw_late_bounds(seed, _draw_bounds(rng, timing), timing),
        network=_draw_network(rng, timing),
        turn_s=rng.choice((0.0002, 0.001, 0.004)),
        run_s=run_s,
        gateways=rng.choice((1, 2)),
        clients=rng.choice((2, 3, 4, 6)),
        accounts=rng.choice((1, 2, 3, 4)),
        think_s=timing.heartbeat_s * rng.choice((0.1, 0.5, 1.5)),
        call_s=timing.election_max_s * rng.choice((0.5, 2.0, 4.0)),
        attempt_s=timing.election_max_s * rng.choice((0.1, 0.3, 1.0)),
        shard_call_s=rng.choice((2.0, 2.0, timing.election_max_s)),
        expire_s=timing.election_max_s * rng.choice((0.5, 2.0, 6.0)),
        workload=_draw_workload(rng),
        gateway_dies=rng.choice((0.0, 0.1, 0.5)),
        faults=_draw_faults(rng, run_s, timing),
    )


def _draw_bounds(rng: random.Random, timing: Timing) -> Bounds:
    if rng.random() < 0.3:
        return Bounds()
    return Bounds(
        message_entries=rng.choice((1, 2, 5, 512)),
        message_bytes=rng.choice((12, 200, 1 << 20)),
        flush_messages=rng.choice((1, 2, 4)),
        apply_entries=rng.choice((1, 3, 64)),
        hint_steps=rng.choice((1, 3, 1024)),
        window_bytes=rng.choice((12, 400, 2 << 20)),
        window_entries=rng.choice((1, 4, 2048)),
        tail_entries=rng.choice((0, 1, 4, 512)),
        keep_entries=rng.choice((1, 3, 10, 40, 10_000)),
        compact_entries=rng.choice((1, 5, 256)),
        pinned=rng.choice((1, 4)),
        chunk_bytes=rng.choice((400, 2_000, 8_000, 256 << 10)),
        window_chunks=rng.choice((1, 2, 4)),
        resend_s=timing.heartbeat_s * rng.choice((2, 4)),
        idle_s=timing.election_max_s * rng.choice((1, 5)),
        batch_commands=rng.choice((1, 2, 2_000)),
        uncommitted_entries=rng.choice((1, 3, 64)),
        messages_per_turn=rng.choice((20, 100, 2_000)),
        vote_s=rng.choice((4.0, timing.election_max_s * 2, timing.election_max_s * 0.3)),
        ask_after_s=rng.choice((2.0, timing.election_max_s, timing.election_max_s * 0.1)),
        retry_s=rng.choice((1.0, 0.1)),
        early_s=rng.choice((10.0, 0.5)),
        early=rng.choice((10_000, 1)),
        gateway_s=rng.choice((5.0, timing.election_max_s, timing.election_max_s * 0.2, 0.01)),
        taken_up=rng.choice((500, 2)),
    )


def _draw_late_bounds(seed: int, bounds: Bounds, timing: Timing) -> Bounds:
    """Draw when the state follows the log: in memory, and on disk."""
    rng = random.Random(f"checkpoints {seed}")
    interval_s = rng.choice((0.0, 0.02, 0.15, 0.15, timing.election_max_s * 2))
    gather_entries = rng.choice((1, 3, 16, 16))
    return msgspec.structs.replace(bounds, checkpoint_s=interval_s, gather_entries=gather_entries)


def _draw_network(rng: random.Random, timing: Timing) -> NetworkPlan:
    harsh = rng.random() < 0.5
    return NetworkPlan(
        harsh=harsh,
        delay_s=timing.heartbeat_s * rng.choice((0.01, 0.05, 0.2)),
        jitter=rng.choice((0.1, 0.5, 2.0)),
        spike=rng.choice((0.0, 0.005, 0.05)),
        spike_s=timing.election_max_s * rng.choice((0.3, 1.0, 4.0)),
        loss=rng.choice((0.0, 0.01, 0.1, 0.3)) if harsh else 0.0,
        duplicate=rng.choice((0.0, 0.05, 0.3)) if harsh else 0.0,
        rpc_loss=rng.choice((0.0, 0.02, 0.15)),
    )


def _draw_workload(rng: random.Random) -> tuple[int, ...]:
    usual = Plan().workload
    if rng.random() < 0.3:
        # Without transactions between accounts: those histories can be searched without a log.
        usual = (*usual[:7], 0, 0, 0, 0)
    return tuple(
        weight * rng.choice((0, 1, 1, 2, 6)) or int(i == 1) for i, weight in enumerate(usual)
    )


def _draw_faults(rng: random.Random, run_s: float, timing: Timing) -> tuple[Fault, ...]:
    kinds = [kind for kind in FaultKind if rng.random() < 0.5]
    mean_s = timing.election_max_s * rng.choice((0.3, 0.6, 1.2, 3.0))
    if not kinds or rng.random() < 0.03:
        return ()
    weights = [_WEIGHTS[kind] for kind in kinds]
    faults: list[Fault] = []
    at_s = 0.0
    while (at_s := at_s + rng.expovariate(1 / mean_s)) < run_s:
        (kind,) = rng.choices(kinds, weights)
        faults.append(Fault(round(at_s, 4), kind, rng.randrange(TARGETS), round(rng.random(), 4)))
        if rng.random() < 0.15:
            # Some faults hit right after another, in the middle of its consequences.
            at_s += rng.uniform(0, 0.1) * timing.election_min_s
    return tuple(faults)

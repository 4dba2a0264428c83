"""All parts of the suite. A new one is a function that returns steps, and a line in `PARTS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.growth_step import GrowthStep
from benchmarks.kill_step import KillStep
from benchmarks.postgres.step import PostgresStep
from benchmarks.scenario import Scenario
from benchmarks.stage import Size

if TYPE_CHECKING:
    from benchmarks.bench import Step
    from benchmarks.options import Options


BULK_ACCOUNTS = 10_000
BULK_S_MIN, BULK_RANDOM_S_MIN = 4.0, 8.0


@dataclass(frozen=True)
class Part:
    """A name for ``--only``, and what it does."""

    name: str
    what: str
    steps: Callable[[Options], Sequence[Step]]


def _single(options: Options) -> Sequence[Step]:
    return [
        _scenario(
            options,
            "single",
            f"{what}, {in_flight} at a time",
            operation,
            in_flight,
            open_share=share,
        )
        for in_flight, share in ((1, None), (64, 0.5))
        for what, operation in (
            ("one account", "grpc/one_account"),
            ("two accounts of a shard", "grpc/one_shard"),
            ("two shards", "grpc/two_shards"),
        )
    ]


def _bulk(options: Options) -> Sequence[Step]:
    # A call takes long: a short time would have too few of them.
    seconds = max(options.seconds, BULK_S_MIN)
    steps: list[Step] = [
        _bulk_scenario(
            options,
            name,
            operation,
            per_call,
            connections,
            in_flight=in_flight,
            open_share=share,
            seconds=seconds if "random" not in operation else max(seconds, BULK_RANDOM_S_MIN),
        )
        for name, operation, per_call, connections, in_flight, share in (
            ("1 conn.", "bulk/one_shard", 8_192, 1, 1, None),
            ("8 conn.", "bulk/one_shard", 8_192, 8, 8, 0.5),
            ("8 conn., each call one shard", "bulk/same_shard", 8_192, 8, 8, None),
            ("8 conn.", "bulk/one_shard", 1_000, 8, 8, None),
            ("8 conn.", "bulk/one_shard", 100, 8, 8, 0.5),
            ("8 conn., each call one shard", "bulk/same_shard", 100, 8, 8, None),
            ("stream, 8 in flight", "stream/one_shard", 8_192, 1, 8, 0.5),
            ("stream, 8 in flight", "stream/one_shard", 100, 1, 8, None),
            ("1 conn., any two accounts", "bulk/random_accounts", 8_192, 1, 1, None),
            ("8 conn., any two accounts", "bulk/random_accounts", 8_192, 8, 8, None),
            ("8 conn., any two accounts", "bulk/random_accounts", 1_000, 8, 8, 0.5),
        )
    ]
    many = [count for count in options.accounts if count >= 10**6]
    steps += [
        _bulk_scenario(
            options,
            f"8 conn., sustained, {accounts:,} accounts",
            "bulk/one_shard",
            8_192,
            8,
            size=Size(options.base_shards, accounts),
            seconds=options.sustained_s,
        )
        for accounts in (BULK_ACCOUNTS, *many)
    ]
    return steps


def _batch(options: Options) -> Sequence[Step]:
    return [
        _bulk_scenario(options, "8 conn.", "bulk/one_shard", per_call, 8, part="batch")
        for per_call in (1, 10, 100, 1_000, 8_192)
    ]


def _failover(options: Options) -> Sequence[Step]:
    size = Size(options.base_shards, options.base_accounts)
    return [KillStep(size, options.failover_s, options.warmup_s)]


def _growth(options: Options) -> Sequence[Step]:
    size = Size(options.base_shards, options.base_accounts)
    grow = (options.transfers, options.store_gb)
    seconds = max(options.seconds, BULK_S_MIN)
    return [GrowthStep(size, seconds, options.warmup_s, *grow)]


def _sdk(options: Options) -> Sequence[Step]:
    return [
        _scenario(
            options,
            "sdk",
            f"{what}, {in_flight} at a time",
            operation,
            in_flight,
            open_share=share,
        )
        for in_flight, share in ((32, None), (256, 0.5))
        for what, operation in (
            ("two accounts of the first shard", "sdk/first_shard"),
            ("two accounts of a shard", "sdk/one_shard"),
            ("one account", "sdk/one_account"),
            ("any two accounts", "sdk/random_accounts"),
        )
    ]


def _hot(options: Options) -> Sequence[Step]:
    return [_scenario(options, "hot", "one account in all, 256 at a time", "sdk/hot_account", 256)]


def _reads(options: Options) -> Sequence[Step]:
    return [
        _scenario(options, "reads", "GetBalance, 256 at a time", "sdk/get_balance", 256),
        _scenario(options, "reads", "GetAccount, 256 at a time", "sdk/get_account", 256),
        _scenario(
            options, "reads", "GetAccount, stale, 256 at a time", "sdk/get_account_stale", 256
        ),
        _bulk_scenario(
            options,
            "many balances",
            "sdk_many/get_balances",
            1_000,
            1,
            in_flight=4,
            part="reads",
            size=Size(options.base_shards, options.base_accounts),
        ),
    ]


def _shards(options: Options) -> Sequence[Step]:
    return [
        _scenario(
            options,
            "shards",
            f"{what}, {shards} shards",
            operation,
            256,
            size=Size(shards, options.base_accounts),
        )
        for shards in options.shards
        for what, operation in (
            ("two accounts of a shard", "sdk/one_shard"),
            ("any two accounts", "sdk/random_accounts"),
        )
    ]


def _accounts(options: Options) -> Sequence[Step]:
    return [
        _scenario(
            options,
            "accounts",
            f"two accounts of a shard, {accounts:,} accounts",
            "sdk/one_shard",
            256,
            size=Size(options.base_shards, accounts),
        )
        for accounts in options.accounts
    ]


def _postgres(options: Options) -> Sequence[Step]:
    return [
        PostgresStep(clients, per_call, options.base_accounts, options.seconds, options.warmup_s)
        for clients, per_call in ((1, 1), (8, 1), (32, 1), (1, 100), (8, 100))
    ]


def _scenario(
    options: Options,
    part: str,
    name: str,
    operation: str,
    in_flight: int,
    *,
    open_share: float | None = 0.5,
    size: Size | None = None,
) -> Scenario:
    return Scenario(
        part,
        name,
        operation,
        size or Size(options.base_shards, options.base_accounts),
        in_flight,
        options.seconds,
        options.warmup_s,
        open_share,
    )


def _bulk_scenario(
    options: Options,
    name: str,
    operation: str,
    per_call: int,
    connections: int,
    *,
    in_flight: int = 8,
    open_share: float | None = None,
    part: str = "bulk",
    size: Size | None = None,
    seconds: float | None = None,
) -> Scenario:
    return Scenario(
        part,
        f"{per_call:,} per call, {name}",
        operation,
        size or Size(options.base_shards, BULK_ACCOUNTS),
        in_flight,
        seconds or options.seconds,
        options.warmup_s,
        open_share,
        per_call,
        connections,
    )


PARTS: tuple[Part, ...] = (
    Part("single", "one gRPC call for each transaction, 1 and 64 at a time", _single),
    Part("sdk", "calls of the asyncio client, 32 and 256 at a time", _sdk),
    Part("bulk", "CreateTransactions and StreamTransactions with columns", _bulk),
    Part("batch", "how the rate moves with the number of transfers in a call", _batch),
    Part("hot", "transfers that all have one account", _hot),
    Part("reads", "GetBalance and GetAccount, 256 at a time, and many in a call", _reads),
    Part("shards", "how rate and latency move with the number of shards", _shards),
    Part("accounts", "how they move with the number of accounts", _accounts),
    Part("failover", "what the kill of a leader costs while bulk calls run", _failover),
    Part("growth", "how the rate moves as the stores grow", _growth),
    Part("postgres", "the same transfers on PostgreSQL, for comparison", _postgres),
)

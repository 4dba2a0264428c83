"""All parts of the suite. A new one is a function that returns steps, and a line in `PARTS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.postgres.step import PostgresStep
from benchmarks.scenario import Scenario
from benchmarks.stage import Size

if TYPE_CHECKING:
    from benchmarks.bench import Step
    from benchmarks.options import Options


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


def _sdk(options: Options) -> Sequence[Step]:
    return [
        _scenario(options, "sdk", f"{what}, {in_flight} at a time", operation, in_flight)
        for in_flight in (32, 256)
        for what, operation in (
            ("two accounts of a shard", "sdk/one_shard"),
            ("any two accounts", "sdk/random_accounts"),
        )
    ]


def _hot(options: Options) -> Sequence[Step]:
    return [_scenario(options, "hot", "one account in all, 256 at a time", "sdk/hot_account", 256)]


def _reads(options: Options) -> Sequence[Step]:
    return [
        _scenario(options, "reads", "GetAccount, 256 at a time", "sdk/get_account", 256),
        _scenario(
            options, "reads", "GetAccount, stale, 256 at a time", "sdk/get_account_stale", 256
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


PARTS: tuple[Part, ...] = (
    Part("single", "one gRPC call for each transaction, 1 and 64 at a time", _single),
    Part("sdk", "calls of the asyncio client, 32 and 256 at a time", _sdk),
    Part("hot", "transfers that all have one account", _hot),
    Part("reads", "GetAccount, linearizable and stale, 256 at a time", _reads),
    Part("shards", "how rate and latency move with the number of shards", _shards),
    Part("accounts", "how they move with the number of accounts", _accounts),
    Part("postgres", "the same transfers on PostgreSQL, for comparison", _postgres),
)

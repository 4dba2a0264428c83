"""Opens accounts and gives them money, by the fastest way there is: straight to the leaders."""

import asyncio
import time
from array import array
from collections.abc import Callable, Sequence

from grpc import RpcError, aio

from benchmarks.book import AccountBook
from ledger.internal.v1 import shard_pb2, shard_pb2_grpc
from ledger_cli.local_cluster import LocalCluster
from ledger_client import AsyncLedgerClient
from ledger_cluster.channels import channel_options
from ledger_cluster.shard_map import ShardMap
from ledger_core.commands import Command, CreateAccount, CreateTransaction, encode_command
from ledger_core.ids import derive_account_id, format_account_id

LEDGER = "main"
FUNDS = 10**9
BATCH = 250
BATCHES_IN_FLIGHT = 6
PATIENCE_S = 60.0
AGAIN_S = 0.2

Told = Callable[[int], None]


class FillError(RuntimeError):
    """The accounts could not be opened; the text says why."""


def plan(shard_map: ShardMap, count: int) -> AccountBook:
    """Return the accounts that `fill` opens."""
    by_shard = _numbers(shard_map, count)
    return AccountBook(
        {
            shard_id: array("Q", map(_account_id, by_shard[shard_id]))
            for shard_id in sorted(by_shard)
        }
    )


async def fill(cluster: LocalCluster, count: int, told: Told) -> AccountBook:
    """Open so many accounts, with `FUNDS` in each; tell how many there are by now."""
    shard_map = ShardMap(cluster.config)
    opened = 0
    slots = asyncio.Semaphore(BATCHES_IN_FLIGHT)
    leaders = Leaders(cluster)

    async def send(shard_id: int, numbers: Sequence[int]) -> None:
        nonlocal opened
        async with slots:
            await leaders.execute(shard_id, _opening(numbers))
        opened += len(numbers)
        told(opened)

    async with leaders, asyncio.TaskGroup() as tasks:
        for shard_id, numbers in _numbers(shard_map, count).items():
            for start in range(0, len(numbers), BATCH):
                tasks.create_task(send(shard_id, numbers[start : start + BATCH]))
    book = plan(shard_map, count)
    await _check(cluster.gateway_address, book)
    return book


class Leaders:
    """Sends commands to whoever leads their shard; an async context manager."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._channels = {
            node.id: aio.insecure_channel(node.address, options=channel_options())
            for node in cluster.config.nodes
        }
        self._leaders: dict[int, str] = {}

    async def __aenter__(self) -> "Leaders":
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for channel in self._channels.values():
            await channel.close()

    async def execute(self, shard_id: int, commands: Sequence[Command]) -> None:
        """Have commands carried out. They carry request ids: sending them again does no harm."""
        request = shard_pb2.ExecuteRequest(
            shard_id=shard_id, commands=[encode_command(command) for command in commands]
        )
        deadline = time.monotonic() + PATIENCE_S
        while True:
            problem = await self._try(shard_id, request)
            if not problem:
                return
            if time.monotonic() > deadline:
                raise FillError(f"no accounts on shard {shard_id}: {problem}")
            self._leaders.pop(shard_id, None)
            await asyncio.sleep(AGAIN_S)

    async def _try(self, shard_id: int, request: shard_pb2.ExecuteRequest) -> str:
        leader = self._leaders.get(shard_id) or self._cluster.leader_of(shard_id)
        if leader is None:
            return "it has no leader"
        self._leaders[shard_id] = leader
        stub: shard_pb2_grpc.ShardServiceAsyncStub = shard_pb2_grpc.ShardServiceStub(
            self._channels[leader]
        )
        try:
            reply = await stub.Execute(request, timeout=PATIENCE_S)
        except RpcError as error:
            return str(error.code().name)
        if reply.outcome == shard_pb2.OUTCOME_OK:
            return ""
        return f"{shard_pb2.Outcome.Name(reply.outcome)} {reply.message}"


async def _check(gateway: str, book: AccountBook) -> None:
    """See that the first account of every shard is there with its money."""
    async with AsyncLedgerClient(gateway, timeout_s=PATIENCE_S) as client:
        for ids in book.by_shard.values():
            account = await client.get_account(format_account_id(ids[0]))
            if account.available_balance != FUNDS:
                raise FillError(f"account {account.id} has {account.available_balance}")


def _numbers(shard_map: ShardMap, count: int) -> dict[int, list[int]]:
    """Return the numbers of the accounts by the shard that they are on."""
    by_shard: dict[int, list[int]] = {}
    for number in range(count):
        shard_id = shard_map.shard_of(_account_id(number)).id
        by_shard.setdefault(shard_id, []).append(number)
    return by_shard


def _opening(numbers: Sequence[int]) -> list[Command]:
    commands: list[Command] = []
    for number in numbers:
        account_id, request_id = _account_id(number), _request_id(number)
        commands.append(CreateAccount(account_id, LEDGER, request_id))
        commands.append(CreateTransaction(account_id, FUNDS, "", True, request_id))
    return commands


def _account_id(number: int) -> int:
    return derive_account_id(LEDGER, _request_id(number))


def _request_id(number: int) -> str:
    return f"bench-{number}"

"""Health checking, reflection, and what the server does with its port."""

import asyncio
from collections.abc import Callable

import grpc
import pytest
from fake_shards import FakeShards, until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from ledger_gateway import health as gateway_health
from ledger_gateway.server import GatewayServer, ListenError, is_loopback, join_address

SERVICE = "ledger.v1.LedgerService"


async def listed(channel: grpc.aio.Channel) -> dict[str, bool]:
    stub = health_pb2_grpc.HealthStub(channel)
    response = await stub.List(health_pb2.HealthListRequest())
    return {
        name: item.status == health_pb2.HealthCheckResponse.SERVING
        for name, item in response.statuses.items()
    }


async def wait_for(
    channel: grpc.aio.Channel, condition: Callable[[dict[str, bool]], bool]
) -> dict[str, bool]:
    """Wait for the condition, and hold that Check says the same as List."""
    async with asyncio.timeout(5):
        while not condition(found := await listed(channel)):  # noqa: ASYNC110 - over the network
            await asyncio.sleep(0.005)
    stub = health_pb2_grpc.HealthStub(channel)
    for name, serves in found.items():
        checked = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert (checked.status == health_pb2.HealthCheckResponse.SERVING) is serves
    return found


@pytest.fixture(autouse=True)
def _fast_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_health, "_POLL_INTERVAL_S", 0.01)
    monkeypatch.setattr(gateway_health, "_POLL_INTERVAL_STARTING_S", 0.01)


async def test_health_follows_the_shards(channel: grpc.aio.Channel, shards: FakeShards) -> None:
    everything = {"": True, SERVICE: True, "shard-0": True, "shard-1": True}
    assert await wait_for(channel, lambda found: found[""]) == everything

    shards.serving = {0: True, 1: False}
    found = await wait_for(channel, lambda found: not found[""])
    assert found == {"": False, SERVICE: True, "shard-0": True, "shard-1": False}

    shards.serving = {0: False, 1: False}
    found = await wait_for(channel, lambda found: not found[SERVICE])
    assert not any(found.values())

    shards.serving = {0: True, 1: True}
    assert await wait_for(channel, lambda found: found[""]) == everything

    shards.serving = RuntimeError("the shards are broken")
    found = await wait_for(channel, lambda found: not found[""])
    assert not any(found.values())
    assert set(found) == set(everything)


async def test_nothing_serves_before_the_shards_say_so(shards: FakeShards) -> None:
    shards.serving = {}
    server = GatewayServer(shards)
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        assert await listed(channel) == {"": False, SERVICE: False}
    await server.stop(0)


async def test_an_unknown_name_is_not_found(channel: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="shard-99"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watchers_see_the_shutdown(
    channel: grpc.aio.Channel, gateway: GatewayServer, shards: FakeShards
) -> None:
    await wait_for(channel, lambda found: found[""])
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    stopping = asyncio.create_task(gateway.stop(0.2))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    await stopping


async def test_reflection_names_and_describes_the_service(channel: grpc.aio.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)

    async def ask(request: reflection_pb2.ServerReflectionRequest) -> object:
        async for response in stub.ServerReflectionInfo(iter([request])):
            return response
        return None

    services = await ask(reflection_pb2.ServerReflectionRequest(list_services=""))
    assert {item.name for item in services.list_services_response.service} == {  # type: ignore[attr-defined]
        SERVICE,
        "ledger.v1.ReportService",
        "ledger.v1.JournalService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    found = await ask(reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE))
    assert found.file_descriptor_response.file_descriptor_proto  # type: ignore[attr-defined]


async def test_a_port_in_use_is_refused(gateway: GatewayServer, shards: FakeShards) -> None:
    second = GatewayServer(shards, port=gateway.port)
    with pytest.raises(ListenError, match=f"127.0.0.1:{gateway.port}: Address already in use"):
        await second.start()


async def test_a_host_that_is_not_here_is_refused(shards: FakeShards) -> None:
    with pytest.raises(ListenError, match=r"cannot listen on 192\.0\.2\.1:"):
        await GatewayServer(shards, host="192.0.2.1").start()
    with pytest.raises(ListenError, match=r"cannot listen on no\.such\.invalid: "):
        await GatewayServer(shards, host="no.such.invalid").start()


async def test_calls_may_end_while_the_server_stops(
    channel: grpc.aio.Channel, gateway: GatewayServer, shards: FakeShards
) -> None:
    shards.hold = asyncio.Event()
    call = asyncio.ensure_future(
        channel.unary_unary(f"/{SERVICE}/GetAccount")(b"\x0a\x100123456789abcdef")
    )
    await until(lambda: bool(shards.calls))
    stopping = asyncio.create_task(gateway.stop(5))
    await asyncio.sleep(0.05)
    assert not stopping.done()
    shards.hold.set()
    assert b"0123456789abcdef" in await call
    await stopping


def test_addresses() -> None:
    assert join_address("127.0.0.1", 80) == "127.0.0.1:80"
    assert join_address("::1", 80) == "[::1]:80"
    assert [is_loopback(host) for host in ("localhost", "127.0.0.9", "::1")] == [True] * 3
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "db")] == [False] * 4

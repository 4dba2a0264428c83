from collections.abc import AsyncIterator

import grpc
import pytest
from fake_shards import FakeShards

from ledger.v1 import ledger_pb2_grpc
from ledger_client.testing import ledger as ledger  # noqa: PLC0414 - the fixture
from ledger_gateway.server import GatewayServer


@pytest.fixture
def shards() -> FakeShards:
    return FakeShards()


@pytest.fixture
async def gateway(shards: FakeShards) -> AsyncIterator[GatewayServer]:
    server = GatewayServer(shards, calls_max=3)
    await server.start()
    yield server
    await server.stop(0)


@pytest.fixture
async def channel(gateway: GatewayServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> ledger_pb2_grpc.LedgerServiceStub:
    return ledger_pb2_grpc.LedgerServiceStub(channel)

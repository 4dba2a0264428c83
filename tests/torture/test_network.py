"""The proxies: what each kind of cut does to a connection."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from ledger_cluster.config import split_address
from tests.torture.network import Cut, Network

PAIR = ("a", "b")
SOON_S = 0.15

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def echo() -> AsyncIterator[tuple[Network, Streams]]:
    """A connection through a proxy to a server that sends everything back."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(100):
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    with Network({PAIR: server.sockets[0].getsockname()}) as network:
        streams = await asyncio.open_connection(*split_address(network.address(PAIR)))
        try:
            yield network, streams
        finally:
            streams[1].close()
            server.close()


async def say(streams: Streams, text: bytes) -> bytes | None:
    """Send, and return what comes back soon; None if nothing does."""
    streams[1].write(text)
    with suppress(TimeoutError):
        return await asyncio.wait_for(streams[0].read(100), SOON_S)
    return None


async def test_all_passes_and_delays() -> None:
    async with echo() as (network, streams):
        assert await say(streams, b"one") == b"one"
        network.delay([PAIR], 0.1)
        assert await say(streams, b"two") is None
        assert await streams[0].read(100) == b"two"
        network.heal([PAIR])
        assert await say(streams, b"three") == b"three"


@pytest.mark.parametrize("there", [True, False])
async def test_held_bytes_come_later(there: bool) -> None:
    async with echo() as (network, streams):
        network.cut([PAIR], Cut.HOLD, there=there, back=not there)
        assert await say(streams, b"one") is None
        network.heal([PAIR])
        assert await streams[0].read(100) == b"one"


async def test_swallowed_bytes_are_lost_and_the_connection_with_them() -> None:
    async with echo() as (network, streams):
        network.cut([PAIR], Cut.SWALLOW, there=False)
        assert await say(streams, b"one") is None
        network.heal([PAIR])
        with suppress(ConnectionResetError):
            assert await streams[0].read(100) == b""
        again = await asyncio.open_connection(*split_address(network.address(PAIR)))
        assert await say(again, b"two") == b"two"
        again[1].close()


async def test_reset() -> None:
    async with echo() as (network, streams):
        network.cut([PAIR], Cut.RESET)
        with suppress(ConnectionResetError):
            assert await streams[0].read(100) == b""
        network.heal([PAIR])
        again = await asyncio.open_connection(*split_address(network.address(PAIR)))
        assert await say(again, b"two") == b"two"
        again[1].close()

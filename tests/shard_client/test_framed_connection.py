"""Frames over TCP: they arrive whole and in order, or the connection ends and says why."""

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from ledger_cluster import framed_connection
from ledger_cluster.framed_connection import SILENT_BEATS_MAX, FramedConnection


@dataclass
class End:
    """Who uses a connection, and what it was told."""

    frames: list[bytes] = field(default_factory=list)
    writable_calls: int = 0
    stays_half_open: bool = False
    other_said_all: bool = False
    reason: str = ""

    def received(self, frame: bytes) -> None:
        self.frames.append(frame)
        if frame == b"garbage":
            raise DecodeError("no message")

    def writable(self) -> None:
        self.writable_calls += 1

    def said_all(self) -> bool:
        self.other_said_all = True
        return self.stays_half_open

    def ended(self, reason: str) -> None:
        assert not self.reason
        self.reason = reason


class Transport:
    """A transport from which tests feed what is read; ends when told."""

    def __init__(self, connection: FramedConnection) -> None:
        self.connection = connection
        self.closing = False

    def set_write_buffer_limits(self, high: int) -> None:
        assert high == 0

    def get_extra_info(self, _name: str) -> None:
        return None

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True
        self.connection.connection_lost(None)


def framed(*frames: bytes) -> bytes:
    return b"".join(struct.pack("!I", len(frame)) + frame for frame in frames)


def fed(pieces: list[bytes], frame_bytes_max: int = 1 << 20) -> End:
    """Return what comes of pieces as they are read."""
    end = End()
    connection = FramedConnection(end, frame_bytes_max)
    transport: Any = Transport(connection)
    connection.connection_made(transport)
    for piece in pieces:
        if not transport.closing:
            connection.data_received(piece)
    return end


FRAMES = [b"one", b"", b"x" * 300, b"two"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
def test_frames_come_whole_however_they_are_cut(size: int) -> None:
    data = framed(*FRAMES)
    # Frames of no bytes only show that the other side lives.
    wanted = [frame for frame in FRAMES if frame]
    assert fed([data[at : at + size] for at in range(0, len(data), size)]).frames == wanted
    for cut in range(len(data) + 1):
        assert fed([data[:cut], data[cut:]]).frames == wanted


@given(
    frames=st.lists(st.binary(min_size=1, max_size=50), max_size=8),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_frames_come_whole_in_any_pieces(frames: list[bytes], cuts: list[int]) -> None:
    data = framed(*frames)
    ends = sorted({*(min(cut, len(data)) for cut in cuts), len(data)})
    pieces = [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    assert fed(pieces).frames == frames


def test_a_frame_over_the_limit_ends_the_connection_before_it_is_read() -> None:
    assert fed([framed(b"1234")], 4).frames == [b"1234"]
    end = fed([framed(b"ok"), framed(b"12345")[:4], b"12345"], 4)
    assert end.frames == [b"ok"]
    assert end.reason == "a frame of 5 bytes came; at most 4 are taken"
    # What a gRPC client says first.
    assert "at most 1024" in fed([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], 1024).reason


def test_a_frame_that_cannot_be_read_ends_the_connection_and_those_behind_it_are_dropped() -> None:
    end = fed([framed(b"ok", b"garbage", b"more")])
    assert end.frames == [b"ok", b"garbage"]
    assert end.reason == "a frame came that cannot be read: no message"


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[FramedConnection, End, FramedConnection, End]]:
    """The two ends of a real connection."""
    near, far = End(), End()
    one, other = FramedConnection(near, 64 << 20), FramedConnection(far, 64 << 20)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: other, "127.0.0.1", 0)
    await loop.create_connection(lambda: one, *server.sockets[0].getsockname())
    await until(lambda: other.other != "?")
    try:
        yield one, near, other, far
    finally:
        server.close()
        one.abort("test ends")
        other.abort("test ends")


async def until(happened: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not happened():  # noqa: ASYNC110  (many small steps, no event for all)
            await asyncio.sleep(0.001)


async def test_what_is_sent_leaves_at_once_and_large_frames_come_whole() -> None:
    async with pair() as (one, _near, _other, far):
        one.send(b"small")
        assert (one.unsent_bytes, one.full) == (0, False)
        large = bytes(range(256)) * (20 << 12)
        one.send(large)
        await until(lambda: len(far.frames) == 2)
        assert far.frames == [b"small", large]


async def test_who_does_not_read_makes_the_other_side_full_until_it_reads() -> None:
    async with pair() as (one, near, other, far):
        other.pause_reading()
        sent = 0
        while not one.full:
            one.send(bytes(1 << 20))
            sent += 1
        assert one.unsent_bytes > 0
        await asyncio.sleep(0.01)
        assert near.writable_calls == 0
        other.resume_reading()
        await until(lambda: near.writable_calls == 1)
        assert not one.full
        await until(lambda: len(far.frames) == sent)


async def test_a_half_closed_connection_still_carries_what_is_due() -> None:
    async with pair() as (one, near, other, far):
        far.stays_half_open = True
        one.send(b"last")
        one.finish()
        one.send(b"never sent")
        await until(lambda: far.other_said_all)
        assert far.frames == [b"last"]
        other.send(b"reply")
        other.close("all is said")
        await until(lambda: near.reason and far.reason)
        assert near.frames == [b"reply"]


async def test_what_was_sent_leaves_before_a_connection_is_closed() -> None:
    async with pair() as (one, near, _other, far):
        one.send(bytes(8 << 20))
        one.close("done")
        one.send(b"never sent")
        assert one.full
        await until(lambda: near.reason and far.reason)
        assert [len(frame) for frame in far.frames] == [8 << 20]


async def test_silence_ends_a_connection_and_a_side_that_lives_is_never_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(framed_connection, "BEAT_S", 0.01)
    async with pair() as (one, near, other, far):
        one.keep_alive()
        other.keep_alive()
        await asyncio.sleep(0.01 * SILENT_BEATS_MAX * 3)
        assert not near.reason
        assert not near.frames
        # Nothing of the other side comes any more, without a word: a network that was cut.
        monkeypatch.setattr(other, "send", lambda _: None)
        await until(lambda: near.reason)
        assert near.reason == f"nothing came for {SILENT_BEATS_MAX * 0.01:g} s"
        await until(lambda: far.reason)


async def test_a_side_that_was_held_up_itself_blames_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with pair() as (one, near, other, _far):
        monkeypatch.setattr(framed_connection, "BEAT_S", 0.01)
        one.keep_alive()
        other.keep_alive()
        for _ in range(2):
            time.sleep(0.01 * SILENT_BEATS_MAX * 2)  # noqa: ASYNC251  (it is held up)
            await asyncio.sleep(0.02)
        assert not near.reason


async def test_a_side_that_takes_nothing_is_given_up_also_while_it_is_not_read_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with pair() as (one, near, other, _far):
        other.pause_reading()
        one.pause_reading()
        while not one.full:
            one.send(bytes(1 << 20))
        await asyncio.sleep(0.05)
        monkeypatch.setattr(framed_connection, "BEAT_S", 0.01)
        one.keep_alive()
        await until(lambda: near.reason)
        assert near.reason.startswith("nothing came for")


async def test_a_connection_that_is_ended_before_it_is_made_ends_at_once() -> None:
    end = End()
    connection = FramedConnection(end)
    connection.abort("not wanted")
    transport: Any = Transport(connection)
    connection.connection_made(transport)
    assert end.reason == "not wanted"

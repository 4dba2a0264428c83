"""A TCP connection that carries frames: 4 bytes of length, big-endian, and so many bytes.

A frame of no bytes only shows that its sender lives: one is sent whenever nothing else was for a
beat, and who hears nothing for some beats ends the connection, also where the network drops
everything in silence.
"""

import asyncio
import socket
import struct
from typing import Protocol, cast

from google.protobuf.message import DecodeError

from ledger_cluster.channels import MESSAGE_BYTES_MAX

BEAT_S = 0.5
"""How often each side looks whether it has sent and heard something."""

SILENT_BEATS_MAX = 5
"""After so many without anything heard the other side, or the way to it, counts as gone. Beats are
counted, not seconds: a process that was held up itself reads first what came meanwhile."""

_HEAD = struct.Struct("!I")


class LinkEnd(Protocol):
    """Who uses a connection. Called by it on the event loop; must not wait."""

    def received(self, frame: bytes) -> None:
        """Take a frame. DecodeError ends the connection."""
        ...

    def writable(self) -> None:
        """Go on sending: what was sent has left this process."""
        ...

    def said_all(self) -> bool:
        """Note that the other side sends no more; return whether there is still to be sent."""
        ...

    def ended(self, reason: str) -> None:
        """Note that nothing is sent or received any more; the last call."""
        ...


class FramedConnection(asyncio.Protocol):
    """Either end. Frames go to `end`, which may be replaced while it takes one."""

    def __init__(self, end: LinkEnd, frame_bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self.end = end
        self.frame_bytes_max = frame_bytes_max
        """A longer frame from the other side ends the connection."""
        self.other = "?"
        """The address of the other side."""
        self.full = False
        """Nothing more should be sent for now: what was sent waits in memory until the system takes
        it, and then `writable` is called. Or for good: the connection ends."""
        self._transport: asyncio.Transport | None = None
        self._reason = ""
        # The beginning of a frame whose end is yet to come, and how long both are.
        self._rest = bytearray()
        self._rest_wanted = 0
        self._reading = True
        self._ending = False
        self._ended = asyncio.Event()
        self._sent = False
        self.heard = False
        """Whether anything came: at all, or since the last beat."""
        self._silent_beats = 0
        self._unsent_bytes = 0
        self._beat: asyncio.TimerHandle | None = None

    @property
    def unsent_bytes(self) -> int:
        """How much was sent and has not left this process."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def send(self, frame: bytes) -> None:
        """Send a frame: at once, as far as the system takes it. Nothing happens after the end."""
        if self._transport is not None and not self._ending:
            self._sent = True
            self._transport.write(_HEAD.pack(len(frame)) + frame)

    async def wait_ended(self) -> None:
        """Return once the connection has ended."""
        await self._ended.wait()

    def keep_alive(self) -> None:
        """From now on show that this side lives, and expect the same of the other side."""
        loop = asyncio.get_running_loop()
        self._beat = loop.call_later(BEAT_S, self._next_beat, loop)

    def pause_reading(self) -> None:
        """Read no more for now. Frames that were read with the last one still come."""
        if self._reading and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if not self._reading and self._transport is not None:
            self._reading = True
            self._transport.resume_reading()

    def finish(self) -> None:
        """Say that nothing more is sent. What was sent still leaves; frames still come."""
        if self._transport is not None and not self._ending:
            self._end_sending()
            self._transport.write_eof()

    def close(self, reason: str) -> None:
        """End the connection once what was sent has left; nothing is received any more."""
        self._reason = self._reason or reason
        self._end_sending()
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """End the connection at once."""
        self._reason = self._reason or reason
        self._end_sending()
        if self._transport is not None:
            self._transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # Not an instance of it, with uvloop.
        self._transport = transport = cast(asyncio.Transport, transport)
        if self._ending:
            transport.abort()
            return
        # Nothing waits in memory without `full`.
        transport.set_write_buffer_limits(high=0)
        if (plug := transport.get_extra_info("socket")) is not None:
            plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if (address := transport.get_extra_info("peername")) is not None:
            host, port = address[:2]
            self.other = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def data_received(self, data: bytes) -> None:
        """Take the frames out of what was read."""
        self.heard = True
        if self._rest:
            self._rest += data
            if len(self._rest) < self._rest_wanted:
                return
            data, self._rest = bytes(self._rest), bytearray()
        start, end, wanted = 0, len(data), _HEAD.size
        while end - start >= _HEAD.size:
            (size,) = _HEAD.unpack_from(data, start)
            if size > self.frame_bytes_max:
                self.abort(
                    f"a frame of {size} bytes came; at most {self.frame_bytes_max} are taken"
                )
                return
            wanted = _HEAD.size + size
            if end - start < wanted:
                break
            if size and not self._take(data[start + _HEAD.size : start + wanted]):
                return
            start += wanted
            wanted = _HEAD.size
        if start < end:
            self._rest += data[start:]
            self._rest_wanted = wanted

    def eof_received(self) -> bool:
        """Return whether the connection goes on for what is still to be sent."""
        self._reason = self._reason or "the other side ended it"
        goes_on = self.end.said_all()
        if not goes_on:
            self._end_sending()
        return goes_on

    def pause_writing(self) -> None:
        """Note that the system takes no more."""
        self.full = True

    def resume_writing(self) -> None:
        """Go on."""
        self.full = self._ending
        if not self._ending:
            self.end.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._transport = None
        if self._beat is not None:
            self._beat.cancel()
        failure = getattr(exc, "strerror", None) or str(exc) if exc else ""
        self.end.ended(self._reason or failure.lower() or "it was ended")
        self._ended.set()

    def _end_sending(self) -> None:
        self._ending = self.full = True

    def _take(self, frame: bytes) -> bool:
        """Hand a frame over; return whether the next one is wanted."""
        try:
            self.end.received(frame)
        except DecodeError as error:
            self.abort(f"a frame came that cannot be read: {error}")
        return self._transport is not None and not self._transport.is_closing()

    def _next_beat(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._transport is None:
            return
        self._beat = loop.call_later(BEAT_S, self._next_beat, loop)
        unsent_bytes = self.unsent_bytes
        # Where this side does not read, it sees the other one live by what that takes.
        reads = self._reading and not self._transport.is_closing()
        if self.heard or (not reads and unsent_bytes != self._unsent_bytes):
            self._silent_beats = 0
        else:
            self._silent_beats += 1
        self._unsent_bytes = unsent_bytes
        if self._silent_beats >= SILENT_BEATS_MAX:
            self.abort(f"nothing came for {SILENT_BEATS_MAX * BEAT_S:g} s")
        elif not (self._sent or self.full):
            self.send(b"")
        self._sent = self.heard = False

"""The network between the processes: a TCP proxy for every directed pair that connects.

A *link* leads from whoever dials to a node. It carries bytes both ways, and each way can be
disturbed by itself. Proxies run in a thread of their own, so that clients do not delay them.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from enum import Enum
from typing import Self, TypeVar

import uvloop

Pair = tuple[str, str]
T = TypeVar("T")

_READ_BYTES = 64 << 10
# Ends a connection with RST instead of FIN.
_ABORT = struct.pack("ii", 1, 0)


class Cut(Enum):
    """What happens to the bytes of a link, one way."""

    HOLD = "held"
    """They wait, as behind a router that drops packets: TCP delivers them after the cut."""
    SWALLOW = "swallowed"
    """They vanish while the connection stays; after the cut it is reset, having lost bytes."""
    RESET = "reset"
    """Connections are reset, and new ones too, for as long as the cut lasts."""


class Way:
    """One direction of a link: how its bytes fare now."""

    def __init__(self) -> None:
        self.cut: Cut | None = None
        self.delay_s = 0.0
        self.healed = asyncio.Event()
        self.healed.set()


class _Connection:
    """A connection through a proxy, and the task that carries it."""

    def __init__(self, task: "asyncio.Task[None]") -> None:
        self.lost_bytes = False
        self._task = task

    def reset(self) -> None:
        self._task.cancel()


class _Link:
    """One listener, what came in through it, and the state of both ways."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.there, self.back = Way(), Way()
        self.connections: set[_Connection] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._spawn(self._accept())

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.reset_connections()
        self._listener.close()

    def reset_connections(self, *, only_lossy: bool = False) -> None:
        for connection in list(self.connections):
            if connection.lost_bytes or not only_lossy:
                connection.reset()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            near, _ = await loop.sock_accept(self._listener)
            near.setblocking(False)
            self._spawn(self._carry(near))

    async def _carry(self, near: socket.socket) -> None:
        far = socket.socket()
        far.setblocking(False)
        for side in (near, far):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.current_task()
        assert task is not None
        connection = _Connection(task)
        self.connections.add(connection)
        aborted = True
        try:
            if Cut.RESET in (self.there.cut, self.back.cut):
                return
            await asyncio.get_running_loop().sock_connect(far, self.target)
            ways = [
                asyncio.create_task(_pump(connection, near, far, self.there)),
                asyncio.create_task(_pump(connection, far, near, self.back)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
            aborted = False
        except OSError:
            pass  # nobody listens there: the dialling side sees its connection end
        finally:
            self.connections.discard(connection)
            for side in (near, far):
                if aborted:
                    with contextlib.suppress(OSError):
                        side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
                side.close()


async def _pump(
    connection: _Connection, source: socket.socket, sink: socket.socket, way: Way
) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await loop.sock_recv(source, _READ_BYTES):
            if way.delay_s:
                await asyncio.sleep(way.delay_s)
            while way.cut is Cut.HOLD:
                await way.healed.wait()
            if way.cut is Cut.SWALLOW:
                connection.lost_bytes = True
                continue
            await loop.sock_sendall(sink, data)


class Network:
    """All links; a context manager. Its methods may be called from any thread."""

    def __init__(self, targets: dict[Pair, tuple[str, int]]) -> None:
        self._targets = targets
        self._links: dict[Pair, _Link] = {}
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._start)
        return self

    def __exit__(self, *_exc: object) -> None:
        async def stop() -> None:
            await asyncio.gather(*(link.stop() for link in self._links.values()))

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def pairs(self) -> list[Pair]:
        """Every link there is, as (who dials, to whom)."""
        return list(self._targets)

    def address(self, pair: Pair) -> str:
        """Where whoever dials finds the other side."""
        return f"127.0.0.1:{self._links[pair].port}"

    def cut(
        self, pairs: Iterable[Pair], how: Cut, *, there: bool = True, back: bool = True
    ) -> None:
        """Disturb the bytes from who dials (``there``), to who dials (``back``), or both."""

        def cut() -> None:
            for pair in pairs:
                link = self._links[pair]
                for way, wanted in ((link.there, there), (link.back, back)):
                    if wanted:
                        way.cut = how
                        way.healed.clear()
                if how is Cut.RESET:
                    link.reset_connections()

        self._run(cut)

    def delay(self, pairs: Iterable[Pair], seconds: float) -> None:
        """Let every piece that passes wait, both ways."""

        def delay() -> None:
            for pair in pairs:
                self._links[pair].there.delay_s = self._links[pair].back.delay_s = seconds

        self._run(delay)

    def heal(self, pairs: Iterable[Pair]) -> None:
        """Let everything pass again."""

        def heal() -> None:
            for pair in pairs:
                link = self._links[pair]
                for way in (link.there, link.back):
                    way.cut = None
                    way.delay_s = 0.0
                    way.healed.set()
                link.reset_connections(only_lossy=True)

        self._run(heal)

    def _start(self) -> None:
        for pair, target in self._targets.items():
            self._links[pair] = link = _Link(target)
            link.start()

    def _run(self, call: Callable[[], T]) -> T:
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(call())
            except BaseException as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return done.result(10)

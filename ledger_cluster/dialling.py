"""Makes links to nodes: connects, says who this process is, and hears who answers."""

import asyncio
import os
from collections.abc import Callable

from ledger.internal.v1 import link_pb2
from ledger_cluster.channels import MESSAGE_BYTES_MAX
from ledger_cluster.config import ClusterConfig, split_address
from ledger_cluster.framed_connection import FramedConnection, LinkEnd
from ledger_cluster.hello import (
    HELLO_BYTES_MAX,
    HELLO_TIMEOUT_S,
    HelloRefusedError,
    check_hello,
    make_hello,
    read_hello,
)

CONNECT_TIMEOUT_S = 1.0
"""Short: a network that was cut and is whole again is to be found so within about a second."""

Begin = Callable[[FramedConnection], LinkEnd]
"""Takes a connection over, once both sides have agreed."""


class UnreachableError(Exception):
    """There is no link; the text says why. Nothing but a hello has left this process."""


async def dial(address: str, own: link_pb2.Hello, begin: Begin) -> FramedConnection:
    """Make a link to the node that ``own`` wants.

    Raises UnreachableError, or HelloRefusedError where one of the two does not want the other.
    """
    host, port = split_address(address)
    loop = asyncio.get_running_loop()
    caller = _Caller(own, begin, loop.create_future())
    connection = FramedConnection(caller, HELLO_BYTES_MAX)
    caller.connection = connection
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await loop.create_connection(lambda: connection, host, port)
        connection.send(own.SerializeToString())
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            await caller.linked
    except BaseException as error:
        caller.linked.cancel()
        connection.abort("it was given up")
        if isinstance(error, TimeoutError):
            raise UnreachableError("no answer in time") from None
        if isinstance(error, OSError):
            raise UnreachableError(_in_words(error)) from None
        raise
    return connection


async def link_problem(config: ClusterConfig, node_id: str) -> str:
    """Try to make a link as gateways do; return in words why that fails, or nothing if it works."""
    own = make_hello(config, link_pb2.LINK_KIND_CLIENT, wanted_node_id=node_id)
    try:
        connection = await dial(config.node(node_id).link_address, own, lambda made: made.end)
    except (UnreachableError, HelloRefusedError) as error:
        return str(error)
    connection.close("it was only tried")
    await connection.wait_ended()
    return ""


class _Caller:
    """Waits for the hello of the node."""

    connection: FramedConnection

    def __init__(self, own: link_pb2.Hello, begin: Begin, linked: "asyncio.Future[None]") -> None:
        self._own = own
        self._begin = begin
        self.linked = linked

    def received(self, frame: bytes) -> None:
        connection = self.connection
        if self.linked.done():
            return  # who dialled has been cancelled meanwhile, and ends the connection
        try:
            hello = read_hello(frame)
            check_hello(hello, self._own, (self._own.wanted_node_id,))
        except HelloRefusedError as error:
            self._fail(error)
            connection.abort("refused")
        else:
            connection.frame_bytes_max = MESSAGE_BYTES_MAX
            connection.keep_alive()
            connection.end = self._begin(connection)
            self.linked.set_result(None)

    def writable(self) -> None:
        pass

    def said_all(self) -> bool:
        return False

    def ended(self, reason: str) -> None:
        self._fail(UnreachableError(f"no hello came; is it the right port? {reason}"))

    def _fail(self, error: Exception) -> None:
        if not self.linked.done():
            self.linked.set_exception(error)


def _in_words(error: OSError) -> str:
    """Say without numbers and addresses what went wrong."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return (error.strerror or str(error)).lower()

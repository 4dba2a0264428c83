"""The gateway as a whole: its services, health checking and reflection on one port."""

import contextlib
import ipaddress
import socket
from typing import Any

import grpc
from grpc_health.v1 import health
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection

from ledger.v1.journal_pb2_grpc import add_JournalServiceServicer_to_server
from ledger.v1.ledger_pb2_grpc import add_LedgerServiceServicer_to_server
from ledger.v1.reports_pb2_grpc import add_ReportServiceServicer_to_server
from ledger_cluster.shards import Shards
from ledger_gateway.bulk import BULK_REQUEST_BYTES_MAX
from ledger_gateway.guarded_methods import GuardedMethods
from ledger_gateway.health import HealthMonitor
from ledger_gateway.journal import (
    JOURNAL_SERVICE_NAME,
    REPLAY_METHOD,
    REPLAY_REQUEST_BYTES_MAX,
    JournalService,
)
from ledger_gateway.ledger_service import BULK_METHODS, SERVICE_NAME, LedgerService
from ledger_gateway.reports import REPORT_SERVICE_NAME, ReportService

# Health checks are about the first one.
SERVICE_NAMES = (SERVICE_NAME, REPORT_SERVICE_NAME, JOURNAL_SERVICE_NAME)
CALLS_MAX = 4_096
REQUEST_BYTES_MAX = 256 * 1024

_LARGER_ONES = {
    REPLAY_METHOD: REPLAY_REQUEST_BYTES_MAX,
    **dict.fromkeys(BULK_METHODS, BULK_REQUEST_BYTES_MAX),
}
_OPTIONS = [
    # On by default, and a second server would share the port in silence.
    ("grpc.so_reuseport", 0),
    # A wall behind the limits of our methods, which answers in our words.
    ("grpc.max_receive_message_length", 2 * max(_LARGER_ONES.values())),
    # Clients may ping an idle connection every 10 s (the default refuses below 5 minutes), and we
    # ping them, so that calls of vanished clients end.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]


class ListenError(Exception):
    """The address cannot be listened on; the text says why."""


class GatewayServer:
    """A gateway on one port. The shards stay the caller's: close them after `stop`.

    ``port`` 0 takes any free one; `port` and `address` tell which, once started.
    """

    def __init__(
        self,
        shards: Shards,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        calls_max: int = CALLS_MAX,
    ) -> None:
        self.host = host
        self.port = port
        self._shards = shards
        self._calls_max = calls_max
        self._monitor = HealthMonitor(shards, SERVICE_NAME)
        self._server: grpc.aio.Server | None = None
        self._ledger_service = LedgerService(shards)

    @property
    def address(self) -> str:
        """Where clients find it, as ``host:port``."""
        return join_address(self.host, self.port)

    async def start(self) -> None:
        """Listen and serve; ListenError if the address cannot be had."""
        _check_free(self.host, self.port)
        server = grpc.aio.server(
            options=_OPTIONS,
            # A hard wall behind the limit of our services, which answers in our words.
            maximum_concurrent_rpcs=2 * self._calls_max,
        )
        guarded: Any = GuardedMethods(server, self._calls_max, REQUEST_BYTES_MAX, _LARGER_ONES)
        add_LedgerServiceServicer_to_server(self._ledger_service, guarded)
        add_ReportServiceServicer_to_server(ReportService(self._shards), guarded)
        add_JournalServiceServicer_to_server(JournalService(self._shards), guarded)
        add_HealthServicer_to_server(self._monitor.service, server)  # type: ignore[no-untyped-call]
        reflection.enable_server_reflection(  # type: ignore[no-untyped-call]
            [*SERVICE_NAMES, health.SERVICE_NAME, reflection.SERVICE_NAME], server
        )
        try:
            self.port = server.add_insecure_port(self.address)
        except RuntimeError as error:
            raise ListenError(f"cannot listen on {self.address}") from error
        self._server = server
        await self._monitor.start()
        await server.start()

    async def stop(self, grace_s: float = 5.0) -> None:
        """Take no more calls, and let the running ones end within ``grace_s``."""
        await self._monitor.stop()
        self._ledger_service.stop_streams()
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None
        await self._ledger_service.end()


def join_address(host: str, port: int) -> str:
    """Write host and port, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach the address."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _check_free(host: str, port: int) -> None:
    """Raise ListenError with the system's own reason, which gRPC keeps to its log."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ListenError(f"cannot listen on {host}: {error.strerror}") from error
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            # As gRPC does: a port whose last connections are in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(address)
            except OSError as error:
                raise ListenError(
                    f"cannot listen on {join_address(host, port)}: {error.strerror}"
                ) from error

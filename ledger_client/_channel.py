"""Connections, metadata and health answers, shared by the sync and the asyncio client."""

import re

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ledger.v1 import ledger_pb2_grpc
from ledger_client._async_batches import AsyncBatches
from ledger_client.errors import invalid_argument
from ledger_core.commands import SOURCE_CHARACTERS_MAX
from ledger_core.errors import FieldViolation

CORRELATION_ID_KEY = "x-correlation-id"

# gRPC carries no other characters in metadata, and no spaces at the ends.
_CORRELATION_ID = re.compile(r"[!-~](?:[ -~]*[!-~])?\Z")

OPTIONS = [
    # A proxy named in the environment is for the web; the gateway is in our own network.
    ("grpc.enable_http_proxy", 0),
    # Retries are ours: they keep the deadline of the whole call and honour the server's delay.
    ("grpc.enable_retries", 0),
    # After a restart of the gateway, connect again soon (the default waits up to 2 minutes).
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Notice a vanished gateway while calls run.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Each client has its own connection and its own state of it.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
]


class AsyncConnection:
    """A channel and its stubs, bound to the event loop that runs when it is made."""

    def __init__(
        self, target: str, metadata: tuple[tuple[str, str], ...], timeout_s: float
    ) -> None:
        self.channel = grpc.aio.insecure_channel(target, options=OPTIONS)
        self.ledger = ledger_pb2_grpc.LedgerServiceStub(self.channel)
        self.batches = AsyncBatches(self.ledger, metadata, timeout_s)
        self.health = health_pb2_grpc.HealthStub(self.channel)  # type: ignore[no-untyped-call]


def metadata(correlation_id: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a call; InvalidArgumentError if the id cannot be sent."""
    if not correlation_id:
        return ()
    if len(correlation_id) > SOURCE_CHARACTERS_MAX or not _CORRELATION_ID.match(correlation_id):
        raise invalid_argument(
            [
                FieldViolation(
                    "correlation_id",
                    f"must be at most {SOURCE_CHARACTERS_MAX} printable ASCII characters, without "
                    "spaces at the ends",
                )
            ]
        )
    return ((CORRELATION_ID_KEY, correlation_id),)


def serving(response: health_pb2.HealthListResponse) -> dict[str, bool]:
    """Return which names of a health answer serve: the whole ("") and every shard."""
    return {
        name: item.status == health_pb2.HealthCheckResponse.SERVING
        for name, item in sorted(response.statuses.items())
        if not name or name.startswith("shard-")
    }

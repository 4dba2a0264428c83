"""Channel options and health answers, shared by the sync and the asyncio client."""

from grpc_health.v1 import health_pb2

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


def serving(response: health_pb2.HealthListResponse) -> dict[str, bool]:
    """Return which names of a health answer serve: the whole ("") and every shard."""
    return {
        name: item.status == health_pb2.HealthCheckResponse.SERVING
        for name, item in sorted(response.statuses.items())
        if not name or name.startswith("shard-")
    }

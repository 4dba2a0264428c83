"""gRPC settings that clients and servers of the cluster share."""

from typing import Final

MESSAGE_BYTES_MAX: Final = 16 << 20
"""The largest message either side takes. Frames and batches are kept well below it."""

EXECUTE_BYTES_MAX: Final = 256 << 10
"""The most that the commands of one call to a node may have. A log entry holds several calls."""

RESULTS_BYTES_MAX: Final = 8 << 20
"""The most that the results of one call to a node have. What does not fit is left empty, and asked
for again: commands find their first result, as ever. A single result may be larger."""

REPLAY_BYTES_MAX: Final = 900 << 10
"""The most that the command for one journal entry may have: it goes in a call and a log entry of
its own, and holds what came in the longest log entry."""

GrpcOption = tuple[str, int]


def channel_options() -> list[GrpcOption]:
    """Options of a channel to a node: notice a dead peer in seconds, and find it again as fast."""
    return [
        # A proxy named in the environment is for the web, not for what is inside a cluster.
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.keepalive_time_ms", 5_000),
        ("grpc.keepalive_timeout_ms", 3_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def server_options() -> list[GrpcOption]:
    """Options of a node's server: one process per port, and clients may send keepalive pings."""
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 2_000),
        ("grpc.http2.max_ping_strikes", 0),
    ]

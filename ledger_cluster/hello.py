"""The first frame of a link, in both directions: who speaks. What does not fit is refused."""

from collections.abc import Collection

from google.protobuf.message import DecodeError

from ledger.internal.v1 import link_pb2
from ledger_cluster.config import ClusterConfig

PROTOCOL_VERSION = 3
"""Of everything that crosses links."""

HELLO_BYTES_MAX = 1024
"""From a stranger no more is taken than this. What a gRPC or web server says first would be more,
read as a frame; what their clients say first, too."""

HELLO_TIMEOUT_S = 3.0

_REFUSAL_LENGTH_MAX = 600


class HelloRefusedError(Exception):
    """The other side is not who it must be, or says that we are not: there is no link."""


def make_hello(
    config: ClusterConfig,
    kind: "link_pb2.LinkKind.ValueType",
    node_id: str = "",
    wanted_node_id: str = "",
) -> link_pb2.Hello:
    """Say who this process is (without ``node_id``, no node), and whom it wants, if it dials."""
    return link_pb2.Hello(
        cluster_id=config.cluster_id,
        node_id=node_id,
        config_digest=config.digest,
        protocol_version=PROTOCOL_VERSION,
        kind=kind,
        wanted_node_id=wanted_node_id,
    )


def read_hello(frame: bytes) -> link_pb2.Hello:
    """Return what the other side says; HelloRefusedError where it is no hello."""
    try:
        hello = link_pb2.Hello.FromString(frame)
    except DecodeError:
        hello = link_pb2.Hello()
    if not hello.cluster_id:
        raise HelloRefusedError("it does not speak the protocol of links; is it the right port?")
    return hello


def check_hello(
    hello: link_pb2.Hello, own: link_pb2.Hello, node_ids: Collection[str] | None
) -> None:
    """Raise HelloRefusedError unless the two belong together.

    ``node_ids``: who the other side may be; None where it need not be a node.
    """
    other, this = _name(hello), _name(own)
    if hello.refusal:
        raise HelloRefusedError(f"it refuses the link: {hello.refusal}")
    if hello.protocol_version != own.protocol_version:
        raise HelloRefusedError(
            f"{other} speaks version {hello.protocol_version} of the protocol of links, {this} "
            f"version {own.protocol_version}; run the same release everywhere"
        )
    if hello.cluster_id != own.cluster_id:
        raise HelloRefusedError(
            f"{other} is of cluster {hello.cluster_id!r}, {this} of {own.cluster_id!r}"
        )
    if hello.config_digest != own.config_digest:
        raise HelloRefusedError(
            f"{other} and {this} have different cluster configurations; give every node the same "
            f"file"
        )
    if hello.kind != own.kind:
        raise HelloRefusedError(f"{other} is here for a link of another kind")
    if hello.wanted_node_id not in ("", own.node_id):
        raise HelloRefusedError(
            f"{other} wants {hello.wanted_node_id!r} and has reached {this}; check the link "
            f"addresses in its cluster configuration"
        )
    if node_ids is not None and hello.node_id not in node_ids:
        raise HelloRefusedError(
            f"{other} is not the node that {this} expects on this link "
            f"({', '.join(node_ids) or 'none'}); check the link addresses in the cluster "
            f"configuration"
        )


def refusal(own: link_pb2.Hello, reason: str) -> bytes:
    """Return the frame that says why there is no link."""
    answer = link_pb2.Hello(refusal=reason[:_REFUSAL_LENGTH_MAX])
    answer.MergeFrom(own)
    return answer.SerializeToString()


def _name(hello: link_pb2.Hello) -> str:
    return repr(hello.node_id) if hello.node_id else "a client"

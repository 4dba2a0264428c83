"""Frames of encoded messages have the bytes that protobuf gives them."""

from hypothesis import example, given
from hypothesis import strategies as st

from ledger.internal.v1 import peer_pb2, shard_pb2
from ledger_cluster.frames import encoded_frame

# The sizes at which a varint gets longer, and those around them.
SIZES = [0, 1, 120, 127, 128, 16_380, 16_384]


@given(sizes=st.lists(st.sampled_from(SIZES) | st.integers(0, 300), max_size=6))
@example([1 << 21, 5])
def test_a_frame_is_what_protobuf_makes_of_its_messages(sizes: list[int]) -> None:
    messages = [
        peer_pb2.RaftMessage(shard_id=size, entries=[peer_pb2.LogEntry(payload=bytes(size))])
        for size in sizes
    ]
    requests = [
        shard_pb2.ShardRequest(
            number=size, execute=shard_pb2.ExecuteRequest(commands=[bytes(size)])
        )
        for size in sizes
    ]
    assert (
        encoded_frame(
            peer_pb2.PeerFrame.MESSAGES_FIELD_NUMBER, [m.SerializeToString() for m in messages]
        )
        == peer_pb2.PeerFrame(messages=messages).SerializeToString()
    )
    assert (
        encoded_frame(
            shard_pb2.RequestFrame.REQUESTS_FIELD_NUMBER, [r.SerializeToString() for r in requests]
        )
        == shard_pb2.RequestFrame(requests=requests).SerializeToString()
    )

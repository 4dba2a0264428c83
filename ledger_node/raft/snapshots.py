"""Snapshots on their way: from a leader's committed state to a follower whose entries are gone.

The leader holds one reader of its state open and sends it chunk by chunk, a few ahead of the
follower's answers. The follower stages the chunks beside its present state, and changes over in
one step, within one turn, once it has them all. Chunks may be lost, doubled or overtake each other:
the follower takes only the one it wants next, and says which that is. If either side restarts, or
the leader changes, a new stream starts from the beginning.
"""

import hashlib
import zlib
from collections import deque

from ledger.internal.v1.peer_pb2 import SnapshotChunk
from ledger_node.raft.contract import SnapshotReader

CHUNK_BYTES = 256 << 10
# Chunks sent and not confirmed, per stream.
WINDOW_CHUNKS = 4
# Streams that one node sends at the same time, all its shards together.
STREAMS_MAX = 2
# After so long without an answer, chunks are sent again; later, the stream is given up, because
# its reader keeps old pages of the store from being used again.
RESEND_S = 0.5
IDLE_S_MAX = 10.0


class StreamSlots:
    """How many streams the replicas of a node may still begin; one object for all of them."""

    def __init__(self, streams_max: int = STREAMS_MAX) -> None:
        self._free = streams_max

    def take(self) -> bool:
        """Begin a stream, if there is a free slot."""
        if not self._free:
            return False
        self._free -= 1
        return True

    def give_back(self) -> None:
        """End a stream."""
        self._free += 1


class OutgoingSnapshot:
    """One stream, as its sender sees it."""

    def __init__(self, reader: SnapshotReader, number: int, now: float) -> None:
        self.number = number
        self.index = reader.index
        self._reader = reader
        self._digest = hashlib.blake2b(digest_size=32)
        # Read and not confirmed yet; the first `_sent` of them are on their way.
        self._chunks: deque[SnapshotChunk] = deque()
        self._sent = 0
        self._read = 0
        self._complete = False
        self._progress_at = self._sent_at = now

    def next_chunk(self, now: float) -> SnapshotChunk | None:
        """Return the chunk to send now, if there is one."""
        if self._sent and now - self._sent_at >= RESEND_S:
            self._sent = 0
        if self._sent == len(self._chunks):
            if self._complete or self._sent >= WINDOW_CHUNKS:
                return None
            self._chunks.append(self._read_chunk())
        chunk = self._chunks[self._sent]
        self._sent += 1
        self._sent_at = now
        return chunk

    def _read_chunk(self) -> SnapshotChunk:
        rows = self._reader.read(CHUNK_BYTES)
        self._complete = not rows
        self._digest.update(rows)
        chunk = SnapshotChunk(
            stream=self.number,
            index=self.index,
            term=self._reader.term,
            number=self._read,
            rows=rows,
            checksum=zlib.crc32(rows),
            last=self._complete,
            digest=self._digest.digest() if self._complete else b"",
        )
        self._read += 1
        return chunk

    @property
    def may_send(self) -> bool:
        """Whether there is more to send before an answer comes."""
        return self._sent < len(self._chunks) or (self._sent < WINDOW_CHUNKS and not self._complete)

    def confirmed(self, wanted: int, now: float) -> bool:
        """Note that the follower has all chunks before `wanted`; False: it cannot go on."""
        first = self._read - len(self._chunks)
        if wanted == 0 and first > 0:
            return False
        while self._chunks and self._chunks[0].number < wanted:
            self._chunks.popleft()
            self._sent = max(0, self._sent - 1)
            self._progress_at = self._sent_at = now
        return True

    def is_idle(self, now: float) -> bool:
        """Whether the follower has not moved for too long."""
        return now - self._progress_at >= IDLE_S_MAX

    def close(self) -> None:
        """Let the state go."""
        self._reader.close()


class IncomingSnapshot:
    """One stream, as its receiver sees it. `key` orders the streams: (term, number)."""

    def __init__(self, term: int, first: SnapshotChunk) -> None:
        self.key = (term, first.stream)
        self.index = first.index
        self.term = first.term
        self.wanted = 0
        self.received_bytes = 0
        self._digest = hashlib.blake2b(digest_size=32)

    def accepts(self, chunk: SnapshotChunk) -> bool:
        """Whether this is the chunk wanted next, undamaged."""
        return (
            chunk.number == self.wanted
            and (chunk.index, chunk.term) == (self.index, self.term)
            and zlib.crc32(chunk.rows) == chunk.checksum
        )

    def took(self, chunk: SnapshotChunk) -> None:
        """Count the chunk in."""
        self.wanted += 1
        self.received_bytes += len(chunk.rows)
        self._digest.update(chunk.rows)

    def is_whole(self, last: SnapshotChunk) -> bool:
        """Whether everything received is what was sent."""
        return self._digest.digest() == last.digest

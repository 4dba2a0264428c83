"""What a leader knows about one follower, and how much it may send to it."""

from collections import deque

from ledger_node.raft.contract import require
from ledger_node.raft.library import Node

WINDOW_BYTES_MAX = 2 << 20
WINDOW_ENTRIES_MAX = 2048


class Progress:
    """A follower is *probed* until its log is known to match ours up to some entry.

    While probing, at most one message with entries is under way, and heartbeats repeat the
    question without entries. Once the follower has confirmed, entries are *streamed*:
    `next_index` runs ahead of the confirmations, within a window. A lost message shows by the
    next heartbeat, which names the entry before `next_index`: the follower refuses, and we
    probe again (etcd's progress states; thesis, section 10.2.1, pipelining).

    A follower whose next entry is no longer in our log gets a snapshot; that is not seen here.
    """

    __slots__ = (
        "acked_round",
        "connected",
        "first_round",
        "in_flight",
        "in_flight_bytes",
        "incarnation",
        "match_index",
        "next_index",
        "node",
        "paused",
        "streaming",
        "unproven",
    )

    def __init__(self, node: Node) -> None:
        self.node = node
        self.connected = False
        self.in_flight: deque[tuple[int, int]] = deque()
        self.reset(last_index=1)

    def reset(self, last_index: int) -> None:
        """Know nothing of the follower but guess that its log is like ours (new leadership)."""
        self.match_index = 1  # entry 1 is the same on every replica
        self.next_index = last_index + 1
        self.acked_round = 0
        self.first_round = 0
        self.incarnation = 0
        self.unproven = False
        self.probe()

    def speaks(self, incarnation: int, round_: int, next_round: int, last_index: int) -> bool:
        """Whether an answer may be believed: it comes from the store that we think is there.

        The first answer tells. A follower that comes back with another store has lost what it
        confirmed: we know nothing of it any more. Answers to what was sent before that, whoever
        they come from, do not count.
        """
        if round_ < self.first_round:
            return False
        if incarnation != self.incarnation and self.incarnation:
            self.reset(last_index)
            self.first_round = next_round
            self.incarnation = incarnation
            return False
        self.incarnation = incarnation
        return True

    def probe(self) -> None:
        """Forget what is under way, and ask again from `next_index`."""
        self.streaming = False
        self.paused = False
        self.in_flight.clear()
        self.in_flight_bytes = 0

    def disconnected(self) -> None:
        """Everything after the last confirmation may be lost."""
        self.connected = False
        if self.streaming:
            self.next_index = self.match_index + 1
        self.probe()

    def may_send(self, last_index: int) -> bool:
        """Whether entries may be sent now, and there are some."""
        if not self.connected or self.next_index > last_index:
            return False
        if not self.streaming:
            return not self.paused
        return (
            self.in_flight_bytes < WINDOW_BYTES_MAX
            and self.next_index - self.match_index <= WINDOW_ENTRIES_MAX
        )

    def sent(self, last_index: int, size: int) -> None:
        """Note a message with entries up to `last_index`."""
        if self.streaming:
            self.next_index = last_index + 1
            self.in_flight.append((last_index, size))
            self.in_flight_bytes += size
        else:
            self.paused = True

    def accepted(self, match_index: int) -> None:
        """The follower's log equals ours up to `match_index`."""
        advanced = match_index > self.match_index
        self.match_index = max(self.match_index, match_index)
        if self.streaming:
            # Never back: entries behind the confirmation are under way.
            self.next_index = max(self.next_index, self.match_index + 1)
            while self.in_flight and self.in_flight[0][0] <= match_index:
                self.in_flight_bytes -= self.in_flight.popleft()[1]
        elif advanced or match_index >= self.next_index - 1:
            self.next_index = self.match_index + 1
            self.streaming = True

    def refused(self, prev_index: int, hint_index: int, first_index: int = 0) -> bool:
        """The follower has no entry like ours at `prev_index`; return whether that is news.

        Our log starts at `first_index`: before we give up on it, we ask there.
        """
        if self.streaming:
            news = self.match_index < prev_index < self.next_index
        else:
            # Only the answer to the question that is open; others are late.
            news = self.match_index < prev_index == self.next_index - 1
        if news:
            # The hint may lie below what the follower confirmed since: never ask there again.
            self.next_index = max(self.match_index + 1, min(hint_index, prev_index))
            if prev_index > first_index:
                self.next_index = max(self.next_index, first_index + 1)
            require(self.next_index <= prev_index, "a refusal must lower the next index")
            self.probe()
        return news

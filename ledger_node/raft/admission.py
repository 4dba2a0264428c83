"""Whether a replica may vote: not while it may have forgotten what it promised.

A replica that starts with an empty store may have had another one: its data directory was wiped.
It has then forgotten its term, its vote, and entries that it had confirmed. If it voted, it could
elect a leader that lacks a committed entry. So it is *unproven*: it does not campaign and grants
no votes or pre-votes, until either

- every other member has told it that it is new as well. This founds a fresh group. A member that
  has been founded so still vouches for the stores that it was founded with, and for no others; or
- it has caught up with a leader: its verified log reaches a commit index of that leader whose
  entry is of the leader's own term. So it holds all that was ever committed, also what it had
  confirmed in a former life. The leader must know which store it talks to: then no confirmation
  of a former life can count any more.

It also takes no part at all, not even to confirm entries, until it is *informed*: it has heard the
terms of so many others that every majority it may have been part of includes one of them, and has
adopted the highest. Else a leader that was deposed with our vote, and does not know it yet, could
commit entries with our help. This costs nothing where a leader lives without us: it needs as many.
(Compare the recovery protocol of Viewstamped Replication Revisited, section 4.3.)

In a group of an even number two majorities share two members, so one that forgot does no harm:
there an informed replica votes at once, though it does not campaign. Otherwise a group of two could
not elect a leader again.

All of this is about the loss of a minority of the stores. What a majority forgot is lost.

With five or more members one gap is left in theory: a vote of a former life, held back on its way
to a candidate that was not among those heard, until after the wiped replica was proven, and the
candidate's term reached by others meanwhile. Links are streams that end with the process, so the
vote would have to wait in the candidate's own inbox, the candidate paused, through a whole rejoin.
"""

import random
from collections.abc import Sequence

from ledger_node.raft.contract import RaftLog, Standing


class Admission:
    """What a replica knows about its own standing. Writes it down within the turn."""

    def __init__(
        self, log: RaftLog, *, is_new: bool, peer_ids: Sequence[str], rng: random.Random
    ) -> None:
        self._log = log
        self._peer_ids = frozenset(peer_ids)
        members = len(self._peer_ids) + 1
        # As many that every majority with us in it includes one of them.
        self._heard_min = members - (members // 2 + 1) + 1
        self._heard: dict[str, bool] = {}
        self._incarnations: dict[str, int] = {}
        self.asked_at = float("-inf")
        standing = log.load_standing()
        if standing is None:
            # A store that has a log but no standing is of an earlier version: it forgot nothing.
            standing = Standing(rng.getrandbits(63) + 1, proven=not is_new or not self._peer_ids)
            log.save_standing(standing)
        self._standing = standing

    @property
    def incarnation(self) -> int:
        """Number of this replica's store."""
        return self._standing.incarnation

    @property
    def proven(self) -> bool:
        """Whether this replica has forgotten nothing that matters."""
        return self._standing.proven

    @property
    def may_vote(self) -> bool:
        """Whether this replica may grant votes; to campaign it must be proven."""
        return self.proven or (self.informed and len(self._peer_ids) % 2 == 1)

    @property
    def informed(self) -> bool:
        """Whether this replica may follow a leader."""
        return self.proven or len(self._heard) >= self._heard_min

    def vouches_for(self, peer_id: str, incarnation: int, *, holds_entries: bool) -> bool:
        """Whether the store of a peer is as new as the group, as far as this replica can tell."""
        if not self.proven:
            return not holds_entries
        return self._standing.founders.get(peer_id) == incarnation

    def hear(self, peer_id: str, incarnation: int, vouches: bool) -> None:
        """Take the answer of a peer. If all vouch, the group is founded."""
        if self.proven:
            return
        self._heard[peer_id] = vouches
        self._incarnations[peer_id] = incarnation
        if self._heard.keys() == self._peer_ids and all(self._heard.values()):
            self._prove(self._incarnations)

    def caught_up(self) -> None:
        """Note that this replica holds all that was ever committed."""
        self._prove({})

    def _prove(self, founders: dict[str, int]) -> None:
        self._standing = Standing(self.incarnation, proven=True, founders=dict(founders))
        self._log.save_standing(self._standing)

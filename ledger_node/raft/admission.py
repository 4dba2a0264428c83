"""Whether a replica may vote: not while it may have forgotten what it promised.

A replica that starts with an empty store may have had another one: its data directory was wiped.
It has then forgotten its term, its vote, and entries that it had confirmed. If it voted, it could
elect a leader that lacks a committed entry. So it is *unproven*: it does not campaign and grants
no votes or pre-votes, until either

- it was there when the group was founded. A *roster* names the store of every member. A group is
  founded with a roster once each of its stores has said, unproven and empty, that this is what it
  sees. Who hears all of them say so is proven, and so is who hears the roster from a proven member
  and finds itself in it. A store that is lost meanwhile changes what the others see, and they found
  the group without it; but a proven member says nothing new, so where a leader may have been
  elected, no roster with a younger store is ever agreed on; or
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
there an informed replica that no roster names votes at once, though it does not campaign. Otherwise
a group of two could not elect a leader again.

All of this is about the loss of a minority of the stores. What a majority forgot is lost.

With five or more members one gap is left in theory: a vote of a former life, held back on its way
to a candidate that was not among those heard, until after the wiped replica was proven, and the
candidate's term reached by others meanwhile. Links are streams that end with the process, so the
vote would have to wait in the candidate's own inbox, the candidate paused, through a whole rejoin.
"""

import random
from collections.abc import Mapping, Sequence

from ledger_node.raft.contract import RaftLog, Standing


class Admission:
    """What a replica knows about its own standing. Writes it down within the turn."""

    def __init__(
        self,
        log: RaftLog,
        *,
        is_new: bool,
        self_id: str,
        peer_ids: Sequence[str],
        rng: random.Random,
    ) -> None:
        self._log = log
        self._self_id = self_id
        self._peer_ids = frozenset(peer_ids)
        members = len(self._peer_ids) + 1
        # As many that every majority with us in it includes one of them.
        self._heard_min = members - (members // 2 + 1) + 1
        # What unproven peers last said: their stores, and the rosters that they see.
        self._incarnations: dict[str, int] = {}
        self._seen_by: dict[str, dict[str, int]] = {}
        # What a proven peer said that does not know this store.
        self._left_out = False
        self._roster_of_others: dict[str, int] = {}
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
        if self.proven:
            return True
        return self.informed and self._left_out and len(self._peer_ids) % 2 == 1

    @property
    def informed(self) -> bool:
        """Whether this replica may follow a leader."""
        return self.proven or len(self._incarnations) >= self._heard_min

    def roster(self, *, holds_entries: bool) -> Mapping[str, int]:
        """Return the roster to tell others: the group's, or what an empty store sees; or none."""
        if self.proven:
            return self._standing.roster
        return {} if holds_entries else self._seen()

    def _seen(self) -> dict[str, int]:
        """Every member's store, as last heard of; empty while one is missing."""
        if self._incarnations.keys() != self._peer_ids:
            return {}
        return {**self._incarnations, self._self_id: self.incarnation}

    def hear(
        self, peer_id: str, incarnation: int, roster: Mapping[str, int], *, proven: bool
    ) -> None:
        """Take the answer of a peer: its store, and its roster."""
        if self.proven:
            return
        seen_before = self._seen()
        self._incarnations[peer_id] = incarnation
        self._seen_by[peer_id] = {} if proven else dict(roster)
        if proven:
            if roster.get(self._self_id) == self.incarnation:
                self._prove(roster)
                return
            self._left_out = True
            self._roster_of_others = dict(roster) or self._roster_of_others
        seen = self._seen()
        if seen != seen_before:
            # What the others see will have changed as well: ask at once.
            self.asked_at = float("-inf")
        if seen and all(self._seen_by[peer] == seen for peer in self._peer_ids):
            self._prove(seen)

    def caught_up(self) -> None:
        """Note that this replica holds all that was ever committed."""
        self._prove(self._roster_of_others)

    def _prove(self, roster: Mapping[str, int]) -> None:
        self._standing = Standing(self.incarnation, proven=True, roster=dict(roster))
        self._log.save_standing(self._standing)

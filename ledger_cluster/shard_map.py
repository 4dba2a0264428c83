"""Account id to shard. Pure: the same configuration gives the same answer everywhere."""

from bisect import bisect_right

from ledger_cluster.config import ClusterConfig, ShardConfig
from ledger_core.ids import shard_key


class ShardMap:
    """Finds the shard that holds an account."""

    def __init__(self, config: ClusterConfig) -> None:
        self._shards = config.shards
        self._lower_bounds = [shard.lower_bound for shard in config.shards]

    def shard_of(self, account_id: int) -> ShardConfig:
        """Return the shard that holds the account."""
        return self.shard_of_key(shard_key(account_id))

    def shard_of_key(self, key: int) -> ShardConfig:
        """Return the shard whose range the shard key is in."""
        shard = self._shards[bisect_right(self._lower_bounds, key) - 1]
        assert shard.lower_bound <= key <= shard.upper_bound
        return shard

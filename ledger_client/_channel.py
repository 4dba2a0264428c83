"""Connections, metadata and health answers, shared by the sync and the asyncio client."""

import re

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ledger.v1 import ledger_pb2, ledger_pb2_grpc
from ledger_client._async_batches import AsyncBatches
from ledger_client._bulk import TRANSACTIONS
from ledger_client._reads import ACCOUNTS, BALANCES
from ledger_client.errors import invalid_argument
from ledger_core.commands import SOURCE_CHARACTERS_MAX
from ledger_core.errors import FieldViolation

Metadata = tuple[tuple[str, str], ...]

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
    """A channel and its stubs, bound to the event loop that runs when it is made.

    Of reads there are batches by whether they may be stale.
    """

    def __init__(self, target: str, metadata: Metadata, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.channel = grpc.aio.insecure_channel(target, options=OPTIONS)
        self.ledger: ledger_pb2_grpc.LedgerServiceAsyncStub = ledger_pb2_grpc.LedgerServiceStub(
            self.channel
        )
        self.transactions = AsyncBatches[ledger_pb2.Transaction](
            TRANSACTIONS,
            self.ledger.CreateTransactions,
            metadata,
            timeout_s,
            self.ledger.StreamCreateTransactions,
        )
        self.balances = {stale: self.balance_batches(metadata) for stale in (False, True)}
        self.accounts = {stale: self.account_batches(metadata) for stale in (False, True)}
        self.health = health_pb2_grpc.HealthStub(self.channel)  # type: ignore[no-untyped-call]

    def transaction_batches(self, metadata: Metadata) -> AsyncBatches[ledger_pb2.Transaction]:
        """Return batches of transactions whose caller waits for all of them."""
        method = self.ledger.CreateTransactions
        return AsyncBatches(TRANSACTIONS, method, metadata, self._timeout_s)

    def balance_batches(self, metadata: Metadata) -> AsyncBatches[ledger_pb2.Balance]:
        """Return batches of reads of balances: all stale, or none."""
        return AsyncBatches(BALANCES, self.ledger.BatchGetBalances, metadata, self._timeout_s)

    def account_batches(self, metadata: Metadata) -> AsyncBatches[ledger_pb2.Account]:
        """Return batches of reads of accounts: all stale, or none."""
        return AsyncBatches(ACCOUNTS, self.ledger.BatchGetAccounts, metadata, self._timeout_s)

    async def close(self) -> None:
        """Give up all that waits, and close the channel."""
        self.transactions.close()
        for stale in (False, True):
            self.balances[stale].close()
            self.accounts[stale].close()
        await self.channel.close()


def metadata(correlation_id: str) -> Metadata:
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

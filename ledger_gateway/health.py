"""Health checking (grpc.health.v1), kept up to date from what the shards say of themselves.

""                          SERVING while every shard serves
"shard-0", "shard-1", …     the shard
"ledger.v1.LedgerService"   SERVING while any shard serves: what a load balancer should ask for,
                            since one shard without a majority is no reason to stop the others
"""
# ruff: noqa: N802 - gRPC names the methods

import asyncio
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2

from ledger_cluster.shards import Shards

OVERALL = ""

_POLL_INTERVAL_S = 1.0
# Until all shards serve for the first time: whoever started us is waiting for that.
_POLL_INTERVAL_STARTING_S = 0.1
_POLL_TIMEOUT_S = 5.0

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

_log = structlog.get_logger(__name__)


class HealthService(health.aio.HealthServicer):  # type: ignore[name-defined, misc]
    """Check and Watch come from the library, List is ours: the library lacks it for asyncio."""

    def __init__(self) -> None:
        super().__init__()
        self.statuses: dict[str, health_pb2.HealthCheckResponse.ServingStatus] = {}

    async def List(
        self, _request: health_pb2.HealthListRequest, _context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthListResponse:
        """Return all names with their status."""
        return health_pb2.HealthListResponse(
            statuses={
                name: health_pb2.HealthCheckResponse(status=status)
                for name, status in self.statuses.items()
            }
        )

    async def update(self, serving: dict[str, bool]) -> None:
        """Set the status of every name; names that are no longer there stop serving."""
        known = dict.fromkeys(self.statuses, False)
        for name, value in (known | serving).items():
            status = _SERVING if value else _NOT_SERVING
            self.statuses[name] = status
            await self.set(name, status)

    async def shut_down(self) -> None:
        """Stop serving under every name, for good."""
        await self.update({})
        await self.enter_graceful_shutdown()


class HealthMonitor:
    """Asks the shards every second and tells the health service."""

    def __init__(self, shards: Shards, service_name: str) -> None:
        self.service = HealthService()
        self._shards = shards
        self._service_name = service_name
        self._serving: dict[int, bool] = {}
        self._seen_serving = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin: nothing serves until the shards have said so."""
        await self.service.update({OVERALL: False, self._service_name: False})
        self._task = asyncio.create_task(self._run(), name="health monitor")

    async def stop(self) -> None:
        """Say NOT_SERVING under every name, and ask no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.service.shut_down()

    async def _run(self) -> None:
        while True:
            await self._poll()
            await asyncio.sleep(
                _POLL_INTERVAL_S if self._seen_serving else _POLL_INTERVAL_STARTING_S
            )

    async def _poll(self) -> None:
        try:
            async with asyncio.timeout(_POLL_TIMEOUT_S):
                serving = await self._shards.serving_shards()
        except Exception:  # whatever it was: shards that do not say they serve do not serve
            _log.exception("the shards did not say whether they serve")
            serving = dict.fromkeys(self._serving, False)
        for shard_id, value in sorted(serving.items()):
            if self._serving.get(shard_id) is not value and (self._seen_serving or value):
                _log.info("shard serves" if value else "shard does not serve", shard_id=shard_id)
        self._serving = serving
        all_serve = bool(serving) and all(serving.values())
        self._seen_serving = self._seen_serving or all_serve
        await self.service.update(
            {OVERALL: all_serve, self._service_name: any(serving.values())}
            | {f"shard-{shard_id}": value for shard_id, value in serving.items()}
        )

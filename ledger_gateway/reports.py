"""`ledger.v1.ReportService`: trial balance, balance sheet, income statement and the like."""

from ledger.v1 import reports_pb2, reports_pb2_grpc
from ledger_cluster.shards import Shards
from ledger_gateway.ledger_directory import LedgerDirectory
from ledger_gateway.shard_calls import ShardCalls

REPORT_SERVICE_NAME = reports_pb2.DESCRIPTOR.services_by_name["ReportService"].full_name


class ReportService(reports_pb2_grpc.ReportServiceServicer):
    """Reports on top of the shards."""

    def __init__(self, shards: Shards) -> None:
        self._shards = ShardCalls(shards)
        self._directory = LedgerDirectory(self._shards)

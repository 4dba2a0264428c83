"""The public service: start reading here.

The RPCs are in six modules, by what they are about; in each, top to bottom:

    transactions.py   moving money: the heart of it
    bulk.py           thousands of transactions in one call, answered whole or in parts, and
                      streams of such calls;
                      atomic.py: those that happen together or not at all
    accounts.py       opening, changing, finding accounts
    batch_reads.py    accounts and balances, many in one call
    ledgers.py        sets of books with their currencies and charts
    history.py        what was: balances, entries, statements, and who did what

Every method goes the same way: check the request, make a command or a query of it, run that on the
shard that holds the account, convert the result. Whatever goes wrong is raised as a LedgerError;
guarded_methods.py turns it into a status.
"""

import asyncio

from ledger.v1 import ledger_pb2, ledger_pb2_grpc
from ledger_cluster.shards import Shards
from ledger_gateway.accounts import AccountRpcs
from ledger_gateway.batch_reads import BALANCES_IN_WORK_MAX, BatchReadRpcs
from ledger_gateway.bulk import BulkRpcs
from ledger_gateway.bulk_work import BulkWork, Room
from ledger_gateway.heavy_work import HeavyWork
from ledger_gateway.history import HistoryRpcs
from ledger_gateway.ledger_directory import LedgerDirectory
from ledger_gateway.ledgers import LedgerRpcs
from ledger_gateway.shard_calls import ShardCalls
from ledger_gateway.single_transfers import SingleTransfers

SERVICE_NAME = ledger_pb2.DESCRIPTOR.services_by_name["LedgerService"].full_name
BULK_METHODS = tuple(
    f"/{SERVICE_NAME}/{name}"
    for name in ("CreateTransactions", "StreamCreateTransactions", "StreamTransactions")
)


class LedgerService(
    BulkRpcs,
    AccountRpcs,
    BatchReadRpcs,
    LedgerRpcs,
    HistoryRpcs,
    ledger_pb2_grpc.LedgerServiceServicer,
):
    """`ledger.v1.LedgerService` on top of the shards. Remembers ledgers, and nothing else."""

    def __init__(self, shards: Shards) -> None:
        self._shards = ShardCalls(shards)
        self._directory = LedgerDirectory(self._shards)
        self._work = BulkWork(self._shards)
        self._singles = SingleTransfers(self._shards, self._directory, self._work.lanes)
        self._heavy = HeavyWork()
        self._reading = Room(BALANCES_IN_WORK_MAX, "accounts that are being read")
        self._stopping = asyncio.Event()

    def stop_streams(self) -> None:
        """Let streams answer what they have begun, and then end: they would never do so."""
        self._stopping.set()

    async def end(self) -> None:
        """Wait, a few seconds at most, until what calls have left behind has ended."""
        await self._work.end()

"""The RPCs of ledgers."""
# ruff: noqa: N802 - gRPC names the methods

import asyncio

from ledger.v1 import ledger_pb2
from ledger_core import commands, queries
from ledger_core.ids import new_request_id
from ledger_core.ledgers import MAIN_NAME, ledger_key
from ledger_core.results import LedgerPage, LedgerView
from ledger_gateway import conversion, fields, validation
from ledger_gateway.errors import unwrap
from ledger_gateway.ledger_directory import LedgerDirectory
from ledger_gateway.pagination import decode_ledger_token, encode_ledger_token
from ledger_gateway.shard_calls import Context, ShardCalls
from ledger_gateway.source import require_valid


class LedgerRpcs:
    """Creating, extending and showing ledgers. A ledger lives on the shard of its name's key."""

    _shards: ShardCalls
    _directory: LedgerDirectory

    async def CreateLedger(
        self, request: ledger_pb2.CreateLedgerRequest, context: Context
    ) -> ledger_pb2.CreateLedgerResponse:
        """Make a ledger."""
        source = require_valid(validation.create_ledger(request), context)
        command = commands.CreateLedger(
            name=request.name,
            request_id=request.request_id or new_request_id(),
            description=request.description,
            currencies=[conversion.currency(item) for item in request.currencies],
            chart=[conversion.chart_code(item) for item in request.chart],
            actor=request.actor,
            source=source,
        )
        view = unwrap(await self._shards.execute(command, context), LedgerView)
        self._directory.remember(view)
        return ledger_pb2.CreateLedgerResponse(ledger=conversion.ledger(view))

    async def GetLedger(
        self, request: ledger_pb2.GetLedgerRequest, context: Context
    ) -> ledger_pb2.GetLedgerResponse:
        """Return a ledger."""
        validation.require(validation.get_ledger(request))
        name = request.ledger or MAIN_NAME
        answer = await self._shards.query(
            ledger_key(name), queries.GetLedger(name), context, request.consistency
        )
        return ledger_pb2.GetLedgerResponse(
            ledger=conversion.ledger(unwrap(answer.result, LedgerView)),
            read_point=conversion.read_point(answer),
        )

    async def ListLedgers(
        self, request: ledger_pb2.ListLedgersRequest, context: Context
    ) -> ledger_pb2.ListLedgersResponse:
        """List all ledgers by name, page by page, merged from all shards."""
        validation.require(validation.list_ledgers(request))
        page_size = request.page_size or fields.PAGE_SIZE_DEFAULT
        after = decode_ledger_token(request.page_token)
        query = queries.ListLedgers(page_size, after)
        answers = await asyncio.gather(
            *(
                self._shards.query_shard(shard_id, query, context, request.consistency)
                for shard_id in self._shards.shard_ids()
            )
        )
        found = {
            view.name: view
            for answer in answers
            for view in unwrap(answer.result, LedgerPage).ledgers
        }
        if after < MAIN_NAME and MAIN_NAME not in found:
            # It is there from the start, but no shard lists it before it was extended.
            main = queries.GetLedger(MAIN_NAME)
            answer = await self._shards.query(
                ledger_key(MAIN_NAME), main, context, request.consistency
            )
            found[MAIN_NAME] = unwrap(answer.result, LedgerView)
        shown = sorted(found)[:page_size]
        return ledger_pb2.ListLedgersResponse(
            ledgers=[conversion.ledger(found[name], with_chart=False) for name in shown],
            # A shard whose page is full may have more, and then there is more than is shown.
            next_page_token=encode_ledger_token(shown[-1]) if len(shown) == page_size else "",
            read_points=[conversion.read_point(answer) for answer in answers],
        )

    async def UpdateLedger(
        self, request: ledger_pb2.UpdateLedgerRequest, context: Context
    ) -> ledger_pb2.UpdateLedgerResponse:
        """Add currencies and lines of the chart, or change the description."""
        source = require_valid(validation.update_ledger(request), context)
        command = commands.ExtendLedger(
            name=request.ledger or MAIN_NAME,
            request_id=request.request_id or new_request_id(),
            revision=request.revision,
            description=request.description if request.HasField("description") else None,
            currencies=[conversion.currency(item) for item in request.currencies],
            chart=[conversion.chart_code(item) for item in request.chart],
            actor=request.actor,
            source=source,
        )
        view = unwrap(await self._shards.execute(command, context), LedgerView)
        self._directory.remember(view)
        return ledger_pb2.UpdateLedgerResponse(ledger=conversion.ledger(view))

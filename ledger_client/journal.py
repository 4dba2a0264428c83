"""Calls of `ledger.v1.JournalService`, for tools that export and import journals."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Self, TypeVar

import grpc
from google.protobuf.message import Message

from ledger.v1 import journal_pb2, journal_pb2_grpc
from ledger_client import _channel
from ledger_client._retries import Attempts
from ledger_client.errors import from_rpc_error

ResponseT = TypeVar("ResponseT")

_PAGE_SIZE = 500


class JournalClient:
    """A connection to a gateway; close it in the end (or use ``with``).

    ``timeout_s`` bounds every call, retries included: all of them may be repeated. Methods raise
    `LedgerError`.
    """

    def __init__(self, target: str, timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(target, options=_channel.OPTIONS)
        self._stub = journal_pb2_grpc.JournalServiceStub(self._channel)

    def list_shards(self) -> list[journal_pb2.JournalShard]:
        """Return the shards in the order of their ranges, and how far their journals reach."""
        response = self._call(self._stub.ListShards, journal_pb2.ListShardsRequest())
        return list(response.shards)

    def list_journal(
        self, shard_id: int, after_number: int, last_number: int, ledger: str = ""
    ) -> Iterator[journal_pb2.JournalEntry]:
        """Go through the journal entries behind ``after_number``, up to ``last_number``."""
        while after_number < last_number:
            request = journal_pb2.ListJournalRequest(
                shard_id=shard_id,
                after_number=after_number,
                page_size=min(_PAGE_SIZE, last_number - after_number),
                ledger=ledger,
            )
            page = self._call(self._stub.ListJournal, request)
            if not page.entries:
                raise LookupError(
                    f"shard {shard_id} shows nothing behind journal entry {after_number}, but had "
                    f"{last_number} of them: has its data been lost?"
                )
            yield from page.entries
            after_number = page.entries[-1].number

    def replay_journal(
        self,
        shard_id: int,
        entries: Sequence[journal_pb2.JournalEntry],
        after_number: int,
        *,
        ends: bool = False,
    ) -> journal_pb2.ReplayJournalResponse:
        """Apply journal entries of another cluster, the first one of them after ``after_number``.

        ``ends`` says that there are no more.
        """
        request = journal_pb2.ReplayJournalRequest(
            shard_id=shard_id, entries=entries, after_number=after_number, ends=ends
        )
        return self._call(self._stub.ReplayJournal, request)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _call(self, method: Callable[..., ResponseT], request: Message) -> ResponseT:
        attempts = Attempts(self._timeout_s)
        while True:
            try:
                return method(request, timeout=attempts.timeout_s())
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
            time.sleep(attempts.pause_s(failure))

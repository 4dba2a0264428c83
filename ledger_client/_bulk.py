"""One bulk call: its request made of items, its response given back to them."""

import struct
from collections.abc import Iterable, Iterator

from ledger.v1 import ledger_pb2
from ledger_client._items import Group, Item, keys_of
from ledger_client._placed import Places, number_texts
from ledger_client._waiting import Call, Kind
from ledger_client.errors import LedgerError, UnknownError, from_call_error

Result = ledger_pb2.Transaction | LedgerError

# A smaller group of transfers is not worth a call of its own: they go as messages with others.
_GROUP_MIN = 32


class Bulk(Call):
    """Items that are sent as one call.

    Those of ``transfers`` travel as columns and share their group; ``singles`` as messages.
    """

    __slots__ = ("singles", "transfers")

    def __init__(self, transfers: list[Item], singles: list[Item]) -> None:
        super().__init__()
        self.transfers = transfers
        self.singles = singles

    def __len__(self) -> int:
        return len(self.transfers) + len(self.singles)

    def items(self) -> Iterator[Item]:
        """Those that have not been in a part of the answer."""
        for item in (*self.transfers, *self.singles):
            if item not in self.told:
                yield item

    def request(self) -> ledger_pb2.CreateTransactionsRequest:
        """Make the request."""
        request = ledger_pb2.CreateTransactionsRequest(
            transactions=[item.single() for item in self.singles]
        )
        transfers = self.transfers
        if not transfers:
            return request
        columns = request.transfers
        columns.ledger, columns.currency, columns.actor = transfers[0].group
        forms = bytes([item.form for item in transfers])
        columns.forms = forms[:1] if forms.count(forms[0]) == len(forms) else forms
        columns.first_account_ids.extend(_numbers([item.first_id for item in transfers]))
        columns.second_account_ids.extend(_numbers([item.second_id for item in transfers]))
        columns.amounts.extend([item.amount for item in transfers])
        columns.request_ids = keys_of(transfers)
        texts = columns.texts
        for index, item in enumerate(transfers):
            if item.text is not None:
                texts[index].CopyFrom(item.text)
        return request

    def results(
        self, response: ledger_pb2.CreateTransactionsResponse
    ) -> Iterable[tuple[Item, Result]]:
        """Return what became of each item; UnknownError if that is not what was asked."""
        if len(response.results) != len(self.singles):
            raise torn("transactions", len(response.results), len(self.singles))
        found: list[tuple[Item, Result]] = [
            (item, read_result(result))
            for item, result in zip(self.singles, response.results, strict=True)
        ]
        if self.transfers:
            found += zip(self.transfers, self._placed(response.transfers), strict=True)
        return found

    def part(
        self, response: ledger_pb2.StreamCreateTransactionsResponse
    ) -> Iterable[tuple[Item, Result]]:
        """Return what became of the items of a part; UnknownError if that is not what was asked."""
        transfers, singles = self.transfers, self.singles
        try:
            part = Bulk(
                [transfers[index] for index in response.transfer_indexes],
                [singles[index] for index in response.transaction_indexes],
            )
        except IndexError:
            raise torn("items", len(response.transfer_indexes), len(self)) from None
        results = part.results(response.part)
        items = {item for item, _ in results}
        if len(items) != len(part) or not self.told.isdisjoint(items):
            raise torn("items", len(self.told) + len(part), len(self))
        self.told |= items
        return results

    def _placed(self, columns: ledger_pb2.TransferResults) -> list[Result]:
        count = len(self.transfers)
        require_length(columns, count)
        if not len(columns.book_indexes) == len(columns.first_directions) == count:
            raise torn("books", len(columns.book_indexes), count)
        places = Places(columns.books, self.transfers[0].group[2])
        refusals, others = dict(columns.refusals), columns.others
        placed: list[Result] = []
        rows = zip(
            self.transfers,
            columns.statuses,
            number_texts(columns.numbers),
            columns.create_times_us,
            columns.book_indexes,
            columns.first_directions,
            strict=True,
        )
        for index, (item, status, number, time_us, book, direction) in enumerate(rows):
            if not status:
                placed.append(read_result(others[index]))
                continue
            place = places.get(book, status, time_us)
            made = item.transaction(place, number, direction)
            if refusals and index in refusals:
                made.refusal.CopyFrom(refusals[index])
            placed.append(made)
        return placed


def read_result(result: ledger_pb2.TransactionResult) -> ledger_pb2.Transaction | LedgerError:
    """Return the transaction, or why there is none."""
    match result.WhichOneof("result"):
        case "transaction":
            return result.transaction
        case "error":
            return from_call_error(result.error)
        case _:
            return UnknownError("UNKNOWN", "the gateway's answer has no result for it")


def require_length(columns: ledger_pb2.TransferResults, count: int) -> None:
    """Raise UnknownError unless the columns have a value for each of so many transfers."""
    for column in (
        columns.statuses,
        columns.numbers,
        columns.create_times_us,
    ):
        if len(column) != count:
            raise torn("transfers", len(column), count)


def _numbers(account_ids: list[bytes]) -> tuple[int, ...]:
    """Return ids of 16 hex digits as numbers."""
    return struct.unpack(f">{len(account_ids)}Q", bytes.fromhex(b"".join(account_ids).decode()))


def torn(what: str, found: int, expected: int) -> UnknownError:
    """Return the error for an answer to something else than what was asked."""
    return UnknownError(
        "UNKNOWN",
        f"the gateway answered {found:,} of {expected:,} {what}; what it did is not known",
    )


def same_group(items: Iterable[Item]) -> dict[Group, list[Item]]:
    """Return transfers by what has to be the same for all of a bulk call."""
    groups: dict[Group, list[Item]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    return groups


def _calls(items: list[Item], calls_max: int) -> list[Bulk]:
    """Return the calls that items make: one, or one for each large group of transfers."""
    first = items[0]
    # Nearly always, all are transfers of one group.
    if first.request is None:
        group = first.group
        if all(item.request is None and item.group == group for item in items):
            return [Bulk(items, [])]
    singles = [item for item in items if item.request is not None]
    groups = same_group(item for item in items if item.request is None)
    by_size = sorted(groups.values(), key=len, reverse=True)
    calls: list[Bulk] = []
    for group_items in by_size[1:]:
        if len(group_items) >= _GROUP_MIN and len(calls) + 1 < calls_max:
            calls.append(Bulk(group_items, []))
        else:
            singles += group_items
    return [Bulk(by_size[0] if by_size else [], singles), *calls]


TRANSACTIONS = Kind("transactions", changes=True, items_max=8_192, calls=_calls)

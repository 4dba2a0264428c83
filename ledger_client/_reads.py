"""Balances and accounts, on their way in calls that ask for many."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from ledger.v1 import ledger_pb2
from ledger_client import _requests
from ledger_client._bulk import torn
from ledger_client._placed import moment
from ledger_client._waiting import Call, Kind, Waiting
from ledger_client.errors import LedgerError, UnknownError, from_call_error

AnswerT = TypeVar("AnswerT")

_ACCOUNT_ID = re.compile(r"[0-9a-f]{16}\Z").match
_ITEM_BYTES = 8

_NOW = ledger_pb2.TIME_BASIS_UNSPECIFIED


class _Read(Waiting[AnswerT]):
    """A read of one account, by its id."""

    __slots__ = ("account_id", "stale")

    def __init__(self, account_id: str, stale: bool) -> None:
        super().__init__(_ITEM_BYTES)
        self.account_id = account_id
        self.stale = stale

    @property
    def may_travel(self) -> bool:
        """Whether the id is one: if not, the answer is up to the ledger."""
        return type(self.account_id) is str and _ACCOUNT_ID(self.account_id) is not None

    def home(self) -> int:
        """Return the account."""
        return int(self.account_id, 16)


class BalanceRead(_Read[ledger_pb2.Balance]):
    """What an account has now."""

    __slots__ = ()

    def single(self) -> ledger_pb2.GetBalanceRequest:
        """Return the request of its single call."""
        return _requests.get_balance(self.account_id, None, _NOW, self.stale)

    def of_single(self, response: ledger_pb2.GetBalanceResponse) -> ledger_pb2.Balance:
        """Return the balance."""
        return response.balance


class AccountRead(_Read[ledger_pb2.Account]):
    """An account as it is now."""

    __slots__ = ()

    def single(self) -> ledger_pb2.GetAccountRequest:
        """Return the request of its single call."""
        return _requests.get_account(self.account_id, "", "", self.stale)

    def of_single(self, response: ledger_pb2.GetAccountResponse) -> ledger_pb2.Account:
        """Return the account."""
        return response.account


class _ReadCall(Call):
    """Reads that are sent as one call. They all want the same consistency."""

    __slots__ = ("_items",)

    def __init__(self, items: Sequence[Any]) -> None:
        super().__init__()
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def items(self) -> Iterable[Any]:
        """Return all of them."""
        return self._items

    def _asked(self) -> dict[str, Any]:
        return {
            "account_ids": [item.home() for item in self._items],
            "consistency": _requests.consistency(self._items[0].stale),
        }


class BalanceCall(_ReadCall):
    """Balances, which come back as columns."""

    __slots__ = ()

    def request(self) -> ledger_pb2.BatchGetBalancesRequest:
        """Make the request."""
        return ledger_pb2.BatchGetBalancesRequest(**self._asked())

    def results(
        self, response: ledger_pb2.BatchGetBalancesResponse
    ) -> Iterator[tuple[BalanceRead, ledger_pb2.Balance | LedgerError]]:
        """Return what became of each; UnknownError if that is not what was asked."""
        columns = (
            response.types,
            response.book_indexes,
            response.settled_balances,
            response.available_balances,
            response.debits_posted,
            response.credits_posted,
            response.debits_pending,
            response.credits_pending,
            response.versions,
            response.update_times_us,
        )
        for column in columns:
            if len(column) != len(self):
                raise torn("balances", len(column), len(self))
        return self._found(response, columns)

    def _found(
        self, response: ledger_pb2.BatchGetBalancesResponse, columns: Sequence[Iterable[Any]]
    ) -> Iterator[tuple[BalanceRead, ledger_pb2.Balance | LedgerError]]:
        books = [(book.ledger, book.currency, book.currency_exponent) for book in response.books]
        rows = zip(self._items, *columns, strict=True)
        for index, (
            item,
            type_,
            book,
            settled,
            available,
            *counters,
            version,
            time_us,
        ) in enumerate(rows):
            if not type_:
                yield item, _why_not(response.errors.get(index))
                continue
            ledger, currency, exponent = books[book]
            debits_posted, credits_posted, debits_pending, credits_pending = counters
            yield (
                item,
                ledger_pb2.Balance(
                    account_id=item.account_id,
                    ledger=ledger,
                    type=type_,
                    currency=currency,
                    currency_exponent=exponent,
                    settled_balance=settled,
                    available_balance=available,
                    debits_posted=debits_posted,
                    credits_posted=credits_posted,
                    debits_pending=debits_pending,
                    credits_pending=credits_pending,
                    version=version,
                    update_time=moment(time_us) if time_us else None,
                ),
            )


class AccountCall(_ReadCall):
    """Accounts, which come back as they are."""

    __slots__ = ()

    def request(self) -> ledger_pb2.BatchGetAccountsRequest:
        """Make the request."""
        return ledger_pb2.BatchGetAccountsRequest(**self._asked())

    def results(
        self, response: ledger_pb2.BatchGetAccountsResponse
    ) -> Iterable[tuple[AccountRead, ledger_pb2.Account | LedgerError]]:
        """Return what became of each; UnknownError if that is not what was asked."""
        if len(response.results) != len(self):
            raise torn("accounts", len(response.results), len(self))
        return [
            (
                item,
                result.account
                if result.HasField("account")
                else _why_not(result.error if result.HasField("error") else None),
            )
            for item, result in zip(self._items, response.results, strict=True)
        ]


def _why_not(error: ledger_pb2.CallError | None) -> LedgerError:
    if error is None:
        return UnknownError("UNKNOWN", "the gateway's answer has no result for it")
    return from_call_error(error)


def _one_call(make: Callable[[list[Any]], Call]) -> Callable[[list[Any], int], Sequence[Call]]:
    return lambda items, _calls_max: [make(items)]


BALANCES = Kind("reads", changes=False, items_max=8_192, calls=_one_call(BalanceCall))
ACCOUNTS = Kind("reads", changes=False, items_max=256, calls=_one_call(AccountCall))

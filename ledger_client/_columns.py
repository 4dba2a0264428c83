"""Many transfers as columns: cut into bulk calls, sent, and put together again."""

import operator
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ledger.v1 import ledger_pb2
from ledger_client import _batches
from ledger_client._bulk import read_result, require_length
from ledger_client._keys import new_keys
from ledger_client._requests import fill
from ledger_client._retries import Attempts, leaves_open, may_retry
from ledger_client.errors import LedgerError, invalid_argument
from ledger_client.transfers import TransferResults
from ledger_core.errors import FieldViolation
from ledger_core.ids import parse_account_id, parse_transaction_id

AccountIds = Sequence[str] | Sequence[int] | NDArray[np.integer[Any]]
"""16 hex digits each, or the numbers that these are."""
Amounts = Sequence[int] | NDArray[np.integer[Any]]
Forms: TypeAlias = (
    "ledger_pb2.TransferForm.ValueType | Sequence[ledger_pb2.TransferForm.ValueType] | "
    "NDArray[np.integer[Any]]"
)
RequestIds = bytes | Sequence[str] | Sequence[uuid.UUID]

_U64_MAX = 2**64 - 1
_I64_MAX = 2**63 - 1
# Of a transfer without texts, at most.
_TRANSFER_BYTES = 48


class Columns:
    """The columns of a `create_transfers`, checked, and its results as they come.

    Raises InvalidArgumentError if the columns are no columns of transfers at all.
    """

    def __init__(
        self,
        first_account_ids: AccountIds,
        second_account_ids: AccountIds | None,
        amounts: Amounts,
        forms: Forms,
        *,
        ledger: str,
        currency: str,
        request_ids: RequestIds | None,
        texts: Mapping[int, ledger_pb2.TransferText] | None,
        actor: str,
    ) -> None:
        self.first = _account_ids("first_account_ids", first_account_ids)
        count = len(self.first)
        if second_account_ids is None:
            self.second = np.zeros(count, np.uint64)
        else:
            self.second = _account_ids("second_account_ids", second_account_ids)
        self.amounts = _numbers("amounts", amounts, 1, _I64_MAX, np.int64)
        if isinstance(forms, int):
            self.forms = np.full(count, forms, np.uint8)
        else:
            self.forms = _numbers("forms", forms, 1, 4, np.uint8)
        self.keys = _keys(request_ids, count)
        self.texts = dict(texts or {})
        for name, column in (
            ("second_account_ids", self.second),
            ("amounts", self.amounts),
            ("forms", self.forms),
        ):
            if len(column) != count:
                raise _wrong(name, f"has {len(column):,} values; first_account_ids has {count:,}")
        if any(not 0 <= index < count for index in self.texts):
            raise _wrong("texts", f"has an index that is not between 0 and {count - 1:,}")
        self._common = fill(ledger_pb2.Transfers(), ledger=ledger, currency=currency, actor=actor)
        self.results = TransferResults(
            self.keys,
            self.first,
            np.zeros(count, np.uint64),
            np.zeros(count, np.uint8),
            np.zeros(count, np.int64),
            {},
            {},
        )

    def chunks(self, timeout_s: float) -> Iterator["Chunk"]:
        """Return the bulk calls to make; each has this much time from when it is taken."""
        count, start = len(self.first), 0
        while start < count:
            end = min(start + _batches.ITEMS_MAX, count)
            if self.texts:
                end = start + self._fitting(start, end)
            yield Chunk(self, np.arange(start, end), timeout_s)
            start = end

    def request(self, indexes: NDArray[np.intp]) -> ledger_pb2.CreateTransactionsRequest:
        """Return the request for some of the transfers."""
        request = ledger_pb2.CreateTransactionsRequest()
        columns = request.transfers
        columns.CopyFrom(self._common)
        columns.forms = self.forms[indexes].tobytes()
        columns.first_account_ids.extend(self.first[indexes].tolist())
        columns.second_account_ids.extend(self.second[indexes].tolist())
        columns.amounts.extend(self.amounts[indexes].tolist())
        keys = np.frombuffer(self.keys, np.uint8).reshape(-1, 16)
        columns.request_ids = keys[indexes].tobytes()
        if self.texts:
            for place, index in enumerate(indexes.tolist()):
                if index in self.texts:
                    columns.texts[place].CopyFrom(self.texts[index])
        return request

    def _fitting(self, start: int, end: int) -> int:
        size = 0
        for index in range(start, end):
            text = self.texts.get(index)
            size += _TRANSFER_BYTES + (text.ByteSize() + 16 if text is not None else 0)
            if size > _batches.BYTES_MAX and index > start:
                return index - start
        return end - start


class Chunk:
    """One bulk call of many transfers, with its attempts.

    Each attempt sends what has no result yet: `request`, then `answer` or `fail`, which return how
    long to wait before the next attempt, in seconds; None: there is none, all have their results.
    """

    def __init__(self, columns: Columns, indexes: NDArray[np.intp], timeout_s: float) -> None:
        self._columns = columns
        self._pending = indexes
        self._attempts = Attempts(timeout_s)
        self._uncertain: dict[int, LedgerError] = {}

    def request(self) -> ledger_pb2.CreateTransactionsRequest:
        """Return the next attempt's request."""
        return self._columns.request(self._pending)

    def timeout_s(self) -> float:
        """Return how long it may take."""
        return self._attempts.timeout_s()

    def answer(self, response: ledger_pb2.CreateTransactionsResponse) -> float | None:
        """Take the results of an attempt."""
        found, pending = response.transfers, self._pending
        try:
            require_length(found, len(pending))
        except LedgerError as torn:
            return self.fail(torn)
        results = self._columns.results
        results.numbers[pending] = found.numbers
        results.statuses[pending] = np.frombuffer(found.statuses, np.uint8)
        results.create_times_us[pending] = found.create_times_us
        for place, refusal in found.refusals.items():
            results.refusals[int(pending[place])] = refusal
        failed: dict[int, LedgerError] = {}
        for place in np.flatnonzero(np.frombuffer(found.statuses, np.uint8) == 0).tolist():
            index, result = int(pending[place]), read_result(found.others[place])
            results.create_times_us[index] = results.numbers[index] = 0
            if isinstance(result, LedgerError):
                failed[index] = result
            else:
                _, results.numbers[index] = parse_transaction_id(result.id)
                results.statuses[index] = result.status
                results.create_times_us[index] = result.create_time.ToMicroseconds()
                if result.HasField("refusal"):
                    results.refusals[index] = result.refusal
        return self._again(failed)

    def fail(self, error: LedgerError) -> float | None:
        """Take the error of an attempt."""
        return self._again(dict.fromkeys(self._pending.tolist(), error))

    def _again(self, failed: dict[int, LedgerError]) -> float | None:
        again: dict[int, LedgerError] = {}
        for index, error in failed.items():
            if may_retry(error):
                again[index] = error
                if leaves_open(error):
                    self._uncertain[index] = error
            else:
                self._columns.results.errors[index] = error
        if not again:
            return None
        longest = max(again.values(), key=lambda error: error.retry_delay_s or 0.0)
        try:
            pause_s = self._attempts.pause_s(longest)
        except LedgerError:
            for index, error in again.items():
                self._columns.results.errors[index] = self._uncertain.get(index, error)
            return None
        self._pending = np.fromiter(again, np.intp, len(again))
        return pause_s


def _account_ids(name: str, values: AccountIds) -> NDArray[np.uint64]:
    if len(values) and isinstance(values[0], str):
        texts: Sequence[Any] = values  # type: ignore[assignment]
        try:
            return np.fromiter(map(parse_account_id, texts), np.uint64, len(texts))
        except (TypeError, ValueError) as error:
            raise _wrong(name, f"has an account id that is none: {error}") from None
    return _numbers(name, values, 0, _U64_MAX, np.uint64)


def _numbers(name: str, values: Any, least: int, most: int, kind: Any) -> NDArray[Any]:
    """Return whole numbers as an array of a kind; floats are none, and nothing is cut off."""
    try:
        if isinstance(values, np.ndarray):
            if values.ndim != 1 or values.dtype.kind not in "iu":
                raise _wrong(name, f"must be whole numbers in one row, not {values.dtype}")
            found = values
        else:
            # As objects, so that numpy does not turn whole numbers into floats.
            found = np.array([operator.index(value) for value in values], object)
        if len(found) and not (least <= int(found.min()) and int(found.max()) <= most):
            raise _wrong(name, f"has a value that is not between {least} and {most}")
        return found.astype(kind)
    except (TypeError, ValueError) as error:
        if isinstance(error, LedgerError):
            raise
        raise _wrong(name, "must be whole numbers") from None


def _keys(request_ids: RequestIds | None, count: int) -> bytes:
    if request_ids is None:
        return new_keys(count)
    if isinstance(request_ids, bytes):
        keys = request_ids
    else:
        try:
            keys = b"".join(
                [
                    (item if isinstance(item, uuid.UUID) else uuid.UUID(item)).bytes
                    for item in request_ids
                ]
            )
        except (TypeError, ValueError, AttributeError):
            raise _wrong("request_ids", "must be UUIDs, or 16 bytes of one each") from None
    if len(keys) != 16 * count:
        raise _wrong("request_ids", f"must be {count:,} UUIDs of 16 bytes, has {len(keys):,} bytes")
    return keys


def _wrong(field: str, description: str) -> LedgerError:
    return invalid_argument([FieldViolation(field, description)])

"""Results of `create_transfers`, as columns."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ledger.v1 import ledger_pb2
from ledger_client.errors import LedgerError
from ledger_core.ids import format_transaction_id

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TransferResults:
    """What became of many transfers: arrays in their order, of equal length."""

    request_ids: bytes
    """The 16 bytes of a UUID each: a load that broke off is repeated safely with the same ones."""
    first_account_ids: "NDArray[np.uint64]"
    numbers: "NDArray[np.uint64]"
    """Transaction numbers: see `transaction_id`; 0 where there is an error."""
    statuses: "NDArray[np.uint8]"
    """`ledger_pb2.TransactionStatus`; 0 where there is an error."""
    create_times_us: "NDArray[np.int64]"
    """Microseconds since the Unix epoch; 0 where there is an error."""
    refusals: dict[int, ledger_pb2.Refusal]
    """By index: why transactions were refused (INSUFFICIENT_FUNDS, REJECTED)."""
    errors: dict[int, LedgerError]
    """By index: what the single call would have raised."""

    def __len__(self) -> int:
        return len(self.numbers)

    def transaction_id(self, index: int) -> str:
        """Return the id of a transaction; raise its LedgerError if there is none."""
        if index in self.errors:
            raise self.errors[index]
        return format_transaction_id(int(self.first_account_ids[index]), int(self.numbers[index]))

    def all_settled(self) -> bool:
        """Whether all of them moved their money."""
        return bool((self.statuses == ledger_pb2.TRANSACTION_STATUS_SETTLED).all())

"""What the gateway remembers of ledgers: their currencies and charts.

Both are only ever added to, so a remembered ledger can lack something, but has nothing wrong: what
is not found in it is looked up again. A new line of a chart may fit a code better than an older
one, so charts are also looked up again after a few seconds.
"""

import time
from collections.abc import Callable, Iterable

from ledger_core.errors import FieldViolation, Reason, RefusedError
from ledger_core.ledgers import MAIN_NAME, USD, ChartCode, Currency, ledger_key, line_of
from ledger_core.queries import GetLedger
from ledger_core.results import LedgerView
from ledger_gateway.errors import unwrap
from ledger_gateway.shard_calls import ShardCalls, Timed

CHART_AGE_S_MAX = 5.0
LEDGERS_MAX = 1_000

# Enough of it to take payments in the default currency while its shard is away.
_MAIN = LedgerView(MAIN_NAME, "", [USD], [], revision=0, create_time_us=0, update_time_us=0)


class LedgerDirectory:
    """Finds ledgers by name. Remembers at most ``LEDGERS_MAX`` of them."""

    def __init__(self, shards: ShardCalls, clock: Callable[[], float] = time.monotonic) -> None:
        self._shards = shards
        self._clock = clock
        self._known: dict[str, tuple[LedgerView, float]] = {}

    async def currencies(
        self, ledger: str, codes_by_field: dict[str, str], context: Timed
    ) -> dict[str, Currency]:
        """Return currencies of a ledger by request field; "" is its default currency.

        Raises RefusedError, naming every field whose currency the ledger does not have.
        """
        wanted = set(codes_by_field.values())
        found = _currencies(self._remembered(ledger))
        if not wanted <= found.keys():
            found = _currencies(await self.fetch(ledger, context))
        if missing := sorted(wanted - found.keys()):
            known = ", ".join(sorted(found.keys() - {""}))
            raise RefusedError(
                Reason.CURRENCY_NOT_IN_LEDGER,
                f"ledger {ledger!r} has no currency {', '.join(missing)}; it has {known}. "
                f"UpdateLedger adds currencies",
                metadata={"ledger": ledger, "currencies": ",".join(missing)},
                violations=[
                    FieldViolation(field, f"ledger {ledger!r} has no currency {code}")
                    for field, code in codes_by_field.items()
                    if code not in found
                ],
            )
        return {field: found[code] for field, code in codes_by_field.items()}

    def known_currency(self, ledger: str, code: str) -> Currency | None:
        """Return a currency of a ledger, "" for its default one, if it is remembered."""
        if (view := self._remembered(ledger)) is None:
            return None
        if not code:
            return view.currencies[0]
        return next((item for item in view.currencies if item.code == code), None)

    async def chart_line(self, ledger: str, code: str, context: Timed) -> ChartCode | None:
        """Return the line of the chart that rules a code; None where there is no chart.

        Raises RefusedError if there is a chart and none of its lines fits.
        """
        view, fetched_at = self._known.get(ledger, (None, 0.0))
        line = line_of(view.chart, code) if view else None
        if view is None or line is None or self._clock() - fetched_at > CHART_AGE_S_MAX:
            view = await self.fetch(ledger, context)
            line = line_of(view.chart, code)
        if view.chart and line is None:
            raise RefusedError(
                Reason.CODE_NOT_IN_CHART,
                f"no line of the chart of ledger {ledger!r} fits the code {code!r}; UpdateLedger "
                f"adds lines",
                metadata={"ledger": ledger, "code": code},
                violations=[FieldViolation("code", f"fits no line of the chart of {ledger!r}")],
            )
        return line

    async def require(self, ledger: str, context: Timed) -> None:
        """Raise RefusedError if there is no such ledger."""
        if self._remembered(ledger) is None:
            await self.fetch(ledger, context)

    async def fetch(self, ledger: str, context: Timed) -> LedgerView:
        """Look a ledger up, whatever is remembered; RefusedError if there is none."""
        answer = await self._shards.query(ledger_key(ledger), GetLedger(ledger), context)
        return self.remember(unwrap(answer.result, LedgerView))

    def remember(self, view: LedgerView) -> LedgerView:
        """Take in a ledger as a shard has shown it, and return the newest that is known of it."""
        known, _ = self._known.pop(view.name, (view, 0.0))
        newest = max(known, view, key=lambda item: item.revision)
        while len(self._known) >= LEDGERS_MAX:
            del self._known[next(iter(self._known))]
        self._known[view.name] = (newest, self._clock())
        return newest

    def _remembered(self, ledger: str) -> LedgerView | None:
        if ledger in self._known:
            return self._known[ledger][0]
        return _MAIN if ledger == MAIN_NAME else None


def _currencies(view: LedgerView | None) -> dict[str, Currency]:
    if view is None:
        return {}
    return {"": view.currencies[0], **_by_code(view.currencies)}


def _by_code(currencies: Iterable[Currency]) -> dict[str, Currency]:
    return {currency.code: currency for currency in currencies}

"""Stories that show what the ledger promises, and check every claim they make.

The first ones work from whatever balance their account has, so they can be told again and again;
nobody else may use the account meanwhile. The others (`entry_scenarios`) open their own accounts.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from ledger_cli.entry_scenarios import ENTRY_SCENARIOS
from ledger_cli.output import status_name
from ledger_cli.story import (
    CANCELLED,
    INSUFFICIENT_FUNDS,
    PENDING,
    SETTLED,
    Story,
    error_of,
    words_of,
)
from ledger_core.ids import new_request_id

PURCHASES = 50
AFFORDABLE = 20
REPEATS = 20


async def scenario_1(story: Story) -> None:
    """A top-up, a purchase that is pending and then settled, and one beyond the funds."""
    start = await story.balance()
    top_up = await story.move(100_00, "top-up", settled=True)
    story.claim(
        top_up.status == SETTLED,
        f"a top-up of {story.money(100_00)} settles at once",
        status_name(top_up.status),
    )
    funded = await story.expect(start, "it is there", available=100_00, settled=100_00, pending=0)

    purchase = await story.move(-30_00, "purchase", settled=False)
    story.claim(
        purchase.status == PENDING,
        f"a purchase of {story.money(30_00)} is pending",
        status_name(purchase.status),
    )
    reserved = await story.expect(
        funded, "its money is reserved, not gone", available=-30_00, settled=0, pending=1
    )

    settled = await story.client.settle_transaction(purchase.id)
    story.claim(settled.status == SETTLED, "the purchase settles", status_name(settled.status))
    paid = await story.expect(
        reserved, "now the money is gone", available=0, settled=-30_00, pending=-1
    )

    beyond = paid.available_balance + 1
    refused = await story.move(-beyond, "purchase beyond the funds", settled=True)
    story.claim(
        refused.status == INSUFFICIENT_FUNDS,
        f"a purchase of {story.money(beyond)}, one minor unit more than there is, "
        "is INSUFFICIENT_FUNDS",
        status_name(refused.status),
    )
    story.claim(
        (refused.refusal.required_amount, refused.refusal.available_amount)
        == (beyond, paid.available_balance),
        f"it says why: {refused.refusal.message}",
        refused.refusal,
    )
    await story.expect(paid, "it moved nothing", available=0, settled=0, pending=0)
    recorded = await story.client.get_transaction(refused.id)
    story.claim(recorded == refused, "it is recorded all the same", recorded)


async def scenario_2(story: Story) -> None:
    """A purchase that is pending and then cancelled."""
    await story.move(50_00, "top-up", settled=True)
    start = await story.balance()
    purchase = await story.move(-50_00, "purchase", settled=False)
    story.claim(
        purchase.status == PENDING,
        f"a purchase of {story.money(50_00)} is pending",
        status_name(purchase.status),
    )
    reserved = await story.expect(
        start, "its money is reserved", available=-50_00, settled=0, pending=1
    )
    cancelled = await story.client.cancel_transaction(purchase.id)
    story.claim(
        cancelled.status == CANCELLED, "the purchase is cancelled", status_name(cancelled.status)
    )
    await story.expect(reserved, "its money is free again", available=50_00, settled=0, pending=-1)
    for verb, again in (
        ("settled", story.client.settle_transaction),
        ("cancelled", story.client.cancel_transaction),
    ):
        error = await error_of(again(purchase.id))
        story.claim(
            error is not None and error.status == "FAILED_PRECONDITION",
            f"it cannot be {verb} any more: {error.message if error else ''}",
            error or "no error",
        )
    await story.expect(start, "the balance is what it was", available=0, settled=0, pending=0)


async def scenario_3(story: Story) -> None:
    """Many purchases at once from one balance: exactly the affordable ones succeed."""
    await story.move(100_00, "top-up", settled=True)
    start = await story.balance()
    price = start.available_balance // AFFORDABLE
    affordable = start.available_balance // price
    story.tell(
        f"  {story.money(start.available_balance)} are available; {PURCHASES} purchases of "
        f"{story.money(price)} each go out at once, of which {affordable} are affordable"
    )
    results = await asyncio.gather(
        *(story.move(-price, f"purchase {n}", settled=n % 2 == 0) for n in range(PURCHASES))
    )
    counts = Counter(item.status for item in results)
    granted = counts[SETTLED] + counts[PENDING]
    named = ", ".join(f"{count} {status_name(status)}" for status, count in sorted(counts.items()))
    story.claim(
        granted == affordable and counts[INSUFFICIENT_FUNDS] == PURCHASES - affordable,
        f"exactly {affordable} succeed, the other {PURCHASES - affordable} are INSUFFICIENT_FUNDS",
        named,
    )
    await story.expect(
        start,
        f"{affordable} purchases were paid, not one more",
        available=-affordable * price,
        settled=-counts[SETTLED] * price,
        pending=counts[PENDING],
    )
    listed = {}
    async for item in story.client.list_transactions(story.account_id, page_size=PURCHASES):
        listed[item.id] = item
        if len(listed) == PURCHASES:
            break
    story.claim(
        listed == {item.id: item for item in results},
        f"the account's history has all {PURCHASES}, each with the status that was answered",
        f"{len(listed)} transactions, not the same",
    )
    pending = [item.id for item in results if item.status == PENDING]
    await asyncio.gather(*(story.client.settle_transaction(item) for item in pending))
    await story.expect(
        start,
        f"the {len(pending)} pending ones settle",
        available=-affordable * price,
        settled=-affordable * price,
        pending=0,
    )


async def scenario_4(story: Story) -> None:
    """A request that is sent many times and counts once."""
    start = await story.balance()
    request_id = new_request_id()
    story.tell(
        f"  a top-up of {story.money(25_00)} is sent {REPEATS} times at once as {request_id}"
    )
    results = await asyncio.gather(
        *(story.move(25_00, "top-up", settled=True, request_id=request_id) for _ in range(REPEATS))
    )
    story.claim(
        len({item.id for item in results}) == 1 and all(item == results[0] for item in results),
        f"all {REPEATS} answers are the same transaction, {results[0].id}",
        sorted({item.id for item in results}),
    )
    once = await story.expect(
        start, "the money came once", available=25_00, settled=25_00, pending=0
    )
    error = await error_of(story.move(26_00, "top-up", settled=True, request_id=request_id))
    story.claim(
        error is not None and error.status == "ALREADY_EXISTS" and "amount" in words_of(error),
        f"another amount under the same id is refused: {error.message if error else ''}",
        error or "no error",
    )
    await story.expect(once, "that moved nothing", available=0, settled=0, pending=0)
    repeated = await story.move(25_00, "top-up", settled=True, request_id=request_id)
    story.claim(
        repeated == results[0], "the first request still gets its first answer", repeated.id
    )


ACCOUNT_SCENARIOS: dict[str, Callable[[Story], Awaitable[None]]] = {
    "scenario-1": scenario_1,
    "scenario-2": scenario_2,
    "scenario-3": scenario_3,
    "scenario-4": scenario_4,
}
"""Those that are about one account."""

SCENARIOS = ACCOUNT_SCENARIOS | ENTRY_SCENARIOS

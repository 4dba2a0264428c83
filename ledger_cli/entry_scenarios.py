"""Stories of money between accounts, wherever they live: payments, splits, refunds, exchange.

Each opens accounts of its own. Percentages are worked out in integers: what a division leaves over
is an entry like any other.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

from ledger.v1 import ledger_pb2
from ledger_cli.output import status_name
from ledger_cli.story import INSUFFICIENT_FUNDS, SETTLED, Story
from ledger_client import credit, debit, limits
from ledger_core.ids import new_request_id

INCOME = ledger_pb2.ACCOUNT_TYPE_INCOME
EQUITY = ledger_pb2.ACCOUNT_TYPE_EQUITY

PRICE = 100_00
WALLETS = 10
TRANSFERS = 200

FX_LEDGER = "scenario-fx"
EUR_PER_10_000_USD = 9_235


async def marketplace_payment(story: Story) -> None:
    """A payment of 100.00 with 10 % commission and a fee of 2.9 % + 0.30, held, then paid out."""
    commission = PRICE * 10 // 100
    fee = PRICE * 29 // 1_000 + 30
    share = PRICE - commission - fee
    buyer, merchant = await story.open(PRICE), await story.open()
    commissions = await story.open(account_type=INCOME)
    fees = await story.open(account_type=INCOME)
    entries = [
        debit(buyer, PRICE),
        credit(merchant, share),
        credit(commissions, commission),
        credit(fees, fee),
    ]
    story.tell(
        f"  a buyer has {story.money(PRICE)}; commission {story.money(commission)}, "
        f"processing fee {story.money(fee)}"
    )
    payment = await story.post("the payment is held", entries, settled=False)
    await story.holds(
        "the buyer cannot spend it again, and nobody else has it yet",
        {
            "buyer": (buyer, 0),
            "merchant": (merchant, 0),
            "commissions": (commissions, 0),
            "fees": (fees, 0),
        },
    )
    settled = await story.client.settle_transaction(payment.id)
    story.claim(settled.status == SETTLED, "it is settled", status_name(settled.status))
    await story.holds(
        "everyone has a share, and the shares are the whole price",
        {
            "buyer": (buyer, 0),
            "merchant": (merchant, 86_80),
            "commissions": (commissions, 10_00),
            "fees": (fees, 3_20),
        },
    )
    payout = await story.client.create_transaction(merchant, -share, "payout", settled=True)
    story.claim(
        payout.status == SETTLED,
        f"{story.money(share)} are paid out to the merchant's bank",
        status_name(payout.status),
    )
    await story.holds("nothing is left with the merchant", {"merchant": (merchant, 0)})


async def percentage_split(story: Story) -> None:
    """An amount that three do not share evenly: to the last cent, with a declared remainder."""
    payer, remainder = await story.open(PRICE), await story.open(account_type=INCOME)
    owners = [await story.open() for _ in range(3)]
    share = PRICE // len(owners)
    rest = PRICE - share * len(owners)
    entries = [debit(payer, PRICE), *(credit(owner, share) for owner in owners)]
    story.tell(
        f"  {story.money(PRICE)} for three at a third each: {story.money(share)}, "
        f"which leaves {story.money(rest)}"
    )
    await story.fails(
        "shares that are not the whole are refused",
        "INVALID_FIELDS",
        story.client.create_transaction(entries=entries, settled=True),
    )
    entries.append(credit(remainder, rest))
    await story.post("with an entry for what is left over, it is booked", entries)
    await story.holds(
        "nothing is lost and nothing is made up",
        {"payer": (payer, 0)}
        | {f"owner {number}": (owner, share) for number, owner in enumerate(owners, 1)}
        | {"remainder": (remainder, rest)},
    )


async def partial_payouts(story: Story) -> None:
    """A payment that is settled in part and paid out in three, to the last cent."""
    buyer, payable, seller = await story.open(PRICE), await story.open(), await story.open()
    payment = await story.post(
        f"a payment of {story.money(PRICE)} is held",
        [debit(buyer, PRICE), credit(payable, PRICE)],
        settled=False,
    )
    settled = await story.client.settle_transaction(payment.id, amount=80_00)
    story.claim(
        (settled.status, settled.settled_amount) == (SETTLED, 80_00),
        f"{story.money(80_00)} of it are settled",
        status_name(settled.status),
    )
    await story.holds(
        "the rest is the buyer's again", {"buyer": (buyer, 20_00), "payable": (payable, 80_00)}
    )
    for number, amount in enumerate((30_00, 30_00, 20_00), 1):
        await story.post(
            f"payout {number} of 3, {story.money(amount)}",
            [debit(payable, amount), credit(seller, amount)],
            external_reference=payment.id,
        )
    await story.holds("all is paid out", {"payable": (payable, 0), "seller": (seller, 80_00)})
    await story.refused("one cent more", [debit(payable, 1), credit(seller, 1)])
    closed = await story.client.close_account(payable)
    story.claim(
        closed.state == ledger_pb2.ACCOUNT_STATE_CLOSED, "the empty account is closed, for good"
    )


async def partial_refund(story: Story) -> None:
    """A payment of which a quarter is refunded, commission included, then the rest, never more."""
    buyer, seller = await story.open(PRICE), await story.open()
    commissions = await story.open(account_type=INCOME)
    payment = await story.post(
        f"a payment of {story.money(PRICE)} with 10 % commission",
        [debit(buyer, PRICE), credit(seller, 90_00), credit(commissions, 10_00)],
    )
    refund = await story.client.reverse_transaction(
        payment.id, [25_00, 22_50, 2_50], "refund of a quarter"
    )
    story.claim(
        refund.status == SETTLED and refund.reversal_of == payment.id,
        "a quarter of each entry is reversed, as a transaction that names the payment",
        status_name(refund.status),
    )
    await story.holds(
        "each has given back its part",
        {
            "buyer": (buyer, 25_00),
            "seller": (seller, 67_50),
            "commissions": (commissions, 7_50),
        },
    )
    reverse = story.client.reverse_transaction
    await story.fails(
        "more than what is left is refused",
        "REVERSAL_EXCEEDS",
        reverse(payment.id, [75_01, 67_51, 7_50]),
    )
    rest = await reverse(payment.id)
    story.claim(rest.status == SETTLED, "the rest is refunded", status_name(rest.status))
    await story.holds(
        "the buyer has all of it back",
        {"buyer": (buyer, PRICE), "seller": (seller, 0), "commissions": (commissions, 0)},
    )
    await story.fails("after that there is nothing", "REVERSAL_EXCEEDS", reverse(payment.id))


async def currency_conversion(story: Story) -> None:
    """USD to EUR in one transaction of four entries, through accounts for the exchange."""
    await story.client.create_ledger(
        FX_LEDGER,
        [
            ledger_pb2.Currency(code="USD", exponent=2),
            ledger_pb2.Currency(code="EUR", exponent=2),
        ],
        request_id=FX_LEDGER,
    )
    usd = await story.open(150_00, ledger=FX_LEDGER, currency="USD")
    eur = await story.open(ledger=FX_LEDGER, currency="EUR")
    # The position of the exchange: what it holds of one currency, it owes in the other.
    fx_usd, fx_eur = [
        await story.open(ledger=FX_LEDGER, currency=currency, account_type=EQUITY, limits=limits())
        for currency in ("USD", "EUR")
    ]

    def conversion(cents: int) -> list[ledger_pb2.Entry]:
        bought = cents * EUR_PER_10_000_USD // 10_000
        return [
            debit(usd, cents, "USD"),
            credit(fx_usd, cents, "USD"),
            debit(fx_eur, bought, "EUR"),
            credit(eur, bought, "EUR"),
        ]

    await story.post("100.00 USD become EUR at 0.9235", conversion(100_00), ledger=FX_LEDGER)
    balances = {
        "USD wallet": (usd, 50_00),
        "EUR wallet": (eur, 92_35),
        "exchange": (fx_usd, 100_00),
        "exchange in EUR": (fx_eur, -92_35),
    }
    await story.holds("each currency balances on its own", balances)
    await story.refused("a conversion of 50.01 USD", conversion(50_01), ledger=FX_LEDGER)
    await story.holds("neither currency moved", balances)


async def unsettled_funds(story: Story) -> None:
    """Card payments that wait in a holding account until they clear, and one that comes back."""
    clearing = await story.open(
        account_type=ledger_pb2.ACCOUNT_TYPE_ASSET, metadata={"role": "card network"}
    )
    holding, wallet = await story.open(), await story.open()
    for number, amount in enumerate((60_00, 40_00), 1):
        await story.post(
            f"card payment {number} of {story.money(amount)} comes in, not cleared yet",
            [debit(clearing, amount), credit(holding, amount)],
        )
    await story.holds(
        "it is on hold, not in the wallet",
        {"card network": (clearing, 100_00), "holding": (holding, 100_00), "wallet": (wallet, 0)},
    )
    bank = await story.open()
    await story.refused("a payout before it clears", [debit(wallet, 1), credit(bank, 1)])
    await story.post("the first payment clears", [debit(holding, 60_00), credit(wallet, 60_00)])
    await story.post("the second is charged back", [debit(holding, 40_00), credit(clearing, 40_00)])
    await story.holds(
        "what cleared can be spent, and the holding account is empty",
        {"card network": (clearing, 60_00), "holding": (holding, 0), "wallet": (wallet, 60_00)},
    )


async def wallet_transfers(story: Story) -> None:
    """Many transfers at once between ten wallets: money goes round, and none comes or goes."""
    rng = random.Random(0)  # noqa: S311  (the same story every time)
    wallets = await asyncio.gather(*(story.open(PRICE) for _ in range(WALLETS)))
    total = WALLETS * PRICE
    orders = []
    for _ in range(TRANSFERS):
        payer, payee = rng.sample(wallets, 2)
        orders.append((new_request_id(), payer, payee, rng.randint(1, PRICE)))

    async def transfer(
        request_id: str, payer: str, payee: str, amount: int
    ) -> ledger_pb2.Transaction:
        return await story.client.create_transaction(
            entries=[debit(payer, amount), credit(payee, amount)],
            settled=True,
            request_id=request_id,
        )

    story.tell(
        f"  {WALLETS} wallets with {story.money(PRICE)} each; {TRANSFERS} transfers between them "
        f"go out at once"
    )
    results = await asyncio.gather(*(transfer(*order) for order in orders))
    counts = Counter(item.status for item in results)
    named = ", ".join(f"{count} {status_name(status)}" for status, count in sorted(counts.items()))
    story.claim(
        counts[SETTLED] + counts[INSUFFICIENT_FUNDS] == TRANSFERS,
        f"each is settled, or refused for lack of money: {named}",
        named,
    )
    accounts = await asyncio.gather(*map(story.client.get_account, wallets))
    balances = {account.id: account.settled_balance for account in accounts}
    expected = dict.fromkeys(wallets, PRICE)
    for (_, payer, payee, amount), result in zip(orders, results, strict=True):
        if result.status == SETTLED:
            expected[payer] -= amount
            expected[payee] += amount
    story.claim(
        sum(balances.values()) == total,
        f"all wallets together have what they had: {story.money(total)}",
        story.money(sum(balances.values())),
    )
    story.claim(balances == expected, "each has what its settled transfers come to", balances)
    lowest = min(balances.values())
    story.claim(lowest >= 0, f"none is below zero; the lowest has {story.money(lowest)}", lowest)
    again = await asyncio.gather(*(transfer(*order) for order in orders[:20]))
    story.claim(
        [item.id for item in again] == [item.id for item in results[:20]],
        "20 of them, sent again, are the same transfers and move nothing",
    )
    accounts = await asyncio.gather(*map(story.client.get_account, wallets))
    story.claim(
        {account.id: account.settled_balance for account in accounts} == balances,
        "the balances are as before",
    )


ENTRY_SCENARIOS: dict[str, Callable[[Story], Awaitable[None]]] = {
    "scenario-5": marketplace_payment,
    "scenario-6": percentage_split,
    "scenario-7": partial_payouts,
    "scenario-8": partial_refund,
    "scenario-9": currency_conversion,
    "scenario-10": unsettled_funds,
    "scenario-11": wallet_transfers,
}

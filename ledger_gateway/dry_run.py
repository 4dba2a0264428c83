"""What would become of a transaction: every shard that it involves is asked for its vote."""

import asyncio

from ledger.v1 import ledger_pb2
from ledger_core.accounts import TransactionStatus
from ledger_core.commands import CreateTransaction, Entry, Refused
from ledger_core.errors import RefusalReason
from ledger_core.ledgers import Currency
from ledger_core.queries import DryRun, GetAccount
from ledger_core.refusals import refusal_message
from ledger_core.results import AccountView, EntryView, RefusalView, TransactionView, VoteView
from ledger_gateway import conversion
from ledger_gateway.errors import unwrap
from ledger_gateway.shard_calls import ShardCalls, Timed


async def dry_run(
    shards: ShardCalls, command: CreateTransaction, context: Timed
) -> ledger_pb2.Transaction:
    """Return the transaction as it would be recorded now, without id and times."""
    if command.entries:
        ledger, currency = command.ledger, command.entries[0].currency
        shard_ids = sorted({entry.shard_id for entry in command.entries})
    else:
        query = GetAccount(command.account_id)
        answer = await shards.query(command.account_id, query, context)
        account = unwrap(answer.result, AccountView)
        ledger, currency = account.ledger, Currency(account.currency, account.currency_exponent)
        shard_ids = [shards.shard_id_of(command.account_id)]
    answers = await asyncio.gather(
        *(shards.query_shard(shard_id, DryRun(command), context) for shard_id in shard_ids)
    )
    votes = [unwrap(answer.result, VoteView).refused for answer in answers]
    # Of several refusals the home would record the one of the lowest entry.
    refused = min((vote for vote in votes if vote), key=lambda vote: vote.entry_index, default=None)
    shown = conversion.transaction(
        TransactionView(
            account_id=command.account_id,
            number=0,
            amount=command.amount,
            description=command.description,
            status=_status(command, refused),
            ledger=ledger,
            currency=currency.code,
            currency_exponent=currency.exponent,
            entries=[_entry_view(entry) for entry in command.entries],
            refusal=_refusal_view(command, refused, currency) if refused else None,
            request_id=command.request_id,
            create_time_us=0,
            update_time_us=0,
            effective_time_us=command.effective_time_us,
            external_reference=command.external_reference,
            metadata=command.metadata,
            actor=command.actor,
            expire_time_us=command.expire_time_us,
        )
    )
    for field in ("id", "create_time", "update_time"):
        shown.ClearField(field)
    if not command.effective_time_us:
        shown.ClearField("effective_time")
    return shown


def _status(command: CreateTransaction, refused: Refused | None) -> TransactionStatus:
    if refused is None:
        return TransactionStatus.SETTLED if command.settled else TransactionStatus.PENDING
    if refused.reason is RefusalReason.INSUFFICIENT_FUNDS:
        return TransactionStatus.INSUFFICIENT_FUNDS
    return TransactionStatus.REJECTED


def _entry_view(entry: Entry) -> EntryView:
    return EntryView(
        entry.account_id,
        entry.direction,
        entry.amount,
        entry.currency.code,
        entry.currency.exponent,
    )


def _refusal_view(command: CreateTransaction, refused: Refused, currency: Currency) -> RefusalView:
    account_id = command.account_id
    if command.entries:
        entry = command.entries[refused.entry_index]
        account_id, currency = entry.account_id, entry.currency
    return RefusalView(
        reason=refused.reason,
        entry_index=refused.entry_index,
        account_id=account_id,
        required_amount=refused.required_amount,
        available_amount=refused.available_amount,
        message=refusal_message(refused, account_id, currency),
    )

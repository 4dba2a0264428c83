"""Answers to queries, from one consistent view of a shard's tables: the table of contents."""

from collections.abc import Callable
from typing import Any, Final

from ledger_core.queries import (
    DryRun,
    FindName,
    GetAccount,
    GetAccounts,
    GetBalance,
    GetBalances,
    GetLedger,
    GetSettlements,
    GetStatement,
    GetTotals,
    GetTransaction,
    GetTransactionByRequest,
    GetTransactionStates,
    ListAccountEvents,
    ListAccounts,
    ListAgeing,
    ListEntries,
    ListJournal,
    ListLedgers,
    ListLedgerTransactions,
    ListTransactions,
    Query,
)
from ledger_core.results import Result
from ledger_node import (
    ageing,
    batch_reads,
    current_reads,
    history_reads,
    journal_reads,
    settlement_reads,
    totals,
    transaction_lists,
)
from ledger_node.books import Books
from ledger_node.store import ShardTables
from ledger_node.transaction_rules import dry_run

READS: Final[dict[type[Query], Callable[[ShardTables, Any], Result]]] = {
    GetAccount: current_reads.get_account,
    ListAccounts: current_reads.list_accounts,
    GetLedger: current_reads.get_ledger,
    ListLedgers: current_reads.list_ledgers,
    FindName: current_reads.find_name,
    GetTransaction: current_reads.get_transaction,
    GetTransactionByRequest: current_reads.get_transaction_by_request,
    GetTransactionStates: current_reads.get_transaction_states,
    ListTransactions: transaction_lists.list_transactions,
    ListLedgerTransactions: transaction_lists.list_ledger_transactions,
    GetBalance: history_reads.get_balance,
    ListEntries: history_reads.list_entries,
    GetStatement: history_reads.get_statement,
    ListAccountEvents: history_reads.list_account_events,
    GetTotals: totals.get_totals,
    ListAgeing: ageing.list_ageing,
    GetSettlements: settlement_reads.get_settlements,
    ListJournal: journal_reads.list_journal,
    GetBalances: batch_reads.get_balances,
    GetAccounts: batch_reads.get_accounts,
}


def answer(tables: ShardTables, query: Query, shard_id: int) -> Result:
    """Answer a query to a shard; a Failure says what was not found.

    Reads change nothing, ask no clock, and look at a bounded number of rows.
    """
    if isinstance(query, DryRun):
        return dry_run(Books(tables, tables.meta(), shard_id), query.transaction)
    return READS[type(query)](tables, query)

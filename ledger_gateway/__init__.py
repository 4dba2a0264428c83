"""The public door: the gRPC service `ledger.v1.LedgerService`, stateless.

The way of a call, top to bottom:

    guarded_methods.py   outermost: bounds what runs at once, maps every error to a status
    ledger_service.py    the service: start reading here; its RPCs are in
      transactions.py, accounts.py, ledgers.py, history.py
    validation.py        request -> all of its wrong fields (fields.py: what is wrong with a value)
    source.py            metadata of a call -> where a change comes from, for the audit
    ledger_directory.py  ledger -> its currencies and its chart, remembered
    ledger_transactions.py  the transactions of a ledger, merged from all shards
    pagination.py        opaque page tokens, and how large a page may be
    shard_calls.py       the shards, within the caller's deadline: `ledger_cluster.shards.Shards`,
                         which is a cluster, or standalone.py
    dry_run.py           what would become of a transaction
    conversion.py        results -> API messages
    errors.py            errors and refusals -> google.rpc.Status
    reports.py           the service of reports, with report_requests.py (fields, moments) and
                         report_messages.py (results -> messages)

`server.py` puts them together with health checking and reflection; `main.py` is the command.
"""

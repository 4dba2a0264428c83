"""The public door: the gRPC service `ledger.v1.LedgerService`, stateless.

The way of a call, top to bottom:

    interceptor.py      outermost: bounds what runs at once, maps every error to a status
    ledger_service.py   one method per RPC: start reading here
    validation.py       request -> all of its wrong fields
    pagination.py       opaque page tokens
    (the shards)        `ledger_cluster.shards.Shards`: a cluster, or standalone.py
    conversion.py       results -> API messages
    errors.py           errors and refusals -> google.rpc.Status

`server.py` puts them together with health checking and reflection; `main.py` is the command.
"""

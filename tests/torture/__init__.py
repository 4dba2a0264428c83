"""Real processes under fire: a cluster that is broken on purpose while clients move money.

`network` (TCP proxies between the processes), `cluster` (the processes, and what can be done to
them), `damage` (spoiled store files), `workload` (clients that record what they saw), `checks`
(what must hold of the records), `faults` (what is broken, drawn from a seed), `campaign` (a whole
run), `report` (what it prints). Run it as ``./scripts/torture --minutes 10``.
"""

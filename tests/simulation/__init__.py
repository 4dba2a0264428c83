"""A whole cluster in one thread, from one seed: simulated time, network, disks and clients.

The nodes, their stores, their Raft groups and their state machines are the real ones; everything
around them is simulated, so a run is a function of its plan:

- `plan`: what a run is made of; `draw_plan` draws one from a seed (swarm testing)
- `engine`: simulated time, the queue of events, the trace
- `host`: one process with its disk and clocks; a crash loses what is not committed
- `network`: links between hosts, and the way from gateways to hosts
- `faults`: what the schedule of a plan does to all of these
- `gateway`, `clients`: callers that behave as the real gateway's shard client does
- `checks`: what must hold after every turn; `history`: what must hold of the whole run
- `model`: what the log of a shard must lead to; `across`: what must hold between shards
- `linearizability`: Wing and Gong's search, also for histories of real processes
- `runner`: runs a plan; `mutants`, `commit_mutants`: deliberate breakages that runs must catch

`python -m tests.simulation --seed 123` runs one seed again, exactly.
"""

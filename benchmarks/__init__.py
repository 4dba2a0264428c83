"""Measurements of the ledger on one machine. `python -m benchmarks` is the suite (scripts/bench).

The other programs here measure one thing each: `failover.py`, `rejoin.py`, `transfers.py`.
"""
